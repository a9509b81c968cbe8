//! `inferq submit --dry-run`: what would be published, without a queue and without a ledger.
//!
//! In: the flags. Out: a table on stdout; bad lines and ids that stand twice as `submit` would say them. It writes
//! nothing but files for sorting ids, which have no names.

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::check::{Check, look_through};
use crate::chunk::{Chunk, Chunker};
use crate::connect::print;
use crate::outcome::{Error, Outcome};
use crate::progress::grouped;
use crate::recipe::{InputArgs, Recipe};
use crate::tokens::TokenCounter;

/// What would be published.
#[derive(Debug, Default)]
struct Sums {
    items: u64,
    jobs: u64,
    tokens: u64,
    bytes: u64,
    bad: u64,
}

impl Sums {
    fn add(&mut self, chunk: Chunk, recipe: &Recipe, tokens: &TokenCounter) {
        self.bad += chunk.bad.len() as u64;
        self.items += chunk.work.rows();
        self.tokens += tokens.count(chunk.work.items());
        // As long as a real one.
        let submission = "s000000000000";
        if let Some(message) = recipe.message_of(submission, chunk.number, chunk.work, Timestamp::now()) {
            self.jobs += 1;
            self.bytes += message.body.len() as u64;
        }
    }

    fn table(&self, exact: bool) -> String {
        let how = if exact { "by the model's tokenizer" } else { "about: bytes / 4; --model DIR counts them" };
        let rows = [
            ("items", self.items, ""),
            ("jobs", self.jobs, ""),
            ("tokens", self.tokens, how),
            ("bytes", self.bytes, "of job bodies"),
            ("bad lines", self.bad, ""),
        ];
        let row = |(name, number, note): (&str, u64, &str)| format!("{name:<10}{:>16}  {note}", grouped(number));
        rows.map(row).map(|row| row.trim_end().to_owned() + "\n").concat()
    }
}

/// Counts, and prints the table.
///
/// # Errors
/// When the input can't be read, or `submit` would refuse it.
pub(super) fn dry_run(
    args: &InputArgs,
    recipe: &Recipe,
    tokens: &TokenCounter,
    stop: &CancellationToken,
) -> Result<Outcome, Error> {
    let source = args.source()?;
    let again = source.again();
    let check = Check::beforehand(args.on_bad_input, &source, &std::env::temp_dir());
    let (mut chunker, mut sums) = (Chunker::new(recipe.chunk_limits()), Sums::default());
    look_through(source, check, again, stop, |entry| {
        if let Some(chunk) = chunker.push(entry) {
            sums.add(chunk, recipe, tokens);
        }
    })?;
    if let Some(chunk) = chunker.finish() {
        sums.add(chunk, recipe, tokens);
    }
    print(&sums.table(tokens.is_exact()))?;
    Ok(if sums.bad > 0 { Outcome::SomeFailed } else { Outcome::Done })
}
