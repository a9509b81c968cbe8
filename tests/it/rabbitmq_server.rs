//! The RabbitMQ servers that tests start: that they are what the tests of the broker take them for.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use inferq_tests::process::{PATIENCE, killed_after};
use inferq_tests::rabbitmq::RabbitmqServer;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

const QUEUE: &str = "jobs";

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(QUEUE.into(), options, arguments).await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, body: &[u8]) {
    let sent = channel.basic_publish(
        "".into(),
        QUEUE.into(),
        BasicPublishOptions::default(),
        body,
        BasicProperties::default(),
    );
    assert!(sent.await.unwrap().await.unwrap().is_ack());
}

async fn next(channel: &Channel) -> Option<Vec<u8>> {
    let message = channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await.unwrap();
    message.map(|message| message.delivery.data.clone())
}

#[tokio::test]
async fn virtual_hosts_of_one_server_do_not_meet() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let (_first, of_first) = connect(&server.url(&server.virtual_host())).await;
    let (_second, of_second) = connect(&server.url(&server.virtual_host())).await;
    publish(&of_first, b"for the first").await;
    assert_eq!(next(&of_second).await, None);
    assert_eq!(next(&of_first).await.as_deref(), Some(&b"for the first"[..]));
}

#[tokio::test]
async fn a_server_that_is_killed_or_stopped_starts_again_with_what_it_confirmed() {
    let Some(server) = RabbitmqServer::own() else { return };
    let url = server.url(&server.virtual_host());
    let (_before, channel) = connect(&url).await;
    publish(&channel, b"before the kill").await;
    server.kill();
    server.start();
    let (_between, channel) = connect(&url).await;
    assert_eq!(next(&channel).await.as_deref(), Some(&b"before the kill"[..]));
    publish(&channel, b"before the stop").await;
    server.stop();
    server.start();
    let (_after, channel) = connect(&url).await;
    assert_eq!(next(&channel).await.as_deref(), Some(&b"before the stop"[..]));
    assert_eq!(server.close_all_connections(), 1);
}

/// Set for the process that the next test starts, which is this program again, and kills.
const HOLDS: &str = "INFERQ_HOLDS_A_SERVER";

#[test]
fn a_server_does_not_outlive_a_test_process_that_is_killed() {
    if std::env::var_os(HOLDS).is_some() {
        let Some(server) = RabbitmqServer::own() else { return };
        println!("\n{HOLDS} {} {}", server.address(), server.folder().display());
        loop {
            std::thread::park();
        }
    }
    // It says nothing where no server is installed.
    let test = "rabbitmq_server::a_server_does_not_outlive_a_test_process_that_is_killed";
    let Some(said) = killed_after(test, HOLDS) else { return };
    let (address, folder) = said.split_once(' ').unwrap();
    let started = Instant::now();
    while TcpStream::connect(address).is_ok() || Path::new(folder).exists() {
        assert!(started.elapsed() < PATIENCE, "the server, or its data, is still there");
        std::thread::yield_now();
    }
}
