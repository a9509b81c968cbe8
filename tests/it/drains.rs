//! A short form of `make drains`: workers stopped as a kubelet stops them, with five seconds of grace, and replaced under
//! load.

use std::time::Duration;

use inferq_tests::drains::story::Phase;
use inferq_tests::drains::{Kind, Load, Terms, check, stop, update};
use inferq_tests::kubelet::{How, Pod, Probe, Probes, Seen};
use inferq_tests::process::worker_command;
use inferq_tests::queue_file::QueueFile;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::parity::model_directory;

/// Short leases, so that what a worker leaves that could not tell the broker is soon seen again.
fn terms() -> Terms {
    Terms { lease: Duration::from_secs(2), ..Terms::of_grace(Duration::from_secs(5)) }
}

/// Stops workers in these phases, side by side.
async fn stopped(kind: Kind, phases: &[Phase]) {
    let mut stops = JoinSet::new();
    for phase in phases.iter().copied() {
        stops.spawn(async move { stop(kind, phase, terms(), &model_directory()).await.unwrap() });
    }
    // It has been said where the broker is not installed.
    for story in stops.join_all().await.into_iter().flatten() {
        let broken = check::stop(&story);
        assert!(broken.is_empty(), "{kind:?}, {}: {broken:?}\n{}", story.phase.name(), story.end.lines.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_in_any_phase_ends_in_time_and_loses_nothing() {
    stopped(Kind::Sqlite, &Phase::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_rabbitmq_that_is_stopped_in_the_middle_of_a_batch_gives_the_rest_back() {
    stopped(Kind::Rabbitmq, &[Phase::MidBatch]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_pubsub_that_is_stopped_in_the_middle_of_a_batch_gives_the_rest_back() {
    stopped(Kind::PubSub, &[Phase::MidBatch]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_are_replaced_under_load_and_nothing_is_lost() {
    let probes = Probes::every(Duration::from_millis(50));
    let load = Load { rate: 50.0, length: Duration::from_secs(5), seed: 1, probes };
    let update = update(Kind::Sqlite, load, terms(), true).await.unwrap().unwrap();
    let broken = check::update(&update);
    assert!(broken.is_empty(), "{broken:?}, {update:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_answers_nothing_is_condemned_by_its_probes_and_killed_at_the_end_of_grace() {
    let queue = QueueFile::new().await;
    let probe = Probe { period: Duration::from_millis(50), timeout: Duration::from_millis(50), failures: 3 };
    // A start may be slow.
    let startup = Probe { failures: 1_000, ..probe };
    let probes = Probes { startup, liveness: probe, readiness: probe };
    let pod = Pod::start(worker_command(&queue.path, &["--engine", "echo"]), probes);
    pod.until_seen(Seen::Ready);
    pod.signal(Signal::STOP);
    pod.until_seen(Seen::NotReady);
    pod.until_seen(Seen::Condemned);
    let grace = Duration::from_millis(200);
    let end = pod.end(grace);
    assert_eq!(end.how, How::Killed);
    assert!(end.took >= grace, "{:?}", end.took);
}
