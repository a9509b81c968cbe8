//! Flags and variables → a checked [`Config`].
//!
//! One declaration is flag, variable, help and reference (docs/operations.md is checked against it). Ranges and
//! relations are checked in [`Args::check`]; each error names the flag, the limit and the fix.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args as ClapArgs, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use inferq_shared::broker::{BrokerUrl, Scheme, without_password};
use inferq_shared::bucket::Uri;
use inferq_shared::job::Limits;

use crate::assets;
use crate::batch::{BatchLimits, Padding};
use crate::claim::ClaimSettings;
use crate::claim::unpack::UnpackCaps;
use crate::devices::{self, DevicesArgs};
use crate::engine::burn::LoadOptions;
use crate::engine::device::{DeviceChoice, Place, Precision};
use crate::engine::echo::EchoOptions;
use crate::engine::faults::Fault;
use crate::engine::{RUNGS, Warm};
use crate::health::probe::{self, ProbeArgs};
use crate::in_flight::Bounds;
use crate::intake::IntakeSettings;
use crate::pipeline::Settings;
use crate::pod::Pod;

/// What the worker's exit codes mean; the end of `--help`.
pub const EXIT_CODES: &str = "\
Examples:
  inferq-worker --queue sqlite:///var/lib/inferq/queue.db --model /models/all-MiniLM-L6-v2
  inferq-worker --queue sqlite:queue.db --engine echo --health 127.0.0.1:9090
  inferq-worker --queue sqlite:queue.db --model MODEL --allow-write s3://bucket/vectors/
  inferq-worker --queue sqlite:queue.db --model MODEL --device cuda:0
  inferq-worker assets --help
  inferq-worker devices
  inferq-worker health

Exit codes:
  0   drained after SIGTERM or SIGINT (a second signal exits at once)
  1   other failure
  64  usage or configuration: a wrong flag, no such queue, no such model
  70  the device failed in use";

/// Takes inference jobs from a queue, batches them across jobs, runs a resident model, answers.
#[derive(Debug, Parser)]
#[command(name = "inferq-worker", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// The worker's flags.
    #[command(flatten)]
    pub args: Args,
}

/// What the command line asks for.
pub enum Asked {
    /// A worker.
    Work(Box<Args>),
    /// Something about the files of models.
    Assets(assets::command::Command),
    /// How a worker is.
    Health(ProbeArgs),
    /// What there is to run on.
    Devices(DevicesArgs),
}

/// The whole command: the worker's flags, or a subcommand instead of them.
pub fn command() -> Command {
    let assets = assets::command::Command::augment_subcommands(Command::new("assets"))
        .about("Copy, verify, list and prune the files of models")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(assets::command::HELP);
    let health = ProbeArgs::augment_args(Command::new("health"))
        .about("Ask a running worker whether it is ready, or alive; for container health checks")
        .after_help(probe::HELP);
    let devices = DevicesArgs::augment_args(Command::new("devices"))
        .about("List what a model can run on here: graphics cards, their precisions and rooflines")
        .after_help(devices::HELP);
    Cli::command().subcommand_negates_reqs(true).subcommand(assets).subcommand(health).subcommand(devices)
}

/// Reads the command line.
///
/// # Errors
/// When it can't be understood, and when it asks for help.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, clap::Error> {
    let matches = command().try_get_matches_from(words).map_err(without_passwords)?;
    match matches.subcommand() {
        Some(("health", matches)) => ProbeArgs::from_arg_matches(matches).map(Asked::Health),
        Some(("devices", matches)) => DevicesArgs::from_arg_matches(matches).map(Asked::Devices),
        Some((_, matches)) => assets::command::Command::from_arg_matches(matches).map(Asked::Assets),
        None => Args::from_arg_matches(&matches).map(|args| Asked::Work(Box::new(args))),
    }
}

/// An error of the command line, which quotes the word that it is about: without the password that may be in it.
pub fn without_passwords(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(word)) = error.get(kind) {
            let shown = without_password(word);
            error.insert(kind, ContextValue::String(shown));
        }
    }
    error
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// A model of the BERT family, by burn.
    Burn,
    /// No model: a deterministic answer, for tests and dry runs.
    Echo,
}

/// The worker's flags, as given.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// The queue to take jobs from: sqlite:///path/queue.db[?queue=NAME], amqp://user:password@host/vhost[?queue=NAME] or
    /// pubsub://project/topic[?subscription=NAME]
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    pub queue: BrokerUrl,
    /// The model's directory, as Hugging Face lays it out, or a root of models as `assets sync` makes it
    #[arg(long, env = "INFERQ_MODEL", value_name = "DIR", required_if_eq("engine", "burn"))]
    pub model: Option<PathBuf>,
    /// The name that jobs call the model by [default: the manifest's, else the directory's]
    #[arg(long, env = "INFERQ_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,
    /// How long to wait for a model whose files are not all there yet, in seconds
    #[arg(long, env = "INFERQ_ASSETS_WAIT_S", value_name = "S", default_value_t = 0)]
    pub assets_wait_s: u64,
    /// Loading or warming up a model for longer counts as stuck: /livez fails, in seconds
    #[arg(long, env = "INFERQ_PHASE_LIMIT_S", value_name = "S", default_value_t = 900)]
    pub phase_limit_s: u64,
    /// Go over to another model when the root's `current` points to another, without a restart
    #[arg(long, env = "INFERQ_WATCH_ASSETS")]
    pub watch_assets: bool,
    /// What runs the batches
    #[arg(long, env = "INFERQ_ENGINE", value_enum, default_value = "burn")]
    pub engine: EngineKind,
    /// Where the model runs: cpu, cuda:0, several cards as in cuda:0,cuda:1, or auto, which is every card, else the CPU
    #[arg(long, env = "INFERQ_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// Numbers that the model computes with: f32, f16 or bf16 [default: f32 on the CPU; on a card bf16, where it has
    /// none f16]
    #[arg(long, env = "INFERQ_PRECISION", value_name = "PRECISION")]
    pub precision: Option<Precision>,
    /// Engines that share the model's weights, each running a batch at a time [default: one a core, two a card]
    #[arg(long, env = "INFERQ_REPLICAS", value_name = "N")]
    pub replicas: Option<NonZeroUsize>,
    /// Threads inside one forward pass
    #[arg(long, env = "INFERQ_REPLICA_THREADS", value_name = "N", default_value = "1")]
    pub replica_threads: NonZeroUsize,
    /// Where a card's kernels are kept, compiled and tuned, so that the next start is ready sooner [default: inferq in the
    /// user's cache folder]
    #[arg(long, env = "INFERQ_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Threads that decode and tokenise [default: one a core]
    #[arg(long, env = "INFERQ_INTAKE_THREADS", value_name = "N")]
    pub intake_threads: Option<usize>,
    /// The longest that an item waits for batch mates, in milliseconds
    #[arg(long, env = "INFERQ_LINGER_MS", value_name = "MS", default_value_t = 5)]
    pub linger_ms: u64,
    /// Tokens of a batch, padding included: a number, or auto: 4096 on the CPU, on a card what is fastest and fits
    #[arg(long, env = "INFERQ_MAX_BATCH_TOKENS", value_name = "N", default_value = "auto")]
    pub max_batch_tokens: BatchTokens,
    /// Items of a batch [default: 256; on a card as many as its tokens allow]
    #[arg(long, env = "INFERQ_MAX_BATCH_ITEMS", value_name = "N")]
    pub max_batch_items: Option<usize>,
    /// Jobs between receiving and settling
    #[arg(long, env = "INFERQ_IN_FLIGHT_JOBS", value_name = "N", default_value_t = 512)]
    pub in_flight_jobs: usize,
    /// Bytes of job bodies between receiving and settling
    #[arg(long, env = "INFERQ_IN_FLIGHT_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    pub in_flight_bytes: usize,
    /// Times a job is tried before it is answered attempts_exhausted; at least 3 [default: 5; over RabbitMQ and
    /// Pub/Sub, which count every lost connection, 20]
    #[arg(long, env = "INFERQ_MAX_ATTEMPTS", value_name = "N")]
    pub max_attempts: Option<u32>,
    /// A lease that is not renewed for so long is over, in seconds
    #[arg(long, env = "INFERQ_LEASE_S", value_name = "S", default_value_t = 60)]
    pub lease_s: u64,
    /// The longest that a job is held, in seconds
    #[arg(long, env = "INFERQ_MAX_LEASE_S", value_name = "S", default_value_t = 3600)]
    pub max_lease_s: u64,
    /// An engine busy with one batch, or a stage without a turn, for longer is stuck: /livez fails; an engine that stays so
    /// for twice as long ends the worker; in seconds
    #[arg(long, env = "INFERQ_WATCHDOG_S", value_name = "S", default_value_t = 60)]
    pub watchdog_s: u64,
    /// How often a busy device is checked against known answers, before a batch's answers are believed, in seconds
    #[arg(long, env = "INFERQ_CHECK_EVERY_S", value_name = "S", default_value_t = 300)]
    pub check_every_s: u64,
    /// From the stop signal to giving back what is unfinished, in seconds; keep below the grace period
    #[arg(long, env = "INFERQ_DRAIN_LIMIT_S", value_name = "S", default_value_t = 25)]
    pub drain_limit_s: u64,
    /// How long a job that fits no worker waits for one before it is answered no_worker, in seconds
    #[arg(long, env = "INFERQ_UNFIT_LIMIT_S", value_name = "S", default_value_t = 3600)]
    pub unfit_limit_s: u64,
    /// How far other machines' clocks may be off, in milliseconds
    #[arg(long, env = "INFERQ_CLOCK_SKEW_MS", value_name = "MS", default_value_t = 1000)]
    pub clock_skew_ms: u64,
    /// A queue that a job may name in reply_to; may be repeated
    #[arg(long, env = "INFERQ_ALLOW_REPLY_QUEUE", value_name = "NAME", value_delimiter = ',')]
    pub allow_reply_queue: Vec<String>,
    /// A prefix that a job may name in input_uri, such as gs://bucket/texts/; may be repeated
    #[arg(long, env = "INFERQ_ALLOW_READ", value_name = "PREFIX", value_delimiter = ',')]
    pub allow_read: Vec<Uri>,
    /// A prefix that a job may name in reply_to, such as s3://bucket/vectors/; may be repeated
    #[arg(long, env = "INFERQ_ALLOW_WRITE", value_name = "PREFIX", value_delimiter = ',')]
    pub allow_write: Vec<Uri>,
    /// The largest job body, in bytes
    #[arg(long, env = "INFERQ_LIMIT_BODY_BYTES", value_name = "BYTES", default_value_t = Limits::default().body_bytes)]
    pub limit_body_bytes: usize,
    /// The most inputs of a job
    #[arg(long, env = "INFERQ_LIMIT_ITEMS", value_name = "N", default_value_t = Limits::default().items)]
    pub limit_items: usize,
    /// The longest text of an input, in bytes
    #[arg(long, env = "INFERQ_LIMIT_INPUT_BYTES", value_name = "BYTES", default_value_t = Limits::default().input_bytes)]
    pub limit_input_bytes: usize,
    /// The largest metadata, in bytes of JSON
    #[arg(long, env = "INFERQ_LIMIT_METADATA_BYTES", value_name = "BYTES", default_value_t = Limits::default().metadata_bytes)]
    pub limit_metadata_bytes: usize,
    /// The largest reply body, in bytes
    #[arg(long, env = "INFERQ_LIMIT_REPLY_BYTES", value_name = "BYTES", default_value_t = Limits::default().reply_bytes)]
    pub limit_reply_bytes: usize,
    /// The largest object of results, and of all that are put into one bucket at a time, in bytes
    #[arg(long, env = "INFERQ_LIMIT_OBJECT_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    pub limit_object_bytes: usize,
    /// The most items of an input_uri that run as one job; more are split into shards of so many
    #[arg(long, env = "INFERQ_SHARD_ITEMS", value_name = "N", default_value_t = 10_000)]
    pub shard_items: u32,
    /// The most bytes that a compressed input_uri may unpack to
    #[arg(long, env = "INFERQ_LIMIT_UNPACKED_BYTES", value_name = "BYTES", default_value_t = 64 << 30)]
    pub limit_unpacked_bytes: u64,
    /// The most bytes that a compressed input_uri may unpack to for each of its own
    #[arg(long, env = "INFERQ_LIMIT_UNPACKED_RATIO", value_name = "N", default_value_t = 200)]
    pub limit_unpacked_ratio: u64,
    /// Where /healthz, /livez, /metrics and /status are served
    #[arg(long, env = "INFERQ_HEALTH", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub health: SocketAddr,
    /// This worker's name in replies [default: the pod's name, else the host's]
    #[arg(long, env = "INFERQ_WORKER_NAME", value_name = "NAME")]
    pub worker_name: Option<String>,
    /// The pod that this worker runs in, from the downward API: Kubernetes is told what ending it would cost, by an annotation
    #[arg(long, env = "INFERQ_POD_NAME", value_name = "NAME", requires = "pod_namespace")]
    pub pod_name: Option<String>,
    /// The namespace of that pod
    #[arg(long, env = "INFERQ_POD_NAMESPACE", value_name = "NAME", requires = "pod_name")]
    pub pod_namespace: Option<String>,
    /// The folder with the token of the pod's service account, and with the API server's certificate
    #[arg(
        long,
        env = "INFERQ_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    pub service_account_dir: PathBuf,
    /// What is logged: error, warn, info, debug, trace, or a filter such as inferq_worker=debug
    #[arg(long, env = "INFERQ_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How long the echo engine takes for a batch, in milliseconds
    #[arg(long, env = "INFERQ_ECHO_BATCH_MS", value_name = "MS", default_value_t = 0)]
    pub echo_batch_ms: u64,
    /// Let the device fail, for tests: KIND@RUN
    #[arg(long, env = "INFERQ_INJECT_FAULT", value_name = "KIND@RUN", hide = true)]
    pub inject_fault: Option<Fault>,
    /// Where the reason is written when the worker ends by itself, for Kubernetes to show
    #[arg(long, env = "INFERQ_TERMINATION_LOG", value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// Let the echo engine heed the words !fail !oom !lose !hang !kill in its inputs
    #[arg(long, env = "INFERQ_ECHO_FAULTS")]
    pub echo_faults: bool,
}

/// Tokens of a batch, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchTokens {
    /// The device's own choice.
    Auto,
    /// So many.
    Count(usize),
}

impl FromStr for BatchTokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Count).map_err(|_| "it is a number or auto".to_owned()),
        }
    }
}

impl BatchTokens {
    fn count(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Count(tokens) => Some(tokens),
        }
    }
}

/// What to load.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A directory, run by burn on a device.
    Burn(Box<LoadOptions>),
    /// No model.
    Echo {
        /// How it behaves.
        options: EchoOptions,
        /// Engines.
        replicas: NonZeroUsize,
        /// The name that jobs call it by.
        name: Option<String>,
    },
}

/// Flags whose ranges and relations hold.
#[derive(Debug, Clone)]
pub struct Config {
    /// The queue to take jobs from.
    pub queue: BrokerUrl,
    /// What to load.
    pub model: ModelSource,
    /// How long to wait for a model's files.
    pub assets_wait: Duration,
    /// How long loading, and warming up, may take.
    pub phase_limit: Duration,
    /// Whether to follow the root's `current`.
    pub watch_assets: bool,
    /// A lease that is not renewed for so long is over.
    pub lease: Duration,
    /// Where health is served.
    pub health: SocketAddr,
    /// This worker's name in replies.
    pub worker: String,
    /// The pod that it runs in.
    pub pod: Option<Pod>,
    /// Where the reason is written when the worker ends by itself.
    pub termination_log: PathBuf,
    /// Items of a batch, where they were given.
    pub batch_items: Option<usize>,
    /// The numbers that the line runs by, around one engine that has no wishes.
    pub settings: Settings,
}

/// Tokens of a batch on the CPU.
const BATCH_TOKENS: usize = 4096;
/// Items of a batch on the CPU.
const BATCH_ITEMS: usize = 256;
/// Batches in flight for each engine until the first have shown the rate: enough for every engine to be busy.
const BATCHES_AHEAD: usize = 4;

impl Config {
    /// The numbers for a line around so many engines that found this out about themselves.
    pub fn settings_around(&self, engines: usize, warm: Warm) -> Settings {
        let mut settings = self.settings.clone();
        if let Some(tokens) = warm.batch_tokens {
            let items_max = self.batch_items.unwrap_or((tokens / RUNGS[0]).max(1));
            settings.batch = BatchLimits { tokens_max: tokens, items_max, padding: Padding::Rungs, ..settings.batch };
        }
        settings.bounds.tokens = settings.batch.tokens_max * BATCHES_AHEAD * engines;
        settings
    }
}

impl Args {
    /// Checks ranges and relations.
    ///
    /// # Errors
    /// The first that does not hold: the flag, the limit and the fix.
    pub fn check(self) -> Result<Config, String> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.check_ranges()?;
        self.check_relations()?;
        // What is missing is said before anything is begun.
        let places = self.device.resolve().map_err(|error| error.to_string())?;
        let model = self.model_source(cores, places)?;
        let settings = self.settings(cores);
        let pod = self.pod()?;
        let worker = self.worker_name.or(self.pod_name).unwrap_or_else(|| {
            hostname::get().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "worker".to_owned())
        });
        Ok(Config {
            queue: self.queue,
            model,
            assets_wait: Duration::from_secs(self.assets_wait_s),
            phase_limit: Duration::from_secs(self.phase_limit_s),
            watch_assets: self.watch_assets,
            lease: Duration::from_secs(self.lease_s),
            health: self.health,
            worker,
            pod,
            termination_log: self.termination_log,
            batch_items: self.max_batch_items,
            settings,
        })
    }

    /// The pod, with the API server's address as Kubernetes tells it every container.
    fn pod(&self) -> Result<Option<Pod>, String> {
        let (Some(name), Some(namespace)) = (&self.pod_name, &self.pod_namespace) else { return Ok(None) };
        let told = |variable: &str| {
            std::env::var(variable).map_err(|_| {
                format!("--pod-name {name} is for a container of that pod, and {variable} is not set: leave it out elsewhere")
            })
        };
        let (host, port) = (told("KUBERNETES_SERVICE_HOST")?, told("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Ok(Some(Pod {
            name: name.clone(),
            namespace: namespace.clone(),
            server: format!("https://{host}:{port}"),
            account: self.service_account_dir.clone(),
        }))
    }

    fn attempts_max(&self) -> u32 {
        // They count lost connections, and Pub/Sub also what is given back.
        let counts_more = matches!(self.queue.scheme, Scheme::Amqp(_) | Scheme::PubSub(_));
        self.max_attempts.unwrap_or(if counts_more { 20 } else { 5 })
    }

    fn check_ranges(&self) -> Result<(), String> {
        let sizes = [
            ("--replicas", self.replicas.map_or(1, NonZeroUsize::get), 1, 1024),
            ("--replica-threads", self.replica_threads.get(), 1, 1024),
            ("--intake-threads", self.intake_threads.unwrap_or(1), 1, 256),
            ("--max-batch-tokens", self.max_batch_tokens.count().unwrap_or(1), 1, 1 << 24),
            ("--max-batch-items", self.max_batch_items.unwrap_or(1), 1, 1 << 16),
            ("--in-flight-jobs", self.in_flight_jobs, 1, 1 << 20),
            ("--in-flight-bytes", self.in_flight_bytes, 1, 1 << 40),
            ("--max-attempts", self.attempts_max() as usize, 3, 1000),
            ("--limit-body-bytes", self.limit_body_bytes, 1024, 64 << 20),
            ("--limit-items", self.limit_items, 1, 1 << 20),
            ("--limit-input-bytes", self.limit_input_bytes, 1, 64 << 20),
            ("--limit-metadata-bytes", self.limit_metadata_bytes, 2, 1 << 20),
            ("--limit-reply-bytes", self.limit_reply_bytes, 64 << 10, 64 << 20),
            ("--limit-object-bytes", self.limit_object_bytes, 64 << 10, 4 << 30),
        ];
        in_range("--shard-items", self.shard_items.into(), 1, SHARD_ITEMS_MAX)?;
        in_range("--limit-unpacked-bytes", self.limit_unpacked_bytes, 1, 1 << 50)?;
        in_range("--limit-unpacked-ratio", self.limit_unpacked_ratio, 1, 1 << 20)?;
        let times = [
            ("--linger-ms", self.linger_ms, 0, 60_000),
            ("--lease-s", self.lease_s, 1, 3600),
            ("--max-lease-s", self.max_lease_s, 1, 7 * 24 * 3600),
            ("--watchdog-s", self.watchdog_s, 1, 24 * 3600),
            ("--check-every-s", self.check_every_s, 1, 24 * 3600),
            ("--phase-limit-s", self.phase_limit_s, 1, 24 * 3600),
            ("--drain-limit-s", self.drain_limit_s, 1, 24 * 3600),
            ("--unfit-limit-s", self.unfit_limit_s, 1, 31 * 24 * 3600),
            ("--clock-skew-ms", self.clock_skew_ms, 0, 3_600_000),
            ("--echo-batch-ms", self.echo_batch_ms, 0, 3_600_000),
        ];
        sizes.into_iter().try_for_each(|(flag, value, least, most)| in_range(flag, value as u64, least, most))?;
        times.into_iter().try_for_each(|(flag, value, least, most)| in_range(flag, value, least, most))
    }

    fn check_relations(&self) -> Result<(), String> {
        if self.max_lease_s < self.lease_s {
            return Err(format!(
                "--max-lease-s is {}, it must be at least --lease-s, {}",
                self.max_lease_s, self.lease_s
            ));
        }
        self.check_prefixes()?;
        let names = &self.queue.queues;
        let ours = [names.jobs.clone(), names.shards(), names.dead()];
        match self.allow_reply_queue.iter().find(|queue| ours.contains(queue)) {
            Some(queue) => Err(format!("--allow-reply-queue {queue} is one of the worker's own queues; name another")),
            None => Ok(()),
        }
    }

    /// Every allowed prefix is one, and none that may be written holds the model or lies in it.
    fn check_prefixes(&self) -> Result<(), String> {
        let flags = [("--allow-read", &self.allow_read), ("--allow-write", &self.allow_write)];
        for (flag, prefixes) in flags {
            if let Some(uri) = prefixes.iter().find(|uri| !uri.is_prefix()) {
                return Err(format!("{flag} {uri} must be a prefix that ends in /"));
            }
        }
        let Some(model) = &self.model else { return Ok(()) };
        match self.allow_write.iter().find(|prefix| overlaps(prefix, model)) {
            None => Ok(()),
            Some(prefix) => Err(format!(
                "--allow-write {prefix} would let jobs write where the model lies, {}: allow another folder",
                model.display()
            )),
        }
    }

    fn model_source(&self, cores: usize, places: Vec<Place>) -> Result<ModelSource, String> {
        match (self.engine, &self.model) {
            (EngineKind::Echo, _) => Ok(ModelSource::Echo {
                options: EchoOptions {
                    batch_time: Duration::from_millis(self.echo_batch_ms),
                    faults: self.echo_faults,
                },
                replicas: self.replicas.or(NonZeroUsize::new(cores)).unwrap_or(NonZeroUsize::MIN),
                name: self.model_name.clone(),
            }),
            (EngineKind::Burn, Some(directory)) => Ok(ModelSource::Burn(Box::new(LoadOptions {
                name: self.model_name.clone(),
                places,
                precision: self.precision,
                replicas: self.replicas,
                threads: self.replica_threads,
                batch_tokens: self.max_batch_tokens.count(),
                cache: self.cache_dir.clone().or_else(users_cache),
                fault: self.inject_fault,
                ..LoadOptions::new(directory.clone())
            }))),
            (EngineKind::Burn, None) => {
                Err("--model DIR is missing; or try --engine echo, which needs none".to_owned())
            }
        }
    }

    fn settings(&self, cores: usize) -> Settings {
        let seconds = Duration::from_secs;
        let tokens_max = self.max_batch_tokens.count().unwrap_or(BATCH_TOKENS);
        Settings {
            intake: IntakeSettings {
                limits: Limits {
                    body_bytes: self.limit_body_bytes,
                    items: self.limit_items,
                    input_bytes: self.limit_input_bytes,
                    metadata_bytes: self.limit_metadata_bytes,
                    nesting: Limits::default().nesting,
                    reply_bytes: self.limit_reply_bytes,
                },
                queues: self.queue.queues.clone(),
                reply_queues: self.allow_reply_queue.clone(),
                readable: self.allow_read.iter().cloned().collect(),
                writable: self.allow_write.iter().cloned().collect(),
                object_bytes: self.limit_object_bytes,
                attempts_max: self.attempts_max(),
                unfit_limit: seconds(self.unfit_limit_s),
                clock_skew: Duration::from_millis(self.clock_skew_ms),
            },
            claims: ClaimSettings {
                shard_items: self.shard_items,
                unpack: UnpackCaps { bytes: self.limit_unpacked_bytes, ratio: self.limit_unpacked_ratio },
            },
            batch: BatchLimits {
                tokens_max,
                items_max: self.max_batch_items.unwrap_or(BATCH_ITEMS),
                linger: Duration::from_millis(self.linger_ms),
                padding: Padding::Longest,
            },
            bounds: Bounds {
                jobs: self.in_flight_jobs,
                bytes: self.in_flight_bytes,
                tokens: tokens_max * BATCHES_AHEAD,
            },
            drain_limit: seconds(self.drain_limit_s),
            watchdog: seconds(self.watchdog_s),
            check_every: seconds(self.check_every_s),
            lease_max: seconds(self.max_lease_s),
            intake_threads: self.intake_threads.unwrap_or(cores),
            seed: rand::random(),
        }
    }
}

/// `inferq` in the user's cache folder, by the XDG base directory specification.
fn users_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("inferq"))
}

/// Whether `prefix` names a folder that holds `folder` or lies in it, links followed.
fn overlaps(prefix: &Uri, folder: &Path) -> bool {
    let Some(path) = prefix.path() else { return false };
    let real = |path: &Path| std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let (Ok(ours), Ok(theirs)) = (real(&path), real(folder)) else { return true };
    ours.starts_with(&theirs) || theirs.starts_with(&ours)
}

/// 100,000 shards of so many items have indices of 32 bits.
const SHARD_ITEMS_MAX: u64 = 40_000;

fn in_range(flag: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{flag} is {value}, it must be {least} to {most}"))
}
