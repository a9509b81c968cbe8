//! The prefixes that jobs which came whole ask for their results at: whoever collects must allow them.
//!
//! In: a connection to the ledger, prefixes. Out: rows of one table, each prefix once.

use rusqlite::Connection;

/// One row for each prefix.
pub(super) const TABLE: &str = "CREATE TABLE asked (prefix TEXT PRIMARY KEY) WITHOUT ROWID;";

/// Notes a prefix.
pub(super) fn insert(ledger: &Connection, prefix: &str) -> rusqlite::Result<()> {
    ledger.prepare_cached("INSERT INTO asked VALUES (?1) ON CONFLICT DO NOTHING")?.execute([prefix]).map(drop)
}

/// Every prefix.
pub(super) fn all(ledger: &Connection) -> rusqlite::Result<Vec<String>> {
    ledger.prepare("SELECT prefix FROM asked ORDER BY prefix")?.query_map([], |row| row.get(0))?.collect()
}
