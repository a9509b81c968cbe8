//! One pass over a queue by leases, for brokers whose single messages can be neither addressed nor looked at.
//!
//! In: a queue. Out: its deliveries in bounded batches, each once. What is kept goes back where it was, its attempt
//! unspent, when the pass ends: until then its lease keeps it from coming again. Beyond [`KEPT_MAX`] leases it goes back
//! at once, to be seen again after a minute. A crash spends an attempt of what was leased, and loses nothing.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::future::join_all;
use inferq_shared::broker::{AnyConsumer, Broker, BrokerError, ConsumeOptions, Consumer, Delivery, Lease, Pull};
use tokio::time::timeout;

/// Deliveries that come together.
const BATCH: usize = 256;
/// Bytes of bodies that come together, unless one delivery alone has more.
const BATCH_BYTES: usize = 16 << 20;
/// Leases that are held to the end of the pass.
pub const KEPT_MAX: usize = 10_000;
/// How long what is kept beyond that stays away.
pub const AWAY: Duration = Duration::from_secs(60);
/// A queue that gives nothing for so long has nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// A pass over one queue.
pub struct Pass {
    consumer: AnyConsumer,
    kept: Vec<Lease>,
    sent_away: u64,
    /// Deliveries still to come of those that were there at the beginning, where the broker can tell.
    left: Option<u64>,
}

impl Pass {
    /// Begins with the queue's first message.
    ///
    /// # Errors
    /// `UnknownQueue`, or when the broker refuses or can't be reached.
    pub async fn begin(broker: &Broker, queue: &str) -> Result<Self, BrokerError> {
        let left = broker.status(queue).await?.waiting;
        let consumer = broker.consumer(queue, ConsumeOptions::new()).await?;
        Ok(Self { consumer, kept: Vec::new(), sent_away: 0, left })
    }

    /// The next deliveries; none at the end. What came after the beginning is left for the next pass.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let left = self.left.map_or(BATCH, |left| usize::try_from(left).unwrap_or(BATCH));
        let Some(jobs) = NonZeroUsize::new(left.min(BATCH)) else { return Ok(Vec::new()) };
        let received = timeout(SILENCE, self.consumer.receive(Pull { jobs, bytes: BATCH_BYTES })).await;
        let deliveries = received.unwrap_or(Ok(Vec::new()))?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(deliveries.len() as u64);
        }
        Ok(deliveries)
    }

    /// Leaves a delivery in the queue.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn keep(&mut self, lease: Lease) -> Result<(), BrokerError> {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(lease);
            return Ok(());
        }
        self.sent_away += 1;
        lost_is_kept(lease.release(AWAY).await)
    }

    /// Puts back what was kept. Returns how many messages are seen again only after [`AWAY`].
    ///
    /// # Errors
    /// When the broker can't be reached: then the leases end by themselves.
    pub async fn end(self) -> Result<u64, BrokerError> {
        let released = join_all(self.kept.into_iter().map(|lease| lease.release(Duration::ZERO))).await;
        self.consumer.close().await;
        released.into_iter().try_for_each(lost_is_kept)?;
        Ok(self.sent_away)
    }
}

/// A lease that was lost on the way: its message is in the queue all the same.
fn lost_is_kept(released: Result<(), BrokerError>) -> Result<(), BrokerError> {
    match released {
        Err(BrokerError::LeaseLost) => Ok(()),
        released => released,
    }
}
