//! Faults planted in the worker, each of which the simulation must find, or around objects a test. Built only with the feature `mutants`.

use std::panic::AssertUnwindSafe;

use futures_util::future::LocalBoxFuture;
use hyper::Method;
use inferq_tests::world::trial;
use inferq_worker::mutant;

use crate::claims::crashes;
use crate::objects;

/// Seeds within which each is found.
const SEEDS: u64 = 500;

/// What is planted, by the name at its place in the worker.
const MUTANTS: [&str; 23] = [
    "ack_before_confirm",
    "answers_swapped",
    "attempts_unlimited",
    "bounds_ignored",
    "bytes_unbounded",
    "deadlines_early",
    "deadlines_ignored",
    "drain_without_end",
    "drop_on_stop",
    "full_is_refused",
    "groups_never_shrink",
    "lost_confirm_is_success",
    "lost_device_spends_all",
    "lost_device_spends_nothing",
    "no_bisect",
    "no_isolation",
    "pull_after_stop",
    "pull_in_outage",
    "release_spends_attempt",
    "renews_while_stuck",
    "routes_mixed_up",
    "tokens_unbounded",
    "watchdog_asleep",
];

#[test]
fn every_planted_fault_is_found() {
    let survivors: Vec<_> = MUTANTS.into_iter().filter(|name| !is_found(name)).collect();
    assert!(survivors.is_empty(), "not found within {SEEDS} seeds: {survivors:?}");
}

/// A test that should fail.
type Finder = fn() -> LocalBoxFuture<'static, ()>;

/// Faults around objects, each with what finds it.
const AROUND_OBJECTS: [(&str, Finder); 13] = [
    ("ack_before_put", || Box::pin(objects::pointers_come_after_objects())),
    ("bucket_outage_is_refusal", || Box::pin(objects::outages::a_bucket_that_is_down(Method::PUT))),
    ("etag_unchecked", || Box::pin(crashes::the_source_of_a_plain_input_changes())),
    ("failed_shard_leaves_no_part", || Box::pin(crashes::the_source_of_a_plain_input_changes())),
    ("foreign_is_ours", || Box::pin(objects::another_job_of_the_same_id())),
    ("look_left_out", || Box::pin(objects::a_job_that_comes_again())),
    ("manifest_too_early", || Box::pin(crashes::a_parent_dies_again())),
    ("part_not_looked_for", || Box::pin(crashes::a_parent_dies_again())),
    ("part_put_over", || Box::pin(crashes::a_shard_has_a_twin())),
    ("pieces_stay", || Box::pin(crashes::a_parent_dies_again())),
    ("plan_ignored", || Box::pin(crashes::a_worker_of_another_shard_size_goes_on())),
    ("pull_in_bucket_outage", || Box::pin(objects::outages::a_bucket_that_is_down(Method::PUT))),
    ("shards_unconfirmed", || Box::pin(crashes::the_broker_loses_calls())),
];

#[test]
fn every_planted_fault_around_objects_is_found() {
    let survivors: Vec<_> = AROUND_OBJECTS.into_iter().filter(|(name, test)| !fails(name, *test)).collect();
    let names: Vec<_> = survivors.into_iter().map(|(name, _)| name).collect();
    assert!(names.is_empty(), "not found: {names:?}");
}

fn fails(name: &'static str, test: Finder) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    mutant::plant(name);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(test())));
    mutant::plant("");
    ended.is_err()
}

fn is_found(name: &'static str) -> bool {
    mutant::plant(name);
    let found = trial::first_failure(0..SEEDS);
    mutant::plant("");
    if let Some(failure) = &found {
        println!("{name}: found by seed {}: {}", failure.scenario.seed, failure.breaches[0]);
    }
    found.is_some()
}
