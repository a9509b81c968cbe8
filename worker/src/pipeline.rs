//! The whole line, and the only file that makes its channels and spawns its tasks and threads.
//!
//! ```text
//!  receive ──▶ intake ──▶ dispatch ──▶ outbox
//!                          │    ▲
//!                          ▼    │
//!                         replicas
//! ```
//!
//! In: [`Parts`], ready to work: the model loaded, warm and checked, the consumer connected. Out: `Ok` when stop was
//! asked and everything is settled. Stop has two moments. *Stop fetching* is the caller's token: nothing new is pulled,
//! what is in no batch yet is released. *Stop working* comes at the drain limit: what is unfinished is released too.
//! Later stages end when their input closes. Dropping the future is a crash: every lease is redelivered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, StreamExt};
use inferq_shared::broker::{BrokerError, Consumer, Publisher};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::assemble::Signature;
use crate::batch::{Batch, BatchLimits};
use crate::clock::Clock;
use crate::dispatch::{DeviceLost, Dispatch};
use crate::engine::ModelInfo;
use crate::fitness::Fitness;
use crate::health::Health;
use crate::in_flight::{Bounds, InFlight};
use crate::intake::{Admission, Intake, IntakeSettings};
use crate::offload::Offload;
use crate::outbox::Outbox;
use crate::receive::{Mode, Receive};
use crate::replica::{Host, Ran, Replica, run_inline, run_on_thread};
use crate::ticket::{Outbound, Received, Ticket};
use crate::tokenize::Tokenizer;

/// The numbers that the line runs by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What jobs are checked against.
    pub intake: IntakeSettings,
    /// When a batch is full or due.
    pub batch: BatchLimits,
    /// How much may be in flight.
    pub bounds: Bounds,
    /// From stop fetching to stop working.
    pub drain_limit: Duration,
    /// How long one batch may take before the engine counts as stuck.
    pub watchdog: Duration,
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
    /// The engines, loaded, warm and checked.
    pub replicas: Vec<Replica>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model.
    pub info: Arc<ModelInfo>,
    /// This worker's name in replies.
    pub worker: String,
    /// Whether the consumer renews its leases; the line says no while an engine is stuck.
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
/// How often samples are folded into their histograms.
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
    let health = parts.health.clone();
    let mut stages: JoinSet<Result<(), PipelineError>> = JoinSet::new();
    let threads = spawn_stages(parts, &stop, &working, &mut stages);
    let ended = supervise(&mut stages, &stop, &working, drain_limit, &health).await;
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
    health: &Health,
) -> Result<(), PipelineError> {
    let drain = async {
        stop.cancelled().await;
        health.draining();
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
                health.upkeep();
                continue;
            }
        };
        match joined {
            None => return ended,
            Some(Ok(stage)) => {
                if let (Ok(()), Err(error)) = (&ended, stage) {
                    ended = Err(error);
                    stop.cancel();
                }
            }
            // A panic is a bug and ends the process; the broker redelivers.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn spawn_stages<C: Consumer, P: Publisher>(
    parts: Parts<C, P>,
    stop: &CancellationToken,
    working: &CancellationToken,
    stages: &mut JoinSet<Result<(), PipelineError>>,
) -> Vec<std::thread::JoinHandle<()>> {
    let Parts {
        settings,
        consumer,
        publisher,
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
    let (outbound, to_outbox) = mpsc::channel(OUTBOUND);
    let (mode, mode_shown) = watch::channel(Mode::Open);
    let (outage, outage_shown) = watch::channel(0);
    let fitness = Fitness::default();
    let signature = Arc::new(Signature::new(&info, worker));
    let (lanes, ran, threads) = spawn_replicas(replicas, stages);

    let outbox = Outbox {
        publisher,
        outbound: to_outbox,
        outage,
        working: working.clone(),
        lease_max: settings.lease_max,
        offload,
        clock,
        seed: settings.seed,
    };
    let dispatch = Dispatch {
        limits: settings.batch,
        tickets: from_intake,
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
        renew,
        health: health.clone(),
        clock,
    };
    let attempts_max = settings.intake.attempts_max;
    let intake = Intake { settings: Arc::new(settings.intake), tokenizer, info, signature, clock };
    let admit = Admit {
        intake,
        received: from_receive,
        tickets,
        outbound: outbound.clone(),
        fitness: fitness.clone(),
        threads: settings.intake_threads,
        offload,
    };
    let receive = Receive {
        consumer,
        in_flight,
        fitness,
        outage: outage_shown,
        mode,
        received,
        outbound,
        stop: stop.clone(),
        attempts_max,
        health,
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
        admit.run().await;
        Ok(())
    });
    stages.spawn(async move { Ok(receive.run().await?) });
    threads
}

type Lanes = (Vec<mpsc::Sender<Batch>>, mpsc::Receiver<Ran>, Vec<std::thread::JoinHandle<()>>);

fn spawn_replicas(replicas: Vec<Replica>, stages: &mut JoinSet<Result<(), PipelineError>>) -> Lanes {
    let (ran, from_replicas) = mpsc::channel(replicas.len() * 2);
    let (mut lanes, mut threads) = (Vec::new(), Vec::new());
    for (lane, Replica { engine, host }) in replicas.into_iter().enumerate() {
        let (batches, to_replica) = mpsc::channel(2);
        let ran = ran.clone();
        lanes.push(batches);
        match host {
            Host::Inline(cost) => {
                stages.spawn(async move {
                    run_inline(lane, engine, cost, to_replica, ran).await;
                    Ok(())
                });
            }
            Host::Thread => {
                let named = std::thread::Builder::new().name(format!("engine-{lane}"));
                let thread = named.spawn(move || run_on_thread(lane, engine, to_replica, &ran));
                threads.push(thread.expect("the system has room for a thread a replica"));
            }
        }
    }
    (lanes, from_replicas, threads)
}

/// The intake stage: admits pulls on CPU threads, in order, a few at once.
struct Admit {
    intake: Intake,
    received: mpsc::Receiver<Vec<Received>>,
    tickets: mpsc::Sender<Vec<Ticket>>,
    outbound: mpsc::Sender<Outbound>,
    fitness: Fitness,
    threads: usize,
    offload: Offload,
}

/// The fewest jobs worth a thread's attention.
const CHUNK_JOBS_MIN: usize = 16;

impl Admit {
    async fn run(mut self) {
        let mut admitting = FuturesOrdered::new();
        let mut open = true;
        while open || !admitting.is_empty() {
            tokio::select! {
                biased;
                Some(admissions) = admitting.next(), if !admitting.is_empty() => self.hand_over(admissions).await,
                received = self.received.recv(), if open && admitting.len() < self.threads => match received {
                    Some(received) => {
                        for chunk in chunks(received, self.threads) {
                            let intake = self.intake.clone();
                            let admit = move || chunk.into_iter().map(|job| intake.admit(job)).collect::<Vec<_>>();
                            admitting.push_back(self.offload.run(admit));
                        }
                    }
                    None => open = false,
                },
            }
        }
    }

    async fn hand_over(&mut self, admissions: Vec<Admission>) {
        let mut tickets = Vec::with_capacity(admissions.len());
        for admission in admissions {
            match admission {
                Admission::Run(ticket) => {
                    self.fitness.fit();
                    tickets.push(ticket);
                }
                Admission::Leave(outbound) => self.send(outbound).await,
                Admission::Misfit(outbound) => {
                    self.fitness.misfit();
                    self.send(outbound).await;
                }
            }
        }
        if tickets.is_empty() {
            return;
        }
        // Dispatch is gone only when the device is lost: then the jobs go back unspent.
        if let Err(unsent) = self.tickets.send(tickets).await {
            for ticket in unsent.0 {
                self.send(ticket.case.release(Duration::ZERO)).await;
            }
        }
    }

    async fn send(&self, outbound: Outbound) {
        // The outbox outlives this stage; were it gone, dropping the lease would redeliver the job.
        let _ = self.outbound.send(outbound).await;
    }
}

fn chunks(mut received: Vec<Received>, threads: usize) -> Vec<Vec<Received>> {
    let size = received.len().div_ceil(threads).max(CHUNK_JOBS_MIN);
    let mut chunks = Vec::new();
    while received.len() > size {
        let rest = received.split_off(size);
        chunks.push(std::mem::replace(&mut received, rest));
    }
    chunks.push(received);
    chunks
}
