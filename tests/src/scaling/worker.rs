//! The line of one worker: what it holds, what runs, what it gives back.
//!
//! In: jobs, as many as there is room for; the end of a batch. Out: the jobs that are answered, or given back. It has no
//! clock: [`crate::scaling::world`] says when a batch is over.
//!
//! As in the worker itself: until a rate is measured it holds what fills a few batches, then what it computes in half of the
//! drain limit; at the stop signal it gives back what has not begun.

use std::collections::VecDeque;

use crate::scaling::Ms;

/// A job, by its place in the trace.
pub type JobId = u32;

/// What a worker is like.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Tokens a second while it is busy, all replicas together.
    pub tokens_per_s: f64,
    /// Replicas: each runs a batch at a time.
    pub replicas: u32,
    /// `--drain-limit-s`.
    pub drain_limit_s: f64,
}

/// `--max-batch-tokens` on the CPU.
const BATCH_TOKENS: u64 = 4096;
/// `--in-flight-jobs`.
const JOBS_MAX: usize = 512;
/// Batches that fill the worker before a rate is known.
const BATCHES_AHEAD: u64 = 4;
/// Batches a replica whose jobs have begun: one runs, one is with the replica, and because jobs take turns in batches, about
/// one more for the rest of their items.
const BATCHES_BEGUN: usize = 3;

/// The line.
#[derive(Debug)]
pub struct Line {
    speed: Speed,
    held: VecDeque<(JobId, u32)>,
    begun: VecDeque<Vec<(JobId, u32)>>,
    tokens: u64,
    jobs: usize,
    is_measured: bool,
    is_closed: bool,
}

impl Line {
    /// An empty one.
    pub fn new(speed: Speed) -> Self {
        Self {
            speed,
            held: VecDeque::new(),
            begun: VecDeque::new(),
            tokens: 0,
            jobs: 0,
            is_measured: false,
            is_closed: false,
        }
    }

    /// Tokens between fetch and answer.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Whether nothing is in hand.
    pub fn is_idle(&self) -> bool {
        self.jobs == 0
    }

    /// The rate that it tells: none before its first batch.
    pub fn rate(&self) -> Option<f64> {
        self.is_measured.then_some(self.speed.tokens_per_s)
    }

    /// Whether another job fits. Its size is known only when it has been fetched, so the last one may stand out.
    pub fn has_room(&self) -> bool {
        !self.is_closed && self.jobs < JOBS_MAX && self.tokens < self.tokens_max()
    }

    fn batch_tokens(&self) -> u64 {
        BATCH_TOKENS * u64::from(self.speed.replicas)
    }

    fn tokens_max(&self) -> u64 {
        if self.is_measured {
            (self.speed.tokens_per_s * self.speed.drain_limit_s / 2.0) as u64
        } else {
            self.batch_tokens() * BATCHES_AHEAD
        }
    }

    /// Takes a job in.
    pub fn take(&mut self, job: JobId, tokens: u32) {
        self.held.push_back((job, tokens));
        self.tokens += u64::from(tokens);
        self.jobs += 1;
    }

    /// Forms batches up to those that may have begun. How long the running one takes, if it has just become the running one.
    pub fn run(&mut self) -> Option<Ms> {
        let was_idle = self.begun.is_empty();
        self.form();
        was_idle.then(|| self.running()).flatten()
    }

    /// The running batch is over: its jobs, and how long the next takes.
    pub fn end_batch(&mut self) -> (Vec<(JobId, u32)>, Option<Ms>) {
        let answered = self.begun.pop_front().unwrap_or_default();
        self.tokens -= sum(&answered);
        self.jobs -= answered.len();
        self.is_measured = true;
        self.form();
        let next = self.running();
        (answered, next)
    }

    fn form(&mut self) {
        while self.begun.len() < BATCHES_BEGUN && !self.held.is_empty() {
            let mut batch = Vec::new();
            let mut tokens = 0;
            while let Some(&(job, size)) = self.held.front()
                && (batch.is_empty() || tokens + u64::from(size) <= self.batch_tokens())
            {
                tokens += u64::from(size);
                batch.push((job, size));
                self.held.pop_front();
            }
            self.begun.push_back(batch);
        }
    }

    fn running(&self) -> Option<Ms> {
        let batch = self.begun.front()?;
        Some((sum(batch) as f64 / self.speed.tokens_per_s * 1000.0).ceil().max(1.0) as Ms)
    }

    /// The stop signal: takes nothing more, gives back what has not begun.
    pub fn close(&mut self) -> Vec<(JobId, u32)> {
        self.is_closed = true;
        let back: Vec<_> = self.held.drain(..).collect();
        self.tokens -= sum(&back);
        self.jobs -= back.len();
        back
    }

    /// The end of the drain limit, or of the process: everything in hand.
    pub fn empty(&mut self) -> Vec<(JobId, u32)> {
        let mut all = self.close();
        all.extend(self.begun.drain(..).flatten());
        self.tokens = 0;
        self.jobs = 0;
        all
    }
}

fn sum(jobs: &[(JobId, u32)]) -> u64 {
    jobs.iter().map(|&(_, tokens)| u64::from(tokens)).sum()
}
