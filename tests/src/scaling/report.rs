//! Tables for the document, and the blocks that they fill.
//!
//! In: outcomes. Out: Markdown between marks; what stands outside of them is left as it is.

use anyhow::{Context, Result};

use crate::scaling::drains::Drain;
use crate::scaling::outcome::{Foresight, Outcome};

/// Puts text into the block of a name.
///
/// # Errors
/// When the document has no such block.
pub fn fill(document: &str, block: &str, text: &str) -> Result<String> {
    let (open, close) = (format!("<!-- {block}: made by `make simulate-scaling` -->\n"), format!("<!-- /{block} -->"));
    let begin = document.find(&open).with_context(|| format!("the document has no block {block}"))? + open.len();
    let end = begin + document[begin..].find(&close).with_context(|| format!("the block {block} has no end"))?;
    Ok(format!("{}{}\n{}", &document[..begin], text.trim_end(), &document[end..]))
}

/// What a block holds.
pub fn block<'a>(document: &'a str, block: &str) -> Option<&'a str> {
    let open = format!("<!-- {block}: made by `make simulate-scaling` -->\n");
    let begin = document.find(&open)? + open.len();
    let end = document[begin..].find(&format!("<!-- /{block} -->"))?;
    Some(document[begin..begin + end].trim_end())
}

/// Measured drains against simulated ones, and how long stopped workers took to end.
pub fn drains(drains: &[(Drain, Outcome)]) -> String {
    let mut table =
        "| drain, over sqlite | jobs | workers' tokens/s | measured | simulated | difference |\n|---|---|---|---|---|---|\n"
            .to_owned();
    let mut stops = String::new();
    for (drain, outcome) in drains {
        let rates: Vec<_> = drain.workers.iter().map(|worker| count(worker.tokens_per_s)).collect();
        // Adding zero makes a negative zero a positive one.
        let percent = ((outcome.cleared_s / drain.drained_s - 1.0) * 100.0).round() + 0.0;
        table += &format!(
            "| {} | {} | {} | {:.1} s | {:.1} s | {percent:+} % |\n",
            drain.name,
            drain.jobs,
            rates.join(" and "),
            drain.drained_s,
            outcome.cleared_s,
        );
        for (worker, (_, ended_s)) in drain.workers.iter().zip(&outcome.workers) {
            if let (Some(stopped_s), Some(exited_s), Some(ended_s)) = (worker.stopped_s, worker.exited_s, ended_s) {
                stops += &format!(
                    "\nThe worker that was stopped had ended {:.1} s later; simulated {:.1} s.\n",
                    exited_s - stopped_s,
                    ended_s - stopped_s
                );
            }
        }
    }
    table + &stops
}

/// The same case with several seeds.
#[derive(Debug)]
pub struct Row<'a> {
    /// The trace's name.
    pub trace: &'a str,
    /// The case's.
    pub label: &'a str,
    /// What came of each seed.
    pub outcomes: Vec<(&'a Outcome, Foresight)>,
}

impl Row<'_> {
    /// A figure's mean over the seeds.
    pub fn mean(&self, figure: impl Fn(&Outcome, Foresight) -> f64) -> f64 {
        let sum: f64 = self.outcomes.iter().map(|&(outcome, foresight)| figure(outcome, foresight)).sum();
        sum / self.outcomes.len() as f64
    }
}

/// Means by trace and label; what is lost, of all seeds together.
pub fn outcomes(rows: &[Row<'_>]) -> String {
    let mut table = "| trace | | cleared after | wait p50 | wait p99 | node-hours | × foresight | US$ | most workers | changes | \
                     reversals | given back | attempts spent | lost |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        table += &format!(
            "| {} | {} | {} | {} | {} | {:.1} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} |\n",
            row.trace,
            row.label,
            time(row.mean(|outcome, _| outcome.cleared_s)),
            time(row.mean(|outcome, _| outcome.wait_p50_s)),
            time(row.mean(|outcome, _| outcome.wait_p99_s)),
            row.mean(|outcome, _| outcome.node_hours),
            row.mean(|outcome, foresight| outcome.node_hours / foresight.node_hours),
            row.mean(|outcome, _| outcome.cost),
            count(row.mean(|outcome, _| f64::from(outcome.ready_max))),
            count(row.mean(|outcome, _| f64::from(outcome.changes))),
            count(row.mean(|outcome, _| f64::from(outcome.reversals))),
            count(row.mean(|outcome, _| f64::from(outcome.given_back))),
            count(row.mean(|outcome, _| f64::from(outcome.attempts_spent))),
            row.outcomes.iter().map(|(outcome, _)| outcome.lost).sum::<u32>()
        );
    }
    table
}

/// One row of the search.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which knob.
    pub knob: String,
    /// Its value.
    pub value: String,
    /// Whether the component has it.
    pub is_component: bool,
    /// Mean multiple of the cost with perfect foresight.
    pub cost: f64,
    /// Mean of the middle waits.
    pub middle_s: f64,
    /// Mean of the 99th percentiles' waits.
    pub wait_s: f64,
    /// The same of the daily trace alone, in which few jobs find no worker.
    pub daily_s: f64,
    /// All reversals.
    pub reversals: u32,
    /// Mean score.
    pub score: f64,
}

/// The search.
pub fn search(rows: &[Found]) -> String {
    let mut table =
        "| knob | value | × foresight | wait p50 | wait p99 | wait p99, daily | reversals | score |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for row in rows {
        let mark = if row.is_component { "**" } else { "" };
        table += &format!(
            "| {} | {mark}{}{mark} | {:.2} | {} | {} | {} | {} | {:.2} |\n",
            row.knob,
            row.value,
            row.cost,
            time(row.middle_s),
            time(row.wait_s),
            time(row.daily_s),
            row.reversals,
            row.score
        );
    }
    table
}

/// A time as people say it.
pub fn time(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

/// A count with commas.
pub fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
