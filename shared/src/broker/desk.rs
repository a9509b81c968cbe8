//! Where a consumer and its keeper meet: what has arrived, how much is wanted, and why nothing comes.
//!
//! In: from the keeper what arrived or failed, from the consumer what it wants. Out: to each what the other left. A
//! call that is dropped takes nothing with it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::{BrokerError, Delivery, Lease, Message, Pull, Settlement};

/// A delivery that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Its lease's number.
    pub(super) token: u64,
    /// What was published.
    pub(super) message: Message,
    /// The attempt that it would be.
    pub(super) attempt: u32,
}

/// What a consumer wants to hold, with what it holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Deliveries.
    pub(super) jobs: usize,
    /// What the next ones may have in bytes.
    pub(super) bytes: usize,
    /// How many deliveries it holds already.
    pub(super) leased: usize,
}

/// The meeting place.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Something arrived, or failed.
    arrived: Notify,
    /// Something is wanted.
    pub(super) wished: Notify,
}

#[derive(Debug)]
struct State {
    arrived: VecDeque<Arrived>,
    /// Deliveries that are not settled, those that nobody has taken among them.
    held: usize,
    wish: Option<Wish>,
    failed: Option<BrokerError>,
    /// Gone once the consumer is closed.
    settler: Option<mpsc::UnboundedSender<Settlement>>,
}

impl Desk {
    /// An empty one, whose leases are settled through `settler`.
    pub(super) fn new(settler: mpsc::UnboundedSender<Settlement>) -> Self {
        let state = State { arrived: VecDeque::new(), held: 0, wish: None, failed: None, settler: Some(settler) };
        Self { state: Mutex::new(state), arrived: Notify::new(), wished: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what has arrived, as far as `pull` allows.
    pub(super) async fn receive(&self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            // What arrives between the look and the wait leaves word.
            if let Some(taken) = self.take(pull) {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// What has arrived, as far as `pull` allows; `None` when there is nothing yet. Either way the keeper hears of it.
    fn take(&self, pull: Pull) -> Option<Result<Vec<Delivery>, BrokerError>> {
        let mut state = self.state();
        let Some(settler) = state.settler.clone() else { return Some(Err(BrokerError::Closed)) };
        let leased = state.held.saturating_sub(state.arrived.len());
        state.wish = Some(Wish { jobs: pull.jobs.get(), bytes: pull.bytes, leased });
        self.wished.notify_one();
        if state.arrived.is_empty() {
            return state.failed.take().map(Err);
        }
        let mut bytes = 0;
        let fits = |arrived: &&Arrived| {
            let room = bytes < pull.bytes.max(1);
            bytes += arrived.message.body.len();
            room
        };
        let count = state.arrived.iter().take(pull.jobs.get()).take_while(fits).count();
        let delivery = |Arrived { token, message, attempt }| {
            let lease = Lease::new(token, settler.clone());
            Delivery { message, attempt, lease }
        };
        Some(Ok(state.arrived.drain(..count).map(delivery).collect()))
    }

    /// What was last wanted.
    pub(super) fn wish(&self) -> Option<Wish> {
        self.state().wish
    }

    /// Something has arrived.
    pub(super) fn arrive(&self, arrived: Arrived, held: usize) {
        let mut state = self.state();
        state.arrived.push_back(arrived);
        state.held = held;
        self.arrived.notify_one();
    }

    /// A delivery that was taken is there again, in its old place.
    pub(super) fn put_back(&self, arrived: Arrived) {
        self.state().arrived.push_front(arrived);
        self.arrived.notify_one();
    }

    /// So many deliveries are not settled.
    pub(super) fn hold(&self, held: usize) {
        self.state().held = held;
    }

    /// How many deliveries nobody has taken, and their bytes.
    pub(super) fn untaken(&self) -> (usize, usize) {
        let state = self.state();
        (state.arrived.len(), state.arrived.iter().map(|arrived| arrived.message.body.len()).sum())
    }

    /// Takes back what nobody has taken, but for the first `keep`.
    pub(super) fn take_back(&self, keep: usize) -> Vec<u64> {
        let mut state = self.state();
        let keep = keep.min(state.arrived.len());
        state.arrived.drain(keep..).map(|arrived| arrived.token).collect()
    }

    /// Everything that was there is gone; the next call is told why, if there is something to tell.
    pub(super) fn fail(&self, error: Option<BrokerError>) {
        let mut state = self.state();
        state.arrived.clear();
        state.held = 0;
        state.failed = error;
        self.arrived.notify_one();
    }

    /// Takes one back, if nobody has taken it.
    pub(super) fn remove(&self, token: u64) -> bool {
        let mut state = self.state();
        let before = state.arrived.len();
        state.arrived.retain(|arrived| arrived.token != token);
        state.arrived.len() < before
    }

    /// The next call is told what went wrong, once what is there is taken.
    pub(super) fn tell(&self, error: BrokerError) {
        self.state().failed = Some(error);
        self.arrived.notify_one();
    }

    /// Nothing more is handed out. Leases that are out can still be settled.
    pub(super) fn close(&self) {
        self.state().settler = None;
        self.arrived.notify_one();
    }
}
