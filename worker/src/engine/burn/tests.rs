//! Tests of loading and running models, on small ones made here.

use std::collections::BTreeMap;
use std::path::Path;

use inferq_shared::job::Input;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::engine::{Answer, EngineError, Tokens, unit};

const HIDDEN: usize = 12;
const WIDE: usize = 20;
const VOCABULARY: usize = 40;
const POSITIONS: usize = 80;

const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2,
  "intermediate_size": 20, "vocab_size": 40, "max_position_embeddings": 80, "type_vocab_size": 2,
  "hidden_act": "gelu", "layer_norm_eps": 1e-12}"#;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
  "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
  "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "\u0023\u0023",
            "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "one": 1, "two": 2}}}"#;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Random weights of the size that [`CONFIG`] says.
fn tensors() -> Tensors {
    let mut rng = StdRng::seed_from_u64(7);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5)).collect();
        tensors.insert(name, (shape.to_vec(), values));
    };
    for (name, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in ["encoder.layer.0", "encoder.layer.1"] {
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            add(format!("{layer}.{part}.weight"), &[HIDDEN, HIDDEN]);
            add(format!("{layer}.{part}.bias"), &[HIDDEN]);
        }
        for (part, outputs, inputs) in [("intermediate.dense", WIDE, HIDDEN), ("output.dense", HIDDEN, WIDE)] {
            add(format!("{layer}.{part}.weight"), &[outputs, inputs]);
            add(format!("{layer}.{part}.bias"), &[outputs]);
        }
        norms.extend([format!("{layer}.attention.output.LayerNorm"), format!("{layer}.output.LayerNorm")]);
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[HIDDEN]);
        add(format!("{norm}.bias"), &[HIDDEN]);
    }
    tensors
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn write(directory: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A complete model directory.
fn model() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "config.json", CONFIG);
    write(directory.path(), "tokenizer.json", TOKENIZER);
    write(directory.path(), "model.safetensors", safetensors(&tensors()));
    directory
}

fn options(directory: &Path, threads: usize, kernels: Kernels) -> LoadOptions {
    let threads = NonZeroUsize::new(threads).unwrap();
    LoadOptions { threads, kernels, ..LoadOptions::new(directory.to_owned()) }
}

fn open(directory: &Path) -> Result<Loaded, LoadError> {
    load(&options(directory, 1, Kernels::Own))
}

/// What loading says after `break_it`; never a panic.
fn refusal(break_it: impl FnOnce(&Path)) -> String {
    let directory = model();
    break_it(directory.path());
    let error = open(directory.path()).err().expect("a broken model is refused").to_string();
    assert!(error.starts_with(&directory.path().display().to_string()), "{error}");
    error
}

fn refused_tensors(change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = tensors();
    change(&mut tensors);
    refusal(|directory| write(directory, "model.safetensors", safetensors(&tensors)))
}

fn items(lengths: &[usize]) -> Vec<Tokens> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut item = |length: &usize| Tokens {
        ids: (0..*length).map(|_| rng.random_range(0..VOCABULARY as u32)).collect(),
        type_ids: (0..*length).map(|i| u32::from(i % 2 == 1)).collect(),
    };
    lengths.iter().map(&mut item).collect()
}

fn vectors(loaded: &mut Loaded, items: &[Tokens]) -> Vec<Vec<f32>> {
    let items: Vec<&Tokens> = items.iter().collect();
    let answers = loaded.engines[0].infer(&items).unwrap();
    let vector = |answer: &Answer| match answer {
        Answer::Embedding(vector) => vector.to_vec(),
        Answer::Labels(_) => panic!("an embedding model gave labels"),
    };
    answers.iter().map(vector).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn our_kernels_and_burns_give_the_same_numbers_at_any_length_and_thread_count() {
    let directory = model();
    let items = items(&[1, 80, 3, 17, 64, 65, 2, 33]);
    let mut by_burn = load(&options(directory.path(), 1, Kernels::Burn)).unwrap();
    let expected = vectors(&mut by_burn, &items);
    for threads in [1, 2, 5] {
        let mut ours = load(&options(directory.path(), threads, Kernels::Own)).unwrap();
        let batched = vectors(&mut ours, &items);
        assert!(largest_difference(&batched, &expected) < 1e-5, "{threads} threads");
        let alone: Vec<_> = items.iter().map(|item| vectors(&mut ours, std::slice::from_ref(item)).remove(0)).collect();
        assert!(largest_difference(&alone, &expected) < 1e-5, "{threads} threads, alone");
    }
}

#[test]
fn a_loaded_model_is_described_checked_and_warm() {
    let directory = model();
    let mut loaded = open(directory.path()).unwrap();
    assert_eq!((loaded.info.dimensions, loaded.info.max_tokens), (HIDDEN, POSITIONS));
    assert_eq!((loaded.info.device.as_str(), loaded.tokenizer.max_tokens()), ("cpu", POSITIONS));
    loaded.engines[0].warm_up().unwrap();
    loaded.engines[0].check().unwrap();
    assert_eq!(loaded.engines[0].infer(&[]), Ok(Vec::new()));
    let mut named = options(directory.path(), 1, Kernels::Own);
    named.name = Some("mine".to_owned());
    assert_eq!(load(&named).unwrap().info.name, "mine");
}

#[test]
fn an_item_that_the_model_cannot_read_fails_the_batch_by_name() {
    let directory = model();
    let mut loaded = open(directory.path()).unwrap();
    let good = Tokens { ids: vec![1], type_ids: vec![0] };
    let bad = [
        (Tokens { ids: vec![40], type_ids: vec![0] }, "token 40 is not among"),
        (Tokens { ids: vec![1], type_ids: vec![2] }, "token type 2 is not among"),
        (Tokens { ids: vec![], type_ids: vec![] }, "0 tokens"),
        (Tokens { ids: vec![1], type_ids: vec![] }, "1 tokens with 0 types"),
        (Tokens { ids: vec![1; 81], type_ids: vec![0; 81] }, "reads 1 to 80"),
    ];
    for (bad, expected) in bad {
        let error = loaded.engines[0].infer(&[&good, &bad]).unwrap_err().to_string();
        assert!(error.contains("item 1 of the batch") && error.contains(expected), "{error}");
    }
}

#[test]
fn numbers_that_overflow_fail_the_item_that_has_them_and_the_check() {
    let mut tensors = tensors();
    // Finite weights, but the first word's row is so large that its layer norm overflows.
    tensors.get_mut("embeddings.word_embeddings.weight").unwrap().1[..HIDDEN].fill(3e38);
    tensors.get_mut("embeddings.word_embeddings.weight").unwrap().1[0] = -3e38;
    let directory = model();
    write(directory.path(), "model.safetensors", safetensors(&tensors));
    let mut loaded = open(directory.path()).unwrap();
    let [good, bad] = [1, 0].map(|id| Tokens { ids: vec![id], type_ids: vec![0] });
    assert!(loaded.engines[0].infer(&[&good]).is_ok());
    let error = loaded.engines[0].infer(&[&good, &bad]).unwrap_err();
    assert_eq!(error, EngineError::Failed("item 1 of the batch: numbers that are not finite".to_owned()));
}

#[test]
fn a_missing_file_is_named_with_what_it_is_for() {
    for (name, hint) in [
        ("config.json", "Hugging Face model directory"),
        ("tokenizer.json", "fast tokenizer"),
        ("model.safetensors", "holds the weights"),
    ] {
        let error = refusal(|directory| std::fs::remove_file(directory.join(name)).unwrap());
        assert!(error.contains(name) && error.contains(hint), "{error}");
    }
    let error = refusal(|directory| {
        std::fs::rename(directory.join("model.safetensors"), directory.join("pytorch_model.bin")).unwrap();
    });
    assert!(error.contains("convert the weights to safetensors"), "{error}");
}

#[test]
fn a_configuration_that_cannot_be_built_is_refused() {
    for (from, to, expected) in [
        ("\"bert\"", "\"llama\"", "model_type \"llama\" is not supported"),
        ("\"model_type\": \"bert\", ", "", "no model_type"),
        ("\"gelu\"", "\"relu\"", "hidden_act \"relu\""),
        ("heads\": 3", "heads\": 5", "not a multiple of num_attention_heads 5"),
        ("heads\": 3", "heads\": 0", "num_attention_heads is 0"),
        ("size\": 12", "size\": -1", "invalid value"),
        ("size\": 12", "size\": 1099511627776", "must be between"),
        ("layers\": 2", "layers\": 100000", "at most 1024"),
        ("\"hidden_size\": 12, ", "", "missing field `hidden_size`"),
        ("{", "[", "config.json"),
    ] {
        assert!(CONFIG.contains(from));
        let error = refusal(|directory| write(directory, "config.json", CONFIG.replacen(from, to, 1)));
        assert!(error.contains(expected), "{from} -> {to}: {error}");
    }
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_refused() {
    let dense = "encoder.layer.1.output.dense.weight";
    let missing = refused_tensors(|tensors| drop(tensors.remove(dense)));
    assert!(missing.contains(&format!("no tensor named {dense}")), "{missing}");
    let shape = refused_tensors(|tensors| tensors.get_mut(dense).unwrap().0.reverse());
    assert!(shape.contains("shape [20, 12], config.json asks for [12, 20]"), "{shape}");
    for bad in [f32::NAN, f32::INFINITY] {
        let error = refused_tensors(|tensors| tensors.get_mut(dense).unwrap().1[7] = bad);
        assert!(error.contains(dense) && error.contains("infinite numbers or NaN"), "{error}");
    }
    let wider = CONFIG.replace("\"intermediate_size\": 20", "\"intermediate_size\": 16777216");
    let error = refusal(|directory| write(directory, "config.json", wider));
    assert!(error.contains("config.json asks for [16777216, 12]"), "{error}");
}

#[test]
fn a_truncated_or_foreign_weight_file_is_refused_wherever_it_is_cut() {
    let whole = safetensors(&tensors());
    for length in [0, 1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        let error = refusal(|directory| write(directory, "model.safetensors", &whole[..length]));
        assert!(error.contains("no complete safetensors file"), "{length}: {error}");
    }
    let mut foreign = whole;
    foreign[..8].fill(0xff);
    let error = refusal(|directory| write(directory, "model.safetensors", &foreign));
    assert!(error.contains("no complete safetensors file"), "{error}");
}

#[test]
fn what_the_other_files_ask_for_is_done_or_refused() {
    let pooling = r#"{"pooling_mode": "lasttoken"}"#;
    let error = refusal(|directory| write(directory, "1_Pooling/config.json", pooling));
    assert!(error.contains("1_Pooling/config.json") && error.contains("lasttoken"), "{error}");
    let modules = r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
    let error = refusal(|directory| write(directory, "modules.json", modules));
    assert!(error.contains("models.Dense is not supported"), "{error}");
    let outside = r#"[{"type": "sentence_transformers.models.Pooling", "path": "../.."}]"#;
    let error = refusal(|directory| write(directory, "modules.json", outside));
    assert!(error.contains("leads out"), "{error}");
    let error = refusal(|directory| write(directory, "tokenizer.json", "{}"));
    assert!(error.contains("tokenizer.json: no tokenizer"), "{error}");
    let directory = model();
    write(directory.path(), "sentence_bert_config.json", r#"{"max_seq_length": 5, "do_lower_case": true}"#);
    let loaded = open(directory.path()).unwrap();
    let tokens = loaded.tokenizer.encode(&Input::Text("ONE two one two one two".to_owned()), true).unwrap();
    assert_eq!(tokens.ids, [1, 2, 1, 2, 1]);
}

#[test]
fn pooling_follows_the_file() {
    let directory = model();
    let items = items(&[6]);
    let mean = vectors(&mut open(directory.path()).unwrap(), &items);
    write(directory.path(), "1_Pooling/config.json", r#"{"pooling_mode": "cls"}"#);
    let cls = vectors(&mut open(directory.path()).unwrap(), &items);
    assert!(largest_difference(&mean, &cls) > 1e-3);
}

#[test]
fn a_sharded_and_prefixed_model_is_the_same_model_of_another_revision() {
    let directory = model();
    let items = items(&[9, 4]);
    let mut single = open(directory.path()).unwrap();
    let expected = vectors(&mut single, &items);
    std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    let (mut shards, mut map) = ([Tensors::new(), Tensors::new()], BTreeMap::new());
    for (i, (name, tensor)) in tensors().into_iter().enumerate() {
        let name = format!("bert.{name}");
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2));
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        write(directory.path(), &format!("model-{i}.safetensors"), safetensors(shard));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    write(directory.path(), "model.safetensors.index.json", index);
    let mut sharded = open(directory.path()).unwrap();
    assert_eq!(vectors(&mut sharded, &items), expected);
    assert_ne!(sharded.info.revision, single.info.revision);
}

#[test]
fn half_precision_weights_are_read_as_single() {
    let mut tensors = tensors();
    tensors.values_mut().flat_map(|tensor| &mut tensor.1).for_each(|value| *value = (*value * 128.0).round() / 128.0);
    let directory = model();
    let items = items(&[5]);
    write(directory.path(), "model.safetensors", safetensors(&tensors));
    let expected = vectors(&mut open(directory.path()).unwrap(), &items);
    // These values have at most seven significant bits: both half formats hold them exactly.
    let halves = |bits: fn(f32) -> u16, dtype: Dtype| {
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(dtype, (*shape).clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    };
    let f16 = halves(|value| burn::tensor::f16::from_f32(value).to_bits(), Dtype::F16);
    let bf16 = halves(|value| burn::tensor::bf16::from_f32(value).to_bits(), Dtype::BF16);
    for file in [f16, bf16] {
        write(directory.path(), "model.safetensors", file);
        assert_eq!(vectors(&mut open(directory.path()).unwrap(), &items), expected);
    }
}

#[test]
fn replicas_share_one_copy_of_the_weights() {
    let directory = model();
    let mut options = options(directory.path(), 1, Kernels::Own);
    options.replicas = NonZeroUsize::new(3);
    let mut loaded = load(&options).unwrap();
    let item = &items(&[7])[0];
    let answers: Vec<_> = loaded.engines.iter_mut().map(|engine| engine.infer(&[item]).unwrap()).collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]) && answers.len() == 3);
}

#[test]
fn padded_batches_give_the_same_numbers_whatever_has_room() {
    let directory = model();
    let items = items(&[1, 80, 3, 17, 64, 65, 2, 33, 16, 31, 5, 5, 79]);
    for pooling in ["mean", "cls", "max"] {
        write(directory.path(), "1_Pooling/config.json", format!("{{\"pooling_mode\": \"{pooling}\"}}"));
        let expected = vectors(&mut open(directory.path()).unwrap(), &items);
        for batch_tokens in [1, 64, 200, 4096] {
            let options =
                LoadOptions { batch_tokens: Some(batch_tokens), ..options(directory.path(), 1, Kernels::Burn) };
            let mut padded = load(&options).unwrap();
            let apart = largest_difference(&vectors(&mut padded, &items), &expected);
            assert!(apart < 1e-5, "{pooling}, {batch_tokens} tokens: {apart}");
        }
    }
}

#[test]
fn a_device_without_room_is_given_smaller_batches_and_the_answers_stay() {
    let directory = model();
    let items = items(&[9, 80, 3, 17, 64, 12]);
    let expected = vectors(&mut open(directory.path()).unwrap(), &items);
    let with = |fault: &str| LoadOptions {
        batch_tokens: Some(512),
        fault: Some(fault.parse().unwrap()),
        ..options(directory.path(), 1, Kernels::Burn)
    };
    let mut short = load(&with("oom@0")).unwrap();
    let warm = short.engines[0].warm_up().unwrap();
    assert!(warm.batch_tokens.is_some_and(|tokens| tokens < 2 * 80), "{warm:?}");
    short.engines[0].check().unwrap();
    assert!(largest_difference(&vectors(&mut short, &items), &expected) < 1e-5);
}

#[test]
fn a_padded_device_is_checked_against_what_the_processor_computes() {
    let directory = model();
    let checked = |fault: Option<&str>| {
        let fault = fault.map(|fault| fault.parse().unwrap());
        let mut loaded = load(&LoadOptions { fault, ..options(directory.path(), 1, Kernels::Burn) }).unwrap();
        loaded.engines[0].check()
    };
    assert_eq!(checked(None), Ok(()));
    for (fault, says) in
        [("zeros@0", "without length"), ("nan@0", "not finite"), ("wrong@0", "that the processor computed")]
    {
        let error = checked(Some(fault)).unwrap_err();
        assert!(matches!(&error, EngineError::DeviceLost(what) if what.contains(says)), "{fault}: {error}");
    }
}

#[test]
fn each_precision_keeps_within_its_tolerance() {
    let directory = model();
    let items = items(&[1, 80, 3, 17, 64]);
    let units = |vectors: Vec<Vec<f32>>| vectors.iter().map(|vector| unit(vector).unwrap()).collect::<Vec<_>>();
    let expected = units(vectors(&mut open(directory.path()).unwrap(), &items));
    for precision in Precision::ALL {
        let options = LoadOptions { precision: Some(precision), ..options(directory.path(), 1, Kernels::Burn) };
        let found = units(vectors(&mut load(&options).unwrap(), &items));
        let apart = largest_difference(&found, &expected);
        assert!(apart < precision.tolerance(), "{precision}: {apart}");
        assert_eq!(apart < 1e-5, precision == Precision::F32, "{precision}: {apart}");
    }
}

#[test]
fn the_processor_refuses_to_be_less_exact() {
    let directory = model();
    let options = LoadOptions { precision: Some(Precision::Bf16), ..LoadOptions::new(directory.path().to_owned()) };
    let error = load(&options).err().unwrap().to_string();
    assert!(error.contains("precision bf16") && error.contains("f32"), "{error}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_card_in_a_build_without_any_is_refused_with_what_to_build() {
    let error = "cuda:0".parse::<crate::engine::device::DeviceChoice>().unwrap().resolve().unwrap_err().to_string();
    assert!(error.contains("make cuda"), "{error}");
}
