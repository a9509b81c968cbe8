//! The consumer's end, where a task keeps the rest: it takes what its keeper has laid out.
//!
//! In: pulls. Out: deliveries. The keeper owns what brings messages and settles them; dropping the consumer ends its
//! fetching as closing it does.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::{BrokerError, Consumer, Delivery, Pull, Settlement};

/// Receives what its keeper brings from one queue.
#[derive(Debug)]
pub struct KeptConsumer {
    /// Where both meet.
    pub(super) desk: Arc<Desk>,
    /// Nothing more is fetched.
    pub(super) closing: CancellationToken,
    /// What was fetched and not taken has been given back.
    pub(super) given_back: CancellationToken,
}

impl KeptConsumer {
    /// A consumer, and where its keeper reads what its leases decide.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Settlement>) {
        let (settler, settlements) = mpsc::unbounded_channel();
        let (closing, given_back) = (CancellationToken::new(), CancellationToken::new());
        (Self { desk: Arc::new(Desk::new(settler)), closing, given_back }, settlements)
    }
}

impl Consumer for KeptConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        self.desk.receive(pull).await
    }

    async fn close(self) {
        self.closing.cancel();
        self.given_back.cancelled().await;
    }
}

impl Drop for KeptConsumer {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
