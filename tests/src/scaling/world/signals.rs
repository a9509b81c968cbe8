//! What the autoscaler gets to see: old figures.
//!
//! In: the queue's length at each sampling, tokens of each answered job, scrapes of the workers. Out: a trigger's value as of
//! now. It never tells anything before it would be visible.

use std::collections::VecDeque;

use rand::rngs::StdRng;

use crate::scaling::autoscaler::Signal;
use crate::scaling::cluster::between;
use crate::scaling::{Ms, ms, seconds};

/// How the queue's length reaches the autoscaler.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// How often it is sampled, in seconds.
    pub every_s: u32,
    /// From the sample to its being visible: least and most, in seconds.
    pub visible_s: (f64, f64),
}

impl Path {
    /// Scraped by Prometheus from RabbitMQ's own endpoint.
    pub const SCRAPED: Self = Self { every_s: 30, visible_s: (0.0, 1.0) };
    /// Pub/Sub's `subscription/num_undelivered_messages` in Cloud Monitoring: "sampled every 60 seconds. After sampling, data is
    /// not visible for up to 120 seconds" (Google Cloud metrics list, pubsub).
    pub const CLOUD_MONITORING: Self = Self { every_s: 60, visible_s: (60.0, 120.0) };
}

/// How often workers are scraped.
pub const SCRAPE_S: u32 = 30;
/// What no worker has told for longer is unknown: a `[6h]` in the queries.
const MEMORY_S: f64 = 6.0 * 3600.0;
/// The window of what workers have computed.
const BUSY_S: f64 = 120.0;

/// Sampled figures on their way.
#[derive(Debug)]
pub struct Signals {
    path: Path,
    mean_s: f64,
    rate: Option<(Ms, f64)>,
    on_the_way: VecDeque<(Ms, u32)>,
    seen: u32,
    tokens: u64,
    jobs: u64,
    scrapes: VecDeque<(Ms, u64, u64)>,
}

impl Signals {
    /// Nothing is known. `mean_s` is the window of the mean tokens of a job.
    pub fn new(path: Path, mean_s: f64) -> Self {
        let (on_the_way, scrapes) = (VecDeque::new(), VecDeque::new());
        Self { path, mean_s, rate: None, on_the_way, seen: 0, tokens: 0, jobs: 0, scrapes }
    }

    /// The queue's path.
    pub fn path(&self) -> Path {
        self.path
    }

    /// A worker has counted a job.
    pub fn answered(&mut self, tokens: u32) {
        self.tokens += u64::from(tokens);
        self.jobs += 1;
    }

    /// The queue is sampled.
    pub fn sample_queue(&mut self, now: Ms, unanswered: u32, random: &mut StdRng) {
        let visible = now + between(random, self.path.visible_s);
        let last = self.on_the_way.back().map_or(0, |&(at, _)| at);
        self.on_the_way.push_back((visible.max(last), unanswered));
    }

    /// The workers are scraped. `rate` is the mean of what they tell.
    pub fn scrape(&mut self, now: Ms, rate: Option<f64>) {
        self.rate = rate.map(|rate| (now, rate)).or(self.rate);
        self.scrapes.push_back((now, self.tokens, self.jobs));
        while self.scrapes.front().is_some_and(|&(at, ..)| at + ms(MEMORY_S) < now) {
            self.scrapes.pop_front();
        }
    }

    /// A trigger's value. What can't be computed is 0 (`or vector(0)`).
    pub fn value(&mut self, signal: Signal, now: Ms) -> f64 {
        let rate = self.rate.filter(|&(at, _)| at + ms(MEMORY_S) >= now).map(|(_, rate)| rate);
        while let Some((_, unanswered)) = self.on_the_way.pop_front_if(|&mut (at, _)| at <= now) {
            self.seen = unanswered;
        }
        let messages = f64::from(self.seen);
        match (signal, rate, self.mean_tokens(now)) {
            (Signal::Messages, ..) => messages,
            (Signal::SecondsOfWork, Some(rate), Some(mean)) => messages * mean / rate,
            (Signal::BusyWorkers, Some(rate), _) => self.computed_a_second(now) / rate,
            (Signal::SecondsOfWork | Signal::BusyWorkers, ..) => 0.0,
        }
    }

    /// As Prometheus' `rate` over a window that ends now.
    fn computed_a_second(&self, now: Ms) -> f64 {
        let Some((length, tokens, _)) = self.increase(now, BUSY_S) else { return 0.0 };
        if length == 0 { 0.0 } else { tokens as f64 / seconds(length) }
    }

    /// Tokens of a job: the mean of those counted within the window, else of those that are remembered.
    fn mean_tokens(&self, now: Ms) -> Option<f64> {
        let mean = |window_s| {
            let (_, tokens, jobs) = self.increase(now, window_s)?;
            (jobs > 0).then(|| tokens as f64 / jobs as f64)
        };
        mean(self.mean_s).or_else(|| mean(MEMORY_S))
    }

    /// From the first to the last scrape within a window that ends now: how long, how many tokens, how many jobs.
    fn increase(&self, now: Ms, window_s: f64) -> Option<(Ms, u64, u64)> {
        let begin = self.scrapes.partition_point(|&(at, ..)| at + ms(window_s) < now);
        let (&(first, tokens_before, jobs_before), &(last, tokens, jobs)) =
            (self.scrapes.get(begin)?, self.scrapes.back()?);
        Some((last - first, tokens - tokens_before, jobs - jobs_before))
    }
}
