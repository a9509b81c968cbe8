//! What travels on the line: a received delivery, the ticket it becomes, and how it leaves.
//!
//! Each type owns the job's lease and its share of what is in flight, so neither can be settled twice or forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inferq_shared::broker::{Delivery, Lease, Message};
use inferq_shared::job::{JobId, Metadata, Parameters, attribute};
use inferq_shared::reply::{ItemResult, Reply};
use inferq_shared::telemetry::traces::{Parent, Trace};
use tokio::sync::oneshot;

use crate::assemble::Run;
use crate::engine::Tokens;
use crate::in_flight::Hold;
use crate::object::Target;

/// A delivery, counted, before anybody looked into it.
#[derive(Debug)]
pub struct Received {
    /// What was published.
    pub message: Message,
    /// The broker's count of this attempt.
    pub attempt: u32,
    /// The right to settle it.
    pub lease: Lease,
    /// Its share of what is in flight.
    pub hold: Hold,
    /// When it came.
    pub at: Instant,
}

impl Received {
    /// Enters a delivery into the account.
    pub fn new(delivery: Delivery, hold: Hold, at: Instant) -> Self {
        let Delivery { message, attempt, lease } = delivery;
        Self { message, attempt, lease, hold, at }
    }

    /// Leaves the line unanswered and unspent.
    pub fn release(mut self, reason: ReleaseReason, after: Duration) -> Outbound {
        let id = self.message.attributes.remove(attribute::JOB_ID).and_then(|id| JobId::new(id).ok());
        Outbound::Release { id, lease: self.lease, hold: self.hold, reason, after }
    }
}

/// A decoded, validated, tokenised job with its lease.
#[derive(Debug)]
pub struct Ticket {
    /// Who is to be answered, and how.
    pub case: Case,
    /// One entry an item: its id, and its tokens or why it has none.
    pub items: Vec<TicketItem>,
    /// After this instant nobody wants the answer.
    pub deadline: Option<Instant>,
}

/// One item of a ticket.
#[derive(Debug)]
pub struct TicketItem {
    /// The submitter's own id, or `<job id>/<index>`.
    pub id: String,
    /// Its tokens, or the error that the item is answered with.
    pub tokens: Result<Arc<Tokens>, inferq_shared::reply::ReplyError>,
}

/// Some items of a large input, answered to who reads it.
#[derive(Debug)]
pub struct Window {
    /// The job that they belong to.
    pub id: JobId,
    /// How they are answered.
    pub parameters: Parameters,
    /// The index of the first.
    pub index: u32,
    /// One entry an item, as in a ticket.
    pub items: Vec<TicketItem>,
    /// After this instant nobody wants the answers.
    pub deadline: Option<Instant>,
    /// Their share of what is in flight.
    pub hold: Hold,
    /// The span of their job, if it has one.
    pub trace: Option<Parent>,
    /// Told how it ended; dropped when they were lost with a device.
    pub back: oneshot::Sender<WindowEnd>,
}

/// How a window left the line.
#[derive(Debug)]
pub enum WindowEnd {
    /// One result an item, in order, and where the time went.
    Answered(Vec<ItemResult>, Run),
    /// It was given back unanswered.
    Released(ReleaseReason),
}

/// What a job's answer needs beside the answers: who asked, how, and the right to settle.
#[derive(Debug)]
pub struct Case {
    /// The job's id.
    pub id: JobId,
    /// How its items are answered.
    pub parameters: Parameters,
    /// Echoed.
    pub metadata: Metadata,
    /// The queue its reply goes to.
    pub route: String,
    /// The object that its results become; without one they are in the reply.
    pub object: Option<Box<Target>>,
    /// The broker's count of this attempt.
    pub attempt: u32,
    /// Its part of its trace, passed on to the reply.
    pub trace: Trace,
    /// An AMQP client's own number for the job.
    pub correlation_id: Option<String>,
    /// The submission it belongs to.
    pub submission: Option<String>,
    /// The right to settle it.
    pub lease: Lease,
    /// Its share of what is in flight.
    pub hold: Hold,
    /// When it came.
    pub at: Instant,
    /// From publishing to receiving.
    pub queued: Duration,
    /// Decoding, checking, tokenising.
    pub intake: Duration,
}

impl Case {
    /// Leaves the line unanswered and unspent.
    pub fn release(self, reason: ReleaseReason) -> Outbound {
        let Self { id, trace, lease, hold, .. } = self;
        trace.released(reason.as_str());
        Outbound::Release { id: Some(id), lease, hold, reason, after: Duration::ZERO }
    }

    /// Leaves the line: its answer is there already.
    pub fn done(self) -> Outbound {
        let Self { id, trace, lease, hold, at, .. } = self;
        trace.end("done");
        Outbound::Done { id, lease, hold, at }
    }

    /// Leaves the line as a dead letter.
    pub fn dead(self, reason: String) -> Outbound {
        let Self { id, trace, lease, hold, .. } = self;
        trace.fail("dead_lettered", &reason);
        Outbound::Dead { id: Some(id), lease, hold, reason }
    }
}

/// Why a job is given back unanswered, its attempt unspent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseReason {
    /// The worker stops, and the job is in no batch yet.
    Draining,
    /// The worker stops, and the job was not done by the drain limit.
    DrainLimit,
    /// A suspect runs apart: this one is not in its group, or is a suspect that waits for the others to end.
    Suspect,
    /// This worker can't run it, but another may.
    Misfit,
    /// Its reply could not be published, or its object not be looked for or put, for as long as it may be held.
    Outage,
    /// The route of its reply was full for too long.
    RouteFull,
    /// The device is lost, though not on this job.
    Device,
}

impl ReleaseReason {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::Draining, Self::DrainLimit, Self::Suspect, Self::Misfit, Self::Outage, Self::RouteFull, Self::Device];

    /// The reason's name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::DrainLimit => "drain_limit",
            Self::Suspect => "suspect",
            Self::Misfit => "misfit",
            Self::Outage => "outage",
            Self::RouteFull => "route_full",
            Self::Device => "device",
        }
    }
}

/// How a job leaves the line. Only the outbox settles leases.
#[derive(Debug)]
pub enum Outbound {
    /// Answered: publish, wait for the confirm, ack.
    Reply(Box<Answered>),
    /// Given back unspent.
    Release {
        /// The job, where its id can be told.
        id: Option<JobId>,
        /// The right to settle it.
        lease: Lease,
        /// Its share of what is in flight.
        hold: Hold,
        /// Why.
        reason: ReleaseReason,
        /// When it may be seen again.
        after: Duration,
    },
    /// Answered elsewhere, by objects and shards that are there for good: ack.
    Done {
        /// The job.
        id: JobId,
        /// The right to settle it.
        lease: Lease,
        /// Its share of what is in flight.
        hold: Hold,
        /// When it came.
        at: Instant,
    },
    /// Kept as a dead letter.
    Dead {
        /// The job, where its id can be told.
        id: Option<JobId>,
        /// The right to settle it.
        lease: Lease,
        /// Its share of what is in flight.
        hold: Hold,
        /// Why.
        reason: String,
    },
}

/// A reply and where it goes.
#[derive(Debug)]
pub struct Answered {
    /// The reply.
    pub reply: Reply,
    /// The queue it goes to.
    pub route: String,
    /// The object that its results are to become first.
    pub object: Option<Box<Target>>,
    /// Its part of its trace.
    pub trace: Trace,
    /// An AMQP client's own number for the job.
    pub correlation_id: Option<String>,
    /// The submission it belongs to.
    pub submission: Option<String>,
    /// The right to settle the job.
    pub lease: Lease,
    /// Its share of what is in flight.
    pub hold: Hold,
    /// When the job came.
    pub at: Instant,
}
