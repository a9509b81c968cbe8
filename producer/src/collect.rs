//! `inferq collect`: the submission's replies into the ledger, and from there one row an item.
//!
//! In: a ledger, and the route that its submission's replies take. Out: the output. A reply is acked only after the
//! ledger has it, so that a crash loses none; the same command goes on. It keeps the best reply of each job, and never
//! holds more replies than a few pulls bring: while one is fetched, another is decoded, and a third goes to the ledger.

use std::path::PathBuf;
use std::time::Duration;

use inferq_shared::broker::BrokerUrl;
use inferq_shared::bucket::{AllowList, Buckets, Uri};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connect::{connect, quoted_path, say, trace};
use crate::follow::Follower;
use crate::ledger::{Counts, Ledger, LedgerError, Plan, SharedLedger};
use crate::outcome::{Error, Outcome};
use crate::output::{OutputArgs, Target};
use crate::pointer::Pointers;
use crate::progress::{Progress, Total, grouped};
use crate::summary::Summary;

pub use self::receive::Collector;

mod receive;

/// The flags of `inferq collect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ledger that `submit` made.
    #[arg(long, env = "INFERQ_LEDGER", value_name = "FILE")]
    ledger: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// Stop after so many seconds, say what is missing, and exit 75. Nothing is lost; the same command goes on.
    #[arg(long, env = "INFERQ_TIMEOUT_S", value_name = "SECONDS")]
    timeout_s: Option<u64>,
    /// The queue's address. Default: the one that the ledger names, which has no password.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: Option<BrokerUrl>,
    /// Take replies from the queue that this address names, instead of the submission's own route. Replies to others
    /// stay there.
    #[arg(long, env = "INFERQ_RESULTS", hide_env_values = true, value_name = "URL")]
    results: Option<BrokerUrl>,
    /// Read results that a reply says lie beneath this prefix, like gs://bucket/results/. What `submit --reply-uri` or
    /// `--to` asked for is allowed already. Can be given more than once.
    #[arg(long, env = "INFERQ_ALLOW_READ", value_name = "PREFIX", value_delimiter = ',')]
    allow_read: Vec<Uri>,
}

/// Runs `inferq collect`.
///
/// # Errors
/// When ledger, output or queue can't be used, replies are missing at the timeout, or a signal came.
pub async fn collect(args: Args, stop: CancellationToken) -> Result<Outcome, Error> {
    let started = Instant::now();
    let target = args.output.target()?;
    let ledger = Ledger::open(&args.ledger)?;
    let pointers = Pointers::new(Buckets::new(), allowed(&ledger, &args.allow_read)?);
    let target = target.reading(pointers.clone());
    let counts = ledger.counts();
    let route = Route::of(&ledger, &args)?;
    if !counts.complete {
        let message = format!(
            "the submission in {} is not complete ({} jobs so far): finish it with the same `inferq submit` first",
            quoted_path(&args.ledger),
            grouped(counts.jobs)
        );
        return Err(Error::Usage(message));
    }
    let ledger = SharedLedger::new(ledger);
    let mut follower = ledger.with(|ledger| target.follower(ledger))?;
    trace(&route.url);
    let broker = connect(&route.url).await?;
    if !counts.all_answered() {
        let progress = Progress::new();
        // How many items lie in a bucket is known when their reply comes.
        if !ledger.with(|ledger| ledger.has_items_elsewhere())? {
            progress.expect(Total::Exactly(counts.entries - counts.bad));
        }
        let collector =
            Collector { broker: &broker, route: &route, ledger: &ledger, pointers: &pointers, progress: &progress };
        // Nothing is submitted meanwhile, so this never changes.
        let (_submitting, complete) = watch::channel(true);
        let deadline = args.timeout_s.map(|seconds| started + Duration::from_secs(seconds));
        if let Err(error) = collector.receive_all(complete, deadline, &mut follower, &stop).await {
            // Gives back what it had received, so that the same command finds it at once.
            broker.close().await;
            return Err(error);
        }
    }
    let before = counts.items_answered;
    let outcome = ledger.with(|ledger| write_output(ledger, target, follower, (before, started), &stop))?;
    if route.own {
        // The output is there: a route that can't be removed now expires by itself.
        if let Err(error) = broker.remove(&route.name).await {
            say(&format!("warning: the route {} stays until it expires: {error}", route.name));
        }
    }
    broker.close().await;
    Ok(outcome)
}

/// Where results may be read: where the submission asked for them, and what the user allows besides. Where jobs that came
/// whole asked for them must be among that: their replies would be dead letters else.
fn allowed(ledger: &Ledger, more: &[Uri]) -> Result<AllowList, Error> {
    let plan = ledger.plan()?;
    let asked = plan.as_ref().and_then(Plan::reply_uri);
    let allowed: AllowList = asked.into_iter().chain(more.iter().cloned()).collect();
    let denied = ledger.asked()?.into_iter().find(|prefix| allowed.check(prefix, "--allow-read").is_err());
    denied.map_or(Ok(allowed), |prefix| {
        let message =
            format!("jobs of this submission have their results put beneath {prefix}: say --allow-read {prefix}");
        Err(Error::Usage(message))
    })
}

/// Writes the output from the best replies, and says on stderr what is in it. Every job has a reply by now; `before`
/// items had one when the command `started`.
///
/// # Errors
/// When the ledger can't be read, the output can't be written, or `stop` was cancelled.
pub fn write_output(
    ledger: &mut Ledger,
    target: Target,
    follower: Option<Follower>,
    (before, started): (u64, Instant),
    stop: &CancellationToken,
) -> Result<Outcome, Error> {
    let (output, failures) = (target.output().clone(), target.failures().map(PathBuf::from));
    let tally = target.finish(ledger, follower, stop)?;
    let Counts { tokens, items_answered, .. } = ledger.counts();
    let summary = Summary { tally, tokens, items_now: items_answered - before, took: started.elapsed() };
    say(summary.table(&output, failures.as_deref()).trim_end());
    Ok(summary.outcome())
}

/// Where a submission's replies come.
pub struct Route {
    /// The queue's address.
    pub url: BrokerUrl,
    /// The queue to receive from.
    pub name: String,
    /// Whether it is the submission's alone.
    pub own: bool,
}

impl Route {
    fn of(ledger: &Ledger, args: &Args) -> Result<Self, Error> {
        if let Some(url) = &args.results {
            return Ok(Self { url: url.clone(), name: url.queues.jobs.clone(), own: false });
        }
        let (Some(plan), Some(submission)) = (ledger.plan()?, ledger.submission()) else {
            let message = format!("ledger {} holds no submission yet: run `inferq submit`", args.ledger.display());
            return Err(Error::Usage(message));
        };
        let stored = || plan.queue.parse().map_err(|_| LedgerError::NotALedger(args.ledger.clone()));
        let url: BrokerUrl = args.queue.clone().map_or_else(stored, Ok)?;
        Ok(Self { name: url.queues.submission(submission), url, own: true })
    }
}
