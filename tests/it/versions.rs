//! Versions: what earlier builds have written is read by today's, and what today's write satisfies what was promised then.
//!
//! `tests/fixtures/wire/v*/` holds messages with the schemas of their time, `tests/fixtures/versions/` the files of a queue
//! and of ledgers in every layout that they had, made by `tests/tools/make_versions.sh`. What lies there stays for ever. The
//! queue's first layout, which was never released, is made of the second by a test of `durability.rs`.

use std::path::{Path, PathBuf};
use std::process::Output;

use inferq_shared::broker::BrokerUrl;
use inferq_shared::manifest::Manifest;
use inferq_shared::reply::Reply;
use inferq_tests::process::{WorkerProcess, command};
use rusqlite::Connection;
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::wire::{decode, fixtures, kept_schemas, root};

/// What stands in every object of a message that a later version adds to.
const LATER: &str = "a_later_field";

/// The folders of queue and ledgers that are kept, each made by one build.
fn kept() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(root().join("tests/fixtures/versions")).unwrap();
    let folders: Vec<_> = folders.map(|folder| folder.unwrap().path()).collect();
    assert!(!folders.is_empty(), "the fixtures are there");
    folders
}

/// A copy of a file that is kept, in this folder.
fn copied(from: &Path, name: &str, to: &TempDir) -> PathBuf {
    let copy = to.path().join(name);
    std::fs::copy(from.join(name), &copy).unwrap();
    copy
}

fn user_version(path: &Path) -> i64 {
    Connection::open(path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn inferq(arguments: &[&str]) -> Output {
    command("inferq").args(arguments).output().unwrap()
}

/// What a command wrote.
fn written(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Rows of an output: ids and embeddings.
fn rows(lines: &str) -> Vec<(String, Value)> {
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["id"].as_str().unwrap().to_owned(), row["embedding"].clone())).collect()
}

/// The embeddings of rows, in order.
fn embeddings(rows: &[(String, Value)]) -> Vec<&Value> {
    rows.iter().map(|(_, embedding)| embedding).collect()
}

#[test]
fn every_queue_file_ever_kept_is_worked_off_and_its_ledgers_are_collected() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts.jsonl");
    let input = "\"A bird sings in the garden.\"\n\"The train leaves at noon.\"\n\"Bread is made of flour.\"\n";
    std::fs::write(&texts, input).unwrap();
    // The echo engine answers the same text alike, whenever it was asked.
    let (texts, output) = (texts.display().to_string(), folder.path().join("vectors.jsonl"));
    let run = ["run", "--engine", "echo", "--input", &texts, "--output", &output.display().to_string()];
    written(inferq(&run));
    let now = rows(&std::fs::read_to_string(output).unwrap());
    for kept in kept() {
        let folder = tempfile::tempdir().unwrap();
        let queue = copied(&kept, "queue.db", &folder);
        let url = BrokerUrl::sqlite(&queue).to_string();
        let _worker = WorkerProcess::start(&queue, &[]);
        for ledger in ["answered.db", "waiting.db"] {
            let ledger = copied(&kept, ledger, &folder).display().to_string();
            let collect = ["collect", "--queue", &url, "--ledger", &ledger, "--output", "-", "--timeout-s", "60"];
            let collected = rows(&written(inferq(&collect)));
            assert_eq!(embeddings(&collected), embeddings(&now), "{ledger} of {}", kept.display());
            assert_eq!(collected[2].0, "doc-3");
        }
    }
}

#[test]
fn todays_layouts_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (url, texts, ledger) = (BrokerUrl::sqlite(path("queue.db")).to_string(), path("texts.txt"), path("ledger.db"));
    std::fs::write(&texts, "a text\n").unwrap();
    assert!(inferq(&["setup", "--queue", &url]).status.success());
    let (texts, given) = (texts.display().to_string(), ledger.display().to_string());
    assert!(inferq(&["submit", "--queue", &url, "--input", &texts, "--ledger", &given]).status.success());
    let named = |queue: &Path, ledger: &Path| format!("queue-{}-ledger-{}", user_version(queue), user_version(ledger));
    let today = root().join("tests/fixtures/versions").join(named(&path("queue.db"), &ledger));
    assert!(today.exists(), "{} is missing: run tests/tools/make_versions.sh", today.display());
    for kept in kept() {
        assert!(kept.ends_with(named(&kept.join("queue.db"), &kept.join("waiting.db"))), "{}", kept.display());
    }
}

#[test]
fn a_file_of_a_newer_layout_is_refused_by_name_and_left_as_it_is() {
    for name in ["queue.db", "waiting.db"] {
        let folder = tempfile::tempdir().unwrap();
        let path = copied(&kept()[0], name, &folder);
        let newer = Connection::open(&path).unwrap();
        newer.execute_batch("CREATE TABLE more (a TEXT); PRAGMA user_version = 99").unwrap();
        drop(newer);
        let before = std::fs::read(&path).unwrap();
        let (url, ledger) = (BrokerUrl::sqlite(&path).to_string(), path.display().to_string());
        let ran = match name {
            "queue.db" => inferq(&["status", "--queue", &url]),
            _ => inferq(&["collect", "--ledger", &ledger, "--output", "-"]),
        };
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(64), "{said}");
        assert!(said.contains("99, this build knows") && said.contains(name), "{said}");
        assert!(std::fs::read(&path).unwrap() == before, "{name} was changed");
    }
}

/// The message with a field more in each of its objects, but for metadata, which is the submitter's.
fn with_later_fields(message: &Value) -> Value {
    match message {
        Value::Object(fields) => {
            let each = |(name, value): (&String, &Value)| {
                let value = if name == "metadata" { value.clone() } else { with_later_fields(value) };
                (name.clone(), value)
            };
            let mut fields: Map<_, _> = fields.iter().map(each).collect();
            fields.insert(LATER.to_owned(), serde_json::json!({"of": ["any", 1, null]}));
            Value::Object(fields)
        }
        Value::Array(list) => list.iter().map(with_later_fields).collect(),
        other => other.clone(),
    }
}

#[test]
fn what_a_later_version_adds_to_a_message_changes_nothing_for_todays_readers_and_every_schema() {
    for (kind, schemas) in [("job", kept_schemas("job")), ("reply", kept_schemas("reply"))] {
        for (name, text) in fixtures(kind) {
            let later = with_later_fields(&serde_json::from_str(&text).unwrap());
            assert!(later.to_string().contains(LATER));
            match kind {
                "job" => assert_eq!(decode(later.to_string()), decode(&text), "{name}"),
                _ => {
                    let read = |text: &str| Reply::decode(text.as_bytes()).unwrap();
                    assert_eq!(read(&later.to_string()), read(&text), "{name}");
                }
            }
            assert!(schemas.iter().all(|schema| schema.is_valid(&later)), "{name}");
        }
    }
}

#[test]
fn a_schema_is_kept_for_every_version_and_allows_what_was_kept_beside_it() {
    for folder in std::fs::read_dir(root().join("tests/fixtures/wire")).unwrap() {
        for kind in ["job", "reply"] {
            let schema = folder.as_ref().unwrap().path().join(format!("{kind}.schema.json"));
            assert!(schema.exists(), "{} is missing", schema.display());
        }
    }
    for kind in ["job", "reply"] {
        for (name, text) in fixtures(kind) {
            let message = serde_json::from_str(&text).unwrap();
            assert!(kept_schemas(kind).iter().all(|schema| schema.is_valid(&message)), "{name}");
        }
    }
}

#[test]
fn every_manifest_of_parts_ever_kept_is_still_read() {
    let manifests = fixtures("manifest");
    assert!(!manifests.is_empty());
    for (name, text) in manifests {
        let manifest = Manifest::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again: Value = serde_json::from_slice(&manifest.encode()).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(&text).unwrap(), "{name}");
    }
}
