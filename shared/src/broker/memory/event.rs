//! What happened in a memory broker's queues, told as it happens: the ground truth of a simulation.

use std::sync::Arc;

use super::{Message, Verdict};

/// A connection's number, from 0.
pub type LinkId = u64;

/// Is told of every [`Event`], in order, while the queues are locked: it must not call the broker.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// One change. A message is known by its place, a number that is its own for life; a delivery by its lease's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message is in a queue.
    Published {
        /// By which connection.
        link: LinkId,
        /// In which queue.
        queue: String,
        /// Which message.
        place: u64,
        /// Its body and attributes.
        message: Message,
    },
    /// The publisher has been told so.
    Confirmed {
        /// Which connection.
        link: LinkId,
        /// Which messages.
        places: Vec<u64>,
    },
    /// A message was copied by a fault: the queue holds another one with the same body.
    Duplicated {
        /// Which message.
        place: u64,
        /// The copy.
        copy: u64,
    },
    /// A consumer has a message.
    Delivered {
        /// By which connection.
        link: LinkId,
        /// From which queue.
        queue: String,
        /// Which message.
        place: u64,
        /// Under which lease.
        token: u64,
        /// Which attempt it is.
        attempt: u32,
    },
    /// A lease ended.
    Ended {
        /// Which lease.
        token: u64,
        /// On which message.
        place: u64,
        /// How.
        end: End,
    },
    /// Nobody can settle a lease any more, because a call that would have was lost: it will expire.
    Orphaned {
        /// Which lease.
        token: u64,
    },
    /// Somebody tried to settle a lease that was over.
    Fenced {
        /// Which lease.
        token: u64,
        /// What was wanted.
        verdict: Verdict,
    },
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By its holder's decision.
    Settled(Verdict),
    /// It was not renewed in time: attempt + 1.
    Expired,
    /// Its connection broke, was closed or was killed: attempt + 1.
    Disconnected,
    /// Its queue was removed.
    Removed,
}
