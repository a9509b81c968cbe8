//! Full and read-only disks under the queue, the ledger and the output.

use std::io::Write;
use std::process::Command;

use futures_util::future::join_all;
use inferq_shared::broker::{BrokerError, Consumer, Message, Publisher};
use inferq_shared::job::attribute;
use inferq_shared::reply::Status;
use inferq_tests::brokers::many;
use inferq_tests::namespace::{Disk, is_inside};
use inferq_tests::process::{WorkerProcess, binary, command};
use inferq_tests::queue_file::{QueueFile, message};
use serde_json::json;

use super::{Done, assert_whole, inferq, lines, route_of, start, submitted, text, until, until_said, until_there_are};

const MIB: u64 = 1 << 20;

/// A job whose reply is so large that it needs room of its own.
fn job_of_large_reply(number: usize) -> Message {
    let item = |index| json!({"id": format!("{number}-{index:0>500}"), "text": "a"});
    let id = format!("large-{number}");
    let job = json!({"version": 1, "id": id, "inputs": (0..400).map(item).collect::<Vec<_>>()});
    Message { body: job.to_string().into(), attributes: [(attribute::JOB_ID.to_owned(), id)].into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_replies_up_and_loses_none() {
    if !is_inside("hard_places::disks::a_full_disk_holds_replies_up_and_loses_none") {
        return;
    }
    let disk = Disk::of_bytes(16 * MIB);
    let queue = QueueFile::at(disk.path("queue.db")).await;
    queue.publish((0..8).map(job_of_large_reply)).await;
    let worker = WorkerProcess::start(&queue.path, &["--echo-batch-ms", "1000"]);
    until(&queue, "jobs", |_, leased| leased == 8).await;
    disk.fill();
    let refused = queue.broker.publisher().publish("jobs", (8..16).map(job_of_large_reply).collect()).await;
    assert!(matches!(&refused, Err(BrokerError::Unavailable(why)) if why.contains("no space left")), "{refused:?}");
    let failed = worker.until_logged("the broker failed; trying again");
    assert!(failed["error"].as_str().unwrap().contains("no space left for the queue"), "{failed}");
    assert_eq!(worker.get("/healthz").0, 200, "a broker that fails does not make a worker unready");
    disk.free();
    let replies = queue.collect(8, |_| ()).await;
    assert!(replies.values().all(|reply| (reply.status, reply.attempt) == (Status::Succeeded, 1)));
    until(&queue, "jobs", |waiting, leased| waiting + leased == 0).await;
    assert_eq!(queue.waiting_and_leased("jobs.results").await, (0, 0), "each was answered once");
}

/// Runs a checkpoint of the queue's log; see <https://www.sqlite.org/pragma.html#pragma_wal_checkpoint>.
fn checkpoint(queue: &QueueFile, mode: &str) {
    let db = rusqlite::Connection::open(&queue.path).unwrap();
    let busy: bool = db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |row| row.get(0)).unwrap();
    assert!(!busy);
}

/// How often the queue's log has begun anew: the first salt in its header,
/// <https://www.sqlite.org/fileformat2.html#walformat>.
fn beginnings(queue: &QueueFile) -> u32 {
    let log = std::fs::read(queue.beside("queue.db-wal")).unwrap();
    u32::from_be_bytes(log[16..20].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_drained_because_the_log_s_room_is_used_again() {
    if !is_inside("hard_places::disks::a_full_disk_is_drained_because_the_log_s_room_is_used_again") {
        return;
    }
    let disk = Disk::of_bytes(16 * MIB);
    let queue = QueueFile::at(disk.path("queue.db")).await;
    let job = |number: usize| message(&format!("job-{number}"), &format!("text {number} {}", "x".repeat(1000)));
    queue.publish((0..2000).map(job)).await;
    checkpoint(&queue, "TRUNCATE");
    // Half of them go, and leave a queue as it is in use: pages to use again in the database, and a log of some length.
    let mut consumer = queue.consumer("jobs").await;
    let gone = many(&mut consumer, 1000).await.unwrap();
    join_all(gone.into_iter().map(|delivery| delivery.lease.ack())).await;
    consumer.close().await;
    checkpoint(&queue, "PASSIVE");
    disk.fill();
    let before = beginnings(&queue);
    let _worker = WorkerProcess::start(&queue.path, &["--in-flight-jobs", "32"]);
    let replies = queue.collect(1000, |_| ()).await;
    assert!(replies.values().all(|reply| (reply.status, reply.attempt) == (Status::Succeeded, 1)));
    // The first is no merit: the log was empty when the worker came.
    assert!(beginnings(&queue) - before > 1, "the log had room for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_nobody_has_open_says_that_its_disk_is_full() {
    if !is_inside("hard_places::disks::a_queue_that_nobody_has_open_says_that_its_disk_is_full") {
        return;
    }
    let disk = Disk::of_bytes(4 * MIB);
    let queue = QueueFile::at(disk.path("queue.db")).await;
    queue.publish(vec![message("a", "a text")]).await;
    queue.broker.clone().close().await;
    disk.fill();
    inferq(&["setup", "--queue", &queue.url()]).expect(1, "no space left for the queue");
    let worker = WorkerProcess::start(&queue.path, &[]);
    worker.until_logged("the broker failed; trying again");
    disk.free();
    worker.until_logged("ready");
    assert_eq!(QueueFile::at(queue.path).await.collect(1, |_| ()).await["a"].attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_waits_visibly_while_the_queue_s_disk_is_full() {
    if !is_inside("hard_places::disks::a_submit_waits_visibly_while_the_queue_s_disk_is_full") {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let disk = Disk::of_bytes(4 * MIB);
    let queue = QueueFile::at(disk.path("queue.db")).await;
    let (url, ledger) = (queue.url(), elsewhere.path().join("ledger.db"));
    let flags = ["submit", "--queue", &url, "--items-per-job", "1", "--format", "jsonl", "--input", "-", "--ledger"];
    let flags = [&flags[..], &[text(&ledger)]].concat();
    let mut child = start(&flags);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines(300).as_bytes()).unwrap();
    until_there_are(&queue, "jobs", 256).await;
    disk.fill();
    // More than the queue's log has room for.
    let more: String =
        (300..600).map(|n| format!("{{\"id\":\"doc-{n}\",\"text\":\"{}\"}}\n", "x".repeat(4096))).collect();
    stdin.write_all(more.as_bytes()).unwrap();
    drop(stdin);
    until_said(&mut child, "waiting: broker unavailable: no space left for the queue");
    inferq(&flags).expect(64, "in use by another process");
    disk.free();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let _worker = WorkerProcess::start(&queue.path, &[]);
    let output = elsewhere.path().join("out.jsonl");
    inferq(&["collect", "--ledger", text(&ledger), "--output", text(&output)]).expect(0, "600 items");
    assert_whole(&output, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_ledger_ends_submit_and_collect_and_they_go_on() {
    if !is_inside("hard_places::disks::a_full_disk_under_the_ledger_ends_submit_and_collect_and_they_go_on") {
        return;
    }
    let queue = QueueFile::new().await;
    let disk = Disk::of_bytes(4 * MIB);
    let (url, ledger) = (queue.url(), disk.path("ledger.db"));
    let (input, output) = (queue.beside("texts.jsonl"), queue.beside("out.jsonl"));
    let flags = ["submit", "--queue", &url, "--items-per-job", "1", "--format", "jsonl", "--ledger", text(&ledger)];
    let mut child = start(&[&flags[..], &["--input", "-"]].concat());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines(300).as_bytes()).unwrap();
    until_there_are(&queue, "jobs", 256).await;
    disk.fill();
    let all = lines(1000);
    // It may end before it has read the rest.
    let _ = stdin.write_all(&all.as_bytes()[lines(300).len()..]);
    drop(stdin);
    Done::from(child.wait_with_output().unwrap()).expect(1, "ledger.db: database or disk is full");
    disk.free();
    std::fs::write(&input, all).unwrap();
    inferq(&[&flags[..], &["--input", text(&input)]].concat()).expect(0, "");

    let _worker = WorkerProcess::start(&queue.path, &[]);
    until_there_are(&queue, &route_of(text(&ledger)), 1000).await;
    disk.fill();
    let collect = ["collect", "--ledger", text(&ledger), "--output", text(&output)];
    inferq(&collect).expect(1, "ledger.db: database or disk is full");
    disk.free();
    inferq(&collect).expect(0, "1,000 items");
    assert_whole(&output, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_output_leaves_the_old_one_and_loses_nothing() {
    if !is_inside("hard_places::disks::a_full_disk_under_the_output_leaves_the_old_one_and_loses_nothing") {
        return;
    }
    let queue = QueueFile::new().await;
    let ledger = submitted(&queue, 1000);
    let _worker = WorkerProcess::start(&queue.path, &[]);
    let disk = Disk::of_bytes(64 << 10);
    let output = disk.path("out.jsonl");
    std::fs::write(&output, "what was there before").unwrap();
    let collect = |output: &str| inferq(&["collect", "--ledger", &ledger, "--output", output]);
    collect(text(&output)).expect(1, "out.jsonl: No space left on device");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "what was there before");
    let output = queue.beside("out.jsonl");
    collect(text(&output)).expect(0, "1,000 items");
    assert_whole(&output, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_named_by_who_has_to_write_on_it() {
    if !is_inside("hard_places::disks::a_read_only_disk_is_named_by_who_has_to_write_on_it") {
        return;
    }
    let queue = QueueFile::new().await;
    let ledger = submitted(&queue, 10);
    let _worker = WorkerProcess::start(&queue.path, &[]);
    let disk = Disk::of_bytes(4 * MIB);
    let there = QueueFile::at(disk.path("queue.db")).await;
    let url = there.url();
    there.broker.clone().close().await;
    drop(there);
    std::fs::copy(&ledger, disk.path("ledger.db")).unwrap();
    disk.make_read_only();

    let input = queue.beside("texts.jsonl");
    let output = disk.path("out.jsonl");
    inferq(&["submit", "--queue", &url, "--input", text(&input)]).expect(64, "queue.db can't be written");
    inferq(&["status", "--queue", &url]).expect(64, "queue.db can't be written");
    let flags = ["--engine", "echo", "--health", "127.0.0.1:0", "--queue", &url];
    let worker = Done::from(command("inferq-worker").args(flags).output().unwrap());
    worker.expect(64, "queue.db can't be written");
    let new = disk.path("new.db");
    inferq(&["submit", "--queue", &queue.url(), "--input", text(&input), "--ledger", text(&new)])
        .expect(64, "new.db can't be written");
    let copy = disk.path("ledger.db");
    inferq(&["collect", "--ledger", text(&copy), "--output", "-"]).expect(64, "ledger.db can't be written");
    inferq(&["collect", "--ledger", &ledger, "--output", text(&output)]).expect(1, "out.jsonl: Read-only file system");
    let output = queue.beside("out.jsonl");
    inferq(&["collect", "--ledger", &ledger, "--output", text(&output)]).expect(0, "10 items");
    assert_whole(&output, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_file_that_may_not_be_written_is_named() {
    if !is_inside("hard_places::disks::a_queue_file_that_may_not_be_written_is_named") {
        return;
    }
    let queue = QueueFile::new().await;
    queue.publish(vec![message("a", "a")]).await;
    queue.broker.clone().close().await;
    let mut permissions = queue.path.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&queue.path, permissions).unwrap();
    // In yet another namespace, where root has no power over the file.
    let setup = ["--user", text(&binary("inferq")), "setup", "--queue", &queue.url()].map(str::to_owned);
    Done::from(Command::new("unshare").args(setup).output().unwrap()).expect(64, "queue.db can't be written");
}
