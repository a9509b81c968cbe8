//! The consumer's end: it takes what its keeper has laid out.
//!
//! In: pulls. Out: deliveries. The keeper is a task, see `keeper`; dropping the consumer ends its fetching as closing it
//! does.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::desk::Desk;
use super::super::{BrokerError, Consumer, Delivery, Pull};
use super::held::Deliveries;
use super::keeper::Keeper;
use super::link::Link;
use super::publish::RabbitmqPublisher;

/// Receives from one queue.
#[derive(Debug)]
pub struct RabbitmqConsumer {
    desk: Arc<Desk>,
    closing: CancellationToken,
    given_back: CancellationToken,
}

impl RabbitmqConsumer {
    /// A consumer of `queue`, and the keeper that must run for it.
    pub(super) fn new(
        link: Arc<Link>,
        publisher: RabbitmqPublisher,
        queue: &str,
        stop: CancellationToken,
    ) -> (Self, Keeper) {
        let (settler, settlements) = mpsc::unbounded_channel();
        let desk = Arc::new(Desk::new(settler));
        let consumer =
            Self { desk: desk.clone(), closing: CancellationToken::new(), given_back: CancellationToken::new() };
        let keeper = Keeper {
            link,
            publisher,
            queue: queue.to_owned(),
            desk,
            settlements,
            stop,
            closing: consumer.closing.clone(),
            given_back: consumer.given_back.clone(),
            deliveries: Deliveries::default(),
            copies: FuturesUnordered::new(),
        };
        (consumer, keeper)
    }
}

impl Consumer for RabbitmqConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        self.desk.receive(pull).await
    }

    async fn close(self) {
        self.closing.cancel();
        self.given_back.cancelled().await;
    }
}

impl Drop for RabbitmqConsumer {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
