//! Schedules: the same for the same seed, and never less than promised.

use std::time::Duration;

use super::{Fault, schedule};

#[test]
fn ten_minutes_hold_five_restarts_and_crashes_and_twenty_of_everything_else() {
    let steps = schedule(Fault::RABBITMQ, 7, Duration::from_secs(600), 3);
    for fault in Fault::RABBITMQ {
        let begun = steps.iter().filter(|step| step.fault == *fault && step.begins).count();
        let over = steps.iter().filter(|step| step.fault == *fault && !step.begins).count();
        let promised = if matches!(fault, Fault::Restart | Fault::Crash) { 5 } else { 20 };
        assert_eq!((begun, over), (promised, promised), "{fault:?}");
    }
    assert!(steps.is_sorted_by_key(|step| step.at));
    assert!(steps.iter().filter(|step| step.begins).all(|step| step.at < Duration::from_secs(600)));
}

#[test]
fn a_short_run_has_some_of_everything() {
    for faults in [Fault::RABBITMQ, Fault::PUBSUB] {
        let steps = schedule(faults, 7, Duration::from_secs(20), 3);
        assert!(faults.iter().all(|fault| steps.iter().any(|step| step.fault == *fault)));
        assert!(steps.iter().all(|step| faults.contains(&step.fault)));
    }
}

#[test]
fn a_seed_is_a_schedule_and_spares_the_first_worker_s_process() {
    let length = Duration::from_secs(600);
    let of = |seed| schedule(Fault::RABBITMQ, seed, length, 3);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    let killed = |seed| of(seed).into_iter().filter(|step| step.fault == Fault::Kill);
    assert!((0..20).flat_map(killed).all(|step| step.worker > 0));
}
