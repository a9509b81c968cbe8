//! A large input as one job that names an object: one that is in a bucket already, or a file that `--to` uploads.
//!
//! In: the address of an object, or one file of JSON lines and a prefix. Out: for a file the object
//! `{prefix}{submission}-{digest}/{file}`; a confirmed job with `input_uri`, and a ledger that `collect` reads. The file is
//! sent as it is and never held; an object is only looked at. The same command goes on after a crash; what is there is not
//! uploaded again, so that no worker sees the object change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use inferq_shared::broker::{Broker, BrokerUrl, Message};
use inferq_shared::bucket::{BucketError, Buckets, Uri};
use inferq_shared::digest;
use inferq_shared::packing::Packing;
use inferq_shared::telemetry::traces::Trace;
use jiff::Timestamp;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::{Again, Args, Submission, WhenFull, new_submission};
use crate::chunk::ChunkDigest;
use crate::connect::{failed, print, quoted_path, say};
use crate::ledger::{Confirmed, Ledger, Plan, SharedLedger, job_id};
use crate::outage;
use crate::outcome::{Error, Outcome};
use crate::progress::{Progress, Tally, Total, grouped};
use crate::recipe::{InputArgs, Recipe};
use crate::source::Format;

/// What workers read, by the name's end; compressed or not.
const EXTENSIONS: [&str; 2] = [".jsonl", ".ndjson"];
/// A smaller object has too few lines to be split: three bytes each at least, and workers split from 10,000 on.
const SPLIT_BYTES: u64 = 3 * 10_000;

/// Where the one object comes from.
#[derive(Debug, Clone)]
pub(super) enum Large {
    /// A file, to be uploaded beneath a prefix.
    File { file: PathBuf, to: Uri },
    /// It is there.
    There(Uri),
}

impl fmt::Display for Large {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, .. } => file.display().fmt(formatter),
            Self::There(uri) => uri.fmt(formatter),
        }
    }
}

impl Large {
    /// As the flags say; nothing when the input travels in jobs.
    ///
    /// # Errors
    /// When workers could not read it as it is.
    pub(super) fn of(args: &Args) -> Result<Option<Self>, Error> {
        let input = &args.input;
        match (input.object()?, &args.to) {
            (None, None) => Ok(None),
            (Some(uri), None) => {
                readable(input, uri.name())?;
                Ok(Some(Self::There(uri)))
            }
            (Some(uri), Some(_)) => Err(Error::Usage(format!("--to uploads a file: {uri} is in a bucket already"))),
            (None, Some(to)) => {
                let Some(file) = input.single_file() else {
                    return Err(Error::Usage("--to uploads one file: --input must name it".to_owned()));
                };
                readable(input, file)?;
                Ok(Some(Self::File { file: file.into(), to: to.clone() }))
            }
        }
    }

    /// What the ledger compares, so that another input is not taken for the one that was submitted (a file's bytes, an
    /// object's version), and its size.
    async fn look(&self, may_be_split: bool, stop: &CancellationToken) -> Result<(ChunkDigest, u64), Error> {
        let uri = match self {
            Self::File { file, .. } => return block_in_place(|| digest_of(file, stop)),
            Self::There(uri) => uri,
        };
        let buckets = Buckets::new();
        let looked = tokio::select! {
            looked = outage::waited_for(|| buckets.head(uri)) => looked?,
            () = stop.cancelled() => return Err(interrupted()),
        };
        let info = looked.ok_or_else(|| Error::Usage(BucketError::NotFound { uri: uri.clone() }.to_string()))?;
        let is_small = info.size < SPLIT_BYTES && Packing::of(uri.name()) == Packing::Plain;
        if !may_be_split && !is_small {
            let message = format!("{uri} may be split among workers: --reply-uri PREFIX must say where its results go");
            return Err(Error::Usage(message));
        }
        let (version, _) = digest::of(format!("{uri}\n{}", info.etag).as_bytes(), |_| Ok(())).map_err(unread(self))?;
        Ok((first_of(version), info.size))
    }

    /// The object, once it is there.
    async fn object(&self, submission: &str, digest: ChunkDigest, stop: &CancellationToken) -> Result<Uri, Error> {
        match self {
            Self::There(uri) => Ok(uri.clone()),
            Self::File { file, to } => {
                let object = object(to, submission, digest, file)?;
                upload(&object, file, stop).await?;
                Ok(object)
            }
        }
    }
}

/// Publishes one job for a large input.
pub(super) async fn submit(
    args: &Args,
    large: &Large,
    (broker, queue): (&Broker, &BrokerUrl),
    (recipe, plan): (Recipe, Plan),
    path: &Path,
    stop: &CancellationToken,
) -> Result<Outcome, Error> {
    let before = path.exists().then(|| Ledger::open_or_create(path)).transpose()?;
    before.as_ref().map_or(Ok(()), |before| before.compare(&plan))?;
    let (digest, bytes) = large.look(args.reply_to().is_some(), stop).await?;
    let mut ledger = before.map_or_else(|| Ledger::open_or_create(path), Ok)?;
    let claim = Confirmed::claim(digest, format!("{large} line 1"));
    let submission = ledger.begin(&plan, new_submission)?;
    let (known, answered) = (ledger.is_confirmed(&claim)?, ledger.is_answered(claim.number())?);
    if known && (answered || !args.resubmit_unanswered) {
        ledger.record_complete(1)?;
        say(&format!("{large} was submitted before; nothing is published"));
        return report(&submission, path);
    }
    let (again, when_full) = (Again::Nothing, WhenFull::Say);
    let ledger = SharedLedger::new(ledger);
    let trace = Trace::submitting(&submission);
    let work = Submission { broker, queue, ledger, submission, recipe, again, when_full, trace };
    let object = large.object(&work.submission, digest, stop).await?;
    work.declare_route().await?;
    let id = job_id(&work.submission, claim.number());
    let message = work.recipe.claim(&work.submission, &id, (&object.to_string(), bytes), Timestamp::now());
    work.publish_claim(message).await?;
    work.ledger.with(|ledger| ledger.record_confirmed(&[claim]).and_then(|()| ledger.record_complete(1)))?;
    let Submission { submission, trace, .. } = work;
    trace.submitted(Some((0, 1)));
    report(&submission, path)
}

impl Submission<'_> {
    async fn publish_claim(&self, message: Message) -> Result<(), Error> {
        let published = self.publish_until_confirmed(vec![message], &Progress::new()).await;
        published.map_err(|error| failed(self.queue, error))
    }
}

/// Whether workers can read what is called so as it is.
fn readable(args: &InputArgs, name: &str) -> Result<(), Error> {
    let usage = |message: String| Err(Error::Usage(message));
    let (inside, _) = Packing::split(name);
    let is_lines = match args.format {
        Some(format) => format == Format::Jsonl,
        None => EXTENSIONS.iter().any(|extension| inside.to_ascii_lowercase().ends_with(extension)),
    };
    if !is_lines {
        let known = EXTENSIONS.join(", ");
        return usage(format!(
            "workers read objects of JSON lines ({known}; .gz or .zst after them), which {name} is not"
        ));
    }
    if args.text_field != "text" || args.id_field != "id" {
        return usage(format!("workers read {name} as it is, and of its lines the fields text and id only"));
    }
    Ok(())
}

fn unread<T: fmt::Display>(input: &T) -> impl Fn(io::Error) -> Error + use<T> {
    let what = format!("can't read {input}");
    move |error| Error::io(what.clone(), error)
}

fn digest_of(input: &Path, stop: &CancellationToken) -> Result<(ChunkDigest, u64), Error> {
    let unread = unread(&input.display());
    let file = std::fs::File::open(input).map_err(&unread)?;
    let going_on = |_| if stop.is_cancelled() { Err(io::Error::other("interrupted")) } else { Ok(()) };
    let digest = digest::of(file, going_on);
    let (digest, bytes) = digest.map_err(|error| if stop.is_cancelled() { interrupted() } else { unread(error) })?;
    Ok((first_of(digest), bytes))
}

fn first_of(digest: [u8; 32]) -> ChunkDigest {
    let mut first = ChunkDigest::default();
    first.copy_from_slice(&digest[..16]);
    first
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
