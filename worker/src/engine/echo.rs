//! The echo engine: deterministic, without a model, with faults on demand. For tests, benchmarks and dry runs of a
//! deployment.
//!
//! In: the word tokens of [`crate::tokenize::Tokenizer::words`]. Out: an embedding of [`DIMENSIONS`] numbers that
//! depends on the item's tokens alone. With faults switched on, an item that contains one of the words of `Faults`
//! makes the run fail, run out of memory, lose the device, hang or kill the process.

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Engine, EngineError, Loaded, ModelInfo, Tokens, Warm};
use crate::tokenize::{Tokenizer, word_id};

/// Numbers in an echo embedding.
pub const DIMENSIONS: usize = 8;
/// Words that the echo engine reads of one item.
const TOKENS_MAX: usize = 8192;

/// How the echo engine behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EchoOptions {
    /// How long a batch takes, whatever is in it.
    pub batch_time: Duration,
    /// Whether the words of faults are heeded.
    pub faults: bool,
}

/// The words that cause faults.
#[derive(Debug, Clone, Copy)]
struct Faults {
    fail: u32,
    oom: u32,
    lose: u32,
    kill: u32,
    hang: u32,
}

impl Faults {
    fn new() -> Self {
        Self {
            fail: word_id("!fail"),
            oom: word_id("!oom"),
            lose: word_id("!lose"),
            kill: word_id("!kill"),
            hang: word_id("!hang"),
        }
    }
}

/// An engine without a model.
#[derive(Debug)]
pub struct Echo {
    batch_time: Duration,
    faults: Option<Faults>,
}

/// Echo engines, one a replica.
pub fn load(options: EchoOptions, replicas: usize, name: Option<String>) -> Loaded {
    let engine = || -> Box<dyn Engine> { Box::new(Echo::new(options)) };
    Loaded {
        engines: (0..replicas).map(|_| engine()).collect(),
        tokenizer: Tokenizer::words(TOKENS_MAX),
        info: ModelInfo {
            name: name.unwrap_or_else(|| "echo".to_owned()),
            revision: "echo-1".to_owned(),
            dimensions: DIMENSIONS,
            max_tokens: TOKENS_MAX,
            device: "cpu".to_owned(),
            reads_pairs: true,
        },
    }
}

impl Echo {
    /// An engine that behaves as `options` say.
    pub fn new(options: EchoOptions) -> Self {
        Self { batch_time: options.batch_time, faults: options.faults.then(Faults::new) }
    }

    fn heed(&self, items: &[&Tokens]) -> Result<(), EngineError> {
        let Some(faults) = self.faults else { return Ok(()) };
        let any = |word: u32| items.iter().any(|item| item.ids.contains(&word));
        if any(faults.kill) {
            std::process::abort();
        }
        if any(faults.hang) {
            loop {
                std::thread::park();
            }
        }
        if any(faults.lose) {
            return Err(EngineError::DeviceLost("asked to by the word !lose".to_owned()));
        }
        if any(faults.oom) && items.len() > 1 {
            return Err(EngineError::OutOfMemory(format!("{} items with the word !oom", items.len())));
        }
        if any(faults.fail) {
            return Err(EngineError::Failed("asked to by the word !fail".to_owned()));
        }
        Ok(())
    }
}

impl Engine for Echo {
    fn warm_up(&mut self) -> Result<Warm, EngineError> {
        Ok(Warm::default())
    }

    fn check(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError> {
        if !self.batch_time.is_zero() {
            std::thread::sleep(self.batch_time);
        }
        self.heed(items)?;
        Ok(items.iter().map(|item| Answer::Embedding(echo(item))).collect())
    }
}

/// Numbers between -1 and 1 that depend on every token and its place.
fn echo(item: &Tokens) -> Arc<[f32]> {
    let mut numbers = [0u32; DIMENSIONS];
    for (place, token) in item.ids.iter().enumerate() {
        let number = &mut numbers[place % DIMENSIONS];
        // Knuth's multiplicative hashing, The Art of Computer Programming volume 3, section 6.4.
        *number = number.wrapping_mul(31).wrapping_add(*token).wrapping_mul(2_654_435_761);
    }
    numbers.iter().map(|number| (f64::from(*number) / f64::from(u32::MAX) * 2.0 - 1.0) as f32).collect()
}
