//! A transaction on a connection: begun by it, ended by a commit, or undone.

use std::ops::Deref;

use crate::{Connection, Result};

/// When a transaction takes the lock that lets it write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionBehavior {
    /// At its first write, which fails with [`Error::BusySnapshot`](crate::Error::BusySnapshot) where another connection has
    /// written since the first read.
    Deferred,
    /// At its start.
    Immediate,
}

impl Connection {
    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`](crate::Error::Busy) where another connection keeps the lock for longer than the busy timeout.
    pub async fn transaction_with_behavior(&mut self, behavior: TransactionBehavior) -> Result<Transaction<'_>> {
        self.run(match behavior {
            TransactionBehavior::Deferred => "BEGIN DEFERRED",
            TransactionBehavior::Immediate => "BEGIN IMMEDIATE",
        })?;
        Ok(Transaction { connection: self })
    }
}

/// A transaction, which is also the connection that it is on. Dropping it undoes it.
#[derive(Debug)]
pub struct Transaction<'a> {
    connection: &'a Connection,
}

impl Transaction<'_> {
    /// Makes what was written last. After an error nothing of it does.
    ///
    /// # Errors
    ///
    /// When SQLite can't write it.
    pub async fn commit(self) -> Result<()> {
        self.connection.run("COMMIT")
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // SQLite is back to one statement a transaction after a commit, and after an error that has undone it already.
        // A rollback can fail only where there is nothing left to undo.
        if !self.connection.sqlite.is_autocommit() {
            let _ = self.connection.run("ROLLBACK");
        }
    }
}
