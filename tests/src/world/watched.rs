//! A worker's connection to its broker, watched: what it asks for and what it is told is recorded, and nothing changed.

use inferq_shared::broker::memory::{MemoryConsumer, MemoryPublisher};
use inferq_shared::broker::{BrokerError, Consumer, Delivery, Message, Publisher, Pull};
use inferq_worker::in_flight::InFlight;

use crate::history::{History, What};

/// Records what a process asks for.
pub struct WatchedConsumer {
    /// Does it.
    pub inner: MemoryConsumer,
    /// Which process.
    pub link: u64,
    /// The process's account.
    pub in_flight: InFlight,
    /// Where it is recorded.
    pub history: History,
}

/// Records how a process's publishes went, as the process is told.
#[derive(Clone)]
pub struct WatchedPublisher {
    /// Does it.
    pub inner: MemoryPublisher,
    /// Which process.
    pub link: u64,
    /// Where it is recorded.
    pub history: History,
}

impl Consumer for WatchedConsumer {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        let tokens_max = self.in_flight.tokens_max();
        self.history.record(What::Pulls { link: self.link, pull, tokens_max });
        self.inner.receive(pull).await
    }

    async fn close(self) {
        self.inner.close().await;
    }
}

impl Publisher for WatchedPublisher {
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        let result = self.inner.publish(queue, messages).await;
        let told = What::Told { link: self.link, queue: queue.to_owned(), result: result.clone() };
        self.history.record(told);
        result
    }
}
