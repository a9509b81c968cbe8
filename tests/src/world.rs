//! A small world on one paused clock: a memory broker, workers with a scripted engine, a submitter and a collector.
//!
//! In: a [`Scenario`], which follows from one seed. Out: a [`History`] of all that happened, the same bytes each time.
//! The workers are the real pipeline; what dies in them dies as a process would: its broker connection is cut and its
//! futures are dropped at once. Nothing here reads a real clock or draws a number.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use inferq_shared::broker::memory::MemoryBroker;
use inferq_shared::broker::{ConsumeOptions, Consumer, Message, Publisher, Pull, QueueNames, QueueOptions};
use inferq_shared::bucket::Buckets;
use inferq_shared::job::attribute;
use inferq_worker::clock::Clock;
use inferq_worker::health::Health;
use inferq_worker::in_flight::InFlight;
use inferq_worker::offload::Offload;
use inferq_worker::pipeline::{self, Parts};
use inferq_worker::replica::{Host, Replica};
use inferq_worker::tokenize::Tokenizer;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::history::{History, What};

pub mod engine;
pub mod scenario;
pub mod trial;
pub mod watched;

use self::engine::{Script, Scripted};
use self::scenario::{Fate, PlannedFate, Scenario};
use self::watched::{WatchedConsumer, WatchedPublisher};

/// From stop fetching to being killed, beyond the drain limit: what a container platform grants.
pub const GRACE: Duration = Duration::from_secs(5);
/// From a process's death to its successor's readiness.
const RESTART: Duration = Duration::from_secs(1);
/// After this much time a world whose jobs are not all answered has lost one.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// Words that the tokenizer reads of one item.
const TOKENS_MAX: usize = 64;
/// How often a process is asked whether it should go on, and how often it may say no before it is killed.
pub const PROBE: Duration = Duration::from_secs(5);
const PROBES_MISSED_MAX: u32 = 12;

/// The names of the queues of every world.
pub fn queues() -> QueueNames {
    QueueNames::new("jobs")
}

/// The wall's time at which every world begins.
pub fn beginning() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a moment in 2027 is a timestamp")
}

/// The tokenizer of every world.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::words(TOKENS_MAX)
}

/// Lets `scenario` happen from beginning to end, on a runtime of its own.
pub fn run(scenario: &Scenario) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing of the system");
    runtime.block_on(async { World::new(scenario).run().await })
}

struct World<'a> {
    scenario: &'a Scenario,
    /// Its faults are those of the plan.
    broker: MemoryBroker,
    /// Its faults are none: for those who are not on trial.
    sound: MemoryBroker,
    history: History,
    script: Arc<Script>,
    clock: Clock,
    start: Instant,
}

/// How a process's life ended.
enum Death {
    Killed,
    Ended(Result<(), String>),
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let broker = MemoryBroker::with_faults(scenario.broker_faults());
        let history = History::new();
        let listener = history.clone();
        broker.observe(Arc::new(move |event| listener.record(What::Broker(event.clone()))));
        Self {
            scenario,
            sound: broker.connect_sound(),
            broker,
            script: Arc::new(Script::new(scenario)),
            history,
            clock: Clock::simulated(beginning()),
            start: Instant::now(),
        }
    }

    async fn run(self) -> History {
        self.declare().await;
        let done = CancellationToken::new();
        let workers = (0..self.scenario.workers).map(|worker| self.work(worker, &done));
        let workers = join_all(workers);
        let story = async {
            if timeout(PATIENCE, self.submit_and_settle()).await.is_err() {
                self.history.record(What::OutOfPatience);
            }
            done.cancel();
        };
        let collecting = self.collect();
        tokio::select! {
            biased;
            () = async { tokio::join!(story, workers); } => {}
            () = collecting => {}
            () = self.history.overflows() => self.history.record(What::OutOfPatience),
        }
        self.history
    }

    async fn declare(&self) {
        let names = queues();
        let results = QueueOptions { messages_max: self.scenario.results_max, ..QueueOptions::default() };
        let plain = [names.jobs.clone(), names.dead()].map(|queue| (queue, QueueOptions::default()));
        let routes = self.scenario.routes().into_iter().map(|queue| (queue, results));
        for (queue, options) in plain.into_iter().chain(routes) {
            self.sound.declare(&queue, options).await.expect("the sound connection never fails");
        }
    }

    /// Publishes every job in its time, then waits until the jobs queue holds nothing.
    async fn submit_and_settle(&self) {
        let publisher = self.sound.publisher();
        for (at, messages) in self.scenario.publishes(|job, at| self.message(job, at)) {
            sleep_until(self.start + at).await;
            publisher.publish(&queues().jobs, messages).await.expect("the sound connection never fails");
        }
        loop {
            let status = self.sound.status(&queues().jobs).await.expect("the sound connection never fails");
            if (status.waiting, status.leased, status.delayed) == (Some(0), Some(0), Some(0)) {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn message(&self, job: &scenario::PlannedJob, at: Duration) -> Message {
        let mut message = job.message();
        let published = beginning() + at;
        message.attributes.insert(attribute::PUBLISHED_AT.to_owned(), published.as_millisecond().to_string());
        message
    }

    /// Takes replies off their routes, a few at a time.
    async fn collect(&self) {
        let routes = self.scenario.routes();
        let each = routes.iter().map(|route| async {
            let mut consumer = self.sound.consumer(route, ConsumeOptions::new()).await.expect("it has been declared");
            let pull = Pull { jobs: std::num::NonZeroUsize::MIN.saturating_add(3), bytes: usize::MAX };
            loop {
                sleep(self.scenario.collect_every).await;
                for delivery in consumer.receive(pull).await.expect("the sound connection never fails") {
                    delivery.lease.ack().await.expect("the sound connection never fails");
                }
            }
        });
        join_all(each).await;
    }

    /// One worker's lives, one after the other.
    async fn work(&self, worker: usize, done: &CancellationToken) {
        let mut fates = self.scenario.fates(worker).into_iter().peekable();
        while !done.is_cancelled() {
            self.live(worker, &mut fates, done).await;
            tokio::select! {
                biased;
                () = done.cancelled() => {}
                () = sleep(RESTART) => {}
            }
        }
    }

    async fn live(
        &self,
        worker: usize,
        fates: &mut std::iter::Peekable<std::vec::IntoIter<PlannedFate>>,
        done: &CancellationToken,
    ) {
        let broker = self.broker.connect_again();
        let link = broker.link_id();
        let (stop, health) = (CancellationToken::new(), Health::unobserved());
        let parts = self.parts(worker, &broker, health.clone()).await;
        self.history.record(What::Ready { worker, link });
        let line = AssertUnwindSafe(pipeline::run(parts, stop.clone())).catch_unwind();
        let probes = self.probe(link, &health);
        tokio::pin!(line, probes);
        let mut killed_at = None;
        let death = loop {
            let fate_at = fates.peek().map(|fate| self.start + fate.at);
            tokio::select! {
                biased;
                () = broker.killed() => break Death::Killed,
                ended = &mut line => break Death::Ended(match ended {
                    Ok(ended) => ended.map_err(|error| error.to_string()),
                    Err(_) => Err("panicked".to_owned()),
                }),
                () = maybe(fate_at) => match fates.next().expect("it was peeked at").fate {
                    Fate::Crash => broker.kill(),
                    Fate::Break(down) => broker.disconnect(down),
                    Fate::Stop => killed_at = killed_at.or(self.stop(link, &stop)),
                },
                () = done.cancelled(), if killed_at.is_none() => killed_at = self.stop(link, &stop),
                () = &mut probes => {
                    self.history.record(What::OutOfHealth { link });
                    broker.kill();
                    break Death::Killed;
                }
                () = maybe(killed_at) => {
                    self.history.record(What::OutOfGrace { link });
                    broker.kill();
                }
            }
        };
        self.history.record(match death {
            Death::Killed => What::Killed { link },
            Death::Ended(result) => What::Ended { link, result },
        });
        broker.close().await;
        self.history.record(What::Gone { link });
    }

    /// Asks a worker to stop; says when its grace is over.
    fn stop(&self, link: u64, stop: &CancellationToken) -> Option<Instant> {
        self.history.record(What::Stop { link });
        stop.cancel();
        Some(Instant::now() + self.scenario.settings.drain_limit + GRACE)
    }

    /// Asks a process whether it should go on, as a container platform does; returns when it has said no for long.
    async fn probe(&self, link: u64, health: &Health) {
        let (mut live, mut missed) = (true, 0);
        while missed < PROBES_MISSED_MAX {
            sleep(PROBE).await;
            let answer = health.ailment().is_none();
            if answer != live {
                live = answer;
                self.history.record(What::Probed { link, live });
            }
            missed = if live { 0 } else { missed + 1 };
        }
    }

    async fn parts(
        &self,
        worker: usize,
        broker: &MemoryBroker,
        health: Health,
    ) -> Parts<impl Consumer, impl Publisher> {
        let settings = self.scenario.settings();
        let (link, in_flight) = (broker.link_id(), InFlight::new(settings.bounds));
        let (renew, renewing) = watch::channel(true);
        let options =
            ConsumeOptions { lease: self.scenario.settings.lease, lease_max: settings.lease_max, renew: renewing };
        let inner = broker.consumer(&queues().jobs, options).await.expect("a new connection is sound");
        let history = self.history.clone();
        let consumer = WatchedConsumer { inner, link, in_flight: in_flight.clone(), history: history.clone() };
        let publisher = WatchedPublisher { inner: broker.publisher(), link, history };
        let replica = || {
            let (script, history) = (self.script.clone(), self.history.clone());
            let engine = Box::new(Scripted::new(script.clone(), broker.clone(), history.clone()));
            let cost = move |batch: &_| script.begin(batch, link, &history);
            Replica { engine, host: Host::Inline(Box::new(cost)) }
        };
        Parts {
            consumer,
            publisher,
            buckets: Buckets::with_options([]),
            replicas: (0..self.scenario.replicas).map(|_| replica()).collect(),
            tokenizer: Arc::new(tokenizer()),
            info: Arc::new(engine::info()),
            worker: format!("worker-{worker}"),
            renew,
            in_flight,
            health,
            offload: Offload::Inline,
            clock: self.clock,
            settings,
        }
    }
}

async fn maybe(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
