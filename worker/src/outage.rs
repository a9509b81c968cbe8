//! A dependency that is down: pulling pauses while anything waits for it, and what waits is given back in the end.
//!
//! In: a call to a bucket, or messages for a queue. Out: the answer, or why there is none: the other side refuses, the worker stops, or the job has
//! been held for as long as it may be. Asking again is the probe. It settles nothing.

use std::time::{Duration, Instant};

use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{BrokerError, Message, Publisher};
use inferq_shared::bucket::BucketError;
use inferq_shared::telemetry;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::ticket::ReleaseReason;

/// Counted among what waits for a broken dependency while it lives.
pub struct Outage(watch::Sender<usize>);

impl Outage {
    /// One more waits.
    pub fn begin(waiting: watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// How long jobs wait for a bucket or a queue.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How much waits for a broken dependency.
    pub outage: watch::Sender<usize>,
    /// Ends all waiting.
    pub end: CancellationToken,
    /// What a job is released for when it has ended.
    pub end_reason: ReleaseReason,
    /// How long a job may be held.
    pub lease_max: Duration,
    /// The time.
    pub clock: Clock,
    /// Jitter.
    pub seed: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer<E = BucketError> {
    /// The job goes back.
    Released(ReleaseReason),
    /// It is refused, and would be later.
    Refused(E),
}

impl Patience {
    /// Asks a bucket until there is an answer, for a job that came at `since`.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn ask<T, Asked: Future<Output = Result<T, BucketError>>>(
        &mut self,
        call: &'static str,
        since: Instant,
        ask: impl Fn() -> Asked,
    ) -> Result<T, NoAnswer> {
        let may_pass = |error: &BucketError| {
            telemetry::bucket_failed(call, error);
            error.is_transient() && !crate::mutant::active("bucket_outage_is_refusal")
        };
        self.until_done(since, ask, may_pass).await
    }

    /// Publishes until it is confirmed, for a job that came at `since`.
    ///
    /// # Errors
    /// When it won't be.
    pub async fn publish(
        &mut self,
        since: Instant,
        (publisher, queue): (&impl Publisher, &str),
        messages: &[Message],
    ) -> Result<(), NoAnswer<BrokerError>> {
        let may_pass = |error: &BrokerError| {
            telemetry::broker_failed("publish", error);
            error.is_transient()
        };
        match self.until_done(since, || publisher.publish(queue, messages.to_vec()), may_pass).await {
            Err(NoAnswer::Refused(BrokerError::Closed)) => Err(NoAnswer::Released(ReleaseReason::Outage)),
            done => done,
        }
    }

    async fn until_done<T, E, Asked: Future<Output = Result<T, E>>>(
        &mut self,
        since: Instant,
        ask: impl Fn() -> Asked,
        may_pass: impl Fn(&E) -> bool,
    ) -> Result<T, NoAnswer<E>> {
        self.seed = self.seed.wrapping_add(1);
        let mut rng = StdRng::seed_from_u64(self.seed);
        let (end, mut failures, mut outage) = (self.end.clone(), 0, None);
        let end_reason = self.end_reason;
        loop {
            let answer = tokio::select! {
                biased;
                () = end.cancelled() => return Err(NoAnswer::Released(end_reason)),
                answer = ask() => answer,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(NoAnswer::Refused(error)),
            }
            if !crate::mutant::active("pull_in_bucket_outage") {
                outage.get_or_insert_with(|| Outage::begin(self.outage.clone()));
            }
            if self.clock.now().saturating_duration_since(since) >= self.lease_max {
                return Err(NoAnswer::Released(ReleaseReason::Outage));
            }
            let wait = Backoff::BROKER.delay(failures, &mut rng);
            failures += 1;
            tokio::select! {
                biased;
                () = end.cancelled() => return Err(NoAnswer::Released(end_reason)),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
