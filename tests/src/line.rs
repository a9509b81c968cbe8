//! A whole worker's line in this process, with real buckets: the broker is in memory and does what its fault plan says,
//! the engine is the echo engine, and its batches are counted.
//!
//! In: jobs. Out: replies. Time is the machine's, because buckets are. All stages run on the caller's thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use inferq_shared::broker::memory::{FaultPlan, MemoryBroker, MemoryConsumer, Observer};
use inferq_shared::broker::{
    BrokerError, ConsumeOptions, Consumer, Delivery, Message, Publisher, Pull, QueueNames, QueueOptions, QueueStatus,
};
use inferq_shared::bucket::{Buckets, Uri};
use inferq_shared::job::{Input, Inputs, Item, Job, JobId, Metadata, ObjectFormat, Parameters, ReplyTo, attribute};
use inferq_shared::reply::Reply;
use inferq_worker::clock::Clock;
use inferq_worker::config::{Cli, Config};
use inferq_worker::engine::echo::{self, EchoOptions};
use inferq_worker::engine::{Engine, Loaded};
use inferq_worker::health::Health;
use inferq_worker::in_flight::InFlight;
use inferq_worker::lanes::Lanes;
use inferq_worker::offload::Offload;
use inferq_worker::pipeline::{self, Parts};
use inferq_worker::replica::{Host, Replica};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::brokers::up_to;
use crate::process::PATIENCE;
use crate::queue_file::encoded;

/// Queues, and the workers that live one after the other.
pub struct Line {
    /// What workers connect to.
    faulty: MemoryBroker,
    /// The test's own connection.
    sound: MemoryBroker,
    names: QueueNames,
    buckets: Buckets,
    config: Config,
    batches: Arc<AtomicUsize>,
    pulls: watch::Sender<Pulls>,
}

/// The calls for jobs of the worker that lives now.
#[derive(Debug, Clone, Copy, Default)]
struct Pulls {
    begun: usize,
    ended: usize,
}

impl Line {
    /// Empty queues; workers have `flags`, and their connections meet what is planned.
    pub async fn new(buckets: &Buckets, flags: &[&str], plan: FaultPlan) -> Self {
        let faulty = MemoryBroker::with_faults(plan);
        let sound = faulty.connect_sound();
        let names = QueueNames::new("jobs");
        for queue in [names.jobs.clone(), names.shards(), names.dead(), names.results()] {
            sound.declare(&queue, QueueOptions::default()).await.expect("a sound connection");
        }
        let (buckets, config) = (buckets.clone(), config(flags));
        Self {
            faulty,
            sound,
            names,
            buckets,
            config,
            batches: Arc::default(),
            pulls: watch::channel(Pulls::default()).0,
        }
    }

    /// Tells `observer` of everything that happens in the queues.
    pub fn observe(&self, observer: Observer) {
        self.sound.observe(observer);
    }

    /// Publishes jobs in one go.
    pub async fn publish(&self, jobs: impl IntoIterator<Item = Job>) {
        let messages = jobs.into_iter().map(|job| encoded(&job)).collect();
        self.sound.publisher().publish(&self.names.jobs, messages).await.expect("a sound connection");
    }

    /// Batches that were run by all workers so far.
    pub fn batches(&self) -> usize {
        self.batches.load(Ordering::Relaxed)
    }

    /// What is in the jobs queue.
    pub async fn jobs(&self) -> QueueStatus {
        self.sound.status(&self.names.jobs).await.expect("a sound connection")
    }

    /// Workers that begin from now on have these flags.
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        self.config = config(flags);
        self
    }

    /// Returns when no job and no shard is waiting, delayed or held.
    pub async fn settled(&self) {
        let settled = async {
            while self.unsettled().await > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, settled).await.expect("all is settled");
    }

    async fn unsettled(&self) -> u64 {
        let mut messages = 0;
        for queue in [self.names.jobs.clone(), self.names.shards()] {
            let status = self.sound.status(&queue).await.expect("a sound connection");
            messages += [status.waiting, status.leased, status.delayed].into_iter().flatten().sum::<u64>();
        }
        messages
    }

    /// Every reply that is there.
    pub async fn all_replies(&self) -> Vec<Reply> {
        self.replies(self.waiting(&self.names.results()).await).await
    }

    /// How many dead letters there are.
    pub async fn dead_letters(&self) -> usize {
        self.waiting(&self.names.dead()).await
    }

    async fn waiting(&self, queue: &str) -> usize {
        let status = self.sound.status(queue).await.expect("a sound connection");
        usize::try_from(status.waiting.unwrap_or(0)).expect("a few")
    }

    /// Returns when the worker asks for no more jobs, after it had got some and asked for more.
    pub async fn paused(&self) {
        let mut pulls = self.pulls.subscribe();
        let paused = pulls.wait_for(|pulls| pulls.begun >= 2 && pulls.begun == pulls.ended);
        timeout(PATIENCE, paused).await.expect("it stops asking").expect("the sender is here");
    }

    /// The reasons of all dead letters; takes them.
    pub async fn dead(&self, count: usize) -> Vec<String> {
        let reason = |message: Message| message.attributes[attribute::DEAD_REASON].clone();
        self.taken(&self.names.dead(), count).await.into_iter().map(reason).collect()
    }

    /// So many replies, as they come.
    pub async fn replies(&self, count: usize) -> Vec<Reply> {
        let messages = self.taken(&self.names.results(), count).await;
        messages.iter().map(|message| Reply::decode(&message.body).expect("a reply")).collect()
    }

    /// Replies until each of so many jobs has one. May be dropped at any await: a reply is noted before it is acked.
    pub async fn replies_to(&self, jobs: usize, replies: &mut BTreeMap<String, Reply>) {
        let mut consumer =
            self.sound.consumer(&self.names.results(), ConsumeOptions::new()).await.expect("it is declared");
        while replies.len() < jobs {
            let received = timeout(PATIENCE, consumer.receive(up_to(jobs - replies.len()))).await;
            for delivery in received.expect("replies keep coming").expect("a sound connection") {
                let reply = Reply::decode(&delivery.message.body).expect("a reply");
                replies.insert(reply.id.to_string(), reply);
                delivery.lease.ack().await.expect("a sound connection");
            }
        }
        consumer.close().await;
    }

    async fn taken(&self, queue: &str, count: usize) -> Vec<Message> {
        let mut consumer = self.sound.consumer(queue, ConsumeOptions::new()).await.expect("it is declared");
        let mut messages = Vec::new();
        while messages.len() < count {
            let received = timeout(PATIENCE, consumer.receive(up_to(count - messages.len()))).await;
            for delivery in received.expect("messages keep coming").expect("a sound connection") {
                delivery.lease.ack().await.expect("a sound connection");
                messages.push(delivery.message);
            }
        }
        consumer.close().await;
        messages
    }

    /// Lets a worker live until `done`, then drains it. `None`: its process died first.
    pub async fn work<T>(&self, done: impl Future<Output = T>) -> Option<T> {
        self.work_until(std::future::pending(), done).await
    }

    /// The same; its process also dies at `death`.
    pub async fn work_until<T>(&self, death: impl Future<Output = ()>, done: impl Future<Output = T>) -> Option<T> {
        let broker = self.faulty.connect_again();
        self.pulls.send_replace(Pulls::default());
        let stop = CancellationToken::new();
        let parts = self.parts(&broker).await;
        let outcome = {
            let line = pipeline::run(parts, stop.clone());
            let death = async {
                death.await;
                broker.kill();
            };
            tokio::pin!(line, death);
            tokio::select! {
                biased;
                () = broker.killed() => None,
                () = &mut death => None,
                ended = &mut line => panic!("the line ended by itself: {ended:?}"),
                done = done => {
                    stop.cancel();
                    tokio::select! {
                        biased;
                        () = broker.killed() => {}
                        () = death => {}
                        drained = line => drained.expect("it drains"),
                    }
                    Some(done)
                }
            }
        };
        broker.close().await;
        outcome
    }

    async fn parts(&self, broker: &MemoryBroker) -> Parts<impl Consumer, impl Publisher> {
        let Loaded { engines, tokenizer, info } = echo::load(EchoOptions::default(), 1, None);
        let (renew, renewing) = watch::channel(true);
        let settings = self.config.settings.clone();
        let options = ConsumeOptions { lease: self.config.lease, lease_max: settings.lease_max, renew: renewing };
        let consumer =
            async |queue: &str| broker.consumer(queue, options.clone()).await.expect("a new connection is sound");
        let (jobs, shards) = (consumer(&self.names.jobs).await, consumer(&self.names.shards()).await);
        let in_flight = InFlight::new(settings.bounds);
        let lanes = Lanes { jobs, shards, in_flight: in_flight.clone() };
        let consumer = CountedConsumer { inner: lanes, pulls: self.pulls.clone() };
        Parts {
            settings,
            consumer,
            publisher: broker.publisher(),
            buckets: self.buckets.clone(),
            replicas: engines.into_iter().map(|engine| self.counted(engine)).collect(),
            tokenizer: Arc::new(tokenizer),
            info: Arc::new(info),
            worker: "worker".to_owned(),
            renew,
            in_flight,
            health: Health::unobserved(),
            offload: Offload::Inline,
            clock: Clock::real(),
        }
    }

    fn counted(&self, engine: Box<dyn Engine>) -> Replica {
        let batches = Arc::clone(&self.batches);
        let cost = move |_: &_| {
            batches.fetch_add(1, Ordering::Relaxed);
            std::time::Duration::ZERO
        };
        Replica { engine, host: Host::Inline(Box::new(cost)) }
    }
}

fn config(flags: &[&str]) -> Config {
    let given = ["inferq-worker", "--queue", "memory:", "--engine", "echo", "--drain-limit-s", "2"];
    let cli = Cli::try_parse_from(given.iter().chain(flags)).expect("flags that parse");
    cli.args.check().expect("flags that hold")
}

/// Counts its calls, also those that are dropped.
struct CountedConsumer {
    inner: Lanes<MemoryConsumer>,
    pulls: watch::Sender<Pulls>,
}

struct Pulling(watch::Sender<Pulls>);

impl Drop for Pulling {
    fn drop(&mut self) {
        self.0.send_modify(|pulls| pulls.ended += 1);
    }
}

impl Consumer for CountedConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        self.pulls.send_modify(|pulls| pulls.begun += 1);
        let _pulling = Pulling(self.pulls.clone());
        self.inner.receive(pull).await
    }

    async fn close(self) {
        self.inner.close().await;
    }
}

/// A job of these texts, whose items are named for their places.
pub fn job(id: &str, texts: &[&str]) -> Job {
    let item = |(place, text): (usize, &&str)| Item {
        id: Some(format!("item-{place}")),
        input: Input::Text((*text).to_owned()),
    };
    Job {
        id: JobId::new(id).expect("an id"),
        model: None,
        inputs: Inputs::Items(texts.iter().enumerate().map(item).collect()),
        parameters: Parameters::default(),
        reply_to: None,
        deadline: None,
        metadata: Metadata::new(),
    }
}

/// A job whose inputs are the lines of an object, its results beneath `prefix`.
pub fn job_of(input: &Uri, prefix: &Uri, format: ObjectFormat, id: &str) -> Job {
    Job { inputs: Inputs::Uri(input.to_string()), ..job_into(prefix, format, id, &[]) }
}

/// The same with its results beneath `prefix`.
pub fn job_into(prefix: &Uri, format: ObjectFormat, id: &str, texts: &[&str]) -> Job {
    Job { reply_to: Some(ReplyTo::Bucket { prefix: prefix.to_string(), format }), ..job(id, texts) }
}
