//! One queue of a memory broker, and a lease on one of its messages. Plain data that is told the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::event::LinkId;
use super::{ConsumeOptions, Message, QueueOptions};

/// A message in a queue, or under a lease.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) message: Message,
    pub(super) attempt: u32,
    pub(super) published: Instant,
}

/// Messages by their places, which are the order of publishing and stay theirs for life.
pub(super) struct Queue {
    options: QueueOptions,
    used: Instant,
    pub(super) ready: BTreeMap<u64, Stored>,
    pub(super) delayed: BTreeMap<(Instant, u64), Stored>,
    /// The tokens of the leases on its messages.
    pub(super) leased: BTreeSet<u64>,
}

impl Queue {
    pub(super) fn new(options: QueueOptions, now: Instant) -> Self {
        Self { options, used: now, ready: BTreeMap::new(), delayed: BTreeMap::new(), leased: BTreeSet::new() }
    }

    pub(super) fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    pub(super) fn has_room(&self, more: usize) -> bool {
        let held = self.ready.len() + self.delayed.len() + self.leased.len();
        self.options.messages_max.is_none_or(|max| held + more <= max.get())
    }

    pub(super) fn put(&mut self, place: u64, stored: Stored, at: Instant, now: Instant) {
        if at <= now {
            self.ready.insert(place, stored);
        } else {
            self.delayed.insert((at, place), stored);
        }
    }

    /// Moves the delayed messages whose time has come to their places.
    pub(super) fn show_delayed(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let ((_, place), stored) = entry.remove_entry();
            self.ready.insert(place, stored);
        }
    }

    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.options.expires.is_some_and(|expires| now >= self.used + expires)
    }

    /// When somebody who waits should look again: a message appears, or the queue is half way to its end.
    pub(super) fn next_change(&self) -> Option<Instant> {
        let shown = self.delayed.first_key_value().map(|(&(at, _), _)| at);
        let touched = self.options.expires.map(|expires| self.used + expires / 2);
        shown.into_iter().chain(touched).min()
    }
}

/// Who takes messages.
pub(super) struct Holder<'a> {
    pub(super) link: LinkId,
    pub(super) queue: &'a str,
    pub(super) options: &'a ConsumeOptions,
}

/// A lease: who holds which message, and until when.
pub(super) struct Held {
    pub(super) link: LinkId,
    pub(super) queue: String,
    pub(super) place: u64,
    pub(super) stored: Stored,
    options: ConsumeOptions,
    granted: Instant,
    /// When it is looked at next: a renewal is due, or it ends.
    pub(super) due: Instant,
    pub(super) ends: Instant,
    /// Nobody can settle it any more, so nobody renews it.
    pub(super) orphan: bool,
}

impl Held {
    pub(super) fn new(holder: &Holder<'_>, place: u64, stored: Stored, now: Instant) -> Self {
        let mut held = Self {
            link: holder.link,
            queue: holder.queue.to_owned(),
            place,
            stored,
            options: holder.options.clone(),
            granted: now,
            due: now,
            ends: now + holder.options.lease,
            orphan: false,
        };
        held.set_due(now);
        held
    }

    /// A renewal is due: renews, if its holder may, and says when to look again.
    pub(super) fn beat(&mut self, now: Instant, stalled: bool) {
        let young = now < self.granted + self.options.lease_max;
        if young && !stalled && !self.orphan && *self.options.renew.borrow() {
            self.ends = now + self.options.lease;
        }
        self.set_due(now);
    }

    fn set_due(&mut self, now: Instant) {
        let beat = (self.options.lease / 3).max(Duration::from_millis(1));
        self.due = (now + beat).min(self.ends);
    }
}
