//! The task that carries out what the holders of one connection's leases decide, one settlement at a time.
//!
//! In: settlements, in the order in which they were sent. Out: the broker's answer to each. It must never settle for a
//! connection that has been killed.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::event::LinkId;
use super::faults::{Call, Fault, Faults};
use super::{BrokerError, Settlement, Shared, Verdict};

pub(super) struct Settler {
    pub(super) link: LinkId,
    pub(super) shared: Arc<Shared>,
    pub(super) faults: Faults,
    pub(super) settlements: mpsc::UnboundedReceiver<Settlement>,
    pub(super) stop: CancellationToken,
    pub(super) dead: CancellationToken,
}

impl Settler {
    /// Settles until told to stop, then what has been sent by then.
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let settlement = tokio::select! {
                biased;
                settlement = self.settlements.recv() => settlement,
                () = stop.cancelled(), if !self.settlements.is_closed() => {
                    self.settlements.close();
                    continue;
                }
            };
            let Some(settlement) = settlement else { return };
            self.settle(settlement).await;
        }
    }

    async fn settle(&self, settlement: Settlement) {
        let Settlement { token, verdict, done } = settlement;
        let result = self.carry_out(token, verdict).await;
        if matches!(result, Err(BrokerError::Unavailable(_) | BrokerError::Refused(_) | BrokerError::Full(_))) {
            // Its holder is gone, so nothing renews it: it ends when its time is over.
            self.shared.store().orphan(token);
        }
        if let Some(done) = done {
            // Whoever asked may no longer wait for the answer.
            let _ = done.send(result);
        }
    }

    async fn carry_out(&self, token: u64, verdict: Verdict) -> Result<(), BrokerError> {
        let (shared, link) = (&*self.shared, self.link);
        // A drop is no call: it can't be refused or lost other than with its connection.
        let fault =
            self.faults.next(Call::Settle).filter(|fault| verdict != Verdict::Dropped || fault.hits_connection());
        shared.usable(link).await?;
        if let Some(fault) = &fault {
            shared.suffer(link, &self.dead, fault).await?;
        }
        shared.change(|store, now| {
            store.usable(link, now)?;
            store.settle(token, verdict, now)
        })?;
        match &fault {
            Some(fault) => shared.suffer_after(link, &self.dead, fault).await,
            None => Ok(()),
        }
    }
}

impl Fault {
    fn hits_connection(&self) -> bool {
        matches!(self, Self::Stall(_) | Self::Disconnect(_) | Self::DieBefore | Self::DieAfter)
    }
}
