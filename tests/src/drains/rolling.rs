//! A rolling update under an open load, as a Deployment does it with `maxSurge: 1` and `maxUnavailable: 0`: a new worker
//! is started, and when it is ready an old one is told to stop, until all are new. Or the same time without one.
//!
//! Jobs come at random and wait for nobody, so what an update costs shows in every job that it delays.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use inferq_producer::pace::Pace;
use inferq_producer::report::Latencies;
use inferq_shared::broker::Publisher;
use inferq_shared::telemetry::story as steps;
use tokio::task::{JoinSet, block_in_place, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Terms;
use super::case::{unsettled, worker};
use super::place::{Place, Replies, job};
use super::story::Update;
use crate::kubelet::{End, Pod, Probes, Seen};

/// Workers, before and after.
const WORKERS: usize = 3;
/// Items of a batch, each a job of its own.
const BATCH: &str = "4";
/// How long a batch takes, in milliseconds.
const BATCH_MS: &str = "100";
/// How long the last jobs may take to be answered.
const LAST_ANSWERS: Duration = Duration::from_secs(90);

/// A load, and how its workers are probed.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Jobs a second.
    pub rate: f64,
    /// How long they come. The update begins when a quarter of it has passed.
    pub length: Duration,
    /// The same seed makes the same instants.
    pub seed: u64,
    /// Of each worker.
    pub probes: Probes,
}

/// What an update leaves.
#[derive(Debug, Default)]
struct Replaced {
    running: Vec<Pod>,
    ends: Vec<End>,
    took: Duration,
}

/// Runs it.
pub(super) async fn run(place: Place, load: Load, terms: Terms, updating: bool) -> Result<Update> {
    let command = |kind: &str, number: usize| {
        let flags = ["--engine", "echo", "--echo-batch-ms", BATCH_MS, "--max-batch-items", BATCH];
        worker(&place, &format!("{kind}-{number}"), terms, &flags)
    };
    let mut running: Vec<Pod> = block_in_place(|| {
        let start = |number| Pod::start(command("old", number), load.probes);
        let pods: Vec<Pod> = (0..WORKERS).map(start).collect();
        pods.iter().for_each(|pod| pod.until_seen(Seen::Ready));
        pods
    });
    let mut replies = place.replies().await?;
    let due: Vec<Duration> = Pace::new(load.rate, load.length, load.seed).collect();
    let began = Instant::now();
    let replacing = async {
        if !updating {
            return Ok(Replaced { running: std::mem::take(&mut running), ..Replaced::default() });
        }
        let (old, new) = (std::mem::take(&mut running), (0..WORKERS).map(|number| command("new", number)).collect());
        sleep_until(began + load.length / 4).await;
        spawn_blocking(move || replace(old, new, load.probes, terms.grace)).await
    };
    let collecting = collect(&mut replies, &due, began, load.length);
    let (submitted, latencies, replaced) = tokio::join!(submit(&place, &due, began), collecting, replacing);
    submitted?;
    let (latencies, Replaced { running, ends, took }) = (latencies?, replaced?);
    let jobs = place.settled(replies, due.len()).await?;
    block_in_place(|| running.into_iter().for_each(|pod| drop(pod.end(terms.grace))));
    let free_release = place.broker.capabilities().free_release;
    place.broker.clone().close().await;
    let answered = if updating { (0..WORKERS).map(|n| jobs.answered_by(&format!("old-{n}"))).sum() } else { due.len() };
    let given_back = ends.iter().map(|end| end.logged(steps::RELEASED)).sum();
    Ok(Update {
        broker: place.kind,
        free_release,
        terms,
        updating,
        jobs,
        unsettled: ends.iter().map(unsettled).sum(),
        ends,
        took,
        answered,
        given_back,
        latency_ms: latencies.percentiles(),
    })
}

/// Replaces old workers one after the other. A worker that ends is not waited for before the next one is started: it
/// counts no longer.
fn replace(old: Vec<Pod>, new: Vec<Command>, probes: Probes, grace: Duration) -> Replaced {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (mut running, mut ending) = (Vec::new(), Vec::new());
        for (old, command) in old.into_iter().zip(new) {
            let pod = Pod::start(command, probes);
            pod.until_seen(Seen::Ready);
            running.push(pod);
            ending.push(scope.spawn(move || old.end(grace)));
        }
        let ends = ending.into_iter().map(|ending| ending.join().expect("a stop does not panic")).collect();
        Replaced { running, ends, took: began.elapsed() }
    })
}

/// Publishes each job when it is due, however long earlier publishes take.
async fn submit(place: &Place, due: &[Duration], began: Instant) -> Result<()> {
    let (mut publishing, mut next) = (JoinSet::new(), 0);
    while next < due.len() {
        sleep_until(began + due[next]).await;
        let now = began.elapsed();
        let jobs = next..next + due[next..].iter().take_while(|due| **due <= now).count().max(1);
        next = jobs.end;
        let (publisher, queue) = (place.broker.publisher(), place.names.jobs.clone());
        publishing.spawn(async move { publisher.publish(&queue, jobs.map(job).collect()).await });
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    Ok(())
}

/// Takes replies until all jobs are answered, or should be, and measures from the instant at which each was due.
async fn collect(replies: &mut Replies, due: &[Duration], began: Instant, length: Duration) -> Result<Latencies> {
    let (mut latencies, mut answered) = (Latencies::new(length), 0);
    while answered < due.len() {
        let Ok(first) = timeout_at(began + length + LAST_ANSWERS, replies.take()).await else { break };
        let now = began.elapsed();
        for job in first? {
            latencies.record(due[job], now.saturating_sub(due[job]));
            answered += 1;
        }
    }
    Ok(latencies)
}
