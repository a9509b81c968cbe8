//! Spans on their way out: batched and sent by a thread of their own, as the standard variables say.
//!
//! In: the environment, and spans that have ended. Out: OTLP over HTTP or gRPC. Its queue is bounded and drops what comes
//! beyond; a receiver that is down costs spans, and one line when it goes and one when it is back. Headers hold secrets: they
//! are never printed.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter as Otlp};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::{Builder, Runtime};

use crate::broker::without_password;

/// Why no traces are exported although the environment asks for them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TracesError {
    /// Another exporter is asked for.
    #[error("OTEL_TRACES_EXPORTER is {0:?}: this build knows otlp and none")]
    UnknownExporter(String),
    /// The OTLP exporter can't be made as the variables say.
    #[error("failed to export traces to {endpoint}: {reason}")]
    Exporter {
        /// The receiver.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

/// Spans that wait to be sent, unless OTEL_BSP_MAX_QUEUE_SIZE says another number: all of a burst of jobs.
const QUEUE_SPANS: usize = 8192;

/// Where the environment wants spans sent, if it does.
///
/// # Errors
/// When it wants them sent in another way.
fn receiver(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, TracesError> {
    let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let Some(endpoint) = endpoint else { return Ok(None) };
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None | Some("otlp") => Ok(Some(endpoint)),
        Some("none") => Ok(None),
        Some(other) => Err(TracesError::UnknownExporter(other.to_owned())),
    }
}

/// What makes spans, if the environment wants some.
pub(super) fn provider(service: &'static str) -> Result<Option<SdkTracerProvider>, TracesError> {
    let Some(endpoint) = receiver(|name| env::var(name).ok())? else { return Ok(None) };
    let endpoint = without_passwords(&endpoint);
    let export = Export::new(&endpoint)?;
    tracing::info!(endpoint, "traces are exported");
    let mut config = BatchConfigBuilder::default();
    if env::var_os("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
        config = config.with_max_queue_size(QUEUE_SPANS);
    }
    let processor = BatchSpanProcessor::builder(export).with_batch_config(config.build()).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource(service));
    Ok(Some(provider.build()))
}

/// What sends spans. The processor has a thread but no runtime, and both transports need one.
#[derive(Debug)]
struct Export {
    exporter: Otlp,
    runtime: Runtime,
    endpoint: String,
    down: AtomicBool,
}

impl Export {
    fn new(endpoint: &str) -> Result<Self, TracesError> {
        let failed = |reason: String| TracesError::Exporter { endpoint: endpoint.to_owned(), reason };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed(error.to_string()))?;
        match build(&runtime) {
            Ok(exporter) => Ok(Self { exporter, runtime, endpoint: endpoint.to_owned(), down: AtomicBool::new(false) }),
            Err(error) => {
                // A runtime must not be waited for within another.
                runtime.shutdown_background();
                Err(failed(without_passwords(&error.to_string())))
            }
        }
    }

    fn tell(&self, sent: &OTelSdkResult) {
        let endpoint = &self.endpoint;
        match (sent, self.down.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                let error = without_passwords(&error.to_string());
                tracing::warn!(endpoint, error, "traces can't be sent; spans are dropped meanwhile");
            }
            (Ok(()), true) => tracing::info!(endpoint, "traces are sent again"),
            _ => {}
        }
    }
}

fn build(runtime: &Runtime) -> Result<Otlp, ExporterBuildError> {
    let _entered = runtime.enter();
    Otlp::builder().build()
}

impl SpanExporter for Export {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        // The thread is the processor's own, and waits for this alone.
        let sent = self.runtime.block_on(self.exporter.export(spans));
        self.tell(&sent);
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Who sends the spans: what the environment says, else the service's own name.
fn resource(service: &'static str) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    let is_named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|list| list.split(',').any(names_the_service));
    if is_named { resource.build() } else { resource.with_service_name(service).build() }
}

fn names_the_service(attribute: &str) -> bool {
    attribute.split('=').next().is_some_and(|name| name.trim() == "service.name")
}

fn without_passwords(text: &str) -> String {
    text.split(' ').map(without_password).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(variables: &[(&str, &str)]) -> Result<Option<String>, TracesError> {
        receiver(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn traces_are_on_only_where_the_standard_variables_say_so() {
        let to = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318");
        assert_eq!(asked(&[]), Ok(None));
        assert_eq!(asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert_eq!(asked(&[to]), Ok(Some("http://a:4318".to_owned())));
        let only_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b/v1/traces");
        assert_eq!(asked(&[to, only_traces]), Ok(Some("http://b/v1/traces".to_owned())));
        assert_eq!(asked(&[to, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(asked(&[to, ("OTEL_SDK_DISABLED", "1")]), Ok(Some("http://a:4318".to_owned())));
        assert_eq!(asked(&[to, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(asked(&[to, ("OTEL_TRACES_EXPORTER", "otlp")]), Ok(Some("http://a:4318".to_owned())));
        let other = Err(TracesError::UnknownExporter("zipkin".to_owned()));
        assert_eq!(asked(&[to, ("OTEL_TRACES_EXPORTER", "zipkin")]), other);
    }

    #[test]
    fn the_service_s_name_in_the_environment_counts() {
        assert!(names_the_service(" service.name=a"));
        assert!(!names_the_service("service.namespace=a"));
    }

    #[test]
    fn no_line_says_a_password() {
        let error = "invalid endpoint 'http://me:secret@host:4317': bad";
        assert_eq!(without_passwords(error), "invalid endpoint 'http://me:***@host:4317': bad");
    }
}
