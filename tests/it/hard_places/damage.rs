//! Files that are damaged in the middle.

use std::os::unix::fs::FileExt;
use std::path::Path;

use inferq_tests::process::{WorkerProcess, command};
use inferq_tests::queue_file::{QueueFile, message};

use super::{Done, inferq, route_of, submitted, text, until_there_are};

const PAGE_BYTES: u64 = 4096;

/// Overwrites a page in the middle of a database.
fn damage(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE_BYTES;
    assert!(pages > 20, "a database of {pages} pages is too small to have a middle");
    file.write_all_at(&[0xa5; PAGE_BYTES as usize], pages / 2 * PAGE_BYTES).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_ends_its_worker_by_name() {
    let queue = QueueFile::new().await;
    let long = |number| message(&format!("job-{number}"), &"x".repeat(300));
    queue.publish((0..2000).map(long)).await;
    queue.broker.clone().close().await;
    damage(&queue.path);
    let flags = ["--engine", "echo", "--health", "127.0.0.1:0", "--queue", &queue.url()].map(str::to_owned);
    let worker = Done::from(command("inferq-worker").args(flags).output().unwrap());
    assert_eq!(worker.stderr.matches("panicked").count(), 0, "{worker:?}");
    worker.expect(64, "queue.db is damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_is_named_and_its_replies_stay_in_the_queue() {
    let queue = QueueFile::new().await;
    let ledger = submitted(&queue, 4000);
    damage(Path::new(&ledger));
    let _worker = WorkerProcess::start(&queue.path, &[]);
    let route = route_of(&ledger);
    until_there_are(&queue, &route, 4000).await;
    let output = queue.beside("out.jsonl");
    inferq(&["collect", "--ledger", &ledger, "--output", text(&output)]).expect(64, "ledger.db is damaged");
    assert!(!output.exists());
}
