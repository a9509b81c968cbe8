//! The effects of a chaotic run: worker processes behind a relay each, who submits, who collects, and who breaks things.
//!
//! In: the server and the schedule. Out: the record, and files with it and the workers' logs. Jobs go out at a steady
//! pace and are published again until they are confirmed; replies are taken and acked as they come.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use inferq_shared::broker::{Broker, BrokerUrl, ConsumeOptions, Consumer, Publisher, QueueNames};
use inferq_shared::reply::Reply;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::check::{broken, count, memory_kib, recoveries};
use super::record::{Record, What};
use super::schedule::{Fault, Step, schedule};
use super::{Options, Summary};
use crate::brokers::up_to;
use crate::process::{WorkerProcess, command, worker_on};
use crate::queue_file::job;
use crate::rabbitmq::{self, RabbitmqServer};
use crate::relay::Relay;

const WORKERS: usize = 3;
/// Jobs in one publish, and how often there is one.
const JOBS: usize = 10;
const PACE: Duration = Duration::from_millis(100);
/// Replies in one pull.
const PULL: usize = 256;
/// How often memory and logs are looked at, and whether all is done.
const LOOK: Duration = Duration::from_millis(500);
/// How long whatever is left may take once nothing goes wrong any more.
const AFTERMATH: Duration = Duration::from_secs(90);
/// Between two tries of what the broker refuses for now.
const AGAIN: Duration = Duration::from_millis(50);

/// One worker: its process, the link it has, and where its log goes.
struct Worker {
    name: String,
    relay: Relay,
    url: String,
    process: WorkerProcess,
    log: File,
}

/// Runs a schedule to its end, waits for what is left, and judges.
pub(super) async fn run(server: &RabbitmqServer, options: Options) -> Result<Summary> {
    let folder = folder(options.seed)?;
    let host = server.virtual_host();
    let url = ours(&server.url(&host));
    let setup = command("inferq").args(["setup", "--queue", &url]).output()?;
    ensure!(setup.status.success(), "setup failed: {}", String::from_utf8_lossy(&setup.stderr));
    let url: BrokerUrl = url.parse().map_err(anyhow::Error::msg)?;
    let names = url.queues.clone();
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(Worker::start(number, server, &host, &folder).await?);
    }
    let record = Record::new();
    let (stop, stopped) = watch::channel(false);
    let sent = tokio::spawn(submit(Broker::connect(&url).await?, names.clone(), record.clone(), stopped));
    let mut taken = tokio::spawn(collect(Broker::connect(&url).await?, names.clone(), record.clone()));
    let broke = async {
        breakage(server, &mut workers, &record, options).await?;
        aftermath(&mut workers, &record).await
    };
    let broke = broke.await;
    stop.send_replace(true);
    let left = async {
        sent.await??;
        all_answered(&record).await;
        leftovers(&url, &names).await
    };
    let left = tokio::select! {
        left = timeout(AFTERMATH, left) => left.unwrap_or_else(|_| Ok(vec![format!("not all is done after {AFTERMATH:?}")])),
        failed = &mut taken => Err(failed?.expect_err("it goes on until it fails")),
    };
    taken.abort();
    // Whatever went wrong is written down before it is told.
    workers.iter_mut().try_for_each(Worker::keep_log)?;
    std::fs::write(folder.join("history.txt"), record.to_string())?;
    println!("history and logs: {}", folder.display());
    broke?;
    let mut summary = summary(&record, options);
    summary.broken.extend(left?);
    Ok(summary)
}

fn summary(record: &Record, options: Options) -> Summary {
    let entries = record.entries();
    let how_many = |is: fn(&What) -> bool| entries.iter().filter(|entry| is(&entry.what)).count();
    Summary {
        jobs: how_many(|what| matches!(what, What::Confirmed { .. })),
        replies: how_many(|what| matches!(what, What::Replied { .. })),
        faults: Fault::ALL.iter().map(|fault| (*fault, count(&entries, *fault))).collect(),
        recoveries: recoveries(&entries, WORKERS),
        memory_kib: memory_kib(&entries),
        broken: broken(&entries, options.length, WORKERS),
    }
}

/// Does what the schedule says, and samples memory between its steps.
async fn breakage(server: &RabbitmqServer, workers: &mut [Worker], record: &Record, options: Options) -> Result<()> {
    // Time that faults themselves take is no part of the schedule: a slow restart must not let the next ones coincide.
    let mut taken = record.elapsed();
    for Step { at, fault, worker, begins } in schedule(options.seed, options.length, WORKERS) {
        while let Some(left) = (at + taken).checked_sub(record.elapsed()).filter(|left| !left.is_zero()) {
            sleep(left.min(LOOK)).await;
            look(workers, record)?;
        }
        let started = record.elapsed();
        if begins {
            record.add(What::Began { fault, worker });
            begin(server, fault, &mut workers[worker])?;
        } else {
            end(server, fault, &mut workers[worker]);
            record.add(What::Healed { fault, worker });
        }
        taken += record.elapsed() - started;
    }
    Ok(())
}

fn begin(server: &RabbitmqServer, fault: Fault, worker: &mut Worker) -> Result<()> {
    match fault {
        Fault::Kill => block_in_place(|| worker.replace())?,
        Fault::Freeze => worker.process.signal(Signal::STOP),
        Fault::Cut => worker.relay.cut(),
        Fault::HalfOpen => worker.relay.half_open(),
        Fault::Slow => worker.relay.slow(true),
        Fault::CloseAll => drop(server.close_all_connections()),
        Fault::Alarm => server.memory_alarm(true),
        Fault::Restart => block_in_place(|| {
            server.stop();
            server.start();
        }),
        Fault::Crash => block_in_place(|| {
            server.kill();
            server.start();
        }),
    }
    Ok(())
}

fn end(server: &RabbitmqServer, fault: Fault, worker: &mut Worker) {
    match fault {
        Fault::Freeze => worker.process.signal(Signal::CONT),
        Fault::Slow => worker.relay.slow(false),
        Fault::Alarm => server.memory_alarm(false),
        Fault::Kill | Fault::Cut | Fault::HalfOpen | Fault::CloseAll | Fault::Restart | Fault::Crash => {}
    }
}

/// Notes how much memory the workers have, and keeps their logs.
fn look(workers: &mut [Worker], record: &Record) -> Result<()> {
    for (number, worker) in workers.iter_mut().enumerate() {
        worker.keep_log()?;
        ensure!(!worker.process.has_ended(), "worker {number} ended by itself");
        record.add(What::Memory { worker: number, kib: worker.process.figure_kib("VmRSS:")? });
    }
    Ok(())
}

/// Goes on until every worker has answered after the last fault, within reason.
async fn aftermath(workers: &mut [Worker], record: &Record) -> Result<()> {
    let end = record.elapsed() + AFTERMATH;
    while !recoveries(&record.entries(), WORKERS).missing.is_empty() && record.elapsed() < end {
        sleep(LOOK).await;
        look(workers, record)?;
    }
    Ok(())
}

/// Publishes jobs at a steady pace until told to stop, each list again until it is confirmed.
async fn submit(broker: Broker, names: QueueNames, record: Record, stopped: watch::Receiver<bool>) -> Result<()> {
    let publisher = broker.publisher();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0;
    while !*stopped.borrow() {
        ticks.tick().await;
        let numbers = next..next + JOBS;
        next = numbers.end;
        numbers.clone().for_each(|job| record.add(What::Sent { job }));
        let jobs: Vec<_> = numbers
            .clone()
            .map(|number| job(&format!("job-{number}"), [format!("text {number}"), format!("another {number}")]))
            .collect();
        while let Err(e) = publisher.publish(&names.jobs, jobs.clone()).await {
            ensure!(e.is_transient(), "jobs can't be published: {e}");
            sleep(AGAIN).await;
        }
        numbers.for_each(|job| record.add(What::Confirmed { job }));
    }
    broker.close().await;
    Ok(())
}

/// Takes replies until it fails.
async fn collect(broker: Broker, names: QueueNames, record: Record) -> Result<Infallible> {
    let mut consumer = broker.consumer(&names.results(), ConsumeOptions::new()).await?;
    loop {
        let deliveries = match consumer.receive(up_to(PULL)).await {
            Err(e) if e.is_transient() => {
                sleep(AGAIN).await;
                continue;
            }
            received => received.context("replies can't be received")?,
        };
        let mut acks = Vec::new();
        for delivery in deliveries {
            record.add(replied(&Reply::decode(&delivery.message.body)?)?);
            acks.push(delivery.lease.ack());
        }
        // One that is lost comes again, and is the same then.
        drop(join_all(acks).await);
    }
}

fn replied(reply: &Reply) -> Result<What> {
    let number = |text: &str| text.rsplit('-').next().and_then(|number| number.parse().ok());
    let content = format!("{} {}", serde_json::to_string(&reply.results)?, serde_json::to_string(&reply.error)?);
    Ok(What::Replied {
        job: number(reply.id.as_str()).context("a reply to no job of ours")?,
        worker: number(&reply.worker).context("a reply of no worker of ours")?,
        status: reply.status,
        content,
    })
}

/// Returns when every confirmed job has a reply.
async fn all_answered(record: &Record) {
    loop {
        let entries = record.entries();
        let answered: std::collections::HashSet<usize> = entries
            .iter()
            .filter_map(|entry| match entry.what {
                What::Replied { job, .. } => Some(job),
                _ => None,
            })
            .collect();
        if entries.iter().all(|entry| !matches!(&entry.what, What::Confirmed { job } if !answered.contains(job))) {
            return;
        }
        sleep(LOOK).await;
    }
}

/// What should not be left in the queues when all is answered. Copies of jobs may still be under way for a while.
async fn leftovers(url: &BrokerUrl, names: &QueueNames) -> Result<Vec<String>> {
    let broker = Broker::connect(url).await?;
    while broker.status(&names.jobs).await?.waiting != Some(0) {
        sleep(LOOK).await;
    }
    let dead = broker.status(&names.dead()).await?.waiting;
    broker.close().await;
    Ok((dead != Some(0)).then(|| format!("{dead:?} dead letters")).into_iter().collect())
}

impl Worker {
    async fn start(number: usize, server: &RabbitmqServer, host: &str, folder: &Path) -> Result<Self> {
        let name = format!("worker-{number}");
        let relay = Relay::start(server.address()).await;
        let url = ours(&rabbitmq::url(relay.address(), host));
        let log = File::create(folder.join(format!("{name}.log")))?;
        let process = block_in_place(|| WorkerProcess::spawn(&mut Self::command(&name, &url)));
        Ok(Self { name, relay, url, process, log })
    }

    fn command(name: &str, url: &str) -> std::process::Command {
        worker_on(url, &["--engine", "echo", "--max-attempts", "100", "--worker-name", name])
    }

    /// Kills the process, and starts another.
    fn replace(&mut self) -> Result<()> {
        self.keep_log()?;
        let next = || WorkerProcess::spawn(&mut Self::command(&self.name, &self.url));
        // The old one is killed first: two of a name would answer for each other.
        self.process.signal(Signal::KILL);
        self.process = next();
        Ok(writeln!(self.log, "killed, and started again")?)
    }

    fn keep_log(&mut self) -> Result<()> {
        let Self { process, log, .. } = self;
        Ok(process.logged().try_for_each(|line| writeln!(log, "{line}"))?)
    }
}

/// The address as our binaries take it.
fn ours(url: &str) -> String {
    format!("{url}?queue=jobs")
}

/// Where a run's files go, beside the running program.
fn folder(seed: u64) -> Result<PathBuf> {
    let folder = std::env::current_exe()?.parent().context("a program lies in a folder")?.join("chaos-runs");
    let folder = folder.join(seed.to_string());
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
