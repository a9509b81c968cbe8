//! Real drains: a worker is stopped as a kubelet stops it, in each of its phases, on each broker; and three are replaced
//! under load.
//!
//! In: a broker, a [`Phase`], [`Terms`]. Out: a [`Story`] of one stop, or an [`Update`] of one rolling update, and by
//! [`check`], which is pure, what in them breaks the promise: the worker ends in time, nothing is lost, nothing fails, and
//! where the broker can tell no attempt is spent. `case` and `rolling` have the effects, `place` the brokers, and
//! `gate` the links that can be stalled.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

mod case;
pub mod check;
mod gate;
mod place;
mod rolling;
pub mod row;
pub mod story;

pub use self::rolling::Load;
use self::story::{Phase, Story, Update};
pub use crate::brokers::Kind;

/// What a stop is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The worker's `--drain-limit-s`.
    pub drain_limit: Duration,
    /// The worker's `--lease-s`.
    pub lease: Duration,
}

impl Terms {
    /// What the drain limit must be below the grace, so that what has been given back can be told to the broker.
    const MARGIN: Duration = Duration::from_secs(15);

    /// A grace period, with a drain limit that is below it by 15 s, or by a third of it where that is less.
    pub fn of_grace(grace: Duration) -> Self {
        let margin = Self::MARGIN.min(grace / 3).as_secs_f64().ceil();
        let drain_limit = grace.saturating_sub(Duration::from_secs_f64(margin));
        Self { grace, drain_limit, lease: Duration::from_secs(60) }
    }
}

/// Stops a worker in this phase. `None` where the broker is not installed, which has been said. The model is a real one,
/// for the phases in which one is loaded and warmed.
///
/// # Errors
/// When the broker or a worker does not do what has nothing to do with the stop.
pub async fn stop(kind: Kind, phase: Phase, terms: Terms, model: &Path) -> Result<Option<Story>> {
    let Some(place) = place::Place::start(kind).await? else { return Ok(None) };
    case::run(place, phase, terms, model).await.map(Some)
}

/// Replaces three workers under this load, or leaves them be, to compare. `None` as for [`stop`].
///
/// # Errors
/// As for [`stop`].
pub async fn update(kind: Kind, load: Load, terms: Terms, updating: bool) -> Result<Option<Update>> {
    let Some(place) = place::Place::start(kind).await? else { return Ok(None) };
    rolling::run(place, load, terms, updating).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_limit_leaves_time_to_close() {
        for (grace, drain_limit) in [(5, 3), (15, 10), (40, 26), (60, 45)] {
            let terms = Terms::of_grace(Duration::from_secs(grace));
            assert_eq!(terms.drain_limit, Duration::from_secs(drain_limit));
        }
    }
}
