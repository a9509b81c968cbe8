//! A job's results as an object: where it goes, what it holds, and the mark that says which job it answers.
//!
//! Pure. In: results and what was asked for. Out: an object's bytes, a [`Mark`] kept beside it, and the reply that points
//! at it. Two jobs of one id agree in their digest when they ask for the same: the model's name, the parameters and the
//! inputs; never the revision, since a job that comes again after a hot swap is the same job.

use std::fmt;
use std::str::FromStr;

use inferq_shared::bucket::Uri;
use inferq_shared::columns::{self, ColumnsError};
use inferq_shared::digest::hex;
use inferq_shared::job::{Item, ObjectFormat, Parameters};
use inferq_shared::reply::{ItemResult, Reply, ReplyError, Status, Usage};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Where a job's results go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The object.
    pub uri: Uri,
    /// How the results are written.
    pub format: ObjectFormat,
    /// What the job asks for, in short; see [`digest`].
    pub digest: String,
    /// The most that the object can have, in bytes.
    pub bytes_max: usize,
}

/// What is kept beside an object: which job it answers, and what a reply says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The digest of what the job asks for.
    pub digest: String,
    /// How the job ended.
    pub status: Status,
    /// What was counted.
    pub usage: Usage,
    /// What computed it.
    pub revision: String,
}

/// What a job reads.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Source<'a> {
    /// What it carries.
    Inputs(&'a [Item]),
    /// A version of an object.
    Object {
        /// Its address.
        uri: &'a str,
        /// Names the version.
        etag: &'a str,
    },
}

/// sha256 over what a job asks for, in hex: JSON of the model's name, the parameters and the source, in this order.
pub fn digest(model: &str, parameters: Parameters, source: Source<'_>) -> String {
    #[derive(Serialize)]
    struct Asked<'a> {
        model: &'a str,
        parameters: Parameters,
        source: Source<'a>,
    }
    let mut sha = Sha256::new();
    let asked = Asked { model, parameters, source };
    serde_json::to_writer(Writer(&mut sha), &asked).expect("a job has only string keys, and a digest takes all");
    hex(&sha.finalize())
}

/// Feeds a digest.
struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The object's bytes: a line or a row an item.
///
/// # Errors
/// When the results are not of one kind, and the format has one.
pub fn encode(
    format: ObjectFormat,
    results: &[ItemResult],
    model: &str,
    revision: &str,
) -> Result<Vec<u8>, ColumnsError> {
    match format {
        ObjectFormat::Jsonl => Ok(lines(results)),
        ObjectFormat::Parquet => columns::file(results, model, revision),
    }
}

fn lines(results: &[ItemResult]) -> Vec<u8> {
    let mut text = Vec::new();
    for result in results {
        serde_json::to_writer(&mut text, result).expect("a result has only string keys");
        text.push(b'\n');
    }
    text
}

impl Mark {
    /// What is to be kept beside the object that holds `reply`'s results.
    pub fn new(digest: &str, reply: &Reply) -> Self {
        Self { digest: digest.to_owned(), status: reply.status, usage: reply.usage, revision: reply.revision.clone() }
    }

    /// Reads what is kept beside an object; nothing if it answers another job than that of `digest`.
    pub fn ours(kept: Option<&str>, digest: &str) -> Option<Self> {
        let mark: Self = kept?.parse().ok()?;
        (mark.digest == digest || crate::mutant::active("foreign_is_ours")).then_some(mark)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, status, usage, revision } = self;
        let (status, Usage { items, tokens }) = (status.as_str(), usage);
        write!(formatter, "sha256:{digest};status={status};items={items};tokens={tokens};revision={revision}")
    }
}

/// What is kept beside an object is no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a mark of inferq")]
pub struct NoMark;

impl FromStr for Mark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let mut parts = text.split(';');
        let digest = parts.next().and_then(|part| part.strip_prefix("sha256:")).ok_or(NoMark)?;
        // What a later version adds is left aside.
        let fields: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let field = |name| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| *value).ok_or(NoMark);
        let status = field("status")?;
        let statuses = [Status::Succeeded, Status::Partial, Status::Failed, Status::Rejected, Status::Expired];
        Ok(Self {
            digest: digest.to_owned(),
            status: statuses.into_iter().find(|known| known.as_str() == status).ok_or(NoMark)?,
            usage: Usage {
                items: field("items")?.parse().map_err(|_| NoMark)?,
                tokens: field("tokens")?.parse().map_err(|_| NoMark)?,
            },
            revision: field("revision")?.to_owned(),
        })
    }
}

/// The reply that says where the results are.
pub fn pointer(reply: Reply, uri: &Uri, mark: Mark) -> Reply {
    let Mark { status, usage, revision, .. } = mark;
    Reply { status, usage, revision, results: Vec::new(), error: None, output_uri: Some(uri.to_string()), ..reply }
}

/// The reply to a job whose object is there and answers another.
pub fn conflict(reply: Reply, uri: &Uri) -> Reply {
    let message = format!(
        "{uri} is there already and answers another job: another model, other parameters or other inputs under this id; \
         choose another id or prefix, or remove the object"
    );
    failed(Reply { status: Status::Rejected, ..reply }, ReplyError::new("id_conflict", message))
}

/// The reply to a job whose results could not be written as it asked.
pub fn unwritable(reply: Reply, error: &ColumnsError) -> Reply {
    failed(Reply { status: Status::Failed, ..reply }, ReplyError::new("failed", error.to_string()))
}

fn failed(reply: Reply, error: ReplyError) -> Reply {
    Reply { results: Vec::new(), error: Some(error), output_uri: None, ..reply }
}

#[cfg(test)]
mod tests {
    use inferq_shared::job::Input;

    use super::*;

    fn item(text: &str) -> Item {
        Item { id: None, input: Input::Text(text.to_owned()) }
    }

    #[test]
    fn a_digest_tells_jobs_apart_by_what_they_ask_for() {
        let parameters = Parameters::default();
        let items = [item("a"), item("b")];
        let inputs = Source::Inputs(&items);
        let ours = digest("m", parameters, inputs);
        assert_eq!(ours.len(), 64);
        assert_eq!(ours, digest("m", parameters, inputs));
        let others = [
            digest("n", parameters, inputs),
            digest("m", Parameters { normalize: false, ..parameters }, inputs),
            digest("m", parameters, Source::Inputs(&items[..1])),
            digest("m", parameters, Source::Inputs(&[item("ab"), item("")])),
            digest("m", parameters, Source::Object { uri: "gs://b/c", etag: "1" }),
            digest("m", parameters, Source::Object { uri: "gs://b/c", etag: "2" }),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, ours, "{index}");
            assert!(!others[..index].contains(other), "{index}");
        }
    }

    #[test]
    fn a_mark_comes_back_as_it_was_kept_and_only_to_its_own_job() {
        let usage = Usage { items: 3, tokens: 17 };
        let revision = "sha256:53aa".to_owned();
        let mark = Mark { digest: "ab12".to_owned(), status: Status::Partial, usage, revision };
        let kept = mark.to_string();
        assert_eq!(kept, "sha256:ab12;status=partial;items=3;tokens=17;revision=sha256:53aa");
        assert_eq!(Mark::ours(Some(&kept), "ab12"), Some(mark.clone()));
        assert_eq!(Mark::ours(Some(&format!("{kept};more=1")), "ab12"), Some(mark));
        assert_eq!(Mark::ours(Some(&kept), "ab13"), None);
        assert_eq!(Mark::ours(None, "ab12"), None);
        for broken in ["", "ab12", "sha256:ab12", "sha256:ab12;status=odd;items=3;tokens=17;revision=r"] {
            assert_eq!(Mark::ours(Some(broken), "ab12"), None, "{broken}");
        }
    }
}
