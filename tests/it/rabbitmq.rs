//! What RabbitMQ adds to the contract: connections that break, arguments that differ, foreign clients' messages; and in
//! `rabbitmq/` TLS, alarms and the consumer timeout.
//!
//! The cases that every broker shares are in `contract.rs`.

use std::num::NonZeroUsize;
use std::time::Instant;

use futures_util::StreamExt;
use inferq_shared::broker::{
    AnyConsumer, Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Delivery, Publisher, QueueOptions,
};
use inferq_shared::job::attribute;
use inferq_shared::reply::{Reply, Status};
use inferq_tests::brokers::{Bench, Kind, PATIENCE, many, message, one, text, up_to};
use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::rabbitmq::{RabbitmqServer, url};
use inferq_tests::relay::Relay;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use tokio::task::yield_now;
use tokio::time::timeout;

mod alarms;
mod timeouts;
mod tls;

/// Where a client waits for replies without a queue.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// Calls until it is done, as workers and producers do while the broker is out of reach.
async fn until_done<T, Called: Future<Output = Result<T, BrokerError>>>(mut call: impl FnMut() -> Called) -> T {
    let started = Instant::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) => assert!(error.is_transient() && started.elapsed() < PATIENCE, "{error}"),
        }
        yield_now().await;
    }
}

async fn next(consumer: &mut AnyConsumer) -> Delivery {
    let started = Instant::now();
    loop {
        match timeout(PATIENCE, consumer.receive(up_to(1))).await.unwrap() {
            Ok(deliveries) => return deliveries.into_iter().next().unwrap(),
            Err(error) => assert!(error.is_transient() && started.elapsed() < PATIENCE, "{error}"),
        }
        yield_now().await;
    }
}

/// A channel of a foreign client on a virtual host.
async fn foreign(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

/// A virtual host of its own with our queues: their address, our connection, and a foreign client's.
async fn set_up(server: &RabbitmqServer) -> (BrokerUrl, Broker, (Connection, Channel)) {
    let address = server.url(&server.virtual_host());
    let url: BrokerUrl = address.parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    (url, broker, foreign(&address).await)
}

async fn send(channel: &Channel, queue: &str, properties: BasicProperties) {
    let sent = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), b"a job", properties);
    assert!(sent.await.unwrap().await.unwrap().is_ack());
}

#[tokio::test]
async fn a_lost_connection_ends_its_leases_and_work_goes_on() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let relay = Relay::start(server.address()).await;
    let url: BrokerUrl = url(relay.address(), &server.virtual_host()).parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    let jobs = &url.queues.jobs;
    broker.publisher().publish(jobs, ["a", "b", "c"].map(message).into()).await.unwrap();
    let mut consumer = broker.consumer(jobs, ConsumeOptions::new()).await.unwrap();
    let mut held = many(&mut consumer, 3).await.unwrap();
    for round in 2..=3 {
        relay.cut();
        let mut again = vec![next(&mut consumer).await];
        again.extend(many(&mut consumer, 2).await.unwrap());
        assert!(again.iter().all(|delivery| delivery.attempt == round), "{again:?}");
        // The late ones come from a connection whose tags begin at 1 as well: none of them settles a new delivery.
        for (late, Delivery { lease, .. }) in held.into_iter().enumerate() {
            match late {
                0 => assert_eq!(lease.ack().await, Err(BrokerError::LeaseLost)),
                1 => assert_eq!(lease.dead_letter("late").await, Err(BrokerError::LeaseLost)),
                _ => drop(lease),
            }
        }
        held = again;
    }
    let publisher = broker.publisher();
    until_done(|| publisher.publish(jobs, vec![message("d")])).await;
    let mut texts: Vec<_> = held.iter().map(text).collect();
    for Delivery { lease, .. } in held {
        lease.ack().await.unwrap();
    }
    let last = next(&mut consumer).await;
    texts.push(text(&last));
    texts.sort();
    assert_eq!(texts, ["a", "b", "c", "d"]);
    last.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn what_can_not_heal_is_refused_and_no_password_shown() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let (address, host) = (server.address(), server.virtual_host());
    for wrong in [format!("amqp://guest:s3cret@{address}/{host}"), format!("amqp://guest:guest@{address}/nowhere")] {
        let url: BrokerUrl = wrong.parse().unwrap();
        let error = Broker::connect(&url).await.unwrap_err();
        assert!(matches!(&error, BrokerError::Refused(_)), "{error}");
        assert!(!format!("{error} {url} {url:?}").contains("s3cret"));
    }
    // The hosts are tried in turn.
    let url: BrokerUrl = format!("amqp://guest:guest@127.0.0.1:1,{address}/{host}").parse().unwrap();
    Broker::connect(&url).await.unwrap().close().await;
    let url: BrokerUrl = "amqp://guest:guest@127.0.0.1:1/".parse().unwrap();
    assert!(Broker::connect(&url).await.unwrap_err().is_transient());
}

#[test]
fn no_command_line_s_error_and_no_help_shows_a_password() {
    for program in ["inferq", "inferq-worker"] {
        let status: &[&str] = if program == "inferq" { &["status"] } else { &[] };
        for (queue, flags) in [
            ("amqp://u:s3cret@h/", &["--help"][..]),
            ("amqp://u:s3cret@h:port/", &[]),
            ("ampq://u:s3cret@h/", &[]),
            ("amqp://u:s3cret@h/", &["amqp://u:s3cret@h/"]),
        ] {
            let ran = command(program).args(status).args(flags).env("INFERQ_QUEUE", queue).output().unwrap();
            let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
            assert!(said.contains("queue") && !said.contains("s3cret"), "{program} {flags:?}: {said}");
        }
    }
}

#[tokio::test]
async fn setup_names_the_argument_that_differs() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let url: BrokerUrl = server.url(&server.virtual_host()).parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let options = QueueOptions { messages_max: NonZeroUsize::new(3), expires: None };
    broker.declare(&url.queues.jobs, options).await.unwrap();
    let error = broker.setup(&url.queues).await.unwrap_err();
    let BrokerError::Refused(text) = &error else { panic!("{error}") };
    let named = ["queue 'jobs'", "inequivalent arg 'x-", "received", "current", "run setup again"];
    assert!(named.iter().all(|word| text.contains(word)), "{text}");
    broker.remove(&url.queues.jobs).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn headers_of_foreign_clients_are_rendered_or_left_out() {
    let Some(bench) = Bench::start_if_installed(Kind::Rabbitmq).await.unwrap() else { return };
    let virtual_host = bench.url.to_string();
    let virtual_host = virtual_host.split(['/', '?']).nth(3).unwrap();
    let (_connection, channel) = foreign(&RabbitmqServer::shared().unwrap().url(virtual_host)).await;
    let mut headers = FieldTable::default();
    headers.insert("number".into(), AMQPValue::LongLongInt(-7));
    headers.insert("truth".into(), AMQPValue::Boolean(true));
    headers.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
    headers.insert("nothing".into(), AMQPValue::Void);
    headers.insert("bytes".into(), AMQPValue::LongString(vec![0xff, b'a'].into()));
    headers.insert(attribute::ATTEMPT.into(), AMQPValue::FieldArray(FieldArray::default()));
    headers.insert("x-death".into(), AMQPValue::Boolean(false));
    headers.insert("x-delivery-count".into(), AMQPValue::LongString("many".into()));
    let properties = BasicProperties::default().with_headers(headers).with_content_type("text/plain".into());
    send(&channel, &bench.queue, properties.with_correlation_id("c1".into()).with_reply_to("me".into())).await;
    let mut consumer = bench.consumer(ConsumeOptions::new()).await.unwrap();
    for attempt in 1..=2 {
        let delivery = one(&mut consumer).await.unwrap();
        assert_eq!(delivery.attempt, attempt);
        let mut attributes = delivery.message.attributes.clone();
        attributes.retain(|name, _| name != attribute::PUBLISHED_AT);
        let expected = [
            ("amqp-correlation-id", "c1"),
            ("amqp-reply-to", "me"),
            ("bytes", "\u{fffd}a"),
            ("content-type", "text/plain"),
            ("number", "-7"),
            ("truth", "true"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(attributes, expected.into());
        // It comes again as it was.
        drop(delivery);
    }
}

#[tokio::test]
async fn what_the_broker_sets_aside_says_why() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let (url, broker, (_connection, channel)) = set_up(server).await;
    send(&channel, &url.queues.jobs, BasicProperties::default()).await;
    let got = channel.basic_get("jobs".into(), BasicGetOptions::default()).await.unwrap().unwrap();
    got.delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let mut dead = broker.consumer(&url.queues.dead(), ConsumeOptions::new()).await.unwrap();
    let letter = one(&mut dead).await.unwrap();
    let attributes = &letter.message.attributes;
    assert_eq!((&*attributes[attribute::DEAD_REASON], &*attributes[attribute::DEAD_QUEUE]), ("rejected", "jobs"));
    assert_eq!(text(&letter), "a job");
    letter.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn what_expires_in_its_queue_is_kept_and_says_why() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let (url, broker, (_connection, channel)) = set_up(server).await;
    send(&channel, &url.queues.jobs, BasicProperties::default().with_expiration("1".into())).await;
    let mut dead = broker.consumer(&url.queues.dead(), ConsumeOptions::new()).await.unwrap();
    let letter = one(&mut dead).await.unwrap();
    let attributes = &letter.message.attributes;
    assert_eq!((&*attributes[attribute::DEAD_REASON], &*attributes[attribute::DEAD_QUEUE]), ("expired", "jobs"));
    letter.lease.ack().await.unwrap();
    dead.close().await;
    // And what a worker sets aside stays, though it was to expire.
    send(&channel, &url.queues.jobs, BasicProperties::default().with_expiration("60000".into())).await;
    let mut jobs = broker.consumer(&url.queues.jobs, ConsumeOptions::new()).await.unwrap();
    one(&mut jobs).await.unwrap().lease.dead_letter("no good").await.unwrap();
    let kept = channel.basic_get("jobs.dead".into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(kept.delivery.properties.expiration(), &None);
    broker.close().await;
}

#[tokio::test]
async fn a_queue_made_by_others_is_served_as_it_is() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let address = server.url(&server.virtual_host());
    let (_connection, channel) = foreign(&address).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    // A classic queue: it counts no deliveries, but says that one was delivered before.
    channel.queue_declare("theirs".into(), durable, FieldTable::default()).await.unwrap();
    send(&channel, "theirs", BasicProperties::default()).await;
    let url: BrokerUrl = format!("{address}?queue=theirs").parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let mut consumer = broker.consumer("theirs", ConsumeOptions::new()).await.unwrap();
    let held = one(&mut consumer).await.unwrap();
    assert_eq!(held.attempt, 1);
    broker.close().await;
    let broker = Broker::connect(&url).await.unwrap();
    let mut consumer = broker.consumer("theirs", ConsumeOptions::new()).await.unwrap();
    let again = one(&mut consumer).await.unwrap();
    assert_eq!((again.attempt, text(&again)), (2, "a job".to_owned()));
    again.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn a_direct_reply_reaches_the_client_that_waits_and_is_no_error() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let (url, broker, (_connection, channel)) = set_up(server).await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let waiting = channel.basic_consume(DIRECT_REPLY.into(), "".into(), options, FieldTable::default());
    let mut replies = waiting.await.unwrap();
    send(&channel, &url.queues.jobs, BasicProperties::default().with_reply_to(DIRECT_REPLY.into())).await;
    let mut consumer = broker.consumer(&url.queues.jobs, ConsumeOptions::new()).await.unwrap();
    let job = one(&mut consumer).await.unwrap();
    let route = &job.message.attributes[attribute::AMQP_REPLY_TO];
    broker.publisher().publish(route, vec![message("a reply")]).await.unwrap();
    let reply = timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(reply.data, b"a reply");
    job.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_a_job_that_is_split_is_told_where_its_results_lie() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let address = server.url(&server.virtual_host());
    let setup = command("inferq").args(["setup", "--queue", &address]).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let folder = tempfile::tempdir().unwrap();
    let place = format!("file://{}/", folder.path().canonicalize().unwrap().display());
    std::fs::write(folder.path().join("texts.jsonl"), "\"a\"\n\"b\"\n\"c\"\n\"d\"\n\"e\"\n").unwrap();
    let flags = ["--engine", "echo", "--shard-items", "2", "--allow-read", &place, "--allow-write", &place];
    let _worker = WorkerProcess::spawn(&mut worker_on(&address, &flags));
    let (_connection, channel) = foreign(&address).await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let waiting = channel.basic_consume(DIRECT_REPLY.into(), "".into(), options, FieldTable::default());
    let mut replies = waiting.await.unwrap();
    let job =
        json!({"version": 1, "id": "large", "input_uri": format!("{place}texts.jsonl"), "reply_to": {"uri": place}});
    let properties = BasicProperties::default().with_reply_to(DIRECT_REPLY.into()).with_correlation_id("c1".into());
    let (body, options) = (job.to_string(), BasicPublishOptions::default());
    let sent = channel.basic_publish("".into(), "jobs".into(), options, body.as_bytes(), properties);
    assert!(sent.await.unwrap().await.unwrap().is_ack());
    let told = timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap();
    let reply = Reply::decode(&told.data).unwrap();
    assert_eq!((reply.id.as_str(), reply.status, reply.usage.items), ("large", Status::Succeeded, 5));
    assert!(reply.output_uri.unwrap().ends_with("/large/_manifest.json"));
    assert_eq!(told.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("c1"));
}
