//! Stands where cubecl-environment 0.11 asks for the crate `turso`: the public items that it names, on SQLite.
//!
//! Why: cubecl keeps compiled kernels in a database file, which it reads and writes with turso, SQLite written anew in Rust.
//! That one brings 77 packages into `Cargo.lock` that nothing else here needs, and SQLite itself is compiled in already. It can
//! go as soon as cubecl lets one choose what keeps its kernels.
//!
//! What differs from turso: a query reads all its rows before the first is handed out; a file is in WAL mode from when it is
//! opened for writing, not from the first write; each connection opens the file for itself, so that a reader of a file does not
//! make the process's other users of it readers too. The functions are `async` because turso's are: each ends within its
//! first poll and blocks meanwhile, where another process holds a lock for as long as the busy timeout.

use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::types::{FromSql, Value};
use rusqlite::{ErrorCode, OpenFlags, Params, ffi};

pub mod transaction;

/// How long opening a file waits for the others that open it; rusqlite's own busy timeout, and cubecl's.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// How long it lets the others go on between two tries. What they do meanwhile is one small write.
const OPEN_PAUSE: Duration = Duration::from_millis(5);

/// What a call here gives back.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed, as far as cubecl tells the reasons apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Another connection held a lock for longer than the busy timeout. A later try may succeed.
    Busy(String),
    /// A transaction that only read would write, and another connection has written since.
    BusySnapshot(String),
    /// The operating system refused: what it said, and what was tried. Only cubecl makes this one.
    IoError(std::io::ErrorKind, &'static str),
    /// Anything else, in SQLite's words: cubecl looks for "no such table" in them.
    Error(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(message) | Self::BusySnapshot(message) | Self::Error(message) => f.write_str(message),
            Self::IoError(kind, action) => write!(f, "{action}: {kind}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let message = error.to_string();
        match error.sqlite_error() {
            Some(cause) if cause.extended_code == ffi::SQLITE_BUSY_SNAPSHOT => Self::BusySnapshot(message),
            // The second is a lost race for the WAL's locks, which SQLite gives up only after many tries.
            Some(cause) if matches!(cause.code, ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed) => {
                Self::Busy(message)
            }
            _ => Self::Error(message),
        }
    }
}

/// How a database file is to be opened.
#[derive(Clone, Debug)]
pub struct Builder {
    database: Database,
}

impl Builder {
    /// The file at `path`, made if it is missing.
    pub fn new_local(path: &str) -> Self {
        Self { database: Database { path: path.to_owned(), read_only: false } }
    }

    /// Whether the file is only read: it is then not made, and not changed.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.database.read_only = read_only;
        self
    }

    /// Nothing to do: SQLite can always compact a file.
    pub fn experimental_vacuum(self, _enabled: bool) -> Self {
        self
    }

    /// Nothing to do: SQLite's locks are between processes too.
    pub fn experimental_multiprocess_wal(self, _enabled: bool) -> Self {
        self
    }

    /// Opens the file once, so that what can't be used fails here, and puts one that is to be written into WAL mode.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where another process holds a lock on it; [`Error::Error`] where it is missing, is no database, or is to
    /// be written and can't be.
    pub async fn build(self) -> Result<Database> {
        let connection = self.database.open()?;
        if !self.database.read_only {
            // SQLite opens a file that it may not write as a reader, and would say so only at the first write.
            if connection.is_readonly("main")? {
                return Err(Error::Error(format!("{} is read-only", self.database.path)));
            }
            into_wal_mode(&connection)?;
        }
        Ok(self.database)
    }
}

/// A database file that could be opened.
#[derive(Clone, Debug)]
pub struct Database {
    path: String,
    read_only: bool,
}

impl Database {
    /// A new connection to the file. Until [`Connection::busy_timeout`] says otherwise it waits five seconds for a lock.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn connect(&self) -> Result<Connection> {
        Ok(Connection { sqlite: self.open()? })
    }

    fn open(&self) -> Result<rusqlite::Connection> {
        let access = if self.read_only {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        } else {
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
        };
        match open(&self.path, access) {
            Err(error) if self.read_only && is_unwritable(&error) && self.has_no_wal() => {
                Ok(open(&self.immutable()?, access | OpenFlags::SQLITE_OPEN_URI)?)
            }
            opened => Ok(opened?),
        }
    }

    /// Whether the file is all there is. Rows that are still in a WAL would be missing from it, or be there by halves.
    fn has_no_wal(&self) -> bool {
        fs::metadata(format!("{}-wal", self.path)).map_or(true, |wal| wal.len() == 0)
    }

    /// The address that opens the file without the files that SQLite keeps beside one in WAL mode: it can't make them in a
    /// directory that may not be written, such as a layer of an image (<https://www.sqlite.org/wal.html#read_only_databases>).
    /// It takes no locks either. That is right for as long as nobody who may write there does so.
    fn immutable(&self) -> Result<String> {
        let path = fs::canonicalize(&self.path).map_err(|error| Error::Error(format!("{}: {error}", self.path)))?;
        let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        Ok(format!("file://{path}?immutable=1"))
    }
}

/// Opens a file, and reads from it, since SQLite itself touches a file only then.
fn open(path: &str, access: OpenFlags) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()))?;
    Ok(connection)
}

/// Puts the file into WAL mode, where it stays. That the mode did not change is no error: then writers make readers wait.
///
/// SQLite does not wait for the lock that the change needs: of processes that make one file at once some would be refused.
fn into_wal_mode(connection: &rusqlite::Connection) -> Result<()> {
    let start = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).map_err(Error::from) {
            Err(Error::Busy(_)) if start.elapsed() < OPEN_LIMIT => thread::sleep(OPEN_PAUSE),
            changed => return changed,
        }
    }
}

fn is_unwritable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// A connection to a database file. Dropping the last one folds the WAL into the file.
#[derive(Debug)]
pub struct Connection {
    sqlite: rusqlite::Connection,
}

impl Connection {
    /// Runs one statement that answers with no rows. Gives back how many rows an INSERT, UPDATE or DELETE changed.
    ///
    /// # Errors
    ///
    /// When SQLite refuses it, and when it answers with rows.
    pub async fn execute(&self, sql: impl AsRef<str>, params: impl Params) -> Result<u64> {
        Ok(self.sqlite.prepare_cached(sql.as_ref())?.execute(params)? as u64)
    }

    /// Runs one statement and reads all the rows that it answers with.
    ///
    /// # Errors
    ///
    /// When SQLite refuses it.
    pub async fn query(&self, sql: impl AsRef<str>, params: impl Params) -> Result<Rows> {
        let mut statement = self.sqlite.prepare_cached(sql.as_ref())?;
        let rows = statement.query_map(params, |row| {
            (0..row.as_ref().column_count()).map(|column| row.get(column)).collect::<rusqlite::Result<_>>().map(Row)
        })?;
        Ok(Rows(rows.collect::<rusqlite::Result<Vec<Row>>>()?.into_iter()))
    }

    /// Runs `PRAGMA pragma` and shows each row of its answer to `visit`. One that assigns may answer with none.
    ///
    /// # Errors
    ///
    /// When SQLite refuses it, or `visit` fails.
    pub async fn pragma_query(&self, pragma: &str, mut visit: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        let rows = self.query(format!("PRAGMA {pragma}"), ()).await?;
        rows.0.as_slice().iter().try_for_each(&mut visit)
    }

    /// How long a statement waits for a lock that another connection holds.
    ///
    /// # Errors
    ///
    /// None that SQLite has today.
    pub fn busy_timeout(&self, limit: Duration) -> Result<()> {
        Ok(self.sqlite.busy_timeout(limit)?)
    }

    fn run(&self, sql: &str) -> Result<()> {
        Ok(self.sqlite.execute_batch(sql)?)
    }
}

/// The rows that a query answered with.
#[derive(Debug)]
pub struct Rows(std::vec::IntoIter<Row>);

impl Rows {
    /// The next row, or none after the last.
    ///
    /// # Errors
    ///
    /// None: the rows have been read.
    pub async fn next(&mut self) -> Result<Option<Row>> {
        Ok(self.0.next())
    }
}

/// One row of an answer.
#[derive(Clone, Debug)]
pub struct Row(Vec<Value>);

impl Row {
    /// The value in column `column`, counted from 0.
    ///
    /// # Errors
    ///
    /// When there is no such column, or its value is of another type.
    pub fn get<T: FromSql>(&self, column: usize) -> Result<T> {
        let value = self.0.get(column).ok_or_else(|| Error::Error(format!("no column {column}")))?;
        T::column_result(value.into()).map_err(|error| Error::Error(format!("column {column}: {error}")))
    }
}

#[cfg(test)]
mod tests;
