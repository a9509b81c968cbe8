//! A broker that forgets everything in the middle of a submission, as an emulator does when it ends: topics, subscriptions and
//! every message. What was sent is told by the ledger, what was computed by the bucket.
//!
//! In: a server that forgets. Out: sentences about what broke the promise, none when all is well. The real commands and
//! worker processes do the work; who ends for want of a queue is started again, as any orchestrator would.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::server::{Server, contents, doubled_or_lost, objects, set_up};
use crate::endpoints::Store;
use crate::process::{WorkerProcess, command, worker_on};

const WORKERS: usize = 2;
const TEXTS: usize = 2_000;
const TEXTS_A_JOB: usize = 4;
/// Objects that are there when everything else is forgotten.
const BEFORE: usize = 100;
/// How long `collect` waits, first for some, then for all.
const SOME_S: &str = "1";
const ALL_S: &str = "120";
/// What `collect` ends with when replies are missing.
const TIMED_OUT: i32 = 75;
/// Between two looks at bucket and processes.
const LOOK: Duration = Duration::from_millis(50);

/// Runs it.
///
/// # Errors
/// When the server keeps what it has, or a command fails that should not.
pub async fn run(server: &Server) -> Result<Vec<String>> {
    let Server::PubSub(emulator, _) = server else { bail!("this broker forgets nothing") };
    let store = server.bucket().context("its replies go to a bucket")?;
    let queue = server.queue(server.address(), &server.place()?);
    let (folder, prefix) = (TempDir::new()?, store.uri("forgotten/"));
    let (input, output) = (folder.path().join("texts.jsonl"), folder.path().join("vectors.jsonl"));
    write_texts(&input)?;
    let mut worker = worker_on(&queue, &["--engine", "echo", "--allow-write", &prefix.to_string()]);
    worker.envs(store.variables().iter().cloned());
    let mut workers: Vec<_> = (0..WORKERS).map(|_| block_in_place(|| WorkerProcess::spawn(&mut worker))).collect();

    let mut submit = inferq("submit", &queue, store);
    submit.args(["--items-per-job", &TEXTS_A_JOB.to_string(), "--reply-uri", &prefix.to_string(), "--input"]);
    succeeds(submit.arg(&input))?;
    while objects(store, &prefix).await?.len() < BEFORE {
        sleep(LOOK).await;
    }
    let collect = |seconds: &str| {
        let mut collect = inferq("collect", &queue, store);
        collect.arg("--ledger").arg(folder.path().join("texts.jsonl.ledger.db")).arg("--output").arg(&output);
        collect.args(["--timeout-s", seconds]);
        collect
    };
    let some = block_in_place(|| collect(SOME_S).output())?;
    ensure!(
        some.status.code() == Some(TIMED_OUT),
        "it was to be interrupted: {}",
        String::from_utf8_lossy(&some.stderr)
    );

    block_in_place(|| {
        emulator.kill();
        emulator.start();
    });
    set_up(&queue)?;
    succeeds(submit.arg("--resubmit-unanswered"))?;
    let log = folder.path().join("collect.log");
    let collecting = collect(ALL_S).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
    let ended = supervised(collecting, &mut workers, &mut worker).await?;
    ensure!(ended.success(), "collect failed: {}", std::fs::read_to_string(&log)?);

    let contents = contents(store, &prefix).await?;
    let mut broken = doubled_or_lost(&contents, [], TEXTS_A_JOB);
    if contents.len() != TEXTS / TEXTS_A_JOB {
        broken.push(format!("{} objects for {} jobs", contents.len(), TEXTS / TEXTS_A_JOB));
    }
    broken.extend(wrong_rows(&output)?);
    Ok(broken)
}

fn inferq(name: &str, queue: &str, store: &Store) -> Command {
    let mut command = command("inferq");
    command.args([name, "--queue", queue]).envs(store.variables().iter().cloned());
    command
}

fn succeeds(command: &mut Command) -> Result<()> {
    let ran = block_in_place(|| command.output())?;
    ensure!(ran.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// Waits for a command. Workers that end meanwhile are started again.
async fn supervised(
    mut child: std::process::Child,
    workers: &mut [WorkerProcess],
    command: &mut Command,
) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        for worker in &mut *workers {
            if worker.has_ended() {
                *worker = block_in_place(|| WorkerProcess::spawn(command));
            }
        }
        sleep(LOOK).await;
    }
}

fn write_texts(path: &Path) -> Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    for number in 0..TEXTS {
        writeln!(file, "{}", json!({"id": format!("doc-{number}"), "text": format!("text {number}")}))?;
    }
    Ok(file.into_inner()?.sync_all()?)
}

/// What is wrong with the collected rows: each text has one, in order, with a result.
fn wrong_rows(output: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(output)?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let is_right = |(number, row): (usize, &Value)| row["id"] == format!("doc-{number}") && row["embedding"].is_array();
    let all = rows.len() == TEXTS && rows.iter().enumerate().all(is_right);
    Ok((!all)
        .then(|| format!("the {} rows are not {TEXTS} texts with a result each", rows.len()))
        .into_iter()
        .collect())
}
