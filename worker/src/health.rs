//! The states of a worker, and the endpoint that shows them.
//!
//! In: what the stages report. Out: `/healthz` and `/readyz` (200 only when ready), `/livez` (200 unless something is
//! stuck or lost), `/metrics`, `/status`. Bound before anything slow, so that a probe always has an answer. Bounded in
//! connections, header bytes and time. It never decides anything for the line.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use inferq_shared::telemetry::{self, Telemetry};
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::engine::ModelInfo;
use crate::in_flight::InFlight;
use crate::pulse::Watchdog;

pub mod probe;

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The process runs.
    Starting,
    /// The model is being read.
    Loading,
    /// The model's files are not there yet.
    Waiting,
    /// The model is being warmed up and checked.
    Warming,
    /// Jobs are taken.
    Ready,
    /// Jobs would be taken, but none of them fits this worker.
    Unfit,
    /// No new jobs are taken; what is begun is finished.
    Draining,
    /// Nothing is left to do.
    Stopped,
    /// The device is lost.
    Failed,
}

impl State {
    /// Every state.
    const ALL: [Self; 9] = [
        Self::Starting,
        Self::Loading,
        Self::Waiting,
        Self::Warming,
        Self::Ready,
        Self::Unfit,
        Self::Draining,
        Self::Stopped,
        Self::Failed,
    ];

    /// The state's name in `/status`, `/healthz` and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Waiting => "waiting",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Unfit => "unfit",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// What is shown to the outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    shown: Arc<watch::Sender<Shown>>,
    telemetry: Option<Telemetry>,
}

#[derive(Debug, Clone)]
struct Shown {
    state: State,
    since: Instant,
    phases: Vec<(State, Duration)>,
    model: Option<ModelInfo>,
    in_flight: Option<InFlight>,
    watchdog: Option<Watchdog>,
    phase_limit: Option<Duration>,
    reason: Option<String>,
    blocked: Option<watch::Receiver<Option<String>>>,
}

impl Shown {
    /// The stage, engine or phase that is stuck.
    fn stuck(&self) -> Option<String> {
        let is_bounded = matches!(self.state, State::Loading | State::Warming);
        let phase = self.phase_limit.is_some_and(|limit| is_bounded && self.since.elapsed() >= limit);
        let phase = || phase.then(|| self.state.as_str().to_owned());
        self.watchdog.as_ref().and_then(Watchdog::stuck).or_else(phase)
    }
}

impl Health {
    /// A worker that is starting.
    pub fn new(telemetry: Telemetry) -> Self {
        // A state that was never entered is 0, not absent: so a rule can tell that nobody is ready.
        for state in State::ALL {
            telemetry::state(state.as_str(), state == State::Starting);
        }
        Self { telemetry: Some(telemetry), ..Self::unobserved() }
    }

    /// A state without metrics, for a worker inside another process or a test.
    pub fn unobserved() -> Self {
        let (shown, _) = watch::channel(Shown {
            state: State::Starting,
            since: Instant::now(),
            phases: Vec::new(),
            model: None,
            in_flight: None,
            watchdog: None,
            phase_limit: None,
            reason: None,
            blocked: None,
        });
        Self { shown: Arc::new(shown), telemetry: None }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.shown.borrow().state
    }

    /// Waits until the worker is in this state.
    pub async fn until(&self, state: State) {
        // The sender is in self.
        let _ = self.shown.subscribe().wait_for(|shown| shown.state == state).await;
    }

    /// Enters a state. `Failed` and `Stopped` are final, and nothing comes after `Draining` but them.
    pub fn enter(&self, state: State) {
        self.shown.send_if_modified(|shown| {
            let ends = matches!(state, State::Stopped | State::Failed);
            let barred = match shown.state {
                State::Failed | State::Stopped => true,
                State::Draining => !ends,
                now => now == state,
            };
            if barred {
                return false;
            }
            let took = shown.since.elapsed();
            telemetry::state(shown.state.as_str(), false);
            telemetry::state(state.as_str(), true);
            if matches!(shown.state, State::Starting | State::Loading | State::Waiting | State::Warming) {
                telemetry::startup(shown.state.as_str(), took);
                shown.phases.push((shown.state, took));
            }
            if shown.state == State::Waiting {
                shown.reason = None;
            }
            tracing::info!(
                state = state.as_str(),
                before = shown.state.as_str(),
                duration_ms = took.as_millis() as u64,
                "state"
            );
            shown.state = state;
            shown.since = Instant::now();
            true
        });
    }

    /// The model's files are not there yet.
    pub fn waiting(&self, reason: &str) {
        tracing::warn!(reason, "waiting for the model's files");
        self.enter(State::Waiting);
        self.shown.send_modify(|shown| shown.reason = Some(reason.to_owned()));
    }

    /// The model is loaded.
    pub fn model(&self, info: &ModelInfo) {
        self.shown.send_modify(|shown| {
            let is_other = shown.model.replace(info.clone()).is_some_and(|before| before != *info);
            if is_other {
                shown.reason = None;
            }
        });
    }

    /// Another revision of the model was refused, and this one goes on; or nobody asks for it any more.
    pub fn refused(&self, reason: Option<String>) {
        self.shown.send_modify(|shown| shown.reason = reason);
    }

    /// Jobs are taken, and counted in this account.
    pub fn ready(&self, in_flight: InFlight) {
        self.shown.send_modify(|shown| shown.in_flight = Some(in_flight));
        self.enter(State::Ready);
    }

    /// None of the jobs fits, or one does again.
    pub fn unfit(&self, unfit: bool) {
        match (self.state(), unfit) {
            (State::Ready, true) => {
                tracing::warn!(
                    "unfit: three jobs in a row need another model or a newer worker; probing from time to time"
                );
                self.enter(State::Unfit);
            }
            (State::Unfit, false) => self.enter(State::Ready),
            _ => {}
        }
    }

    /// No new jobs are taken.
    pub fn draining(&self) {
        self.enter(State::Draining);
    }

    /// Nothing is left to do.
    pub fn stopped(&self) {
        self.enter(State::Stopped);
    }

    /// The device is lost.
    pub fn failed(&self, reason: &str) {
        tracing::error!(reason, "the device is lost");
        telemetry::device_failed();
        self.shown.send_modify(|shown| shown.reason = Some(reason.to_owned()));
        self.enter(State::Failed);
    }

    /// Loading and warming up take no longer than this each, or are stuck: a disk in the network can block for ever.
    /// Waiting for files has a limit of its own, and brokers are waited for without one.
    pub fn limit_phases(&self, limit: Duration) {
        self.shown.send_modify(|shown| shown.phase_limit = Some(limit));
    }

    /// The line runs, and this knows whether it turns.
    pub fn watched_by(&self, watchdog: Watchdog) {
        self.shown.send_modify(|shown| shown.watchdog = Some(watchdog));
    }

    /// The broker says here why it takes no messages, while it takes none.
    pub fn blocked_by(&self, blocked: watch::Receiver<Option<String>>) {
        self.shown.send_modify(|shown| shown.blocked = Some(blocked));
    }

    /// Why the process should be ended and started again, if it should.
    pub fn ailment(&self) -> Option<&'static str> {
        let shown = self.shown.borrow();
        match shown.state {
            State::Failed => Some("failed"),
            _ => shown.stuck().map(|_| "stuck"),
        }
    }

    /// Folds what was measured since the last call into its histograms. Samples are kept singly until then, so this must
    /// be called every second or so, whether somebody reads the metrics or not.
    pub fn upkeep(&self) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.upkeep();
        }
    }

    /// Binds the endpoint.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(&self, address: SocketAddr) -> std::io::Result<Endpoint> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "health endpoint bound");
        Ok(Endpoint { listener, health: self.clone(), limits: EndpointLimits::default() })
    }
}

/// What bounds the endpoint, so that nobody can exhaust the worker through it.
#[derive(Debug, Clone, Copy)]
pub struct EndpointLimits {
    /// Connections at once; for one more the oldest is closed.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// How long a request's head may take to arrive.
    pub head_time: Duration,
    /// How long a connection may last.
    pub connection_time: Duration,
}

impl Default for EndpointLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            head_bytes: 8 << 10,
            head_time: Duration::from_secs(5),
            connection_time: Duration::from_secs(60),
        }
    }
}

/// The bound endpoint.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    health: Health,
    limits: EndpointLimits,
}

impl Endpoint {
    /// Sets other limits than the default ones.
    pub fn with_limits(self, limits: EndpointLimits) -> Self {
        Self { limits, ..self }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system can't tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until dropped.
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        make_room(&mut oldest_first, self.limits.connections);
                        let answered = answer(stream, self.health.clone(), self.limits);
                        oldest_first.push_back(connections.spawn(answered));
                    }
                    // Out of file handles, say: what is open ends within its time.
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a health connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Closes the oldest connections where there are too many. An answer takes no time, so what is old is idle or slow; a
/// probe that comes while others keep the endpoint busy is answered all the same.
fn make_room(oldest_first: &mut VecDeque<AbortHandle>, connections_max: usize) {
    oldest_first.retain(|connection| !connection.is_finished());
    while oldest_first.len() >= connections_max.max(1) {
        tracing::warn!(limit = connections_max, "too many health connections; the oldest is closed");
        oldest_first.pop_front().expect("there is one at least").abort();
    }
}

async fn answer(stream: TcpStream, health: Health, limits: EndpointLimits) {
    let service = service_fn(move |request| {
        let response = health.respond(&request);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_bytes.max(8 << 10))
        .serve_connection(TokioIo::new(stream), service);
    // A broken or slow connection is the client's affair.
    let _ = tokio::time::timeout(limits.connection_time, connection).await;
}

type Reply = Response<Full<Bytes>>;

impl Health {
    fn respond(&self, request: &Request<Incoming>) -> Reply {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
            refused.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("a list of methods is a header value"));
            return refused;
        }
        match request.uri().path() {
            "/healthz" | "/readyz" => self.readiness(),
            "/livez" => self.liveness(),
            "/metrics" => self.metrics(),
            "/status" => json_reply(StatusCode::OK, &self.status()),
            _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz, /livez, /metrics or /status\n".to_owned()),
        }
    }

    fn readiness(&self) -> Reply {
        let shown = self.shown.borrow();
        match (shown.state, &shown.reason) {
            (State::Ready, _) => coded(StatusCode::OK, "Ok"),
            (State::Waiting, Some(reason)) => coded(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting: {reason}")),
            (state, _) => coded(StatusCode::SERVICE_UNAVAILABLE, state.as_str()),
        }
    }

    fn liveness(&self) -> Reply {
        match self.ailment() {
            None => coded(StatusCode::OK, "Ok"),
            Some(ailment) => coded(StatusCode::SERVICE_UNAVAILABLE, ailment),
        }
    }

    fn metrics(&self) -> Reply {
        if let Some(in_flight) = &self.shown.borrow().in_flight {
            let counts = in_flight.counts();
            telemetry::in_flight(counts.jobs, counts.bytes, counts.tokens);
            if let Some(speed) = in_flight.speed() {
                telemetry::speed(speed.tokens);
            }
        }
        match &self.telemetry {
            Some(telemetry) => text(StatusCode::OK, telemetry.render()),
            None => text(StatusCode::NOT_FOUND, "this process keeps no metrics\n".to_owned()),
        }
    }

    fn status(&self) -> serde_json::Value {
        let shown = self.shown.borrow();
        let phases: serde_json::Map<_, _> = shown
            .phases
            .iter()
            .map(|(state, took)| (format!("{}_ms", state.as_str()), json!(took.as_millis() as u64)))
            .collect();
        let counts = shown.in_flight.as_ref().map(InFlight::counts);
        json!({
            "state": shown.state,
            "state_s": shown.since.elapsed().as_secs(),
            "stuck": shown.stuck(),
            "reason": shown.reason,
            "broker_blocked": shown.blocked.as_ref().and_then(|blocked| blocked.borrow().clone()),
            "phases": phases,
            "model": shown.model.as_ref().map(|model| &model.name),
            "revision": shown.model.as_ref().map(|model| &model.revision),
            "device": shown.model.as_ref().map(|model| &model.device),
            "in_flight": counts.map(|counts| json!({"jobs": counts.jobs, "bytes": counts.bytes, "tokens": counts.tokens})),
        })
    }
}

fn coded(code: StatusCode, message: &str) -> Reply {
    json_reply(code, &json!({"code": code.as_str(), "message": message}))
}

fn json_reply(code: StatusCode, value: &serde_json::Value) -> Reply {
    reply(code, "application/json", value.to_string())
}

fn text(code: StatusCode, text: String) -> Reply {
    reply(code, "text/plain; version=0.0.4; charset=utf-8", text)
}

fn reply(code: StatusCode, content_type: &'static str, body: String) -> Reply {
    let response = Response::builder().status(code).header(CONTENT_TYPE, content_type).body(Full::from(body));
    response.expect("these headers are valid")
}

#[cfg(test)]
mod tests;
