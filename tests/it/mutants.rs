//! Faults planted in the worker, each of which the simulation must find. Built only with the feature `mutants`.

use inferq_tests::world::trial;
use inferq_worker::mutant;

/// Seeds within which each is found.
const SEEDS: u64 = 500;

/// What is planted, by the name at its place in the worker.
const MUTANTS: [&str; 5] =
    ["no_isolation", "release_spends_attempt", "lost_confirm_is_success", "drop_on_stop", "no_bisect"];

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
