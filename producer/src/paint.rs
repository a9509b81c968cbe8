//! Colour on stdout where it is wanted: decided once, passed to who prints.
//!
//! In: `--color`, `NO_COLOR`, the terminal. Out: words in a style, or as they are. Colour never carries what the words
//! don't say.

use std::io::{IsTerminal, stdout};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Puts words into a style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout.
    pub fn new(when: When) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => stdout().is_terminal() && !is_set("NO_COLOR") && !dumb,
        };
        Self { on }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.styled(text, Style::new().bold())
    }

    /// What is well.
    pub fn good(self, text: &str) -> String {
        self.styled(text, AnsiColor::Green.on_default())
    }

    /// What needs somebody.
    pub fn bad(self, text: &str) -> String {
        self.styled(text, AnsiColor::Red.on_default())
    }

    /// What is less important.
    pub fn faint(self, text: &str) -> String {
        self.styled(text, Style::new().dimmed())
    }

    fn styled(self, text: &str, style: Style) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_there_only_when_it_is_wanted() {
        assert_eq!(Paint::new(When::Never).bad("dead"), "dead");
        assert_eq!(Paint::new(When::Always).bad("dead"), "\u{1b}[31mdead\u{1b}[0m");
        assert_eq!(Paint::new(When::Auto).heading("queue"), "queue", "a test's stdout is no terminal");
    }
}
