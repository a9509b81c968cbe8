//! What goes wrong, and when: from a seed and a length alone.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

#[cfg(test)]
mod tests;

/// The length for which [`Fault::least`] counts.
const WHOLE: Duration = Duration::from_secs(600);
/// The longest that a fault lasts.
const LASTS_MAX: Duration = Duration::from_secs(5);

/// The things that go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A worker process is killed, and another started in its place.
    Kill,
    /// A worker process is stopped by a signal, and goes on later.
    Freeze,
    /// A worker's connections are reset.
    Cut,
    /// A worker's connections go silent for good, and nobody is told.
    HalfOpen,
    /// A worker's link is slow for a while.
    Slow,
    /// The server closes all connections.
    CloseAll,
    /// The server's alarm for memory is on for a while.
    Alarm,
    /// The server is stopped and started.
    Restart,
    /// The server is killed and started.
    Crash,
    /// The server is stopped by a signal, and goes on later.
    Pause,
    /// The bucket that replies go to is unavailable for a while.
    NoBucket,
}

impl Fault {
    /// Those of workers on RabbitMQ.
    pub const RABBITMQ: &[Self] = &[
        Self::Kill,
        Self::Freeze,
        Self::Cut,
        Self::HalfOpen,
        Self::Slow,
        Self::CloseAll,
        Self::Alarm,
        Self::Restart,
        Self::Crash,
    ];
    /// Those of workers on the Pub/Sub emulator, with replies in a bucket. It keeps nothing: who ends it loses all.
    pub const PUBSUB: &[Self] =
        &[Self::Kill, Self::Freeze, Self::Cut, Self::HalfOpen, Self::Slow, Self::Pause, Self::NoBucket];

    /// Whether it meets every worker.
    pub fn is_everywhere(self) -> bool {
        matches!(self, Self::CloseAll | Self::Alarm | Self::Restart | Self::Crash | Self::Pause | Self::NoBucket)
    }

    /// At least so many of it belong to a run of this length: 5 restarts and 5 crashes in ten minutes, 20 of the others.
    pub fn least(self, length: Duration) -> usize {
        let whole = if matches!(self, Self::Restart | Self::Crash) { 5.0 } else { 20.0 };
        (whole * length.as_secs_f64() / WHOLE.as_secs_f64()).ceil() as usize
    }

    fn lasts(self, rng: &mut StdRng) -> Duration {
        match self {
            Self::Freeze | Self::Slow | Self::Alarm | Self::Pause | Self::NoBucket => {
                rng.random_range(LASTS_MAX / 5..LASTS_MAX)
            }
            _ => Duration::ZERO,
        }
    }
}

/// One step of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// To which worker, unless it is everywhere.
    pub worker: usize,
    /// Whether it begins; else it is over.
    pub begins: bool,
}

/// The schedule of a seed: these faults are spread evenly, in any order; those that last may overlap. The first worker is
/// never killed: who lives through everything shows whether memory is flat.
pub fn schedule(faults: &[Fault], seed: u64, length: Duration, workers: usize) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut faults: Vec<Fault> =
        faults.iter().flat_map(|fault| std::iter::repeat_n(*fault, fault.least(length))).collect();
    faults.shuffle(&mut rng);
    let slot = length / faults.len().max(1) as u32;
    let mut steps = Vec::new();
    for (index, fault) in faults.into_iter().enumerate() {
        let at = slot.mul_f64(index as f64 + rng.random::<f64>());
        let first = usize::from(fault == Fault::Kill);
        let worker = rng.random_range(first..workers);
        steps.push(Step { at, fault, worker, begins: true });
        steps.push(Step { at: at + fault.lasts(&mut rng), fault, worker, begins: false });
    }
    // Stable: an end follows its beginning.
    steps.sort_by_key(|step| step.at);
    steps
}
