//! Messages on a worker's queue, as any client may publish them. After each a good job is answered by the same worker.
//!
//! The worker has the echo engine and its default limits; what only a model can tell is asked of a real one. The rows
//! stand in `jobs/`.

use std::collections::VecDeque;

use inferq_shared::broker::{
    AnyConsumer, Attributes, Broker, ConsumeOptions, Consumer, Message, Publisher, QueueNames,
};
use inferq_shared::job::attribute;
use inferq_shared::reply::{Reply, Status};
use inferq_tests::brokers::up_to;
use inferq_tests::process::{PATIENCE, WorkerProcess};
use inferq_tests::queue_file::{QueueFile, message};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Answer;
use crate::parity::model_directory;

mod bodies;
mod fields;

pub(super) use bodies::BODIES;
pub(super) use fields::{FIELDS, FOR_A_MODEL};

/// A message and what comes of it.
pub(super) struct Row {
    pub(super) given: &'static str,
    pub(super) answer: Answer,
    body: fn() -> Vec<u8>,
    beside: Beside,
}

/// The attributes beside a body.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// `inferq-job-id`, so that somebody can be answered although the body says nothing.
    Id,
    /// `inferq-published-at`, longer ago than a job waits for a worker that fits.
    LongAgo,
    /// This one attribute.
    One(&'static str, &'static str),
}

const fn row(given: &'static str, body: fn() -> Vec<u8>, answer: Answer) -> Row {
    Row { given, answer, body, beside: Beside::Nothing }
}

impl Row {
    const fn beside(self, beside: Beside) -> Self {
        Self { beside, ..self }
    }

    /// As a client publishes it.
    pub(super) fn message(&self) -> Message {
        let long_ago = || (Timestamp::now().as_millisecond() - 2 * 3_600_000).to_string();
        let attribute = match self.beside {
            Beside::Nothing => None,
            Beside::Id => Some((attribute::JOB_ID, "bad".to_owned())),
            Beside::LongAgo => Some((attribute::PUBLISHED_AT, long_ago())),
            Beside::One(name, value) => Some((name, value.to_owned())),
        };
        let attributes: Attributes = attribute.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Message { body: (self.body)().into(), attributes }
    }
}

/// A good job with these fields put in the place of its own; `null` takes one away.
pub(super) fn with(fields: Value) -> Vec<u8> {
    let mut job = json!({"version": 1, "id": "bad", "inputs": ["a text"]});
    for (field, value) in fields.as_object().unwrap() {
        job[field] = value.clone();
    }
    job.to_string().into_bytes()
}

/// A good job with this text in the place of its inputs.
fn with_text(text: impl Into<String>) -> Vec<u8> {
    with(json!({"inputs": [text.into()]}))
}

/// The client's end of a worker's queue.
pub(super) struct Client {
    broker: Broker,
    jobs: String,
    replies: AnyConsumer,
    dead: AnyConsumer,
    ends: VecDeque<End>,
}

/// How a job ended.
enum End {
    Reply(Box<Reply>),
    /// A dead letter, with its reason.
    Dead(String),
}

impl End {
    fn of(message: &Message, is_dead: bool) -> Self {
        match is_dead {
            true => Self::Dead(message.attributes.get(attribute::DEAD_REASON).cloned().unwrap_or_default()),
            false => Self::Reply(Box::new(Reply::decode(&message.body).unwrap())),
        }
    }
}

impl Client {
    pub(super) async fn of(broker: &Broker, names: &QueueNames) -> Self {
        let consumer = async |queue: String| broker.consumer(&queue, ConsumeOptions::new()).await.unwrap();
        let (replies, dead) = (consumer(names.results()).await, consumer(names.dead()).await);
        Self { broker: broker.clone(), jobs: names.jobs.clone(), replies, dead, ends: VecDeque::new() }
    }

    /// What comes next of any job.
    async fn end(&mut self) -> End {
        while self.ends.is_empty() {
            let received = async {
                tokio::select! {
                    replies = self.replies.receive(up_to(16)) => (replies, false),
                    dead = self.dead.receive(up_to(16)) => (dead, true),
                }
            };
            let (received, are_dead) = timeout(PATIENCE, received).await.expect("every job has an end");
            for delivery in received.unwrap() {
                delivery.lease.ack().await.unwrap();
                self.ends.push_back(End::of(&delivery.message, are_dead));
            }
        }
        self.ends.pop_front().unwrap()
    }

    /// The id of the reply that comes next; before it, only what could not be delivered.
    pub(super) async fn next_reply(&mut self) -> String {
        loop {
            match self.end().await {
                End::Reply(reply) => return reply.id.to_string(),
                End::Dead(why) => assert!(why.starts_with("reply_undeliverable: "), "a dead letter: {why}"),
            }
        }
    }

    /// Gives a row and a good job after it; says what differs from what should come of them.
    async fn give(&mut self, row: &Row) -> Option<String> {
        let jobs = vec![row.message(), message("good", "a good text")];
        self.broker.publisher().publish(&self.jobs, jobs).await.unwrap();
        self.expect(row.given, row.answer).await
    }

    /// Waits for what comes of something given and a good job after it; says what differs from what should.
    pub(super) async fn expect(&mut self, given: &str, answer: Answer) -> Option<String> {
        let (mut good, mut differs) = (false, None);
        for _ in 0..2 {
            match self.end().await {
                End::Reply(reply) if reply.id.as_str() == "good" => good = reply.status == Status::Succeeded,
                End::Reply(reply) => differs = answer.differs_from(&reply),
                End::Dead(why) => differs = differs_from_dead(answer, &why),
            }
        }
        assert!(good, "after {given}: the good job was not answered");
        differs.map(|differs| format!("{given}: {answer} was expected, not {differs}"))
    }

    async fn give_all(mut self, rows: impl IntoIterator<Item = &Row>) {
        let mut wrong = Vec::new();
        for row in rows {
            wrong.extend(self.give(row).await);
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn differs_from_dead(answer: Answer, why: &str) -> Option<String> {
    let agrees = match answer {
        // The broker's own reasons are single words.
        Answer::Dead { reason, says } => {
            why.contains(says) && (why == reason || why.starts_with(&format!("{reason}: ")))
        }
        _ => false,
    };
    (!agrees).then(|| format!("a dead letter: {why}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_job_has_its_answer_and_the_worker_goes_on() {
    let queue = QueueFile::new().await;
    let worker = WorkerProcess::start(&queue.path, &["--echo-faults"]);
    Client::of(&queue.broker, &queue.names).await.give_all(BODIES.iter().chain(FIELDS)).await;
    assert_eq!(worker.get("/healthz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_job_for_a_model_has_its_answer_and_the_worker_goes_on() {
    let queue = QueueFile::new().await;
    let model = model_directory().display().to_string();
    let worker = WorkerProcess::start_with(&queue.path, &["--model", &model]);
    Client::of(&queue.broker, &queue.names).await.give_all(FOR_A_MODEL).await;
    assert_eq!(worker.get("/healthz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_another_worker_waits_for_it_and_spends_no_attempt() {
    let queue = QueueFile::new().await;
    let other = |fields| Message { body: with(fields).into(), ..Message::default() };
    queue.publish(vec![other(json!({"version": 2})), other(json!({"id": "other", "model": "another"}))]).await;
    queue.publish([message("good", "a good text")]).await;
    let _worker = WorkerProcess::start(&queue.path, &[]);
    assert_eq!(queue.collect(1, |_| ()).await.into_keys().collect::<Vec<_>>(), ["good"]);
    let mut status = queue.broker.status("jobs").await.unwrap();
    while status.delayed != Some(2) {
        tokio::task::yield_now().await;
        status = queue.broker.status("jobs").await.unwrap();
    }
    let _fitting = WorkerProcess::start(&queue.path, &["--model-name", "another"]);
    let replies = queue.collect(1, |_| ()).await;
    assert_eq!((replies["other"].status, replies["other"].attempt), (Status::Succeeded, 1));
}
