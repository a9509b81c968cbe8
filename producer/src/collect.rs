//! `inferq collect`: the submission's replies into the ledger, and from there one row an item, in input order.
//!
//! In: a ledger, and the route that its submission's replies take. Out: the output file. A reply is acked only after
//! the ledger has it, so that a crash loses none; the same command goes on. It keeps the best reply of each job, and
//! never holds more replies than one pull brings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Delivery, Lease, Pull};
use inferq_shared::job::Encoding;
use inferq_shared::reply::{Embedding, Reply, ReplyError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::connect::{connect, failed, quoted_path};
use crate::ledger::{Answered, Counts, Ledger, LedgerError, Recorded, SharedLedger};
use crate::outcome::{Error, Outcome};
use crate::progress::{Progress, Tally, Total, grouped};
use crate::sink::{Output, Row, Sink};
use crate::submit::encoding;

/// The flags of `inferq collect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ledger that `submit` made.
    #[arg(long, env = "INFERQ_LEDGER", value_name = "FILE")]
    ledger: PathBuf,
    /// Where the rows go: a file, replaced only when all rows are there, or - for stdout.
    #[arg(long, env = "INFERQ_OUTPUT", value_name = "FILE|-")]
    output: Output,
    /// How embeddings are written: JSON numbers, or base64 of little-endian f32.
    #[arg(long, env = "INFERQ_OUTPUT_ENCODING", value_name = "float|base64", default_value = "float", value_parser = encoding)]
    encoding: Encoding,
    /// Stop after so many seconds, say what is missing, and exit 75. Nothing is lost; the same command goes on.
    #[arg(long, env = "INFERQ_TIMEOUT_S", value_name = "SECONDS")]
    timeout_s: Option<u64>,
    /// The queue's address, when it is no longer the one that `submit` used.
    #[arg(long, value_name = "URL")]
    queue: Option<BrokerUrl>,
    /// Take replies from the queue that this address names, instead of the submission's own route. Replies to others
    /// stay there.
    #[arg(long, env = "INFERQ_RESULTS", value_name = "URL")]
    results: Option<BrokerUrl>,
}

/// One pull brings no more than this.
const PULL: Pull = Pull { jobs: NonZeroUsize::new(1024).expect("1024 is not 0"), bytes: 32 << 20 };
/// Calls that fail before a wait is worth a line: some seconds.
const RETRIES_UNSAID: u32 = 6;
/// Ids named when replies are missing.
const MISSING_NAMED: usize = 10;
/// How long a shared route's reply to somebody else is left alone.
const OTHERS_FOR: Duration = Duration::from_secs(30);

/// Runs `inferq collect`.
///
/// # Errors
/// When ledger, output or queue can't be used, replies are missing at the timeout, or a signal came.
pub async fn collect(args: Args, stop: CancellationToken) -> Result<Outcome, Error> {
    args.output.check()?;
    let ledger = Ledger::open(&args.ledger)?;
    let counts = ledger.counts();
    let route = Route::of(&ledger, &args)?;
    if !counts.complete {
        let message = format!(
            "the submission in {} is not complete ({} jobs so far): finish it with the same `inferq submit` first",
            quoted_path(&args.ledger),
            grouped(counts.jobs)
        );
        return Err(Error::Usage(message));
    }
    let ledger = SharedLedger::new(ledger);
    let broker = connect(&route.url).await?;
    if !counts.all_answered() {
        let progress = Progress::new();
        progress.expect(Total::Exactly(counts.entries - counts.bad));
        let collector = Collector { broker: &broker, route: &route, ledger: &ledger, progress: &progress };
        // Nothing is submitted meanwhile, so this never changes.
        let (_submitting, complete) = watch::channel(true);
        let deadline = args.timeout_s.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        if let Err(error) = collector.receive_all(complete, deadline, &stop).await {
            // Gives back what it had received, so that the same command finds it at once.
            broker.close().await;
            return Err(error);
        }
    }
    let summary = ledger.with(|ledger| write_output(ledger, &args.output, args.encoding))?;
    if route.own {
        // The output is there: a route that can't be removed now expires by itself.
        if let Err(error) = broker.remove(&route.name).await {
            eprintln!("warning: the route {} stays until it expires: {error}", route.name);
        }
    }
    broker.close().await;
    summary.report(&args.output);
    Ok(summary.outcome())
}

/// Where a submission's replies come.
pub struct Route {
    /// The queue's address.
    pub url: BrokerUrl,
    /// The queue to receive from.
    pub name: String,
    /// Whether it is the submission's alone.
    pub own: bool,
}

impl Route {
    fn of(ledger: &Ledger, args: &Args) -> Result<Self, Error> {
        if let Some(url) = &args.results {
            return Ok(Self { url: url.clone(), name: url.queues.jobs.clone(), own: false });
        }
        let (Some(plan), Some(submission)) = (ledger.plan()?, ledger.submission()) else {
            let message = format!("ledger {} holds no submission yet: run `inferq submit`", args.ledger.display());
            return Err(Error::Usage(message));
        };
        let stored = || plan.queue.parse().map_err(|_| LedgerError::NotALedger(args.ledger.clone()));
        let url: BrokerUrl = args.queue.clone().map_or_else(stored, Ok)?;
        Ok(Self { name: url.queues.submission(submission), url, own: true })
    }
}

/// Receives replies into the ledger.
pub struct Collector<'a> {
    /// Where they are.
    pub broker: &'a Broker,
    /// Where exactly.
    pub route: &'a Route,
    /// Where they go.
    pub ledger: &'a SharedLedger,
    /// Who is told.
    pub progress: &'a Progress,
}

/// What came on the route and is in the ledger now, not yet settled.
struct Settling {
    lease: Lease,
    fate: Recorded,
}

impl Collector<'_> {
    /// Receives until every job has a reply and `complete` says that no more jobs come.
    ///
    /// # Errors
    /// When ledger or queue fail for good, at `deadline`, or when `stop` was cancelled.
    pub async fn receive_all(
        &self,
        mut complete: watch::Receiver<bool>,
        deadline: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut consumer = self.consumer(stop).await?;
        let mut retry = 0;
        let mut strangers = 0;
        self.show();
        while !(*complete.borrow_and_update() && self.counts().all_answered()) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Interrupted(self.way_on())),
                () = until(deadline) => return Err(self.timed_out()?),
                Ok(()) = complete.changed() => {}
                received = consumer.receive(PULL) => match received {
                    Ok(deliveries) => {
                        retry = 0;
                        strangers += self.take(deliveries).await?;
                        self.show();
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
        consumer.close().await;
        if strangers > 0 {
            self.progress.note(&format!("{} replies to unknown jobs came on {}", grouped(strangers), self.route.name));
        }
        Ok(())
    }

    async fn consumer(&self, stop: &CancellationToken) -> Result<impl Consumer + use<>, Error> {
        let mut retry = 0;
        loop {
            match self.broker.consumer(&self.route.name, ConsumeOptions::new()).await {
                Err(error) if error.is_transient() && !stop.is_cancelled() => {
                    sleep(Backoff::BROKER.delay(retry, &mut rand::rng())).await;
                    retry += 1;
                }
                consumer => return consumer.map_err(|error| self.lost(error)),
            }
        }
    }

    /// Puts what was received into the ledger, then settles it. Returns how many were to unknown jobs.
    async fn take(&self, deliveries: Vec<Delivery>) -> Result<u64, Error> {
        let decoded = deliveries.into_iter().map(|delivery| (Reply::decode(&delivery.message.body), delivery));
        let (mut replies, mut settling) = (Vec::new(), Vec::new());
        let mut leases = Vec::new();
        for (decoded, delivery) in decoded {
            match decoded {
                Ok(reply) => {
                    replies.push((reply, delivery.message.body));
                    leases.push(delivery.lease);
                }
                Err(error) => {
                    settling.push(Settling { lease: delivery.lease, fate: Recorded::Unfit(error.to_string()) })
                }
            }
        }
        let fates = self.ledger.with(|ledger| ledger.record_replies(&replies))?;
        settling.extend(leases.into_iter().zip(fates).map(|(lease, fate)| Settling { lease, fate }));
        let strangers = settling.iter().filter(|settling| settling.fate == Recorded::Unknown).count();
        for unfit in settling.iter().filter_map(|settling| settling.why_unfit()) {
            self.progress.note(&format!("a message on {} goes to its dead letters: {unfit}", self.route.name));
        }
        // A reply whose settling fails comes again, as a duplicate.
        join_all(settling.into_iter().map(|settling| settling.settle(self.route.own))).await;
        Ok(strangers as u64)
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
            "interrupted with {} of {} jobs answered; the same command goes on from there",
            grouped(counts.answered),
            grouped(counts.jobs)
        )
    }

    fn timed_out(&self) -> Result<Error, Error> {
        let counts = self.counts();
        let ids = self.ledger.with(|ledger| ledger.unanswered(MISSING_NAMED))?;
        let ids: Vec<_> = ids.iter().map(|id| id.as_str()).collect();
        Ok(Error::TimedOut(format!(
            "timed out: {} of {} jobs have no reply yet, first {}; the same command goes on, `inferq submit` with \
             --resubmit-unanswered sends them again",
            grouped(counts.jobs - counts.answered),
            grouped(counts.jobs),
            ids.join(" ")
        )))
    }
}

impl Settling {
    fn why_unfit(&self) -> Option<&str> {
        match &self.fate {
            Recorded::Unfit(why) => Some(why),
            _ => None,
        }
    }

    async fn settle(self, own_route: bool) -> Result<(), BrokerError> {
        match self.fate {
            Recorded::Unknown if !own_route => self.lease.release(OTHERS_FOR).await,
            Recorded::First | Recorded::Duplicate | Recorded::Unknown => self.lease.ack().await,
            Recorded::Unfit(why) => self.lease.dead_letter(why).await,
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// What an output holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows with a result.
    pub succeeded: u64,
    /// Rows with an error, by its code.
    pub failed: BTreeMap<String, u64>,
}

impl Summary {
    /// Whether any row has an error.
    pub fn outcome(&self) -> Outcome {
        if self.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed }
    }

    /// Says on stderr what was written.
    pub fn report(&self, output: &Output) {
        let failed: u64 = self.failed.values().sum();
        eprintln!("{} items in {output}", grouped(self.succeeded + failed));
        if failed > 0 {
            let by_code: Vec<_> = self.failed.iter().map(|(code, n)| format!("{code} {}", grouped(*n))).collect();
            eprintln!("{} of them have an error instead of a result: {}", grouped(failed), by_code.join(", "));
        }
    }
}

/// Writes one row an item, in input order, from the best replies. Every job has one by now.
///
/// # Errors
/// When the ledger can't be read or the output can't be written.
pub fn write_output(ledger: &Ledger, output: &Output, encoding: Encoding) -> Result<Summary, Error> {
    let mut sink = Sink::create(output)?;
    let mut summary = Summary::default();
    ledger.for_each(|answered| {
        for row in rows(answered, encoding)? {
            match &row.error {
                None => summary.succeeded += 1,
                Some(error) => *summary.failed.entry(error.code.clone()).or_default() += 1,
            }
            sink.write(&row)?;
        }
        Ok::<_, Error>(())
    })?;
    sink.finish()?;
    Ok(summary)
}

/// The rows of one chunk: its job's answers with its bad lines in their places.
fn rows(answered: Answered, encoding: Encoding) -> Result<Vec<Row<'static>>, Error> {
    let Answered { job, first, items, mut ids, bad, reply } = answered;
    ids.resize(items as usize, None);
    let id_of = |at: usize, id: Option<String>| Cow::Owned(id.unwrap_or_else(|| format!("{job}/{at}")));
    let mut answers = match reply {
        Some(body) => answers(Reply::decode(&body).map_err(|error| unreadable(&job, &error))?, items),
        None if items == 0 => Vec::new(),
        None => return Err(unreadable(&job, &"it has no reply")),
    }
    .into_iter()
    .zip(ids)
    .enumerate();
    let mut bad = bad.into_iter().peekable();
    let entries = first..first + items + bad.len() as u64;
    let row = |index| {
        if let Some((_, id, error)) = bad.next_if(|(at, _, _)| *at == index) {
            let id = Cow::Owned(id.unwrap_or_else(|| format!("{job}/bad-{index}")));
            return Some(Row {
                id,
                index,
                embedding: None,
                labels: None,
                error: Some(Cow::Owned(error)),
                tokens: None,
            });
        }
        let (at, (answer, id)) = answers.next()?;
        let embedding = answer.embedding.map(|embedding| encoded(embedding, encoding));
        let error = answer.error.map(Cow::Owned);
        Some(Row { id: id_of(at, id), index, embedding, labels: answer.labels, error, tokens: answer.tokens })
    };
    Ok(entries.map_while(row).collect())
}

/// A job's answers, one an item; the job's own error for each when it was not run.
fn answers(reply: Reply, items: u64) -> Vec<inferq_shared::reply::ItemResult> {
    if !reply.results.is_empty() {
        return reply.results;
    }
    let error =
        reply.error.unwrap_or_else(|| ReplyError::new("no_result", "the reply holds neither results nor an error"));
    let result = |index| inferq_shared::reply::ItemResult {
        id: String::new(),
        index: index as u32,
        embedding: None,
        labels: None,
        error: Some(error.clone()),
        tokens: None,
    };
    (0..items).map(result).collect()
}

fn encoded(embedding: Embedding, encoding: Encoding) -> Embedding {
    match (embedding, encoding) {
        (Embedding::Base64(values), Encoding::Float) => Embedding::Float(values),
        (Embedding::Float(values), Encoding::Base64) => Embedding::Base64(values),
        (embedding, _) => embedding,
    }
}

fn unreadable(job: &inferq_shared::job::JobId, why: &dyn std::fmt::Display) -> Error {
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_string());
    Error::io(format!("the ledger's reply to {job}"), error)
}
