//! How many jobs a second are traced, so that traces cost little however fast jobs come.
//!
//! In: a question a job. Out: yes, up to a rate, with a burst above it; the next ones no. So whole jobs are left out, and
//! no trace loses some of its spans because the exporter is behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two jobs when they come for long.
const STEP: Duration = Duration::from_millis(10);
/// Jobs that may come at once.
const BURST: u32 = 128;

/// The rate, as a schedule: the instant at which the next job would be on time.
#[derive(Debug)]
pub(super) struct Rate {
    began: Instant,
    /// In nanoseconds after that.
    next: AtomicU64,
}

impl Rate {
    /// With the whole burst to spend.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), next: AtomicU64::new(0) }
    }

    /// Whether one more job may be traced.
    pub(super) fn take(&self) -> bool {
        self.take_at(self.began.elapsed())
    }

    /// The job is not traced after all.
    pub(super) fn give_back(&self) {
        self.next.fetch_sub(nanos(STEP), Ordering::Relaxed);
    }

    fn take_at(&self, now: Duration) -> bool {
        let (now, burst) = (nanos(now), nanos(STEP * BURST));
        let later = |next: u64| (next < now + burst).then(|| next.max(now) + nanos(STEP));
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).is_ok()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_then_a_rate_and_what_is_given_back_counts_for_nothing() {
        let rate = Rate::new();
        let at = |ms: u64| Duration::from_millis(ms);
        let taken = |ms: u64| (0..2_000).filter(|_| rate.take_at(at(ms))).count();
        assert_eq!(taken(1_000), 128);
        assert_eq!(taken(1_100), 10);
        rate.give_back();
        assert_eq!(taken(1_100), 1);
        assert_eq!(taken(60_000), 128);
    }
}
