//! `inferq explain`: what happened to one job or item, from the ledger, the queue and the workers' logs.
//!
//! In: an id and where to look. Out: an explanation, as text or JSON: published, where it stands, what the logs say,
//! how it was answered, and what could not be looked at. It changes nothing, and says nothing that it has not seen.

use std::path::{Path, PathBuf};

use inferq_shared::broker::BrokerUrl;
use inferq_shared::bucket::{AllowList, Buckets, Uri};
use inferq_shared::job::{Inputs, Job};
use inferq_shared::reply::{Reply, ReplyError, Timings};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::logs::{Line, Lines};
use self::parts::Parts;
use self::places::{Place, Search};
use crate::connect::{connect, failed, print};
use crate::ledger::lookup::Found;
use crate::ledger::{Ledger, Plan};
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::progress::grouped;
use crate::shown;

mod logs;
mod parts;
mod places;
mod text;

/// The flags of `inferq explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job's id, an item's id, or JOB-ID/INDEX.
    #[arg(value_name = "ID")]
    id: String,
    /// The queue's address. Default: the one that the ledger names.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: Option<BrokerUrl>,
    /// The ledger that `submit` made.
    #[arg(long, env = "INFERQ_LEDGER", value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Log files of workers, as JSON: what they write when stderr is no terminal.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    logs: Vec<PathBuf>,
    /// Look for the parts of a split job beneath this prefix too, like gs://bucket/results/. What `submit --reply-uri` or
    /// `--to` asked for is looked at already. Can be given more than once.
    #[arg(long, env = "INFERQ_ALLOW_READ", value_name = "PREFIX", value_delimiter = ',')]
    allow_read: Vec<Uri>,
    /// Write JSON: one object.
    #[arg(long)]
    json: bool,
}

/// What is known; documented in docs/operations.md.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    /// As asked.
    id: String,
    /// The job, as far as it can be told.
    job: Option<String>,
    /// Which of its items was asked for.
    item: Option<u64>,
    /// In one sentence.
    verdict: String,
    published: Option<Published>,
    places: Vec<Place>,
    /// Which parts of a split job are in its bucket.
    parts: Option<Parts>,
    log: Vec<Line>,
    reply: Option<Answer>,
    /// What could not be looked at, and why.
    not_seen: Vec<String>,
}

/// What the ledger says of its publishing.
#[derive(Debug, Serialize)]
struct Published {
    ledger: String,
    chunk: u64,
    /// Where in the input its first line stands.
    place: String,
    /// The index of its first entry among all entries.
    first: u64,
    items: u64,
    /// The id of the item that was asked for, or the job's first one.
    item_id: Option<String>,
    bad_lines: usize,
    /// Why the line that was asked for is in no job.
    bad: Option<ReplyError>,
}

/// What the reply in the ledger says.
#[derive(Debug, Serialize)]
struct Answer {
    status: &'static str,
    error: Option<ReplyError>,
    worker: String,
    model: String,
    revision: String,
    attempt: u32,
    results: usize,
    item_errors: usize,
    tokens: u64,
    timings_ms: Timings,
    /// The answer to the item that was asked for, in a few words.
    item: Option<String>,
}

/// Runs `inferq explain`.
///
/// # Errors
/// When there is nowhere to look, or nothing is known of the id.
pub async fn explain(args: Args, paint: Paint, stop: CancellationToken) -> Result<Outcome, Error> {
    if args.queue.is_none() && args.ledger.is_none() && args.logs.is_empty() {
        let message = "there is nowhere to look: give --queue URL, --ledger FILE or --logs FILE…, the more the better";
        return Err(Error::Usage(message.to_owned()));
    }
    let mut explanation = Explanation { id: args.id.clone(), ..Explanation::default() };
    let (queue, asked) = explanation.look_into_ledger(args.ledger.as_deref())?;
    // Without a ledger only <job id>/<index> tells the job of an item.
    let job = explanation.job.clone().unwrap_or_else(|| {
        let index = args.id.rsplit_once('/').filter(|(_, index)| index.bytes().all(|byte| byte.is_ascii_digit()));
        explanation.item = index.and_then(|(_, index)| index.parse().ok());
        index.map_or(args.id.as_str(), |(job, _)| job).to_owned()
    });
    tokio::select! {
        biased;
        () = stop.cancelled() => return Err(Error::Interrupted("interrupted".to_owned())),
        looked = async {
            let shard = explanation.look_at_queue(args.queue.or(queue), &job).await?;
            explanation.look_for_parts(&asked, &args.allow_read, &job, shard).await;
            Ok::<_, Error>(())
        } => looked?,
    }
    tokio::task::block_in_place(|| explanation.read_logs(&args.logs, &job));
    explanation.conclude(job);
    let known = explanation.is_known();
    print(&if args.json { explanation.json() } else { explanation.text(paint) })?;
    if known {
        return Ok(Outcome::Done);
    }
    Err(Error::NotFound(format!(
        "nothing is known of {} where it was looked for",
        shown::line(args.id.as_bytes(), 140)
    )))
}

impl Explanation {
    /// Returns the queue that the submission went to, and where it asked for results.
    fn look_into_ledger(&mut self, path: Option<&Path>) -> Result<(Option<BrokerUrl>, Option<Uri>), Error> {
        let Some(path) = path else {
            self.not_seen.push("the ledger: name it with --ledger".to_owned());
            return Ok((None, None));
        };
        let ledger = match Ledger::look_into(path) {
            Ok(ledger) => ledger,
            Err(error @ crate::ledger::LedgerError::Locked(_)) => {
                self.not_seen.push(error.to_string());
                return Ok((None, None));
            }
            Err(error) => return Err(error.into()),
        };
        let plan = ledger.plan()?;
        let queue = plan.as_ref().and_then(|plan| plan.queue.parse().ok());
        let asked = plan.as_ref().and_then(Plan::reply_uri);
        if let Some(found) = ledger.look_up(&self.id)? {
            self.job = Some(found.answered.job.to_string());
            self.item = found.item;
            self.reply = Answer::of(&found);
            self.published = Some(Published::new(path, found));
        }
        Ok((queue, asked))
    }

    /// Returns one of the job's shards, if there is one.
    async fn look_at_queue(&mut self, url: Option<BrokerUrl>, job: &str) -> Result<Option<Job>, Error> {
        let Some(url) = url else {
            self.not_seen.push("the queue: name it with --queue".to_owned());
            return Ok(None);
        };
        let broker = connect(&url).await?;
        let found = Search::run(&broker, &url.queues, job).await;
        broker.close().await;
        match found.map_err(|error| failed(&url, error))? {
            Some(search) => {
                self.places = search.places;
                if self.places.is_empty() {
                    let looked =
                        format!("none of the {} messages in the queues is about it", grouped(search.looked_at));
                    self.not_seen.push(looked);
                }
                return Ok(search.shard);
            }
            None => self.not_seen.push(format!("the queue {url}: this kind can't be looked at without leasing")),
        }
        Ok(None)
    }

    /// Looks where the job's results are asked for: by the ledger's word, or by that of a shard, who may be anybody's and
    /// is heeded only where the user allows it.
    async fn look_for_parts(&mut self, asked: &Option<Uri>, more: &[Uri], job: &str, shard: Option<Job>) {
        let (named, shards) = shard.map_or((None, None), |job| (prefix_of(&job), shards_of(&job)));
        let Some(prefix) = named.or_else(|| asked.clone()) else { return };
        let allowed: AllowList = asked.iter().chain(more).cloned().collect();
        let looked = match allowed.check(&prefix, "--allow-read") {
            Ok(()) => Parts::look(&Buckets::new(), &prefix, job, shards).await.map_err(|error| error.to_string()),
            Err(_) => Err(format!("say --allow-read {prefix}")),
        };
        match looked {
            Ok(parts) => self.parts = parts,
            Err(why) => self.not_seen.push(format!("the parts beneath {prefix}: {why}")),
        }
    }

    fn read_logs(&mut self, files: &[PathBuf], job: &str) {
        if files.is_empty() {
            self.not_seen.push("the workers' logs: name them with --logs".to_owned());
        }
        let mut lines = Lines::default();
        for file in files {
            if let Err(error) = lines.read(file, job) {
                self.not_seen.push(format!("the log {}: {error}", file.display()));
            }
        }
        lines.sort();
        for (count, what) in [
            (lines.more, "more lines of the logs are about it"),
            (lines.unreadable, "lines of the logs hold the id and are no JSON: write logs to a file, not a terminal"),
        ] {
            if count > 0 {
                self.not_seen.push(format!("{} {what}", grouped(count)));
            }
        }
        self.log = lines.lines;
    }

    fn is_known(&self) -> bool {
        self.published.is_some() || !self.places.is_empty() || !self.log.is_empty() || self.parts.is_some()
    }

    fn conclude(&mut self, job: String) {
        self.verdict = self.judged();
        if self.is_known() {
            self.job = Some(job);
        }
    }

    /// The first that applies: an answer is an answer, wherever else the job still stands.
    fn judged(&self) -> String {
        if let Some(bad) = self.published.as_ref().and_then(|published| published.bad.as_ref()) {
            return format!("its line can't be an item ({}), so it is in no job", bad.code);
        }
        if let Some(reply) = &self.reply {
            return format!("answered: {}", reply.status);
        }
        let mut verdicts: Vec<_> = self.places.iter().map(Place::verdict).collect();
        verdicts.sort();
        match (verdicts.into_iter().next(), &self.published) {
            (Some((_, verdict)), _) => verdict,
            (None, Some(_)) => {
                "published, and neither in the queues that were looked at nor answered in the ledger".to_owned()
            }
            (None, None) if !self.log.is_empty() => "only the logs know of it".to_owned(),
            (None, None) => "nothing is known of it".to_owned(),
        }
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("an explanation has only string keys") + "\n"
    }
}

fn prefix_of(job: &Job) -> Option<Uri> {
    Uri::parse(job.reply_to.as_ref()?.prefix()?).ok()
}

fn shards_of(job: &Job) -> Option<u32> {
    match &job.inputs {
        Inputs::Shard { shard, .. } => Some(shard.count),
        _ => None,
    }
}

impl Published {
    fn new(ledger: &Path, found: Found) -> Self {
        let Found { chunk, answered, item, bad } = found;
        let id = answered.ids.get(item.unwrap_or(0) as usize).cloned().flatten();
        let error = |index: u64| answered.bad.iter().find(|(at, ..)| *at == index).map(|(_, _, error)| error.clone());
        Self {
            ledger: ledger.display().to_string(),
            chunk,
            place: answered.place,
            first: answered.first,
            items: answered.items,
            item_id: id,
            bad_lines: answered.bad.len(),
            bad: bad.and_then(error),
        }
    }
}

impl Answer {
    fn of(found: &Found) -> Option<Self> {
        let reply = Reply::decode(found.answered.reply.as_ref()?).ok()?;
        let item = found.item.map(|item| match reply.results.get(item as usize) {
            None => "none of its own: the error above is that of every item".to_owned(),
            Some(result) => match (&result.error, &result.embedding, &result.labels) {
                (Some(error), ..) => format!("{}: {}", error.code, error.message),
                (_, Some(embedding), _) => {
                    let tokens = result.tokens.map_or(String::new(), |tokens| format!(" from {tokens} tokens"));
                    format!("an embedding of {} numbers{tokens}", embedding.values().len())
                }
                (.., labels) => format!("{} labels", labels.as_ref().map_or(0, Vec::len)),
            },
        });
        Some(Self {
            status: reply.status.as_str(),
            item_errors: reply.results.iter().filter(|result| result.error.is_some()).count(),
            results: reply.results.len(),
            error: reply.error,
            worker: reply.worker,
            model: reply.model,
            revision: reply.revision,
            attempt: reply.attempt,
            tokens: reply.usage.tokens,
            timings_ms: reply.timings_ms,
            item,
        })
    }
}
