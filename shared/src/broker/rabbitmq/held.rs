//! The deliveries of one channel that are not settled yet, and how few acks settle them.
//!
//! In: delivery tags in the order of arrival, and which of them are done. Out: lease tokens, which never repeat, so that a
//! lease of an earlier channel can't settle a delivery of this one: tags begin at 1 on each. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lapin::BasicProperties;
use tokio::sync::oneshot;

use super::super::BrokerError;

/// Who waits for a settlement.
pub(super) type Done = Option<oneshot::Sender<Result<(), BrokerError>>>;

/// One delivery.
#[derive(Debug)]
pub(super) struct Held {
    /// What came.
    pub(super) body: Bytes,
    /// With these properties.
    pub(super) properties: BasicProperties,
    /// The attempt that its lease is.
    pub(super) attempt: u32,
    /// Who is told once the copy that replaces it is confirmed.
    pub(super) done: Done,
}

/// The deliveries that a channel has brought and that are not settled.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// A lease's token is this and its tag.
    base: u64,
    /// Every tag up to this one has arrived. Several subscriptions share the channel and its tags, so one may be seen
    /// before a lower one.
    arrived: u64,
    /// Those that have arrived beyond it.
    ahead: BTreeSet<u64>,
    held: BTreeMap<u64, Held>,
}

impl Deliveries {
    /// Enters what has arrived, and returns its token.
    pub(super) fn hold(&mut self, tag: u64, held: Held) -> u64 {
        self.ahead.insert(tag);
        while self.ahead.remove(&(self.arrived + 1)) {
            self.arrived += 1;
        }
        self.held.insert(tag, held);
        self.base + tag
    }

    /// The delivery of a token, if it is of this channel and not settled.
    pub(super) fn get(&mut self, token: u64) -> Option<&mut Held> {
        self.held.get_mut(&self.tag(token)?)
    }

    /// The tag of a token, if it is of this channel.
    pub(super) fn tag(&self, token: u64) -> Option<u64> {
        token.checked_sub(self.base).filter(|tag| self.held.contains_key(tag))
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, tag: u64) -> Option<Held> {
        self.held.remove(&tag)
    }

    /// Takes `tags` out and returns the acks that settle exactly these: one for all up to the oldest that stays or has
    /// not been seen, as `(tag, multiple)`, then one each.
    pub(super) fn ack(&mut self, mut tags: Vec<u64>) -> Vec<(u64, bool)> {
        tags.sort_unstable();
        tags.iter().for_each(|tag| drop(self.held.remove(tag)));
        let oldest = self.held.first_key_value().map_or(u64::MAX, |(tag, _)| *tag).min(self.arrived + 1);
        let below = tags.partition_point(|tag| *tag < oldest);
        let together = tags[..below].last().map(|tag| (*tag, below > 1));
        together.into_iter().chain(tags[below..].iter().map(|tag| (*tag, false))).collect()
    }

    /// The channel is gone: every lease on it is over. Returns who waits for a settlement.
    pub(super) fn lose(&mut self) -> Vec<Done> {
        self.base += self.ahead.last().copied().unwrap_or(self.arrived);
        (self.arrived, self.ahead) = (0, BTreeSet::new());
        std::mem::take(&mut self.held).into_values().map(|held| held.done).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held { body: Bytes::new(), properties: BasicProperties::default(), attempt: 1, done: None }
    }

    fn deliveries(tags: std::ops::RangeInclusive<u64>) -> Deliveries {
        let mut deliveries = Deliveries::default();
        for tag in tags {
            deliveries.hold(tag, held());
        }
        deliveries
    }

    #[test]
    fn one_ack_settles_all_that_came_before_the_oldest_that_stays() {
        let mut deliveries = deliveries(1..=8);
        assert_eq!(deliveries.ack(vec![2, 3]), [(2, false), (3, false)]);
        assert_eq!(deliveries.ack(vec![5, 1, 4]), [(5, true)]);
        assert_eq!(deliveries.ack(vec![8, 6]), [(6, false), (8, false)]);
        assert_eq!(deliveries.ack(vec![7]), [(7, false)]);
        assert_eq!((deliveries.len(), deliveries.ack(vec![])), (0, vec![]));
    }

    #[test]
    fn no_multiple_ack_ever_covers_what_is_held() {
        let tags: Vec<u64> = (1..=6).collect();
        for chosen in 0..1u32 << tags.len() {
            let mut deliveries = deliveries(1..=6);
            let done: Vec<u64> = tags.iter().copied().filter(|tag| chosen >> (tag - 1) & 1 == 1).collect();
            let acks = deliveries.ack(done.clone());
            let mut settled: Vec<u64> = tags
                .iter()
                .copied()
                .filter(|tag| acks.iter().any(|(ack, multiple)| tag == ack || (*multiple && tag < ack)))
                .collect();
            settled.sort_unstable();
            assert_eq!(settled, done);
        }
    }

    #[test]
    fn no_multiple_ack_covers_what_has_not_been_seen() {
        let mut deliveries = deliveries(1..=2);
        deliveries.hold(4, held());
        assert_eq!(deliveries.ack(vec![1, 2, 4]), [(2, true), (4, false)]);
        deliveries.hold(5, held());
        deliveries.hold(3, held());
        assert_eq!(deliveries.ack(vec![3, 5]), [(5, true)]);
    }

    #[test]
    fn a_token_of_an_earlier_channel_names_nothing() {
        let mut deliveries = Deliveries::default();
        let early: Vec<u64> = (1..=3).map(|tag| deliveries.hold(tag, held())).collect();
        deliveries.lose();
        let late = deliveries.hold(1, held());
        assert!(early.iter().all(|token| deliveries.tag(*token).is_none()));
        assert_eq!(deliveries.tag(late), Some(1));
    }
}
