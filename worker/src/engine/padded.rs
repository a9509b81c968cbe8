//! Runs padded batches on a device whose memory we don't reach: in which shapes, how many tokens at a time, and what is
//! done when memory is short.
//!
//! In: items of one model. Out: a vector for each, in order. Before the first job every shape has run once, so that
//! nothing is compiled or tuned while jobs wait. A shape that did not fit is never tried again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{Device, FloatDType};

use self::forward::{Forward, Packed};
use super::device::Precision;
use super::kernel_cache::KernelCache;
use super::model::{Model, caught, of_execution};
use super::shapes::{Shape, Shapes};
use super::{EngineError, Tokens};

mod forward;

pub use self::forward::Attention;

/// Tokens of a batch before it is known what fits.
const TOKENS: usize = 4096;
/// The most that is tried.
const TOKENS_MAX: usize = 256 * 1024;
/// The length that batches are sized by: that of a paragraph.
const USUAL_LENGTH: usize = 128;
/// Runs of one size, of which the fastest counts.
const RUNS: usize = 3;
/// A larger batch has to be faster by so much to be worth its latency and memory.
const WORTH: f64 = 1.03;

/// An open device, and what a model runs on it with.
pub(super) struct On {
    pub(super) device: Device,
    pub(super) precision: Precision,
    /// Where kernels are kept that are compiled for it.
    pub(super) kernels: Option<KernelCache>,
    /// What the device says is wrong with it.
    pub(super) sick: Sick,
}

/// Asks a device what is wrong with it.
pub(super) type Sick = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What runs a model's padded batches on one device. Its replicas share it.
pub(super) struct Padded {
    device: Device,
    pub(super) precision: Precision,
    attention: Attention,
    /// Tokens of a batch, where that is not to be found out.
    tokens_max: Option<usize>,
    shapes: OnceLock<Shapes>,
    /// Batches of more tokens have not fitted.
    room: AtomicUsize,
    /// Where the kernels are kept that were compiled.
    kernels: Option<KernelCache>,
    sick: Sick,
    /// Whether every shape has run.
    warm: Mutex<bool>,
}

impl Padded {
    pub(super) fn new(on: On, attention: Attention, tokens_max: Option<usize>) -> Self {
        let On { device, precision, kernels, sick } = on;
        Self {
            device,
            precision,
            attention,
            tokens_max,
            shapes: OnceLock::new(),
            room: AtomicUsize::new(usize::MAX),
            kernels,
            sick,
            warm: Mutex::new(false),
        }
    }

    /// What the device says is wrong with it, if something is.
    pub(super) fn ailment(&self) -> Option<String> {
        (self.sick)()
    }

    /// Tokens of a batch, once it is warm.
    pub(super) fn batch_tokens(&self) -> Option<usize> {
        self.shapes.get().map(|shapes| shapes.tokens_max().min(self.room.load(Ordering::Relaxed)))
    }

    /// A vector for each item, as it comes out of the pooling.
    pub(super) fn run(&self, model: &Model, items: &[&Tokens]) -> Result<Vec<Arc<[f32]>>, EngineError> {
        let shapes = self.shapes(model);
        let (mut vectors, mut rest) = (Vec::with_capacity(items.len()), items);
        while let Some(longest) = rest.iter().map(|item| item.ids.len()).max() {
            let shape = shapes.holding(rest.len(), longest, self.room.load(Ordering::Relaxed));
            let (now, later) = rest.split_at(shape.rows.min(rest.len()));
            match model.run(now.len(), || self.run_shape(model, now, shape)) {
                Ok(found) => {
                    vectors.extend(found);
                    rest = later;
                }
                Err(EngineError::OutOfMemory(why)) if shape.rows > 1 => self.shrink(shape, &why),
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }

    fn run_shape(&self, model: &Model, items: &[&Tokens], shape: Shape) -> Result<Vec<Arc<[f32]>>, EngineError> {
        caught(|| {
            let packed = Packed::new(items, shape);
            let forward = Forward {
                bert: &model.bert,
                pooling: model.pooling,
                device: &self.device,
                float: self.precision.into(),
                attention: self.attention,
            };
            let rows = forward.run(packed).try_into_data().map_err(|error| of_execution(&error))?;
            let rows = rows.as_slice::<f32>().map_err(|error| EngineError::Failed(error.to_string()))?;
            Ok(rows.chunks_exact(model.bert.config.hidden_size).take(items.len()).map(Arc::from).collect())
        })
    }

    /// Remembers that this did not fit, and lets the device have back what it keeps for the next time.
    fn shrink(&self, shape: Shape, why: &str) {
        let room = shape.tokens() - 1;
        self.room.fetch_min(room, Ordering::Relaxed);
        tracing::warn!(
            rows = shape.rows,
            length = shape.length,
            why,
            "no memory for a batch of this shape: smaller from now on"
        );
        self.device.memory_cleanup();
    }

    fn shapes(&self, model: &Model) -> &Shapes {
        self.shapes.get_or_init(|| Shapes::new(model.max_tokens, self.tokens_max.unwrap_or(TOKENS)))
    }

    /// Runs every shape, the first replica that comes here for all; the others run the largest, whose memory each needs
    /// for itself.
    pub(super) fn warm_up(&self, model: &Model) -> Result<(), EngineError> {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        if !*warm {
            let tokens_max = self.tokens_max.map_or_else(|| self.find_tokens_max(model), Ok)?;
            // Nobody else sets it: what runs before is `find_tokens_max`, with shapes of its own.
            let _ = self.shapes.set(Shapes::new(model.max_tokens, tokens_max));
            self.run_all(model)?;
            self.kernels.iter().for_each(KernelCache::save);
            *warm = true;
        }
        let largest = self.shapes(model).holding(usize::MAX, model.max_tokens, self.room.load(Ordering::Relaxed));
        self.fill(model, largest).map(drop)
    }

    fn run_all(&self, model: &Model) -> Result<(), EngineError> {
        let (started, all) = (Instant::now(), self.shapes(model).all());
        for (place, shape) in all.iter().enumerate() {
            if shape.tokens() <= self.room.load(Ordering::Relaxed) {
                self.fill(model, *shape)?;
                let (rows, length, of) = (shape.rows, shape.length, all.len());
                tracing::debug!(rows, length, "shape {} of {of} warm", place + 1);
            }
        }
        let (shapes, duration_ms) = (all.len(), started.elapsed().as_millis() as u64);
        tracing::info!(shapes, tokens_max = self.batch_tokens(), duration_ms, "every shape has run");
        Ok(())
    }

    /// Runs a full batch of this shape, unless it does not fit.
    fn fill(&self, model: &Model, shape: Shape) -> Result<Duration, EngineError> {
        let item = model.sample(shape.length);
        let started = Instant::now();
        match model.run(shape.rows, || self.run_shape(model, &vec![&item; shape.rows], shape)) {
            Err(EngineError::OutOfMemory(why)) if shape.rows > 1 => self.shrink(shape, &why),
            ran => drop(ran?),
        }
        Ok(started.elapsed())
    }

    /// The least batch that is nearly as fast, a token, as the fastest that fits.
    fn find_tokens_max(&self, model: &Model) -> Result<usize, EngineError> {
        let length = USUAL_LENGTH.min(model.max_tokens);
        let (mut best, mut tokens, mut rate) = (TOKENS, TOKENS, 0.0);
        while tokens <= TOKENS_MAX {
            let shape = Shape { rows: tokens.div_ceil(length), length };
            // The first run compiles.
            self.fill(model, shape)?;
            if shape.tokens() > self.room.load(Ordering::Relaxed) {
                // Half of it fitted, with nothing left for the other replicas and for longer items.
                return Ok((tokens / 4).max(length));
            }
            let fastest = (0..RUNS).map(|_| self.fill(model, shape)).collect::<Result<Vec<_>, _>>()?;
            let fastest = fastest.into_iter().min().unwrap_or_default().as_secs_f64();
            let found = shape.tokens() as f64 / fastest;
            tracing::info!(tokens, tokens_per_s = found as u64, "batch size tried");
            if found < rate * WORTH {
                break;
            }
            (best, rate) = (tokens, found);
            tokens *= 2;
        }
        Ok(best)
    }
}

impl From<Precision> for FloatDType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::BF16,
        }
    }
}
