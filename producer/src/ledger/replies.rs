//! The ledger's half about replies: the best for each job, what is still missing, and what a followed output holds.
//!
//! In: [`Answer`]s, which are replies without their numbers. Out: the chunks with their replies' bodies as they came, in
//! input order; chunks that a followed output lacks. Each `record_…` call is one durable transaction.

use bytes::Bytes;
use inferq_shared::job::{Encoding, JobId};
use inferq_shared::reply::{Reply, ReplyError, Status};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Counts, Ledger, LedgerError, chunk_of_job, elsewhere, job_id, own_ids};

/// What the ledger wants to know of a reply.
#[derive(Debug, Clone)]
pub struct Answer {
    id: JobId,
    status: Status,
    tokens: u64,
    shape: Shape,
    body: Bytes,
}

/// What a reply answers.
#[derive(Debug, Clone)]
enum Shape {
    /// The job as a whole, with an error.
    Whole,
    /// So many items, in order.
    Items(u64),
    /// So many items, in objects that the reply points at.
    Elsewhere(u64),
    /// Items out of order: how.
    Disordered(String),
}

/// What became of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// The first for its job, which is this chunk's.
    First(u64),
    /// A second one: the better of the two is kept.
    Duplicate,
    /// For no job of this submission.
    Unknown,
    /// It does not answer its job: why.
    Unfit(String),
}

/// One chunk and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The job's id.
    pub job: JobId,
    /// The index of the chunk's first entry.
    pub first: u64,
    /// Where the chunk begins in the input.
    pub place: String,
    /// The index of the entry that stands there: `first`, but for a later piece of a chunk.
    pub place_index: u64,
    /// Good items.
    pub items: u64,
    /// The items' own ids; empty when none has one.
    pub ids: Vec<Option<String>>,
    /// Bad lines: index, id, error.
    pub bad: Vec<(u64, Option<String>, ReplyError)>,
    /// The best reply's body.
    pub reply: Option<Vec<u8>>,
    /// Whether the job's items lie in a bucket.
    pub elsewhere: bool,
}

/// Which chunks are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All.
    All,
    /// Those with an error among their rows.
    Failed,
}

/// An output that rows are appended to as replies come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its absolute path, or `-` for stdout.
    pub output: String,
    /// How its embeddings are written.
    pub encoding: Encoding,
    /// Bytes of it that hold whole rows of the chunks recorded.
    pub bytes: u64,
}

impl Answer {
    /// Of a reply and the bytes it was read from.
    pub fn new(reply: &Reply, body: Bytes) -> Self {
        let misplaced = reply.results.iter().zip(0..).find(|(result, index)| result.index != *index);
        let shape = match misplaced {
            _ if reply.error.is_some() && reply.results.is_empty() => Shape::Whole,
            _ if reply.output_uri.is_some() && reply.results.is_empty() => Shape::Elsewhere(reply.usage.items.into()),
            None => Shape::Items(reply.results.len() as u64),
            Some((result, index)) => {
                Shape::Disordered(format!("the reply's result {index} has index {}", result.index))
            }
        };
        Self { id: reply.id.clone(), status: reply.status, tokens: reply.usage.tokens, shape, body }
    }

    /// The items it answers, if it says.
    fn items(&self) -> Option<u64> {
        match self.shape {
            Shape::Items(items) | Shape::Elsewhere(items) => Some(items),
            Shape::Whole | Shape::Disordered(_) => None,
        }
    }

    /// Why it can't be the answer to a job of `items` items, or, when these are elsewhere, of any number.
    fn unfit(&self, items: u64, elsewhere: bool) -> Option<String> {
        match &self.shape {
            Shape::Whole => None,
            Shape::Items(_) | Shape::Elsewhere(_) if elsewhere => None,
            Shape::Items(results) if *results == items => None,
            Shape::Elsewhere(_) => {
                Some("the reply points at the parts of a large job, which this one is not".to_owned())
            }
            Shape::Items(results) => Some(format!("the reply has {results} results, the job has {items} items")),
            Shape::Disordered(how) => Some(how.clone()),
        }
    }
}

impl Ledger {
    /// Records replies, the best for each job; returns once that is durable.
    ///
    /// # Errors
    /// When the file can't be read or written; then none is recorded.
    pub fn record_replies(&mut self, answers: &[Answer]) -> Result<Vec<Recorded>, LedgerError> {
        let named = self.named();
        let submission = self.submission.clone().unwrap_or_default();
        let mut counts = self.counts;
        let transaction = self.connection.transaction().map_err(&named)?;
        let mut recorded = Vec::with_capacity(answers.len());
        for answer in answers {
            let chunk = chunk_of_job(&transaction, self.own_ids, &submission, &answer.id).map_err(&named)?;
            let fate = chunk.map_or(Ok(Recorded::Unknown), |chunk| keep_best(&transaction, chunk, answer, &mut counts));
            recorded.push(fate.map_err(&named)?);
        }
        transaction.commit().map_err(&named)?;
        self.counts = counts;
        Ok(recorded)
    }

    /// The first `limit` jobs without a reply, and where their first items stand in the input.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn unanswered(&self, limit: usize) -> Result<Vec<(JobId, String)>, LedgerError> {
        let select = "SELECT chunk, place FROM jobs WHERE items > 0 AND chunk NOT IN (SELECT chunk FROM replies)
            ORDER BY chunk LIMIT ?1";
        let mut select = self.connection.prepare(select).map_err(self.named())?;
        let jobs =
            select.query_map([limit], |row| Ok((self.job_id(row.get(0)?)?, row.get(1)?))).map_err(self.named())?;
        jobs.map(|job| job.map_err(self.named())).collect()
    }

    /// Calls `visit` with every chunk of the selection in input order: what was asked, and the best reply.
    ///
    /// # Errors
    /// When the file can't be read, or what `visit` says.
    pub fn for_each<E: From<LedgerError>>(
        &self,
        selection: Selection,
        mut visit: impl FnMut(Answered) -> Result<(), E>,
    ) -> Result<(), E> {
        let condition = match selection {
            Selection::All => "",
            Selection::Failed => {
                "WHERE r.status IS NOT 'succeeded' OR EXISTS (SELECT 1 FROM bad WHERE bad.chunk = j.chunk)"
            }
        };
        let select = format!("{} {condition} ORDER BY j.chunk", answered());
        let mut select = self.connection.prepare(&select).map_err(self.named())?;
        let mut rows = select.query([]).map_err(self.named())?;
        while let Some(row) = rows.next().map_err(self.named())? {
            visit(self.answered(row).map_err(self.named())?)?;
        }
        Ok(())
    }

    /// One chunk, if it is confirmed: what was asked, and the best reply.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn chunk(&self, chunk: u64) -> Result<Option<Answered>, LedgerError> {
        let select = format!("{} WHERE j.chunk = ?1", answered());
        let answered = |select: &mut rusqlite::Statement<'_>| select.query_row([chunk], |row| self.answered(row));
        let found = self.connection.prepare_cached(&select).and_then(|mut select| answered(&mut select).optional());
        found.map_err(self.named())
    }

    /// The first result of all, in the reply that holds it.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn first_result(&self) -> Result<Option<Vec<u8>>, LedgerError> {
        let select = "SELECT body FROM replies WHERE status IN ('succeeded', 'partial') ORDER BY chunk LIMIT 1";
        self.connection.query_row(select, [], |row| row.get(0)).optional().map_err(self.named())
    }

    /// The id of a chunk's job.
    fn job_id(&self, chunk: u64) -> rusqlite::Result<JobId> {
        if self.own_ids
            && let Some(id) = own_ids::id_of(&self.connection, chunk)?
        {
            return Ok(id);
        }
        Ok(job_id(self.submission.as_deref().unwrap_or_default(), chunk))
    }

    fn answered(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Answered> {
        let (chunk, before): (u64, u64) = (row.get(0)?, row.get(6)?);
        let ids: Option<String> = row.get(4)?;
        let select = "SELECT position, id, code, message FROM bad WHERE chunk = ?1 ORDER BY position";
        let mut select = self.connection.prepare_cached(select)?;
        let bad = select.query_map([chunk], |row| {
            let position: u64 = row.get(0)?;
            Ok((before + position, row.get(1)?, ReplyError { code: row.get(2)?, message: row.get(3)? }))
        })?;
        let first = before + row.get::<_, u64>(1)?;
        Ok(Answered {
            job: self.job_id(chunk)?,
            first,
            place: row.get(2)?,
            place_index: first,
            items: row.get(3)?,
            // Written by this file as a list of as many ids as items.
            ids: ids.and_then(|ids| serde_json::from_str(&ids).ok()).unwrap_or_default(),
            bad: bad.collect::<rusqlite::Result<_>>()?,
            reply: row.get(5)?,
            elsewhere: row.get(7)?,
        })
    }

    /// The output that is followed.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn followed(&self) -> Result<Option<Followed>, LedgerError> {
        let followed = self.setting("followed").map_err(self.named())?;
        let parse = |text: String| serde_json::from_str(&text).map_err(|_| LedgerError::NotALedger(self.path.clone()));
        followed.map(parse).transpose()
    }

    /// Begins a followed output; one before it is forgotten.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn begin_followed(&mut self, followed: &Followed) -> Result<(), LedgerError> {
        let named = self.named();
        let transaction = self.connection.transaction().map_err(&named)?;
        transaction.execute("DELETE FROM followed", []).map_err(&named)?;
        store_followed(&transaction, followed).map_err(&named)?;
        transaction.commit().map_err(&named)
    }

    /// Records that the followed output holds the rows of `chunks` too, and how long it is.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn record_followed(&mut self, followed: &Followed, chunks: &[u64]) -> Result<(), LedgerError> {
        let named = self.named();
        let transaction = self.connection.transaction().map_err(&named)?;
        for chunk in chunks {
            let insert = "INSERT INTO followed VALUES (?1) ON CONFLICT DO NOTHING";
            transaction.prepare_cached(insert).and_then(|mut insert| insert.execute([chunk])).map_err(&named)?;
        }
        store_followed(&transaction, followed).map_err(&named)?;
        transaction.commit().map_err(&named)
    }

    /// The first `limit` chunks from `chunk` on that have all their rows, which the followed output lacks.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn unfollowed(&self, chunk: u64, limit: usize) -> Result<Vec<u64>, LedgerError> {
        let select = "SELECT j.chunk FROM jobs j LEFT JOIN replies r USING (chunk) LEFT JOIN followed f USING (chunk)
            WHERE j.chunk >= ?1 AND (r.chunk IS NOT NULL OR j.items = 0) AND f.chunk IS NULL ORDER BY j.chunk LIMIT ?2";
        let mut select = self.connection.prepare_cached(select).map_err(self.named())?;
        let chunks = select.query_map(params![chunk, limit], |row| row.get(0)).map_err(self.named())?;
        chunks.collect::<rusqlite::Result<_>>().map_err(self.named())
    }
}

fn answered() -> String {
    let (before, elsewhere) = (elsewhere::BEFORE, "EXISTS (SELECT 1 FROM elsewhere e WHERE e.chunk = j.chunk)");
    format!(
        "SELECT j.chunk, j.first, j.place, j.items, j.ids, r.body, {before}, {elsewhere}
        FROM jobs j LEFT JOIN replies r USING (chunk)"
    )
}

fn store_followed(transaction: &Transaction<'_>, followed: &Followed) -> rusqlite::Result<()> {
    let text = serde_json::to_string(followed).expect("strings and a number");
    let insert = "INSERT INTO settings VALUES ('followed', ?1) ON CONFLICT DO UPDATE SET value = excluded.value";
    transaction.prepare_cached(insert)?.execute([text]).map(drop)
}

/// Keeps `answer` if it is the first for its job, or better than the one that is there.
fn keep_best(
    transaction: &Transaction<'_>,
    chunk: u64,
    answer: &Answer,
    counts: &mut Counts,
) -> rusqlite::Result<Recorded> {
    let select = "SELECT j.items, r.status, coalesce(r.tokens, 0) FROM jobs j LEFT JOIN replies r USING (chunk)
        WHERE j.chunk = ?1 AND j.items > 0";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let row: Option<(u64, Option<String>, u64)> =
        transaction.prepare_cached(select)?.query_row([chunk], row).optional()?;
    let Some((items, before, tokens_before)) = row else { return Ok(Recorded::Unknown) };
    let elsewhere = elsewhere::contains(transaction, chunk)?;
    if let Some(why) = answer.unfit(items, elsewhere) {
        return Ok(Recorded::Unfit(why));
    }
    let duplicate = before.is_some();
    if before.is_some_and(|before| !answer.status.is_better_than(status(&before))) {
        return Ok(Recorded::Duplicate);
    }
    let replace = "INSERT OR REPLACE INTO replies VALUES (?1, ?2, ?3, ?4)";
    let row = params![chunk, answer.status.as_str(), answer.tokens, &answer.body[..]];
    transaction.prepare_cached(replace)?.execute(row)?;
    counts.tokens = counts.tokens - tokens_before + answer.tokens;
    let items_before = items;
    let items = answer.items().filter(|_| elsewhere).map_or(items, |items| items.max(1));
    if items != items_before {
        elsewhere::count(transaction, chunk, items)?;
        counts.entries = counts.entries - items_before + items;
    }
    if duplicate {
        counts.items_answered = counts.items_answered - items_before + items;
        return Ok(Recorded::Duplicate);
    }
    counts.answered += 1;
    counts.items_answered += items;
    Ok(Recorded::First(chunk))
}

fn status(name: &str) -> Status {
    let known = [Status::Succeeded, Status::Partial, Status::Failed, Status::Rejected, Status::Expired];
    known.into_iter().find(|status| status.as_str() == name).unwrap_or(Status::Failed)
}
