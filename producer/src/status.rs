//! `inferq status`: what waits, is leased, delayed, dead and answered on one jobs queue.
//!
//! In: a queue's address. Out: a table, or one JSON object a reading, on stdout. It changes nothing.

use std::time::Duration;

use inferq_shared::broker::{Broker, BrokerUrl, QueueStatus};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::connect::{connect, failed, print};
use crate::outcome::{Error, Outcome};
use crate::progress::{duration, grouped};

/// The flags of `inferq status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db or sqlite:queue.db?queue=jobs.
    #[arg(long, env = "INFERQ_QUEUE", value_name = "URL")]
    queue: BrokerUrl,
    /// Write JSON: one object, with null for what the broker can't tell.
    #[arg(long)]
    json: bool,
    /// Read again and again, until a signal comes.
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
}

/// Runs `inferq status`.
///
/// # Errors
/// When a queue is absent or the broker can't be reached.
pub async fn status(args: Args, stop: CancellationToken) -> Result<Outcome, Error> {
    let broker = connect(&args.queue).await?;
    let mut ticks = interval(Duration::from_secs(args.interval_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let readings = read(&broker, &args.queue).await?;
        print(&if args.json { json(&args.queue, &readings) } else { table(&readings) })?;
        if !args.watch {
            break;
        }
    }
    broker.close().await;
    Ok(Outcome::Done)
}

/// Reads the queues of `url`.
///
/// # Errors
/// When a queue is absent or the broker can't be reached.
pub async fn read(broker: &Broker, url: &BrokerUrl) -> Result<Vec<Reading>, Error> {
    let queues = [("jobs", url.queues.jobs.clone()), ("dead", url.queues.dead()), ("results", url.queues.results())];
    let mut readings = Vec::new();
    for (role, queue) in queues {
        let QueueStatus { waiting, leased, delayed, oldest } =
            broker.status(&queue).await.map_err(|error| failed(url, error))?;
        let oldest_s = oldest.map(|age| age.as_secs_f64());
        readings.push(Reading { role, queue, waiting, leased, delayed, oldest_s });
    }
    Ok(readings)
}

fn json(url: &BrokerUrl, readings: &[Reading]) -> String {
    let json = serde_json::json!({"queue": url.to_string(), "queues": readings});
    format!("{json}\n")
}

/// The readings as a table for people.
pub fn table(readings: &[Reading]) -> String {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), grouped);
    let age = |age: Option<f64>| age.map_or("-".to_owned(), |age| duration(Duration::from_secs_f64(age.max(0.0))));
    let width = readings.iter().map(|reading| reading.queue.len()).max().unwrap_or(0).max("queue".len());
    let mut text =
        format!("{:width$} {:>12} {:>12} {:>12} {:>14}\n", "queue", "waiting", "leased", "delayed", "oldest");
    for reading in readings {
        let Reading { queue, waiting, leased, delayed, oldest_s, .. } = reading;
        let (waiting, leased, delayed) = (number(*waiting), number(*leased), number(*delayed));
        text += &format!("{queue:width$} {waiting:>12} {leased:>12} {delayed:>12} {:>14}\n", age(*oldest_s));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
        };
        let table = table(&[reading]);
        let words: Vec<_> = table.lines().nth(1).expect("a line").split_whitespace().collect();
        assert_eq!(words, ["jobs.results", "1,234", "-", "0", "1", "min", "1", "s"]);
    }
}
