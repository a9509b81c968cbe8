//! Declaring, removing and counting queues.
//!
//! In: names and what a queue is for. Out: its arguments, and the broker's word that it is there. What `setup` declares
//! is checked against what exists; any other queue that exists stays as it is.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Queue};

use super::super::{BrokerError, QueueNames, QueueOptions, QueueStatus};
use super::address::QueueType;
use super::fault;
use super::link::Link;
use super::message::short;
use super::pool::answered;

/// Deliveries after which the broker itself sets a job aside: a backstop far above any `--max-attempts`. Every lost
/// connection counts, and on servers before 4.3 every message given back.
const JOBS_DELIVERY_LIMIT: i64 = 10_000;
/// Queues that have nowhere to set a message aside must never reach their limit: what passes it is dropped. The server's
/// own default is 20 from 4.0 on, and -1, which is no limit there, drops at the first redelivery on 3.x.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// How long messages can be kept away, in seconds. Only the head of a queue expires, so each delay has its own queue.
pub(super) const DELAYS_S: [u64; 5] = [1, 5, 30, 300, 3600];

/// The queue that gives its messages back to `queue` after `seconds`.
pub(super) fn delay_queue(queue: &str, seconds: u64) -> String {
    format!("{queue}.delay.{seconds}")
}

/// Whether a queue is such a one.
pub(super) fn is_delay(queue: &str) -> bool {
    DELAYS_S.into_iter().any(|seconds| queue.ends_with(&format!(".delay.{seconds}")))
}

/// The delay that is at least `after`, or the longest.
pub(super) fn delay_for(after: Duration) -> u64 {
    let longest = DELAYS_S[DELAYS_S.len() - 1];
    DELAYS_S.into_iter().find(|seconds| Duration::from_secs(*seconds) >= after).unwrap_or(longest)
}

/// Talks to the broker about queues, over a connection that no alarm blocks.
pub(super) struct Queues<'a> {
    pub(super) link: &'a Arc<Link>,
    pub(super) queue_type: QueueType,
}

impl Queues<'_> {
    /// Declares a queue of its own; one that is there already stays as it is.
    pub(super) async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        match self.count(queue).await {
            Err(BrokerError::UnknownQueue(_)) => self.make(queue, &self.plain(options)).await,
            counted => counted.map(drop),
        }
    }

    /// Declares the queues that belong to one jobs queue, and checks those that are there.
    pub(super) async fn setup(&self, names: &QueueNames) -> Result<(), BrokerError> {
        for queue in [names.dead(), names.results()] {
            self.make(&queue, &self.plain(QueueOptions::default())).await?;
        }
        for queue in [&names.jobs, &names.shards()] {
            self.make(queue, &self.dead_lettering(&names.dead(), JOBS_DELIVERY_LIMIT)).await?;
            for seconds in DELAYS_S {
                self.make(&delay_queue(queue, seconds), &self.delaying(queue, seconds)).await?;
            }
        }
        Ok(())
    }

    /// Removes a queue and the delays that belong to it; what is absent is no error.
    pub(super) async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        self.delete(queue).await?;
        for seconds in DELAYS_S {
            self.delete(&delay_queue(queue, seconds)).await?;
        }
        Ok(())
    }

    /// What is in a queue, as far as AMQP tells: what consumers hold, and since when, it does not.
    pub(super) async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        let waiting = self.count(queue).await?;
        let mut delayed = None;
        for seconds in DELAYS_S {
            match self.count(&delay_queue(queue, seconds)).await {
                Ok(count) => *delayed.get_or_insert(0) += count,
                // A queue has all of them or none, and each that is absent costs a channel and a line in the server's log.
                Err(BrokerError::UnknownQueue(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(QueueStatus { waiting: Some(waiting), leased: None, delayed, oldest: None })
    }

    /// The messages of a queue that could be delivered now.
    pub(super) async fn count(&self, queue: &str) -> Result<u64, BrokerError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.call(queue, |channel, name| async move {
            channel.queue_declare(name, passive, FieldTable::default()).await
        });
        declared.await.map(|queue: Queue| u64::from(queue.message_count()))
    }

    async fn make(&self, queue: &str, arguments: &FieldTable) -> Result<(), BrokerError> {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = self
            .call(queue, |channel, name| async move { channel.queue_declare(name, durable, arguments.clone()).await });
        declared.await.map(drop)
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let options = QueueDeleteOptions::default();
        let deleted = self.call(queue, |channel, name| async move { channel.queue_delete(name, options).await });
        match deleted.await {
            Ok(_) | Err(BrokerError::UnknownQueue(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One call on a channel of its own: an error closes the channel.
    async fn call<T, F: Future<Output = lapin::Result<T>>>(
        &self,
        queue: &str,
        call: impl FnOnce(Channel, lapin::types::ShortString) -> F,
    ) -> Result<T, BrokerError> {
        let (up, name) = (self.link.up()?, short(queue)?);
        let called = async { call(up.connection.create_channel().await?, name).await };
        answered(called).await?.map_err(|error| refused(queue, &error))
    }

    fn plain(&self, options: QueueOptions) -> FieldTable {
        let mut arguments = self.typed(DELIVERY_LIMIT);
        if let Some(messages) = options.messages_max {
            insert(&mut arguments, "x-max-length", number(messages.get()));
            insert(&mut arguments, "x-overflow", text("reject-publish"));
        }
        if let Some(expires) = options.expires {
            insert(&mut arguments, "x-expires", number(expires.as_millis()));
        }
        arguments
    }

    fn delaying(&self, queue: &str, seconds: u64) -> FieldTable {
        let mut arguments = self.dead_lettering(queue, DELIVERY_LIMIT);
        insert(&mut arguments, "x-message-ttl", number(seconds * 1000));
        arguments
    }

    /// What leaves the queue by the broker's hand goes to `target`, and stays until it has arrived there.
    fn dead_lettering(&self, target: &str, delivery_limit: i64) -> FieldTable {
        let mut arguments = self.typed(delivery_limit);
        insert(&mut arguments, "x-dead-letter-exchange", text(""));
        insert(&mut arguments, "x-dead-letter-routing-key", text(target));
        if self.queue_type == QueueType::Quorum {
            insert(&mut arguments, "x-dead-letter-strategy", text("at-least-once"));
            // The strategy needs it, whether or not the queue has a bound.
            insert(&mut arguments, "x-overflow", text("reject-publish"));
        }
        arguments
    }

    fn typed(&self, delivery_limit: i64) -> FieldTable {
        let mut arguments = FieldTable::default();
        insert(&mut arguments, "x-queue-type", text(self.queue_type.name()));
        if self.queue_type == QueueType::Quorum {
            insert(&mut arguments, "x-delivery-limit", AMQPValue::LongLongInt(delivery_limit));
        }
        arguments
    }
}

/// Arguments that differ from what exists: the broker names the queue, the argument and both values.
fn refused(queue: &str, error: &lapin::Error) -> BrokerError {
    match fault::of_queue(queue, error) {
        BrokerError::Refused(text) if text.starts_with("PRECONDITION_FAILED") => {
            let way = "to change it, stop its producers and workers, move its messages to another queue (a shovel does) \
                       or let them be worked off, delete it, and run setup again; setup with ?queue=NAME uses another";
            BrokerError::Refused(format!("{text}; {way}"))
        }
        error => error,
    }
}

fn insert(arguments: &mut FieldTable, name: &str, value: AMQPValue) {
    arguments.insert(name.into(), value);
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn number(number: impl TryInto<i64>) -> AMQPValue {
    AMQPValue::LongLongInt(number.try_into().unwrap_or(i64::MAX))
}
