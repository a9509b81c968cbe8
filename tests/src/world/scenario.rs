//! What a world holds and what goes wrong in it, all of it from one seed.
//!
//! In: a seed. Out: a [`Scenario`]: jobs, settings, and a list of [`Trouble`]s, which can be shortened while the rest
//! stays as it is. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use inferq_shared::broker::Message;
use inferq_shared::broker::memory::{Call, Fault, FaultPlan, Planned};
use inferq_shared::bucket::AllowList;
use inferq_shared::job::Limits;
use inferq_worker::batch::{BatchLimits, Padding};
use inferq_worker::claim::ClaimSettings;
use inferq_worker::claim::unpack::UnpackCaps;
use inferq_worker::in_flight::Bounds;
use inferq_worker::intake::IntakeSettings;
use inferq_worker::pipeline::Settings;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::queues;

mod jobs;

pub use self::jobs::{HANGER, KILLER, Kind, LOSER, POISON, PlannedJob, SLOW, has};

/// `--check-every-s` of every worker.
const CHECK_EVERY: Duration = Duration::from_secs(20);
/// `--watchdog-s` of every worker.
pub const WATCHDOG: Duration = Duration::from_secs(60);
/// `--clock-skew-ms` of every worker.
pub const CLOCK_SKEW: Duration = Duration::from_secs(1);

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
    /// How many times slower than usual the engines are.
    pub pace: u32,
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
    /// An engine never comes back from a batch.
    Hang {
        /// Which batch, over all engines.
        batch: u64,
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
        let jobs = jobs::jobs(rng, weather);
        let troubles = troubles(rng, weather, workers, jobs.len() as u64);
        Self {
            seed,
            workers,
            replicas: rng.random_range(1..=2),
            pace: *[1, 1, 100].choose(rng).expect("there are three"),
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
            claims: ClaimSettings { shard_items: 10_000, unpack: UnpackCaps { bytes: 1 << 30, ratio: 200 } },
            intake: IntakeSettings {
                limits: Limits::default(),
                queues: queues(),
                reply_queues: Vec::new(),
                readable: AllowList::default(),
                writable: AllowList::default(),
                object_bytes: 256 << 20,
                attempts_max: told.attempts_max,
                unfit_limit: told.unfit_limit,
                clock_skew: CLOCK_SKEW,
            },
            batch: told.batch,
            bounds: told.bounds,
            drain_limit: told.drain_limit,
            watchdog: WATCHDOG,
            check_every: CHECK_EVERY,
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

    /// The batches that an engine never comes back from.
    pub fn hangs(&self) -> BTreeSet<u64> {
        let hang = |trouble: &Trouble| match trouble {
            Trouble::Hang { batch } => Some(*batch),
            _ => None,
        };
        self.troubles.iter().filter_map(hang).collect()
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
        let tokens = *[16, 256, 4096].choose(rng).expect("there are three");
        Self {
            attempts_max: *[3, 4, 5, 5, 6].choose(rng).expect("there are five"),
            lease: Duration::from_secs(*[10, 60].choose(rng).expect("there are two")),
            lease_max: Duration::from_secs(*[120, 3600].choose(rng).expect("there are two")),
            drain_limit: Duration::from_secs(*[1, 25].choose(rng).expect("there are two")),
            unfit_limit: Duration::from_secs(*[20, 300].choose(rng).expect("there are two")),
            bounds: Bounds { jobs, bytes, tokens },
            batch: BatchLimits { tokens_max, items_max, linger, padding: Padding::Longest },
        }
    }
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
    if rng.random_bool(0.2) {
        return Trouble::Hang { batch: rng.random_range(0..jobs) };
    }
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
            Self::Hang { batch } => write!(formatter, "batch {batch}: never ends"),
            Self::Fate(PlannedFate { worker, at, fate }) => write!(formatter, "worker {worker} at {at:?}: {fate:?}"),
        }
    }
}
