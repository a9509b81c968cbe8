//! Deliveries and leases: who holds what, how each lease ends, and whether a process ends as it may.

use std::collections::BTreeSet;
use std::time::Duration;

use inferq_shared::broker::Verdict;
use inferq_shared::broker::memory::{Call, End, Fault, Planned};

use super::{Checker, LeaseSeen, RunSeen};
use crate::world::engine::Outcome;

impl Checker<'_> {
    /// The leases on jobs that a process holds.
    pub(super) fn held(&self, link: u64) -> impl Iterator<Item = &LeaseSeen> {
        self.leases.values().filter(move |lease| lease.link == link && lease.ended.is_none() && !lease.orphan)
    }

    pub(super) fn see_delivery(&mut self, link: u64, place: u64, token: u64, attempt: u32) {
        self.check_room(link);
        let process = self.process(link);
        let (early, late) = (!process.ready, process.stopped || process.over);
        if early || late {
            self.breach(format!("process {link} pulls {} it should", if early { "before" } else { "after" }));
        }
        let losses = self.jobs[&place].losses;
        if attempt != losses + 1 {
            self.breach(format!("attempt {attempt} after {losses} losses"));
        }
        let lease = LeaseSeen { link, place, attempt, since: self.at, orphan: false, ended: None };
        self.leases.insert(token, lease);
    }

    pub(super) fn see_lease_end(&mut self, token: u64, end: &End) {
        let Some(lease) = self.leases.get_mut(&token) else { return };
        if lease.ended.is_some() {
            return self.breach(format!("lease {token} ends twice"));
        }
        lease.ended = Some(end.clone());
        let (link, place, since) = (lease.link, lease.place, lease.since);
        let message = self.jobs.get_mut(&place).expect("only published jobs are delivered");
        if matches!(end, End::Settled(Verdict::Dropped) | End::Expired | End::Disconnected) {
            message.losses += 1;
        }
        let number = message.number;
        if *end != End::Settled(Verdict::Ack) {
            // A reply that was kept back may have been given up with this lease.
            self.process(link).outages.clear();
        }
        self.check_watchdog(link, token, number);
        match end {
            End::Settled(Verdict::Ack) => self.charge_ack(token, link, number, since),
            End::Settled(Verdict::Dropped) if !self.was_on_lost_device(link, number) => {
                self.breach(format!("process {link} drops lease {token} of job {number} without need"));
            }
            End::Expired if !self.may_expire(token) => {
                self.breach(format!("process {link} lets lease {token} of job {number} expire"));
            }
            End::Disconnected if self.process(link).clean && !self.leases[&token].orphan && !self.may_break() => {
                self.breach(format!("process {link} ended and kept lease {token} of job {number}"));
            }
            _ => {}
        }
    }

    /// Each ack needs a reply of its own that was published and confirmed while the lease was held.
    pub(super) fn charge_ack(&mut self, token: u64, link: u64, number: usize, since: Duration) {
        let mut replies = self.replies.values_mut();
        let paid =
            replies.find(|reply| reply.credit && reply.link == link && reply.number == number && reply.at >= since);
        match paid {
            Some(reply) => reply.credit = false,
            None => self.breach(format!("job {number} is acked, lease {token}, before a reply of it is confirmed")),
        }
    }

    /// Whether the job was in the batch on which the device was lost: those that ran at that moment.
    pub(super) fn was_on_lost_device(&self, link: u64, number: usize) -> bool {
        let lost = |run: &&RunSeen| run.link == link && matches!(run.outcome, Outcome::DeviceLost | Outcome::Short);
        let sick = self.processes.get(&link).is_some_and(|process| process.sick);
        let moments: BTreeSet<Duration> =
            self.runs.iter().filter(|run| lost(run) || (sick && run.link == link)).map(|run| run.at).collect();
        let texts: BTreeSet<&str> = self.job(number).texts.iter().map(String::as_str).collect();
        let mut runs = self.runs.iter().filter(|run| run.link == link && moments.contains(&run.at));
        runs.any(|run| run.rows.iter().any(|row| texts.contains(row.as_str())))
    }

    pub(super) fn may_expire(&self, token: u64) -> bool {
        let lease = &self.leases[&token];
        let aged = self.at - lease.since >= self.scenario.settings.lease_max;
        let stalls = self.scenario.planned().any(|planned| matches!(planned.fault, Fault::Stall(_)));
        lease.orphan || aged || stalls || self.was_stuck(lease.link)
    }

    /// Whether a process's last settlements may meet a broken connection.
    pub(super) fn may_break(&self) -> bool {
        self.scenario.planned().any(|planned| matches!(planned.fault, Fault::Disconnect(_)))
    }

    pub(super) fn see_out_of_grace(&mut self, link: u64) {
        // A call that the broker holds up keeps its lease.
        let slow_broker = self.scenario.planned().any(|p| matches!(p.fault, Fault::Stall(_) | Fault::Delay(_)));
        let held: Vec<_> = self.held(link).map(|lease| self.jobs[&lease.place].number).collect();
        if !held.is_empty() && !slow_broker {
            self.breach(format!("process {link} still holds jobs {held:?} at the end of its grace"));
        }
    }

    pub(super) fn see_end(&mut self, link: u64, result: &Result<(), String>) {
        let stopped = self.process(link).stopped;
        self.see_over(link);
        self.process(link).clean = true;
        match result {
            Ok(()) if !stopped => self.breach(format!("process {link} ended without being asked")),
            Ok(()) => {}
            Err(reason) if reason == "panicked" => self.breach(format!("process {link} panicked")),
            Err(reason) if reason.contains("refused") => {
                let refuse = |p: &Planned| (p.call, &p.fault) == (Call::Receive, &Fault::Refuse);
                if !self.scenario.planned().any(refuse) {
                    self.breach(format!("process {link} ended: {reason}"));
                }
            }
            Err(reason) => {
                let lost =
                    |run: &RunSeen| run.link == link && matches!(run.outcome, Outcome::DeviceLost | Outcome::Short);
                if !self.runs.iter().any(lost) && !self.process(link).sick {
                    self.breach(format!("process {link} ended: {reason}"));
                }
            }
        }
    }
}
