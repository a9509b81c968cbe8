//! The scripted engine: answers what follows from an item's tokens, and fails when the scenario says so.
//!
//! In: batches. Out: answers or errors, and entries in the history for each batch that begins and each run. An item with
//! the word `killer` kills its process, one with the word `hanger` hangs its engine, one with the word `poison` makes its
//! batch fail, and the engine runs out of memory above so many rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use inferq_shared::broker::memory::MemoryBroker;
use inferq_shared::job::Input;
use inferq_worker::batch::Batch;
use inferq_worker::engine::{Answer, Engine, EngineError, ModelInfo, Tokens, Warm};

use super::scenario::{EngineFault, HANGER, KILLER, LOSER, POISON, SLOW, Scenario, has};
use crate::history::{History, What};

/// Numbers in an embedding.
const DIMENSIONS: usize = 4;
/// How long a batch with a slow item takes.
const SLOW_TIME: Duration = Duration::from_secs(100);
/// How long a batch takes that never ends: far longer than any world lasts.
const FOREVER: Duration = Duration::from_secs(1000 * 24 * 3600);

/// The model of every world.
pub fn info() -> ModelInfo {
    ModelInfo {
        name: "scripted".to_owned(),
        revision: "scripted-1".to_owned(),
        dimensions: DIMENSIONS,
        max_tokens: super::TOKENS_MAX,
        device: "cpu".to_owned(),
        reads_pairs: true,
    }
}

/// What the model reads of a text.
pub fn tokens(text: &str) -> Tokens {
    super::tokenizer().encode(&Input::Text(text.to_owned()), true).expect("words always become tokens")
}

/// The embedding of an item, as the model gives it.
pub fn embedding(tokens: &Tokens) -> Arc<[f32]> {
    let number = |lane: u32| {
        let mix = |sum: u32, id: &u32| (sum ^ id).wrapping_mul(16_777_619).rotate_left(5);
        let hash = tokens.ids.iter().fold(lane + 1, mix);
        (hash >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..DIMENSIONS as u32).map(number).collect()
}

/// How a run of the engine went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every row has an answer.
    Answered,
    /// The run failed.
    Failed,
    /// There was not enough memory.
    OutOfMemory,
    /// The device was lost.
    DeviceLost,
    /// There were fewer answers than rows.
    Short,
    /// The process died of it.
    Died,
}

impl Outcome {
    /// Whether the process can't go on after it.
    pub fn ends_process(self) -> bool {
        matches!(self, Self::DeviceLost | Self::Short | Self::Died)
    }
}

/// What all engines of a world share: how many runs there have been, and what goes wrong with which.
pub struct Script {
    faults: BTreeMap<u64, EngineFault>,
    hangs: BTreeSet<u64>,
    labels: BTreeMap<Vec<u32>, String>,
    rows_max: usize,
    pace: u32,
    runs: AtomicU64,
    batches: AtomicU64,
}

impl Script {
    /// The script of a scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let labels = scenario.texts().map(|text| (tokens(text).ids, text.to_owned())).collect();
        Self {
            faults: scenario.engine_faults(),
            hangs: scenario.hangs(),
            labels,
            rows_max: scenario.rows_max,
            pace: scenario.pace,
            runs: AtomicU64::new(0),
            batches: AtomicU64::new(0),
        }
    }

    /// A batch begins in a process: how long it takes on the paused clock.
    pub fn begin(&self, batch: &Batch, link: u64, history: &History) -> Duration {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let rows: Vec<String> = batch.rows().iter().map(|row| self.label(&row.tokens)).collect();
        let cost = if self.hangs.contains(&number) || any(&rows, HANGER) {
            FOREVER
        } else if any(&rows, SLOW) {
            SLOW_TIME
        } else {
            self.pace * Duration::from_millis(2 + batch.padded_tokens() as u64 / 8)
        };
        history.record(What::Began { link, batch: number, rows, cost });
        cost
    }

    fn label(&self, tokens: &Tokens) -> String {
        self.labels.get(&tokens.ids).cloned().unwrap_or_else(|| format!("unknown {:?}", tokens.ids))
    }
}

fn any(rows: &[String], word: &str) -> bool {
    rows.iter().any(|row| has(row, word))
}

/// One engine in one process.
pub struct Scripted {
    script: Arc<Script>,
    process: MemoryBroker,
    history: History,
    /// The next check says that the device is sick.
    sick: bool,
}

impl Scripted {
    /// An engine in the process that has this connection.
    pub fn new(script: Arc<Script>, process: MemoryBroker, history: History) -> Self {
        Self { script, process, history, sick: false }
    }

    fn outcome(&mut self, run: u64, rows: &[String]) -> Outcome {
        let any = |word| any(rows, word);
        match self.script.faults.get(&run) {
            _ if any(KILLER) => Outcome::Died,
            _ if any(LOSER) => Outcome::DeviceLost,
            Some(EngineFault::Die) => Outcome::Died,
            Some(EngineFault::LoseDevice) => Outcome::DeviceLost,
            Some(EngineFault::Short) => Outcome::Short,
            Some(EngineFault::OutOfMemory) => Outcome::OutOfMemory,
            Some(EngineFault::Sicken) => {
                self.sick = true;
                Outcome::Failed
            }
            Some(EngineFault::Fail) => Outcome::Failed,
            None if rows.len() > self.script.rows_max => Outcome::OutOfMemory,
            None if any(POISON) => Outcome::Failed,
            None => Outcome::Answered,
        }
    }
}

impl Engine for Scripted {
    fn warm_up(&mut self) -> Result<Warm, EngineError> {
        Ok(Warm::default())
    }

    fn check(&mut self) -> Result<(), EngineError> {
        if self.sick {
            self.history.record(What::Sick { link: self.process.link_id() });
            return Err(EngineError::DeviceLost("the check failed".to_owned()));
        }
        Ok(())
    }

    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError> {
        let run = self.script.runs.fetch_add(1, Ordering::Relaxed);
        let rows: Vec<String> = items.iter().map(|item| self.script.label(item)).collect();
        let outcome = self.outcome(run, &rows);
        self.history.record(What::Ran { link: self.process.link_id(), run, rows, outcome });
        let mut answers: Vec<_> = items.iter().map(|item| Answer::Embedding(embedding(item))).collect();
        match outcome {
            Outcome::Answered => {}
            Outcome::Short => drop(answers.pop()),
            Outcome::Failed => return Err(EngineError::Failed("as planned".to_owned())),
            Outcome::OutOfMemory => return Err(EngineError::OutOfMemory("as planned".to_owned())),
            Outcome::DeviceLost => return Err(EngineError::DeviceLost("as planned".to_owned())),
            Outcome::Died => {
                self.process.kill();
                return Err(EngineError::DeviceLost("the process is dead".to_owned()));
            }
        }
        Ok(answers)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}
