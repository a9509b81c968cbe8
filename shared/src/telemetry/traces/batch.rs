//! A batch in the traces of its jobs.
//!
//! In: a batch that has run, and those of its jobs that have a trace. Out: one span for the batch, below the first of
//! them and linked to all; and for each job how long it waited for the batch, and the run, linked to the batch. So a batch
//! is recorded whenever one of its jobs is, whatever is sampled.

use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanBuilder;

use super::parent::Parent;

/// A batch that has run.
#[derive(Debug)]
pub struct BatchRan<'a> {
    /// Its jobs that have a trace.
    pub jobs: Vec<JobInBatch<'a>>,
    /// What it computed, equal items counted once.
    pub items: usize,
    /// Tokens of it, without padding.
    pub tokens: usize,
    /// The same, padding included.
    pub padded_tokens: usize,
    /// Which replica ran it.
    pub replica: usize,
    /// When it started.
    pub started: Instant,
    /// How long it took.
    pub took: Duration,
    /// Whether the device was lost on it.
    pub lost: bool,
}

/// One of its jobs.
#[derive(Debug, Clone)]
pub struct JobInBatch<'a> {
    /// The job's span.
    pub job: &'a Parent,
    /// How many of its items are in it.
    pub items: usize,
    /// When the first of them began to wait.
    pub waited_since: Instant,
}

impl BatchRan<'_> {
    /// Tells of it.
    pub fn tell(&self) {
        let Some(first) = self.jobs.first() else { return };
        let (ended, error) = (self.started + self.took, self.lost.then_some("device_lost"));
        let whole = SpanBuilder::from_name("batch")
            .with_attributes(self.attributes())
            .with_links(self.jobs.iter().map(|one| one.job.link()).collect());
        let Some(batch) = first.job.span(whole, self.started, ended, error) else { return };
        for one in &self.jobs {
            one.job.stage("wait", one.waited_since, self.started, Vec::new());
            let run = SpanBuilder::from_name("engine")
                .with_attributes([KeyValue::new("inferq.items", count(one.items))])
                .with_links(vec![batch.link()]);
            one.job.span(run, self.started, ended, error);
        }
    }

    fn attributes(&self) -> [KeyValue; 4] {
        [
            KeyValue::new("inferq.items", count(self.items)),
            KeyValue::new("inferq.tokens", count(self.tokens)),
            KeyValue::new("inferq.padded_tokens", count(self.padded_tokens)),
            KeyValue::new("inferq.replica", count(self.replica)),
        ]
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
