//! The last stage: puts objects, publishes replies, waits for the confirm, then settles. The only stage that settles
//! leases.
//!
//! In: [`Outbound`]s. Out: nothing; every lease has been settled when it ends. Results that are to be an object are put
//! first; then the reply that points at it goes to its route like any other. One flight a route is in the air; what
//! comes for that route meanwhile waits for the next, so confirms are shared. It never acks before the confirm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{Attributes, BrokerError, Lease, Message, Publisher};
use inferq_shared::bucket::Buckets;
use inferq_shared::job::{JobId, VERSION, attribute};
use inferq_shared::telemetry::traces::Trace;
use inferq_shared::telemetry::{self, story};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::object::{self, Mark};
use crate::offload::Offload;
use crate::outage::{Outage, Patience};
use crate::pulse::Pulse;
use crate::put::Put;
use crate::stores::{Begun, Stores};
use crate::ticket::{Answered, Outbound, ReleaseReason};

/// The stage.
pub struct Outbox<P> {
    /// Where replies are published.
    pub publisher: P,
    /// Where objects go.
    pub buckets: Buckets,
    /// What the objects that are put into one bucket at a time may hold, in bytes.
    pub object_bytes: usize,
    /// What leaves the line.
    pub outbound: mpsc::Receiver<Outbound>,
    /// How many flights are kept back by a broken dependency.
    pub outage: watch::Sender<usize>,
    /// Stop working.
    pub working: CancellationToken,
    /// How long a job may be held for its reply's sake.
    pub lease_max: Duration,
    /// Where replies are encoded.
    pub offload: Offload,
    /// The time.
    pub clock: Clock,
    /// Beats while the stage turns.
    pub pulse: Pulse,
    /// Jitter.
    pub seed: u64,
}

/// Replies of one flight.
const FLIGHT_REPLIES_MAX: usize = 256;
/// How long a full route is waited for before its jobs are given back for somebody else's turn.
const FULL_ROUTE_WAIT: Duration = Duration::from_secs(30);

/// What has come back.
enum Landed {
    /// A flight of this route.
    Route(String),
    /// A put, and the answer that can go to its route now.
    Put(Begun, Option<Box<Answered>>),
    /// The settling of something else.
    Settled,
}

type Flights = FuturesUnordered<BoxFuture<'static, Landed>>;

/// What waits for its turn.
struct Desk {
    /// Replies by their route.
    waiting: BTreeMap<String, Vec<Answered>>,
    /// Routes that a flight is on its way to.
    flying: BTreeSet<String>,
    /// Answers whose object is to be put.
    puts: Stores<Box<Answered>>,
    /// Everything in the air.
    flights: Flights,
}

impl<P: Publisher> Outbox<P> {
    /// Settles until the channel ends and every flight has landed.
    pub async fn run(mut self) {
        let mut desk = Desk {
            waiting: BTreeMap::new(),
            flying: BTreeSet::new(),
            puts: Stores::new(self.object_bytes),
            flights: FuturesUnordered::new(),
        };
        let mut open = true;
        while open || !desk.flights.is_empty() {
            self.pulse.beat();
            tokio::select! {
                biased;
                Some(landed) = desk.flights.next(), if !desk.flights.is_empty() => desk.land(landed),
                next = self.outbound.recv(), if open => match next {
                    Some(outbound) => self.take(outbound, &mut desk),
                    None => open = false,
                },
                () = self.pulse.due() => {}
            }
            while let Ok(outbound) = self.outbound.try_recv() {
                self.take(outbound, &mut desk);
            }
            self.put(&mut desk);
            self.launch(&mut desk);
        }
    }

    fn take(&mut self, outbound: Outbound, desk: &mut Desk) {
        match outbound {
            Outbound::Reply(answered) => {
                story::answered(&answered.reply);
                match &answered.object {
                    Some(_) if crate::mutant::active("ack_before_put") => self.put_later(answered, desk),
                    Some(object) => {
                        let (uri, bytes) = (object.uri.clone(), object.bytes_max);
                        desk.puts.push(&uri, bytes, answered);
                    }
                    None => desk.answer(answered),
                }
            }
            Outbound::Release { id, lease, hold, reason, after } => desk.flights.push(Box::pin(async move {
                if crate::mutant::active("release_spends_attempt") {
                    drop(lease);
                } else {
                    story::released(id.as_ref(), reason.as_str(), after, lease.release(after).await);
                }
                drop(hold);
                Landed::Settled
            })),
            Outbound::Done { id, lease, hold, at } => desk.flights.push(Box::pin(async move {
                story::done(&id, at, lease.ack().await);
                drop(hold);
                Landed::Settled
            })),
            Outbound::Dead { id, lease, hold, reason } => desk.flights.push(Box::pin(async move {
                story::dead_lettered(id.as_ref(), &reason, lease.dead_letter(reason.as_str()).await);
                drop(hold);
                Landed::Settled
            })),
        }
    }

    /// Begins every put whose turn it is.
    fn put(&mut self, desk: &mut Desk) {
        while let Some((place, answered)) = desk.puts.begin() {
            let put = self.putter();
            desk.flights.push(Box::pin(async move { Landed::Put(place, put.answer(*answered).await.map(Box::new)) }));
        }
    }

    fn putter(&mut self) -> Put {
        self.seed = self.seed.wrapping_add(1);
        let patience = Patience {
            outage: self.outage.clone(),
            end: self.working.clone(),
            end_reason: ReleaseReason::DrainLimit,
            lease_max: self.lease_max,
            clock: self.clock,
            seed: self.seed,
        };
        Put { buckets: self.buckets.clone(), patience, offload: self.offload }
    }

    fn launch(&mut self, desk: &mut Desk) {
        let ready: Vec<String> = desk.waiting.keys().filter(|route| !desk.flying.contains(*route)).cloned().collect();
        for route in ready {
            let replies = desk.waiting.get_mut(&route).expect("the route was just listed");
            let later = replies.split_off(replies.len().min(FLIGHT_REPLIES_MAX));
            let now = std::mem::replace(replies, later);
            if replies.is_empty() {
                desk.waiting.remove(&route);
            }
            self.seed = self.seed.wrapping_add(1);
            desk.flying.insert(route.clone());
            desk.flights.push(Box::pin(self.flight(route).fly(now)));
        }
    }

    /// The planted fault: the reply goes ahead of its object.
    fn put_later(&mut self, mut answered: Box<Answered>, desk: &mut Desk) {
        let Some(target) = answered.object.take() else { return };
        let (reply, at, mut put) = (answered.reply.clone(), answered.at, self.putter());
        let mark = Mark::new(&target.digest, &reply);
        answered.reply = object::pointer(reply.clone(), &target.uri, mark.clone());
        desk.answer(answered);
        desk.flights.push(Box::pin(async move {
            let body = object::encode(target.format, &reply.results, &reply.model, &reply.revision);
            let _ = put.create(&reply.id, &target, body.unwrap_or_default().into(), mark, at).await;
            Landed::Settled
        }));
    }

    fn flight(&self, route: String) -> Flight<P> {
        Flight {
            route,
            publisher: self.publisher.clone(),
            outage: self.outage.clone(),
            working: self.working.clone(),
            lease_max: self.lease_max,
            offload: self.offload,
            clock: self.clock,
            since: self.clock.now(),
            rng: StdRng::seed_from_u64(self.seed),
        }
    }
}

impl Desk {
    fn answer(&mut self, answered: Box<Answered>) {
        self.waiting.entry(answered.route.clone()).or_default().push(*answered);
    }

    fn land(&mut self, landed: Landed) {
        match landed {
            Landed::Route(route) => drop(self.flying.remove(&route)),
            Landed::Put(place, answered) => {
                self.puts.over(place);
                if let Some(answered) = answered {
                    self.answer(answered);
                }
            }
            Landed::Settled => {}
        }
    }
}

/// Replies on their way to one route.
struct Flight<P> {
    route: String,
    publisher: P,
    outage: watch::Sender<usize>,
    working: CancellationToken,
    lease_max: Duration,
    offload: Offload,
    clock: Clock,
    since: Instant,
    rng: StdRng,
}

/// How a flight ended.
enum Landing {
    Confirmed,
    Released(ReleaseReason),
    Undeliverable(BrokerError),
    NoRoom,
}

impl Landing {
    /// Whether it says nothing of each reply by itself.
    fn is_of_all(&self) -> bool {
        matches!(self, Self::NoRoom | Self::Undeliverable(BrokerError::Refused(_)))
    }
}

impl<P: Publisher> Flight<P> {
    async fn fly(mut self, answered: Vec<Answered>) -> Landed {
        if crate::mutant::active("ack_before_confirm") {
            let (answered, messages) = encode(answered);
            settle(answered, Landing::Confirmed, &self.route).await;
            let _ = self.publisher.publish(&self.route, messages).await;
            return Landed::Route(self.route);
        }
        let mut pieces = vec![answered];
        while let Some(mut answered) = pieces.pop() {
            let landing = self.publish(&mut answered).await;
            if answered.len() > 1 && landing.is_of_all() {
                // Which of them is refused, or how many there is room for, can only be told by trying fewer.
                let rest = answered.split_off(answered.len() / 2);
                pieces.extend([rest, answered]);
            } else {
                settle(answered, landing, &self.route).await;
            }
        }
        Landed::Route(self.route)
    }

    /// Publishes until confirmed, refused, or held too long. A full route is waited for only with one reply in hand.
    async fn publish(&mut self, answered: &mut Vec<Answered>) -> Landing {
        let held_since = answered.iter().map(|one| one.at).min().unwrap_or(self.since);
        let mut outage = None;
        let mut failures = 0;
        loop {
            // Encoded for each try: keeping a copy for the next would cost every reply, and few are tried twice.
            let taken = std::mem::take(answered);
            let (back, messages) = self.offload.run(move || encode(taken)).await;
            *answered = back;
            let working = self.working.clone();
            let published = tokio::select! {
                biased;
                () = working.cancelled() => return Landing::Released(ReleaseReason::DrainLimit),
                published = self.publisher.publish(&self.route, messages) => published,
            };
            let error = match published {
                Ok(()) => return Landing::Confirmed,
                Err(_) if crate::mutant::active("lost_confirm_is_success") => return Landing::Confirmed,
                Err(error @ BrokerError::Full(_)) if crate::mutant::active("full_is_refused") => {
                    return Landing::Undeliverable(error);
                }
                Err(error) if error.is_transient() => error,
                Err(BrokerError::Closed) => return Landing::Released(ReleaseReason::Outage),
                Err(error) => return Landing::Undeliverable(error),
            };
            telemetry::broker_failed("publish", &error);
            if self.clock.now().saturating_duration_since(held_since) >= self.lease_max {
                return Landing::Released(ReleaseReason::Outage);
            }
            match error {
                BrokerError::Full(_) if answered.len() > 1 => return Landing::NoRoom,
                BrokerError::Full(_) if self.clock.now().saturating_duration_since(self.since) >= FULL_ROUTE_WAIT => {
                    return Landing::Released(ReleaseReason::RouteFull);
                }
                BrokerError::Full(_) => {}
                _ => {
                    outage.get_or_insert_with(|| Outage::begin(self.outage.clone()));
                }
            }
            let wait = Backoff::BROKER.delay(failures, &mut self.rng);
            failures += 1;
            tokio::select! {
                biased;
                () = working.cancelled() => return Landing::Released(ReleaseReason::DrainLimit),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

async fn settle(answered: Vec<Answered>, landing: Landing, route: &str) {
    let settlements = answered.into_iter().map(|answered| {
        let Answered { reply, mut trace, lease, hold, at, .. } = answered;
        let landing = &landing;
        async move {
            match landing {
                Landing::Confirmed => {
                    story::confirmed(&reply, at);
                    trace.stage("publish");
                    let acked = lease.ack().await;
                    trace.stage("settle");
                    match &acked {
                        Ok(()) => trace.answered(&reply),
                        Err(_) => trace.fail("not_settled", "not_settled"),
                    }
                    story::acked(&reply, at, acked);
                }
                Landing::Released(reason) => release(&reply.id, trace, lease, *reason).await,
                Landing::NoRoom => release(&reply.id, trace, lease, ReleaseReason::RouteFull).await,
                Landing::Undeliverable(error) => {
                    let reason = format!("reply_undeliverable: {error} (route {route})");
                    trace.fail("dead_lettered", &reason);
                    story::dead_lettered(Some(&reply.id), &reason, lease.dead_letter(reason.as_str()).await);
                }
            }
            drop(hold);
        }
    });
    join_all(settlements).await;
}

async fn release(id: &JobId, trace: Trace, lease: Lease, reason: ReleaseReason) {
    trace.released(reason.as_str());
    // What a full route holds back waits, so that others get their turn.
    let after = if reason == ReleaseReason::RouteFull { FULL_ROUTE_WAIT } else { Duration::ZERO };
    story::released(Some(id), reason.as_str(), after, lease.release(after).await);
}

fn encode(answered: Vec<Answered>) -> (Vec<Answered>, Vec<Message>) {
    let messages = answered.iter().map(message).collect();
    (answered, messages)
}

fn message(answered: &Answered) -> Message {
    let reply = &answered.reply;
    let mut attributes = Attributes::from([
        (attribute::CONTENT_TYPE.to_owned(), "application/json".to_owned()),
        (attribute::VERSION.to_owned(), VERSION.to_string()),
        (attribute::JOB_ID.to_owned(), reply.id.to_string()),
        (attribute::STATUS.to_owned(), reply.status.as_str().to_owned()),
        (attribute::ITEMS.to_owned(), reply.usage.items.to_string()),
        (attribute::TOKENS.to_owned(), reply.usage.tokens.to_string()),
    ]);
    let optional =
        [(attribute::SUBMISSION, &answered.submission), (attribute::AMQP_CORRELATION_ID, &answered.correlation_id)];
    for (name, value) in optional {
        if let Some(value) = value {
            attributes.insert(name.to_owned(), value.clone());
        }
    }
    answered.trace.context().put(&mut attributes);
    Message { body: Bytes::from(reply.encode()), attributes }
}
