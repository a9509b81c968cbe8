//! Progress of long work: a bar where stderr is a terminal, else a line every ten seconds at most.
//!
//! In: how far the work has come. Out: items a second, tokens a second, time left, on stderr. What is said is worked
//! out by [`describe`], which is pure. It never writes to stdout.

use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::connect::say;

/// How much is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Items.
    pub items: u64,
    /// Tokens of those items; 0 where they aren't counted.
    pub tokens: u64,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// Nobody knows yet.
    Unknown,
    /// Items, by the share of the input that has been read.
    About(u64),
    /// Items.
    Exactly(u64),
}

impl Total {
    /// From the items found in the share of the input that has been read.
    pub fn estimate(items: u64, fraction: Option<f64>) -> Self {
        match fraction {
            Some(fraction) if fraction > 0.0 => Self::About((items as f64 / fraction).round() as u64),
            _ => Self::Unknown,
        }
    }

    fn items(self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::About(items) | Self::Exactly(items) => Some(items),
        }
    }
}

/// Shows progress. Shared by the tasks of one command.
pub struct Progress {
    noun: &'static str,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

/// Something waits for what is away or full; in the bar until it is dropped.
#[must_use = "what is dropped waits no longer"]
pub struct Waiting<'a> {
    progress: &'a Progress,
    since: Instant,
}

struct State {
    /// How many wait, and what the first of them waits for.
    waiting: (usize, String),
    done: Tally,
    total: Total,
    /// What was done when the clock started: rates are those of this process, and don't count its start-up.
    since: Option<(Instant, Tally)>,
    line_at: Instant,
}

const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// Of items; starts with nothing known.
    pub fn new() -> Self {
        Self::of("items")
    }

    /// Of whatever `noun` says; starts with nothing known.
    pub fn of(noun: &'static str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let waiting = (0, String::new());
        let state =
            State { waiting, done: Tally::default(), total: Total::Unknown, since: None, line_at: Instant::now() };
        Self { noun, bar, state: Mutex::new(state) }
    }

    /// Says how much there is to do.
    pub fn expect(&self, total: Total) {
        let mut state = self.state.lock().expect("drawing progress does not panic");
        if let (Some(bar), Some(items), None) = (&self.bar, total.items(), state.total.items()) {
            let style = ProgressStyle::with_template("{bar:30} {msg}").expect("the template is well formed");
            bar.set_style(style);
            bar.set_length(items);
        }
        state.total = total;
    }

    /// Says how much is done.
    pub fn reach(&self, done: Tally) {
        let now = Instant::now();
        let mut state = self.state.lock().expect("drawing progress does not panic");
        let (since, before) = *state.since.get_or_insert((now, done));
        state.done = done;
        let line = || {
            let held_up = if state.waiting.0 > 0 { format!(", waiting: {}", state.waiting.1) } else { String::new() };
            describe(self.noun, (before, done), state.total, now - since) + &held_up
        };
        if let Some(bar) = &self.bar {
            if let Some(items) = state.total.items() {
                bar.set_length(items);
            }
            bar.set_position(done.items);
            bar.set_message(line());
        } else if now - state.line_at >= LINE_EVERY {
            say(&line());
            state.line_at = now;
        }
    }

    /// Says what is waited for: in the bar, or in a line when it begins and, by [`Waiting::over`], when it ends. What waits
    /// at the same time is one wait.
    pub fn wait(&self, what: &str) -> Waiting<'_> {
        let waiting = &mut self.state.lock().expect("drawing progress does not panic").waiting;
        if waiting.0 == 0 {
            waiting.1 = what.to_owned();
            match &self.bar {
                Some(bar) => bar.set_message(format!("waiting: {what}")),
                None => say(&format!("waiting: {what}")),
            }
        }
        waiting.0 += 1;
        Waiting { progress: self, since: Instant::now() }
    }

    /// Says something beside the bar, once.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Waiting<'_> {
    /// What was waited for is there.
    pub fn over(self) {
        let (progress, since) = (self.progress, self.since);
        drop(self);
        let others = progress.state.lock().expect("drawing progress does not panic").waiting.0;
        if others == 0 && progress.bar.is_none() {
            say(&format!("going on after {}", duration(since.elapsed())));
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.progress.state.lock().expect("drawing progress does not panic").waiting.0 -= 1;
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `done` of `total`, with the rates since `before`, which was `elapsed` ago.
pub fn describe(noun: &str, (before, done): (Tally, Tally), total: Total, elapsed: Duration) -> String {
    let mut text = match total {
        Total::Unknown => format!("{} {noun}", grouped(done.items)),
        Total::About(total) => format!("{} of about {} {noun}", grouped(done.items), grouped(total)),
        Total::Exactly(total) => format!("{} of {} {noun}", grouped(done.items), grouped(total)),
    };
    let seconds = elapsed.as_secs_f64();
    let items = done.items.saturating_sub(before.items);
    if items == 0 || seconds < 0.001 {
        return text;
    }
    let rate = items as f64 / seconds;
    text += &format!(", {} {noun}/s", grouped(rate.round() as u64));
    if let Some(tokens) = done.tokens.checked_sub(before.tokens).filter(|tokens| *tokens > 0) {
        text += &format!(", {} tokens/s", grouped((tokens as f64 / seconds).round() as u64));
    }
    if let Some(left) = total.items().map(|total| total.saturating_sub(done.items)).filter(|left| *left > 0) {
        text += &format!(", {} left", duration(Duration::from_secs_f64(left as f64 / rate)));
    }
    text
}

/// A number with commas between its thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}

/// A time in its two largest units.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{} s", seconds.max(1)),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_from_where_this_process_began() {
        let before = Tally { items: 10_000, tokens: 0 };
        let done = Tally { items: 12_000, tokens: 50_000 };
        let text = describe("items", (before, done), Total::Exactly(20_000), Duration::from_secs(2));
        assert_eq!(text, "12,000 of 20,000 items, 1,000 items/s, 25,000 tokens/s, 8 s left");
        assert_eq!(describe("items", (done, done), Total::Unknown, Duration::from_secs(2)), "12,000 items");
    }

    #[test]
    fn an_unread_rest_is_estimated() {
        assert_eq!(Total::estimate(500, Some(0.25)), Total::About(2000));
        assert_eq!(Total::estimate(0, Some(0.0)), Total::Unknown);
        assert_eq!(Total::estimate(500, None), Total::Unknown);
    }

    #[test]
    fn numbers_and_times_read_easily() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let times = [0, 61, 3 * 3600 + 120, 90_000].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(times, ["1 s", "1 min 1 s", "3 h 2 min", "1 d 1 h"]);
    }
}
