//! An embedded queue in a file of the caller's own, and the client's end of it: jobs go in, replies come out.
//!
//! For tests and benchmarks that start real processes on [`QueueFile::path`]. It never runs a job.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use futures_util::future::join_all;
use inferq_shared::broker::{
    AnyConsumer, Attributes, Broker, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher, QueueNames,
};
use inferq_shared::job::{Input, Inputs, Item, Job, JobId, Metadata, Parameters, attribute};
use inferq_shared::reply::Reply;
use tempfile::TempDir;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::brokers::up_to;
use crate::process::PATIENCE;

/// A queue file with its queues declared, and a connection to it.
pub struct QueueFile {
    /// Where it lies.
    pub path: PathBuf,
    /// The connection.
    pub broker: Broker,
    /// Its queues.
    pub names: QueueNames,
    _folder: Option<TempDir>,
}

impl QueueFile {
    /// An empty one in a folder of its own, which goes with it.
    pub async fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let queue = Self::at(folder.path().join("queue.db")).await;
        Self { _folder: Some(folder), ..queue }
    }

    /// The one at this path.
    pub async fn at(path: PathBuf) -> Self {
        let broker = Broker::connect(&BrokerUrl::sqlite(&path)).await.expect("a queue file");
        let names = QueueNames::new("jobs");
        broker.setup(&names).await.expect("the queues are declared");
        Self { path, broker, names, _folder: None }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    /// A path in the queue's folder.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// Publishes jobs in one go.
    pub async fn publish(&self, jobs: impl IntoIterator<Item = Message>) {
        let jobs = jobs.into_iter().collect();
        self.broker.publisher().publish(&self.names.jobs, jobs).await.expect("the jobs are published");
    }

    /// A consumer of one of its queues.
    pub async fn consumer(&self, queue: &str) -> AnyConsumer {
        self.broker.consumer(queue, ConsumeOptions::new()).await.expect("the queue is there")
    }

    /// Messages of a queue that could be delivered now, and those that are leased.
    pub async fn waiting_and_leased(&self, queue: &str) -> (u64, u64) {
        let status = self.broker.status(queue).await.expect("the queue is there");
        (status.waiting.unwrap_or(0), status.leased.unwrap_or(0))
    }

    /// Takes replies off the default route, at most `pull_max` at a time, until `take` says that it has enough; it is
    /// given what each pull brought.
    pub async fn replies(&self, pull_max: usize, mut take: impl FnMut(Vec<Message>) -> bool) {
        let mut consumer = self.consumer(&self.names.results()).await;
        while !take(taken(&mut consumer, pull_max).await) {}
        consumer.close().await;
    }

    /// Collects replies until there is one for each of so many jobs; `between` runs after each pull of replies.
    pub async fn collect(&self, jobs: usize, mut between: impl FnMut(usize)) -> BTreeMap<String, Reply> {
        let mut replies = BTreeMap::new();
        let take = |more: Vec<Message>| {
            for message in more {
                let reply = Reply::decode(&message.body).expect("a reply");
                replies.entry(reply.id.to_string()).or_insert(reply);
            }
            between(replies.len());
            replies.len() >= jobs
        };
        self.replies(16, take).await;
        replies
    }
}

/// Takes and acks what comes next. A queue that is out of reach for a moment, as on a full disk, is asked again, and what
/// it did not let be acked comes again.
pub async fn taken(consumer: &mut AnyConsumer, pull_max: usize) -> Vec<Message> {
    let deliveries = timeout(PATIENCE, received(consumer, pull_max)).await.expect("messages keep coming");
    let acked = deliveries.into_iter().map(|Delivery { message, lease, .. }| async {
        match lease.ack().await {
            Ok(()) => Some(message),
            Err(e) if e.is_transient() => None,
            Err(e) => panic!("what came is not acked: {e}"),
        }
    });
    join_all(acked).await.into_iter().flatten().collect()
}

async fn received(consumer: &mut AnyConsumer, pull_max: usize) -> Vec<Delivery> {
    loop {
        match consumer.receive(up_to(pull_max)).await {
            Ok(deliveries) => return deliveries,
            Err(e) if e.is_transient() => yield_now().await,
            Err(e) => panic!("the queue does not work: {e}"),
        }
    }
}

/// A job of these texts.
pub fn job(id: &str, texts: impl IntoIterator<Item = String>) -> Message {
    let items = texts.into_iter().map(|text| Item { id: None, input: Input::Text(text) }).collect();
    encoded(&Job {
        id: JobId::new(id).expect("a valid id"),
        model: None,
        inputs: Inputs::Items(items),
        parameters: Parameters::default(),
        reply_to: None,
        deadline: None,
        metadata: Metadata::new(),
    })
}

/// A job as a message.
pub fn encoded(job: &Job) -> Message {
    let attributes = Attributes::from([(attribute::JOB_ID.to_owned(), job.id.to_string())]);
    Message { body: job.encode().into(), attributes }
}

/// A job of one text.
pub fn message(id: &str, text: &str) -> Message {
    job(id, [text.to_owned()])
}

/// Jobs named for their numbers, each of one text.
pub fn numbered(jobs: Range<usize>) -> impl Iterator<Item = Message> {
    jobs.map(|number| message(&format!("job-{number}"), &format!("text number {number}")))
}
