//! The worker's two clocks: the runtime's instants and the wall's timestamps.
//!
//! Both follow tokio's clock where it is paused, so that a simulation owns time.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Tells the time. Cheap to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    simulated: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// The machine's clocks.
    pub fn real() -> Self {
        Self { simulated: None }
    }

    /// A wall clock that shows `start` now and moves with the runtime's clock.
    pub fn simulated(start: Timestamp) -> Self {
        Self { simulated: Some((start, tokio::time::Instant::now().into_std())) }
    }

    /// The runtime's instant.
    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// The wall's timestamp.
    pub fn wall(&self) -> Timestamp {
        match self.simulated {
            Some((start, since)) => start + self.now().saturating_duration_since(since),
            None => Timestamp::now(),
        }
    }

    /// How long ago `then` was by the wall; zero if it lies ahead.
    pub fn since(&self, then: Timestamp) -> Duration {
        Duration::try_from(self.wall().duration_since(then)).unwrap_or_default()
    }
}
