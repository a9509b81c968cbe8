//! Tries seeds: lets their worlds happen, checks their histories, and shortens what fails.
//!
//! In: seeds. Out: the first failure, with the fewest troubles and jobs that still show it, and how to see it again.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::run;
use super::scenario::Scenario;
use crate::history::{History, check};

/// Entries of a history that are printed.
const LINES_MAX: usize = 80;

/// A world that broke the design.
pub struct Failure {
    /// The world, shortened.
    pub scenario: Scenario,
    /// What it broke.
    pub breaches: Vec<String>,
    /// What happened.
    pub history: History,
}

/// Lets one world happen and says what it breaks.
pub fn attempt(scenario: Scenario) -> Result<(), Box<Failure>> {
    let history = run(&scenario);
    let breaches = check::breaches(&scenario, &history.entries());
    if breaches.is_empty() {
        return Ok(());
    }
    Err(Box::new(Failure { scenario, breaches, history }))
}

/// The first of the seeds that fails, shortened.
pub fn first_failure(seeds: impl IntoIterator<Item = u64>) -> Option<Box<Failure>> {
    seeds.into_iter().find_map(|seed| attempt(Scenario::new(seed)).err()).map(shorten)
}

/// Tries all seeds on all cores; the lowest one that fails, shortened.
pub fn first_failure_in_parallel(seeds: std::ops::Range<u64>) -> Option<Box<Failure>> {
    let next = AtomicU64::new(seeds.start);
    let lowest = Mutex::new(None::<u64>);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || attempt(Scenario::new(seed)).is_err() {
                        // Seeds are handed out in order, so every lower one has been tried or is being tried.
                        next.store(seeds.end, Ordering::Relaxed);
                        if seed < seeds.end {
                            let mut lowest = lowest.lock().expect("nothing panics while it holds the seed");
                            *lowest = Some(lowest.map_or(seed, |other| other.min(seed)));
                        }
                        return;
                    }
                }
            });
        }
    });
    let lowest = lowest.into_inner().expect("nothing panicked while it held the seed");
    lowest.and_then(|seed| first_failure([seed]))
}

/// Leaves out troubles, then jobs, for as long as it still fails.
fn shorten(mut failure: Box<Failure>) -> Box<Failure> {
    loop {
        let scenario = &failure.scenario;
        let fewer_troubles = (0..scenario.troubles.len()).map(|trouble| {
            let mut shorter = scenario.clone();
            shorter.troubles.remove(trouble);
            shorter
        });
        let fewer_jobs = (0..scenario.jobs.len()).map(|job| {
            let mut shorter = scenario.clone();
            shorter.jobs.remove(job);
            shorter
        });
        let Some(shorter) = fewer_troubles.chain(fewer_jobs).find_map(|shorter| attempt(shorter).err()) else {
            return failure;
        };
        failure = shorter;
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { seed, workers, replicas, pace, rows_max, results_max, settings, troubles, jobs, .. } =
            &self.scenario;
        writeln!(formatter, "seed {seed} breaks the design:")?;
        self.breaches.iter().try_for_each(|breach| writeln!(formatter, "  {breach}"))?;
        writeln!(formatter, "the shortest list of troubles that shows it:")?;
        troubles.iter().try_for_each(|trouble| writeln!(formatter, "  {trouble}"))?;
        writeln!(
            formatter,
            "with {workers} workers of {replicas} replicas, {pace} times slower, memory for {rows_max} rows,"
        )?;
        writeln!(formatter, "routes that hold {results_max:?} replies, {settings:?}, and the jobs:")?;
        jobs.iter().try_for_each(|job| writeln!(formatter, "  {job:?}"))?;
        let entries = self.history.entries();
        let left_out = entries.len().saturating_sub(LINES_MAX);
        writeln!(formatter, "what happened, from line {left_out}:")?;
        entries.iter().skip(left_out).try_for_each(|entry| writeln!(formatter, "{entry}"))?;
        write!(formatter, "to see it again: make soak SEEDS=1 SEED_FROM={seed}")
    }
}
