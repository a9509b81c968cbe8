//! The jobs whose items lie in a bucket: how many there are is known when the reply comes.
//!
//! In: a connection to the ledger, chunks, counts. Out: rows of one table, and the items that a chunk has in `jobs`. Until
//! the reply comes such a job counts as one item.

use rusqlite::Connection;

/// One row for each such job; `extra` is what its items are more than one.
pub(super) const TABLE: &str =
    "CREATE TABLE elsewhere (chunk INTEGER PRIMARY KEY, extra INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;";

/// Rows of the output before a chunk of `jobs j` that were not counted when it was submitted.
pub(super) const BEFORE: &str = "(SELECT coalesce(sum(e.extra), 0) FROM elsewhere e WHERE e.chunk < j.chunk)";

/// Whether there is any.
pub(super) fn any(ledger: &Connection) -> rusqlite::Result<bool> {
    ledger.prepare("SELECT 1 FROM elsewhere")?.exists([])
}

/// Notes that a chunk's items are elsewhere.
pub(super) fn insert(ledger: &Connection, chunk: u64) -> rusqlite::Result<()> {
    ledger.prepare_cached("INSERT INTO elsewhere (chunk) VALUES (?1)")?.execute([chunk]).map(drop)
}

/// Whether a chunk's items are elsewhere.
pub(super) fn contains(ledger: &Connection, chunk: u64) -> rusqlite::Result<bool> {
    ledger.prepare_cached("SELECT 1 FROM elsewhere WHERE chunk = ?1")?.exists([chunk])
}

/// Notes how many items the reply to a chunk has; one at least, so that it stays a job.
pub(super) fn count(ledger: &Connection, chunk: u64, items: u64) -> rusqlite::Result<()> {
    ledger.prepare_cached("UPDATE elsewhere SET extra = ?2 WHERE chunk = ?1")?.execute([chunk, items - 1])?;
    ledger.prepare_cached("UPDATE jobs SET items = ?2 WHERE chunk = ?1")?.execute([chunk, items]).map(drop)
}
