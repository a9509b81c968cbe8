//! The middle of the line: keeps open jobs, feeds the batcher, hands batches to replicas, collects their answers.
//!
//! In: tickets from intake, ran batches from the replicas. Out: replies and releases to the outbox. Decisions are the
//! batcher's and the assembler's, both pure; this stage only moves things between them. It never settles a lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inferq_shared::reply::ReplyError;
use inferq_shared::telemetry::traces::{self, BatchRan, JobInBatch};
use inferq_shared::telemetry::{self, story};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::assemble::{Open, Run, Signature};
use crate::batch::{Batch, BatchLimits, Batcher, JobKey, Row};
use crate::clock::Clock;
use crate::engine::Tokens;
use crate::health::Health;
use crate::in_flight::{InFlight, Speed};
use crate::pulse::Pulse;
use crate::receive::Mode;
use crate::replica::Ran;
use crate::ticket::{Outbound, ReleaseReason, Ticket, TicketItem, Window};

/// Batches that a replica holds: one running, one waiting.
const BATCHES_A_LANE: usize = 2;
/// The part of the watchdog's limit after which a replica that hangs is looked at again.
const HUNG_AGAIN: u32 = 4;

/// What connects the stage to the others.
pub struct Dispatch {
    /// When a batch is full or due.
    pub limits: BatchLimits,
    /// From the look for objects.
    pub tickets: mpsc::Receiver<Vec<Ticket>>,
    /// From who reads large inputs.
    pub windows: mpsc::Receiver<Window>,
    /// From the replicas.
    pub ran: mpsc::Receiver<Ran>,
    /// To the replicas.
    pub lanes: Vec<Lane>,
    /// To the outbox.
    pub outbound: mpsc::Sender<Outbound>,
    /// Run, or give back.
    pub mode: watch::Receiver<Mode>,
    /// Stop fetching: asked for here when the device is lost.
    pub stop: CancellationToken,
    /// Stop working.
    pub working: CancellationToken,
    /// What the worker holds.
    pub in_flight: InFlight,
    /// What replies are signed with.
    pub signature: std::sync::Arc<Signature>,
    /// How long the drain may take: bounds the tokens in flight.
    pub drain_limit: Duration,
    /// A batch that has not ended for so long is stuck, for twice as long never will.
    pub watchdog: Duration,
    /// The state shown to the outside.
    pub health: Health,
    /// Beats while the stage turns.
    pub pulse: Pulse,
    /// The time.
    pub clock: Clock,
}

/// The way to one replica, and what it holds.
pub struct Lane {
    /// Its batches.
    pub sender: mpsc::Sender<Batch>,
    /// Beats when it begins a batch, at rest when it has none.
    pub pulse: Pulse,
    /// Whose items are in each batch that it has; the first runs.
    pub batches: VecDeque<BTreeSet<JobKey>>,
}

/// The device is lost; nothing more can run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device lost: {0}")]
pub struct DeviceLost(pub String);

impl Dispatch {
    /// Moves jobs until there is nothing left to move, or working has stopped.
    ///
    /// # Errors
    /// When a device is lost: the jobs of its batch are dropped, all others released.
    pub async fn run(mut self) -> Result<(), DeviceLost> {
        let mut desk = Desk::new(&mut self);
        let ended = self.serve(&mut desk).await;
        if ended.is_err() {
            // At once: what is pulled from now on would only be given back.
            self.stop.cancel();
        }
        // What still comes has nowhere to run.
        self.tickets.close();
        self.windows.close();
        let reason = if ended.is_err() { ReleaseReason::Device } else { ReleaseReason::DrainLimit };
        while let Ok(tickets) = self.tickets.try_recv() {
            desk.give_back(tickets, reason);
        }
        while let Ok(window) = self.windows.try_recv() {
            desk.outgoing.extend(Open::of_window(window).release(reason));
        }
        desk.release_all(reason);
        self.hand_over(&mut desk).await;
        desk.tally.log();
        ended
    }

    async fn serve(&mut self, desk: &mut Desk) -> Result<(), DeviceLost> {
        let (mut fed, mut read, mut moded) = (true, true, true);
        while fed || read || !desk.open.is_empty() {
            self.pulse.beat();
            desk.look_for_hung(self)?;
            desk.turn(self.clock.now());
            let wake = desk.wake_at();
            tokio::select! {
                biased;
                () = self.working.cancelled() => return Ok(()),
                ran = self.ran.recv() => desk.take_ran(ran, self)?,
                changed = self.mode.changed(), if moded => {
                    moded = changed.is_ok();
                    desk.set_mode(*self.mode.borrow());
                }
                tickets = self.tickets.recv(), if fed => match tickets {
                    Some(tickets) => desk.take_tickets(tickets, self.clock.now()),
                    None => fed = false,
                },
                window = self.windows.recv(), if read => match window {
                    Some(window) => desk.take_window(window, self.clock.now()),
                    None => read = false,
                },
                () = sleep_until(wake) => {}
                () = self.pulse.due() => {}
            }
            self.hand_over(desk).await;
        }
        Ok(())
    }

    async fn hand_over(&self, desk: &mut Desk) {
        for outbound in desk.outgoing.drain(..) {
            // The outbox outlives this stage; were it gone, dropping the lease would redeliver the job.
            let _ = self.outbound.send(outbound).await;
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// What the stage keeps.
struct Desk {
    batcher: Batcher,
    open: BTreeMap<JobKey, Open>,
    next_key: JobKey,
    lanes: Vec<Lane>,
    /// Since when a replica has been past twice the watchdog's limit.
    hung_since: Option<Instant>,
    mode: Mode,
    outgoing: Vec<Outbound>,
    signature: std::sync::Arc<Signature>,
    tokens_max_a_batch: usize,
    rate: Rate,
    tally: Tally,
}

impl Desk {
    fn new(stage: &mut Dispatch) -> Self {
        Self {
            batcher: Batcher::new(stage.limits),
            open: BTreeMap::new(),
            next_key: 0,
            lanes: std::mem::take(&mut stage.lanes),
            hung_since: None,
            mode: *stage.mode.borrow(),
            outgoing: Vec::new(),
            signature: std::sync::Arc::clone(&stage.signature),
            tokens_max_a_batch: stage.limits.tokens_max,
            rate: Rate::default(),
            tally: Tally::default(),
        }
    }

    fn take_tickets(&mut self, tickets: Vec<Ticket>, now: Instant) {
        match self.mode {
            Mode::Open => tickets.into_iter().for_each(|ticket| self.open(ticket, now)),
            Mode::Clearing => self.give_back(tickets, ReleaseReason::Draining),
        }
    }

    fn give_back(&mut self, tickets: Vec<Ticket>, reason: ReleaseReason) {
        if !crate::mutant::active("drop_on_stop") {
            self.outgoing.extend(tickets.into_iter().map(|ticket| ticket.case.release(reason)));
        }
    }

    fn open(&mut self, ticket: Ticket, now: Instant) {
        for (item, index) in ticket.items.iter().zip(0u32..) {
            item.tokens.as_ref().err().inspect(|error| story::item_failed(&ticket.case.id, index, error));
        }
        let (items, deadline) = (tokens(&ticket.items), ticket.deadline);
        self.enter(Open::new(ticket), items, deadline, now);
    }

    /// Takes some items of a large input; between stop and end they go back as jobs do.
    fn take_window(&mut self, window: Window, now: Instant) {
        if self.mode == Mode::Clearing {
            self.outgoing.extend(Open::of_window(window).release(ReleaseReason::Draining));
            return;
        }
        let (items, deadline) = (tokens(&window.items), window.deadline);
        self.enter(Open::of_window(window), items, deadline, now);
    }

    fn enter(&mut self, open: Open, items: Vec<Option<Arc<Tokens>>>, deadline: Option<Instant>, now: Instant) {
        if open.is_complete() {
            self.outgoing.extend(open.finish(&self.signature));
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        let items = items.into_iter().zip(0u32..).filter_map(|(tokens, index)| Some((index, tokens?)));
        self.batcher.push(key, items, deadline, now);
        self.open.insert(key, open);
    }

    fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        if mode == Mode::Clearing {
            for key in self.batcher.take_unstarted() {
                let open = self.open.remove(&key).filter(|_| !crate::mutant::active("drop_on_stop"));
                self.outgoing.extend(open.and_then(|open| open.release(ReleaseReason::Draining)));
            }
        }
    }

    /// Answers what expired, then fills the lanes.
    fn turn(&mut self, now: Instant) {
        for member in self.batcher.expire(now) {
            let error = ReplyError::new("expired", "the job's deadline passed before this item ran");
            self.answer(member.job, member.index, Err(error), Run::default());
        }
        while let Some(lane) = self.free_lane() {
            let batch = match self.mode {
                Mode::Open => self.batcher.next(now),
                Mode::Clearing => self.batcher.flush(),
            };
            let Some(batch) = batch else { return };
            telemetry::batch_closed(
                batch.rows().len(),
                batch.real_tokens(),
                batch.padded_tokens(),
                self.tokens_max_a_batch,
            );
            if story::is_told() {
                self.tell(&batch);
            }
            self.lanes[lane].send(batch);
        }
    }

    /// Says of each job in the batch how many of its items are in it.
    fn tell(&self, batch: &Batch) {
        let mut items = BTreeMap::<JobKey, usize>::new();
        for member in batch.rows().iter().flat_map(|row| &row.members) {
            *items.entry(member.job).or_default() += 1;
        }
        for (job, items) in items {
            if let Some(open) = self.open.get(&job) {
                story::batched(open.id(), items, batch.rows().len(), batch.padded_tokens());
            }
        }
    }

    /// Says to the traces of its jobs how a batch ran.
    fn trace(&self, ran: &Ran) {
        let mut jobs = BTreeMap::<JobKey, JobInBatch<'_>>::new();
        for row in ran.batch.rows() {
            for member in &row.members {
                let Some(job) = self.open.get(&member.job).and_then(Open::trace) else { continue };
                let one = JobInBatch { job, items: 0, waited_since: row.waited_since };
                let one = jobs.entry(member.job).or_insert(one);
                one.items += 1;
                one.waited_since = one.waited_since.min(row.waited_since);
            }
        }
        let Ran { lane, batch, outcome, started, took } = ran;
        let ran = BatchRan {
            jobs: jobs.into_values().collect(),
            items: batch.rows().len(),
            tokens: batch.real_tokens(),
            padded_tokens: batch.padded_tokens(),
            replica: *lane,
            started: *started,
            took: *took,
            lost: outcome.is_err(),
        };
        ran.tell();
    }

    fn free_lane(&self) -> Option<usize> {
        let (lane, least) = self.lanes.iter().enumerate().min_by_key(|(_, lane)| lane.batches.len())?;
        (least.batches.len() < BATCHES_A_LANE).then_some(lane)
    }

    fn take_ran(&mut self, ran: Option<Ran>, stage: &Dispatch) -> Result<(), DeviceLost> {
        let Some(ran) = ran else { return Err(DeviceLost("no replica is left".to_owned())) };
        let jobs = self.lanes[ran.lane].has_run();
        self.tally.add(&ran);
        if traces::is_on() {
            self.trace(&ran);
        }
        match ran.outcome {
            Ok(mut answers) => {
                let lengths = || ran.batch.rows().iter().map(Row::length).collect::<Vec<_>>();
                tracing::trace!(lengths = ?lengths(), took_ms = ran.took.as_millis() as u64, "batch ran");
                if crate::mutant::active("answers_swapped") {
                    answers.reverse();
                }
                for (row, answer) in ran.batch.rows().iter().zip(answers) {
                    let run = Run { waited: ran.started.saturating_duration_since(row.waited_since), engine: ran.took };
                    for member in &row.members {
                        self.answer(member.job, member.index, answer.clone(), run);
                    }
                }
                telemetry::batch_ran(ran.batch.real_tokens(), ran.took);
                self.rate.add(&ran.batch, ran.took);
                let speed = self.rate.speed(self.lanes.len());
                stage.in_flight.set_speed(speed);
                stage.in_flight.set_tokens_max(tokens_max(speed, stage.drain_limit));
                Ok(())
            }
            Err(reason) => Err(self.lose_device(jobs, reason, &stage.health)),
        }
    }

    /// A replica that has not answered for twice the watchdog's limit never will: its device hangs. Seen twice, some time
    /// apart: a process that was stopped and goes on finds every pulse old.
    fn look_for_hung(&mut self, stage: &Dispatch) -> Result<(), DeviceLost> {
        let hung = self.lanes.iter().position(|lane| lane.pulse.age() >= 2 * stage.watchdog);
        let Some(lane) = hung else {
            self.hung_since = None;
            return Ok(());
        };
        let now = stage.clock.now();
        let since = *self.hung_since.get_or_insert(now);
        if now.saturating_duration_since(since) < stage.watchdog / HUNG_AGAIN {
            return Ok(());
        }
        let reason = format!(
            "engine-{lane} has not answered for {} s: the device hangs",
            self.lanes[lane].pulse.age().as_secs()
        );
        let jobs = self.lanes[lane].batches.pop_front().unwrap_or_default();
        Err(self.lose_device(jobs, reason, &stage.health))
    }

    fn lose_device(&mut self, jobs: BTreeSet<JobKey>, reason: String, health: &Health) -> DeviceLost {
        self.lose(&jobs);
        health.failed(&reason);
        DeviceLost(reason)
    }

    /// Drops the jobs of the batch that the device was lost on: one of them may be the cause.
    fn lose(&mut self, jobs: &BTreeSet<JobKey>) {
        if crate::mutant::active("lost_device_spends_nothing") {
            return;
        }
        if crate::mutant::active("lost_device_spends_all") {
            self.open.clear();
        }
        for job in jobs {
            if let Some(open) = self.open.remove(job) {
                story::dropped(open.id());
                open.lose();
            }
        }
    }

    fn release_all(&mut self, reason: ReleaseReason) {
        self.outgoing.extend(std::mem::take(&mut self.open).into_values().filter_map(|open| open.release(reason)));
    }

    fn answer(&mut self, job: JobKey, index: u32, answer: Result<crate::engine::Answer, ReplyError>, run: Run) {
        // A job that left the line while its batch ran is not there any more.
        let Some(open) = self.open.get_mut(&job) else { return };
        if let Err(error) = &answer {
            story::item_failed(open.id(), index, error);
        }
        open.answer(index, answer, run);
        if open.is_complete() {
            let open = self.open.remove(&job).expect("it was just found");
            self.outgoing.extend(open.finish(&self.signature));
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let batch = self.free_lane().and_then(|_| self.batcher.wake_at());
        batch.into_iter().chain(self.batcher.expires_at()).min()
    }
}

/// What an engine is to read of each item; nothing of those that have an error.
fn tokens(items: &[TicketItem]) -> Vec<Option<Arc<Tokens>>> {
    items.iter().map(|item| item.tokens.as_ref().ok().cloned()).collect()
}

impl Lane {
    fn send(&mut self, batch: Batch) {
        if self.batches.is_empty() {
            self.pulse.beat();
        }
        self.batches.push_back(batch.rows().iter().flat_map(|row| &row.members).map(|member| member.job).collect());
        // A lane's channel holds as many batches as a lane may have, and its replica outlives the stage or has ended
        // with an answer that ends the stage too.
        let _ = self.sender.try_send(batch);
    }

    /// Whose items were in the batch.
    fn has_run(&mut self) -> BTreeSet<JobKey> {
        let jobs = self.batches.pop_front().unwrap_or_default();
        if self.batches.is_empty() {
            self.pulse.rest()
        } else {
            self.pulse.beat()
        }
        jobs
    }
}

/// What the drain limit can finish, at half of the measured speed to be safe.
fn tokens_max(speed: Speed, drain_limit: Duration) -> usize {
    (speed.tokens * drain_limit.as_secs_f64() / 2.0) as usize
}

/// What one replica computes and how long it takes, over about the last ten batches.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    tokens: f64,
    items: f64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, batch: &Batch, took: Duration) {
        let items: usize = batch.rows().iter().map(|row| row.members.len()).sum();
        self.tokens = self.tokens * 0.9 + batch.real_tokens() as f64;
        self.items = self.items * 0.9 + items as f64;
        self.seconds = self.seconds * 0.9 + took.as_secs_f64();
    }

    /// Of so many replicas.
    fn speed(&self, replicas: usize) -> Speed {
        let a_second = |number: f64| number * replicas as f64 / self.seconds.max(1e-9);
        Speed { tokens: a_second(self.tokens), items: a_second(self.items) }
    }
}

/// What was run in all, for the last line of the log.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    batches: usize,
    rows: usize,
    real_tokens: usize,
    padded_tokens: usize,
    /// From the first batch's start to the last one's end.
    span: Option<(Instant, Instant)>,
}

impl Tally {
    fn add(&mut self, ran: &Ran) {
        self.batches += 1;
        self.rows += ran.batch.rows().len();
        self.real_tokens += ran.batch.real_tokens();
        self.padded_tokens += ran.batch.padded_tokens();
        let first = self.span.map_or(ran.started, |(first, _)| first);
        self.span = Some((first, ran.started + ran.took));
    }

    fn log(&self) {
        let Self { batches, rows, real_tokens, padded_tokens, span } = *self;
        let padding_waste = padded_tokens as f64 / real_tokens.max(1) as f64 - 1.0;
        let busy_ms = span.map_or(0, |(first, last)| last.saturating_duration_since(first).as_millis() as u64);
        tracing::info!(batches, rows, real_tokens, padded_tokens, padding_waste, busy_ms, "line ended");
    }
}
