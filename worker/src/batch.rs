//! Which items form the next batch, and when. Pure: no clock, no channel, no thread; the instant is an argument.
//!
//! In: the tokenised items of jobs. Out: [`Batch`]es of items of nearly one length, from any number of jobs, items equal
//! in tokens merged into one [`Row`]. It never holds anything of a job of which nothing waits, never loses or doubles an
//! item, and never looks at a reply, a lease or an engine.
//!
//! A batch closes when no further item of some length can join it, when the oldest item has lingered, or when a deadline
//! is within one linger. Jobs take turns: the job whose turn it is *leads*, its oldest item names the length, and the
//! batch fills up with the leader's items, then with one item each of the other jobs, oldest job first, round after
//! round.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::draft::Draft;
use crate::engine::Tokens;

/// The caller's number of a job.
pub type JobKey = u64;

/// What bounds a batch, in size and in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens of a batch, padding included. An item that is longer runs alone.
    pub tokens_max: usize,
    /// Rows of a batch.
    pub items_max: usize,
    /// How long an item waits for company.
    pub linger: Duration,
    /// What the rows of a batch are padded to.
    pub padding: Padding,
}

/// What the rows of a batch are padded to, and how much padding pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// The longest of them, as on a CPU.
    Longest,
    /// The next of [`RUNGS`](crate::engine::RUNGS), as on a device that has few shapes.
    Rungs,
}

/// One item of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Whose item.
    pub job: JobKey,
    /// Its place in the job.
    pub index: u32,
}

/// What an engine computes once, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The tokens that all members have in common.
    pub tokens: Arc<Tokens>,
    /// The items that have them, in order of job and index; at least one.
    pub members: Vec<Member>,
    /// When the first of them arrived.
    pub waited_since: Instant,
}

impl Row {
    /// Tokens, without padding.
    pub fn length(&self) -> usize {
        self.tokens.ids.len()
    }
}

/// Rows that run together, longest first; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    rows: Vec<Row>,
    leader: JobKey,
    padding: Padding,
}

impl Batch {
    /// The rows, longest first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The rows by value, longest first.
    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// The job whose turn it was.
    pub fn leader(&self) -> JobKey {
        self.leader
    }

    /// The length that every row is padded to.
    pub fn padded_length(&self) -> usize {
        self.padding.length(self.rows[0].length())
    }

    /// What the engine computes: rows × padded length.
    pub fn padded_tokens(&self) -> usize {
        self.rows.len() * self.padded_length()
    }

    /// Tokens without padding.
    pub fn real_tokens(&self) -> usize {
        self.rows.iter().map(Row::length).sum()
    }

    /// Halves the batch, the longer rows first; a single row stays whole.
    pub fn split(mut self) -> (Self, Option<Self>) {
        if self.rows.len() == 1 {
            return (self, None);
        }
        let shorter = self.rows.split_off(self.rows.len().div_ceil(2));
        let (leader, padding) = (self.leader, self.padding);
        (self, Some(Self { rows: shorter, leader, padding }))
    }
}

/// Rows are numbered as they arrive.
type RowId = u64;

/// A row that waits. Its members are in [`Batcher::members`].
#[derive(Debug)]
struct Waiting {
    tokens: Arc<Tokens>,
    bucket: usize,
    since: Instant,
}

/// A job of which at least one item waits.
#[derive(Debug)]
struct Job {
    turn: u64,
    /// Tokens it may still have taken from the engine; below zero when other jobs' batches took more of it.
    credit: i64,
    /// Its turn came once while its batch was not due, and went by.
    passed: bool,
    /// An item of it has been in a batch.
    started: bool,
    deadline: Option<Instant>,
}

/// The items that wait, and whose turn it is. Each operation costs O(log n) an item.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    /// For each bucket the greatest length in it.
    bounds: Vec<usize>,
    /// For each bucket the rows that wait in it.
    counts: Vec<usize>,
    full: BTreeSet<usize>,
    rows: BTreeMap<RowId, Waiting>,
    /// For looking up only: its order is not the program's.
    row_of: HashMap<Arc<Tokens>, RowId>,
    members: BTreeSet<(RowId, JobKey, u32)>,
    by_job: BTreeSet<(JobKey, RowId)>,
    by_bucket: BTreeSet<(usize, JobKey, RowId)>,
    jobs: BTreeMap<JobKey, Job>,
    turns: BTreeMap<u64, JobKey>,
    deadlines: BTreeSet<(Instant, JobKey)>,
    row_next: RowId,
    turn_next: u64,
    tokens: usize,
}

impl Batcher {
    /// An empty batcher.
    pub fn new(limits: BatchLimits) -> Self {
        let bounds = limits.padding.bucket_bounds();
        Self {
            limits,
            counts: vec![0; bounds.len()],
            bounds,
            full: BTreeSet::new(),
            rows: BTreeMap::new(),
            row_of: HashMap::new(),
            members: BTreeSet::new(),
            by_job: BTreeSet::new(),
            by_bucket: BTreeSet::new(),
            jobs: BTreeMap::new(),
            turns: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            row_next: 0,
            turn_next: 0,
            tokens: 0,
        }
    }

    /// Adds items of a job; `now` must not run backwards. A job of which something waits keeps its turn and deadline.
    pub fn push(
        &mut self,
        job: JobKey,
        items: impl IntoIterator<Item = (u32, Arc<Tokens>)>,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() {
            return;
        }
        self.enrol(job, deadline);
        for (index, tokens) in items {
            let id = self.row_for(tokens, now);
            let bucket = self.rows[&id].bucket;
            self.members.insert((id, job, index));
            self.by_job.insert((job, id));
            self.by_bucket.insert((bucket, job, id));
        }
    }

    /// Closes a batch if one is due: call it when an engine can take one, until it says `None`.
    pub fn next(&mut self, now: Instant) -> Option<Batch> {
        let due = !self.full.is_empty() || self.wake_at().is_some_and(|at| at <= now);
        if !due {
            return None;
        }
        let leader = self.take_turn(|batcher, job| batcher.is_due(job, now));
        Some(self.close(leader))
    }

    /// Closes a batch of whatever waits: nothing more will come.
    pub fn flush(&mut self) -> Option<Batch> {
        if self.is_empty() {
            return None;
        }
        let leader = self.take_turn(|_, _| true);
        Some(self.close(leader))
    }

    /// When [`Batcher::next`] will close a batch at the latest, without new input. It may be past: then an engine is
    /// all that is missing.
    pub fn wake_at(&self) -> Option<Instant> {
        let lingered = self.rows.first_key_value().map(|(_, row)| row.since + self.limits.linger);
        let urgent = self.deadlines.first().map(|&(deadline, _)| self.urgent_at(deadline));
        lingered.into_iter().chain(urgent).min()
    }

    /// The nearest deadline: when [`Batcher::expire`] will have something to do.
    pub fn expires_at(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Removes and names the items whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Member> {
        let mut expired = Vec::new();
        while let Some(&(deadline, job)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            expired.append(&mut self.remove(job));
        }
        expired
    }

    /// Removes and names the jobs none of whose items was ever in a batch; jobs that have begun stay.
    pub fn take_unstarted(&mut self) -> Vec<JobKey> {
        let unstarted: Vec<JobKey> = self.jobs.iter().filter(|(_, job)| !job.started).map(|(&key, _)| key).collect();
        for &job in &unstarted {
            self.remove(job);
        }
        unstarted
    }

    /// Removes what waits of a job that ended early, and names it.
    pub fn remove(&mut self, job: JobKey) -> Vec<Member> {
        let rows: Vec<RowId> = self.by_job.range((job, 0)..=(job, RowId::MAX)).map(|&(_, row)| row).collect();
        let mut removed = Vec::new();
        for id in rows {
            let indices: Vec<_> = self.members.range((id, job, 0)..=(id, job, u32::MAX)).copied().collect();
            for member in indices {
                self.members.remove(&member);
                removed.push(Member { job, index: member.2 });
            }
            self.by_bucket.remove(&(self.rows[&id].bucket, job, id));
            self.by_job.remove(&(job, id));
            if self.members.range((id, 0, 0)..=(id, JobKey::MAX, u32::MAX)).next().is_none() {
                self.forget_row(id);
            }
        }
        self.strike(job);
        removed
    }

    /// Tokens that wait to be computed, equal items counted once, without padding.
    pub fn tokens_waiting(&self) -> usize {
        self.tokens
    }

    /// Items that wait.
    pub fn items_waiting(&self) -> usize {
        self.members.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn enrol(&mut self, key: JobKey, deadline: Option<Instant>) {
        if self.jobs.contains_key(&key) {
            return;
        }
        let turn = self.last_turn();
        self.turns.insert(turn, key);
        self.jobs.insert(key, Job { turn, credit: 0, passed: false, started: false, deadline });
        self.deadlines.extend(deadline.map(|deadline| (deadline, key)));
    }

    /// Forgets a job of which nothing waits.
    fn strike(&mut self, key: JobKey) {
        let Some(job) = self.jobs.remove(&key) else { return };
        self.turns.remove(&job.turn);
        if let Some(deadline) = job.deadline {
            self.deadlines.remove(&(deadline, key));
        }
    }

    fn row_for(&mut self, tokens: Arc<Tokens>, now: Instant) -> RowId {
        if let Some(&id) = self.row_of.get(&tokens) {
            return id;
        }
        let id = self.row_next;
        self.row_next += 1;
        let length = tokens.ids.len();
        let bucket = self.bounds.partition_point(|&bound| bound < length);
        self.tokens += length;
        self.row_of.insert(Arc::clone(&tokens), id);
        self.rows.insert(id, Waiting { tokens, bucket, since: now });
        self.counts[bucket] += 1;
        self.note_fullness(bucket);
        id
    }

    fn forget_row(&mut self, id: RowId) -> Waiting {
        let row = self.rows.remove(&id).expect("every index names rows that wait");
        self.row_of.remove(&row.tokens);
        self.tokens -= row.tokens.ids.len();
        self.counts[row.bucket] -= 1;
        self.note_fullness(row.bucket);
        row
    }

    /// A bucket is full when a batch of it could take no further item, even one of the bucket's least length.
    fn note_fullness(&mut self, bucket: usize) {
        let least = bucket.checked_sub(1).map_or(1, |shorter| self.bounds[shorter] + 1);
        let least = self.limits.padding.length(least);
        let count = self.counts[bucket];
        let full =
            count > 0 && (count >= self.limits.items_max || least.saturating_mul(count + 1) > self.limits.tokens_max);
        if full {
            self.full.insert(bucket);
        } else {
            self.full.remove(&bucket);
        }
    }

    fn last_turn(&mut self) -> u64 {
        self.turn_next += 1;
        self.turn_next
    }

    /// A job lingers no longer once its deadline is within one linger.
    fn urgent_at(&self, deadline: Instant) -> Instant {
        deadline.checked_sub(self.limits.linger).unwrap_or(deadline)
    }

    fn oldest_row(&self, job: JobKey) -> RowId {
        let first = self.by_job.range((job, 0)..).next();
        first.expect("a job is struck with its last row").1
    }

    fn is_due(&self, key: JobKey, now: Instant) -> bool {
        let row = &self.rows[&self.oldest_row(key)];
        let urgent = self.jobs[&key].deadline.is_some_and(|deadline| self.urgent_at(deadline) <= now);
        urgent || row.since + self.limits.linger <= now || self.full.contains(&row.bucket)
    }

    /// Deficit round robin. A turn is worth one batch's tokens. What other jobs' batches took of a job counts against
    /// it, but costs two turns at most: its items of other lengths must not starve. A job that is not due lets its turn
    /// go by once, so that it may find company; not twice, so that no other job leads more than two batches before it.
    fn take_turn(&mut self, is_due: impl Fn(&Self, JobKey) -> bool) -> JobKey {
        let quantum = i64::try_from(self.limits.tokens_max).unwrap_or(i64::MAX / 4);
        loop {
            let (_, key) = self.turns.pop_first().expect("while rows wait, jobs take turns");
            let due = is_due(self, key);
            let turn = self.last_turn();
            self.turns.insert(turn, key);
            let job = self.jobs.get_mut(&key).expect("turns are of jobs that wait");
            job.turn = turn;
            if !due && !job.passed {
                job.passed = true;
                continue;
            }
            job.credit = (job.credit.max(-quantum) + quantum).min(quantum);
            if job.credit > 0 || quantum == 0 {
                job.passed = false;
                return key;
            }
        }
    }

    fn close(&mut self, leader: JobKey) -> Batch {
        let first = self.oldest_row(leader);
        let bucket = self.rows[&first].bucket;
        let mut draft = Draft::new(self.limits);
        self.take(&mut draft, leader, first);
        self.fill_from_job(&mut draft, bucket, leader);
        self.fill_from_bucket(&mut draft, bucket);
        for shorter in (0..bucket).rev() {
            self.fill_from_bucket(&mut draft, shorter);
            if draft.closed {
                break;
            }
        }
        let mut rows = draft.rows;
        rows.sort_by_key(|row| std::cmp::Reverse(row.length()));
        Batch { rows, leader, padding: self.limits.padding }
    }

    fn fill_from_job(&mut self, draft: &mut Draft, bucket: usize, job: JobKey) {
        while let Some(id) = self.first_of(bucket, job) {
            if !draft.has_room_for(self.rows[&id].tokens.ids.len()) {
                return;
            }
            self.take(draft, job, id);
        }
    }

    /// One row of each job, oldest job first, round after round.
    fn fill_from_bucket(&mut self, draft: &mut Draft, bucket: usize) {
        let mut after = 0;
        while !draft.closed && self.counts[bucket] > 0 {
            let Some(&(_, job, id)) = self.by_bucket.range((bucket, after, 0)..(bucket + 1, 0, 0)).next() else {
                after = 0;
                continue;
            };
            if draft.has_room_for(self.rows[&id].tokens.ids.len()) {
                self.take(draft, job, id);
            }
            after = job.saturating_add(1);
        }
    }

    fn first_of(&self, bucket: usize, job: JobKey) -> Option<RowId> {
        self.by_bucket.range((bucket, job, 0)..=(bucket, job, RowId::MAX)).next().map(|&(_, _, row)| row)
    }

    /// Moves a row with all its members into the draft, at the cost of the job that it was taken for.
    fn take(&mut self, draft: &mut Draft, payer: JobKey, id: RowId) {
        let Waiting { tokens, bucket, since } = self.forget_row(id);
        let length = tokens.ids.len();
        if let Some(job) = self.jobs.get_mut(&payer) {
            job.credit -= i64::try_from(length).unwrap_or(i64::MAX / 4);
        }
        let mut members = Vec::new();
        while let Some(&member) = self.members.range((id, 0, 0)..=(id, JobKey::MAX, u32::MAX)).next() {
            self.members.remove(&member);
            let (_, job, index) = member;
            members.push(Member { job, index });
            self.begin(job, bucket, id);
        }
        draft.add(Row { tokens, members, waited_since: since });
    }

    /// A row of this job is in a batch now.
    fn begin(&mut self, job: JobKey, bucket: usize, id: RowId) {
        if !self.by_job.remove(&(job, id)) {
            return;
        }
        self.by_bucket.remove(&(bucket, job, id));
        if self.by_job.range((job, 0)..=(job, RowId::MAX)).next().is_none() {
            self.strike(job);
        } else if let Some(state) = self.jobs.get_mut(&job) {
            state.started = true;
        }
    }
}

mod draft;
#[cfg(test)]
mod tests;
