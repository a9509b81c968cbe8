//! The first stage: pulls deliveries while there is room, and keeps suspects apart.
//!
//! In: a [`Consumer`]. Out: received jobs, entered into the account of what is in flight. It pulls nothing once stop is
//! asked, while a dependency is down, or while the worker fits none of the jobs. A job whose lease was lost twice may be
//! what kills workers: it runs in a small group with nothing else in the process (design invariant 7).

use std::num::NonZeroUsize;
use std::time::Duration;

use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{BrokerError, Consumer, Delivery, Pull};
use inferq_shared::job::attribute;
use inferq_shared::telemetry;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::fitness::{Fitness, UNFIT_PAUSE};
use crate::health::Health;
use crate::in_flight::InFlight;
use crate::pulse::Pulse;
use crate::ticket::{Outbound, Received, ReleaseReason};

/// The attempt from which on a job is a suspect.
pub const SUSPECT_ATTEMPT: u32 = 3;

/// The most suspects that run together, at their first attempt as such.
const GROUP_MAX: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// Whether jobs on the line are run or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They run.
    Open,
    /// What is in no batch yet is given back: the worker stops, or a group of suspects waits to run alone.
    Clearing,
}

/// The stage.
pub struct Receive<C> {
    /// Where deliveries come from.
    pub consumer: C,
    /// What the worker holds.
    pub in_flight: InFlight,
    /// Whether the worker fits its queue.
    pub fitness: Fitness,
    /// How many replies are kept back by a broken dependency.
    pub outage: watch::Receiver<usize>,
    /// Whether leases are renewed: not while the line is stuck.
    pub renewing: watch::Receiver<bool>,
    /// Tells the later stages to run or to give back.
    pub mode: watch::Sender<Mode>,
    /// To intake.
    pub received: mpsc::Sender<Vec<Received>>,
    /// To the outbox.
    pub outbound: mpsc::Sender<Outbound>,
    /// Stop fetching.
    pub stop: CancellationToken,
    /// Attempts after which a job is answered rather than run.
    pub attempts_max: u32,
    /// The state shown to the outside.
    pub health: Health,
    /// Beats while the stage turns or waits for somebody else.
    pub pulse: Pulse,
    /// The time.
    pub clock: Clock,
    /// Jitter.
    pub rng: StdRng,
    /// The last pull brought suspects.
    pub suspects: bool,
}

/// Stop was asked, or a later stage is gone: the stage ends without an error.
struct Stopped;

impl<C: Consumer> Receive<C> {
    /// Pulls until stop is asked.
    ///
    /// # Errors
    /// What the broker says when it can't heal.
    pub async fn run(mut self) -> Result<(), BrokerError> {
        let mut failures = 0;
        let ended = loop {
            let Ok(pull) = self.until_wanted().await else { break Ok(()) };
            let stop = self.stop.clone();
            let pulled = tokio::select! {
                biased;
                () = stop.cancelled(), if !crate::mutant::active("pull_after_stop") => break Ok(()),
                // What a dropped call would have brought comes with the next one.
                () = paused(&mut self.outage, &mut self.renewing) => continue,
                pulled = self.pulse.wait(self.consumer.receive(pull)) => pulled,
            };
            match pulled {
                Ok(deliveries) => {
                    failures = 0;
                    if self.hand_over(deliveries).await.is_err() {
                        break Ok(());
                    }
                }
                Err(error) if error.is_transient() => {
                    telemetry::broker_failed("receive", &error);
                    let wait = Backoff::BROKER.delay(failures, &mut self.rng);
                    if self.or_stopped(tokio::time::sleep(wait)).await.is_err() {
                        break Ok(());
                    }
                    failures += 1;
                }
                Err(error) => break Err(error),
            }
        };
        self.mode.send_replace(Mode::Clearing);
        self.pulse.wait(self.consumer.close()).await;
        ended
    }

    /// Waits until a pull is wanted, and says how much.
    async fn until_wanted(&mut self) -> Result<Pull, Stopped> {
        self.while_unfit().await?;
        let Self { outage, renewing, in_flight, stop, pulse, .. } = self;
        let wanted = async {
            if crate::mutant::active("pull_in_outage") {
                return in_flight.room().await;
            }
            loop {
                // The senders are in the outbox and the line's guard, which outlive this stage.
                let _ = outage.wait_for(|replies| *replies == 0).await;
                let _ = renewing.wait_for(|renewing| *renewing).await;
                let pull = in_flight.room().await;
                // It may have taken long.
                if *outage.borrow() == 0 && *renewing.borrow() {
                    return pull;
                }
            }
        };
        let pull = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Stopped),
            pull = pulse.wait(wanted) => pull,
        };
        let jobs_max = match (self.fitness.is_unfit(), self.suspects) {
            (true, _) => NonZeroUsize::MIN,
            // No more than a group, while there may be more of them.
            (false, true) => GROUP_MAX,
            (false, false) => pull.jobs,
        };
        Ok(Pull { jobs: pull.jobs.min(jobs_max), ..pull })
    }

    /// An unfit worker waits before each probe, and for the last one's end.
    async fn while_unfit(&mut self) -> Result<(), Stopped> {
        if !self.fitness.is_unfit() {
            self.health.unfit(false);
            return Ok(());
        }
        let in_flight = self.in_flight.clone();
        self.or_stopped(in_flight.down_to(0)).await?;
        if !self.fitness.is_unfit() {
            self.health.unfit(false);
            return Ok(());
        }
        self.health.unfit(true);
        self.or_stopped(tokio::time::sleep(UNFIT_PAUSE)).await
    }

    async fn hand_over(&mut self, deliveries: Vec<Delivery>) -> Result<(), Stopped> {
        let now = self.clock.now();
        let received: Vec<Received> = deliveries
            .into_iter()
            .map(|delivery| {
                let mut hold = self.in_flight.hold(delivery.message.body.len());
                if delivery.message.attributes.contains_key(attribute::PARENT) {
                    hold.count_as_shard();
                }
                Received::new(delivery, hold, now)
            })
            .collect();
        let suspect = |job: &Received| (SUSPECT_ATTEMPT..=self.attempts_max).contains(&job.attempt);
        self.suspects = received.iter().any(suspect);
        if self.suspects && !crate::mutant::active("no_isolation") {
            return self.isolate(received).await;
        }
        self.send(received).await
    }

    /// Runs one group of suspects with nothing else in the process.
    async fn isolate(&mut self, received: Vec<Received>) -> Result<(), Stopped> {
        let in_flight = self.in_flight.clone();
        if in_flight.counts().jobs > received.len() {
            // The others run to their end first. One of them may be a killer too, and a suspect that was held meanwhile
            // could lose its last attempt by it; so it waits in the queue.
            self.release(received, ReleaseReason::Suspect).await?;
            return self.or_stopped(in_flight.down_to(0)).await;
        }
        let (group, rest) = choose_group(received, self.attempts_max);
        tracing::info!(jobs = group.len(), "suspects run apart");
        self.release(rest, ReleaseReason::Suspect).await?;
        if self.or_stopped(in_flight.down_to(group.len())).await.is_err() {
            self.release(group, ReleaseReason::Draining).await?;
            return Err(Stopped);
        }
        self.send(group).await?;
        self.or_stopped(in_flight.down_to(0)).await
    }

    async fn send(&mut self, received: Vec<Received>) -> Result<(), Stopped> {
        // Intake may have much to do; whether it does it shows its own pulse.
        self.pulse.wait(self.received.send(received)).await.map_err(|_| Stopped)
    }

    async fn release(&mut self, jobs: Vec<Received>, reason: ReleaseReason) -> Result<(), Stopped> {
        for job in jobs {
            self.outbound.send(job.release(reason, Duration::ZERO)).await.map_err(|_| Stopped)?;
        }
        Ok(())
    }

    async fn or_stopped(&mut self, wait: impl Future<Output = ()>) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            () = self.pulse.wait(wait) => Ok(()),
        }
    }
}

/// Returns when a reply is kept back by a broken dependency, or the line is stuck.
async fn paused(outage: &mut watch::Receiver<usize>, renewing: &mut watch::Receiver<bool>) {
    if crate::mutant::active("pull_in_outage") {
        return std::future::pending().await;
    }
    // The senders outlive this stage; see `until_wanted`.
    tokio::select! {
        biased;
        _ = outage.wait_for(|replies| *replies > 0) => {}
        _ = renewing.wait_for(|renewing| !*renewing) => {}
    }
}

/// The first suspects that may run together, and everything else.
///
/// A group holds at most 4, 2, 1, 1… jobs at attempt 3, 4, 5, 6…; the highest attempt among them counts. At its last
/// attempt a job runs alone, so that none is exhausted by another's crash.
fn choose_group(received: Vec<Received>, attempts_max: u32) -> (Vec<Received>, Vec<Received>) {
    let (mut group, mut rest) = (Vec::<Received>::new(), Vec::new());
    let mut attempt = SUSPECT_ATTEMPT;
    for job in received {
        let highest = attempt.max(job.attempt);
        if (SUSPECT_ATTEMPT..=attempts_max).contains(&job.attempt) && group.len() < group_max(highest, attempts_max) {
            attempt = highest;
            group.push(job);
        } else {
            rest.push(job);
        }
    }
    (group, rest)
}

fn group_max(attempt: u32, attempts_max: u32) -> usize {
    let halvings = (attempt - SUSPECT_ATTEMPT).max(2u32.saturating_sub(attempts_max - attempt));
    if crate::mutant::active("groups_never_shrink") {
        return GROUP_MAX.get();
    }
    GROUP_MAX.get() >> halvings.min(2)
}
