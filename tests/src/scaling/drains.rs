//! The measured drains, and what the simulation makes of them.
//!
//! In: `tests/fixtures/scaling/drains.json`, as `tests/tools/measure_drains.py` writes it. Out: each drain's time as measured
//! and as simulated from its workers' starts, phases, rates and stops.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::scaling::ms;
use crate::scaling::outcome::Outcome;
use crate::scaling::trace::{Arrival, Trace};
use crate::scaling::worker::Speed;
use crate::scaling::world::{Control, Plan, Pod, Scripted, simulate};

/// A queue that real workers worked off. Times are seconds since the first worker was started.
#[derive(Debug, Clone, Deserialize)]
pub struct Drain {
    /// What was done.
    pub name: String,
    /// Over which broker.
    pub broker: String,
    /// Jobs in the queue at the beginning.
    pub jobs: u32,
    /// Tokens of each, on average.
    pub tokens_a_job: f64,
    /// The workers, in the order of their starts.
    pub workers: Vec<Worker>,
    /// When the last job was answered.
    pub drained_s: f64,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
pub struct Worker {
    /// When the process was started.
    pub started_s: f64,
    /// The phases of its start in seconds, as `/status` gives them.
    pub phases: BTreeMap<String, f64>,
    /// When it was seen ready.
    pub ready_s: f64,
    /// What its engine computed a second while it had a batch.
    pub tokens_per_s: f64,
    /// When it got SIGTERM.
    pub stopped_s: Option<f64>,
    /// When it was seen to have ended.
    pub exited_s: Option<f64>,
}

impl Worker {
    /// All phases together.
    pub fn phases_s(&self) -> f64 {
        self.phases.values().sum()
    }
}

/// `--drain-limit-s` of the measured workers.
const DRAIN_LIMIT_S: f64 = 25.0;

/// The drains in a file.
///
/// # Errors
/// When it can't be read, or holds none.
pub fn load(path: &Path) -> Result<Vec<Drain>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let drains: Vec<Drain> = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(
        !drains.is_empty() && drains.iter().all(|drain| !drain.workers.is_empty()),
        "{} has no drains",
        path.display()
    );
    Ok(drains)
}

/// The file in the tree.
pub fn fixture() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/scaling/drains.json"))
}

/// Simulates a drain.
pub fn replay(drain: &Drain) -> Outcome {
    let whole = drain.tokens_a_job.floor();
    // Sizes whose mean is the measured one.
    let arrivals = (0..drain.jobs).map(|job| {
        let parts = drain.tokens_a_job - whole;
        let carries = (f64::from(job + 1) * parts).floor() - (f64::from(job) * parts).floor();
        Arrival { at: 0, tokens: (whole + carries) as u32 }
    });
    let workers = drain.workers.iter().map(|worker| Scripted {
        start: ms(worker.started_s),
        pod: Pod {
            speed: Speed { tokens_per_s: worker.tokens_per_s, replicas: 1, drain_limit_s: DRAIN_LIMIT_S },
            phases_s: worker.phases_s(),
            lease_s: 60.0,
            tells_cost: false,
        },
        stop: worker.stopped_s.map(ms),
    });
    let trace = Trace { name: "drain", arrivals: arrivals.collect(), storms: Vec::new() };
    simulate(&Plan { trace, control: Control::Scripted(workers.collect()), seed: 0 })
}

/// What one worker computes a second that has two replicas and two cores: the two workers' rates of the last drain in which
/// two ran side by side.
///
/// # Errors
/// When there is no such drain.
pub fn two_core_rate(drains: &[Drain]) -> Result<f64> {
    let side_by_side = |drain: &&Drain| drain.workers.iter().filter(|worker| worker.started_s < 0.5).count() == 2;
    let drain = drains.iter().rev().find(side_by_side).context("no drain with two workers from the beginning")?;
    Ok(drain.workers.iter().map(|worker| worker.tokens_per_s).sum())
}
