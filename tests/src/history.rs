//! What happened in a world, in order, as text and as data.
//!
//! In: entries, recorded by everything in the world. Out: the same lines for the same seed, and the data for
//! [`check`], which says what of it breaks the design.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use inferq_shared::broker::memory::{End, Event};
use inferq_shared::broker::{BrokerError, Message, Pull, Verdict};
use inferq_shared::job::attribute;
use inferq_shared::reply::Reply;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::world::engine::Outcome;

pub mod check;

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When, since the world began.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// The things that happen. A worker's process is known by its broker connection, its link.
#[derive(Debug, Clone)]
pub enum What {
    /// In the broker.
    Broker(Event),
    /// A worker process is ready.
    Ready {
        /// Which worker.
        worker: usize,
        /// Which process.
        link: u64,
    },
    /// A process asks for jobs.
    Pulls {
        /// Which.
        link: u64,
        /// At most so many of so many bytes.
        pull: Pull,
        /// The bound on the tokens that it holds.
        tokens_max: usize,
    },
    /// A process is told how its publish went.
    Told {
        /// Which.
        link: u64,
        /// To which queue it published.
        queue: String,
        /// How it went.
        result: Result<(), BrokerError>,
    },
    /// A batch begins.
    Began {
        /// In which process.
        link: u64,
        /// Which batch, over all engines.
        batch: u64,
        /// The texts of the rows.
        rows: Vec<String>,
        /// How long it will take.
        cost: Duration,
    },
    /// The liveness of a process is not what it was when it was last asked.
    Probed {
        /// Which.
        link: u64,
        /// Whether it should go on.
        live: bool,
    },
    /// A process has said for long that it should not go on.
    OutOfHealth {
        /// Which.
        link: u64,
    },
    /// An engine ran.
    Ran {
        /// In which process.
        link: u64,
        /// Which run, over all engines.
        run: u64,
        /// The texts of the rows.
        rows: Vec<String>,
        /// How it went.
        outcome: Outcome,
    },
    /// The check of an engine failed.
    Sick {
        /// In which process.
        link: u64,
    },
    /// A process was asked to stop.
    Stop {
        /// Which.
        link: u64,
    },
    /// A process had not stopped by the end of its grace.
    OutOfGrace {
        /// Which.
        link: u64,
    },
    /// A process died.
    Killed {
        /// Which.
        link: u64,
    },
    /// A process ended by itself.
    Ended {
        /// Which.
        link: u64,
        /// How.
        result: Result<(), String>,
    },
    /// A process's connection is closed.
    Gone {
        /// Which.
        link: u64,
    },
    /// Jobs are still not done after a very long time.
    OutOfPatience,
}

/// The record. Clones share it.
#[derive(Debug, Clone)]
pub struct History {
    entries: Arc<Mutex<Vec<Entry>>>,
    overflow: Arc<Notify>,
    start: Instant,
}

/// Entries of a world that goes round in circles: many times what any world needs.
const ENTRIES_MAX: usize = 20_000;

impl History {
    /// An empty record that begins now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self { entries: Arc::default(), overflow: Arc::default(), start: Instant::now() }
    }

    /// Adds what just happened.
    pub fn record(&self, what: What) {
        let entry = Entry { at: self.start.elapsed(), what };
        let mut entries = self.entries.lock().expect("nothing panics while it holds the record");
        entries.push(entry);
        if entries.len() == ENTRIES_MAX {
            self.overflow.notify_one();
        }
    }

    /// Returns when there is far more than a sound world records.
    pub async fn overflows(&self) {
        self.overflow.notified().await;
    }

    /// Everything so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().expect("nothing panics while it holds the record").clone()
    }
}

impl fmt::Display for History {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries().iter().try_for_each(|entry| writeln!(formatter, "{entry}"))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:>11.3} ", self.at.as_secs_f64())?;
        match &self.what {
            What::Broker(event) => broker_event(formatter, event),
            What::Ready { worker, link } => write!(formatter, "process {link} of worker {worker} is ready"),
            What::Pulls { link, pull, tokens_max } => {
                let (jobs, bytes) = (pull.jobs, pull.bytes);
                write!(formatter, "process {link} asks for {jobs} jobs, {bytes} bytes, of {tokens_max} tokens at most")
            }
            What::Told { link, queue, result } => write!(formatter, "process {link} published to {queue}: {result:?}"),
            What::Began { link, batch, rows, cost } => {
                write!(formatter, "process {link} begins batch {batch}, which takes {cost:?}: {rows:?}")
            }
            What::Probed { link, live } => {
                write!(formatter, "process {link} is {}live", if *live { "" } else { "not " })
            }
            What::OutOfHealth { link } => write!(formatter, "process {link} has not been live for long"),
            What::Ran { link, run, rows, outcome } => {
                write!(formatter, "process {link} ran {run}: {outcome} {rows:?}")
            }
            What::Sick { link } => write!(formatter, "process {link} fails its check"),
            What::Stop { link } => write!(formatter, "process {link} is asked to stop"),
            What::OutOfGrace { link } => write!(formatter, "process {link} has not stopped in time"),
            What::Killed { link } => write!(formatter, "process {link} is dead"),
            What::Ended { link, result } => write!(formatter, "process {link} ended: {result:?}"),
            What::Gone { link } => write!(formatter, "process {link} is gone"),
            What::OutOfPatience => write!(formatter, "some jobs are never done"),
        }
    }
}

fn broker_event(formatter: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match event {
        Event::Published { link, queue, place, message } => {
            write!(formatter, "link {link} publishes {place} to {queue}: {}", summary(message))
        }
        Event::Confirmed { link, places } => write!(formatter, "link {link} has the confirm of {places:?}"),
        Event::Duplicated { place, copy } => write!(formatter, "{place} is doubled as {copy}"),
        Event::Delivered { link, queue, place, token, attempt } => {
            write!(formatter, "link {link} gets {place} of {queue}, lease {token}, attempt {attempt}")
        }
        Event::Ended { token, place, end } => match end {
            End::Settled(verdict) => write!(formatter, "lease {token} on {place}: {}", verdict_word(verdict)),
            other => write!(formatter, "lease {token} on {place} is lost: {other:?}"),
        },
        Event::Orphaned { token } => write!(formatter, "lease {token} has no holder any more"),
        Event::Fenced { token, verdict } => {
            write!(formatter, "lease {token} was over, too late for: {}", verdict_word(verdict))
        }
    }
}

fn verdict_word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Ack => "acked".to_owned(),
        Verdict::Release(after) => format!("released for {after:?}"),
        Verdict::DeadLetter(reason) => format!("dead letter, {reason}"),
        Verdict::Dropped => "dropped".to_owned(),
    }
}

/// A reply by what matters of it, anything else by its size. Times are left out: they are not part of what happened.
fn summary(message: &Message) -> String {
    if let Ok(reply) = Reply::decode(&message.body) {
        let results: Vec<_> = reply
            .results
            .iter()
            .map(|result| match &result.error {
                Some(error) => error.code.clone(),
                None => format!("{:?}", result.embedding.as_ref().map(|embedding| embedding.values())),
            })
            .collect();
        let error = reply.error.map(|error| error.code);
        return format!("{} {} attempt {} {error:?} {results:?}", reply.id, reply.status.as_str(), reply.attempt);
    }
    let id = message.attributes.get(attribute::JOB_ID).map_or("without id", String::as_str);
    format!("job {id}, {} bytes", message.body.len())
}
