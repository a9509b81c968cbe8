//! The engine's benchmark: milliseconds, GFLOP/s and share of the GEMM roofline for each (length, batch), and what
//! replicas make of the same threads.
//!
//! In: the model's directory (`INFERQ_TEST_MODEL`, else the cache of `tests/tools/fetch_model.sh`), `THREADS` (2),
//! `ROUNDS` (7), `KERNELS=burn` for burn's own operations, and a peer's command line in `PEER`, which is asked for the
//! same shapes in turn. Out: a table, and raw JSON in the file that `OUT` names.

use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use inferq_worker::engine::burn::{Kernels, LoadOptions, load};
use inferq_worker::engine::{Engine, Loaded, Tokens};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// (tokens an item, items a batch).
const SHAPES: [(usize, usize); 8] = [(16, 1), (16, 32), (64, 1), (64, 32), (128, 1), (128, 8), (128, 32), (256, 8)];

/// The least time that one measurement takes, so that short runs are repeated and averaged.
const SLICE_S: f64 = 0.08;

fn main() -> Result<()> {
    let threads = number("THREADS", 2)?;
    let rounds = number("ROUNDS", 7)?;
    let started = Instant::now();
    let mut loaded = open(1, threads)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    for engine in &mut loaded.engines {
        engine.warm_up()?;
        engine.check()?;
    }
    println!(
        "{}: loaded in {load_ms:.0} ms, ready in {:.0} ms",
        loaded.info.name,
        started.elapsed().as_secs_f64() * 1e3
    );
    let roofline = roofline(threads);
    println!("GEMM roofline, {threads} threads, 2048³: {roofline:.0} GFLOP/s\n");
    let mut peer = Peer::start()?;
    let engine = loaded.engines[0].as_mut();
    let mut rng = StdRng::seed_from_u64(1);
    let mut ours = vec![Vec::new(); SHAPES.len()];
    let mut theirs = vec![Vec::new(); SHAPES.len()];
    for _ in 0..rounds {
        for (i, shape) in SHAPES.iter().enumerate() {
            ours[i].push(measure(engine, *shape, &mut rng)?);
            if let Some(peer) = &mut peer {
                theirs[i].push(peer.measure(*shape)?);
            }
        }
    }
    let rows = table(&mut ours, &mut theirs, roofline);
    let replicas = replicas(threads, &mut rng)?;
    let memory = peak_memory_mib();
    println!("peak memory {memory:.0} MiB");
    let raw = json!({ "threads": threads, "load_ms": load_ms, "roofline_gflops": roofline, "shapes": rows,
        "replicas": replicas, "peak_memory_mib": memory, "ours_ms": ours, "peer_ms": theirs });
    if let Some(out) = std::env::var_os("OUT") {
        std::fs::write(out, serde_json::to_vec_pretty(&raw)?)?;
    }
    Ok(())
}

fn number(name: &str, default: usize) -> Result<usize> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    let number = text.parse().with_context(|| format!("{name}={text} is no number"))?;
    ensure!(number > 0, "{name} must be at least 1");
    Ok(number)
}

fn open(replicas: usize, threads: usize) -> Result<Loaded> {
    let cache =
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/inferq/models/all-MiniLM-L6-v2");
    let options = LoadOptions {
        replicas: Some(NonZeroUsize::new(replicas).context("no replicas")?),
        threads: NonZeroUsize::new(threads).context("no threads")?,
        kernels: if std::env::var("KERNELS").as_deref() == Ok("burn") { Kernels::Burn } else { Kernels::Own },
        ..LoadOptions::new(std::env::var_os("INFERQ_TEST_MODEL").map_or_else(cache, PathBuf::from))
    };
    load(&options).context("run tests/tools/fetch_model.sh, or set INFERQ_TEST_MODEL")
}

/// A batch of distinct inputs.
fn batch((length, items): (usize, usize), rng: &mut StdRng) -> Vec<Tokens> {
    let item =
        |_| Tokens { ids: (0..length).map(|_| rng.random_range(1000..30000)).collect(), type_ids: vec![0; length] };
    (0..items).map(item).collect()
}

/// Milliseconds of one run of this shape.
fn measure(engine: &mut dyn Engine, shape: (usize, usize), rng: &mut StdRng) -> Result<f64> {
    let (started, mut spent, mut runs) = (Instant::now(), 0.0, 0u32);
    while runs == 0 || started.elapsed().as_secs_f64() < SLICE_S {
        let tokens = batch(shape, rng);
        let items: Vec<&Tokens> = tokens.iter().collect();
        let run = Instant::now();
        engine.infer(&items)?;
        spent += run.elapsed().as_secs_f64();
        runs += 1;
    }
    Ok(spent * 1e3 / f64::from(runs))
}

/// Floating-point operations of MiniLM's six layers on one batch.
fn operations((length, items): (usize, usize)) -> f64 {
    let (hidden, wide, layers) = (384.0, 1536.0, 6.0);
    let a_token = 2.0 * (4.0 * hidden * hidden + 2.0 * hidden * wide) + 4.0 * length as f64 * hidden;
    layers * a_token * (length * items) as f64
}

/// GFLOP/s of the GEMM library that the engine uses, on large matrices: the best of three.
fn roofline(threads: usize) -> f64 {
    const SIZE: usize = 2048;
    let (a, b, mut c) = (vec![1.0f32; SIZE * SIZE], vec![1.0f32; SIZE * SIZE], vec![0.0f32; SIZE * SIZE]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had");
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let started = Instant::now();
        pool.install(|| inferq_worker::engine::burn::multiply_square(&a, &b, &mut c, SIZE, threads));
        seconds = seconds.min(started.elapsed().as_secs_f64());
    }
    2.0 * (SIZE as f64).powi(3) / seconds / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(ours: &mut [Vec<f64>], theirs: &mut [Vec<f64>], roofline: f64) -> Vec<serde_json::Value> {
    println!("length × batch        ms   GFLOP/s  of roofline   peer ms    ratio");
    let (mut rows, mut product, mut compared) = (Vec::new(), 1.0, 0);
    for (i, shape) in SHAPES.iter().enumerate() {
        let ms = median(&mut ours[i]);
        let gflops = operations(*shape) / ms / 1e6;
        print!("{:>6} × {:<5} {ms:>9.2} {gflops:>9.1} {:>11.0}%", shape.0, shape.1, 100.0 * gflops / roofline);
        let peer = (!theirs[i].is_empty()).then(|| median(&mut theirs[i]));
        if let Some(peer) = peer {
            print!(" {peer:>9.2} {:>7.2}×", peer / ms);
            product *= peer / ms;
            compared += 1;
        }
        println!();
        rows.push(json!({ "length": shape.0, "batch": shape.1, "ms": ms, "gflops": gflops, "peer_ms": peer }));
    }
    if compared > 0 {
        println!("geometric mean of the ratios: {:.3}×", product.powf(1.0 / f64::from(compared)));
    }
    println!();
    rows
}

/// Sentences a second of one engine with all threads, and of one engine a thread.
fn replicas(threads: usize, rng: &mut StdRng) -> Result<Vec<serde_json::Value>> {
    let mut rows = Vec::new();
    println!("sentences/s     1 × {threads} threads   {threads} × 1 thread");
    for shape in [(16, 1), (64, 1), (128, 1), (16, 32), (128, 8)] {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            rates[0].push(rate(open(1, threads)?, shape, rng)?);
            rates[1].push(rate(open(threads, 1)?, shape, rng)?);
        }
        let [one, many] = rates.each_mut().map(|rates| median(rates));
        println!("{:>6} × {:<5} {one:>14.0} {many:>14.0}", shape.0, shape.1);
        rows.push(json!({ "length": shape.0, "batch": shape.1, "one": one, "replicas": many }));
    }
    Ok(rows)
}

fn rate(loaded: Loaded, shape: (usize, usize), rng: &mut StdRng) -> Result<f64> {
    let batches: Vec<Vec<Tokens>> = (0..8).map(|_| batch(shape, rng)).collect();
    let run = |mut engine: Box<dyn Engine>| -> Result<f64> {
        engine.warm_up()?;
        let (started, mut sentences) = (Instant::now(), 0.0);
        for batch in batches.iter().cycle() {
            let items: Vec<&Tokens> = batch.iter().collect();
            engine.infer(&items)?;
            sentences += shape.1 as f64;
            if started.elapsed().as_secs_f64() > 3.0 * SLICE_S {
                break;
            }
        }
        Ok(sentences / started.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = loaded.engines.into_iter().map(|engine| scope.spawn(|| run(engine))).collect();
        running.into_iter().map(|thread| thread.join().expect("an engine does not panic")).sum()
    })
}

fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib / 1024.0)
}

/// Another engine in another process, asked for one shape a line, answering with milliseconds.
struct Peer {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start() -> Result<Option<Self>> {
        let Ok(command) = std::env::var("PEER") else { return Ok(None) };
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("PEER={command}"))?;
        let questions = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut peer = Self { child, questions, answers };
        println!("peer: {}", peer.line()?);
        Ok(Some(peer))
    }

    fn measure(&mut self, (length, items): (usize, usize)) -> Result<f64> {
        writeln!(self.questions, "{length} {items} {SLICE_S}")?;
        self.line()?.parse().context("the peer's answer is no number")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the peer has ended");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already, and there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
