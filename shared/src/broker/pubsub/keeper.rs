//! The task that keeps one consumer: it owns the streams, and settles.
//!
//! In: what the consumer wants, and settlements. Out: deliveries on the desk; acks, nacks, dead letters. Pub/Sub counts
//! every nack as an attempt, so a delivery that is released while its consumer is open stays here: at once it lies on the
//! desk again, with a delay it is held that long and only then goes back, for others to take. When the consumer closes, all
//! of that goes back. The client extends what is held; leases that must end sooner are ended here, by a nack.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::Error;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::error::AckError;
use google_cloud_pubsub::model::Message as PubSubMessage;
use google_cloud_pubsub::subscriber::handler::Handler;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::super::desk::{Arrived, Desk};
use super::super::{BrokerError, Publisher, QueueNames, Settlement, Verdict};
use super::admin::Admin;
use super::fault::{self, Action};
use super::leases::{Held, Leases};
use super::message::{Epitaph, dead, decode};
use super::place::Place;
use super::publish::PubSubPublisher;
use super::streams::{Change, Event, Streams};
use super::watchdog::Watchdog;
use super::way::Way;

/// Settlements that are taken up together.
const BATCH: usize = 512;
/// What was decided before the end is settled within so long; what was not comes again.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Whether a subscription is there is told within so long.
const LOOK: Duration = Duration::from_secs(5);
/// A confirmed ack is answered within so long, the client's own tries included, or the delivery comes again.
const ACK: Duration = Duration::from_secs(30);

/// Who waits for a settlement.
type Done = Option<oneshot::Sender<Result<(), BrokerError>>>;

/// The task's parts.
pub(super) struct Keeper {
    pub(super) place: Place,
    pub(super) admin: Admin,
    pub(super) publisher: PubSubPublisher,
    pub(super) desk: Arc<Desk>,
    pub(super) settlements: mpsc::UnboundedReceiver<Settlement>,
    /// Whether leases are renewed; gone when that can't change any more.
    pub(super) renew: Option<watch::Receiver<bool>>,
    /// The connection is closed.
    pub(super) stop: CancellationToken,
    /// The consumer is closed: nothing more is fetched.
    pub(super) closing: CancellationToken,
    /// Told when what was fetched and not taken has been given back.
    pub(super) given_back: CancellationToken,
    pub(super) leases: Leases<Handler>,
    pub(super) streams: Streams,
    pub(super) way: Way,
    pub(super) watchdog: Watchdog,
    pub(super) calls: FuturesUnordered<BoxFuture<'static, Called>>,
}

/// What was called for has come to its end.
pub(super) enum Called {
    /// A lease is settled, and its holder told.
    Settled,
    /// Whether the subscription is there.
    Looked(Result<(), BrokerError>),
    /// A connection beside the one that has brought nothing for long.
    Connected(Subscriber),
}

impl Keeper {
    /// Keeps the consumer until it is closed and its leases are settled, or the connection is closed.
    pub(super) async fn run(mut self) {
        self.serve().await;
        self.put_down();
        // Each handler that is dropped gives its delivery back.
        self.leases.clear();
        let last_words = async {
            while self.calls.next().await.is_some() {}
            // The client sends acks a tenth of a second later, and these are on their way still.
            self.streams.all_ended().await;
        };
        // What can't be told in time comes again.
        let _ = timeout(LAST_WORDS, last_words).await;
    }

    async fn serve(&mut self) {
        let mut batch = Vec::new();
        loop {
            let open = !self.given_back.is_cancelled();
            let room = open && self.leases.len() < self.streams.limit();
            let wake_at = self.leases.wake_at().into_iter().chain(self.watchdog.ask_at()).min();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    while let Ok(settlement) = self.settlements.try_recv() {
                        self.settle(settlement);
                    }
                    return;
                }
                count = self.settlements.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        // The consumer is closed, and its last lease settled.
                        return;
                    }
                    batch.drain(..).for_each(|settlement| self.settle(settlement));
                    self.desk.hold(self.leases.len());
                }
                Some(called) = self.calls.next() => self.take_up(called),
                () = self.closing.cancelled(), if open => self.put_down(),
                () = self.desk.wished.notified(), if open => self.adjust(),
                renewing = changed(&mut self.renew) => self.leases.renew(renewing, Instant::now()),
                () = until(wake_at) => self.wake(Instant::now()),
                event = self.streams.next(room) => self.arrive(event),
            }
        }
    }

    fn arrive(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            match event {
                Ok((message, handler)) => self.put_on_desk(message, handler),
                Err(error) => return self.end_stream(error),
            }
            let room = self.leases.len() < self.streams.limit();
            next = if room { self.streams.next_ready() } else { None };
        }
    }

    fn put_on_desk(&mut self, message: PubSubMessage, handler: Handler) {
        let now = Instant::now();
        self.watchdog.hear(now);
        // Counted only where there is a dead-letter policy.
        let delivery = handler.delivery_attempt().and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
        let (message, attempt) = decode(message);
        if !self.place.share.has(&message.attributes) {
            // Every subscription has copies of its own, and this one is nobody's here.
            return handler.ack();
        }
        let attempt = attempt.saturating_add(delivery.saturating_sub(1));
        let token = self.leases.hold(Held { handler, message: message.clone(), attempt, since: now });
        self.desk.arrive(Arrived { token, message, attempt }, self.leases.len());
    }

    /// A stream has ended. After most of what may heal the client goes on by itself.
    fn end_stream(&mut self, error: Option<Error>) {
        let ended = || BrokerError::Unavailable("a stream has ended".to_owned());
        let error = error.map_or_else(ended, |error| fault::of(&self.place, Action::Consume, &error));
        if !error.is_transient() {
            return self.fail(error);
        }
        // Who is told asks again, a little later, and that opens others.
        self.close_streams();
        self.desk.tell(error);
    }

    /// Nothing will come any more, and no lease is worth anything.
    fn fail(&mut self, error: BrokerError) {
        self.streams.close();
        self.desk.fail(Some(error));
        self.leases.clear();
    }

    /// Closes the streams; what they had already is kept.
    fn close_streams(&mut self) {
        for (message, handler) in self.streams.close() {
            self.put_on_desk(message, handler);
        }
    }

    /// Lets the streams follow what is wanted.
    fn adjust(&mut self) {
        let Some(wish) = self.desk.wish() else { return };
        match self.streams.change(wish, self.desk.untaken()) {
            Change::Keep => {}
            Change::Open(more) => self.streams.open(more),
            Change::Shrink { limit, keep } => {
                self.close_streams();
                self.give_back(keep);
                self.streams.open(limit);
            }
        }
        if self.desk.untaken().0 == 0 {
            self.watchdog.wait(Instant::now());
        }
    }

    /// Gives back what nobody has taken but for the first `keep`.
    fn give_back(&mut self, keep: usize) {
        for token in self.desk.take_back(keep) {
            self.leases.take(token);
        }
        self.desk.hold(self.leases.len());
    }

    /// Stops fetching for good, and gives back what nobody has.
    fn put_down(&mut self) {
        self.streams.close();
        self.desk.close();
        self.give_back(0);
        self.leases.end_delays();
        self.given_back.cancel();
    }

    /// Ends what is due, and asks about a subscription that is silent.
    fn wake(&mut self, now: Instant) {
        let over = self.leases.due(now);
        if over.into_iter().filter(|token| self.desk.remove(*token)).count() > 0 {
            // Nobody has asked for a whole lease: what the streams bring would only be given back.
            self.streams.close();
        }
        self.desk.hold(self.leases.len());
        if self.watchdog.ask_at().is_some_and(|at| at <= now) {
            self.watchdog.ask();
            let (admin, place) = (self.admin.clone(), self.place.clone());
            let looked = async move { timeout(LOOK, admin.look_for(&place)).await.unwrap_or_else(|_| Err(silent())) };
            self.calls.push(looked.map(Called::Looked).boxed());
        }
    }

    fn take_up(&mut self, called: Called) {
        match called {
            Called::Settled => {}
            Called::Looked(Err(error @ BrokerError::UnknownQueue(_))) => self.fail(error),
            Called::Looked(Err(error)) if error.is_transient() => {
                self.watchdog.answer(false, Instant::now());
                self.desk.tell(error);
            }
            // Who may not look may still be allowed to take.
            Called::Looked(_) => {
                if self.watchdog.answer(true, Instant::now()) && !self.streams.is_closed() {
                    self.calls.push(connected(self.way.clone(), self.publisher.clone()).boxed());
                }
            }
            Called::Connected(client) => {
                self.streams.connect(client);
                let limit = self.streams.limit();
                if limit > 0 {
                    self.close_streams();
                    self.streams.open(limit);
                }
            }
        }
    }

    fn settle(&mut self, Settlement { token, verdict, done }: Settlement) {
        let open = !self.given_back.is_cancelled();
        if let (Verdict::Release(after), true) = (&verdict, open) {
            return tell(done, self.put_back(token, *after));
        }
        let Some(held) = self.leases.take(token) else { return tell(done, Err(BrokerError::LeaseLost)) };
        match verdict {
            Verdict::Ack => self.ack(held.handler, done),
            Verdict::DeadLetter(reason) => self.bury(held, reason, done),
            // Dropping the handler gives it back.
            Verdict::Release(_) | Verdict::Dropped => tell(done, Ok(())),
        }
    }

    /// Keeps a delivery that is released: on the desk, or aside until it is due.
    fn put_back(&mut self, token: u64, after: Duration) -> Result<(), BrokerError> {
        let held = self.leases.get(token).ok_or(BrokerError::LeaseLost)?;
        if after.is_zero() {
            self.desk.put_back(Arrived { token, message: held.message.clone(), attempt: held.attempt });
        } else {
            self.leases.delay(token, Instant::now() + after);
        }
        Ok(())
    }

    fn ack(&mut self, handler: Handler, done: Done) {
        if let Handler::AtLeastOnce(handler) = handler {
            handler.ack();
            return tell(done, Ok(()));
        }
        let settled = async move {
            tell(done, acked(handler).await);
            Called::Settled
        };
        self.calls.push(settled.boxed());
    }

    /// Publishes to the dead letters, then acks.
    fn bury(&mut self, held: Held<Handler>, reason: String, done: Done) {
        let (publisher, queue) = (self.publisher.clone(), self.place.queue.clone());
        let at = Timestamp::now().as_millisecond();
        self.calls.push(
            async move {
                let Held { handler, message, attempt, .. } = held;
                let letter = dead(message, &Epitaph { reason: &reason, queue: &queue, attempt, at });
                let buried = async {
                    // Where this fails the handler is dropped, and the delivery comes again.
                    publisher.publish(&QueueNames::new(queue.as_str()).dead(), vec![letter]).await?;
                    acked(handler).await
                };
                tell(done, buried.await);
                Called::Settled
            }
            .boxed(),
        );
    }
}

/// Connects anew, publishing as well: what has silenced one connection has most likely silenced the other.
async fn connected(way: Way, publisher: PubSubPublisher) -> Called {
    publisher.connect().await;
    way.subscriber().await.map_or(Called::Settled, Called::Connected)
}

fn silent() -> BrokerError {
    BrokerError::Unavailable("no answer".to_owned())
}

/// Acks. Only an exactly-once subscription answers; elsewhere the ack is sent within a tenth of a second, and that a lease was
/// over is not told.
async fn acked(handler: Handler) -> Result<(), BrokerError> {
    match handler {
        Handler::ExactlyOnce(handler) => match timeout(ACK, handler.confirmed_ack()).await {
            Ok(acked) => acked.map_err(|error| of_ack(&error)),
            // Over a connection that is dead there is no answer, and the job would take up room for ever.
            Err(_) => Err(silent()),
        },
        handler => {
            handler.ack();
            Ok(())
        }
    }
}

/// Why a confirmed ack was none.
fn of_ack(error: &AckError) -> BrokerError {
    match error {
        AckError::LeaseExpired => BrokerError::LeaseLost,
        AckError::Rpc { source, .. } => match fault::code(source) {
            // The service says so of an ack whose deadline has passed.
            Some(Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound) => BrokerError::LeaseLost,
            _ => BrokerError::Unavailable(error.to_string()),
        },
        _ => BrokerError::Unavailable(error.to_string()),
    }
}

/// The next change of whether leases are renewed; pending for ever once that can't change.
async fn changed(renew: &mut Option<watch::Receiver<bool>>) -> bool {
    if let Some(watched) = renew {
        if watched.changed().await.is_ok() {
            return *watched.borrow_and_update();
        }
        *renew = None;
    }
    std::future::pending().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn tell(done: Done, result: Result<(), BrokerError>) {
    if let Some(done) = done {
        // Who asked may have gone.
        let _ = done.send(result);
    }
}
