//! The watchdog: a process whose engine hangs says so, no longer keeps its leases, and is the only one to do either.

use std::time::Duration;

use super::{BatchSeen, Checker, Process};
use crate::world::PROBE;
use crate::world::engine::tokens;
use crate::world::scenario::WATCHDOG;

/// From the watchdog's limit to what follows from it.
const SLACK: Duration = Duration::from_secs(1);

impl Checker<'_> {
    pub(super) fn see_batch(&mut self, link: u64, rows: &[String], cost: Duration) {
        let tokens = rows.iter().map(|row| tokens(row).ids.len()).sum();
        let batch = BatchSeen { at: self.at, cost, tokens };
        self.process(link).batches.push(batch);
    }

    pub(super) fn see_over(&mut self, link: u64) {
        let at = self.at;
        let process = self.process(link);
        process.over = true;
        process.over_at.get_or_insert(at);
    }

    /// The batches of a process that take longer than the watchdog allows.
    fn hangs(&self, link: u64) -> impl Iterator<Item = &BatchSeen> {
        let batches = self.processes.get(&link).map(|process| process.batches.iter()).into_iter().flatten();
        batches.filter(|batch| batch.cost >= WATCHDOG)
    }

    /// Whether leases of a process may have ended because its engine hung.
    pub(super) fn was_stuck(&self, link: u64) -> bool {
        self.hangs(link).any(|batch| self.at >= batch.at + WATCHDOG)
    }

    /// Not to be live needs a reason: an engine that is stuck, or has just been.
    pub(super) fn see_probe(&mut self, link: u64, live: bool) {
        let at = self.at;
        self.process(link).probes.push((at, live));
        if live {
            return;
        }
        let stuck = self.hangs(link).any(|batch| at >= batch.at + WATCHDOG && at <= batch.at + batch.cost + SLACK);
        if !stuck && !self.ends_by_itself(link) {
            self.breach(format!("process {link} is not live, though nothing hangs"));
        }
    }

    /// A process that lost its device says so until it has ended.
    fn ends_by_itself(&self, link: u64) -> bool {
        let process = &self.processes[&link];
        process.sick || self.runs.iter().any(|run| run.link == link && run.outcome.ends_process())
    }

    /// A lease ends: if an engine hung meanwhile, not much later than it could end without being renewed.
    pub(super) fn check_watchdog(&mut self, link: u64, token: u64, number: usize) {
        let (at, since, lease) = (self.at, self.leases[&token].since, self.scenario.settings.lease);
        let late = |batch: &BatchSeen| {
            let stuck_at = batch.at + WATCHDOG;
            since < stuck_at && at.min(batch.at + batch.cost) > stuck_at + lease + SLACK
        };
        if self.hangs(link).any(late) {
            self.breach(format!("process {link} hangs and keeps lease {token} of job {number}"));
        }
    }

    /// A process that hung for long enough to be asked was found not to be live.
    pub(super) fn check_liveness(&mut self, link: u64) {
        let process = &self.processes[&link];
        let drained = process.stopped_at.map(|at| at + self.scenario.settings.drain_limit);
        let seen_until = [process.over_at, drained].into_iter().flatten().min().unwrap_or(self.at);
        let unnoticed = self.hangs(link).any(|batch| {
            let (from, until) = (batch.at + WATCHDOG, batch.at + WATCHDOG + PROBE + SLACK);
            seen_until.min(batch.at + batch.cost) > until && !process.is_found_stuck(from, until)
        });
        if unnoticed {
            self.breach(format!("process {link} hangs and still calls itself live"));
        }
    }
}

impl Process {
    /// Whether it was not live at some time between these two.
    fn is_found_stuck(&self, from: Duration, until: Duration) -> bool {
        let before = self.probes.iter().rfind(|(at, _)| *at < from);
        let between = self.probes.iter().filter(|(at, _)| (from..=until).contains(at));
        before.into_iter().chain(between).any(|(_, live)| !live)
    }
}
