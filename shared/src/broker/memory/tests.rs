//! Tests of the in-process broker and its faults.

use std::num::NonZeroUsize;

use tokio::sync::watch;
use tokio::time::{advance, timeout};

use super::*;
use crate::job::attribute::DEAD_REASON;

const LEASE: Duration = Duration::from_secs(30);

async fn broker(plan: FaultPlan) -> MemoryBroker {
    let broker = MemoryBroker::with_faults(plan);
    for queue in ["jobs", "jobs.dead", "jobs.results"] {
        broker.declare(queue, QueueOptions::default()).await.unwrap();
    }
    broker
}

fn message(text: &str) -> Message {
    Message { body: text.to_owned().into(), ..Message::default() }
}

async fn publish(broker: &MemoryBroker, texts: &[&str]) {
    broker.publisher().publish("jobs", texts.iter().map(|text| message(text)).collect()).await.unwrap();
}

fn pull(jobs: usize) -> Pull {
    Pull { jobs: NonZeroUsize::new(jobs).unwrap(), bytes: usize::MAX }
}

async fn consumer(broker: &MemoryBroker) -> MemoryConsumer {
    let options = ConsumeOptions { lease: LEASE, ..ConsumeOptions::new() };
    broker.consumer("jobs", options).await.unwrap()
}

/// What a consumer gets within a minute, by body and attempt.
async fn bodies(consumer: &mut MemoryConsumer, jobs: usize) -> Vec<(String, u32)> {
    seen(&receive(consumer, jobs).await)
}

async fn receive(consumer: &mut MemoryConsumer, jobs: usize) -> Vec<Delivery> {
    timeout(Duration::from_secs(60), consumer.receive(pull(jobs))).await.unwrap().unwrap()
}

fn seen(deliveries: &[Delivery]) -> Vec<(String, u32)> {
    let text = |delivery: &Delivery| String::from_utf8(delivery.message.body.to_vec()).unwrap();
    deliveries.iter().map(|delivery| (text(delivery), delivery.attempt)).collect()
}

fn of(texts: &[&str], attempt: u32) -> Vec<(String, u32)> {
    texts.iter().map(|text| ((*text).to_owned(), attempt)).collect()
}

async fn is_empty(consumer: &mut MemoryConsumer) -> bool {
    timeout(Duration::from_millis(1), consumer.receive(pull(1))).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_released_delivery_keeps_its_place_and_its_attempt() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a", "b", "c"]).await;
    let mut consumer = consumer(&broker).await;
    let [a] = <[_; 1]>::try_from(receive(&mut consumer, 1).await).unwrap();
    a.lease.release(Duration::ZERO).await.unwrap();
    assert_eq!(bodies(&mut consumer, 3).await, of(&["a", "b", "c"], 1));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_delivery_comes_when_its_time_is_over_and_not_before() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a", "b"]).await;
    let mut consumer = consumer(&broker).await;
    let mut both = receive(&mut consumer, 2).await;
    both.remove(0).lease.release(Duration::from_secs(5)).await.unwrap();
    assert!(is_empty(&mut consumer).await);
    assert_eq!(broker.status("jobs").await.unwrap().delayed, Some(1));
    let started = Instant::now();
    assert_eq!(bodies(&mut consumer, 2).await, of(&["a"], 1));
    assert!(started.elapsed() <= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_lease_is_redelivered_and_spends_an_attempt() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a", "b"]).await;
    let mut consumer = consumer(&broker).await;
    drop(receive(&mut consumer, 1).await);
    assert_eq!(bodies(&mut consumer, 1).await, of(&["b"], 1));
    assert_eq!(bodies(&mut consumer, 1).await, of(&["a"], 2));
}

#[tokio::test(start_paused = true)]
async fn a_pull_stops_at_its_bytes_and_brings_one_job_at_least() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["aaaa", "bb", "cc", "dd"]).await;
    let mut consumer = consumer(&broker).await;
    let pull = Pull { bytes: 3, ..pull(9) };
    let first = consumer.receive(pull).await.unwrap();
    assert_eq!(seen(&first), of(&["aaaa"], 1));
    assert_eq!(seen(&consumer.receive(pull).await.unwrap()), of(&["bb", "cc"], 1));
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lease_lasts_to_its_greatest_age_and_then_ends() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a"]).await;
    let options = ConsumeOptions { lease: LEASE, lease_max: LEASE * 10, ..ConsumeOptions::new() };
    let mut consumer = broker.consumer("jobs", options).await.unwrap();
    let held = receive(&mut consumer, 1).await.remove(0);
    let again = timeout(LEASE * 20, consumer.receive(pull(1)));
    let started = Instant::now();
    assert_eq!(seen(&again.await.unwrap().unwrap()), of(&["a"], 2));
    assert!(started.elapsed() >= LEASE * 10 && started.elapsed() <= LEASE * 11, "{:?}", started.elapsed());
    assert_eq!(held.lease.ack().await, Err(BrokerError::LeaseLost), "a late ack is fenced off");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_ends_after_its_time() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a"]).await;
    let (renew, renewed) = watch::channel(true);
    let options = ConsumeOptions { lease: LEASE, renew: renewed, ..ConsumeOptions::new() };
    let mut consumer = broker.consumer("jobs", options).await.unwrap();
    let _held = receive(&mut consumer, 1).await;
    assert!(timeout(LEASE * 5, consumer.receive(pull(1))).await.is_err());
    renew.send(false).unwrap();
    let started = Instant::now();
    assert_eq!(bodies(&mut consumer, 1).await, of(&["a"], 2));
    assert!(started.elapsed() > LEASE / 2 && started.elapsed() <= LEASE, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_keeps_its_bytes_and_gets_a_reason() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a"]).await;
    let mut consumer = consumer(&broker).await;
    receive(&mut consumer, 1).await.remove(0).lease.dead_letter("no route").await.unwrap();
    let mut dead = broker.consumer("jobs.dead", ConsumeOptions::new()).await.unwrap();
    let letter = dead.receive(pull(1)).await.unwrap().remove(0);
    assert_eq!((&letter.message.body[..], &*letter.message.attributes[DEAD_REASON]), (&b"a"[..], "no route"));
    assert_eq!(broker.status("jobs").await.unwrap().leased, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_takes_all_of_a_publish_or_nothing() {
    let broker = broker(FaultPlan::default()).await;
    let options = QueueOptions { messages_max: NonZeroUsize::new(2), ..QueueOptions::default() };
    broker.declare("small", options).await.unwrap();
    let publisher = broker.publisher();
    let three = vec![message("a"), message("b"), message("c")];
    assert_eq!(publisher.publish("small", three).await, Err(BrokerError::Full("small".to_owned())));
    publisher.publish("small", vec![message("a"), message("b")]).await.unwrap();
    let mut consumer = broker.consumer("small", ConsumeOptions::new()).await.unwrap();
    let held = receive(&mut consumer, 1).await.remove(0);
    assert!(publisher.publish("small", vec![message("c")]).await.is_err(), "what is leased still takes its place");
    held.lease.ack().await.unwrap();
    publisher.publish("small", vec![message("c")]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_queue_is_named() {
    let broker = broker(FaultPlan::default()).await;
    let unknown = BrokerError::UnknownQueue("nowhere".to_owned());
    assert_eq!(broker.publisher().publish("nowhere", vec![message("a")]).await, Err(unknown.clone()));
    assert_eq!(broker.consumer("nowhere", ConsumeOptions::new()).await.unwrap_err(), unknown);
    let mut consumer = consumer(&broker).await;
    broker.remove("jobs").await.unwrap();
    assert_eq!(consumer.receive(pull(1)).await.unwrap_err(), BrokerError::UnknownQueue("jobs".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_unused_queue_goes_when_it_expires() {
    let broker = broker(FaultPlan::default()).await;
    let options = QueueOptions { expires: Some(LEASE), ..QueueOptions::default() };
    broker.declare("short", options).await.unwrap();
    let mut consumer = broker.consumer("short", ConsumeOptions::new()).await.unwrap();
    assert!(timeout(LEASE * 3, consumer.receive(pull(1))).await.is_err(), "waiting is using");
    advance(LEASE).await;
    assert_eq!(broker.status("short").await, Err(BrokerError::UnknownQueue("short".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn closing_settles_what_was_decided_and_redelivers_the_rest() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a", "b"]).await;
    let other = broker.connect_again();
    let mut deliveries = receive(&mut consumer(&broker).await, 2).await;
    let held = deliveries.pop().unwrap();
    let mut ack = Box::pin(deliveries.remove(0).lease.ack());
    assert!(futures_util::poll!(&mut ack).is_pending());
    broker.close().await;
    assert_eq!(ack.await, Ok(()));
    assert_eq!(held.lease.ack().await, Err(BrokerError::Closed));
    assert_eq!(bodies(&mut consumer(&other).await, 2).await, of(&["b"], 2));
}

#[tokio::test(start_paused = true)]
async fn a_killed_connection_loses_its_leases_and_has_no_effect_any_more() {
    let broker = broker(FaultPlan::default()).await;
    publish(&broker, &["a", "b", "c"]).await;
    let other = broker.connect_again();
    let mut deliveries = receive(&mut consumer(&broker).await, 3).await;
    let publisher = broker.publisher();
    let mut ack = Box::pin(deliveries.remove(0).lease.ack());
    assert!(futures_util::poll!(&mut ack).is_pending(), "it is on its way when the process dies");
    broker.kill();
    broker.killed().await;
    assert_eq!(ack.await, Err(BrokerError::Closed));
    assert_eq!(deliveries.remove(0).lease.ack().await, Err(BrokerError::Closed));
    drop(deliveries);
    assert_eq!(publisher.publish("jobs", vec![message("d")]).await, Err(BrokerError::Closed));
    assert_eq!(bodies(&mut consumer(&other).await, 9).await, of(&["a", "b", "c"], 2));
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_heals_when_called_again() {
    let plan = FaultPlan::default().and(Call::Publish, 1, Fault::Disconnect(Duration::from_secs(1)));
    let broker = broker(plan).await;
    publish(&broker, &["a"]).await;
    let mut consumer = consumer(&broker).await;
    let held = receive(&mut consumer, 1).await.remove(0);
    assert!(broker.publisher().publish("jobs", vec![message("b")]).await.unwrap_err().is_transient());
    assert!(consumer.receive(pull(1)).await.unwrap_err().is_transient());
    advance(Duration::from_secs(1)).await;
    assert_eq!(held.lease.ack().await, Err(BrokerError::LeaseLost));
    assert!(consumer.receive(pull(1)).await.unwrap_err().is_transient(), "the break is told once");
    assert_eq!(bodies(&mut consumer, 1).await, of(&["a"], 2));
}

#[tokio::test(start_paused = true)]
async fn a_lost_confirm_has_published_and_a_lost_request_has_not() {
    let plan = FaultPlan::default()
        .and(Call::Publish, 0, Fault::LoseRequest)
        .and(Call::Publish, 1, Fault::LoseAnswer)
        .and(Call::Publish, 2, Fault::Partly)
        .and(Call::Publish, 3, Fault::Full)
        .and(Call::Publish, 4, Fault::Refuse);
    let broker = broker(plan).await;
    let publisher = broker.publisher();
    for text in ["a", "b", "c", "d", "e"] {
        let both = vec![message(text), message(&text.repeat(2))];
        publisher.publish("jobs", both).await.unwrap_err();
    }
    assert_eq!(bodies(&mut consumer(&broker).await, 9).await, of(&["b", "bb", "c"], 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_ack_leaves_a_lease_that_ends_by_itself() {
    let plan = FaultPlan::default().and(Call::Settle, 0, Fault::LoseRequest).and(Call::Settle, 1, Fault::LoseAnswer);
    let broker = broker(plan).await;
    publish(&broker, &["a", "b"]).await;
    let mut consumer = consumer(&broker).await;
    for delivery in receive(&mut consumer, 2).await {
        assert!(delivery.lease.ack().await.unwrap_err().is_transient());
    }
    assert_eq!(bodies(&mut consumer, 2).await, of(&["a"], 2));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_connection_renews_nothing() {
    let plan = FaultPlan::default().and(Call::Settle, 0, Fault::Stall(LEASE * 3));
    let broker = broker(plan).await;
    publish(&broker, &["a"]).await;
    let held = receive(&mut consumer(&broker).await, 1).await.remove(0);
    let other = broker.connect_again();
    let mut elsewhere = consumer(&other).await;
    let (ack, again) = tokio::join!(held.lease.ack(), bodies(&mut elsewhere, 1));
    assert_eq!((ack, again), (Err(BrokerError::LeaseLost), of(&["a"], 2)));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_comes_behind_the_others() {
    let plan = FaultPlan::default().and(Call::Receive, 0, Fault::Duplicate);
    let broker = broker(plan).await;
    publish(&broker, &["a", "b"]).await;
    assert_eq!(bodies(&mut consumer(&broker).await, 9).await, of(&["a", "b", "a"], 1));
}

#[tokio::test(start_paused = true)]
async fn a_planned_death_comes_before_or_after_the_call() {
    for (fault, published) in [(Fault::DieBefore, 0), (Fault::DieAfter, 1)] {
        let broker = broker(FaultPlan::default().and(Call::Publish, 0, fault)).await;
        let publisher = broker.publisher();
        tokio::select! {
            biased;
            _ = publisher.publish("jobs", vec![message("a")]) => panic!("the dead don't return"),
            () = broker.killed() => {}
        }
        let waiting = broker.connect_again().status("jobs").await.unwrap().waiting;
        assert_eq!(waiting, Some(published));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receive_loses_nothing() {
    let broker = broker(FaultPlan::default().and(Call::Receive, 0, Fault::Delay(LEASE))).await;
    publish(&broker, &["a"]).await;
    let mut consumer = consumer(&broker).await;
    assert!(timeout(LEASE / 2, consumer.receive(pull(1))).await.is_err());
    assert_eq!(bodies(&mut consumer, 1).await, of(&["a"], 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_consumers_of_one_queue_let_time_pass() {
    let broker = broker(FaultPlan::default()).await;
    let (mut one, mut two) = (consumer(&broker).await, consumer(&broker).await);
    let publisher = broker.publisher();
    let later = async {
        sleep(LEASE).await;
        publisher.publish("jobs", vec![message("a"), message("b")]).await.unwrap();
    };
    let ((), a, b) = tokio::join!(later, bodies(&mut one, 1), bodies(&mut two, 1));
    let mut both = [a, b].concat();
    both.sort();
    assert_eq!(both, of(&["a", "b"], 1), "each gets one");
}

#[tokio::test(start_paused = true)]
async fn the_observer_hears_everything_in_order() {
    let broker = broker(FaultPlan::default()).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    broker.observe(Arc::new(move |event: &Event| sink.lock().unwrap().push(event.clone())));
    publish(&broker, &["a"]).await;
    receive(&mut consumer(&broker).await, 1).await.remove(0).lease.ack().await.unwrap();
    let (link, place, token) = (broker.link_id(), 1, 1);
    let expected = [
        Event::Published { link, queue: "jobs".to_owned(), place, message: message("a") },
        Event::Confirmed { link, places: vec![place] },
        Event::Delivered { link, queue: "jobs".to_owned(), place, token, attempt: 1 },
        Event::Ended { token, place, end: End::Settled(Verdict::Ack) },
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[test]
fn the_same_seed_makes_the_same_plan() {
    let plan = FaultPlan::seeded(7, 20, 50);
    assert_eq!(plan, FaultPlan::seeded(7, 20, 50));
    assert_ne!(plan, FaultPlan::seeded(8, 20, 50));
    assert_eq!(plan.iter().collect::<FaultPlan>(), plan);
}
