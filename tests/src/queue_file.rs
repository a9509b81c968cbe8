//! A queue file of the caller's own, in a folder that goes with it: jobs go in, replies come out.
//!
//! For tests and benchmarks that start real processes on it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use inferq_shared::broker::{
    Attributes, Broker, BrokerUrl, ConsumeOptions, Consumer, Delivery, Lease, Message, Publisher, QueueNames,
};
use inferq_shared::job::{Input, Inputs, Item, Job, JobId, Metadata, Parameters, attribute};
use tempfile::TempDir;

use crate::brokers::up_to;
use crate::process::PATIENCE;

/// A queue file, and a connection to it.
pub struct QueueFile {
    _folder: TempDir,
    /// Where it lies.
    pub path: PathBuf,
    /// The connection.
    pub broker: Broker,
    /// Its queues, declared.
    pub names: QueueNames,
}

impl QueueFile {
    /// An empty one.
    ///
    /// # Errors
    /// When the file can't be made.
    pub async fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("queue.db");
        let broker = Broker::connect(&BrokerUrl::sqlite(&path)).await?;
        let names = QueueNames::new("jobs");
        broker.setup(&names).await?;
        Ok(Self { _folder: folder, path, broker, names })
    }

    /// Publishes jobs in one go.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn publish(&self, jobs: impl IntoIterator<Item = Message>) -> Result<()> {
        Ok(self.broker.publisher().publish(&self.names.jobs, jobs.into_iter().collect()).await?)
    }

    /// Takes replies off the default route, at most `pull_max` at a time, until `take` says that it has enough; it is
    /// given what each pull brought.
    ///
    /// # Errors
    /// When none comes for as long as [`PATIENCE`], or the queue fails.
    pub async fn replies(&self, pull_max: usize, mut take: impl FnMut(Vec<Message>) -> bool) -> Result<()> {
        let mut consumer = self.broker.consumer(&self.names.results(), ConsumeOptions::new()).await?;
        loop {
            let received = tokio::time::timeout(PATIENCE, consumer.receive(up_to(pull_max))).await;
            let deliveries = received.context("no reply came for a long time")??;
            let (replies, leases): (Vec<_>, Vec<_>) =
                deliveries.into_iter().map(|Delivery { message, lease, .. }| (message, lease)).unzip();
            try_join_all(leases.into_iter().map(Lease::ack)).await?;
            if take(replies) {
                break;
            }
        }
        consumer.close().await;
        Ok(())
    }
}

/// A job of these texts.
///
/// # Panics
/// When the id is none.
pub fn job(id: &str, texts: impl IntoIterator<Item = String>) -> Message {
    let id = JobId::new(id).expect("a valid id");
    let attributes = Attributes::from([(attribute::JOB_ID.to_owned(), id.to_string())]);
    let items = texts.into_iter().map(|text| Item { id: None, input: Input::Text(text) }).collect();
    let job = Job {
        id,
        model: None,
        inputs: Inputs::Items(items),
        parameters: Parameters::default(),
        reply_to: None,
        deadline: None,
        metadata: Metadata::new(),
    };
    Message { body: Bytes::from(job.encode()), attributes }
}
