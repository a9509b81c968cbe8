//! A model on one device, asked by another program: `tests/tools/gpu_check.py`, which compares and times it.
//!
//! In: a JSON object a line on stdin. Out: a JSON object a line on stdout, the first one when the model is warm. A request
//! that fails is answered with `{"error": …}`; the next is taken. It ends with its input.

use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use inferq_worker::engine::burn::{Attention, Kernels, LoadOptions, load, operations_a_token};
use inferq_worker::engine::device::{DeviceChoice, Precision};
use inferq_worker::engine::{Answer, Engine, Loaded, Tokens, Warm};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};

/// Answers requests on stdin: {"op": "time", "length", "batch", "seconds"}, {"op": "infer", "items"} with token ids, and
/// {"op": "backlog", "length", "batch", "seconds"}.
#[derive(Parser)]
struct Args {
    /// The model's directory
    #[arg(long)]
    model: PathBuf,
    /// cpu, cuda:0, …
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// f32, f16 or bf16
    #[arg(long)]
    precision: Option<Precision>,
    /// Where kernels are kept
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// Tokens of a batch, instead of what the device finds
    #[arg(long)]
    max_batch_tokens: Option<usize>,
    /// Engines a device
    #[arg(long)]
    replicas: Option<NonZeroUsize>,
    /// Attention by burn's own operation
    #[arg(long)]
    fused: bool,
    /// burn's operations on the CPU, in the shapes of a card
    #[arg(long)]
    padded: bool,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Request {
    Time { length: usize, batch: usize, seconds: f64 },
    Infer { items: Vec<Vec<u32>> },
    Backlog { length: usize, batch: usize, seconds: f64 },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (mut loaded, ready) = match ready(&args) {
        Ok(ready) => ready,
        Err(error) => {
            println!("{}", json!({ "error": format!("{error:#}") }));
            bail!(error);
        }
    };
    say(&ready)?;
    for line in std::io::stdin().lock().lines() {
        let answer =
            serde_json::from_str(&line?).context("no request").and_then(|request| answer(&mut loaded, request));
        say(&answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))?;
    }
    Ok(())
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn ready(args: &Args) -> Result<(Loaded, Value)> {
    let started = Instant::now();
    let mut loaded = load(&LoadOptions {
        places: args.device.resolve()?,
        precision: args.precision,
        replicas: args.replicas,
        kernels: if args.padded { Kernels::Burn } else { Kernels::Own },
        attention: if args.fused { Attention::Fused } else { Attention::Steps },
        batch_tokens: args.max_batch_tokens,
        cache: args.cache_dir.clone(),
        ..LoadOptions::new(args.model.clone())
    })?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let warmed = loaded.engines.iter_mut().map(|engine| engine.warm_up()).collect::<Result<Vec<Warm>, _>>()?;
    let check = loaded.engines[0].check().err().map(|error| error.to_string());
    let ready = json!({
        "ready": true,
        "name": loaded.info.name,
        "device": loaded.info.device,
        "precision": args.precision.map(|precision| precision.to_string()),
        "replicas": loaded.engines.len(),
        "load_ms": load_ms,
        "warm_ms": started.elapsed().as_secs_f64() * 1e3 - load_ms,
        "batch_tokens": warmed.iter().filter_map(|warm| warm.batch_tokens).min(),
        "check": check,
        "operations_a_token_128": operations_a_token(&args.model, 128)?,
        "max_tokens": loaded.info.max_tokens,
    });
    Ok((loaded, ready))
}

fn answer(loaded: &mut Loaded, request: Request) -> Result<Value> {
    match request {
        Request::Time { length, batch, seconds } => time(loaded, (length, batch), seconds),
        Request::Infer { items } => infer(loaded, items),
        Request::Backlog { length, batch, seconds } => backlog(loaded, (length, batch), seconds),
    }
}

fn batch((length, items): (usize, usize), rng: &mut StdRng) -> Vec<Tokens> {
    let item =
        |_| Tokens { ids: (0..length).map(|_| rng.random_range(1000..30000)).collect(), type_ids: vec![0; length] };
    (0..items).map(item).collect()
}

/// One engine, one batch after the other; each of other tokens, made before the clock starts.
fn time(loaded: &mut Loaded, shape: (usize, usize), seconds: f64) -> Result<Value> {
    let (mut rng, engine) = (StdRng::seed_from_u64(1), loaded.engines[0].as_mut());
    let (started, mut took) = (Instant::now(), Vec::new());
    while took.is_empty() || started.elapsed().as_secs_f64() < seconds {
        let tokens = batch(shape, &mut rng);
        let items: Vec<&Tokens> = tokens.iter().collect();
        let run = Instant::now();
        engine.infer(&items)?;
        took.push(run.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_unstable_by(f64::total_cmp);
    Ok(json!({ "ms": took[took.len() / 2], "runs": took.len() }))
}

fn infer(loaded: &mut Loaded, items: Vec<Vec<u32>>) -> Result<Value> {
    let tokens: Vec<Tokens> = items.into_iter().map(|ids| Tokens { type_ids: vec![0; ids.len()], ids }).collect();
    let items: Vec<&Tokens> = tokens.iter().collect();
    let vectors = loaded.engines[0].infer(&items)?.into_iter().map(unit).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "vectors": vectors }))
}

fn unit(answer: Answer) -> Result<Vec<f64>> {
    let Answer::Embedding(vector) = answer else { bail!("no embedding model") };
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    ensure!(length.is_finite() && length > 0.0, "a vector without length");
    Ok(vector.iter().map(|value| f64::from(*value) / length).collect())
}

/// All engines at once, as under a backlog: one packs while the other's batch runs.
fn backlog(loaded: &mut Loaded, shape: (usize, usize), seconds: f64) -> Result<Value> {
    let limit = Duration::from_secs_f64(seconds);
    let started = Instant::now();
    let run = |engine: &mut Box<dyn Engine>, seed: u64| -> Result<usize> {
        let tokens = batch(shape, &mut StdRng::seed_from_u64(seed));
        let items: Vec<&Tokens> = tokens.iter().collect();
        let mut batches = 0;
        while started.elapsed() < limit {
            engine.infer(&items)?;
            batches += 1;
        }
        Ok(batches)
    };
    let replicas = loaded.engines.len();
    let batches: usize = std::thread::scope(|scope| {
        let running: Vec<_> =
            loaded.engines.iter_mut().zip(2..).map(|(engine, seed)| scope.spawn(move || run(engine, seed))).collect();
        running.into_iter().map(|thread| thread.join().expect("an engine does not panic")).sum::<Result<usize>>()
    })?;
    let tokens = (batches * shape.0 * shape.1) as f64;
    Ok(json!({ "tokens_per_s": tokens / started.elapsed().as_secs_f64(), "batches": batches, "replicas": replicas }))
}
