//! The reply to a job, wire format version 1: one result or one error per item in input order, or one error for the
//! whole job.
//!
//! In: a reply's bytes. Out: a [`Reply`] whose every result is one of embedding, labels and error. Pure:
//! [`Reply::encode`] and [`Reply::decode`] are each other's inverse, to the last bit of every number. Unknown fields are
//! ignored. `docs/reply.schema.json` says the same as a schema.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::job::{JobId, Metadata, VERSION, clipped, one_of};

#[cfg(test)]
mod tests;

/// What the submitter gets for one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The wire format's version, always 1.
    pub version: u32,
    /// The job's id.
    pub id: JobId,
    /// How the job as a whole ended.
    pub status: Status,
    /// The name of the model that ran, or would have run, the job.
    pub model: String,
    /// What exactly computed the results: `sha256:` and the digest of the model's files.
    pub revision: String,
    /// One entry an item, in input order; empty when `error` says why the job as a whole was not run.
    pub results: Vec<ItemResult>,
    /// Why the job as a whole was not run.
    pub error: Option<ReplyError>,
    /// Where the results lie, when they went to a bucket.
    pub output_uri: Option<String>,
    /// What was counted.
    pub usage: Usage,
    /// Where the time went.
    pub timings_ms: Timings,
    /// The name of the worker that answered.
    pub worker: String,
    /// The attempt that this reply comes from; 1 is the first.
    pub attempt: u32,
    /// The job's metadata, unchanged.
    pub metadata: Metadata,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every item has a result.
    Succeeded,
    /// Some items have a result, some an error.
    Partial,
    /// No item has a result.
    Failed,
    /// No worker could run the job as it is.
    Rejected,
    /// The job's deadline passed first.
    Expired,
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use Status::{Expired, Failed, Partial, Rejected, Succeeded};
        one_of(deserializer, &[Succeeded, Partial, Failed, Rejected, Expired].map(|status| (status.as_str(), status)))
    }
}

impl Status {
    /// The name used on the wire and in the attribute `inferq-status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }

    /// Whether a reply of this status replaces one of `other` for the same job: `succeeded` over `partial` over the rest.
    pub fn is_better_than(self, other: Self) -> bool {
        let rank = |status| match status {
            Self::Succeeded => 0,
            Self::Partial => 1,
            Self::Failed | Self::Rejected | Self::Expired => 2,
        };
        rank(self) < rank(other)
    }
}

/// The answer to one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The item's own id, or `<job id>/<index>`.
    pub id: String,
    /// The item's place in the job, from 0.
    pub index: u32,
    /// The text's embedding, of the model's or the job's `dimensions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
    /// A classifier's scores, best first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Label>>,
    /// Why this item has no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyError>,
    /// Tokens the model read, special ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

/// One score of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The label's name in the model's `config.json`.
    pub label: String,
    /// Its score, between 0 and 1.
    pub score: f32,
}

/// A vector in the encoding that the job asked for. JSON has no infinities and no NaN: numbers must be finite.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedding {
    /// JSON numbers.
    Float(Vec<f32>),
    /// A base64 string of little-endian f32.
    Base64(Vec<f32>),
}

impl Embedding {
    /// The numbers, whichever way they travel.
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Float(values) | Self::Base64(values) => values,
        }
    }
}

impl Serialize for Embedding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Float(values) => values.serialize(serializer),
            Self::Base64(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Embedding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EmbeddingVisitor)
    }
}

struct EmbeddingVisitor;

impl<'de> Visitor<'de> for EmbeddingVisitor {
    type Value = Embedding;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an array of numbers or a base64 string of little-endian f32")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Embedding, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Embedding::Float(values))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Embedding, E> {
        let bytes = BASE64_STANDARD.decode(text).map_err(E::custom)?;
        let (chunks, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(E::custom("a base64 embedding must hold a multiple of 4 bytes"));
        }
        Ok(Embedding::Base64(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()))
    }
}

/// An error a submitter can act on: a stable code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// A stable word, listed in docs/operations.md.
    pub code: String,
    /// What is wrong, the limit, and the way out.
    pub message: String,
}

impl ReplyError {
    /// An error of this code and message.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// What a job cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Items in the job.
    pub items: u32,
    /// Tokens of the items that ran.
    pub tokens: u64,
}

/// Where a job's time went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// From publishing to receiving, by the two machines' clocks.
    pub queued: f64,
    /// Decoding, checking, tokenising.
    pub intake: f64,
    /// Waiting for a batch: the longest of the items.
    pub batch: f64,
    /// Running in the engine: the longest of the items.
    pub engine: f64,
}

/// Why bytes are no reply.
#[derive(Debug, thiserror::Error)]
pub enum ReplyDecodeError {
    /// Not the JSON of a reply.
    #[error("not a reply: {0}")]
    Malformed(String),
    /// A version this build does not read.
    #[error("reply version {0} is not supported; this build reads version {VERSION}")]
    Version(u64),
}

/// What a reply's JSON has beside its results, a result beside its numbers, and a number with its comma, about.
const ENVELOPE_BYTES: usize = 768;
const RESULT_BYTES: usize = 96;
const FLOAT_BYTES: usize = 13;

impl Reply {
    /// The reply as UTF-8 JSON.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes_about());
        serde_json::to_writer(&mut body, self).expect("a reply has only string keys");
        body
    }

    /// About how long its JSON is, so that the buffer does not grow step by step.
    fn bytes_about(&self) -> usize {
        let numbers = |result: &ItemResult| match &result.embedding {
            Some(Embedding::Float(values)) => values.len() * FLOAT_BYTES,
            Some(Embedding::Base64(values)) => (values.len() * size_of::<f32>()).div_ceil(3) * 4,
            None => 0,
        };
        ENVELOPE_BYTES + self.results.iter().map(|result| RESULT_BYTES + numbers(result)).sum::<usize>()
    }

    /// Reads a reply. Needs a few times the memory of the body, which the caller bounds.
    ///
    /// # Errors
    /// When the bytes are not a reply, naming the field, or are of another version.
    pub fn decode(body: &[u8]) -> Result<Self, ReplyDecodeError> {
        let reply: Self = serde_json::from_slice(body).or_else(|_| decode_by_path(body))?;
        if reply.version != VERSION {
            return Err(ReplyDecodeError::Version(reply.version.into()));
        }
        match reply.results.iter().position(|result| !result.is_one_thing()) {
            None => Ok(reply),
            Some(index) => {
                let message = format!("results[{index}]: must have exactly one of embedding, labels and error");
                Err(ReplyDecodeError::Malformed(message))
            }
        }
    }
}

impl ItemResult {
    fn is_one_thing(&self) -> bool {
        let things = [self.embedding.is_some(), self.labels.is_some(), self.error.is_some()];
        things.into_iter().filter(|is_there| *is_there).count() == 1
    }
}

/// Reads a reply and keeps the path to each field, so that an error can name one. Keeping it for every number of an
/// embedding costs time, so this is only for bodies that are wrong.
fn decode_by_path(body: &[u8]) -> Result<Reply, ReplyDecodeError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let reply = serde_path_to_error::deserialize(&mut json).map_err(|e| refusal(body, e.to_string()))?;
    json.end().map_err(|e| refusal(body, e.to_string()))?;
    Ok(reply)
}

/// Why a body is no reply: of a version that may well look different, or else what `message` says.
fn refusal(body: &[u8], message: String) -> ReplyDecodeError {
    #[derive(Deserialize)]
    struct Head {
        version: u64,
    }
    match serde_json::from_slice(body) {
        Ok(Head { version }) if version != u64::from(VERSION) => ReplyDecodeError::Version(version),
        _ => ReplyDecodeError::Malformed(clipped(message)),
    }
}
