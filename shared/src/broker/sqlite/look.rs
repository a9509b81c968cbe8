//! What can be seen in the queue's file without changing it, and the word that workers leave there.
//!
//! In: names, a page, the time on the boot clock. Out: counts, messages where they stand, names, workers. Apart from
//! [`Store::report`], which runs inside the caller's transaction, nothing here writes.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};

use super::super::{Bodies, Browsed, Cursor, Message, Page, QueueStatus, Sighting, Standing, WORKER_SILENT};
use super::clock;
use super::store::{Fault, Store, read_dated};

impl Store {
    /// What is in a queue. Looks at each of its entries for the oldest: some tens of milliseconds a million.
    pub(super) fn status(&self, name: &str, now: i64) -> Result<QueueStatus, Fault> {
        let queue = self.queue(name)?;
        let (leased, delayed): (u64, u64) = self
            .db
            .prepare_cached(
                "SELECT count(*) FILTER (WHERE token <> 0), count(*) FILTER (WHERE token = 0)
                 FROM entries WHERE queue = ?1 AND visible_at > ?2",
            )?
            .query_row((queue.id, now), |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        let oldest: Option<i64> = self
            .db
            .prepare_cached(
                "SELECT published_at FROM messages WHERE id = (SELECT min(id) FROM entries WHERE queue = ?1)",
            )?
            .query_row([queue.id], |row| row.get(0))
            .optional()?;
        Ok(QueueStatus {
            waiting: Some((queue.messages as u64).saturating_sub(leased + delayed)),
            leased: Some(leased),
            delayed: Some(delayed),
            oldest: oldest.map(|published_at| age_ms(clock::wall_ms(), published_at)),
        })
    }

    /// One page of a queue.
    pub(super) fn browse(&self, name: &str, page: Page, now: i64) -> Result<Vec<Browsed>, Fault> {
        let queue = self.queue(name)?.id;
        // SQLite reads a row's later columns only if they are asked for, and a value's length without the value.
        let body = match page.bodies {
            Bodies::Whole => "body",
            Bodies::Absent => "x''",
        };
        let mut select = self.db.prepare_cached(&format!(
            "SELECT visible_at, entries.id, attempt, token, published_at, attributes, length(body), {body}
             FROM entries CROSS JOIN messages ON messages.id = entries.id
             WHERE queue = ?1 AND (visible_at, entries.id) > (?2, ?3) ORDER BY visible_at, entries.id LIMIT ?4",
        ))?;
        let Cursor(visible_at, id) = page.after;
        let count = i64::try_from(page.messages.get()).unwrap_or(i64::MAX);
        let mut rows = select.query((queue, visible_at, id, count))?;
        let (mut seen, mut bytes) = (Vec::new(), 0usize);
        while bytes < page.bytes.max(1)
            && let Some(row) = rows.next()?
        {
            let browsed = read_browsed(row, now)?;
            bytes = bytes.saturating_add(browsed.message.body.len());
            seen.push(browsed);
        }
        Ok(seen)
    }

    /// The names of the queues that begin with `prefix`, sorted.
    pub(super) fn queues(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let select = "SELECT name FROM queues WHERE substr(name, 1, length(?1)) = ?1 ORDER BY name";
        let mut select = self.db.prepare_cached(select)?;
        let names = select.query_map([prefix], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// Keeps what a worker says of itself, or forgets it, and with it all who have been silent for too long.
    pub(super) fn report(&mut self, queue: &str, worker: &str, about: Option<&str>, now: i64) -> Result<(), Fault> {
        let silent_since = now.saturating_sub(clock::millis(WORKER_SILENT));
        self.db.prepare_cached("DELETE FROM workers WHERE id = ?1 OR seen_at < ?2")?.execute((worker, silent_since))?;
        if let Some(about) = about {
            let insert = "INSERT INTO workers (id, queue, about, seen_at) VALUES (?1, ?2, ?3, ?4)";
            self.db.prepare_cached(insert)?.execute(params![worker, queue, about, now])?;
        }
        Ok(())
    }

    /// The workers that have lately said something on a queue.
    pub(super) fn workers(&self, queue: &str, now: i64) -> Result<Vec<Sighting>, Fault> {
        let silent_since = now.saturating_sub(clock::millis(WORKER_SILENT));
        let select = "SELECT id, about, seen_at FROM workers WHERE queue = ?1 AND seen_at >= ?2 ORDER BY id";
        let mut select = self.db.prepare_cached(select)?;
        let sightings = select.query_map((queue, silent_since), |row| {
            let age = age_ms(now, row.get(2)?);
            Ok(Sighting { worker: row.get(0)?, about: row.get(1)?, age })
        })?;
        Ok(sightings.collect::<Result<_, _>>()?)
    }
}

fn read_browsed(row: &Row<'_>, now: i64) -> rusqlite::Result<Browsed> {
    let (visible_at, id, attempt): (i64, i64, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let token: i64 = row.get(3)?;
    let left = age_ms(visible_at, now);
    let standing = match (visible_at > now, token) {
        (false, _) => Standing::Waiting,
        (true, 0) => Standing::Delayed(left),
        (true, _) => Standing::Leased(left),
    };
    // A token on a visible entry is a lease that ended by itself.
    let lost = u32::from(standing == Standing::Waiting && token != 0);
    Ok(Browsed {
        message: Message {
            body: Bytes::copy_from_slice(row.get_ref(7)?.as_blob()?),
            attributes: read_dated(row, 5, 4)?,
        },
        body_bytes: row.get(6)?,
        attempt: attempt.saturating_add(lost),
        standing,
        age: age_ms(clock::wall_ms(), row.get(4)?),
        cursor: Cursor(visible_at, id),
    })
}

/// From `from` to `now`, not less than nothing.
fn age_ms(now: i64, from: i64) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(from)).unwrap_or(0))
}
