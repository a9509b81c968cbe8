//! When a consumer that hears nothing asks whether its subscription is there, and connects anew.
//!
//! In: what was heard, asked and answered, with the instant. Out: when to ask, and what to do with the answer. The client
//! reconnects by itself, but waits up to a minute between its tries, says nothing meanwhile, and does not notice a
//! connection that is open and dead. Silence alone can't tell that from an empty subscription. So whoever hears nothing
//! connects anew, after what is a long silence for this subscription: 8 s for a busy one, more for one where such silences
//! have been seen to mean nothing. Pure.

use std::time::{Duration, Instant};

/// A consumer that waits hears nothing for so long before the first question; then twice as long, and so on.
const QUIET: Duration = Duration::from_secs(8);
/// The longest between two questions: each is an administrative call, of which Pub/Sub allows a project some thousand a
/// minute.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// Between two questions while there is no answer.
const AGAIN: Duration = Duration::from_secs(1);
/// A connection that has brought nothing for so long is replaced even though all seems well; then twice as long, and so on.
/// What is on its way just then comes late. No round ten seconds, as ack deadlines are: what one consumer loses in closing
/// comes again when the next one has been silent for just that long.
const STALE: Duration = Duration::from_secs(8);
/// The longest between two connections.
const STALE_MAX: Duration = Duration::from_secs(320);
/// With each message that comes soon after another the time gets shorter again, by this part of it.
const SHORTER_BY: u32 = 64;

/// What is known of the other side.
#[derive(Debug)]
pub(super) struct Watchdog {
    heard: Instant,
    /// When something was heard, or the connection made.
    since: Instant,
    stale: Duration,
    quiet: Duration,
    ask_at: Option<Instant>,
    /// The last question had no answer.
    down: bool,
}

impl Watchdog {
    /// Nothing is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, since: now, stale: STALE, quiet: QUIET, ask_at: None, down: false }
    }

    /// A message came.
    pub(super) fn hear(&mut self, now: Instant) {
        let soon = now.duration_since(self.heard) < STALE;
        let stale = if soon { (self.stale - self.stale / SHORTER_BY).max(STALE) } else { self.stale };
        *self = Self { stale, ..Self::new(now) };
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

    /// There was an answer, or none. Returns whether to connect anew.
    pub(super) fn answer(&mut self, reached: bool, now: Instant) -> bool {
        let stale = now.duration_since(self.since) >= self.stale;
        let anew = reached && (self.down || stale);
        self.down = !reached;
        if anew {
            self.since = now;
            self.stale = (self.stale * 2).min(STALE_MAX);
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
        for _ in 0..20 {
            watchdog.wait(now);
            let at = watchdog.ask_at().expect("somebody waits");
            gaps.push((at - now).as_secs());
            now = at;
            watchdog.ask();
            if watchdog.answer(true, now) {
                anew.push((now - start).as_secs());
            }
        }
        assert_eq!((&gaps[..4], gaps[19]), (&[8, 16, 32, 60][..], 60));
        assert_eq!(anew, vec![8, 24, 56, 176, 356, 656, 1016]);
        watchdog.hear(now);
        watchdog.wait(now + SECOND);
        assert_eq!(watchdog.ask_at(), Some(now + 9 * SECOND));
    }

    #[test]
    fn where_silences_mean_nothing_the_connection_is_kept() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(now);
        let mut connections = |watchdog: &mut Watchdog, gap: u64, messages: usize| {
            let mut anew = 0;
            for _ in 0..messages {
                for _ in 0..gap {
                    now += SECOND;
                    anew += usize::from(watchdog.answer(true, now));
                }
                watchdog.hear(now);
            }
            anew
        };
        // A message every 15 s: the first silences are taken for a dead connection.
        assert_eq!(connections(&mut watchdog, 15, 100), 1);
        assert_eq!(connections(&mut watchdog, 50, 100), 2);
        // Once they come close together, a short silence is long again.
        assert_eq!(connections(&mut watchdog, 1, 200), 0);
        assert_eq!(connections(&mut watchdog, 11, 1), 1);
    }

    #[test]
    fn who_could_not_be_reached_is_connected_to_anew_at_the_first_answer() {
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
