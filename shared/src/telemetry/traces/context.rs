//! W3C trace context, as it travels beside a message.
//!
//! In: attributes, or a span of ours. Out: the same the other way. What can't be read travels on as it stands, as long as
//! no span of ours takes its place.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::broker::Attributes;
use crate::job::attribute;

/// Which trace a message belongs to, and which span it follows; of most messages, none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Box<Named>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Named {
    traceparent: String,
    tracestate: Option<String>,
}

impl TraceContext {
    /// Takes it from a message's attributes.
    pub fn take(attributes: &mut Attributes) -> Self {
        let tracestate = attributes.remove(attribute::TRACESTATE);
        let traceparent = attributes.remove(attribute::TRACEPARENT);
        Self(traceparent.map(|traceparent| Box::new(Named { traceparent, tracestate })))
    }

    /// Puts it beside a message.
    pub fn put(self, attributes: &mut Attributes) {
        let Some(named) = self.0 else { return };
        attributes.insert(attribute::TRACEPARENT.to_owned(), named.traceparent);
        attributes.extend(named.tracestate.map(|state| (attribute::TRACESTATE.to_owned(), state)));
    }

    /// Whether the message belongs to no trace.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// That of what follows from a span.
    pub(super) fn of(span: &SpanContext) -> Self {
        let mut named = Named::default();
        let holder = Context::new().with_remote_span_context(span.clone());
        TraceContextPropagator::new().inject_context(&holder, &mut named);
        Self(Some(Box::new(named)).filter(|named| !named.traceparent.is_empty()))
    }

    /// As what a span's parent is told by; `without` where it can't be read.
    pub(super) fn extracted(&self, without: &Context) -> Context {
        match &self.0 {
            Some(named) => TraceContextPropagator::new().extract_with_context(without, &**named),
            None => without.clone(),
        }
    }
}

impl Extractor for Named {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            attribute::TRACEPARENT => Some(&self.traceparent),
            attribute::TRACESTATE => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![attribute::TRACEPARENT, attribute::TRACESTATE]
    }
}

impl Injector for Named {
    fn set(&mut self, key: &str, value: String) {
        match key {
            attribute::TRACEPARENT => self.traceparent = value,
            attribute::TRACESTATE => self.tracestate = Some(value).filter(|value| !value.is_empty()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(named: &[(&str, &str)]) -> Attributes {
        named.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_no_span_replaces_travels_on_as_it_came() {
        let came = attributes(&[("traceparent", "no context"), ("tracestate", "a=1"), ("x", "y")]);
        let mut taken = came.clone();
        let context = TraceContext::take(&mut taken);
        assert_eq!(taken, attributes(&[("x", "y")]));
        context.put(&mut taken);
        assert_eq!(taken, came);
    }

    #[test]
    fn a_context_is_read_and_written_the_same_and_what_is_none_is_no_parent() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let named = attributes(&[("traceparent", parent), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61")]);
        let context = TraceContext::take(&mut named.clone());
        let read = context.extracted(&Context::new());
        assert_eq!(TraceContext::of(read.span().span_context()), context);
        for bad in ["", "00-ab-xy-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let context = TraceContext::take(&mut attributes(&[("traceparent", bad)]));
            assert!(!context.extracted(&Context::new()).span().span_context().is_valid(), "{bad}");
        }
    }
}
