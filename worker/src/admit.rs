//! The intake stage: has pulls decoded and tokenised on CPU threads, a few at once, and hands them over in their order.
//!
//! In: what was received. Out: tickets to the look stage, what leaves the line at once to the outbox. What becomes of a job
//! [`crate::intake`] decides; this stage only moves it.

use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc;

use crate::claim::Claim;
use crate::fitness::Fitness;
use crate::intake::{Admission, Intake};
use crate::offload::Offload;
use crate::pulse::Pulse;
use crate::ticket::{Outbound, Received, Ticket};

/// The stage.
pub struct Admit {
    /// What looks into each job.
    pub intake: Intake,
    /// From receive.
    pub received: mpsc::Receiver<Vec<Received>>,
    /// To the look stage.
    pub tickets: mpsc::Sender<Vec<Ticket>>,
    /// To who reads inputs from objects.
    pub claims: mpsc::Sender<Claim>,
    /// To the outbox.
    pub outbound: mpsc::Sender<Outbound>,
    /// Whether the worker fits its queue.
    pub fitness: Fitness,
    /// Pulls, or parts of one, at once.
    pub threads: usize,
    /// Where it is done.
    pub offload: Offload,
    /// Beats with each job; while there are none, while the stage turns.
    pub pulse: Pulse,
}

/// The fewest jobs worth a thread's attention.
const CHUNK_JOBS_MIN: usize = 16;

impl Admit {
    /// Admits until nothing more is received.
    pub async fn run(mut self) {
        let mut admitting = FuturesOrdered::new();
        let mut open = true;
        while open || !admitting.is_empty() {
            self.pulse.beat();
            tokio::select! {
                biased;
                Some(admissions) = admitting.next(), if !admitting.is_empty() => self.hand_over(admissions).await,
                received = self.received.recv(), if open && admitting.len() < self.threads => match received {
                    Some(received) => {
                        for chunk in chunks(received, self.threads) {
                            let (intake, pulse) = (self.intake.clone(), self.pulse.clone());
                            let admit = move |job| {
                                let admission = intake.admit(job);
                                pulse.beat();
                                admission
                            };
                            admitting.push_back(self.offload.run(|| chunk.into_iter().map(admit).collect::<Vec<_>>()));
                        }
                    }
                    None => open = false,
                },
                () = self.pulse.due(), if admitting.is_empty() => {}
            }
        }
    }

    async fn hand_over(&mut self, admissions: Vec<Admission>) {
        let mut tickets = Vec::with_capacity(admissions.len());
        for admission in admissions {
            match admission {
                Admission::Run(ticket) => {
                    self.fitness.fit();
                    tickets.push(ticket);
                }
                Admission::Claim(claim) => {
                    self.fitness.fit();
                    self.claim(*claim).await;
                }
                Admission::Leave(outbound) => self.send(outbound).await,
                Admission::Misfit(outbound) => {
                    self.fitness.misfit();
                    self.send(outbound).await;
                }
            }
        }
        if tickets.is_empty() {
            return;
        }
        // The next stage outlives this one; were it gone, dropping the leases would redeliver the jobs.
        let _ = self.tickets.send(tickets).await;
    }

    async fn claim(&self, claim: Claim) {
        // The stage outlives this one, and its channel has room for every job in flight.
        let _ = self.claims.send(claim).await;
    }

    async fn send(&self, outbound: Outbound) {
        // The outbox outlives this stage; were it gone, dropping the lease would redeliver the job.
        let _ = self.outbound.send(outbound).await;
    }
}

fn chunks(mut received: Vec<Received>, threads: usize) -> Vec<Vec<Received>> {
    let size = received.len().div_ceil(threads).max(CHUNK_JOBS_MIN);
    let mut chunks = Vec::new();
    while received.len() > size {
        let rest = received.split_off(size);
        chunks.push(std::mem::replace(&mut received, rest));
    }
    chunks.push(received);
    chunks
}
