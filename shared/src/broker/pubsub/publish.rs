//! Publishing: every message confirmed by its id, a bounded number of bytes on the way.
//!
//! In: messages and the queue that they are for. Out: the service's word for all. The client batches, and its own input
//! queue has no bound: what is handed to it is bounded here. A topic without a subscription takes messages and forgets
//! them, which no confirm shows: `setup` makes both, and a route's subscription is there before its submission's jobs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use google_cloud_pubsub::client::{BasePublisher, Publisher as TopicPublisher};
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model::Message as PubSubMessage;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::{BrokerError, Message, Publisher};
use super::CALL;
use super::address::PubSubUrl;
use super::fault::{self, Action};
use super::message::encode;
use super::place::Place;
use super::way::Way;

/// Messages of one call that may be unconfirmed.
const WINDOW: usize = 1000;
/// Bytes of all calls that may be unconfirmed; a larger message goes alone.
const IN_FLIGHT_BYTES: u32 = 64 << 20;
/// How long the client waits for more before it sends what is not a full batch: a reply alone should not wait long.
const LINGER: Duration = Duration::from_millis(1);

/// Publishes over one connection.
#[derive(Clone)]
pub struct PubSubPublisher {
    shared: Arc<Shared>,
}

struct Shared {
    way: Way,
    connection: Mutex<Arc<Connection>>,
    url: PubSubUrl,
    in_flight: Semaphore,
    closed: CancellationToken,
}

/// What goes over one connection.
struct Connection {
    base: BasePublisher,
    /// One a topic: a handful, since all routes share one.
    topics: Mutex<HashMap<String, TopicPublisher>>,
}

impl Connection {
    fn new(base: BasePublisher) -> Arc<Self> {
        Arc::new(Self { base, topics: Mutex::default() })
    }

    fn topic(&self, topic: &str) -> TopicPublisher {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || self.base.publisher(topic).set_delay_threshold(LINGER).build();
        topics.entry(topic.to_owned()).or_insert_with(make).clone()
    }
}

impl PubSubPublisher {
    pub(super) fn new(way: Way, base: BasePublisher, url: PubSubUrl, closed: CancellationToken) -> Self {
        let in_flight = Semaphore::new(IN_FLIGHT_BYTES as usize);
        Self { shared: Arc::new(Shared { way, connection: Mutex::new(Connection::new(base)), url, in_flight, closed }) }
    }

    fn connection(&self) -> Arc<Connection> {
        self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes over another connection from now on: the one so far may be open and dead, which the client does not
    /// notice.
    pub(super) async fn connect(&self) {
        if let Ok(base) = self.shared.way.publisher().await {
            *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = Connection::new(base);
        }
    }

    async fn send(&self, topic: &TopicPublisher, place: &Place, message: PubSubMessage) -> Result<(), BrokerError> {
        let permits = u32::try_from(message.data.len()).unwrap_or(u32::MAX).clamp(1, IN_FLIGHT_BYTES);
        let _permit = self.shared.in_flight.acquire_many(permits).await.map_err(|_| BrokerError::Closed)?;
        let published = timeout(CALL, topic.publish(message)).await;
        let late = |_| BrokerError::Unavailable(format!("no confirm within {} s", CALL.as_secs()));
        match published.map_err(late)? {
            Ok(_) => Ok(()),
            Err(PublishError::Rpc(error)) => Err(fault::of(place, Action::Publish, &error)),
            Err(error) => Err(BrokerError::Unavailable(error.to_string())),
        }
    }
}

impl Publisher for PubSubPublisher {
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        if self.shared.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let (place, now) = (Place::of(&self.shared.url, queue), Timestamp::now().as_millisecond());
        let claimed = messages.into_iter().map(|mut message| {
            place.share.claim(&mut message.attributes);
            encode(message, now)
        });
        let messages = claimed.collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() {
            return Ok(());
        }
        let connection = self.connection();
        let topic = connection.topic(&place.topic);
        let sent = stream::iter(messages).map(|message| self.send(&topic, &place, message));
        let sent = sent.buffer_unordered(WINDOW).try_collect().await;
        if let Err(BrokerError::Unavailable(_)) = &sent {
            self.connect().await;
        }
        sent
    }
}

impl std::fmt::Debug for PubSubPublisher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a publisher to Pub/Sub")
    }
}
