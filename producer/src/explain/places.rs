//! Where the messages about one job stand now, by looking at the queues.
//!
//! In: a broker that can be looked at, the job's id. Out: a [`Place`] for each message about it: the job itself, its
//! dead letter, replies that nobody has collected. It reads through whole queues, a page at a time: what is in memory is
//! one page, what it takes is some seconds for a million messages.

use std::num::NonZeroUsize;
use std::time::Duration;

use inferq_shared::broker::{Bodies, Broker, BrokerError, Browsed, Cursor, Page, QueueNames, Standing};
use inferq_shared::job::{Inputs, Job, Limits, attribute};
use inferq_shared::reply::Reply;
use serde::Serialize;

use crate::dead::letter::Letter;

/// A message about the job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub(super) enum Place {
    /// The job.
    Job {
        queue: String,
        #[serde(flatten)]
        standing: Stands,
        attempt: u32,
        /// Messages that come before it, while it waits.
        ahead: Option<u64>,
        published_s: f64,
    },
    /// What became of the job when nobody could answer it.
    DeadLetter {
        queue: String,
        key: String,
        reason: String,
        attempts: Option<u32>,
        at: Option<jiff::Timestamp>,
        /// Its own id, where it is a shard of the job.
        shard: Option<String>,
    },
    /// The shards of a job that was split, as many as stand in their queue.
    Shards {
        queue: String,
        waiting: u64,
        delayed: u64,
        /// Those that workers have, the first of them.
        leased: Vec<Held>,
        leased_in_all: u64,
    },
    /// An answer that has not been collected.
    Reply {
        queue: String,
        #[serde(flatten)]
        standing: Stands,
        status: Option<String>,
        published_s: f64,
    },
}

/// How a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "ends_in_s")]
pub(super) enum Stands {
    /// It could be delivered now.
    Waiting,
    /// Somebody has it.
    Leased(f64),
    /// It is seen later.
    Delayed(f64),
}

/// A shard that a worker has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Held {
    pub(super) id: String,
    pub(super) attempt: u32,
    /// Its lease ends then unless it is renewed.
    pub(super) ends_in_s: f64,
}

/// What was found, and how much was looked at.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) places: Vec<Place>,
    pub(super) looked_at: u64,
    /// One of the job's shards, with its body.
    pub(super) shard: Option<Job>,
}

/// Shards named one by one.
const HELD_NAMED: usize = 20;

/// Messages of one page. Bodies are wanted only of messages that say nothing beside them.
const MESSAGES: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not 0");
const BYTES: usize = 16 << 20;

impl Search {
    /// Looks for `job` in the queues that belong to `names`, and on its submission's route. `None`: this broker can't be
    /// looked at.
    ///
    /// # Errors
    /// `UnknownQueue` when there is no such jobs queue, or when the broker can't be reached.
    pub(super) async fn run(broker: &Broker, names: &QueueNames, job: &str) -> Result<Option<Self>, BrokerError> {
        if !broker.capabilities().browse {
            return Ok(None);
        }
        let mut search = Self::default();
        search.queue(broker, &names.jobs, job, Kind::Job).await?;
        search.shards(broker, &names.shards(), job).await?;
        // A job of a submission is called by it; any other has its answer on the default results.
        let route = job.rsplit_once('-').map(|(submission, _)| names.submission(submission));
        let others = [(Some(names.dead()), Kind::Dead), (Some(names.results()), Kind::Reply), (route, Kind::Reply)];
        for (queue, kind) in others {
            let Some(queue) = queue else { continue };
            match search.queue(broker, &queue, job, kind).await {
                // It was collected, or there never was one.
                Ok(()) | Err(BrokerError::UnknownQueue(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(search))
    }

    /// Counts the shards of `job`, and looks for a shard that is called so itself.
    async fn shards(&mut self, broker: &Broker, queue: &str, job: &str) -> Result<(), BrokerError> {
        let mut page = Page { after: Cursor::START, messages: MESSAGES, bytes: BYTES, bodies: Bodies::Absent };
        let mut count = Shards::default();
        let (mut before, mut first, mut ahead) = (Cursor::START, None, 0);
        loop {
            let seen = match broker.browse(queue, page).await {
                // A queue of before there were shards.
                Err(BrokerError::UnknownQueue(_)) => return Ok(()),
                seen => seen?.unwrap_or_default(),
            };
            let Some(last) = seen.last() else { break };
            page.after = last.cursor;
            self.looked_at += seen.len() as u64;
            for browsed in &seen {
                let named = |name| browsed.message.attributes.get(name).map(String::as_str);
                if named(attribute::JOB_ID) == Some(job) {
                    self.places.push(Kind::Job.place(queue, browsed, ahead));
                }
                if named(attribute::PARENT) == Some(job) {
                    first.get_or_insert(before);
                    count.add(browsed);
                }
                ahead += u64::from(browsed.standing == Standing::Waiting);
                before = browsed.cursor;
            }
        }
        if let Some(after) = first {
            let whole = Page { after, messages: NonZeroUsize::MIN, bodies: Bodies::Whole, ..page };
            let seen = broker.browse(queue, whole).await?.unwrap_or_default();
            self.note_shard(seen.first(), job);
            self.places.push(count.place(queue));
        }
        Ok(())
    }

    /// Keeps what a shard of `job` says of all of them.
    fn note_shard(&mut self, seen: Option<&Browsed>, job: &str) {
        let decoded = seen.and_then(|browsed| Job::decode(&browsed.message.body, &Limits::default()).ok());
        let is_ours =
            |found: &Job| matches!(&found.inputs, Inputs::Shard { shard, .. } if shard.parent.as_job().as_str() == job);
        self.shard = self.shard.take().or(decoded.filter(is_ours));
    }

    async fn queue(&mut self, broker: &Broker, queue: &str, job: &str, kind: Kind) -> Result<(), BrokerError> {
        let (found, silent) = self.scan(broker, queue, (job, kind), kind.bodies()).await?;
        // Messages that say nothing beside their bodies: only those can tell.
        if !found && silent && kind.bodies() == Bodies::Absent {
            self.scan(broker, queue, (job, kind), Bodies::Whole).await?;
        }
        Ok(())
    }

    /// Whether the job was found, and whether there were messages without its attribute.
    async fn scan(
        &mut self,
        broker: &Broker,
        queue: &str,
        (job, kind): (&str, Kind),
        bodies: Bodies,
    ) -> Result<(bool, bool), BrokerError> {
        let mut page = Page { after: Cursor::START, messages: MESSAGES, bytes: BYTES, bodies };
        let (before, mut silent, mut waiting) = (self.places.len(), false, 0);
        loop {
            let seen = broker.browse(queue, page).await?.unwrap_or_default();
            let Some(last) = seen.last() else { return Ok((self.places.len() > before, silent)) };
            page.after = last.cursor;
            self.looked_at += seen.len() as u64;
            for browsed in seen {
                let id = browsed.message.attributes.get(attribute::JOB_ID);
                silent |= id.is_none();
                let ours = match id {
                    Some(id) => id == job,
                    None => bodies == Bodies::Whole && kind.id_in(&browsed).as_deref() == Some(job),
                };
                let parent = browsed.message.attributes.get(attribute::PARENT);
                let ours_in_part = kind == Kind::Dead && parent.is_some_and(|parent| parent == job);
                if ours || ours_in_part {
                    self.places.push(kind.place(queue, &browsed, waiting));
                }
                if ours_in_part {
                    self.note_shard(Some(&browsed), job);
                }
                waiting += u64::from(browsed.standing == Standing::Waiting);
            }
        }
    }
}

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Job,
    Dead,
    Reply,
}

impl Kind {
    /// Dead letters are few, and what they hold is often all that tells them apart.
    fn bodies(self) -> Bodies {
        match self {
            Self::Dead => Bodies::Whole,
            Self::Job | Self::Reply => Bodies::Absent,
        }
    }

    fn id_in(self, browsed: &Browsed) -> Option<String> {
        match self {
            Self::Job | Self::Dead => Letter::new(browsed.message.clone()).id,
            Self::Reply => Reply::decode(&browsed.message.body).ok().map(|reply| reply.id.to_string()),
        }
    }

    fn place(self, queue: &str, browsed: &Browsed, waiting: u64) -> Place {
        let queue = queue.to_owned();
        let standing = Stands::from(browsed.standing);
        let published_s = browsed.age.as_secs_f64();
        match self {
            Self::Job => {
                let ahead = (standing == Stands::Waiting).then_some(waiting);
                Place::Job { queue, standing, attempt: browsed.attempt, ahead, published_s }
            }
            Self::Dead => {
                let Letter { key, id, reason, attempts, at, message, .. } = Letter::new(browsed.message.clone());
                let shard = id.filter(|_| message.attributes.contains_key(attribute::PARENT));
                Place::DeadLetter { queue, key, reason, attempts, at, shard }
            }
            Self::Reply => {
                let status = browsed.message.attributes.get(attribute::STATUS).cloned();
                Place::Reply { queue, standing, status, published_s }
            }
        }
    }
}

/// How a job's shards stand.
#[derive(Debug, Default)]
struct Shards {
    waiting: u64,
    delayed: u64,
    leased: Vec<Held>,
    leased_in_all: u64,
}

impl Shards {
    fn add(&mut self, browsed: &Browsed) {
        match Stands::from(browsed.standing) {
            Stands::Waiting => self.waiting += 1,
            Stands::Delayed(_) => self.delayed += 1,
            Stands::Leased(ends_in_s) => {
                self.leased_in_all += 1;
                let id = browsed.message.attributes.get(attribute::JOB_ID).cloned().unwrap_or_default();
                if self.leased.len() < HELD_NAMED {
                    self.leased.push(Held { id, attempt: browsed.attempt, ends_in_s });
                }
            }
        }
    }

    fn place(self, queue: &str) -> Place {
        let Self { waiting, delayed, leased, leased_in_all } = self;
        Place::Shards { queue: queue.to_owned(), waiting, delayed, leased, leased_in_all }
    }
}

impl From<Standing> for Stands {
    fn from(standing: Standing) -> Self {
        let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
        match standing {
            Standing::Waiting => Self::Waiting,
            Standing::Leased(left) => Self::Leased(seconds(left)),
            Standing::Delayed(left) => Self::Delayed(seconds(left)),
        }
    }
}
