//! Measures the producer: `submit` (lines a second into the embedded queue, and memory from a tenth to the end).
//!
//! In: a subcommand and a number of lines. Out: a table, and raw JSON beside the binaries. It starts the real binary
//! on files that it makes in a temporary folder (set TMPDIR to choose the disk). It asserts nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use inferq_tests::figures::keep;
use inferq_tests::process::{command, peak_kib};
use serde_json::{Value, json};
use tempfile::TempDir;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let subject = arguments.next().unwrap_or_default();
    let lines: Option<u64> = arguments.next().map(|size| size.parse()).transpose().context("LINES must be a number")?;
    let figures = match &*subject {
        "submit" => submit(lines.unwrap_or(10_000_000))?,
        _ => bail!("usage: bench_producer submit [LINES]"),
    };
    keep(&format!("producer-{subject}"), &figures)
}

/// Lines a second from a JSONL file into a queue, the search for ids that stand twice included, and how the peak of
/// memory grows from a tenth of the publishing to its end.
fn submit(lines: u64) -> Result<Value> {
    let folder = TempDir::new()?;
    let input = folder.path().join("texts.jsonl");
    let bytes = write_lines(&input, lines)?;
    let queue = format!("sqlite://{}", folder.path().join("queue.db").display());
    ensure!(command("inferq").args(["setup", "--queue", &queue]).output()?.status.success(), "setup failed");
    let mut submit = command("inferq");
    submit.args(["submit", "--queue", &queue, "--input"]).arg(&input).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = submit.spawn()?;
    // The ledger is made when the first look at the file is over and publishing begins.
    let ledger = input.with_extension("jsonl.ledger.db");
    let mut peaks = Vec::new();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // An ended process has no figures any more.
        if let (true, Ok(peak)) = (ledger.exists(), peak_kib(&child)) {
            peaks.push(peak as f64 / 1024.0);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "submit failed: {status}");
    let at_the_end = *peaks.last().context("too few lines to measure memory")?;
    let at_a_tenth = peaks[peaks.len() / 10];
    println!("{lines} lines of {} bytes into sqlite: {:.0} lines/s", bytes / lines.max(1), lines as f64 / seconds);
    println!("peak {at_a_tenth:.1} MiB after a tenth, {at_the_end:.1} MiB at the end: {:.3}", at_the_end / at_a_tenth);
    Ok(json!({"lines": lines, "seconds": seconds, "peak_mib_at_a_tenth": at_a_tenth, "peak_mib": at_the_end}))
}

/// Short texts, each with an id. Returns the file's size.
fn write_lines(path: &Path, lines: u64) -> Result<u64> {
    const WORDS: [&str; 8] = ["river", "copper", "garden", "winter", "letter", "engine", "harbour", "silver"];
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for line in 0..lines {
        let word = |step: u64| WORDS[(line.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (3 * step) & 7) as usize];
        writeln!(file, r#"{{"id": "doc-{line}", "text": "{} {} {} {}"}}"#, word(1), word(2), word(3), word(4))?;
    }
    let file = file.into_inner()?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}
