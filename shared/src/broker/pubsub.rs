//! Google Pub/Sub through Google's own client: topics with subscriptions, streams, leases that the client extends.
//!
//! In and out: the contract of [`super`]. [`PubSubBroker::connect`] makes the clients; each consumer is kept by a task,
//! which [`PubSubBroker::close`] joins. Only the files below this one name the client.
//!
//! Pub/Sub counts every delivery as an attempt, one that was given back too. It is shared with whoever else subscribes to
//! a topic, so nothing is ever published again that was only given back. What the client may hold beyond what is asked for
//! is bounded by each stream's limit, on the server's side; the emulator knows no limit, and there what is read is bounded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::model::Subscription;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::admin::Admin;
use self::keeper::Keeper;
use self::leases::Leases;
use self::place::Place;
use self::plan::Purpose;
use self::setup::Wanted;
use self::streams::Streams;
use self::watchdog::Watchdog;
use self::way::Way;
use super::kept::KeptConsumer;
use super::{BrokerError, Capabilities, ConsumeOptions, QueueNames, QueueOptions, QueueStatus};

mod address;
mod admin;
mod fault;
mod keeper;
mod leases;
mod message;
mod place;
mod plan;
mod publish;
mod setup;
mod streams;
mod watchdog;
mod way;

pub use self::address::PubSubUrl;
pub use self::publish::PubSubPublisher;

/// What Pub/Sub can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    fifo: false,
    chosen_delay: true,
    lease_expiry: true,
    free_release: false,
    bounded: false,
    exact_bound: false,
    answered_acks: false,
    fetches_ahead: true,
    durable: true,
    shared: true,
    browse: false,
    workers: false,
};

/// A call that takes longer has failed; the client tries within that time.
const CALL: Duration = Duration::from_secs(10);

/// As every client of Pub/Sub calls it: an emulator's `host:port`.
const EMULATOR: &str = "PUBSUB_EMULATOR_HOST";

/// A connection to Pub/Sub. Clones share it.
#[derive(Clone)]
pub struct PubSubBroker {
    shared: Arc<Shared>,
}

struct Shared {
    url: PubSubUrl,
    way: Way,
    admin: Admin,
    subscriber: Subscriber,
    publisher: PubSubPublisher,
    keepers: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

impl PubSubBroker {
    /// Makes the clients; the first call shows whether the service can be reached.
    ///
    /// # Errors
    /// `Refused` without credentials, `Unavailable` when they can't be had for now.
    pub async fn connect(url: &PubSubUrl) -> Result<Self, BrokerError> {
        let mut url = url.clone();
        if url.endpoint.is_none() {
            // The client does not look at it.
            url.endpoint = std::env::var(EMULATOR).ok().filter(|host| !host.is_empty());
        }
        let (way, stop) = (Way::find(url.endpoint.as_deref()).await?, CancellationToken::new());
        let (admin, subscriber) = (way.admin().await?, way.subscriber().await?);
        let publisher = PubSubPublisher::new(way.clone(), way.publisher().await?, url.clone(), stop.clone());
        Ok(Self {
            shared: Arc::new(Shared { url, way, admin, subscriber, publisher, keepers: Mutex::default(), stop }),
        })
    }

    fn place(&self, queue: &str) -> Place {
        Place::of(&self.shared.url, queue)
    }

    /// What the subscription of `queue` is for, as far as its name says.
    fn purpose(&self, queue: &str) -> Purpose {
        let Shared { url, .. } = &*self.shared;
        let names = QueueNames::new(url.topic());
        let is_work = queue == names.jobs || queue == names.shards();
        Purpose {
            dead_topic: is_work.then(|| self.place(&names.dead()).topic),
            expires: None,
            exactly_once: is_work && url.exactly_once == Some(true),
            emulated: url.endpoint.is_some(),
        }
    }

    /// Declares a queue; one that is there already stays as it is.
    ///
    /// # Errors
    /// `Refused` without the right to do so, or when the service can't be reached.
    pub async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        let place = self.place(queue);
        let purpose = Purpose { expires: options.expires, ..self.purpose(queue) };
        let wanted = plan::wanted(&place, &purpose);
        let admin = &self.shared.admin;
        match admin.make_subscription(&place, wanted.clone()).await {
            Err(BrokerError::UnknownQueue(_)) => {
                admin.make_topic(&place).await?;
                admin.make_subscription(&place, wanted).await
            }
            made => made,
        }
    }

    /// Declares the queues that belong to one jobs queue; those that are there are compared with what they should be.
    ///
    /// # Errors
    /// `Refused` with the differences, or as [`PubSubBroker::declare`].
    pub async fn setup(&self, names: &QueueNames) -> Result<(), BrokerError> {
        let Shared { url, admin, .. } = &*self.shared;
        let wanted = |queue: String| {
            let purpose = self.purpose(&queue);
            let keep_exactly_once = purpose.dead_topic.is_some() && url.exactly_once.is_none();
            Wanted { place: self.place(&queue), purpose, keep_exactly_once }
        };
        // The dead letters first: the others name them.
        let wanted = [names.dead(), names.results(), names.jobs.clone(), names.shards()].map(wanted);
        setup::set_up(admin, wanted.into(), url.update).await
    }

    /// The commands that an operator runs once, so that Pub/Sub may move what was delivered too often; none for an emulator.
    pub fn grants(&self, names: &QueueNames) -> Vec<String> {
        let Shared { url, .. } = &*self.shared;
        if url.endpoint.is_some() {
            return Vec::new();
        }
        let subscriptions = [&names.jobs, &names.shards()].map(|queue| self.place(queue).subscription);
        setup::grants(&url.project, &self.place(&names.dead()).topic, &subscriptions)
    }

    /// Removes a queue and all that is in it; one that is not there is no error. Of a submission's route that is the
    /// subscription: others share the topic.
    ///
    /// # Errors
    /// As [`PubSubBroker::declare`].
    pub async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        let place = self.place(queue);
        self.shared.admin.remove_subscription(&place).await?;
        if place.is_alone() {
            self.shared.admin.remove_topic(&place).await?;
        }
        Ok(())
    }

    /// Whether a queue is there: what is in it only Cloud Monitoring tells.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the service can't be reached.
    pub async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        self.shared.admin.look_for(&self.place(queue)).await?;
        Ok(QueueStatus::default())
    }

    /// A publisher over this connection.
    pub fn publisher(&self) -> PubSubPublisher {
        self.shared.publisher.clone()
    }

    /// A consumer of `queue`.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the service can't be reached.
    pub async fn consumer(&self, queue: &str, options: ConsumeOptions) -> Result<KeptConsumer, BrokerError> {
        let Shared { way, admin, subscriber, publisher, keepers, stop, .. } = &*self.shared;
        let (place, now) = (self.place(queue), Instant::now());
        match admin.find(&place).await {
            Ok(found) => self.warn_of(queue, &found),
            // Who may not look may still be allowed to take.
            Err(BrokerError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        let (consumer, settlements) = KeptConsumer::new();
        let ConsumeOptions { lease, lease_max, mut renew } = options;
        let mut leases = Leases::new(lease, lease_max);
        leases.renew(*renew.borrow_and_update(), now);
        let keeper = Keeper {
            streams: Streams::new(subscriber.clone(), place.subscription.clone(), lease, lease_max),
            place,
            admin: admin.clone(),
            publisher: publisher.clone(),
            desk: consumer.desk.clone(),
            settlements,
            renew: Some(renew),
            stop: stop.child_token(),
            closing: consumer.closing.clone(),
            given_back: consumer.given_back.clone(),
            leases,
            way: way.clone(),
            watchdog: Watchdog::new(now),
            calls: FuturesUnordered::new(),
        };
        let mut keepers = keepers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended leave nothing behind.
        while keepers.try_join_next().is_some() {}
        keepers.spawn(keeper.run());
        Ok(consumer)
    }

    /// Says of a subscription that others made where it does less than ours.
    fn warn_of(&self, queue: &str, found: &Subscription) {
        if self.purpose(queue).dead_topic.is_some() && found.dead_letter_policy.is_none() {
            tracing::warn!(
                subscription = found.name,
                "without a dead-letter policy Pub/Sub counts no attempts, and a job that kills workers comes for ever: \
                 `inferq setup --update` adds one"
            );
        }
    }

    /// Settles what leases have already decided, and ends what was spawned. Leases not settled by then are redelivered.
    pub async fn close(self) {
        let Shared { keepers, stop, .. } = &*self.shared;
        stop.cancel();
        let keepers = std::mem::take(&mut *keepers.lock().unwrap_or_else(PoisonError::into_inner));
        keepers.join_all().await;
    }
}

impl std::fmt::Debug for PubSubBroker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a connection to Pub/Sub")
    }
}
