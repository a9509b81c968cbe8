//! The engine on burn: loads a Hugging Face model directory as it is, for the devices that are to run it.
//!
//! In: a directory, devices, a precision, the number of replicas and of threads for each. Out: engines that share one copy
//! of the weights a device, the tokenizer, and what is known of the model. It never panics on a broken directory: every
//! error names the file, what is wrong and the way out.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inferq_shared::job::Input;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::replicas::{Reading, Target, cores, pool, replicas, targets};
use super::bert::BertConfig;
use super::device::{Place, Precision};
use super::faults::Fault;
use super::model::{KnownAnswer, Model};
pub use super::padded::Attention;
use super::pooling::Pooling;
use super::weights::WeightFiles;
use super::{Loaded, ModelInfo, ops};
use crate::assets::manifest::MANIFEST;
use crate::assets::{AssetsError, ModelDirectory};
use crate::tokenize::{TokenizeError, Tokenizer};

mod replicas;

/// Says how long the texts are that the model reads.
const SENTENCE: &str = "sentence_bert_config.json";

/// Whose operations compute a model on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Ours, written for the CPU.
    #[default]
    Own,
    /// burn's own, as on any other device: slower here, and there to compare with.
    Burn,
}

/// What to load, and how to run it.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The model's directory.
    pub directory: PathBuf,
    /// The model's name, if not the manifest's or the directory's.
    pub name: Option<String>,
    /// Where it runs: devices that are there, of one kind.
    pub places: Vec<Place>,
    /// In which numbers; a card's own choice is the fastest that it has, the processor's is 32 bits.
    pub precision: Option<Precision>,
    /// Engines that share the weights, on each device. By default one a core, or two a card, of which one packs and uploads
    /// its batch while the other's runs.
    pub replicas: Option<NonZeroUsize>,
    /// Threads that each of them computes with, on the processor.
    pub threads: NonZeroUsize,
    /// Whose operations the processor computes with.
    pub kernels: Kernels,
    /// How a card computes attention.
    pub attention: Attention,
    /// Tokens of a batch, padding included; a card finds its own.
    pub batch_tokens: Option<usize>,
    /// Where a card's kernels are kept between starts.
    pub cache: Option<PathBuf>,
    /// What goes wrong with the device, in tests.
    pub fault: Option<Fault>,
}

impl LoadOptions {
    /// The model in this directory on the processor, with one replica of one thread.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            name: None,
            places: vec![Place::Cpu],
            precision: None,
            replicas: Some(NonZeroUsize::MIN),
            threads: NonZeroUsize::MIN,
            kernels: Kernels::Own,
            attention: Attention::default(),
            batch_tokens: None,
            cache: None,
            fault: None,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// One of its files is missing, unreadable or not the manifest's.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// One of its files is not what it should be.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It is a model that this build can't run.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// What is asked for, and what would be supported.
        what: String,
    },
    /// The device is not there, or can't be used.
    #[error("{0}")]
    Device(String),
}

#[derive(Deserialize)]
struct ModelType {
    model_type: Option<String>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

/// Loads a model: its configuration, its tokenizer and its weights, the last two at once.
///
/// # Errors
/// When the directory does not hold a model that this build can run.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    let directory = ModelDirectory::open(&options.directory)?;
    directory.check_sizes()?;
    let config = read_config(&directory)?;
    let pooling = read_pooling(&directory)?;
    let (sentence, max_tokens) = read_lengths(&directory, &config)?;
    let dimensions = config.hidden_size;
    let targets = targets(options, &directory.revision())?;
    let loading = pool(cores())?;
    let (tokenizer, read) = loading.join(
        || read_tokenizer(&directory, max_tokens, &sentence),
        || read_models(&directory, &Reading { config, pooling, max_tokens }, &targets),
    );
    let (tokenizer, (mut models, phases)) = (tokenizer?, read?);
    for (model, target) in models.iter_mut().zip(&targets) {
        model.known.extend(read_canary(&directory, &tokenizer, dimensions, target.precision().tolerance())?);
    }
    let engines = replicas(models.into_iter().zip(targets), options)?;
    let info = ModelInfo {
        name: options.name.clone().unwrap_or_else(|| directory.name()),
        revision: directory.revision(),
        dimensions,
        max_tokens,
        device: options.places.iter().map(Place::to_string).collect::<Vec<_>>().join(","),
        reads_pairs: false,
    };
    tracing::debug!(
        read_ms = phases.read.as_secs_f64() * 1e3,
        convert_ms = phases.convert.as_secs_f64() * 1e3,
        duration_ms = started.elapsed().as_secs_f64() * 1e3,
        "model read and converted"
    );
    Ok(Loaded { engines, tokenizer, info })
}

/// Loads a model's tokenizer alone: what counts tokens as the model will.
///
/// # Errors
/// When the directory does not hold a model that this build can run.
pub fn load_tokenizer(directory: &Path) -> Result<Tokenizer, LoadError> {
    let directory = ModelDirectory::open(directory)?;
    let (sentence, max_tokens) = read_lengths(&directory, &read_config(&directory)?)?;
    read_tokenizer(&directory, max_tokens, &sentence)
}

/// Floating-point operations of the encoder for one token of a text of so many: products only, which is nearly all.
///
/// # Errors
/// When the directory does not hold a model that this build can run.
pub fn operations_a_token(directory: &Path, length: usize) -> Result<f64, LoadError> {
    Ok(read_config(&ModelDirectory::open(directory)?)?.operations_a_token(length))
}

/// How texts are read, and how many tokens the model reads.
fn read_lengths(directory: &ModelDirectory, config: &BertConfig) -> Result<(SentenceConfig, usize), LoadError> {
    let sentence: SentenceConfig = read_json_if_there(directory, SENTENCE)?.unwrap_or_default();
    let max_tokens = sentence.max_seq_length.unwrap_or(usize::MAX).min(config.max_position_embeddings);
    Ok((sentence, max_tokens))
}

fn read_config(directory: &ModelDirectory) -> Result<BertConfig, LoadError> {
    const NAME: &str = "config.json";
    let bytes = directory.read(NAME, "it describes the model: is this a Hugging Face model directory?")?;
    let unsupported = |what| LoadError::Unsupported { path: directory.path_of(NAME), what };
    let ModelType { model_type } = parse(directory, NAME, &bytes)?;
    match model_type.as_deref() {
        Some("bert") => {}
        Some(other) => return Err(unsupported(format!("model_type {other:?} is not supported; \"bert\" is"))),
        None => return Err(unsupported("no model_type; \"bert\" is supported".to_owned())),
    }
    let config: BertConfig = parse(directory, NAME, &bytes)?;
    config.check().map_err(unsupported)?;
    Ok(config)
}

/// The pooling that `modules.json` asks for, else that of `1_Pooling`, else, as in sentence-transformers, the mean.
fn read_pooling(directory: &ModelDirectory) -> Result<Pooling, LoadError> {
    const MODULES: &str = "modules.json";
    let unsupported = |name: &str, what| LoadError::Unsupported { path: directory.path_of(name), what };
    let modules: Option<Vec<Module>> = read_json_if_there(directory, MODULES)?;
    let mut name = "1_Pooling/config.json".to_owned();
    for module in modules.iter().flatten() {
        match module.kind.rsplit('.').next() {
            // What `normalize` does is asked for by each job.
            Some("Transformer" | "Normalize") => {}
            Some("Pooling") => name = format!("{}/config.json", module.path),
            _ => return Err(unsupported(MODULES, format!("a module of type {} is not supported", module.kind))),
        }
    }
    if modules.is_none() && !directory.has(&name) {
        return Ok(Pooling::Mean);
    }
    let json = directory.read(&name, "it says how a text's token vectors become one")?;
    Pooling::parse(&json).map_err(|what| unsupported(&name, what))
}

fn read_tokenizer(
    directory: &ModelDirectory,
    max_tokens: usize,
    sentence: &SentenceConfig,
) -> Result<Tokenizer, LoadError> {
    const NAME: &str = "tokenizer.json";
    let bytes = directory.read(NAME, "it turns text into tokens: save the model with a fast tokenizer")?;
    let malformed = |name, what| LoadError::Malformed { path: directory.path_of(name), what };
    Tokenizer::from_file(&bytes, max_tokens, sentence.do_lower_case).map_err(|error| match error {
        // The file that sets the limit is wrong, not the tokenizer.
        TokenizeError::TooLong { tokens, limit } if sentence.max_seq_length == Some(limit) => {
            malformed(SENTENCE, format!("max_seq_length is {limit}; it must be at least {tokens}"))
        }
        TokenizeError::TooLong { tokens, limit } => {
            malformed("config.json", format!("max_position_embeddings is {limit}; it must be at least {tokens}"))
        }
        error => malformed(NAME, format!("no tokenizer: {error}")),
    })
}

/// How long the parts of loading took.
struct Phases {
    read: Duration,
    convert: Duration,
}

/// The model on each device, from one reading of its files.
fn read_models(
    directory: &ModelDirectory,
    reading: &Reading,
    targets: &[Target],
) -> Result<(Vec<Model>, Phases), LoadError> {
    let started = Instant::now();
    let files = WeightFiles::read(directory)?;
    let read = started.elapsed();
    let models = reading.models(&files.parse()?, targets)?;
    Ok((models, Phases { read, convert: started.elapsed() - read }))
}

/// The manifest's canary: an input with the vector that a sound model gives it.
fn read_canary(
    directory: &ModelDirectory,
    tokenizer: &Tokenizer,
    width: usize,
    tolerance: f32,
) -> Result<Option<KnownAnswer>, LoadError> {
    let Some(canary) = directory.manifest().and_then(|manifest| manifest.canary.as_ref()) else { return Ok(None) };
    let malformed = |what| LoadError::Malformed { path: directory.path_of(MANIFEST), what };
    let expected = canary.embedding.values().to_vec();
    if expected.len() != width {
        let what = format!("the canary has {} numbers, the model gives {width}", expected.len());
        return Err(malformed(what));
    }
    let tokens = tokenizer.encode(&Input::Text(canary.input.clone()), true);
    let tokens = tokens.map_err(|error| malformed(format!("the canary's text: {error}")))?;
    Ok(Some(KnownAnswer { tokens, expected, tolerance, source: "the manifest's canary" }))
}

fn read_json_if_there<T: DeserializeOwned>(directory: &ModelDirectory, name: &str) -> Result<Option<T>, LoadError> {
    let Some(bytes) = directory.read_if_there(name)? else { return Ok(None) };
    parse(directory, name, &bytes).map(Some)
}

fn parse<T: DeserializeOwned>(directory: &ModelDirectory, name: &str, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Malformed { path: directory.path_of(name), what: error.to_string() })
}

/// The product of two square matrices, for benchmarks: what the engine's matrix products could reach at best.
pub fn multiply_square(a: &[f32], b: &[f32], out: &mut [f32], size: usize, threads: usize) {
    ops::multiply_square(a, b, out, size, threads);
}

#[cfg(test)]
mod tests;
