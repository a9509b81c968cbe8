//! RabbitMQ over AMQP 0-9-1: quorum queues, every publish confirmed, every copy confirmed before its original is acked.
//!
//! In and out: the contract of [`super`]. [`RabbitmqBroker::connect`] makes two connections, since an alarm stops the
//! broker from reading what publishes: one publishes, the other consumes, acks and declares. Each is kept by a task, and so
//! is each consumer; [`RabbitmqBroker::close`] joins them. Only the files below this one name lapin.
//!
//! AMQP has no leases: a delivery is its consumer's until that settles it or its channel is gone. Nor has it a way to give
//! a message back that no server counts as an attempt, so a release publishes it again with the attempt in a header.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::declare::Queues;
use self::held::Deliveries;
use self::keeper::Keeper;
use self::link::Link;
use super::kept::KeptConsumer;
use super::{BrokerError, Capabilities, ConsumeOptions, QueueNames, QueueOptions, QueueStatus};

mod address;
mod declare;
mod fault;
mod held;
mod keeper;
mod link;
mod message;
mod pool;
mod publish;
mod session;

pub use self::address::{AmqpUrl, QueueType};
pub use self::publish::RabbitmqPublisher;

/// What RabbitMQ can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    fifo: false,
    chosen_delay: false,
    lease_expiry: false,
    free_release: true,
    bounded: true,
    exact_bound: false,
    answered_acks: false,
    fetches_ahead: true,
    durable: true,
    shared: true,
    browse: false,
    workers: false,
};

/// A delivery that is held for so long is taken back, with all others of its channel:
/// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>. Servers can be told another time.
pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Two connections to RabbitMQ. Clones share them.
#[derive(Clone)]
pub struct RabbitmqBroker {
    shared: Arc<Shared>,
}

struct Shared {
    queue_type: QueueType,
    consuming: Arc<Link>,
    publishing: Arc<Link>,
    publisher: RabbitmqPublisher,
    keepers: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

impl RabbitmqBroker {
    /// Connects, and stays connected from then on.
    ///
    /// # Errors
    /// `Refused` on a login, virtual host or certificate that is not accepted, `Unavailable` when no host answers.
    pub async fn connect(url: &AmqpUrl) -> Result<Self, BrokerError> {
        let consuming = Link::connect(url, "consuming").await?;
        let publishing = match Link::connect(url, "publishing").await {
            Ok(publishing) => publishing,
            Err(error) => {
                consuming.close().await;
                return Err(error);
            }
        };
        let publisher = RabbitmqPublisher::new(publishing.clone());
        let (keepers, stop) = (Mutex::default(), CancellationToken::new());
        let queue_type = url.queue_type;
        Ok(Self { shared: Arc::new(Shared { queue_type, consuming, publishing, publisher, keepers, stop }) })
    }

    fn queues(&self) -> Queues<'_> {
        Queues { link: &self.shared.consuming, queue_type: self.shared.queue_type }
    }

    /// Declares a queue; one that is there already stays as it is.
    ///
    /// # Errors
    /// `Refused` without the right to do so, or when the broker can't be reached.
    pub async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        self.queues().declare(queue, options).await
    }

    /// Declares the queues that belong to one jobs queue, their delays among them.
    ///
    /// # Errors
    /// `Refused` when one is there with other arguments, naming them, or as [`RabbitmqBroker::declare`].
    pub async fn setup(&self, names: &QueueNames) -> Result<(), BrokerError> {
        self.queues().setup(names).await
    }

    /// Removes a queue and all that is in it; one that is not there is no error.
    ///
    /// # Errors
    /// As [`RabbitmqBroker::declare`].
    pub async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        self.queues().remove(queue).await
    }

    /// What is in a queue, as far as AMQP tells.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker can't be reached.
    pub async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        self.queues().status(queue).await
    }

    /// Why the broker takes no messages for now, as far as it has told what was published here.
    pub fn blocked(&self) -> watch::Receiver<Option<String>> {
        self.shared.publishing.blocked()
    }

    /// Why the broker takes no messages for now, asked of it by two that it drops.
    ///
    /// # Errors
    /// `Refused` without the right to publish, or when the broker can't be reached.
    pub async fn alarm(&self) -> Result<Option<String>, BrokerError> {
        self.shared.publisher.alarm().await
    }

    /// A publisher over the publishing connection.
    pub fn publisher(&self) -> RabbitmqPublisher {
        self.shared.publisher.clone()
    }

    /// A consumer of `queue`. Its leases last until they are settled or the connection is lost.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker can't be reached.
    pub async fn consumer(&self, queue: &str, _: ConsumeOptions) -> Result<KeptConsumer, BrokerError> {
        self.queues().count(queue).await?;
        let Shared { consuming, publisher, keepers, stop, .. } = &*self.shared;
        let (consumer, settlements) = KeptConsumer::new();
        let keeper = Keeper {
            link: consuming.clone(),
            publisher: publisher.clone(),
            queue: queue.to_owned(),
            desk: consumer.desk.clone(),
            settlements,
            stop: stop.child_token(),
            closing: consumer.closing.clone(),
            given_back: consumer.given_back.clone(),
            deliveries: Deliveries::default(),
            copies: FuturesUnordered::new(),
        };
        let mut keepers = keepers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended leave nothing behind.
        while keepers.try_join_next().is_some() {}
        keepers.spawn(keeper.run());
        Ok(consumer)
    }

    /// Settles what leases have already decided, and ends both connections. Leases not settled by then are redelivered.
    pub async fn close(self) {
        let Shared { consuming, publishing, keepers, stop, .. } = &*self.shared;
        stop.cancel();
        let keepers = std::mem::take(&mut *keepers.lock().unwrap_or_else(PoisonError::into_inner));
        keepers.join_all().await;
        consuming.close().await;
        publishing.close().await;
    }
}

impl std::fmt::Debug for RabbitmqBroker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a connection to RabbitMQ")
    }
}
