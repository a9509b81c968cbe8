//! What a process may hold and ask for: jobs, bytes and tokens within their bounds, and nothing during an outage.

use inferq_shared::broker::memory::End;
use inferq_shared::broker::{BrokerError, Pull};

use super::{Checker, LeaseSeen};
use crate::world::engine::tokens;
use crate::world::scenario::{Kind, PlannedJob};

/// A worker's guess at the bytes of a token, before it has counted them.
const BYTES_PER_TOKEN: usize = 4;

/// What a worker that holds a job counts at least: its guess at first, then the tokens, if the job gets that far.
pub(super) fn tokens_at_least(job: &PlannedJob, bytes: usize) -> usize {
    let guess = bytes / BYTES_PER_TOKEN;
    match job.kind {
        Kind::Good | Kind::NoRoute => guess.min(job.texts.iter().map(|text| tokens(text).ids.len()).sum()),
        _ => guess,
    }
}

impl Checker<'_> {
    /// The jobs, bytes and tokens that a process holds at least.
    fn holds(&self, link: u64) -> (usize, usize, usize) {
        let held = self.held(link).map(|lease| &self.jobs[&lease.place]);
        held.fold((0, 0, 0), |(jobs, bytes, tokens), job| (jobs + 1, bytes + job.bytes, tokens + job.tokens))
    }

    /// A process asks for no more than it has room for, and for nothing while it can't get rid of what it has.
    pub(super) fn see_pull(&mut self, link: u64, pull: Pull, tokens_max: usize) {
        let bounds = self.scenario.settings.bounds;
        let (jobs, bytes, tokens) = self.holds(link);
        if pull.jobs.get() > bounds.jobs.saturating_sub(jobs) || pull.bytes > bounds.bytes.saturating_sub(bytes) {
            self.breach(format!("process {link} holds {jobs} jobs of {bytes} bytes and asks for {pull:?}"));
        }
        if pull.bytes > tokens_max.saturating_sub(tokens).saturating_mul(BYTES_PER_TOKEN) {
            self.breach(format!("process {link} holds {tokens} of {tokens_max} tokens and asks for {pull:?}"));
        }
        let tokens_max_right = bounds.tokens.max(self.can_finish(link));
        if tokens_max > tokens_max_right {
            self.breach(format!("process {link} may hold {tokens_max} tokens, where {tokens_max_right} are right"));
        }
        self.check_outage(link);
    }

    /// Half of the tokens that a process could finish within the drain limit, at the best rate that any batch had.
    fn can_finish(&self, link: u64) -> usize {
        let batches = self.processes.get(&link).map(|process| process.batches.iter()).into_iter().flatten();
        let rate = batches.map(|batch| batch.tokens as f64 / batch.cost.as_secs_f64()).fold(0.0, f64::max);
        let seconds = self.scenario.settings.drain_limit.as_secs_f64();
        (rate * self.scenario.replicas as f64 * seconds / 2.0).ceil() as usize
    }

    /// A delivery comes: there must have been room for it, and a use.
    pub(super) fn check_room(&mut self, link: u64) {
        let bounds = self.scenario.settings.bounds;
        let (jobs, bytes, _) = self.holds(link);
        if jobs >= bounds.jobs || bytes >= bounds.bytes {
            self.breach(format!("process {link} holds {jobs} jobs of {bytes} bytes and pulls more"));
        }
        self.check_outage(link);
    }

    fn check_outage(&mut self, link: u64) {
        if let Some(route) = self.process(link).outages.first().cloned() {
            self.breach(format!("process {link} pulls while its replies to {route} can't be published"));
        }
    }

    /// An outage of a route begins when a publish fails that may succeed later, and ends with the next one's success, or
    /// when the replies have been held for too long.
    pub(super) fn see_told(&mut self, link: u64, queue: &str, result: &Result<(), BrokerError>) {
        let goes_on = matches!(result, Err(BrokerError::Unavailable(_))) && !self.holds_too_long(link);
        let outages = &mut self.process(link).outages;
        if goes_on {
            outages.insert(queue.to_owned())
        } else {
            outages.remove(queue)
        };
    }

    /// Whether a job that a process has not settled, whether it still has its lease or not, is old enough to be given up.
    fn holds_too_long(&self, link: u64) -> bool {
        let is_old = |lease: &&LeaseSeen| self.at - lease.since >= self.scenario.settings.lease_max;
        let mut unsettled = self.leases.values().filter(|lease| !matches!(lease.ended, Some(End::Settled(_))));
        unsettled.any(|lease| lease.link == link && is_old(&lease))
    }
}
