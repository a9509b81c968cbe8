//! From a checked configuration to a drained worker: make a model resident, connect, run the line.
//!
//! In: a [`Config`], a connected broker, the state shown to the outside. Out: `Ok` once drained. It takes no job before
//! the model is loaded, warm and checked.

use std::sync::Arc;

use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, ConsumeOptions};
use inferq_shared::bucket::Buckets;
use inferq_shared::telemetry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::dispatch::DeviceLost;
use crate::engine::burn::LoadError;
use crate::health::Health;
use crate::herald::Herald;
use crate::in_flight::InFlight;
use crate::lanes::Lanes;
use crate::offload::Offload;
use crate::pipeline::{self, Parts, PipelineError};
use crate::replica::{Host, Replica};
use crate::resident::{Loading, Resident, ResidentError};

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
    let Some(Resident { loaded, .. }) = Loading::new(&config).start(&health, &stop).await? else { return Ok(()) };
    let (renew, renewing) = watch::channel(true);
    let options = ConsumeOptions { lease: config.lease, lease_max: config.settings.lease_max, renew: renewing };
    let names = &config.queue.queues;
    let subscribe = async |queue: String| {
        let consumer = || broker.consumer(&queue, options.clone());
        until_done("subscribe", &stop, consumer).await.map_err(|error| match error {
            BrokerError::UnknownQueue(name) => ServeError::NoQueue { name, url: config.queue.clone() },
            error => ServeError::Broker(error),
        })
    };
    let Some(jobs) = subscribe(names.jobs.clone()).await? else { return Ok(()) };
    let Some(shards) = subscribe(names.shards()).await? else { return Ok(()) };
    let in_flight = InFlight::new(config.settings.bounds);
    let consumer = Lanes { jobs, shards, in_flight: in_flight.clone() };
    health.ready(in_flight.clone());
    tracing::info!(queue = %config.queue, "ready");
    let herald = Herald::new(broker, &config, &loaded.info, &health, &in_flight);
    let parts = Parts {
        settings: config.settings,
        consumer,
        publisher: broker.publisher(),
        buckets: Buckets::new(),
        replicas: loaded.engines.into_iter().map(|engine| Replica { engine, host: Host::Thread }).collect(),
        tokenizer: Arc::new(loaded.tokenizer),
        info: Arc::new(loaded.info),
        worker: config.worker,
        renew,
        in_flight,
        health: health.clone(),
        offload: Offload::Threads,
        clock: Clock::real(),
    };
    // Beside the line, in no task of its own: it lasts as long as the line.
    let ended = tokio::select! {
        biased;
        ended = pipeline::run(parts, stop) => ended,
        never = herald.report() => match never {},
    };
    health.stopped();
    herald.retire().await;
    Ok(ended?)
}
