//! Whether a history is one that the design allows.
//!
//! In: a scenario and what happened in it. Out: every breach, as a sentence with the time. It knows what was planned,
//! so it allows what a fault explains, and nothing more. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use inferq_shared::broker::Message;
use inferq_shared::broker::memory::{End, Event, Fault};
use inferq_shared::job::attribute;
use inferq_shared::reply::{Reply, Status};

use super::{Entry, What};
use crate::world::engine::Outcome;
use crate::world::queues;
use crate::world::scenario::{Kind, POISON, PlannedJob, Scenario, has};

mod bounds;
mod leases;
mod pulse;
mod replies;
mod runs;

/// The attempt from which on a job is a suspect.
const SUSPECT_ATTEMPT: u32 = 3;

/// Everything in the history that the design forbids.
pub fn breaches(scenario: &Scenario, entries: &[Entry]) -> Vec<String> {
    let mut checker = Checker::new(scenario);
    for entry in entries {
        checker.at = entry.at;
        checker.see(&entry.what);
    }
    checker.finish();
    checker.breaches
}

struct Checker<'a> {
    scenario: &'a Scenario,
    at: Duration,
    breaches: Vec<String>,
    /// The messages of the jobs queue: whose they are, their bytes, and how often a lease on them was lost.
    jobs: BTreeMap<u64, JobMessage>,
    leases: BTreeMap<u64, LeaseSeen>,
    processes: BTreeMap<u64, Process>,
    replies: BTreeMap<u64, ReplySeen>,
    dead: BTreeMap<usize, Vec<String>>,
    runs: Vec<RunSeen>,
}

#[derive(Clone)]
struct JobMessage {
    number: usize,
    bytes: usize,
    /// What a worker that holds it counts at least.
    tokens: usize,
    losses: u32,
}

struct LeaseSeen {
    link: u64,
    place: u64,
    attempt: u32,
    since: Duration,
    orphan: bool,
    ended: Option<End>,
}

#[derive(Default)]
struct Process {
    ready: bool,
    stopped: bool,
    /// Dead or ended: what it still seems to do has no meaning.
    over: bool,
    clean: bool,
    sick: bool,
    /// The routes to which its replies can't be published.
    outages: BTreeSet<String>,
    batches: Vec<BatchSeen>,
    /// When its liveness changed, and to what.
    probes: Vec<(Duration, bool)>,
    /// When it was asked to stop, and when it was over.
    stopped_at: Option<Duration>,
    over_at: Option<Duration>,
}

/// A batch that began.
struct BatchSeen {
    at: Duration,
    cost: Duration,
    tokens: usize,
}

struct ReplySeen {
    link: u64,
    number: usize,
    at: Duration,
    reply: Reply,
    /// It was confirmed, and no ack has been charged to it yet.
    credit: bool,
    confirmed: bool,
}

struct RunSeen {
    link: u64,
    at: Duration,
    rows: Vec<String>,
    outcome: Outcome,
}

impl<'a> Checker<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            at: Duration::ZERO,
            breaches: Vec::new(),
            jobs: BTreeMap::new(),
            leases: BTreeMap::new(),
            processes: BTreeMap::new(),
            replies: BTreeMap::new(),
            dead: BTreeMap::new(),
            runs: Vec::new(),
        }
    }

    fn breach(&mut self, what: impl AsRef<str>) {
        self.breaches.push(format!("at {:.3} s: {}", self.at.as_secs_f64(), what.as_ref()));
    }

    fn see(&mut self, what: &What) {
        match what {
            What::Broker(event) => self.see_broker(event),
            What::Ready { link, .. } => self.process(*link).ready = true,
            What::Pulls { link, pull, tokens_max } => self.see_pull(*link, *pull, *tokens_max),
            What::Told { link, queue, result } => self.see_told(*link, queue, result),
            What::Began { link, rows, cost, .. } => self.see_batch(*link, rows, *cost),
            What::Probed { link, live } => self.see_probe(*link, *live),
            What::OutOfHealth { .. } => {}
            What::Ran { link, rows, outcome, .. } => self.see_run(*link, rows, *outcome),
            What::Sick { link } => self.process(*link).sick = true,
            What::Stop { link } => {
                let at = self.at;
                self.process(*link).stopped_at.get_or_insert(at);
                self.process(*link).stopped = true;
            }
            What::OutOfGrace { link } => self.see_out_of_grace(*link),
            What::Killed { link } => self.see_over(*link),
            What::Ended { link, result } => self.see_end(*link, result),
            What::Gone { .. } => {}
            What::OutOfPatience => self.breach("jobs wait for ever"),
        }
    }

    fn process(&mut self, link: u64) -> &mut Process {
        self.processes.entry(link).or_default()
    }

    fn job(&self, number: usize) -> &'a PlannedJob {
        let mut jobs = self.scenario.jobs.iter();
        jobs.find(|job| job.number == number).expect("only planned jobs are published")
    }

    fn see_broker(&mut self, event: &Event) {
        let names = queues();
        match event {
            Event::Published { queue, place, message, .. } if *queue == names.jobs => self.see_job(*place, message),
            Event::Published { queue, message, .. } if *queue == names.dead() => {
                let reason = message.attributes.get(attribute::DEAD_REASON).cloned().unwrap_or_default();
                let number = self.number_of(message);
                self.see_dead_letter(number, reason);
            }
            Event::Published { link, queue, place, message } => self.see_reply(*link, queue, *place, message),
            Event::Confirmed { places, .. } => {
                for place in places {
                    if let Some(reply) = self.replies.get_mut(place) {
                        (reply.credit, reply.confirmed) = (true, true);
                    }
                }
            }
            Event::Duplicated { place, copy } => {
                if let Some(message) = self.jobs.get(place).cloned() {
                    self.jobs.insert(*copy, message);
                }
            }
            Event::Delivered { link, queue, place, token, attempt } if *queue == names.jobs => {
                self.see_delivery(*link, *place, *token, *attempt);
            }
            Event::Delivered { .. } => {}
            Event::Ended { token, end, .. } => self.see_lease_end(*token, end),
            Event::Orphaned { token } => {
                if let Some(lease) = self.leases.get_mut(token) {
                    lease.orphan = true;
                    let link = lease.link;
                    self.process(link).outages.clear();
                }
            }
            Event::Fenced { token, .. } => {
                let settled = |lease: &LeaseSeen| matches!(lease.ended, Some(End::Settled(_)));
                if self.leases.get(token).is_some_and(settled) {
                    self.breach(format!("lease {token} is settled twice"));
                }
            }
        }
    }

    fn number_of(&self, message: &Message) -> usize {
        // Jobs are told apart by their bytes where they have no id.
        let body = |job: &&PlannedJob| job.message().body == message.body;
        let id = message.attributes.get(attribute::JOB_ID);
        let named = |job: &&PlannedJob| id.is_some_and(|id| *id == job.id().as_str());
        let mut jobs = self.scenario.jobs.iter();
        let job = if id.is_some() { jobs.find(named) } else { jobs.find(body) };
        job.expect("only planned jobs are published").number
    }

    fn see_job(&mut self, place: u64, message: &Message) {
        let number = self.number_of(message);
        let (bytes, tokens) = (message.body.len(), bounds::tokens_at_least(self.job(number), message.body.len()));
        self.jobs.insert(place, JobMessage { number, bytes, tokens, losses: 0 });
    }

    fn see_dead_letter(&mut self, number: usize, reason: String) {
        let refusals = self.scenario.planned().any(|planned| planned.fault == Fault::Refuse);
        let allowed = match self.job(number).kind {
            Kind::NoJob => reason.starts_with("malformed"),
            Kind::NoRoute => reason.starts_with("reply_undeliverable"),
            _ => refusals && reason.starts_with("reply_undeliverable"),
        };
        if !allowed {
            self.breach(format!("job {number} became a dead letter: {reason}"));
        }
        self.dead.entry(number).or_default().push(reason);
    }
}

/// What must hold when all is over.
impl Checker<'_> {
    fn finish(&mut self) {
        let links: Vec<u64> = self.processes.keys().copied().collect();
        links.into_iter().for_each(|link| self.check_liveness(link));
        for number in self.jobs.values().map(|message| message.number).collect::<BTreeSet<_>>() {
            self.check_fate(number);
        }
    }

    /// As its submitter sees it, a job ends in one of reply or dead letter.
    fn check_fate(&mut self, number: usize) {
        let job = self.job(number);
        let replies: Vec<_> = self.replies.values().filter(|reply| reply.number == number).collect();
        let best = replies
            .iter()
            .map(|seen| seen.reply.status)
            .reduce(|best, other| if other.is_better_than(best) { other } else { best });
        let refusals = self.scenario.planned().any(|planned| planned.fault == Fault::Refuse);
        match (best, self.dead.contains_key(&number)) {
            (None, false) => self.breach(format!("job {number} has neither reply nor dead letter")),
            (Some(_), true) if !refusals => self.breach(format!("job {number} has both reply and dead letter")),
            (Some(Status::Succeeded | Status::Partial), _) if job.is_deadly() => {
                self.breach(format!("job {number} ends every process and succeeds"));
            }
            (Some(Status::Succeeded), _) if job.has(POISON) => {
                self.breach(format!("job {number} succeeds with poison"))
            }
            _ => {}
        }
        if let Some(breach) = self.needless_failure(job, best) {
            self.breach(breach);
        }
    }

    /// Where nothing disturbs it, a good job succeeds, all but its poisoned items.
    fn needless_failure(&self, job: &PlannedJob, best: Option<Status>) -> Option<String> {
        let undisturbed = self.only_killers_kill() && self.scenario.engine_faults().is_empty();
        let good = job.kind == Kind::Good && job.deadline.is_none() && !job.is_deadly();
        let whole = job.texts.iter().all(|text| !has(text, POISON));
        let expected = if whole { Status::Succeeded } else { Status::Partial };
        let fine = best == Some(expected) || (!whole && job.texts.len() == 1 && best == Some(Status::Failed));
        (undisturbed && good && !fine).then(|| format!("job {} ends {best:?}, not {expected:?}", job.number))
    }
}
