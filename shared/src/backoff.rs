//! How long to wait before the next attempt at a broken dependency: exponential, capped, with full jitter.
//!
//! Pure: the random numbers come from the caller. It never decides whether to try again.

use std::time::Duration;

use rand::{Rng, RngExt};

/// An exponential backoff; see <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The longest wait before the first retry.
    pub first: Duration,
    /// The longest wait before any retry.
    pub cap: Duration,
}

impl Backoff {
    /// For brokers: 50 ms at first, 2 s at most.
    pub const BROKER: Self = Self { first: Duration::from_millis(50), cap: Duration::from_secs(2) };

    /// The wait before retry number `retry` (0 is the first): between half of the exponential step and all of it.
    pub fn delay(&self, retry: u32, rng: &mut impl Rng) -> Duration {
        let step = self.first.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(self.cap);
        step.mul_f64(rng.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_wait_grows_and_stays_below_the_cap() {
        let mut rng = StdRng::seed_from_u64(1);
        for retry in 0..100 {
            let step = Duration::from_millis(50).saturating_mul(2u32.saturating_pow(retry)).min(Duration::from_secs(2));
            let delay = Backoff::BROKER.delay(retry, &mut rng);
            assert!(delay >= step / 2 && delay <= step, "retry {retry}: {delay:?} of {step:?}");
        }
    }
}
