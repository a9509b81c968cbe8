//! From a checked configuration to a drained worker: make a model resident, connect, run the line;
//! and again with another model, if that is watched for.
//!
//! In: a [`Config`], a connected broker, the state shown to the outside. Out: `Ok` once drained. It takes no job before
//! the model is loaded, warm and checked.

use std::pin::pin;
use std::sync::Arc;

use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{AnyConsumer, AnyPublisher, Broker, BrokerError, BrokerUrl, ConsumeOptions};
use inferq_shared::bucket::Buckets;
use inferq_shared::telemetry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::dispatch::DeviceLost;
use crate::engine::Loaded;
use crate::engine::burn::LoadError;
use crate::health::Health;
use crate::herald::Herald;
use crate::in_flight::InFlight;
use crate::lanes::Lanes;
use crate::offload::Offload;
use crate::pipeline::{self, Parts, PipelineError};
use crate::pod::Pod;
use crate::replica::{Host, Replica};
use crate::resident::{Loading, Resident, ResidentError};
use crate::swap::{Next, Swap};

/// Why a worker ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model can't be loaded, or does not run as it should.
    #[error(transparent)]
    Model(#[from] ResidentError),
    /// The broker refuses for good.
    #[error("failed to use the queue: {0}")]
    Broker(BrokerError),
    /// The jobs queue is not there.
    #[error("no queue named {name}: make it with `inferq setup --queue {url}`")]
    NoQueue {
        /// The queue's name.
        name: String,
        /// Where it was looked for.
        url: BrokerUrl,
    },
    /// The device is lost in use.
    #[error("{0}")]
    Device(DeviceLost),
}

impl ServeError {
    /// The process's exit code; see docs/operations.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Model(ResidentError::Load(_)) | Self::Broker(_) | Self::NoQueue { .. } => 64,
            Self::Model(ResidentError::Warm(_)) | Self::Device(_) => 70,
        }
    }
}

impl From<LoadError> for ServeError {
    fn from(error: LoadError) -> Self {
        Self::Model(error.into())
    }
}

impl From<PipelineError> for ServeError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Broker(error) => Self::Broker(error),
            PipelineError::Device(error) => Self::Device(error),
        }
    }
}

/// Connects to a broker, trying for ever while it is out of reach. `None`: stop was asked first.
///
/// # Errors
/// When the broker refuses for good.
pub async fn connect(url: &BrokerUrl, stop: &CancellationToken) -> Result<Option<Broker>, BrokerError> {
    until_done("connect", stop, || Broker::connect(url)).await
}

/// Calls the broker until it does what it is asked or refuses for good. `None`: stop was asked first.
async fn until_done<T, Called: Future<Output = Result<T, BrokerError>>>(
    name: &'static str,
    stop: &CancellationToken,
    call: impl Fn() -> Called,
) -> Result<Option<T>, BrokerError> {
    let mut failures = 0;
    loop {
        match call().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.is_transient() => telemetry::broker_failed(name, &error),
            Err(error) => return Err(error),
        }
        let wait = Backoff::BROKER.delay(failures, &mut rand::rng());
        failures += 1;
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Loads the model, then takes jobs until `stop` is asked and everything is settled.
///
/// # Errors
/// When the model does not load or run, the broker refuses for good, or the device is lost.
pub async fn serve(config: Config, broker: &Broker, health: Health, stop: CancellationToken) -> Result<(), ServeError> {
    if let Some(hold) = broker.hold_max().filter(|hold| config.settings.lease_max > *hold) {
        let (lease_max_s, hold_s) = (config.settings.lease_max.as_secs(), hold.as_secs());
        tracing::warn!(
            lease_max_s,
            hold_s,
            "the broker takes back what is held longer than its consumer timeout, unless \
            told otherwise: jobs that take longer run again elsewhere; lower --max-lease-s, or raise the timeout"
        );
    }
    if let Some(blocked) = broker.blocked() {
        health.blocked_by(blocked);
    }
    let Some(mut resident) = Loading::new(&config).start(&health, &stop).await? else { return Ok(()) };
    let mut swap = Swap::new(&config, &resident);
    // One account for all lines, so that its bounds hold whatever the line before still holds.
    let in_flight = InFlight::new(config.settings_around(resident.loaded.engines.len(), resident.warm).bounds);
    let worker = Worker { config, broker, health, stop, in_flight, buckets: Buckets::new() };
    loop {
        let Some(next) = worker.run_line(resident, &mut swap).await? else { return Ok(()) };
        let Some(taken) = swap.take(next, &worker.health, &worker.stop).await? else { return Ok(()) };
        resident = taken;
    }
}

/// What stays while models change.
struct Worker<'a> {
    config: Config,
    broker: &'a Broker,
    health: Health,
    stop: CancellationToken,
    in_flight: InFlight,
    /// Its clients and their connections outlast a swap.
    buckets: Buckets,
}

impl Worker<'_> {
    /// Runs one line around one model, until stop is asked (`None`) or another model is to run.
    async fn run_line(&self, resident: Resident, swap: &mut Swap) -> Result<Option<Next>, ServeError> {
        let Some(parts) = self.parts(resident).await? else { return Ok(None) };
        self.health.model(&parts.info);
        self.health.ready(self.in_flight.clone());
        tracing::info!(queue = %self.config.queue, revision = parts.info.revision, "ready");
        let herald = Herald::new(self.broker, &self.config, &parts.info, &self.health, &self.in_flight);
        let drained = self.stop.child_token();
        let (mut next, mut stopping) = (None, false);
        let ended = {
            let mut line = pin!(pipeline::run(parts, drained.clone()));
            // Beside the line, in no task of its own: it lasts as long as the line.
            let mut report = pin!(herald.report());
            let mut cost = pin!(Pod::report(self.config.pod.as_ref(), &self.in_flight));
            loop {
                tokio::select! {
                    biased;
                    ended = &mut line => break ended,
                    () = self.stop.cancelled(), if !stopping => {
                        stopping = true;
                        self.health.draining();
                    }
                    found = swap.next(&self.health), if next.is_none() && !stopping => {
                        next = Some(found);
                        drained.cancel();
                    }
                    never = &mut report => match never {},
                    never = &mut cost => match never {},
                }
            }
        };
        if stopping || ended.is_err() {
            next = None;
            self.health.stopped();
        }
        herald.retire().await;
        ended?;
        Ok(next)
    }

    /// `None`: stop was asked first.
    async fn parts(&self, resident: Resident) -> Result<Option<Parts<Lanes<AnyConsumer>, AnyPublisher>>, ServeError> {
        let Self { config, broker, stop, .. } = self;
        let (renew, renewing) = watch::channel(true);
        let options = ConsumeOptions { lease: config.lease, lease_max: config.settings.lease_max, renew: renewing };
        let names = &config.queue.queues;
        let subscribe = async |queue: String| {
            let consumer = || broker.consumer(&queue, options.clone());
            until_done("subscribe", stop, consumer).await.map_err(|error| match error {
                BrokerError::UnknownQueue(name) => ServeError::NoQueue { name, url: config.queue.clone() },
                error => ServeError::Broker(error),
            })
        };
        let Some(jobs) = subscribe(names.jobs.clone()).await? else { return Ok(None) };
        let Some(shards) = subscribe(names.shards()).await? else { return Ok(None) };
        let consumer = Lanes { jobs, shards, in_flight: self.in_flight.clone() };
        let Loaded { engines, tokenizer, info } = resident.loaded;
        Ok(Some(Parts {
            settings: config.settings_around(engines.len(), resident.warm),
            consumer,
            publisher: broker.publisher(),
            buckets: self.buckets.clone(),
            replicas: engines.into_iter().map(|engine| Replica { engine, host: Host::Thread }).collect(),
            tokenizer: Arc::new(tokenizer),
            info: Arc::new(info),
            worker: config.worker.clone(),
            renew,
            in_flight: self.in_flight.clone(),
            health: self.health.clone(),
            offload: Offload::Threads,
            clock: Clock::real(),
        }))
    }
}
