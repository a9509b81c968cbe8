//! Whether the line still turns: a pulse for each stage and each replica, and the watchdog that listens to them.
//!
//! In: beats. A stage beats at each turn of its loop, and every so often while it waits for somebody else; a replica is
//! at rest until it has a batch, and then beats with each. Out: who has not beaten for the watchdog's limit. Waiting for a
//! broker keeps a stage's pulse, so no broker ever makes a worker stuck. It does nothing about what it finds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// Listens to all pulses of a line. Clones share them.
#[derive(Debug, Clone)]
pub struct Watchdog {
    limit: Duration,
    clock: Clock,
    started: Instant,
    pulses: Arc<Mutex<Vec<Named>>>,
}

/// Whose pulse, and when it last beat; gone when nobody can beat it any more.
type Named = (String, Weak<AtomicU64>);

/// Beats for one stage or replica; it is forgotten with its last clone.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Milliseconds after the watchdog's start, and 1; or [`AT_REST`].
    beaten: Arc<AtomicU64>,
    clock: Clock,
    started: Instant,
    period: Duration,
}

const AT_REST: u64 = 0;
/// Beats that a waiting stage has in one limit.
const BEATS_A_LIMIT: u32 = 4;

impl Watchdog {
    /// Nothing to listen to yet; who has not beaten for `limit` will be stuck.
    pub fn new(limit: Duration, clock: Clock) -> Self {
        Self { limit, clock, started: clock.now(), pulses: Arc::default() }
    }

    /// A pulse at rest.
    pub fn pulse(&self, name: impl Into<String>) -> Pulse {
        let beaten = Arc::new(AtomicU64::new(AT_REST));
        self.pulses().push((name.into(), Arc::downgrade(&beaten)));
        let period = (self.limit / BEATS_A_LIMIT).max(Duration::from_millis(1));
        Pulse { beaten, clock: self.clock, started: self.started, period }
    }

    /// The name of the first that is stuck.
    pub fn stuck(&self) -> Option<String> {
        let now = self.clock.now().saturating_duration_since(self.started);
        let is_stuck = |beaten: &Weak<AtomicU64>| match beaten.upgrade().map(|beaten| beaten.load(Ordering::Relaxed)) {
            None | Some(AT_REST) => false,
            Some(beaten) => now.saturating_sub(Duration::from_millis(beaten - 1)) >= self.limit,
        };
        self.pulses().iter().find(|(_, beaten)| is_stuck(beaten)).map(|(name, _)| name.clone())
    }

    fn pulses(&self) -> MutexGuard<'_, Vec<Named>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Another turn begins.
    pub fn beat(&self) {
        let now = self.clock.now().saturating_duration_since(self.started).as_millis();
        self.beaten.store(u64::try_from(now).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    /// How long ago it beat; nothing at rest.
    pub fn age(&self) -> Duration {
        let now = self.clock.now().saturating_duration_since(self.started);
        match self.beaten.load(Ordering::Relaxed) {
            AT_REST => Duration::ZERO,
            beaten => now.saturating_sub(Duration::from_millis(beaten - 1)),
        }
    }

    /// There is nothing to do, and no need to beat until there is.
    pub fn rest(&self) {
        self.beaten.store(AT_REST, Ordering::Relaxed);
    }

    /// Returns when a stage that waits should beat again.
    pub async fn due(&self) {
        tokio::time::sleep(self.period).await;
    }

    /// Waits for what may take for ever without being a fault of this process, and beats meanwhile.
    pub async fn wait<T>(&self, event: impl Future<Output = T>) -> T {
        tokio::pin!(event);
        loop {
            self.beat();
            tokio::select! {
                biased;
                happened = &mut event => {
                    self.beat();
                    return happened;
                }
                () = self.due() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn watchdog() -> Watchdog {
        Watchdog::new(LIMIT, Clock::real())
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_beaten_for_the_limit_is_stuck_until_it_beats_or_rests() {
        let watchdog = watchdog();
        let (stage, replica) = (watchdog.pulse("stage"), watchdog.pulse("replica"));
        stage.beat();
        tokio::time::advance(LIMIT - Duration::from_millis(2)).await;
        assert_eq!(watchdog.stuck(), None);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(watchdog.stuck().as_deref(), Some("stage"));
        replica.beat();
        stage.beat();
        assert_eq!(watchdog.stuck(), None);
        tokio::time::advance(LIMIT).await;
        stage.beat();
        assert_eq!(watchdog.stuck().as_deref(), Some("replica"));
        assert_eq!((stage.age(), replica.age()), (Duration::ZERO, LIMIT));
        replica.rest();
        assert_eq!(replica.age(), Duration::ZERO);
        assert_eq!(watchdog.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_keeps_its_pulse_however_long_it_takes() {
        let watchdog = watchdog();
        let pulse = watchdog.pulse("stage");
        let waiting = pulse.wait(tokio::time::sleep(100 * LIMIT));
        let watching = async {
            loop {
                tokio::time::sleep(LIMIT / 10).await;
                assert_eq!(watchdog.stuck(), None);
            }
        };
        tokio::select! {
            biased;
            () = waiting => {}
            () = watching => {}
        }
        assert_eq!(watchdog.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_is_not_stuck() {
        let watchdog = watchdog();
        let pulse = watchdog.pulse("stage");
        pulse.beat();
        let clone = pulse.clone();
        tokio::time::advance(LIMIT).await;
        drop(pulse);
        assert_eq!(watchdog.stuck().as_deref(), Some("stage"));
        drop(clone);
        assert_eq!(watchdog.stuck(), None);
    }
}
