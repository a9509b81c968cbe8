//! What the workers of a chaotic run depend on: a broker, and where it keeps no replies of its own for long, a bucket.
//!
//! Out: addresses, the jobs to send, and the faults that meet every worker. Which happen when is none of its business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::Method;
use inferq_shared::broker::Message;
use inferq_shared::bucket::Uri;
use inferq_shared::job::ObjectFormat;
use inferq_shared::reply::ItemResult;
use tokio::task::block_in_place;

use super::check::{RECOVERY_FROM_SILENCE_MAX, RECOVERY_MAX};
use super::schedule::Fault;
use crate::endpoints::{self, Endpoints, Store};
use crate::line::job_into;
use crate::process::command;
use crate::pubsub::{self, Emulator};
use crate::queue_file::{encoded, job};
use crate::rabbitmq::{self, RabbitmqServer};

/// Items of a job.
pub(super) const ITEMS: usize = 2;
/// Bytes that a job's object can't reach.
const OBJECT_MAX: u64 = 1 << 20;
/// Objects that are read at a time.
const READS: usize = 8;

/// A broker of the run's own.
pub enum Server {
    /// Replies come over it.
    Rabbitmq(RabbitmqServer),
    /// Replies are objects in a bucket, and what comes over it says where.
    PubSub(Emulator, Bucket),
}

/// A bucket and the server that holds it.
pub struct Bucket {
    store: Store,
    _endpoints: Endpoints,
}

impl Server {
    /// A RabbitMQ. `None` where it is not installed, which has been said.
    pub fn rabbitmq() -> Option<Self> {
        RabbitmqServer::own().map(Self::Rabbitmq)
    }

    /// How soon workers are to answer again after a fault is over.
    pub fn recovery_max(&self) -> Duration {
        match self {
            Self::Rabbitmq(_) => RECOVERY_MAX,
            Self::PubSub(..) => RECOVERY_FROM_SILENCE_MAX,
        }
    }

    /// A Pub/Sub emulator and a bucket. `None` where one of them is not installed, which has been said.
    pub async fn pubsub() -> Option<Self> {
        let (emulator, endpoints) = (Emulator::own()?, Endpoints::start()?);
        let store = endpoints.s3().await;
        Some(Self::PubSub(emulator, Bucket { store, _endpoints: endpoints }))
    }

    /// What can go wrong with it.
    pub fn faults(&self) -> &'static [Fault] {
        match self {
            Self::Rabbitmq(_) => Fault::RABBITMQ,
            Self::PubSub(..) => Fault::PUBSUB,
        }
    }

    /// The jobs that are sent to its workers.
    pub(super) fn jobs(&self) -> Jobs {
        match self.bucket() {
            None => Jobs { at_once: 10, prefix: None },
            // The bucket's server is slower than any broker.
            Some(store) => Jobs { at_once: 2, prefix: Some(store.root.clone()) },
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Rabbitmq(server) => server.address(),
            Self::PubSub(emulator, _) => emulator.address(),
        }
    }

    /// A virtual host or project that nobody else knows, with our queues in it: its name.
    pub(super) fn place(&self) -> Result<String> {
        let place = match self {
            Self::Rabbitmq(server) => server.virtual_host(),
            Self::PubSub(..) => pubsub::project(),
        };
        set_up(&self.queue(self.address(), &place))?;
        Ok(place)
    }

    /// The address of the jobs queue in a place behind this address, as our binaries take it.
    pub(super) fn queue(&self, address: SocketAddr, place: &str) -> String {
        match self {
            Self::Rabbitmq(_) => format!("{}?queue=jobs", rabbitmq::url(address, place)),
            Self::PubSub(..) => pubsub::url(address, place),
        }
    }

    /// The bucket that replies go to, if there is one.
    pub(super) fn bucket(&self) -> Option<&Store> {
        match self {
            Self::Rabbitmq(_) => None,
            Self::PubSub(_, bucket) => Some(&bucket.store),
        }
    }

    /// Begins a fault that meets every worker.
    ///
    /// # Panics
    /// When it is none of this server's.
    pub(super) fn begin(&self, fault: Fault) {
        match (self, fault) {
            (Self::Rabbitmq(server), Fault::CloseAll) => drop(server.close_all_connections()),
            (Self::Rabbitmq(server), Fault::Alarm) => server.memory_alarm(true),
            (Self::Rabbitmq(server), Fault::Restart) => block_in_place(|| {
                server.stop();
                server.start();
            }),
            (Self::Rabbitmq(server), Fault::Crash) => block_in_place(|| {
                server.kill();
                server.start();
            }),
            (Self::PubSub(emulator, _), Fault::Pause) => emulator.freeze(),
            (Self::PubSub(_, bucket), Fault::NoBucket) => {
                bucket.store.proxy().fail_always(Method::PUT, endpoints::Fault::Answer(503));
            }
            _ => panic!("{fault:?} is no fault of this server"),
        }
    }

    /// Ends what [`begin`](Self::begin) began.
    pub(super) fn end(&self, fault: Fault) {
        match (self, fault) {
            (Self::Rabbitmq(server), Fault::Alarm) => server.memory_alarm(false),
            (Self::PubSub(emulator, _), Fault::Pause) => emulator.thaw(),
            (Self::PubSub(_, bucket), Fault::NoBucket) => bucket.store.proxy().heal(),
            // The others are over when they have begun.
            _ => {}
        }
    }
}

/// Jobs, each known by its number.
#[derive(Debug, Clone)]
pub(super) struct Jobs {
    /// How many are sent at once, a few times a second.
    pub(super) at_once: usize,
    /// Where in a bucket their results go.
    prefix: Option<Uri>,
}

impl Jobs {
    /// The job of this number.
    pub(super) fn message(&self, number: usize) -> Message {
        let (id, texts) = (format!("job-{number}"), [format!("text {number}"), format!("another {number}")]);
        match &self.prefix {
            None => job(&id, texts),
            Some(prefix) => encoded(&job_into(prefix, ObjectFormat::Jsonl, &id, &texts.each_ref().map(String::as_str))),
        }
    }
}

/// Declares our queues.
pub(super) fn set_up(queue: &str) -> Result<()> {
    let setup = command("inferq").args(["setup", "--queue", queue]).output()?;
    ensure!(setup.status.success(), "setup failed: {}", String::from_utf8_lossy(&setup.stderr));
    Ok(())
}

/// The objects beneath a prefix.
pub(super) async fn objects(store: &Store, prefix: &Uri) -> Result<Vec<Uri>> {
    let mut objects: Vec<Uri> = Vec::new();
    loop {
        let page = store.buckets.list(prefix, objects.last()).await?;
        if page.is_empty() {
            return Ok(objects);
        }
        objects.extend(page.into_iter().map(|object| object.uri));
    }
}

/// The places of the results in each object beneath a prefix, as they stand there, by the object's address.
pub(super) async fn contents(store: &Store, prefix: &Uri) -> Result<BTreeMap<String, Vec<u32>>> {
    let read = |object: Uri| async move { anyhow::Ok((object.to_string(), places(store, &object).await?)) };
    stream::iter(objects(store, prefix).await?).map(read).buffer_unordered(READS).try_collect().await
}

async fn places(store: &Store, object: &Uri) -> Result<Vec<u32>> {
    let (_, bytes) = store.buckets.read_all(object, OBJECT_MAX).await?.context("it is listed")?;
    let lines = std::str::from_utf8(&bytes)?.lines();
    lines.map(|line| Ok(serde_json::from_str::<ItemResult>(line)?.index)).collect()
}

/// What is wrong with a store: each of so many objects, and any other, holds each of the results of a job once.
pub(super) fn doubled_or_lost(
    contents: &BTreeMap<String, Vec<u32>>,
    expected: impl IntoIterator<Item = String>,
    items: usize,
) -> Vec<String> {
    let lost = expected.into_iter().filter(|object| !contents.contains_key(object));
    let lost = lost.map(|object| format!("{object} is not there"));
    let wrong = contents.iter().filter(|(_, places)| !places.iter().copied().eq(0..items as u32));
    lost.chain(wrong.map(|(object, places)| format!("{object} holds the results {places:?}"))).collect()
}
