//! Drains as rows of one table, and as JSON. Pure.

use std::fmt;

use serde::Serialize;

use super::Kind;
use super::story::{FIRST, Story, Update};
use crate::kubelet::How;

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    broker: &'static str,
    phase: String,
    grace_s: u64,
    drain_limit_s: u64,
    /// The exit code, or `killed`; of several workers, each that is not like the others.
    exit: String,
    /// From SIGTERM to the end; of several workers the longest.
    end_s: Option<f64>,
    /// By the workers that were stopped.
    answered: usize,
    given_back: usize,
    attempts_spent: u32,
    /// From due to reply, where there is a load.
    latency_ms: Option<Latency>,
    /// From the first new worker's start to the last old one's end.
    update_s: Option<f64>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// The line above the rows.
pub struct Header;

impl From<&Story> for Row {
    fn from(story: &Story) -> Self {
        Self {
            broker: name(story.broker),
            phase: story.phase.name().to_owned(),
            grace_s: story.terms.grace.as_secs(),
            drain_limit_s: story.terms.drain_limit.as_secs(),
            exit: story.end.how.to_string(),
            end_s: Some(story.end.took.as_secs_f64()),
            answered: story.jobs.answered_by(FIRST),
            given_back: story.given_back,
            attempts_spent: story.jobs.attempts_spent(),
            latency_ms: None,
            update_s: None,
        }
    }
}

impl From<&Update> for Row {
    fn from(update: &Update) -> Self {
        let mut exits: Vec<How> = update.ends.iter().map(|end| end.how).collect();
        exits.dedup();
        let exits: Vec<String> = exits.iter().map(How::to_string).collect();
        let latency = update.latency_ms;
        Self {
            broker: name(update.broker),
            phase: if update.updating { "rolling update" } else { "no update" }.to_owned(),
            grace_s: update.terms.grace.as_secs(),
            drain_limit_s: update.terms.drain_limit.as_secs(),
            exit: if exits.is_empty() { "-".to_owned() } else { exits.join(",") },
            end_s: update.ends.iter().map(|end| end.took.as_secs_f64()).reduce(f64::max),
            answered: update.answered,
            given_back: update.given_back,
            attempts_spent: update.jobs.attempts_spent(),
            latency_ms: Some(Latency { p50: latency.p50, p99: latency.p99, max: latency.max }),
            update_s: update.updating.then_some(update.took.as_secs_f64()),
        }
    }
}

impl Row {
    /// What it is about.
    pub fn about(&self) -> String {
        format!("{}, {}, grace {} s:", self.broker, self.phase, self.grace_s)
    }
}

/// A broker's name in the table.
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Memory => "memory",
        Kind::Sqlite => "sqlite",
        Kind::Rabbitmq => "rabbitmq",
        Kind::PubSub => "pubsub",
    }
}

impl fmt::Display for Header {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:<8} {:<19} {:>5} {:>5} {:>6} {:>6}",
            "broker", "phase", "grace", "limit", "exit", "end s"
        )?;
        write!(formatter, " {:>8} {:>5} {:>8}", "answered", "back", "attempts")?;
        write!(formatter, " {:>7} {:>7} {:>7}", "p50 ms", "p99 ms", "max ms")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { broker, phase, grace_s, drain_limit_s, exit, answered, given_back, attempts_spent, .. } = self;
        let or_dash = |figure: Option<f64>, digits: usize| {
            figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
        };
        let ms = |of: fn(&Latency) -> f64| or_dash(self.latency_ms.as_ref().map(of), 0);
        let end = or_dash(self.end_s, 2);
        write!(formatter, "{broker:<8} {phase:<19} {grace_s:>5} {drain_limit_s:>5} {exit:>6} {end:>6}")?;
        write!(formatter, " {answered:>8} {given_back:>5} {attempts_spent:>8}")?;
        write!(formatter, " {:>7} {:>7} {:>7}", ms(|l| l.p50), ms(|l| l.p99), ms(|l| l.max))
    }
}
