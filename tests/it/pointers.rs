//! Results and inputs that lie in buckets, as `submit` and `collect` meet them: in a folder and on an S3 server.
//!
//! Results come from a responder in the test, which puts the objects that a worker would.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use hyper::Method;
use inferq_shared::broker::Delivery;
use inferq_shared::bucket::{Created, Uri};
use inferq_shared::columns;
use inferq_shared::job::{Inputs, Job, ObjectFormat, ReplyTo};
use inferq_shared::manifest::{Manifest, Part, part_name};
use inferq_shared::reply::{Embedding, ItemResult, Reply, ReplyError, Status, Usage};
use inferq_tests::endpoints::{Endpoints, Fault, Store};
use inferq_tests::process::command;

use crate::producer::{Done, Place, Responder, answer, ids, inferq, jsonl, refusal, rows, words};

pub(crate) fn inferq_at(store: &Store, arguments: &[&str]) -> Done {
    let variables = store.variables().iter().cloned();
    command("inferq").args(arguments).envs(variables).stdin(Stdio::null()).output().unwrap().into()
}

fn submit(place: &Place, store: &Store, input: &str, flags: &[&str]) -> Done {
    inferq_at(store, &[&["submit", "--queue", &place.url(), "--input", input], flags].concat())
}

fn collect(place: &Place, store: &Store, input: &str, output: &str, flags: &[&str]) -> Done {
    let (ledger, output) = (format!("{input}.ledger.db"), place.name(output));
    inferq_at(store, &[&["collect", "--ledger", &ledger, "--output", &output], flags].concat())
}

/// The file of results, in the format that the job asks for.
fn body(results: &[ItemResult], format: ObjectFormat) -> Vec<u8> {
    match format {
        ObjectFormat::Parquet => columns::file(results, "test", "sha256:0").unwrap(),
        ObjectFormat::Jsonl => {
            results.iter().map(|result| serde_json::to_string(result).unwrap() + "\n").collect::<String>().into()
        }
    }
}

/// Where the job asks for its results.
fn asked(job: &Job) -> (Uri, ObjectFormat) {
    match &job.reply_to {
        Some(ReplyTo::Bucket { prefix, format }) => (prefix.parse().unwrap(), *format),
        other => panic!("{other:?}"),
    }
}

async fn put(store: &Store, uri: &Uri, body: Vec<u8>) {
    assert_eq!(store.buckets.create(uri, body.into(), "digest").await.unwrap(), Created::New, "{uri}");
}

/// Puts the results where the job asks for them. Returns the reply that points there.
async fn pointed(store: &Store, job: &Job, reply: Reply) -> Reply {
    let (prefix, format) = asked(job);
    let uri = prefix.join(&format!("{}.{}", job.id, format.extension())).unwrap();
    put(store, &uri, body(&reply.results, format)).await;
    Reply { results: Vec::new(), output_uri: Some(uri.to_string()), ..reply }
}

async fn answer_all(store: &Store, responder: &Responder, taken: Vec<(Job, Delivery)>) {
    for (job, delivery) in taken {
        let reply = pointed(store, &job, answer(&job)).await;
        responder.publish(&delivery, vec![reply.encode()]).await;
        delivery.lease.ack().await.unwrap();
    }
}

async fn results_come_back(store: &Store, format: &str) {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(150));
    let prefix = store.uri(&format!("{format}/")).to_string();
    let flags = ["--items-per-job", "7", "--reply-uri", prefix.trim_end_matches('/'), "--reply-format", format];
    let done = submit(&place, store, &input, &flags);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(22).await;
    assert_eq!(asked(&taken[0].0).0.to_string(), prefix);
    taken.reverse();
    answer_all(store, &responder, taken).await;
    responder.close().await;
    let done = collect(&place, store, &input, "out.jsonl", &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = place.rows();
    assert_eq!(ids(&rows), (0..150).map(|n| format!("doc-{n}")).collect::<Vec<_>>());
    for (row, n) in rows.iter().zip(0u64..) {
        assert_eq!((row["index"].as_u64(), row["tokens"].as_u64()), (Some(n), Some(2)));
        assert_eq!(row["embedding"].to_string(), format!("[{}.0,0.33333334]", n % 7));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_in_a_folder_come_back_as_rows() {
    let store = Store::file();
    results_come_back(&store, "jsonl").await;
    results_come_back(&store, "parquet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_on_servers_come_back_as_rows() {
    let Some(endpoints) = Endpoints::start() else { return };
    results_come_back(&endpoints.s3().await, "jsonl").await;
    results_come_back(&endpoints.gs().await, "parquet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_that_leads_elsewhere_is_not_followed() {
    let (place, store) = (Place::new(), Store::file());
    let input = place.file("texts.jsonl", &jsonl(3));
    let prefix = store.uri("out/").to_string();
    assert_eq!(submit(&place, &store, &input, &["--reply-uri", &prefix]).code, 0);
    let mut responder = Responder::on(&place).await;
    let (job, delivery) = responder.take(1).await.remove(0);
    let good = pointed(&store, &job, answer(&job)).await;
    put(&store, &store.uri(&format!("secret/{}.jsonl", job.id)), b"{}".to_vec()).await;
    put(&store, &store.uri(&format!("out/{}.parquet", job.id)), b"no columns".to_vec()).await;
    let bad = [
        store.uri(&format!("secret/{}.jsonl", job.id)).to_string(),
        format!("{prefix}../secret/{}.jsonl", job.id),
        format!("{prefix}another.jsonl"),
        format!("{prefix}{}.parquet", job.id),
        format!("{prefix}absent/{}.jsonl", job.id),
        format!("https://example.com/{}.jsonl", job.id),
    ];
    let mut bodies: Vec<_> = bad.iter().map(|uri| Reply { output_uri: Some(uri.clone()), ..good.clone() }).collect();
    bodies.push(good);
    responder.publish(&delivery, bodies.iter().map(Reply::encode).collect()).await;
    delivery.lease.ack().await.unwrap();
    responder.close().await;
    let done = collect(&place, &store, &input, "out.jsonl", &[]);
    assert_eq!((done.code, place.rows().len()), (0, 3), "{}", done.stderr);
    let said = words(&done.stderr);
    assert_eq!(said.matches("goes to its dead letters").count(), bad.len(), "{said}");
    for why in
        ["--allow-read", "no . and ..", "names no results of job", "not a Parquet file", "no such object", "s3://"]
    {
        assert!(said.contains(why), "{why}: {said}");
    }
}

/// Answers a claim as workers do: the lines of its object, five a part; every seventh item fails.
async fn answer_in_parts(store: &Store, job: &Job) -> Reply {
    let Inputs::Uri(input) = &job.inputs else { panic!("{:?}", job.inputs) };
    let input: Uri = input.parse().unwrap();
    let (info, text) = store.buckets.read_all(&input, 1 << 20).await.unwrap().expect("it was uploaded");
    let results: Vec<ItemResult> = String::from_utf8(text.to_vec()).unwrap().lines().zip(0..).map(result).collect();
    let (prefix, format) = asked(job);
    let folder = prefix.join(&format!("{}/", job.id)).unwrap();
    let mut parts = Vec::new();
    for (number, results) in (0..).zip(results.chunks(5)) {
        let name = part_name(number, format);
        put(store, &folder.join(&name).unwrap(), body(results, format)).await;
        let usage = Usage { items: results.len() as u32, tokens: 2 };
        parts.push(Part { name, status: Status::Partial, usage });
    }
    let (status, usage) = inferq_shared::manifest::sum(&parts);
    let (input_uri, model) = (input.to_string(), "test".to_owned());
    let manifest =
        Manifest { version: 1, id: job.id.clone(), model, input_uri, etag: info.etag, format, status, usage, parts };
    let uri = folder.join("_manifest.json").unwrap();
    put(store, &uri, manifest.encode()).await;
    Reply { usage, output_uri: Some(uri.to_string()), ..refusal(job, status, None) }
}

fn result((line, index): (&str, u32)) -> ItemResult {
    let item: serde_json::Value = serde_json::from_str(line).unwrap();
    let fails = index % 7 == 6;
    ItemResult {
        id: item["id"].as_str().unwrap().to_owned(),
        index,
        embedding: (!fails).then(|| Embedding::Base64(vec![index as f32, 1.0 / 3.0])),
        labels: None,
        error: fails.then(|| ReplyError::new("input_too_long", "too long")),
        tokens: (!fails).then_some(2),
    }
}

async fn a_large_input_goes_and_comes(store: &Store, format: &str) {
    let place = Place::new();
    let lines = jsonl(23);
    let input = place.file("texts.jsonl", &lines);
    let to = store.uri(&format!("{format}/")).to_string();
    let flags = ["--to", &to, "--reply-format", format];
    let done = submit(&place, store, &input, &flags);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("one job for the whole file"), "{}", done.stdout);
    let again = submit(&place, store, &input, &flags);
    assert!(again.code == 0 && again.stderr.contains("nothing is published"), "{}", again.stderr);
    std::fs::write(&input, format!("{lines}\"one more\"\n")).unwrap();
    let changed = submit(&place, store, &input, &flags);
    assert!(changed.code == 64 && changed.stderr.contains("has changed"), "{}", changed.stderr);

    let mut responder = Responder::on(&place).await;
    assert_eq!(responder.waiting().await, 1);
    let (job, delivery) = responder.take(1).await.remove(0);
    let reply = answer_in_parts(store, &job).await;
    responder.publish(&delivery, vec![reply.encode()]).await;
    delivery.lease.ack().await.unwrap();
    responder.close().await;
    let followed = collect(&place, store, &input, "followed.jsonl", &["--follow"]);
    assert!(followed.code == 64 && followed.stderr.contains("leave --follow away"), "{}", followed.stderr);
    let done = collect(&place, store, &input, "out.jsonl", &[]);
    assert_eq!(done.code, 2, "some items failed: {}", done.stderr);
    assert!(words(&done.stderr).contains("input_too_long 3"), "{}", done.stderr);
    let rows = place.rows();
    assert_eq!(ids(&rows), (0..23).map(|n| format!("doc-{n}")).collect::<Vec<_>>());
    for (row, n) in rows.iter().zip(0u64..) {
        assert_eq!((row["index"].as_u64(), row["embedding"].is_array()), (Some(n), n % 7 != 6), "{row}");
    }
    let failures = self::rows(&place.path("out.failures.jsonl"));
    assert_eq!(ids(&failures), ["doc-6", "doc-13", "doc-20"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_input_goes_to_a_folder_and_comes_back_in_parts() {
    let store = Store::file();
    a_large_input_goes_and_comes(&store, "jsonl").await;
    a_large_input_goes_and_comes(&store, "parquet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_input_goes_to_a_server_and_comes_back_in_parts() {
    let Some(endpoints) = Endpoints::start() else { return };
    a_large_input_goes_and_comes(&endpoints.s3().await, "parquet").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_become_one_file_of_columns() {
    let (place, store) = (Place::new(), Store::file());
    let input = place.file("texts.jsonl", &jsonl(23));
    assert_eq!(submit(&place, &store, &input, &["--to", &store.root.to_string()]).code, 0);
    let mut responder = Responder::on(&place).await;
    let (job, delivery) = responder.take(1).await.remove(0);
    let reply = answer_in_parts(&store, &job).await;
    responder.publish(&delivery, vec![reply.encode()]).await;
    delivery.lease.ack().await.unwrap();
    responder.close().await;
    let done = collect(&place, &store, &input, "out.parquet", &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    let results = columns::read(std::fs::read(place.path("out.parquet")).unwrap().into()).unwrap();
    assert_eq!(results.iter().map(|result| result.index).collect::<Vec<_>>(), (0..23).collect::<Vec<_>>());
    assert_eq!(results[22].embedding, Some(Embedding::Base64(vec![22.0, 1.0 / 3.0])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_workers_can_t_read_as_it_is_is_not_uploaded() {
    let (place, store) = (Place::new(), Store::file());
    let to = store.root.to_string();
    let (text, lines) = (place.file("texts.txt", "one\n"), place.file("texts.jsonl", &jsonl(1)));
    for (input, flags, why) in [
        (&*text, &[][..], "which"),
        ("-", &["--ledger", "x.db", "--format", "jsonl"], "--to uploads one file"),
        (&lines, &["--text-field", "body"], "text and id only"),
        (&lines, &["--dry-run"], "cannot be used with"),
    ] {
        let done = submit(&place, &store, input, &[&["--to", &to], flags].concat());
        assert!(done.code == 64 && done.stderr.contains(why), "{why}: {}", done.stderr);
    }
    assert!(!Path::new(store.root.path().unwrap().to_str().unwrap()).exists(), "nothing is there");
    let bad = inferq(&["submit", "--queue", &place.url(), "--input", &lines, "--to", "https://bucket/x"]);
    assert!(bad.code == 64 && bad.stderr.contains("must begin with gs://"), "{}", bad.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_down_is_waited_for_and_one_that_denies_is_named() {
    let Some(endpoints) = Endpoints::start() else { return };
    let (place, store) = (Place::new(), endpoints.s3().await);
    let input = place.file("texts.jsonl", &jsonl(3));
    assert_eq!(submit(&place, &store, &input, &["--reply-uri", &store.root.to_string()]).code, 0);
    let mut responder = Responder::on(&place).await;
    let taken = responder.take(1).await;
    answer_all(&store, &responder, taken).await;
    responder.close().await;

    store.proxy().fail_always(Method::GET, Fault::Answer(403));
    let denied = collect(&place, &store, &input, "out.jsonl", &[]);
    let named = ["s3:GetObject", store.root.bucket()].into_iter().all(|word| denied.stderr.contains(word));
    assert!(denied.code == 64 && named, "{}", denied.stderr);

    store.proxy().fail_always(Method::GET, Fault::Answer(503));
    let mut waiting = command("inferq")
        .args(["collect", "--ledger", &format!("{input}.ledger.db"), "--output", &place.name("out.jsonl")])
        .envs(store.variables().iter().cloned())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut said = lines.filter(|line| line.contains("the store is not available"));
    assert!(said.next().is_some(), "it says what it waits for");
    store.proxy().heal();
    assert!(waiting.wait().unwrap().success());
    assert_eq!(place.rows().len(), 3);
}
