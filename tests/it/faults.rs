//! Seeded simulation: the whole worker in a world where things go wrong at every step.
//!
//! `INFERQ_SEEDS` and `INFERQ_SEED_FROM` choose the seeds, 500 from 0 on if they are not set.

use inferq_tests::world::{self, scenario::Scenario, trial};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("INFERQ_SEEDS and INFERQ_SEED_FROM are numbers"))
}

#[test]
fn nothing_is_lost_whatever_goes_wrong() {
    let from = number("INFERQ_SEED_FROM", 0);
    let seeds = from..from + number("INFERQ_SEEDS", 500);
    if let Some(failure) = trial::first_failure_in_parallel(seeds) {
        panic!("{failure}");
    }
}

#[test]
fn the_same_seed_makes_the_same_history() {
    for seed in 0..20 {
        let scenario = Scenario::new(seed);
        let (once, again) = (world::run(&scenario).to_string(), world::run(&scenario).to_string());
        assert!(once.lines().count() > 10, "seed {seed} has a history");
        assert_eq!(once, again, "seed {seed}");
    }
}
