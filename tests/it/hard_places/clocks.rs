//! Clocks that jump, and processes that sleep through their leases.

use std::path::PathBuf;
use std::process::Command;

use inferq_shared::broker::Message;
use inferq_shared::job::attribute;
use inferq_shared::reply::{Reply, Status};
use inferq_tests::process::{WorkerProcess, command, worker_command};
use inferq_tests::queue_file::{QueueFile, message, taken};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;

use super::{Done, assert_whole, inferq, route_of, submitted, text, until, until_there_are};

/// Debian's libfaketime, which gives a process a wall clock of its own. Says what is left out where it is missing, but
/// never where CI is set.
fn libfaketime() -> Option<PathBuf> {
    let found = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let library = found.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    if library.is_none() {
        assert!(std::env::var_os("CI").is_none(), "a clock that jumps needs libfaketime: apt install libfaketime");
        eprintln!("left out: a clock that jumps needs libfaketime (apt install libfaketime)");
    }
    library
}

/// A wall clock that can be set.
struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    fn set(&self, offset: &str) {
        // Renamed into place: who looks meanwhile sees one or the other.
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    /// The command with this wall clock; what runs by other clocks does not notice.
    fn give_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file).envs([
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ])
    }
}

/// A job published now, by the real clock.
fn published_now(id: &str) -> Message {
    let mut message = message(id, "a text");
    let now = Timestamp::now().as_millisecond().to_string();
    message.attributes.insert(attribute::PUBLISHED_AT.to_owned(), now);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_jumps_an_hour_ends_no_lease() {
    const HOUR_MS: f64 = 3_600_000.0;
    let Some(library) = libfaketime() else { return };
    let queue = QueueFile::new().await;
    let clock = WallClock { library, file: queue.beside("clock") };
    clock.set("+0s");
    // Each job is held for longer than its lease, so that it must be renewed meanwhile.
    let mut jumping = worker_command(&queue.path, &["--engine", "echo", "--lease-s", "1", "--echo-batch-ms", "2000"]);
    let worker = WorkerProcess::spawn(clock.give_to(&mut jumping));
    worker.until_logged("ready");
    for (id, offset) in [("forward", "+1h"), ("back", "-1h")] {
        queue.publish(vec![published_now(&format!("before-{id}"))]).await;
        until(&queue, "jobs", |_, leased| leased == 1).await;
        clock.set(offset);
        queue.publish(vec![published_now(id)]).await;
        until(&queue, "jobs", |waiting, leased| waiting + leased == 0).await;
    }
    let replies = queue.collect(4, |_| ()).await;
    assert!(replies.values().all(|reply| (reply.status, reply.attempt) == (Status::Succeeded, 1)));
    let queued = |id: &str| replies[id].timings_ms.queued;
    assert!(queued("forward") > 0.9 * HOUR_MS && queued("back") == 0.0, "{} {}", queued("forward"), queued("back"));
    assert_eq!(queue.waiting_and_leased("jobs.results").await, (0, 0), "each was answered once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_collected_whichever_way_the_clock_has_jumped() {
    let Some(library) = libfaketime() else { return };
    let queue = QueueFile::new().await;
    let clock = WallClock { library, file: queue.beside("clock") };
    let _worker = WorkerProcess::start(&queue.path, &[]);
    let input = queue.beside("texts.jsonl");
    std::fs::write(&input, super::lines(10)).unwrap();
    for (submitted, collected) in [("+1h", "-1h"), ("-1h", "+1h")] {
        let (ledger, output) = (queue.beside(&format!("{submitted}.db")), queue.beside(&format!("{submitted}.jsonl")));
        let run = |offset: &str, arguments: &[&str]| {
            clock.set(offset);
            Done::from(clock.give_to(command("inferq").args(arguments)).output().unwrap()).expect(0, "");
        };
        run(submitted, &["submit", "--queue", &queue.url(), "--input", text(&input), "--ledger", text(&ledger)]);
        run(collected, &["collect", "--ledger", text(&ledger), "--output", text(&output), "--timeout-s", "60"]);
        assert_whole(&output, 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_slept_through_its_leases_doubles_nothing() {
    const JOBS: usize = 20;
    let queue = QueueFile::new().await;
    let ledger = submitted(&queue, JOBS);
    let route = route_of(&ledger);
    // Long enough for all to be in its hands when it stops.
    let sleeper = WorkerProcess::start(&queue.path, &["--lease-s", "1", "--echo-batch-ms", "3000"]);
    until(&queue, "jobs", |_, leased| leased == JOBS as u64).await;
    sleeper.signal(Signal::STOP);
    let _other = WorkerProcess::start(&queue.path, &[]);
    until_there_are(&queue, &route, JOBS as u64).await;
    sleeper.signal(Signal::CONT);
    until_there_are(&queue, &route, 2 * JOBS as u64).await;
    let lost = format!("inferq_leases_settled_total{{verdict=\"ack\",result=\"lease_lost\"}} {JOBS}");
    while !sleeper.get("/metrics").1.contains(&lost) {
        tokio::task::yield_now().await;
    }
    let output = queue.beside("out.jsonl");
    inferq(&["collect", "--ledger", &ledger, "--output", text(&output)]).expect(0, "20 items");
    assert_whole(&output, JOBS);
    let (waiting, leased) = queue.waiting_and_leased("jobs").await;
    assert_eq!(waiting + leased, 0, "a late ack took nobody's job");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_judged_by_the_clock_of_the_worker_that_takes_the_job() {
    let Some(library) = libfaketime() else { return };
    let queue = QueueFile::new().await;
    let clock = WallClock { library, file: queue.beside("clock") };
    clock.set("+1h");
    let mut ahead = worker_command(&queue.path, &["--engine", "echo"]);
    let _worker = WorkerProcess::spawn(clock.give_to(&mut ahead));
    let in_half_an_hour = Timestamp::from_second(Timestamp::now().as_second() + 1800).unwrap().to_string();
    let job = json!({"version": 1, "id": "due", "inputs": ["a"], "deadline": in_half_an_hour}).to_string();
    let mut replies = queue.consumer("jobs.results").await;
    for (offset, status) in [("+1h", Status::Expired), ("+0h", Status::Succeeded)] {
        clock.set(offset);
        queue.publish(vec![Message { body: job.clone().into(), ..Message::default() }]).await;
        let reply = taken(&mut replies, 16).await.pop().unwrap();
        assert_eq!(Reply::decode(&reply.body).unwrap().status, status);
    }
}
