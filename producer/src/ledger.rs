//! The ledger: one sqlite file that says what a submission is, which of its jobs the broker has confirmed, and which
//! replies have come. It is all that `submit` and `collect` need to go on after a crash.
//!
//! In: a [`Plan`], confirmed chunks, replies. Out: job ids, what is unanswered, the best reply of each job in input
//! order. Each `record_…` call is one durable transaction. Confirmed jobs always form a prefix of the input. It never
//! talks to a broker, never holds more than one group of rows in memory, and lets only one process in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use inferq_shared::bucket::Uri;
use inferq_shared::job::JobId;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::{Deserialize, Serialize};

pub use self::confirmed::Confirmed;
pub use self::replies::{Answer, Answered, Followed, Recorded, Selection};

mod asked;
mod confirmed;
mod elsewhere;
mod own_ids;
mod replies;

pub mod lookup;

/// Marks a sqlite file as a ledger: "iqld".
const APPLICATION_ID: i32 = 0x6971_6c64;
/// The version of the tables below.
const FORMAT: i32 = 4;

const TABLES: &str = "
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    -- One row a confirmed chunk; items counts the good ones, ids is a JSON list, absent when no item has an id.
    CREATE TABLE jobs (
        chunk INTEGER PRIMARY KEY, first INTEGER NOT NULL, items INTEGER NOT NULL, digest BLOB NOT NULL,
        place TEXT NOT NULL, ids TEXT
    );
    CREATE TABLE bad (position INTEGER PRIMARY KEY, chunk INTEGER NOT NULL, id TEXT, code TEXT NOT NULL, message TEXT NOT NULL);
    CREATE INDEX bad_by_chunk ON bad (chunk);
    CREATE TABLE replies (chunk INTEGER PRIMARY KEY, status TEXT NOT NULL, tokens INTEGER NOT NULL, body BLOB NOT NULL);
    -- The chunks whose rows a followed output holds; what that output is, and its length, is the setting followed.
    CREATE TABLE followed (chunk INTEGER PRIMARY KEY);
";

/// Why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process works on it.
    #[error("ledger {0} is in use by another process: wait for it, or stop it")]
    Locked(PathBuf),
    /// No such file.
    #[error("no ledger {0}: `inferq submit --ledger` makes one")]
    Missing(PathBuf),
    /// Some other file.
    #[error("{0} is not a ledger: name another file")]
    NotALedger(PathBuf),
    /// A ledger of another build.
    #[error(
        "ledger {path} has format {format}, this build knows format {FORMAT}; use the inferq that made it, or another file"
    )]
    OtherFormat {
        /// Which ledger.
        path: PathBuf,
        /// Its format.
        format: i32,
    },
    /// It can't be used where or as it is.
    #[error("ledger {path} {why}")]
    Unusable {
        /// Which ledger.
        path: PathBuf,
        /// Why, and what to do about it.
        why: String,
    },
    /// What is submitted now is not what the ledger began with.
    #[error("{0}")]
    Changed(String),
    /// The file can't be read or written.
    #[error("ledger {path}: {error}")]
    Sqlite {
        /// Which ledger.
        path: PathBuf,
        /// What sqlite says.
        error: rusqlite::Error,
    },
}

/// A plan's name for the prefix that results were asked for at.
pub const REPLY_URI: &str = "reply-uri";

/// What a submission does to its input. Two runs with the same plan and input make the same jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The queue's address.
    pub queue: String,
    /// What every job says besides its items, as JSON by flag name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

impl Plan {
    /// Where the submission's results were asked for, if in a bucket.
    pub fn reply_uri(&self) -> Option<Uri> {
        self.parameters.get(REPLY_URI)?.as_str()?.parse().ok()
    }
}

/// A ledger, open and locked.
pub struct Ledger {
    connection: Connection,
    path: PathBuf,
    submission: Option<String>,
    counts: Counts,
    /// Whether its jobs came whole, with ids of their own.
    own_ids: bool,
}

/// What a ledger holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chunks whose jobs are confirmed, those without a good item included.
    pub chunks: u64,
    /// Jobs that a reply must come for.
    pub jobs: u64,
    /// Entries of the input, good and bad.
    pub entries: u64,
    /// Bad lines.
    pub bad: u64,
    /// Jobs that a reply has come for.
    pub answered: u64,
    /// Items of those jobs.
    pub items_answered: u64,
    /// Tokens that the replies count.
    pub tokens: u64,
    /// The whole input has been submitted.
    pub complete: bool,
}

impl Counts {
    /// Whether every job of the whole input has a reply.
    pub fn all_answered(&self) -> bool {
        self.complete && self.answered == self.jobs
    }
}

/// A ledger that `submit` and `collect` share within one process.
#[derive(Clone)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// Shares `ledger`.
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    /// Runs `work` on the ledger. It blocks on the disk, so the runtime moves its other tasks to another thread; that
    /// takes the multi-threaded runtime.
    pub fn with<T>(&self, work: impl FnOnce(&mut Ledger) -> T) -> T {
        tokio::task::block_in_place(|| work(&mut self.0.lock().expect("no work on the ledger panics")))
    }
}

impl Ledger {
    /// Opens the ledger at `path`, or makes an empty one.
    ///
    /// # Errors
    /// When it is in use, no ledger, or the file can't be made.
    pub fn open_or_create(path: &Path) -> Result<Self, LedgerError> {
        Self::open_with(path, Some("WAL"))
    }

    /// Opens the ledger at `path` for replies alone: many bytes at a time, which a log would write twice.
    ///
    /// # Errors
    /// When it is absent, in use, or no ledger.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Self::open_present(path, Some("TRUNCATE"))
    }

    /// Opens the ledger at `path` to look into it: it stays as it is.
    ///
    /// # Errors
    /// When it is absent, in use, or no ledger.
    pub fn look_into(path: &Path) -> Result<Self, LedgerError> {
        Self::open_present(path, None)
    }

    fn open_present(path: &Path, journal: Option<&str>) -> Result<Self, LedgerError> {
        if !path.exists() {
            return Err(LedgerError::Missing(path.to_owned()));
        }
        Self::open_with(path, journal)
    }

    fn open_with(path: &Path, journal: Option<&str>) -> Result<Self, LedgerError> {
        let connection = Connection::open(path).map_err(|error| sqlite_error(path, error))?;
        if connection.is_readonly("main").map_err(|error| sqlite_error(path, error))? {
            return Err(unwritable(path, "it is read-only for this user"));
        }
        Self { connection, path: path.to_owned(), submission: None, counts: Counts::default(), own_ids: false }
            .alone()?
            .check_format()?
            .prepare(journal)
    }

    /// Keeps other processes out from the first look on: until the connection closes or this process dies.
    fn alone(self) -> Result<Self, LedgerError> {
        self.connection
            .busy_timeout(Duration::from_millis(200))
            .and_then(|()| self.connection.pragma_update(None, "locking_mode", "EXCLUSIVE"))
            .map_err(self.named())?;
        Ok(self)
    }

    /// Whether it is a ledger or an empty file. Looks before anything is written: it may be another program's.
    fn check_format(self) -> Result<Self, LedgerError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let read = || Ok((self.tables()?, pragma("application_id")?, pragma("user_version")?));
        match read().map_err(self.named())? {
            (0, ..) | (_, APPLICATION_ID, FORMAT) => Ok(self),
            (_, APPLICATION_ID, format) => Err(LedgerError::OtherFormat { path: self.path, format }),
            _ => Err(LedgerError::NotALedger(self.path)),
        }
    }

    /// Sets it up for writing, if it is to be written, and makes the tables if there are none.
    fn prepare(mut self, journal: Option<&str>) -> Result<Self, LedgerError> {
        if let Some(journal) = journal {
            self.settle_in(journal).map_err(self.named())?;
        }
        match (self.tables().map_err(self.named())?, journal) {
            (0, None) => return Err(LedgerError::NotALedger(self.path)),
            (0, Some(_)) => self.create_tables().map_err(self.named())?,
            _ => {}
        }
        self.load().map_err(self.named())?;
        Ok(self)
    }

    fn settle_in(&self, journal: &str) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "journal_mode", journal)?;
        // A reply is acked after its commit, so the commit must outlive a power cut.
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")
    }

    fn tables(&self) -> rusqlite::Result<u64> {
        self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
    }

    fn create_tables(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(own_ids::TABLE)?;
        transaction.execute_batch(elsewhere::TABLE)?;
        transaction.execute_batch(asked::TABLE)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        self.submission = self.setting("submission")?;
        self.own_ids = own_ids::any(&self.connection)?;
        let complete = self.setting("complete")?.is_some();
        let sums = "SELECT count(*), coalesce(sum(items > 0), 0), coalesce(sum(items), 0), (SELECT count(*) FROM bad),
            (SELECT count(*) FROM replies), (SELECT coalesce(sum(tokens), 0) FROM replies),
            (SELECT coalesce(sum(j.items), 0) FROM replies r JOIN jobs j USING (chunk)) FROM jobs";
        self.counts = self.connection.query_row(sums, [], |row| {
            let bad: u64 = row.get(3)?;
            Ok(Counts {
                chunks: row.get(0)?,
                jobs: row.get(1)?,
                entries: row.get::<_, u64>(2)? + bad,
                bad,
                answered: row.get(4)?,
                tokens: row.get(5)?,
                items_answered: row.get(6)?,
                complete,
            })
        })?;
        Ok(())
    }

    fn setting(&self, name: &str) -> rusqlite::Result<Option<String>> {
        let select = "SELECT value FROM settings WHERE name = ?1";
        self.connection.query_row(select, [name], |row| row.get(0)).optional()
    }

    fn named(&self) -> impl Fn(rusqlite::Error) -> LedgerError + use<> {
        let path = self.path.clone();
        move |error| sqlite_error(&path, error)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The submission's id; `None` before [`Ledger::begin`].
    pub fn submission(&self) -> Option<&str> {
        self.submission.as_deref()
    }

    /// The plan that it began with.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn plan(&self) -> Result<Option<Plan>, LedgerError> {
        let plan = self.setting("plan").map_err(self.named())?;
        plan.map(|plan| serde_json::from_str(&plan).map_err(|_| LedgerError::NotALedger(self.path.clone()))).transpose()
    }

    /// The prefixes at which jobs that came whole ask for their results.
    ///
    /// # Errors
    /// When the file can't be read, or holds what is no prefix.
    pub fn asked(&self) -> Result<Vec<Uri>, LedgerError> {
        let prefixes = asked::all(&self.connection).map_err(self.named())?;
        let parsed = prefixes.iter().map(|prefix| prefix.parse());
        parsed.collect::<Result<_, _>>().map_err(|_| LedgerError::NotALedger(self.path.clone()))
    }

    /// Begins the submission `id`, or goes on with the one that is there. Returns the submission's id.
    ///
    /// # Errors
    /// `Changed` when the ledger began with another plan.
    pub fn begin(&mut self, plan: &Plan, id: impl FnOnce() -> String) -> Result<String, LedgerError> {
        let Some(submission) = self.submission.clone() else {
            let id = id();
            self.store_plan(plan, &id).map_err(self.named())?;
            self.submission = Some(id.clone());
            return Ok(id);
        };
        self.compare(plan)?;
        Ok(submission)
    }

    /// Compares `plan` with the one that the ledger began with, if it has begun.
    ///
    /// # Errors
    /// `Changed` when it was another.
    pub fn compare(&self, plan: &Plan) -> Result<(), LedgerError> {
        let Some(difference) = self.plan()?.and_then(|before| difference(&before, plan)) else { return Ok(()) };
        Err(LedgerError::Changed(format!(
            "ledger {} began with {difference}: give the same again, or name another ledger",
            self.path.display()
        )))
    }

    fn store_plan(&mut self, plan: &Plan, id: &str) -> rusqlite::Result<()> {
        let plan = serde_json::to_string(plan).expect("a plan has only string keys");
        let transaction = self.connection.transaction()?;
        let insert = "INSERT INTO settings VALUES ('plan', ?1), ('submission', ?2)";
        transaction.execute(insert, params![plan, id])?;
        transaction.commit()
    }

    /// Whether it has jobs whose items lie in a bucket.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn has_items_elsewhere(&self) -> Result<bool, LedgerError> {
        elsewhere::any(&self.connection).map_err(self.named())
    }

    /// Whether a reply has come for `chunk`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn is_answered(&self, chunk: u64) -> Result<bool, LedgerError> {
        let select = "SELECT 1 FROM replies WHERE chunk = ?1";
        self.connection.prepare_cached(select).and_then(|mut select| select.exists([chunk])).map_err(self.named())
    }
}

/// The id of the job made from a submission's chunk: the same at every try.
pub fn job_id(submission: &str, chunk: u64) -> JobId {
    JobId::new(format!("{submission}-{chunk:06}")).expect("a submission's id and a number make a job id")
}

/// The chunk whose job has this id, by the table of ids or by the number in it.
fn chunk_of_job(ledger: &Connection, own_ids: bool, submission: &str, id: &JobId) -> rusqlite::Result<Option<u64>> {
    if own_ids { own_ids::chunk_of(ledger, id) } else { Ok(numbered_chunk(submission, id)) }
}

/// The chunk that a job id was made from, if it is one of `submission`'s.
fn numbered_chunk(submission: &str, id: &JobId) -> Option<u64> {
    let chunk = id.as_str().strip_prefix(submission)?.strip_prefix('-')?.parse().ok()?;
    (job_id(submission, chunk) == *id).then_some(chunk)
}

/// The first flag that two plans differ in, with its value before and now.
fn difference(before: &Plan, now: &Plan) -> Option<String> {
    if before.queue != now.queue {
        return Some(format!("--queue {}, not --queue {}", before.queue, now.queue));
    }
    let value = |plan: &Plan, name: &str| match plan.parameters.get(name) {
        Some(value) => format!("--{name} {value}"),
        None => format!("no --{name}"),
    };
    let mut names = before.parameters.keys().chain(now.parameters.keys());
    let changed = names.find(|name| before.parameters.get(*name) != now.parameters.get(*name))?;
    Some(format!("{}, not {}", value(before, changed), value(now, changed)))
}

fn unwritable(path: &Path, why: impl std::fmt::Display) -> LedgerError {
    let why = format!("can't be written ({why}): its file and directory must be there and writable");
    LedgerError::Unusable { path: path.to_owned(), why }
}

fn sqlite_error(path: &Path, error: rusqlite::Error) -> LedgerError {
    let unusable = |why| LedgerError::Unusable { path: path.to_owned(), why };
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LedgerError::Locked(path.to_owned()),
        Some(ErrorCode::NotADatabase) => LedgerError::NotALedger(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => unusable(format!("is damaged ({error}): restore it, or name another file")),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => unwritable(path, &error),
        _ => LedgerError::Sqlite { path: path.to_owned(), error },
    }
}

#[cfg(test)]
mod tests;
