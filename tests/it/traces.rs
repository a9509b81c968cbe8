//! Traces as a receiver gets them from the real processes: one trace a job from submit to collect, batches with links,
//! foreign contexts, and receivers that are not there.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use inferq_shared::broker::Message;
use inferq_tests::otlp::{Receiver, Seen, Transport, draw};
use inferq_tests::process::{WorkerProcess, command, worker_command};
use inferq_tests::queue_file::{QueueFile, message};
use serde_json::json;

/// Nobody else says this word.
const SECRET: &str = "pumpernickel";
const FOREIGN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

type Variables<'a> = &'a [(&'static str, String)];

/// Starts a worker with the echo engine that sends its spans as these variables say.
fn worker(queue: &QueueFile, variables: Variables<'_>, flags: &[&str]) -> WorkerProcess {
    let flags = [&["--engine", "echo", "--replicas", "1"], flags].concat();
    let worker = WorkerProcess::spawn(worker_command(&queue.path, &flags).envs(variables.iter().cloned()));
    worker.until_logged("ready");
    worker
}

fn stop(worker: WorkerProcess) {
    worker.terminate();
    assert_eq!(worker.wait().code(), Some(0));
}

/// Runs `inferq`, which must succeed; what it said.
fn inferq(variables: Variables<'_>, arguments: &[&str]) -> String {
    let mut command: Command = command("inferq");
    let done = command.args(arguments).envs(variables.iter().cloned()).output().unwrap();
    let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    assert_eq!(done.status.code(), Some(0), "{arguments:?}: {said}");
    said
}

/// Submits these texts, starts a worker, collects, stops the worker: every process sends spans as the variables say.
fn journey(queue: &QueueFile, variables: Variables<'_>, texts: usize, (submit, work): (&[&str], &[&str])) {
    let (input, ledger, output) = (queue.beside("in.jsonl"), queue.beside("ledger.db"), queue.beside("out.jsonl"));
    let lines: String = (0..texts).map(|number| format!("{}\n", json!(format!("{SECRET} number {number}")))).collect();
    fs::write(&input, lines).unwrap();
    let (url, ledger) = (queue.url(), ledger.to_str().unwrap());
    let submitted = ["submit", "--queue", &url, "--ledger", ledger, "--input", input.to_str().unwrap()];
    inferq(variables, &[&submitted, submit].concat());
    let worker = worker(queue, variables, work);
    inferq(variables, &["collect", "--ledger", ledger, "--output", output.to_str().unwrap()]);
    stop(worker);
    assert_eq!(fs::read_to_string(output).unwrap().lines().count(), texts);
}

fn named<'a>(spans: &'a [Seen], name: &'a str) -> impl Iterator<Item = &'a Seen> + Clone {
    spans.iter().filter(move |span| span.name == name)
}

/// The one span of this name below that one.
fn child<'a>(spans: &'a [Seen], of: &Seen, name: &'a str) -> &'a Seen {
    let mut found = named(spans, name).filter(|span| span.parent == of.id);
    let child = found.next().unwrap_or_else(|| panic!("no {name} below {of:#?} in {spans:#?}"));
    assert!(found.next().is_none(), "one {name} below {}", of.name);
    assert_eq!(child.trace, of.trace);
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_a_job_runs_from_submit_through_the_worker_s_stages_to_collect() {
    let (receiver, queue) = (Receiver::start(Transport::Http).await, QueueFile::new().await);
    let work = ["--linger-ms", "50", "--echo-batch-ms", "5"];
    journey(&queue, &receiver.variables(), 12, (&["--items-per-job", "4"], &work));
    let spans = receiver.spans();
    let published: Vec<_> = named(&spans, "publish jobs").collect();
    assert_eq!(published.len(), 3);
    let submit = named(&spans, "submit").next().unwrap();
    assert_eq!((&submit.attributes["inferq.jobs"], &*submit.parent), (&json!(3), ""));
    let batch: Vec<_> = named(&spans, "batch").collect();
    let [batch] = batch[..] else { panic!("the jobs fit into one batch: {batch:#?}") };
    for publish in published {
        eprintln!("{}", draw(&spans, &publish.trace));
        assert_eq!((&*publish.service, &*publish.parent), ("inferq", ""));
        assert_eq!(publish.links, [(submit.trace.clone(), submit.id.clone())]);
        let process = child(&spans, publish, "process jobs");
        assert_eq!(process.service, "inferq-worker");
        for (name, value) in [
            ("messaging.system", json!("sqlite")),
            ("messaging.destination.name", json!("jobs")),
            ("messaging.message.id", publish.attributes["inferq.job.id"].clone()),
            ("inferq.job.id", publish.attributes["inferq.job.id"].clone()),
            ("inferq.attempt", json!(1)),
            ("inferq.items", json!(4)),
            ("inferq.outcome", json!("succeeded")),
        ] {
            assert_eq!(process.attributes[name], value, "{name}");
        }
        let queued = child(&spans, publish, "queued");
        let stages =
            ["intake", "wait", "engine", "assemble", "publish", "settle"].map(|name| child(&spans, process, name));
        let ends: Vec<_> = [queued].iter().chain(&stages).map(|stage| stage.time.1).collect();
        assert!(ends.is_sorted(), "stages follow one another: {ends:?}");
        assert!(stages.iter().all(|stage| process.time.0 <= stage.time.0 && stage.time.1 <= process.time.1));
        assert_eq!(stages[2].links, [(batch.trace.clone(), batch.id.clone())]);
        assert!(batch.links.contains(&(process.trace.clone(), process.id.clone())), "{batch:?}");
        assert_eq!(child(&spans, process, "collect").service, "inferq");
    }
    assert_eq!((batch.links.len(), &batch.attributes["inferq.items"]), (3, &json!(12)));
    assert!(!format!("{spans:?}").contains(SECRET), "no span tells what is inside a job");
    assert!(spans.iter().all(|span| !span.is_error));
}

/// A job of one text, in this trace.
fn in_trace(id: &str, text: &str, traceparent: &str) -> Message {
    let mut job = message(id, text);
    let named = [("traceparent", traceparent), ("tracestate", "vendor=kept")];
    job.attributes.extend(named.map(|(name, value)| (name.to_owned(), value.to_owned())));
    job
}

/// What the replies to these jobs say of their traces, by the jobs' order.
async fn contexts(queue: &QueueFile, ids: &[&str]) -> Vec<(String, String)> {
    let mut replies = Vec::new();
    let take = |more: Vec<Message>| {
        replies.extend(more);
        replies.len() >= ids.len()
    };
    queue.replies(16, take).await;
    let attribute = |reply: &Message, name: &str| reply.attributes.get(name).cloned().unwrap_or_default();
    let of = |id: &&str| {
        let reply = replies.iter().find(|reply| attribute(reply, "inferq-job-id") == *id).unwrap();
        (attribute(reply, "traceparent"), attribute(reply, "tracestate"))
    };
    ids.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_trace_is_continued_into_the_reply_and_one_that_is_not_sampled_is_passed_on() {
    let (receiver, queue) = (Receiver::start(Transport::Http).await, QueueFile::new().await);
    let unsampled = FOREIGN.replace("-01", "-00").replace("0af7", "1af7");
    queue.publish([in_trace("good", "a text", FOREIGN), in_trace("bad", "!fail", FOREIGN)]).await;
    queue.publish([in_trace("unsampled", "a text", &unsampled), in_trace("unread", "a text", "no context")]).await;
    let worker = worker(&queue, &receiver.variables(), &["--echo-faults"]);
    let contexts = contexts(&queue, &["good", "bad", "unsampled", "unread"]).await;
    stop(worker);
    let spans = receiver.spans();
    let of = |id: &str| named(&spans, "process jobs").find(|span| span.attributes["inferq.job.id"] == id);
    let continues = |span: &Seen| format!("00-{}-{}-01", span.trace, span.id);
    let (good, bad, unread) = (of("good").unwrap(), of("bad").unwrap(), of("unread").unwrap());
    for (span, (traceparent, tracestate)) in [(good, &contexts[0]), (bad, &contexts[1])] {
        assert_eq!(format!("00-{}-{}-01", span.trace, span.parent), FOREIGN);
        assert_eq!((traceparent, &**tracestate, &*span.state), (&continues(span), "vendor=kept", "vendor=kept"));
    }
    assert!(of("unsampled").is_none());
    assert!(contexts[2].0.starts_with(&unsampled[..35]) && contexts[2].0.ends_with("-00"), "{}", contexts[2].0);
    assert_eq!((&contexts[3].0, &*unread.parent), (&continues(unread), ""));
    assert!(!good.is_error && bad.is_error);
    assert_eq!(
        (&bad.attributes["inferq.outcome"], &bad.attributes["error.type"]),
        (&json!("failed"), &json!("failed"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_a_large_input_continue_its_trace() {
    let (receiver, queue) = (Receiver::start(Transport::Http).await, QueueFile::new().await);
    let prefix = format!("file://{}/", queue.beside("objects").display());
    fs::create_dir(queue.beside("objects")).unwrap();
    let work = ["--shard-items", "10", "--allow-read", &prefix, "--allow-write", &prefix];
    journey(&queue, &receiver.variables(), 30, (&["--to", &prefix], &work));
    let spans = receiver.spans();
    let publish = named(&spans, "publish jobs").next().unwrap();
    let parent = child(&spans, publish, "process jobs");
    eprintln!("{}", draw(&spans, &publish.trace));
    assert_eq!(parent.attributes["inferq.outcome"], "done");
    let shards: Vec<_> = named(&spans, "process jobs.shards").collect();
    assert_eq!(shards.len(), 3);
    for shard in &shards {
        assert_eq!((&shard.trace, &shard.parent), (&publish.trace, &parent.id));
        assert_eq!(child(&spans, shard, "engine").attributes["inferq.items"], 10);
    }
    let collect = named(&spans, "collect").next().unwrap();
    assert!(shards.iter().any(|shard| shard.id == collect.parent), "who put the last part answered: {collect:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_variables_nothing_is_exported_and_contexts_are_passed_on_as_they_came() {
    let receiver = Receiver::start(Transport::Http).await;
    let off = [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")];
    for (name, value) in off {
        let queue = QueueFile::new().await;
        queue.publish([in_trace("one", "a text", FOREIGN), in_trace("two", "a text", "no context")]).await;
        let variables = receiver.variables().into_iter().chain([(name, value.to_owned())]).collect::<Vec<_>>();
        let worker = worker(&queue, &variables, &[]);
        let passed_on = |traceparent: &str| (traceparent.to_owned(), "vendor=kept".to_owned());
        assert_eq!(contexts(&queue, &["one", "two"]).await, [passed_on(FOREIGN), passed_on("no context")]);
        stop(worker);
        assert_eq!(receiver.spans().len(), 0, "{name}={value}");
    }
    let queue = QueueFile::new().await;
    journey(&queue, &[], 4, (&[], &[]));
    assert_eq!(receiver.spans().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_or_never_answers_delays_and_fails_nothing() {
    // Connections to this one are taken by the system, and nobody reads them.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [mute.local_addr().unwrap(), absent] {
        for protocol in ["http/protobuf", "grpc"] {
            let variables = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
                // Who waited for it would wait for minutes.
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000".to_owned()),
                ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
            ];
            let (queue, started) = (QueueFile::new().await, Instant::now());
            journey(&queue, &variables, 40, (&["--items-per-job", "1"], &[]));
            assert!(started.elapsed() < Duration::from_secs(50), "{protocol} {address}: {:?}", started.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_sends_all_of_it_over_grpc_under_the_environment_s_name_and_with_its_headers_which_are_not_printed() {
    let (receiver, folder) = (Receiver::start(Transport::Grpc).await, tempfile::tempdir().unwrap());
    let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    fs::write(&input, "\"one\"\n\"two\"\n").unwrap();
    let more = [("OTEL_SERVICE_NAME", "mine".to_owned()), ("OTEL_EXPORTER_OTLP_HEADERS", format!("x-key={SECRET}"))];
    let variables = receiver.variables().into_iter().chain(more).collect::<Vec<_>>();
    let files = ["--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let said = inferq(&variables, &[&["run", "--engine", "echo", "--log", "trace"][..], &files].concat());
    assert!(said.contains("traces are exported") && !said.contains(SECRET), "{said}");
    assert_eq!(receiver.header("x-key").as_deref(), Some(SECRET));
    let spans = receiver.spans();
    let process = child(&spans, named(&spans, "publish jobs").next().unwrap(), "process jobs");
    child(&spans, process, "collect");
    assert!(spans.iter().all(|span| span.service == "mine"));
}

#[test]
fn what_the_variables_ask_for_and_can_t_be_is_said_without_its_password_and_changes_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    fs::write(&input, "\"a text\"\n").unwrap();
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    inferq(&[], &["setup", "--queue", &url]);
    for (variable, value, told) in [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is \"zipkin\": this build knows otlp and none"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "https://me:secret@host:4317",
            "failed to export traces to https://me:***@host:4317",
        ),
    ] {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9".to_owned()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
            (variable, value.to_owned()),
        ];
        let said = inferq(&variables, &["submit", "--queue", &url, "--input", input.to_str().unwrap()]);
        assert!(said.contains(&format!("warning: {told}")) && !said.contains("secret"), "{said}");
    }
}
