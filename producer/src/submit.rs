//! `inferq submit`: the input's lines as jobs on the queue, each confirmed, and the ledger that says so.
//!
//! In: files, a queue, a ledger. Out: published jobs, a route of their own for the replies, a ledger that `collect`
//! reads. A crash at any point is mended by the same command: job ids come from the ledger, so a job that is published
//! twice is still one job. What is read, waiting and in flight is bounded; it never holds the whole input.

use std::path::{Path, PathBuf};

use inferq_shared::broker::BrokerUrl;
use inferq_shared::bucket::{Uri, UriError};
use inferq_shared::job::{Encoding, ObjectFormat, ReplyTo};
use inferq_shared::telemetry::traces::Trace;
use rand::RngExt;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

pub use self::check::CheckedInput;
pub use self::publish::{Again, Published, Submission, WhenFull};

use self::claim::Large;
use crate::connect::{absolute, connect, failed, print, quoted, quoted_path, say, trace};
use crate::ledger::{Counts, Ledger, Plan, SharedLedger};
use crate::outcome::{Error, Outcome};
use crate::progress::{Progress, Tally, grouped};
use crate::recipe::{InputArgs, JobArgs, Recipe};
use crate::source::Format;
use crate::tokens::TokenCounter;

mod check;
mod claim;
mod dry_run;
mod publish;
mod reader;

/// The flags of `inferq submit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db, amqp://user:password@host/vhost?queue=jobs or
    /// pubsub://project/jobs.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL", required_unless_present = "dry_run")]
    queue: Option<BrokerUrl>,
    #[command(flatten)]
    input: InputArgs,
    /// Remembers what was confirmed, so that the same command goes on after a crash. Default: <input>.ledger.db, for an
    /// object in this directory; required for stdin, patterns and several files.
    #[arg(long, env = "INFERQ_LEDGER", value_name = "FILE")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    job: JobArgs,
    /// How embeddings travel in replies; base64 is exact and takes less than half of the space. `collect` chooses how
    /// they are written.
    #[arg(long, env = "INFERQ_ENCODING", value_name = "float|base64", default_value = "base64", value_parser = encoding)]
    encoding: Encoding,
    /// Have results put into a bucket, one object a job beneath this prefix, like gs://bucket/results/ (s3://,
    /// file:///). Workers must be allowed to write there; `collect` reads them from there.
    #[arg(long, env = "INFERQ_REPLY_URI", value_name = "PREFIX", value_parser = prefix)]
    reply_uri: Option<Uri>,
    /// The format of those objects.
    #[arg(long, env = "INFERQ_REPLY_FORMAT", value_enum, default_value = "jsonl")]
    reply_format: ReplyFormat,
    /// Upload the input as it is, one file of JSON lines, beneath this prefix, and publish one job that names it. Workers
    /// split it among them. Results go to --reply-uri, else beneath this prefix too.
    #[arg(long, env = "INFERQ_TO", value_name = "PREFIX", value_parser = prefix, conflicts_with = "dry_run")]
    to: Option<Uri>,
    /// Send again every job that no reply has come for.
    #[arg(long)]
    resubmit_unanswered: bool,
    /// Say how many items, jobs, tokens and bytes would be published, and publish nothing. Needs no queue, makes no
    /// ledger.
    #[arg(long, env = "INFERQ_DRY_RUN")]
    dry_run: bool,
    /// The model's directory: its tokenizer counts tokens exactly, instead of about. The model itself is not loaded.
    #[arg(long, env = "INFERQ_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,
}

/// How embeddings are written, from a flag.
///
/// # Errors
/// When it is neither.
pub fn encoding(text: &str) -> Result<Encoding, String> {
    match text {
        "float" => Ok(Encoding::Float),
        "base64" => Ok(Encoding::Base64),
        _ => Err("must be float or base64".to_owned()),
    }
}

/// The format of results in a bucket, from a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReplyFormat {
    /// One JSON object a line.
    Jsonl,
    /// One row an item.
    Parquet,
}

/// A prefix from a flag; the slash at its end need not be written.
fn prefix(text: &str) -> Result<Uri, UriError> {
    let slash = if text.ends_with('/') { "" } else { "/" };
    Uri::parse(&format!("{text}{slash}"))
}

impl Args {
    /// Where the results are asked for, if not in the replies.
    fn reply_to(&self) -> Option<ReplyTo> {
        let format = match self.reply_format {
            ReplyFormat::Jsonl => ObjectFormat::Jsonl,
            ReplyFormat::Parquet => ObjectFormat::Parquet,
        };
        let prefix = self.reply_uri.as_ref().or(self.to.as_ref())?.to_string();
        Some(ReplyTo::Bucket { prefix, format })
    }
}

/// Runs `inferq submit`.
///
/// # Errors
/// When flags, input, ledger or queue can't be used, or a signal came.
pub async fn submit(args: Args, stop: CancellationToken) -> Result<Outcome, Error> {
    args.job.check_for(args.input.format)?;
    if args.reply_uri.is_some() && args.input.format == Some(Format::Jobs) {
        let message = "--reply-uri does not go with --format jobs, which are published as they stand";
        return Err(Error::Usage(message.to_owned()));
    }
    let recipe = Recipe::new(&args.job, args.encoding).replying_to(args.reply_to());
    let tokens = TokenCounter::of_model(args.model.as_deref())?;
    let Some(queue) = args.queue.as_ref().filter(|_| !args.dry_run) else {
        return block_in_place(|| dry_run::dry_run(&args.input, &recipe, &tokens, &stop));
    };
    let recipe = recipe.counting(tokens);
    // What can't be used as input is told before a queue is looked for.
    let large = Large::of(&args)?;
    if !matches!(large, Some(Large::There(_))) {
        args.input.source()?;
    }
    let path = ledger_path(&args)?;
    let queue = absolute(queue)?;
    trace(&queue);
    let broker = connect(&queue).await?;
    broker.status(&queue.queues.jobs).await.map_err(|error| failed(&queue, error))?;

    let plan = Plan { queue: queue.to_string(), parameters: recipe.compared(&args.input) };
    if let Some(large) = large {
        let claimed = claim::submit(&args, &large, (&broker, &queue), (recipe, plan), &path, &stop).await;
        broker.close().await;
        return claimed;
    }
    let Begun { ledger, submission, input } = Begun::at(&path, &plan, &args.input, &stop)?;
    let counts = ledger.counts();
    if counts.chunks > 0 && !args.resubmit_unanswered {
        say(&format!("going on after {} jobs in {}", grouped(counts.jobs), path.display()));
    }
    let again = if args.resubmit_unanswered { Again::Unanswered } else { Again::Nothing };
    let work = Submission {
        broker: &broker,
        queue: &queue,
        ledger: SharedLedger::new(ledger),
        trace: Trace::submitting(&submission),
        submission,
        recipe,
        again,
        when_full: WhenFull::Say,
    };
    work.declare_route().await?;
    let progress = Progress::new();
    let published = work.publish_all(input, &progress, &stop, |items, total| {
        progress.expect(total);
        progress.reach(Tally { items, tokens: 0 });
    });
    let published = published.await;
    progress.finish();
    let (counts, asked) = work.ledger.with(|ledger| (ledger.counts(), ledger.asked()));
    let Submission { submission, trace, .. } = work;
    broker.close().await;
    trace.submitted(published.as_ref().map(|published| (counts.entries, published.jobs)).ok());
    let published = published.map_err(|error| with_the_way_on(error, counts))?;
    report(&submission, (counts, &asked?), published, &path)
}

/// A submission that has begun or goes on: its ledger, its id, and an input that may be published.
pub struct Begun {
    /// What it remembers.
    pub ledger: Ledger,
    /// Its id.
    pub submission: String,
    /// What is published.
    pub input: CheckedInput,
}

impl Begun {
    /// Checks the plan, then the input, and only then makes a ledger if there is none at `path`.
    ///
    /// # Errors
    /// When one of them can't be used, or a signal came.
    pub fn at(path: &Path, plan: &Plan, args: &InputArgs, stop: &CancellationToken) -> Result<Self, Error> {
        let before = path.exists().then(|| Ledger::open_or_create(path)).transpose()?;
        if let Some(before) = &before {
            before.compare(plan)?;
        }
        let input = match &before {
            Some(before) if before.counts().complete => CheckedInput::as_before(args)?,
            _ => block_in_place(|| CheckedInput::of(args, folder(path), stop))?,
        };
        let mut ledger = before.map_or_else(|| Ledger::open_or_create(path), Ok)?;
        let submission = ledger.begin(plan, new_submission)?;
        Ok(Self { ledger, submission, input })
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

fn with_the_way_on(error: Error, counts: Counts) -> Error {
    match error {
        Error::Interrupted(_) => Error::Interrupted(format!(
            "interrupted after {} items in {} jobs; the same command goes on from there",
            grouped(counts.entries),
            grouped(counts.jobs)
        )),
        error => error,
    }
}

fn report(
    submission: &str,
    (counts, asked): (Counts, &[Uri]),
    published: Published,
    path: &Path,
) -> Result<Outcome, Error> {
    let allow: String = asked.iter().map(|prefix| format!(" --allow-read {}", quoted(&prefix.to_string()))).collect();
    print(&format!(
        "submission {submission}: {} items in {} jobs, {} of them published now\ncollect with: inferq collect --ledger {} \
         --output {}{allow}\n",
        grouped(counts.entries - counts.bad),
        grouped(counts.jobs),
        grouped(published.jobs),
        quoted_path(path),
        quoted_path(&path.with_file_name("vectors.jsonl")),
    ))?;
    if counts.bad == 0 {
        return Ok(Outcome::Done);
    }
    let lines = if counts.bad == 1 { "line" } else { "lines" };
    say(&format!("{} bad {lines} can't be items; collect writes why, in their places", grouped(counts.bad)));
    Ok(Outcome::SomeFailed)
}

fn ledger_path(args: &Args) -> Result<PathBuf, Error> {
    let object = args.input.object()?;
    match (&args.ledger, args.input.single_file().or(object.as_ref().map(Uri::name))) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(input)) => Ok(format!("{input}.ledger.db").into()),
        (None, None) => {
            let message = "--ledger FILE is required when the input is stdin, a pattern or several files";
            Err(Error::Usage(message.to_owned()))
        }
    }
}

/// A new submission's id: short, and not met twice.
fn new_submission() -> String {
    format!("s{:012x}", rand::rng().random::<u64>() & 0xffff_ffff_ffff)
}
