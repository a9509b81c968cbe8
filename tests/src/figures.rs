//! What the benchmarks have in common: medians, tables of them, and raw figures in files beside the binaries.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Figures by row, in the order of the table.
pub type Figures = BTreeMap<&'static str, Vec<f64>>;

/// How much a benchmark of a broker does.
#[derive(Debug)]
pub struct Options {
    /// How often each row is measured.
    pub rounds: usize,
    /// Jobs a round.
    pub jobs: usize,
}

impl Options {
    /// Those of `--rounds N --jobs N` on the command line, else 3 rounds of so many jobs.
    ///
    /// # Errors
    /// When anything else stands there.
    pub fn from_arguments(jobs: usize) -> Result<Self> {
        let mut options = Self { rounds: 3, jobs };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match &**name {
                "--rounds" => options.rounds = value.parse().context("--rounds")?,
                "--jobs" => options.jobs = value.parse().context("--jobs")?,
                other => bail!("unknown option {other}: --rounds and --jobs are known"),
            }
        }
        Ok(options)
    }
}

/// Adds a figure to a row.
pub fn note(figures: &mut Figures, row: &'static str, figure: f64) {
    figures.entry(row).or_default().push(figure);
}

/// So many since then, a second.
pub fn rate(count: usize, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64()
}

/// Prints the rows with their medians and extremes.
pub fn table(figures: &Figures) {
    println!("{:<38} {:>12} {:>12} {:>12}", "row (a second, unless named)", "median", "lowest", "highest");
    for (row, values) in figures {
        let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!("{row:<38} {:>12.2} {lowest:>12.2} {highest:>12.2}", median(values));
    }
}

/// The processor time that all threads of a process have had.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let mut spent = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let schedule = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let ns = schedule.split_whitespace().next().context("an empty schedstat")?;
        spent += Duration::from_nanos(ns.parse()?);
    }
    Ok(spent)
}

/// The middle one; of an even number, the higher of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Writes raw figures to `bench/<name>.json` beside the running program, and says where.
///
/// # Errors
/// When they can't be written.
pub fn keep(name: &str, figures: &Value) -> Result<()> {
    let folder = std::env::current_exe()?.parent().context("a program lies in a folder")?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(figures)?)?;
    println!("raw figures: {}", file.display());
    Ok(())
}
