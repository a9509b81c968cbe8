//! `inferq status`: what waits, is leased, delayed, dead and answered on one jobs queue, and who works on it.
//!
//! In: a queue's address. Out: tables, or one JSON object a reading, on stdout. It changes nothing.

use std::io::{IsTerminal, stdout};
use std::num::NonZeroUsize;
use std::time::Duration;

use inferq_shared::broker::{Bodies, Broker, BrokerError, BrokerUrl, Cursor, Page, QueueStatus, Standing};
use inferq_shared::job::attribute;
use inferq_shared::presence::Presence;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::work::{Sample, Waiting, Work};
use crate::connect::{connect, failed, print};
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::progress::{duration, grouped};
use crate::shown;

pub mod work;

/// The flags of `inferq status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db, amqp://user:password@host/vhost?queue=jobs or
    /// pubsub://project/jobs.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: BrokerUrl,
    /// Write JSON: one object, with null for what the broker can't tell.
    #[arg(long)]
    json: bool,
    /// Read again and again, until a signal comes: in place on a terminal, else one reading after the other.
    #[arg(long)]
    watch: bool,
    /// Seconds between two readings of --watch.
    #[arg(long, env = "INFERQ_INTERVAL_S", value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    interval_s: u64,
}

/// What is in one queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// What the queue is for.
    pub role: &'static str,
    /// Its name.
    pub queue: String,
    /// Messages that could be delivered now.
    pub waiting: Option<u64>,
    /// Messages under a lease.
    pub leased: Option<u64>,
    /// Messages to be seen later.
    pub delayed: Option<u64>,
    /// The age of the oldest message, in seconds.
    pub oldest_s: Option<f64>,
    /// Tokens of the waiting messages, or about so many; only of queues that workers take from.
    pub tokens: Option<u64>,
}

/// The routes of all submissions together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routes {
    /// How many there are.
    pub count: usize,
    /// What is in them.
    #[serde(flatten)]
    pub reading: Reading,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worker {
    /// What it says of itself.
    #[serde(flatten)]
    pub presence: Presence,
    /// How long ago it said so, in seconds.
    pub seen_s: f64,
}

/// All of one reading; documented in docs/operations.md.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// The queue's address.
    pub queue: String,
    /// Whether the broker takes no messages for now; absent where it does not tell this user.
    pub blocked: Option<bool>,
    /// Why it takes none.
    pub blocked_by: Option<String>,
    /// Jobs, shards, dead letters, default results.
    pub queues: Vec<Reading>,
    /// The submissions' routes; absent where queues can't be listed.
    pub routes: Option<Routes>,
    /// Who works on the jobs; absent where workers leave no word.
    pub workers: Option<Vec<Worker>>,
    /// What waits, measured in work.
    pub work: Work,
}

/// The queues that workers take from.
const TAKEN: [&str; 2] = ["jobs", "shards"];
/// Said where no queue can be counted.
const UNCOUNTED: &str = "this broker can't tell what is in its queues; over Pub/Sub Cloud Monitoring can: num_undelivered_messages \
    and oldest_unacked_message_age of each subscription";
/// Clears a terminal.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Runs `inferq status`.
///
/// # Errors
/// When a queue is absent or the broker can't be reached.
pub async fn status(args: Args, paint: Paint, stop: CancellationToken) -> Result<Outcome, Error> {
    let broker = connect(&args.queue).await?;
    let mut ticks = interval(Duration::from_secs(args.interval_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let in_place = args.watch && !args.json && stdout().is_terminal();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let overview = overview(&broker, &args.queue).await?;
        let text = if args.json { json(&overview) } else { overview.table(Timestamp::now(), paint) };
        let gap = if args.watch && !args.json { "\n" } else { "" };
        print(&if in_place { format!("{CLEAR}{text}") } else { text + gap })?;
        if !args.watch {
            break;
        }
    }
    broker.close().await;
    Ok(Outcome::Done)
}

fn json(overview: &Overview) -> String {
    serde_json::to_string(overview).expect("an overview has only string keys") + "\n"
}

/// Reads everything about the queues of `url`.
///
/// # Errors
/// When a queue is absent or the broker can't be reached.
pub async fn overview(broker: &Broker, url: &BrokerUrl) -> Result<Overview, Error> {
    let named = |error| failed(url, error);
    let mut queues = read(broker, url).await?;
    let (blocked, blocked_by) = alarm(broker).await.map_err(named)?;
    let routes = routes(broker, url).await.map_err(named)?;
    let workers = workers(broker, &url.queues.jobs).await.map_err(named)?;
    let presences: Option<Vec<_>> =
        workers.as_ref().map(|workers| workers.iter().map(|worker| worker.presence.clone()).collect());
    let mut waiting = Vec::new();
    for reading in queues.iter_mut().filter(|reading| TAKEN.contains(&reading.role)) {
        let sample = sample(broker, &reading.queue).await.map_err(named)?;
        let queue = Waiting { messages: reading.waiting, sample };
        reading.tokens = queue.tokens(presences.as_deref().unwrap_or_default()).0;
        waiting.push(queue);
    }
    let work = Work::estimate(&waiting, presences.as_deref());
    Ok(Overview { queue: url.to_string(), blocked, blocked_by, queues, routes, workers, work })
}

/// Whether the broker takes no messages, and why; who may not publish is not told.
async fn alarm(broker: &Broker) -> Result<(Option<bool>, Option<String>), BrokerError> {
    match broker.alarm().await {
        Ok(reason) => Ok((Some(reason.is_some()), reason)),
        Err(BrokerError::Refused(_)) => Ok((None, None)),
        Err(error) => Err(error),
    }
}

/// Reads the queues that belong to `url`.
///
/// # Errors
/// When a queue is absent or the broker can't be reached.
pub async fn read(broker: &Broker, url: &BrokerUrl) -> Result<Vec<Reading>, Error> {
    let names = &url.queues;
    let queues = [
        ("jobs", names.jobs.clone()),
        ("shards", names.shards()),
        ("dead", names.dead()),
        ("results", names.results()),
    ];
    let mut readings = Vec::new();
    for (role, queue) in queues {
        let status = broker.status(&queue).await.map_err(|error| failed(url, error))?;
        readings.push(Reading::new(role, queue, status));
    }
    Ok(readings)
}

impl Reading {
    fn new(role: &'static str, queue: String, status: QueueStatus) -> Self {
        let QueueStatus { waiting, leased, delayed, oldest } = status;
        Self { role, queue, waiting, leased, delayed, oldest_s: oldest.map(|age| age.as_secs_f64()), tokens: None }
    }

    fn add(&mut self, other: &QueueStatus) {
        let sum = |one: &mut Option<u64>, other: Option<u64>| *one = one.zip(other).map(|(one, other)| one + other);
        sum(&mut self.waiting, other.waiting);
        sum(&mut self.leased, other.leased);
        sum(&mut self.delayed, other.delayed);
        let oldest = other.oldest.map(|age| age.as_secs_f64());
        self.oldest_s = self.oldest_s.into_iter().chain(oldest).reduce(f64::max);
    }
}

async fn routes(broker: &Broker, url: &BrokerUrl) -> Result<Option<Routes>, BrokerError> {
    let prefix = url.queues.submission("");
    let Some(names) = broker.queues(&prefix).await? else { return Ok(None) };
    let zero = QueueStatus { waiting: Some(0), leased: Some(0), delayed: Some(0), oldest: None };
    let mut reading = Reading::new("routes", format!("{prefix}*"), zero);
    let mut count = 0;
    for name in names.iter().filter(|name| !name.ends_with(".dead")) {
        match broker.status(name).await {
            Ok(status) => reading.add(&status),
            // Collected since.
            Err(BrokerError::UnknownQueue(_)) => continue,
            Err(error) => return Err(error),
        }
        count += 1;
    }
    Ok(Some(Routes { count, reading }))
}

async fn workers(broker: &Broker, queue: &str) -> Result<Option<Vec<Worker>>, BrokerError> {
    let Some(sightings) = broker.workers(queue).await? else { return Ok(None) };
    let workers = sightings.into_iter().filter_map(|sighting| {
        let seen_s = sighting.age.as_secs_f64();
        Presence::decode(&sighting.about).map(|presence| Worker { presence, seen_s })
    });
    Ok(Some(workers.collect()))
}

/// Messages that stand for all.
const SAMPLE: NonZeroUsize = NonZeroUsize::new(1000).expect("1000 is not 0");

async fn sample(broker: &Broker, queue: &str) -> Result<Sample, BrokerError> {
    let page = Page { after: Cursor::START, messages: SAMPLE, bytes: usize::MAX, bodies: Bodies::Absent };
    let seen = broker.browse(queue, page).await?.unwrap_or_default();
    let mut sample = Sample::default();
    for browsed in seen.iter().filter(|browsed| browsed.standing == Standing::Waiting) {
        let tokens = browsed.message.attributes.get(attribute::TOKENS).and_then(|tokens| tokens.parse::<u64>().ok());
        sample.messages += 1;
        sample.labelled += u64::from(tokens.is_some());
        sample.tokens = sample.tokens.saturating_add(tokens.unwrap_or(0));
    }
    Ok(sample)
}

impl Overview {
    /// For people.
    pub fn table(&self, now: Timestamp, paint: Paint) -> String {
        let mut readings = self.queues.clone();
        readings.extend(self.routes.iter().map(|routes| routes.reading.clone()));
        let mut text = table(&readings, paint);
        if readings.iter().all(|reading| reading.waiting.is_none()) {
            text += &format!("\n{}\n", UNCOUNTED);
        }
        if let Some(reason) = &self.blocked_by {
            let reason = shown::line(reason.as_bytes(), 80);
            text += &format!("\n{}\n", paint.bad(&format!("the broker takes no messages for now: {reason}")));
        }
        match self.workers.as_deref() {
            None => text += "\nworkers: this broker keeps no word of them\n",
            Some([]) => text += &format!("\n{}\n", paint.bad("no worker is there")),
            Some(workers) => text += &format!("\n{}", worker_table(workers, now, paint)),
        }
        format!("{text}\n{}\n", self.work.sentence())
    }
}

/// The readings as a table for people.
pub fn table(readings: &[Reading], paint: Paint) -> String {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), grouped);
    let age = |age: Option<f64>| age.map_or("-".to_owned(), |age| duration(Duration::from_secs_f64(age.max(0.0))));
    let width = readings.iter().map(|reading| reading.queue.len()).max().unwrap_or(0).max("queue".len());
    let heading = format!(
        "{:width$} {:>12} {:>12} {:>12} {:>14} {:>12}",
        "queue", "waiting", "leased", "delayed", "oldest", "tokens"
    );
    let mut text = paint.heading(&heading) + "\n";
    for reading in readings {
        let Reading { role, queue, waiting, leased, delayed, oldest_s, tokens } = reading;
        let (shown, leased, delayed) = (number(*waiting), number(*leased), number(*delayed));
        let line = format!(
            "{queue:width$} {shown:>12} {leased:>12} {delayed:>12} {:>14} {:>12}",
            age(*oldest_s),
            number(*tokens)
        );
        let alarm = *role == "dead" && waiting.is_some_and(|waiting| waiting > 0);
        text += &if alarm { paint.bad(&line) } else { line };
        text.push('\n');
    }
    text
}

fn worker_table(workers: &[Worker], now: Timestamp, paint: Paint) -> String {
    let name = |worker: &Worker| {
        let process = worker.presence.process;
        format!("{} ({process})", shown::line(worker.presence.name.as_bytes(), 40))
    };
    let width = workers.iter().map(|worker| name(worker).chars().count()).max().unwrap_or(0).max("worker".len());
    let model = |worker: &Worker| shown::line(worker.presence.model.as_bytes(), 32);
    let models = workers.iter().map(|worker| model(worker).chars().count()).max().unwrap_or(0).max("model".len());
    let heading = format!(
        "{:width$} {:10} {:models$} {:8} {:>10} {:>10} {:>6} {:>12} {:>10}",
        "worker", "state", "model", "device", "tokens/s", "items/s", "jobs", "up", "heard"
    );
    let mut text = paint.heading(&heading) + "\n";
    for worker in workers {
        let Presence { state, device, tokens_per_s, items_per_s, jobs_in_flight, started_at_ms, .. } = &worker.presence;
        let speed = |speed: Option<f64>| speed.map_or("-".to_owned(), |speed| grouped(speed.round() as u64));
        let up = Duration::from_millis(u64::try_from(now.as_millisecond() - started_at_ms).unwrap_or(0));
        let state = format!("{:10}", shown::line(state.as_bytes(), 10));
        text += &format!(
            "{:width$} {} {:models$} {:8} {:>10} {:>10} {:>6} {:>12} {:>10}\n",
            name(worker),
            if worker.presence.takes_jobs() { paint.good(&state) } else { paint.bad(&state) },
            model(worker),
            shown::line(device.as_bytes(), 8),
            speed(*tokens_per_s),
            speed(*items_per_s),
            grouped(*jobs_in_flight),
            duration(up),
            format!("{:.0} s ago", worker.seen_s),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::When;

    #[test]
    fn a_table_has_a_line_a_queue_and_a_dash_for_what_is_unknown() {
        let queue = "jobs.results".to_owned();
        let reading = Reading {
            role: "results",
            queue,
            waiting: Some(1234),
            leased: None,
            delayed: Some(0),
            oldest_s: Some(61.5),
            tokens: Some(7),
        };
        let table = table(&[reading], Paint::new(When::Never));
        let words: Vec<_> = table.lines().nth(1).expect("a line").split_whitespace().collect();
        assert_eq!(words, ["jobs.results", "1,234", "-", "0", "1", "min", "1", "s", "7"]);
    }

    #[test]
    fn routes_add_up_and_what_one_can_not_tell_none_can() {
        let status = |waiting, age: u64| QueueStatus {
            waiting,
            leased: Some(1),
            delayed: None,
            oldest: Some(Duration::from_secs(age)),
        };
        let mut sum = Reading::new("routes", "r".to_owned(), QueueStatus { delayed: Some(0), ..status(Some(2), 5) });
        sum.add(&status(Some(3), 60));
        assert_eq!((sum.waiting, sum.leased, sum.delayed, sum.oldest_s), (Some(5), Some(2), None, Some(60.0)));
    }
}
