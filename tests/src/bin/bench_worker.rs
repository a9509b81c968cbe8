//! Measures the whole worker: `echo` (jobs a second without a model), `traces` (the same with and without), `memory` (under a large backlog), `across`
//! (one-item jobs against one large job) and `run` (`inferq run` against the engine alone on the same batches).
//!
//! In: a subcommand, a size, and INFERQ_TEST_MODEL where a model is needed. Out: a table, and raw JSON beside the
//! binaries. It starts the real binaries; figures are medians of rounds run side by side. It asserts nothing.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use inferq_tests::figures::{keep, median};
use inferq_tests::otlp::{Receiver, Transport};
use inferq_tests::process::{WorkerProcess, binary, worker_command};
use inferq_tests::queue_file::{QueueFile, job};
use inferq_worker::engine::{Tokens, burn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROUNDS: u64 = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let subject = arguments.next().unwrap_or_default();
    let size: Option<usize> = arguments.next().map(|size| size.parse()).transpose().context("SIZE must be a number")?;
    let figures = match &*subject {
        "echo" => echo(size.unwrap_or(100_000)).await?,
        "traces" => traces(size.unwrap_or(50_000)).await?,
        "memory" => memory(size.unwrap_or(1_000_000)).await?,
        "across" => across(size.unwrap_or(1_000)).await?,
        "run" => run(size.unwrap_or(20_000))?,
        _ => bail!("usage: bench_worker echo|traces|memory|across|run [SIZE]"),
    };
    keep(&format!("worker-{subject}"), &figures)
}

/// Jobs a second from queue to results queue, by a worker process with the echo engine.
async fn echo(jobs: usize) -> Result<Value> {
    let (mut rates, mut peaks) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let queue = filled(jobs, 1, round).await;
        let worker = WorkerProcess::start(&queue.path, &[]);
        rates.push(jobs as f64 / answered(&queue, &worker, jobs).await.as_secs_f64());
        peaks.push(worker.peak_kib()? as f64 / 1024.0);
    }
    let (rate, peak) = (median(&rates), median(&peaks));
    println!("echo engine, {jobs} one-item jobs, sqlite to sqlite: {rate:.0} jobs/s, peak {peak:.1} MiB");
    Ok(json!({"jobs": jobs, "jobs_per_second": rates, "peak_mib": peaks}))
}

/// The same rate without traces, and with them sent to a receiver in this process; and what the worker computes for it.
async fn traces(jobs: usize) -> Result<Value> {
    let receiver = Receiver::start(Transport::Http).await;
    let (mut rates, mut cpu_s) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for (on, variables) in [&[][..], &receiver.variables()[..]].into_iter().enumerate() {
            let queue = filled(jobs, 1, round).await;
            let before = childrens_cpu_s()?;
            let mut command = worker_command(&queue.path, &["--engine", "echo"]);
            let worker = WorkerProcess::spawn(command.envs(variables.iter().cloned()));
            rates[on].push(jobs as f64 / answered(&queue, &worker, jobs).await.as_secs_f64());
            drop(worker);
            cpu_s[on].push(childrens_cpu_s()? - before);
        }
    }
    let ratios = |[off, on]: &[Vec<f64>; 2]| on.iter().zip(off).map(|(on, off)| on / off).collect::<Vec<f64>>();
    let (rate, cpu, spans) = (median(&ratios(&rates)), median(&ratios(&cpu_s)), receiver.spans().len());
    println!("echo engine, {jobs} one-item jobs: {:.0} jobs/s without traces", median(&rates[0]));
    println!("with traces {rate:.3} of that, with {cpu:.3} of the worker's processor time; {spans} spans received");
    Ok(json!({"jobs": jobs, "jobs_per_second": rates, "cpu_s": cpu_s, "spans": spans}))
}

/// Processor time of the processes that this one has waited for.
fn childrens_cpu_s() -> Result<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("a name in parentheses")?.1;
    let ticks = after_name.split_whitespace().skip(13).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_A_SECOND)
}

/// Peak memory of a worker under a large backlog against a small one.
async fn memory(large: usize) -> Result<Value> {
    let sizes = [10_000, large];
    let mut peaks = Vec::new();
    for jobs in sizes {
        let queue = filled(jobs, 1, 1).await;
        let worker = WorkerProcess::start(&queue.path, &[]);
        answered(&queue, &worker, jobs).await;
        let peak = worker.peak_kib()? as f64 / 1024.0;
        println!("backlog of {jobs} jobs: peak {peak:.1} MiB");
        peaks.push(peak);
    }
    println!("ratio {:.3}", peaks[1] / peaks[0]);
    Ok(json!({"jobs": sizes, "peak_mib": peaks}))
}

/// Time of as many one-item jobs as one job has items, by a worker process with the model.
async fn across(items: usize) -> Result<Value> {
    let model = model_directory()?;
    let (mut many, mut one) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (items_a_job, times) in [(1, &mut many), (items, &mut one)] {
            let queue = filled(items, items_a_job, round).await;
            let worker = WorkerProcess::start_with(&queue.path, &["--model", &model]);
            times.push(answered(&queue, &worker, items / items_a_job).await.as_secs_f64());
        }
    }
    let ratios: Vec<f64> = many.iter().zip(&one).map(|(many, one)| one / many).collect();
    println!("{items} one-item jobs run at {:.2} of the rate of one job of {items} items", median(&ratios));
    Ok(json!({"items": items, "one_item_jobs_s": many, "one_job_s": one, "ratio": ratios}))
}

/// `inferq run` against the engine alone, fed with batches of the same shapes in the same order.
fn run(texts: usize) -> Result<Value> {
    let model = model_directory()?;
    let folder = TempDir::new()?;
    let input = folder.path().join("texts.jsonl");
    let mut rng = StdRng::seed_from_u64(1);
    let lines: Vec<String> = (0..texts).map(|_| text(&mut rng)).collect();
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input)?);
    lines.iter().try_for_each(|line| writeln!(file, "{}", json!(line)))?;
    file.into_inner()?.sync_all()?;
    let mut alone = Vec::new();
    let mut ran = Vec::new();
    for _ in 0..3 {
        let whole = inferq_run(&model, &input)?;
        alone.push(engine_alone(&model, &whole.batches)?.as_secs_f64());
        ran.push(whole);
    }
    let figures = |of: fn(&Ran) -> f64| ran.iter().map(of).collect::<Vec<f64>>();
    let (whole, peaks, waste) = (figures(|r| r.seconds), figures(|r| r.peak_mib), figures(|r| r.padding_waste));
    let ratios: Vec<f64> = alone.iter().zip(&whole).map(|(alone, whole)| alone / whole).collect();
    println!("{texts} texts: engine alone {:.1} s, inferq run {:.1} s", median(&alone), median(&whole));
    println!("ratio {:.3}, padding waste {:.3}, peak {:.0} MiB", median(&ratios), median(&waste), median(&peaks));
    Ok(
        json!({"texts": texts, "engine_s": alone, "run_s": whole, "ratio": ratios, "padding_waste": waste, "peak_mib": peaks}),
    )
}

struct Ran {
    /// From the worker's readiness to the last answer: loading the model is not the line's.
    seconds: f64,
    peak_mib: f64,
    padding_waste: f64,
    /// The lengths of the rows of every batch, in the order in which they ended.
    batches: Vec<Vec<usize>>,
}

fn inferq_run(model: &str, input: &Path) -> Result<Ran> {
    let output = input.with_extension("out.jsonl");
    let timed = std::process::Command::new("python3")
        .args(["-c", PEAK_OF_CHILD])
        .arg(binary("inferq"))
        .args(["run", "--log", "info,inferq_worker::dispatch=trace", "--model", model, "--input"])
        .arg(input)
        .arg("--output")
        .arg(&output)
        .output()?;
    let log = String::from_utf8_lossy(&timed.stderr);
    if !timed.status.success() {
        bail!("inferq run failed: {log}");
    }
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ended = lines.iter().rev().find(|line| line["message"] == "line ended").with_context(|| log.to_string())?;
    let lengths =
        lines.iter().filter(|line| line["message"] == "batch ran").filter_map(|line| line["lengths"].as_str());
    let peak_kib: f64 = String::from_utf8_lossy(&timed.stdout).lines().last().unwrap_or_default().trim().parse()?;
    std::fs::remove_file(output)?;
    Ok(Ran {
        seconds: ended["busy_ms"].as_f64().context("busy_ms")? / 1e3,
        peak_mib: peak_kib / 1024.0,
        padding_waste: ended["padding_waste"].as_f64().context("padding_waste")?,
        batches: lengths.map(serde_json::from_str).collect::<Result<_, _>>()?,
    })
}

/// The first of tokens that every vocabulary of a BERT model has; what they cost does not depend on which they are.
const ANY_WORD: u32 = 2_000;

/// Runs a command and prints the peak of its resident memory in KiB.
const PEAK_OF_CHILD: &str = "import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)";

/// All replicas on batches whose rows have these lengths, made before the clock starts.
fn engine_alone(model: &str, batches: &[Vec<usize>]) -> Result<Duration> {
    let options = burn::LoadOptions { replicas: None, ..burn::LoadOptions::new(PathBuf::from(model)) };
    let mut loaded = burn::load(&options)?;
    loaded.engines.iter_mut().try_for_each(|engine| engine.warm_up().map(drop))?;
    let row = |length: &usize| Tokens { ids: (ANY_WORD..).take(*length).collect(), type_ids: vec![0; *length] };
    let batches: VecDeque<Vec<Tokens>> = batches.iter().map(|rows| rows.iter().map(row).collect()).collect();
    let batches = Mutex::new(batches);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for engine in &mut loaded.engines {
            let next = || batches.lock().expect("no replica panics").pop_front();
            scope.spawn(move || {
                while let Some(batch) = next() {
                    let rows: Vec<_> = batch.iter().collect();
                    engine.infer(&rows).expect("the model runs");
                }
            });
        }
    });
    Ok(started.elapsed())
}

/// A queue file with jobs in it.
async fn filled(items: usize, items_a_job: usize, seed: u64) -> QueueFile {
    let queue = QueueFile::new().await;
    let mut rng = StdRng::seed_from_u64(seed);
    let jobs: Vec<usize> = (0..items / items_a_job).collect();
    for chunk in jobs.chunks(1_000) {
        let job = |number: &usize| job(&format!("job-{number}"), (0..items_a_job).map(|_| text(&mut rng)));
        queue.publish(chunk.iter().map(job)).await;
    }
    queue
}

/// The time from the worker's readiness to the last of so many replies; they are taken away as they come.
async fn answered(queue: &QueueFile, worker: &WorkerProcess, jobs: usize) -> Duration {
    worker.until_logged("ready");
    let started = Instant::now();
    let mut seen = 0;
    let take = |replies: Vec<_>| {
        seen += replies.len();
        seen >= jobs
    };
    queue.replies(256, take).await;
    started.elapsed()
}

/// A text of 3 to 120 words, short ones more often, no two alike.
fn text(rng: &mut StdRng) -> String {
    const WORDS: [&str; 16] = [
        "river", "copper", "garden", "winter", "letter", "engine", "harbour", "silver", "meadow", "lantern", "bridge",
        "orchard", "thunder", "window", "market", "voyage",
    ];
    let words = (3.0 * 40f64.powf(rng.random::<f64>())) as usize;
    let mut text = format!("{:x}", rng.random::<u32>());
    for _ in 1..words {
        text.push(' ');
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text
}

fn model_directory() -> Result<String> {
    std::env::var("INFERQ_TEST_MODEL").context("INFERQ_TEST_MODEL is not set: `make` sets it after fetching the model")
}
