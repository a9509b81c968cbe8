//! A resident model and the engine around it: checks what goes in and what comes out, and proves that the device computes.
//!
//! In: token ids. Out: one vector an item. How a batch runs is the runner's: on the processor's threads, or padded on a
//! device. A panic inside a library fails the batch, not the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::tensor::ExecutionError;
use rayon::ThreadPool;

use super::bert::Bert;
use super::faults::Faulty;
use super::padded::Padded;
use super::pooling::Pooling;
use super::stream::Stream;
use super::{Answer, Engine, EngineError, Tokens, Warm, host, unit};

/// A model on one device. Its replicas share it.
pub(super) struct Model {
    pub(super) bert: Bert,
    pub(super) pooling: Pooling,
    pub(super) max_tokens: usize,
    /// What it must answer to known inputs.
    pub(super) known: Vec<KnownAnswer>,
    /// What goes wrong, in tests.
    pub(super) faulty: Option<Faulty>,
}

/// Tokens, and the vector of length one that they become.
#[derive(Clone)]
pub(super) struct KnownAnswer {
    pub(super) tokens: Tokens,
    pub(super) expected: Vec<f32>,
    /// The largest difference that any number may have.
    pub(super) tolerance: f32,
    /// Who says so, as a phrase.
    pub(super) source: &'static str,
}

impl KnownAnswer {
    fn compare(&self, found: &[f32]) -> Result<(), EngineError> {
        let (source, limit) = (self.source, self.tolerance);
        let Some(found) = unit(found) else {
            return Err(EngineError::DeviceLost(format!("{source} gave a vector without length")));
        };
        let apart = found.iter().zip(&self.expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if apart <= limit {
            return Ok(());
        }
        let what = format!(
            "the vector of {source} is {apart} from the one expected, {limit} is allowed: the device computes wrongly, or \
             what is expected is another model's"
        );
        Err(EngineError::DeviceLost(what))
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

    /// What a run of so many items on the device comes to: what it gives, unless something is to go wrong.
    pub(super) fn run(
        &self,
        items: usize,
        run: impl Fn() -> Result<Vec<Arc<[f32]>>, EngineError>,
    ) -> Result<Vec<Arc<[f32]>>, EngineError> {
        match &self.faulty {
            None => run(),
            Some(faulty) => faulty.run(items, run),
        }
    }

    /// A fixed input of so many tokens.
    pub(super) fn sample(&self, length: usize) -> Tokens {
        let vocabulary = u32::try_from(self.bert.config.vocab_size).unwrap_or(u32::MAX);
        let ids = (1..).take(length.clamp(1, self.max_tokens)).map(|i: u32| i.wrapping_mul(7919) % vocabulary);
        let ids: Vec<u32> = ids.collect();
        Tokens { type_ids: vec![0; ids.len()], ids }
    }
}

/// How a replica runs batches.
pub(super) enum Runner {
    /// With our kernels, on threads of its own.
    Host(ThreadPool),
    /// Padded, with burn's operations, on any device.
    Padded(Arc<Padded>, Stream),
}

impl Runner {
    fn run(&self, model: &Model, items: &[&Tokens]) -> Result<Vec<Arc<[f32]>>, EngineError> {
        match self {
            Self::Host(pool) => model.run(items.len(), || caught(|| host::run(model, items, pool))),
            Self::Padded(padded, stream) => stream.run(|| padded.run(model, items)),
        }
    }

    /// What the device says is wrong with it, if something is.
    fn ailment(&self) -> Option<String> {
        match self {
            Self::Host(_) => None,
            Self::Padded(padded, _) => padded.ailment(),
        }
    }

    /// The largest difference between two answers to one input: none on the processor, which does the same each time.
    fn tolerance(&self) -> f32 {
        match self {
            Self::Host(_) => 0.0,
            Self::Padded(padded, _) => padded.precision.tolerance(),
        }
    }
}

/// One replica of an embedding model.
pub(super) struct BurnEngine {
    pub(super) model: Arc<Model>,
    pub(super) runner: Runner,
}

impl BurnEngine {
    /// The items' vectors, as they come out of the pooling.
    pub(super) fn vectors(&self, items: &[&Tokens]) -> Result<Vec<Arc<[f32]>>, EngineError> {
        for (place, item) in items.iter().enumerate() {
            self.model.check(item).map_err(|what| EngineError::Failed(format!("item {place} of the batch: {what}")))?;
        }
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let vectors = self.runner.run(&self.model, items)?;
        match vectors.iter().enumerate().find_map(|(place, vector)| Some((place, no_answer(vector)?))) {
            Some((place, what)) => Err(EngineError::Failed(format!("item {place} of the batch: {what}"))),
            None => Ok(vectors),
        }
    }
}

/// Why a vector can't be what a model gives an item. Zeros are what a kernel leaves that never ran.
fn no_answer(vector: &[f32]) -> Option<&'static str> {
    if !vector.iter().all(|value| value.is_finite()) {
        return Some("numbers that are not finite");
    }
    vector.iter().all(|value| *value == 0.0).then_some("a vector without length")
}

/// How far an item may be from itself in a batch: sums are added up in another order there.
const BATCHED: f32 = 1e-3;

impl Engine for BurnEngine {
    fn warm_up(&mut self) -> Result<Warm, EngineError> {
        let pool = match &self.runner {
            Runner::Padded(padded, stream) => {
                stream.run(|| padded.warm_up(&self.model))?;
                return Ok(Warm { batch_tokens: padded.batch_tokens() });
            }
            Runner::Host(pool) => pool,
        };
        // The CPU has nothing to compile; this touches every weight and grows the allocator's pools once.
        let long = self.model.sample(self.model.max_tokens);
        self.vectors(&vec![&long; pool.current_num_threads()])?;
        self.vectors(&[&self.model.sample(16)])?;
        Ok(Warm::default())
    }

    fn check(&mut self) -> Result<(), EngineError> {
        if let Some(ailment) = self.runner.ailment() {
            return Err(EngineError::DeviceLost(ailment));
        }
        let (sample, mate) = (self.model.sample(16), self.model.sample(24));
        let lost = |error: EngineError| EngineError::DeviceLost(error.to_string());
        let alone = self.vectors(&[&sample]).map_err(lost)?;
        let again = self.vectors(&[&sample]).map_err(lost)?;
        let batched = self.vectors(&[&mate, &sample]).map_err(lost)?;
        let (Some(alone), Some(again), Some(batched)) = (unit(&alone[0]), unit(&again[0]), unit(&batched[1])) else {
            return Err(EngineError::DeviceLost("a known input gave a vector without length".to_owned()));
        };
        let tolerance = self.runner.tolerance();
        let differ = |a: &[f32], b: &[f32], by: f32| a.iter().zip(b).any(|(a, b)| (a - b).abs() > by);
        if differ(&alone, &again, tolerance) || differ(&alone, &batched, tolerance.max(BATCHED)) {
            return Err(EngineError::DeviceLost("a known input gave two different answers".to_owned()));
        }
        for known in &self.model.known {
            let found = self.vectors(&[&known.tokens]).map_err(lost)?;
            known.compare(&found[0])?;
        }
        Ok(())
    }

    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError> {
        Ok(self.vectors(items)?.into_iter().map(Answer::Embedding).collect())
    }
}

/// What a call into the library comes to, also where it panics: a run has no state beyond its own buffers, so nothing of
/// ours is left half changed.
pub(super) fn caught<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(classify(&words_of(panic.as_ref()))))
}

/// The error of reading what a device was to compute.
pub(super) fn of_execution(error: &ExecutionError) -> EngineError {
    if error.is_device_poisoned() {
        return EngineError::DeviceLost(error.to_string());
    }
    classify(&error.to_string())
}

/// burn names no other kinds of error, so the words decide.
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
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_a_library_becomes_words() {
        let caught = |text: &'static str| caught::<()>(|| panic!("{text}")).unwrap_err();
        let failed = EngineError::Failed("the engine's library panicked: index 3 is out of bounds".to_owned());
        assert_eq!(caught("index 3 is out of bounds"), failed);
        assert!(matches!(caught("CUDA: out of memory"), EngineError::OutOfMemory(_)));
        assert!(matches!(classify("The device is poisoned"), EngineError::DeviceLost(_)));
        assert!(matches!(of_execution(&ExecutionError::device_poisoned("700")), EngineError::DeviceLost(_)));
    }

    #[test]
    fn an_answer_that_is_not_the_known_one_is_refused_zeros_and_nan_too() {
        let tokens = Tokens { ids: vec![1], type_ids: vec![0] };
        let known = KnownAnswer { tokens, expected: vec![0.6, 0.8], tolerance: 1e-3, source: "a sample" };
        assert_eq!(known.compare(&[3.0, 4.0]), Ok(()));
        for (found, says) in [
            ([0.0, 0.0], "without length"),
            ([f32::NAN, 1.0], "without length"),
            ([f32::INFINITY, 1.0], "without length"),
            ([4.0, 3.0], "computes wrongly"),
            ([0.61, 0.8], "computes wrongly"),
        ] {
            let error = known.compare(&found).unwrap_err();
            assert!(matches!(&error, EngineError::DeviceLost(what) if what.contains(says)), "{found:?}: {error}");
        }
    }
}
