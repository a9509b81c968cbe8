//! Many processes at once on one file, one submission, one ledger.

use std::thread;

use inferq_shared::reply::Status;
use inferq_tests::process::WorkerProcess;
use inferq_tests::queue_file::{QueueFile, numbered};

use super::{Done, assert_whole, inferq, start, submitted, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_workers_start_at_once_on_one_file() {
    const WORKERS: usize = 100;
    const JOBS: usize = 1000;
    let queue = QueueFile::new().await;
    let path = queue.path.clone();
    let started = || {
        let worker =
            WorkerProcess::start(&path, &["--replicas", "1", "--intake-threads", "1", "--in-flight-jobs", "8"]);
        worker.until_logged("ready");
        worker
    };
    let workers: Vec<WorkerProcess> = thread::scope(|scope| {
        let starting: Vec<_> = (0..WORKERS).map(|_| scope.spawn(started)).collect();
        starting.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    queue.publish(numbered(0..JOBS)).await;
    let replies = queue.collect(JOBS, |_| ()).await;
    assert!(replies.values().all(|reply| (reply.status, reply.attempt) == (Status::Succeeded, 1)));
    for worker in &workers {
        assert_eq!(worker.get("/healthz").0, 200);
        let metrics = worker.get("/metrics").1;
        assert!(!metrics.contains("inferq_broker_failures_total"), "{metrics}");
    }
}

#[test]
fn a_new_queue_file_can_be_set_up_by_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    let setting_up: Vec<_> = (0..32).map(|_| start(&["setup", "--queue", &url])).collect();
    for setup in setting_up {
        Done::from(setup.wait_with_output().unwrap()).expect(0, "");
    }
    inferq(&["status", "--queue", &url]).expect(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_and_two_collectors_share_a_submission() {
    const JOBS: usize = 2000;
    let queue = QueueFile::new().await;
    let ledger = submitted(&queue, JOBS);
    let output = queue.beside("out.jsonl");
    let collect = || start(&["collect", "--ledger", &ledger, "--output", text(&output)]);
    let mut collectors = [collect(), collect()];
    // Nothing is answered yet, so the one that ends is the one that may not collect.
    let second = loop {
        let ended = |collector: &mut std::process::Child| collector.try_wait().unwrap().is_some();
        if let Some(place) = collectors.iter_mut().position(ended) {
            break place;
        }
        tokio::task::yield_now().await;
    };
    let [one, other] = collectors;
    let (first, second) = if second == 0 { (other, one) } else { (one, other) };
    Done::from(second.wait_with_output().unwrap()).expect(64, "by another process: wait for it");
    let _workers = [WorkerProcess::start(&queue.path, &[]), WorkerProcess::start(&queue.path, &[])];
    Done::from(first.wait_with_output().unwrap()).expect(0, "2,000 items");
    assert_whole(&output, JOBS);
}
