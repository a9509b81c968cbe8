//! The queues and leases of a memory broker. No tasks, no waiting: every change is a method that is told the time.
//!
//! In: what the calls of the connections ask for. Out: what is handed over, and an [`Event`] for each change. It keeps
//! the order of publishing: a message has one place for life, whether it waits, is delayed or under a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::event::{End, Event, LinkId, Observer};
use super::queue::{Held, Holder, Queue, Stored};
use super::{BrokerError, Message, Pull, QueueOptions, Verdict};
use crate::broker::QueueNames;
use crate::job::attribute;

#[derive(Default)]
pub(super) struct Store {
    pub(super) queues: BTreeMap<String, Queue>,
    pub(super) leases: BTreeMap<u64, Held>,
    /// The leases by the time at which they are looked at next.
    due: BTreeSet<(Instant, u64)>,
    links: BTreeMap<LinkId, LinkState>,
    places: u64,
    tokens: u64,
    observer: Option<Observer>,
}

#[derive(Default)]
struct LinkState {
    ended: bool,
    breaks: u64,
    down_until: Option<Instant>,
    stalled_until: Option<Instant>,
}

/// What a consumer finds.
pub(super) enum Look {
    /// Something can be taken.
    Ready,
    /// Nothing. Time alone changes that at this instant at the earliest, if at all.
    Wait(Option<Instant>),
}

/// Time and connections.
impl Store {
    pub(super) fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(observer) = &self.observer {
            observer(&event());
        }
    }

    /// Lets the time up to `now` pass: leases are renewed or end, delayed messages appear, unused queues go.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(&(due, token)) = self.due.first()
            && due <= now
        {
            self.look_at_lease(token, due);
        }
        for queue in self.queues.values_mut() {
            queue.show_delayed(now);
        }
        let unused = self.queues.iter().filter(|(_, queue)| queue.is_unused(now));
        for name in unused.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.remove(&name);
        }
    }

    fn look_at_lease(&mut self, token: u64, now: Instant) {
        let held = self.leases.get_mut(&token).expect("every due lease is held");
        if held.ends <= now {
            return self.end(token, End::Expired, now);
        }
        self.due.remove(&(held.due, token));
        let stalled = self.links[&held.link].stalled_until.is_some_and(|until| now < until);
        held.beat(now, stalled);
        self.due.insert((held.due, token));
    }

    pub(super) fn open_link(&mut self) -> LinkId {
        let id = self.links.len() as LinkId;
        self.links.insert(id, LinkState::default());
        id
    }

    fn link(&mut self, link: LinkId) -> &mut LinkState {
        self.links.get_mut(&link).expect("a connection is open before it is used")
    }

    /// Whether the connection can be used now, and if it is stalled until when.
    pub(super) fn usable(&self, link: LinkId, now: Instant) -> Result<Option<Instant>, BrokerError> {
        let link = &self.links[&link];
        if link.ended {
            return Err(BrokerError::Closed);
        }
        if link.down_until.is_some_and(|until| now < until) {
            return Err(BrokerError::Unavailable("the connection is down".to_owned()));
        }
        Ok(link.stalled_until.filter(|&until| now < until))
    }

    /// How often the connection has broken.
    pub(super) fn breaks(&self, link: LinkId) -> u64 {
        self.links[&link].breaks
    }

    pub(super) fn stall(&mut self, link: LinkId, until: Instant) {
        self.link(link).stalled_until = Some(until);
    }

    pub(super) fn disconnect(&mut self, link: LinkId, down: Duration, now: Instant) {
        let state = self.link(link);
        state.breaks += 1;
        state.down_until = Some(now + down);
        self.end_all(link, now);
    }

    pub(super) fn end_link(&mut self, link: LinkId, now: Instant) {
        self.link(link).ended = true;
        self.end_all(link, now);
    }

    fn end_all(&mut self, link: LinkId, now: Instant) {
        let tokens = self.leases.iter().filter(|(_, held)| held.link == link);
        for token in tokens.map(|(&token, _)| token).collect::<Vec<_>>() {
            self.end(token, End::Disconnected, now);
        }
    }
}

/// Queues.
impl Store {
    pub(super) fn declare(&mut self, name: &str, options: QueueOptions, now: Instant) {
        self.queues.entry(name.to_owned()).or_insert_with(|| Queue::new(options, now)).touch(now);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(queue) = self.queues.get(name) else { return };
        for token in queue.leased.clone() {
            let held = self.forget(token);
            self.tell(|| Event::Ended { token, place: held.place, end: End::Removed });
        }
        self.queues.remove(name);
    }

    /// The queue, which is in use now.
    pub(super) fn queue(&mut self, name: &str, now: Instant) -> Result<&mut Queue, BrokerError> {
        let queue = self.queues.get_mut(name).ok_or_else(|| BrokerError::UnknownQueue(name.to_owned()))?;
        queue.touch(now);
        Ok(queue)
    }

    /// Publishes all messages or none; returns their places.
    pub(super) fn publish(
        &mut self,
        link: LinkId,
        name: &str,
        messages: Vec<Message>,
        now: Instant,
    ) -> Result<Vec<u64>, BrokerError> {
        if !self.queue(name, now)?.has_room(messages.len()) {
            return Err(BrokerError::Full(name.to_owned()));
        }
        Ok(messages.into_iter().map(|message| self.put(link, name, message, now)).collect())
    }

    fn put(&mut self, link: LinkId, name: &str, message: Message, now: Instant) -> u64 {
        let place = self.new_place();
        self.tell(|| Event::Published { link, queue: name.to_owned(), place, message: message.clone() });
        let queue = self.queues.get_mut(name).expect("the caller has looked the queue up");
        queue.put(place, Stored { message, attempt: 1, published: now }, now, now);
        place
    }

    fn new_place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    /// Notes that the publisher has been told.
    pub(super) fn confirm(&self, link: LinkId, places: Vec<u64>) {
        self.tell(|| Event::Confirmed { link, places });
    }

    /// What a consumer of the queue finds now.
    pub(super) fn look(&mut self, name: &str, now: Instant) -> Result<Look, BrokerError> {
        // Before time passes: a queue that somebody waits for is in use.
        self.queue(name, now)?;
        self.advance(now);
        if !self.queues[name].ready.is_empty() {
            return Ok(Look::Ready);
        }
        let queues = self.queues.values().filter_map(Queue::next_change);
        Ok(Look::Wait(queues.chain(self.due.first().map(|&(due, _)| due)).min()))
    }
}

/// Leases.
impl Store {
    /// Hands over what the pull allows, each message under a new lease.
    pub(super) fn take(
        &mut self,
        holder: &Holder<'_>,
        pull: Pull,
        now: Instant,
    ) -> Result<Vec<(u64, Stored)>, BrokerError> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < pull.jobs.get() && (taken.is_empty() || bytes < pull.bytes) {
            let Some((place, stored)) = self.queue(holder.queue, now)?.ready.pop_first() else { break };
            bytes += stored.message.body.len();
            taken.push((self.grant(holder, place, stored.clone(), now), stored));
        }
        Ok(taken)
    }

    fn grant(&mut self, holder: &Holder<'_>, place: u64, stored: Stored, now: Instant) -> u64 {
        self.tokens += 1;
        let (token, attempt) = (self.tokens, stored.attempt);
        let held = Held::new(holder, place, stored, now);
        self.due.insert((held.due, token));
        self.leases.insert(token, held);
        self.queues.get_mut(holder.queue).expect("the message came from it").leased.insert(token);
        self.tell(|| Event::Delivered { link: holder.link, queue: holder.queue.to_owned(), place, token, attempt });
        token
    }

    /// Puts a copy of the queue's first message behind all others.
    pub(super) fn duplicate_first(&mut self, name: &str) {
        let Some((&place, stored)) = self.queues.get(name).and_then(|queue| queue.ready.first_key_value()) else {
            return;
        };
        let (stored, copy) = (stored.clone(), self.new_place());
        self.tell(|| Event::Duplicated { place, copy });
        self.queues.get_mut(name).expect("it was there above").ready.insert(copy, stored);
    }

    /// Ends a lease as its holder decided.
    pub(super) fn settle(&mut self, token: u64, verdict: Verdict, now: Instant) -> Result<(), BrokerError> {
        let Some(held) = self.leases.get(&token) else {
            self.tell(|| Event::Fenced { token, verdict });
            return Err(BrokerError::LeaseLost);
        };
        if let Verdict::DeadLetter(reason) = &verdict {
            let (link, dead) = (held.link, QueueNames::new(&*held.queue).dead());
            let mut message = held.stored.message.clone();
            // No time of death: these queues know no calendar.
            message.attributes.extend([
                (attribute::DEAD_REASON.to_owned(), reason.clone()),
                (attribute::DEAD_QUEUE.to_owned(), held.queue.clone()),
                (attribute::DEAD_ATTEMPT.to_owned(), held.stored.attempt.to_string()),
            ]);
            self.declare(&dead, QueueOptions::default(), now);
            self.publish(link, &dead, vec![message], now)?;
        }
        self.end(token, End::Settled(verdict), now);
        Ok(())
    }

    /// Nobody can settle the lease any more; it ends when its time is over.
    pub(super) fn orphan(&mut self, token: u64) {
        if let Some(held) = self.leases.get_mut(&token) {
            held.orphan = true;
            self.tell(|| Event::Orphaned { token });
        }
    }

    fn end(&mut self, token: u64, end: End, now: Instant) {
        let Held { queue, place, mut stored, .. } = self.forget(token);
        self.tell(|| Event::Ended { token, place, end: end.clone() });
        let seen_at = match end {
            End::Settled(Verdict::Ack | Verdict::DeadLetter(_)) | End::Removed => return,
            End::Settled(Verdict::Release(after)) => now + after,
            End::Settled(Verdict::Dropped) | End::Expired | End::Disconnected => {
                stored.attempt += 1;
                now
            }
        };
        let queue = self.queues.get_mut(&queue).expect("a queue's leases go with it");
        queue.put(place, stored, seen_at, now);
    }

    fn forget(&mut self, token: u64) -> Held {
        let held = self.leases.remove(&token).expect("the caller has looked the lease up");
        self.due.remove(&(held.due, token));
        if let Some(queue) = self.queues.get_mut(&held.queue) {
            queue.leased.remove(&token);
        }
        held
    }
}
