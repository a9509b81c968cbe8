//! Pure: what a command says at its end, as a table for people.
//!
//! In: what the rows have in common, and the time that the command took. Out: lines for stderr, and the outcome. It
//! never prints.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::outcome::Outcome;
use crate::progress::{duration, grouped};
use crate::rows::{Slow, Tally};
use crate::sink::Output;

/// What a command did.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Of all rows.
    pub tally: Tally,
    /// Tokens that the model read.
    pub tokens: u64,
    /// Items whose replies came in this run.
    pub items_now: u64,
    /// How long it took.
    pub took: Duration,
}

impl Summary {
    /// Whether any row has an error.
    pub fn outcome(&self) -> Outcome {
        if self.tally.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed }
    }

    /// The table, for people.
    pub fn table(&self, output: &Output, failures: Option<&Path>) -> String {
        let Self { tally, tokens, items_now, took } = self;
        let mut text = format!("{} items in {output}\n", grouped(tally.rows));
        let mut count = |name: &str, number: u64| writeln!(text, "  {name:24} {:>14}", grouped(number));
        let _ = count("succeeded", tally.rows.saturating_sub(tally.failures()));
        for (code, rows) in &tally.failed {
            let _ = count(code, *rows);
        }
        let _ = count("tokens", *tokens);
        let items = if *items_now > 0 { *items_now } else { tally.rows };
        let rate = grouped((items as f64 / took.as_secs_f64().max(0.001)).round() as u64);
        let _ = writeln!(text, "  {:24} {:>14}   {rate} items/s", "time", duration(*took));
        text += &slowest(&tally.slowest);
        if let Some(failures) = failures.filter(|_| !tally.failed.is_empty()) {
            let _ = writeln!(text, "what failed, and why: {}", failures.display());
        }
        text
    }
}

fn slowest(jobs: &[Slow]) -> String {
    if jobs.is_empty() {
        return String::new();
    }
    let mut text =
        format!("  {:24} {:>9} {:>9} {:>9} {:>9}\n", "slowest jobs, ms", "queued", "intake", "batch", "engine");
    for Slow { job, timings } in jobs {
        let [queued, intake, batch, engine] = [timings.queued, timings.intake, timings.batch, timings.engine]
            .map(|ms| grouped(ms.max(0.0).round() as u64));
        let _ = writeln!(text, "  {:24} {queued:>9} {intake:>9} {batch:>9} {engine:>9}", job.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use inferq_shared::job::JobId;
    use inferq_shared::reply::Timings;

    use super::*;

    #[test]
    fn a_table_counts_items_by_outcome_and_names_the_slowest_jobs() {
        let timings = Timings { queued: 12_000.4, intake: 1.0, batch: 5.5, engine: 250.0 };
        let tally = Tally {
            rows: 1_000,
            failed: [("malformed".to_owned(), 2)].into(),
            slowest: vec![Slow { job: JobId::new("s1-000007").expect("an id"), timings }],
            ..Tally::default()
        };
        let summary = Summary { tally, tokens: 12_345, items_now: 500, took: Duration::from_secs(2) };
        let table = summary.table(&Output::Stdout, Some(Path::new("f.jsonl")));
        let lines: Vec<String> =
            table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "1,000 items in stdout",
            "succeeded 998",
            "malformed 2",
            "tokens 12,345",
            "time 2 s 250 items/s",
            "slowest jobs, ms queued intake batch engine",
            "s1-000007 12,000 1 6 250",
            "what failed, and why: f.jsonl",
        ];
        assert_eq!(lines, expected);
        assert_eq!(summary.outcome(), Outcome::SomeFailed);
    }
}
