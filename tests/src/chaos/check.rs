//! What of a history breaks the promise: nothing lost, one content a job, all succeeded, back soon, memory flat.
//!
//! In: the entries. Out: sentences, none when all is well. It reads no clock and asks nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use inferq_shared::reply::Status;

use super::record::{Entry, What};
use super::schedule::Fault;

#[cfg(test)]
mod tests;

/// How soon 99 of 100 workers answer again after a fault is over.
pub const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// The same over Pub/Sub, where a connection that is open and dead shows as silence alone: the longest that a consumer waits
/// before it asks, and as much as a broker with heartbeats has.
pub const RECOVERY_FROM_SILENCE_MAX: Duration = Duration::from_secs(75);
/// How soon after its start a half-open link is overcome: heartbeats must notice it first.
const HALF_OPEN_MAX: Duration = Duration::from_secs(30);
/// Memory may grow by a quarter and by so much from the first half to the last quarter.
const GROWTH_MAX_KIB: u64 = 8 << 10;

/// How long workers took to answer a job that was sent after all that was wrong for them was over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recoveries {
    /// From then on.
    pub plain: Vec<Duration>,
    /// From the start of a half-open link, which heartbeats must notice first. What is longer than they may take counts
    /// as any other fault.
    pub half_open: Vec<Duration>,
    /// Workers that have not answered since.
    pub missing: Vec<usize>,
}

/// Everything that is wrong with a finished run of this length, in which these faults had to happen, and workers to recover
/// within so long.
pub fn broken(
    entries: &[Entry],
    promised: &[Fault],
    length: Duration,
    workers: usize,
    recovery_max: Duration,
) -> Vec<String> {
    let recovery = recovery(&recoveries(entries, workers), recovery_max);
    [jobs(entries), faults(entries, promised, length), recovery, memory(entries)].concat()
}

/// Every confirmed job has a reply; all of a job's replies say the same, and that it succeeded.
fn jobs(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut contents: BTreeMap<usize, &str> = BTreeMap::new();
    for entry in entries {
        let What::Replied { job, status, content, .. } = &entry.what else { continue };
        if *status != Status::Succeeded {
            broken.push(format!("job {job} is answered {}: {content}", status.as_str()));
        }
        let first = *contents.entry(*job).or_insert(content);
        if first != content {
            broken.push(format!("job {job} has two contents: {first} and {content}"));
        }
    }
    for entry in entries {
        if let What::Confirmed { job } = entry.what
            && !contents.contains_key(&job)
        {
            broken.push(format!("job {job} was confirmed at {:?} and is never answered", entry.at));
        }
    }
    broken
}

/// What was promised to go wrong did.
fn faults(entries: &[Entry], promised: &[Fault], length: Duration) -> Vec<String> {
    let missed = |fault: &Fault| {
        let (count, least) = (count(entries, *fault), fault.least(length));
        (count < least).then(|| format!("{fault:?} happened {count} times, not {least}"))
    };
    promised.iter().filter_map(missed).collect()
}

/// How often something went wrong.
pub fn count(entries: &[Entry], fault: Fault) -> usize {
    entries.iter().filter(|entry| matches!(entry.what, What::Healed { fault: healed, .. } if healed == fault)).count()
}

fn recovery(recoveries: &Recoveries, most: Duration) -> Vec<String> {
    let p99 = quantile(&recoveries.plain, 0.99);
    let plain = (p99 > most).then(|| format!("workers answer again after {p99:?}, not {most:?} (p99)"));
    let missing = recoveries.missing.iter().map(|worker| format!("worker {worker} never answers again"));
    plain.into_iter().chain(missing).collect()
}

/// The value that this share of them doesn't exceed; zero of none.
pub fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// What is wrong for one worker, until it has answered again.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    /// Faults that are not over.
    open: usize,
    /// When the last one began, or was over.
    since: Duration,
    /// When a link became half-open, if one did.
    half_open: Option<Duration>,
}

/// How long each worker took after each trouble. Faults that follow before it has answered belong to the same trouble.
pub fn recoveries(entries: &[Entry], workers: usize) -> Recoveries {
    let mut troubles: Vec<Option<Trouble>> = vec![None; workers];
    let mut sent = BTreeMap::new();
    let mut found = Recoveries::default();
    for Entry { at, what } in entries {
        match what {
            What::Sent { job } => drop(sent.insert(*job, *at)),
            What::Began { fault, worker } => {
                for trouble in met(&mut troubles, *fault, *worker) {
                    let trouble = trouble.get_or_insert_default();
                    trouble.open += 1;
                    trouble.since = *at;
                    if *fault == Fault::HalfOpen {
                        trouble.half_open = Some(*at);
                    }
                }
            }
            What::Healed { fault, worker } => {
                for trouble in met(&mut troubles, *fault, *worker).iter_mut().flatten() {
                    trouble.open = trouble.open.saturating_sub(1);
                    trouble.since = *at;
                }
            }
            What::Replied { job, worker, .. } => {
                let Some(slot) = troubles.get_mut(*worker) else { continue };
                let is_over = |trouble: &mut Trouble| trouble.open == 0 && sent.get(job) > Some(&trouble.since);
                if let Some(trouble) = slot.take_if(is_over) {
                    match trouble.half_open.map(|start| *at - start).filter(|time| *time <= HALF_OPEN_MAX) {
                        Some(time) => found.half_open.push(time),
                        None => found.plain.push(*at - trouble.since),
                    }
                }
            }
            What::Confirmed { .. } | What::Memory { .. } => {}
        }
    }
    found.missing = (0..workers).filter(|worker| troubles[*worker].is_some()).collect();
    found
}

/// Those whom a fault meets.
fn met(troubles: &mut [Option<Trouble>], fault: Fault, worker: usize) -> &mut [Option<Trouble>] {
    if fault.is_everywhere() { troubles } else { &mut troubles[worker..=worker] }
}

/// The most memory of the first worker: in the first half of the run, and in its last quarter.
pub fn memory_kib(entries: &[Entry]) -> (u64, u64) {
    let samples: Vec<u64> = entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::Memory { worker: 0, kib } => Some(kib),
            _ => None,
        })
        .collect();
    let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    (most(&samples[..samples.len() / 2]), most(&samples[samples.len() * 3 / 4..]))
}

fn memory(entries: &[Entry]) -> Vec<String> {
    let (early, late) = memory_kib(entries);
    let grown = late > early + early / 4 + GROWTH_MAX_KIB;
    grown.then(|| format!("memory grows from {early} KiB to {late} KiB")).into_iter().collect()
}
