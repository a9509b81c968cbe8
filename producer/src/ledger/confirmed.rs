//! The half of the ledger that `submit` writes: which chunks of the input the broker has confirmed.
//!
//! In: chunks in input order. Out: whether a chunk is confirmed, and the refusal of one that is not what it was. Of a
//! chunk it keeps a digest, its items' ids and its bad lines; no texts.

use inferq_shared::job::Inputs;
use inferq_shared::reply::ReplyError;
use rusqlite::{ErrorCode, OptionalExtension, params};

use super::{Counts, Ledger, LedgerError, asked, elsewhere, own_ids};
use crate::chunk::{Chunk, ChunkDigest, Work};

/// What the ledger keeps of a chunk whose job is confirmed.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirmed {
    number: u64,
    first: u64,
    items: u64,
    digest: ChunkDigest,
    place: String,
    ids: Option<String>,
    bad: Vec<(u64, Option<String>, ReplyError)>,
    own_id: Option<String>,
    elsewhere: bool,
    /// Where the job asks for its results, if it came whole.
    asked: Option<String>,
}

impl Confirmed {
    /// What is kept of `chunk`: no texts.
    pub fn of(chunk: &Chunk) -> Self {
        let ids: Vec<_> = chunk.work.items().iter().map(|item| item.id.as_deref()).collect();
        let ids = ids.iter().any(Option::is_some).then(|| serde_json::to_string(&ids).expect("ids are strings"));
        Self {
            number: chunk.number,
            first: chunk.first,
            items: chunk.work.rows(),
            digest: chunk.digest,
            place: chunk.place.to_string(),
            ids,
            bad: chunk.bad.iter().map(|(index, bad)| (*index, bad.id.clone(), bad.error.clone())).collect(),
            own_id: match &chunk.work {
                Work::Job(ready) => Some(ready.job.id.to_string()),
                Work::Items(_) => None,
            },
            elsewhere: matches!(&chunk.work, Work::Job(ready) if matches!(ready.job.inputs, Inputs::Uri(_))),
            asked: asked_by(&chunk.work),
        }
    }

    /// What is kept of the one job of a submission whose items lie in a bucket; `digest` is of those.
    pub fn claim(digest: ChunkDigest, place: String) -> Self {
        let (number, first, items) = (0, 0, 1);
        let (ids, bad, own_id, asked) = (None, Vec::new(), None, None);
        Self { number, first, items, digest, place, ids, bad, own_id, elsewhere: true, asked }
    }

    /// The chunk's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its items and bad lines together.
    pub fn rows(&self) -> u64 {
        self.items + self.bad.len() as u64
    }
}

impl Ledger {
    /// Whether `chunk` is confirmed already.
    ///
    /// # Errors
    /// `Changed` when the ledger has other entries in its place, or was complete without it.
    pub fn is_confirmed(&self, chunk: &Confirmed) -> Result<bool, LedgerError> {
        let select = "SELECT digest FROM jobs WHERE chunk = ?1";
        let digest: Option<ChunkDigest> = self
            .connection
            .prepare_cached(select)
            .and_then(|mut select| select.query_row([chunk.number], |row| row.get(0)).optional())
            .map_err(self.named())?;
        match digest {
            Some(digest) if digest == chunk.digest => Ok(true),
            None if !self.counts.complete => Ok(false),
            _ => Err(LedgerError::Changed(format!(
                "the input has changed since it was submitted: it differs within {} entries from {} on; \
                 restore it, or name another ledger than {}",
                chunk.rows(),
                chunk.place,
                self.path.display()
            ))),
        }
    }

    /// Records chunks whose jobs the broker has confirmed. They must come in order; one that is there stays as it is.
    ///
    /// # Errors
    /// When the file can't be written; then none is recorded.
    pub fn record_confirmed(&mut self, chunks: &[Confirmed]) -> Result<(), LedgerError> {
        let named = self.named();
        let added = self.insert_confirmed(chunks).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => id_twice(chunks),
            _ => named(error),
        })?;
        self.own_ids |= chunks.iter().any(|chunk| chunk.own_id.is_some());
        self.counts.chunks += added.chunks;
        self.counts.jobs += added.jobs;
        self.counts.entries += added.entries;
        self.counts.bad += added.bad;
        Ok(())
    }

    fn insert_confirmed(&mut self, chunks: &[Confirmed]) -> rusqlite::Result<Counts> {
        let transaction = self.connection.transaction()?;
        let mut added = Counts::default();
        for chunk in chunks {
            let insert = "INSERT INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
            let row = params![chunk.number, chunk.first, chunk.items, chunk.digest, chunk.place, chunk.ids];
            if transaction.prepare_cached(insert)?.execute(row)? == 0 {
                continue;
            }
            for (index, id, error) in &chunk.bad {
                let insert = "INSERT INTO bad VALUES (?1, ?2, ?3, ?4, ?5)";
                let row = params![index, chunk.number, id, error.code, error.message];
                transaction.prepare_cached(insert)?.execute(row)?;
            }
            if let Some(id) = &chunk.own_id {
                own_ids::insert(&transaction, chunk.number, id)?;
            }
            if chunk.elsewhere {
                elsewhere::insert(&transaction, chunk.number)?;
            }
            if let Some(prefix) = &chunk.asked {
                asked::insert(&transaction, prefix)?;
            }
            added.chunks += 1;
            added.jobs += u64::from(chunk.items > 0);
            added.entries += chunk.rows();
            added.bad += chunk.bad.len() as u64;
        }
        transaction.commit()?;
        Ok(added)
    }

    /// Records that the whole input, of `chunks` chunks, has been submitted.
    ///
    /// # Errors
    /// `Changed` when the ledger holds more than that.
    pub fn record_complete(&mut self, chunks: u64) -> Result<(), LedgerError> {
        if chunks < self.counts.chunks {
            return Err(LedgerError::Changed(format!(
                "the input is shorter than when it was submitted: {chunks} of {} jobs; restore it, or name another \
                 ledger than {}",
                self.counts.chunks,
                self.path.display()
            )));
        }
        let insert = "INSERT INTO settings VALUES ('complete', ?1) ON CONFLICT DO NOTHING";
        self.connection.execute(insert, [chunks.to_string()]).map_err(self.named())?;
        self.counts.complete = true;
        Ok(())
    }
}

fn asked_by(work: &Work) -> Option<String> {
    match work {
        Work::Job(ready) => ready.job.reply_to.as_ref()?.prefix().map(str::to_owned),
        Work::Items(_) => None,
    }
}

/// The error for chunks of which one has an id that another chunk has.
fn id_twice(chunks: &[Confirmed]) -> LedgerError {
    let place = chunks.first().map_or("the input", |chunk| &chunk.place);
    LedgerError::Changed(format!(
        "a job id stands twice in the input, the second time from {place} on: a job's id is its own"
    ))
}
