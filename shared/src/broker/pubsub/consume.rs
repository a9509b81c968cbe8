//! The consumer's end: it takes what its keeper has laid out.
//!
//! In: pulls. Out: deliveries. The keeper is a task, see `keeper`; dropping the consumer ends its fetching as closing it
//! does.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::desk::Desk;
use super::super::{BrokerError, Consumer, Delivery, Pull};

/// Receives from one subscription.
#[derive(Debug)]
pub struct PubSubConsumer {
    pub(super) desk: Arc<Desk>,
    /// Nothing more is fetched.
    pub(super) closing: CancellationToken,
    /// What was fetched and not taken has been given back.
    pub(super) given_back: CancellationToken,
}

impl Consumer for PubSubConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        self.desk.receive(pull).await
    }

    async fn close(self) {
        self.closing.cancel();
        self.given_back.cancelled().await;
    }
}

impl Drop for PubSubConsumer {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
