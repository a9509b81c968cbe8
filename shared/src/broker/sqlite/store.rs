//! What can be done with the queue's file: each step of the contract as statements of SQL.
//!
//! In: names, messages, leases and the time. Out: what changed. Every writing step runs inside the caller's
//! transaction ([`Store::begin`], [`Store::commit`]), so that many share one sync. A step that is refused has written
//! nothing; one that fails takes the transaction with it. It never waits, and knows no channels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::{Attributes, BrokerError, Message, Pull, QueueNames, QueueOptions, Verdict};
use super::{clock, packed, schema};
use crate::job::attribute;

/// A body or attributes above this are refused: SQLite's own limit is a little below 1 GB a value.
const BYTES_MAX: usize = 512 << 20;
/// Pages in the log (16 MiB) after which they are moved to the database.
const LOG_PAGES: i64 = 4096;
/// Pages in the log after which writers have to wait until they are.
const LOG_PAGES_MAX: i64 = 4 * LOG_PAGES;

/// Why a step was not done.
pub(super) enum Fault {
    /// This one was refused; the transaction goes on.
    Alone(BrokerError),
    /// The database failed; nothing of the transaction counts.
    Together(rusqlite::Error),
}

impl Fault {
    /// Whether the disk has no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Together(error) if schema::is_full(error))
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Together(error)
    }
}

/// A queue as declared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queue {
    pub(super) id: i64,
    pub(super) messages: i64,
    messages_max: Option<i64>,
}

/// Where a leased message stands: what its settlement must find unchanged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    queue: i64,
    pub(super) visible_at: i64,
    id: i64,
    place: i64,
    /// Counting this lease.
    pub(super) attempt: u32,
}

/// A message that has just been leased.
pub(super) struct Claimed {
    pub(super) token: u64,
    pub(super) standing: Standing,
    pub(super) message: Message,
}

/// The queue's file, open.
pub(super) struct Store {
    pub(super) db: Connection,
    path: PathBuf,
    /// What the transaction has added to each queue's count.
    added: BTreeMap<i64, i64>,
}

impl Store {
    /// Opens the queue in `path`.
    ///
    /// # Errors
    /// As [`schema::open`].
    pub(super) fn open(path: &Path) -> Result<Self, BrokerError> {
        let db = schema::open(path)?;
        Ok(Self { db, path: path.to_owned(), added: BTreeMap::new() })
    }

    /// What an error of SQLite means to who uses the queue.
    pub(super) fn explain(&self, error: &rusqlite::Error) -> BrokerError {
        schema::explain(&self.path, error)
    }

    /// Starts a transaction, alone among all processes.
    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.added.clear();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute(()).map(drop)
    }

    /// Makes the transaction durable.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        let used_at = clock::wall_ms();
        for (queue, added) in std::mem::take(&mut self.added) {
            self.db
                .prepare_cached("UPDATE queues SET messages = messages + ?2, used_at = ?3 WHERE id = ?1")?
                .execute((queue, added, used_at))?;
        }
        self.db.prepare_cached("COMMIT")?.execute(()).map(drop)
    }

    /// Undoes the transaction, if one is still open.
    pub(super) fn roll_back(&mut self) {
        if !self.db.is_autocommit() {
            // After a failed rollback the next `begin` fails and says why.
            let _ = self.db.execute_batch("ROLLBACK");
        }
    }

    /// Moves the log into the database when it has grown long. Not in a transaction.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        match self.move_log("NOOP")? {
            ..LOG_PAGES => Ok(()),
            LOG_PAGES..LOG_PAGES_MAX => self.move_log("PASSIVE").map(drop),
            _ => self.move_log("RESTART").map(drop),
        }
    }

    /// Moves the log into the database however short it is: on a full disk its room is all that is left to write in.
    pub(super) fn reuse_log(&mut self) {
        // What does not succeed for want of room is told by the next write. Waits for readers, who are brief: the log
        // can begin anew only when nobody reads it.
        let _ = self.move_log("RESTART");
    }

    /// How many pages the log has.
    fn move_log(&self, mode: &str) -> rusqlite::Result<i64> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        self.db.prepare_cached(&sql)?.query_row((), |row| row.get(1))
    }

    /// The queue of this name.
    pub(super) fn queue(&self, name: &str) -> Result<Queue, Fault> {
        let queue = |row: &Row<'_>| Ok(Queue { id: row.get(0)?, messages: row.get(1)?, messages_max: row.get(2)? });
        self.db
            .prepare_cached("SELECT id, messages, messages_max FROM queues WHERE name = ?1")?
            .query_row([name], queue)
            .optional()?
            .ok_or_else(|| Fault::Alone(BrokerError::UnknownQueue(name.to_owned())))
    }

    /// Makes a queue if there is none of this name.
    pub(super) fn declare(&mut self, name: &str, options: QueueOptions) -> Result<(), Fault> {
        let messages_max = options.messages_max.map(|max| i64::try_from(max.get()).unwrap_or(i64::MAX));
        self.db
            .prepare_cached(
                "INSERT INTO queues (name, messages_max, expires_ms, used_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET used_at = excluded.used_at",
            )?
            .execute(params![name, messages_max, options.expires.map(clock::millis), clock::wall_ms()])?;
        Ok(())
    }

    /// Says that somebody consumes from this queue.
    pub(super) fn subscribe(&mut self, name: &str) -> Result<(), Fault> {
        let queue = self.queue(name)?;
        self.added.entry(queue.id).or_insert(0);
        Ok(())
    }

    /// Removes a queue with all that is in it, if it is there.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), Fault> {
        let queue = match self.queue(name) {
            Err(Fault::Alone(_)) => return Ok(()),
            queue => queue?.id,
        };
        self.db.execute("DELETE FROM messages WHERE id IN (SELECT id FROM entries WHERE queue = ?1)", [queue])?;
        self.db.execute("DELETE FROM entries WHERE queue = ?1", [queue])?;
        self.db.execute("DELETE FROM queues WHERE id = ?1", [queue])?;
        Ok(())
    }

    /// Removes the queues that nobody has used for as long as they were declared to live.
    pub(super) fn remove_expired(&mut self) -> Result<(), Fault> {
        let names: Vec<String> = self
            .db
            .prepare("SELECT name FROM queues WHERE expires_ms IS NOT NULL AND used_at < ?1 - expires_ms")?
            .query_map([clock::wall_ms()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        names.iter().try_for_each(|name| self.remove(name))
    }

    /// Appends messages to a queue.
    pub(super) fn publish(&mut self, name: &str, messages: &[Message], now: i64) -> Result<(), Fault> {
        let queue = self.queue(name)?;
        let attributes: Vec<Vec<u8>> = messages.iter().map(|message| packed::pack(&message.attributes)).collect();
        self.check_room(name, queue, messages.len())?;
        for (message, attributes) in messages.iter().zip(&attributes) {
            check_size(message.body.len().max(attributes.len()))?;
        }
        let published_at = clock::wall_ms();
        let mut insert =
            self.db.prepare_cached("INSERT INTO messages (published_at, attributes, body) VALUES (?1, ?2, ?3)")?;
        let mut enter = self.db.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3, ?2, 1, 0)")?;
        for (message, attributes) in messages.iter().zip(&attributes) {
            insert.execute((published_at, attributes, &message.body[..]))?;
            enter.execute((queue.id, now, self.db.last_insert_rowid()))?;
        }
        *self.added.entry(queue.id).or_insert(0) += messages.len() as i64;
        Ok(())
    }

    fn check_room(&self, name: &str, queue: Queue, more: usize) -> Result<(), Fault> {
        let (Some(max), more) = (queue.messages_max, more as i64) else { return Ok(()) };
        if more > max {
            return Err(Fault::Alone(BrokerError::Refused(format!(
                "queue {name} holds at most {max} messages, so {more} never fit at once; publish fewer at a time"
            ))));
        }
        if queue.messages + self.added.get(&queue.id).unwrap_or(&0) + more > max {
            return Err(Fault::Alone(BrokerError::Full(name.to_owned())));
        }
        Ok(())
    }

    /// When the first message of a queue is visible; `None` while there is none.
    pub(super) fn first_visible(&self, name: &str) -> Result<Option<i64>, Fault> {
        self.db
            .prepare_cached(
                "SELECT (SELECT visible_at FROM entries WHERE queue = queues.id ORDER BY visible_at LIMIT 1)
                 FROM queues WHERE name = ?1",
            )?
            .query_row([name], |row| row.get(0))
            .optional()?
            .ok_or_else(|| Fault::Alone(BrokerError::UnknownQueue(name.to_owned())))
    }

    /// Leases what is visible in a queue, at most `pull`, and numbers the leases from `token` on.
    pub(super) fn claim(
        &mut self,
        name: &str,
        pull: Pull,
        (now, lease): (i64, Duration),
        token: &mut u64,
    ) -> Result<Vec<Claimed>, Fault> {
        let queue = self.queue(name)?.id;
        let found = self.visible(queue, pull, now)?;
        let visible_at = clock::later(now, lease);
        let mut take = self.db.prepare_cached(
            "UPDATE entries SET visible_at = ?4, attempt = ?5, token = ?6
             WHERE queue = ?1 AND visible_at = ?2 AND id = ?3",
        )?;
        let mut claimed = Vec::with_capacity(found.len());
        for (from, message) in found {
            *token += 1;
            take.execute((queue, from.visible_at, from.id, visible_at, from.attempt, *token as i64))?;
            claimed.push(Claimed { token: *token, standing: Standing { visible_at, ..from }, message });
        }
        Ok(claimed)
    }

    /// The first visible messages of a queue, each with the attempt that its next lease is.
    fn visible(&self, queue: i64, pull: Pull, now: i64) -> rusqlite::Result<Vec<(Standing, Message)>> {
        let mut select = self.db.prepare_cached(
            "SELECT visible_at, entries.id, place, attempt, token, attributes, body, published_at
             FROM entries CROSS JOIN messages ON messages.id = entries.id
             WHERE queue = ?1 AND visible_at <= ?2 ORDER BY visible_at, entries.id LIMIT ?3",
        )?;
        let mut rows = select.query((queue, now, i64::try_from(pull.jobs.get()).unwrap_or(i64::MAX)))?;
        let (mut found, mut bytes) = (Vec::new(), 0usize);
        while bytes < pull.bytes.max(1)
            && let Some(row) = rows.next()?
        {
            let (standing, message) = read_entry(queue, row)?;
            bytes = bytes.saturating_add(message.body.len());
            found.push((standing, message));
        }
        Ok(found)
    }

    /// Makes a lease last for `lease` from now; false when it is lost.
    pub(super) fn renew(&mut self, token: u64, from: &Standing, until: i64) -> rusqlite::Result<bool> {
        self.move_entry(token, from, from.queue, (until, from.attempt, token))
    }

    /// Ends a lease as its holder decided.
    pub(super) fn settle(&mut self, token: u64, from: &Standing, verdict: &Verdict, now: i64) -> Result<(), Fault> {
        let found = match verdict {
            Verdict::Ack => self.delete(token, from)?,
            Verdict::Release(Duration::ZERO) => {
                self.move_entry(token, from, from.queue, (from.place, from.attempt, 0))?
            }
            Verdict::Release(after) => {
                self.move_entry(token, from, from.queue, (clock::later(now, *after), from.attempt, 0))?
            }
            Verdict::Dropped => self.move_entry(token, from, from.queue, (now, from.attempt.saturating_add(1), 0))?,
            Verdict::DeadLetter(reason) => self.bury(token, from, reason, now)?,
        };
        if found { Ok(()) } else { Err(Fault::Alone(BrokerError::LeaseLost)) }
    }

    fn delete(&mut self, token: u64, from: &Standing) -> rusqlite::Result<bool> {
        let mut leave = self
            .db
            .prepare_cached("DELETE FROM entries WHERE queue = ?1 AND visible_at = ?2 AND id = ?3 AND token = ?4")?;
        if leave.execute((from.queue, from.visible_at, from.id, token as i64))? == 0 {
            return Ok(false);
        }
        self.db.prepare_cached("DELETE FROM messages WHERE id = ?1")?.execute([from.id])?;
        *self.added.entry(from.queue).or_insert(0) -= 1;
        Ok(true)
    }

    /// Moves a leased entry to another time, attempt and token, maybe in another queue; false when the lease is lost.
    fn move_entry(
        &mut self,
        token: u64,
        from: &Standing,
        queue: i64,
        (visible_at, attempt, new_token): (i64, u32, u64),
    ) -> rusqlite::Result<bool> {
        let place = if queue == from.queue { from.place } else { visible_at };
        let mut update = self.db.prepare_cached(
            "UPDATE entries SET queue = ?5, visible_at = ?6, attempt = ?7, token = ?8, place = ?9
             WHERE queue = ?1 AND visible_at = ?2 AND id = ?3 AND token = ?4",
        )?;
        let key = (from.queue, from.visible_at, from.id, token as i64);
        let moved =
            update.execute(params![key.0, key.1, key.2, key.3, queue, visible_at, attempt, new_token as i64, place])?;
        Ok(moved == 1)
    }

    /// Moves a leased message to the dead letters of its queue, with what is known of its end.
    fn bury(&mut self, token: u64, from: &Standing, reason: &str, now: i64) -> Result<bool, Fault> {
        let name: Option<String> = self
            .db
            .prepare_cached("SELECT name FROM queues WHERE id = ?1")?
            .query_row([from.queue], |row| row.get(0))
            .optional()?;
        let Some(name) = name else { return Ok(false) };
        let dead = QueueNames::new(name.as_str()).dead();
        self.declare(&dead, QueueOptions::default())?;
        let dead = self.queue(&dead)?.id;
        if !self.move_entry(token, from, dead, (now, 1, 0))? {
            return Ok(false);
        }
        *self.added.entry(from.queue).or_insert(0) -= 1;
        *self.added.entry(dead).or_insert(0) += 1;
        self.label(
            from,
            &[
                (attribute::DEAD_REASON, reason.to_owned()),
                (attribute::DEAD_QUEUE, name),
                (attribute::DEAD_AT, clock::wall_ms().to_string()),
                (attribute::DEAD_ATTEMPT, from.attempt.to_string()),
            ],
        )?;
        Ok(true)
    }

    fn label(&mut self, from: &Standing, labels: &[(&str, String)]) -> rusqlite::Result<()> {
        let mut attributes = self
            .db
            .prepare_cached("SELECT attributes FROM messages WHERE id = ?1")?
            .query_row([from.id], |row| read_attributes(row, 0))?;
        attributes.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        self.db
            .prepare_cached("UPDATE messages SET attributes = ?2 WHERE id = ?1")?
            .execute((from.id, packed::pack(&attributes)))?;
        Ok(())
    }
}

fn check_size(bytes: usize) -> Result<(), Fault> {
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    Err(Fault::Alone(BrokerError::Refused(format!(
        "a message of {bytes} bytes is above the embedded queue's limit of {BYTES_MAX}; keep large data in a file and send \
         its address"
    ))))
}

fn read_entry(queue: i64, row: &Row<'_>) -> rusqlite::Result<(Standing, Message)> {
    let attempt: u32 = row.get(3)?;
    // A token on a visible entry is a lease that ended by itself: its holder may have died of this message.
    let lost = u32::from(row.get::<_, i64>(4)? != 0);
    let standing = Standing {
        queue,
        visible_at: row.get(0)?,
        id: row.get(1)?,
        place: row.get(2)?,
        attempt: attempt.saturating_add(lost),
    };
    let body = Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?);
    Ok((standing, Message { body, attributes: read_dated(row, 5, 7)? }))
}

/// A message's attributes, and when it was published where its publisher did not say: how long a job has waited for a
/// worker that fits it counts from there.
pub(super) fn read_dated(row: &Row<'_>, attributes: usize, published_at: usize) -> rusqlite::Result<Attributes> {
    let mut attributes = read_attributes(row, attributes)?;
    let said = attributes.get(attribute::PUBLISHED_AT).is_some_and(|at| at.parse::<i64>().is_ok());
    if !said {
        attributes.insert(attribute::PUBLISHED_AT.to_owned(), row.get::<_, i64>(published_at)?.to_string());
    }
    Ok(attributes)
}

fn read_attributes(row: &Row<'_>, column: usize) -> rusqlite::Result<Attributes> {
    let bytes = row.get_ref(column)?.as_blob()?;
    packed::unpack(bytes).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, "damaged attributes".into())
    })
}
