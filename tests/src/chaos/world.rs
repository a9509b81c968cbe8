//! The effects of a chaotic run: worker processes behind a relay each, who submits, who collects, and who breaks things.
//!
//! In: the server and the schedule. Out: the record, and files with it and the workers' logs. Jobs go out at a steady
//! pace and are published again until they are confirmed; replies are taken and acked as they come.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
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
use super::server::{ITEMS, Jobs, Server, contents, doubled_or_lost};
use super::{Options, Summary};
use crate::brokers::up_to;
use crate::endpoints::Store;
use crate::process::{WorkerProcess, worker_on};
use crate::relay::Relay;

const WORKERS: usize = 3;
/// How often there are new jobs.
const PACE: Duration = Duration::from_millis(100);
/// Replies in one pull.
const PULL: usize = 256;
/// How often memory and logs are looked at, and whether all is done.
const LOOK: Duration = Duration::from_millis(500);
/// How long whatever is left may take once nothing goes wrong any more.
const AFTERMATH: Duration = Duration::from_secs(90);
/// How long a queue that is not empty may take to deliver something.
const SOON: Duration = Duration::from_secs(2);
/// Between two tries of what the broker refuses for now.
const AGAIN: Duration = Duration::from_millis(50);

/// One worker: its process and how to start it, the link it has, and where its log goes.
struct Worker {
    relay: Relay,
    command: Command,
    process: WorkerProcess,
    log: File,
}

/// Runs a schedule to its end, waits for what is left, and judges.
pub(super) async fn run(server: &Server, options: Options) -> Result<Summary> {
    let folder = folder(options.seed)?;
    let place = server.place()?;
    let url: BrokerUrl = server.queue(server.address(), &place).parse().map_err(anyhow::Error::msg)?;
    let names = url.queues.clone();
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(Worker::start(number, server, &place, &folder).await?);
    }
    let record = Record::new();
    let (stop, stopped) = watch::channel(false);
    let sent = submit(Broker::connect(&url).await?, names.clone(), server.jobs(), record.clone(), stopped);
    let sent = tokio::spawn(sent);
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
        let mut left = leftovers(&url, &names).await?;
        if let Some(store) = server.bucket() {
            left.extend(objects(store, &record).await?);
        }
        anyhow::Ok(left)
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
    let mut summary = summary(&record, server, options);
    summary.broken.extend(left?);
    Ok(summary)
}

fn summary(record: &Record, server: &Server, options: Options) -> Summary {
    let (entries, faults) = (record.entries(), server.faults());
    let how_many = |is: fn(&What) -> bool| entries.iter().filter(|entry| is(&entry.what)).count();
    Summary {
        jobs: how_many(|what| matches!(what, What::Confirmed { .. })),
        replies: how_many(|what| matches!(what, What::Replied { .. })),
        faults: faults.iter().map(|fault| (*fault, count(&entries, *fault))).collect(),
        recoveries: recoveries(&entries, WORKERS),
        memory_kib: memory_kib(&entries),
        broken: broken(&entries, faults, options.length, WORKERS, server.recovery_max()),
    }
}

/// Does what the schedule says, and samples memory between its steps.
async fn breakage(server: &Server, workers: &mut [Worker], record: &Record, options: Options) -> Result<()> {
    // Time that faults themselves take is no part of the schedule: a slow restart must not let the next ones coincide.
    let mut taken = record.elapsed();
    for Step { at, fault, worker, begins } in schedule(server.faults(), options.seed, options.length, WORKERS) {
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

fn begin(server: &Server, fault: Fault, worker: &mut Worker) -> Result<()> {
    match fault {
        Fault::Kill => block_in_place(|| worker.replace())?,
        Fault::Freeze => worker.process.signal(Signal::STOP),
        Fault::Cut => worker.relay.cut(),
        Fault::HalfOpen => worker.relay.half_open(),
        Fault::Slow => worker.relay.slow(true),
        everywhere => server.begin(everywhere),
    }
    Ok(())
}

fn end(server: &Server, fault: Fault, worker: &mut Worker) {
    match fault {
        Fault::Freeze => worker.process.signal(Signal::CONT),
        Fault::Slow => worker.relay.slow(false),
        other => server.end(other),
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
async fn submit(
    broker: Broker,
    names: QueueNames,
    jobs: Jobs,
    record: Record,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let publisher = broker.publisher();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0;
    while !*stopped.borrow() {
        ticks.tick().await;
        let numbers = next..next + jobs.at_once;
        next = numbers.end;
        numbers.clone().for_each(|job| record.add(What::Sent { job }));
        let messages: Vec<_> = numbers.clone().map(|number| jobs.message(number)).collect();
        while let Err(e) = publisher.publish(&names.jobs, messages.clone()).await {
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
    let content = serde_json::to_string(&(&reply.results, &reply.error, &reply.output_uri))?;
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
    // A broker that can't tell how many there are is asked for one.
    while broker.status(&names.jobs).await?.waiting.is_some_and(|waiting| waiting > 0) {
        sleep(LOOK).await;
    }
    let dead = match broker.status(&names.dead()).await?.waiting {
        Some(count) => count > 0,
        None => comes(&broker, &names.dead()).await?,
    };
    broker.close().await;
    Ok(dead.then(|| "there are dead letters".to_owned()).into_iter().collect())
}

/// Whether a queue has something to deliver.
async fn comes(broker: &Broker, queue: &str) -> Result<bool> {
    let mut consumer = broker.consumer(queue, ConsumeOptions::new()).await?;
    let comes = timeout(SOON, consumer.receive(up_to(1))).await.is_ok();
    consumer.close().await;
    Ok(comes)
}

/// What is wrong with the objects: every confirmed job has one.
async fn objects(store: &Store, record: &Record) -> Result<Vec<String>> {
    let confirmed = record.entries().into_iter().filter_map(|entry| match entry.what {
        What::Confirmed { job } => Some(store.uri(&format!("job-{job}.jsonl")).to_string()),
        _ => None,
    });
    Ok(doubled_or_lost(&contents(store, &store.root).await?, confirmed, ITEMS))
}

impl Worker {
    async fn start(number: usize, server: &Server, place: &str, folder: &Path) -> Result<Self> {
        let name = format!("worker-{number}");
        let relay = Relay::start(server.address()).await;
        let url = server.queue(relay.address(), place);
        let mut command = worker_on(&url, &["--engine", "echo", "--max-attempts", "100", "--worker-name", &name]);
        if let Some(store) = server.bucket() {
            command.args(["--allow-write", &store.root.to_string()]).envs(store.variables().iter().cloned());
        }
        let log = File::create(folder.join(format!("{name}.log")))?;
        let process = block_in_place(|| WorkerProcess::spawn(&mut command));
        Ok(Self { relay, command, process, log })
    }

    /// Kills the process, and starts another.
    fn replace(&mut self) -> Result<()> {
        self.keep_log()?;
        // The old one is killed first: two of a name would answer for each other.
        self.process.signal(Signal::KILL);
        self.process = WorkerProcess::spawn(&mut self.command);
        Ok(writeln!(self.log, "killed, and started again")?)
    }

    fn keep_log(&mut self) -> Result<()> {
        let Self { process, log, .. } = self;
        Ok(process.logged().try_for_each(|line| writeln!(log, "{line}"))?)
    }
}

/// Where a run's files go, beside the running program.
fn folder(seed: u64) -> Result<PathBuf> {
    let folder = std::env::current_exe()?.parent().context("a program lies in a folder")?.join("chaos-runs");
    let folder = folder.join(seed.to_string());
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
