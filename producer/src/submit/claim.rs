//! `submit --to`: a large input becomes an object in a bucket, and one job that names it.
//!
//! In: one file of JSON lines, a prefix. Out: the object `{prefix}{submission}-{digest}/{file}`, a confirmed job with
//! `input_uri`, and a ledger that `collect` reads. The file is sent as it is and never held. The same command goes on
//! after a crash; what is there is not uploaded again, so that no worker sees the object change.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use inferq_shared::broker::{Broker, BrokerUrl, Message};
use inferq_shared::bucket::{Buckets, Uri};
use inferq_shared::digest;
use jiff::Timestamp;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::{Again, Args, Submission, WhenFull, new_submission};
use crate::chunk::ChunkDigest;
use crate::connect::{failed, print, quoted_path, say};
use crate::ledger::{Confirmed, Ledger, Plan, SharedLedger, job_id};
use crate::outcome::{Error, Outcome};
use crate::progress::{Progress, Tally, Total, grouped};
use crate::recipe::{InputArgs, Recipe};
use crate::source::Format;

/// What workers read by the name's end.
const EXTENSIONS: [&str; 6] = [".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst"];

/// Runs `inferq submit --to`.
pub(super) async fn submit(
    args: &Args,
    to: &Uri,
    (broker, queue): (&Broker, &BrokerUrl),
    (recipe, plan): (Recipe, Plan),
    path: &Path,
    stop: &CancellationToken,
) -> Result<Outcome, Error> {
    let input = input(&args.input)?;
    let mut ledger = Ledger::open_or_create(path)?;
    ledger.compare(&plan)?;
    let digest = block_in_place(|| digest_of(input, stop))?;
    let claim = Confirmed::claim(digest, format!("{} line 1", input.display()));
    let submission = ledger.begin(&plan, new_submission)?;
    let (known, answered) = (ledger.is_confirmed(&claim)?, ledger.is_answered(claim.number())?);
    if known && (answered || !args.resubmit_unanswered) {
        ledger.record_complete(1)?;
        say(&format!("{} was submitted before; nothing is published", input.display()));
        return report(&submission, path);
    }
    let (again, when_full) = (Again::Nothing, WhenFull::Say);
    let ledger = SharedLedger::new(ledger);
    let work = Submission { broker, queue, ledger, submission, recipe, again, when_full };
    let object = object(to, &work.submission, digest, input)?;
    upload(&object, input, stop).await?;
    work.declare_route().await?;
    let id = job_id(&work.submission, claim.number());
    let message = work.recipe.claim(&work.submission, &id, &object.to_string(), Timestamp::now());
    work.publish_claim(message).await?;
    work.ledger.with(|ledger| ledger.record_confirmed(&[claim]).and_then(|()| ledger.record_complete(1)))?;
    report(&work.submission, path)
}

impl Submission<'_> {
    async fn publish_claim(&self, message: Message) -> Result<(), Error> {
        let published = self.publish_until_confirmed(&[message], &Progress::new()).await;
        published.map_err(|error| failed(self.queue, error))
    }
}

/// The one file, if workers can read it as it is.
fn input(args: &InputArgs) -> Result<&Path, Error> {
    let usage = |message: String| Err(Error::Usage(message));
    let Some(file) = args.single_file() else {
        return usage("--to uploads one file: --input must name it".to_owned());
    };
    let is_lines = match args.format {
        Some(format) => format == Format::Jsonl,
        None => EXTENSIONS.iter().any(|extension| file.ends_with(extension)),
    };
    if !is_lines {
        return usage(format!("--to uploads JSON lines ({}), which {file} is not", EXTENSIONS.join(", ")));
    }
    if args.text_field != "text" || args.id_field != "id" {
        return usage("--to uploads lines as they are: workers read the fields text and id only".to_owned());
    }
    Ok(Path::new(file))
}

/// What the ledger compares, so that another file is not taken for the one that was submitted.
fn digest_of(input: &Path, stop: &CancellationToken) -> Result<ChunkDigest, Error> {
    let unread = |error| Error::io(format!("can't read {}", input.display()), error);
    let going_on = |_| if stop.is_cancelled() { Err(io::Error::other("interrupted")) } else { Ok(()) };
    let file = std::fs::File::open(input).map_err(unread)?;
    let (sha256, _) =
        digest::of(file, going_on).map_err(|error| if stop.is_cancelled() { interrupted() } else { unread(error) })?;
    let mut digest = ChunkDigest::default();
    digest.copy_from_slice(&sha256[..16]);
    Ok(digest)
}

fn object(to: &Uri, submission: &str, digest: ChunkDigest, input: &Path) -> Result<Uri, Error> {
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    let digest = u128::from_be_bytes(digest);
    to.join(&format!("{submission}-{digest:032x}/{name}"))
        .map_err(|why| Error::Usage(format!("the object of {name:?} {why}")))
}

async fn upload(object: &Uri, input: &Path, stop: &CancellationToken) -> Result<(), Error> {
    let size = input.metadata().map_err(|error| Error::io(format!("can't read {}", input.display()), error))?.len();
    let buckets = Buckets::new();
    // An object appears whole, and its name holds the digest of what is in it.
    if buckets.head(object).await?.is_some_and(|there| there.size == size) {
        return Ok(());
    }
    let progress = Progress::of("bytes uploaded");
    progress.expect(Total::Exactly(size));
    let sent = AtomicU64::new(0);
    let uploading = buckets.upload(object, input, |bytes| {
        let sent = sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress.reach(Tally { items: sent, tokens: 0 });
    });
    let uploaded = tokio::select! {
        uploaded = uploading => uploaded,
        () = stop.cancelled() => return Err(interrupted()),
    };
    progress.finish();
    let info = uploaded?;
    say(&format!("{} ({} bytes) lies at {}", input.display(), grouped(info.size), info.uri));
    Ok(())
}

fn interrupted() -> Error {
    Error::Interrupted("interrupted before the job was published; the same command goes on".to_owned())
}

fn report(submission: &str, path: &Path) -> Result<Outcome, Error> {
    print(&format!(
        "submission {submission}: one job for the whole file\ncollect with: inferq collect --ledger {} --output {}\n",
        quoted_path(path),
        quoted_path(&path.with_file_name("vectors.jsonl")),
    ))?;
    Ok(Outcome::Done)
}
