//! The Pub/Sub emulators that tests start: that they are what the tests of the broker take them for.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::{Stream, StreamExt};
use google_cloud_pubsub::model::Message;
use google_cloud_pubsub::subscriber::handler::Handler;
use inferq_tests::process::{PATIENCE, killed_after};
use inferq_tests::pubsub::client::Client;
use inferq_tests::pubsub::{Emulator, project};
use tokio::time::timeout;

const QUEUE: &str = "jobs";

async fn connect(emulator: &Emulator) -> Client {
    let client = Client::connect(emulator.address(), &project()).await.unwrap();
    client.declare(QUEUE).await.unwrap();
    client
}

async fn publish(client: &Client, text: &str) {
    let publisher = client.publisher(QUEUE).await.unwrap();
    let published = publisher.publish(Message::new().set_data(text.to_owned()));
    timeout(PATIENCE, published).await.unwrap().unwrap();
}

/// Takes and acks the next message.
async fn next(messages: impl Stream<Item = Result<(Message, Handler)>>) -> String {
    let (message, handler) = timeout(PATIENCE, pin!(messages).next()).await.unwrap().unwrap().unwrap();
    handler.ack();
    String::from_utf8(message.data.to_vec()).unwrap()
}

#[tokio::test]
async fn projects_of_one_emulator_do_not_meet() {
    let Some(emulator) = Emulator::shared() else { return };
    let (first, second) = (connect(emulator).await, connect(emulator).await);
    publish(&first, "for the first").await;
    publish(&second, "for the second").await;
    assert_eq!(next(second.stream(QUEUE)).await, "for the second");
    assert_eq!(next(first.stream(QUEUE)).await, "for the first");
}

#[tokio::test]
async fn a_stream_that_was_dropped_takes_no_more_messages() {
    let Some(emulator) = Emulator::shared() else { return };
    let client = connect(emulator).await;
    publish(&client, "first").await;
    let mut dropped = Box::pin(client.stream(QUEUE));
    assert_eq!(next(&mut dropped).await, "first");
    drop(dropped);
    // What a dead stream took would be held for minutes.
    let texts: BTreeSet<String> = (0..20).map(|number| format!("message {number}")).collect();
    for text in &texts {
        publish(&client, text).await;
    }
    let mut stream = Box::pin(client.stream(QUEUE));
    let mut came = BTreeSet::new();
    while came.len() < texts.len() {
        came.insert(next(&mut stream).await);
    }
    assert_eq!(came, texts);
}

#[tokio::test]
async fn a_frozen_emulator_goes_on_where_it_was_and_a_killed_one_starts_empty() {
    let Some(emulator) = Emulator::own() else { return };
    let client = connect(&emulator).await;
    publish(&client, "before").await;
    emulator.freeze();
    let silence = timeout(Duration::from_millis(300), pin!(client.stream(QUEUE)).next()).await;
    assert!(silence.is_err(), "it is frozen");
    emulator.thaw();
    assert_eq!(next(client.stream(QUEUE)).await, "before");
    emulator.kill();
    emulator.start();
    // Neither topic nor subscription is there any more.
    client.declare(QUEUE).await.unwrap();
    publish(&client, "after").await;
    assert_eq!(next(client.stream(QUEUE)).await, "after");
}

/// Set for the process that the next test starts, which is this program again, and kills.
const HOLDS: &str = "INFERQ_HOLDS_AN_EMULATOR";

#[test]
fn a_frozen_emulator_does_not_outlive_a_test_process_that_is_killed() {
    if std::env::var_os(HOLDS).is_some() {
        let Some(emulator) = Emulator::own() else { return };
        emulator.freeze();
        println!("\n{HOLDS} {}", emulator.address());
        loop {
            std::thread::park();
        }
    }
    let test = "pubsub_emulator::a_frozen_emulator_does_not_outlive_a_test_process_that_is_killed";
    // It says nothing where no emulator is installed.
    let Some(address) = killed_after(test, HOLDS) else { return };
    let started = Instant::now();
    // The system takes connections for a frozen process.
    while TcpStream::connect(&address).is_ok() {
        assert!(started.elapsed() < PATIENCE, "the emulator is still there");
        std::thread::yield_now();
    }
}
