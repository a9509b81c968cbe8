//! Real worker processes on an embedded queue: killed, poisoned, drained, misconfigured.

use std::num::NonZeroUsize;
use std::path::Path;

use inferq_shared::broker::{Message, QueueOptions};
use inferq_shared::reply::Status;
use inferq_shared::telemetry::story;
use inferq_tests::process::{WorkerProcess, command};
use inferq_tests::queue_file::{QueueFile, message, numbered};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_twenty_times_loses_nothing() {
    const JOBS: usize = 2_000;
    const KILLS: usize = 20;
    let queue = QueueFile::new().await;
    queue.publish(numbered(0..JOBS)).await;
    let mut rng = StdRng::seed_from_u64(7);
    let start =
        |path: &Path| WorkerProcess::start(path, &["--in-flight-jobs", "32", "--echo-batch-ms", "1", "--lease-s", "1"]);
    let mut worker = Some(start(&queue.path));
    let (mut kills, mut next) = (0, rng.random_range(1..=JOBS / KILLS));
    let replies = queue
        .collect(JOBS, |answered| {
            if answered >= next && kills < KILLS {
                worker.take().expect("one worker runs at a time").kill();
                worker = Some(start(&queue.path));
                kills += 1;
                next = answered + rng.random_range(1..=(JOBS - answered) / (KILLS + 1 - kills).max(2) + 1);
            }
        })
        .await;
    assert_eq!(kills, KILLS);
    assert!(replies.values().all(|reply| reply.status == Status::Succeeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_process_is_answered_and_no_innocent_suffers() {
    const INNOCENTS: usize = 300;
    let queue = QueueFile::new().await;
    queue.publish(numbered(0..INNOCENTS / 2)).await;
    queue.publish([message("poison", "please !kill yourself")]).await;
    queue.publish(numbered(INNOCENTS / 2..INNOCENTS)).await;
    let path = queue.path.clone();
    let supervisor = tokio::task::spawn_blocking(move || {
        let mut crashes = 0;
        loop {
            let mut worker = WorkerProcess::start(&path, &["--echo-faults", "--lease-s", "1", "--drain-limit-s", "1"]);
            worker.until_logged("ready");
            let status = worker_end(&mut worker, &path);
            if status {
                return crashes;
            }
            crashes += 1;
        }
    });
    let replies = queue.collect(INNOCENTS + 1, |_| ()).await;
    std::fs::write(queue.path.with_extension("done"), b"").expect("the supervisor is told");
    let crashes = supervisor.await.expect("the supervisor ends");
    assert_eq!(replies["poison"].error.as_ref().map(|error| error.code.as_str()), Some("attempts_exhausted"));
    let innocents = replies.iter().filter(|(id, _)| *id != "poison");
    assert!(innocents.clone().all(|(_, reply)| reply.status == Status::Succeeded));
    assert_eq!(innocents.count(), INNOCENTS);
    assert_eq!(crashes, 5, "one crash an attempt");
}

/// Waits until the worker crashed (false) or the test is done with it (true).
fn worker_end(worker: &mut WorkerProcess, path: &Path) -> bool {
    loop {
        if path.with_extension("done").exists() {
            return true;
        }
        if worker.has_ended() {
            return false;
        }
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_when_it_is_ready_and_drains_when_asked_to_stop() {
    let queue = QueueFile::new().await;
    let worker = WorkerProcess::start(&queue.path, &[]);
    worker.until_logged("ready");
    assert_eq!(worker.get("/healthz"), (200, r#"{"code":"200","message":"Ok"}"#.to_owned()));
    assert_eq!(worker.get("/livez").0, 200);
    let address = worker.health.to_string();
    assert_eq!(probe(&["--health", &address]), (0, "Ok\n".to_owned()));
    assert_eq!(probe(&["--health", &address, "--live"]).0, 0);
    queue.publish(numbered(0..10)).await;
    let replies = queue.collect(10, |_| ()).await;
    assert!(replies.values().all(|reply| reply.attempt == 1));
    let (code, metrics) = worker.get("/metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains("inferq_jobs_total{outcome=\"succeeded\"} 10"), "{metrics}");
    worker.terminate();
    assert_eq!(worker.wait().code(), Some(0));
    let (code, said) = probe(&["--health", &address]);
    assert!(code == 1 && said.starts_with(&format!("inferq-worker: no answer from {address}: ")), "{code} {said}");
}

/// What `inferq-worker health` says of a worker: exit code, and what it wrote.
fn probe(flags: &[&str]) -> (i32, String) {
    let asked = command("inferq-worker").arg("health").args(flags).output().unwrap();
    let said = [asked.stdout, asked.stderr].concat();
    (asked.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_engine_hangs_fails_its_liveness_and_its_jobs_run_elsewhere() {
    let queue = QueueFile::new().await;
    queue.publish([message("heavy", "please !hang")].into_iter().chain(numbered(0..3))).await;
    let flags = ["--echo-faults", "--watchdog-s", "1", "--lease-s", "1", "--replicas", "1"];
    let hung = WorkerProcess::start(&queue.path, &flags);
    hung.until_logged("stuck: leases are no longer renewed, and no jobs are taken");
    assert_eq!(hung.get("/livez"), (503, r#"{"code":"503","message":"stuck"}"#.to_owned()));
    let status: serde_json::Value = serde_json::from_str(&hung.get("/status").1).unwrap();
    assert_eq!(status["stuck"], "engine-0");
    let live = ["--health", &hung.health.to_string(), "--live"];
    assert_eq!(probe(&live), (1, "inferq-worker: stuck\n".to_owned()));
    // This one takes the word for a word.
    let _sound = WorkerProcess::start(&queue.path, &[]);
    let replies = queue.collect(4, |_| ()).await;
    assert!(replies.values().all(|reply| reply.status == Status::Succeeded));
    assert!(replies["heavy"].attempt > 1, "the hung worker lost its lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_each_job_s_story_in_words_that_do_not_change() {
    let queue = QueueFile::new().await;
    let flags = ["--echo-faults", "--lease-s", "1", "--log", "info,inferq::job=debug"];
    let worker = WorkerProcess::start(&queue.path, &flags);
    queue.publish([message("job-1", "a text that does !fail")]).await;
    queue.collect(1, |_| ()).await;
    for (step, field, value) in [
        (story::RECEIVED, "attempt", json!(1)),
        (story::BATCHED, "job.items", json!(1)),
        (story::ITEM_FAILED, "error.code", json!("failed")),
        (story::ANSWERED, "status", json!("failed")),
        (story::SETTLED, "job.id", json!("job-1")),
    ] {
        let told = worker.until_logged(step);
        assert_eq!((&told["job.id"], &told[field]), (&json!("job-1"), &value), "{told}");
        assert!(!told.to_string().contains("a text"), "{told}");
    }
    queue.publish([Message { body: "no job".into(), ..Message::default() }]).await;
    let reason = worker.until_logged(story::DEAD_LETTERED)["reason"].to_string();
    assert!(reason.contains("malformed"), "{reason}");
    worker.kill();
    queue.publish([message("job-2", "please !kill me")]).await;
    WorkerProcess::start(&queue.path, &flags).wait();
    let second = WorkerProcess::start(&queue.path, &flags);
    let told = second.until_logged(story::RECEIVED_AGAIN);
    assert_eq!(
        (&told["job.id"], &told["attempt"], &told["target"]),
        (&json!("job-2"), &json!(2), &json!(story::TARGET))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_gives_back_what_it_has_not_begun_and_spends_no_attempt() {
    let queue = QueueFile::new().await;
    queue.publish(numbered(0..500)).await;
    let slow =
        WorkerProcess::start(&queue.path, &["--echo-batch-ms", "50", "--max-batch-items", "4", "--drain-limit-s", "5"]);
    slow.until_logged("ready");
    let mut stopped = Some(slow);
    let mut second = None;
    let replies = queue
        .collect(500, |answered| {
            if answered >= 8
                && let Some(worker) = stopped.take()
            {
                worker.terminate();
                assert_eq!(worker.wait().code(), Some(0));
                second = Some(WorkerProcess::start(&queue.path, &[]));
            }
        })
        .await;
    assert!(second.is_some(), "the first worker was stopped in the middle");
    assert!(replies.values().all(|reply| reply.attempt == 1 && reply.status == Status::Succeeded));
}

#[test]
fn a_wrong_configuration_is_one_line_and_exit_code_64() {
    let folder = TempDir::new().expect("a temporary folder");
    let here = folder.path().display();
    let cases: [(Vec<String>, &str); 11] = [
        (vec![], "--queue"),
        (vec!["--queue".into(), "sqlite:q.db".into()], "--model"),
        (vec!["--queue".into(), "kafka://host/".into(), "--engine".into(), "echo".into()], "kafka"),
        (flags(&here, &["--max-attempts", "2"]), "--max-attempts is 2, it must be 3 to 1000"),
        (flags(&here, &["--max-lease-s", "5"]), "--max-lease-s is 5, it must be at least --lease-s, 60"),
        (flags(&here, &["--allow-reply-queue", "jobs"]), "--allow-reply-queue jobs"),
        (flags(&here, &["--allow-write", "http://host/out/"]), "--allow-write"),
        (flags(&here, &["--allow-write", "file:///out"]), "--allow-write file:///out must be a prefix"),
        (flags(&here, &["--model", "/tmp/model", "--allow-write", "file:///tmp/"]), "where the model lies"),
        (flags(&here, &["--log", "inferq=loud"]), "--log"),
        (flags(&here, &[]), "inferq setup"),
    ];
    for (flags, named) in cases {
        let output = command("inferq-worker").args(&flags).output().expect("the worker can be started");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {stderr}");
        assert!(stderr.contains(named), "{flags:?} must name {named:?}: {stderr}");
    }
}

fn flags(folder: &impl std::fmt::Display, more: &[&str]) -> Vec<String> {
    let queue = format!("sqlite://{folder}/queue.db");
    let flags = ["--engine", "echo", "--health", "127.0.0.1:0", "--queue", &queue];
    flags.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_results_queue_holds_replies_back_until_there_is_room() {
    let queue = QueueFile::new().await;
    let bounded = QueueOptions { messages_max: NonZeroUsize::new(4), expires: None };
    queue.broker.remove(&queue.names.results()).await.expect("the results queue is removed");
    queue.broker.declare(&queue.names.results(), bounded).await.expect("a small results queue");
    queue.publish(numbered(0..40)).await;
    let _worker = WorkerProcess::start(&queue.path, &["--max-batch-items", "2"]);
    let replies = queue.collect(40, |_| ()).await;
    assert!(replies.values().all(|reply| reply.status == Status::Succeeded));
}
