//! One connection that is dialled again for ever, a host after the other.
//!
//! In: an address and what the connection is for. Out: the connection while there is one, else why there is none. lapin
//! could recover by itself, but then a late ack is swallowed, an unconfirmed publish hangs and a deleted queue ends
//! silently: a lost connection must be seen, so that leases end and publishes are answered. It never asks anybody to wait.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::super::BrokerError;
use super::address::AmqpUrl;
use super::fault;
use crate::backoff::Backoff;
use crate::telemetry;

/// A host that does not answer within so long is out of reach.
const DIAL: Duration = Duration::from_secs(10);
/// So many resets in a row are dialled again at once.
const RESETS: u32 = 4;
/// A connection that does not close within so long is dropped.
const FAREWELL: Duration = Duration::from_secs(3);
/// So many refusals in a row after a connection that stood are believed: a server that starts may refuse a few.
const REFUSALS: u32 = 10;
/// How often a connection is asked whether it stands, beside the events that should tell.
const GLANCE: Duration = Duration::from_secs(1);
/// A broker that blocks the connection has confirmed within so long what it had read by then. The rest it reads when the
/// alarm is over.
const LAST_CONFIRMS: Duration = Duration::from_secs(1);

/// Why the broker takes nothing for now, if so.
pub(super) type Blocked = watch::Receiver<Option<String>>;

/// A connection that stands.
pub(super) struct Up {
    pub(super) connection: Connection,
    /// Cancelled when it stands no longer.
    pub(super) lost: CancellationToken,
}

#[derive(Clone)]
enum State {
    Up(Arc<Up>),
    Down(BrokerError),
}

/// One connection, dialled again whenever it is lost.
pub(super) struct Link {
    state: watch::Receiver<State>,
    blocked: Blocked,
    stop: CancellationToken,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// Dials every host once, and keeps the connection from then on.
    pub(super) async fn connect(url: &AmqpUrl, purpose: &'static str) -> Result<Arc<Self>, BrokerError> {
        let dialer = Dialer::new(url, purpose).await?;
        let first = dialer.dial().await?;
        let (sender, state) = watch::channel(State::Up(first.clone()));
        let (block, blocked) = watch::channel(None);
        let stop = CancellationToken::new();
        let supervisor = Supervisor { dialer, state: sender, blocked: block, stop: stop.clone() };
        let supervisor = Mutex::new(Some(tokio::spawn(supervisor.run(first))));
        Ok(Arc::new(Self { state, blocked, stop, supervisor }))
    }

    /// The connection, if it stands.
    pub(super) fn up(&self) -> Result<Arc<Up>, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        match &*self.state.borrow() {
            State::Up(up) if up.lost.is_cancelled() => Err(BrokerError::Unavailable("the connection broke".to_owned())),
            State::Up(up) => Ok(up.clone()),
            State::Down(error) => Err(error.clone()),
        }
    }

    /// Why the broker takes nothing for now. AMQP tells only who publishes.
    pub(super) fn blocked(&self) -> Blocked {
        self.blocked.clone()
    }

    /// What `call` comes to, unless an alarm begins meanwhile and stays: then nothing more comes back until it is over.
    pub(super) async fn unless_blocked<T>(
        &self,
        call: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        tokio::select! {
            biased;
            done = call => done,
            reason = self.stays_blocked() => Err(takes_nothing(&reason)),
        }
    }

    async fn stays_blocked(&self) -> String {
        let mut blocked = self.blocked();
        loop {
            let reason = blocked.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
            // Without its keeper the connection is closed, which ends the call.
            let Ok(reason) = reason else { return std::future::pending().await };
            if timeout(LAST_CONFIRMS, blocked.wait_for(Option::is_none)).await.is_err() {
                return reason;
            }
        }
    }

    /// Closes the connection and joins what keeps it.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(supervisor) = supervisor
            && supervisor.await.is_err()
        {
            tracing::error!("the keeper of a connection panicked");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The supervisor ends by itself; nobody is left to wait for it.
        self.stop.cancel();
    }
}

/// The error of a publish during an alarm.
pub(super) fn takes_nothing(reason: &str) -> BrokerError {
    BrokerError::Unavailable(format!("blocked by the broker: {reason}"))
}

struct Supervisor {
    dialer: Dialer,
    state: watch::Sender<State>,
    blocked: watch::Sender<Option<String>>,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(self, mut up: Arc<Up>) {
        loop {
            let why = tokio::select! {
                () = self.stop.cancelled() => return self.say_farewell(&up).await,
                why = self.watched(&up) => why,
            };
            up.lost.cancel();
            self.blocked.send_replace(None);
            let error = BrokerError::Unavailable(why);
            telemetry::broker_failed(self.dialer.purpose, &error);
            self.state.send_replace(State::Down(error));
            match self.again().await {
                Some(again) => up = again,
                None => return,
            }
            tracing::info!(connection = self.dialer.purpose, "connected to the broker again");
            self.state.send_replace(State::Up(up.clone()));
        }
    }

    /// Dials until a host answers; `None` once it is asked to stop.
    async fn again(&self) -> Option<Arc<Up>> {
        let (mut failures, mut refusals) = (0, 0);
        loop {
            let dialled = tokio::select! {
                () = self.stop.cancelled() => return None,
                dialled = self.dialer.dial() => dialled,
            };
            let error = match dialled {
                Ok(up) => return Some(up),
                Err(BrokerError::Refused(text)) if refusals < REFUSALS => {
                    refusals += 1;
                    BrokerError::Unavailable(text)
                }
                Err(error) => error,
            };
            self.state.send_replace(State::Down(error));
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep(Backoff::BROKER.delay(failures, &mut rand::rng())) => failures += 1,
            }
        }
    }

    /// Follows a connection to its end, and says why it ended.
    async fn watched(&self, up: &Up) -> String {
        let mut events = Box::pin(up.connection.events_listener());
        let mut glance = interval(GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        // Known before it is said.
                        self.blocked.send_replace(Some(reason.clone()));
                        tracing::warn!(reason, "the broker takes no messages for now");
                    }
                    Some(Event::ConnectionUnblocked) => {
                        self.blocked.send_replace(None);
                        tracing::info!("the broker takes messages again");
                    }
                    // A channel's error comes here as well; it is not the connection's end.
                    Some(Event::Error(error)) if !up.connection.status().connected() => return error.to_string(),
                    Some(_) => {}
                    None => return "the connection broke".to_owned(),
                },
                _ = glance.tick() => {
                    if !up.connection.status().connected() {
                        return "the connection broke".to_owned();
                    }
                }
            }
        }
    }

    async fn say_farewell(&self, up: &Up) {
        up.lost.cancel();
        // A broker that reads nothing hears no farewell.
        if self.blocked.borrow().is_none() {
            // What can't be closed is dropped: the broker gives back what was not settled either way.
            let _ = timeout(FAREWELL, up.connection.close(200, "closed".into())).await;
        }
    }
}

/// The certificates of a file. Without one nobody would be trusted, and the error would speak of the server's.
async fn certificates(path: &Path) -> Result<String, BrokerError> {
    let refused = |why: &str| BrokerError::Refused(format!("?cacertfile={} {why}", path.display()));
    let read = tokio::fs::read_to_string(path).await;
    let pem = read.map_err(|error| refused(&format!("can't be read ({error}): name a PEM file of certificates")))?;
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err(refused("has no certificate: name a PEM file of them"));
    }
    Ok(pem)
}

/// Knows how to reach the hosts.
struct Dialer {
    uris: Vec<AMQPUri>,
    tls: Option<String>,
    purpose: &'static str,
}

impl Dialer {
    async fn new(url: &AmqpUrl, purpose: &'static str) -> Result<Self, BrokerError> {
        let tls = match &url.cacertfile {
            None => None,
            Some(path) => Some(certificates(path).await?),
        };
        Ok(Self { uris: url.uris.clone(), tls, purpose })
    }

    /// The first host that answers; what the last one said where none does.
    async fn dial(&self) -> Result<Arc<Up>, BrokerError> {
        let mut failed = BrokerError::Unavailable("no host".to_owned());
        for uri in &self.uris {
            let host = format!("{}:{}", uri.authority.host, uri.authority.port);
            match timeout(DIAL, self.dial_one(uri)).await {
                Ok(Ok(connection)) => return Ok(Arc::new(Up::new(connection))),
                Ok(Err(error)) => failed = fault::of_dialling(&host, &error),
                Err(_) => failed = BrokerError::Unavailable(format!("{host}: no answer within {DIAL:?}")),
            }
        }
        Err(failed)
    }

    /// A server that speaks TLS answers plain AMQP with an alert, and resets the connection: which of the two is seen is a
    /// matter of luck, so a reset is dialled again at once, a few times.
    async fn dial_one(&self, uri: &AMQPUri) -> lapin::Result<Connection> {
        let mut resets = 0;
        loop {
            match self.connect(uri.clone()).await {
                Err(error) if fault::is_reset(&error) && resets < RESETS => resets += 1,
                dialled => return dialled,
            }
        }
    }

    async fn connect(&self, uri: AMQPUri) -> lapin::Result<Connection> {
        let name = format!("inferq {} (process {})", self.purpose, std::process::id());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.tls.clone() };
        Connection::connect_uri_with_config(uri, properties, tls, lapin::runtime::default_runtime()?).await
    }
}

impl Up {
    fn new(connection: Connection) -> Self {
        Self { connection, lost: CancellationToken::new() }
    }
}
