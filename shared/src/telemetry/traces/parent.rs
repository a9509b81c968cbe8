//! Where the spans of a job's stages hang: below an open span, at times that agree with it.
//!
//! In: names and instants. Out: spans that are over. A job's stages are told when they have ended, so each is made and
//! ended at once.

use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};

use super::context::TraceContext;
use super::{LIVE, text};

/// One instant by both clocks: the wall clock may be set meanwhile, and stages must still fit into their job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    /// As both clocks have it, of an instant that is past.
    pub(super) fn at(instant: Instant) -> Self {
        Self { instant, wall: SystemTime::now() - instant.elapsed() }
    }

    /// The wall clock's time at an instant.
    pub(super) fn wall(self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.wall + after,
            None => self.wall.checked_sub(self.instant.duration_since(at)).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

/// A span that others are children of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parent {
    context: SpanContext,
    clock: Clock,
}

impl Parent {
    pub(super) fn new(context: SpanContext, clock: Clock) -> Self {
        Self { context, clock }
    }

    /// With the same clock: what the message followed, or this span itself where that can't be told.
    pub(super) fn beneath(&self, came: &TraceContext) -> Self {
        let context = came.extracted(&self.context()).span().span_context().clone();
        Self { context, clock: self.clock }
    }

    /// For spans that point here from elsewhere.
    pub(super) fn link(&self) -> Link {
        Link::with_context(self.context.clone())
    }

    /// A stage of the job is over.
    pub(super) fn stage(&self, name: &'static str, from: Instant, to: Instant, attributes: Vec<KeyValue>) {
        self.span(SpanBuilder::from_name(name).with_attributes(attributes), from, to, None);
    }

    /// A span that is over, told so; with an error it failed.
    pub(super) fn span(&self, builder: SpanBuilder, from: Instant, to: Instant, error: Option<&str>) -> Option<Self> {
        let builder = builder.with_start_time(self.wall(from));
        let mut span = LIVE.get()?.tracer.build_with_context(builder, &self.context());
        if let Some(error) = error {
            span.set_attribute(text("error.type", error));
            span.set_status(Status::error(error.to_owned()));
        }
        span.end_with_timestamp(self.wall(to));
        Some(Self { context: span.span_context().clone(), clock: self.clock })
    }

    fn context(&self) -> Context {
        Context::new().with_remote_span_context(self.context.clone())
    }

    /// The time at an instant, as its stages have it.
    pub(super) fn wall(&self, at: Instant) -> SystemTime {
        self.clock.wall(at)
    }
}
