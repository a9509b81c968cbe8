//! Where software is seldom tried: full and read-only disks, damaged files, clocks that jump, processes that stop and
//! come back, crowds. Always the real binaries; always a clear error or a visible wait, and nothing lost.
//!
//! Disks are small ones in memory, mounted by a test inside a user namespace of its own ([`inferq_tests::namespace`]).

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use inferq_tests::process::command;
use inferq_tests::queue_file::QueueFile;
use serde_json::Value;

mod clocks;
mod crowds;
mod damage;
mod disks;

/// What a command said and how it ended.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self { code: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

impl Done {
    /// Fails unless it ended with this code and said this.
    fn expect(self, code: i32, says: &str) {
        assert!(self.code == Some(code) && self.stderr.contains(says), "{code}, {says:?} expected: {self:#?}");
    }
}

fn inferq(arguments: &[&str]) -> Done {
    command("inferq").args(arguments).stdin(Stdio::null()).output().unwrap().into()
}

/// Starts a command that reads its standard input.
fn start(arguments: &[&str]) -> Child {
    command("inferq")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until a command says this on stderr.
fn until_said(child: &mut Child, says: &str) {
    let stderr = child.stderr.as_mut().unwrap();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(says) {
        let mut byte = [0];
        assert!(stderr.read(&mut byte).unwrap() > 0, "it never said {says:?}: {}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
}

/// So many lines of input, each with an id.
fn lines(count: usize) -> String {
    (0..count).map(|number| format!("{{\"id\":\"doc-{number}\",\"text\":\"text {number}\"}}\n")).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Submits so many lines, one a job, and returns the ledger's path.
fn submitted(queue: &QueueFile, count: usize) -> String {
    let (input, ledger) = (queue.beside("texts.jsonl"), queue.beside("ledger.db"));
    std::fs::write(&input, lines(count)).unwrap();
    let (url, ledger) = (queue.url(), text(&ledger).to_owned());
    let flags = ["submit", "--queue", &url, "--items-per-job", "1", "--input", text(&input), "--ledger", &ledger];
    inferq(&flags).expect(0, "");
    ledger
}

/// Fails unless the output has each of so many lines once, with a result.
fn assert_whole(output: &Path, count: usize) {
    let written = std::fs::read_to_string(output).unwrap();
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: BTreeSet<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), ids.len()), (count, count));
    assert!(rows.iter().all(|row| row["embedding"].is_array()));
}

/// The route of the only submission in a ledger.
fn route_of(ledger: &str) -> String {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let submission: String =
        db.query_row("SELECT value FROM settings WHERE name = 'submission'", (), |row| row.get(0)).unwrap();
    format!("jobs.results.{submission}")
}

/// Waits until a queue has at least so many messages, waiting and leased together.
async fn until_there_are(queue: &QueueFile, name: &str, count: u64) {
    until(queue, name, |waiting, leased| waiting + leased >= count).await;
}

async fn until(queue: &QueueFile, name: &str, mut is: impl FnMut(u64, u64) -> bool) {
    let looking = async {
        loop {
            let (waiting, leased) = queue.waiting_and_leased(name).await;
            if is(waiting, leased) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(inferq_tests::process::PATIENCE, looking).await.expect("what is waited for comes");
}
