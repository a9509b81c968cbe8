//! Runs of the engine: suspects apart, and nothing after its deadline.

use std::time::Duration;

use super::{Checker, RunSeen, SUSPECT_ATTEMPT};
use crate::world::engine::Outcome;
use crate::world::scenario::{CLOCK_SKEW, PlannedJob};

impl Checker<'_> {
    pub(super) fn see_run(&mut self, link: u64, rows: &[String], outcome: Outcome) {
        if self.process(link).over {
            return;
        }
        self.runs.push(RunSeen { link, at: self.at, rows: rows.to_vec(), outcome });
        let breaches = [self.crowd(link, rows), self.too_late(link, rows)];
        breaches.into_iter().flatten().for_each(|breach| self.breach(breach));
    }

    /// An item whose deadline has passed is not run, unless it was in a batch before: a replica holds two.
    pub(super) fn too_late(&self, link: u64, rows: &[String]) -> Option<String> {
        let longest = self.processes.get(&link)?.batches.iter().map(|batch| batch.cost).max()?;
        let slack = CLOCK_SKEW + longest.saturating_mul(2) + Duration::from_millis(50);
        let is_late = |job: &PlannedJob| job.deadline.is_some_and(|after| self.at > job.at + after + slack);
        rows.iter().find_map(|row| {
            let mut owners = self.held(link).map(|lease| self.job(self.jobs[&lease.place].number));
            let mut owners = owners.by_ref().filter(|job| job.texts.contains(row)).peekable();
            let first = owners.peek()?.number;
            owners.all(is_late).then(|| format!("process {link} runs {row:?} of job {first} after its deadline"))
        })
    }

    /// A suspect runs with nothing but its group in the process.
    pub(super) fn crowd(&self, link: u64, rows: &[String]) -> Option<String> {
        let attempts_max = self.scenario.settings.attempts_max;
        let mut suspect = None;
        for job in self.scenario.jobs.iter().filter(|job| rows.contains(&job.texts[0])) {
            let mut deliveries =
                self.leases.values().filter(|lease| lease.link == link && self.jobs[&lease.place].number == job.number);
            // Where the process had the job more than once, it can't be told which of them runs.
            let (Some(delivery), None) = (deliveries.next(), deliveries.next()) else { continue };
            if delivery.ended.is_none() && delivery.attempt > attempts_max {
                return Some(format!("job {} runs at attempt {}", job.number, delivery.attempt));
            }
            if delivery.ended.is_none() && delivery.attempt >= SUSPECT_ATTEMPT {
                suspect = Some(job.number);
            }
        }
        let suspect = suspect?;
        let held: Vec<_> = self.held(link).map(|lease| (self.jobs[&lease.place].number, lease.attempt)).collect();
        let highest = held.iter().map(|(_, attempt)| *attempt).max()?;
        let group_max = (4usize >> (highest - SUSPECT_ATTEMPT).min(2)).max(1);
        let all_suspects = held.iter().all(|(_, attempt)| (SUSPECT_ATTEMPT..=attempts_max).contains(attempt));
        (!all_suspects || held.len() > group_max)
            .then(|| format!("suspect job {suspect} runs while process {link} holds (job, attempt) {held:?}"))
    }
}
