//! Faults planted in the worker, each of which the simulation must find. Built only with the feature `mutants`.

use inferq_tests::world::trial;
use inferq_worker::mutant;

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

fn is_found(name: &'static str) -> bool {
    mutant::plant(name);
    let found = trial::first_failure(0..SEEDS);
    mutant::plant("");
    if let Some(failure) = &found {
        println!("{name}: found by seed {}: {}", failure.scenario.seed, failure.breaches[0]);
    }
    found.is_some()
}
