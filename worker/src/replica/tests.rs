//! Tests of running batches: halving, bisecting, doubting the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::batch::{BatchLimits, Batcher, Padding};
use crate::engine::Warm;

/// Fails on some tokens, has no room for more than so many items, and counts its runs.
struct Scripted {
    poison: Vec<u32>,
    room: usize,
    healthy: bool,
    runs: usize,
    checks: usize,
}

impl Scripted {
    fn new(poison: Vec<u32>, room: usize) -> Self {
        Self { poison, room, healthy: true, runs: 0, checks: 0 }
    }
}

impl Engine for Scripted {
    fn warm_up(&mut self) -> Result<Warm, EngineError> {
        Ok(Warm::default())
    }

    fn check(&mut self) -> Result<(), EngineError> {
        self.checks += 1;
        if self.healthy { Ok(()) } else { Err(EngineError::DeviceLost("wrong numbers".to_owned())) }
    }

    fn infer(&mut self, items: &[&Tokens]) -> Result<Vec<Answer>, EngineError> {
        self.runs += 1;
        if items.len() > self.room {
            return Err(EngineError::OutOfMemory("no room".to_owned()));
        }
        if items.iter().any(|item| self.poison.contains(&item.ids[0])) {
            return Err(EngineError::Failed("poison".to_owned()));
        }
        Ok(items.iter().map(|item| Answer::Embedding(Arc::from([item.ids[0] as f32]))).collect())
    }
}

fn batch(rows: u32) -> Batch {
    let limits =
        BatchLimits { tokens_max: 1 << 20, items_max: 1 << 12, linger: Duration::ZERO, padding: Padding::Longest };
    let mut batcher = Batcher::new(limits);
    let now = Instant::now();
    let tokens = |id| Arc::new(Tokens { ids: vec![id], type_ids: vec![0] });
    batcher.push(1, (0..rows).map(|id| (id, tokens(id))), None, now);
    batcher.flush().unwrap()
}

#[test]
fn one_guilty_item_fails_alone_within_the_promised_number_of_runs() {
    for rows in [1u32, 2, 3, 7, 64, 256] {
        for guilty in [0, rows / 2, rows - 1] {
            let mut engine = Scripted::new(vec![guilty], usize::MAX);
            let batch = batch(rows);
            let answers = run(&mut engine, &batch).unwrap();
            for (row, answer) in batch.rows().iter().zip(answers) {
                assert_eq!(answer.is_err(), row.tokens.ids[0] == guilty);
            }
            let promised = 2 * rows.next_power_of_two().ilog2() as usize + 2;
            assert!(engine.runs <= promised, "{rows} rows took {} runs, {promised} are promised", engine.runs);
            assert_eq!(engine.checks, 1);
        }
    }
}

#[test]
fn what_does_not_fit_is_halved_until_it_does() {
    let mut engine = Scripted::new(vec![], 3);
    let answers = run(&mut engine, &batch(64)).unwrap();
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(engine.checks, 0, "a lack of memory is no doubt about the device");
}

#[test]
fn an_item_that_never_fits_fails_alone() {
    let mut engine = Scripted::new(vec![], 0);
    let answers = run(&mut engine, &batch(4)).unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.message.contains("out of memory"))));
}

#[test]
fn a_failure_on_a_device_that_computes_wrongly_is_the_devices() {
    let mut engine = Scripted { healthy: false, ..Scripted::new(vec![0], usize::MAX) };
    assert!(run(&mut engine, &batch(8)).unwrap_err().contains("wrong numbers"));
    assert_eq!(engine.runs, 1);
}

proptest! {
    #[test]
    fn every_row_is_answered_once_and_only_the_guilty_fail(rows in 1u32..200, poison in prop::collection::vec(0u32..200, 0..5), room in 1usize..300) {
        let mut engine = Scripted::new(poison.clone(), room);
        let batch = batch(rows);
        let answers = run(&mut engine, &batch).unwrap();
        prop_assert_eq!(answers.len(), rows as usize);
        for (row, answer) in batch.rows().iter().zip(answers) {
            let id = row.tokens.ids[0];
            match answer {
                Ok(answer) => prop_assert_eq!(answer, Answer::Embedding(Arc::from([id as f32]))),
                Err(_) => prop_assert!(poison.contains(&id)),
            }
        }
    }
}
