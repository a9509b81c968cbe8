//! What every job of a submission says besides its items, and how the input is read: the flags that `submit` and `run`
//! share.
//!
//! In: flags. Out: a [`Recipe`] whose [`Recipe::message_of`] makes the same job from the same chunk every time, and the
//! parameters that the ledger compares. It reads no clock: the instant is an argument.

use std::time::Duration;

use bytes::Bytes;
use inferq_shared::broker::{Attributes, Message};
use inferq_shared::bucket::Uri;
use inferq_shared::job::{
    Encoding, Inputs, Item, Job, JobId, Limits, Metadata, Parameters, ReplyTo, VERSION, attribute,
};
use jiff::Timestamp;
use serde_json::json;

use crate::chunk::{ChunkLimits, Work};
use crate::ledger::{REPLY_URI, job_id};
use crate::outcome::Error;
use crate::source::{Columns, Fields, Format, Reading, ReadyJob, Source};
use crate::tokens::TokenCounter;

/// How the input is read.
#[derive(Debug, Clone, clap::Args)]
pub struct InputArgs {
    /// What to read, in this order: paths, patterns in quotes ('in/*.jsonl'), objects (gs://, s3://), or - for stdin.
    #[arg(long, env = "INFERQ_INPUT", value_name = "PATH|PATTERN|URI|-", required = true, num_args = 1..)]
    pub input: Vec<String>,
    /// The input's format; told from the file's extension when absent (.jsonl, .ndjson, .txt, .parquet). Lines may be
    /// compressed (.gz, .zst).
    #[arg(long, env = "INFERQ_FORMAT", value_enum)]
    pub format: Option<Format>,
    /// The field of a JSON object that holds the text.
    #[arg(long, env = "INFERQ_TEXT_FIELD", value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// The field of a JSON object that holds the item's id, a string or an integer. It need not be there.
    #[arg(long, env = "INFERQ_ID_FIELD", value_name = "NAME", default_value = "id")]
    pub id_field: String,
    /// The column of a Parquet file that holds the text; two columns hold a query and a passage.
    #[arg(long, env = "INFERQ_COLUMN", value_name = "NAME", num_args = 1..=2, default_value = "text")]
    pub column: Vec<String>,
    /// The column of a Parquet file that holds the item's id, a string or an integer.
    #[arg(long, env = "INFERQ_ID_COLUMN", value_name = "NAME")]
    pub id_column: Option<String>,
    /// What a line that is no item does: skip leaves an error in its place in the output, fail refuses the whole input
    /// before anything is published (from stdin: when it comes).
    #[arg(long, env = "INFERQ_ON_BAD_INPUT", value_enum, default_value = "skip")]
    pub on_bad_input: OnBadInput,
}

/// What a bad line does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnBadInput {
    /// Refuse the input.
    Fail,
    /// Leave an error in its place.
    Skip,
}

/// What every job asks for.
#[derive(Debug, Clone, clap::Args)]
pub struct JobArgs {
    /// Lines of the input in one job. More make less traffic, fewer spread over more workers.
    #[arg(long, env = "INFERQ_ITEMS_PER_JOB", value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub items_per_job: u32,
    /// The model that must run the jobs, by its name; whichever the queue's workers have when absent.
    #[arg(long, env = "INFERQ_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,
    /// Cut texts that are longer than the model reads; the default.
    #[arg(long, overrides_with = "no_truncate")]
    pub truncate: bool,
    /// Answer a text that is longer than the model reads with an error, instead of cutting it.
    #[arg(long, env = "INFERQ_NO_TRUNCATE")]
    pub no_truncate: bool,
    /// Leave embeddings as the model makes them, instead of scaling them to length 1.
    #[arg(long, env = "INFERQ_NO_NORMALIZE")]
    pub no_normalize: bool,
    /// Keep only the first N numbers of an embedding.
    #[arg(long, env = "INFERQ_DIMENSIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub dimensions: Option<u32>,
    /// An instant after which nobody wants the answers, like 2026-12-01T12:00:00Z.
    #[arg(long, env = "INFERQ_DEADLINE", value_name = "TIME", conflicts_with = "deadline_s")]
    pub deadline: Option<Timestamp>,
    /// Seconds after a job's publishing when nobody wants its answer any more.
    #[arg(long, env = "INFERQ_DEADLINE_S", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub deadline_s: Option<u32>,
    /// A JSON object of at most 4 KiB that comes back with every reply.
    #[arg(long, env = "INFERQ_METADATA", value_name = "JSON", value_parser = metadata)]
    pub metadata: Option<Metadata>,
}

/// Checked: what every job of a submission says besides its items.
#[derive(Debug, Clone)]
pub struct Recipe {
    model: Option<String>,
    parameters: Parameters,
    deadline: Option<Timestamp>,
    deadline_after: Option<Duration>,
    metadata: Metadata,
    entries: usize,
    tokens: TokenCounter,
    reply_to: Option<ReplyTo>,
}

impl InputArgs {
    /// The input as a stream.
    ///
    /// # Errors
    /// When an input can't be one.
    pub fn source(&self) -> Result<Source, Error> {
        if self.column.len() > 2 {
            return Err(Error::Usage("--column takes one column, or two for pairs".to_owned()));
        }
        let (text, id) = (self.text_field.clone(), self.id_field.clone());
        let fields = Fields { text, id, hint: "; --text-field names another one" };
        let columns = Columns { input: self.column.clone(), id: self.id_column.clone() };
        Ok(Source::new(&self.input, Reading { format: self.format, fields, columns })?)
    }

    /// The one object that is read, if it is one.
    ///
    /// # Errors
    /// When there are several inputs, an address among them, or the address names no object.
    pub fn object(&self) -> Result<Option<Uri>, Error> {
        let is_address = |input: &&String| input.contains("://");
        match &self.input[..] {
            [input] if is_address(&input) => {
                let uri = Uri::parse(input).map_err(|why| Error::Usage(format!("input {input:?} {why}")))?;
                if uri.is_prefix() {
                    return Err(Error::Usage(format!("input {uri} names a folder: name one object")));
                }
                Ok(Some(uri))
            }
            inputs => match inputs.iter().find(is_address) {
                Some(uri) => {
                    Err(Error::Usage(format!("input {uri:?} must be the only one: each object is a job of its own")))
                }
                None => Ok(None),
            },
        }
    }

    /// The one file that is read, if it is one: what a ledger can be named after.
    pub fn single_file(&self) -> Option<&str> {
        match &self.input[..] {
            [input] if input != "-" && std::path::Path::new(input).exists() => Some(input),
            _ => None,
        }
    }
}

impl JobArgs {
    /// Checks that nothing is asked of jobs that come whole.
    ///
    /// # Errors
    /// When a flag would change what they say.
    pub fn check_for(&self, format: Option<Format>) -> Result<(), Error> {
        let given = [
            ("--model-name", self.model_name.is_some()),
            ("--no-truncate", self.no_truncate),
            ("--no-normalize", self.no_normalize),
            ("--dimensions", self.dimensions.is_some()),
            ("--deadline", self.deadline.is_some()),
            ("--deadline-s", self.deadline_s.is_some()),
            ("--metadata", self.metadata.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given && format == Some(Format::Jobs)) {
            Some((flag, _)) => Err(Error::Usage(format!(
                "{flag} does not go with --format jobs, which are published as they stand: write it into each job"
            ))),
            None => Ok(()),
        }
    }
}

impl Recipe {
    /// From the flags, with the encoding that embeddings travel in.
    pub fn new(args: &JobArgs, encoding: Encoding) -> Self {
        let parameters = Parameters {
            truncate: !args.no_truncate,
            normalize: !args.no_normalize,
            dimensions: args.dimensions,
            encoding,
        };
        Self {
            model: args.model_name.clone(),
            parameters,
            deadline: args.deadline,
            deadline_after: args.deadline_s.map(|seconds| Duration::from_secs(seconds.into())),
            metadata: args.metadata.clone().unwrap_or_default(),
            entries: args.items_per_job as usize,
            tokens: TokenCounter::default(),
            reply_to: None,
        }
    }

    /// The same, with results asked for elsewhere than in the reply.
    pub fn replying_to(self, reply_to: Option<ReplyTo>) -> Self {
        Self { reply_to, ..self }
    }

    /// The same, with tokens counted so.
    pub fn counting(self, tokens: TokenCounter) -> Self {
        Self { tokens, ..self }
    }

    /// What a ledger compares: everything that changes a job or its results. A deadline does not.
    pub fn compared(&self, input: &InputArgs) -> serde_json::Map<String, serde_json::Value> {
        let named = [
            ("items-per-job", json!(self.entries)),
            ("model-name", json!(self.model)),
            ("no-truncate", json!(!self.parameters.truncate)),
            ("no-normalize", json!(!self.parameters.normalize)),
            ("dimensions", json!(self.parameters.dimensions)),
            ("encoding", json!(self.parameters.encoding)),
            ("metadata", json!(self.metadata)),
            ("text-field", json!(input.text_field)),
            ("id-field", json!(input.id_field)),
            ("column", json!(input.column.join(" "))),
            ("id-column", json!(input.id_column)),
            (REPLY_URI, json!(self.reply_to.as_ref().and_then(ReplyTo::prefix))),
            ("reply-format", json!(self.reply_format())),
        ];
        named.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn reply_format(&self) -> Option<&str> {
        match &self.reply_to {
            Some(ReplyTo::Bucket { format, .. }) => Some(format.extension()),
            _ => None,
        }
    }

    /// What one job may hold: its body also has room for all that is not items.
    pub fn chunk_limits(&self) -> ChunkLimits {
        let deadline_bytes = 64;
        let envelope = self.message("", &longest_id(), Vec::new(), Timestamp::MAX).body.len() + deadline_bytes;
        let bytes = Limits::default().body_bytes.saturating_sub(envelope);
        ChunkLimits { entries: self.entries, bytes }
    }

    /// The job of a chunk, as published at `now`; none when the chunk has only bad lines.
    pub fn message_of(&self, submission: &str, number: u64, work: Work, now: Timestamp) -> Option<Message> {
        match work {
            Work::Items(items) if items.is_empty() => None,
            Work::Items(items) => Some(self.message(submission, &job_id(submission, number), items, now)),
            Work::Job(ready) => Some(self.ready_message(submission, *ready)),
        }
    }

    /// A job that came whole: its body as it stands.
    fn ready_message(&self, submission: &str, ready: ReadyJob) -> Message {
        let ReadyJob { job, body } = ready;
        let items = match &job.inputs {
            Inputs::Items(items) => &items[..],
            Inputs::Uri(_) | Inputs::Shard { .. } => &[],
        };
        Message { attributes: self.attributes(submission, &job.id, items), body }
    }

    fn attributes(&self, submission: &str, id: &JobId, items: &[Item]) -> Attributes {
        let attributes = [
            (attribute::CONTENT_TYPE, "application/json".to_owned()),
            (attribute::VERSION, VERSION.to_string()),
            (attribute::JOB_ID, id.to_string()),
            (attribute::SUBMISSION, submission.to_owned()),
            (attribute::ITEMS, items.len().to_string()),
            (attribute::TOKENS, self.tokens.count(items).to_string()),
        ];
        attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The job that carries `items`, as published at `now`.
    pub fn message(&self, submission: &str, id: &JobId, items: Vec<Item>, now: Timestamp) -> Message {
        let attributes = self.attributes(submission, id, &items);
        Message { body: self.job(id, Inputs::Items(items), now), attributes }
    }

    /// The job whose items are the lines of the object at `uri`, of so many `bytes`, as published at `now`.
    pub fn claim(&self, submission: &str, id: &JobId, (uri, bytes): (&str, u64), now: Timestamp) -> Message {
        let mut attributes = self.attributes(submission, id, &[]);
        attributes.insert(attribute::TOKENS.to_owned(), bytes.div_ceil(4).to_string());
        Message { body: self.job(id, Inputs::Uri(uri.to_owned()), now), attributes }
    }

    fn job(&self, id: &JobId, inputs: Inputs, now: Timestamp) -> Bytes {
        let job = Job {
            id: id.clone(),
            model: self.model.clone(),
            inputs,
            parameters: self.parameters,
            reply_to: self.reply_to.clone(),
            deadline: self.deadline.or_else(|| self.deadline_after.and_then(|after| now.checked_add(after).ok())),
            metadata: self.metadata.clone(),
        };
        Bytes::from(job.encode())
    }
}

fn longest_id() -> JobId {
    JobId::new("x".repeat(JobId::LENGTH_MAX)).expect("the longest id is an id")
}

fn metadata(text: &str) -> Result<Metadata, String> {
    let metadata: Metadata = serde_json::from_str(text).map_err(|error| format!("must be a JSON object: {error}"))?;
    let (bytes, limit) = (serde_json::to_vec(&metadata).map_or(0, |json| json.len()), Limits::default().metadata_bytes);
    if bytes > limit {
        return Err(format!("has {bytes} bytes, the limit is {limit}"));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use inferq_shared::job::Input;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        job: JobArgs,
    }

    fn recipe(flags: &[&str]) -> Recipe {
        let flags = Flags::try_parse_from([&["x"], flags].concat()).expect("good flags");
        Recipe::new(&flags.job, Encoding::Base64)
    }

    fn item(bytes: usize) -> Item {
        Item { id: None, input: Input::Text("\u{1}".repeat(bytes)) }
    }

    #[test]
    fn a_job_of_the_largest_chunk_is_within_the_limit_of_a_body() {
        let metadata = format!("{{\"a\":\"{}\"}}", "m".repeat(4000));
        let recipe = recipe(&["--model-name", "some-model", "--metadata", &metadata, "--dimensions", "7"]);
        let limit = recipe.chunk_limits().bytes;
        // Control characters take six bytes as JSON; quotes and a comma take three.
        let items = vec![item((limit - 3) / 6 / 2), item((limit - 9) / 6 / 2)];
        let id = JobId::new("s-000001").expect("an id");
        let body = recipe.message("s", &id, items, Timestamp::UNIX_EPOCH).body;
        assert!(body.len() <= Limits::default().body_bytes && body.len() > (8 << 20) - 1024, "{}", body.len());
    }

    #[test]
    fn a_job_says_what_the_flags_say() {
        let recipe = recipe(&["--no-truncate", "--no-normalize", "--dimensions", "7", "--deadline-s", "60"]);
        let id = JobId::new("s-000001").expect("an id");
        let message = recipe.message("s", &id, vec![item(9), item(0)], Timestamp::UNIX_EPOCH);
        let job = Job::decode(&message.body, &Limits { input_bytes: 9, ..Limits::default() }).expect("a job");
        let expected =
            Parameters { truncate: false, normalize: false, dimensions: Some(7), encoding: Encoding::Base64 };
        assert_eq!(job.parameters, expected);
        assert_eq!(job.deadline, Timestamp::from_second(60).ok());
        let expected = [("inferq-items", "2"), ("inferq-tokens", "3"), ("inferq-job-id", "s-000001")];
        for (name, value) in expected {
            assert_eq!(message.attributes.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn flags_out_of_range_are_refused() {
        for flags in [
            ["--items-per-job", "0"],
            ["--items-per-job", "5000"],
            ["--dimensions", "0"],
            ["--metadata", "[1]"],
            ["--deadline", "tomorrow"],
            ["--deadline-s", "0"],
        ] {
            assert!(Flags::try_parse_from([&["x"][..], &flags].concat()).is_err(), "{flags:?}");
        }
    }
}
