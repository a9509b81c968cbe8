//! The engine on burn: loads a Hugging Face model directory as it is, and runs it.
//!
//! In: a directory, a device, the number of replicas and of threads for each. Out: engines that share one copy of the
//! weights, the tokenizer, and what is known of the model. It never panics on a broken directory: every error names
//! the file, what is wrong and the way out. A panic inside a library fails the batch, not the process.

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use inferq_shared::job::Input;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bert::{Bert, BertConfig, ranges};
use super::ops::{self, Compute};
use super::pooling::Pooling;
use super::weights::WeightFiles;
use super::{Answer, Engine, EngineError, Loaded, ModelInfo, Tokens, unit};
use crate::assets::manifest::MANIFEST;
use crate::assets::{AssetsError, ModelDirectory};
use crate::tokenize::{TokenizeError, Tokenizer};

/// Tokens that one thread takes through the model at a time: few enough for their rows to stay in the cache, many
/// enough for the weights to be read seldom. Reasoned from cache sizes, not tuned.
const GROUP_TOKENS: usize = 512;

/// Says how long the texts are that the model reads.
const SENTENCE: &str = "sentence_bert_config.json";

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
}

impl FromStr for DeviceChoice {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        match text {
            "cpu" | "auto" => Ok(Self::Cpu),
            _ => Err(LoadError::Device(format!("no device {text:?} in this build; cpu and auto are"))),
        }
    }
}

impl DeviceChoice {
    /// The only place that makes a device of burn's.
    fn open(self) -> Device {
        match self {
            Self::Cpu => Device::flex(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }
}

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
    /// Where it runs.
    pub device: DeviceChoice,
    /// Engines that share the weights.
    pub replicas: NonZeroUsize,
    /// Threads that each of them computes with.
    pub threads: NonZeroUsize,
    /// Whose operations they compute with.
    pub kernels: Kernels,
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
    let loading = pool(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))?;
    let (tokenizer, bert) = loading.join(
        || read_tokenizer(&directory, max_tokens, &sentence),
        || read_weights(&directory, config, &options.device.open()),
    );
    let (tokenizer, (bert, phases)) = (tokenizer?, bert?);
    let known = KnownAnswer::read(&directory, &tokenizer, dimensions)?;
    let model = Arc::new(Model { bert, pooling, max_tokens, kernels: options.kernels, known });
    let engines =
        (0..options.replicas.get()).map(|_| BurnEngine::boxed(&model, options.threads)).collect::<Result<_, _>>()?;
    let info = ModelInfo {
        name: options.name.clone().unwrap_or_else(|| directory.name()),
        revision: directory.revision(),
        dimensions,
        max_tokens,
        device: options.device.name().to_owned(),
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

fn read_weights(directory: &ModelDirectory, config: BertConfig, device: &Device) -> Result<(Bert, Phases), LoadError> {
    let started = Instant::now();
    let files = WeightFiles::read(directory)?;
    let read = started.elapsed();
    let bert = Bert::load(config, &files.parse()?, device)?;
    Ok((bert, Phases { read, convert: started.elapsed() - read }))
}

fn read_json_if_there<T: DeserializeOwned>(directory: &ModelDirectory, name: &str) -> Result<Option<T>, LoadError> {
    let Some(bytes) = directory.read_if_there(name)? else { return Ok(None) };
    parse(directory, name, &bytes).map(Some)
}

fn parse<T: DeserializeOwned>(directory: &ModelDirectory, name: &str, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LoadError::Malformed { path: directory.path_of(name), what: error.to_string() })
}

fn pool(threads: NonZeroUsize) -> Result<ThreadPool, LoadError> {
    let built = ThreadPoolBuilder::new().num_threads(threads.get()).thread_name(|i| format!("engine-{i}")).build();
    built.map_err(|error| LoadError::Device(format!("no threads to compute with: {error}")))
}

/// The product of two square matrices, for benchmarks: what the engine's matrix products could reach at best.
pub fn multiply_square(a: &[f32], b: &[f32], out: &mut [f32], size: usize, threads: usize) {
    ops::multiply_square(a, b, out, size, threads);
}

/// What the replicas share.
struct Model {
    bert: Bert,
    pooling: Pooling,
    max_tokens: usize,
    kernels: Kernels,
    known: Option<KnownAnswer>,
}

/// The manifest's canary: tokens, and the vector of length one that they become.
struct KnownAnswer {
    tokens: Tokens,
    expected: Vec<f32>,
}

impl KnownAnswer {
    /// The largest difference that any number may have: enough for the reduced precision of a GPU's tensor cores, little
    /// beside another model's or a damaged one's.
    const TOLERANCE: f32 = 2e-3;

    fn read(directory: &ModelDirectory, tokenizer: &Tokenizer, width: usize) -> Result<Option<Self>, LoadError> {
        let Some(canary) = directory.manifest().and_then(|manifest| manifest.canary.as_ref()) else { return Ok(None) };
        let malformed = |what| LoadError::Malformed { path: directory.path_of(MANIFEST), what };
        let expected = canary.embedding.values().to_vec();
        if expected.len() != width {
            let what = format!("the canary has {} numbers, the model gives {width}", expected.len());
            return Err(malformed(what));
        }
        let tokens = tokenizer.encode(&Input::Text(canary.input.clone()), true);
        let tokens = tokens.map_err(|error| malformed(format!("the canary's text: {error}")))?;
        Ok(Some(Self { tokens, expected }))
    }

    /// Compares what the device makes of it.
    fn compare(&self, found: &[f32]) -> Result<(), EngineError> {
        let Some(found) = unit(found) else {
            return Err(EngineError::DeviceLost("the canary gave a vector without length".to_owned()));
        };
        let apart = found.iter().zip(&self.expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if apart <= Self::TOLERANCE {
            return Ok(());
        }
        let limit = Self::TOLERANCE;
        let what = format!(
            "the canary's embedding is {apart} from the manifest's, {limit} is allowed: the device computes wrongly, or \
             the manifest's canary is of another model"
        );
        Err(EngineError::DeviceLost(what))
    }
}

/// One replica of an embedding model.
struct BurnEngine {
    model: Arc<Model>,
    pool: ThreadPool,
}

impl BurnEngine {
    fn boxed(model: &Arc<Model>, threads: NonZeroUsize) -> Result<Box<dyn Engine>, LoadError> {
        Ok(Box::new(Self { model: Arc::clone(model), pool: pool(threads)? }))
    }

    /// The items' vectors, as they come out of the pooling.
    fn vectors(&self, items: &[&Tokens]) -> Result<Vec<Arc<[f32]>>, EngineError> {
        for (place, item) in items.iter().enumerate() {
            self.model.check(item).map_err(|what| EngineError::Failed(format!("item {place} of the batch: {what}")))?;
        }
        if items.is_empty() {
            return Ok(Vec::new());
        }
        // A library that panics leaves nothing of ours half changed: a run has no state beyond its own buffers.
        let run = AssertUnwindSafe(|| self.pool.install(|| self.model.run(items, self.pool.current_num_threads())));
        let vectors = catch_unwind(run).map_err(|panic| EngineError::Failed(words_of(panic.as_ref())))??;
        match vectors.iter().position(|vector| !vector.iter().all(|value| value.is_finite())) {
            Some(place) => Err(EngineError::Failed(format!("item {place} of the batch: numbers that are not finite"))),
            None => Ok(vectors),
        }
    }

    /// A fixed input of so many tokens.
    fn sample(&self, length: usize) -> Tokens {
        let vocabulary = u32::try_from(self.model.bert.config.vocab_size).unwrap_or(u32::MAX);
        let ids = (1..).take(length.clamp(1, self.model.max_tokens)).map(|i: u32| i.wrapping_mul(7919) % vocabulary);
        let ids: Vec<u32> = ids.collect();
        Tokens { type_ids: vec![0; ids.len()], ids }
    }
}

impl Engine for BurnEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        // The CPU has nothing to compile; this touches every weight and grows the allocator's pools once.
        let long = self.sample(self.model.max_tokens);
        let threads = self.pool.current_num_threads();
        self.vectors(&vec![&long; threads])?;
        self.vectors(&[&self.sample(16)]).map(drop)
    }

    fn check(&mut self) -> Result<(), EngineError> {
        let (sample, mate) = (self.sample(16), self.sample(24));
        let lost = |error: EngineError| EngineError::DeviceLost(error.to_string());
        let alone = self.vectors(&[&sample]).map_err(lost)?;
        let again = self.vectors(&[&sample]).map_err(lost)?;
        let batched = self.vectors(&[&mate, &sample]).map_err(lost)?;
        let (Some(alone), Some(again), Some(batched)) = (unit(&alone[0]), unit(&again[0]), unit(&batched[1])) else {
            return Err(EngineError::DeviceLost("a known input gave a vector without length".to_owned()));
        };
        if alone != again || alone.iter().zip(&batched).any(|(a, b)| (a - b).abs() > 1e-3) {
            return Err(EngineError::DeviceLost("a known input gave two different answers".to_owned()));
        }
        let Some(known) = &self.model.known else { return Ok(()) };
        let found = self.vectors(&[&known.tokens]).map_err(lost)?;
        known.compare(&found[0])
    }

    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError> {
        Ok(self.vectors(items)?.into_iter().map(Answer::Embedding).collect())
    }
}

impl Model {
    /// What the model can't read in this item.
    fn check(&self, item: &Tokens) -> Result<(), String> {
        let config = &self.bert.config;
        let unknown = |ids: &[u32], known: usize| ids.iter().copied().find(|id| *id as usize >= known);
        if item.ids.is_empty() || item.ids.len() != item.type_ids.len() || item.ids.len() > self.max_tokens {
            let (ids, types, limit) = (item.ids.len(), item.type_ids.len(), self.max_tokens);
            return Err(format!("{ids} tokens with {types} types; the model reads 1 to {limit}, each with a type"));
        }
        if let Some(id) = unknown(&item.ids, config.vocab_size) {
            return Err(format!("token {id} is not among the model's {}", config.vocab_size));
        }
        if let Some(id) = unknown(&item.type_ids, config.type_vocab_size) {
            return Err(format!("token type {id} is not among the model's {}", config.type_vocab_size));
        }
        Ok(())
    }

    /// Runs a batch. Items are shared out in groups that each take a thread through the whole model, which leaves
    /// nothing to wait for in between; a batch of one group has all threads in each operation.
    fn run(&self, items: &[&Tokens], threads: usize) -> Result<Vec<Arc<[f32]>>, EngineError> {
        if self.kernels == Kernels::Burn {
            return self.run_group(items, Compute::Burn);
        }
        let groups = groups(items, threads);
        if groups.len() < 2 {
            return self.run_group(items, Compute::Host { threads });
        }
        let run = |group: &Vec<usize>| {
            let items: Vec<&Tokens> = group.iter().map(|place| items[*place]).collect();
            self.run_group(&items, Compute::Host { threads: 1 })
        };
        let vectors: Vec<_> = groups.par_iter().with_max_len(1).map(run).collect::<Result<_, _>>()?;
        let mut placed: Vec<(usize, Arc<[f32]>)> =
            groups.into_iter().flatten().zip(vectors.into_iter().flatten()).collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, vector)| vector).collect())
    }

    fn run_group(&self, items: &[&Tokens], compute: Compute) -> Result<Vec<Arc<[f32]>>, EngineError> {
        let hidden = self.bert.forward(items, compute);
        let width = self.bert.config.hidden_size;
        let rows = hidden.try_into_data().map_err(|error| classify(&error.to_string()))?;
        let rows = rows.as_slice::<f32>().map_err(|error| EngineError::Failed(error.to_string()))?;
        Ok(self.pooling.pool(rows, width, &ranges(items)))
    }
}

/// The places of the items, in groups of at most [`GROUP_TOKENS`] tokens (or one item), as equal as can be and as many
/// as keep every thread busy.
fn groups(items: &[&Tokens], threads: usize) -> Vec<Vec<usize>> {
    let length = |place: usize| items[place].ids.len();
    let total: usize = (0..items.len()).map(length).sum();
    let wanted = total.div_ceil(GROUP_TOKENS).next_multiple_of(threads).min(items.len()).max(1);
    let mut places: Vec<usize> = (0..items.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(length(*place)));
    let mut groups = vec![(0, Vec::new()); wanted];
    for place in places {
        let lightest = groups.iter_mut().min_by_key(|(tokens, _)| *tokens).expect("at least one group is wanted");
        lightest.0 += length(place);
        lightest.1.push(place);
    }
    groups.into_iter().map(|(_, places)| places).filter(|places| !places.is_empty()).collect()
}

/// burn names no kinds of error, so the words decide.
fn classify(message: &str) -> EngineError {
    let words = message.to_lowercase();
    if words.contains("out of memory") || words.contains("alloc") {
        return EngineError::OutOfMemory(message.to_owned());
    }
    if words.contains("poisoned") {
        return EngineError::DeviceLost(message.to_owned());
    }
    EngineError::Failed(message.to_owned())
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("the engine's library panicked: {text}")
}

#[cfg(test)]
mod tests;
