//! What the worker holds: jobs, bytes and tokens between receive and settle, the bounds on each, and the speed that the
//! bound on tokens follows from.
//!
//! In: a [`Hold`] a job, made at receive and dropped when its lease has been settled. Out: room for the next pull. It
//! never drops or delays a job by itself.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use inferq_shared::broker::Pull;
use tokio::sync::watch;

/// How much may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of bodies.
    pub bytes: usize,
    /// Tokens, until a rate is measured; then what the drain limit can finish.
    pub tokens: usize,
}

/// What is in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs.
    pub jobs: usize,
    /// Bytes of bodies, and the most that results can have which are to be objects.
    pub bytes: usize,
    /// Tokens; estimated from bytes until the job is tokenised.
    pub tokens: usize,
    /// Pieces of large jobs, which are among the jobs.
    pub shards: usize,
}

/// How fast the worker computes while it is busy: all replicas together, over the last batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Tokens a second, without padding.
    pub tokens: f64,
    /// Items a second.
    pub items: f64,
}

/// The shared account. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight {
    counts: Arc<watch::Sender<Counts>>,
    speed: Arc<watch::Sender<Option<Speed>>>,
    bounds: Bounds,
    tokens_max: Arc<AtomicUsize>,
}

/// One job's share of the account, given back when dropped.
#[derive(Debug)]
pub struct Hold {
    counts: Arc<watch::Sender<Counts>>,
    bytes: usize,
    /// Bytes that it holds beside its body.
    carried: usize,
    tokens: usize,
    is_shard: bool,
}

/// The most jobs that one pull brings: enough to amortise a transaction, few enough to share a queue fairly.
const PULL_JOBS_MAX: usize = 256;
/// A guess before tokenising: English has about four bytes a token.
const BYTES_PER_TOKEN: usize = 4;

impl InFlight {
    /// An empty account with these bounds.
    pub fn new(bounds: Bounds) -> Self {
        let (counts, _) = watch::channel(Counts::default());
        let (speed, _) = watch::channel(None);
        Self {
            counts: Arc::new(counts),
            speed: Arc::new(speed),
            bounds,
            tokens_max: Arc::new(AtomicUsize::new(bounds.tokens)),
        }
    }

    /// Enters a job whose body has so many bytes.
    pub fn hold(&self, bytes: usize) -> Hold {
        let tokens = bytes / BYTES_PER_TOKEN;
        self.counts.send_modify(|counts| {
            counts.jobs += 1;
            counts.bytes += bytes;
            counts.tokens += tokens;
        });
        Hold { counts: Arc::clone(&self.counts), bytes, carried: 0, tokens, is_shard: false }
    }

    /// What is in flight now.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// The bound on tokens that holds now.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max.load(Ordering::Relaxed)
    }

    /// How fast it went lately; `None` before the first batch.
    pub fn speed(&self) -> Option<Speed> {
        *self.speed.borrow()
    }

    /// Notes how fast it goes.
    pub fn set_speed(&self, speed: Speed) {
        self.speed.send_replace(Some(speed));
    }

    /// Sets the bound on tokens to what the drain limit can finish.
    pub fn set_tokens_max(&self, tokens: usize) {
        if self.tokens_max.swap(tokens.max(1), Ordering::Relaxed) < tokens {
            self.counts.send_modify(|_| ()); // wakes a receiver that waits for room
        }
    }

    /// Waits until there is room, and says how much one pull may bring.
    pub async fn room(&self) -> Pull {
        let mut counts = self.counts.subscribe();
        let free = counts.wait_for(|counts| self.free(counts).is_some()).await.map(|counts| self.free(&counts));
        free.ok().flatten().expect("the sender lives in self, and the predicate just held")
    }

    /// Waits until fewer than `limit` shards are in flight.
    pub async fn fewer_shards_than(&self, limit: usize) {
        let mut counts = self.counts.subscribe();
        counts.wait_for(|counts| counts.shards < limit).await.expect("the sender lives in self");
    }

    /// Waits until exactly `jobs` jobs or fewer are in flight.
    pub async fn down_to(&self, jobs: usize) {
        let mut counts = self.counts.subscribe();
        counts.wait_for(|counts| counts.jobs <= jobs).await.expect("the sender lives in self");
    }

    fn free(&self, counts: &Counts) -> Option<Pull> {
        if crate::mutant::active("bounds_ignored") {
            return Some(Pull { jobs: NonZeroUsize::MAX, bytes: usize::MAX });
        }
        let jobs = NonZeroUsize::new(self.bounds.jobs.saturating_sub(counts.jobs).min(PULL_JOBS_MAX))?;
        let unbounded = |what| if crate::mutant::active(what) { usize::MAX } else { 0 };
        let bytes = self.bounds.bytes.saturating_sub(counts.bytes).max(unbounded("bytes_unbounded"));
        let tokens = self.tokens_max().saturating_sub(counts.tokens).max(unbounded("tokens_unbounded"));
        let bytes = bytes.min(tokens.saturating_mul(BYTES_PER_TOKEN));
        (bytes > 0).then_some(Pull { jobs, bytes })
    }
}

impl Hold {
    /// Replaces the estimate by the tokens counted.
    pub fn set_tokens(&mut self, tokens: usize) {
        let before = std::mem::replace(&mut self.tokens, tokens);
        self.counts.send_modify(|counts| counts.tokens = counts.tokens + tokens - before);
    }

    /// Counts the job among the shards, for as long as it is held.
    pub fn count_as_shard(&mut self) {
        if !std::mem::replace(&mut self.is_shard, true) {
            self.counts.send_modify(|counts| counts.shards += 1);
        }
    }

    /// Counts so many bytes beside the body, instead of those before.
    pub fn carry(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.carried, bytes);
        self.counts.send_modify(|counts| counts.bytes = counts.bytes + bytes - before);
    }

    /// Bytes of the job's body, and of what it holds beside it.
    pub fn bytes(&self) -> usize {
        self.bytes + self.carried
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.counts.send_modify(|counts| {
            counts.jobs -= 1;
            counts.bytes -= self.bytes + self.carried;
            counts.tokens -= self.tokens;
            counts.shards -= usize::from(self.is_shard);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_counts_until_it_is_dropped() {
        let account = InFlight::new(Bounds { jobs: 2, bytes: 100, tokens: 1000 });
        let mut hold = account.hold(40);
        hold.count_as_shard();
        hold.count_as_shard();
        assert_eq!(account.counts(), Counts { jobs: 1, bytes: 40, tokens: 10, shards: 1 });
        hold.set_tokens(25);
        assert_eq!(account.counts().tokens, 25);
        hold.carry(7);
        hold.carry(5);
        assert_eq!(account.counts().bytes, 45);
        drop(hold);
        assert_eq!(account.counts(), Counts::default());
    }

    #[tokio::test]
    async fn there_is_no_room_beyond_any_bound() {
        let account = InFlight::new(Bounds { jobs: 2, bytes: 100, tokens: 1000 });
        let first = account.hold(60);
        assert_eq!(account.room().await, Pull { jobs: NonZeroUsize::MIN, bytes: 40 });
        let second = account.hold(10);
        assert_eq!(account.free(&account.counts()), None, "two jobs are the bound");
        drop(second);
        drop(first);
        let mut long = account.hold(1);
        long.set_tokens(1000);
        assert_eq!(account.free(&account.counts()), None, "1000 tokens are the bound");
        account.set_tokens_max(2000);
        assert!(account.free(&account.counts()).is_some());
    }
}
