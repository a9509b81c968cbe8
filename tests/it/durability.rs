//! What the embedded queue promises of its file: what was confirmed stays, whatever is killed, cut or rebooted; many
//! processes share it; its space is used again; and a file that won't do is refused with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Publisher, QueueOptions};
use inferq_tests::brokers::{Bench, Kind, PATIENCE, many, message, one, text, up_to};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The helper process; see its own header.
const PROCESS: &str = env!("CARGO_BIN_EXE_queue_process");
/// SQLite's log: a header, then frames of a header and a page each; <https://www.sqlite.org/fileformat2.html#walformat>.
const LOG_HEADER_BYTES: u64 = 32;
const LOG_FRAME_BYTES: u64 = 24 + 4096;

#[tokio::test]
async fn the_log_is_synced_before_a_publish_returns() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    bench.broker.clone().close().await;
    let trace = bench.directory().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fdatasync,fsync,write", "-o"])
        .arg(&trace)
        .args([PROCESS, "publish"])
        .arg(file(&bench))
        .args(["p", "5", "1"])
        .output();
    let traced = match traced {
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("left out: strace is needed to see the sync ({error})");
            return Ok(());
        }
        traced => traced.context("strace is needed to see the sync")?,
    };
    ensure!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));

    let mut synced = false;
    let mut told = 0;
    for line in std::fs::read_to_string(trace)?.lines() {
        // A call that another thread's interrupts is written in two parts, the first with the file, the second with
        // the result; either part shows that the answer waits for the sync, because it is one thread that does both.
        synced |= line.contains("sync(") && line.contains("queue.db-wal") && line.ends_with("= 0");
        synced |= line.contains("sync resumed>") && line.ends_with("= 0");
        if line.contains("write(1") && line.contains("\"p-") {
            ensure!(synced, "told without a sync before: {line}");
            (synced, told) = (false, told + 1);
        }
    }
    ensure!(told == 5, "{told} of 5 were told");
    Ok(())
}

#[tokio::test]
async fn what_was_confirmed_survives_a_log_cut_at_any_frame() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    let log = PathBuf::from(format!("{}-wal", file(&bench).display()));
    let log_bytes = || anyhow::Ok(std::fs::metadata(&log)?.len());
    // What must be there, by the length of the log at which it was confirmed.
    let mut confirmed = Vec::new();
    for n in 0..6 {
        bench.publish(&[&format!("m{n}")]).await?;
        confirmed.push((log_bytes()?, format!("m{n}")));
    }
    let mut consumer = bench.consumer(ConsumeOptions::new()).await?;
    one(&mut consumer).await?.lease.ack().await?;
    let acked = log_bytes()?;
    let (database, log) = (std::fs::read(file(&bench))?, std::fs::read(&log)?);

    let frames = (log.len() as u64 - LOG_HEADER_BYTES) / LOG_FRAME_BYTES;
    ensure!(frames > 20, "{frames} frames: the log was cut short before the test did it");
    let ends = (0..=frames).map(|frame| LOG_HEADER_BYTES + frame * LOG_FRAME_BYTES);
    for cut in ends.flat_map(|end| [end, end + LOG_FRAME_BYTES / 2]).filter(|cut| *cut <= log.len() as u64) {
        let expected: BTreeSet<&str> = confirmed
            .iter()
            .filter(|(bytes, text)| *bytes <= cut && !(text == "m0" && acked <= cut))
            .map(|(_, text)| text.as_str())
            .collect();
        let found = contents_of(&database, &log[..cut as usize]).await?;
        let lost: Vec<_> = expected.iter().filter(|text| !found.contains(**text)).collect();
        ensure!(lost.is_empty(), "cut at {cut} of {}: {lost:?} lost, {found:?} found", log.len());
        ensure!(acked > cut || !found.contains("m0"), "cut at {cut}: an acked message is back");
    }
    Ok(())
}

/// What a queue holds after a crash that left these bytes.
async fn contents_of(database: &[u8], log: &[u8]) -> Result<BTreeSet<String>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("queue.db");
    std::fs::write(&path, database)?;
    std::fs::write(directory.path().join("queue.db-wal"), log)?;
    let broker = Broker::connect(&BrokerUrl::sqlite(path)).await?;
    let waiting = match broker.status("jobs").await {
        Err(BrokerError::UnknownQueue(_)) => return Ok(BTreeSet::new()),
        // Leased ones too: closing the connection before the end of their leases was the crash.
        status => status?,
    };
    let count = waiting.waiting.unwrap_or(0) as usize;
    let found = if count == 0 {
        Vec::new()
    } else {
        many(&mut broker.consumer("jobs", ConsumeOptions::new()).await?, count).await?
    };
    let leased = waiting.leased.unwrap_or(0);
    ensure!(leased <= 1, "{waiting:?}");
    let mut found: BTreeSet<String> = found.iter().map(text).collect();
    if leased == 1 {
        found.insert("m0".to_owned());
    }
    broker.close().await;
    Ok(found)
}

#[tokio::test]
async fn what_a_killed_publisher_was_told_is_there() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    let mut told = BTreeSet::new();
    for (round, lines) in [40, 100, 7].into_iter().enumerate() {
        let process = Process::start(&bench, &["publish"], &[&format!("r{round}"), "1000000", "3"])?;
        told.extend(process.kill_after(lines)?);
    }
    ensure!(told.len() >= 147, "{} were told", told.len());
    let found = drain(&bench).await?;
    let lost: Vec<_> = told.iter().filter(|text| !found.contains_key(*text)).collect();
    ensure!(lost.is_empty(), "lost: {lost:?}");
    ensure!(found.values().all(|times| *times == 1), "doubled: {found:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_consumer_held_is_redelivered_with_an_attempt_spent() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    bench.publish(&["a", "b"]).await?;
    let process = Process::start(&bench, &["hold"], &["1000"])?;
    ensure!(process.kill_after(2)? == ["a", "b"].map(str::to_owned));
    let mut consumer = bench.consumer(ConsumeOptions::new()).await?;
    for delivery in many(&mut consumer, 2).await? {
        ensure!(delivery.attempt == 2, "{delivery:?}");
        delivery.lease.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn processes_share_a_file_without_loss_or_doubles() -> Result<()> {
    const EACH: usize = 1500;
    let bench = Bench::start(Kind::Sqlite).await?;
    let count = EACH.to_string();
    let publishers = ["p", "q"].map(|prefix| Process::start(&bench, &["publish"], &[prefix, &count, "10"]));
    let consumers = ["one", "two"].map(|_| Process::start(&bench, &["consume"], &[]));
    let mut sent = BTreeSet::new();
    for publisher in publishers {
        sent.extend(publisher?.lines()?);
    }
    ensure!(sent.len() == 2 * EACH, "{} of {} were confirmed", sent.len(), 2 * EACH);
    let (seen, mut told) = mpsc::unbounded_channel();
    let mut running = Vec::new();
    for consumer in consumers {
        running.push(consumer?.tell(seen.clone()));
    }
    let mut got = BTreeSet::new();
    while got.len() < sent.len() {
        let text = timeout(PATIENCE, told.recv()).await.with_context(|| format!("only {} came", got.len()))?;
        let text = text.context("a consumer ended")?;
        ensure!(got.insert(text.clone()), "{text} came twice");
    }
    ensure!(got == sent);
    let left = bench.broker.status(&bench.queue).await?;
    ensure!((left.waiting, left.leased, left.delayed) == (Some(0), Some(0), Some(0)), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn space_is_used_again() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    let mut consumer = bench.consumer(ConsumeOptions::new()).await?;
    let body = "x".repeat(300);
    let mut sizes = Vec::new();
    for _ in 0..10 {
        bench.publisher().publish(&bench.queue, vec![message(&body); 10_000]).await?;
        let mut got = 0;
        while got < 10_000 {
            let deliveries = timeout(PATIENCE, consumer.receive(up_to(2000))).await??;
            got += deliveries.len();
            join_all(deliveries.into_iter().map(|delivery| delivery.lease.ack()))
                .await
                .into_iter()
                .collect::<Result<(), _>>()?;
        }
        let bytes =
            |suffix: &str| std::fs::metadata(format!("{}{suffix}", file(&bench).display())).map(|data| data.len());
        sizes.push((bytes("")?, bytes("-wal")?));
    }
    let (early, late) = (sizes[1], sizes[9]);
    // The database is written from the log by and by, so an early size may lag behind by one log.
    ensure!(late.0 <= early.0.max(8 << 20) * 5 / 4, "the database grows: {sizes:?}");
    ensure!(late.1 <= 64 << 20, "the log grows: {sizes:?}");
    Ok(())
}

#[tokio::test]
async fn a_reboot_ends_leases_and_delays() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    bench.publish(&["leased", "delayed", "waiting"]).await?;
    let mut consumer = bench.consumer(ConsumeOptions::new()).await?;
    let leased = one(&mut consumer).await?;
    one(&mut consumer).await?.lease.release(Duration::from_secs(3600)).await?;
    // What a reboot leaves: the leases in the file, another boot's id, and a boot clock that begins anew.
    rusqlite::Connection::open(file(&bench))?.execute("UPDATE meta SET boot = 'an earlier one'", ())?;
    let again = Broker::connect(&bench.url).await?;
    let mut consumer = again.consumer(&bench.queue, ConsumeOptions::new()).await?;
    let got: Vec<(String, u32)> =
        many(&mut consumer, 3).await?.iter().map(|delivery| (text(delivery), delivery.attempt)).collect();
    let expected = [("leased", 2), ("delayed", 1), ("waiting", 1)].map(|(text, attempt)| (text.to_owned(), attempt));
    ensure!(got == expected, "{got:?}");
    ensure!(leased.lease.ack().await == Err(BrokerError::LeaseLost));
    Ok(())
}

#[tokio::test]
async fn a_queue_that_nobody_uses_goes_when_it_has_expired() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    for (queue, hours) in [("short", 1), ("long", 3)] {
        let options = QueueOptions { expires: Some(Duration::from_secs(3600 * hours)), ..QueueOptions::default() };
        bench.broker.declare(queue, options).await?;
        bench.publisher().publish(queue, vec![message(queue)]).await?;
    }
    bench.broker.clone().close().await;
    rusqlite::Connection::open(file(&bench))?.execute("UPDATE queues SET used_at = used_at - 2 * 3600 * 1000", ())?;
    let again = Broker::connect(&bench.url).await?;
    ensure!(again.status("short").await == Err(BrokerError::UnknownQueue("short".to_owned())));
    ensure!(again.status("long").await?.waiting == Some(1));
    ensure!(again.status(&bench.queue).await?.waiting == Some(0), "a queue without expiry went");
    Ok(())
}

#[tokio::test]
async fn a_file_that_will_not_do_is_refused_with_the_reason() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("text.db"), "this is not a database, and long enough to be seen as one ".repeat(30))?;
    rusqlite::Connection::open(path("other.db"))?.execute_batch("CREATE TABLE songs (title TEXT)")?;
    Broker::connect(&BrokerUrl::sqlite(path("newer.db"))).await?.close().await;
    rusqlite::Connection::open(path("newer.db"))?.execute_batch("PRAGMA user_version = 99")?;
    for (file, reason) in [
        (path("text.db"), "not a database"),
        (path("other.db"), "another program"),
        (path("newer.db"), "layout 99"),
        (path("absent/queue.db"), "no directory"),
        // Nobody can make a file there, not even root.
        (PathBuf::from("/proc/queue.db"), "must be writable"),
    ] {
        let error = Broker::connect(&BrokerUrl::sqlite(&file)).await.map(drop);
        let Err(BrokerError::Refused(message)) = error else { bail!("{}: {error:?}", file.display()) };
        ensure!(message.contains(reason) && message.contains(&*file.to_string_lossy()), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn a_file_of_the_first_layout_is_brought_up_to_date_with_what_is_in_it() -> Result<()> {
    let mut bench = Bench::start(Kind::Sqlite).await?;
    bench.publish(&["a", "b"]).await?;
    bench.broker.clone().close().await;
    // What the second layout has beyond the first.
    rusqlite::Connection::open(file(&bench))?.execute_batch("DROP TABLE workers; PRAGMA user_version = 1")?;
    bench.broker = Broker::connect(&bench.url).await?;
    bench.broker.report_worker(&bench.queue, "w1", Some("here".to_owned())).await?;
    ensure!(bench.broker.workers(&bench.queue).await?.context("sqlite can tell")?.len() == 1);
    ensure!(drain(&bench).await? == BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
    Ok(())
}

#[tokio::test]
async fn a_worker_that_has_been_silent_for_a_minute_is_forgotten() -> Result<()> {
    let bench = Bench::start(Kind::Sqlite).await?;
    for worker in ["quiet", "lively"] {
        bench.broker.report_worker(&bench.queue, worker, Some("here".to_owned())).await?;
    }
    let rows = || {
        rusqlite::Connection::open(file(&bench))?
            .query_row("SELECT count(*) FROM workers", (), |row| row.get::<_, i64>(0))
    };
    rusqlite::Connection::open(file(&bench))?
        .execute("UPDATE workers SET seen_at = seen_at - 61000 WHERE id = 'quiet'", ())?;
    let seen = bench.broker.workers(&bench.queue).await?.context("sqlite can tell")?;
    ensure!(seen.len() == 1 && seen[0].worker == "lively", "{seen:?}");
    ensure!(rows()? == 2, "looking changes nothing");
    bench.broker.report_worker(&bench.queue, "lively", Some("still".to_owned())).await?;
    ensure!(rows()? == 1);
    Ok(())
}

fn file(bench: &Bench) -> PathBuf {
    bench.directory().join("queue.db")
}

/// Takes everything out of the queue: how often each text came.
async fn drain(bench: &Bench) -> Result<BTreeMap<String, usize>> {
    let count = bench.broker.status(&bench.queue).await?.waiting.context("a count")?;
    let mut consumer = bench.consumer(ConsumeOptions::new()).await?;
    let mut found = BTreeMap::new();
    for delivery in many(&mut consumer, count as usize).await? {
        *found.entry(text(&delivery)).or_default() += 1;
    }
    Ok(found)
}

/// A helper process and what it says; killed when it is dropped.
struct Process {
    child: Child,
    said: Box<dyn BufRead + Send>,
}

impl Process {
    fn start(bench: &Bench, verb: &[&str], rest: &[&str]) -> Result<Self> {
        let mut command = Command::new(PROCESS);
        command.args(verb).arg(file(bench)).args(rest).stdout(Stdio::piped());
        let mut child = command.spawn().context("no helper process")?;
        let said = BufReader::new(child.stdout.take().context("its output is piped")?);
        Ok(Self { child, said: Box::new(said) })
    }

    /// Kills it with SIGKILL once it has said so many lines; returns every whole line that it got out.
    fn kill_after(mut self, lines: usize) -> Result<Vec<String>> {
        let mut said = String::new();
        for line in 0..lines {
            ensure!(self.said.read_line(&mut said)? > 0, "it ended after {line} lines");
        }
        self.child.kill()?;
        self.said.read_to_string(&mut said)?;
        Ok(said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect())
    }

    /// Passes on what it says, line by line, until it ends. It ends when what this returns is dropped.
    fn tell(mut self, seen: mpsc::UnboundedSender<String>) -> Self {
        let said = std::mem::replace(&mut self.said, Box::new(std::io::empty()));
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| seen.send(line)));
        self
    }

    /// Everything it says until it ends by itself.
    fn lines(mut self) -> Result<Vec<String>> {
        let said = self.said.by_ref().lines().collect::<Result<_, _>>()?;
        ensure!(self.child.wait()?.success(), "the helper process failed");
        Ok(said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already in a test that passes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
