//! The consumer timeout: what is held for too long is taken back with all else on its channel, and everybody goes on.

use std::time::Duration;

use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, ConsumeOptions, Delivery, Publisher};
use inferq_shared::reply::{Reply, Status};
use inferq_tests::brokers::{many, message, one, text};
use inferq_tests::process::{WorkerProcess, worker_on};
use inferq_tests::queue_file;
use inferq_tests::rabbitmq::RabbitmqServer;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::task::yield_now;

use super::{foreign, next};

#[tokio::test]
async fn what_is_held_beyond_the_consumer_timeout_comes_again() {
    let Some(server) = RabbitmqServer::own() else { return };
    let url: BrokerUrl = server.url(&server.virtual_host()).parse().unwrap();
    server.consumer_timeout(Duration::from_secs(1));
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    let jobs = &url.queues.jobs;
    broker.publisher().publish(jobs, ["a", "b"].map(message).into()).await.unwrap();
    let mut consumer = broker.consumer(jobs, ConsumeOptions::new()).await.unwrap();
    let held = many(&mut consumer, 2).await.unwrap();
    server.consumer_timeout(Duration::from_secs(60));
    let mut again = vec![next(&mut consumer).await];
    again.extend(many(&mut consumer, 1).await.unwrap());
    for Delivery { lease, .. } in held {
        assert_eq!(lease.ack().await, Err(BrokerError::LeaseLost));
    }
    let mut texts: Vec<_> = again.iter().map(|delivery| (text(delivery), delivery.attempt)).collect();
    texts.sort();
    assert_eq!(texts, [("a".to_owned(), 2), ("b".to_owned(), 2)]);
    for Delivery { lease, .. } in again {
        lease.ack().await.unwrap();
    }
    assert_eq!(broker.status(jobs).await.unwrap().waiting, Some(0));
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_outlasts_the_consumer_timeout_is_answered_and_its_worker_goes_on() {
    let Some(server) = RabbitmqServer::own() else { return };
    let address = server.url(&server.virtual_host());
    let url: BrokerUrl = address.parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    broker.setup(&url.queues).await.unwrap();
    server.consumer_timeout(Duration::from_secs(1));
    let worker = WorkerProcess::spawn(&mut worker_on(&address, &["--engine", "echo", "--echo-batch-ms", "3000"]));
    let warning = worker.until_logged(
        "the broker takes back what is held longer than its consumer timeout, unless told otherwise: jobs that take longer \
         run again elsewhere; lower --max-lease-s, or raise the timeout",
    );
    assert_eq!((&warning["lease_max_s"], &warning["hold_s"]), (&3600.into(), &1800.into()));
    // Its channel has the short time; the one that it opens when that is closed has a long one.
    let (_connection, channel) = foreign(&address).await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = || channel.queue_declare("jobs".into(), passive, FieldTable::default());
    while declared().await.unwrap().consumer_count() == 0 {
        yield_now().await;
    }
    server.consumer_timeout(Duration::from_secs(60));
    let publisher = broker.publisher();
    publisher.publish(&url.queues.jobs, vec![queue_file::message("slow", "a text")]).await.unwrap();
    let mut replies = broker.consumer(&url.queues.results(), ConsumeOptions::new()).await.unwrap();
    let mut answers = Vec::new();
    // Its lease is over before its reply is there, so it runs again.
    for _ in 0..2 {
        let delivery = one(&mut replies).await.unwrap();
        let reply = Reply::decode(&delivery.message.body).unwrap();
        assert_eq!((reply.id.as_str(), reply.status), ("slow", Status::Succeeded));
        answers.push(reply.attempt);
        delivery.lease.ack().await.unwrap();
    }
    answers.sort_unstable();
    assert_eq!((answers, worker.get("/healthz").0), (vec![1, 2], 200));
    worker.terminate();
    assert_eq!(worker.wait().code(), Some(0));
    assert_eq!(broker.status(&url.queues.jobs).await.unwrap().waiting, Some(0), "nothing was given back");
    broker.close().await;
}
