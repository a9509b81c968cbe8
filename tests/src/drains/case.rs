//! One stop: a worker is brought to a phase, told to stop, and watched to its end; a second one works off the rest.
//!
//! A phase is waited for by what the worker says of itself, in its status and its log, never by time.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use inferq_shared::telemetry::story as steps;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::Terms;
use super::place::{Place, Replies, Stalled};
use super::story::{FIRST, Phase, Story};
use crate::kubelet::{End, Pod, Probes, Seen};
use crate::process::worker_on;

/// Jobs of a case.
const JOBS: usize = 24;
/// Jobs that are answered before a worker is idle.
const BEFORE_IDLE: usize = 8;
/// Jobs of a batch where many are to wait for theirs.
const BATCH: usize = 4;
/// How long a batch takes that is stopped in its middle.
const BATCH_TIME: Duration = Duration::from_millis(600);
/// How long a batch takes in whose middle the way to the broker must be stalled.
const BATCH_TIME_STALLED: Duration = Duration::from_secs(2);
/// By how much a batch that is too long passes the drain limit.
const TOO_LONG: Duration = Duration::from_secs(30);
/// How often probes ask.
const PERIOD: Duration = Duration::from_millis(50);
/// What the second worker is given to end.
const SECOND_GRACE: Duration = Duration::from_secs(30);
/// What a worker logs at SIGTERM.
const STOPPING: &str = "first signal to stop";
/// The file that the model's directory has no end of.
const ENDLESS: &str = "tokenizer.json";

/// Runs it.
pub(super) async fn run(place: Place, phase: Phase, terms: Terms, model: &Path) -> Result<Story> {
    let folder = TempDir::new()?;
    let mut replies = place.replies().await?;
    place.publish(if phase == Phase::Idle { 0..BEFORE_IDLE } else { 0..JOBS }).await?;
    let command = first(&place, phase, terms, (model, folder.path()))?;
    let mut pod = block_in_place(|| Pod::start(command, Probes::every(PERIOD)));
    let stalled = reach(&place, phase, &mut pod, &mut replies).await?;
    let end = block_in_place(|| {
        pod.terminate();
        if phase == Phase::Publishing {
            pod.until_seen(Seen::NotReady);
            drop(stalled);
            return pod.end(terms.grace);
        }
        let end = pod.end(terms.grace);
        drop(stalled);
        end
    });
    if phase == Phase::Idle {
        place.publish(BEFORE_IDLE..JOBS).await?;
    }
    let jobs = {
        let second = worker(&place, "second", terms, &["--engine", "echo"]);
        let second = block_in_place(|| Pod::start(second, Probes::every(PERIOD)));
        let jobs = place.settled(replies, JOBS).await?;
        block_in_place(|| second.end(SECOND_GRACE));
        jobs
    };
    let free_release = place.broker.capabilities().free_release;
    let (given_back, settled_before) = (end.logged(steps::RELEASED), end.logged_before(steps::SETTLED, STOPPING));
    let unsettled = unsettled(&end);
    place.broker.clone().close().await;
    Ok(Story { broker: place.kind, free_release, phase, terms, jobs, end, given_back, unsettled, settled_before })
}

/// Leases that a worker could not settle, or let go of.
pub(super) fn unsettled(end: &End) -> usize {
    end.logged(steps::UNSETTLED) + end.logged(steps::DROPPED)
}

/// A worker of this name.
pub(super) fn worker(place: &Place, name: &str, terms: Terms, flags: &[&str]) -> Command {
    let mut command = worker_on(&place.url(), flags);
    command.args(["--worker-name", name, "--log", "info,inferq::job=debug", "--replicas", "1"]);
    command.args(["--drain-limit-s", &terms.drain_limit.as_secs().to_string()]);
    command.args(["--lease-s", &terms.lease.as_secs().to_string()]);
    command
}

/// The worker that is stopped, such that it stays in the phase, once it is there.
fn first(place: &Place, phase: Phase, terms: Terms, (model, folder): (&Path, &Path)) -> Result<Command> {
    let ms = |time: Duration| time.as_millis().to_string();
    let worker = |flags: &[&str]| worker(place, FIRST, terms, flags);
    let echo = |time: Duration, items: usize| {
        let (time, items) = (ms(time), items.to_string());
        worker(&["--engine", "echo", "--echo-batch-ms", &time, "--max-batch-items", &items])
    };
    Ok(match phase {
        Phase::Loading => {
            let directory = folder.join("model");
            without_end(model, &directory)?;
            let mut command = worker(&[]);
            command.arg("--model").arg(directory);
            command
        }
        Phase::Warming => {
            let mut command = worker(&["--inject-fault", "hang@0"]);
            command.arg("--model").arg(model);
            command
        }
        Phase::Idle => echo(Duration::ZERO, JOBS),
        Phase::MidBatch => echo(BATCH_TIME, BATCH),
        Phase::LongBatch => echo(terms.drain_limit + TOO_LONG, BATCH),
        // All in one, so that nothing but its replies is in hand.
        Phase::Publishing | Phase::Stalled => echo(BATCH_TIME_STALLED, JOBS),
    })
}

/// A model's directory as on a volume that gives no answer: one file of it is a pipe that nobody writes to.
fn without_end(model: &Path, directory: &Path) -> Result<()> {
    std::fs::create_dir(directory)?;
    for entry in std::fs::read_dir(model)? {
        let entry = entry?;
        let (at, file) = (directory.join(entry.file_name()), entry.path().canonicalize()?);
        if entry.file_name() == ENDLESS {
            mknodat(CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        } else {
            std::os::unix::fs::symlink(file, at)?;
        }
    }
    Ok(())
}

/// Waits until the worker is in the phase. What stalls it there is given back.
async fn reach(place: &Place, phase: Phase, pod: &mut Pod, replies: &mut Replies) -> Result<Option<Stalled>> {
    let is_in = |state: &'static str| move |status: &serde_json::Value| status["state"] == state;
    match phase {
        Phase::Loading => block_in_place(|| pod.until_status(is_in("loading"))),
        Phase::Warming => block_in_place(|| pod.until_status(is_in("warming"))),
        Phase::Idle => {
            replies.until_answered(BEFORE_IDLE).await?;
            block_in_place(|| pod.until_status(|status| is_in("ready")(status) && status["in_flight"]["jobs"] == 0));
        }
        Phase::MidBatch | Phase::LongBatch => drop(block_in_place(|| pod.until_logged(steps::BATCHED))),
        Phase::Publishing | Phase::Stalled => {
            return block_in_place(|| {
                pod.until_logged(steps::BATCHED);
                let stalled = place.stall()?;
                pod.until_logged(steps::ANSWERED);
                pod.until_seen(Seen::Ready);
                Ok(Some(stalled))
            });
        }
    }
    block_in_place(|| pod.until_seen(if phase.is_ready() { Seen::Ready } else { Seen::Started }));
    Ok(None)
}
