//! Chaos against a real broker: worker processes behind relays, a seeded schedule of everything that can go wrong, and a
//! history that is checked.
//!
//! In: a [`Server`], a seed and a length. Out: a [`Summary`], and the history as text beside the binaries. [`schedule`] decides what
//! goes wrong and when, [`check`] what of the history breaks the promise; both are pure. `world` has the effects.
//! [`forgets`] is a story of its own: a broker that loses all it had.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

pub mod check;
pub mod forgets;
pub mod record;
pub mod schedule;
mod server;
mod world;

pub use self::server::Server;

/// How long, and which schedule.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long faults go on. What is unanswered then is waited for.
    pub length: Duration,
    /// The same seed gives the same schedule.
    pub seed: u64,
}

impl Options {
    /// So many seconds of `INFERQ_CHAOS_SECONDS`, else these, and the seed `INFERQ_CHAOS_SEED`, else one by chance.
    ///
    /// # Errors
    /// When a variable is no number.
    pub fn from_environment(seconds: u64) -> Result<Self> {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
        let seconds = number("INFERQ_CHAOS_SECONDS")?.unwrap_or(seconds);
        let seed = number("INFERQ_CHAOS_SEED")?.unwrap_or_else(|| u64::from(rand::random::<u16>()));
        Ok(Self { length: Duration::from_secs(seconds), seed })
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// Jobs that were confirmed.
    pub jobs: usize,
    /// Replies that came, those that came twice included.
    pub replies: usize,
    /// Faults by kind.
    pub faults: Vec<(schedule::Fault, usize)>,
    /// How long workers took to answer again.
    pub recoveries: check::Recoveries,
    /// The most memory of the worker that is never killed, in KiB: in the first half, and in the last quarter.
    pub memory_kib: (u64, u64),
    /// What broke the promise.
    pub broken: Vec<String>,
}

/// Runs it on this server, which meets faults of its own meanwhile.
///
/// # Errors
/// When the world can't be set up, or a fault can't be made.
pub async fn run(server: &Server, options: Options) -> Result<Summary> {
    println!("chaos: {} s, INFERQ_CHAOS_SEED={}", options.length.as_secs(), options.seed);
    world::run(server, options).await
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} jobs confirmed, {} replies", self.jobs, self.replies)?;
        let faults: Vec<String> = self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        writeln!(formatter, "faults: {}", faults.join(", "))?;
        for (name, times) in [("recovery", &self.recoveries.plain), ("half-open", &self.recoveries.half_open)] {
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| check::quantile(times, share).as_secs_f64());
            writeln!(formatter, "{name}: {} times, p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s", times.len())?;
        }
        let (early, late) = self.memory_kib;
        writeln!(formatter, "memory: {} MiB in the first half, {} MiB in the last quarter", early >> 10, late >> 10)?;
        self.broken.iter().try_for_each(|line| writeln!(formatter, "broken: {line}"))
    }
}
