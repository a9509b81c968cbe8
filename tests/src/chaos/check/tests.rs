//! The checker refuses what it should: each test plants one thing in a sound history.

use std::time::Duration;

use inferq_shared::reply::Status;

use super::{RECOVERY_MAX, Recoveries, broken, quantile, recoveries};
use crate::chaos::record::{Entry, What};
use crate::chaos::schedule::Fault;

/// None of the faults are promised for no time at all.
const LENGTH: Duration = Duration::ZERO;

fn at(seconds: u64, what: What) -> Entry {
    Entry { at: Duration::from_secs(seconds), what }
}

fn replied(job: usize, status: Status, content: &str) -> What {
    What::Replied { job, worker: 0, status, content: content.to_owned() }
}

/// One job, sent, confirmed and answered while nothing goes wrong.
fn sound() -> Vec<Entry> {
    vec![
        at(1, What::Sent { job: 1 }),
        at(2, What::Confirmed { job: 1 }),
        at(3, replied(1, Status::Succeeded, "a")),
        at(4, What::Memory { worker: 0, kib: 50_000 }),
        at(5, What::Memory { worker: 0, kib: 50_000 }),
    ]
}

/// What the checker says when this is added.
fn with(entries: impl IntoIterator<Item = Entry>) -> Vec<String> {
    let mut history = sound();
    history.extend(entries);
    broken(&history, Fault::RABBITMQ, LENGTH, 1, RECOVERY_MAX)
}

#[test]
fn a_sound_history_passes_and_so_does_a_reply_that_comes_twice() {
    assert_eq!(with([]), Vec::<String>::new());
    assert_eq!(with([at(6, replied(1, Status::Succeeded, "a"))]), Vec::<String>::new());
}

#[test]
fn a_lost_job_is_refused() {
    let said = with([at(6, What::Sent { job: 2 }), at(7, What::Confirmed { job: 2 })]);
    assert_eq!(said, ["job 2 was confirmed at 7s and is never answered"]);
}

#[test]
fn a_job_that_was_never_confirmed_may_have_no_reply() {
    assert_eq!(with([at(6, What::Sent { job: 2 })]), Vec::<String>::new());
}

#[test]
fn two_contents_of_one_job_are_refused() {
    assert_eq!(with([at(6, replied(1, Status::Succeeded, "b"))]), ["job 1 has two contents: a and b"]);
}

#[test]
fn a_failed_reply_is_refused_even_beside_a_good_one() {
    assert_eq!(with([at(6, replied(1, Status::Failed, "a"))]), ["job 1 is answered failed: a"]);
}

#[test]
fn a_fault_that_never_happened_is_missed() {
    let said = broken(&sound(), Fault::RABBITMQ, Duration::from_secs(600), 1, RECOVERY_MAX);
    assert_eq!(said.len(), Fault::RABBITMQ.len());
    assert!(said.contains(&"Restart happened 0 times, not 5".to_owned()), "{said:?}");
}

#[test]
fn memory_that_grows_is_refused() {
    let said = with((6..16).map(|second| at(second, What::Memory { worker: 0, kib: 50_000 + 10_000 * second })));
    assert_eq!(said, ["memory grows from 140000 KiB to 200000 KiB"]);
}

/// A trouble of this kind from second 10 to `over`, and a job that is sent and answered afterwards.
fn trouble(fault: Fault, over: u64, sent: u64, answered: u64) -> Vec<Entry> {
    vec![
        at(10, What::Began { fault, worker: 0 }),
        at(over, What::Healed { fault, worker: 0 }),
        at(sent, What::Sent { job: 2 }),
        at(answered, replied(2, Status::Succeeded, "b")),
    ]
}

#[test]
fn recovery_counts_from_the_end_of_a_fault() {
    let found = recoveries(&trouble(Fault::Alarm, 14, 15, 20), 1);
    assert_eq!(found, Recoveries { plain: vec![Duration::from_secs(6)], ..Recoveries::default() });
    assert_eq!(with(trouble(Fault::Alarm, 14, 15, 29)), Vec::<String>::new());
    let said = with(trouble(Fault::Alarm, 14, 15, 30));
    assert_eq!(said, ["workers answer again after 16s, not 15s (p99)"]);
}

#[test]
fn a_half_open_link_has_longer() {
    assert_eq!(with(trouble(Fault::HalfOpen, 10, 15, 40)), Vec::<String>::new());
    let said = with(trouble(Fault::HalfOpen, 10, 15, 41));
    assert_eq!(said, ["workers answer again after 31s, not 15s (p99)"]);
}

#[test]
fn what_follows_a_half_open_link_counts_from_its_own_end() {
    let mut history = trouble(Fault::HalfOpen, 10, 43, 50);
    history.insert(2, at(20, What::Began { fault: Fault::Restart, worker: 0 }));
    history.insert(3, at(42, What::Healed { fault: Fault::Restart, worker: 0 }));
    assert_eq!(recoveries(&history, 1).plain, [Duration::from_secs(8)]);
}

#[test]
fn an_answer_to_what_was_sent_before_the_end_of_a_fault_is_no_recovery() {
    assert_eq!(with(trouble(Fault::Cut, 14, 13, 20)), ["worker 0 never answers again"]);
}

#[test]
fn a_fault_at_one_worker_is_not_the_others_trouble() {
    let entries =
        [at(10, What::Began { fault: Fault::Cut, worker: 1 }), at(10, What::Healed { fault: Fault::Cut, worker: 1 })];
    assert_eq!(recoveries(&entries, 3).missing, [1]);
    let entries = [at(10, What::Began { fault: Fault::Crash, worker: 1 })];
    assert_eq!(recoveries(&entries, 3).missing, [0, 1, 2]);
}

#[test]
fn quantiles_are_of_what_was_seen() {
    let times: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
    assert_eq!(quantile(&times, 0.99), Duration::from_secs(198));
    assert_eq!(quantile(&[], 0.99), Duration::ZERO);
}
