//! What an operator does: looks at a queue, its workers and its dead letters, asks what became of a job, puts load on
//! it; and that every command behaves in a pipe.
//!
//! Commands are the binaries, on the real embedded queue. What a pass by leases does is tested over every broker.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use inferq_producer::dead::graveyard::{Act, Graveyard};
use inferq_producer::dead::letter::Filter;
use inferq_producer::dead::pass::KEPT_MAX;
use inferq_shared::broker::{Bodies, Broker, BrokerUrl, ConsumeOptions, Cursor, Message, Page, Publisher, QueueNames};
use inferq_shared::job::attribute;
use inferq_tests::brokers::{Bench, Kind, PATIENCE, many, message, one};
use inferq_tests::process::{WorkerProcess, command};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::producer::{Done, Place, Responder, inferq, jsonl, piped};

mod shards;

/// Buries one message a reason, all with ids but the last; returns the broker's address.
async fn bury(place: &Place, reasons: &[&str]) -> BrokerUrl {
    let url: BrokerUrl = place.url().parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let mut consumer = broker.consumer(&url.queues.jobs, ConsumeOptions::new()).await.unwrap();
    for (n, reason) in reasons.iter().enumerate() {
        let mut letter = Message { body: b"\x1b[2J no \xff job".as_slice().into(), ..Message::default() };
        if n + 1 < reasons.len() {
            letter.attributes.insert(attribute::JOB_ID.to_owned(), format!("job-{n}"));
        }
        broker.publisher().publish(&url.queues.jobs, vec![letter]).await.unwrap();
        one(&mut consumer).await.unwrap().lease.dead_letter(*reason).await.unwrap();
    }
    broker.close().await;
    url
}

fn listed(place: &Place, flags: &[&str]) -> Vec<Value> {
    let done = inferq(&[&["dead", "list", "--queue", &place.url(), "--json"], flags].concat());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn key(letter: &Value) -> String {
    letter["key"].as_str().unwrap().to_owned()
}

fn counts(place: &Place) -> Vec<u64> {
    let json: Value = serde_json::from_str(&inferq(&["status", "--queue", &place.url(), "--json"]).stdout).unwrap();
    json["queues"].as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_shown_and_redriven() {
    let place = Place::new();
    let url = bury(&place, &["malformed: not JSON", "reply_undeliverable: no route", "malformed: no id"]).await;
    let letters = listed(&place, &[]);
    let facts: Vec<_> = letters.iter().map(|letter| (letter["id"].as_str(), letter["attempts"].as_u64())).collect();
    assert_eq!(facts, [(Some("job-0"), Some(1)), (Some("job-1"), Some(1)), (None, Some(1))]);
    let nameless = key(&letters[2]);

    let table = inferq(&["dead", "list", "--queue", &place.url()]);
    assert!(table.code == 0 && table.stdout.lines().count() == 4, "{}", table.stdout);
    assert!(table.stdout.contains(&nameless) && table.stdout.contains("\\u{1b}[2J no \\xff job"), "{}", table.stdout);
    assert!(!table.stdout.contains('\u{1b}'), "{}", table.stdout);
    let first = inferq(&["dead", "list", "--queue", &place.url(), "--limit", "1"]);
    assert!(first.stdout.lines().count() == 2 && first.stderr.contains("--limit"), "{} {}", first.stdout, first.stderr);

    let shown = inferq(&["dead", "show", "--queue", &place.url(), "job-1"]);
    assert!(shown.code == 0 && shown.stdout.contains("inferq-dead-queue: jobs"), "{}", shown.stdout);
    assert!(!shown.stdout.contains('\u{1b}'), "{}", shown.stdout);
    let raw = command("inferq").args(["dead", "show", "--queue", &place.url(), "--raw", &nameless]).output().unwrap();
    assert_eq!(raw.stdout, b"\x1b[2J no \xff job");
    let json = inferq(&["dead", "show", "--queue", &place.url(), "--json", &nameless]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["body"], &json["body_base64"]), (&Value::Null, &"G1sySiBubyD/IGpvYg==".into()));
    let absent = inferq(&["dead", "show", "--queue", &place.url(), "nobody"]);
    assert_eq!((absent.code, absent.stdout.as_str()), (1, ""), "{}", absent.stderr);

    let dry = inferq(&["dead", "redrive", "--queue", &place.url(), "--dry-run"]);
    assert_eq!(dry.stdout, "3 dead letters would be redriven to jobs\n");
    assert_eq!(counts(&place), [0, 0, 3, 0]);
    let done = inferq(&["dead", "redrive", "--queue", &place.url(), "--id", &nameless]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "1 dead letter redriven to jobs\n"), "{}", done.stderr);
    assert_eq!(counts(&place), [1, 0, 2, 0]);
    let broker = Broker::connect(&url).await.unwrap();
    let mut jobs = broker.consumer(&url.queues.jobs, ConsumeOptions::new()).await.unwrap();
    let again = one(&mut jobs).await.unwrap();
    assert_eq!((&again.message.body[..], again.attempt), (&b"\x1b[2J no \xff job"[..], 1));
    let names: Vec<_> = again.message.attributes.keys().map(String::as_str).collect();
    assert_eq!(names, [attribute::PUBLISHED_AT], "nothing is left of its death");
    again.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_what_is_redriven_and_purged() {
    let place = Place::new();
    bury(&place, &["malformed: a", "invalid: b", "reply_undeliverable: c", "malformed: d"]).await;
    let queue = place.url();
    assert_eq!(listed(&place, &["--reason", "malformed"]).len(), 2);
    assert_eq!(listed(&place, &["--reason", "malformed", "--reason", "inv"]).len(), 3);
    assert_eq!(listed(&place, &["--older-than", "1h"]).len(), 0);
    assert_eq!(listed(&place, &["--newer-than", "1h", "--id", "job-1", "--id", "job-2"]).len(), 2);
    let wrong = inferq(&["dead", "list", "--queue", &queue, "--older-than", "yesterday"]);
    assert!(wrong.code == 64 && wrong.stderr.contains("10m, 2h or 7d"), "{}", wrong.stderr);

    let asked = inferq(&["dead", "purge", "--queue", &queue, "--reason", "malformed"]);
    assert_eq!((asked.code, asked.stdout.as_str()), (64, ""));
    assert!(asked.stderr.contains("2 dead letters of jobs.dead (reason malformed)"), "{}", asked.stderr);
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    assert_eq!(counts(&place), [0, 0, 4, 0]);
    let purged = inferq(&["dead", "purge", "--queue", &queue, "--reason", "malformed", "--limit", "1", "--yes"]);
    assert_eq!((purged.code, purged.stdout.as_str()), (0, "1 dead letter purged\n"), "{}", purged.stderr);
    let redriven = inferq(&["dead", "redrive", "--queue", &queue, "--reason", "reply_undeliverable"]);
    assert_eq!(redriven.stdout, "1 dead letter redriven to jobs\n", "{}", redriven.stderr);
    // What was not meant can be seen at once, and in its old order.
    let left: Vec<_> = listed(&place, &[]).iter().map(|letter| letter["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(left, ["invalid: b", "malformed: d"]);
    let none = inferq(&["dead", "purge", "--queue", &queue, "--reason", "no_worker"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, "no dead letter to purge\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redrive_may_double_jobs_and_loses_none() {
    const LETTERS: usize = 4000;
    let place = Place::new();
    let url: BrokerUrl = place.url().parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let letter = |n: usize| Message {
        attributes: BTreeMap::from([
            (attribute::JOB_ID.to_owned(), format!("job-{n}")),
            (attribute::DEAD_QUEUE.to_owned(), "jobs".to_owned()),
        ]),
        ..message("x")
    };
    let dead = url.queues.dead();
    broker.publisher().publish(&dead, (0..LETTERS).map(letter).collect()).await.unwrap();
    let mut child = piped(command("inferq").args(["dead", "redrive", "--queue", &place.url()])).spawn().unwrap();
    let started = Instant::now();
    while broker.status(&url.queues.jobs).await.unwrap().waiting == Some(0) && started.elapsed() < PATIENCE {
        tokio::task::yield_now().await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut ids = BTreeSet::new();
    for queue in [&url.queues.jobs, &dead] {
        let page = Page {
            after: Cursor::START,
            messages: std::num::NonZeroUsize::MAX,
            bytes: usize::MAX,
            bodies: Bodies::Absent,
        };
        let seen = broker.browse(queue, page).await.unwrap().unwrap();
        ids.extend(seen.into_iter().map(|browsed| browsed.message.attributes[attribute::JOB_ID].clone()));
    }
    assert_eq!(ids.len(), LETTERS);
    let done = inferq(&["dead", "redrive", "--queue", &place.url()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let jobs = broker.status(&url.queues.jobs).await.unwrap().waiting.unwrap();
    let left = broker.status(&dead).await.unwrap();
    // What the killed one held is free when its leases end.
    assert_eq!(left.waiting, Some(0));
    assert!(jobs + left.leased.unwrap() >= LETTERS as u64, "{jobs} {left:?}");
    broker.close().await;
}

/// Passes by leases, as over a broker that can't be looked at.
async fn a_pass_sees_each_letter_once_and_puts_back_what_it_keeps(kind: Kind) {
    const LETTERS: usize = KEPT_MAX + 300;
    let bench = Bench::start(kind).await.unwrap();
    let stop = CancellationToken::new();
    let graves = Graveyard { broker: &bench.broker, url: &bench.url, stop: &stop };
    bench.broker.setup(&QueueNames::new(bench.queue.as_str())).await.unwrap();
    let letter = |n: usize| Message {
        attributes: BTreeMap::from([
            (attribute::JOB_ID.to_owned(), format!("job-{n}")),
            (
                attribute::DEAD_REASON.to_owned(),
                if n.is_multiple_of(1000) { "invalid" } else { "malformed" }.to_owned(),
            ),
        ]),
        ..message("x")
    };
    bench.publisher().publish(&graves.queue(), (0..LETTERS).map(letter).collect()).await.unwrap();
    let mut seen = Vec::new();
    let looked = graves.look_by_leases(|letter| {
        seen.push(letter.id.unwrap());
        Ok(if seen.len() < 700 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    looked.await.unwrap();
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 700);
    assert_eq!(bench.broker.status(&graves.queue()).await.unwrap().waiting, Some(LETTERS as u64));

    let invalid = Filter { reason: vec!["invalid".to_owned()], ..Filter::default() };
    let mut reported = 0;
    let done = graves.clear(Act::Redrive, &invalid, None, |count| reported = count).await.unwrap();
    let redriven = LETTERS.div_ceil(1000) as u64;
    assert_eq!((done.count(), reported, done.doubled), (redriven, redriven, 0));
    assert_eq!(done.sent_away, (LETTERS as u64 - redriven) - KEPT_MAX as u64);
    let status = bench.broker.status(&graves.queue()).await.unwrap();
    assert_eq!((status.waiting, status.delayed), (Some(KEPT_MAX as u64), Some(done.sent_away)));
    let mut jobs = bench.consumer(ConsumeOptions::new()).await.unwrap();
    let jobs = many(&mut jobs, redriven as usize).await.unwrap();
    let ids: BTreeSet<_> = jobs.iter().map(|job| job.message.attributes[attribute::JOB_ID].clone()).collect();
    assert_eq!(ids.len() as u64, redriven);

    let purged = graves.clear(Act::Purge, &Filter::default(), Some(10), |_| ()).await.unwrap();
    assert_eq!(purged.count(), 10);
    bench.broker.remove(&bench.queue).await.unwrap();
    let homeless = graves.clear(Act::Redrive, &Filter::default(), None, |_| ()).await.unwrap();
    assert_eq!(homeless.count(), 0);
    assert_eq!(homeless.homeless.values().sum::<u64>(), KEPT_MAX as u64 - 10, "{homeless:?}");
    assert_eq!(bench.broker.status(&graves.queue()).await.unwrap().waiting, Some(KEPT_MAX as u64 - 10));
}

#[tokio::test]
async fn a_pass_by_leases_over_memory_loses_and_doubles_nothing() {
    a_pass_sees_each_letter_once_and_puts_back_what_it_keeps(Kind::Memory).await;
}

#[tokio::test]
async fn a_pass_by_leases_over_sqlite_loses_and_doubles_nothing() {
    a_pass_sees_each_letter_once_and_puts_back_what_it_keeps(Kind::Sqlite).await;
}

/// Asks for the status until it is as it should be.
async fn until_status(place: &Place, is_there: impl Fn(&Value) -> bool) -> Value {
    let (started, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        let status = inferq(&["status", "--queue", &place.url(), "--json"]);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        if is_there(&status) {
            return status;
        }
        assert!(started.elapsed() < PATIENCE, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_workers_the_routes_and_the_seconds_of_work() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(40));
    assert_eq!(place.submit(&input, &["--items-per-job", "4"]).code, 0);
    let idle = until_status(&place, |_| true).await;
    assert_eq!((&idle["work"]["seconds"], &idle["workers"]), (&Value::Null, &Value::Array(vec![])));
    assert_eq!(idle["work"]["unknown"], "no worker takes jobs");
    assert_eq!(idle["work"]["exact"], true);
    assert!(idle["work"]["tokens_waiting"].as_u64().unwrap() >= 40, "{idle}");
    assert_eq!((&idle["routes"]["count"], &idle["routes"]["waiting"]), (&1.into(), &0.into()));
    let text = inferq(&["status", "--queue", &place.url()]).stdout;
    assert!(text.contains("no worker is there") && text.contains("jobs.results.*"), "{text}");

    let worker = WorkerProcess::start(&place.path("queue.db"), &["--worker-name", "one", "--echo-batch-ms", "1"]);
    let busy = until_status(&place, |status| status["workers"][0]["tokens_per_s"].as_f64().is_some()).await;
    let one = &busy["workers"][0];
    assert_eq!((&one["name"], &one["state"], &one["device"]), (&"one".into(), &"ready".into(), &"cpu".into()), "{one}");
    assert!(one["items_per_s"].as_f64().unwrap() > 0.0 && one["seen_s"].as_f64().unwrap() < 60.0, "{one}");
    assert_eq!((&busy["work"]["seconds"], &busy["routes"]["waiting"]), (&0.0.into(), &10.into()), "{busy}");
    let text = inferq(&["status", "--queue", &place.url()]).stdout;
    assert!(text.contains("one (") && text.contains("work waiting: none"), "{text}");
    worker.terminate();
    assert!(worker.wait().success());
    let gone = until_status(&place, |status| status["workers"] == Value::Array(vec![])).await;
    assert_eq!(gone["work"]["tokens_waiting"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_is_one_reading_after_the_other_until_it_is_stopped() {
    let place = Place::new();
    let flags = ["status", "--queue", &place.url(), "--json", "--watch", "--interval-s", "1"];
    let mut child = piped(command("inferq").args(flags)).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..2 {
        let reading: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(reading["queues"][0]["role"], "jobs");
    }
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// What `explain` says as JSON, and its exit code.
fn explained(flags: &[&str]) -> (i32, Value) {
    let done = inferq(&[&["explain", "--json"], flags].concat());
    (done.code, serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}{}", done.stdout, done.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_explained_from_its_publishing_to_its_reply() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &(jsonl(6) + "{\"id\": \"worst\", \"text\": 3}\n"));
    let ledger = format!("{input}.ledger.db");
    place.submit(&input, &["--items-per-job", "2"]);
    let (code, waiting) = explained(&["--ledger", &ledger, "doc-3"]);
    assert_eq!((code, waiting["verdict"].as_str()), (0, Some("waiting for a worker")), "{waiting}");
    assert_eq!((&waiting["item"], &waiting["published"]["chunk"]), (&1.into(), &1.into()));
    assert!(waiting["published"]["place"].as_str().unwrap().ends_with("texts.jsonl line 3"), "{waiting}");
    assert_eq!((&waiting["places"][0]["state"], &waiting["places"][0]["ahead"]), (&"waiting".into(), &1.into()));
    let job = waiting["job"].as_str().unwrap().to_owned();
    assert!(job.ends_with("-000001"), "{job}");
    let (_, bad) = explained(&["--ledger", &ledger, "worst"]);
    assert!(bad["verdict"].as_str().unwrap().contains("can't be an item (malformed)"), "{bad}");

    let mut responder = Responder::on(&place).await;
    let mut taken = responder.take(3).await;
    let (_, leased) = explained(&["--queue", &place.url(), &job]);
    assert_eq!(leased["verdict"], "a worker has it, attempt 1", "{leased}");
    let (_, last) = taken.pop().unwrap();
    last.lease.dead_letter("reply_undeliverable: no \u{1b}[2J route").await.unwrap();
    responder.answer(taken).await;
    let dead = job.replace("-000001", "-000002");
    let (_, letter) = explained(&["--queue", &place.url(), &dead]);
    assert!(letter["verdict"].as_str().unwrap().starts_with("dead letter: reply_undeliverable"), "{letter}");
    let text = inferq(&["explain", "--ledger", &ledger, &dead]).stdout;
    assert!(text.contains("inferq dead show") && !text.contains('\u{1b}'), "{text}");

    let log = place.file(
        "worker.log",
        &format!(
            "{{\"time\":\"2026-01-01T00:00:02Z\",\"severity\":\"INFO\",\"message\":\"answered\",\"job.id\":\"{job}\",\"worker\":\"w1\"}}\n\
             {{\"time\":\"2026-01-01T00:00:01Z\",\"severity\":\"INFO\",\"message\":\"batch ran\",\"job.ids\":[\"x\",\"{job}\"]}}\n"
        ),
    );
    // The last chunk is answered by hand, so that everything can be collected.
    assert_eq!(inferq(&["dead", "redrive", "--queue", &place.url()]).code, 0);
    let taken = responder.take(1).await;
    responder.answer(taken).await;
    responder.close().await;
    assert_eq!(place.collect(&ledger, &[]).code, 2);
    let (code, answered) = explained(&["--ledger", &ledger, "--logs", &log, "--", "doc-3"]);
    assert_eq!((code, answered["verdict"].as_str()), (0, Some("answered: succeeded")), "{answered}");
    let messages: Vec<_> =
        answered["log"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["batch ran", "answered"]);
    assert!(answered["reply"]["item"].as_str().unwrap().starts_with("an embedding of 2 numbers"), "{answered}");
    let text = inferq(&["explain", "--ledger", &ledger, "--logs", &log, "--", "doc-3"]).stdout;
    for part in ["item 1 (from 0) of job", "published", "batch ran", "worker=w1", "reply", "this item: an embedding"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn explain_says_what_it_could_not_look_at() {
    let place = Place::new();
    let nowhere = inferq(&["explain", "job-1"]);
    assert!(
        nowhere.code == 64 && nowhere.stderr.contains("--queue URL, --ledger FILE or --logs"),
        "{}",
        nowhere.stderr
    );
    let unknown = inferq(&["explain", "--queue", &place.url(), "--logs", &place.name("none.log"), "--", "job-1"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("nothing is known of job-1"), "{}", unknown.stderr);
    for part in ["name it with --ledger", "none of the 0 messages", "none.log: No such file"] {
        assert!(unknown.stdout.contains(part), "{part}: {}", unknown.stdout);
    }
    let input = place.file("texts.jsonl", &jsonl(2));
    assert_eq!(place.submit(&input, &[]).code, 0);
    let ledger = format!("{input}.ledger.db");
    let _in_use = inferq_producer::ledger::Ledger::open(Path::new(&ledger)).unwrap();
    let (_, locked) = explained(&["--ledger", &ledger, "--queue", &place.url(), "doc-1"]);
    assert!(locked["not_seen"][0].as_str().unwrap().contains("in use by another process"), "{locked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_measured_from_when_each_job_was_due() {
    let place = Place::new();
    let _worker = WorkerProcess::start(&place.path("queue.db"), &[]);
    let (json, svg, queue) = (place.name("load.json"), place.name("load.svg"), place.url());
    let flags = ["bench", "--queue", &queue, "--rate", "100", "--duration-s", "2", "--items-per-job", "2"];
    let done = inferq(&[&flags[..], &["--text-tokens", "4-9", "--json", &json, "--svg", &svg]].concat());
    assert_eq!(done.code, 0, "{} {}", done.stdout, done.stderr);
    assert!(done.stdout.contains("p99.9") && done.stdout.contains("errors   none"), "{}", done.stdout);
    let measured: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let jobs = &measured["jobs"];
    assert!(jobs["due"].as_u64().unwrap() > 100 && jobs["due"] == jobs["answered"], "{measured}");
    let latency = |name: &str| measured["latency_ms"][name].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p999") && latency("p999") <= latency("max") * 1.002);
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg "));
    let again = inferq(&flags);
    let load = |text: &str| text.lines().nth(1).unwrap().split(" due").next().unwrap().to_owned();
    assert_eq!(load(&again.stdout), load(&done.stdout), "the same seed makes the same load");
    let status = until_status(&place, |_| true).await;
    assert_eq!((&status["routes"]["count"], &status["queues"][1]["waiting"]), (&0.into(), &0.into()), "{status}");
}

#[test]
fn a_load_that_nobody_answers_ends_and_says_so() {
    let place = Place::new();
    let queue = place.url();
    let flags = ["bench", "--queue", &queue, "--rate", "50", "--duration-s", "1", "--timeout-s", "1"];
    let done = inferq(&flags);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stdout.contains("0 answered") && done.stdout.contains("unanswered "), "{}", done.stdout);
    assert!(done.stderr.contains("stay in jobs"), "{}", done.stderr);
}

#[test]
fn completions_and_man_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = inferq(&["completions", shell]);
        assert!(script.code == 0 && script.stdout.contains("redrive") && script.stderr.is_empty(), "{shell}");
    }
    let worker = inferq(&["completions", "bash", "--program", "inferq-worker"]);
    assert!(worker.stdout.contains("--max-batch-tokens"), "{}", worker.stdout);
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1").display().to_string();
    assert_eq!(inferq(&["man", &pages]).code, 0);
    let pages: BTreeSet<_> =
        std::fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    for page in ["inferq.1", "inferq-worker.1", "inferq-status.1", "inferq-dead.1", "inferq-dead-redrive.1"] {
        assert!(pages.contains(page), "{page}: {pages:?}");
    }
    assert!(inferq(&["man"]).stdout.contains(".TH inferq 1"));
}

#[test]
fn every_command_teaches_by_example() {
    let commands = ["dead list", "dead show", "dead redrive", "dead purge", "dead", "completions", "man"];
    for name in commands {
        let help = inferq(&[&name.split(' ').collect::<Vec<_>>()[..], &["--help"]].concat());
        assert!(help.code == 0 && help.stdout.contains(&format!("  inferq {name} ")), "{name}: {}", help.stdout);
    }
}

#[test]
fn colour_is_used_only_where_it_is_wanted() {
    let place = Place::new();
    let colours =
        |flags: &[&str]| inferq(&[&["status", "--queue", &place.url()], flags].concat()).stdout.contains('\u{1b}');
    assert!(!colours(&[]) && !colours(&["--color", "never"]) && colours(&["--color", "always"]));
    let help = |flags: &[&str]| inferq(&[&["--help"], flags].concat()).stdout.contains('\u{1b}');
    assert!(!help(&[]) && inferq(&["--color=always", "--help"]).stdout.contains('\u{1b}'));
    let wrong = inferq(&["status", "--color", "purple"]);
    assert!(wrong.code == 64 && wrong.stdout.is_empty(), "errors go to stderr");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_minds_a_reader_that_goes_away() {
    let place = Place::new();
    bury(&place, &["malformed: a", "malformed: b"]).await;
    let input = place.file("texts.jsonl", &jsonl(3));
    let answered = place.file("answered.jsonl", &jsonl(3));
    let ledger = format!("{answered}.ledger.db");
    let mut responder = Responder::on(&place).await;
    assert_eq!(place.submit(&answered, &[]).code, 0);
    let taken = responder.take(1).await;
    responder.answer(taken).await;
    responder.close().await;
    let (queue, own) = (place.url(), place.name("run.queue.db"));
    let commands: [&[&str]; 17] = [
        &["--help"],
        &["--version"],
        &["dead", "list", "--help"],
        &["setup", "--queue", &queue],
        &["submit", "--queue", &queue, "--input", &input],
        &["collect", "--ledger", &ledger, "--output", "-"],
        &["run", "--engine", "echo", "--input", &input, "--output", "-", "--queue", &own],
        &["status", "--queue", &queue],
        &["status", "--queue", &queue, "--watch", "--interval-s", "1"],
        &["dead", "list", "--queue", &queue],
        &["dead", "list", "--queue", &queue, "--json"],
        &["dead", "show", "--queue", &queue, "job-0"],
        &["dead", "show", "--queue", &queue, "--raw", "job-0"],
        &["explain", "--queue", &queue, "job-0"],
        &["dead", "redrive", "--queue", &queue],
        &["completions", "bash"],
        &["man"],
    ];
    for arguments in commands {
        let mut child = piped(command("inferq").args(arguments)).stdin(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        let done: Done = child.wait_with_output().unwrap().into();
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        let stray = ["panicked", "pipe", "stdout"].into_iter().find(|word| done.stderr.contains(word));
        assert_eq!(stray, None, "{arguments:?}: {}", done.stderr);
    }
    let bench = ["bench", "--queue", &queue, "--rate", "10", "--duration-s", "1", "--timeout-s", "1"];
    let mut child: Child = piped(command("inferq").args(bench)).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0), "with stderr closed too");
}
