//! What arrives, and which nodes are taken away.
//!
//! In: a kind, a seed, what one worker computes a second, so that loads are in workers. Out: arrivals in order of time.
//!
//! Jobs are of two kinds: queries, a few short texts, and documents, many texts each. Their sizes are assumptions about
//! users, not measurements; what matters is that one is some 30 times the other.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::scaling::{Ms, ms};

/// A job's size in tokens and when it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Ms,
    /// Tokens.
    pub tokens: u32,
}

/// Nodes are taken away.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// From when on.
    pub at: Ms,
    /// Within how many seconds.
    pub within_s: f64,
    /// Each node with this probability.
    pub share: f64,
    /// What pods get between notice and end, in seconds.
    pub notice_s: f64,
    /// Of those taken, how many get no notice.
    pub abrupt: f64,
    /// For how long no node can be had afterwards, in seconds.
    pub sold_out_s: f64,
}

/// What happens to a world from outside.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its name.
    pub name: &'static str,
    /// In order of time.
    pub arrivals: Vec<Arrival>,
    /// In order of time.
    pub storms: Vec<Storm>,
}

/// The kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Three hours of four workers' load, queries and documents.
    Steady,
    /// A day: queries by day, documents by night, between an idle hour and twelve workers' load.
    Daily,
    /// 1,000,000 jobs within two minutes on an empty queue without a worker.
    Burst,
    /// Three hours of twelve workers' load on spot nodes, three of four taken away twice.
    SpotStorm,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Steady, Self::Daily, Self::Burst, Self::SpotStorm];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Daily => "daily",
            Self::Burst => "burst",
            Self::SpotStorm => "spot storm",
        }
    }
}

/// Tokens of a query: a few short texts.
const QUERY: (u32, u32) = (64, 512);
/// Tokens of a document: 64 texts of 60 to 250 tokens.
const DOCUMENT: (u32, u32) = (3_840, 16_000);
const HOUR_S: f64 = 3600.0;

/// A trace of a kind.
pub fn trace(kind: Kind, tokens_per_s: f64, seed: u64) -> Trace {
    let mut random = StdRng::seed_from_u64(seed);
    let arrivals = match kind {
        Kind::Steady => poisson(&mut random, 3.0 * HOUR_S, tokens_per_s, |_| Load { workers: 4.0, documents: 0.05 }),
        Kind::Daily => poisson(&mut random, 24.0 * HOUR_S, tokens_per_s, |at_s| day(at_s / HOUR_S)),
        Kind::Burst => (0..1_000_000_u64)
            .map(|number| Arrival { at: number * 120_000 / 1_000_000, tokens: size(&mut random, 0.01) })
            .collect(),
        Kind::SpotStorm => {
            poisson(&mut random, 3.0 * HOUR_S, tokens_per_s, |_| Load { workers: 12.0, documents: 0.05 })
        }
    };
    let storm = |hour: f64, notice_s: f64| Storm {
        at: ms(hour * HOUR_S),
        within_s: 120.0,
        share: 0.75,
        notice_s,
        abrupt: 0.2,
        sold_out_s: 600.0,
    };
    // The first gives pods the 15 s that a spot node's 30 s leave them if nothing is configured, the second 120 s.
    let storms = if kind == Kind::SpotStorm { vec![storm(0.75, 15.0), storm(1.75, 120.0)] } else { Vec::new() };
    Trace { name: kind.name(), arrivals, storms }
}

/// How much arrives.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// In tokens, as so many workers compute.
    workers: f64,
    /// The share of jobs that are documents.
    documents: f64,
}

/// Queries follow the day, up to four workers' load at noon; documents come in at night, from 1 to 4, twelve workers' load.
fn day(hour: f64) -> Load {
    if (1.0..4.0).contains(&hour) {
        Load { workers: 12.0, documents: 0.9 }
    } else if (4.0..5.0).contains(&hour) {
        Load { workers: 0.0, documents: 0.0 }
    } else {
        let height = (1.0 - ((hour - 13.0) / 24.0 * std::f64::consts::TAU).cos()).mul_add(-0.5, 1.0);
        Load { workers: 4.0 * height, documents: 0.002 }
    }
}

fn size(random: &mut StdRng, documents: f64) -> u32 {
    let (low, high) = if random.random_bool(documents) { DOCUMENT } else { QUERY };
    random.random_range(low..high)
}

fn mean(documents: f64) -> f64 {
    let middle = |(low, high): (u32, u32)| f64::from(low + high) / 2.0;
    middle(DOCUMENT).mul_add(documents, middle(QUERY) * (1.0 - documents))
}

/// Arrivals at random, as many as the load asks for. A second at a time the load stays the same.
fn poisson(random: &mut StdRng, length_s: f64, tokens_per_s: f64, load: impl Fn(f64) -> Load) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut at_s = 0.0;
    while at_s < length_s {
        let now = load(at_s);
        let rate = now.workers * tokens_per_s / mean(now.documents);
        if rate < 1e-6 {
            at_s = at_s.floor() + 1.0;
            continue;
        }
        let gap_s = -(1.0 - random.random::<f64>()).ln() / rate;
        if gap_s > 1.0 {
            // Without memory: what has not come within the second is drawn anew with the next second's load.
            at_s += 1.0;
            continue;
        }
        at_s += gap_s;
        if at_s < length_s {
            arrivals.push(Arrival { at: ms(at_s), tokens: size(random, now.documents) });
        }
    }
    arrivals
}
