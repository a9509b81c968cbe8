//! When a consumer that hears nothing asks whether its subscription is there, and when its streams are opened anew.
//!
//! In: what was heard, asked and answered, with the instant. Out: when to ask, and what to do with the answer. The client
//! reconnects by itself, but waits up to a minute between its tries, says nothing meanwhile, and does not notice a stream
//! that is open and dead. Pure.

use std::time::{Duration, Instant};

/// A consumer that waits hears nothing for so long before the first question; then twice as long, and so on.
const QUIET: Duration = Duration::from_secs(10);
/// The longest between two questions: each is an administrative call, of which Pub/Sub allows a project some thousand a
/// minute.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// Between two questions while there is no answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Streams that have brought nothing for so long are opened anew even though all seems well. What is on its way just then
/// comes late, so it is not done often.
const STALE: Duration = Duration::from_secs(300);

/// What is known of the other side.
#[derive(Debug)]
pub(super) struct Watchdog {
    heard: Instant,
    quiet: Duration,
    ask_at: Option<Instant>,
    /// The last question had no answer.
    down: bool,
}

impl Watchdog {
    /// Nothing is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, quiet: QUIET, ask_at: None, down: false }
    }

    /// A message came.
    pub(super) fn hear(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// Somebody waits for a message.
    pub(super) fn wait(&mut self, now: Instant) {
        let after = if self.down { AGAIN } else { self.quiet };
        self.ask_at.get_or_insert(now + after);
    }

    /// When to ask.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.ask_at
    }

    /// The question is on its way.
    pub(super) fn ask(&mut self) {
        self.ask_at = None;
        self.quiet = (self.quiet * 2).min(QUIET_MAX);
    }

    /// There was an answer, or none. Returns whether the streams are to be opened anew.
    pub(super) fn answer(&mut self, reached: bool, now: Instant) -> bool {
        let anew = reached && (self.down || now.duration_since(self.heard) >= STALE);
        self.down = !reached;
        if anew {
            self.heard = now;
        }
        self.wait(now);
        anew
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_quiet_subscription_is_asked_about_less_and_less_often() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        assert_eq!(watchdog.ask_at(), None);
        let (mut now, mut gaps, mut anew) = (start, Vec::new(), Vec::new());
        for _ in 0..8 {
            watchdog.wait(now);
            let at = watchdog.ask_at().expect("somebody waits");
            gaps.push((at - now).as_secs());
            now = at;
            watchdog.ask();
            if watchdog.answer(true, now) {
                anew.push((now - start).as_secs());
            }
        }
        assert_eq!((gaps, anew), (vec![10, 20, 40, 60, 60, 60, 60, 60], vec![310]));
        watchdog.hear(now);
        watchdog.wait(now + SECOND);
        assert_eq!(watchdog.ask_at(), Some(now + 11 * SECOND));
    }

    #[test]
    fn streams_are_opened_anew_as_soon_as_there_is_an_answer_again() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(now);
        for _ in 0..5 {
            watchdog.ask();
            assert!(!watchdog.answer(false, now));
            assert_eq!(watchdog.ask_at(), Some(now + AGAIN));
            now += AGAIN;
        }
        watchdog.ask();
        assert!(watchdog.answer(true, now));
        watchdog.ask();
        assert!(!watchdog.answer(true, now + SECOND));
    }
}
