//! The whole line, and the only file that makes its channels and spawns its tasks and threads.
//!
//! ```text
//!  receive ──▶ intake ──▶ look ──▶ dispatch ──▶ outbox
//!                 └──▶ claims ─▶    │    ▲
//!                                   ▼    │
//!                                  replicas
//! ```
//!
//! In: [`Parts`], ready to work: the model loaded, warm and checked, the consumer connected. Out: `Ok` when stop was
//! asked and everything is settled. Stop has two moments. *Stop fetching* is the caller's token: nothing new is pulled,
//! what is in no batch yet is released. *Stop working* comes at the drain limit: what is unfinished is released too.
//! Later stages end when their input closes. Dropping the future is a crash: every lease is redelivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use inferq_shared::broker::{BrokerError, Consumer, Publisher};
use inferq_shared::bucket::Buckets;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit::Admit;
use crate::assemble::Signature;
use crate::batch::BatchLimits;
use crate::claim::windows::Feeder;
use crate::claim::{ClaimSettings, Claims, Desk};
use crate::clock::Clock;
use crate::dispatch::{DeviceLost, Dispatch, Lane};
use crate::engine::ModelInfo;
use crate::fitness::Fitness;
use crate::health::Health;
use crate::in_flight::{Bounds, InFlight};
use crate::intake::{Intake, IntakeSettings};
use crate::look::Look;
use crate::offload::Offload;
use crate::outage::Patience;
use crate::outbox::Outbox;
use crate::pulse::Watchdog;
use crate::receive::{Mode, Receive};
use crate::replica::{Host, Ran, Replica, run_inline, run_on_thread};
use crate::ticket::ReleaseReason;
use crate::tokenize::Tokenizer;

/// The numbers that the line runs by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What jobs are checked against.
    pub intake: IntakeSettings,
    /// How large inputs are read and split.
    pub claims: ClaimSettings,
    /// When a batch is full or due.
    pub batch: BatchLimits,
    /// How much may be in flight.
    pub bounds: Bounds,
    /// From stop fetching to stop working.
    pub drain_limit: Duration,
    /// How long one batch, or one turn of a stage's loop, may take before the worker counts as stuck.
    pub watchdog: Duration,
    /// How often a device that is busy is checked.
    pub check_every: Duration,
    /// How long a job may be held.
    pub lease_max: Duration,
    /// Pulls decoded and tokenised at once.
    pub intake_threads: usize,
    /// Seeds the jitter of retries.
    pub seed: u64,
}

/// What the line is made of.
pub struct Parts<C, P> {
    /// The numbers.
    pub settings: Settings,
    /// Where jobs come from.
    pub consumer: C,
    /// Where replies go.
    pub publisher: P,
    /// Where objects are.
    pub buckets: Buckets,
    /// The engines, loaded, warm and checked.
    pub replicas: Vec<Replica>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model.
    pub info: Arc<ModelInfo>,
    /// This worker's name in replies.
    pub worker: String,
    /// Whether the consumer renews its leases; the line says no while it is stuck.
    pub renew: watch::Sender<bool>,
    /// What the worker holds, shown to the outside.
    pub in_flight: InFlight,
    /// The state shown to the outside.
    pub health: Health,
    /// Where computing is done.
    pub offload: Offload,
    /// The time.
    pub clock: Clock,
}

/// Why the line ended before it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// The broker refuses for good.
    #[error("{0}")]
    Broker(#[from] BrokerError),
    /// The device is lost.
    #[error("{0}")]
    Device(#[from] DeviceLost),
}

/// Pulls handed to a stage ahead of it.
const AHEAD: usize = 2;
/// More jobs than the bound may be held: those that one pull overshoots.
const PULL_AHEAD: usize = 1024;
/// How often the watchdog is asked, and samples are folded into their histograms.
const UPKEEP: Duration = Duration::from_millis(500);
/// Jobs on their way to the outbox beyond what it holds.
const OUTBOUND: usize = 1024;

/// Runs the line until `stop` is asked and everything is settled.
///
/// # Errors
/// When the broker refuses for good or the device is lost; what could be released has been.
pub async fn run<C: Consumer, P: Publisher>(parts: Parts<C, P>, stop: CancellationToken) -> Result<(), PipelineError> {
    let stop = stop.child_token();
    let working = CancellationToken::new();
    let drain_limit = parts.settings.drain_limit;
    let watchdog = Watchdog::new(parts.settings.watchdog, parts.clock);
    parts.health.watched_by(watchdog.clone());
    let guard =
        Guard { watchdog: watchdog.clone(), renew: parts.renew.clone(), health: parts.health.clone(), stuck: None };
    let mut stages: JoinSet<Result<(), PipelineError>> = JoinSet::new();
    let threads = spawn_stages(parts, &watchdog, &stop, &working, &mut stages);
    let ended = supervise(&mut stages, &stop, &working, drain_limit, guard).await;
    // At the drain limit a thread may still be computing; the process ends without it.
    threads.into_iter().filter(|thread| thread.is_finished()).for_each(|thread| {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
    ended
}

/// Joins the stages; the first to fail, or a stop, starts the drain.
async fn supervise(
    stages: &mut JoinSet<Result<(), PipelineError>>,
    stop: &CancellationToken,
    working: &CancellationToken,
    drain_limit: Duration,
    mut guard: Guard,
) -> Result<(), PipelineError> {
    let drain = async {
        stop.cancelled().await;
        tokio::time::sleep(drain_limit).await;
        if !crate::mutant::active("drain_without_end") {
            working.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(drain);
    let mut upkeep = tokio::time::interval(UPKEEP);
    let mut ended = Ok(());
    loop {
        let joined = tokio::select! {
            biased;
            joined = stages.join_next() => joined,
            () = &mut drain => continue,
            _ = upkeep.tick() => {
                guard.look();
                continue;
            }
        };
        match joined {
            None => return ended,
            Some(Ok(stage)) => {
                if let (Ok(()), Err(error)) = (&ended, stage) {
                    ended = Err(error);
                    guard.health.draining();
                    stop.cancel();
                }
            }
            // A panic is a bug and ends the process; the broker redelivers.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Looks after a line that runs: stops renewing leases, and pulling, while it is stuck.
struct Guard {
    watchdog: Watchdog,
    renew: watch::Sender<bool>,
    health: Health,
    stuck: Option<String>,
}

impl Guard {
    fn look(&mut self) {
        self.health.upkeep();
        let stuck = self.watchdog.stuck().filter(|_| !crate::mutant::active("watchdog_asleep"));
        if stuck == self.stuck {
            return;
        }
        match (&stuck, &self.stuck) {
            (Some(name), _) => {
                tracing::error!(name, "stuck: leases are no longer renewed, and no jobs are taken");
            }
            (None, before) => tracing::info!(name = before, "turns again"),
        }
        if !crate::mutant::active("renews_while_stuck") {
            self.renew.send_replace(stuck.is_none());
        }
        self.stuck = stuck;
    }
}

fn spawn_stages<C: Consumer, P: Publisher>(
    parts: Parts<C, P>,
    watchdog: &Watchdog,
    stop: &CancellationToken,
    working: &CancellationToken,
    stages: &mut JoinSet<Result<(), PipelineError>>,
) -> Vec<std::thread::JoinHandle<()>> {
    let Parts {
        settings,
        consumer,
        publisher,
        buckets,
        replicas,
        tokenizer,
        info,
        worker,
        renew,
        in_flight,
        health,
        offload,
        clock,
    } = parts;
    let (received, from_receive) = mpsc::channel(AHEAD);
    let (tickets, from_intake) = mpsc::channel(AHEAD);
    let (absent, from_look) = mpsc::channel(AHEAD);
    // Room for every job in flight, so that no claim keeps a small job waiting behind it.
    let (claims, from_claimants) = mpsc::channel(settings.bounds.jobs.saturating_add(PULL_AHEAD));
    let (windows, from_readers) = mpsc::channel(AHEAD);
    let (outbound, to_outbox) = mpsc::channel(OUTBOUND);
    let (mode, mode_shown) = watch::channel(Mode::Open);
    let (outage, outage_shown) = watch::channel(0);
    let fitness = Fitness::default();
    let signature = Arc::new(Signature::new(&info, worker));
    let (lanes, ran, threads) = spawn_replicas(replicas, settings.check_every, watchdog, working, stages);

    let patience = Patience {
        outage: outage.clone(),
        end: stop.clone(),
        end_reason: ReleaseReason::Draining,
        lease_max: settings.lease_max,
        clock,
        seed: !settings.seed,
    };
    let outbox = Outbox {
        publisher: publisher.clone(),
        buckets: buckets.clone(),
        object_bytes: settings.intake.object_bytes,
        outbound: to_outbox,
        outage: outage.clone(),
        working: working.clone(),
        lease_max: settings.lease_max,
        offload,
        clock,
        pulse: watchdog.pulse("outbox"),
        seed: settings.seed,
    };
    let dispatch = Dispatch {
        limits: settings.batch,
        tickets: from_look,
        windows: from_readers,
        ran,
        lanes,
        outbound: outbound.clone(),
        mode: mode_shown,
        stop: stop.clone(),
        working: working.clone(),
        in_flight: in_flight.clone(),
        signature: Arc::clone(&signature),
        drain_limit: settings.drain_limit,
        watchdog: settings.watchdog,
        health: health.clone(),
        pulse: watchdog.pulse("dispatch"),
        clock,
    };
    let attempts_max = settings.intake.attempts_max;
    let look = Look {
        buckets: buckets.clone(),
        tickets: from_intake,
        absent,
        outbound: outbound.clone(),
        patience: patience.clone(),
        signature: Arc::clone(&signature),
        working: working.clone(),
        pulse: watchdog.pulse("look"),
    };
    let intake = Intake { settings: Arc::new(settings.intake), tokenizer, info, signature, clock };
    let feeder = Feeder { intake: intake.clone(), offload, in_flight: in_flight.clone(), windows };
    let writing = Patience { end: working.clone(), end_reason: ReleaseReason::DrainLimit, ..patience.clone() };
    let claimed = Claims {
        claims: from_claimants,
        outbound: outbound.clone(),
        desk: Desk {
            buckets,
            publisher,
            feeder: Arc::new(feeder),
            reading: patience,
            writing,
            settings: settings.claims,
        },
        pulse: watchdog.pulse("claims"),
    };
    let admit = Admit {
        intake,
        received: from_receive,
        tickets,
        claims,
        outbound: outbound.clone(),
        fitness: fitness.clone(),
        threads: settings.intake_threads,
        offload,
        pulse: watchdog.pulse("intake"),
    };
    let receive = Receive {
        consumer,
        in_flight,
        fitness,
        outage: outage_shown,
        renewing: renew.subscribe(),
        mode,
        received,
        outbound,
        stop: stop.clone(),
        attempts_max,
        health,
        pulse: watchdog.pulse("receive"),
        clock,
        rng: StdRng::seed_from_u64(settings.seed),
        suspects: false,
    };
    stages.spawn(async move {
        outbox.run().await;
        Ok(())
    });
    stages.spawn(async move { Ok(dispatch.run().await?) });
    stages.spawn(async move {
        look.run().await;
        Ok(())
    });
    stages.spawn(async move {
        claimed.run().await;
        Ok(())
    });
    stages.spawn(async move {
        admit.run().await;
        Ok(())
    });
    stages.spawn(async move { Ok(receive.run().await?) });
    threads
}

type Lanes = (Vec<Lane>, mpsc::Receiver<Ran>, Vec<std::thread::JoinHandle<()>>);

fn spawn_replicas(
    replicas: Vec<Replica>,
    check_every: Duration,
    watchdog: &Watchdog,
    working: &CancellationToken,
    stages: &mut JoinSet<Result<(), PipelineError>>,
) -> Lanes {
    let (ran, from_replicas) = mpsc::channel(replicas.len() * 2);
    let (mut lanes, mut threads) = (Vec::new(), Vec::new());
    for (lane, Replica { engine, host }) in replicas.into_iter().enumerate() {
        let (sender, to_replica) = mpsc::channel(2);
        let ran = ran.clone();
        let name = format!("engine-{lane}");
        lanes.push(Lane { sender, pulse: watchdog.pulse(name.as_str()), batches: VecDeque::new() });
        match host {
            Host::Inline(cost) => {
                let working = working.clone();
                stages.spawn(async move {
                    run_inline(lane, engine, cost, to_replica, ran, (working, check_every)).await;
                    Ok(())
                });
            }
            Host::Thread => {
                let named = std::thread::Builder::new().name(name);
                let thread = named.spawn(move || run_on_thread(lane, engine, to_replica, &ran, check_every));
                threads.push(thread.expect("the system has room for a thread a replica"));
            }
        }
    }
    (lanes, from_replicas, threads)
}
