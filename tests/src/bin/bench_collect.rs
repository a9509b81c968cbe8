//! Measures `inferq collect`, the whole command: receiving from the embedded queue, committing to the ledger, writing
//! the file. `rate` counts embeddings a second, for replies in either encoding; `memory` compares peaks of a large
//! submission and a tenth of it.
//!
//! In: a subcommand and a number of items. Out: a table, and raw JSON beside the binaries. It starts the real binary on
//! replies made before the clock starts. It asserts nothing.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use inferq_shared::broker::{Broker, BrokerUrl, Message, Publisher};
use inferq_shared::job::{JobId, Metadata};
use inferq_shared::reply::{Embedding, ItemResult, Reply, Status, Timings, Usage};
use inferq_tests::figures::{keep, median};
use inferq_tests::process::binary;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROUNDS: u64 = 3;
const ITEMS_PER_JOB: usize = 64;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let subject = arguments.next().unwrap_or_default();
    let size: Option<usize> = arguments.next().map(|size| size.parse()).transpose().context("SIZE must be a number")?;
    let figures = match &*subject {
        "rate" => rate(size.unwrap_or(500_000)).await?,
        "memory" => memory(size.unwrap_or(10_000_000)).await?,
        _ => bail!("usage: bench_collect rate|memory [ITEMS]"),
    };
    keep(&format!("collect-{subject}"), &figures)
}

/// Embeddings of 384 numbers a second, into Parquet and JSONL.
async fn rate(items: usize) -> Result<Value> {
    const DIMENSIONS: usize = 384;
    let mut figures = Vec::new();
    for (name, encoding) in [("base64", Embedding::Base64 as Encoding), ("float", Embedding::Float as Encoding)] {
        // As many bytes in either encoding, or nearly.
        let items = if name == "float" { items / 2 } else { items };
        for output in ["out.parquet", "out.jsonl"] {
            let mut rounds = Vec::new();
            for round in 0..ROUNDS {
                let replies = Replies::published(items, DIMENSIONS, encoding, round).await?;
                rounds.push(replies.collect(output)?);
            }
            let rates: Vec<f64> = rounds.iter().map(|run| items as f64 / run.took.as_secs_f64()).collect();
            let peaks: Vec<f64> = rounds.iter().map(|run| run.peak_mib).collect();
            let (rate, peak, mib) = (median(&rates), median(&peaks), rounds[0].output_bytes as f64 / 1_048_576.0);
            println!(
                "{items} embeddings from {name} into {output}: {rate:.0}/s, peak {peak:.0} MiB, file {mib:.0} MiB"
            );
            figures.push(json!({"replies": name, "output": output, "items": items, "embeddings_per_second": rates,
                "peak_mib": peaks, "output_mib": mib}));
        }
    }
    Ok(figures.into())
}

/// Peak memory of a large submission against a tenth of it, with vectors as the echo engine makes them.
async fn memory(items: usize) -> Result<Value> {
    const DIMENSIONS: usize = 8;
    let mut figures = Vec::new();
    for output in ["out.parquet", "out.jsonl"] {
        let mut peaks = Vec::new();
        for items in [items / 10, items] {
            let run = Replies::published(items, DIMENSIONS, Embedding::Base64, 1).await?.collect(output)?;
            let rate = items as f64 / run.took.as_secs_f64();
            println!("{items} items into {output}: peak {:.1} MiB, {rate:.0} items/s", run.peak_mib);
            peaks.push(run.peak_mib);
        }
        println!("ratio {:.3}", peaks[1] / peaks[0]);
        figures.push(json!({"output": output, "items": [items / 10, items], "peak_mib": peaks}));
    }
    Ok(figures.into())
}

type Encoding = fn(Vec<f32>) -> Embedding;

/// A submission whose replies wait on its route.
struct Replies {
    folder: TempDir,
}

struct Run {
    took: Duration,
    peak_mib: f64,
    output_bytes: u64,
}

impl Replies {
    async fn published(items: usize, dimensions: usize, encoding: Encoding, seed: u64) -> Result<Self> {
        let folder = TempDir::new()?;
        let queue = folder.path().join("queue.db");
        let (url, input) = (format!("sqlite://{}", queue.display()), folder.path().join("texts.txt"));
        std::fs::write(&input, "x\n".repeat(items))?;
        inferq(&["setup", "--queue", &url])?;
        let path = input.display().to_string();
        let said =
            inferq(&["submit", "--queue", &url, "--input", &path, "--items-per-job", &ITEMS_PER_JOB.to_string()])?;
        let submission = said.split_whitespace().nth(1).context("a submission")?.trim_end_matches(':').to_owned();
        let url = BrokerUrl::sqlite(&queue);
        let broker = Broker::connect(&url).await?;
        let (publisher, route) = (broker.publisher(), url.queues.submission(&submission));
        let mut rng = StdRng::seed_from_u64(seed);
        let jobs: Vec<usize> = (0..items.div_ceil(ITEMS_PER_JOB)).collect();
        for group in jobs.chunks(64) {
            let reply = |job: &usize| {
                let items = ITEMS_PER_JOB.min(items - job * ITEMS_PER_JOB);
                let id = JobId::new(format!("{submission}-{job:06}")).expect("a valid id");
                let results =
                    (0..items as u32).map(|index| result(&id, index, dimensions, encoding, &mut rng)).collect();
                Message { body: reply(id, results).encode().into(), ..Message::default() }
            };
            let messages = group.iter().map(reply).collect();
            publisher.publish(&route, messages).await?;
        }
        broker.close().await;
        Ok(Self { folder })
    }

    fn collect(&self, output: &str) -> Result<Run> {
        let output = self.folder.path().join(output);
        let started = Instant::now();
        let mut child = std::process::Command::new(binary("inferq"))
            .args(["collect", "--ledger"])
            .arg(self.folder.path().join("texts.txt.ledger.db"))
            .arg("--output")
            .arg(&output)
            .stderr(Stdio::null())
            .spawn()?;
        let mut peak_kib = 0;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            peak_kib = peak_of(child.id()).unwrap_or(peak_kib);
            std::thread::sleep(Duration::from_millis(20));
        };
        let took = started.elapsed();
        ensure!(status.success(), "inferq collect ended with {status}");
        Ok(Run { took, peak_mib: peak_kib as f64 / 1024.0, output_bytes: output.metadata()?.len() })
    }
}

fn inferq(arguments: &[&str]) -> Result<String> {
    let done = std::process::Command::new(binary("inferq")).args(arguments).output()?;
    ensure!(done.status.success(), "inferq {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// The most resident memory that a process has had so far, in KiB.
fn peak_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

/// A vector of length 1, no two alike.
fn result(job: &JobId, index: u32, dimensions: usize, encoding: Encoding, rng: &mut StdRng) -> ItemResult {
    let mut values: Vec<f32> = (0..dimensions).map(|_| rng.random::<f32>() - 0.5).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter_mut().for_each(|value| *value /= length);
    ItemResult {
        id: format!("{job}/{index}"),
        index,
        embedding: Some(encoding(values)),
        labels: None,
        error: None,
        tokens: Some(20),
    }
}

fn reply(id: JobId, results: Vec<ItemResult>) -> Reply {
    let items = results.len() as u32;
    Reply {
        version: 1,
        id,
        status: Status::Succeeded,
        model: "bench".to_owned(),
        revision: "sha256:00".to_owned(),
        results,
        error: None,
        output_uri: None,
        usage: Usage { items, tokens: u64::from(items) * 20 },
        timings_ms: Timings::default(),
        worker: "bench".to_owned(),
        attempt: 1,
        metadata: Metadata::new(),
    }
}
