//! The thread that owns a process's connection to the queue's file.
//!
//! In: commands and settlements over two channels, the bell, the clock. Out: their answers, after the commit that makes
//! them durable. Whatever waits when a transaction begins shares it and its sync, so throughput grows with load. It
//! answers nothing before the commit, and never lets one refused command spoil another.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::super::{
    BrokerError, Browsed, ConsumeOptions, Delivery, Lease, Message, Page, Pull, QueueOptions, QueueStatus, Settlement,
    Sighting, Verdict,
};
use super::bell::Bell;
use super::clock;
use super::store::{Claimed, Fault, Standing, Store};
use super::turn::Turns;

/// Commands in one transaction.
const COMMANDS_MAX: usize = 256;
/// Settlements in one transaction.
const SETTLEMENTS_MAX: usize = 4096;
/// Bytes of bodies after which no further command joins a transaction.
const BYTES_MAX: usize = 8 << 20;
/// Changes after which the log's length is looked at.
const CHANGES_PER_LOOK: usize = 512;
/// A renewal that failed is tried again after so long.
const RENEW_AGAIN_MS: i64 = 100;
/// How long nothing is due when nothing is.
const FOREVER: Duration = Duration::from_secs(3600);

/// What handles ask of the thread.
pub(super) enum Command {
    /// A change, answered once it is durable.
    Write(Write),
    /// A look that changes nothing.
    Look(Look),
    /// A consumer waits for deliveries.
    Receive(Waiting),
    /// No more of anything.
    Close,
}

/// A look at what is there, and who waits to be told.
pub(super) enum Look {
    Status { queue: String, done: Told<QueueStatus> },
    Browse { queue: String, page: Page, done: Told<Vec<Browsed>> },
    Queues { prefix: String, done: Told<Vec<String>> },
    Workers { queue: String, done: Told<Vec<Sighting>> },
}

type Told<T> = oneshot::Sender<Result<T, BrokerError>>;

/// A change and who waits for it.
pub(super) struct Write {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<(), BrokerError>>,
}

/// A change that a handle asks for.
pub(super) enum Change {
    Declare(String, QueueOptions),
    Remove(String),
    Subscribe(String),
    Publish(String, Vec<Message>),
    Report { queue: String, worker: String, about: Option<String> },
}

/// A consumer that waits for deliveries.
pub(super) struct Waiting {
    pub(super) queue: Arc<str>,
    pub(super) pull: Pull,
    pub(super) options: Arc<ConsumeOptions>,
    pub(super) settler: mpsc::UnboundedSender<Settlement>,
    pub(super) reply: oneshot::Sender<Result<Vec<Delivery>, BrokerError>>,
}

/// A lease that somebody in this process holds.
struct Held {
    standing: Standing,
    options: Arc<ConsumeOptions>,
    granted_at: i64,
    renew_at: i64,
}

/// What waits for the next transaction.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    bytes: usize,
    settlements: Vec<Settlement>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.settlements.is_empty()
    }

    fn has_room(&self) -> bool {
        self.writes.len() < COMMANDS_MAX && self.bytes < BYTES_MAX
    }

    fn push(&mut self, write: Write) {
        if let Change::Publish(_, messages) = &write.change {
            self.bytes += messages.iter().map(|message| message.body.len()).sum::<usize>();
        }
        self.writes.push(write);
    }

    /// Tells everybody that nothing of it was done.
    fn fail(self, error: &BrokerError) {
        let settled = self.settlements.into_iter().filter_map(|settlement| settlement.done);
        for done in self.writes.into_iter().map(|write| write.done).chain(settled) {
            // Who no longer listens has dropped the call; the same below.
            let _ = done.send(Err(error.clone()));
        }
    }
}

/// What a transaction did, told once it is durable.
struct Done {
    now: i64,
    writes: Vec<Result<(), BrokerError>>,
    settlements: Vec<Result<(), BrokerError>>,
    renewals: Vec<(u64, Renewal)>,
    /// One for each consumer that waits, in their order.
    claims: Vec<Result<Vec<Claimed>, BrokerError>>,
}

/// What became of a lease that was due for renewal.
enum Renewal {
    Until(i64),
    Skipped,
    Over,
    Lost,
}

/// The thread's state. Fields drop in order: who sees the channels closed finds the file closed.
pub(super) struct Owner {
    store: Store,
    bell: Bell,
    turns: Turns,
    batch: Batch,
    waiting: VecDeque<Waiting>,
    held: BTreeMap<u64, Held>,
    last_token: u64,
    /// When the first lease is due for renewal.
    renew_at: i64,
    /// When the first message becomes visible that somebody waits for.
    visible_at: i64,
    changes: usize,
    commands_open: bool,
    closing: bool,
    settlements: mpsc::UnboundedReceiver<Settlement>,
    commands: mpsc::Receiver<Command>,
}

impl Owner {
    /// Opens the queue in `path` for the handles at the other end of the channels.
    ///
    /// # Errors
    /// When it can't be opened; see [`super::schema::open`].
    pub(super) fn open(
        path: &Path,
        commands: mpsc::Receiver<Command>,
        settlements: mpsc::UnboundedReceiver<Settlement>,
    ) -> Result<Self, BrokerError> {
        let store = Store::open(path)?;
        let bell = Bell::beside(path).map_err(|error| {
            let what = format!("the bell beside the queue {} can't be opened: {error}", path.display());
            let is_full = error.kind() == std::io::ErrorKind::StorageFull;
            if is_full { BrokerError::Unavailable(what) } else { BrokerError::Refused(what) }
        })?;
        let mut owner = Self {
            store,
            turns: Turns::by(bell.file()),
            bell,
            batch: Batch::default(),
            waiting: VecDeque::new(),
            held: BTreeMap::new(),
            // Unlike that of any other process, and positive as SQLite's integers have it.
            last_token: u64::from(rand::random::<u32>() >> 1) << 32,
            renew_at: i64::MAX,
            visible_at: i64::MAX,
            changes: 0,
            commands_open: true,
            closing: false,
            settlements,
            commands,
        };
        owner.transact(|owner, _| owner.store.remove_expired())?;
        Ok(owner)
    }

    /// Serves until `Close`, or until no handle and no lease is left.
    pub(super) async fn run(mut self) {
        while !self.closing {
            self.gather().await;
            self.serve();
        }
        self.end_leases();
    }

    /// Waits until there is something to do, and takes what fits into one transaction.
    async fn gather(&mut self) {
        let patience = self.patience();
        tokio::select! {
            command = self.commands.recv(), if self.commands_open => match command {
                Some(command) => self.accept(command),
                None => self.commands_open = false,
            },
            settlement = self.settlements.recv() => match settlement {
                Some(settlement) => self.batch.settlements.push(settlement),
                None => self.closing = true,
            },
            () = self.bell.heard(), if !self.waiting.is_empty() => {}
            () = sleep(patience) => {}
        }
        while self.batch.has_room()
            && let Ok(command) = self.commands.try_recv()
        {
            self.accept(command);
        }
        while self.batch.settlements.len() < SETTLEMENTS_MAX
            && let Ok(settlement) = self.settlements.try_recv()
        {
            self.batch.settlements.push(settlement);
        }
    }

    /// How long nothing is due.
    fn patience(&self) -> Duration {
        let due = u64::try_from(self.renew_at.min(self.visible_at).saturating_sub(clock::now_ms())).unwrap_or(0);
        let look = if self.waiting.is_empty() { FOREVER } else { self.bell.look_every() };
        Duration::from_millis(due).min(look)
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Write(write) => self.batch.push(write),
            Command::Receive(waiting) => self.waiting.push_back(waiting),
            Command::Close => self.closing = true,
            Command::Look(look) => self.answer(look, clock::now_ms()),
        }
    }

    fn answer(&self, look: Look, now: i64) {
        match look {
            Look::Status { queue, done } => self.tell_seen(self.store.status(&queue, now), done),
            Look::Browse { queue, page, done } => self.tell_seen(self.store.browse(&queue, page, now), done),
            Look::Queues { prefix, done } => self.tell_seen(self.store.queues(&prefix), done),
            Look::Workers { queue, done } => self.tell_seen(self.store.workers(&queue, now), done),
        }
    }

    fn tell_seen<T>(&self, seen: Result<T, Fault>, done: Told<T>) {
        let _ = done.send(seen.map_err(|fault| self.explain(fault)));
    }

    /// Runs transactions until nothing more can be done for anybody.
    fn serve(&mut self) {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        while self.look() || !self.batch.is_empty() || self.renew_at <= clock::now_ms() {
            self.run_batch();
        }
    }

    /// Whether there is something for a consumer that waits; if not, notes when there will be. Only reads.
    fn look(&mut self) -> bool {
        self.visible_at = i64::MAX;
        let store = &self.store;
        let mut first = i64::MAX;
        self.waiting.iter().for_each(|waiting| match store.first_visible(&waiting.queue) {
            Ok(visible_at) => first = first.min(visible_at.unwrap_or(i64::MAX)),
            // The transaction that follows meets it again, and tells.
            Err(_) => first = 0,
        });
        self.visible_at = first;
        let visible = first <= clock::now_ms();
        if !self.waiting.is_empty() {
            self.bell.looked(!visible);
        }
        visible
    }

    fn run_batch(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let waiting = std::mem::take(&mut self.waiting);
        // A settled lease is over for its holder whatever happens: if it can't be settled, it ends by itself.
        let settled: Vec<Option<Held>> =
            batch.settlements.iter().map(|settlement| self.held.remove(&settlement.token)).collect();
        match self.transact(|owner, now| owner.fill(now, &batch, &settled, &waiting)) {
            Ok(done) => self.tell(batch, waiting, done),
            Err(error) => {
                batch.fail(&error);
                waiting.into_iter().for_each(|waiting| drop(waiting.reply.send(Err(error.clone()))));
                self.retry_renewals();
            }
        }
        self.checkpoint();
    }

    /// Runs `step` in a transaction of its own, at the time on the boot clock at which it began. On a full disk it runs
    /// again once the log has been emptied.
    fn transact<T>(&mut self, mut step: impl FnMut(&mut Self, i64) -> Result<T, Fault>) -> Result<T, BrokerError> {
        let mut result = self.attempt(&mut step);
        if result.as_ref().is_err_and(Fault::is_full) {
            self.store.reuse_log();
            result = self.attempt(&mut step);
        }
        result.map_err(|fault| self.explain(fault))
    }

    fn attempt<T>(&mut self, step: &mut impl FnMut(&mut Self, i64) -> Result<T, Fault>) -> Result<T, Fault> {
        let _turn = self.turns.take();
        let result = self.store.begin().map_err(Fault::from).and_then(|()| {
            // Read inside, so that the order of times is the order of commits, whichever process they come from.
            let done = step(self, clock::now_ms())?;
            self.store.commit()?;
            Ok(done)
        });
        result.inspect_err(|_| self.store.roll_back())
    }

    fn explain(&self, fault: Fault) -> BrokerError {
        match fault {
            Fault::Alone(error) => error,
            Fault::Together(error) => self.store.explain(&error),
        }
    }

    fn fill(
        &mut self,
        now: i64,
        batch: &Batch,
        settled: &[Option<Held>],
        waiting: &VecDeque<Waiting>,
    ) -> Result<Done, Fault> {
        let writes =
            batch.writes.iter().map(|write| alone(self.apply(&write.change, now))).collect::<Result<_, _>>()?;
        let settlements = batch
            .settlements
            .iter()
            .zip(settled)
            .map(|(settlement, held)| match held {
                Some(held) => alone(self.store.settle(settlement.token, &held.standing, &settlement.verdict, now)),
                None => Ok(Err(BrokerError::LeaseLost)),
            })
            .collect::<Result<_, _>>()?;
        let renewals = if self.renew_at <= now { self.renew(now)? } else { Vec::new() };
        let claims = waiting.iter().map(|waiting| alone(self.claim(waiting, now))).collect::<Result<_, _>>()?;
        Ok(Done { now, writes, settlements, renewals, claims })
    }

    fn apply(&mut self, change: &Change, now: i64) -> Result<(), Fault> {
        match change {
            Change::Declare(queue, options) => self.store.declare(queue, *options),
            Change::Remove(queue) => self.store.remove(queue),
            Change::Subscribe(queue) => self.store.subscribe(queue),
            Change::Publish(queue, messages) => self.store.publish(queue, messages, now),
            Change::Report { queue, worker, about } => self.store.report(queue, worker, about.as_deref(), now),
        }
    }

    fn claim(&mut self, waiting: &Waiting, now: i64) -> Result<Vec<Claimed>, Fault> {
        self.store.claim(&waiting.queue, waiting.pull, (now, waiting.options.lease), &mut self.last_token)
    }

    fn renew(&mut self, now: i64) -> Result<Vec<(u64, Renewal)>, Fault> {
        let store = &mut self.store;
        let due = self.held.iter().filter(|(_, held)| held.renew_at <= now);
        let renewed = due.map(|(&token, held)| {
            if now.saturating_sub(held.granted_at) >= clock::millis(held.options.lease_max) {
                return Ok((token, Renewal::Over));
            }
            if !*held.options.renew.borrow() {
                return Ok((token, Renewal::Skipped));
            }
            let until = clock::later(now, held.options.lease);
            let kept = store.renew(token, &held.standing, until)?;
            Ok((token, if kept { Renewal::Until(until) } else { Renewal::Lost }))
        });
        renewed.collect()
    }

    /// Answers everybody, after the commit.
    fn tell(&mut self, batch: Batch, waiting: VecDeque<Waiting>, done: Done) {
        if rings(&batch, &done) {
            self.bell.ring();
        }
        self.changes += batch.writes.len() + batch.settlements.len();
        for (write, result) in batch.writes.into_iter().zip(done.writes) {
            let _ = write.done.send(result);
        }
        for (settlement, result) in batch.settlements.into_iter().zip(done.settlements) {
            let _ = settlement.done.map(|done| done.send(result));
        }
        self.note_renewals(done.now, done.renewals);
        for (waiting, claimed) in waiting.into_iter().zip(done.claims) {
            match claimed {
                Ok(claimed) if claimed.is_empty() => self.waiting.push_back(waiting),
                Ok(claimed) => self.deliver(waiting, claimed, done.now),
                Err(error) => drop(waiting.reply.send(Err(error))),
            }
        }
    }

    fn deliver(&mut self, waiting: Waiting, claimed: Vec<Claimed>, now: i64) {
        let Waiting { options, settler, reply, .. } = waiting;
        self.changes += claimed.len();
        let renew_at = now + renewal_period(&options);
        self.renew_at = self.renew_at.min(renew_at);
        let deliveries = claimed.into_iter().map(|claimed| {
            let Claimed { token, standing, message } = claimed;
            self.held.insert(token, Held { standing, options: options.clone(), granted_at: now, renew_at });
            Delivery { message, attempt: standing.attempt, lease: Lease::new(token, settler.clone()) }
        });
        if let Err(Ok(unwanted)) = reply.send(Ok(deliveries.collect())) {
            // The consumer has gone without seeing them, so no attempt is spent.
            self.batch.settlements.extend(unwanted.into_iter().map(|delivery| give_back(delivery.lease)));
        }
    }

    fn note_renewals(&mut self, now: i64, renewals: Vec<(u64, Renewal)>) {
        if renewals.is_empty() && self.renew_at > now {
            return;
        }
        for (token, renewal) in renewals {
            let Some(held) = self.held.get_mut(&token) else { continue };
            held.renew_at = now + renewal_period(&held.options);
            match renewal {
                Renewal::Until(visible_at) => held.standing.visible_at = visible_at,
                Renewal::Skipped => {}
                Renewal::Over => held.renew_at = i64::MAX,
                Renewal::Lost => drop(self.held.remove(&token)),
            }
        }
        self.renew_at = self.held.values().map(|held| held.renew_at).min().unwrap_or(i64::MAX);
    }

    /// After a transaction that failed: tries again soon, long before the leases end.
    fn retry_renewals(&mut self) {
        let now = clock::now_ms();
        if self.renew_at <= now {
            self.renew_at = now + RENEW_AGAIN_MS;
            self.held.values_mut().for_each(|held| held.renew_at = held.renew_at.max(now + RENEW_AGAIN_MS));
        }
    }

    fn checkpoint(&mut self) {
        if self.changes < CHANGES_PER_LOOK {
            return;
        }
        self.changes = 0;
        if let Err(error) = self.store.checkpoint() {
            // Nothing is lost: the log grows until one succeeds.
            tracing::warn!(error = %self.store.explain(&error), "the queue's log was not moved into its database");
        }
    }

    /// Ends the leases that are still held as if their holders had died.
    fn end_leases(&mut self) {
        self.waiting.clear();
        self.serve();
        let held = std::mem::take(&mut self.held);
        let ended = self.transact(|owner, now| {
            for (token, held) in &held {
                alone(owner.store.settle(*token, &held.standing, &Verdict::Dropped, now))?.ok();
            }
            Ok(())
        });
        match ended {
            Ok(()) if held.is_empty() => {}
            Ok(()) => self.bell.ring(),
            Err(error) => tracing::warn!(error = %error, leases = held.len(), "leases were left to end by themselves"),
        }
    }
}

/// Keeps a refusal beside its transaction's other results; a failure ends them all.
fn alone<T>(result: Result<T, Fault>) -> Result<Result<T, BrokerError>, Fault> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Fault::Alone(error)) => Ok(Err(error)),
        Err(fault) => Err(fault),
    }
}

/// Whether a transaction made something visible, or took a queue from those who wait on it.
fn rings(batch: &Batch, done: &Done) -> bool {
    let news = |change: &Change| match change {
        Change::Publish(_, messages) => !messages.is_empty(),
        Change::Remove(_) => true,
        Change::Declare(..) | Change::Subscribe(_) | Change::Report { .. } => false,
    };
    let written = batch.writes.iter().zip(&done.writes).any(|(write, result)| result.is_ok() && news(&write.change));
    let settled = batch.settlements.iter().zip(&done.settlements);
    written || settled.into_iter().any(|(settlement, result)| result.is_ok() && settlement.verdict != Verdict::Ack)
}

fn renewal_period(options: &ConsumeOptions) -> i64 {
    (clock::millis(options.lease) / 3).max(1)
}

fn give_back(mut lease: Lease) -> Settlement {
    lease.settler = None;
    Settlement { token: lease.token, verdict: Verdict::Release(Duration::ZERO), done: None }
}
