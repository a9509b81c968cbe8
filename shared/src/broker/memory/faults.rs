//! What goes wrong on a memory broker's connections, call by call.
//!
//! In: a seed, or a list. Out: for each call, the fault that it meets. A plan is data: it can be printed, compared and
//! shortened, and the same plan always does the same. It must never use a clock or randomness of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The calls that a plan counts, each kind from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// A publisher's publish.
    Publish,
    /// A consumer's receive, counted when there is something to hand over.
    Receive,
    /// A lease's ack, release or dead letter, and also its drop.
    Settle,
}

/// What can happen to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It takes this much longer.
    Delay(Duration),
    /// The whole connection stands still for so long: no call goes on, no lease is renewed.
    Stall(Duration),
    /// The connection breaks before the call does anything, and is down for so long. Its leases end, attempts spent.
    Disconnect(Duration),
    /// It never reaches the broker: nothing happens and the caller is told `Unavailable`.
    LoseRequest,
    /// It happens, but the caller is told `Unavailable`.
    LoseAnswer,
    /// Publish: only the first half happens, and the caller is told `Unavailable`. Otherwise as `LoseAnswer`.
    Partly,
    /// It is refused for good.
    Refuse,
    /// Publish: the queue says that it is full. Otherwise nothing.
    Full,
    /// Receive: the first delivery also stays in the queue, behind the others. Otherwise nothing.
    Duplicate,
    /// The process dies before the call has its effect. The call never returns.
    DieBefore,
    /// The process dies after the call had its effect. The call never returns.
    DieAfter,
}

/// One fault and when it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Which kind of call.
    pub call: Call,
    /// Which one of that kind, from 0.
    pub number: u64,
    /// What happens to it.
    pub fault: Fault,
}

/// All that goes wrong. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultPlan {
    faults: BTreeMap<(Call, u64), Fault>,
}

impl FaultPlan {
    /// `count` faults that follow from `seed`, each among the first `calls` of its kind. No refusals and no deaths: a
    /// refusal ends a consumer for good, and a death needs somebody who starts the process again.
    pub fn seeded(seed: u64, count: usize, calls: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count).map(|_| Planned::random(&mut rng, calls)).collect()
    }

    /// The same plan and one more fault. A call meets one fault at most, the last one named.
    #[must_use]
    pub fn and(mut self, call: Call, number: u64, fault: Fault) -> Self {
        self.faults.insert((call, number), fault);
        self
    }

    /// The faults in order.
    pub fn iter(&self) -> impl Iterator<Item = Planned> {
        self.faults.iter().map(|(&(call, number), fault)| Planned { call, number, fault: fault.clone() })
    }
}

impl FromIterator<Planned> for FaultPlan {
    fn from_iter<I: IntoIterator<Item = Planned>>(faults: I) -> Self {
        Self { faults: faults.into_iter().map(|planned| ((planned.call, planned.number), planned.fault)).collect() }
    }
}

impl Planned {
    /// A fault that its call can meet, neither refusal nor death, within the first `calls` of its kind.
    pub fn random(rng: &mut StdRng, calls: u64) -> Self {
        let call = [Call::Publish, Call::Receive, Call::Settle][rng.random_range(0..3)];
        let number = rng.random_range(0..calls.max(1));
        let time = Duration::from_millis(10u64.pow(rng.random_range(0..5)) * rng.random_range(1..10));
        let fault = match (rng.random_range(0..6), call) {
            (0, _) => Fault::Delay(time),
            (1, _) => Fault::Stall(time),
            (2, _) => Fault::Disconnect(time),
            (3, Call::Publish) => Fault::Full,
            (4, Call::Publish) => Fault::Partly,
            (_, Call::Receive) => Fault::Duplicate,
            (3, _) => Fault::LoseRequest,
            _ => Fault::LoseAnswer,
        };
        Self { call, number, fault }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {}: {:?}", self.call, self.number, self.fault)
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|planned| writeln!(formatter, "{planned}"))
    }
}

/// A plan and how far its connections have come in it.
#[derive(Clone)]
pub(super) struct Faults {
    plan: Arc<FaultPlan>,
    counts: Arc<Mutex<BTreeMap<Call, u64>>>,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self { plan: Arc::new(plan), counts: Arc::default() }
    }

    /// Counts a call and says what goes wrong with it.
    pub(super) fn next(&self, call: Call) -> Option<Fault> {
        let mut counts = self.counts.lock().expect("nothing panics while it holds the counts");
        let count = counts.entry(call).or_default();
        let fault = self.plan.faults.get(&(call, *count)).cloned();
        *count += 1;
        fault
    }
}
