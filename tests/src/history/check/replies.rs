//! Replies: to whom, with which status, and whether each item's answer is right.

use inferq_shared::broker::Message;
use inferq_shared::reply::{Reply, Status};

use super::{Checker, ReplySeen};
use crate::world::engine::{Outcome, embedding, tokens};
use crate::world::scenario::{CLOCK_SKEW, EngineFault, Fate, Kind, PlannedJob, SLOW, Trouble};

/// The largest difference between two computations of one embedding.
const TOLERANCE: f32 = 1e-6;

impl Checker<'_> {
    pub(super) fn see_reply(&mut self, link: u64, queue: &str, place: u64, message: &Message) {
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
    pub(super) fn wrong_status(&self, job: &PlannedJob, reply: &Reply) -> Option<String> {
        let code = reply.error.as_ref().map(|error| error.code.as_str());
        let right = match (reply.status, code) {
            (Status::Succeeded | Status::Partial, None) => job.kind == Kind::Good || job.kind == Kind::NoRoute,
            (Status::Failed, None) => !reply.results.is_empty(),
            (Status::Failed, Some("attempts_exhausted")) => return self.wrongly_exhausted(job, reply),
            (Status::Expired, Some("expired")) => self.is_expired(job),
            (Status::Rejected, Some("invalid")) => job.kind == Kind::NoInputs,
            (Status::Rejected, Some("forbidden")) => job.kind == Kind::Forbidden,
            (Status::Rejected, Some("no_worker")) => {
                job.kind == Kind::Misfit && self.at >= job.at + self.scenario.settings.unfit_limit
            }
            _ => false,
        };
        (!right).then(|| format!("with {code:?} for a job of kind {:?}", job.kind))
    }

    pub(super) fn is_expired(&self, job: &PlannedJob) -> bool {
        job.deadline.is_some_and(|after| self.at >= job.at + after + CLOCK_SKEW)
    }

    pub(super) fn wrongly_exhausted(&self, job: &PlannedJob, reply: &Reply) -> Option<String> {
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
    pub(super) fn only_killers_kill(&self) -> bool {
        let harmless = |trouble: &Trouble| match trouble {
            Trouble::Fate(fate) => fate.fate == Fate::Stop,
            Trouble::Engine { fault, .. } => matches!(fault, EngineFault::Fail | EngineFault::OutOfMemory),
            Trouble::Broker(_) | Trouble::Hang { .. } => false,
        };
        let slow = self.scenario.jobs.iter().any(|job| job.has(SLOW));
        !slow && self.scenario.troubles.iter().all(harmless)
    }

    pub(super) fn check_items(&mut self, link: u64, job: &PlannedJob, reply: &Reply) {
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
                (None, Some(error)) if error.code == "expired" => self.is_expired(job),
                _ => false,
            };
            if !named || !right {
                let error = result.error.as_ref().map(|error| &error.code);
                self.breach(format!("job {}: the result of {text:?} is wrong: {error:?}", job.number));
            }
        }
    }

    /// An item fails only when it failed in a run of its own.
    pub(super) fn failed_alone(&self, link: u64, text: &str) -> bool {
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
