//! The deliveries of one consumer that are not settled, and when their leases end.
//!
//! In: what arrived, what was settled, the instant. Out: what each token stands for, and which leases are over. Pub/Sub's
//! client extends whatever is held, up to the longest lease; that a stuck holder's lease ends is our doing. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::super::Message;

/// One delivery; `H` is what settles it.
#[derive(Debug)]
pub(super) struct Held<H> {
    /// Dropped, it goes back.
    pub(super) handler: H,
    /// What came.
    pub(super) message: Message,
    /// The attempt that its lease is.
    pub(super) attempt: u32,
    /// When.
    pub(super) since: Instant,
}

/// The deliveries that are not settled.
#[derive(Debug)]
pub(super) struct Leases<H> {
    next: u64,
    /// By token: those that came first are first.
    held: BTreeMap<u64, Held<H>>,
    /// Released, to go back at an instant.
    later: BTreeSet<(Instant, u64)>,
    lease: Duration,
    lease_max: Duration,
    /// Since when no lease is renewed.
    stuck: Option<Instant>,
}

impl<H> Leases<H> {
    /// None yet; a lease lasts so long unless it is renewed, and no longer than the second.
    pub(super) fn new(lease: Duration, lease_max: Duration) -> Self {
        Self { next: 1, held: BTreeMap::new(), later: BTreeSet::new(), lease, lease_max, stuck: None }
    }

    /// Leases are renewed from now on, or not.
    pub(super) fn renew(&mut self, renewing: bool, now: Instant) {
        self.stuck = if renewing { None } else { Some(self.stuck.unwrap_or(now)) };
    }

    /// Enters what has arrived, and returns its token.
    pub(super) fn hold(&mut self, held: Held<H>) -> u64 {
        let token = self.next;
        self.next += 1;
        self.held.insert(token, held);
        token
    }

    /// The delivery of a token, if it is not settled.
    pub(super) fn get(&self, token: u64) -> Option<&Held<H>> {
        self.held.get(&token)
    }

    /// Takes one out.
    pub(super) fn take(&mut self, token: u64) -> Option<Held<H>> {
        self.held.remove(&token)
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Holds a delivery back until an instant.
    pub(super) fn delay(&mut self, token: u64, until: Instant) {
        self.later.insert((until, token));
    }

    /// When something is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let over = self.held.first_key_value().map(|(_, oldest)| self.over_at(oldest));
        over.into_iter().chain(self.later.first().map(|(until, _)| *until)).min()
    }

    /// Takes out what is to go back now: leases that are over, and what was held back until now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<u64> {
        let mut due = Vec::new();
        while let Some((token, oldest)) = self.held.first_key_value()
            && self.over_at(oldest) <= now
        {
            due.push(*token);
            self.held.pop_first();
        }
        while let Some((until, token)) = self.later.first().copied()
            && until <= now
        {
            self.later.pop_first();
            due.extend(self.held.remove(&token).map(|_| token));
        }
        due
    }

    /// Takes out what is held back, whenever it is due.
    pub(super) fn end_delays(&mut self) {
        for (_, token) in std::mem::take(&mut self.later) {
            self.held.remove(&token);
        }
    }

    /// Takes out everything.
    pub(super) fn clear(&mut self) {
        self.later.clear();
        self.held.clear();
    }

    fn over_at(&self, held: &Held<H>) -> Instant {
        let longest = held.since + self.lease_max;
        self.stuck.map_or(longest, |stuck| longest.min(held.since.max(stuck) + self.lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held(since: Instant) -> Held<()> {
        Held { handler: (), message: Message::default(), attempt: 1, since }
    }

    #[test]
    fn a_lease_ends_when_it_is_as_old_as_it_may_be() {
        let (start, mut leases) = (Instant::now(), Leases::new(SECOND, 10 * SECOND));
        let (first, second) = (leases.hold(held(start)), leases.hold(held(start + SECOND)));
        assert_eq!((leases.wake_at(), leases.due(start + 9 * SECOND)), (Some(start + 10 * SECOND), vec![]));
        assert_eq!(leases.due(start + 10 * SECOND), [first]);
        assert!(leases.get(first).is_none() && leases.get(second).is_some());
        assert_eq!((leases.due(start + 60 * SECOND), leases.len()), (vec![second], 0));
    }

    #[test]
    fn a_lease_that_is_not_renewed_ends_sooner() {
        let (start, mut leases) = (Instant::now(), Leases::new(SECOND, 10 * SECOND));
        leases.hold(held(start));
        leases.renew(false, start + 3 * SECOND);
        leases.renew(false, start + 4 * SECOND);
        assert_eq!(leases.wake_at(), Some(start + 4 * SECOND));
        leases.renew(true, start + 4 * SECOND);
        assert_eq!(leases.wake_at(), Some(start + 10 * SECOND));
        leases.renew(false, start + 9 * SECOND);
        assert_eq!(leases.wake_at(), Some(start + 10 * SECOND));
    }

    #[test]
    fn what_is_held_back_goes_when_it_is_due_or_its_lease_is_over() {
        let (start, mut leases) = (Instant::now(), Leases::new(SECOND, 10 * SECOND));
        let tokens: Vec<u64> = (0..3).map(|_| leases.hold(held(start))).collect();
        leases.delay(tokens[1], start + 2 * SECOND);
        leases.delay(tokens[2], start + 20 * SECOND);
        assert_eq!((leases.wake_at(), leases.due(start + 2 * SECOND)), (Some(start + 2 * SECOND), vec![tokens[1]]));
        assert_eq!(leases.due(start + 10 * SECOND), [tokens[0], tokens[2]]);
        assert_eq!((leases.due(start + 20 * SECOND), leases.wake_at()), (vec![], None));
    }

    #[test]
    fn the_end_of_delays_leaves_other_leases() {
        let (start, mut leases) = (Instant::now(), Leases::new(SECOND, 10 * SECOND));
        let (kept, delayed) = (leases.hold(held(start)), leases.hold(held(start)));
        leases.delay(delayed, start + SECOND);
        leases.end_delays();
        assert!(leases.get(kept).is_some() && leases.take(delayed).is_none());
    }
}
