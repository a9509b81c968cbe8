//! Alarms: a broker short of memory takes no messages, and everybody says so until it does.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, ConsumeOptions, Publisher};
use inferq_tests::brokers::{PATIENCE, message, one, text};
use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::rabbitmq::RabbitmqServer;
use serde_json::{Value, json};
use tokio::task::yield_now;

use super::until_done;

/// As the broker says it.
const REASON: &str = "low on memory";
/// Calls to the broker are given up after so long; an alarm that is known ends them sooner.
const CALL: Duration = Duration::from_secs(15);

fn is_blocked(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Unavailable(why) if why == &format!("blocked by the broker: {REASON}"))
}

#[tokio::test]
async fn an_alarm_is_told_and_what_waits_goes_through_after_it() {
    let Some(server) = RabbitmqServer::own() else { return };
    let url: BrokerUrl = server.url(&server.virtual_host()).parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    let (jobs, publisher) = (&url.queues.jobs, broker.publisher());
    publisher.publish(jobs, vec![message("a")]).await.unwrap();
    let mut consumer = broker.consumer(jobs, ConsumeOptions::new()).await.unwrap();
    let held = one(&mut consumer).await.unwrap();
    server.memory_alarm(true);
    // The first publish is what the broker blocks the connection at; it may still get through.
    let refused = loop {
        match publisher.publish(jobs, vec![message("b")]).await {
            Ok(()) => yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(is_blocked(&refused), "{refused}");
    // What consumes is not blocked.
    held.lease.ack().await.unwrap();
    assert!(broker.status(jobs).await.unwrap().waiting.is_some());
    server.memory_alarm(false);
    until_done(|| publisher.publish(jobs, vec![message("c")])).await;
    loop {
        let delivery = one(&mut consumer).await.unwrap();
        let last = text(&delivery) == "c";
        delivery.lease.ack().await.unwrap();
        if last {
            break;
        }
    }
    broker.close().await;
}

#[tokio::test]
async fn a_publish_that_an_alarm_catches_on_its_way_is_told_and_not_confirmed() {
    let Some(server) = RabbitmqServer::own() else { return };
    let url: BrokerUrl = server.url(&server.virtual_host()).parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    let (jobs, publisher) = (&url.queues.jobs, broker.publisher());
    publisher.publish(jobs, vec![message("before")]).await.unwrap();
    server.memory_alarm(true);
    // Once the alarm is up, the broker reads the first of these, and the others when it is over.
    let mut confirmed = 1;
    let (caught, took) = loop {
        let started = Instant::now();
        match publisher.publish(jobs, vec![message("caught"); 1000]).await {
            Ok(()) => confirmed += 1000,
            Err(error) => break (error, started.elapsed()),
        }
    };
    assert!(is_blocked(&caught) && took < CALL, "{caught} after {took:?}");
    let waiting = broker.status(jobs).await.unwrap().waiting.unwrap();
    assert!((confirmed..confirmed + 1000).contains(&waiting), "{waiting} of {confirmed} and 1000");
    assert_eq!(broker.alarm().await, Ok(Some(REASON.to_owned())));
    server.memory_alarm(false);
    let mut blocked = broker.blocked().unwrap();
    blocked.wait_for(Option::is_none).await.unwrap();
    assert_eq!(broker.alarm().await, Ok(None));
    until_done(|| publisher.publish(jobs, vec![message("after")])).await;
    broker.close().await;
}

#[tokio::test]
async fn an_alarm_is_asked_for_by_who_has_published_nothing() {
    let Some(server) = RabbitmqServer::own() else { return };
    let url: BrokerUrl = server.url(&server.virtual_host()).parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    assert_eq!(broker.alarm().await, Ok(None));
    server.memory_alarm(true);
    // One that was there before, and one that comes into it.
    let late = Broker::connect(&url).await.unwrap();
    for broker in [broker, late] {
        let started = Instant::now();
        while broker.alarm().await != Ok(Some(REASON.to_owned())) {
            assert!(started.elapsed() < PATIENCE, "the alarm is not told");
        }
        assert_eq!(broker.status(&url.queues.jobs).await.unwrap().waiting, Some(0), "what asks is in no queue");
        broker.close().await;
    }
}

/// What `inferq` says with these arguments, on stdout.
fn said(arguments: &[&str]) -> String {
    let ran = command("inferq").args(arguments).output().unwrap();
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// `inferq submit` of some texts, with a ledger of this name beside them.
fn submit(queue: &str, folder: &tempfile::TempDir, ledger: &str) -> Command {
    let texts = folder.path().join("texts.jsonl");
    std::fs::write(&texts, (0..200).map(|number| format!("\"text {number}\"\n")).collect::<String>()).unwrap();
    let mut submit = command("inferq");
    submit.args(["submit", "--queue", queue, "--items-per-job", "1", "--input"]).arg(texts);
    submit.arg("--ledger").arg(folder.path().join(ledger)).stderr(Stdio::piped());
    submit
}

#[test]
fn producer_worker_and_status_say_that_the_broker_is_blocked_and_go_on_when_it_is_not() {
    let Some(server) = RabbitmqServer::own() else { return };
    let queue = server.url(&server.virtual_host());
    let folder = tempfile::tempdir().unwrap();
    said(&["setup", "--queue", &queue]);
    assert!(submit(&queue, &folder, "early.db").output().unwrap().status.success());
    let status = |format: &[&str]| said(&[&["status", "--queue", &queue], format].concat());
    let overview = || serde_json::from_str::<Value>(&status(&["--json"])).unwrap();
    assert_eq!((&overview()["blocked"], &overview()["blocked_by"]), (&json!(false), &Value::Null));
    server.memory_alarm(true);
    // It has jobs to answer, which is how it comes to know.
    let worker = WorkerProcess::spawn(&mut worker_on(&queue, &["--engine", "echo"]));
    worker.until_logged("the broker takes no messages for now");
    let blocked = || serde_json::from_str::<Value>(&worker.get("/status").1).unwrap()["broker_blocked"].clone();
    assert_eq!((blocked(), worker.get("/livez").0), (json!(REASON), 200));
    assert_eq!((&overview()["blocked"], &overview()["blocked_by"]), (&json!(true), &json!(REASON)));
    assert!(status(&[]).contains(&format!("the broker takes no messages for now: {REASON}")));
    let mut late = submit(&queue, &folder, "late.db").spawn().unwrap();
    let mut lines = BufReader::new(late.stderr.take().unwrap()).lines().map_while(Result::ok);
    let waits = lines.find(|line| line.starts_with("waiting: ")).unwrap();
    assert!(waits.ends_with(&format!("blocked by the broker: {REASON}")), "{waits}");
    server.memory_alarm(false);
    let rest: Vec<_> = lines.collect();
    assert!(late.wait().unwrap().success(), "{rest:?}");
    let begun_and_over = |start| rest.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((begun_and_over("waiting: "), begun_and_over("going on after ")), (0, 1), "{rest:?}");
    let collected = |ledger: &str| {
        let ledger = folder.path().join(ledger).display().to_string();
        said(&["collect", "--queue", &queue, "--ledger", &ledger, "--output", "-", "--timeout-s", "60"])
    };
    for ledger in ["early.db", "late.db"] {
        assert_eq!(collected(ledger).lines().count(), 200);
    }
    let started = Instant::now();
    while blocked() != Value::Null {
        assert!(started.elapsed() < PATIENCE, "the worker still says that the broker is blocked");
        std::thread::yield_now();
    }
}
