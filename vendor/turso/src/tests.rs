//! What cubecl relies on, each on a file of its own. A future here ends within its first poll, or the test fails.

use std::fs;
use std::path::PathBuf;
use std::pin::pin;
use std::process;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::transaction::TransactionBehavior::{Deferred, Immediate};
use crate::{Builder, Connection, Database, Error, Result};

/// A directory of its own for one test, removed when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("turso-{}-{name}", process::id()));
        fs::create_dir_all(&path).expect("the directory for temporary files can be written");
        Self(path)
    }

    fn file(&self) -> String {
        self.0.join("kernels.db").to_str().expect("the path is UTF-8").to_owned()
    }

    fn database(&self) -> Result<Database> {
        now(Builder::new_local(&self.file()).build())
    }

    fn reader(&self) -> Result<Database> {
        now(Builder::new_local(&self.file()).read_only(true).build())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future waits for something"),
    }
}

fn numbers(connection: &Connection) -> Vec<i64> {
    let mut rows = now(connection.query("SELECT n FROM t ORDER BY n", ())).unwrap();
    std::iter::from_fn(|| now(rows.next()).unwrap()).map(|row| row.get(0).unwrap()).collect()
}

fn with_table(folder: &Folder) -> (Database, Connection) {
    let database = folder.database().unwrap();
    let connection = database.connect().unwrap();
    now(connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, k TEXT, v BLOB)", ())).unwrap();
    (database, connection)
}

#[test]
fn values_come_back_as_what_they_went_in_as() {
    let folder = Folder::new("values");
    let (_, connection) = with_table(&folder);
    let stored = now(connection.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (7_i64, "key", vec![0_u8, 255]))).unwrap();
    assert_eq!(stored, 1);
    let mut rows = now(connection.query("SELECT n, k, v FROM t WHERE k = ?1", ("key",))).unwrap();
    let row = now(rows.next()).unwrap().unwrap();
    assert_eq!(row.get(0), Ok(7_i64));
    assert_eq!(row.get(1), Ok("key".to_owned()));
    assert_eq!(row.get(2), Ok(vec![0_u8, 255]));
    assert!(row.get::<i64>(1).is_err(), "a text is no number");
    assert!(row.get::<i64>(3).is_err(), "there is no fourth column");
    assert!(now(rows.next()).unwrap().is_none());
}

#[test]
fn a_dropped_transaction_is_undone_and_a_committed_one_lasts() {
    let folder = Folder::new("transaction");
    let (database, mut connection) = with_table(&folder);
    let dropped = now(connection.transaction_with_behavior(Immediate)).unwrap();
    now(dropped.execute("INSERT INTO t (n) VALUES (1)", ())).unwrap();
    drop(dropped);
    let kept = now(connection.transaction_with_behavior(Immediate)).unwrap();
    now(kept.execute("INSERT INTO t (n) VALUES (2)", ())).unwrap();
    now(kept.commit()).unwrap();
    assert_eq!(numbers(&database.connect().unwrap()), [2]);
}

#[test]
fn a_second_writer_waits_for_as_long_as_it_may_and_is_then_told_busy() {
    let folder = Folder::new("busy");
    let (database, mut connection) = with_table(&folder);
    let mut second = database.connect().unwrap();
    second.busy_timeout(Duration::from_millis(200)).unwrap();
    let writing = now(connection.transaction_with_behavior(Immediate)).unwrap();
    let start = Instant::now();
    let refused = now(second.transaction_with_behavior(Immediate)).map(|_| ());
    assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
    assert!(start.elapsed() >= Duration::from_millis(150), "it waited {:?}", start.elapsed());
    assert_eq!(numbers(&second), Vec::<i64>::new(), "a reader does not wait");
    now(writing.commit()).unwrap();
    now(second.transaction_with_behavior(Immediate)).unwrap();
}

#[test]
fn a_new_file_can_be_opened_by_many_at_once() {
    // It takes some rounds for two to meet.
    for round in 0..100 {
        let folder = Folder::new(&format!("many-{round}"));
        let together = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    together.wait();
                    folder.database().unwrap();
                });
            }
        });
    }
}

#[test]
fn a_transaction_that_read_before_another_wrote_may_not_write() {
    let folder = Folder::new("snapshot");
    let (database, mut connection) = with_table(&folder);
    let other = database.connect().unwrap();
    let reading = now(connection.transaction_with_behavior(Deferred)).unwrap();
    assert_eq!(numbers(&reading), Vec::<i64>::new());
    now(other.execute("INSERT INTO t (n) VALUES (1)", ())).unwrap();
    let refused = now(reading.execute("INSERT INTO t (n) VALUES (2)", ()));
    assert!(matches!(refused, Err(Error::BusySnapshot(_))), "{refused:?}");
}

#[test]
fn a_reader_makes_no_file_and_changes_none() {
    let folder = Folder::new("reader");
    assert!(folder.reader().is_err());
    assert!(!fs::exists(folder.file()).unwrap());
    let (_, writer) = with_table(&folder);
    let reader = folder.reader().unwrap().connect().unwrap();
    now(writer.execute("INSERT INTO t (n) VALUES (1)", ())).unwrap();
    assert_eq!(numbers(&reader), [1], "it sees what is in the WAL");
    let refused = now(reader.execute("INSERT INTO t (n) VALUES (2)", ()));
    assert!(matches!(refused, Err(Error::Error(_))), "{refused:?}");
}

#[test]
fn a_missing_table_and_a_foreign_file_are_told_in_words() {
    let folder = Folder::new("words");
    let connection = folder.database().unwrap().connect().unwrap();
    let missing = now(connection.query("SELECT v FROM meta", ())).unwrap_err();
    assert!(missing.to_string().contains("no such table"), "{missing}");
    drop(connection);
    fs::write(folder.file(), "not a database".repeat(100)).unwrap();
    assert!(matches!(folder.database(), Err(Error::Error(_))));
    assert!(matches!(folder.reader(), Err(Error::Error(_))));
}

#[test]
fn the_pragmas_that_cubecl_sets_answer() {
    let folder = Folder::new("pragmas");
    let (database, connection) = with_table(&folder);
    drop(database);
    now(connection.pragma_query("synchronous = NORMAL", |_| panic!("it answers with no rows"))).unwrap();
    let mut answers = Vec::new();
    let visited = now(connection.pragma_query("wal_checkpoint(TRUNCATE)", |row| {
        answers.push(row.get::<i64>(0)?);
        Ok(())
    }));
    assert_eq!((visited, answers), (Ok(()), vec![0]), "one row, which says that nothing was in the way");
    assert_eq!(fs::metadata(format!("{}-wal", folder.file())).unwrap().len(), 0);
}

#[test]
fn a_file_without_its_wal_is_read_where_none_can_be_made() {
    let folder = Folder::new("immutable");
    let (database, connection) = with_table(&folder);
    now(connection.execute("INSERT INTO t (n) VALUES (1)", ())).unwrap();
    drop(connection);
    // A link in the place of the file that SQLite would make, which it does not follow, stands for a directory that may not be
    // written: it holds for root too.
    std::os::unix::fs::symlink("nowhere", format!("{}-shm", folder.file())).unwrap();
    let reader = folder.reader().unwrap();
    assert_eq!(numbers(&reader.connect().unwrap()), [1]);
    assert!(database.connect().is_err(), "a writer is refused");
    fs::write(format!("{}-wal", folder.file()), "rows that only a WAL has").unwrap();
    assert!(reader.connect().is_err(), "half a database is none");
}
