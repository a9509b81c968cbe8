//! One channel that consumes one queue, and its prefetch.
//!
//! In: how much is wanted. Out: deliveries, in the order of their tags. The prefetch follows what the consumer wants to
//! hold: it is the only bound that AMQP has on what a client is sent. To change it, the subscription is cancelled and
//! begun anew on the same channel, so that leases stay valid.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::super::BrokerError;
use super::desk::Wish;
use super::fault;
use super::link::{Link, Up};
use super::message::short;
use super::pool::answered;

/// A consumer that wants no more than this wants nothing fetched ahead: it probes, or runs suspects apart.
const FEW: usize = 8;
/// How many are fetched before their size is known.
const UNKNOWN_SIZE_MAX: usize = 64;
/// Bytes that may lie here although nobody has room for them.
const SURPLUS_BYTES_MAX: usize = 32 << 20;

/// A channel with its subscription.
pub(super) struct Session {
    pub(super) up: Arc<Up>,
    channel: Channel,
    queue: String,
    stream: Option<Consumer>,
    prefetch: u16,
    /// Subscriptions so far: each has its own tag.
    subscriptions: u32,
    /// A running mean of the bodies' bytes.
    mean_bytes: Option<usize>,
}

/// What a wish asks of the prefetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Keep,
    /// A subscription with this prefetch.
    Subscribe(u16),
    /// No more than this is to be held: the rest goes back.
    Shrink(u16),
}

impl Session {
    /// A channel on the connection that stands; it consumes nothing yet.
    pub(super) async fn open(link: &Link, queue: &str) -> Result<Self, BrokerError> {
        let up = link.up()?;
        let channel = answered(up.connection.create_channel()).await?.map_err(|error| fault::broker(&error))?;
        Ok(Self { up, channel, queue: queue.to_owned(), stream: None, prefetch: 0, subscriptions: 0, mean_bytes: None })
    }

    /// What `wish` asks for, while so many deliveries (and bytes) have not been taken.
    pub(super) fn change(&self, wish: Wish, untaken: (usize, usize)) -> Change {
        let bytes = self.mean_bytes.map_or(UNKNOWN_SIZE_MAX, |mean| (wish.bytes / mean.max(1)).max(1));
        let wanted = u16::try_from(wish.leased + wish.jobs.min(bytes)).unwrap_or(u16::MAX).max(1);
        if self.stream.is_none() {
            return Change::Subscribe(wanted);
        }
        let few = usize::from(wanted) <= FEW && usize::from(self.prefetch) > FEW;
        let surplus = untaken.1 > wish.bytes.max(SURPLUS_BYTES_MAX) && self.prefetch > wanted;
        if few || surplus {
            return Change::Shrink(wanted);
        }
        let limiting = untaken.0 == 0 && wish.leased >= usize::from(self.prefetch);
        if limiting && wanted > self.prefetch { Change::Subscribe(wanted) } else { Change::Keep }
    }

    /// Subscribes with this prefetch.
    pub(super) async fn subscribe(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.subscriptions += 1;
        let (queue, tag) = (short(&self.queue)?, self.tag());
        let Self { channel, .. } = self;
        let subscribed = async {
            // Not global: it is for the subscription that follows. Quorum queues know no other.
            channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
            channel.basic_consume(queue, tag.into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        let stream = answered(subscribed).await?.map_err(|error| fault::of_queue(&self.queue, &error))?;
        (self.stream, self.prefetch) = (Some(stream), prefetch);
        Ok(())
    }

    /// Ends the subscription, and returns what was still on its way. Dropping the stream would not end it.
    pub(super) async fn unsubscribe(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let Some(stream) = self.stream.take() else { return Ok(Vec::new()) };
        let tag = self.tag().into();
        let cancelled = async {
            self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
            Ok(stream.collect::<Vec<_>>().await)
        };
        let rest = answered(cancelled).await?.map_err(|error| fault::broker(&error))?;
        let rest: lapin::Result<Vec<_>> = rest.into_iter().collect();
        let rest = rest.map_err(|error| fault::broker(&error))?;
        rest.iter().for_each(|delivery| self.weigh(delivery));
        Ok(rest)
    }

    fn tag(&self) -> String {
        format!("inferq-{}", self.subscriptions)
    }

    /// The next delivery; `None` when the broker has ended the subscription; never, without one.
    pub(super) async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        let next = stream.next().await;
        self.told(next)
    }

    /// As [`Session::next`], if it is there already.
    pub(super) fn next_ready(&mut self) -> Option<Result<Option<Delivery>, BrokerError>> {
        let next = self.stream.as_mut()?.next().now_or_never()?;
        Some(self.told(next))
    }

    fn told(&mut self, next: Option<lapin::Result<Delivery>>) -> Result<Option<Delivery>, BrokerError> {
        let next = next.transpose().map_err(|error| fault::of_queue(&self.queue, &error))?;
        next.iter().for_each(|delivery| self.weigh(delivery));
        Ok(next)
    }

    fn weigh(&mut self, delivery: &Delivery) {
        let bytes = delivery.data.len();
        self.mean_bytes = Some(self.mean_bytes.map_or(bytes, |mean| (mean * 15 + bytes) / 16));
    }

    /// Sends acks, each of one delivery or of all up to it.
    pub(super) async fn ack(&self, acks: Vec<(u64, bool)>) -> Result<(), BrokerError> {
        for (tag, multiple) in acks {
            let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple }).await;
            acked.map_err(|error| fault::broker(&error))?;
        }
        Ok(())
    }

    /// Gives deliveries back; the broker may count it.
    pub(super) async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicNackOptions { multiple: false, requeue: true };
        self.channel.basic_nack(tag, options).await.map_err(|error| fault::broker(&error))
    }

    /// Closes the channel: the broker gives back what is not settled.
    pub(super) async fn close(self) {
        // What can't be closed now ends with the connection.
        let _ = answered(self.channel.close(200, "closed".into())).await;
    }
}
