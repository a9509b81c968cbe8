//! What happened in a chaotic run, in order.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inferq_shared::reply::Status;

use super::schedule::Fault;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When, since the run began.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// The things that happen. Jobs and workers are known by their numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A job is about to be published for the first time.
    Sent {
        /// Which.
        job: usize,
    },
    /// Its publish is confirmed.
    Confirmed {
        /// Which.
        job: usize,
    },
    /// A reply has come.
    Replied {
        /// To which job.
        job: usize,
        /// By whom.
        worker: usize,
        /// How it went.
        status: Status,
        /// Its results, as JSON.
        content: String,
    },
    /// Something goes wrong.
    Began {
        /// What.
        fault: Fault,
        /// For which worker, unless for all.
        worker: usize,
    },
    /// From now on link and broker can serve again, as far as this fault goes.
    Healed {
        /// What was wrong.
        fault: Fault,
        /// For which worker, unless for all.
        worker: usize,
    },
    /// A worker's resident memory.
    Memory {
        /// Which.
        worker: usize,
        /// In KiB.
        kib: u64,
    },
}

/// The record. Clones share it.
#[derive(Debug, Clone)]
pub struct Record {
    entries: Arc<Mutex<Vec<Entry>>>,
    start: Instant,
}

impl Record {
    /// An empty one that begins now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self { entries: Arc::default(), start: Instant::now() }
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds what just happened.
    pub fn add(&self, what: What) {
        let mut entries = self.entries.lock().expect("nothing panics while it holds the record");
        entries.push(Entry { at: self.start.elapsed(), what });
    }

    /// Everything so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().expect("nothing panics while it holds the record").clone()
    }
}

impl fmt::Display for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |entry: &Entry| format!("{:>9.3} {:?}", entry.at.as_secs_f64(), entry.what);
        self.entries().iter().try_for_each(|entry| writeln!(formatter, "{}", line(entry)))
    }
}
