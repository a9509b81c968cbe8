//! The same messages by a plain AMQP client, and what only AMQP can carry: headers of every type, properties, sizes.

use inferq_shared::broker::{Broker, BrokerUrl};
use inferq_shared::job::attribute;
use inferq_tests::process::{PATIENCE, WorkerProcess, command, worker_on};
use inferq_tests::queue_file;
use inferq_tests::rabbitmq::RabbitmqServer;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use tokio::time::timeout;

use super::jobs::{BODIES, Client, FIELDS, with};
use super::{Answer, dead, rejected};

/// A message and what comes of it.
pub(super) struct Row {
    pub(super) given: &'static str,
    pub(super) answer: Answer,
    body: fn() -> Vec<u8>,
    properties: fn() -> BasicProperties,
}

const fn row(given: &'static str, body: fn() -> Vec<u8>, properties: fn() -> BasicProperties, answer: Answer) -> Row {
    Row { given, answer, body, properties }
}

fn good() -> Vec<u8> {
    with(json!({}))
}

fn nonsense() -> Vec<u8> {
    b"nonsense".into()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn headers(pairs: impl IntoIterator<Item = (impl Into<ShortString>, AMQPValue)>) -> BasicProperties {
    let headers: std::collections::BTreeMap<_, _> =
        pairs.into_iter().map(|(name, value)| (name.into(), value)).collect();
    BasicProperties::default().with_headers(headers.into())
}

/// One value of each of AMQP's types.
fn every_type() -> Vec<AMQPValue> {
    let list = vec![text("a"), AMQPValue::Void, AMQPValue::FieldArray(FieldArray::default())];
    let table = FieldTable::from(std::collections::BTreeMap::from([("a".into(), AMQPValue::LongInt(1))]));
    vec![
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(-1),
        AMQPValue::ShortShortUInt(255),
        AMQPValue::ShortInt(i16::MIN),
        AMQPValue::ShortUInt(u16::MAX),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::Float(1.5),
        AMQPValue::Double(-1e300),
        AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        AMQPValue::LongString(vec![0, 0xff].into()),
        AMQPValue::FieldArray(list.into()),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::FieldTable(table),
        AMQPValue::ByteArray(vec![0, 0xff].into()),
        AMQPValue::Void,
    ]
}

/// Every attribute that a worker reads, with a value that is no text of its kind.
fn wrong_attributes() -> BasicProperties {
    let names = [
        attribute::VERSION,
        attribute::JOB_ID,
        attribute::SUBMISSION,
        attribute::ITEMS,
        attribute::TOKENS,
        attribute::PUBLISHED_AT,
        attribute::ATTEMPT,
        attribute::TRACEPARENT,
        attribute::PARENT,
        attribute::CONTENT_TYPE,
    ];
    headers(names.into_iter().zip(every_type().into_iter().rev()))
}

/// What is left of a frame when its header has so many bytes of `x`.
fn of_header_bytes(bytes: usize) -> BasicProperties {
    headers([("x", text(&"x".repeat(bytes)))])
}

fn deaths(value: AMQPValue) -> BasicProperties {
    headers([("x-death", value), ("x-delivery-count", text("many")), ("x-first-death-reason", AMQPValue::Void)])
}

fn deaths_in_a_row(count: usize) -> BasicProperties {
    let death = FieldTable::from(std::collections::BTreeMap::from([
        ("reason".into(), text("maxlen")),
        ("queue".into(), text("jobs")),
    ]));
    deaths(AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death); count].into()))
}

/// What a worker is given.
pub(super) const MESSAGES: &[Row] = &[
    row("no properties and no headers", good, BasicProperties::default, Answer::Succeeded),
    row("an empty body", Vec::new, BasicProperties::default, dead("malformed", "the body is not a JSON object")),
    row(
        "a body of 9 MiB",
        || with(json!({"inputs": vec!["x".repeat(1 << 20); 9]})),
        || headers([(attribute::JOB_ID, text("bad"))]),
        rejected("limit_exceeded", "the limit is 8388608"),
    ),
    row(
        "another `content-type` and encoding than it has",
        good,
        || BasicProperties::default().with_content_type("image/png".into()).with_content_encoding("gzip".into()),
        Answer::Succeeded,
    ),
    row(
        "headers of every type",
        good,
        || headers(every_type().into_iter().enumerate().map(|(number, value)| (format!("x-{number}"), value))),
        Answer::Succeeded,
    ),
    row("our own attributes as headers of every type", good, wrong_attributes, Answer::Succeeded),
    row("the same beside nonsense", nonsense, wrong_attributes, dead("malformed", "the body is not a JSON object")),
    row(
        "`inferq-job-id` a number, beside nonsense",
        nonsense,
        || headers([(attribute::JOB_ID, AMQPValue::LongLongInt(7))]),
        rejected("malformed", "the body is not a JSON object"),
    ),
    row("headers that fill a frame", good, || of_header_bytes(130_000), Answer::Succeeded),
    row(
        "the same beside nonsense",
        nonsense,
        || of_header_bytes(130_000),
        dead("malformed", "the body is not a JSON object"),
    ),
    row(
        "a `traceparent` that fills a frame",
        good,
        || headers([(attribute::TRACEPARENT, text(&"x".repeat(130_000)))]),
        dead("reply_undeliverable", "AMQP's frames allow 102400"),
    ),
    row(
        "`reply_to` another queue",
        good,
        || BasicProperties::default().with_reply_to("answers".into()),
        rejected("forbidden", "reply_to \"answers\" is not allowed"),
    ),
    row(
        "`reply_to` the jobs queue",
        good,
        || BasicProperties::default().with_reply_to("jobs".into()),
        rejected("forbidden", "reply_to \"jobs\" is not allowed"),
    ),
    row(
        "`reply_to` of 255 bytes",
        good,
        || BasicProperties::default().with_reply_to("ä".repeat(127).as_str().into()),
        rejected("forbidden", "is not allowed"),
    ),
    row(
        "`reply_to` a client's own queue that is gone",
        good,
        || BasicProperties::default().with_reply_to("amq.gen-gone".into()),
        dead("reply_undeliverable", "no queue named amq.gen-gone"),
    ),
    row(
        "`priority` 255, an absurd `timestamp`, `type` and `app-id`",
        good,
        || {
            let properties = BasicProperties::default().with_priority(255).with_timestamp(u64::MAX);
            properties.with_type("\0".into()).with_app_id("x".repeat(255).as_str().into())
        },
        Answer::Succeeded,
    ),
    row(
        "`expiration` in a minute",
        good,
        || BasicProperties::default().with_expiration("60000".into()),
        Answer::Succeeded,
    ),
    row(
        "the same beside nonsense",
        nonsense,
        || BasicProperties::default().with_expiration("60000".into()),
        dead("malformed", "the body is not a JSON object"),
    ),
    row(
        "`CC`, other queues",
        good,
        || headers([("CC", AMQPValue::FieldArray(vec![text("none")].into()))]),
        Answer::Succeeded,
    ),
    row("`x-death` that is no list", good, || deaths(text("often")), Answer::Succeeded),
    row("`x-death` 500 times", good, || deaths_in_a_row(500), Answer::Succeeded),
    row(
        "the same beside nonsense",
        nonsense,
        || deaths_in_a_row(500),
        dead("malformed", "the body is not a JSON object"),
    ),
    row("`x-death` of every type", good, || deaths(AMQPValue::FieldArray(every_type().into())), Answer::Succeeded),
];

/// A server with a virtual host of the test's own, a worker on it, and a plain client.
struct Amqp {
    broker: Broker,
    url: BrokerUrl,
    worker: WorkerProcess,
    channel: Channel,
    _connection: Connection,
}

impl Amqp {
    async fn start() -> Option<Self> {
        let server = RabbitmqServer::shared()?;
        let address = server.url(&server.virtual_host());
        let setup = command("inferq").args(["setup", "--queue", &address]).output().unwrap();
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        let worker = WorkerProcess::spawn(&mut worker_on(&address, &["--engine", "echo", "--echo-faults"]));
        let url: BrokerUrl = address.parse().unwrap();
        let broker = Broker::connect(&url).await.unwrap();
        let connection = Connection::connect(&address, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Some(Self { broker, url, worker, channel, _connection: connection })
    }

    async fn publish(&self, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish("".into(), "jobs".into(), options, body, properties).await.unwrap();
        assert!(timeout(PATIENCE, sent).await.unwrap().unwrap().is_ack());
    }

    async fn publish_good(&self) {
        self.publish(&queue_file::message("good", "a good text").body, BasicProperties::default()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_job_by_a_plain_amqp_client_has_its_answer_and_the_worker_goes_on() {
    let Some(amqp) = Amqp::start().await else { return };
    let mut client = Client::of(&amqp.broker, &amqp.url.queues).await;
    let mut wrong = Vec::new();
    for row in BODIES.iter().chain(FIELDS) {
        let message = row.message();
        let attributes = message.attributes.iter().map(|(name, value)| (name.as_str(), text(value)));
        amqp.publish(&message.body, headers(attributes)).await;
        amqp.publish_good().await;
        wrong.extend(client.expect(row.given, row.answer).await);
    }
    for row in MESSAGES {
        amqp.publish(&(row.body)(), (row.properties)()).await;
        amqp.publish_good().await;
        wrong.extend(client.expect(row.given, row.answer).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(amqp.worker.get("/healthz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_reply_to_nobody_is_lost_or_a_dead_letter_and_the_worker_goes_on() {
    let Some(amqp) = Amqp::start().await else { return };
    let mut replies = Client::of(&amqp.broker, &amqp.url.queues).await;
    for nobody in ["", "x", "x.y", "!.!", "g2dkAA.g2dkAA==", "g2dkABBpbmZlcnFAbG9jYWxob3N0AAAB9gAAAAAAAAAB.c2VjcmV0"] {
        let reply_to = format!("amq.rabbitmq.reply-to.{nobody}");
        amqp.publish(&good(), BasicProperties::default().with_reply_to(reply_to.as_str().into())).await;
        amqp.publish_good().await;
        assert_eq!(replies.next_reply().await, "good", "after {reply_to}");
    }
    assert_eq!(amqp.worker.get("/healthz").0, 200);
}
