//! A fresh broker for one test: its address, a connection, a queue of its own.
//!
//! Out: a [`Bench`] of the kind that a test asks for, and short words for what tests do with one. Each bench has a
//! directory of its own, so tests run side by side. It never asserts what a broker should do.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result};
use inferq_shared::broker::{
    AnyConsumer, AnyPublisher, Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher,
    Pull,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pubsub::{self, Emulator};
use crate::rabbitmq::{self, RabbitmqServer};

/// The longest that a test waits for an event before it calls it missing. Never a measure: a pass takes far less.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The brokers that tests can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In this process.
    Memory,
    /// A file in a directory of the test's own.
    Sqlite,
    /// A virtual host of the test's own, on the server that this process's tests share.
    Rabbitmq,
    /// A project of the test's own, on the emulator that this process's tests share.
    PubSub,
}

impl Kind {
    /// What to do where its server is not installed.
    fn how_to_install(self) -> &'static str {
        match self {
            Self::Memory | Self::Sqlite => "it is always there",
            Self::Rabbitmq => rabbitmq::HOW_TO_INSTALL,
            Self::PubSub => pubsub::HOW_TO_INSTALL,
        }
    }
}

/// One broker, one queue.
#[derive(Debug)]
pub struct Bench {
    /// The connection.
    pub broker: Broker,
    /// Where it leads.
    pub url: BrokerUrl,
    /// The name of a queue that is declared.
    pub queue: String,
    directory: TempDir,
}

impl Bench {
    /// A broker of this kind with a queue.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(kind: Kind) -> Result<Self> {
        Self::start_if_installed(kind).await?.context(kind.how_to_install())
    }

    /// As [`Bench::start`]; `None` where its server is not installed, which has been said.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start_if_installed(kind: Kind) -> Result<Option<Self>> {
        let directory = tempfile::tempdir().context("no directory for the test")?;
        let url = match kind {
            Kind::Memory => "memory:".parse().map_err(anyhow::Error::msg)?,
            Kind::Sqlite => BrokerUrl::sqlite(directory.path().join("queue.db")),
            Kind::Rabbitmq => {
                let Some(server) = RabbitmqServer::shared() else { return Ok(None) };
                server.url(&server.virtual_host()).parse().map_err(anyhow::Error::msg)?
            }
            Kind::PubSub => {
                let Some(emulator) = Emulator::shared() else { return Ok(None) };
                emulator.url(&pubsub::project()).parse().map_err(anyhow::Error::msg)?
            }
        };
        let broker = Broker::connect(&url).await?;
        let queue = url.queues.jobs.clone();
        broker.setup(&url.queues).await?;
        Ok(Some(Self { broker, url, queue, directory }))
    }

    /// The directory that goes with the test.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// A publisher.
    pub fn publisher(&self) -> AnyPublisher {
        self.broker.publisher()
    }

    /// A consumer of the queue with these leases.
    ///
    /// # Errors
    /// As [`Broker::consumer`].
    pub async fn consumer(&self, options: ConsumeOptions) -> Result<AnyConsumer, BrokerError> {
        self.broker.consumer(&self.queue, options).await
    }

    /// Publishes one message for each text.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish(&self, texts: &[&str]) -> Result<(), BrokerError> {
        self.publisher().publish(&self.queue, texts.iter().map(|text| message(text)).collect()).await
    }
}

/// A message of this text, without attributes.
pub fn message(text: &str) -> Message {
    Message { body: text.as_bytes().to_vec().into(), attributes: BTreeMap::new() }
}

/// A delivery's text.
pub fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// At most so many deliveries, of whatever size.
pub fn up_to(jobs: usize) -> Pull {
    Pull { jobs: NonZeroUsize::new(jobs).expect("a pull asks for something"), bytes: usize::MAX }
}

/// Leases of this length that are renewed.
pub fn leases(lease: Duration) -> ConsumeOptions {
    ConsumeOptions { lease, ..ConsumeOptions::new() }
}

/// Leases of this length that nobody renews.
pub fn unrenewed(lease: Duration) -> ConsumeOptions {
    // A receiver whose sender is gone keeps the last value.
    let (_, renew) = watch::channel(false);
    ConsumeOptions { lease, renew, ..ConsumeOptions::new() }
}

/// One delivery.
///
/// # Errors
/// When none comes within [`PATIENCE`], or the broker fails.
pub async fn one(consumer: &mut impl Consumer) -> Result<Delivery> {
    let deliveries = timeout(PATIENCE, consumer.receive(up_to(1))).await.context("no delivery came")??;
    deliveries.into_iter().next().context("an empty answer")
}

/// So many deliveries, over as many calls as it takes.
///
/// # Errors
/// When one is missing after [`PATIENCE`], or the broker fails.
pub async fn many(consumer: &mut impl Consumer, count: usize) -> Result<Vec<Delivery>> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let more = timeout(PATIENCE, consumer.receive(up_to(count - deliveries.len()))).await;
        deliveries.extend(more.with_context(|| format!("{} of {count} deliveries came", deliveries.len()))??);
    }
    Ok(deliveries)
}
