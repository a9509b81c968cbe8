//! Opening the queue's file: its settings, its tables, and what a reboot means for what is in it.
//!
//! In: a path. Out: a connection that is ready to use, or why not and what to do about it. Nothing here runs after the
//! queue is open.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::super::BrokerError;
use super::clock;

/// `iqdb`: marks the file as ours in its header.
const APPLICATION_ID: i32 = 0x6971_6462;
/// The layout that [`LAYOUTS`] leads to.
const VERSION: i32 = LAYOUTS.len() as i32;
/// How long to wait for SQLite's locks before giving up.
const BUSY_MAX: Duration = Duration::from_secs(30);
/// The longest wait between two tries, in ms. Few wait here: who writes has taken its turn first.
const BUSY_STEP_MAX_MS: f64 = 10.0;

/// Each step from one layout to the next, the first from an empty file. A step that has been released stays as it is.
const LAYOUTS: [&str; 2] = [TABLES, WORKERS];

/// - `messages`: what was published, by the order of commits, whatever queue it is in.
/// - `entries`: where each message stands. Ready if `visible_at` (boot clock, ms) is not in the future. A lease is a
///   `visible_at` in the future and a `token`, which fences the settlement of a lease that was lost; a delay is one
///   without. `place` is where it first stood: releasing without delay puts it back there. Small rows, because a lease
///   moves them.
/// - `queues.messages` counts its entries, so that a bound costs no scan. `used_at` is wall clock, ms.
const TABLES: &str = "
CREATE TABLE meta (boot TEXT NOT NULL) STRICT;
INSERT INTO meta VALUES ('');
CREATE TABLE queues (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, messages INTEGER NOT NULL DEFAULT 0,
  messages_max INTEGER, expires_ms INTEGER, used_at INTEGER NOT NULL) STRICT;
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, published_at INTEGER NOT NULL, attributes BLOB NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE entries (
  queue INTEGER NOT NULL, visible_at INTEGER NOT NULL, id INTEGER NOT NULL,
  place INTEGER NOT NULL, attempt INTEGER NOT NULL, token INTEGER NOT NULL,
  PRIMARY KEY (queue, visible_at, id)) STRICT, WITHOUT ROWID;
";

/// What workers say of themselves; `seen_at` is boot clock, ms.
const WORKERS: &str = "
CREATE TABLE workers (
  id TEXT PRIMARY KEY, queue TEXT NOT NULL, about TEXT NOT NULL, seen_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// After a reboot every lease's holder is gone and the clock begins anew: everything is visible, in the order of
/// publishing, and what was leased has spent an attempt. No worker is left.
const AFTER_REBOOT: &str = "
UPDATE entries SET visible_at = 0, place = 0, attempt = attempt + (token <> 0), token = 0;
DELETE FROM workers;
";

/// Opens the queue in `path`, making it if there is none.
///
/// # Errors
/// `Refused` when this is no queue of ours, or can't be written where it is; `Unavailable` when it may work later.
pub(super) fn open(path: &Path) -> Result<Connection, BrokerError> {
    check_directory(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let named = |error: rusqlite::Error| explain(path, &error);
    let mut db = Connection::open_with_flags(path, flags).map_err(named)?;
    prepare(&mut db).map_err(named)?;
    check_owner(&db, path)?;
    create(&mut db, path)?;
    Ok(db)
}

fn check_directory(path: &Path) -> Result<(), BrokerError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if directory.is_dir() {
        return Ok(());
    }
    Err(BrokerError::Refused(format!(
        "the queue {} can't be opened: there is no directory {}; create it",
        path.display(),
        directory.display()
    )))
}

fn prepare(db: &mut Connection) -> rusqlite::Result<()> {
    db.busy_handler(Some(wait_for_lock))?;
    // Reads the header, so that a file that is no database is found out before anything is written.
    db.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get::<_, i64>(0))?;
    Ok(())
}

/// Waits a little for a lock of SQLite's, at random so that those who wait come apart; false after too long.
fn wait_for_lock(waits: i32) -> bool {
    thread_local! {
        static SINCE: Cell<Instant> = Cell::new(Instant::now());
    }
    if waits == 0 {
        SINCE.set(Instant::now());
    }
    let step_ms = f64::from(waits.saturating_add(4)) / 4.0;
    std::thread::sleep(Duration::from_millis(1).mul_f64(rand::random_range(0.5..1.5) * step_ms.min(BUSY_STEP_MAX_MS)));
    SINCE.get().elapsed() < BUSY_MAX
}

fn check_owner(db: &Connection, path: &Path) -> Result<(), BrokerError> {
    let number = |pragma| db.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let tables = || db.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get::<_, i64>(0));
    let read = || {
        // In one transaction: another process may make the tables between two looks.
        let _unchanging = db.unchecked_transaction()?;
        Ok((number("application_id")?, number("user_version")?, tables()?))
    };
    let path_shown = path.display();
    match read().map_err(|error| explain(path, &error))? {
        (0, 0, 0) | (APPLICATION_ID, 1..=VERSION, _) => Ok(()),
        (APPLICATION_ID, version, _) => Err(BrokerError::Refused(format!(
            "the queue {path_shown} has layout {version}, this build knows layout {VERSION}; use the newer inferq that made \
             it, or another file"
        ))),
        _ => Err(BrokerError::Refused(format!(
            "{path_shown} is a database of another program, not a queue; name another file"
        ))),
    }
}

fn create(db: &mut Connection, path: &Path) -> Result<(), BrokerError> {
    let named = |error: rusqlite::Error| explain(path, &error);
    settle_in(db).map_err(named)?;
    db.execute_batch("BEGIN IMMEDIATE").map_err(named)?;
    if let Err(error) = migrate(db) {
        let _ = db.execute_batch("ROLLBACK");
        return Err(named(error));
    }
    db.execute_batch("COMMIT").map_err(named)
}

fn settle_in(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    db.execute_batch(
        // FULL: a commit returns after the log is synced. Checkpoints are ours to time, after the answers. A large queue
        // fills the cache of 1 MiB, and gains nothing from a larger one: each page is read once and then deleted.
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;
         PRAGMA foreign_keys = OFF; PRAGMA cache_size = -1024; PRAGMA journal_size_limit = 67108864",
    )?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(db: &Connection) -> rusqlite::Result<()> {
    // Another process may have made the tables since they were looked for.
    let version = db.pragma_query_value(None, "user_version", |row| row.get::<_, usize>(0))?;
    for step in LAYOUTS.iter().skip(version) {
        db.execute_batch(step)?;
    }
    if version < LAYOUTS.len() {
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        db.pragma_update(None, "user_version", VERSION)?;
    }
    let boot = clock::boot_id();
    if db.query_row("SELECT boot FROM meta", (), |row| row.get::<_, String>(0))? != boot {
        db.execute_batch(AFTER_REBOOT)?;
        db.execute("UPDATE meta SET boot = ?1", [&boot])?;
    }
    Ok(())
}

/// Whether the disk has no room, for the database, its log or the memory that processes share beside it.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    error.sqlite_error_code() == Some(ErrorCode::DiskFull) || extended == Some(SQLITE_IOERR_SHMSIZE)
}

/// What an error of SQLite means to who uses the queue.
pub(super) fn explain(path: &Path, error: &rusqlite::Error) -> BrokerError {
    let path = path.display();
    match error.sqlite_error_code() {
        _ if is_full(error) => BrokerError::Unavailable(format!("no space left for the queue {path}; free some")),
        Some(ErrorCode::NotADatabase) => {
            BrokerError::Refused(format!("{path} is not a database, so not a queue; name another file"))
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            BrokerError::Refused(format!("the queue {path} is damaged ({error}); restore it, or name another file"))
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            BrokerError::Refused(format!(
                "the queue {path} can't be written ({error}); its file and directory must be writable by this user"
            ))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            BrokerError::Unavailable(format!("another process keeps the queue {path} locked ({error})"))
        }
        _ => BrokerError::Unavailable(format!("the queue {path}: {error}")),
    }
}
