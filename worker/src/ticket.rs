//! What travels on the line: a received delivery, the ticket it becomes, and how it leaves.
//!
//! Each type owns the job's lease and its share of what is in flight, so neither can be settled twice or forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inferq_shared::broker::{Delivery, Lease, Message};
use inferq_shared::job::{JobId, Metadata, Parameters};
use inferq_shared::reply::Reply;

use crate::engine::Tokens;
use crate::in_flight::Hold;

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
    pub fn release(self, after: Duration) -> Outbound {
        Outbound::Release { lease: self.lease, hold: self.hold, after }
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
    /// The broker's count of this attempt.
    pub attempt: u32,
    /// W3C trace context, passed on to the reply.
    pub traceparent: Option<String>,
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
    pub fn release(self, after: Duration) -> Outbound {
        Outbound::Release { lease: self.lease, hold: self.hold, after }
    }
}

/// How a job leaves the line. Only the outbox settles leases.
#[derive(Debug)]
pub enum Outbound {
    /// Answered: publish, wait for the confirm, ack.
    Reply(Box<Answered>),
    /// Given back unspent.
    Release {
        /// The right to settle it.
        lease: Lease,
        /// Its share of what is in flight.
        hold: Hold,
        /// When it may be seen again.
        after: Duration,
    },
    /// Kept as a dead letter.
    Dead {
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
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The submission it belongs to.
    pub submission: Option<String>,
    /// The right to settle the job.
    pub lease: Lease,
    /// Its share of what is in flight.
    pub hold: Hold,
    /// When the job came.
    pub at: Instant,
}
