//! Inputs and outputs that are objects, as `run`, `submit` and `collect` meet them: in folders and on servers, with the
//! real worker.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hyper::Method;
use inferq_shared::bucket::Uri;
use inferq_shared::columns;
use inferq_shared::reply::ItemResult;
use inferq_tests::endpoints::{Endpoints, Fault, Store};
use inferq_tests::process::{WorkerProcess, command, worker_command};
use serde_json::{Value, json};

use crate::pointers::inferq_at;
use crate::producer::{Done, Place, ids, jsonl, rows};

fn inferq_in(place: &Place, store: &Store) -> Command {
    let mut command = command("inferq");
    command.current_dir(place.path("")).envs(store.variables().iter().cloned()).stdin(Stdio::null());
    command
}

fn run(place: &Place, store: &Store, arguments: &[&str]) -> Done {
    inferq_in(place, store).args(["run", "--engine", "echo"]).args(arguments).output().unwrap().into()
}

async fn put(store: &Store, name: &str, body: impl Into<Vec<u8>>) -> Uri {
    let uri = store.uri(name);
    store.buckets.create(&uri, body.into().into(), "digest").await.unwrap();
    uri
}

async fn got(store: &Store, uri: &Uri) -> Vec<u8> {
    store.buckets.read_all(uri, 1 << 20).await.unwrap().expect("it is there").1.into()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Names of what lies in the place, but the queue that it begins with.
fn left_in(place: &Place) -> Vec<String> {
    let names = std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.starts_with("queue.db")).collect()
}

async fn an_object_becomes_an_object(store: &Store) {
    let place = Place::new();
    let input = put(store, "in/texts.jsonl.gz", gzip(&(jsonl(300) + "nonsense\n"))).await.to_string();
    let output = store.uri("out/vectors.parquet");
    for _ in 0..2 {
        // What is there is replaced.
        let done = run(&place, store, &["--input", &input, "--output", &output.to_string()]);
        assert_eq!(done.code, 2, "one line is bad: {}", done.stderr);
    }
    let results: Vec<ItemResult> = columns::read(got(store, &output).await.into()).unwrap();
    let ids: Vec<_> = results.iter().map(|result| result.id.clone()).collect();
    assert_eq!(ids[..300], (0..300).map(|n| format!("doc-{n}")).collect::<Vec<_>>());
    assert!(results[..300].iter().all(|result| result.embedding.is_some()));
    assert!(results[300].error.as_ref().is_some_and(|error| error.message.contains("texts.jsonl.gz line 301")));
    assert_eq!(left_in(&place), ["vectors.failures.jsonl"], "and the list of failures lies here");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_reads_an_object_and_writes_one() {
    let Some(endpoints) = Endpoints::start() else { return };
    an_object_becomes_an_object(&endpoints.s3().await).await;
    an_object_becomes_an_object(&endpoints.gs().await).await;
}

#[test]
fn the_address_of_a_file_is_as_good_as_its_path() {
    let (place, store) = (Place::new(), Store::file());
    let input = format!("file://{}", place.file("texts.txt", "one\ntwo\n"));
    let done = run(&place, &store, &["--input", &input, "--output", &format!("file://{}", place.name("out.jsonl"))]);
    assert_eq!((done.code, place.rows().len()), (0, 2), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_refuses_addresses_that_it_can_not_use() {
    let (place, store) = (Place::new(), Store::file());
    let input = place.file("texts.jsonl", &jsonl(3));
    let absent = store.uri("absent.jsonl").to_string();
    for (arguments, why) in [
        (["--input", &absent, "--output", "out.jsonl"], "absent.jsonl"),
        (["--input", "gs://bucket/folder/", "--output", "out.jsonl"], "must name one object"),
        (["--input", "https://host/a.jsonl", "--output", "out.jsonl"], "must begin with gs://"),
        (["--input", &input, "--output", "gs://bucket/folder/"], "must name one object"),
    ] {
        let done = run(&place, &store, &arguments);
        assert!(done.code == 64 && done.stderr.contains(why), "{why}: {} {}", done.code, done.stderr);
    }
    let followed = run(&place, &store, &["--input", &input, "--output", "gs://bucket/out.jsonl", "--follow"]);
    assert!(followed.code == 64 && followed.stderr.contains("appears whole"), "{}", followed.stderr);
}

/// A run on an object of 20 texts, begun while the bucket is down, up to the line that says so; and what it says next.
fn waiting_run(place: &Place, store: &Store, input: &Uri) -> (Child, impl Iterator<Item = String> + use<>) {
    store.proxy().fail_always(Method::GET, Fault::Answer(503));
    let mut running = inferq_in(place, store)
        .args(["run", "--engine", "echo", "--output", "out.jsonl", "--input", &input.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("the store is not available")), "it says what it waits for");
    (running, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_for_a_bucket_that_is_down() {
    let Some(endpoints) = Endpoints::start() else { return };
    let (place, store) = (Place::new(), endpoints.s3().await);
    let input = put(&store, "texts.jsonl", jsonl(20)).await;
    let (mut running, _lines) = waiting_run(&place, &store, &input);
    store.proxy().heal();
    assert!(running.wait().unwrap().success());
    assert_eq!(place.rows().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_refuses_an_object_that_changes_while_it_is_read() {
    let Some(endpoints) = Endpoints::start() else { return };
    let (place, store) = (Place::new(), endpoints.s3().await);
    let input = put(&store, "texts.jsonl", jsonl(20)).await;
    let (mut running, mut lines) = waiting_run(&place, &store, &input);
    let other = place.file("other.jsonl", &jsonl(30));
    store.buckets.upload(&input, Path::new(&other), |_| ()).await.unwrap();
    store.proxy().heal();
    assert!(lines.any(|line| line.contains("the object has changed since it was first looked at")));
    assert_eq!(running.wait().unwrap().code(), Some(1));
    assert!(!place.path("out.jsonl").exists());
}

fn worker(place: &Place, store: &Store) -> WorkerProcess {
    let (read, write) = (store.uri("in/").to_string(), store.uri("out/").to_string());
    let flags = ["--engine", "echo", "--allow-read", &read, "--allow-write", &write, "--shard-items", "100"];
    WorkerProcess::spawn(worker_command(&place.path("queue.db"), &flags).envs(store.variables().iter().cloned()))
}

async fn an_object_is_submitted_where_it_lies(store: &Store) {
    let place = Place::new();
    // Long enough to be split by anybody's measure.
    let texts: String = (0..1200).map(|n| json!({"id": n, "text": format!("text {n}")}).to_string() + "\n").collect();
    let input = put(store, "in/texts.jsonl", texts.clone()).await;
    let (uri, prefix) = (input.to_string(), store.uri("out/").to_string());
    let submit = |flags: &[&str]| {
        let ours = ["submit", "--queue", &place.url(), "--input", &uri, "--ledger", &place.name("l.db")];
        inferq_at(store, &[&ours[..], flags].concat())
    };
    let nowhere = submit(&[]);
    assert!(nowhere.code == 64 && nowhere.stderr.contains("--reply-uri PREFIX"), "{}", nowhere.stderr);
    assert!(!place.path("l.db").exists(), "nothing has begun");
    let done = submit(&["--reply-uri", &prefix]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let again = submit(&["--reply-uri", &prefix]);
    assert!(again.code == 0 && again.stderr.contains("nothing is published"), "{}", again.stderr);

    let status = inferq_at(store, &["status", "--queue", &place.url(), "--json"]).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["work"]["tokens_waiting"], json!(texts.len().div_ceil(4)), "{status}");

    let worker = worker(&place, store);
    let output = place.name("out.jsonl");
    let done = inferq_at(store, &["collect", "--ledger", &place.name("l.db"), "--output", &output]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(ids(&place.rows()), (0..1200).map(|n| n.to_string()).collect::<Vec<_>>());
    worker.kill();

    store.buckets.delete(&input).await.unwrap();
    let absent = submit(&["--reply-uri", &prefix]);
    assert!(absent.code == 64 && absent.stderr.contains("no such object"), "{}", absent.stderr);
    put(store, "in/texts.jsonl", texts + "\"one more\"\n").await;
    let changed = submit(&["--reply-uri", &prefix]);
    assert!(changed.code == 64 && changed.stderr.contains("has changed"), "{}", changed.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_names_an_object_that_is_there_and_refuses_it_when_it_has_changed() {
    an_object_is_submitted_where_it_lies(&Store::file()).await;
    let Some(endpoints) = Endpoints::start() else { return };
    an_object_is_submitted_where_it_lies(&endpoints.gs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_workers_can_not_read_as_it_is_is_not_submitted() {
    let (place, store) = (Place::new(), Store::file());
    let (text, lines) = (put(&store, "t.txt", "one\n").await.to_string(), put(&store, "t.jsonl", jsonl(1)).await);
    let (lines, local) = (lines.to_string(), place.file("local.jsonl", &jsonl(1)));
    for (inputs, flags, why) in [
        (vec![&*text], &[][..], "JSON lines"),
        (vec![&*lines], &["--text-field", "body"], "text and id only"),
        (vec![&*lines, &*local], &[], "must be the only one"),
        (vec![&*lines], &["--to", "gs://bucket/x/"], "is in a bucket already"),
        (vec!["gs://bucket/folder/"], &[], "names a folder"),
    ] {
        let ours = ["submit", "--queue", &place.url(), "--ledger", &place.name("l.db"), "--input"];
        let done = inferq_at(&store, &[&ours[..], &inputs, flags].concat());
        assert!(done.code == 64 && done.stderr.contains(why), "{why}: {}", done.stderr);
    }
    let small =
        inferq_at(&store, &["submit", "--queue", &place.url(), "--input", &lines, "--ledger", &place.name("l.db")]);
    assert_eq!(small.code, 0, "too small to be split: {}", small.stderr);
}

/// Jobs that want their results in the bucket: items of their own, and an object's.
fn ready_jobs(store: &Store, input: &Uri) -> String {
    let (prefix, elsewhere) = (store.uri("out/").to_string(), store.uri("in/").to_string());
    let jobs = [
        json!({"version": 1, "id": "mine", "inputs": ["a", {"id": "b", "text": "b"}], "reply_to": {"uri": prefix}}),
        json!({"version": 1, "id": "large", "input_uri": input, "reply_to": {"uri": prefix, "format": "parquet"}}),
        json!({"version": 1, "id": "plain", "inputs": ["c"]}),
        json!({"version": 1, "id": "denied", "inputs": ["d"], "reply_to": {"uri": elsewhere}}),
        json!({"version": 1, "id": "queue", "inputs": ["e"], "reply_to": {"queue": "q"}}),
    ];
    jobs.iter().map(|job| job.to_string() + "\n").collect()
}

/// The rows of those jobs.
fn check_rows(rows: &[Value]) {
    assert_eq!(rows.len(), 2 + 250 + 3, "{rows:?}");
    let expected: Vec<_> =
        ["mine/0".to_owned(), "b".to_owned()].into_iter().chain((0..250).map(|n| format!("doc-{n}"))).collect();
    assert_eq!(ids(&rows[..252]), expected);
    assert!(rows[..253].iter().all(|row| row["embedding"].is_array()));
    assert_eq!((&rows[253]["error"]["code"], &rows[254]["error"]["code"]), (&json!("forbidden"), &json!("invalid")));
    assert!(rows[254]["error"]["message"].as_str().unwrap().contains("reply_to.queue"), "{}", rows[254]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_jobs_may_name_a_bucket_and_collect_follows_what_is_allowed() {
    let (place, store) = (Place::new(), Store::file());
    let input = put(&store, "in/texts.jsonl", jsonl(250)).await;
    let jobs = place.file("jobs.jsonl", &ready_jobs(&store, &input));
    let done = inferq_at(&store, &["submit", "--queue", &place.url(), "--input", &jobs, "--format", "jobs"]);
    assert_eq!(done.code, 2, "one names a queue: {}", done.stderr);
    assert!(done.stdout.contains("--allow-read"), "{}", done.stdout);
    let worker = worker(&place, &store);
    let (ledger, output) = (format!("{jobs}.ledger.db"), place.name("out.jsonl"));
    let collect = |flags: &[&str]| {
        inferq_at(&store, &[&["collect", "--ledger", &ledger, "--output", &output][..], flags].concat())
    };
    let denied = collect(&[]);
    assert!(denied.code == 64 && denied.stderr.contains("--allow-read"), "{}", denied.stderr);
    let allowed = [store.uri("in/").to_string(), store.uri("out/").to_string()];
    let done = collect(&["--allow-read", &allowed[0], "--allow-read", &allowed[1]]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    check_rows(&place.rows());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_follows_ready_jobs_into_what_it_allows() {
    let (place, store) = (Place::new(), Store::file());
    let input = put(&store, "in/texts.jsonl", jsonl(250)).await;
    let jobs = place.file("jobs.jsonl", &ready_jobs(&store, &input));
    let (read, write) = (store.uri("in/").to_string(), store.uri("out/").to_string());
    let flags =
        ["--input", &jobs, "--format", "jobs", "--output", "out.jsonl", "--allow-read", &read, "--allow-write", &write];
    let done = inferq_in(&place, &store)
        .args(["run", "--engine", "echo"])
        .args(flags)
        .env("INFERQ_SHARD_ITEMS", "100")
        .output()
        .map(Done::from)
        .unwrap();
    assert_eq!(done.code, 2, "{}", done.stderr);
    check_rows(&rows(Path::new(&place.name("out.jsonl"))));
}
