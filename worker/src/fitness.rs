//! Whether this worker fits its queue: one that can run none of the jobs must not eat the backlog.
//!
//! Intake records each job; receive asks before each pull. After three misfits in a row the worker is *unfit*: it stops
//! pulling for a while, then probes with one job at a time until one fits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Misfits in a row that make a worker unfit.
const MISFITS_MAX: u32 = 3;
/// How long an unfit worker waits before it probes.
pub const UNFIT_PAUSE: Duration = Duration::from_secs(30);

/// The shared count of misfits in a row. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fitness(Arc<watch::Sender<u32>>);

impl Default for Fitness {
    fn default() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }
}

impl Fitness {
    /// A job that this worker can run.
    pub fn fit(&self) {
        self.0.send_if_modified(|misfits| std::mem::take(misfits) > 0);
    }

    /// A job that another worker may run, but not this one.
    pub fn misfit(&self) {
        self.0.send_modify(|misfits| *misfits = misfits.saturating_add(1));
    }

    /// Whether the last few jobs were all misfits.
    pub fn is_unfit(&self) -> bool {
        *self.0.borrow() >= MISFITS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_misfits_in_a_row_make_a_worker_unfit_and_one_fit_job_heals_it() {
        let fitness = Fitness::default();
        for job in [false, false, true, false, false] {
            if job {
                fitness.fit()
            } else {
                fitness.misfit()
            }
            assert!(!fitness.is_unfit());
        }
        fitness.misfit();
        assert!(fitness.is_unfit());
        fitness.fit();
        assert!(!fitness.is_unfit());
    }
}
