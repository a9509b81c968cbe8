//! The binary `inferq` as a user meets it: files in, files out, exit codes, crashes, and what it says.
//!
//! Replies come from a responder in the test, over the real embedded queue, or from the worker inside `inferq run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use inferq_shared::broker::{
    AnyConsumer, Broker, BrokerUrl, ConsumeOptions, Consumer, Delivery, Message, Publisher, Pull,
};
use inferq_shared::job::{Inputs, Job, Limits, attribute};
use inferq_shared::reply::{Embedding, ItemResult, Reply, ReplyError, Status, Timings, Usage};
use inferq_tests::process::{PATIENCE, command};
use serde_json::Value;

/// A folder with a queue in it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let done = inferq(&["setup", "--queue", &place.url()]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.name(name)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.name("queue.db"))
    }

    pub(crate) fn submit(&self, input: &str, flags: &[&str]) -> Done {
        inferq(&[&["submit", "--queue", &self.url(), "--input", input], flags].concat())
    }

    pub(crate) fn collect(&self, ledger: &str, flags: &[&str]) -> Done {
        let output = self.name("out.jsonl");
        inferq(&[&["collect", "--ledger", ledger, "--output", &output], flags].concat())
    }

    pub(crate) fn rows(&self) -> Vec<Value> {
        rows(&self.path("out.jsonl"))
    }
}

/// What a command said and how it ended.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

pub(crate) fn inferq(arguments: &[&str]) -> Done {
    command("inferq").args(arguments).stdin(Stdio::null()).output().unwrap().into()
}

/// Starts a command that reads stdin. Where it has a worker, that takes its time, and holds few jobs at once: a killed
/// worker's jobs have spent an attempt, and from the third on they run in small groups.
pub(crate) fn reading(arguments: &[&str]) -> Child {
    let slowly = [("INFERQ_ECHO_BATCH_MS", "2"), ("INFERQ_MAX_BATCH_ITEMS", "1"), ("INFERQ_IN_FLIGHT_JOBS", "64")];
    piped(command("inferq").args(arguments).envs(slowly)).spawn().unwrap()
}

pub(crate) fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Gives a command its whole input and waits for its end.
pub(crate) fn fed(mut child: Child, input: &str) -> Done {
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output().unwrap().into();
    feeding.join().unwrap().unwrap();
    done
}

pub(crate) fn rows(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is said, with one space between its words.
pub(crate) fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

pub(crate) fn jsonl(items: usize) -> String {
    (0..items).map(|n| format!("{{\"id\": \"doc-{n}\", \"text\": \"{}\"}}\n", "x".repeat(n % 7))).collect()
}

/// The worker's end of the queue, by hand.
pub(crate) struct Responder {
    pub(crate) broker: Broker,
    pub(crate) url: BrokerUrl,
    jobs: AnyConsumer,
}

impl Responder {
    pub(crate) async fn on(place: &Place) -> Self {
        let url: BrokerUrl = place.url().parse().unwrap();
        let broker = Broker::connect(&url).await.unwrap();
        let jobs = broker.consumer(&url.queues.jobs, ConsumeOptions::new()).await.unwrap();
        Self { broker, url, jobs }
    }

    /// Takes exactly so many jobs.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<(Job, Delivery)> {
        let mut taken = Vec::new();
        while let Some(left) = NonZeroUsize::new(count - taken.len()) {
            let pull = Pull { jobs: left, bytes: usize::MAX };
            let received = tokio::time::timeout(PATIENCE, self.jobs.receive(pull)).await.expect("jobs come").unwrap();
            let decode = |body: &[u8]| Job::decode(body, &Limits::default()).unwrap();
            taken.extend(received.into_iter().map(|delivery| (decode(&delivery.message.body), delivery)));
        }
        taken
    }

    /// Publishes bodies on the route that the job's attributes name.
    pub(crate) async fn publish(&self, delivery: &Delivery, bodies: Vec<Vec<u8>>) {
        let route = self.url.queues.submission(&delivery.message.attributes[attribute::SUBMISSION]);
        let message = |body: Vec<u8>| Message { body: body.into(), ..Message::default() };
        self.broker.publisher().publish(&route, bodies.into_iter().map(message).collect()).await.unwrap();
    }

    pub(crate) async fn answer(&self, taken: Vec<(Job, Delivery)>) {
        for (job, delivery) in taken {
            self.publish(&delivery, vec![answer(&job).encode()]).await;
            delivery.lease.ack().await.unwrap();
        }
    }

    pub(crate) async fn waiting(&self) -> u64 {
        self.broker.status(&self.url.queues.jobs).await.unwrap().waiting.unwrap()
    }

    pub(crate) async fn close(self) {
        self.jobs.close().await;
        self.broker.close().await;
    }
}

/// A reply with one embedding an item: the text's length and a number that is no short decimal.
pub(crate) fn answer(job: &Job) -> Reply {
    let Inputs::Items(items) = &job.inputs else { panic!("submit sends inline inputs") };
    let result = |(item, index): (&inferq_shared::job::Item, u32)| ItemResult {
        id: item.id.clone().unwrap_or_else(|| format!("{}/{index}", job.id)),
        index,
        embedding: Some(Embedding::Base64(vec![item.input.len_bytes() as f32, 1.0 / 3.0])),
        labels: None,
        error: None,
        tokens: Some(2),
    };
    Reply {
        results: items.iter().zip(0..).map(result).collect(),
        usage: Usage { items: items.len() as u32, tokens: 2 * items.len() as u64 },
        ..refusal(job, Status::Succeeded, None)
    }
}

pub(crate) fn refusal(job: &Job, status: Status, error: Option<ReplyError>) -> Reply {
    Reply {
        version: 1,
        id: job.id.clone(),
        status,
        model: "test".to_owned(),
        revision: "sha256:0".to_owned(),
        results: Vec::new(),
        error,
        output_uri: None,
        usage: Usage::default(),
        timings_ms: Timings::default(),
        worker: "test".to_owned(),
        attempt: 1,
        metadata: job.metadata.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_comes_back_in_the_order_of_its_input() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(150));
    let done = place.submit(&input, &["--items-per-job", "7", "--metadata", "{\"tenant\":\"a\"}"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("150 items in 22 jobs"), "{}", done.stdout);
    assert!(done.stdout.contains("inferq collect --ledger"), "{}", done.stdout);

    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(22).await;
    assert_eq!(taken[0].1.message.attributes[attribute::ITEMS], "7");
    assert_eq!(taken[0].0.metadata["tenant"], "a");
    taken.reverse();
    responder.answer(taken).await;
    responder.close().await;

    let done = place.collect(&format!("{input}.ledger.db"), &[]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    let rows = place.rows();
    let expected: Vec<_> = (0..150).map(|n| format!("doc-{n}")).collect();
    assert_eq!(ids(&rows), expected);
    for (row, n) in rows.iter().zip(0u64..) {
        assert_eq!((row["index"].as_u64(), row["tokens"].as_u64()), (Some(n), Some(2)));
        assert_eq!(row["embedding"].to_string(), format!("[{}.0,0.33333334]", n % 7));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_item_is_a_row_with_its_error_in_its_place() {
    let place = Place::new();
    let input = place.file("texts.jsonl", "\"one\"\nnonsense\n{\"id\":\"three\",\"text\":3}\n\n\"four\"\n");
    let done = place.submit(&input, &["--items-per-job", "2"]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("2 bad lines"), "{}", done.stderr);
    let mut responder = Responder::on(&place).await;
    let taken = responder.take(2).await;
    responder.answer(taken).await;
    responder.close().await;

    let done = place.collect(&format!("{input}.ledger.db"), &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(words(&done.stderr).contains("malformed 2"), "{}", done.stderr);
    let rows = place.rows();
    let shapes: Vec<_> = rows.iter().map(|row| (row["index"].as_u64().unwrap(), row["embedding"].is_array())).collect();
    assert_eq!(shapes, [(0, true), (1, false), (2, false), (3, true)]);
    let message = rows[1]["error"]["message"].as_str().unwrap();
    assert!(message.contains("texts.jsonl line 2: "), "{message}");
    assert_eq!((&rows[2]["id"], &rows[2]["error"]["code"]), (&"three".into(), &"malformed".into()));
    assert_eq!(ids(&rows).iter().collect::<BTreeSet<_>>().len(), 4, "every row has an id of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_submit_goes_on_and_doubles_no_id() {
    let place = Place::new();
    let (url, ledger, input) = (place.url(), place.name("l.db"), jsonl(1000));
    let flags =
        ["submit", "--queue", &url, "--input", "-", "--format", "jsonl", "--ledger", &ledger, "--items-per-job", "1"];
    let mut responder = Responder::on(&place).await;
    let mut child = reading(&flags);
    // All but the last lines: the command has confirmed some jobs and waits for more.
    let most: String = input.split_inclusive('\n').take(900).collect();
    child.stdin.as_mut().unwrap().write_all(most.as_bytes()).unwrap();
    let mut taken = responder.take(256).await;
    child.kill().unwrap();
    child.wait().unwrap();

    let done = fed(reading(&flags), &input);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let left = responder.waiting().await;
    taken.extend(responder.take(left as usize).await);
    let distinct: BTreeMap<_, _> = taken.iter().map(|(job, _)| (job.id.clone(), job.inputs.clone())).collect();
    assert_eq!(distinct.len(), 1000);
    for (job, _) in &taken {
        assert_eq!(distinct[&job.id], job.inputs, "the same id is the same job");
    }
    responder.answer(taken).await;
    responder.close().await;
    let done = place.collect(&ledger, &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = place.rows();
    assert_eq!(rows.len(), 1000);
    assert_eq!(ids(&rows).iter().collect::<BTreeSet<_>>().len(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_replies_time_out_and_can_be_asked_for_again() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(4));
    let ledger = place.name("l.db");
    let flags = ["--ledger", &ledger, "--items-per-job", "1"];
    assert_eq!(place.submit(&input, &flags).code, 0);
    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(4).await;
    for (_, delivery) in taken.drain(..2) {
        // A worker that loses a job: it must not, but a queue can be purged.
        delivery.lease.ack().await.unwrap();
    }
    responder.answer(taken).await;
    let done = place.collect(&ledger, &["--timeout-s", "2"]);
    assert_eq!(done.code, 75, "{}", done.stderr);
    assert!(done.stderr.contains("of 4 jobs have no reply yet") && done.stderr.contains("-000000 "), "{}", done.stderr);
    assert!(
        done.stderr.contains("texts.jsonl line 1 on") && done.stderr.contains("--resubmit-unanswered"),
        "{}",
        done.stderr
    );
    assert!(!place.path("out.jsonl").exists(), "no half output");

    let done = place.submit(&input, &[&flags[..], &["--resubmit-unanswered"]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    let waiting = responder.waiting().await;
    assert!((2..=4).contains(&waiting), "{waiting}");
    let taken = responder.take(waiting as usize).await;
    responder.answer(taken).await;
    responder.close().await;
    assert_eq!(place.collect(&ledger, &[]).code, 0);
    assert_eq!(ids(&place.rows()), ["doc-0", "doc-1", "doc-2", "doc-3"]);
    // The route is gone and the ledger has everything: the output can be written again.
    fs::remove_file(place.path("out.jsonl")).unwrap();
    assert_eq!(place.collect(&ledger, &["--encoding", "base64"]).code, 0);
    assert!(place.rows()[3]["embedding"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_reply_wins_and_a_refused_job_is_an_error_an_item() {
    let place = Place::new();
    let input = place.file("texts.txt", "one\ntwo\nthree\nfour");
    assert_eq!(place.submit(&input, &["--items-per-job", "2"]).code, 0);
    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(2).await;
    let (second, second_delivery) = taken.pop().unwrap();
    let (first, first_delivery) = taken.pop().unwrap();
    let expired = |job| refusal(job, Status::Expired, Some(ReplyError::new("expired", "too late"))).encode();
    let other = Job { id: inferq_shared::job::JobId::new("another").unwrap(), ..first.clone() };
    let bodies =
        vec![expired(&first), b"no reply".to_vec(), answer(&other).encode(), answer(&first).encode(), expired(&first)];
    responder.publish(&first_delivery, bodies).await;
    responder.publish(&second_delivery, vec![expired(&second)]).await;
    let route = responder.url.queues.submission(&first_delivery.message.attributes[attribute::SUBMISSION]);
    for delivery in [first_delivery, second_delivery] {
        delivery.lease.ack().await.unwrap();
    }
    let done = place.collect(&format!("{input}.ledger.db"), &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(words(&done.stderr).contains("expired 2"), "{}", done.stderr);
    let rows = place.rows();
    let codes: Vec<_> = rows.iter().map(|row| row["error"]["code"].as_str()).collect();
    assert_eq!(codes, [None, None, Some("expired"), Some("expired")]);
    assert_eq!(ids(&rows)[2], format!("{}/0", second.id), "an item without an id is called by its job");
    assert!(responder.broker.status(&route).await.is_err(), "the route goes with the output");
    responder.close().await;
}

#[test]
fn what_has_changed_since_the_submission_is_refused_by_name() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(10));
    assert_eq!(place.submit(&input, &["--items-per-job", "2"]).code, 0);
    let again = place.submit(&input, &["--items-per-job", "2"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stdout.contains("5 jobs, 0 of them published now"), "{}", again.stdout);
    let flags = place.submit(&input, &["--items-per-job", "3"]);
    assert_eq!(flags.code, 64);
    assert!(flags.stderr.contains("--items-per-job 2"), "{}", flags.stderr);
    for (changed, part) in
        [(jsonl(10).replace("doc-5", "doc-x"), "line 5"), (jsonl(8), "shorter"), (jsonl(12), "line 11")]
    {
        fs::write(&input, changed).unwrap();
        let done = place.submit(&input, &["--items-per-job", "2"]);
        assert_eq!(done.code, 64, "{}", done.stderr);
        assert!(done.stderr.contains(part) && done.stderr.contains("ledger"), "{}", done.stderr);
    }
}

#[test]
fn what_can_not_be_used_is_one_line_and_exit_64() {
    let place = Place::new();
    let (url, input) = (place.url(), place.file("texts.jsonl", "\"x\"\n"));
    let (none, csv) = (place.name("none.jsonl"), place.file("texts.csv", "x"));
    let other = format!("{url}?queue=other");
    let cases: [(&[&str], &str); 8] = [
        (&["submit", "--queue", &url, "--input", &none], "does not exist"),
        (&["submit", "--queue", &url, "--input", &csv], "--format"),
        (&["submit", "--queue", &url, "--input", "-", "--format", "text"], "--ledger FILE is required"),
        (&["submit", "--queue", &other, "--input", &input], "inferq setup --queue"),
        (&["submit", "--queue", "memory:", "--input", &input], "memory:"),
        (&["collect", "--ledger", &none, "--output", "-"], "no ledger"),
        (&["collect", "--ledger", &input, "--output", "-"], "is not a ledger"),
        (&["run", "--engine", "echo", "--input", &input, "--output", "/none/out.jsonl"], "no directory"),
    ];
    for (arguments, part) in cases {
        let done = inferq(arguments);
        assert_eq!((done.code, done.stdout.as_str()), (64, ""), "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(part) && done.stderr.lines().count() == 1, "{arguments:?}: {}", done.stderr);
    }
    let unknown = inferq(&["submit", "--no-such-flag"]);
    assert_eq!(unknown.code, 64, "{}", unknown.stderr);
    for command in ["run", "setup", "submit", "collect", "status", "explain", "bench"] {
        let help = inferq(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(
            help.stdout.contains("Example") && help.stdout.contains(&format!("  inferq {command} --")),
            "{command}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_waiting_submit_with_the_way_on() {
    let place = Place::new();
    let (url, ledger) = (place.url(), place.name("l.db"));
    let flags =
        ["submit", "--queue", &url, "--input", "-", "--format", "text", "--ledger", &ledger, "--items-per-job", "1"];
    let mut responder = Responder::on(&place).await;
    let mut child = reading(&flags);
    child.stdin.as_mut().unwrap().write_all("x\n".repeat(300).as_bytes()).unwrap();
    responder.take(256).await;
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    // Its stdin stays open: it must not wait for that.
    let stdin = child.stdin.take();
    let done: Done = child.wait_with_output().unwrap().into();
    drop(stdin);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("the same command goes on"), "{}", done.stderr);
    responder.close().await;
}

#[test]
fn status_says_what_is_there_as_a_table_and_as_json() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(3));
    assert_eq!(place.submit(&input, &["--items-per-job", "1"]).code, 0);
    let table = inferq(&["status", "--queue", &place.url()]);
    assert!(table.code == 0 && table.stdout.contains("jobs.results"), "{}", table.stdout);
    let json = inferq(&["status", "--queue", &place.url(), "--json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let waiting: Vec<_> = json["queues"].as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64()).collect();
    assert_eq!(waiting, [Some(3), Some(0), Some(0), Some(0)]);
    let absent = inferq(&["status", "--queue", &format!("{}?queue=other", place.url())]);
    assert_eq!(absent.code, 64, "{}", absent.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let place = Place::new();
    let mut child = piped(command("inferq").args(["status", "--queue", &place.url(), "--json"])).spawn().unwrap();
    drop(child.stdout.take());
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}

#[test]
fn run_answers_every_item_and_leaves_only_the_output() {
    let place = Place::new();
    let folder = place.path("work");
    fs::create_dir(&folder).unwrap();
    let input = place.file("texts.jsonl", &jsonl(500));
    let output = folder.join("out.jsonl").display().to_string();
    let done = inferq(&["run", "--engine", "echo", "--input", &input, "--output", &output, "--items-per-job", "16"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = rows(Path::new(&output));
    let expected: Vec<_> = (0..500).map(|n| format!("doc-{n}")).collect();
    assert_eq!(ids(&rows), expected);
    assert!(rows.iter().all(|row| row["embedding"].is_array()));
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["out.jsonl"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_goes_on_and_has_each_id_once() {
    let place = Place::new();
    let (output, queue) = (place.name("out.jsonl"), place.path("out.jsonl.queue.db"));
    let input = jsonl(2000);
    let flags =
        ["run", "--engine", "echo", "--input", "-", "--format", "jsonl", "--output", &output, "--items-per-job", "1"];
    let lines: Vec<_> = input.split_inclusive('\n').collect();
    for read in [600, 1200] {
        let mut child = reading(&flags);
        child.stdin.as_mut().unwrap().write_all(lines[..read].concat().as_bytes()).unwrap();
        until_work_is_done(&queue).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let done = fed(reading(&flags), &input);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = place.rows();
    let expected: Vec<_> = (0..2000).map(|n| format!("doc-{n}")).collect();
    assert_eq!(ids(&rows), expected);
    assert!(!queue.exists(), "the queue goes with the output");
}

/// Watches a run's queue until jobs have come and gone again: some work is done, and the run is in the middle.
async fn until_work_is_done(queue: &Path) {
    let started = Instant::now();
    let mut most = 0;
    while started.elapsed() < PATIENCE {
        tokio::task::yield_now().await;
        if !queue.exists() {
            continue;
        }
        let Ok(broker) = Broker::connect(&BrokerUrl::sqlite(queue)).await else { continue };
        let status = broker.status("jobs").await;
        broker.close().await;
        let Ok(status) = status else { continue };
        let now = status.waiting.unwrap_or(0) + status.leased.unwrap_or(0);
        if now < most {
            return;
        }
        most = most.max(now);
    }
    panic!("the run did no work within {PATIENCE:?}");
}

#[test]
fn texts_are_read_as_text() {
    let place = Place::new();
    let input = place.file("texts.txt", "one\n\n{\"text\": 3}\n");
    let output = place.name("out.jsonl");
    let done = inferq(&["run", "--engine", "echo", "--input", &input, "--output", &output]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(place.rows().len(), 3, "a blank line is an empty text");
}
