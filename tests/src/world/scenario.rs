//! What a world holds and what goes wrong in it, all of it from one seed.
//!
//! In: a seed. Out: a [`Scenario`]: jobs, settings, and a list of [`Trouble`]s, which can be shortened while the rest
//! stays as it is. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use inferq_shared::broker::memory::{Call, Fault, FaultPlan, Planned};
use inferq_shared::broker::{Attributes, Message};
use inferq_shared::job::{Input, Inputs, Item, Job, JobId, Limits, Metadata, Parameters, ReplyTo, attribute};
use inferq_worker::batch::BatchLimits;
use inferq_worker::in_flight::Bounds;
use inferq_worker::intake::IntakeSettings;
use inferq_worker::pipeline::Settings;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::queues;

/// An item with this word kills its process.
pub const KILLER: &str = "killer";
/// An item with this word makes its engine lose the device.
pub const LOSER: &str = "loser";
/// An item with this word makes its batch fail.
pub const POISON: &str = "poison";
/// An item with this word takes longer than the watchdog allows.
pub const SLOW: &str = "slow";

/// One world.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What everything else follows from.
    pub seed: u64,
    /// What is submitted.
    pub jobs: Vec<PlannedJob>,
    /// Worker processes at a time.
    pub workers: usize,
    /// Engines a worker.
    pub replicas: usize,
    /// Rows above which the engine runs out of memory.
    pub rows_max: usize,
    /// Replies that a route holds.
    pub results_max: Option<NonZeroUsize>,
    /// How often the collector looks at a route.
    pub collect_every: Duration,
    /// What the workers are told.
    pub settings: Told,
    /// What goes wrong.
    pub troubles: Vec<Trouble>,
}

/// The settings that differ from world to world.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// `--max-attempts`.
    pub attempts_max: u32,
    /// `--lease-s`.
    pub lease: Duration,
    /// `--max-lease-s`.
    pub lease_max: Duration,
    /// `--drain-limit-s`.
    pub drain_limit: Duration,
    /// `--unfit-limit-s`.
    pub unfit_limit: Duration,
    /// What may be in flight.
    pub bounds: Bounds,
    /// When a batch is full or due.
    pub batch: BatchLimits,
}

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

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// With a call to the broker.
    Broker(Planned),
    /// With a run of an engine.
    Engine {
        /// Which run, over all engines.
        run: u64,
        /// What happens.
        fault: EngineFault,
    },
    /// With a worker.
    Fate(PlannedFate),
}

/// What can go wrong with a run of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFault {
    /// It fails.
    Fail,
    /// It runs out of memory.
    OutOfMemory,
    /// The device is lost.
    LoseDevice,
    /// It fails, and so does the device's check.
    Sicken,
    /// It gives an answer too few.
    Short,
    /// The process dies.
    Die,
}

/// What happens to a worker, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFate {
    /// To which worker.
    pub worker: usize,
    /// When.
    pub at: Duration,
    /// What.
    pub fate: Fate,
}

/// What can happen to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Its process dies.
    Crash,
    /// It is asked to stop, and started again.
    Stop,
    /// Its broker connection breaks for so long.
    Break(Duration),
}

/// What kind of things go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Calm,
    Killers,
    Broker,
    Processes,
    Everything,
}

impl Scenario {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let weather = *[Weather::Calm, Weather::Killers, Weather::Broker, Weather::Processes, Weather::Everything]
            .choose(rng)
            .expect("there are five");
        let workers = rng.random_range(1..=2);
        let jobs = jobs(rng, weather);
        let troubles = troubles(rng, weather, workers, jobs.len() as u64);
        Self {
            seed,
            workers,
            replicas: rng.random_range(1..=2),
            rows_max: *[2, 5, 1000].choose(rng).expect("there are three"),
            results_max: rng.random_bool(0.2).then(|| NonZeroUsize::new(4).expect("four is not zero")),
            collect_every: Duration::from_millis(*[1, 50, 2000].choose(rng).expect("there are three")),
            settings: Told::random(rng),
            jobs,
            troubles,
        }
    }

    /// What the workers are told.
    pub fn settings(&self) -> Settings {
        let told = self.settings;
        Settings {
            intake: IntakeSettings {
                limits: Limits::default(),
                queues: queues(),
                reply_queues: Vec::new(),
                attempts_max: told.attempts_max,
                unfit_limit: told.unfit_limit,
                clock_skew: Duration::from_secs(1),
            },
            batch: told.batch,
            bounds: told.bounds,
            drain_limit: told.drain_limit,
            watchdog: Duration::from_secs(60),
            lease_max: told.lease_max,
            intake_threads: 2,
            seed: self.seed,
        }
    }

    /// Every queue that a reply can go to.
    pub fn routes(&self) -> BTreeSet<String> {
        let declared = self.jobs.iter().filter(|job| job.kind != Kind::NoRoute);
        declared.map(PlannedJob::route).chain([queues().results()]).collect()
    }

    /// Every text of every job.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.jobs.iter().flat_map(|job| job.texts.iter().map(String::as_str))
    }

    /// What is published together, and when.
    pub fn publishes(&self, message: impl Fn(&PlannedJob, Duration) -> Message) -> BTreeMap<Duration, Vec<Message>> {
        let mut publishes = BTreeMap::<_, Vec<_>>::new();
        for job in &self.jobs {
            publishes.entry(job.at).or_default().push(message(job, job.at));
        }
        publishes
    }

    /// The faults of the broker's calls.
    pub fn broker_faults(&self) -> FaultPlan {
        self.planned().cloned().collect()
    }

    /// The same, one by one.
    pub fn planned(&self) -> impl Iterator<Item = &Planned> {
        self.troubles.iter().filter_map(|trouble| match trouble {
            Trouble::Broker(planned) => Some(planned),
            _ => None,
        })
    }

    /// The faults of the engine's runs.
    pub fn engine_faults(&self) -> BTreeMap<u64, EngineFault> {
        let fault = |trouble: &Trouble| match trouble {
            Trouble::Engine { run, fault } => Some((*run, *fault)),
            _ => None,
        };
        self.troubles.iter().filter_map(fault).collect()
    }

    /// What happens to a worker, in order.
    pub fn fates(&self, worker: usize) -> Vec<PlannedFate> {
        let fate = |trouble: &Trouble| match trouble {
            Trouble::Fate(fate) if fate.worker == worker => Some(fate.clone()),
            _ => None,
        };
        let mut fates: Vec<_> = self.troubles.iter().filter_map(fate).collect();
        fates.sort_by_key(|fate| fate.at);
        fates
    }
}

impl Told {
    fn random(rng: &mut StdRng) -> Self {
        let linger = Duration::from_millis(*[0, 5, 50].choose(rng).expect("there are three"));
        let (tokens_max, items_max) = *[(64, 4), (256, 16), (4096, 256)].choose(rng).expect("there are three");
        let jobs = *[1, 3, 8, 64].choose(rng).expect("there are four");
        let bytes = *[300, 4000, 1 << 20].choose(rng).expect("there are three");
        Self {
            attempts_max: *[3, 4, 5, 5, 6].choose(rng).expect("there are five"),
            lease: Duration::from_secs(*[10, 60].choose(rng).expect("there are two")),
            lease_max: Duration::from_secs(*[120, 3600].choose(rng).expect("there are two")),
            drain_limit: Duration::from_secs(*[1, 25].choose(rng).expect("there are two")),
            unfit_limit: Duration::from_secs(*[20, 300].choose(rng).expect("there are two")),
            bounds: Bounds { jobs, bytes, tokens: 4096 },
            batch: BatchLimits { tokens_max, items_max, linger },
        }
    }
}

fn jobs(rng: &mut StdRng, weather: Weather) -> Vec<PlannedJob> {
    let count = rng.random_range(3..=30);
    let mut jobs: Vec<_> = (0..count).map(|number| PlannedJob::random(rng, number)).collect();
    let killers = match weather {
        Weather::Killers => rng.random_range(1..=2),
        Weather::Everything => rng.random_range(0..=1),
        _ => 0,
    };
    for _ in 0..killers {
        let job = rng.random_range(0..count);
        jobs[job].infect([KILLER, KILLER, LOSER].choose(rng).expect("there are three"));
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
        if [KILLER, LOSER].contains(&word) {
            self.deadline = None;
        }
        // The first item is the one that no other job has.
        self.texts[0].push(' ');
        self.texts[0].push_str(word);
    }

    /// Whether it ends every process that runs it.
    pub fn is_deadly(&self) -> bool {
        self.has(KILLER) || self.has(LOSER)
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
        self.submission.map_or_else(|| queues().results(), |submission| queues().submission(submission))
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
            deadline: self.deadline.map(|after| super::beginning() + self.at + after),
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

fn troubles(rng: &mut StdRng, weather: Weather, workers: usize, jobs: u64) -> Vec<Trouble> {
    let (broker, engine, fates) = match weather {
        Weather::Calm => (0..2, 0..2, 0..2),
        Weather::Killers => (0..1, 0..1, 0..2),
        Weather::Broker => (3..12, 0..1, 0..1),
        Weather::Processes => (0..1, 0..6, 1..8),
        Weather::Everything => (2..10, 1..5, 1..5),
    };
    let mut troubles = Vec::new();
    for _ in 0..rng.random_range(broker) {
        troubles.push(Trouble::Broker(broker_trouble(rng, jobs)));
    }
    for _ in 0..rng.random_range(engine) {
        troubles.push(engine_trouble(rng, jobs));
    }
    for _ in 0..rng.random_range(fates) {
        troubles.push(fate(rng, weather, workers));
    }
    troubles
}

fn broker_trouble(rng: &mut StdRng, jobs: u64) -> Planned {
    let planned = Planned::random(rng, jobs);
    match (rng.random_range(0..12), planned.call) {
        (0, Call::Publish) => Planned { fault: Fault::Refuse, ..planned },
        (1, _) => Planned { fault: Fault::DieBefore, ..planned },
        (2, _) => Planned { fault: Fault::DieAfter, ..planned },
        _ => planned,
    }
}

fn engine_trouble(rng: &mut StdRng, jobs: u64) -> Trouble {
    use EngineFault::{Die, Fail, LoseDevice, OutOfMemory, Short, Sicken};
    let faults = [Fail, Fail, OutOfMemory, OutOfMemory, LoseDevice, Sicken, Short, Die];
    let fault = *faults.choose(rng).expect("there are eight");
    Trouble::Engine { run: rng.random_range(0..jobs), fault }
}

fn fate(rng: &mut StdRng, weather: Weather, workers: usize) -> Trouble {
    let down = Duration::from_millis(*[0, 100, 3000, 70_000].choose(rng).expect("there are four"));
    let fate = match rng.random_range(0..3) {
        _ if weather == Weather::Killers => Fate::Stop,
        0 => Fate::Crash,
        1 => Fate::Stop,
        _ => Fate::Break(down),
    };
    // Most of the work is done in the first moments after a burst of jobs.
    let burst = *[0, 10, 200, 1500, 2000, 15_000, 40_000].choose(rng).expect("there are seven");
    let after = *[0, 1, 3, 10, 30].choose(rng).expect("there are five");
    let at = Duration::from_millis(burst + rng.random_range(0..=after));
    Trouble::Fate(PlannedFate { worker: rng.random_range(0..workers), at, fate })
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(planned) => write!(formatter, "broker call {planned}"),
            Self::Engine { run, fault } => write!(formatter, "engine run {run}: {fault:?}"),
            Self::Fate(PlannedFate { worker, at, fate }) => write!(formatter, "worker {worker} at {at:?}: {fate:?}"),
        }
    }
}
