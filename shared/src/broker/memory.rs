//! A real broker inside one process: queues in memory, leases on tokio's clock, and faults on demand.
//!
//! In: messages and settlements. Out: deliveries in the order of publishing, each under a fenced lease. It lasts as
//! long as the process. All time is `tokio::time`, so a paused clock drives it, and nothing here is random: what goes
//! wrong is a [`FaultPlan`], written down call by call. It must never know of jobs, items or replies.
//!
//! One [`MemoryBroker`] is one connection. [`MemoryBroker::connect_again`] makes another one to the same queues, so
//! that a test can kill one worker's connection while the others go on.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, coop};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    BrokerError, Browsed, Capabilities, ConsumeOptions, Consumer, Delivery, Lease, Message, Page, Publisher, Pull,
    QueueOptions, QueueStatus, Settlement, Verdict,
};

mod event;
mod faults;
mod look;
mod queue;
mod settler;
mod store;
#[cfg(test)]
mod tests;

pub use self::event::{End, Event, LinkId, Observer};
pub use self::faults::{Call, Fault, FaultPlan, Planned};

use self::faults::Faults;
use self::queue::{Holder, Stored};
use self::settler::Settler;
use self::store::{Look, Store};

/// What this broker can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    fifo: true,
    chosen_delay: true,
    lease_expiry: true,
    free_release: true,
    bounded: true,
    exact_bound: true,
    answered_acks: true,
    fetches_ahead: false,
    durable: false,
    shared: false,
    browse: true,
    workers: false,
};

/// One connection to queues in this process. Clones share the connection.
#[derive(Clone)]
pub struct MemoryBroker {
    link: Arc<Link>,
}

/// Publishes over one connection.
#[derive(Debug, Clone)]
pub struct MemoryPublisher {
    link: Arc<Link>,
}

/// Receives from one queue over one connection.
#[derive(Debug)]
pub struct MemoryConsumer {
    link: Arc<Link>,
    queue: String,
    options: ConsumeOptions,
    /// The connection's breaks that this consumer has reported.
    breaks_seen: u64,
}

/// The queues, shared by all connections, and what wakes those that wait for a change in them.
struct Shared {
    store: Mutex<Store>,
    changed: Notify,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("nothing panics while it holds the store")
    }

    /// Runs `look` on the store as of now.
    fn look<T>(&self, look: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let (mut store, now) = (self.store(), Instant::now());
        store.advance(now);
        look(&mut store, now)
    }

    /// Runs `change` on the store as of now, then wakes who waits. Those who wait must not call this before they wait
    /// again: two of them would wake each other for ever.
    fn change<T>(&self, change: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let result = self.look(change);
        self.changed.notify_waiters();
        result
    }
}

/// One connection.
struct Link {
    id: LinkId,
    shared: Arc<Shared>,
    faults: Faults,
    settlements: mpsc::UnboundedSender<Settlement>,
    settler: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    /// Cancelled when the connection has been killed.
    dead: CancellationToken,
}

impl MemoryBroker {
    /// Makes empty queues and a first connection, on which nothing goes wrong. Must be called inside a runtime.
    pub fn connect() -> Self {
        Self::with_faults(FaultPlan::default())
    }

    /// As [`MemoryBroker::connect`], but what `plan` says goes wrong.
    pub fn with_faults(plan: FaultPlan) -> Self {
        let shared = Arc::new(Shared { store: Mutex::new(Store::default()), changed: Notify::new() });
        Self { link: Link::open(shared, Faults::new(plan)) }
    }

    /// Another connection to the same queues. It meets the same plan: the plan counts the calls of all its connections.
    pub fn connect_again(&self) -> Self {
        Self { link: Link::open(self.link.shared.clone(), self.link.faults.clone()) }
    }

    /// Another connection to the same queues, on which nothing goes wrong.
    pub fn connect_sound(&self) -> Self {
        Self { link: Link::open(self.link.shared.clone(), Faults::new(FaultPlan::default())) }
    }

    /// Tells `observer` of everything that happens in the queues from now on, in order.
    pub fn observe(&self, observer: Observer) {
        self.link.shared.store().observe(observer);
    }

    /// Which connection this is; [`Event`]s name it.
    pub fn link_id(&self) -> LinkId {
        self.link.id
    }

    /// Declares a queue; one that is there already stays as it is.
    ///
    /// # Errors
    /// `Closed`, or `Unavailable` while the connection is down.
    pub async fn declare(&self, queue: &str, options: QueueOptions) -> Result<(), BrokerError> {
        self.link.usable().await?;
        self.link.shared.change(|store, now| store.declare(queue, options, now));
        Ok(())
    }

    /// Removes a queue and all that is in it; one that is not there is no error. Leases on its messages are lost.
    ///
    /// # Errors
    /// As [`MemoryBroker::declare`].
    pub async fn remove(&self, queue: &str) -> Result<(), BrokerError> {
        self.link.usable().await?;
        self.link.shared.change(|store, _| store.remove(queue));
        Ok(())
    }

    /// What is in a queue.
    ///
    /// # Errors
    /// `UnknownQueue`, or as [`MemoryBroker::declare`].
    pub async fn status(&self, queue: &str) -> Result<QueueStatus, BrokerError> {
        self.link.usable().await?;
        self.link.shared.look(|store, now| store.status(queue, now))
    }

    /// The messages of a queue where they stand, in the order of publishing.
    ///
    /// # Errors
    /// As [`MemoryBroker::status`].
    pub async fn browse(&self, queue: &str, page: Page) -> Result<Vec<Browsed>, BrokerError> {
        self.link.usable().await?;
        self.link.shared.look(|store, now| store.browse(queue, page, now))
    }

    /// The names of the queues that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// As [`MemoryBroker::declare`].
    pub async fn queues(&self, prefix: &str) -> Result<Vec<String>, BrokerError> {
        self.link.usable().await?;
        Ok(self.link.shared.look(|store, _| store.queues(prefix)))
    }

    /// A publisher over this connection.
    pub fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher { link: self.link.clone() }
    }

    /// A consumer of `queue`.
    ///
    /// # Errors
    /// `UnknownQueue`, or as [`MemoryBroker::declare`].
    pub async fn consumer(&self, queue: &str, options: ConsumeOptions) -> Result<MemoryConsumer, BrokerError> {
        self.link.usable().await?;
        let breaks_seen = self.link.shared.look(|store, now| {
            store.queue(queue, now)?;
            Ok(store.breaks(self.link.id))
        })?;
        Ok(MemoryConsumer { link: self.link.clone(), queue: queue.to_owned(), options, breaks_seen })
    }

    /// Breaks the connection for `down`: its leases end, each with its attempt spent; its calls fail until then.
    pub fn disconnect(&self, down: Duration) {
        self.link.disconnect(down);
    }

    /// Ends the connection as the death of its process would: its leases end, each with its attempt spent, and
    /// whatever its users still do has no effect.
    pub fn kill(&self) {
        self.link.kill();
    }

    /// Returns once the connection has been killed, by [`MemoryBroker::kill`] or by the fault plan.
    pub async fn killed(&self) {
        self.link.dead.cancelled().await;
    }

    /// Settles what its leases have already decided, ends the connection and joins its settler. Leases not settled by
    /// then end as if their holder had died.
    pub async fn close(self) {
        self.link.stop.cancel();
        let settler = self.link.settler.lock().expect("nothing panics while it holds the handle").take();
        if let Some(mut settler) = settler {
            tokio::select! {
                biased;
                _ = &mut settler => {}
                // A settler that is killed in the middle of a call never comes back.
                () = self.link.dead.cancelled() => settler.abort(),
            }
        }
        self.link.shared.change(|store, now| store.end_link(self.link.id, now));
    }
}

impl Link {
    fn open(shared: Arc<Shared>, faults: Faults) -> Arc<Self> {
        let id = shared.store().open_link();
        let (settlements, received) = mpsc::unbounded_channel();
        let (stop, dead) = (CancellationToken::new(), CancellationToken::new());
        let settler = Settler {
            link: id,
            shared: shared.clone(),
            faults: faults.clone(),
            settlements: received,
            stop: stop.clone(),
            dead: dead.clone(),
        };
        let settler = Mutex::new(Some(tokio::spawn(settler.run())));
        Arc::new(Self { id, shared, faults, settlements, settler, stop, dead })
    }

    /// Waits while the connection is stalled, then says whether it can be used.
    async fn usable(&self) -> Result<(), BrokerError> {
        coop::consume_budget().await;
        self.shared.usable(self.id).await
    }

    fn disconnect(&self, down: Duration) {
        self.shared.change(|store, now| store.disconnect(self.id, down, now));
    }

    fn kill(&self) {
        self.shared.kill(self.id, &self.dead);
        if let Some(settler) = self.settler.lock().expect("nothing panics while it holds the handle").take() {
            settler.abort();
        }
    }
}

impl Shared {
    /// Waits while the connection is stalled, then says whether it can be used.
    async fn usable(&self, link: LinkId) -> Result<(), BrokerError> {
        loop {
            let stalled_until = self.store().usable(link, Instant::now())?;
            let Some(until) = stalled_until else { return Ok(()) };
            sleep_until(until).await;
        }
    }

    fn kill(&self, link: LinkId, dead: &CancellationToken) {
        self.change(|store, now| store.end_link(link, now));
        dead.cancel();
    }

    /// Lets `fault` happen to a call of `link`, as far as it happens before the call has its effect.
    async fn suffer(&self, link: LinkId, dead: &CancellationToken, fault: &Fault) -> Result<(), BrokerError> {
        match fault {
            Fault::Delay(time) => sleep(*time).await,
            Fault::Stall(time) => {
                self.change(|store, now| store.stall(link, now + *time));
                self.usable(link).await?;
            }
            Fault::Disconnect(down) => {
                self.change(|store, now| store.disconnect(link, *down, now));
                return Err(BrokerError::Unavailable("the connection broke".to_owned()));
            }
            Fault::Refuse => return Err(BrokerError::Refused("by the fault plan".to_owned())),
            Fault::LoseRequest => return Err(lost("request")),
            Fault::DieBefore => {
                self.kill(link, dead);
                std::future::pending::<()>().await;
            }
            Fault::Full | Fault::LoseAnswer | Fault::Partly | Fault::Duplicate | Fault::DieAfter => {}
        }
        Ok(())
    }

    /// Lets `fault` happen to a call of `link` that had its effect.
    async fn suffer_after(&self, link: LinkId, dead: &CancellationToken, fault: &Fault) -> Result<(), BrokerError> {
        match fault {
            Fault::LoseAnswer | Fault::Partly => Err(lost("answer")),
            Fault::DieAfter => {
                self.kill(link, dead);
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }
}

fn lost(what: &str) -> BrokerError {
    BrokerError::Unavailable(format!("the {what} was lost"))
}

impl Drop for Link {
    fn drop(&mut self) {
        // Nobody can use the connection any more, so its settler has nothing left to do.
        self.shared.change(|store, now| store.end_link(self.id, now));
        if let Ok(Some(settler)) = self.settler.get_mut().map(Option::take) {
            settler.abort();
        }
    }
}

impl Publisher for MemoryPublisher {
    async fn publish(&self, queue: &str, mut messages: Vec<Message>) -> Result<(), BrokerError> {
        let link = &*self.link;
        link.usable().await?;
        let fault = link.faults.next(Call::Publish);
        if let Some(fault) = &fault {
            if *fault == Fault::Full {
                return Err(BrokerError::Full(queue.to_owned()));
            }
            link.shared.suffer(link.id, &link.dead, fault).await?;
            if *fault == Fault::Partly {
                messages.truncate(messages.len() / 2);
            }
        }
        let places = link.shared.change(|store, now| {
            // The connection may have ended while the call was held up.
            store.usable(link.id, now)?;
            store.publish(link.id, queue, messages, now)
        })?;
        if let Some(fault) = &fault {
            link.shared.suffer_after(link.id, &link.dead, fault).await?;
        }
        link.shared.store().confirm(link.id, places);
        Ok(())
    }
}

impl Consumer for MemoryConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            let link = self.link.clone();
            link.usable().await?;
            self.report_break()?;
            let changed = link.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = link.shared.store().look(&self.queue, Instant::now())?;
            match found {
                Look::Ready => {
                    if let Some(deliveries) = self.hand_over(pull).await? {
                        return Ok(deliveries);
                    }
                }
                Look::Wait(None) => changed.await,
                Look::Wait(Some(until)) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    async fn close(self) {
        // Nothing is fetched ahead, so there is nothing to release.
    }
}

impl MemoryConsumer {
    fn report_break(&mut self) -> Result<(), BrokerError> {
        let breaks = self.link.shared.store().breaks(self.link.id);
        if breaks == self.breaks_seen {
            return Ok(());
        }
        self.breaks_seen = breaks;
        Err(BrokerError::Unavailable("the connection broke".to_owned()))
    }

    /// Takes what the pull allows; `None` when it was gone by the time that a fault let the call go on. Nothing is
    /// awaited after the taking, unless the process dies of it, so that a dropped call loses nothing.
    async fn hand_over(&mut self, pull: Pull) -> Result<Option<Vec<Delivery>>, BrokerError> {
        let link = self.link.clone();
        let fault = link.faults.next(Call::Receive);
        if let Some(fault) = &fault {
            link.shared.suffer(link.id, &link.dead, fault).await?;
            link.usable().await?;
            self.report_break()?;
        }
        let holder = Holder { link: link.id, queue: &self.queue, options: &self.options };
        let taken = link.shared.change(|store, now| {
            store.usable(link.id, now)?;
            if fault == Some(Fault::Duplicate) {
                store.duplicate_first(&self.queue);
            }
            store.take(&holder, pull, now)
        })?;
        if let Some(fault) = &fault
            && let Err(error) = link.shared.suffer_after(link.id, &link.dead, fault).await
        {
            let mut store = link.shared.store();
            taken.iter().for_each(|&(token, _)| store.orphan(token));
            return Err(error);
        }
        let deliveries: Vec<_> = taken.into_iter().map(|(token, stored)| link.delivery(token, stored)).collect();
        Ok((!deliveries.is_empty()).then_some(deliveries))
    }
}

impl Link {
    fn delivery(&self, token: u64, stored: Stored) -> Delivery {
        let lease = Lease::new(token, self.settlements.clone());
        Delivery { message: stored.message, attempt: stored.attempt, lease }
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.link.fmt(formatter)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "memory broker, connection {}", self.id)
    }
}
