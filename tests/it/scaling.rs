//! The simulation of scaling: it reproduces what was measured, loses no job, keeps its own laws, and notices broken ones.
//!
//! In: the measured drains, traces from seeds, examples of the autoscaler's formulas from the Kubernetes documentation.

use inferq_tests::scaling::autoscaler::{Autoscaler, Policy, Rules, Settings, Signal, Step, Trigger};
use inferq_tests::scaling::cluster::{Cluster, Pool};
use inferq_tests::scaling::outcome::{Outcome, reversals};
use inferq_tests::scaling::study::{COMPONENT, Case, Follows, Knobs, Place, foresight, plan};
use inferq_tests::scaling::trace::{Arrival, Kind, Storm, Trace};
use inferq_tests::scaling::world::signals::{Path, Signals};
use inferq_tests::scaling::world::simulate;
use inferq_tests::scaling::{Ms, drains, ms, report};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// How far a simulated drain may be from the measured one.
const TOLERANCE: f64 = 0.2;
const TOKENS_PER_S: f64 = 4_000.0;

fn place() -> Place {
    Place::plain(TOKENS_PER_S, 1.0, 0.13)
}

#[test]
fn measured_drains_are_reproduced() {
    let drains = drains::load(drains::fixture()).expect("measured drains");
    assert!(drains.len() >= 3, "three drains were measured");
    for drain in &drains {
        let outcome = drains::replay(drain);
        assert_eq!(outcome.lost, 0, "{}", drain.name);
        let difference = outcome.cleared_s / drain.drained_s - 1.0;
        assert!(
            difference.abs() <= TOLERANCE,
            "{}: {:.1} s for {:.1} s",
            drain.name,
            outcome.cleared_s,
            drain.drained_s
        );
        for (worker, (ready_s, ended_s)) in drain.workers.iter().zip(&outcome.workers) {
            let ready_s = ready_s.expect("every worker becomes ready");
            assert!(
                (ready_s - worker.ready_s).abs() < 2.0,
                "{}: ready at {ready_s} for {}",
                drain.name,
                worker.ready_s
            );
            if let (Some(stopped_s), Some(exited_s)) = (worker.stopped_s, worker.exited_s) {
                let ended_s = ended_s.expect("a stopped worker ends");
                assert!(ended_s > stopped_s, "{}: it has jobs in hand when it is stopped", drain.name);
                assert!((ended_s - exited_s).abs() < 5.0, "{}: ended at {ended_s} for {exited_s}", drain.name);
                assert!(
                    outcome.given_back > 0,
                    "{}: a worker that is stopped gives back what it has not begun",
                    drain.name
                );
            }
        }
    }
}

#[test]
fn other_rates_would_not_reproduce_them() {
    for drain in drains::load(drains::fixture()).expect("measured drains") {
        let mut fast = drain.clone();
        fast.workers.iter_mut().for_each(|worker| worker.tokens_per_s *= 1.5);
        let mut alone = drain.clone();
        alone.workers.truncate(1);
        alone.workers[0].stopped_s = None;
        for (wrong, must_differ) in [(fast, true), (alone, drain.workers.len() > 1)] {
            let difference = drains::replay(&wrong).cleared_s / drain.drained_s - 1.0;
            assert!(
                !must_differ || difference.abs() > TOLERANCE,
                "{}: {difference:.2} off with wrong workers",
                drain.name
            );
        }
    }
}

#[test]
fn the_documents_table_of_drains_is_what_the_simulation_gives() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scaling.md");
    let document = std::fs::read_to_string(path).expect("docs/scaling.md");
    let drains = drains::load(drains::fixture()).expect("measured drains");
    let replayed: Vec<_> = drains.iter().map(|drain| (drain.clone(), drains::replay(drain))).collect();
    let table = report::drains(&replayed);
    assert_eq!(report::block(&document, "drains"), Some(table.trim_end()), "run make simulate-scaling");
}

/// Short traces of every kind, so that many seeds fit a test.
fn shortened(kind: Kind, seed: u64) -> Case {
    let mut case = Case::new("test", kind, COMPONENT, place());
    case.seed = seed;
    case.knobs.replicas_max = 30;
    case
}

fn run_shortened(kind: Kind, seed: u64) -> (Outcome, Vec<String>) {
    let case = shortened(kind, seed);
    let mut trace = inferq_tests::scaling::trace::trace(kind, TOKENS_PER_S, seed);
    trace.arrivals.truncate(60_000);
    // A storm within what is left of the trace.
    let last = trace.arrivals.last().map_or(0, |arrival| arrival.at);
    trace.storms.iter_mut().for_each(|storm| storm.at = storm.at.min(last / 2));
    let foresight = foresight(&trace, TOKENS_PER_S, case.knobs.replicas_max);
    let outcome = simulate(&plan(trace, &case.knobs, &case.place, seed));
    let faults = outcome.faults(foresight);
    (outcome, faults)
}

#[test]
fn no_job_is_lost_and_no_law_is_broken_over_seeds_and_traces() {
    for kind in Kind::ALL {
        for seed in 0..8 {
            let (outcome, faults) = run_shortened(kind, seed);
            assert!(outcome.jobs > 1_000, "{} with seed {seed} has {} jobs", kind.name(), outcome.jobs);
            assert_eq!(faults, Vec::<String>::new(), "{} with seed {seed}", kind.name());
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_and_another_seed_does_not() {
    for kind in Kind::ALL {
        let (first, again, other) = (run_shortened(kind, 3).0, run_shortened(kind, 3).0, run_shortened(kind, 4).0);
        assert_eq!(first, again, "{}", kind.name());
        assert_ne!(first, other, "{}", kind.name());
    }
}

#[test]
fn spot_storms_take_workers_with_jobs_in_hand_and_lose_none() {
    let (mut attempts, mut given_back) = (0, 0);
    for seed in 0..8 {
        let (outcome, faults) = run_shortened(Kind::SpotStorm, seed);
        assert_eq!(faults, Vec::<String>::new());
        attempts += outcome.attempts_spent;
        given_back += outcome.given_back;
    }
    assert!(attempts > 0, "nodes that end without notice cost attempts");
    assert!(given_back > 0, "nodes that end with notice give jobs back");
}

#[test]
fn every_law_notices_when_it_is_broken() {
    let case = shortened(Kind::Steady, 1);
    let trace = inferq_tests::scaling::trace::trace(Kind::Steady, TOKENS_PER_S, 1);
    let limits = foresight(&trace, TOKENS_PER_S, case.knobs.replicas_max);
    let sound = simulate(&plan(trace, &case.knobs, &case.place, 1));
    assert_eq!(sound.faults(limits), Vec::<String>::new());
    type Break = fn(&mut Outcome);
    let breaks: [(&str, Break); 6] = [
        ("no answer", |outcome| outcome.lost = 1),
        ("not those published", |outcome| outcome.tokens_computed += 1),
        ("at the workers' rate", |outcome| outcome.tokens_by_time *= 0.9),
        ("perfect foresight", |outcome| outcome.node_hours = outcome.busy_hours * 0.99),
        ("from the beginning", |outcome| outcome.cleared_s *= 0.5),
        ("out of order", |outcome| outcome.wait_p50_s = outcome.wait_max_s * 2.0),
    ];
    for (law, break_it) in breaks {
        let mut broken = sound.clone();
        break_it(&mut broken);
        let faults = broken.faults(limits);
        assert_eq!(faults.len(), 1, "{law}: {faults:?}");
        assert!(faults[0].contains(law), "{law}: {faults:?}");
    }
}

#[test]
fn following_work_beats_following_messages_when_sizes_change() {
    let by_messages = COMPONENT.by_messages(TOKENS_PER_S);
    let follow = |knobs: Knobs| {
        // Queries for half an hour, then documents for half an hour, each two workers' load.
        let queries = (0..50_000).map(|number| Arrival { at: number * 36, tokens: 288 });
        let documents = (0..1_440).map(|number| Arrival { at: 1_800_000 + number * 1_250, tokens: 10_000 });
        let trace = Trace { name: "change", arrivals: queries.chain(documents).collect(), storms: Vec::new() };
        simulate(&plan(trace, &knobs, &place(), 1))
    };
    let (work, messages) = (follow(COMPONENT), follow(by_messages));
    assert_eq!((work.lost, messages.lost), (0, 0));
    assert!(
        work.wait_p99_s * 2.0 < messages.wait_p99_s,
        "work {} s, messages {} s",
        work.wait_p99_s,
        messages.wait_p99_s
    );
}

#[test]
fn busy_workers_as_a_floor_end_the_thrashing_of_a_day() {
    let run = |follows| {
        let mut case = shortened(Kind::Daily, 1);
        case.knobs.follows = follows;
        case.run().0
    };
    let (without, with) = (run(Follows::Work), run(Follows::WorkAndBusy));
    assert!(with.reversals * 4 < without.reversals, "{} reversals with, {} without", with.reversals, without.reversals);
    assert!(
        with.wait_p50_s * 10.0 < without.wait_p50_s,
        "waits {} s with, {} s without",
        with.wait_p50_s,
        without.wait_p50_s
    );
}

fn settings(target: f64) -> Settings {
    Settings {
        triggers: vec![Trigger { signal: Signal::Messages, target, activation: 0.0 }],
        min_replicas: 0,
        max_replicas: 100,
        polling_s: 30,
        cooldown_s: 300,
        sync_s: 15,
        tolerance: 0.1,
        up: Rules { stabilization_s: 0, policies: vec![Policy { step: Step::Percent(100), period_s: 15 }] },
        down: Rules { stabilization_s: 0, policies: vec![Policy { step: Step::Percent(100), period_s: 15 }] },
    }
}

fn synced(settings: &Settings, current: u32, value: f64) -> u32 {
    Autoscaler::new(settings.clone()).sync(0, current, &[value])
}

#[test]
fn desired_replicas_are_the_value_over_the_target_rounded_up() {
    let settings = settings(10.0);
    assert_eq!(synced(&settings, 5, 61.0), 7);
    assert_eq!(synced(&settings, 5, 21.0), 3);
    // Within a tenth of the target nothing changes, at either side.
    assert_eq!(synced(&settings, 10, 109.9), 10);
    assert_eq!(synced(&settings, 10, 90.1), 10);
    assert_eq!(synced(&settings, 10, 111.0), 12);
    // Not below one, which is KEDA's business, nor above the maximum, nor more than twice as many at once.
    assert_eq!(synced(&settings, 5, 0.0), 1);
    assert_eq!(synced(&settings, 90, 1e9), 100);
    assert_eq!(synced(&settings, 5, 1e9), 10);
    assert_eq!(synced(&settings, 0, 1e9), 0);
}

#[test]
fn of_several_triggers_the_most_replicas_count() {
    let mut settings = settings(10.0);
    settings.triggers.push(Trigger { signal: Signal::SecondsOfWork, target: 60.0, activation: 0.0 });
    let sync = |values: &[f64]| Autoscaler::new(settings.clone()).sync(0, 5, values);
    assert_eq!(sync(&[70.0, 60.0]), 7);
    assert_eq!(sync(&[10.0, 420.0]), 7);
}

#[test]
fn the_policy_that_allows_most_counts_over_its_period() {
    let mut settings = settings(1.0);
    settings.up.policies =
        vec![Policy { step: Step::Percent(100), period_s: 60 }, Policy { step: Step::Pods(4), period_s: 60 }];
    let mut scaler = Autoscaler::new(settings);
    // Four pods, since that is more than twice one; then nothing until the minute is over; then as many again.
    assert_eq!(scaler.sync(0, 1, &[100.0]), 5);
    assert_eq!(scaler.sync(15_000, 5, &[100.0]), 5);
    assert_eq!(scaler.sync(45_000, 5, &[100.0]), 5);
    assert_eq!(scaler.sync(60_000, 5, &[100.0]), 10);
}

#[test]
fn scaling_down_waits_for_the_highest_wish_of_the_window_and_takes_a_share() {
    let mut settings = settings(1.0);
    settings.down = Rules { stabilization_s: 300, policies: vec![Policy { step: Step::Percent(10), period_s: 60 }] };
    let mut scaler = Autoscaler::new(settings);
    assert_eq!(scaler.sync(0, 80, &[80.0]), 80);
    assert_eq!(scaler.sync(60_000, 80, &[1.0]), 80);
    assert_eq!(scaler.sync(299_000, 80, &[1.0]), 80);
    // The documentation's example: of 80 pods 10 % are 8, of 72 they are 7.2, which leaves 64.8: one more than seven go.
    assert_eq!(scaler.sync(300_000, 80, &[1.0]), 72);
    assert_eq!(scaler.sync(315_000, 72, &[1.0]), 72);
    assert_eq!(scaler.sync(360_000, 72, &[1.0]), 64);
}

#[test]
fn keda_wakes_from_zero_and_goes_there_after_the_cooldown() {
    let mut scaler = Autoscaler::new(settings(10.0));
    assert_eq!(scaler.poll(0, 0, &[0.0]), 0);
    assert_eq!(scaler.poll(1_000, 0, &[1.0]), 1);
    assert_eq!(scaler.poll(31_000, 3, &[5.0]), 3);
    assert_eq!(scaler.poll(61_000, 3, &[0.0]), 3);
    assert_eq!(scaler.poll(331_000, 3, &[0.0]), 3);
    assert_eq!(scaler.poll(332_000, 3, &[0.0]), 0);
}

#[test]
fn of_two_workers_the_one_without_work_goes() {
    // The first worker has work for 100 s, the second, which is newer, for half an hour.
    let arrivals = vec![Arrival { at: 0, tokens: 400_000 }, Arrival { at: 0, tokens: 8_000_000 }];
    let trace = Trace { name: "two", arrivals, storms: Vec::new() };
    let knobs = Knobs { follows: Follows::Messages, messages: 1.0, ..COMPONENT };
    let given_back = |tells_cost| {
        let place = Place { path: Path::SCRAPED, node_start_s: (60.0, 60.0), tells_cost, ..place() };
        let outcome = simulate(&plan(trace.clone(), &knobs, &place, 1));
        assert_eq!((outcome.lost, outcome.ready_max), (0, 2));
        outcome.given_back
    };
    assert_eq!(given_back(true), 0);
    assert_eq!(given_back(false), 1, "without deletion cost the newest goes, with its job");
}

#[test]
fn figures_are_seen_late_and_what_is_unknown_is_nothing() {
    let mut random = StdRng::seed_from_u64(1);
    let mut signals = Signals::new(Path { every_s: 60, visible_s: (100.0, 100.0) }, 600.0);
    signals.sample_queue(0, 50, &mut random);
    assert_eq!(signals.value(Signal::Messages, 99_999), 0.0);
    assert_eq!(signals.value(Signal::Messages, 100_000), 50.0);
    assert_eq!(signals.value(Signal::SecondsOfWork, 100_000), 0.0);
    signals.scrape(70_000, None);
    (0..10).for_each(|_| signals.answered(400));
    signals.scrape(100_000, Some(200.0));
    // 50 messages of 400 tokens at 200 a second; 4,000 tokens in 30 s are two thirds of a worker.
    assert_eq!(signals.value(Signal::SecondsOfWork, 100_000), 100.0);
    assert!((signals.value(Signal::BusyWorkers, 100_000) - 2.0 / 3.0).abs() < 1e-9);
    // Two minutes later nobody is busy; six hours later nobody knows what a job takes.
    assert_eq!(signals.value(Signal::BusyWorkers, 230_000), 0.0);
    assert_eq!(signals.value(Signal::SecondsOfWork, 230_000), 100.0);
    assert_eq!(signals.value(Signal::SecondsOfWork, 100_001 + 6 * 3_600_000), 0.0);
}

#[test]
fn nodes_come_for_pods_are_filled_one_after_the_other_and_go_when_unneeded() {
    let mut random = StdRng::seed_from_u64(1);
    let mut cluster = Cluster::new(Pool {
        nodes_max: 2,
        pods_a_node: 2,
        start_s: (60.0, 60.0),
        pull_s: (10.0, 10.0),
        unneeded_s: 600.0,
        price_an_hour: 1.0,
    });
    assert_eq!(cluster.grow(0, 5, &mut random), [(0, 60_000), (1, 60_000)]);
    assert_eq!(cluster.grow(10_000, 5, &mut random), [], "two are coming, and two are the most");
    assert_eq!(cluster.place(10_000, &mut random), None);
    cluster.arrive(0, 60_000);
    cluster.arrive(1, 60_000);
    // The image is pulled once a node.
    assert_eq!(cluster.place(60_000, &mut random), Some((0, 70_000)));
    assert_eq!(cluster.place(65_000, &mut random), Some((0, 70_000)));
    assert_eq!(cluster.place(80_000, &mut random), Some((1, 90_000)));
    cluster.vacate(1, 100_000);
    cluster.shrink(699_999);
    assert_eq!(cluster.count(), 2);
    cluster.shrink(700_000);
    assert_eq!(cluster.count(), 1);
    assert!((cluster.hours(1_000_000) - 1_700.0 / 3_600.0).abs() < 1e-9);
}

#[test]
fn reversals_are_turns_within_the_time() {
    let changes: Vec<(Ms, i64)> = vec![(0, 4), (100, -1), (200, -2), (900, 3), (5_000, -1)];
    assert_eq!(reversals(&changes, 1_000), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever arrives, whatever is taken away: every job is answered, and no law is broken.
    #[test]
    fn any_trace_ends_with_every_answer(
        gaps in prop::collection::vec((0_u64..5_000, 1_u32..20_000), 1..400),
        storms in prop::collection::vec((0_u64..1_200, 0.0..1.0_f64, 1.0..120.0_f64, 0.0..1.0_f64), 0..3),
        target_s in 5.0..500.0_f64,
        follows in prop::sample::select(vec![Follows::WorkAndBusy, Follows::Work, Follows::Messages]),
        seed in any::<u64>(),
    ) {
        let mut at = 0;
        let arrivals: Vec<_> = gaps.into_iter().map(|(gap, tokens)| { at += gap; Arrival { at, tokens } }).collect();
        let storms = storms.into_iter().map(|(at_s, share, notice_s, abrupt)| Storm {
            at: at_s * 1000, within_s: 30.0, share, notice_s, abrupt, sold_out_s: 60.0,
        });
        let trace = Trace { name: "any", arrivals, storms: storms.collect() };
        let knobs = Knobs { follows, target_s, messages: 50.0, replicas_max: 10, ..COMPONENT };
        let place = Place { path: Path::SCRAPED, ..place() };
        let limits = foresight(&trace, TOKENS_PER_S, knobs.replicas_max);
        let outcome = simulate(&plan(trace, &knobs, &place, seed));
        prop_assert_eq!(outcome.faults(limits), Vec::<String>::new());
    }
}

#[test]
fn a_length_of_time_is_in_milliseconds() {
    assert_eq!(ms(1.5), 1_500);
}
