//! A device that fails, in every way that one can: real workers with the real model, the fault injected, on any machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use inferq_shared::reply::{Reply, Status};
use inferq_tests::process::{WorkerProcess, worker_command};
use inferq_tests::queue_file::{QueueFile, numbered};
use tempfile::TempDir;

use crate::assets::{done, minilm};
use crate::parity::model_directory;

const JOBS: usize = 60;
/// Items of a batch, each a job of its own.
const BATCH: usize = 4;

/// A worker with one engine, whose device has this fault.
fn start(queue: &QueueFile, model: &Path, fault: Option<&str>) -> WorkerProcess {
    let word = queue.beside("termination-log");
    std::fs::write(&word, "").unwrap();
    let batch = BATCH.to_string();
    let mut command =
        worker_command(&queue.path, &["--replicas", "1", "--max-batch-items", &batch, "--watchdog-s", "1"]);
    command.arg("--model").arg(model).arg("--termination-log").arg(word).args(["--check-every-s", "1"]);
    if let Some(fault) = fault {
        command.args(["--inject-fault", fault]);
    }
    WorkerProcess::spawn(&mut command)
}

/// The model with a known answer.
fn with_canary(folder: &TempDir) -> PathBuf {
    let model = folder.path().join("minilm");
    minilm(&model);
    done(&[&"manifest", &model, &"--canary"]);
    model
}

/// What the worker that has ended left for Kubernetes to show.
fn word(queue: &QueueFile) -> String {
    std::fs::read_to_string(queue.beside("termination-log")).unwrap()
}

/// Replies to all jobs, the first of them by a worker with this fault, which ends with 70; the rest by a sound one.
async fn survived(fault: &str) -> (BTreeMap<String, Reply>, String) {
    let queue = QueueFile::new().await;
    queue.publish(numbered(0..JOBS)).await;
    let worker = start(&queue, &model_directory(), Some(fault));
    worker.until_logged("ready");
    assert_eq!(worker.wait().code(), Some(70), "{fault}");
    let said = word(&queue);
    let sound = start(&queue, &model_directory(), None);
    let replies = queue.collect(JOBS, |_| ()).await;
    sound.terminate();
    assert_eq!(sound.wait().code(), Some(0));
    (replies, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_lost_in_use_ends_the_worker_and_costs_its_batch_one_attempt() {
    for (fault, says) in [
        ("lost@12", "every call fails"),
        ("zeros@12", "without length"),
        ("nan@12", "not finite"),
        ("hang@12", "has not answered for"),
    ] {
        let (replies, said) = survived(fault).await;
        assert!(said.starts_with("device lost: ") && said.contains(says), "{fault}: {said}");
        assert!(replies.values().all(|reply| reply.status == Status::Succeeded), "{fault}");
        let again = replies.values().filter(|reply| reply.attempt > 1).count();
        assert!((1..=BATCH).contains(&again), "{fault}: {again} jobs lost an attempt");
        assert!(replies.values().all(|reply| reply.attempt <= 2), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_recovers_costs_nothing() {
    for fault in ["fail@12", "oom@12"] {
        let queue = QueueFile::new().await;
        queue.publish(numbered(0..JOBS)).await;
        let worker = start(&queue, &model_directory(), Some(fault));
        let replies = queue.collect(JOBS, |_| ()).await;
        assert!(replies.values().all(|reply| reply.status == Status::Succeeded && reply.attempt == 1), "{fault}");
        worker.terminate();
        assert_eq!(worker.wait().code(), Some(0), "{fault}");
        assert_eq!(word(&queue), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_computes_wrongly_never_takes_a_job() {
    let folder = TempDir::new().unwrap();
    let model = with_canary(&folder);
    for (fault, says) in [("zeros@0", "without length"), ("nan@0", "not finite"), ("wrong@0", "the manifest's canary")]
    {
        let queue = QueueFile::new().await;
        queue.publish(numbered(0..JOBS)).await;
        let worker = start(&queue, &model, Some(fault));
        assert_eq!(worker.wait().code(), Some(70), "{fault}");
        let said = word(&queue);
        assert!(said.starts_with("failed to warm up the model: ") && said.contains(says), "{fault}: {said}");
        assert_eq!(queue.waiting_and_leased(&queue.names.jobs).await, (JOBS as u64, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_begins_to_compute_wrongly_is_found_by_its_regular_check() {
    let folder = TempDir::new().unwrap();
    let model = with_canary(&folder);
    let queue = QueueFile::new().await;
    // More than can be answered before the first check is due.
    queue.publish(numbered(0..20_000)).await;
    let worker = start(&queue, &model, Some("wrong@12"));
    worker.until_logged("ready");
    assert_eq!(worker.wait().code(), Some(70));
    assert!(word(&queue).contains("the manifest's canary"), "{}", word(&queue));
}
