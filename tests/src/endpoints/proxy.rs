//! An HTTP proxy between a client of buckets and moto: it can speak Google's dialect to the client, and it can fail.
//!
//! In: requests, and a plan of faults. Out: moto's answers with other headers, whole, broken or late, as the plan says.
//! Bodies are held in memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Whose headers the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// S3's, as moto does.
    Amazon,
    /// Those of Google's XML interface.
    Google,
}

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status is answered, and moto is not asked.
    Answer(u16),
    /// Half of the body, then the connection is reset.
    Reset,
    /// Half of the body, then the connection is closed. The head had promised the whole.
    Truncate,
    /// A byte at a time.
    Drip,
    /// moto does it, and its answer is lost.
    LoseAnswer,
}

/// Between two bytes of a drip.
const DRIP: Duration = Duration::from_millis(100);
/// What was sent before a break has gone out after so long.
const FLUSH: Duration = Duration::from_millis(50);

const SIGNATURE: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    dialect: Dialect,
    plan: Mutex<Plan>,
    requests: AtomicUsize,
}

#[derive(Default)]
struct Plan {
    next: VecDeque<(Method, Fault)>,
    always: Option<(Method, Fault)>,
}

impl Plan {
    fn take(&mut self, method: &Method) -> Option<Fault> {
        if self.next.front().is_some_and(|(of, _)| of == method) {
            return self.next.pop_front().map(|(_, fault)| fault);
        }
        self.always.as_ref().filter(|(of, _)| of == method).map(|(_, fault)| *fault)
    }
}

type Body = BoxBody<Bytes, io::Error>;

impl Proxy {
    /// Starts one on some free port.
    pub(super) async fn start(upstream: SocketAddr, dialect: Dialect) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { upstream, dialect, plan: Mutex::default(), requests: AtomicUsize::new(0) });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests of this method fail so, one after the other.
    pub fn fail_next(&self, method: Method, faults: &[Fault]) {
        let mut plan = self.shared.plan.lock().expect("no panic holds it");
        plan.next.extend(faults.iter().map(|fault| (method.clone(), *fault)));
    }

    /// Every request of this method fails so, until [`heal`](Self::heal).
    pub fn fail_always(&self, method: Method, fault: Fault) {
        self.shared.plan.lock().expect("no panic holds it").always = Some((method, fault));
    }

    /// No more faults.
    pub fn heal(&self) {
        *self.shared.plan.lock().expect("no panic holds it") = Plan::default();
    }

    /// How many requests have come.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until it is closed or reset.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let reset = Arc::new(AtomicUsize::new(0));
    let service = service_fn(|request| answer(request, &shared, &reset));
    let mut connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or a fault of ours.
    let _ = (&mut connection).await;
    let stream = connection.into_parts().io.into_inner();
    if reset.load(Ordering::Relaxed) > 0 {
        // Closing it then sends a reset instead of an orderly end.
        let _ = stream.set_zero_linger();
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared, reset: &AtomicUsize) -> Result<Response<Body>, io::Error> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let fault = shared.plan.lock().expect("no panic holds it").take(request.method());
    if let Some(Fault::Answer(status)) = fault {
        // Read first: closing with bytes unread would reset the connection.
        request.into_body().collect().await.map_err(io::Error::other)?;
        let status = StatusCode::from_u16(status).expect("a status");
        return Ok(Response::builder().status(status).body(full(Bytes::new())).expect("a response"));
    }
    let (mut head, body) = forward(request, shared).await?;
    if shared.dialect == Dialect::Google {
        renamed(&mut head.headers, "x-amz-meta-", "x-goog-meta-");
        head.headers.insert("x-goog-generation", HeaderValue::from_static("1"));
    }
    let body = match fault {
        None | Some(Fault::Answer(_)) => full(body),
        Some(Fault::LoseAnswer) => return Err(io::Error::other("lost")),
        Some(Fault::Drip) => drip(body),
        Some(Fault::Truncate) => half(body),
        Some(Fault::Reset) => {
            reset.store(1, Ordering::Relaxed);
            half(body)
        }
    };
    Ok(Response::from_parts(head, body))
}

/// Asks moto.
async fn forward(request: Request<Incoming>, shared: &Shared) -> io::Result<(hyper::http::response::Parts, Bytes)> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if shared.dialect == Dialect::Google {
        renamed(&mut head.headers, "x-goog-meta-", "x-amz-meta-");
        // moto looks whether there is a signature, not whether it is good.
        head.headers.insert(AUTHORIZATION, HeaderValue::from_static(SIGNATURE));
        if head.headers.remove("x-goog-if-generation-match").is_some() {
            head.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
    }
    let stream = TcpStream::connect(shared.upstream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let asked = async move {
        let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
        let (head, body) = answer.into_parts();
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    let (answer, _) = tokio::join!(asked, connection);
    let (mut head, body) = answer.map_err(io::Error::other)?;
    // What was chunked is whole now.
    if head.headers.remove("transfer-encoding").is_some() {
        head.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    Ok((head, body))
}

fn renamed(headers: &mut HeaderMap, from: &str, to: &str) {
    let named: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(from)).cloned().collect();
    for name in named {
        let value = headers.remove(&name).expect("it was there");
        let name = name.as_str().replacen(from, to, 1);
        headers.insert(HeaderName::try_from(name).expect("a header's name"), value);
    }
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed()
}

/// The first half, which goes out, and then an error, on which the connection ends.
fn half(body: Bytes) -> Body {
    let first = stream::iter([Ok(Frame::data(body.slice(..body.len() / 2)))]);
    let end = stream::once(async {
        tokio::time::sleep(FLUSH).await;
        Err(io::Error::other("broken off"))
    });
    BodyExt::boxed(StreamBody::new(first.chain(end)))
}

fn drip(body: Bytes) -> Body {
    let bytes = stream::unfold(body, |mut body| async move {
        if body.is_empty() {
            return None;
        }
        tokio::time::sleep(DRIP).await;
        Some((Ok(Frame::data(body.split_to(1))), body))
    });
    BodyExt::boxed(StreamBody::new(bytes))
}
