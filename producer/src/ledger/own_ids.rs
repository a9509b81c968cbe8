//! The ids of jobs that came whole: they say what the ledger would else work out from a chunk's number.
//!
//! In: a connection to the ledger, chunks, ids. Out: rows of one table. An id belongs to one chunk.

use inferq_shared::job::JobId;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension};

/// One row for each job with an id of its own.
pub(super) const TABLE: &str = "CREATE TABLE own_ids (chunk INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);";

/// Whether there is any.
pub(super) fn any(ledger: &Connection) -> rusqlite::Result<bool> {
    ledger.prepare("SELECT 1 FROM own_ids")?.exists([])
}

/// Notes the id of a chunk's job.
pub(super) fn insert(ledger: &Connection, chunk: u64, id: &str) -> rusqlite::Result<()> {
    ledger.prepare_cached("INSERT INTO own_ids VALUES (?1, ?2)")?.execute((chunk, id)).map(drop)
}

/// The chunk whose job has this id.
pub(super) fn chunk_of(ledger: &Connection, id: &JobId) -> rusqlite::Result<Option<u64>> {
    let select = "SELECT chunk FROM own_ids WHERE id = ?1";
    ledger.prepare_cached(select)?.query_row([id.as_str()], |row| row.get(0)).optional()
}

/// The id of a chunk's job.
pub(super) fn id_of(ledger: &Connection, chunk: u64) -> rusqlite::Result<Option<JobId>> {
    let select = "SELECT id FROM own_ids WHERE chunk = ?1";
    let id: Option<String> = ledger.prepare_cached(select)?.query_row([chunk], |row| row.get(0)).optional()?;
    let checked = |id| JobId::new(id).map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, e.into()));
    id.map(checked).transpose()
}
