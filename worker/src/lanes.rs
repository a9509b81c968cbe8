//! Two queues as one consumer: jobs, and pieces of large jobs when no job is at hand.
//!
//! In: a consumer of each, and the account of what is held. Out: deliveries. A shard comes alone, and only while the
//! worker holds few: each keeps the worker busy for long, and others are to have their share. It never waits for one
//! queue while the other has something that may be taken.

use std::num::NonZeroUsize;

use inferq_shared::broker::{BrokerError, Consumer, Delivery, Pull};

use crate::in_flight::InFlight;

/// The most shards that a worker holds: one computes while another reads its lines or puts its part.
pub const SHARDS_MAX: usize = 2;

/// The two lanes.
pub struct Lanes<C> {
    /// Jobs: they go first.
    pub jobs: C,
    /// Shards.
    pub shards: C,
    /// What the worker holds.
    pub in_flight: InFlight,
}

impl<C: Consumer> Consumer for Lanes<C> {
    async fn receive(&mut self, pull: Pull) -> Result<Vec<Delivery>, BrokerError> {
        let Self { jobs, shards, in_flight } = self;
        let shard = async {
            in_flight.fewer_shards_than(SHARDS_MAX).await;
            shards.receive(Pull { jobs: NonZeroUsize::MIN, ..pull }).await
        };
        tokio::select! {
            biased;
            deliveries = jobs.receive(pull) => deliveries,
            deliveries = shard => deliveries,
        }
    }

    async fn close(self) {
        self.jobs.close().await;
        self.shards.close().await;
    }
}
