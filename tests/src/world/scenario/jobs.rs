//! The jobs of a world, good and bad, and the words that make the engine misbehave.
//!
//! In: a generator. Out: [`PlannedJob`]s, each the same every time. Pure.

use std::time::Duration;

use inferq_shared::broker::{Attributes, Message};
use inferq_shared::job::{Input, Inputs, Item, Job, JobId, Metadata, Parameters, ReplyTo, attribute};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::Weather;

/// An item with this word kills its process.
pub const KILLER: &str = "killer";
/// An item with this word makes its engine lose the device.
pub const LOSER: &str = "loser";
/// An item with this word makes its engine hang for ever.
pub const HANGER: &str = "hanger";
/// An item with this word makes its batch fail.
pub const POISON: &str = "poison";
/// An item with this word takes longer than the watchdog allows.
pub const SLOW: &str = "slow";

/// A job to be submitted.
#[derive(Debug, Clone)]
pub struct PlannedJob {
    /// Its number, which its id and texts name.
    pub number: usize,
    /// When it is published.
    pub at: Duration,
    /// What is wrong with it.
    pub kind: Kind,
    /// The texts of its items.
    pub texts: Vec<String>,
    /// Whose route its reply takes.
    pub submission: Option<&'static str>,
    /// How long after its publishing it expires.
    pub deadline: Option<Duration>,
}

/// What is wrong with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Good,
    /// Its body is not JSON and nothing else tells its id.
    NoJob,
    /// Its body is JSON with an id and no inputs.
    NoInputs,
    /// It names a queue that the operator does not allow.
    Forbidden,
    /// It wants another model.
    Misfit,
    /// The route of its submission does not exist.
    NoRoute,
}

/// The jobs of one world.
pub(super) fn jobs(rng: &mut StdRng, weather: Weather) -> Vec<PlannedJob> {
    let count = rng.random_range(3..=30);
    let mut jobs: Vec<_> = (0..count).map(|number| PlannedJob::random(rng, number)).collect();
    let killers = match weather {
        Weather::Killers => rng.random_range(1..=2),
        Weather::Everything => rng.random_range(0..=1),
        _ => 0,
    };
    for _ in 0..killers {
        let job = rng.random_range(0..count);
        jobs[job].infect([KILLER, KILLER, LOSER, HANGER].choose(rng).expect("there are four"));
    }
    let slow = weather == Weather::Processes && rng.random_bool(0.2);
    if slow {
        let job = rng.random_range(0..count);
        jobs[job].infect(SLOW);
    }
    for _ in 0..rng.random_range(0..=3) {
        let job = rng.random_range(0..count);
        jobs[job].infect(POISON);
    }
    jobs
}

impl PlannedJob {
    fn random(rng: &mut StdRng, number: usize) -> Self {
        let items = if rng.random_bool(0.7) { 1 } else { rng.random_range(2..=6) };
        let kind = match rng.random_range(0..40) {
            0 => Kind::NoJob,
            1 => Kind::NoInputs,
            2 => Kind::Forbidden,
            3 => Kind::Misfit,
            4 => Kind::NoRoute,
            _ => Kind::Good,
        };
        let bursts = [0, 0, 0, 10, 200, 2000, 15_000];
        Self {
            number,
            at: Duration::from_millis(*bursts.choose(rng).expect("there are seven")),
            kind,
            texts: (0..items).map(|item| text(rng, number, item)).collect(),
            submission: match kind {
                Kind::NoRoute => Some("nowhere"),
                _ => [None, Some("alice"), Some("bob")].choose(rng).copied().flatten(),
            },
            deadline: rng.random_bool(0.1).then(|| Duration::from_millis(*[10, 3000, 60_000].choose(rng).expect("3"))),
        }
    }

    fn infect(&mut self, word: &str) {
        if self.is_deadly() || self.kind != Kind::Good {
            return;
        }
        if [KILLER, LOSER, HANGER].contains(&word) {
            self.deadline = None;
        }
        // The first item is the one that no other job has.
        self.texts[0].push(' ');
        self.texts[0].push_str(word);
    }

    /// Whether it ends every process that runs it.
    pub fn is_deadly(&self) -> bool {
        self.has(KILLER) || self.has(LOSER) || self.has(HANGER)
    }

    /// Whether one of its items has this word.
    pub fn has(&self, word: &str) -> bool {
        self.texts.iter().any(|text| has(text, word))
    }

    /// Its id.
    pub fn id(&self) -> JobId {
        JobId::new(format!("job-{}", self.number)).expect("digits are allowed")
    }

    /// The queue that its reply goes to.
    pub fn route(&self) -> String {
        self.submission.map_or_else(
            || super::super::queues().results(),
            |submission| super::super::queues().submission(submission),
        )
    }

    /// What is published, less the time of publishing.
    pub fn message(&self) -> Message {
        let mut attributes = Attributes::new();
        if let Some(submission) = self.submission {
            attributes.insert(attribute::SUBMISSION.to_owned(), submission.to_owned());
        }
        if self.kind != Kind::NoJob {
            attributes.insert(attribute::JOB_ID.to_owned(), self.id().to_string());
        }
        Message { body: self.body().into(), attributes }
    }

    fn body(&self) -> Vec<u8> {
        match self.kind {
            Kind::NoJob => b"not a job".to_vec(),
            Kind::NoInputs => format!(r#"{{"version":1,"id":"{}","inputs":[]}}"#, self.id()).into_bytes(),
            _ => self.job().encode(),
        }
    }

    fn job(&self) -> Job {
        let item = |text: &String| Item { id: None, input: Input::Text(text.clone()) };
        Job {
            id: self.id(),
            model: (self.kind == Kind::Misfit).then(|| "another".to_owned()),
            inputs: Inputs::Items(self.texts.iter().map(item).collect()),
            parameters: Parameters::default(),
            reply_to: (self.kind == Kind::Forbidden).then(|| ReplyTo::Queue("jobs".to_owned())),
            deadline: self.deadline.map(|after| super::super::beginning() + self.at + after),
            metadata: Metadata::from_iter([("number".to_owned(), self.number.into())]),
        }
    }
}

/// Whether a text has a word.
pub fn has(text: &str, word: &str) -> bool {
    text.split(' ').any(|other| other == word)
}

/// The first item of a job names it; the others may be shared with other jobs.
fn text(rng: &mut StdRng, job: usize, item: usize) -> String {
    let mut text = match item {
        0 => format!("job-{job}"),
        _ if rng.random_bool(0.3) => return format!("common-{}", rng.random_range(0..3)),
        _ => format!("job-{job}-{item}"),
    };
    for _ in 0..rng.random_range(0..12) {
        text.push_str(" word");
    }
    text
}
