//! The task that keeps one consumer: it owns the channel, and settles.
//!
//! In: what the consumer wants, and settlements. Out: deliveries on the desk, acks on the channel, copies on other queues.
//! A copy (released, set aside, dropped) is confirmed before its original is acked. When the channel is lost, every lease
//! on it is over, and no tag of it is ever sent again. It waits for no copy: settlements go on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::desk::{Arrived, Desk};
use super::super::{BrokerError, Message, QueueNames, Settlement, Verdict};
use super::declare::{delay_for, delay_queue};
use super::held::{Deliveries, Done, Held};
use super::link::Link;
use super::message::{self, Epitaph, Outgoing};
use super::publish::RabbitmqPublisher;
use super::session::{Change, Session};

/// Settlements that are taken up together.
const BATCH: usize = 512;
/// What was decided before the end is settled within so long, or by the broker.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The task's parts.
pub(super) struct Keeper {
    pub(super) link: Arc<Link>,
    pub(super) publisher: RabbitmqPublisher,
    pub(super) queue: String,
    pub(super) desk: Arc<Desk>,
    pub(super) settlements: mpsc::UnboundedReceiver<Settlement>,
    /// The connection is closed.
    pub(super) stop: CancellationToken,
    /// The consumer is closed: nothing more is fetched.
    pub(super) closing: CancellationToken,
    /// Told when what was fetched and not taken has been given back.
    pub(super) given_back: CancellationToken,
    pub(super) deliveries: Deliveries,
    pub(super) copies: FuturesUnordered<BoxFuture<'static, Copied>>,
}

/// A copy has been published, or not.
pub(super) struct Copied {
    token: u64,
    published: Result<(), BrokerError>,
}

/// How a session ends.
enum End {
    /// Another one may follow; the consumer is told.
    Lost(BrokerError),
    /// The broker has ended the subscription: the queue is gone, or has moved. Another subscription shows which.
    Cancelled,
    /// None follows.
    Over,
}

impl From<BrokerError> for End {
    fn from(error: BrokerError) -> Self {
        Self::Lost(error)
    }
}

impl Keeper {
    /// Keeps the consumer until it is closed and its leases are settled, or the connection is closed.
    pub(super) async fn run(mut self) {
        while let Some(mut session) = self.wanted().await {
            let Err(end) = self.serve(&mut session).await;
            self.lose();
            match end {
                End::Over => {
                    session.close().await;
                    break;
                }
                End::Lost(error) => self.desk.fail(Some(error)),
                End::Cancelled => {
                    self.desk.fail(None);
                    self.desk.wished.notify_one();
                }
            }
        }
        self.desk.close();
        self.given_back.cancel();
    }

    /// A session, once something is wanted; `None` at the end. Until then every lease is over.
    async fn wanted(&mut self) -> Option<Session> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                count = self.settlements.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return None;
                    }
                    batch.drain(..).for_each(|settlement| tell(settlement.done, Err(BrokerError::LeaseLost)));
                }
                () = self.closing.cancelled(), if !self.given_back.is_cancelled() => {
                    self.desk.close();
                    self.given_back.cancel();
                }
                () = self.desk.wished.notified(), if !self.given_back.is_cancelled() => {
                    match Session::open(&self.link, &self.queue).await {
                        Ok(session) => {
                            self.desk.wished.notify_one();
                            return Some(session);
                        }
                        Err(error) => self.desk.fail(Some(error)),
                    }
                }
            }
        }
    }

    async fn serve(&mut self, session: &mut Session) -> Result<std::convert::Infallible, End> {
        let (mut batch, lost) = (Vec::new(), session.up.lost.clone());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    // What can't be settled in time is redelivered.
                    let _ = timeout(LAST_WORDS, self.say_last_words(session)).await;
                    return Err(End::Over);
                }
                () = lost.cancelled() => {
                    return Err(End::Lost(BrokerError::Unavailable("the connection broke".to_owned())));
                }
                count = self.settlements.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        // The consumer is closed, and its last lease settled.
                        self.finish_copies(session).await?;
                        return Err(End::Over);
                    }
                    self.settle(session, batch.drain(..)).await?;
                }
                Some(copied) = self.copies.next() => self.replace(session, copied).await?,
                () = self.closing.cancelled(), if !self.given_back.is_cancelled() => {
                    self.put_down(session).await?;
                    self.given_back.cancel();
                }
                () = self.desk.wished.notified(), if !self.given_back.is_cancelled() => self.adjust(session).await?,
                next = session.next() => {
                    self.arrive(next?)?;
                    while let Some(next) = session.next_ready() {
                        self.arrive(next?)?;
                    }
                }
            }
        }
    }

    fn arrive(&mut self, next: Option<lapin::message::Delivery>) -> Result<(), End> {
        self.put_on_desk(next.ok_or(End::Cancelled)?);
        Ok(())
    }

    fn put_on_desk(&mut self, delivery: lapin::message::Delivery) {
        let lapin::message::Delivery { delivery_tag, redelivered, properties, data, .. } = delivery;
        let attempt = message::attempt(&properties, redelivered);
        let message = Message { body: data.into(), attributes: message::decode(&properties) };
        let held = Held { body: message.body.clone(), properties, attempt, done: None };
        let token = self.deliveries.hold(delivery_tag, held);
        self.desk.arrive(Arrived { token, message, attempt }, self.deliveries.len());
    }

    /// Lets the prefetch follow what is wanted.
    async fn adjust(&mut self, session: &mut Session) -> Result<(), BrokerError> {
        let Some(wish) = self.desk.wish() else { return Ok(()) };
        match session.change(wish, self.desk.untaken()) {
            Change::Keep => Ok(()),
            Change::Subscribe(prefetch) => session.subscribe(prefetch).await,
            Change::Shrink(prefetch) => {
                self.stop_fetching(session).await?;
                self.give_back(prefetch.saturating_sub(wish.leased));
                self.finish_copies(session).await?;
                session.subscribe(prefetch).await
            }
        }
    }

    async fn stop_fetching(&mut self, session: &mut Session) -> Result<(), BrokerError> {
        session.unsubscribe().await?.into_iter().for_each(|delivery| self.put_on_desk(delivery));
        Ok(())
    }

    /// Stops fetching for good, and gives back what nobody has taken.
    async fn put_down(&mut self, session: &mut Session) -> Result<(), BrokerError> {
        self.stop_fetching(session).await?;
        self.desk.close();
        self.give_back(0);
        self.finish_copies(session).await
    }

    /// Releases what nobody has taken but for the first `keep`. A nack would be cheaper, but servers before 4.3 count it
    /// as an attempt.
    fn give_back(&mut self, keep: usize) {
        for token in self.desk.take_back(keep) {
            self.copy(token, Verdict::Release(Duration::ZERO), None);
        }
    }

    async fn finish_copies(&mut self, session: &mut Session) -> Result<(), BrokerError> {
        while let Some(copied) = self.copies.next().await {
            self.replace(session, copied).await?;
        }
        Ok(())
    }

    /// Settles what leases have already decided, and gives back what nobody has taken.
    async fn say_last_words(&mut self, session: &mut Session) -> Result<(), BrokerError> {
        let mut batch = Vec::new();
        while let Ok(settlement) = self.settlements.try_recv() {
            batch.push(settlement);
        }
        self.settle(session, batch.into_iter()).await?;
        self.put_down(session).await
    }

    async fn settle(
        &mut self,
        session: &Session,
        settlements: impl Iterator<Item = Settlement>,
    ) -> Result<(), BrokerError> {
        let (mut tags, mut told) = (Vec::new(), Vec::new());
        for Settlement { token, verdict, done } in settlements {
            match (self.deliveries.tag(token), verdict) {
                (None, _) => tell(done, Err(BrokerError::LeaseLost)),
                (Some(tag), Verdict::Ack) => {
                    tags.push(tag);
                    told.push(done);
                }
                (Some(_), verdict) => self.copy(token, verdict, done),
            }
        }
        let acked = session.ack(self.deliveries.ack(tags)).await;
        self.desk.hold(self.deliveries.len());
        // AMQP answers no ack: what was sent on a channel that breaks now may come again.
        told.into_iter().for_each(|done| tell(done, acked.clone()));
        acked
    }

    /// Publishes what takes the place of a delivery; the delivery itself is acked when that is confirmed.
    fn copy(&mut self, token: u64, verdict: Verdict, done: Done) {
        let publisher = self.publisher.clone();
        let Some(held) = self.deliveries.get(token) else { return tell(done, Err(BrokerError::LeaseLost)) };
        held.done = done;
        let (queue, outgoing) = copy_of(&self.queue, held, &verdict);
        let home = self.queue.clone();
        self.copies.push(Box::pin(async move {
            let mut published = publisher.send(&queue, vec![outgoing.clone()]).await;
            if published == Err(BrokerError::UnknownQueue(queue)) && matches!(verdict, Verdict::Release(_)) {
                // A queue without delays has it back at once.
                published = publisher.send(&home, vec![outgoing]).await;
            }
            Copied { token, published }
        }));
    }

    /// Acks the original of a copy that is confirmed; one whose copy failed is given back by the broker.
    async fn replace(&mut self, session: &Session, copied: Copied) -> Result<(), BrokerError> {
        let Some(tag) = self.deliveries.tag(copied.token) else { return Ok(()) };
        let done = self.deliveries.get(copied.token).and_then(|held| held.done.take());
        let settled = match &copied.published {
            Ok(()) => session.ack(self.deliveries.ack(vec![tag])).await,
            Err(_) => {
                self.deliveries.remove(tag);
                session.nack(tag).await
            }
        };
        self.desk.hold(self.deliveries.len());
        tell(done, copied.published.and(settled.clone()));
        settled
    }

    /// The channel is gone, and every lease on it over.
    fn lose(&mut self) {
        // A copy that is on its way may arrive as well: then the message comes twice.
        self.copies.clear();
        self.deliveries.lose().into_iter().for_each(|done| tell(done, Err(BrokerError::LeaseLost)));
    }
}

/// What takes a delivery's place, and where.
fn copy_of(queue: &str, held: &Held, verdict: &Verdict) -> (String, Outgoing) {
    let Held { properties, attempt, .. } = held;
    let again = |attempt| message::again(properties, attempt);
    let (target, properties) = match verdict {
        Verdict::Release(after) if !after.is_zero() => (delay_queue(queue, delay_for(*after)), again(*attempt)),
        Verdict::Ack | Verdict::Release(_) => (queue.to_owned(), again(*attempt)),
        Verdict::Dropped => (queue.to_owned(), again(attempt.saturating_add(1))),
        Verdict::DeadLetter(reason) => {
            let at = Timestamp::now().as_millisecond();
            let epitaph = Epitaph { reason, queue, attempt: *attempt, at };
            (QueueNames::new(queue).dead(), message::dead(properties, &epitaph))
        }
    };
    (target, Outgoing { body: held.body.clone(), properties })
}

fn tell(done: Done, result: Result<(), BrokerError>) {
    if let Some(done) = done {
        // Who asked may have gone.
        let _ = done.send(result);
    }
}
