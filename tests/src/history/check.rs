//! Whether a history is one that the design allows.
//!
//! In: a scenario and what happened in it. Out: every breach, as a sentence with the time. It knows what was planned,
//! so it allows what a fault explains, and nothing more. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use inferq_shared::broker::memory::{Call, End, Event, Fault};
use inferq_shared::broker::{Message, Verdict};
use inferq_shared::job::attribute;
use inferq_shared::reply::{Reply, Status};

use super::{Entry, What};
use crate::world::engine::{Outcome, embedding, tokens};
use crate::world::queues;
use crate::world::scenario::{EngineFault, Fate, Kind, POISON, PlannedJob, SLOW, Scenario, Trouble, has};

/// The attempt from which on a job is a suspect.
const SUSPECT_ATTEMPT: u32 = 3;
/// The largest difference between two computations of one embedding.
const TOLERANCE: f32 = 1e-6;

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

struct JobMessage {
    number: usize,
    bytes: usize,
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
            What::Ran { link, rows, outcome, .. } => self.see_run(*link, rows, *outcome),
            What::Sick { link } => self.process(*link).sick = true,
            What::Stop { link } => self.process(*link).stopped = true,
            What::OutOfGrace { link } => self.see_out_of_grace(*link),
            What::Killed { link } => self.process(*link).over = true,
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
                if let Some(JobMessage { number, bytes, losses }) = self.jobs.get(place) {
                    let message = JobMessage { number: *number, bytes: *bytes, losses: *losses };
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
        self.jobs.insert(place, JobMessage { number, bytes: message.body.len(), losses: 0 });
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

/// Deliveries and leases.
impl Checker<'_> {
    /// The leases on jobs that a process holds.
    fn held(&self, link: u64) -> impl Iterator<Item = &LeaseSeen> {
        self.leases.values().filter(move |lease| lease.link == link && lease.ended.is_none() && !lease.orphan)
    }

    fn see_delivery(&mut self, link: u64, place: u64, token: u64, attempt: u32) {
        let bounds = self.scenario.settings.bounds;
        let jobs = self.held(link).count();
        let bytes: usize = self.held(link).map(|lease| self.jobs[&lease.place].bytes).sum();
        if jobs >= bounds.jobs || bytes >= bounds.bytes {
            self.breach(format!("process {link} holds {jobs} jobs of {bytes} bytes and pulls more"));
        }
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

    fn see_lease_end(&mut self, token: u64, end: &End) {
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
    fn charge_ack(&mut self, token: u64, link: u64, number: usize, since: Duration) {
        let mut replies = self.replies.values_mut();
        let paid =
            replies.find(|reply| reply.credit && reply.link == link && reply.number == number && reply.at >= since);
        match paid {
            Some(reply) => reply.credit = false,
            None => self.breach(format!("job {number} is acked, lease {token}, before a reply of it is confirmed")),
        }
    }

    /// Whether the job was in the batch on which the device was lost: those that ran at that moment.
    fn was_on_lost_device(&self, link: u64, number: usize) -> bool {
        let lost = |run: &&RunSeen| run.link == link && matches!(run.outcome, Outcome::DeviceLost | Outcome::Short);
        let sick = self.processes.get(&link).is_some_and(|process| process.sick);
        let moments: BTreeSet<Duration> =
            self.runs.iter().filter(|run| lost(run) || (sick && run.link == link)).map(|run| run.at).collect();
        let texts: BTreeSet<&str> = self.job(number).texts.iter().map(String::as_str).collect();
        let mut runs = self.runs.iter().filter(|run| run.link == link && moments.contains(&run.at));
        runs.any(|run| run.rows.iter().any(|row| texts.contains(row.as_str())))
    }

    fn may_expire(&self, token: u64) -> bool {
        let lease = &self.leases[&token];
        let aged = self.at - lease.since >= self.scenario.settings.lease_max;
        let slow = self.scenario.jobs.iter().any(|job| job.has(SLOW));
        let stalls = self.scenario.planned().any(|planned| matches!(planned.fault, Fault::Stall(_)));
        lease.orphan || aged || slow || stalls
    }

    /// Whether a process's last settlements may meet a broken connection.
    fn may_break(&self) -> bool {
        self.scenario.planned().any(|planned| matches!(planned.fault, Fault::Disconnect(_)))
    }

    fn see_out_of_grace(&mut self, link: u64) {
        // A call that the broker holds up keeps its lease.
        let slow_broker = self.scenario.planned().any(|p| matches!(p.fault, Fault::Stall(_) | Fault::Delay(_)));
        let held: Vec<_> = self.held(link).map(|lease| self.jobs[&lease.place].number).collect();
        if !held.is_empty() && !slow_broker {
            self.breach(format!("process {link} still holds jobs {held:?} at the end of its grace"));
        }
    }

    fn see_end(&mut self, link: u64, result: &Result<(), String>) {
        let stopped = self.process(link).stopped;
        self.process(link).over = true;
        self.process(link).clean = true;
        match result {
            Ok(()) if !stopped => self.breach(format!("process {link} ended without being asked")),
            Ok(()) => {}
            Err(reason) if reason == "panicked" => self.breach(format!("process {link} panicked")),
            Err(reason) if reason.contains("refused") => {
                let refuse =
                    |p: &inferq_shared::broker::memory::Planned| (p.call, &p.fault) == (Call::Receive, &Fault::Refuse);
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

/// Runs of the engine.
impl Checker<'_> {
    fn see_run(&mut self, link: u64, rows: &[String], outcome: Outcome) {
        if self.process(link).over {
            return;
        }
        self.runs.push(RunSeen { link, at: self.at, rows: rows.to_vec(), outcome });
        if let Some(breach) = self.crowd(link, rows) {
            self.breach(breach);
        }
    }

    /// A suspect runs with nothing but its group in the process.
    fn crowd(&self, link: u64, rows: &[String]) -> Option<String> {
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

/// Replies.
impl Checker<'_> {
    fn see_reply(&mut self, link: u64, queue: &str, place: u64, message: &Message) {
        let Ok(reply) = Reply::decode(&message.body) else {
            return self.breach(format!("what was published to {queue} is no reply"));
        };
        let number = self.number_of(message);
        let job = self.job(number);
        if queue != job.route() {
            self.breach(format!("the reply to job {number} goes to {queue}"));
        }
        if reply.id != job.id() {
            self.breach(format!("the reply to job {number} says that it is to {}", reply.id));
        }
        if let Some(breach) = self.wrong_status(job, &reply) {
            self.breach(format!("job {number} is {}: {breach}", reply.status.as_str()));
        }
        self.check_items(link, job, &reply);
        let seen = ReplySeen { link, number, at: self.at, reply, credit: false, confirmed: false };
        self.replies.insert(place, seen);
    }

    /// What a reply's status may be follows from the job, the time and what became of its leases.
    fn wrong_status(&self, job: &PlannedJob, reply: &Reply) -> Option<String> {
        let code = reply.error.as_ref().map(|error| error.code.as_str());
        let right = match (reply.status, code) {
            (Status::Succeeded | Status::Partial, None) => job.kind == Kind::Good || job.kind == Kind::NoRoute,
            (Status::Failed, None) => !reply.results.is_empty(),
            (Status::Failed, Some("attempts_exhausted")) => return self.wrongly_exhausted(job, reply),
            (Status::Expired, Some("expired")) => job.deadline.is_some_and(|after| self.at >= job.at + after),
            (Status::Rejected, Some("invalid")) => job.kind == Kind::NoInputs,
            (Status::Rejected, Some("forbidden")) => job.kind == Kind::Forbidden,
            (Status::Rejected, Some("no_worker")) => {
                job.kind == Kind::Misfit && self.at >= job.at + self.scenario.settings.unfit_limit
            }
            _ => false,
        };
        (!right).then(|| format!("with {code:?} for a job of kind {:?}", job.kind))
    }

    fn wrongly_exhausted(&self, job: &PlannedJob, reply: &Reply) -> Option<String> {
        let attempts_max = self.scenario.settings.attempts_max;
        let losses = self.jobs.values().filter(|message| message.number == job.number).map(|message| message.losses);
        let losses = losses.max().unwrap_or(0);
        if losses < attempts_max || reply.attempt <= attempts_max {
            return Some(format!("exhausted at attempt {} after {losses} losses", reply.attempt));
        }
        (self.only_killers_kill() && !job.is_deadly())
            .then(|| "an innocent of a killer's crash is exhausted".to_owned())
    }

    /// Whether nothing but jobs themselves ends leases.
    fn only_killers_kill(&self) -> bool {
        let harmless = |trouble: &Trouble| match trouble {
            Trouble::Fate(fate) => fate.fate == Fate::Stop,
            Trouble::Engine { fault, .. } => matches!(fault, EngineFault::Fail | EngineFault::OutOfMemory),
            Trouble::Broker(_) => false,
        };
        let slow = self.scenario.jobs.iter().any(|job| job.has(SLOW));
        !slow && self.scenario.troubles.iter().all(harmless)
    }

    fn check_items(&mut self, link: u64, job: &PlannedJob, reply: &Reply) {
        if reply.error.is_some() {
            return;
        }
        if reply.results.len() != job.texts.len() {
            let (results, texts) = (reply.results.len(), job.texts.len());
            return self.breach(format!("job {} has {texts} items and {results} results", job.number));
        }
        for (index, (result, text)) in reply.results.iter().zip(&job.texts).enumerate() {
            let named = result.index as usize == index && result.id == format!("{}/{index}", job.id());
            let right = match (&result.embedding, &result.error) {
                (Some(embedding), None) => agrees(embedding.values(), text),
                (None, Some(error)) if error.code == "failed" => self.failed_alone(link, text),
                (None, Some(error)) if error.code == "expired" => {
                    job.deadline.is_some_and(|after| self.at >= job.at + after)
                }
                _ => false,
            };
            if !named || !right {
                let error = result.error.as_ref().map(|error| &error.code);
                self.breach(format!("job {}: the result of {text:?} is wrong: {error:?}", job.number));
            }
        }
    }

    /// An item fails only when it failed in a run of its own.
    fn failed_alone(&self, link: u64, text: &str) -> bool {
        let failed = |outcome| matches!(outcome, Outcome::Failed | Outcome::OutOfMemory);
        self.runs.iter().any(|run| run.link == link && failed(run.outcome) && run.rows == [text])
    }
}

fn agrees(values: &[f32], text: &str) -> bool {
    let raw = embedding(&tokens(text));
    let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.len() == raw.len()
        && values.iter().zip(raw.iter()).all(|(value, raw)| (value - raw / length).abs() <= TOLERANCE)
}

/// What must hold when all is over.
impl Checker<'_> {
    fn finish(&mut self) {
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
