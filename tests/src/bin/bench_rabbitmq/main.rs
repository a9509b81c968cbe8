//! `make bench-rabbitmq`: what worker and `submit` do a second over RabbitMQ, beside bare lapin loops that do nothing else.
//!
//! In: `--rounds N --jobs N` (3, 20,000), and INFERQ_TEST_MODEL for the rows with a model, else left out. Out: a table of medians on standard output, ratios, and every figure as JSON
//! beside the binaries. It starts a server of its own and the real binaries. Rounds are interleaved, so that a slow
//! moment of the machine meets every row. It asserts nothing.

use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use inferq_shared::broker::QueueNames;
use inferq_tests::figures::{self, Figures, Options, cpu_time, keep, median, note, rate};
use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::queue_file::{self, message};
use inferq_tests::rabbitmq::{HOW_TO_INSTALL, RabbitmqServer};
use lapin::options::BasicAckOptions;
use serde_json::json;
use tempfile::TempDir;

mod bare;

/// Bytes of a job's body.
const BODY_BYTES: usize = 1024;
/// So many that jobs are what bounds the worker's window, as in the bare loop.
const TOKENS: &str = "65536";
/// Single jobs a round.
const SINGLES: usize = 200;
/// Texts for the model, and how many are in a job.
const TEXTS: usize = 4_000;
const TEXTS_A_JOB: usize = 64;
/// How far apart single jobs are.
const PACE: Duration = Duration::from_millis(10);
/// How often a queue's length is asked for.
const ASKED_EVERY: Duration = Duration::from_millis(20);
/// How long the idle worker is watched, after as long a rest.
const IDLE: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::from_arguments(60_000)?;
    let server = RabbitmqServer::own().context(HOW_TO_INSTALL)?;
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        bare_loops(&server, options.jobs, &mut figures).await?;
        worker(&server, options.jobs, &mut figures).await?;
        submit(&server, options.jobs, &mut figures).await?;
        idle(&server, &mut figures).await?;
        if let Ok(model) = std::env::var("INFERQ_TEST_MODEL") {
            with_model(&server, &model, &mut figures).await?;
        }
    }
    println!("RabbitMQ {}, jobs of {BODY_BYTES} bytes, quorum queues", server.version());
    figures::table(&figures);
    for (ours, theirs) in [(WORKER, BARE_LOOP), (SUBMIT, BARE_PUBLISH), (WORKER_P50, BARE_P50), (MODEL, RUN)] {
        if let (Some(ours_of), Some(theirs_of)) = (figures.get(ours), figures.get(theirs)) {
            println!("{ours} / {theirs}: {:.2}", median(ours_of) / median(theirs_of));
        }
    }
    keep("rabbitmq", &json!({"rounds": options.rounds, "jobs": options.jobs, "figures": figures}))
}

const BARE_PUBLISH: &str = "bare, confirmed publishing";
const BARE_LOOP: &str = "bare, consume, reply, ack";
const BARE_P50: &str = "bare, one job, p50 ms";
const SUBMIT: &str = "inferq submit";
const WORKER: &str = "worker, echo engine";
const WORKER_P50: &str = "worker, one job, linger 0, p50 ms";
const RUN: &str = "inferq run, model, texts";
const MODEL: &str = "worker, model, texts";
const WORKER_CPU: &str = "worker, idle, % of a core";

/// The bare loops, in a virtual host of theirs.
async fn bare_loops(server: &RabbitmqServer, jobs: usize, figures: &mut Figures) -> Result<()> {
    let url = server.url(&server.virtual_host());
    let link = bare::link(&url).await?;
    for queue in ["jobs", "results"] {
        bare::declare(&link.channel, queue).await?;
    }
    let started = Instant::now();
    bare::publish_many(&link.channel, "jobs", &[7; BODY_BYTES], jobs).await?;
    note(figures, BARE_PUBLISH, rate(jobs, started));
    let started = Instant::now();
    bare::answer(&url, "jobs", "results", jobs).await?;
    note(figures, BARE_LOOP, rate(jobs, started));
    let client = singles(&url, "jobs", "results.singles");
    bare::declare(&link.channel, "results.singles").await?;
    let (server, times) = tokio::join!(bare::answer(&url, "jobs", "results.singles", SINGLES), client);
    server?;
    note(figures, BARE_P50, median(&times?));
    Ok(())
}

/// A worker on a full queue.
async fn worker(server: &RabbitmqServer, jobs: usize, figures: &mut Figures) -> Result<()> {
    let (url, results) = set_up(server)?;
    let link = bare::link(&url).await?;
    bare::publish_many(&link.channel, "jobs", &job("job-1"), jobs).await?;
    let worker = WorkerProcess::spawn(&mut worker_on(&ours(&url), &["--engine", "echo", "--max-batch-tokens", TOKENS]));
    worker.until_logged("ready");
    let started = Instant::now();
    await_waiting(&link, &results, jobs).await?;
    note(figures, WORKER, rate(jobs, started));
    Ok(())
}

/// The same texts by a worker over RabbitMQ and by `inferq run`, from readiness on.
async fn with_model(server: &RabbitmqServer, model: &str, figures: &mut Figures) -> Result<()> {
    let words = |number: usize| "river ".repeat(3 + number.wrapping_mul(31) % 60);
    let texts: Vec<String> = (0..TEXTS).map(|number| format!("{number} {}", words(number))).collect();
    let (url, results) = set_up(server)?;
    let link = bare::link(&url).await?;
    for (number, texts) in texts.chunks(TEXTS_A_JOB).enumerate() {
        let body = queue_file::job(&format!("job-{number}"), texts.iter().cloned()).body;
        bare::publish(&link.channel, "jobs", &body).await?;
    }
    let worker = WorkerProcess::spawn(&mut worker_on(&ours(&url), &["--model", model]));
    worker.until_logged("ready");
    let started = Instant::now();
    await_waiting(&link, &results, TEXTS.div_ceil(TEXTS_A_JOB)).await?;
    note(figures, MODEL, rate(TEXTS, started));
    drop(worker);
    let folder = TempDir::new()?;
    let (input, output) = (folder.path().join("texts.jsonl"), folder.path().join("vectors.jsonl"));
    write_lines(&input, texts)?;
    let mut run = command("inferq");
    run.args(["run", "--log", "info", "--health", "127.0.0.1:0", "--model", model, "--input"])
        .arg(&input)
        .arg("--output")
        .arg(&output);
    let run = WorkerProcess::spawn(&mut run);
    run.until_logged("ready");
    let started = Instant::now();
    ensure!(run.wait().success(), "inferq run failed");
    note(figures, RUN, rate(TEXTS, started));
    Ok(())
}

/// Returns once so many messages wait in a queue.
async fn await_waiting(link: &bare::Link, queue: &str, count: usize) -> Result<()> {
    while bare::waiting(&link.channel, queue).await? < count {
        tokio::time::sleep(ASKED_EVERY).await;
    }
    Ok(())
}

fn write_lines(path: &Path, texts: impl IntoIterator<Item = String>) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    texts.into_iter().try_for_each(|text| writeln!(file, "{}", json!(text)))?;
    Ok(file.into_inner()?.sync_all()?)
}

/// A worker that has nothing to do, and then one job at a time.
async fn idle(server: &RabbitmqServer, figures: &mut Figures) -> Result<()> {
    let (url, results) = set_up(server)?;
    let worker = WorkerProcess::spawn(&mut worker_on(&ours(&url), &["--engine", "echo", "--linger-ms", "0"]));
    worker.until_logged("ready");
    tokio::time::sleep(IDLE).await;
    let before = cpu_time(worker.id())?;
    tokio::time::sleep(IDLE).await;
    let spent = cpu_time(worker.id())?.saturating_sub(before);
    note(figures, WORKER_CPU, 100.0 * spent.as_secs_f64() / IDLE.as_secs_f64());
    note(figures, WORKER_P50, median(&singles(&url, "jobs", &results).await?));
    Ok(())
}

/// Times from publishing a job to its reply, in milliseconds, one after the other.
async fn singles(url: &str, jobs: &str, results: &str) -> Result<Vec<f64>> {
    let link = bare::link(url).await?;
    let mut replies = bare::consume(&link.channel, results).await?;
    let mut times = Vec::new();
    for number in 0..SINGLES {
        tokio::time::sleep(PACE).await;
        let body = job(&format!("job-{number}"));
        let started = Instant::now();
        let published = bare::publish(&link.channel, jobs, &body);
        let (published, reply) = tokio::join!(published, in_time(replies.next()));
        times.push(started.elapsed().as_secs_f64() * 1e3);
        published?;
        let tag = reply?.context("the results' queue is gone")??.delivery_tag;
        link.channel.basic_ack(tag, BasicAckOptions::default()).await?;
    }
    Ok(times)
}

async fn in_time<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(inferq_tests::process::PATIENCE, future).await.context("no reply came")
}

/// The real command on a file of so many lines, one a job.
async fn submit(server: &RabbitmqServer, jobs: usize, figures: &mut Figures) -> Result<()> {
    let (url, _) = set_up(server)?;
    let folder = TempDir::new()?;
    let input = folder.path().join("texts.jsonl");
    write_lines(&input, (0..jobs).map(|number| text(&number.to_string())))?;
    let mut submit = command("inferq");
    submit.args(["submit", "--items-per-job", "1", "--queue", &ours(&url), "--input"]).arg(&input);
    let started = Instant::now();
    let ended = submit.stdout(Stdio::null()).output()?;
    note(figures, SUBMIT, rate(jobs, started));
    ensure!(ended.status.success(), "submit failed: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

/// A virtual host with our queues: its address, and the name of the results' queue.
fn set_up(server: &RabbitmqServer) -> Result<(String, String)> {
    let url = server.url(&server.virtual_host());
    let setup = command("inferq").args(["setup", "--queue", &ours(&url)]).output()?;
    ensure!(setup.status.success(), "setup failed: {}", String::from_utf8_lossy(&setup.stderr));
    Ok((url, QueueNames::new("jobs").results()))
}

/// The address as our binaries take it.
fn ours(url: &str) -> String {
    format!("{url}?queue=jobs")
}

/// A job's body.
fn job(id: &str) -> Vec<u8> {
    message(id, &text(id)).body.to_vec()
}

/// A text that makes a job of about the size. One long word: the echo engine's work must not be measured.
fn text(of: &str) -> String {
    const FRAME: usize = 120;
    format!("{of} {}", "r".repeat(BODY_BYTES - FRAME))
}
