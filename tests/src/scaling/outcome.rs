//! What came of a simulation, and what has to hold of it.
//!
//! In: the world's counts. Out: figures, and a list of what is wrong with them, empty if nothing is.

use serde::Serialize;

use crate::scaling::{Ms, seconds};

/// What there was at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since the beginning.
    pub at_s: f64,
    /// Messages without an answer.
    pub unanswered: u32,
    /// Tokens without an answer.
    pub tokens: u64,
    /// Replicas that the autoscaler wants.
    pub wanted: u32,
    /// Workers that are ready.
    pub ready: u32,
    /// Nodes that are paid for.
    pub nodes: u32,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Jobs published.
    pub jobs: u32,
    /// Jobs without an answer at the end.
    pub lost: u32,
    /// Deliveries that spent an attempt: the worker was lost with the job in hand.
    pub attempts_spent: u32,
    /// Given back at a stop, without an attempt spent.
    pub given_back: u32,
    /// From the first job's publication to the last answer.
    pub cleared_s: f64,
    /// From publication to answer, the middle one.
    pub wait_p50_s: f64,
    /// The 99th percentile.
    pub wait_p99_s: f64,
    /// The longest.
    pub wait_max_s: f64,
    /// Hours of nodes.
    pub node_hours: f64,
    /// At the pool's price.
    pub cost: f64,
    /// Hours that workers were busy.
    pub busy_hours: f64,
    /// The autoscaler changed direction within ten minutes.
    pub reversals: u32,
    /// Changes of the number of replicas.
    pub changes: u32,
    /// Most workers ready at once.
    pub ready_max: u32,
    /// Tokens of all jobs.
    pub tokens: u64,
    /// Tokens computed, whole batches only.
    pub tokens_computed: u64,
    /// Batches' lengths times rate.
    pub tokens_by_time: f64,
    /// Every half minute.
    #[serde(skip)]
    pub moments: Vec<Moment>,
    /// When each scripted worker was ready and had ended, in seconds.
    #[serde(skip)]
    pub workers: Vec<(Option<f64>, Option<f64>)>,
}

/// The limits that no schedule beats.
#[derive(Debug, Clone, Copy)]
pub struct Foresight {
    /// Work ÷ one worker's rate, in hours of nodes.
    pub node_hours: f64,
    /// Work ÷ all workers' rate, after the last arrival at the earliest.
    pub cleared_s: f64,
}

impl Outcome {
    /// What breaks the model's own laws.
    pub fn faults(&self, foresight: Foresight) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                faults.push(what.to_owned());
            }
        };
        must(self.lost == 0, "a job has no answer");
        must(self.tokens_computed == self.tokens, "the tokens computed are not those published");
        let by_time = self.tokens_by_time / self.tokens_computed.max(1) as f64;
        must((0.99..1.05).contains(&by_time), "the time that batches took is not their tokens at the workers' rate");
        must(self.node_hours >= foresight.node_hours, "cheaper than with perfect foresight");
        must(self.cleared_s >= foresight.cleared_s, "faster than all workers from the beginning");
        must(self.wait_p50_s <= self.wait_p99_s && self.wait_p99_s <= self.wait_max_s, "percentiles are out of order");
        faults
    }
}

/// A share of sorted waits.
pub fn percentile(sorted: &[Ms], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let rank = (share * sorted.len() as f64).ceil() as usize;
    seconds(sorted[rank.saturating_sub(1).min(last)])
}

/// Changes of direction within `within` of each other.
pub fn reversals(changes: &[(Ms, i64)], within: Ms) -> u32 {
    let turns = changes.windows(2).filter(|pair| {
        let [(before, first), (after, second)] = pair else { return false };
        first.signum() != second.signum() && after - before <= within
    });
    turns.count() as u32
}
