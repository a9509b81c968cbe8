//! When the jobs of an open-loop load are due: a Poisson process of a stated rate, made from a seed. Pure.
//!
//! In: a rate, a length, a seed. Out: instants since the load's beginning, rising, all within its length. An open loop
//! does not wait for answers: what is due is due, however slow the other end is, so a stall is seen by every job that
//! it delays. See Gil Tene, "How not to measure latency", and Schroeder et al., "Open versus closed: a cautionary tale".

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The instants at which jobs are due.
#[derive(Debug)]
pub struct Pace {
    rng: StdRng,
    /// Jobs a second.
    rate: f64,
    length_s: f64,
    at_s: f64,
}

impl Pace {
    /// So many jobs a second, for so long. The same seed makes the same instants.
    pub fn new(rate: f64, length: Duration, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), rate, length_s: length.as_secs_f64(), at_s: 0.0 }
    }
}

impl Iterator for Pace {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // The time between two events of a Poisson process is exponential; from the half-open [0, 1) that is never of
        // the logarithm of 0.
        let uniform: f64 = self.rng.random();
        self.at_s += -(1.0 - uniform).ln() / self.rate;
        (self.at_s < self.length_s).then(|| Duration::from_secs_f64(self.at_s))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instants(rate: f64, length_s: u64, seed: u64) -> Vec<Duration> {
        Pace::new(rate, Duration::from_secs(length_s), seed).collect()
    }

    proptest! {
        #[test]
        fn instants_rise_within_the_length_and_follow_from_the_seed(rate in 0.1f64..2000.0, length_s in 1u64..20, seed: u64) {
            let due = instants(rate, length_s, seed);
            prop_assert!(due.is_sorted());
            prop_assert!(due.last().is_none_or(|last| *last < Duration::from_secs(length_s)));
            prop_assert_eq!(&due, &instants(rate, length_s, seed));
        }

        #[test]
        fn there_are_as_many_as_the_rate_says(rate in 50f64..1000.0, seed: u64) {
            let (length_s, due) = (20, instants(rate, 20, seed));
            let expected = rate * length_s as f64;
            // Six standard deviations of a Poisson count: once in a thousand million runs.
            prop_assert!((due.len() as f64 - expected).abs() < 6.0 * expected.sqrt(), "{} for {}", due.len(), expected);
        }

        #[test]
        fn the_times_between_are_exponential(seed: u64) {
            let due = instants(1000.0, 30, seed);
            let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).collect();
            // Of an exponential distribution of mean 1, more than t are exp(-t) of all, for every t.
            for t in [0.1f64, 0.5, 1.0, 2.0, 4.0] {
                let share = gaps.iter().filter(|gap| **gap > t).count() as f64 / gaps.len() as f64;
                prop_assert!((share - (-t).exp()).abs() < 0.02, "{} of the gaps exceed {}", share, t);
            }
        }
    }
}
