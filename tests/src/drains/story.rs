//! What happened in a drain. Pure data.

use std::collections::BTreeMap;
use std::time::Duration;

use inferq_producer::report::Percentiles;
use inferq_shared::reply::Status;

use super::{Kind, Terms};
use crate::kubelet::End;

/// The worker that is stopped.
pub const FIRST: &str = "first";

/// What a worker does when SIGTERM comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The model is being read, from a volume that does not answer.
    Loading,
    /// The model is being warmed up, on a device that hangs.
    Warming,
    /// Ready, with nothing to do.
    Idle,
    /// A batch is running that ends well before the drain limit; other jobs wait.
    MidBatch,
    /// A batch is running that ends long after it.
    LongBatch,
    /// Replies are made, and held up on their way to the broker; the way is free again once the worker drains.
    Publishing,
    /// The same, and the way stays closed.
    Stalled,
}

impl Phase {
    /// All of them, in a worker's order.
    pub const ALL: [Self; 7] =
        [Self::Loading, Self::Warming, Self::Idle, Self::MidBatch, Self::LongBatch, Self::Publishing, Self::Stalled];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Idle => "idle",
            Self::MidBatch => "mid-batch",
            Self::LongBatch => "batch beyond limit",
            Self::Publishing => "publishing",
            Self::Stalled => "publishing, stalled",
        }
    }

    /// Whether the worker takes jobs in it, and is ready therefore.
    pub fn is_ready(self) -> bool {
        !matches!(self, Self::Loading | Self::Warming)
    }
}

/// One reply that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replied {
    /// To which job.
    pub job: usize,
    /// By whom.
    pub worker: String,
    /// The attempt that it comes from.
    pub attempt: u32,
    /// How it went.
    pub status: Status,
    /// Its results, as JSON.
    pub content: String,
}

/// Jobs and the replies to them. Jobs are numbered from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jobs {
    /// How many were confirmed by the broker.
    pub published: usize,
    /// All replies, in the order in which they came.
    pub replies: Vec<Replied>,
    /// Whether there are dead letters.
    pub dead: bool,
}

impl Jobs {
    /// Attempts that were lost, over all jobs.
    pub fn attempts_spent(&self) -> u32 {
        let mut attempts = BTreeMap::new();
        for reply in &self.replies {
            let most = attempts.entry(reply.job).or_insert(1);
            *most = reply.attempt.max(*most);
        }
        attempts.values().map(|attempt| attempt - 1).sum()
    }

    /// Jobs that were answered by this worker.
    pub fn answered_by(&self, worker: &str) -> usize {
        self.replies.iter().filter(|reply| reply.worker == worker).count()
    }
}

/// One stop.
#[derive(Debug, Clone)]
pub struct Story {
    /// On which broker.
    pub broker: Kind,
    /// Whether giving a job back costs nothing there.
    pub free_release: bool,
    /// When SIGTERM came.
    pub phase: Phase,
    /// What the worker was given.
    pub terms: Terms,
    /// All jobs; a second worker works off what the first one leaves.
    pub jobs: Jobs,
    /// How the first one ended.
    pub end: End,
    /// Jobs that it gave back.
    pub given_back: usize,
    /// Leases that it could not settle.
    pub unsettled: usize,
    /// Jobs that it had answered and done with when SIGTERM came.
    pub settled_before: usize,
}

/// One rolling update, or the same time without one.
#[derive(Debug, Clone)]
pub struct Update {
    /// On which broker.
    pub broker: Kind,
    /// Whether giving a job back costs nothing there.
    pub free_release: bool,
    /// What the workers were given.
    pub terms: Terms,
    /// Whether workers were replaced.
    pub updating: bool,
    /// All jobs.
    pub jobs: Jobs,
    /// How the replaced ones ended; none without an update.
    pub ends: Vec<End>,
    /// From the first new worker's start to the last old one's end.
    pub took: Duration,
    /// Jobs that the replaced ones answered.
    pub answered: usize,
    /// Jobs that they gave back.
    pub given_back: usize,
    /// Leases that they could not settle.
    pub unsettled: usize,
    /// From the instant at which a job was due to its reply.
    pub latency_ms: Percentiles,
}
