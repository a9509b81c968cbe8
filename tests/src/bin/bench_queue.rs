//! `make bench-queue`: what the embedded queue does a second, beside what bare SQLite does in the same minutes.
//!
//! In: `--rounds N --jobs N --dir DIR` (5, 20,000, a fresh directory under the temporary one). Out: a table of medians
//! on standard output and every figure as JSON beside the binaries. Rounds are interleaved, so that a slow moment of
//! the machine meets every row. The second process of a measure is this program again. It asserts nothing.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use inferq_shared::broker::{
    Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher, QueueOptions,
};
use inferq_tests::brokers::up_to;
use inferq_tests::figures::{self, Figures, cpu_time, note, rate};
use rusqlite::Connection;
use serde_json::json;

/// Bytes of a job's body.
const BODY_BYTES: usize = 1024;
/// Messages in one publish, and at most in one pull, where the row says "bulk".
const BATCH: usize = 500;
/// Publishes that a bulk publisher has in flight.
const IN_FLIGHT: usize = 4;
/// Single publishes a round.
const SINGLES: usize = 300;
/// How far apart the publishes of the latency row are.
const PACE: Duration = Duration::from_millis(10);
/// How long the idle consumer is watched.
const IDLE: Duration = Duration::from_secs(4);

#[derive(Debug)]
struct Options {
    rounds: usize,
    jobs: usize,
    directory: PathBuf,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", "receive", file, count] => runtime.block_on(child_receives(Path::new(file), count.parse()?)),
        ["child", "publish", file, count] => runtime.block_on(child_publishes(Path::new(file), count.parse()?)),
        _ => runtime.block_on(bench(&options(&arguments)?)),
    }
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options = Options { rounds: 5, jobs: 20_000, directory: std::env::temp_dir() };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { anyhow::bail!("{} needs a value", pair[0]) };
        match &**name {
            "--rounds" => options.rounds = value.parse().context("--rounds")?,
            "--jobs" => options.jobs = value.parse().context("--jobs")?,
            "--dir" => options.directory = PathBuf::from(value),
            other => anyhow::bail!("unknown option {other}: --rounds, --jobs and --dir are known"),
        }
    }
    Ok(options)
}

async fn bench(options: &Options) -> Result<()> {
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        let directory = tempfile::tempdir_in(&options.directory)?;
        let file = |name: &str| directory.path().join(name);
        bare(&file("bare.db"), options.jobs, &mut figures)?;
        queue(&file("queue.db"), options.jobs, &mut figures).await?;
        two_processes(&file("two.db"), options.jobs, &mut figures).await?;
        latency(&file("latency.db"), &mut figures).await?;
    }
    report(options, &figures)
}

/// What SQLite itself does here: one table, one thread, nothing in between.
fn bare(file: &Path, jobs: usize, figures: &mut Figures) -> Result<()> {
    let db = Connection::open(file)?;
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    db.execute_batch("PRAGMA synchronous = FULL; CREATE TABLE jobs (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")?;
    let body = vec![7u8; BODY_BYTES];
    let mut insert = db.prepare("INSERT INTO jobs (body) VALUES (?1)")?;
    let mut delete = db.prepare("DELETE FROM jobs WHERE id = ?1")?;
    let grouped = |step: &mut dyn FnMut(usize) -> rusqlite::Result<usize>| -> rusqlite::Result<()> {
        for start in (0..jobs).step_by(BATCH) {
            db.execute_batch("BEGIN IMMEDIATE")?;
            (start..jobs.min(start + BATCH)).try_for_each(|n| step(n).map(drop))?;
            db.execute_batch("COMMIT")?;
        }
        Ok(())
    };
    let started = Instant::now();
    grouped(&mut |_| insert.execute([&body]))?;
    note(figures, "bare inserts, grouped", rate(jobs, started));
    let started = Instant::now();
    grouped(&mut |n| delete.execute([n as i64 + 1]))?;
    note(figures, "bare deletes, grouped", rate(jobs, started));
    let started = Instant::now();
    for _ in 0..SINGLES {
        insert.execute([&body])?;
    }
    note(figures, "bare inserts, single", rate(SINGLES, started));
    Ok(())
}

async fn queue(file: &Path, jobs: usize, figures: &mut Figures) -> Result<()> {
    let broker = connect(file).await?;
    let started = Instant::now();
    publish(&broker, jobs).await?;
    note(figures, "publish, bulk", rate(jobs, started));

    let started = Instant::now();
    consume(&broker, jobs).await?;
    note(figures, "consume and ack, bulk", rate(jobs, started));

    let started = Instant::now();
    tokio::try_join!(publish(&broker, jobs), consume(&broker, jobs))?;
    note(figures, "both at once, one process", rate(jobs, started));

    let started = Instant::now();
    for _ in 0..SINGLES {
        broker.publisher().publish("jobs", vec![job()]).await?;
    }
    note(figures, "publish, single awaited", rate(SINGLES, started));
    consume(&broker, SINGLES).await?;
    broker.close().await;
    Ok(())
}

async fn two_processes(file: &Path, jobs: usize, figures: &mut Figures) -> Result<()> {
    let broker = connect(file).await?;
    let mut child = child(&["publish", &file.to_string_lossy(), &jobs.to_string()])?;
    ready(&mut child)?;
    let started = Instant::now();
    // The child waits for this.
    drop(child.stdin.take());
    consume(&broker, jobs).await?;
    note(figures, "both at once, two processes", rate(jobs, started));
    child.wait()?;
    broker.close().await;
    Ok(())
}

async fn latency(file: &Path, figures: &mut Figures) -> Result<()> {
    let broker = connect(file).await?;
    let mut child = child(&["receive", &file.to_string_lossy(), &SINGLES.to_string()])?;
    let mut lines = ready(&mut child)?;
    let before = cpu_time(child.id())?;
    tokio::time::sleep(IDLE).await;
    let spent = cpu_time(child.id())?.saturating_sub(before);
    note(figures, "idle consumer, % of a core", 100.0 * spent.as_secs_f64() / IDLE.as_secs_f64());

    for _ in 0..SINGLES {
        let body = boot_ns().to_string().into();
        broker.publisher().publish("jobs", vec![Message { body, ..Message::default() }]).await?;
        tokio::time::sleep(PACE).await;
    }
    let mut millis = Vec::new();
    while millis.len() < SINGLES {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        millis.push(line.trim().parse::<f64>().context("the receiving process ended early")?);
    }
    millis.sort_by(f64::total_cmp);
    note(figures, "publish to delivery, p50 ms", millis[SINGLES / 2]);
    note(figures, "publish to delivery, p99 ms", millis[SINGLES * 99 / 100]);
    child.wait()?;
    broker.close().await;
    Ok(())
}

/// The other process: prints how old each message is when it is delivered, in milliseconds.
async fn child_receives(file: &Path, count: usize) -> Result<()> {
    let broker = connect(file).await?;
    let mut consumer = broker.consumer("jobs", ConsumeOptions::new()).await?;
    println!("ready");
    for _ in 0..count {
        for delivery in consumer.receive(up_to(1)).await? {
            let sent: u64 = std::str::from_utf8(&delivery.message.body)?.parse()?;
            println!("{}", (boot_ns() - sent) as f64 / 1e6);
            delivery.lease.ack().await?;
        }
    }
    broker.close().await;
    Ok(())
}

/// The other process: publishes once its standard input ends.
async fn child_publishes(file: &Path, count: usize) -> Result<()> {
    let broker = connect(file).await?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    publish(&broker, count).await?;
    broker.close().await;
    Ok(())
}

async fn connect(file: &Path) -> Result<Broker, BrokerError> {
    let broker = Broker::connect(&BrokerUrl::sqlite(file)).await?;
    broker.declare("jobs", QueueOptions::default()).await?;
    Ok(broker)
}

fn job() -> Message {
    let attributes = [("content-type", "application/json"), ("inferq-version", "1"), ("inferq-job-id", "s7f3-00012")];
    Message {
        body: vec![7; BODY_BYTES].into(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

async fn publish(broker: &Broker, jobs: usize) -> Result<(), BrokerError> {
    let publisher = broker.publisher();
    let mut left = jobs;
    while left > 0 {
        let mut flight = Vec::new();
        while flight.len() < IN_FLIGHT && left > 0 {
            let batch = left.min(BATCH);
            flight.push(publisher.publish("jobs", vec![job(); batch]));
            left -= batch;
        }
        join_all(flight).await.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

/// Receives and acks so many, acks of one pull under way while the next is fetched, as a worker does.
async fn consume(broker: &Broker, jobs: usize) -> Result<(), BrokerError> {
    let mut consumer = broker.consumer("jobs", ConsumeOptions::new()).await?;
    let mut got = 0;
    let mut acks = Vec::new();
    while got < jobs {
        let (deliveries, acked) = tokio::join!(consumer.receive(up_to(BATCH)), join_all(std::mem::take(&mut acks)));
        acked.into_iter().collect::<Result<(), _>>()?;
        let deliveries = deliveries?;
        got += deliveries.len();
        acks = deliveries.into_iter().map(|Delivery { lease, .. }| lease.ack()).collect();
    }
    join_all(acks).await.into_iter().collect::<Result<(), _>>()?;
    consumer.close().await;
    Ok(())
}

fn child(arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("child").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().context("no second process")
}

/// Waits until the other process says that it is ready.
fn ready(child: &mut Child) -> Result<BufReader<std::process::ChildStdout>> {
    let mut lines = BufReader::new(child.stdout.take().context("its output is piped")?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    anyhow::ensure!(line == "ready\n", "the second process said {line:?}");
    Ok(lines)
}

fn boot_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn report(options: &Options, figures: &Figures) -> Result<()> {
    figures::table(figures);
    let binary = std::env::current_exe()?;
    let target = binary.parent().and_then(Path::parent).context("the binary lies in a target folder")?;
    let path = target.join("bench-queue.json");
    let raw = json!({"rounds": options.rounds, "jobs": options.jobs, "body_bytes": BODY_BYTES, "figures": figures});
    std::fs::write(&path, serde_json::to_vec_pretty(&raw)?)?;
    println!("raw figures: {}", path.display());
    Ok(())
}
