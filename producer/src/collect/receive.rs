//! Replies from their route into the ledger.
//!
//! In: a consumer of the route. Out: a ledger that holds every reply, acked only then. While one pull is fetched, another is
//! decoded, and a third goes to the ledger; never more. Replies that point at objects are followed.

use std::future::pending;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesOrdered, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{Broker, BrokerError, ConsumeOptions, Consumer, Delivery, Lease, Pull};
use inferq_shared::bucket::BucketError;
use inferq_shared::job::attribute;
use inferq_shared::reply::Reply;
use inferq_shared::telemetry::traces::{self, Trace, TraceContext};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Route;
use crate::connect::{failed, quoted_path, this_command};
use crate::follow::Follower;
use crate::ledger::{Answer, Counts, Recorded, SharedLedger};
use crate::outage::LOOK_AGAIN;
use crate::outcome::Error;
use crate::pointer::{PointerError, Pointers};
use crate::progress::{Progress, Tally, grouped};

/// One pull brings no more than this: enough for a commit to be worth its sync.
const PULL: Pull = Pull { jobs: NonZeroUsize::new(1024).expect("1024 is not 0"), bytes: 16 << 20 };
/// After a crash, replies that were on their way to the ledger are free again after so long.
const LEASE: Duration = Duration::from_secs(5);
/// Objects that are read at once.
const FOLLOWING: usize = 16;
/// Pulls that are decoded at once.
const DECODING: usize = 2;
/// Pulls whose leases are being settled; no more are taken meanwhile.
const SETTLING: usize = 2;
/// Calls that fail before a wait is worth a line: some seconds.
const RETRIES_UNSAID: u32 = 6;
/// Jobs named when replies are missing.
const MISSING_NAMED: usize = 20;
/// How long a shared route's reply to somebody else is left alone.
const OTHERS_FOR: Duration = Duration::from_secs(30);
/// How long a reply is left alone that came before its job's confirm was recorded.
const EARLY_FOR: Duration = Duration::from_secs(1);

/// Receives replies into the ledger.
pub struct Collector<'a> {
    /// Where they are.
    pub broker: &'a Broker,
    /// Where exactly.
    pub route: &'a Route,
    /// Where they go.
    pub ledger: &'a SharedLedger,
    /// Where their results are, when they lie elsewhere.
    pub pointers: &'a Pointers,
    /// Who is told.
    pub progress: &'a Progress,
}

/// What came on the route, decoded.
struct Decoded {
    lease: Lease,
    trace: Trace,
    reply: Decoding,
}

enum Decoding {
    Answer(Answer),
    /// Its results are elsewhere.
    Pointer(Box<Reply>),
    Unfit(String),
}

/// What came on the route, read but not yet recorded.
struct Received {
    lease: Lease,
    trace: Trace,
    read: Result<Answer, String>,
}

/// What is in the ledger now, not yet settled.
struct Settling {
    lease: Lease,
    trace: Trace,
    fate: Recorded,
}

impl Collector<'_> {
    /// Receives until every job has a reply and `complete` says that no more jobs come. What is followed gets the rows
    /// of each job as soon as the ledger has its reply.
    ///
    /// # Errors
    /// When ledger, output or queue fail for good, at `deadline`, or when `stop` was cancelled.
    pub async fn receive_all(
        &self,
        mut complete: watch::Receiver<bool>,
        deadline: Option<Instant>,
        follower: &mut Option<Follower>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut consumer = self.consumer(stop).await?;
        let mut decoding = FuturesOrdered::new();
        let mut settling = FuturesUnordered::new();
        let mut retry = 0;
        let mut strangers = 0;
        self.show();
        while !(*complete.borrow_and_update() && self.counts().all_answered()) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Interrupted(self.way_on())),
                () = until(deadline) => return Err(self.timed_out()?),
                Ok(()) = complete.changed() => {}
                Some(()) = settling.next() => {}
                Some(received) = decoding.next() => {
                    let (unknown, settle) = self.record(received?, follower)?;
                    strangers += unknown;
                    settling.push(settle);
                    self.show();
                }
                received = consumer.receive(PULL), if decoding.len() < DECODING && settling.len() < SETTLING => match received {
                    Ok(deliveries) => {
                        retry = 0;
                        let route = self.route.name.clone();
                        decoding.push_back(self.read(spawn_blocking(move || decode(deliveries, &route))));
                    }
                    Err(error) if error.is_transient() => {
                        if retry == RETRIES_UNSAID {
                            self.progress.note(&format!("waiting: {error}"));
                        }
                        sleep(Backoff::BROKER.delay(retry, &mut rand::rng())).await;
                        retry += 1;
                    }
                    Err(error) => return Err(self.lost(error)),
                },
            }
        }
        while let Some(received) = decoding.next().await {
            let (unknown, settle) = self.record(received?, follower)?;
            strangers += unknown;
            settling.push(settle);
        }
        while settling.next().await.is_some() {}
        consumer.close().await;
        if strangers > 0 {
            self.progress.note(&format!("{} replies to unknown jobs came on {}", grouped(strangers), self.route.name));
        }
        Ok(())
    }

    /// Reads what was decoded to its end: replies that point elsewhere are followed.
    async fn read(&self, decoding: JoinHandle<Vec<Decoded>>) -> Result<Vec<Received>, Error> {
        let decoded = decoding.await.expect("decoding does not panic");
        stream::iter(decoded).map(|decoded| self.follow(decoded)).buffered(FOLLOWING).try_collect().await
    }

    async fn follow(&self, decoded: Decoded) -> Result<Received, Error> {
        let read = match decoded.reply {
            Decoding::Answer(answer) => Ok(answer),
            Decoding::Unfit(why) => Err(why),
            Decoding::Pointer(reply) => self.inlined(*reply).await?,
        };
        Ok(Received { lease: decoded.lease, trace: decoded.trace, read })
    }

    /// The answer with its results, however long the bucket is down. A pointer that leads nowhere makes a reply unfit; one
    /// that this user may not follow ends the command, which loses nothing.
    async fn inlined(&self, reply: Reply) -> Result<Result<Answer, String>, Error> {
        let mut said = false;
        loop {
            match self.pointers.inlined(reply.clone()).await {
                Ok(reply) => {
                    let body = Bytes::from(reply.encode());
                    let checked = Reply::decode(&body).map_err(|error| error.to_string());
                    return Ok(checked.map(|reply| Answer::new(&reply, body)));
                }
                Err(PointerError::Bucket(error)) if error.is_transient() => {
                    if !said {
                        self.progress.note(&format!("waiting: {error}"));
                        said = true;
                    }
                    sleep(LOOK_AGAIN).await;
                }
                Err(PointerError::Bucket(error @ BucketError::Forbidden { .. })) => return Err(error.into()),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }

    async fn consumer(&self, stop: &CancellationToken) -> Result<impl Consumer + use<>, Error> {
        let mut retry = 0;
        loop {
            let options = ConsumeOptions { lease: LEASE, ..ConsumeOptions::new() };
            match self.broker.consumer(&self.route.name, options).await {
                Err(error) if error.is_transient() && !stop.is_cancelled() => {
                    sleep(Backoff::BROKER.delay(retry, &mut rand::rng())).await;
                    retry += 1;
                }
                consumer => return consumer.map_err(|error| self.lost(error)),
            }
        }
    }

    /// Puts what was received into the ledger, and its rows into what is followed. Returns how many were to unknown
    /// jobs, and what settles them all.
    fn record(
        &self,
        received: Vec<Received>,
        follower: &mut Option<Follower>,
    ) -> Result<(u64, impl Future<Output = ()> + use<>), Error> {
        let (mut answers, mut settling, mut leases) = (Vec::new(), Vec::new(), Vec::new());
        for Received { lease, trace, read } in received {
            match read {
                Ok(answer) => {
                    answers.push(answer);
                    leases.push((lease, trace));
                }
                Err(why) => settling.push(Settling { lease, trace, fate: Recorded::Unfit(why) }),
            }
        }
        let fates = self.ledger.with(|ledger| -> Result<_, Error> {
            let fates = ledger.record_replies(&answers)?;
            if let Some(follower) = follower {
                follower.write(ledger, &first_of(&fates))?;
            }
            Ok(fates)
        })?;
        settling.extend(leases.into_iter().zip(fates).map(|((lease, trace), fate)| Settling { lease, trace, fate }));
        for unfit in settling.iter().filter_map(|settling| settling.why_unfit()) {
            self.progress.note(&format!("a message on {} goes to its dead letters: {unfit}", self.route.name));
        }
        let leave_for = match (self.route.own, self.counts().complete) {
            (false, _) => Some(OTHERS_FOR),
            (true, false) => Some(EARLY_FOR),
            (true, true) => None,
        };
        let unknown = settling.iter().filter(|settling| settling.fate == Recorded::Unknown).count();
        let strangers = if leave_for == Some(EARLY_FOR) { 0 } else { unknown as u64 };
        // A reply whose settling fails comes again, as a duplicate.
        let settle = join_all(settling.into_iter().map(move |settling| settling.settle(leave_for)));
        Ok((strangers, async move { drop(settle.await) }))
    }

    fn counts(&self) -> Counts {
        self.ledger.with(|ledger| ledger.counts())
    }

    fn show(&self) {
        let counts = self.counts();
        self.progress.reach(Tally { items: counts.items_answered, tokens: counts.tokens });
    }

    fn lost(&self, error: BrokerError) -> Error {
        match error {
            BrokerError::UnknownQueue(route) => Error::Usage(format!(
                "the route {route} is gone: it expired or was removed; the same `inferq submit` with \
                 --resubmit-unanswered makes it again"
            )),
            error => failed(&self.route.url, error),
        }
    }

    /// What to tell who interrupted it.
    pub fn way_on(&self) -> String {
        let counts = self.counts();
        format!(
            "interrupted with {} of {} jobs answered; to go on: {}",
            grouped(counts.answered),
            grouped(counts.jobs),
            this_command()
        )
    }

    fn timed_out(&self) -> Result<Error, Error> {
        let counts = self.counts();
        let (ledger, missing) =
            self.ledger.with(|ledger| (quoted_path(ledger.path()), ledger.unanswered(MISSING_NAMED)));
        let missing = missing?;
        let mut text = format!(
            "timed out: {} of {} jobs have no reply yet\n",
            grouped(counts.jobs - counts.answered),
            grouped(counts.jobs)
        );
        for (job, place) in &missing {
            text += &format!("  {job}  from {place} on\n");
        }
        let unnamed = (counts.jobs - counts.answered).saturating_sub(missing.len() as u64);
        if unnamed > 0 {
            text += &format!("  and {} more\n", grouped(unnamed));
        }
        text += &format!(
            "to wait on: {}\nto send them again: the same `inferq submit` with --ledger {ledger} --resubmit-unanswered",
            this_command()
        );
        Ok(Error::TimedOut(text))
    }
}

/// The chunks that got their first reply.
fn first_of(fates: &[Recorded]) -> Vec<u64> {
    let first = fates.iter().filter_map(|fate| match fate {
        Recorded::First(chunk) => Some(*chunk),
        _ => None,
    });
    first.collect()
}

fn decode(deliveries: Vec<Delivery>, route: &str) -> Vec<Decoded> {
    deliveries.into_iter().map(|delivery| Decoded::of(delivery, route)).collect()
}

impl Decoded {
    fn of(mut delivery: Delivery, route: &str) -> Self {
        let trace = if traces::is_on() { begin(&mut delivery, route) } else { Trace::default() };
        let body: Bytes = delivery.message.body;
        let reply = match Reply::decode(&body) {
            Err(error) => Decoding::Unfit(error.to_string()),
            Ok(reply) if reply.output_uri.is_some() && reply.results.is_empty() => Decoding::Pointer(Box::new(reply)),
            Ok(reply) => Decoding::Answer(Answer::new(&reply, body)),
        };
        Self { lease: delivery.lease, trace, reply }
    }
}

/// Goes on with the trace of the job that a reply is to.
fn begin(delivery: &mut Delivery, route: &str) -> Trace {
    let attributes = &mut delivery.message.attributes;
    let came = TraceContext::take(attributes);
    Trace::collecting(came, route, attributes.get(attribute::JOB_ID).map_or("", String::as_str))
}

impl Settling {
    fn why_unfit(&self) -> Option<&str> {
        match &self.fate {
            Recorded::Unfit(why) => Some(why),
            _ => None,
        }
    }

    /// Ends the lease; a reply to an unknown job is given back for so long, if that is wanted.
    async fn settle(self, leave_for: Option<Duration>) -> Result<(), BrokerError> {
        let Self { lease, trace, fate } = self;
        match (fate, leave_for) {
            (Recorded::Unknown, Some(after)) => {
                trace.released("unknown");
                lease.release(after).await
            }
            (Recorded::First(_) | Recorded::Duplicate | Recorded::Unknown, _) => {
                let acked = lease.ack().await;
                trace.end("collected");
                acked
            }
            (Recorded::Unfit(why), _) => {
                trace.fail("dead_lettered", "unfit");
                lease.dead_letter(why).await
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
