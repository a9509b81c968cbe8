//! What `collect` and `run` write: Parquet, compressed and followed JSONL, failures, and what is said at the end; killed
//! at many points, by two at once, and read by another program.
//!
//! Replies come from a responder in the test, over the real embedded queue, or from the worker inside `inferq run`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use futures_util::future::join_all;
use inferq_shared::job::{Inputs, Job};
use inferq_shared::reply::{Embedding, ItemResult, Label, Reply, ReplyError, Status, Timings};
use inferq_tests::process::{PATIENCE, command};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::producer::{Done, Place, Responder, answer, fed, ids, inferq, jsonl, piped, reading, refusal, rows, words};

/// Submits `lines` and has every job answered. Returns the ledger.
async fn answered(place: &Place, lines: &str, items_per_job: usize, reply: impl Fn(&Job) -> Reply) -> String {
    let input = place.file("texts.jsonl", lines);
    let ledger = place.name("ledger.db");
    let done = place.submit(&input, &["--ledger", &ledger, "--items-per-job", &items_per_job.to_string()]);
    assert!(done.code == 0 || done.code == 2, "{}", done.stderr);
    let jobs = done.stdout.split(" items in ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().replace(',', "");
    let mut responder = Responder::on(place).await;
    let taken = responder.take(jobs.parse().unwrap()).await;
    let bodies: Vec<Vec<u8>> = taken.iter().map(|(job, _)| reply(job).encode()).collect();
    for bodies in bodies.chunks(100) {
        responder.publish(&taken[0].1, bodies.to_vec()).await;
    }
    join_all(taken.into_iter().map(|(_, delivery)| delivery.lease.ack())).await;
    responder.close().await;
    ledger
}

/// A reply in which the items of an empty text fail, one of seven.
fn partly(job: &Job) -> Reply {
    let Inputs::Items(items) = &job.inputs else { panic!("submit sends inline inputs") };
    let mut reply = answer(job);
    for (result, item) in reply.results.iter_mut().zip(items) {
        if item.input.len_bytes() == 0 {
            (result.embedding, result.tokens) = (None, None);
            result.error = Some(ReplyError::new("input_too_long", "too long"));
            reply.status = Status::Partial;
        }
    }
    reply.timings_ms = Timings { queued: 5.0, intake: 1.0, batch: 2.0, engine: items.len() as f64 };
    reply
}

fn collect(ledger: &str, output: &Path, flags: &[&str]) -> Done {
    inferq(&[&["collect", "--ledger", ledger, "--output", output.to_str().unwrap()], flags].concat())
}

/// A copy of the ledger, since collecting removes the route: the replies are in it.
fn copy_of(place: &Place, ledger: &str, name: &str) -> String {
    fs::copy(ledger, place.path(name)).unwrap();
    place.name(name)
}

fn batches(path: &Path) -> (Vec<RecordBatch>, BTreeMap<String, String>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let metadata = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let metadata = metadata.into_iter().map(|entry| (entry.key, entry.value.unwrap_or_default())).collect();
    (reader.build().unwrap().collect::<Result<_, _>>().unwrap(), metadata)
}

/// The rows of a Parquet file, in the shape of JSONL.
fn parquet_rows(path: &Path) -> Vec<Value> {
    batches(path).0.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| json_row(batch, row))).collect()
}

fn json_row(batch: &RecordBatch, row: usize) -> Value {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let text =
        |name: &str| column(name).as_string::<i32>().is_valid(row).then(|| column(name).as_string::<i32>().value(row));
    let mut json = json!({"id": text("id"), "index": column("index").as_primitive::<Int64Type>().value(row)});
    let embeddings = column("embedding").as_fixed_size_list();
    if embeddings.is_valid(row) {
        json["embedding"] = embeddings.value(row).as_primitive::<Float32Type>().values().to_vec().into();
    }
    if column("tokens").is_valid(row) {
        json["tokens"] = column("tokens").as_primitive::<Int32Type>().value(row).into();
    }
    if let (Some(code), Some(message)) = (text("error_code"), text("error_message")) {
        json["error"] = json!({"code": code, "message": message});
    }
    json
}

#[tokio::test(flavor = "multi_thread")]
async fn parquet_and_compressed_jsonl_hold_what_jsonl_holds() {
    let place = Place::new();
    let lines = jsonl(500).replace("{\"id\": \"doc-7\",", "{");
    let ledger = answered(&place, &(lines + "nonsense\n"), 9, partly).await;
    let outputs = ["out.jsonl", "out.parquet", "out.jsonl.zst"].map(|name| place.path(name));
    for output in &outputs {
        let done = collect(&ledger, output, &[]);
        assert_eq!(done.code, 2, "{}", done.stderr);
    }
    let expected = rows(&outputs[0]);
    assert_eq!(expected.len(), 501);
    assert_eq!(parquet_rows(&outputs[1]), expected.iter().map(as_f32).collect::<Vec<_>>());
    let metadata = batches(&outputs[1]).1;
    assert_eq!((&*metadata["inferq.model"], &*metadata["inferq.revision"]), ("test", "sha256:0"));
    let text = zstd::decode_all(File::open(&outputs[2]).unwrap()).unwrap();
    assert_eq!(text, fs::read(&outputs[0]).unwrap());
    let whole = inferq(&["collect", "--ledger", &ledger, "--output", "-", "--output-format", "jsonl"]);
    assert_eq!(whole.stdout.as_bytes(), text, "stdout is plain");
}

/// JSON numbers as the f32 that they stand for.
fn as_f32(row: &Value) -> Value {
    let mut row = row.clone();
    if let Some(embedding) = row.get_mut("embedding") {
        let values: Vec<f32> = serde_json::from_value(embedding.clone()).unwrap();
        *embedding = values.into();
    }
    row
}

/// A python that has DuckDB; without one it is said what is left out, and with CI set that is a failure.
pub(crate) fn duckdb(what: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/parquet_reader.sh");
    let tool = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(tool.status.success(), "with CI set the reader must be there");
    let python = String::from_utf8(tool.stdout).unwrap();
    if python.is_empty() {
        eprintln!("left out: {what}");
        return None;
    }
    Some(PathBuf::from(python.trim()))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_opens_the_parquet_file() {
    let Some(python) = duckdb("a Parquet file read by DuckDB") else { return };
    let place = Place::new();
    let ledger = answered(&place, &jsonl(100), 8, partly).await;
    let output = place.path("out.parquet");
    assert_eq!(collect(&ledger, &output, &[]).code, 2);
    let query = "import duckdb, json, sys
rows = duckdb.execute('select id, \"index\", embedding::float[2], tokens, error_code from read_parquet(?) order by 2', [sys.argv[1]])
print(json.dumps([list(row[:2]) + [row[2] and list(row[2])] + list(row[3:]) for row in rows.fetchall()]))";
    let read = Command::new(python).args(["-c", query]).arg(&output).output().unwrap();
    let read: Vec<Value> = serde_json::from_slice(&read.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&read.stderr)));
    assert_eq!(read.len(), 100);
    assert_eq!(read[0], json!(["doc-0", 0, null, null, "input_too_long"]));
    assert_eq!(read[5], json!(["doc-5", 5, [5.0, f64::from(1.0f32 / 3.0)], 2, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_become_a_column_of_lists() {
    let place = Place::new();
    let labelled = |job: &Job| {
        let mut reply = partly(job);
        for result in reply.results.iter_mut().filter(|result| result.error.is_none()) {
            result.embedding = None;
            result.labels = Some(vec![Label { label: "good".to_owned(), score: 0.75 }]);
        }
        reply
    };
    let ledger = answered(&place, &jsonl(9), 4, labelled).await;
    let output = place.path("out.parquet");
    assert_eq!(collect(&ledger, &output, &[]).code, 2);
    let (batches, _) = batches(&output);
    let labels = batches[0].column_by_name("labels").unwrap().as_list::<i32>();
    let valid: Vec<bool> = (0..9).map(|row| labels.is_valid(row)).collect();
    assert_eq!(valid, (0..9).map(|row| row % 7 != 0).collect::<Vec<_>>());
    let first = labels.value(1);
    let first = first.as_struct();
    assert_eq!(first.column(0).as_string::<i32>().value(0), "good");
    assert_eq!(first.column(1).as_primitive::<Float32Type>().values().to_vec(), [0.75]);
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_two_lengths_are_refused_in_parquet_and_kept_in_jsonl() {
    let place = Place::new();
    let longer = |job: &Job| {
        let mut reply = answer(job);
        if let Some(result) = reply.results.iter_mut().find(|result| result.id == "doc-5") {
            result.embedding = Some(Embedding::Float(vec![1.0; 3]));
        }
        reply
    };
    let ledger = answered(&place, &jsonl(8), 4, longer).await;
    let output = place.path("out.parquet");
    let done = collect(&ledger, &output, &[]);
    assert_eq!(done.code, 64, "{}", done.stderr);
    for part in ["item doc-5 at index 5", "3 numbers", "of 2 numbers", "--output-format jsonl"] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    let left: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("out.parquet")), "{left:?}");
    assert_eq!(collect(&ledger, &place.path("out.jsonl"), &[]).code, 0);
    assert_eq!(rows(&place.path("out.jsonl"))[5]["embedding"], json!([1.0, 1.0, 1.0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_any_result_is_still_a_file() {
    let place = Place::new();
    let refused = |job: &Job| refusal(job, Status::Rejected, Some(ReplyError::new("no_worker", "nobody can")));
    let ledger = answered(&place, &jsonl(5), 2, refused).await;
    let output = place.path("out.parquet");
    assert_eq!(collect(&ledger, &output, &[]).code, 2);
    let (batches, _) = batches(&output);
    assert_eq!(batches[0].column_by_name("embedding").unwrap().null_count(), 5);
    assert_eq!(batches[0].column_by_name("error_code").unwrap().as_string::<i32>().value(4), "no_worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_listed_beside_the_output_and_counted_at_the_end() {
    let place = Place::new();
    let ledger = answered(&place, &(jsonl(10) + "nonsense\n"), 4, partly).await;
    let (output, list) = (place.path("out.parquet"), place.path("out.failures.jsonl"));
    let done = collect(&ledger, &output, &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    let said = words(&done.stderr);
    for part in
        ["11 items in ", "succeeded 8", "input_too_long 2", "malformed 1", "tokens 20", "items/s", "slowest jobs"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains(&format!("what failed, and why: {}", list.display())), "{said}");
    let failures = rows(&list);
    let shown: Vec<_> = failures.iter().map(|f| (f["index"].as_u64().unwrap(), f["code"].as_str().unwrap())).collect();
    assert_eq!(shown, [(0, "input_too_long"), (7, "input_too_long"), (10, "malformed")]);
    assert_eq!((&failures[0]["id"], &failures[0]["message"]), (&json!("doc-0"), &json!("too long")));
    assert_eq!(failures[0]["place"], format!("{} line 1", place.name("texts.jsonl")));
    assert_eq!(failures[1]["place"], format!("{} line 5, 3 entries further", place.name("texts.jsonl")));

    let elsewhere = place.path("elsewhere.jsonl");
    let done = collect(&ledger, &output, &["--failures", elsewhere.to_str().unwrap()]);
    assert_eq!((done.code, fs::read(&elsewhere).unwrap()), (2, fs::read(&list).unwrap()));
    fs::remove_file(&elsewhere).unwrap();
    let other = Place::new();
    let good = answered(&other, &jsonl(3).replace("\"\"", "\"x\""), 2, partly).await;
    assert_eq!(collect(&good, &output, &[]).code, 0);
    assert!(!list.exists(), "an older list does not outlive its output");
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let place = Place::new();
    let none = place.name("none.db");
    let cases: [(&[&str], &str); 5] = [
        (&["--output", "out.parquet", "--follow"], "--follow writes JSONL"),
        (&["--output", "out.jsonl.zst", "--follow"], "--follow writes plain JSONL"),
        (&["--output", "out", "--output-format", "parquet", "--encoding", "base64"], "--encoding is for JSONL"),
        (&["--output", "out.jsonl", "--failures", "out.jsonl"], "name the same file"),
        (&["--output", "out.jsonl", "--format", "csv"], "invalid value 'csv'"),
    ];
    for (flags, part) in cases {
        let done = inferq(&[&["collect", "--ledger", &none], flags].concat());
        assert_eq!((done.code, done.stdout.as_str()), (64, ""), "{flags:?}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{flags:?}: {}", done.stderr);
    }
}

/// Kills the child as soon as `now` says so; false when it ended by itself before.
fn kill_when(mut child: Child, mut now: impl FnMut() -> bool) -> bool {
    let started = std::time::Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if now() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        assert!(started.elapsed() < PATIENCE, "neither the moment nor the end came");
        std::thread::yield_now();
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

fn collecting(ledger: &str, output: &Path, flags: &[&str]) -> Child {
    let arguments = [&["collect", "--ledger", ledger, "--output", output.to_str().unwrap()], flags].concat();
    piped(command("inferq").args(arguments)).spawn().unwrap()
}

/// A reply with longer vectors, so that there is something to write.
fn long(job: &Job) -> Reply {
    let mut reply = answer(job);
    for result in &mut reply.results {
        let first = result.embedding.as_ref().map_or(0.0, |embedding| embedding.values()[0]);
        result.embedding = Some(Embedding::Base64((0..256).map(|n| first + n as f32 / 3.0).collect()));
    }
    reply
}

fn is_complete(found: &[Value], items: usize) {
    let mut found: Vec<(u64, &str)> =
        found.iter().map(|row| (row["index"].as_u64().unwrap(), row["id"].as_str().unwrap())).collect();
    found.sort_unstable();
    let expected: Vec<(u64, String)> = (0..items as u64).map(|n| (n, format!("doc-{n}"))).collect();
    assert!(found.iter().map(|(n, id)| (*n, (*id).to_owned())).eq(expected), "each item once: {} rows", found.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collect_killed_at_many_points_loses_and_doubles_nothing() {
    const ITEMS: usize = 40_000;
    let place = Place::new();
    let ledger = answered(&place, &jsonl(ITEMS), 64, long).await;
    let (output, partial) = (place.path("out.parquet"), place.path("out.parquet.partial"));
    let mut kills = 0;
    // While replies come the ledger grows; then the partial file does.
    let size = length(Path::new(&ledger));
    for step in 1..=4u64 {
        let at = size + step * (8 << 20);
        kills += u32::from(kill_when(collecting(&ledger, &output, &[]), || length(Path::new(&ledger)) >= at));
    }
    for at in [4, 1 << 20, 12 << 20, 24 << 20] {
        kills += u32::from(kill_when(collecting(&ledger, &output, &[]), || length(&partial) >= at));
        assert!(!output.exists() || parquet_rows(&output).len() == ITEMS, "whole or absent");
    }
    assert!(kills >= 4, "{kills} kills: it was too fast for this test");
    let done = collect(&ledger, &output, &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = parquet_rows(&output);
    is_complete(&rows, ITEMS);
    let in_order: Vec<String> = (0..ITEMS).map(|n| format!("doc-{n}")).collect();
    assert_eq!(ids(&rows), in_order);
    assert!(!partial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_file_killed_at_many_points_has_each_row_once_and_whole() {
    const ITEMS: usize = 20_000;
    let place = Place::new();
    let ledger = answered(&place, &(jsonl(ITEMS)), 16, partly).await;
    let output = place.path("out.jsonl");
    let mut kills = 0;
    for step in 1..=8u64 {
        let at = step * 150_000;
        kills += u32::from(kill_when(collecting(&ledger, &output, &["--follow"]), || length(&output) >= at));
    }
    assert!(kills >= 4, "{kills} kills: it was too fast for this test");
    // A power cut could leave anything behind the rows that were synced.
    let mut torn = File::options().append(true).open(&output).unwrap();
    std::io::Write::write_all(&mut torn, b"{\"id\":\"doc-").unwrap();
    drop(torn);
    let done = collect(&ledger, &output, &["--follow"]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    is_complete(&rows(&output), ITEMS);
    assert_eq!(rows(&place.path("out.failures.jsonl")).len(), ITEMS.div_ceil(7));
    let said = words(&done.stderr);
    assert!(said.contains(&format!("succeeded {}", "17,142")), "{said}");
    let before = fs::read(&output).unwrap();
    assert_eq!(collect(&ledger, &output, &["--follow"]).code, 2);
    assert_eq!(fs::read(&output).unwrap(), before, "there was nothing to add");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_followed_as_replies_come_and_not_before_or_twice() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &(jsonl(6) + "nonsense\n"));
    let ledger = place.name("ledger.db");
    assert_eq!(place.submit(&input, &["--ledger", &ledger, "--items-per-job", "2"]).code, 2);
    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(3).await;
    let mut child = collecting(&ledger, Path::new("-"), &["--follow"]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["id"].to_string();
    // A chunk of bad lines alone waits for no reply.
    assert!(next().contains("bad-6"));
    let last = taken.pop().unwrap();
    responder.answer(vec![last]).await;
    assert_eq!([next(), next()], ["\"doc-4\"", "\"doc-5\""]);
    responder.answer(taken).await;
    assert_eq!([next(), next(), next(), next()], ["\"doc-0\"", "\"doc-1\"", "\"doc-2\"", "\"doc-3\""]);
    drop(lines);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 2, "{}", done.stderr);
    responder.close().await;
    let again = inferq(&["collect", "--ledger", &ledger, "--output", "-", "--follow"]);
    assert_eq!((again.code, again.stdout.as_str()), (2, ""), "{}", again.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_output_is_never_somebody_elses_file() {
    let place = Place::new();
    let ledger = answered(&place, &jsonl(20), 4, long).await;
    let theirs = place.file("theirs.jsonl", "precious\n");
    let done = collect(&ledger, Path::new(&theirs), &["--follow"]);
    assert_eq!(done.code, 64, "{}", done.stderr);
    assert!(done.stderr.contains("is there already"), "{}", done.stderr);
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "precious\n");

    let output = place.path("out.jsonl");
    assert_eq!(collect(&ledger, &output, &["--follow"]).code, 0);
    let other = collect(&ledger, &output, &["--follow", "--encoding", "base64"]);
    assert!(other.code == 64 && other.stderr.contains("another --encoding"), "{}", other.stderr);
    File::options().write(true).open(&output).unwrap().set_len(10).unwrap();
    let shorter = collect(&ledger, &output, &["--follow"]);
    assert!(shorter.code == 64 && shorter.stderr.contains("is shorter than it was"), "{}", shorter.stderr);
    fs::remove_file(&output).unwrap();
    assert_eq!(collect(&ledger, &output, &["--follow"]).code, 0);
    is_complete(&rows(&output), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_collectors_the_second_is_refused() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(4));
    let ledger = place.name("ledger.db");
    assert_eq!(place.submit(&input, &["--ledger", &ledger, "--items-per-job", "2"]).code, 0);
    let (output, partial) = (place.path("out.jsonl"), place.path("out.jsonl.partial"));
    let other = copy_of(&place, &ledger, "other.db");
    let first = collecting(&ledger, &output, &[]);
    // Reserved first, opened next; whichever the second one meets, it is refused.
    while !partial.exists() {
        std::thread::yield_now();
    }
    let same_output = collect(&other, &output, &[]);
    assert_eq!(same_output.code, 64, "{}", same_output.stderr);
    assert!(same_output.stderr.contains("is being written by another process"), "{}", same_output.stderr);
    while !is_locked(&ledger) {
        std::thread::yield_now();
    }
    let same_ledger = collect(&ledger, &place.path("another.jsonl"), &[]);
    assert_eq!(same_ledger.code, 64, "{}", same_ledger.stderr);
    assert!(same_ledger.stderr.contains("is in use by another process"), "{}", same_ledger.stderr);

    let mut responder = Responder::on(&place).await;
    let taken = responder.take(2).await;
    responder.answer(taken).await;
    responder.close().await;
    let done: Done = first.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "the first one goes on: {}", done.stderr);
    is_complete(&rows(&output), 4);
}

/// Whether another process has the ledger.
fn is_locked(ledger: &str) -> bool {
    let connection = rusqlite::Connection::open(ledger).unwrap();
    connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, u64>(0)).is_err()
}

#[test]
fn run_writes_every_format_and_lists_what_failed() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &(jsonl(300) + "nonsense\n"));
    for name in ["out.parquet", "out.jsonl.zst", "followed.jsonl"] {
        let output = place.name(name);
        let follow: &[&str] = if name.starts_with("followed") { &["--follow"] } else { &[] };
        let done = inferq(&[&["run", "--engine", "echo", "--input", &input, "--output", &output], follow].concat());
        assert_eq!(done.code, 2, "{name}: {}", done.stderr);
        assert!(words(&done.stderr).contains("succeeded 300 malformed 1"), "{name}: {}", done.stderr);
    }
    let columns = parquet_rows(&place.path("out.parquet"));
    let text = zstd::decode_all(File::open(place.path("out.jsonl.zst")).unwrap()).unwrap();
    let lines: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    // The last one's id names its submission.
    assert!(columns.len() == 301 && columns[..300] == lines.iter().map(as_f32).collect::<Vec<_>>()[..300]);
    assert_eq!(rows(&place.path("followed.jsonl")).len(), 301);
    for list in ["out.failures.jsonl", "followed.failures.jsonl"] {
        assert_eq!(rows(&place.path(list)).len(), 1, "{list}");
    }
    assert!(!place.path("followed.jsonl.queue.db").exists() && !place.path("followed.jsonl.queue.db-lock").exists());
}

#[test]
fn two_runs_do_not_mix() {
    let place = Place::new();
    let (output, queue) = (place.name("out.jsonl"), place.name("run.db"));
    let flags = ["run", "--engine", "echo", "--input", "-", "--format", "jsonl", "--queue", &queue, "--output"];
    let first = reading(&[&flags[..], &[&output]].concat());
    while !place.path("run.db").exists() {
        std::thread::yield_now();
    }
    let run = |queue: &str, output: &str| {
        let input = place.file("other.jsonl", &jsonl(3));
        inferq(&["run", "--engine", "echo", "--input", &input, "--queue", queue, "--output", output])
    };
    let same_queue = run(&queue, &place.name("other-out.jsonl"));
    assert_eq!(same_queue.code, 64, "{}", same_queue.stderr);
    assert!(same_queue.stderr.contains("another `inferq run` works on the queue"), "{}", same_queue.stderr);
    let same_output = run(&place.name("other.db"), &output);
    assert_eq!(same_output.code, 64, "{}", same_output.stderr);
    assert!(same_output.stderr.contains("is being written by another process"), "{}", same_output.stderr);
    let done = fed(first, &jsonl(50));
    assert_eq!(done.code, 0, "{}", done.stderr);
    is_complete(&rows(&place.path("out.jsonl")), 50);
    // A queue that others share is not a run's to use, and least of all to remove.
    let shared = run(&place.name("queue.db"), &place.name("other-out.jsonl"));
    assert_eq!(shared.code, 64, "{}", shared.stderr);
    assert!(shared.stderr.contains("is not this run's"), "{}", shared.stderr);
    assert!(place.path("queue.db").exists());
}

#[test]
fn an_interrupted_run_says_the_command_that_goes_on() {
    let place = Place::new();
    let (input, output) = (place.file("the texts.jsonl", &jsonl(3000)), place.name("out.parquet"));
    let flags = ["run", "--engine", "echo", "--items-per-job", "1", "--input", &input, "--output", &output];
    let child = reading(&flags);
    let ledger = place.path("out.parquet.ledger.db");
    let bell = place.path("out.parquet.queue.db-bell");
    while !ledger.exists() || !bell.exists() {
        std::thread::yield_now();
    }
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 1, "{}", done.stderr);
    let way_on = done.stderr.lines().find_map(|line| line.split("to go on: ").nth(1)).expect("it says how to go on");
    assert!(way_on.contains("'") && way_on.contains("--items-per-job 1"), "{way_on}");
    let again = Command::new("sh").args(["-c", way_on]).stdin(Stdio::null()).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    is_complete(&parquet_rows(Path::new(&output)), 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_at_the_timeout_is_named_with_its_place() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(60));
    let ledger = place.name("ledger.db");
    assert_eq!(place.submit(&input, &["--ledger", &ledger, "--items-per-job", "2"]).code, 0);
    let output = place.path("out.parquet");
    let done = collect(&ledger, &output, &["--timeout-s", "0"]);
    assert_eq!(done.code, 75, "{}", done.stderr);
    let named = done.stderr.lines().filter(|line| line.contains(" from ") && line.ends_with(" on")).count();
    assert_eq!(named, 20, "{}", done.stderr);
    for part in
        ["30 of 30 jobs", "texts.jsonl line 39 on", "and 10 more", "--resubmit-unanswered", "inferq collect --ledger"]
    {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert!(!output.exists() && !place.path("out.parquet.partial").exists());
}

/// A result as a worker that keeps numbers as JSON sends it.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_come_through_unchanged_in_either_encoding() {
    let place = Place::new();
    let numbers = [0.1f32, -0.0, f32::MIN_POSITIVE, f32::MAX, 1.0 / 3.0, 16_777_217.0];
    let with = |encoding: fn(Vec<f32>) -> Embedding| {
        move |job: &Job| {
            let mut reply = answer(job);
            let result = |result: ItemResult| ItemResult { embedding: Some(encoding(numbers.to_vec())), ..result };
            reply.results = reply.results.into_iter().map(result).collect();
            reply
        }
    };
    let ledger = answered(&place, &jsonl(3), 2, with(Embedding::Float)).await;
    let other = Place::new();
    let other_ledger = answered(&other, &jsonl(3), 2, with(Embedding::Base64)).await;
    for (place, ledger) in [(&place, ledger), (&other, other_ledger)] {
        let output = place.path("out.parquet");
        assert_eq!(collect(&ledger, &output, &[]).code, 0);
        let (batches, _) = batches(&output);
        let embedding = batches[0].column_by_name("embedding").unwrap().as_fixed_size_list().value(2);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(embedding.as_primitive::<Float32Type>().values()), bits(&numbers));
    }
}
