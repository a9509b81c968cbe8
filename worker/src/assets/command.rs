//! `inferq-worker assets …`: the flags, what can go wrong, and the exit codes.
//!
//! In: flags. Out: lines on stdout, what went wrong in one line on stderr, an exit code. What each command does is in
//! `look` and `sync`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use inferq_shared::bucket::{BucketError, UriError};

use super::disk::DiskError;
use super::{AssetsError, look, sync};
use crate::engine::EngineError;
use crate::engine::burn::LoadError;

/// The end of `assets --help`.
pub const HELP: &str = "\
From a folder as Hugging Face lays it out to a volume that workers mount:
  inferq-worker assets manifest ./all-MiniLM-L6-v2 --canary
  inferq-worker assets sync ./all-MiniLM-L6-v2 /models/minilm
  inferq-worker --model /models/minilm --queue …
  inferq-worker assets prune /models/minilm --keep 2 --yes

Exit codes:
  0   done
  1   a file is missing, damaged or changed while it was read; no room; a disk or bucket failed
  64  usage: a wrong flag, no model at SRC";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a model's manifest: the name, size and digest of every file, and a canary
    #[command(after_help = "\
The canary is a text with the embedding that the model gives it now. A worker takes no job before
it has found the same.

Example:
  inferq-worker assets manifest ./all-MiniLM-L6-v2 --canary")]
    Manifest(ManifestArgs),
    /// Copy a model to a root of models, and make it the current one
    #[command(after_help = SYNC_HELP)]
    Sync(SyncArgs),
    /// Compare every byte of a model with its manifest
    #[command(after_help = "\
Example:
  inferq-worker assets verify /models/minilm")]
    Verify(VerifyArgs),
    /// List the revisions in a root of models, a folder; * marks the current one
    List(ListArgs),
    /// Remove old revisions from a root of models, a folder, and what interrupted copies have left
    #[command(after_help = "\
The current revision is never removed. A worker holds its model in memory, so it misses no file of
an older one.

Example:
  inferq-worker assets prune /models/minilm --keep 2 --yes")]
    Prune(PruneArgs),
}

const SYNC_HELP: &str = "\
SRC is a model's directory, with or without a manifest (a snapshot in a cache of Hugging Face's
will do), or a root of models, whose current one is taken. DST is a root: the copy becomes
DST/sha256-…, named by the digest of its files, and DST/current points to it once it is whole.
Interrupted, the same command goes on where it was. Two at once wait for each other.
What is in a folder already is read and compared; a damaged copy is replaced by a whole one.
Either may be a folder, and either, but not both, an address in a bucket: gs://…, s3://…, with
endpoint and credentials in the usual variables (GOOGLE_APPLICATION_CREDENTIALS, AWS_…).

To go back to an older revision: ln -sfnT sha256-… DST/current

Example:
  inferq-worker assets sync ./all-MiniLM-L6-v2 gs://models/minilm
  inferq-worker assets sync gs://models/minilm /models/minilm";

/// The flags of `assets manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// The model's directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The name that jobs call the model by [default: that of the manifest before, else the directory's]
    #[arg(long, env = "INFERQ_MODEL_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Run the model on a text and keep its embedding, to be compared with before a worker is ready
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = CANARY)]
    pub canary: Option<String>,
}

/// What a canary says if nobody says otherwise: letters, digits, marks and another alphabet.
const CANARY: &str = "A canary of 18 grams, kept below the surface: если она поёт, the air is good.";

/// The flags of `assets sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Where the model comes from
    #[arg(value_name = "SRC")]
    pub source: String,
    /// The root of models that it goes to
    #[arg(value_name = "DST")]
    pub destination: String,
    /// The name that jobs call the model by [default: the manifest's, else the directory's]
    #[arg(long, env = "INFERQ_MODEL_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Take a copy that is there already for whole if its files have the right sizes, without reading them
    #[arg(long, env = "INFERQ_TRUST_SIZES")]
    pub trust_sizes: bool,
}

/// The flags of `assets verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The model's directory, or a root of models, whose current one is verified
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// The flags of `assets list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The root of models, a folder
    #[arg(value_name = "ROOT", value_parser = folder)]
    pub root: PathBuf,
}

/// The flags of `assets prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The root of models, a folder
    #[arg(value_name = "ROOT", value_parser = folder)]
    pub root: PathBuf,
    /// Revisions to keep: the current one, then the newest
    #[arg(long, value_name = "N", default_value = "2")]
    pub keep: NonZeroUsize,
    /// Remove; without it, only say what would be removed
    #[arg(long)]
    pub yes: bool,
}

/// Roots in buckets have their provider's tools and rules of their own for old objects.
fn folder(text: &str) -> Result<PathBuf, String> {
    match text.split_once("://") {
        Some((scheme, _)) => {
            Err(format!("{scheme}:// is no folder: list and remove its objects by the bucket's own tools"))
        }
        None => Ok(PathBuf::from(text)),
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Usage(String),
    /// A model's file can't be used.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A bucket failed.
    #[error(transparent)]
    Bucket(BucketError),
    /// The source changed while it was read.
    #[error("{0} changed while it was read: run the same command again")]
    Changed(String),
    /// The copy would not fit.
    #[error("{}: {needed} are needed, {free} are free: prune old revisions, or give it more room", root.display())]
    NoRoom {
        /// Where it should go.
        root: PathBuf,
        /// Bytes, for people.
        needed: String,
        /// Bytes, for people.
        free: String,
    },
    /// Files are not what the manifest says.
    #[error("{}: {damaged} of {files} files are damaged: run inferq-worker assets sync again", directory.display())]
    Damaged {
        /// Where they lie.
        directory: PathBuf,
        /// How many differ.
        damaged: usize,
        /// How many there are.
        files: usize,
    },
    /// The model can't be run to make a canary.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Why a model gave no canary.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It can't be loaded.
    #[error("failed to load the model: {0}")]
    Load(#[from] LoadError),
    /// It does not run.
    #[error("failed to run the model: {0}")]
    Run(#[from] EngineError),
}

impl From<BucketError> for Failure {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Changed { uri } => Self::Changed(uri.to_string()),
            error => Self::Bucket(error),
        }
    }
}

impl From<UriError> for Failure {
    fn from(error: UriError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Model(error.into())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Model(error.into())
    }
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Assets(AssetsError::Missing { .. }) => 64,
            _ => 1,
        }
    }
}

/// Runs one command.
///
/// # Errors
/// Why it did not do what it was asked to.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Manifest(args) => look::manifest(args),
        Command::Sync(args) => sync::sync(args).await,
        Command::Verify(args) => look::verify(args),
        Command::List(args) => look::list(args),
        Command::Prune(args) => look::prune(args),
    }
}

/// Says something on stdout.
pub(super) fn say(line: &str) -> Result<(), Failure> {
    let written = writeln!(std::io::stdout(), "{line}");
    written.map_err(|source| DiskError { path: PathBuf::from("stdout"), source }.into())
}
