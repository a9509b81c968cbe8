//! `make bench-pubsub`: what worker and `submit` do a second over the Pub/Sub emulator, beside bare loops with Google's own
//! client that do nothing else.
//!
//! In: `--rounds N --jobs N` (3, 10,000). Out: a table of medians on standard output, ratios, and every figure as JSON beside the
//! binaries. It starts an emulator of its own and the real binaries. Rounds are interleaved, so that a slow moment of the
//! machine meets every row. It asserts nothing, and says nothing of the real service.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, select_all};
use futures_util::{StreamExt, TryStreamExt};
use google_cloud_pubsub::client::Publisher;
use google_cloud_pubsub::model::Message;
use google_cloud_pubsub::subscriber::handler::Handler;
use inferq_tests::figures::{self, Figures, Options, keep, median, note, rate};
use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::pubsub::client::Client;
use inferq_tests::pubsub::{Emulator, HOW_TO_INSTALL, project};
use inferq_tests::queue_file::message;
use serde_json::json;
use tempfile::TempDir;

/// Bytes of a job's body, and of a reply of the bare loop, about as many as those of the echo engine.
const BODY_BYTES: usize = 1024;
const REPLY_BYTES: usize = 512;
/// Messages that may be unacked: a worker's jobs in flight.
const WINDOW: usize = 512;
/// Messages that may be unconfirmed where nothing but publishing goes on.
const PUBLISH_WINDOW: usize = 1_000;
/// So many that jobs are what bounds the worker's window, as in the bare loop.
const TOKENS: &str = "65536";
/// How often the worker is asked how many jobs it has answered.
const ASKED_EVERY: Duration = Duration::from_millis(20);
/// Streams that the bare loop reads side by side.
const STREAMS: [(usize, &str); 4] =
    [(1, "bare loop, 1 stream"), (2, "bare loop, 2 streams"), (4, "bare loop, 4 streams"), (8, "bare loop, 8 streams")];

const BARE_PUBLISH: &str = "bare, publishing";
const SUBMIT: &str = "inferq submit";
const WORKER: &str = "worker, echo engine";

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(10_000)?;
    let emulator = Emulator::own().context(HOW_TO_INSTALL)?;
    // A Java machine that has just started is slow: its first round would be no measure.
    bare_loop(&emulator, options.jobs, STREAMS.len(), "warm-up", &mut Figures::new()).await?;
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (streams, row) in STREAMS {
            bare_loop(&emulator, options.jobs, streams, row, &mut figures).await?;
        }
        worker(&emulator, options.jobs, &mut figures).await?;
        submit(&emulator, options.jobs, &mut figures)?;
    }
    println!("Pub/Sub emulator, jobs of {BODY_BYTES} bytes");
    figures::table(&figures);
    let fastest = STREAMS.iter().map(|(_, row)| median(&figures[row])).fold(0.0, f64::max);
    println!("{WORKER} / fastest bare loop: {:.2}", median(&figures[WORKER]) / fastest);
    println!("{SUBMIT} / {BARE_PUBLISH}: {:.2}", median(&figures[SUBMIT]) / median(&figures[BARE_PUBLISH]));
    keep("pubsub", &json!({"rounds": options.rounds, "jobs": options.jobs, "figures": figures}))
}

/// Publishes so many jobs, then receives them on so many streams, publishes a reply to each, and acks it.
async fn bare_loop(
    emulator: &Emulator,
    jobs: usize,
    streams: usize,
    row: &'static str,
    figures: &mut Figures,
) -> Result<()> {
    let client = Client::connect(emulator.address(), &project()).await?;
    for queue in ["jobs", "jobs.results"] {
        client.declare(queue).await?;
    }
    let started = Instant::now();
    publish_many(&client.publisher("jobs").await?, &[7; BODY_BYTES], jobs).await?;
    note(figures, BARE_PUBLISH, rate(jobs, started));
    let results = client.publisher("jobs.results").await?;
    let answered = async |received: Result<(Message, Handler)>| {
        let (_, handler) = received?;
        results.publish(Message::new().set_data(vec![7; REPLY_BYTES])).await?;
        handler.ack();
        anyhow::Ok(())
    };
    let started = Instant::now();
    let received = select_all((0..streams).map(|_| Box::pin(client.stream("jobs"))));
    received.take(jobs).map(answered).buffer_unordered(WINDOW).try_collect::<()>().await?;
    note(figures, row, rate(jobs, started));
    Ok(())
}

/// Publishes this body so many times, in a window.
async fn publish_many(publisher: &Publisher, body: &[u8], count: usize) -> Result<()> {
    let publish = |_| publisher.publish(Message::new().set_data(body.to_vec()));
    stream::iter(0..count).map(publish).buffer_unordered(PUBLISH_WINDOW).try_for_each(async |_| Ok(())).await?;
    Ok(())
}

/// A worker on a full queue.
async fn worker(emulator: &Emulator, jobs: usize, figures: &mut Figures) -> Result<()> {
    let (url, project) = set_up(emulator)?;
    let client = Client::connect(emulator.address(), &project).await?;
    publish_many(&client.publisher("jobs").await?, &message("job-1", &text("job-1")).body, jobs).await?;
    let worker = WorkerProcess::spawn(&mut worker_on(&url, &["--engine", "echo", "--max-batch-tokens", TOKENS]));
    worker.until_logged("ready");
    let started = Instant::now();
    while answered(&worker) < jobs {
        tokio::time::sleep(ASKED_EVERY).await;
    }
    note(figures, WORKER, rate(jobs, started));
    Ok(())
}

/// How many jobs a worker has answered.
fn answered(worker: &WorkerProcess) -> usize {
    let (_, metrics) = worker.get("/metrics");
    let lines = metrics.lines().filter(|line| line.starts_with("inferq_jobs_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

/// The real command on a file of so many lines, one a job.
fn submit(emulator: &Emulator, jobs: usize, figures: &mut Figures) -> Result<()> {
    let (url, _) = set_up(emulator)?;
    let folder = TempDir::new()?;
    let input = folder.path().join("texts.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input)?);
    (0..jobs).try_for_each(|number| writeln!(file, "{}", json!(text(&number.to_string()))))?;
    file.into_inner()?.sync_all()?;
    let mut submit = command("inferq");
    submit.args(["submit", "--items-per-job", "1", "--queue", &url, "--input"]).arg(&input);
    let started = Instant::now();
    let ended = submit.stdout(Stdio::null()).output()?;
    note(figures, SUBMIT, rate(jobs, started));
    ensure!(ended.status.success(), "submit failed: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

/// A project with our queues: their address, and its id.
fn set_up(emulator: &Emulator) -> Result<(String, String)> {
    let project = project();
    let url = emulator.url(&project);
    let setup = command("inferq").args(["setup", "--queue", &url]).output()?;
    ensure!(setup.status.success(), "setup failed: {}", String::from_utf8_lossy(&setup.stderr));
    Ok((url, project))
}

/// A text that makes a job of about the size. One long word: the echo engine's work must not be measured.
fn text(of: &str) -> String {
    const FRAME: usize = 120;
    format!("{of} {}", "r".repeat(BODY_BYTES - FRAME))
}
