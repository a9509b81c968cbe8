//! A receiver of traces in this process: OTLP over HTTP or gRPC, on some free port.
//!
//! In: what exporters send. Out: the spans as plain values, and a drawing of one trace. It takes everything and keeps it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, status::StatusCode};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How spans travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A POST a batch.
    Http,
    /// A call a batch.
    Grpc,
}

/// A running receiver.
pub struct Receiver {
    address: SocketAddr,
    transport: Transport,
    kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    spans: Vec<Seen>,
    headers: HeaderMap,
}

/// A span as it was received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who sent it.
    pub service: String,
    /// What it is.
    pub name: String,
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// That of the span above; empty at the top.
    pub parent: String,
    /// What tracing systems keep beside the context.
    pub state: String,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
    /// What it says.
    pub attributes: BTreeMap<String, Value>,
    /// From when to when, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Whether it says that it failed.
    pub is_error: bool,
}

impl Receiver {
    /// Starts one on some free port.
    pub async fn start(transport: Transport) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let kept = Arc::new(Mutex::default());
        let task = tokio::spawn(accept(listener, transport, Arc::clone(&kept)));
        Self { address, transport, kept, task }
    }

    /// The variables that make a process send its spans here.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        let protocol = match self.transport {
            Transport::Http => "http/protobuf",
            Transport::Grpc => "grpc",
        };
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.address)),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ]
    }

    /// Every span that has come.
    pub fn spans(&self) -> Vec<Seen> {
        self.kept.lock().expect("no panic holds it").spans.clone()
    }

    /// What the last request said beside its spans.
    pub fn header(&self, name: &str) -> Option<String> {
        let kept = self.kept.lock().expect("no panic holds it");
        kept.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, transport: Transport, kept: Arc<Mutex<Kept>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => { connections.spawn(serve(stream, transport, Arc::clone(&kept))); }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until its client closes it.
async fn serve(stream: TcpStream, transport: Transport, kept: Arc<Mutex<Kept>>) {
    let service = service_fn(move |request| take(request, transport, Arc::clone(&kept)));
    let _ = match transport {
        Transport::Http => {
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        }
        Transport::Grpc => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(TokioIo::new(stream), service).await
        }
    };
}

/// A gRPC message's flag and length stand before it.
const GRPC_PREFIX: usize = 5;

async fn take(
    request: Request<Incoming>,
    transport: Transport,
    kept: Arc<Mutex<Kept>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (body, answer) = match transport {
        Transport::Http => (body, Response::new(Empty::new().boxed())),
        Transport::Grpc => (body.slice(GRPC_PREFIX..), grpc_answer()),
    };
    let request = ExportTraceServiceRequest::decode(body).expect("an exporter sends what it should");
    let mut kept = kept.lock().expect("no panic holds it");
    kept.spans.extend(request.resource_spans.into_iter().flat_map(seen));
    kept.headers = head.headers;
    Ok(answer)
}

/// An empty message, and that all went well.
fn grpc_answer() -> Response<BoxBody<Bytes, Infallible>> {
    let ok = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    let frames = [Frame::data(Bytes::from_static(&[0; GRPC_PREFIX])), Frame::trailers(ok)];
    let body = StreamBody::new(stream::iter(frames.map(Ok)));
    let mut answer = Response::new(BodyExt::boxed(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

fn seen(of_one: ResourceSpans) -> impl Iterator<Item = Seen> {
    let resource = of_one.resource.map(|resource| plain(resource.attributes)).unwrap_or_default();
    let service = resource.get("service.name").and_then(Value::as_str).unwrap_or_default().to_owned();
    of_one.scope_spans.into_iter().flat_map(|scope| scope.spans).map(move |span| Seen::of(span, service.clone()))
}

impl Seen {
    fn of(span: Span, service: String) -> Self {
        Self {
            service,
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state,
            links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            attributes: plain(span.attributes),
            time: (span.start_time_unix_nano, span.end_time_unix_nano),
            is_error: span.status.is_some_and(|status| status.code == i32::from(StatusCode::Error)),
        }
    }
}

fn plain(attributes: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |any| match any {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::BoolValue(bool)) => json!(bool),
        other => json!(format!("{other:?}")),
    };
    attributes.into_iter().map(|one| (one.key, value(one.value.and_then(|any| any.value)))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Columns of a drawing's time axis.
const COLUMNS: u64 = 40;

/// One trace as text: a line a span, each below the one that it is a child of, with its time to scale.
pub fn draw(spans: &[Seen], trace: &str) -> String {
    let mut spans: Vec<&Seen> = spans.iter().filter(|span| span.trace == trace).collect();
    spans.sort_by_key(|span| (span.time.0, std::cmp::Reverse(span.time.1)));
    let first = spans.iter().map(|span| span.time.0).min().unwrap_or_default();
    let last = spans.iter().map(|span| span.time.1).max().unwrap_or_default();
    let mut text = String::new();
    for top in spans.iter().filter(|span| !spans.iter().any(|other| other.id == span.parent)) {
        below(&mut text, &spans, top, 0, (first, (last - first).max(1)));
    }
    text
}

fn below(text: &mut String, spans: &[&Seen], span: &Seen, depth: usize, (first, whole): (u64, u64)) {
    let column = |at: u64| (at - first) * COLUMNS / whole;
    let (from, to) = (column(span.time.0), column(span.time.1));
    let bar = " ".repeat(from as usize) + &"━".repeat((to - from).max(1) as usize);
    let name = " ".repeat(depth * 2) + &span.name;
    let took_ms = (span.time.1 - span.time.0) as f64 / 1e6;
    writeln!(text, "{:14} {name:24} {took_ms:8.2} ms  {bar}", span.service).expect("a string takes all");
    for child in spans.iter().filter(|child| child.parent == span.id) {
        below(text, spans, child, depth + 1, (first, whole));
    }
}
