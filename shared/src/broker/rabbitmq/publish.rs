//! Publishing: every message confirmed, none returned, a bounded number of bytes on the way.
//!
//! In: messages and the queue that they are for. Out: the broker's word for each. A message that no queue takes is
//! *confirmed* by the broker and returned beside the confirm: who looks only at the confirm loses it.

use std::sync::Arc;

use deadpool::managed::Pool;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::{BrokerError, Message, Publisher};
use super::fault;
use super::link::{Link, takes_nothing};
use super::message::{Outgoing, outgoing, short};
use super::pool::{self, Channels, answered};

/// Messages of one call that may be unconfirmed.
const WINDOW: usize = 1000;
/// Bytes of all calls that may be unconfirmed; a larger message goes alone.
const IN_FLIGHT_BYTES: u32 = 64 << 20;

/// Names a waiting client rather than a queue. A mandatory message for it is returned although it was delivered:
/// <https://www.rabbitmq.com/docs/direct-reply-to>. To a client that has gone it is lost, as the client is.
pub(super) const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to.";

/// Publishes over one connection.
#[derive(Clone)]
pub struct RabbitmqPublisher {
    link: Arc<Link>,
    pool: Pool<Channels>,
    in_flight: Arc<Semaphore>,
}

impl RabbitmqPublisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_BYTES as usize));
        Self { pool: pool::pool(link.clone()), link, in_flight }
    }

    /// Publishes what has its properties already.
    pub(super) async fn send(&self, queue: &str, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        self.link.up()?;
        let key = short(queue)?;
        if messages.is_empty() {
            return Ok(());
        }
        // An alarm stops the broker from reading, so nothing would come back.
        if let Some(reason) = &*self.link.blocked().borrow() {
            return Err(takes_nothing(reason));
        }
        self.link.unless_blocked(self.send_now(queue, key, messages)).await
    }

    async fn send_now(&self, queue: &str, key: ShortString, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        let mut channel = pool::channel(&self.pool).await?;
        channel.unconfirmed = true;
        let mut flight = Flight { queue, waiting: FuturesUnordered::new(), taken: 0, returned: 0, rejected: 0 };
        for message in messages {
            let permit = self.room(message.body.len(), &mut flight).await?;
            flight.waiting.push(publish_one(&channel.channel, &key, message, permit));
        }
        while flight.land().await? {}
        let verdict = flight.verdict();
        drop(flight);
        channel.unconfirmed = false;
        verdict
    }

    /// Why the broker takes no messages for now, asked of it.
    ///
    /// It tells nobody but who publishes, so messages are published that no queue can be meant by: the broker drops them.
    pub(super) async fn alarm(&self) -> Result<Option<String>, BrokerError> {
        self.link.up()?;
        let mut blocked = self.link.blocked();
        let asked = async {
            let mut channel = pool::channel(&self.pool).await?;
            channel.unconfirmed = true;
            // During an alarm the broker blocks the connection at the first one, and reads no second.
            for _ in 0..2 {
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                let published = channel.channel.basic_publish("".into(), "".into(), options, b"", properties);
                let confirmed = answered(async { published.await?.await }).await?;
                confirmed.map_err(|error| fault::broker(&error))?;
            }
            channel.unconfirmed = false;
            Ok(None)
        };
        tokio::select! {
            biased;
            Ok(reason) = blocked.wait_for(Option::is_some) => Ok(reason.clone()),
            asked = asked => asked,
        }
    }

    /// Waits until a body of so many bytes may be on the way.
    async fn room<F>(&self, bytes: usize, flight: &mut Flight<'_, F>) -> Result<OwnedSemaphorePermit, BrokerError>
    where
        F: Future<Output = lapin::Result<Confirmation>>,
    {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, IN_FLIGHT_BYTES);
        loop {
            if flight.waiting.len() < WINDOW
                && let Ok(permit) = self.in_flight.clone().try_acquire_many_owned(permits)
            {
                return Ok(permit);
            }
            // Only others have what is missing where this call has nothing on the way.
            if !flight.land().await? {
                let acquired = self.in_flight.clone().acquire_many_owned(permits).await;
                return acquired.map_err(|_| BrokerError::Closed);
            }
        }
    }
}

/// Publishes one message, and waits for its confirm.
///
/// lapin answers a publish when it has been written to the socket. So that a thousand messages go in a few writes, a
/// thousand of these are waited for together.
async fn publish_one(
    channel: &Channel,
    key: &ShortString,
    message: Outgoing,
    _permit: OwnedSemaphorePermit,
) -> lapin::Result<Confirmation> {
    let Outgoing { body, properties } = message;
    let options = BasicPublishOptions { mandatory: !key.as_str().starts_with(DIRECT_REPLY), immediate: false };
    let confirm = channel.basic_publish("".into(), key.clone(), options, &body, properties).await?;
    // lapin has had a copy of its own.
    drop(body);
    confirm.await
}

/// The messages of one call.
struct Flight<'a, F> {
    queue: &'a str,
    waiting: FuturesUnordered<F>,
    taken: usize,
    returned: usize,
    rejected: usize,
}

impl<F: Future<Output = lapin::Result<Confirmation>>> Flight<'_, F> {
    /// Waits for the next confirm; false when none is missing.
    async fn land(&mut self) -> Result<bool, BrokerError> {
        let next = answered(async { self.waiting.next().await.transpose() }).await?;
        let Some(confirmed) = next.map_err(|error| fault::of_queue(self.queue, &error))? else { return Ok(false) };
        match confirmed {
            // `is_ack()` is true of a returned message as well.
            Confirmation::Ack(None) => self.taken += 1,
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => self.returned += 1,
            Confirmation::Nack(None) => self.rejected += 1,
            Confirmation::NotRequested => {
                return Err(BrokerError::Refused("the broker confirms no publishes".to_owned()));
            }
        }
        Ok(true)
    }

    fn verdict(&self) -> Result<(), BrokerError> {
        match (self.taken, self.returned, self.rejected) {
            (_, 0, 0) => Ok(()),
            (0, 0, _) => Err(BrokerError::Full(self.queue.to_owned())),
            (taken, 0, rejected) => {
                let (queue, all) = (self.queue, taken + rejected);
                Err(BrokerError::Unavailable(format!("queue {queue} took {taken} of {all} messages, then it was full")))
            }
            _ => Err(BrokerError::UnknownQueue(self.queue.to_owned())),
        }
    }
}

impl Publisher for RabbitmqPublisher {
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        let now = Timestamp::now().as_millisecond();
        let messages = messages.into_iter().map(|message| outgoing(message, now)).collect::<Result<_, _>>()?;
        self.send(queue, messages).await
    }
}

impl std::fmt::Debug for RabbitmqPublisher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a publisher to RabbitMQ")
    }
}
