//! Model directories with one file missing, cut short or not of its format: `inferq-worker` ends with one line that
//! names the file and what is wrong. It never panics, and takes no job.

use std::fs;
use std::path::Path;

use inferq_shared::broker::Message;
use inferq_tests::process::{WorkerProcess, command};
use inferq_tests::queue_file::QueueFile;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Answer, exit};
use crate::parity::model_directory;

/// What is done to a good directory, and what comes of it.
pub(super) struct Row {
    pub(super) given: &'static str,
    pub(super) answer: Answer,
    file: &'static str,
    damage: Damage,
}

/// What a file of a good directory becomes.
enum Damage {
    Gone,
    /// A directory of its name.
    Directory,
    /// The first so many bytes of it.
    Cut(usize),
    /// Other bytes.
    Bytes(&'static [u8]),
    /// It with this field set.
    Field(&'static str, fn() -> Value),
    /// It changed in place, as long as it was.
    Changed(fn(&mut [u8])),
}

const fn row(given: &'static str, file: &'static str, damage: Damage, says: &'static str) -> Row {
    Row { given, answer: exit(64, says), file, damage }
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const POOLING: &str = "1_Pooling/config.json";
const SENTENCE: &str = "sentence_bert_config.json";
const MODULES: &str = "modules.json";

/// What Git puts in the place of a large file that was not fetched.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db\nsize 90868376\n";

/// Bytes of the length that opens a safetensors file.
const LENGTH_BYTES: usize = 8;

fn put(bytes: &mut [u8], from: &str, to: &str) {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the header names it");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

/// What a worker is given as `--model`: MiniLM's directory with one thing changed.
pub(super) const MODELS: &[Row] = &[
    row("no `config.json`", CONFIG, Damage::Gone, "config.json: no such file; it describes the model"),
    row("`config.json` a directory", CONFIG, Damage::Directory, "config.json: Is a directory"),
    row("`config.json` cut short", CONFIG, Damage::Cut(100), "config.json: EOF while parsing"),
    row("`config.json` not JSON", CONFIG, Damage::Bytes(b"\x80\x02}q\x00"), "config.json: expected value at line 1"),
    row("`config.json` a list", CONFIG, Damage::Bytes(b"[]"), "config.json: invalid length 0"),
    row(
        "`config.json` of another architecture",
        CONFIG,
        Damage::Field("model_type", || json!("gpt2")),
        "config.json: model_type \"gpt2\" is not supported",
    ),
    row(
        "`config.json` with `hidden_size` 0",
        CONFIG,
        Damage::Field("hidden_size", || json!(0)),
        "config.json: hidden_size is 0",
    ),
    row(
        "`config.json` with `vocab_size` -1",
        CONFIG,
        Damage::Field("vocab_size", || json!(-1)),
        "config.json: invalid value: integer `-1`",
    ),
    row(
        "`config.json` of a larger model",
        CONFIG,
        Damage::Field("num_hidden_layers", || json!(7)),
        "model.safetensors: no tensor named encoder.layer.6",
    ),
    row(
        "`config.json` of a wider model",
        CONFIG,
        Damage::Field("hidden_size", || json!(768)),
        "model.safetensors: tensor embeddings.word_embeddings.weight: shape [30522, 384], config.json asks for [30522, 768]",
    ),
    row("no `tokenizer.json`", TOKENIZER, Damage::Gone, "tokenizer.json: no such file; it turns text into tokens"),
    row(
        "`tokenizer.json` cut short",
        TOKENIZER,
        Damage::Cut(1000),
        "tokenizer.json: no tokenizer: the tokenizer failed: EOF while parsing a string",
    ),
    row("`tokenizer.json` not JSON", TOKENIZER, Damage::Bytes(b"[PAD]\n[UNK]\n"), "tokenizer.json: no tokenizer"),
    row("`tokenizer.json` empty JSON", TOKENIZER, Damage::Bytes(b"{}"), "tokenizer.json: no tokenizer"),
    row("no `model.safetensors`", WEIGHTS, Damage::Gone, "model.safetensors: no such file; it holds the weights"),
    row(
        "`model.safetensors` empty",
        WEIGHTS,
        Damage::Bytes(b""),
        "model.safetensors: no complete safetensors file (0 bytes)",
    ),
    row(
        "`model.safetensors` cut short",
        WEIGHTS,
        Damage::Cut(90_868_375),
        "model.safetensors: no complete safetensors file (90868375 bytes)",
    ),
    row(
        "`model.safetensors` cut within its header",
        WEIGHTS,
        Damage::Cut(1000),
        "model.safetensors: no complete safetensors file (1000 bytes)",
    ),
    row(
        "`model.safetensors` a pickle",
        WEIGHTS,
        Damage::Bytes(b"\x80\x02}q\x00(X\x0a\x00\x00\x00"),
        "model.safetensors: no complete safetensors file",
    ),
    row(
        "`model.safetensors` that Git did not fetch",
        WEIGHTS,
        Damage::Bytes(POINTER),
        "model.safetensors: no complete safetensors file",
    ),
    row(
        "`model.safetensors` without a tensor",
        WEIGHTS,
        Damage::Changed(|bytes| {
            put(bytes, "encoder.layer.5.output.dense.weight", "encoder.layer.x.output.dense.weight")
        }),
        "model.safetensors: no tensor named encoder.layer.5.output.dense.weight",
    ),
    row(
        "`model.safetensors` with numbers of another type",
        WEIGHTS,
        Damage::Changed(|bytes| put(bytes, "\"F32\"", "\"I32\"")),
        "numbers of type I32; F32, F16 and BF16 are read",
    ),
    row(
        "`model.safetensors` with NaN",
        WEIGHTS,
        Damage::Changed(|bytes| {
            // The last number of the last tensor that is used: the one before `pooler.*`, whose bytes lie at the end.
            let header = LENGTH_BYTES + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            let middle = header + (bytes.len() - header) / 2 / 4 * 4;
            bytes[middle..middle + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        "it holds infinite numbers or NaN",
    ),
    row("no `1_Pooling/config.json`", POOLING, Damage::Gone, "1_Pooling/config.json: no such file; it says how"),
    row("`1_Pooling/config.json` cut short", POOLING, Damage::Cut(10), "1_Pooling/config.json: EOF while parsing"),
    row("`1_Pooling/config.json` a list", POOLING, Damage::Bytes(b"[1]"), "1_Pooling/config.json: invalid"),
    row(
        "`1_Pooling/config.json` with another mode",
        POOLING,
        Damage::Bytes(br#"{"pooling_mode":"lasttoken"}"#),
        "1_Pooling/config.json: pooling by lasttoken is not supported",
    ),
    row(
        "`sentence_bert_config.json` cut short",
        SENTENCE,
        Damage::Cut(10),
        "sentence_bert_config.json: EOF while parsing",
    ),
    row(
        "`sentence_bert_config.json` with a text for a number",
        SENTENCE,
        Damage::Bytes(br#"{"max_seq_length":"long"}"#),
        "sentence_bert_config.json: invalid type: string",
    ),
    row(
        "`sentence_bert_config.json` with `max_seq_length` 0",
        SENTENCE,
        Damage::Bytes(br#"{"max_seq_length":0}"#),
        "sentence_bert_config.json: max_seq_length is 0; it must be at least 3",
    ),
    row("`modules.json` cut short", MODULES, Damage::Cut(10), "modules.json: EOF while parsing"),
    row(
        "`modules.json` with a module that is not supported",
        MODULES,
        Damage::Bytes(br#"[{"type":"sentence_transformers.models.Dense"}]"#),
        "modules.json: a module of type sentence_transformers.models.Dense is not supported",
    ),
    row(
        "`manifest.json` cut short",
        "manifest.json",
        Damage::Bytes(br#"{"name":"a","#),
        "manifest.json: no manifest: EOF while parsing",
    ),
    row("an empty directory", "", Damage::Gone, "config.json: no such file"),
    row("a file", "", Damage::Bytes(b""), "model: not a directory; a model is a directory with config.json"),
];

/// Links to every file of the good directory.
fn link_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_all(&entry.path(), &place);
        } else {
            std::os::unix::fs::symlink(entry.path().canonicalize().unwrap(), place).unwrap();
        }
    }
}

impl Damage {
    fn apply(&self, good: &Path, place: &Path) {
        let read = || fs::read(good).unwrap();
        let bytes = match self {
            Self::Gone => return,
            Self::Directory => return fs::create_dir(place).unwrap(),
            Self::Cut(bytes) => read()[..*bytes].to_vec(),
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Field(name, value) => {
                let mut json: Value = serde_json::from_slice(&read()).unwrap();
                json[name] = value();
                json.to_string().into_bytes()
            }
            Self::Changed(change) => {
                let mut bytes = read();
                change(&mut bytes);
                bytes
            }
        };
        fs::write(place, bytes).unwrap();
    }
}

impl Row {
    /// The damaged model in a folder.
    fn make(&self, model: &Path) {
        let good = model_directory();
        if self.file.is_empty() {
            return match self.damage {
                Damage::Gone => fs::create_dir(model).unwrap(),
                _ => self.damage.apply(&good, model),
            };
        }
        link_all(&good, model);
        let place = model.join(self.file);
        if place.exists() {
            fs::remove_file(&place).unwrap();
        }
        self.damage.apply(&good.join(self.file), &place);
    }

    /// Starts a worker on it; says what differs from what should come of it.
    fn differs(&self) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        self.make(&model);
        let queue = format!("sqlite://{}", folder.path().join("queue.db").display());
        let ended = command("inferq-worker")
            .args(["--health", "127.0.0.1:0", "--queue", &queue, "--model"])
            .arg(&model)
            .output()
            .unwrap();
        let differs = self.answer.differs_from_end(&ended)?;
        Some(format!("{}: {} was expected, not {differs}", self.given, self.answer))
    }
}

#[test]
fn every_damaged_model_is_one_line_that_names_the_file_and_exit_64() {
    let wrong: Vec<String> = MODELS.par_iter().with_max_len(1).filter_map(Row::differs).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_says_no_longest_length_reads_as_much_as_it_has_positions() {
    let queue = QueueFile::new().await;
    let model = queue.beside("model");
    Row { file: SENTENCE, ..row("", "", Damage::Gone, "") }.make(&model);
    let _worker = WorkerProcess::start_with(&queue.path, &["--model", &model.display().to_string()]);
    let job = json!({"version": 1, "id": "long", "inputs": ["a ".repeat(600)], "parameters": {"truncate": false}});
    queue.publish(vec![Message { body: job.to_string().into(), ..Message::default() }]).await;
    let reply = queue.collect(1, |_| ()).await.remove("long").unwrap();
    let error = reply.results[0].error.as_ref().unwrap();
    assert!(error.message.contains("602 tokens, the limit is 512"), "{error:?}");
}
