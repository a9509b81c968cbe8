//! `inferq run`: submit, worker and collect in one process, on an embedded queue, for a laptop or one GPU box.
//!
//! In: a model's directory and input files. Out: the output file, each item once. Queue and ledger are files beside it,
//! so that the same command goes on after a crash; they go when the output is there. The queue is bounded, so the disk
//! holds a part of the input at a time, not a copy of it.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Parser;
use inferq_shared::broker::{Broker, BrokerUrl, QueueOptions};
use inferq_shared::bucket::{Buckets, Uri};
use inferq_shared::job::Encoding;
use inferq_shared::telemetry::{self, traces::Trace};
use inferq_worker::config::{Cli, Config, EngineKind};
use inferq_worker::health::{Endpoint, Health};
use inferq_worker::serve::serve;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collect::{Collector, Route, write_output};
use crate::connect::{connect, failed, say, trace};
use crate::follow::Follower;
use crate::ledger::{Plan, SharedLedger};
use crate::outcome::{Error, Outcome};
use crate::output::OutputArgs;
use crate::pointer::Pointers;
use crate::progress::{Progress, grouped};
use crate::recipe::{InputArgs, JobArgs, Recipe};
use crate::submit::{Again, Begun, CheckedInput, Submission, WhenFull};

/// The flags of `inferq run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's directory, as Hugging Face lays it out.
    #[arg(long, env = "INFERQ_MODEL", value_name = "DIR", required_if_eq("engine", "burn"))]
    model: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The embedded queue's file. Default: OUTPUT.queue.db, for an object in this directory; required when the output is
    /// stdout.
    #[arg(long, env = "INFERQ_RUN_QUEUE", value_name = "FILE")]
    queue: Option<PathBuf>,
    /// Remembers what is done. Default: OUTPUT.ledger.db, or the queue's file name with .ledger.db.
    #[arg(long, env = "INFERQ_LEDGER", value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Keep the queue's and the ledger's files when the output is there.
    #[arg(long, env = "INFERQ_KEEP")]
    keep: bool,
    #[command(flatten)]
    job: JobArgs,
    /// Let jobs of --format jobs read inputs beneath this prefix, like gs://bucket/texts/. Can be given more than once.
    #[arg(long, env = "INFERQ_ALLOW_READ", value_name = "PREFIX", value_delimiter = ',')]
    allow_read: Vec<Uri>,
    /// Let jobs of --format jobs have results put beneath this prefix, from where they are read again. Can be given more
    /// than once.
    #[arg(long, env = "INFERQ_ALLOW_WRITE", value_name = "PREFIX", value_delimiter = ',')]
    allow_write: Vec<Uri>,
    /// What runs the batches; echo needs no model and answers with made-up vectors, for dry runs.
    #[arg(long, env = "INFERQ_ENGINE", value_enum, default_value = "burn")]
    engine: EngineKind,
    /// Where the model runs.
    #[arg(long, env = "INFERQ_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Engines that share the model's weights, each running a batch at a time. Default: one a core.
    #[arg(long, env = "INFERQ_REPLICAS", value_name = "N")]
    replicas: Option<usize>,
    /// Serve /healthz, /livez, /metrics and /status here; nowhere when absent.
    #[arg(long, value_name = "ADDRESS")]
    health: Option<SocketAddr>,
    /// What the worker logs: error, warn, info, debug, trace, or a filter such as inferq_worker=debug.
    #[arg(long, env = "INFERQ_LOG", value_name = "FILTER", default_value = "warn")]
    log: String,
}

/// Jobs that the embedded queue holds; the rest of the input stays in its file.
const QUEUE_JOBS: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not 0");
/// After a crash, jobs that were running are free again after so many seconds.
const LEASE_S: &str = "10";
/// After a signal, running batches have so many seconds to end.
const DRAIN_LIMIT_S: &str = "5";

/// Runs `inferq run`.
///
/// # Errors
/// When flags, files, model or device can't be used, or a signal came.
pub async fn run(args: Args, stop: CancellationToken) -> Result<Outcome, Error> {
    let started = Instant::now();
    let files = Files::of(&args)?;
    let pointers = Pointers::new(Buckets::new(), args.allow_write.iter().cloned().collect());
    let target = args.output.target()?.reading(pointers.clone());
    let url = BrokerUrl::sqlite(std::path::absolute(&files.queue).map_err(|e| Error::io("the queue's file", e))?);
    let config = worker_config(&args, &url)?;
    args.job.check_for(args.input.format)?;
    args.input.source()?;
    // Replies stay in this process and its ledger: always in the smaller encoding.
    let recipe = Recipe::new(&args.job, Encoding::Base64);
    let _lock = files.claim()?;
    let plan = Plan { queue: url.to_string(), parameters: recipe.compared(&args.input) };
    let Begun { ledger, submission, input } = Begun::at(&files.ledger, &plan, &args.input, &stop)?;
    let counts = ledger.counts();
    if counts.answered > 0 {
        say(&format!("going on after {} items", grouped(counts.items_answered)));
    }
    let ledger = SharedLedger::new(ledger);
    let mut follower = ledger.with(|ledger| target.follower(ledger))?;
    if !counts.all_answered() {
        let telemetry = telemetry::install(&args.log).map_err(|error| Error::Usage(format!("--log: {error}")))?;
        trace(&url);
        let broker = connect(&url).await?;
        prepare(&broker, &url).await?;
        let line = Line { broker: &broker, url: &url, ledger: &ledger, submission, recipe, pointers };
        let worked = line.run(input, config, Health::new(telemetry), args.health, &mut follower, &stop).await;
        broker.close().await;
        worked?;
    }
    let before = counts.items_answered;
    let outcome = ledger.with(|ledger| write_output(ledger, target, follower, (before, started), &stop))?;
    drop(ledger);
    if !args.keep {
        files.remove()?;
    }
    Ok(outcome)
}

/// The worker's settings: this command's flags, and for the rest its variables and defaults.
fn worker_config(args: &Args, url: &BrokerUrl) -> Result<Config, Error> {
    let mut flags: Vec<OsString> =
        ["inferq", "--lease-s", LEASE_S, "--drain-limit-s", DRAIN_LIMIT_S].map(Into::into).into();
    let mut flag = |name: &str, value: &Path| flags.extend([name.into(), value.into()]);
    flag("--queue", url.to_string().as_ref());
    flag("--device", args.device.as_ref());
    flag("--engine", if args.engine == EngineKind::Echo { "echo" } else { "burn" }.as_ref());
    for (name, prefixes) in [("--allow-read", &args.allow_read), ("--allow-write", &args.allow_write)] {
        prefixes.iter().for_each(|prefix| flag(name, prefix.to_string().as_ref()));
    }
    if let Some(model) = &args.model {
        flag("--model", model);
    }
    if let Some(name) = &args.job.model_name {
        flag("--model-name", name.as_ref());
    }
    if let Some(replicas) = args.replicas {
        flag("--replicas", replicas.to_string().as_ref());
    }
    let usage = |error: String| Error::Usage(error);
    Cli::try_parse_from(flags).map_err(|error| usage(error.to_string()))?.args.check().map_err(usage)
}

async fn prepare(broker: &Broker, url: &BrokerUrl) -> Result<(), Error> {
    let bounded = QueueOptions { messages_max: Some(QUEUE_JOBS), ..QueueOptions::default() };
    let declared = broker.declare(&url.queues.jobs, bounded).await;
    declared.map_err(|error| failed(url, error))?;
    broker.setup(&url.queues).await.map_err(|error| failed(url, error))
}

/// Submit, worker and collect over one broker.
struct Line<'a> {
    broker: &'a Broker,
    url: &'a BrokerUrl,
    ledger: &'a SharedLedger,
    submission: String,
    recipe: Recipe,
    pointers: Pointers,
}

impl Line<'_> {
    /// Runs all three until every item is answered, then lets the worker end.
    async fn run(
        self,
        input: CheckedInput,
        config: Config,
        health: Health,
        address: Option<SocketAddr>,
        follower: &mut Option<Follower>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let endpoint = bind(&health, address).await?;
        let stop_worker = CancellationToken::new();
        let mut worker = self.spawn_worker(config, health, &stop_worker);
        let ended = tokio::select! {
            ended = self.submit_and_collect(input, follower, stop) => ended,
            ended = &mut worker => return Err(ended_early(ended)),
            () = serve_health(endpoint) => Ok(()),
        };
        stop_worker.cancel();
        // What it still ran is in the queue; an error of the way down changes nothing about what was collected.
        let _ = worker.await;
        ended
    }

    fn spawn_worker(
        &self,
        config: Config,
        health: Health,
        stop: &CancellationToken,
    ) -> JoinHandle<Result<(), inferq_worker::serve::ServeError>> {
        let (broker, stop) = (self.broker.clone(), stop.clone());
        tokio::spawn(async move { serve(config, &broker, health, stop).await })
    }

    async fn submit_and_collect(
        &self,
        input: CheckedInput,
        follower: &mut Option<Follower>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let progress = Progress::new();
        let name = self.url.queues.submission(&self.submission);
        let route = Route { url: self.url.clone(), name, own: true };
        let submission = Submission {
            broker: self.broker,
            queue: self.url,
            ledger: self.ledger.clone(),
            submission: self.submission.clone(),
            recipe: self.recipe.clone(),
            again: Again::Nothing,
            when_full: WhenFull::Wait,
            trace: Trace::submitting(&self.submission),
        };
        submission.declare_route().await?;
        let (submitted, complete) = watch::channel(false);
        let submitting = async {
            submission.publish_all(input, &progress, stop, |_, total| progress.expect(total)).await?;
            submitted.send_replace(true);
            Ok(())
        };
        let (broker, ledger, pointers) = (self.broker, self.ledger, &self.pointers);
        let collector = Collector { broker, route: &route, ledger, pointers, progress: &progress };
        let collecting = collector.receive_all(complete, None, follower, stop);
        tokio::try_join!(submitting, collecting).map(|_| ()).map_err(|error| match error {
            Error::Interrupted(_) => Error::Interrupted(collector.way_on()),
            error => error,
        })
    }
}

async fn bind(health: &Health, address: Option<SocketAddr>) -> Result<Option<Endpoint>, Error> {
    let Some(address) = address else { return Ok(None) };
    let bound = health.bind(address).await;
    bound.map(Some).map_err(|error| Error::Usage(format!("--health {address}: {error}; choose another address")))
}

/// Never ends.
async fn serve_health(endpoint: Option<Endpoint>) {
    match endpoint {
        Some(endpoint) => endpoint.serve().await,
        None => std::future::pending().await,
    }
}

fn ended_early(ended: Result<Result<(), inferq_worker::serve::ServeError>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => Error::Worker(error),
        Ok(Ok(())) => Error::io("the worker", std::io::Error::other("it ended before the work was done")),
        Err(panic) => Error::io("the worker", std::io::Error::other(panic)),
    }
}

/// What lies beside the output until it is there.
struct Files {
    queue: PathBuf,
    ledger: PathBuf,
}

impl Files {
    fn of(args: &Args) -> Result<Self, Error> {
        let beside = |path: &Path, suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (queue, ledger) = match (args.output.output().name(), &args.queue) {
            (Some(path), queue) => {
                (queue.clone().unwrap_or_else(|| beside(path, ".queue.db")), beside(path, ".ledger.db"))
            }
            (None, Some(queue)) => (queue.clone(), beside(queue, ".ledger.db")),
            (None, None) => {
                let message = "--queue FILE is required when the output is stdout: it keeps what is done after a crash";
                return Err(Error::Usage(message.to_owned()));
            }
        };
        Ok(Self { queue, ledger: args.ledger.clone().unwrap_or(ledger) })
    }

    /// Makes sure that the queue is this run's: its worker would run the jobs of others with its own model, and its file
    /// goes at the end. Others are kept out for as long as the file that is returned stays open.
    fn claim(&self) -> Result<File, Error> {
        let queue = self.queue.display();
        let mut lock = self.queue.clone().into_os_string();
        lock.push("-lock");
        let file = File::options().write(true).create(true).truncate(false).open(&lock);
        let file = file.map_err(|error| Error::io(format!("can't write {}", Path::new(&lock).display()), error))?;
        if file.try_lock().is_err() {
            let message =
                format!("another `inferq run` works on the queue {queue}: wait for it, or name another with --queue");
            return Err(Error::Usage(message));
        }
        if self.queue.exists() && !self.ledger.exists() {
            let message = format!(
                "the queue {queue} is there already, and is not this run's: there is no ledger {}; name another file with \
                 --queue, or use `inferq submit` for a queue that others share",
                self.ledger.display()
            );
            return Err(Error::Usage(message));
        }
        Ok(file)
    }

    /// The ledger goes last: without it a queue would be taken for somebody else's.
    fn remove(&self) -> Result<(), Error> {
        for file in [&self.queue, &self.ledger] {
            for suffix in ["", "-wal", "-shm", "-bell", "-lock", "-journal"] {
                let mut name = file.clone().into_os_string();
                name.push(suffix);
                match std::fs::remove_file(&name) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(format!("can't remove {}", Path::new(&name).display()), error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
