//! The job, wire format version 1: what a producer publishes, its limits, and the attributes beside it.
//!
//! In: bytes from anybody. Out: a [`Job`], or a [`DecodeError`] that says what, where and which limit (the reading is
//! in `job/decode.rs` and `job/value.rs`). Pure: [`Job::encode`] and [`Job::decode`] are each other's inverse. Unknown fields are ignored,
//! and an optional field that is `null` is as good as absent. `docs/job.schema.json` says the same as a schema.

use std::fmt;

use jiff::Timestamp;
use serde::de::{self, Deserializer};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

mod decode;
pub mod line;
mod shard;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use decode::clipped;
pub use shard::{ParentId, Shard};
pub(crate) use value::one_of;

/// The version of the wire format that this build reads and writes.
pub const VERSION: u32 = 1;

/// A job's metadata: any JSON object, echoed in the reply.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// The names of the attributes that travel beside a message's body.
pub mod attribute {
    /// `application/json`.
    pub const CONTENT_TYPE: &str = "content-type";
    /// The wire format's version.
    pub const VERSION: &str = "inferq-version";
    /// The job's id.
    pub const JOB_ID: &str = "inferq-job-id";
    /// The submission whose route the reply takes.
    pub const SUBMISSION: &str = "inferq-submission";
    /// The number of items.
    pub const ITEMS: &str = "inferq-items";
    /// The estimated number of tokens.
    pub const TOKENS: &str = "inferq-tokens";
    /// When the job was published, in milliseconds since 1970.
    pub const PUBLISHED_AT: &str = "inferq-published-at";
    /// The attempt, where the broker itself keeps none.
    pub const ATTEMPT: &str = "inferq-attempt";
    /// Over AMQP: where the client wants the reply, its `reply_to`.
    pub const AMQP_REPLY_TO: &str = "amqp-reply-to";
    /// Over AMQP: the client's own number for the job, its `correlation_id`.
    pub const AMQP_CORRELATION_ID: &str = "amqp-correlation-id";
    /// W3C trace context: the trace, and the span that the message follows.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context: what tracing systems keep beside that.
    pub const TRACESTATE: &str = "tracestate";
    /// On shards: the job that it is a piece of.
    pub const PARENT: &str = "inferq-parent";
    /// On replies: how the job ended.
    pub const STATUS: &str = "inferq-status";
    /// On dead letters: why.
    pub const DEAD_REASON: &str = "inferq-dead-reason";
    /// On dead letters: the queue they come from.
    pub const DEAD_QUEUE: &str = "inferq-dead-queue";
    /// On dead letters: when they were set aside, in milliseconds since 1970.
    pub const DEAD_AT: &str = "inferq-dead-at";
    /// On dead letters: the attempt that set them aside.
    pub const DEAD_ATTEMPT: &str = "inferq-dead-attempt";
}

/// What a message may hold. Every limit is named in the error of the message that passes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A job's body, in bytes.
    pub body_bytes: usize,
    /// A job's inputs.
    pub items: usize,
    /// The text of one input, in bytes of UTF-8.
    pub input_bytes: usize,
    /// A job's metadata, in bytes of JSON.
    pub metadata_bytes: usize,
    /// Arrays and objects within one another.
    pub nesting: usize,
    /// A reply's body, in bytes.
    pub reply_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            items: 4096,
            input_bytes: 1 << 20,
            metadata_bytes: 4 << 10,
            nesting: 32,
            reply_bytes: 8 << 20,
        }
    }
}

/// A job's id, the key of idempotence: 1 to 128 of `A-Za-z0-9._:-`, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// The longest id, in characters.
    pub const LENGTH_MAX: usize = 128;

    /// Checks an id.
    ///
    /// # Errors
    /// What is wrong with it, as a fragment.
    pub fn new(id: impl Into<String>) -> Result<Self, String> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if id.is_empty() || id.len() > Self::LENGTH_MAX {
            return Err(format!("an id must have 1 to {} characters, this one has {}", Self::LENGTH_MAX, id.len()));
        }
        if id == "." || id == ".." || !id.bytes().all(allowed) {
            return Err("an id must be made of A-Z a-z 0-9 . _ : - and not be . or ..".to_owned());
        }
        Ok(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a producer publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The key of idempotence.
    pub id: JobId,
    /// The model that must run it; absent: whichever the queue's workers have.
    pub model: Option<String>,
    /// What to run.
    pub inputs: Inputs,
    /// How to run it.
    pub parameters: Parameters,
    /// Where the reply goes; absent: the submission's route, else the queue's default results.
    pub reply_to: Option<ReplyTo>,
    /// After this instant nobody wants the answer.
    pub deadline: Option<Timestamp>,
    /// Echoed in the reply.
    pub metadata: Metadata,
}

/// A job's inputs: exactly one of the two on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// `inputs`: one or more items.
    Items(Vec<Item>),
    /// `input_uri`: an object with one item a line.
    Uri(String),
    /// `input_uri` and `shard`: a piece of such an object. Workers publish these for one another.
    Shard {
        /// The object.
        uri: String,
        /// Which piece of it.
        shard: Shard,
    },
}

/// One input of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The submitter's own id; absent: `<job id>/<index>`. Pairs have none of their own.
    pub id: Option<String>,
    /// What the model reads.
    pub input: Input,
}

/// What a model reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One text.
    Text(String),
    /// A query and a passage, for cross-encoders.
    Pair(String, String),
}

impl Item {
    /// The longest item id, in bytes.
    pub const ID_BYTES_MAX: usize = 512;
}

impl Input {
    /// The size of the text or texts, in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Pair(query, passage) => query.len() + passage.len(),
        }
    }
}

/// How a job's items are run and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Cut what is longer than the model reads; otherwise such an item is an error.
    pub truncate: bool,
    /// Scale embeddings to length 1.
    pub normalize: bool,
    /// Keep only the first so many numbers of an embedding; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// How embeddings travel.
    pub encoding: Encoding,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { truncate: true, normalize: true, dimensions: None, encoding: Encoding::Float }
    }
}

/// How embeddings travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// JSON numbers.
    #[default]
    Float,
    /// A base64 string of little-endian f32.
    Base64,
}

impl<'de> Deserialize<'de> for Encoding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, &[("float", Self::Float), ("base64", Self::Base64)])
    }
}

/// Where a job asks its reply to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// A queue of the same broker, where the operator allows it.
    Queue(String),
    /// An object `{prefix}{id}.jsonl` or `.parquet`, where the operator allows the prefix.
    Bucket {
        /// The prefix, ending in `/`.
        prefix: String,
        /// The object's format.
        format: ObjectFormat,
    },
}

impl ReplyTo {
    /// The prefix beneath which results are put, if they are asked for in a bucket.
    pub fn prefix(&self) -> Option<&str> {
        match self {
            Self::Queue(_) => None,
            Self::Bucket { prefix, .. } => Some(prefix),
        }
    }
}

impl Serialize for ReplyTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Queue(queue) => map.serialize_entry("queue", queue)?,
            Self::Bucket { prefix, format } => {
                map.serialize_entry("uri", prefix)?;
                map.serialize_entry("format", format)?;
            }
        }
        map.end()
    }
}

/// The format of a reply that is an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectFormat {
    /// One JSON object an item and line.
    #[default]
    Jsonl,
    /// One row an item.
    Parquet,
}

impl ObjectFormat {
    /// What the names of such objects end in.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

impl<'de> Deserialize<'de> for ObjectFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, &[("jsonl", Self::Jsonl), ("parquet", Self::Parquet)])
    }
}

/// Why a message is no job: what, where, and which limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// What kind of fault it is.
    pub kind: DecodeErrorKind,
    /// A sentence for the submitter.
    pub message: String,
    /// The job's id, if it could be read before the fault.
    pub id: Option<JobId>,
}

/// The kinds of fault in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// Not a UTF-8 JSON object, or one that names a field twice.
    Malformed,
    /// A field is missing or wrong.
    Invalid,
    /// A limit is passed.
    TooLarge,
    /// A version that this build does not know; another worker may.
    Version,
}

impl DecodeErrorKind {
    /// The code of the reply that names this fault.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::TooLarge => "limit_exceeded",
            Self::Version => "unsupported_version",
        }
    }
}

/// What a job's JSON has beside its items, and an item beside its texts, about.
const ENVELOPE_BYTES: usize = 256;
const ITEM_BYTES: usize = 24;

impl Job {
    /// The job as UTF-8 JSON.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes_about());
        serde_json::to_writer(&mut body, self).expect("a job has only string keys");
        body
    }

    /// About how long its JSON is, so that the buffer does not grow step by step.
    fn bytes_about(&self) -> usize {
        let Inputs::Items(items) = &self.inputs else { return ENVELOPE_BYTES };
        let of_item = |item: &Item| {
            let input = match &item.input {
                Input::Text(text) => text.len(),
                Input::Pair(query, passage) => query.len() + passage.len(),
            };
            item.id.as_ref().map_or(0, String::len) + input + ITEM_BYTES
        };
        ENVELOPE_BYTES + items.iter().map(of_item).sum::<usize>()
    }

    /// Reads a job. Needs at most a few times the memory of the body, which `limits` bounds before anything is read.
    ///
    /// # Errors
    /// When the bytes are no job of this version or pass a limit.
    pub fn decode(body: &[u8], limits: &Limits) -> Result<Self, DecodeError> {
        decode::job(body, limits)
    }

    /// How many items it says it has: inline, or in its shard.
    pub fn items(&self) -> usize {
        match &self.inputs {
            Inputs::Items(items) => items.len(),
            Inputs::Uri(_) => 0,
            Inputs::Shard { shard, .. } => shard.items as usize,
        }
    }
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (&self.id, &self.input) {
            (None, Input::Text(text)) => serializer.serialize_str(text),
            (Some(id), Input::Text(text)) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("id", id)?;
                map.serialize_entry("text", text)?;
                map.end()
            }
            (_, Input::Pair(query, passage)) => {
                let mut seq = serializer.serialize_seq(Some(2))?;
                seq.serialize_element(query)?;
                seq.serialize_element(passage)?;
                seq.end()
            }
        }
    }
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", &VERSION)?;
        map.serialize_entry("id", &self.id)?;
        if let Some(model) = &self.model {
            map.serialize_entry("model", model)?;
        }
        match &self.inputs {
            Inputs::Items(items) => map.serialize_entry("inputs", items)?,
            Inputs::Uri(uri) => map.serialize_entry("input_uri", uri)?,
            Inputs::Shard { uri, shard } => {
                map.serialize_entry("input_uri", uri)?;
                map.serialize_entry("shard", shard)?;
            }
        }
        if self.parameters != Parameters::default() {
            map.serialize_entry("parameters", &self.parameters)?;
        }
        if let Some(reply_to) = &self.reply_to {
            map.serialize_entry("reply_to", reply_to)?;
        }
        if let Some(deadline) = &self.deadline {
            map.serialize_entry("deadline", deadline)?;
        }
        if !self.metadata.is_empty() {
            map.serialize_entry("metadata", &self.metadata)?;
        }
        map.end()
    }
}
