//! Says every few seconds, where `inferq status` reads it, that this worker is there, how it is and how fast.
//!
//! In: the state and counts that the other stages show. Out: one [`Presence`] on the broker, renewed while the line
//! runs and taken back at its end. A broker that can't be told is nobody's concern: the word is dropped after a minute.

use std::convert::Infallible;
use std::time::Duration;

use inferq_shared::broker::{Broker, WORKER_SILENT};
use inferq_shared::presence::Presence;
use jiff::Timestamp;

use crate::config::Config;
use crate::engine::ModelInfo;
use crate::health::Health;
use crate::in_flight::InFlight;

/// How often it is said: several times before silence is taken for absence.
const EVERY: Duration = WORKER_SILENT.checked_div(10).expect("ten is not zero");

/// How long taking leave may last.
const PARTING: Duration = Duration::from_secs(1);

/// Says that a worker is there.
pub struct Herald<'a> {
    broker: &'a Broker,
    queue: String,
    /// This worker, unlike any other.
    id: String,
    /// What does not change.
    presence: Presence,
    health: Health,
    in_flight: InFlight,
}

impl<'a> Herald<'a> {
    /// Of a worker that is ready.
    pub fn new(broker: &'a Broker, config: &Config, info: &ModelInfo, health: &Health, in_flight: &InFlight) -> Self {
        let presence = Presence {
            name: config.worker.clone(),
            process: std::process::id(),
            model: info.name.clone(),
            device: info.device.clone(),
            state: String::new(),
            tokens_per_s: None,
            items_per_s: None,
            jobs_in_flight: 0,
            tokens_in_flight: 0,
            started_at_ms: Timestamp::now().as_millisecond(),
        };
        let id = format!("{}-{:016x}", config.worker, rand::random::<u64>());
        let queue = config.queue.queues.jobs.clone();
        Self { broker, queue, id, presence, health: health.clone(), in_flight: in_flight.clone() }
    }

    /// Says it again and again.
    pub async fn report(&self) -> Infallible {
        loop {
            self.tell(Some(self.now().encode())).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Says that the worker is no longer there, if that can be said soon.
    pub async fn retire(&self) {
        // A broker that is down must not keep a drained worker: its word is dropped all the same.
        let _ = tokio::time::timeout(PARTING, self.tell(None)).await;
    }

    fn now(&self) -> Presence {
        let (counts, speed) = (self.in_flight.counts(), self.in_flight.speed());
        Presence {
            state: self.health.state().as_str().to_owned(),
            tokens_per_s: speed.map(|speed| speed.tokens),
            items_per_s: speed.map(|speed| speed.items),
            jobs_in_flight: counts.jobs as u64,
            tokens_in_flight: counts.tokens as u64,
            ..self.presence.clone()
        }
    }

    async fn tell(&self, about: Option<String>) {
        if let Err(error) = self.broker.report_worker(&self.queue, &self.id, about).await {
            tracing::debug!(%error, "this worker could not say that it is there");
        }
    }
}
