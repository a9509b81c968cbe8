//! Where a drain happens: queues that nobody else knows on one of the brokers, a worker's way to them, which can be
//! stalled, and the client's end.
//!
//! In: a kind of broker. Out: addresses, jobs in, replies out. The client's own way is never stalled, save by a lock on the
//! one file that it shares with the worker.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use inferq_shared::broker::{
    AnyConsumer, Broker, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher, QueueNames,
};
use inferq_shared::reply::Reply;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::gate::{Gate, Shut};
use super::story::{Jobs, Replied};
use crate::brokers::{Kind, up_to};
use crate::pubsub::{self, Emulator};
use crate::queue_file::message;
use crate::rabbitmq::{self, RabbitmqServer};

/// Replies in one pull.
const PULL: usize = 64;
/// How long a job may take to be answered, a lease of 60 s that a killed worker leaves included.
const ANSWERED_MAX: Duration = Duration::from_secs(150);
/// How long a queue that is not empty may take to deliver something.
const SOON: Duration = Duration::from_millis(500);
/// Between two tries of what the broker refuses for now.
const AGAIN: Duration = Duration::from_millis(20);

/// One broker's queues.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) kind: Kind,
    /// The client's connection.
    pub(super) broker: Broker,
    pub(super) names: QueueNames,
    way: Way,
}

/// The worker's way to the queues.
#[derive(Debug)]
enum Way {
    /// A file in a folder of its own.
    File { path: PathBuf, _folder: TempDir },
    /// A link to the server, and the address behind it.
    Gate(Gate, String),
}

/// While it lives nothing of the worker's reaches the queues.
pub(super) enum Stalled {
    /// Somebody else writes: SQLite's write lock, held.
    Locked(#[expect(dead_code, reason = "it holds the lock until it is dropped")] Connection),
    /// The network carries nothing.
    Shut(#[expect(dead_code, reason = "it opens the gate when it is dropped")] Shut),
}

impl Place {
    /// Queues on this broker. `None` where it is not installed, which has been said.
    pub(super) async fn start(kind: Kind) -> Result<Option<Self>> {
        let (url, way) = match kind {
            Kind::Memory => anyhow::bail!("a broker inside one process serves no workers"),
            Kind::Sqlite => {
                let folder = TempDir::new()?;
                let path = folder.path().join("queue.db");
                (BrokerUrl::sqlite(&path), Way::File { path, _folder: folder })
            }
            Kind::Rabbitmq => {
                let Some(server) = tokio::task::block_in_place(RabbitmqServer::shared) else { return Ok(None) };
                let host = tokio::task::block_in_place(|| server.virtual_host());
                Self::behind_a_gate(server.address(), |address| rabbitmq::url(address, &host)).await?
            }
            Kind::PubSub => {
                let Some(emulator) = tokio::task::block_in_place(Emulator::shared) else { return Ok(None) };
                let project = pubsub::project();
                Self::behind_a_gate(emulator.address(), |address| pubsub::url(address, &project)).await?
            }
        };
        let broker = Broker::connect(&url).await?;
        broker.setup(&url.queues).await?;
        Ok(Some(Self { kind, broker, names: url.queues, way }))
    }

    async fn behind_a_gate(server: SocketAddr, url: impl Fn(SocketAddr) -> String) -> Result<(BrokerUrl, Way)> {
        let gate = Gate::start(server).await?;
        let through = url(gate.address());
        Ok((url(server).parse().map_err(anyhow::Error::msg)?, Way::Gate(gate, through)))
    }

    /// The address that workers are given.
    pub(super) fn url(&self) -> String {
        match &self.way {
            Way::File { path, .. } => format!("sqlite://{}", path.display()),
            Way::Gate(_, url) => url.clone(),
        }
    }

    /// Stalls the worker's way.
    pub(super) fn stall(&self) -> Result<Stalled> {
        match &self.way {
            Way::Gate(gate, _) => Ok(Stalled::Shut(gate.shut())),
            Way::File { path, .. } => {
                let file = Connection::open(path)?;
                file.busy_timeout(ANSWERED_MAX)?;
                file.execute_batch("BEGIN IMMEDIATE")?;
                Ok(Stalled::Locked(file))
            }
        }
    }

    /// Publishes the jobs of these numbers and awaits their confirm.
    pub(super) async fn publish(&self, numbers: impl IntoIterator<Item = usize>) -> Result<()> {
        Ok(self.broker.publisher().publish(&self.names.jobs, numbers.into_iter().map(job).collect()).await?)
    }

    /// The client's end of the replies.
    pub(super) async fn replies(&self) -> Result<Replies> {
        let consumer = self.broker.consumer(&self.names.results(), ConsumeOptions::new()).await?;
        Ok(Replies { consumer, answered: BTreeSet::new(), all: Vec::new() })
    }

    /// Waits until each of so many jobs is answered, and takes what else there is. Every worker has ended then, or has
    /// nothing left.
    pub(super) async fn settled(&self, mut replies: Replies, published: usize) -> Result<Jobs> {
        let answered = timeout(ANSWERED_MAX, replies.until_answered(published)).await;
        // What is missing is in the story, not an error: it is what the story is about.
        if let Ok(failed) = answered {
            failed?;
        }
        while let Ok(more) = timeout(SOON, replies.take()).await {
            more?;
        }
        replies.consumer.close().await;
        let dead = match self.broker.status(&self.names.dead()).await?.waiting {
            Some(count) => count > 0,
            None => self.comes(&self.names.dead()).await?,
        };
        Ok(Jobs { published, replies: replies.all, dead })
    }

    async fn comes(&self, queue: &str) -> Result<bool> {
        let mut consumer = self.broker.consumer(queue, ConsumeOptions::new()).await?;
        let comes = timeout(SOON, consumer.receive(up_to(1))).await.is_ok();
        consumer.close().await;
        Ok(comes)
    }
}

/// Replies as they come.
pub(super) struct Replies {
    consumer: AnyConsumer,
    answered: BTreeSet<usize>,
    all: Vec<Replied>,
}

impl Replies {
    /// Takes replies until so many jobs are answered.
    pub(super) async fn until_answered(&mut self, jobs: usize) -> Result<()> {
        while self.answered.len() < jobs {
            self.take().await?;
        }
        Ok(())
    }

    /// Takes what comes next, and says whose first replies they are.
    pub(super) async fn take(&mut self) -> Result<Vec<usize>> {
        let deliveries = loop {
            match self.consumer.receive(up_to(PULL)).await {
                Err(error) if error.is_transient() => sleep(AGAIN).await,
                received => break received.context("replies can't be received")?,
            }
        };
        let (mut acks, mut first) = (Vec::new(), Vec::new());
        for Delivery { message, lease, .. } in deliveries {
            let replied = replied(&Reply::decode(&message.body)?)?;
            if self.answered.insert(replied.job) {
                first.push(replied.job);
            }
            self.all.push(replied);
            acks.push(lease.ack());
        }
        // One that is lost comes again, and is the same then.
        drop(join_all(acks).await);
        Ok(first)
    }
}

/// The job of this number.
pub(super) fn job(number: usize) -> Message {
    message(&format!("job-{number}"), &format!("text {number}"))
}

fn replied(reply: &Reply) -> Result<Replied> {
    let number = reply.id.as_str().strip_prefix("job-").and_then(|number| number.parse().ok());
    Ok(Replied {
        job: number.context("a reply to no job of ours")?,
        worker: reply.worker.clone(),
        attempt: reply.attempt,
        status: reply.status,
        content: serde_json::to_string(&(&reply.results, &reply.error))?,
    })
}
