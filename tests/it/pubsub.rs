//! What Pub/Sub adds to the contract: routes that share a topic, setup that compares, exactly-once acks, what is kept rather
//! than given back.
//!
//! The cases that every broker shares are in `contract.rs`.

use std::time::{Duration, Instant};

use inferq_shared::broker::{
    Broker, BrokerError, BrokerUrl, ConsumeOptions, Consumer, Message, Publisher, QueueNames, QueueOptions, Scheme,
};
use inferq_shared::job::attribute;
use inferq_tests::brokers::{Bench, Kind, PATIENCE, many, message, one, text, unrenewed, up_to};
use inferq_tests::process::command;
use inferq_tests::pubsub::{Emulator, project};
use tokio::time::timeout;

/// A bench, unless there is no emulator, which has been said.
async fn bench() -> Option<Bench> {
    Bench::start_if_installed(Kind::PubSub).await.unwrap()
}

/// The same queue, for a `setup` with these flags.
fn flagged(url: &BrokerUrl, exactly_once: Option<bool>, update: bool) -> BrokerUrl {
    let mut url = url.clone();
    let Scheme::PubSub(inner) = &mut url.scheme else { panic!("not an address of Pub/Sub") };
    (inner.exactly_once, inner.update) = (exactly_once, update);
    url
}

async fn set_up(url: &BrokerUrl) -> Result<(), BrokerError> {
    let broker = Broker::connect(url).await?;
    let done = broker.setup(&url.queues).await;
    broker.close().await;
    done
}

fn reply_to(submission: Option<&str>) -> Message {
    let text = submission.unwrap_or("nobody");
    let named = submission.map(|submission| (attribute::SUBMISSION.to_owned(), submission.to_owned()));
    Message { attributes: named.into_iter().collect(), ..message(text) }
}

#[tokio::test]
async fn setup_again_changes_nothing_and_shows_what_differs() {
    let Some(bench) = bench().await else { return };
    for exactly_once in [None, Some(false)] {
        set_up(&flagged(&bench.url, exactly_once, false)).await.unwrap();
    }
    let Err(BrokerError::Refused(shown)) = set_up(&flagged(&bench.url, Some(true), false)).await else {
        panic!("a difference went unseen");
    };
    for part in
        ["subscriptions/jobs ", "subscriptions/jobs.shards ", "- enable_exactly_once_delivery: false", "--update"]
    {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    assert!(!shown.contains("jobs.dead"), "{shown}");
    set_up(&flagged(&bench.url, Some(true), true)).await.unwrap();
    // Unset, it stays as it is.
    set_up(&bench.url).await.unwrap();
    set_up(&flagged(&bench.url, Some(true), false)).await.unwrap();
}

#[tokio::test]
async fn setup_shows_a_difference_and_update_removes_it_from_the_command_line() {
    let Some(emulator) = Emulator::shared() else { return };
    let queue = emulator.url(&project());
    let setup = |flags: &[&str]| {
        let ran = command("inferq").args(["setup", "--queue", &queue]).args(flags).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    assert_eq!(setup(&[]).0, Some(0));
    let (code, said) = setup(&["--exactly-once"]);
    assert_eq!(code, Some(64));
    let difference = "  - enable_exactly_once_delivery: false\n  + enable_exactly_once_delivery: true\n";
    assert_eq!(said.matches(difference).count(), 2, "{said}");
    assert!(said.contains("setup --update"), "{said}");
    for flags in [&["--exactly-once", "--update"][..], &["--exactly-once"], &[]] {
        let (code, said) = setup(flags);
        assert_eq!(code, Some(0), "{flags:?}: {said}");
    }
}

#[tokio::test]
async fn an_exactly_once_subscription_answers_acks() {
    let Some(bench) = bench().await else { return };
    set_up(&flagged(&bench.url, Some(true), true)).await.unwrap();
    bench.publish(&["a", "b", "c"]).await.unwrap();
    let mut consumer = bench.consumer(ConsumeOptions::new()).await.unwrap();
    let mut held = many(&mut consumer, 3).await.unwrap();
    held.pop().unwrap().lease.ack().await.unwrap();
    held.pop().unwrap().lease.dead_letter("for a reason").await.unwrap();
    let dropped = text(&held[0]);
    drop(held);
    let again = one(&mut consumer).await.unwrap();
    assert_eq!((text(&again), again.attempt), (dropped, 2));
    again.lease.ack().await.unwrap();
    let dead = QueueNames::new(bench.queue.as_str()).dead();
    let mut graveyard = bench.broker.consumer(&dead, ConsumeOptions::new()).await.unwrap();
    assert_eq!(one(&mut graveyard).await.unwrap().message.attributes[attribute::DEAD_REASON], "for a reason");
}

#[tokio::test]
async fn routes_share_a_topic_and_each_has_its_own_replies() {
    let Some(bench) = bench().await else { return };
    let names = QueueNames::new(bench.queue.as_str());
    let routes = ["s1", "s2"].map(|submission| names.submission(submission));
    for route in &routes {
        bench.broker.declare(route, QueueOptions::default()).await.unwrap();
    }
    // As any client sends them: the filter decides, on the emulator ours.
    let replies = [Some("s1"), Some("s2"), None].map(reply_to);
    bench.publisher().publish(&names.results(), replies.into()).await.unwrap();
    // And as a worker does.
    bench.publisher().publish(&routes[0], vec![message("by its route")]).await.unwrap();
    for (queue, expected) in
        [(&routes[0], vec!["by its route", "s1"]), (&routes[1], vec!["s2"]), (&names.results(), vec!["nobody"])]
    {
        let mut consumer = bench.broker.consumer(queue, ConsumeOptions::new()).await.unwrap();
        let got = many(&mut consumer, expected.len()).await.unwrap();
        let mut texts: Vec<_> = got.iter().map(text).collect();
        texts.sort();
        assert_eq!(texts, expected);
        for delivery in got {
            delivery.lease.ack().await.unwrap();
        }
        assert!(timeout(Duration::from_millis(300), consumer.receive(up_to(1))).await.is_err(), "more than its own");
    }
    bench.broker.remove(&routes[0]).await.unwrap();
    assert_eq!(bench.broker.status(&routes[0]).await, Err(BrokerError::UnknownQueue(routes[0].clone())));
    bench.broker.status(&routes[1]).await.unwrap();
    bench.broker.status(&names.results()).await.unwrap();
}

#[tokio::test]
async fn what_is_released_stays_with_its_open_consumer_and_spends_no_attempt() {
    let Some(bench) = bench().await else { return };
    bench.publish(&["a"]).await.unwrap();
    let mut consumer = bench.consumer(ConsumeOptions::new()).await.unwrap();
    for _ in 0..20 {
        let held = one(&mut consumer).await.unwrap();
        assert_eq!(held.attempt, 1);
        held.lease.release(Duration::ZERO).await.unwrap();
    }
    // What lies there when the consumer closes goes to others.
    consumer.close().await;
    let mut other = bench.consumer(ConsumeOptions::new()).await.unwrap();
    assert_eq!(one(&mut other).await.unwrap().attempt, 2);
}

#[tokio::test]
async fn what_was_released_for_later_goes_back_when_its_consumer_closes() {
    let Some(bench) = bench().await else { return };
    bench.publish(&["a"]).await.unwrap();
    let mut consumer = bench.consumer(ConsumeOptions::new()).await.unwrap();
    one(&mut consumer).await.unwrap().lease.release(Duration::from_secs(3600)).await.unwrap();
    consumer.close().await;
    let mut other = bench.consumer(ConsumeOptions::new()).await.unwrap();
    assert_eq!(text(&one(&mut other).await.unwrap()), "a");
}

#[tokio::test]
async fn what_nobody_asks_for_is_not_fetched_again_and_again() {
    let Some(bench) = bench().await else { return };
    let mut idle = bench.consumer(unrenewed(Duration::from_millis(300))).await.unwrap();
    // It asks, and is gone before the answer.
    assert!(timeout(Duration::from_millis(1), idle.receive(up_to(1))).await.is_err());
    bench.publish(&["a"]).await.unwrap();
    let mut other = bench.consumer(ConsumeOptions::new()).await.unwrap();
    let delivery = one(&mut other).await.unwrap();
    assert!(delivery.attempt <= 2, "it went back and forth: {delivery:?}");
    delivery.lease.ack().await.unwrap();
}

#[tokio::test]
async fn what_pub_sub_does_not_take_is_refused_and_nothing_is_sent() {
    let Some(bench) = bench().await else { return };
    let mut large = message("a");
    large.attributes.insert("long".to_owned(), "x".repeat(1025));
    let publisher = bench.publisher();
    let refused = publisher.publish(&bench.queue, vec![message("sound"), large]).await;
    assert!(matches!(&refused, Err(BrokerError::Refused(text)) if text.contains("1024")), "{refused:?}");
    let mut consumer = bench.consumer(ConsumeOptions::new()).await.unwrap();
    assert!(timeout(Duration::from_millis(300), consumer.receive(up_to(1))).await.is_err());
}

#[tokio::test]
async fn a_single_publish_does_not_wait_for_a_batch() {
    let Some(bench) = bench().await else { return };
    bench.publish(&["warm"]).await.unwrap();
    let mut fastest = PATIENCE;
    for _ in 0..20 {
        let started = Instant::now();
        bench.publish(&["a"]).await.unwrap();
        fastest = fastest.min(started.elapsed());
    }
    // The client alone would wait for 10 ms.
    assert!(fastest < Duration::from_millis(9), "{fastest:?}");
}

#[tokio::test]
async fn a_service_that_hangs_is_noticed_and_served_again_when_it_goes_on() {
    let Some(emulator) = Emulator::own() else { return };
    let url: BrokerUrl = emulator.url(&project()).parse().unwrap();
    set_up(&url).await.unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let mut consumer = broker.consumer("jobs", ConsumeOptions::new()).await.unwrap();
    broker.publisher().publish("jobs", vec![message("a")]).await.unwrap();
    let held = one(&mut consumer).await.unwrap();
    emulator.freeze();
    let publisher = broker.publisher();
    let (published, received) = tokio::join!(
        timeout(PATIENCE, publisher.publish("jobs", vec![message("lost?")])),
        timeout(PATIENCE, consumer.receive(up_to(1)))
    );
    for told in [published.unwrap(), received.unwrap().map(drop)] {
        assert!(matches!(told, Err(BrokerError::Unavailable(_))), "{told:?}");
    }
    emulator.thaw();
    let started = Instant::now();
    while let Err(error) = publisher.publish("jobs", vec![message("b")]).await {
        assert!(error.is_transient() && started.elapsed() < PATIENCE, "{error}");
    }
    let mut got = Vec::new();
    while !got.iter().any(|text| text == "b") {
        match timeout(PATIENCE, consumer.receive(up_to(1))).await.unwrap() {
            Ok(deliveries) => got.extend(deliveries.iter().map(text)),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    held.lease.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn a_service_that_lost_the_subscription_ends_its_consumer() {
    let Some(emulator) = Emulator::own() else { return };
    let url: BrokerUrl = emulator.url(&project()).parse().unwrap();
    set_up(&url).await.unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let mut consumer = broker.consumer("jobs", ConsumeOptions::new()).await.unwrap();
    assert!(timeout(Duration::from_millis(100), consumer.receive(up_to(1))).await.is_err());
    emulator.kill();
    emulator.start();
    let ended = loop {
        match timeout(PATIENCE, consumer.receive(up_to(1))).await.unwrap() {
            Err(error) if error.is_transient() => tokio::task::yield_now().await,
            ended => break ended.map(drop),
        }
    };
    assert_eq!(ended, Err(BrokerError::UnknownQueue("jobs".to_owned())));
    broker.close().await;
}
