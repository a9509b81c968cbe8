//! Embeddings and token ids against a fixture made by transformers and torch, and each text alone against the same text
//! in any batch.
//!
//! The model lies in `INFERQ_TEST_MODEL`, else where `tests/tools/fetch_model.sh` puts it. Without it the tests fail and
//! name that script.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use inferq_shared::job::Input;
use inferq_worker::engine::burn::{Kernels, LoadOptions, load};
use inferq_worker::engine::{Answer, Engine, Loaded, Tokens};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

/// The largest difference that any number of a normalised embedding may have.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Fixture {
    limit: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    embedding: String,
}

impl Case {
    fn embedding(&self) -> Vec<f32> {
        let bytes = BASE64_STANDARD.decode(&self.embedding).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../fixtures/parity.json")).unwrap()
}

pub(crate) fn model_directory() -> PathBuf {
    let cache = || {
        let cache = std::env::var_os("INFERQ_MODEL_CACHE").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/inferq/models");
        cache.unwrap_or_else(home).join("all-MiniLM-L6-v2")
    };
    let directory = std::env::var_os("INFERQ_TEST_MODEL").map_or_else(cache, PathBuf::from);
    let is_there = directory.join("model.safetensors").is_file();
    assert!(is_there, "no model in {}: run tests/tools/fetch_model.sh, or set INFERQ_TEST_MODEL", directory.display());
    directory
}

fn loaded(kernels: Kernels, replicas: usize, threads: usize) -> Loaded {
    let number = |n| NonZeroUsize::new(n).unwrap();
    let options = LoadOptions {
        replicas: Some(number(replicas)),
        threads: number(threads),
        kernels,
        ..LoadOptions::new(model_directory())
    };
    load(&options).unwrap()
}

fn tokens(loaded: &Loaded, texts: &[Case]) -> Vec<Tokens> {
    let encode = |case: &Case| loaded.tokenizer.encode(&Input::Text(case.text.clone()), true).unwrap();
    texts.iter().map(encode).collect()
}

fn embeddings(engine: &mut dyn Engine, items: &[&Tokens]) -> Vec<Vec<f32>> {
    let answers = engine.infer(items).unwrap();
    assert_eq!(answers.len(), items.len());
    answers.iter().map(normalised).collect()
}

fn normalised(answer: &Answer) -> Vec<f32> {
    let Answer::Embedding(vector) = answer else { panic!("an embedding model answered {answer:?}") };
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|value| (f64::from(*value) / length) as f32).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn token_ids_are_those_of_transformers() {
    let fixture = fixture();
    assert!(fixture.cases.len() >= 40);
    let loaded = loaded(Kernels::Own, 1, 1);
    assert_eq!((loaded.tokenizer.max_tokens(), loaded.info.max_tokens), (fixture.limit, fixture.limit));
    for (case, tokens) in fixture.cases.iter().zip(tokens(&loaded, &fixture.cases)) {
        assert_eq!(tokens.ids, case.ids, "{:?}", case.text);
        assert!(tokens.type_ids.iter().all(|id| *id == 0));
    }
}

#[test]
fn each_text_alone_is_what_torch_makes_of_it() {
    let fixture = fixture();
    for kernels in [Kernels::Own, Kernels::Burn] {
        let mut loaded = loaded(kernels, 1, 2);
        let mut largest = 0f32;
        for (case, tokens) in fixture.cases.iter().zip(tokens(&loaded, &fixture.cases)) {
            let got = embeddings(loaded.engines[0].as_mut(), &[&tokens]);
            let difference = difference(&got[0], &case.embedding());
            assert!(difference <= TOLERANCE, "{kernels:?}, {:?}: {difference}", case.text);
            largest = largest.max(difference);
        }
        println!("largest difference from torch with {kernels:?} kernels: {largest:e}");
    }
}

#[test]
fn each_text_alone_equals_itself_in_any_batch() {
    let fixture = fixture();
    for (kernels, threads, rounds) in [(Kernels::Own, 1, 6), (Kernels::Own, 3, 6), (Kernels::Burn, 2, 1)] {
        let mut loaded = loaded(kernels, 1, threads);
        let tokens = tokens(&loaded, &fixture.cases);
        let engine = loaded.engines[0].as_mut();
        let alone: Vec<_> = tokens.iter().map(|item| embeddings(engine, &[item]).remove(0)).collect();
        let mut rng = StdRng::seed_from_u64(3);
        let mut largest = 0f32;
        for _ in 0..rounds {
            let mut order: Vec<usize> = (0..tokens.len()).collect();
            order.shuffle(&mut rng);
            let mut rest = order.as_slice();
            while !rest.is_empty() {
                let (batch, after) = rest.split_at(rng.random_range(1..=rest.len().min(40)));
                rest = after;
                let items: Vec<&Tokens> = batch.iter().map(|place| &tokens[*place]).collect();
                for (place, got) in batch.iter().zip(embeddings(engine, &items)) {
                    let difference = difference(&got, &alone[*place]);
                    let text = &fixture.cases[*place].text;
                    assert!(difference <= TOLERANCE, "{kernels:?}, a batch of {}, {text:?}: {difference}", batch.len());
                    largest = largest.max(difference);
                }
            }
        }
        println!("largest difference in batches, {kernels:?} kernels, {threads} threads: {largest:e}");
    }
}

#[test]
fn replicas_agree_to_the_last_bit_and_check_themselves() {
    let fixture = fixture();
    let mut loaded = loaded(Kernels::Own, 2, 1);
    let tokens = tokens(&loaded, &fixture.cases);
    let items: Vec<&Tokens> = tokens.iter().collect();
    let mut answers: Vec<Vec<Answer>> = Vec::new();
    for engine in &mut loaded.engines {
        engine.warm_up().unwrap();
        engine.check().unwrap();
        answers.push(engine.infer(&items).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn equal_items_and_the_pooled_width_are_as_the_model_says() {
    let mut loaded = loaded(Kernels::Own, 1, 2);
    let item = loaded.tokenizer.encode(&Input::Text("twice".to_owned()), false).unwrap();
    let answers = loaded.engines[0].infer(&[&item, &item]).unwrap();
    assert_eq!(answers[0], answers[1]);
    let Answer::Embedding(vector) = &answers[0] else { panic!("{:?}", answers[0]) };
    assert_eq!((vector.len(), loaded.info.dimensions), (384, 384));
    assert_eq!(loaded.info.name, "all-MiniLM-L6-v2");
    assert!(loaded.info.revision.starts_with("sha256:") && loaded.info.revision.len() == 71);
    let _: &Arc<[f32]> = vector;
}
