//! `inferq bench`: an open-loop load on a queue, and how long its answers take.
//!
//! In: a queue that workers serve, a rate, the shape of the jobs. Out: percentiles of the time from the instant at
//! which a job was due to its reply, as a table, JSON and a plot. What is due is published whether or not earlier jobs
//! have been answered, and a job that could only be published late counts from when it was due: so a stall shows in
//! every job that it delays. Bounded by the number of jobs: some bytes for each.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use inferq_shared::broker::{
    AnyConsumer, AnyPublisher, Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher,
    Pull, QueueOptions,
};
use inferq_shared::job::{Encoding, Input, Item, attribute};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::connect::{connect, failed, print, say};
use crate::ledger::job_id;
use crate::outcome::{Error, Outcome};
use crate::pace::Pace;
use crate::paint::Paint;
use crate::progress::{Progress, Tally, Total, grouped};
use crate::recipe::{JobArgs, Recipe};
use crate::report::{Latencies, Percentiles, Window};

mod plot;

/// The flags of `inferq bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db, amqp://user:password@host/vhost?queue=jobs or
    /// pubsub://project/jobs.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: BrokerUrl,
    /// Jobs a second, on average: they come at random, as from many independent users.
    #[arg(long, value_name = "JOBS/S", default_value = "10", value_parser = rate)]
    rate: f64,
    /// How long jobs come, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    duration_s: u64,
    /// Tokens of a text, roughly: a number, or two for anything between them, like 8-64.
    #[arg(long, value_name = "N|MIN-MAX", default_value = "16", value_parser = lengths)]
    text_tokens: Lengths,
    #[command(flatten)]
    job: JobArgs,
    /// Makes the same load again: arrivals and texts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long answers are waited for after the last job was due, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout_s: u64,
    /// Write everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the latency over time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Tokens of a text: from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    least: usize,
    most: usize,
}

/// The most jobs that one load may have: some bytes are kept of each.
const JOBS_MAX: f64 = 10_000_000.0;
/// Jobs that are published together.
const GROUP_JOBS: usize = 256;
/// Publishes that wait for their confirm.
const GROUPS_IN_FLIGHT: usize = 64;
/// One pull brings no more than this.
const PULL: Pull = Pull { jobs: NonZeroUsize::new(1024).expect("1024 is not 0"), bytes: 32 << 20 };
/// The route goes when nobody has used it for so long: time for late answers to have somewhere to go.
const ROUTE_EXPIRES: Duration = Duration::from_secs(3600);

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.001..=1_000_000.0).contains(&rate) { Ok(rate) } else { Err("must be 0.001 to 1000000".to_owned()) }
}

fn lengths(text: &str) -> Result<Lengths, String> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|tokens| (1..=100_000).contains(tokens));
    let wrong = || format!("{text:?} must be a number of 1 to 100000, or two like 8-64");
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    match (number(least), number(most)) {
        (Some(least), Some(most)) if least <= most => Ok(Lengths { least, most }),
        _ => Err(wrong()),
    }
}

/// Runs `inferq bench`.
///
/// # Errors
/// When the queue or the files can't be used.
pub async fn bench(args: Args, paint: Paint, stop: CancellationToken) -> Result<Outcome, Error> {
    let length = Duration::from_secs(args.duration_s);
    if args.rate * length.as_secs_f64() > JOBS_MAX {
        let message =
            format!("--rate times --duration-s is above {} jobs: lower one of them", grouped(JOBS_MAX as u64));
        return Err(Error::Usage(message));
    }
    args.json.iter().chain(&args.svg).try_for_each(|file| check_directory(file))?;
    let broker = connect(&args.queue).await?;
    let measured = measure(&broker, &args, length, &stop).await;
    broker.close().await;
    let measured = measured?;
    print(&measured.table(paint))?;
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&measured).expect("what was measured has only string keys");
        write(file, &(json + "\n"))?;
    }
    if let Some(file) = &args.svg {
        write(file, &plot::svg(&measured))?;
    }
    Ok(if measured.jobs.errors.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}

fn check_directory(file: &Path) -> Result<(), Error> {
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if directory.is_dir() {
        return Ok(());
    }
    Err(Error::Usage(format!("{}: there is no directory {}", file.display(), directory.display())))
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(|error| Error::io(format!("can't write {}", file.display()), error))
}

/// What was measured; documented in docs/operations.md.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Measured {
    queue: String,
    rate: f64,
    duration_s: u64,
    items_per_job: u32,
    text_tokens: [usize; 2],
    seed: u64,
    jobs: Jobs,
    published_per_s: f64,
    answered_per_s: f64,
    /// From when a job was due to its reply.
    latency_ms: Percentiles,
    /// From when a job was due to its publishing's confirm.
    published_ms: Percentiles,
    windows: Vec<Window>,
}

/// How the jobs ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Jobs {
    due: u64,
    published: u64,
    answered: u64,
    /// By the reply's status or error code, `publish_failed` or `unanswered`.
    errors: BTreeMap<String, u64>,
}

impl Jobs {
    fn fail(&mut self, code: &str, count: u64) {
        if count > 0 {
            *self.errors.entry(code.to_owned()).or_default() += count;
        }
    }
}

async fn measure(broker: &Broker, args: &Args, length: Duration, stop: &CancellationToken) -> Result<Measured, Error> {
    let url = &args.queue;
    let named = |error| failed(url, error);
    broker.status(&url.queues.jobs).await.map_err(named)?;
    let name = format!("bench-{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff);
    let route = url.queues.submission(&name);
    let options = QueueOptions { expires: Some(ROUTE_EXPIRES), ..QueueOptions::default() };
    broker.declare(&route, options).await.map_err(named)?;
    let consumer = broker.consumer(&route, ConsumeOptions::new()).await.map_err(named)?;

    let due: Vec<Duration> = Pace::new(args.rate, length, args.seed).collect();
    let recipe = Recipe::new(&args.job, Encoding::Base64);
    let texts = Texts { lengths: args.text_tokens, items: args.job.items_per_job, seed: args.seed };
    let load = Load { name: &name, queue: &url.queues.jobs, due: &due, recipe, texts, started: Instant::now() };
    let (published, publishing_ended) = watch::channel(None);
    let give_up = load.started + due.last().copied().unwrap_or_default() + Duration::from_secs(args.timeout_s);
    let progress = Progress::of("jobs");
    progress.expect(Total::Exactly(due.len() as u64));
    // The first that fails ends the other: without publishing no answers come.
    let (sent, got) = tokio::try_join!(
        load.publish(broker.publisher(), published, stop),
        load.receive(consumer, publishing_ended, (give_up, stop), &progress),
    )
    .map_err(named)?;
    progress.finish();
    let mut jobs =
        Jobs { due: due.len() as u64, published: sent.published, answered: got.answered, errors: got.errors };
    jobs.fail("publish_failed", sent.failed);
    let unanswered = jobs.published.saturating_sub(jobs.answered);
    jobs.fail("unanswered", unanswered);
    if unanswered > 0 {
        say(&format!(
            "{} jobs are unanswered and stay in {}; late answers go to {route}",
            grouped(unanswered),
            load.queue
        ));
    } else if let Err(error) = broker.remove(&route).await {
        say(&format!("warning: the route {route} stays until it expires: {error}"));
    }
    Ok(Measured {
        queue: url.to_string(),
        rate: args.rate,
        duration_s: args.duration_s,
        items_per_job: args.job.items_per_job,
        text_tokens: [args.text_tokens.least, args.text_tokens.most],
        seed: args.seed,
        published_per_s: jobs.published as f64 / sent.took.max(length).as_secs_f64(),
        answered_per_s: jobs.answered as f64 / got.took.max(length).as_secs_f64(),
        jobs,
        latency_ms: got.latencies.percentiles(),
        published_ms: sent.latencies.percentiles(),
        windows: got.latencies.windows(),
    })
}

/// The load, ready to go.
struct Load<'a> {
    name: &'a str,
    queue: &'a str,
    due: &'a [Duration],
    recipe: Recipe,
    texts: Texts,
    started: Instant,
}

/// What publishing did.
struct Sent {
    published: u64,
    failed: u64,
    latencies: Latencies,
    took: Duration,
}

/// What came back.
struct Got {
    answered: u64,
    errors: BTreeMap<String, u64>,
    latencies: Latencies,
    took: Duration,
}

impl Load<'_> {
    fn length(&self) -> Duration {
        self.due.last().copied().unwrap_or_default()
    }

    /// Publishes each job when it is due, and says at the end how many were.
    async fn publish(
        &self,
        publisher: AnyPublisher,
        ended: watch::Sender<Option<u64>>,
        stop: &CancellationToken,
    ) -> Result<Sent, BrokerError> {
        let mut sent = Sent { published: 0, failed: 0, latencies: Latencies::new(self.length()), took: Duration::ZERO };
        let mut in_flight = FuturesUnordered::new();
        let mut next = 0;
        while next < self.due.len() || !in_flight.is_empty() {
            let due = self.due.get(next).map(|due| self.started + *due);
            tokio::select! {
                biased;
                () = stop.cancelled(), if next < self.due.len() => next = self.due.len(),
                Some((range, published)) = in_flight.next() => self.note_published(range, published, &mut sent)?,
                () = until(due), if in_flight.len() < GROUPS_IN_FLIGHT => {
                    let late = self.started.elapsed();
                    let now_due = self.due[next..].iter().take(GROUP_JOBS).take_while(|due| **due <= late).count();
                    let range = next..next + now_due;
                    let publish = publisher.publish(self.queue, self.messages(range.clone()));
                    in_flight.push(async move { (range, publish.await) });
                    next += now_due;
                }
            }
        }
        ended.send_replace(Some(sent.published));
        Ok(sent)
    }

    fn note_published(
        &self,
        range: std::ops::Range<usize>,
        published: Result<(), BrokerError>,
        sent: &mut Sent,
    ) -> Result<(), BrokerError> {
        sent.took = self.started.elapsed();
        match published {
            Ok(()) => {
                sent.published += range.len() as u64;
                let due = self.due[range].iter();
                due.for_each(|due| sent.latencies.record(*due, sent.took.saturating_sub(*due)));
                Ok(())
            }
            // A user who can't publish now has gone away by the time that it can be done.
            Err(error) if error.is_transient() => {
                sent.failed += range.len() as u64;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn messages(&self, range: std::ops::Range<usize>) -> Vec<Message> {
        let now = Timestamp::now();
        let message = |n: usize| {
            let items = self.texts.items(n as u64);
            let mut message = self.recipe.message(self.name, &job_id(self.name, n as u64), items, now);
            message.attributes.insert(attribute::PUBLISHED_AT.to_owned(), now.as_millisecond().to_string());
            message
        };
        range.map(message).collect()
    }

    /// Receives until every published job is answered, or it is time to give up.
    async fn receive(
        &self,
        mut consumer: AnyConsumer,
        mut publishing_ended: watch::Receiver<Option<u64>>,
        (give_up, stop): (Instant, &CancellationToken),
        progress: &Progress,
    ) -> Result<Got, BrokerError> {
        let mut answers = Answers {
            load: self,
            seen: vec![false; self.due.len()],
            got: Got {
                answered: 0,
                errors: BTreeMap::new(),
                latencies: Latencies::new(self.length()),
                took: Duration::ZERO,
            },
        };
        let mut acks = FuturesUnordered::new();
        while publishing_ended.borrow_and_update().is_none_or(|published| answers.got.answered < published) {
            tokio::select! {
                biased;
                () = stop.cancelled(), if publishing_ended.borrow().is_some() => break,
                () = sleep_until(give_up), if publishing_ended.borrow().is_some() => break,
                Ok(()) = publishing_ended.changed() => {}
                Some(_) = acks.next() => {}
                received = consumer.receive(PULL) => {
                    let (deliveries, now) = (received?, self.started.elapsed());
                    deliveries.iter().for_each(|delivery| answers.take(delivery, now));
                    // An answer whose ack fails comes again, and is known then.
                    acks.push(join_all(deliveries.into_iter().map(|delivery| delivery.lease.ack())));
                    progress.reach(Tally { items: answers.got.answered, tokens: 0 });
                }
            }
        }
        while acks.next().await.is_some() {}
        consumer.close().await;
        Ok(answers.got)
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The answers so far.
struct Answers<'a> {
    load: &'a Load<'a>,
    seen: Vec<bool>,
    got: Got,
}

impl Answers<'_> {
    /// Notes an answer, unless it is a second one or to nobody.
    fn take(&mut self, delivery: &Delivery, now: Duration) {
        let attribute = |name: &str| delivery.message.attributes.get(name).map(String::as_str);
        let number = attribute(attribute::JOB_ID).and_then(|id| id.strip_prefix(self.load.name)?.strip_prefix('-'));
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else { return };
        let (Some(due), Some(seen)) = (self.load.due.get(number), self.seen.get_mut(number)) else { return };
        if std::mem::replace(seen, true) {
            return;
        }
        self.got.answered += 1;
        self.got.took = now;
        self.got.latencies.record(*due, now.saturating_sub(*due));
        let status = attribute(attribute::STATUS).unwrap_or("without_status");
        if status != "succeeded" {
            *self.got.errors.entry(status.to_owned()).or_default() += 1;
        }
    }
}

/// Makes texts: the same ones from the same seed, and no two alike but by chance.
#[derive(Debug, Clone, Copy)]
struct Texts {
    lengths: Lengths,
    items: u32,
    seed: u64,
}

/// Each is one token to the tokenizers of English models.
const WORDS: [&str; 32] = [
    "the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "by", "this", "with", "from", "water", "house",
    "world", "time", "river", "city", "music", "light", "stone", "paper", "night", "green", "small", "north", "summer",
    "winter", "road", "bridge",
];

impl Texts {
    /// The items of the load's job of this number.
    fn items(&self, number: u64) -> Vec<Item> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let text = |_| {
            let tokens = rng.random_range(self.lengths.least..=self.lengths.most);
            // A model adds two of its own.
            let words = (0..tokens.saturating_sub(2).max(1)).map(|_| WORDS[rng.random_range(0..WORDS.len())]);
            words.collect::<Vec<_>>().join(" ")
        };
        (0..self.items).map(text).map(|text| Item { id: None, input: Input::Text(text) }).collect()
    }
}

impl Measured {
    fn table(&self, paint: Paint) -> String {
        let Jobs { due, published, answered, errors } = &self.jobs;
        let errors: Vec<_> = errors.iter().map(|(code, count)| format!("{code} {}", grouped(*count))).collect();
        let errors = if errors.is_empty() { paint.good("none") } else { paint.bad(&errors.join(", ")) };
        let [least, most] = self.text_tokens;
        let tokens = if least == most { least.to_string() } else { format!("{least} to {most}") };
        let mut text = format!(
            "load     {} jobs/s for {} s, {} items of {tokens} tokens a job, seed {}\n",
            self.rate, self.duration_s, self.items_per_job, self.seed
        );
        text += &format!(
            "jobs     {} due, {} published ({:.1}/s), {} answered ({:.1}/s)\nerrors   {errors}\n\n",
            grouped(*due),
            grouped(*published),
            self.published_per_s,
            grouped(*answered),
            self.answered_per_s
        );
        let heading = ["ms since due", "p50", "p90", "p99", "p99.9", "max"];
        text += &paint.heading(&format!("{:14}", heading[0]));
        heading[1..].iter().for_each(|name| text += &paint.heading(&format!("{name:>10}")));
        text.push('\n');
        for (name, latency) in [("published", self.published_ms), ("answered", self.latency_ms)] {
            let Percentiles { count, p50, p90, p99, p999, max } = latency;
            let figures =
                [p50, p90, p99, p999, max].map(|ms| if count == 0 { "-".to_owned() } else { format!("{ms:.2}") });
            text += &format!("{name:14}");
            figures.iter().for_each(|figure| text += &format!("{figure:>10}"));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_lengths_asked_for_and_follow_from_the_seed() {
        let texts = Texts { lengths: Lengths { least: 8, most: 64 }, items: 50, seed: 3 };
        let (first, second) = (texts.items(0), texts.items(1));
        assert_eq!(first, texts.items(0));
        assert_ne!(first, second);
        for item in first.iter().chain(&second) {
            let Input::Text(text) = &item.input else { panic!("a text") };
            assert!((6..=62).contains(&text.split(' ').count()), "{text}");
        }
        let short = Texts { lengths: Lengths { least: 1, most: 1 }, items: 1, seed: 3 };
        assert_eq!(short.items(9).len(), 1);
    }

    #[test]
    fn flags_that_make_no_load_are_refused() {
        assert_eq!(lengths("8-64"), Ok(Lengths { least: 8, most: 64 }));
        assert_eq!(lengths("16"), Ok(Lengths { least: 16, most: 16 }));
        for text in ["", "0", "64-8", "8-", "-8", "x", "8-64-9", "1000000"] {
            assert!(lengths(text).is_err(), "{text}");
        }
        for text in ["0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
