//! One channel that consumes one queue, and its prefetch.
//!
//! In: how much is wanted. Out: deliveries. The prefetch follows what the consumer wants to hold: it is the only bound that
//! AMQP has on what a client is sent. To fetch more, another subscription is added to the same channel. To fetch less, all
//! are cancelled and one is begun anew; leases stay valid, but servers before 4.3 count a delivery that crosses a
//! cancellation as given back. So that is only done for who wants next to nothing, or lacks the memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::super::BrokerError;
use super::super::desk::Wish;
use super::fault;
use super::link::{Link, Up};
use super::message::short;
use super::pool::answered;

/// A consumer that wants no more than this wants nothing fetched ahead: it probes, or runs suspects apart.
const FEW: usize = 8;
/// A channel that does not close within so long is dropped.
const FAREWELL: Duration = Duration::from_secs(3);
/// How many are fetched before their size is known.
const UNKNOWN_SIZE_MAX: usize = 64;
/// Bytes that may lie here although nobody has room for them.
const SURPLUS_BYTES_MAX: usize = 32 << 20;

/// A channel with its subscription.
pub(super) struct Session {
    pub(super) up: Arc<Up>,
    channel: Channel,
    queue: String,
    subscribed: SelectAll<Consumer>,
    /// The tags of the subscriptions that last.
    tags: Vec<String>,
    /// Of all of them together.
    prefetch: usize,
    /// Subscriptions so far.
    subscriptions: u32,
    /// A running mean of the bodies' bytes.
    mean_bytes: Option<usize>,
}

/// What a wish asks of the prefetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Keep,
    /// Another subscription, of so many.
    Subscribe(usize),
    /// No more than this is to be held: the rest goes back.
    Shrink(usize),
}

impl Session {
    /// A channel on the connection that stands; it consumes nothing yet.
    pub(super) async fn open(link: &Link, queue: &str) -> Result<Self, BrokerError> {
        let up = link.up()?;
        let channel = answered(up.connection.create_channel()).await?.map_err(|error| fault::broker(&error))?;
        let (queue, subscribed, tags) = (queue.to_owned(), SelectAll::new(), Vec::new());
        Ok(Self { up, channel, queue, subscribed, tags, prefetch: 0, subscriptions: 0, mean_bytes: None })
    }

    /// What `wish` asks for, while so many deliveries (and bytes) have not been taken.
    pub(super) fn change(&self, wish: Wish, untaken: (usize, usize)) -> Change {
        let bytes = self.mean_bytes.map_or(UNKNOWN_SIZE_MAX, |mean| (wish.bytes / mean.max(1)).max(1));
        let wanted = (wish.leased + wish.jobs.min(bytes)).max(1);
        if self.tags.is_empty() {
            return Change::Subscribe(wanted);
        }
        let few = wanted <= FEW && self.prefetch > FEW;
        let surplus = untaken.1 > wish.bytes.max(SURPLUS_BYTES_MAX) && self.prefetch > wanted;
        if few || surplus {
            return Change::Shrink(wanted);
        }
        let limiting = untaken.0 == 0 && wish.leased >= self.prefetch;
        if limiting && wanted > self.prefetch {
            // At least twice as many as now, so that a growing wish does not add one subscription after the other.
            return Change::Subscribe((wanted - self.prefetch).max(self.prefetch));
        }
        Change::Keep
    }

    /// Adds a subscription with this prefetch.
    pub(super) async fn subscribe(&mut self, prefetch: usize) -> Result<(), BrokerError> {
        self.subscriptions += 1;
        let tag = format!("inferq-{}", self.subscriptions);
        let (queue, count) = (short(&self.queue)?, u16::try_from(prefetch).unwrap_or(u16::MAX));
        let subscribed = async {
            // Not global: it is for the subscription that follows. Quorum queues know no other.
            self.channel.basic_qos(count, BasicQosOptions { global: false }).await?;
            let options = BasicConsumeOptions::default();
            self.channel.basic_consume(queue, tag.as_str().into(), options, FieldTable::default()).await
        };
        let stream = answered(subscribed).await?.map_err(|error| fault::of_queue(&self.queue, &error))?;
        self.subscribed.push(stream);
        self.tags.push(tag);
        self.prefetch += usize::from(count);
        Ok(())
    }

    /// Ends all subscriptions, and returns what was still on its way. Dropping the streams would not end them.
    pub(super) async fn unsubscribe(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let streams = std::mem::take(&mut self.subscribed);
        let cancelled = async {
            for tag in self.tags.drain(..) {
                self.channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await?;
            }
            Ok(streams.collect::<Vec<_>>().await)
        };
        let rest = answered(cancelled).await?.map_err(|error| fault::for_now(&error))?;
        self.prefetch = 0;
        let rest: lapin::Result<Vec<_>> = rest.into_iter().collect();
        let rest = rest.map_err(|error| fault::for_now(&error))?;
        rest.iter().for_each(|delivery| self.weigh(delivery));
        Ok(rest)
    }

    /// The next delivery; `None` when the broker has ended the subscription; never, without one.
    pub(super) async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        if self.tags.is_empty() {
            return std::future::pending().await;
        }
        let next = self.subscribed.next().await;
        self.told(next)
    }

    /// As [`Session::next`], if it is there already.
    pub(super) fn next_ready(&mut self) -> Option<Result<Option<Delivery>, BrokerError>> {
        let next = self.subscribed.next().now_or_never()?;
        (!self.tags.is_empty()).then(|| self.told(next))
    }

    fn told(&mut self, next: Option<lapin::Result<Delivery>>) -> Result<Option<Delivery>, BrokerError> {
        // A channel that worked until now: whatever the broker found wrong with it (a delivery held beyond the consumer
        // timeout is a failed precondition) another one may do.
        let next = next.transpose().map_err(|error| fault::for_now(&error))?;
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
            acked.map_err(|error| fault::for_now(&error))?;
        }
        Ok(())
    }

    /// Gives deliveries back; the broker may count it.
    pub(super) async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicNackOptions { multiple: false, requeue: true };
        self.channel.basic_nack(tag, options).await.map_err(|error| fault::for_now(&error))
    }

    /// Closes the channel: the broker gives back what is not settled.
    pub(super) async fn close(self) {
        // What can't be closed now ends with the connection.
        let _ = timeout(FAREWELL, self.channel.close(200, "closed".into())).await;
    }
}
