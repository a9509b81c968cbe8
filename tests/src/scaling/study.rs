//! The comparisons: settings, traces, and what came of them.
//!
//! In: what one worker computes, the phases of its start. Out: outcomes by setting and trace. [`COMPONENT`] is what
//! `k8s/components/keda` sets; the search says why.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::scaling::autoscaler::{Policy, Rules, Settings, Signal, Step, Trigger};
use crate::scaling::cluster::Pool;
use crate::scaling::outcome::{Foresight, Outcome};
use crate::scaling::seconds;
use crate::scaling::trace::{Kind, Trace, trace};
use crate::scaling::worker::Speed;
use crate::scaling::world::signals::Path;
use crate::scaling::world::{Control, Plan, Pod, Scaled, simulate};

/// What the replicas follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Follows {
    /// Seconds of work, and never fewer than are busy; messages wake from zero, and are another floor.
    WorkAndBusy,
    /// Seconds of work; messages wake from zero, and are a floor.
    Work,
    /// Messages, so many a worker.
    Messages,
}

/// What an operator sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knobs {
    /// What replicas follow.
    pub follows: Follows,
    /// Seconds of work that one worker is for.
    pub target_s: f64,
    /// Busy workers that one worker is for. From 0.91 on workers that are all busy lie within the HPA's tolerance, so that this
    /// trigger only holds replicas; below, it adds some before anything waits.
    pub busy: f64,
    /// Messages that one worker is for: as a floor beside the work, or alone.
    pub messages: f64,
    /// The window of the mean tokens of a job, in the query.
    pub mean_s: f64,
    /// `pollingInterval`.
    pub polling_s: u32,
    /// `cooldownPeriod`.
    pub cooldown_s: u32,
    /// `scaleDown.stabilizationWindowSeconds`.
    pub down_stable_s: u32,
    /// `scaleUp`: twice as many, or four pods more, in so many seconds.
    pub up_period_s: u32,
    /// `scaleDown`: so many percent, or one pod, in 60 s.
    pub down_percent: u32,
    /// `maxReplicaCount`.
    pub replicas_max: u32,
}

/// What `k8s/components/keda` sets, but for `maxReplicaCount`, which is a matter of budget.
pub const COMPONENT: Knobs = Knobs {
    follows: Follows::WorkAndBusy,
    target_s: 240.0,
    busy: 0.8,
    messages: 1_000_000.0,
    mean_s: 21_600.0,
    polling_s: 15,
    cooldown_s: 300,
    down_stable_s: 180,
    up_period_s: 15,
    down_percent: 25,
    replicas_max: 100,
};

/// The HPA's defaults, which a managed cluster does not let one set.
const SYNC_S: u32 = 15;
const TOLERANCE: f64 = 0.1;
/// Mean tokens of a job for which an operator who follows messages has set the target: those of the steady trace.
const TUNED_FOR: f64 = 770.0;

impl Knobs {
    /// The same for following messages: as good as work for jobs of the size that it is tuned for.
    pub fn by_messages(self, tokens_per_s: f64) -> Self {
        Self { follows: Follows::Messages, messages: (self.target_s * tokens_per_s / TUNED_FOR).round(), ..self }
    }

    /// As a ScaledObject.
    pub fn settings(&self) -> Settings {
        let messages = Trigger { signal: Signal::Messages, target: self.messages, activation: 0.0 };
        let work = Trigger { signal: Signal::SecondsOfWork, target: self.target_s, activation: 0.0 };
        let busy = Trigger { signal: Signal::BusyWorkers, target: self.busy, activation: 0.0 };
        let policy = |step, period_s| Policy { step, period_s };
        Settings {
            triggers: match self.follows {
                Follows::WorkAndBusy => vec![work, busy, messages],
                Follows::Work => vec![work, messages],
                Follows::Messages => vec![messages],
            },
            min_replicas: 0,
            max_replicas: self.replicas_max,
            polling_s: self.polling_s,
            cooldown_s: self.cooldown_s,
            sync_s: SYNC_S,
            tolerance: TOLERANCE,
            up: Rules {
                stabilization_s: 0,
                policies: vec![policy(Step::Percent(100), self.up_period_s), policy(Step::Pods(4), self.up_period_s)],
            },
            down: Rules {
                stabilization_s: self.down_stable_s,
                policies: vec![policy(Step::Percent(self.down_percent), 60), policy(Step::Pods(1), 60)],
            },
        }
    }
}

/// Where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// What a worker computes a second.
    pub tokens_per_s: f64,
    /// From its container's start to ready.
    pub phases_s: f64,
    /// From the request for a node to a pod's first container on it, without the image.
    pub node_start_s: (f64, f64),
    /// The image's pull.
    pub pull_s: (f64, f64),
    /// The queue's length on its way.
    pub path: Path,
    /// `--drain-limit-s`.
    pub drain_limit_s: f64,
    /// Whether workers keep their deletion cost up to date.
    pub tells_cost: bool,
    /// What an hour of a node costs.
    pub price_an_hour: f64,
    /// What an hour of a spot node costs.
    pub spot_price_an_hour: f64,
}

impl Place {
    /// Nodes without a card, the queue's length over Cloud Monitoring.
    ///
    /// A node's start is an assumption: users report 2 to 5 minutes from a pending pod to a running one on GKE; a pool of
    /// plain machines lies at the lower end. So is the pull: some 200 MB.
    pub fn plain(tokens_per_s: f64, phases_s: f64, price_an_hour: f64) -> Self {
        Self {
            tokens_per_s,
            phases_s,
            node_start_s: (60.0, 150.0),
            pull_s: (5.0, 20.0),
            path: Path::CLOUD_MONITORING,
            drain_limit_s: 25.0,
            tells_cost: true,
            price_an_hour,
            spot_price_an_hour: price_an_hour,
        }
    }

    /// Nodes that take twice as long, with an image of several GB and kernels to compile: what a card's pool may be like. Not
    /// measured.
    #[must_use]
    pub fn slow(self) -> Self {
        Self { node_start_s: (120.0, 300.0), pull_s: (60.0, 150.0), phases_s: 60.0, ..self }
    }
}

/// A plan for a trace.
pub fn plan(trace: Trace, knobs: &Knobs, place: &Place, seed: u64) -> Plan {
    let pool = Pool {
        nodes_max: knobs.replicas_max,
        pods_a_node: 1,
        start_s: place.node_start_s,
        pull_s: place.pull_s,
        unneeded_s: 600.0,
        price_an_hour: place.price_an_hour,
    };
    let speed = Speed { tokens_per_s: place.tokens_per_s, replicas: 2, drain_limit_s: place.drain_limit_s };
    let pod = Pod { speed, phases_s: place.phases_s, lease_s: 60.0, tells_cost: place.tells_cost };
    let scaled = Scaled { settings: knobs.settings(), pool, pod, path: place.path, mean_s: knobs.mean_s };
    Plan { trace, control: Control::Autoscaled(Box::new(scaled)), seed }
}

/// What no schedule beats: workers that are there exactly while there is work for them.
pub fn foresight(trace: &Trace, tokens_per_s: f64, replicas_max: u32) -> Foresight {
    let work_s = trace.arrivals.iter().map(|arrival| f64::from(arrival.tokens)).sum::<f64>() / tokens_per_s;
    let (Some(first), Some(last)) = (trace.arrivals.first(), trace.arrivals.last()) else {
        return Foresight { node_hours: 0.0, cleared_s: 0.0 };
    };
    Foresight {
        node_hours: work_s / 3600.0,
        cleared_s: (work_s / f64::from(replicas_max)).max(seconds(last.at - first.at)),
    }
}

/// A run that is to be made.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is called.
    pub label: String,
    /// Which trace.
    pub kind: Kind,
    /// Settings.
    pub knobs: Knobs,
    /// Where.
    pub place: Place,
    /// The seed of the trace and of the world.
    pub seed: u64,
}

impl Case {
    /// Workers on spot nodes must be done within the 15 s that they get: `k8s/components/spot` sets their drain limit to 10 s.
    pub fn new(label: &str, kind: Kind, knobs: Knobs, place: Place) -> Self {
        let place = match kind {
            Kind::SpotStorm => Place { drain_limit_s: 10.0, price_an_hour: place.spot_price_an_hour, ..place },
            _ => place,
        };
        Self { label: label.to_owned(), kind, knobs, place, seed: 1 }
    }

    /// Runs it.
    pub fn run(&self) -> (Outcome, Foresight) {
        let trace = trace(self.kind, self.place.tokens_per_s, self.seed);
        let foresight = foresight(&trace, self.place.tokens_per_s, self.knobs.replicas_max);
        (simulate(&plan(trace, &self.knobs, &self.place, self.seed)), foresight)
    }
}

/// Runs all on all cores; results in the cases' order.
pub fn run_all(cases: &[Case]) -> Vec<(Outcome, Foresight)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; cases.len()]);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some((index, case)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    cases.get(index).map(|case| (index, case))
                } {
                    let result = case.run();
                    results.lock().expect("nothing panics while it holds the results")[index] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("nothing panicked while it held the results");
    results.into_iter().map(|result| result.expect("every case was run")).collect()
}

/// A point for each multiple of the cost with perfect foresight, and one for each five minutes of the 99th percentile's wait: a
/// user who waits five minutes is worth the work done over again.
pub fn score(outcome: &Outcome, foresight: Foresight) -> f64 {
    outcome.node_hours / foresight.node_hours + outcome.wait_p99_s / 300.0
}

/// One knob's values, the others as in the component.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Which.
    pub knob: &'static str,
    /// Settings by value.
    pub values: Vec<(String, Knobs)>,
}

/// The search: each knob for itself, around the component.
pub fn sweeps() -> Vec<Sweep> {
    let over = |knob, values: &[f64], set: fn(&mut Knobs, f64), unit: &str| Sweep {
        knob,
        values: values
            .iter()
            .map(|&value| {
                let mut knobs = COMPONENT;
                set(&mut knobs, value);
                (format!("{value}{unit}"), knobs)
            })
            .collect(),
    };
    vec![
        over(
            "seconds of work a worker",
            &[15.0, 30.0, 60.0, 120.0, 240.0, 480.0],
            |knobs, value| knobs.target_s = value,
            " s",
        ),
        over("busy workers a worker", &[0.6, 0.7, 0.8, 0.92, 1.0, 1000.0], |knobs, value| knobs.busy = value, ""),
        over(
            "messages a worker, as a floor",
            &[1_000.0, 10_000.0, 100_000.0, 1_000_000.0],
            |knobs, value| knobs.messages = value,
            "",
        ),
        over(
            "window of the mean tokens",
            &[300.0, 600.0, 3_600.0, 21_600.0],
            |knobs, value| knobs.mean_s = value,
            " s",
        ),
        over("polling interval", &[5.0, 15.0, 30.0, 60.0], |knobs, value| knobs.polling_s = value as u32, " s"),
        over("cooldown to zero", &[60.0, 300.0, 900.0], |knobs, value| knobs.cooldown_s = value as u32, " s"),
        over(
            "stabilization window down",
            &[0.0, 60.0, 120.0, 180.0, 300.0, 600.0],
            |knobs, value| knobs.down_stable_s = value as u32,
            " s",
        ),
        over("up, 100 % or 4 pods in", &[15.0, 60.0, 300.0], |knobs, value| knobs.up_period_s = value as u32, " s"),
        over("down, in 60 s", &[10.0, 25.0, 100.0], |knobs, value| knobs.down_percent = value as u32, " %"),
    ]
}
