//! The engine: a resident model on a device. It owns what a model must do and how it may fail.
//!
//! In: token ids of the items of one batch. Out: one raw answer an item, in order. An engine is synchronous and runs
//! on a thread of its own (see [`crate::replica`]); it never sees jobs, leases or JSON, never pads beyond the longest
//! item of its batch, and applies neither `normalize` nor `dimensions`: those belong to the item, not to the run.

use std::sync::Arc;

mod bert;
pub mod burn;
#[cfg(feature = "cuda")]
mod card_watch;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod echo;
pub mod faults;
mod host;
#[cfg(feature = "cuda")]
mod kernel_cache;
#[cfg(not(feature = "cuda"))]
#[path = "engine/no_kernel_cache.rs"]
mod kernel_cache;
mod kernels;
mod model;
mod ops;
mod padded;
mod pooling;
mod shapes;
mod stream;
mod weights;

pub use self::shapes::RUNGS;

/// The tokens of one item, special tokens included, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tokens {
    /// Token ids; at least one.
    pub ids: Vec<u32>,
    /// Token type (segment) ids, as many as `ids`; 1 for the second half of a pair.
    pub type_ids: Vec<u32>,
}

/// What an engine says of one item.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The pooled vector, of the model's full width, not normalised. Shared by all equal items of a batch.
    Embedding(Arc<[f32]>),
    /// A classifier's labels and scores, best first.
    Labels(Arc<[(String, f32)]>),
}

/// Why a run of an engine gave no answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The batch did not fit; a smaller one may.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// This batch failed; one of its items may be the cause.
    #[error("{0}")]
    Failed(String),
    /// The device is gone or answers wrongly; nothing more can run here.
    #[error("device lost: {0}")]
    DeviceLost(String),
}

/// What an engine found out about itself while it warmed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warm {
    /// Tokens of a batch, padding included, where it has shapes of its own: what is fastest and fits. It pads each item to
    /// one of [`RUNGS`].
    pub batch_tokens: Option<usize>,
}

/// A resident model. One thread owns one engine.
pub trait Engine: Send {
    /// Runs every shape that will be used, so that the first job is as fast as the next.
    ///
    /// # Errors
    /// When the device can't run the model.
    fn warm_up(&mut self) -> Result<Warm, EngineError>;

    /// Proves that the device computes: a known input must give finite, repeatable numbers. Runs before ready and after
    /// any doubt.
    ///
    /// # Errors
    /// [`EngineError::DeviceLost`] when it does not.
    fn check(&mut self) -> Result<(), EngineError>;

    /// Runs one batch: as many answers as items, in their order.
    ///
    /// # Errors
    /// When the batch as a whole gave no answers.
    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError>;
}

/// What is known of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The model's name: from the flag, else the manifest, else the directory.
    pub name: String,
    /// `sha256:` and the digest over the sorted lines `name size sha256` of the model's files.
    pub revision: String,
    /// Numbers in an embedding.
    pub dimensions: usize,
    /// Tokens the model can read, special ones included.
    pub max_tokens: usize,
    /// Where it runs: `cpu`, `cuda:0`.
    pub device: String,
    /// Whether a pair of texts is an input for it, as it is for a cross-encoder.
    pub reads_pairs: bool,
}

/// The vector at length one; `None` where it has no length or an infinite one.
pub(crate) fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    let is_usable = length.is_finite() && length > 0.0;
    is_usable.then(|| vector.iter().map(|value| value / length).collect())
}

/// A model that is ready to be warmed up: its replicas share one copy of the weights.
pub struct Loaded {
    /// One engine a replica.
    pub engines: Vec<Box<dyn Engine>>,
    /// How its text becomes tokens.
    pub tokenizer: crate::tokenize::Tokenizer,
    /// What it is.
    pub info: ModelInfo,
}
