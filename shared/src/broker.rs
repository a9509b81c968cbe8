//! The seam over every queue: one contract for publishing, receiving and settling.
//!
//! In: a [`BrokerUrl`]. Out: a [`Broker`], its [`Publisher`]s and [`Consumer`]s, and [`Delivery`]s whose [`Lease`] is
//! settled once, by value. What must hold of every broker is the conformance suite in `tests/it/contract.rs`; where
//! brokers differ they say so in [`Capabilities`]. It must never know of jobs, items or models.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

mod desk;
mod kept;
mod look;
pub mod memory;
pub mod pubsub;
pub mod rabbitmq;
pub mod sqlite;
mod url;

pub use self::look::{Bodies, Browsed, Cursor, Page, Sighting, Standing, WORKER_SILENT};
pub use self::url::{BrokerUrl, Scheme, without_password};

/// A message's attributes: AMQP headers, Pub/Sub attributes, a column of the embedded queue.
pub type Attributes = BTreeMap<String, String>;

/// What is published: bytes and what a router needs to know about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The payload; a reference-counted buffer.
    pub body: Bytes,
    /// Names and values beside it.
    pub attributes: Attributes,
}

/// Why a broker did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Out of reach for now, or lost in the middle: what was asked may or may not have happened.
    #[error("broker unavailable: {0}")]
    Unavailable(String),
    /// The queue takes no more for now; nothing was published.
    #[error("queue {0} is full")]
    Full(String),
    /// No such queue; `inferq setup` makes it.
    #[error("no queue named {0}")]
    UnknownQueue(String),
    /// The broker will not do this, now or later.
    #[error("refused by the broker: {0}")]
    Refused(String),
    /// The lease ended before it was settled; somebody else has the delivery now.
    #[error("lease lost")]
    LeaseLost,
    /// This handle has been closed.
    #[error("closed")]
    Closed,
}

impl BrokerError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_))
    }
}

/// Publishes messages. Cheap to clone; clones share one connection.
pub trait Publisher: Clone + Send + Sync + 'static {
    /// Publishes `messages` in order and returns once the broker has confirmed every one as durable.
    ///
    /// Dropping the future leaves open whether they were published. An empty list is confirmed at once.
    ///
    /// # Errors
    /// After `Full`, `UnknownQueue` and `Refused` none was published; after `Unavailable` any number may have been.
    fn publish(&self, queue: &str, messages: Vec<Message>) -> impl Future<Output = Result<(), BrokerError>> + Send;
}

/// How much one pull may bring: at least one delivery if there is one, then no more than either bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pull {
    /// Deliveries.
    pub jobs: NonZeroUsize,
    /// Bytes of bodies; the delivery that passes it is still brought.
    pub bytes: usize,
}

/// Receives deliveries from one queue.
pub trait Consumer: Send + 'static {
    /// Waits for at least one delivery. Cancel safe: a delivery that a dropped call would have returned comes with the
    /// next one.
    ///
    /// # Errors
    /// Transient ones heal by calling again, with backoff; others don't.
    fn receive(&mut self, pull: Pull) -> impl Future<Output = Result<Vec<Delivery>, BrokerError>> + Send;

    /// Stops fetching. What was fetched and not yet returned is released, its attempt not spent. Leases already handed
    /// out stay valid and can still be settled.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Bytes that arrived, and the right to settle them.
#[derive(Debug)]
pub struct Delivery {
    /// What was published.
    pub message: Message,
    /// 1 + the number of times that a worker lost this delivery's lease while it may have been running it.
    pub attempt: u32,
    /// The right to settle it once.
    pub lease: Lease,
}

/// How a consumer holds its leases.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// A lease that is not renewed for so long is over.
    pub lease: Duration,
    /// Renewal ends when a lease is this old.
    pub lease_max: Duration,
    /// While this says false no lease is renewed: what holds them is stuck.
    pub renew: watch::Receiver<bool>,
}

impl ConsumeOptions {
    /// Leases of 60 s, renewed for an hour at most.
    pub fn new() -> Self {
        // A receiver whose sender is gone keeps the last value.
        let (_, renew) = watch::channel(true);
        Self { lease: Duration::from_secs(60), lease_max: Duration::from_secs(3600), renew }
    }
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The right to settle one delivery once. Settling takes it by value; dropping it means "redeliver, attempt spent".
#[derive(Debug)]
#[must_use = "a dropped lease is redelivered and spends an attempt"]
pub struct Lease {
    token: u64,
    settler: Option<mpsc::UnboundedSender<Settlement>>,
}

/// What a lease's holder decided. Brokers read these from the channel that they made their leases with; the channel
/// holds at most one settlement a lease, so the number of leases bounds it.
#[derive(Debug)]
pub struct Settlement {
    /// Which lease, as the broker numbered it.
    pub token: u64,
    /// What to do.
    pub verdict: Verdict,
    /// Told when it is done, unless the lease was merely dropped.
    pub done: Option<oneshot::Sender<Result<(), BrokerError>>>,
}

/// The four ways a lease can end by its holder's hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done: delete it.
    Ack,
    /// Give it back unspent, to be seen again after a while; at once, and in its old place, if that is zero.
    Release(Duration),
    /// Keep it among the dead letters with this reason.
    DeadLetter(String),
    /// The holder vanished: redeliver, attempt + 1.
    Dropped,
}

impl Lease {
    /// Makes a lease numbered `token` whose settlement goes to `settler`. For brokers.
    pub fn new(token: u64, settler: mpsc::UnboundedSender<Settlement>) -> Self {
        Self { token, settler: Some(settler) }
    }

    /// Deletes the delivery; returns once the broker has done so.
    ///
    /// # Errors
    /// `LeaseLost` when the lease was over: the delivery is somebody else's. After `Unavailable` it may be redelivered.
    pub async fn ack(self) -> Result<(), BrokerError> {
        self.settle(Verdict::Ack).await
    }

    /// Gives the delivery back without spending an attempt, to be seen again after `after`.
    ///
    /// # Errors
    /// As [`Lease::ack`].
    pub async fn release(self, after: Duration) -> Result<(), BrokerError> {
        self.settle(Verdict::Release(after)).await
    }

    /// Moves the delivery to the dead letters, with its bytes and a reason; returns once that is durable.
    ///
    /// # Errors
    /// As [`Lease::ack`].
    pub async fn dead_letter(self, reason: impl Into<String>) -> Result<(), BrokerError> {
        self.settle(Verdict::DeadLetter(reason.into())).await
    }

    async fn settle(mut self, verdict: Verdict) -> Result<(), BrokerError> {
        let settler = self.settler.take().expect("a lease is settled by value, so its settler is there");
        let (done, told) = oneshot::channel();
        settler.send(Settlement { token: self.token, verdict, done: Some(done) }).map_err(|_| BrokerError::Closed)?;
        told.await.unwrap_or(Err(BrokerError::Closed))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            // A closed settler means the broker is gone: it redelivers by itself.
            let _ = settler.send(Settlement { token: self.token, verdict: Verdict::Dropped, done: None });
        }
    }
}

/// What a broker can do, where brokers differ. The table in ARCHITECTURE.md is made from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Messages come in the order in which they were published.
    pub fifo: bool,
    /// `Release(after)` waits for any chosen time; otherwise for the nearest step.
    pub chosen_delay: bool,
    /// A lease that is not renewed ends by itself.
    pub lease_expiry: bool,
    /// Releasing never counts as an attempt.
    pub free_release: bool,
    /// A queue can be given a bound, and refuses what passes it.
    pub bounded: bool,
    /// That bound is exact, and what is published together is refused together; otherwise a few more are taken, and some
    /// of those that are published together, which is told as `Unavailable`.
    pub exact_bound: bool,
    /// An ack is answered, so that a lease that is over is always told; otherwise only where the connection shows it.
    pub answered_acks: bool,
    /// Consumers fetch ahead of what they are asked for: that waits no longer, though nobody has it.
    pub fetches_ahead: bool,
    /// What is published outlives the process.
    pub durable: bool,
    /// Other processes can use the same queues.
    pub shared: bool,
    /// Queues can be listed, and their messages looked at without a lease.
    pub browse: bool,
    /// Workers can leave word of themselves.
    pub workers: bool,
}

/// What a queue is for, which decides how it is declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// Refuse to hold more messages than this.
    pub messages_max: Option<NonZeroUsize>,
    /// The queue goes when nobody has used it for so long.
    pub expires: Option<Duration>,
}

/// What is in a queue. `None`: the broker can't tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// Messages that could be delivered now.
    pub waiting: Option<u64>,
    /// Messages under a lease.
    pub leased: Option<u64>,
    /// Messages to be seen later.
    pub delayed: Option<u64>,
    /// The age of the oldest message.
    pub oldest: Option<Duration>,
}

/// What the name of a queue of shards ends in.
const SHARDS: &str = ".shards";

/// The queues that belong to one jobs queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueNames {
    /// Where jobs wait.
    pub jobs: String,
}

impl QueueNames {
    /// The names that belong to the jobs queue `jobs`.
    pub fn new(jobs: impl Into<String>) -> Self {
        Self { jobs: jobs.into() }
    }

    /// Where the dead letters lie, those of the shards too.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.jobs.strip_suffix(SHARDS).unwrap_or(&self.jobs))
    }

    /// Where the pieces of large jobs wait: apart, so that small jobs need not wait behind them.
    pub fn shards(&self) -> String {
        format!("{}{SHARDS}", self.jobs)
    }

    /// Where replies go whose job names no other route.
    pub fn results(&self) -> String {
        format!("{}.results", self.jobs)
    }

    /// The route of one submission.
    pub fn submission(&self, submission: &str) -> String {
        format!("{}.results.{submission}", self.jobs)
    }
}

/// A connection to one of the brokers.
#[derive(Debug, Clone)]
pub enum Broker {
    /// In this process, for one process's life.
    Memory(memory::MemoryBroker),
    /// A file on this machine.
    Sqlite(sqlite::SqliteBroker),
    /// RabbitMQ.
    Rabbitmq(rabbitmq::RabbitmqBroker),
    /// Google Pub/Sub.
    PubSub(pubsub::PubSubBroker),
}

/// A publisher of whichever broker.
#[derive(Debug, Clone)]
pub enum AnyPublisher {
    /// In this process.
    Memory(memory::MemoryPublisher),
    /// A file on this machine.
    Sqlite(sqlite::SqlitePublisher),
    /// RabbitMQ.
    Rabbitmq(rabbitmq::RabbitmqPublisher),
    /// Google Pub/Sub.
    PubSub(pubsub::PubSubPublisher),
}

/// A consumer of whichever broker.
#[derive(Debug)]
pub enum AnyConsumer {
    /// In this process.
    Memory(memory::MemoryConsumer),
    /// A file on this machine.
    Sqlite(sqlite::SqliteConsumer),
    /// A server elsewhere: RabbitMQ or Pub/Sub.
    Kept(kept::KeptConsumer),
}

impl Broker {
    /// Connects to the broker that `url` names. Spawns what the connection needs; [`Broker::close`] joins it.
    ///
    /// # Errors
    /// When the broker refuses or can't be reached.
    pub async fn connect(url: &BrokerUrl) -> Result<Self, BrokerError> {
        Ok(match &url.scheme {
            Scheme::Memory => Self::Memory(memory::MemoryBroker::connect()),
            Scheme::Sqlite(path) => Self::Sqlite(sqlite::SqliteBroker::connect(path).await?),
            Scheme::Amqp(url) => Self::Rabbitmq(rabbitmq::RabbitmqBroker::connect(url).await?),
            Scheme::PubSub(url) => Self::PubSub(pubsub::PubSubBroker::connect(url).await?),
        })
    }

    /// What this broker can do.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Memory(_) => memory::CAPABILITIES,
            Self::Sqlite(_) => sqlite::CAPABILITIES,
            Self::Rabbitmq(_) => rabbitmq::CAPABILITIES,
            Self::PubSub(_) => pubsub::CAPABILITIES,
        }
    }

    /// How long a delivery can be held until the broker takes it back, as far as is known: what its servers come with.
    pub fn hold_max(&self) -> Option<Duration> {
        match self {
            Self::Memory(_) | Self::Sqlite(_) | Self::PubSub(_) => None,
            Self::Rabbitmq(_) => Some(rabbitmq::CONSUMER_TIMEOUT),
        }
    }

    /// Why the broker takes no messages from anybody for now, followed as it becomes known to who publishes; `None` where
    /// that does not happen.
    pub fn blocked(&self) -> Option<watch::Receiver<Option<String>>> {
        let Self::Rabbitmq(broker) = self else { return None };
        Some(broker.blocked())
    }

    /// The same, asked of the broker: it need not have told yet.
    ///
    /// # Errors
    /// `Refused` when it does not tell this user, or when the broker can't be reached.
    pub async fn alarm(&self) -> Result<Option<String>, BrokerError> {
        let Self::Rabbitmq(broker) = self else { return Ok(None) };
        broker.alarm().await
    }

    /// Declares a queue; one that is there already stays as it is.
    ///
    /// # Errors
    /// When the broker refuses or can't be reached.
    pub async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        match self {
            Self::Memory(broker) => broker.declare(queue, options).await,
            Self::Sqlite(broker) => broker.declare(queue, options).await,
            Self::Rabbitmq(broker) => broker.declare(queue, options).await,
            Self::PubSub(broker) => broker.declare(queue, options).await,
        }
    }

    /// Declares the queues that belong to one jobs queue: jobs, shards, dead letters and default results.
    ///
    /// # Errors
    /// When the broker refuses or can't be reached.
    pub async fn setup(&self, names: &QueueNames) -> Result<(), BrokerError> {
        match self {
            // There each has arguments of its own.
            Self::Rabbitmq(broker) => return broker.setup(names).await,
            Self::PubSub(broker) => return broker.setup(names).await,
            Self::Memory(_) | Self::Sqlite(_) => {}
        }
        for queue in [names.jobs.clone(), names.shards(), names.dead(), names.results()] {
            self.declare(&queue, QueueOptions::default()).await?;
        }
        Ok(())
    }

    /// The commands that an operator runs once after [`Broker::setup`], so that the broker may do its part.
    pub fn grants(&self, names: &QueueNames) -> Vec<String> {
        match self {
            Self::Memory(_) | Self::Sqlite(_) | Self::Rabbitmq(_) => Vec::new(),
            Self::PubSub(broker) => broker.grants(names),
        }
    }

    /// Removes a queue and all that is in it; one that is not there is no error.
    ///
    /// # Errors
    /// When the broker refuses or can't be reached.
    pub async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        match self {
            Self::Memory(broker) => broker.remove(queue).await,
            Self::Sqlite(broker) => broker.remove(queue).await,
            Self::Rabbitmq(broker) => broker.remove(queue).await,
            Self::PubSub(broker) => broker.remove(queue).await,
        }
    }

    /// What is in a queue.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker can't be reached.
    pub async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        match self {
            Self::Memory(broker) => broker.status(queue).await,
            Self::Sqlite(broker) => broker.status(queue).await,
            Self::Rabbitmq(broker) => broker.status(queue).await,
            Self::PubSub(broker) => broker.status(queue).await,
        }
    }

    /// The messages of `queue` where they stand, in the order in which they would be delivered, a page at a time; an
    /// empty page is the end. `None`: this broker can't be looked at ([`Capabilities::browse`]).
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker can't be reached.
    pub async fn browse(&self, queue: &str, page: Page) -> Result<Option<Vec<Browsed>>, BrokerError> {
        match self {
            Self::Memory(broker) => broker.browse(queue, page).await.map(Some),
            Self::Sqlite(broker) => broker.browse(queue, page).await.map(Some),
            Self::Rabbitmq(_) | Self::PubSub(_) => Ok(None),
        }
    }

    /// The names of the queues that begin with `prefix`, sorted. `None`: this broker can't be looked at.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn queues(&self, prefix: &str) -> Result<Option<Vec<String>>, BrokerError> {
        match self {
            Self::Memory(broker) => broker.queues(prefix).await.map(Some),
            Self::Sqlite(broker) => broker.queues(prefix).await.map(Some),
            Self::Rabbitmq(_) | Self::PubSub(_) => Ok(None),
        }
    }

    /// Leaves word of a worker on `queue` for others to read; `None` takes it back. Word that is not renewed is dropped
    /// after [`WORKER_SILENT`]. Where nobody can read it ([`Capabilities::workers`]) nothing happens.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn report_worker(&self, queue: &str, worker: &str, about: Option<String>) -> Result<(), BrokerError> {
        match self {
            Self::Memory(_) | Self::Rabbitmq(_) | Self::PubSub(_) => Ok(()),
            Self::Sqlite(broker) => broker.report_worker(queue, worker, about).await,
        }
    }

    /// The workers that have lately left word on `queue`. `None`: this broker can't tell.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn workers(&self, queue: &str) -> Result<Option<Vec<Sighting>>, BrokerError> {
        match self {
            Self::Memory(_) | Self::Rabbitmq(_) | Self::PubSub(_) => Ok(None),
            Self::Sqlite(broker) => broker.workers(queue).await.map(Some),
        }
    }

    /// A publisher over this connection.
    pub fn publisher(&self) -> AnyPublisher {
        match self {
            Self::Memory(broker) => AnyPublisher::Memory(broker.publisher()),
            Self::Sqlite(broker) => AnyPublisher::Sqlite(broker.publisher()),
            Self::Rabbitmq(broker) => AnyPublisher::Rabbitmq(broker.publisher()),
            Self::PubSub(broker) => AnyPublisher::PubSub(broker.publisher()),
        }
    }

    /// A consumer of `queue`. Dead letters of its leases go to [`QueueNames::dead`] of that queue, those of shards to the
    /// same queue as those of jobs.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker refuses or can't be reached.
    pub async fn consumer(&self, queue: &str, options: ConsumeOptions) -> Result<AnyConsumer, BrokerError> {
        Ok(match self {
            Self::Memory(broker) => AnyConsumer::Memory(broker.consumer(queue, options).await?),
            Self::Sqlite(broker) => AnyConsumer::Sqlite(broker.consumer(queue, options).await?),
            Self::Rabbitmq(broker) => AnyConsumer::Kept(broker.consumer(queue, options).await?),
            Self::PubSub(broker) => AnyConsumer::Kept(broker.consumer(queue, options).await?),
        })
    }

    /// Ends the connection and joins what it spawned. Leases not settled by then end as if their holder had died.
    pub async fn close(self) {
        match self {
            Self::Memory(broker) => broker.close().await,
            Self::Sqlite(broker) => broker.close().await,
            Self::Rabbitmq(broker) => broker.close().await,
            Self::PubSub(broker) => broker.close().await,
        }
    }
}

impl Publisher for AnyPublisher {
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        match self {
            Self::Memory(publisher) => publisher.publish(queue, messages).await,
            Self::Sqlite(publisher) => publisher.publish(queue, messages).await,
            Self::Rabbitmq(publisher) => publisher.publish(queue, messages).await,
            Self::PubSub(publisher) => publisher.publish(queue, messages).await,
        }
    }
}

impl Consumer for AnyConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        match self {
            Self::Memory(consumer) => consumer.receive(pull).await,
            Self::Sqlite(consumer) => consumer.receive(pull).await,
            Self::Kept(consumer) => consumer.receive(pull).await,
        }
    }

    async fn close(self) {
        match self {
            Self::Memory(consumer) => consumer.close().await,
            Self::Sqlite(consumer) => consumer.close().await,
            Self::Kept(consumer) => consumer.close().await,
        }
    }
}
