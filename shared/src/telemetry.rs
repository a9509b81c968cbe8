//! Logs, metrics and traces: installs them, and owns their names. The only file that sets process-wide state.
//!
//! In: a filter, and one call where a stage hands over. Out: log lines on stderr (for a person on a terminal, else JSON
//! in Cloud Logging's field names) and the text of `/metrics`. It never sees what is inside a job.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::broker::BrokerError;
use crate::bucket::BucketError;

mod cloud;
pub mod story;
pub mod traces;

/// The names of the metrics; docs/operations.md lists them.
pub mod metric {
    /// Jobs answered, by `outcome`: the reply's status.
    pub const JOBS: &str = "inferq_jobs_total";
    /// Items that ran, equal ones counted once a batch.
    pub const ITEMS: &str = "inferq_items_total";
    /// Tokens that ran, without padding.
    pub const TOKENS: &str = "inferq_tokens_total";
    /// Tokens that ran, padding included.
    pub const PADDED_TOKENS: &str = "inferq_padded_tokens_total";
    /// Batches.
    pub const BATCHES: &str = "inferq_batches_total";
    /// Tokens of an answered job.
    pub const JOB_TOKENS: &str = "inferq_job_tokens";
    /// Padded tokens of a batch over the most that it may have.
    pub const BATCH_FILL: &str = "inferq_batch_fill_ratio";
    /// Padded tokens of a batch over its real ones.
    pub const BATCH_PADDING: &str = "inferq_batch_padding_ratio";
    /// Items of a batch.
    pub const BATCH_ITEMS: &str = "inferq_batch_items";
    /// Seconds of a batch in the engine.
    pub const BATCH_SECONDS: &str = "inferq_batch_duration_seconds";
    /// Seconds of a job in each `stage`: queued, intake, batch, engine.
    pub const STAGE_SECONDS: &str = "inferq_stage_duration_seconds";
    /// Seconds from receive to settle.
    pub const JOB_SECONDS: &str = "inferq_job_duration_seconds";
    /// Leases settled, by `verdict` and `result`.
    pub const SETTLED: &str = "inferq_leases_settled_total";
    /// Jobs given back unanswered, by `reason`.
    pub const RELEASES: &str = "inferq_releases_total";
    /// Dead letters, by `reason`.
    pub const DEAD_LETTERS: &str = "inferq_dead_letters_total";
    /// Calls to the broker that failed, by `call`.
    pub const BROKER_FAILURES: &str = "inferq_broker_failures_total";
    /// Calls to buckets that failed, by `call`.
    pub const BUCKET_FAILURES: &str = "inferq_bucket_failures_total";
    /// Objects of results, by `result`: put, or there already.
    pub const OBJECTS: &str = "inferq_objects_total";
    /// What is in flight, by `unit`: jobs, bytes, tokens.
    pub const IN_FLIGHT: &str = "inferq_in_flight";
    /// Tokens a second while the worker is busy, over its last batches.
    pub const TOKENS_PER_SECOND: &str = "inferq_tokens_per_second";
    /// 1 for the state that the worker is in, by `state`.
    pub const STATE: &str = "inferq_state";
    /// Changes of the model's revision while the worker ran, by `result`: switched, refused.
    pub const MODEL_SWAPS: &str = "inferq_model_swaps_total";
    /// Devices that were lost in use.
    pub const DEVICE_FAILURES: &str = "inferq_device_failures_total";
    /// Seconds that each start-up phase took, by `phase`.
    pub const STARTUP_SECONDS: &str = "inferq_startup_seconds";
    /// Jobs without spans because more came than are traced.
    pub const TRACES_LEFT_OUT: &str = "inferq_traces_left_out_total";
}

/// What was installed.
#[derive(Debug, Clone)]
pub struct Telemetry {
    metrics: PrometheusHandle,
}

/// Why nothing was installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be read.
    #[error("--log {filter:?} is no filter ({reason}); try info, or inferq_worker=debug")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has telemetry already.
    #[error("telemetry is installed already")]
    Twice,
}

/// Installs logs and metrics for this process.
///
/// # Errors
/// When the filter can't be read, or telemetry is installed already.
pub fn install(filter: &str) -> Result<Telemetry, TelemetryError> {
    let unreadable = |reason: String| TelemetryError::Filter { filter: filter.to_owned(), reason };
    let levels = EnvFilter::builder().parse(filter).map_err(|error| unreadable(error.to_string()))?;
    let registry = tracing_subscriber::registry().with(levels);
    let installed = if std::io::stderr().is_terminal() {
        registry.with(tracing_subscriber::fmt::layer().with_target(false).with_writer(std::io::stderr)).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().fmt_fields(cloud::JsonFields::new()).with_writer(std::io::stderr);
        registry.with(layer.event_format(cloud::CloudFormat)).try_init()
    };
    installed.map_err(|_| TelemetryError::Twice)?;
    let metrics = recorder()?;
    describe();
    Ok(Telemetry { metrics })
}

/// Seconds from a millisecond to about two minutes, each bound a bit more than double the last.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];
const TOKENS: [f64; 9] = [4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0];
const FILL: [f64; 6] = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0];
const PADDING: [f64; 6] = [1.0, 1.02, 1.05, 1.1, 1.25, 1.5];
const ITEMS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

fn recorder() -> Result<PrometheusHandle, TelemetryError> {
    let buckets = |builder: PrometheusBuilder, name: &str, bounds: &[f64]| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds).expect("the bounds are not empty")
    };
    let builder = buckets(PrometheusBuilder::new(), metric::JOB_SECONDS, &SECONDS);
    let builder = buckets(builder, metric::BATCH_SECONDS, &SECONDS);
    let builder = buckets(builder, metric::STAGE_SECONDS, &SECONDS);
    let builder = buckets(builder, metric::BATCH_ITEMS, &ITEMS);
    let builder = buckets(builder, metric::JOB_TOKENS, &TOKENS);
    let builder = buckets(builder, metric::BATCH_FILL, &FILL);
    let builder = buckets(builder, metric::BATCH_PADDING, &PADDING);
    builder.install_recorder().map_err(|_| TelemetryError::Twice)
}

fn describe() {
    describe_counter!(metric::JOBS, "Jobs answered, by outcome");
    describe_counter!(metric::ITEMS, "Items that ran, equal ones counted once a batch");
    describe_counter!(metric::TOKENS, "Tokens that ran, without padding");
    describe_counter!(metric::PADDED_TOKENS, "Tokens that ran, padding included");
    describe_counter!(metric::BATCHES, "Batches that ran");
    describe_histogram!(metric::JOB_TOKENS, "Tokens of an answered job");
    describe_histogram!(metric::BATCH_FILL, "Padded tokens of a batch over the most that it may have");
    describe_histogram!(metric::BATCH_PADDING, "Padded tokens of a batch over its real ones");
    describe_histogram!(metric::BATCH_ITEMS, "Items of a batch");
    describe_histogram!(metric::BATCH_SECONDS, "Seconds of a batch in the engine");
    describe_histogram!(metric::STAGE_SECONDS, "Seconds of a job in each stage");
    describe_histogram!(metric::JOB_SECONDS, "Seconds from receive to settle");
    describe_counter!(metric::SETTLED, "Leases settled, by verdict and result");
    describe_counter!(metric::RELEASES, "Jobs given back unanswered, by reason");
    describe_counter!(metric::DEAD_LETTERS, "Dead letters, by reason");
    describe_counter!(metric::BROKER_FAILURES, "Calls to the broker that failed, by call");
    describe_counter!(metric::BUCKET_FAILURES, "Calls to buckets that failed, by call");
    describe_counter!(metric::OBJECTS, "Objects of results, by result: put, or there already");
    describe_counter!(metric::MODEL_SWAPS, "Changes of the model's revision while the worker ran, by result");
    describe_counter!(metric::DEVICE_FAILURES, "Devices that were lost in use");
    describe_counter!(metric::TRACES_LEFT_OUT, "Jobs without spans because more came than are traced");
    describe_gauge!(metric::IN_FLIGHT, "What is between receive and settle, by unit");
    describe_gauge!(
        metric::TOKENS_PER_SECOND,
        "Tokens a second while the worker is busy, over about its last ten batches"
    );
    describe_gauge!(metric::STATE, "1 for the state that the worker is in");
    describe_gauge!(metric::STARTUP_SECONDS, "Seconds that each start-up phase took");
}

impl Telemetry {
    /// The metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        self.upkeep();
        self.metrics.render()
    }

    /// Folds what was measured since the last call into its histograms; until then samples are kept singly.
    pub fn upkeep(&self) {
        self.metrics.run_upkeep();
    }
}

/// A call to the broker failed and will be tried again.
pub fn broker_failed(call: &'static str, error: &BrokerError) {
    counter!(metric::BROKER_FAILURES, "call" => call).increment(1);
    tracing::warn!(call, %error, "the broker failed; trying again");
}

/// A call to a bucket failed and will be tried again.
pub fn bucket_failed(call: &'static str, error: &BucketError) {
    counter!(metric::BUCKET_FAILURES, "call" => call).increment(1);
    tracing::warn!(call, %error, "the bucket failed; trying again");
}

/// A batch of so many items goes to a replica; it might have had `tokens_max` padded tokens.
pub fn batch_closed(items: usize, real_tokens: usize, padded_tokens: usize, tokens_max: usize) {
    counter!(metric::BATCHES).increment(1);
    counter!(metric::ITEMS).increment(items as u64);
    counter!(metric::PADDED_TOKENS).increment(padded_tokens as u64);
    histogram!(metric::BATCH_ITEMS).record(items as f64);
    histogram!(metric::BATCH_FILL).record(padded_tokens as f64 / tokens_max.max(1) as f64);
    histogram!(metric::BATCH_PADDING).record(padded_tokens as f64 / real_tokens.max(1) as f64);
    tracing::debug!(batch.items = items, real_tokens, padded_tokens, "batch closed");
}

/// A batch has run.
pub fn batch_ran(real_tokens: usize, took: Duration) {
    counter!(metric::TOKENS).increment(real_tokens as u64);
    histogram!(metric::BATCH_SECONDS).record(took.as_secs_f64());
}

/// What is in flight now.
pub fn in_flight(jobs: usize, bytes: usize, tokens: usize) {
    gauge!(metric::IN_FLIGHT, "unit" => "jobs").set(jobs as f64);
    gauge!(metric::IN_FLIGHT, "unit" => "bytes").set(bytes as f64);
    gauge!(metric::IN_FLIGHT, "unit" => "tokens").set(tokens as f64);
}

/// The worker enters or leaves a state.
pub fn state(name: &'static str, entered: bool) {
    gauge!(metric::STATE, "state" => name).set(if entered { 1.0 } else { 0.0 });
}

/// Another revision of the model came, and was taken or refused.
pub fn model_swap(result: &'static str) {
    counter!(metric::MODEL_SWAPS, "result" => result).increment(1);
}

/// Counts a device that was lost in use.
pub fn device_failed() {
    counter!(metric::DEVICE_FAILURES).increment(1);
}

/// So many tokens a second while the worker is busy.
pub fn speed(tokens: f64) {
    gauge!(metric::TOKENS_PER_SECOND).set(tokens);
}

/// A start-up phase took so long.
pub fn startup(phase: &'static str, took: Duration) {
    gauge!(metric::STARTUP_SECONDS, "phase" => phase).set(took.as_secs_f64());
}
