//! A submission at work: jobs published, confirmed and recorded.
//!
//! In: a checked input, a ledger that has begun, a queue. Out: every job on the queue, and a ledger that says so. What is
//! read, waiting and in flight is bounded. A broker that is away or full is waited for.

use std::thread;
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, Message, Publisher, QueueOptions};
use inferq_shared::job::attribute;
use inferq_shared::telemetry::traces::{self, Trace, TraceContext};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::check::CheckedInput;
use super::reader::{Group, read};
use crate::connect::failed;
use crate::ledger::{Confirmed, SharedLedger};
use crate::outcome::Error;
use crate::progress::{Progress, Total, Waiting};
use crate::recipe::Recipe;

/// Which of the jobs that the ledger knows as confirmed are published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// None.
    Nothing,
    /// Those without a reply.
    Unanswered,
}

/// What is said while the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// That it is: somebody must start workers.
    Say,
    /// Nothing: the bound is ours, and our worker is at it.
    Wait,
}

/// A replies' route goes when nobody has used it for so long.
pub(super) const ROUTE_EXPIRES: Duration = Duration::from_secs(31 * 86400);
/// Room in a full queue comes with every ack: it is looked for more often than a lost broker.
const WHILE_FULL: Backoff = Backoff { first: Duration::from_millis(10), cap: Duration::from_millis(200) };
/// Waiting for so long is worth a line.
const SAY_AFTER: Duration = Duration::from_secs(3);
/// Groups that wait for their confirm: enough that the broker has work while the ledger is synced,
const GROUPS_IN_FLIGHT: usize = 8;
/// but, beyond two groups, no more bytes than this.
const BYTES_IN_FLIGHT: usize = 2 << 20;
/// How often progress is told when nothing else happens.
const BEAT: Duration = Duration::from_secs(1);

/// A submission at work.
pub struct Submission<'a> {
    /// Where it goes.
    pub broker: &'a Broker,
    /// The queue's address and names.
    pub queue: &'a BrokerUrl,
    /// What it remembers.
    pub ledger: SharedLedger,
    /// Its id.
    pub submission: String,
    /// What its jobs ask for.
    pub recipe: Recipe,
    /// Which confirmed jobs are published again.
    pub again: Again,
    /// What is said while the queue is full.
    pub when_full: WhenFull,
    /// Its span.
    pub trace: Trace,
}

/// What one run of a submission did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Jobs confirmed in this run.
    pub jobs: u64,
    /// Chunks of the whole input.
    pub chunks: u64,
}

impl Submission<'_> {
    /// Makes the route that the replies take, before anything is published.
    ///
    /// # Errors
    /// When the broker refuses or can't be reached.
    pub async fn declare_route(&self) -> Result<(), Error> {
        let route = self.queue.queues.submission(&self.submission);
        let options = QueueOptions { expires: Some(ROUTE_EXPIRES), ..QueueOptions::default() };
        self.broker.declare(&route, options).await.map_err(|error| failed(self.queue, error))
    }

    /// Publishes every job that is not confirmed yet, and records that the whole input has been submitted. Calls
    /// `report` with the rows confirmed and the estimated total, now and then.
    ///
    /// # Errors
    /// When input, ledger or queue fail for good, the input has changed, or `stop` was cancelled.
    pub async fn publish_all(
        &self,
        input: CheckedInput,
        progress: &Progress,
        stop: &CancellationToken,
        report: impl Fn(u64, Total),
    ) -> Result<Published, Error> {
        let (tx, mut groups) = mpsc::channel(2);
        let (recipe, submission) = (self.recipe.clone(), self.submission.clone());
        let reader = thread::spawn(move || read(input, &recipe, &submission, &tx));
        let mut in_flight = FuturesOrdered::new();
        let (mut rows, mut total, mut published, mut bytes) = (0, Total::Unknown, Published::default(), 0);
        let mut reading = true;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while reading || !in_flight.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Interrupted("interrupted".to_owned())),
                Some(done) = in_flight.next() => {
                    let (done, failed) = so_far(done, &mut in_flight);
                    self.ledger.with(|ledger| ledger.record_confirmed(&done.chunks))?;
                    failed?;
                    bytes -= done.bytes;
                    rows += done.chunks.iter().map(Confirmed::rows).sum::<u64>();
                    published.jobs += done.jobs;
                    published.chunks += done.chunks.len() as u64;
                    total = Total::estimate(rows, done.fraction);
                    report(rows, total);
                }
                group = groups.recv(), if reading && has_room(in_flight.len(), bytes) => match group {
                    Some(group) => {
                        let group = group?;
                        bytes += group.bytes;
                        group.notes.iter().for_each(|line| progress.note(line));
                        in_flight.push_back(self.publish(self.unpublished(group)?, progress));
                    }
                    None => reading = false,
                },
                _ = beat.tick() => report(rows, total),
            }
        }
        // Its channel is closed, so the thread has ended.
        reader.join().expect("reading does not panic");
        self.ledger.with(|ledger| ledger.record_complete(published.chunks))?;
        report(rows, Total::Exactly(rows));
        Ok(published)
    }

    /// The group without the messages that need not be published.
    fn unpublished(&self, mut group: Group) -> Result<Group, Error> {
        self.ledger.with(|ledger| {
            for (chunk, message) in &mut group.jobs {
                let needed = match self.again {
                    _ if !ledger.is_confirmed(chunk)? => true,
                    Again::Nothing => false,
                    Again::Unanswered => !ledger.is_answered(chunk.number())?,
                };
                if !needed {
                    *message = None;
                }
            }
            Ok(group)
        })
    }

    async fn publish(&self, group: Group, progress: &Progress) -> Result<Done, Error> {
        let (chunks, messages): (Vec<_>, Vec<_>) = group.jobs.into_iter().unzip();
        let messages: Vec<Message> = messages.into_iter().flatten().collect();
        let (jobs, bytes) = (messages.len() as u64, group.bytes);
        self.publish_until_confirmed(messages, progress).await.map_err(|error| failed(self.queue, error))?;
        Ok(Done { chunks, jobs, bytes, fraction: group.fraction })
    }

    /// Publishes `messages`, again and again while the broker is away or full. The job ids make the repeats harmless.
    pub(super) async fn publish_until_confirmed(
        &self,
        mut messages: Vec<Message>,
        progress: &Progress,
    ) -> Result<(), BrokerError> {
        if messages.is_empty() {
            return Ok(());
        }
        let traces = if traces::is_on() { self.trace_each(&mut messages) } else { Vec::new() };
        let published = self.publish_each(&messages, progress).await;
        for trace in traces {
            match &published {
                Ok(()) => trace.end("published"),
                Err(_) => trace.fail("failed", "not_published"),
            }
        }
        published
    }

    /// Begins a span for each message, and says in it which trace it belongs to.
    fn trace_each(&self, messages: &mut [Message]) -> Vec<Trace> {
        let begin = |message: &mut Message| {
            let came = TraceContext::take(&mut message.attributes);
            let id = message.attributes.get(attribute::JOB_ID).map_or("", String::as_str);
            let trace = Trace::publishing(came, &self.queue.queues.jobs, id, &self.trace);
            trace.context().put(&mut message.attributes);
            trace
        };
        messages.iter_mut().map(begin).collect()
    }

    async fn publish_each(&self, messages: &[Message], progress: &Progress) -> Result<(), BrokerError> {
        let publisher = self.broker.publisher();
        let (started, mut waiting, mut retry) = (Instant::now(), None::<Waiting<'_>>, 0);
        loop {
            let error = match publisher.publish(&self.queue.queues.jobs, stamped(messages, Timestamp::now())).await {
                Err(error) if error.is_transient() => error,
                done => {
                    if let (Ok(()), Some(waiting)) = (&done, waiting) {
                        waiting.over();
                    }
                    return done;
                }
            };
            let full = matches!(error, BrokerError::Full(_));
            if started.elapsed() > SAY_AFTER && !(full && self.when_full == WhenFull::Wait) {
                waiting.get_or_insert_with(|| progress.wait(&error.to_string()));
            }
            let backoff = if full { WHILE_FULL } else { Backoff::BROKER };
            sleep(backoff.delay(retry, &mut rand::rng())).await;
            retry += 1;
        }
    }
}

/// Whether another group may be on its way beside so many.
fn has_room(groups: usize, bytes: usize) -> bool {
    groups < 2 || (groups < GROUPS_IN_FLIGHT && bytes < BYTES_IN_FLIGHT)
}

/// `first` and the groups after it that are confirmed by now, as one: the ledger is synced once for all of them. What
/// failed after them comes beside them, as they must be recorded all the same.
fn so_far<F: Future<Output = Result<Done, Error>>>(
    first: Result<Done, Error>,
    in_flight: &mut FuturesOrdered<F>,
) -> (Done, Result<(), Error>) {
    let (mut all, mut next) = (Done::default(), Some(first));
    while let Some(done) = next {
        match done {
            Ok(done) => all.extend(done),
            Err(error) => return (all, Err(error)),
        }
        next = in_flight.next().now_or_never().flatten();
    }
    (all, Ok(()))
}

/// Groups that the broker has confirmed.
#[derive(Default)]
struct Done {
    chunks: Vec<Confirmed>,
    jobs: u64,
    bytes: usize,
    fraction: Option<f64>,
}

impl Done {
    fn extend(&mut self, later: Self) {
        self.chunks.extend(later.chunks);
        self.jobs += later.jobs;
        self.bytes += later.bytes;
        self.fraction = later.fraction;
    }
}

/// The messages as published at `now`.
fn stamped(messages: &[Message], now: Timestamp) -> Vec<Message> {
    let stamp = |message: &Message| {
        let mut message = message.clone();
        message.attributes.insert(attribute::PUBLISHED_AT.to_owned(), now.as_millisecond().to_string());
        message
    };
    messages.iter().map(stamp).collect()
}
