//! The embedded queue: one SQLite file that many processes of a machine share.
//!
//! In and out: the contract of [`super`]. [`SqliteBroker::connect`] spawns the one thread that owns the process's
//! connection (`owner`); handles here only send it commands and wait for the answers. A confirmed publish or ack is
//! synced. Nothing here touches the file.
//!
//! Beside the file lie SQLite's own `-wal` and `-shm`, and `-bell`, by which processes wake each other and take turns at
//! writing. The directory must be on a local disk: SQLite's shared memory does not work across machines.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use self::owner::{Change, Command, Look, Owner, Waiting, Write};
use super::{
    BrokerError, Browsed, Capabilities, ConsumeOptions, Consumer, Delivery, Message, Page, Publisher, Pull,
    QueueOptions, QueueStatus, Settlement, Sighting,
};

mod bell;
mod clock;
mod look;
mod owner;
mod packed;
mod schema;
mod store;
mod turn;

/// What the embedded queue can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    fifo: true,
    chosen_delay: true,
    lease_expiry: true,
    free_release: true,
    bounded: true,
    exact_bound: true,
    answered_acks: true,
    fetches_ahead: false,
    durable: true,
    shared: true,
    browse: true,
    workers: true,
};

/// Commands that wait for the thread; the next caller waits for room.
const COMMANDS_MAX: usize = 1024;

/// A connection to a queue's file.
#[derive(Debug, Clone)]
pub struct SqliteBroker {
    link: Link,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Publishes over one connection.
#[derive(Debug, Clone)]
pub struct SqlitePublisher {
    link: Link,
}

/// Receives from one queue.
#[derive(Debug)]
pub struct SqliteConsumer {
    link: Link,
    queue: Arc<str>,
    options: Arc<ConsumeOptions>,
    /// The answer to a call that may have been dropped.
    asked: Option<oneshot::Receiver<Result<Vec<Delivery>, BrokerError>>>,
    /// What that answer brought above the next call's bounds.
    fetched: VecDeque<Delivery>,
}

/// The way to the thread.
#[derive(Debug, Clone)]
struct Link {
    commands: mpsc::Sender<Command>,
    settler: mpsc::UnboundedSender<Settlement>,
}

impl SqliteBroker {
    /// Opens the queue in `path`, making it if there is none, on a thread of its own.
    ///
    /// # Errors
    /// `Refused` when the file is no queue, is of a newer layout, or can't be written where it is; `Unavailable` when
    /// it may work later.
    pub async fn connect(path: &Path) -> Result<Self, BrokerError> {
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (settler, settlements_rx) = mpsc::unbounded_channel();
        let (opened, told) = oneshot::channel();
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("inferq-sqlite".to_owned())
            .spawn(move || own(path, commands_rx, settlements_rx, opened))
            .map_err(|error| BrokerError::Unavailable(format!("no thread for the queue: {error}")))?;
        told.await.unwrap_or(Err(BrokerError::Closed))?;
        Ok(Self { link: Link { commands, settler }, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Declares a queue; one that is there already stays as it is. A bound counts every message of the queue, leased
    /// and delayed ones too. An expired queue goes when a process connects; it is used by declaring, publishing,
    /// opening a consumer and settling.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        self.link.write(Change::Declare(queue.to_owned(), options)).await
    }

    /// Removes a queue and all that is in it; one that is not there is no error.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        self.link.write(Change::Remove(queue.to_owned())).await
    }

    /// What is in a queue, exactly. Looks at every entry: some tens of milliseconds a million.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the file can't be read.
    pub async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        self.link.look(|done| Look::Status { queue: queue.to_owned(), done }).await
    }

    /// The messages of a queue where they stand: those that wait, then those that are leased or delayed, by the time at
    /// which they will be seen.
    ///
    /// # Errors
    /// As [`SqliteBroker::status`].
    pub async fn browse(&self, queue: &str, page: Page) -> Result<Vec<Browsed>, BrokerError> {
        self.link.look(|done| Look::Browse { queue: queue.to_owned(), page, done }).await
    }

    /// The names of the queues that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn queues(&self, prefix: &str) -> Result<Vec<String>, BrokerError> {
        self.link.look(|done| Look::Queues { prefix: prefix.to_owned(), done }).await
    }

    /// Leaves word of a worker, or takes it back.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn report_worker(&self, queue: &str, worker: &str, about: Option<String>) -> Result<(), BrokerError> {
        self.link.write(Change::Report { queue: queue.to_owned(), worker: worker.to_owned(), about }).await
    }

    /// The workers that have lately left word on a queue.
    ///
    /// # Errors
    /// When the file can't be read.
    pub async fn workers(&self, queue: &str) -> Result<Vec<Sighting>, BrokerError> {
        self.link.look(|done| Look::Workers { queue: queue.to_owned(), done }).await
    }

    /// A publisher over this connection.
    pub fn publisher(&self) -> SqlitePublisher {
        SqlitePublisher { link: self.link.clone() }
    }

    /// A consumer of `queue`. A lease may be renewed once more just before it is `lease_max` old, so it ends at
    /// `lease_max + lease` at the latest.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the file can't be written.
    pub async fn consumer(&self, queue: &str, options: ConsumeOptions) -> Result<SqliteConsumer, BrokerError> {
        self.link.write(Change::Subscribe(queue.to_owned())).await?;
        Ok(SqliteConsumer {
            link: self.link.clone(),
            queue: queue.into(),
            options: Arc::new(options),
            asked: None,
            fetched: VecDeque::new(),
        })
    }

    /// Ends the connection and its thread. What waits is answered `Closed`; leases not settled by then are redelivered,
    /// their attempt spent.
    pub async fn close(self) {
        // An error means that the thread is already ending.
        let _ = self.link.commands.send(Command::Close).await;
        self.link.commands.closed().await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the queue's thread panicked");
        }
    }
}

/// The thread: opens the queue, says so, and serves until it is closed.
fn own(
    path: PathBuf,
    commands: mpsc::Receiver<Command>,
    settlements: mpsc::UnboundedReceiver<Settlement>,
    opened: oneshot::Sender<Result<(), BrokerError>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| BrokerError::Unavailable(format!("no timer for the queue: {error}")));
    let ready = runtime.and_then(|runtime| Ok((runtime, Owner::open(&path, commands, settlements)?)));
    match ready {
        Err(error) => drop(opened.send(Err(error))),
        Ok((runtime, owner)) => {
            // Who asked may have gone: then the channels are closed, and the thread ends at once.
            let _ = opened.send(Ok(()));
            runtime.block_on(owner.run());
        }
    }
}

impl Link {
    async fn send(&self, command: Command) -> Result<(), BrokerError> {
        self.commands.send(command).await.map_err(|_| BrokerError::Closed)
    }

    async fn look<T>(
        &self,
        look: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> Look,
    ) -> Result<T, BrokerError> {
        let (done, told) = oneshot::channel();
        self.send(Command::Look(look(done))).await?;
        told.await.unwrap_or(Err(BrokerError::Closed))
    }

    async fn write(&self, change: Change) -> Result<(), BrokerError> {
        let (done, told) = oneshot::channel();
        self.send(Command::Write(Write { change, done })).await?;
        told.await.unwrap_or(Err(BrokerError::Closed))
    }
}

impl Publisher for SqlitePublisher {
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        self.link.write(Change::Publish(queue.to_owned(), messages)).await
    }
}

impl Consumer for SqliteConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        while self.fetched.is_empty() {
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None => {
                    let asked = self.ask(pull).await?;
                    self.asked.insert(asked)
                }
            };
            let answer = asked.await.unwrap_or(Err(BrokerError::Closed));
            self.asked = None;
            self.fetched.extend(answer?);
        }
        Ok(self.take(pull))
    }

    async fn close(mut self) {
        if let Some(mut asked) = self.asked.take() {
            asked.close();
            self.fetched.extend(asked.try_recv().ok().and_then(Result::ok).unwrap_or_default());
        }
        let released = self.fetched.drain(..).map(|delivery| delivery.lease.release(std::time::Duration::ZERO));
        // What can't be released is redelivered when its lease ends.
        futures_util::future::join_all(released).await;
    }
}

impl SqliteConsumer {
    async fn ask(&self, pull: Pull) -> Result<oneshot::Receiver<Result<Vec<Delivery>, BrokerError>>, BrokerError> {
        let (reply, asked) = oneshot::channel();
        let waiting = Waiting {
            queue: self.queue.clone(),
            pull,
            options: self.options.clone(),
            settler: self.link.settler.clone(),
            reply,
        };
        self.link.send(Command::Receive(waiting)).await?;
        Ok(asked)
    }

    /// As much of what was fetched as `pull` allows.
    fn take(&mut self, pull: Pull) -> Vec<Delivery> {
        let mut bytes = 0;
        let fits = |delivery: &&Delivery| {
            let room = bytes < pull.bytes.max(1);
            bytes += delivery.message.body.len();
            room
        };
        let count = self.fetched.iter().take(pull.jobs.get()).take_while(fits).count();
        self.fetched.drain(..count).collect()
    }
}
