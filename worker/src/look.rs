//! The look stage: asks the bucket whether a job's object is there already, so that no work is done twice.
//!
//! In: tickets from intake. Out: those to run to dispatch; those whose object is there to the outbox, as the reply that
//! points at it, or as a conflict when it answers another job. Jobs without an object pass at once. A bucket that is down
//! keeps its jobs here while pulling pauses; stop, and the lease's limit, give them back unspent.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use inferq_shared::bucket::Buckets;
use inferq_shared::telemetry::story;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::assemble::Signature;
use crate::object::{self, Mark, Target};
use crate::outage::{NoAnswer, Patience};
use crate::pulse::Pulse;
use crate::stores::{Begun, Stores};
use crate::ticket::{Case, Outbound, ReleaseReason, Ticket};

/// The stage.
pub struct Look {
    /// Where objects are.
    pub buckets: Buckets,
    /// From intake.
    pub tickets: mpsc::Receiver<Vec<Ticket>>,
    /// To dispatch.
    pub absent: mpsc::Sender<Vec<Ticket>>,
    /// To the outbox.
    pub outbound: mpsc::Sender<Outbound>,
    /// How long a bucket is waited for.
    pub patience: Patience,
    /// What replies are signed with.
    pub signature: Arc<Signature>,
    /// Stop working.
    pub working: CancellationToken,
    /// Beats while the stage turns.
    pub pulse: Pulse,
}

/// What becomes of a job that was looked for.
enum Looked {
    Absent(Box<Ticket>),
    Leave(Outbound),
}

type Looking = FuturesUnordered<BoxFuture<'static, (Begun, Looked)>>;

impl Look {
    /// Looks until nothing more comes.
    pub async fn run(mut self) {
        let mut waiting = Stores::new(usize::MAX);
        let mut looking = Looking::new();
        let mut open = true;
        while open || !looking.is_empty() {
            self.pulse.beat();
            tokio::select! {
                biased;
                Some((place, looked)) = looking.next(), if !looking.is_empty() => {
                    waiting.over(place);
                    match looked {
                        Looked::Absent(ticket) => self.pass(vec![*ticket]).await,
                        Looked::Leave(outbound) => self.send(outbound).await,
                    }
                }
                tickets = self.tickets.recv(), if open => match tickets {
                    Some(tickets) => self.sort(tickets, &mut waiting).await,
                    None => open = false,
                },
                () = self.pulse.due() => {}
            }
            while let Some((place, ticket)) = waiting.begin() {
                let looking_for = self.looking_for(ticket);
                looking.push(Box::pin(async move { (place, looking_for.await) }));
            }
        }
    }

    /// Passes on what has no object, and puts the rest in line.
    async fn sort(&self, tickets: Vec<Ticket>, waiting: &mut Stores<Ticket>) {
        let has_object = |ticket: &Ticket| ticket.case.object.is_some() && !crate::mutant::active("look_left_out");
        let (with_object, without): (Vec<_>, Vec<_>) = tickets.into_iter().partition(has_object);
        for ticket in with_object {
            let uri = ticket.case.object.as_ref().expect("it was just seen").uri.clone();
            waiting.push(&uri, 0, ticket);
        }
        if !without.is_empty() {
            self.pass(without).await;
        }
    }

    fn looking_for(&mut self, mut ticket: Ticket) -> impl Future<Output = Looked> + use<> {
        let (buckets, signature) = (self.buckets.clone(), Arc::clone(&self.signature));
        self.patience.seed = self.patience.seed.wrapping_add(1);
        let mut patience = self.patience.clone();
        async move {
            let Some(target) = ticket.case.object.clone() else { return Looked::Absent(Box::new(ticket)) };
            let kept = patience.ask("look", ticket.case.at, || buckets.digest(&target.uri)).await;
            ticket.case.trace.stage("look");
            match kept {
                Ok(None) => Looked::Absent(Box::new(ticket)),
                Ok(Some(kept)) => Looked::Leave(there(ticket, &target, kept.as_deref(), &signature)),
                Err(NoAnswer::Released(reason)) => Looked::Leave(ticket.case.release(reason)),
                Err(NoAnswer::Refused(error)) => {
                    Looked::Leave(ticket.case.dead(format!("reply_undeliverable: {error}")))
                }
            }
        }
    }

    async fn pass(&self, tickets: Vec<Ticket>) {
        // Dispatch is gone only when the device is lost or the drain limit has come: then the jobs go back unspent.
        if let Err(unsent) = self.absent.send(tickets).await {
            let reason = if self.working.is_cancelled() { ReleaseReason::DrainLimit } else { ReleaseReason::Device };
            for ticket in unsent.0 {
                self.send(ticket.case.release(reason)).await;
            }
        }
    }

    async fn send(&self, outbound: Outbound) {
        // The outbox outlives this stage; were it gone, dropping the lease would redeliver the job.
        let _ = self.outbound.send(outbound).await;
    }
}

/// The answer to a job whose object is there.
fn there(ticket: Ticket, target: &Target, kept: Option<&str>, signature: &Signature) -> Outbound {
    let Ticket { case, items, .. } = ticket;
    let reply = signature.uncomputed(&case, items.len());
    let mark = Mark::ours(kept, &target.digest);
    story::found(&case.id, mark.is_some());
    let reply = match mark {
        Some(mark) => object::pointer(reply, &target.uri, mark),
        None => object::conflict(reply, &target.uri),
    };
    answered(case, reply)
}

fn answered(case: Case, reply: inferq_shared::reply::Reply) -> Outbound {
    Outbound::Reply(Box::new(case.answered(reply)))
}
