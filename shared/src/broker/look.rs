//! Looking at a broker without taking part: messages where they stand, and the workers that say they are there.
//!
//! In: what a broker that can be looked at ([`super::Capabilities::browse`], [`super::Capabilities::workers`]) has
//! stored. Out: plain data. Looking changes nothing: no lease, no attempt, no order. It is no snapshot: what moves
//! while somebody looks page by page may be seen twice, or not at all.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::Message;

/// Where the next page of a queue begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub(super) i64, pub(super) i64);

impl Cursor {
    /// The queue's beginning.
    pub const START: Self = Self(i64::MIN, i64::MIN);
}

/// How much of the messages is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// All of them.
    Whole,
    /// None: only attributes and sizes, which costs a fraction of the reading.
    Absent,
}

/// One page: at most so many messages, and no further one after so many bytes of bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Where it begins.
    pub after: Cursor,
    /// Messages.
    pub messages: NonZeroUsize,
    /// Bytes of bodies, if they are wanted; the message that passes them is still brought.
    pub bytes: usize,
    /// Whether bodies are wanted.
    pub bodies: Bodies,
}

/// A message, seen where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Browsed {
    /// What was published; the body is empty where it was not wanted.
    pub message: Message,
    /// The body's size in bytes, wanted or not.
    pub body_bytes: usize,
    /// The attempt that its lease is, or its next one will be.
    pub attempt: u32,
    /// Where it stands.
    pub standing: Standing,
    /// How long ago it was published.
    pub age: Duration,
    /// Where the page after it begins.
    pub cursor: Cursor,
}

/// How a message stands in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It could be delivered now.
    Waiting,
    /// Somebody has it; the lease ends after so long unless it is renewed.
    Leased(Duration),
    /// It is seen after so long.
    Delayed(Duration),
}

/// What a worker last said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Which worker, as it calls itself; unlike any other.
    pub worker: String,
    /// What it said.
    pub about: String,
    /// How long ago.
    pub age: Duration,
}

/// A worker that has said nothing for so long is taken for gone.
pub const WORKER_SILENT: Duration = Duration::from_secs(60);
