//! What can be seen in a memory broker's queues without changing them.
//!
//! In: names, a page, the time. Out: counts, messages where they stand, names. A message's place is its cursor.

use tokio::time::Instant;

use super::queue::{Queue, Stored};
use super::store::Store;
use super::{BrokerError, Browsed, Message, Page, QueueStatus};
use crate::broker::{Bodies, Cursor, Standing};

impl Store {
    pub(super) fn status(&mut self, name: &str, now: Instant) -> Result<QueueStatus, BrokerError> {
        self.queue(name, now)?;
        let queue = &self.queues[name];
        let leased = queue.leased.iter().map(|token| &self.leases[token].stored);
        let all = queue.ready.values().chain(queue.delayed.values()).chain(leased);
        Ok(QueueStatus {
            waiting: Some(queue.ready.len() as u64),
            leased: Some(queue.leased.len() as u64),
            delayed: Some(queue.delayed.len() as u64),
            oldest: all.map(|stored| stored.published).min().map(|published| now - published),
        })
    }

    /// One page of a queue.
    pub(super) fn browse(&mut self, name: &str, page: Page, now: Instant) -> Result<Vec<Browsed>, BrokerError> {
        self.queue(name, now)?;
        let mut all = self.standing(&self.queues[name], now);
        all.retain(|(place, ..)| page.after < cursor(*place));
        all.sort_by_key(|(place, ..)| *place);
        let (mut seen, mut bytes) = (Vec::new(), 0);
        for (place, standing, stored) in all.into_iter().take(page.messages.get()) {
            if bytes >= page.bytes.max(1) {
                break;
            }
            let browsed = browsed((place, standing, stored), page.bodies, now);
            bytes += browsed.message.body.len();
            seen.push(browsed);
        }
        Ok(seen)
    }

    fn standing<'a>(&'a self, queue: &'a Queue, now: Instant) -> Vec<(u64, Standing, &'a Stored)> {
        let ready = queue.ready.iter().map(|(&place, stored)| (place, Standing::Waiting, stored));
        let delayed = queue.delayed.iter().map(|(&(at, place), stored)| (place, Standing::Delayed(at - now), stored));
        let leased = queue.leased.iter().map(|token| {
            let held = &self.leases[token];
            (held.place, Standing::Leased(held.ends - now), &held.stored)
        });
        ready.chain(delayed).chain(leased).collect()
    }

    /// The names of the queues that begin with `prefix`, sorted.
    pub(super) fn queues(&self, prefix: &str) -> Vec<String> {
        self.queues.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }
}

fn cursor(place: u64) -> Cursor {
    Cursor(place as i64, 0)
}

fn browsed((place, standing, stored): (u64, Standing, &Stored), bodies: Bodies, now: Instant) -> Browsed {
    let message = match bodies {
        Bodies::Whole => stored.message.clone(),
        Bodies::Absent => Message { attributes: stored.message.attributes.clone(), ..Message::default() },
    };
    Browsed {
        message,
        body_bytes: stored.message.body.len(),
        attempt: stored.attempt,
        standing,
        age: now - stored.published,
        cursor: cursor(place),
    }
}
