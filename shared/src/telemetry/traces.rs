//! Traces: what happens to jobs as spans, exported by OTLP as the standard `OTEL_…` variables say.
//!
//! In: the trace context beside a message, and a call where a stage ends. Out: spans to a thread of their own
//! (`traces/export.rs`), which drops what it can't send. Off unless the variables name a receiver: then a job carries its
//! context and nothing else. With the files beneath, the only one that names opentelemetry. It never waits for a
//! receiver, and no span tells what is inside a job.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use metrics::counter;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use self::parent::Clock;
use self::rate::Rate;
use super::metric;
use crate::broker::BrokerUrl;
use crate::job::JobId;
use crate::reply::{Reply, Status as ReplyStatus};

pub use self::batch::{BatchRan, JobInBatch};
pub use self::context::TraceContext;
pub use self::export::TracesError;
pub use self::parent::Parent;

mod batch;
mod context;
mod export;
mod parent;
mod rate;

/// The process's exit waits no longer for what is still to be sent.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What spans are made with, once traces are on.
struct Live {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// The broker, by its name in the semantic conventions.
    system: String,
    rate: Rate,
}

static LIVE: OnceLock<Live> = OnceLock::new();

/// Begins to export this process's spans, if the environment names a receiver, under this service's name unless the
/// environment has another; `queue` is what it works on.
///
/// # Errors
/// When the variables ask for what can't be.
pub fn install(service: &'static str, queue: &BrokerUrl) -> Result<(), TracesError> {
    let Some(provider) = export::provider(service)? else { return Ok(()) };
    let tracer = provider.tracer("inferq");
    // A second call changes nothing: its provider ends here.
    let _ = LIVE.set(Live { provider, tracer, system: system(queue), rate: Rate::new() });
    Ok(())
}

/// Sends what is still to be sent, for a short while. Spans that end later are lost.
pub fn end() {
    if let Some(live) = LIVE.get() {
        // What could not be sent has been said by the exporter.
        let _ = live.provider.shutdown_with_timeout(END_LIMIT);
    }
}

/// Whether spans are exported.
pub fn is_on() -> bool {
    LIVE.get().is_some()
}

/// The broker's name as the semantic conventions have it, else the address's own word.
fn system(queue: &BrokerUrl) -> String {
    let address = queue.to_string();
    match address.split(':').next().unwrap_or_default() {
        "amqp" | "amqps" => "rabbitmq".to_owned(),
        "pubsub" => "gcp_pubsub".to_owned(),
        scheme => scheme.to_owned(),
    }
}

/// A job's way through this process: its context, and its open span if it has one. Dropped, the span ends.
#[derive(Debug, Default)]
pub struct Trace {
    came: TraceContext,
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    span: Span,
    here: Parent,
    /// When the last stage ended.
    since: Instant,
}

/// What a worker knows of a job when it has it.
#[derive(Debug, Clone, Copy)]
pub struct JobReceived<'a> {
    /// The job.
    pub id: &'a JobId,
    /// The queue that it came from.
    pub queue: &'a str,
    /// The submission that it belongs to.
    pub submission: Option<&'a str>,
    /// The broker's count of this attempt.
    pub attempt: u32,
    /// The worker's name.
    pub worker: &'a str,
    /// When it came.
    pub at: Instant,
    /// From publishing to receiving.
    pub queued: Duration,
}

impl Trace {
    /// Of a job that this process passes on without spans.
    pub fn passing(came: TraceContext) -> Self {
        Self { came, open: None }
    }

    /// A worker has a job.
    pub fn processing(came: TraceContext, job: &JobReceived<'_>) -> Self {
        let trace = Self::begin(came, job.at, |live| {
            let mut attributes = live.message("process", job.queue, job.id.as_str());
            attributes.push(KeyValue::new("inferq.attempt", i64::from(job.attempt)));
            attributes.push(text("inferq.worker", job.worker));
            attributes.extend(job.submission.map(|submission| text("inferq.submission", submission)));
            SpanBuilder::from_name(format!("process {}", job.queue))
                .with_kind(SpanKind::Consumer)
                .with_attributes(attributes)
        });
        if let Some(open) = &trace.open {
            // It waited before this process had it: beside the job's span, where there is something to hang it on.
            let above = open.here.beneath(&trace.came);
            let published = job.at.checked_sub(job.queued).unwrap_or(job.at);
            above.stage("queued", published, job.at, Vec::new());
        }
        trace
    }

    /// A producer publishes a job to this queue, in a trace of the job's own unless it is part of one.
    pub fn publishing(came: TraceContext, queue: &str, id: &str, submission: &Trace) -> Self {
        Self::begin(came, Instant::now(), |live| {
            SpanBuilder::from_name(format!("publish {queue}"))
                .with_kind(SpanKind::Producer)
                .with_attributes(live.message("publish", queue, id))
                .with_links(submission.open.iter().map(|open| open.here.link()).collect())
        })
    }

    /// A producer has a reply, from a trace that goes on with it.
    pub fn collecting(came: TraceContext, route: &str, id: &str) -> Self {
        if came.is_empty() {
            return Self::default();
        }
        Self::begin(came, Instant::now(), |live| {
            SpanBuilder::from_name("collect")
                .with_kind(SpanKind::Consumer)
                .with_attributes(live.message("receive", route, id))
        })
    }

    /// A producer begins a submission, or goes on with it.
    pub fn submitting(submission: &str) -> Self {
        Self::begin(TraceContext::default(), Instant::now(), |_| {
            SpanBuilder::from_name("submit").with_attributes([text("inferq.submission", submission)])
        })
    }

    fn begin(came: TraceContext, at: Instant, describe: impl FnOnce(&Live) -> SpanBuilder) -> Self {
        let Some(live) = LIVE.get() else { return Self::passing(came) };
        if !live.rate.take() {
            counter!(metric::TRACES_LEFT_OUT).increment(1);
            return Self::passing(came);
        }
        let clock = Clock::at(at);
        let builder = describe(live).with_start_time(clock.wall(at));
        let span = live.tracer.build_with_context(builder, &came.extracted(&Context::new()));
        if !span.is_recording() {
            live.rate.give_back();
            return Self::passing(TraceContext::of(span.span_context()));
        }
        let here = Parent::new(span.span_context().clone(), clock);
        Self { came, open: Some(Box::new(Open { span, here, since: at })) }
    }

    /// What the messages say that follow from this one: where they continue.
    pub fn context(&self) -> TraceContext {
        self.open.as_ref().map_or_else(|| self.came.clone(), |open| TraceContext::of(open.span.span_context()))
    }

    /// What other stages hang their spans on.
    pub fn parent(&self) -> Option<&Parent> {
        self.open.as_ref().map(|open| &open.here)
    }

    /// A stage has ended that began when the last one did.
    pub fn stage(&mut self, name: &'static str) {
        if let Some(open) = &mut self.open {
            let now = Instant::now();
            open.here.stage(name, open.since, now, Vec::new());
            open.since = now;
        }
    }

    /// The next stage begins now: others have told of the time before.
    pub fn skip(&mut self) {
        if let Some(open) = &mut self.open {
            open.since = Instant::now();
        }
    }

    /// Ends a submission with how many items it has, and jobs that were published now; or without being complete.
    pub fn submitted(mut self, items_and_jobs: Option<(u64, u64)>) {
        let Some((items, jobs)) = items_and_jobs else { return self.fail("failed", "incomplete") };
        self.note("inferq.items", items);
        self.note("inferq.jobs", jobs);
        self.end("submitted");
    }

    /// Ends with a reply.
    pub fn answered(mut self, reply: &Reply) {
        if self.open.is_none() {
            return;
        }
        self.note("inferq.items", reply.usage.items.into());
        self.note("inferq.tokens", reply.usage.tokens);
        match reply.status {
            ReplyStatus::Succeeded | ReplyStatus::Partial => self.end(reply.status.as_str()),
            status => {
                let code = reply.error.as_ref().map_or(status.as_str(), |error| &*error.code);
                self.fail(status.as_str(), code);
            }
        }
    }

    /// Ends well, so.
    pub fn end(mut self, outcome: &str) {
        if let Some(open) = &mut self.open {
            open.span.set_attribute(text("inferq.outcome", outcome));
            open.end();
        }
    }

    /// Ends without an answer: others will try.
    pub fn released(mut self, reason: &str) {
        if let Some(open) = &mut self.open {
            open.span.set_attribute(text("inferq.release.reason", reason));
        }
        self.end("released");
    }

    /// Ends badly, so; of the error only its first word is told.
    pub fn fail(mut self, outcome: &str, error: &str) {
        if let Some(open) = &mut self.open {
            let word = error.split([':', ' ']).next().unwrap_or_default().to_owned();
            open.span.set_attribute(text("inferq.outcome", outcome));
            open.span.set_attribute(text("error.type", &word));
            open.span.set_status(Status::error(word));
            open.end();
        }
    }

    fn note(&mut self, name: &'static str, number: u64) {
        if let Some(open) = &mut self.open {
            open.span.set_attribute(KeyValue::new(name, i64::try_from(number).unwrap_or(i64::MAX)));
        }
    }
}

impl Open {
    /// Now, by the clock of its stages.
    fn end(&mut self) {
        self.span.end_with_timestamp(self.here.wall(Instant::now()));
    }
}

impl Live {
    /// What the semantic conventions want to know of a message.
    fn message(&self, operation: &'static str, queue: &str, id: &str) -> Vec<KeyValue> {
        vec![
            text("messaging.system", &self.system),
            text("messaging.destination.name", queue),
            KeyValue::new("messaging.operation.type", if operation == "publish" { "send" } else { operation }),
            KeyValue::new("messaging.operation.name", operation),
            text("messaging.message.id", id),
            text("inferq.job.id", id),
        ]
    }
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}
