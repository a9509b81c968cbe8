//! Tests of the batching policy, most of them properties.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LINGER: Duration = Duration::from_millis(5);

fn limits() -> BatchLimits {
    BatchLimits { tokens_max: 512, items_max: 16, linger: LINGER, padding: Padding::Longest }
}

/// Tokens that are equal exactly when length and mark are.
fn tokens(length: usize, mark: u32) -> Arc<Tokens> {
    Arc::new(Tokens { ids: vec![mark; length], type_ids: vec![0; length] })
}

fn items(lengths: &[usize], mark: u32) -> Vec<(u32, Arc<Tokens>)> {
    (0..).zip(lengths).map(|(index, &length)| (index, tokens(length, mark + index))).collect()
}

fn drain(batcher: &mut Batcher) -> Vec<Batch> {
    std::iter::from_fn(|| batcher.flush()).collect()
}

fn waste(batches: &[Batch]) -> f64 {
    let padded: usize = batches.iter().map(Batch::padded_tokens).sum();
    let real: usize = batches.iter().map(Batch::real_tokens).sum();
    padded as f64 / real as f64 - 1.0
}

#[derive(Debug, Clone)]
enum Step {
    Push { lengths: Vec<usize>, mark: u32, deadline_ms: Option<u64> },
    Next,
    Flush,
    Advance(u64),
    Expire,
    Remove(u64),
    TakeUnstarted,
}

fn step() -> impl Strategy<Value = Step> {
    let push = (prop::collection::vec(1_usize..700, 0..30), 0_u32..3, prop::option::of(0_u64..40));
    prop_oneof![
        4 => push.prop_map(|(lengths, mark, deadline_ms)| Step::Push { lengths, mark, deadline_ms }),
        6 => Just(Step::Next),
        1 => Just(Step::Flush),
        3 => (0_u64..8).prop_map(Step::Advance),
        1 => Just(Step::Expire),
        1 => (0_u64..20).prop_map(Step::Remove),
        1 => Just(Step::TakeUnstarted),
    ]
}

/// What a batcher must agree with: every item that waits, and which jobs have begun.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<JobKey, BTreeMap<u32, Arc<Tokens>>>,
    begun: BTreeSet<JobKey>,
}

impl Model {
    fn run(&mut self, batch: &Batch, limits: BatchLimits) {
        let single = batch.rows().len() == 1;
        assert!(single || batch.padded_tokens() <= limits.tokens_max, "{} tokens", batch.padded_tokens());
        assert!(batch.rows().len() <= limits.items_max);
        assert!(batch.padded_tokens() * 10 <= batch.real_tokens() * 11, "more than a tenth of padding");
        assert!(batch.rows().is_sorted_by_key(|row| std::cmp::Reverse(row.length())));
        let distinct: BTreeSet<_> = batch.rows().iter().map(|row| Arc::clone(&row.tokens)).collect();
        assert_eq!(distinct.len(), batch.rows().len(), "equal items computed twice");
        assert!(batch.rows().iter().any(|row| row.members.iter().any(|member| member.job == batch.leader())));
        for row in batch.rows() {
            assert!(!row.members.is_empty());
            for &member in &row.members {
                assert_eq!(self.take(member), row.tokens);
                self.begun.insert(member.job);
            }
        }
        for row in batch.rows() {
            let left = self.waiting.values().flat_map(BTreeMap::values).any(|tokens| *tokens == row.tokens);
            assert!(!left, "an equal item was left behind");
        }
    }

    fn take(&mut self, member: Member) -> Arc<Tokens> {
        let job = self.waiting.get_mut(&member.job).expect("only what waits may leave");
        let tokens = job.remove(&member.index).expect("an item leaves once");
        if job.is_empty() {
            self.waiting.remove(&member.job);
        }
        tokens
    }

    fn agrees_with(&self, batcher: &Batcher) {
        let items: usize = self.waiting.values().map(BTreeMap::len).sum();
        let distinct: BTreeSet<_> = self.waiting.values().flat_map(BTreeMap::values).collect();
        assert_eq!(batcher.items_waiting(), items);
        assert_eq!(batcher.tokens_waiting(), distinct.iter().map(|tokens| tokens.ids.len()).sum::<usize>());
        assert_eq!(batcher.is_empty(), items == 0);
        // Nothing is kept beyond what waits.
        assert_eq!(batcher.rows.len(), distinct.len());
        assert_eq!(batcher.row_of.len(), distinct.len());
        assert_eq!(batcher.by_job.len(), batcher.by_bucket.len());
        assert!(batcher.by_job.len() <= items);
        assert_eq!(batcher.jobs.len(), self.waiting.len());
        assert_eq!(batcher.turns.len(), self.waiting.len());
        assert!(batcher.deadlines.len() <= self.waiting.len());
        assert_eq!(batcher.counts.iter().sum::<usize>(), distinct.len());
    }
}

fn play(steps: Vec<Step>) {
    let (limits, mut now) = (limits(), Instant::now());
    let (mut batcher, mut model, mut deadlines) = (Batcher::new(limits), Model::default(), BTreeMap::new());
    for (job, step) in (0..).zip(steps) {
        match step {
            Step::Push { lengths, mark, deadline_ms } => {
                let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
                let items: Vec<_> = (0..).zip(lengths.iter().map(|&length| tokens(length, mark))).collect();
                batcher.push(job, items.clone(), deadline, now);
                if !items.is_empty() {
                    model.waiting.insert(job, items.into_iter().collect());
                    deadlines.extend(deadline.map(|deadline| (job, deadline)));
                }
            }
            Step::Next => batcher.next(now).iter().for_each(|batch| model.run(batch, limits)),
            Step::Flush => batcher.flush().iter().for_each(|batch| model.run(batch, limits)),
            Step::Advance(ms) => now += Duration::from_millis(ms),
            Step::Expire => {
                for member in batcher.expire(now) {
                    assert!(deadlines[&member.job] <= now);
                    model.take(member);
                }
                assert!(model.waiting.keys().all(|job| deadlines.get(job).is_none_or(|&deadline| deadline > now)));
            }
            Step::Remove(job) => {
                for member in batcher.remove(job) {
                    model.take(member);
                }
                assert!(!model.waiting.contains_key(&job));
            }
            Step::TakeUnstarted => {
                let taken = batcher.take_unstarted();
                let unstarted: Vec<_> =
                    model.waiting.keys().copied().filter(|job| !model.begun.contains(job)).collect();
                assert_eq!(taken, unstarted);
                model.waiting.retain(|job, _| model.begun.contains(job));
            }
        }
        model.agrees_with(&batcher);
    }
    for batch in drain(&mut batcher) {
        model.run(&batch, limits);
    }
    model.agrees_with(&batcher);
    assert!(model.waiting.is_empty(), "items were lost");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_item_is_lost_or_doubled_and_every_batch_keeps_its_bounds(steps in prop::collection::vec(step(), 0..60)) {
        play(steps);
    }

    #[test]
    fn no_item_lingers_while_an_engine_is_free(
        arrivals in prop::collection::vec((0_u64..4, prop::collection::vec(1_usize..300, 1..6), prop::option::of(0_u64..20)), 1..60),
    ) {
        let (mut batcher, mut now) = (Batcher::new(limits()), Instant::now());
        for (job, (wait_ms, lengths, deadline_ms)) in (0..).zip(arrivals) {
            now += Duration::from_millis(wait_ms);
            let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
            batcher.push(job, items(&lengths, 10 * job as u32), deadline, now);
            while batcher.next(now).is_some() {}
            prop_assert!(batcher.wake_at().is_none_or(|at| at > now), "asleep past the time it named");
            prop_assert!(batcher.rows.values().all(|row| row.since + LINGER > now), "an item lingers");
            prop_assert!(batcher.expires_at().is_none_or(|at| at > now + LINGER), "a near deadline waits");
        }
    }

    #[test]
    fn a_one_item_job_waits_for_at_most_two_batches_led_by_any_other(
        before in prop::collection::vec(prop::collection::vec(1_usize..300, 1..80), 1..12),
        length in 1_usize..300,
        meanwhile in prop::collection::vec(prop::option::of(prop::collection::vec(1_usize..300, 1..20)), 400),
        warm_up in 0_usize..20,
        age_ms in 0_u64..10,
    ) {
        let (mut batcher, mut now) = (Batcher::new(limits()), Instant::now());
        for (job, lengths) in (0..).zip(&before) {
            batcher.push(job, items(lengths, 1000 * job as u32), None, now);
        }
        now += Duration::from_millis(age_ms);
        for _ in 0..warm_up {
            batcher.next(now);
        }
        let small = 1_000_000;
        batcher.push(small, items(&[length], u32::MAX - 1), None, now);
        let mut led = BTreeMap::<JobKey, u32>::new();
        for (job, arrival) in (1_000_001_u64..).zip(meanwhile) {
            if let Some(lengths) = arrival {
                batcher.push(job, items(&lengths, 100 * (job - 900_000) as u32), None, now);
            }
            let Some(batch) = batcher.next(now) else { break };
            if batch.rows().iter().any(|row| row.members.iter().any(|member| member.job == small)) {
                break;
            }
            *led.entry(batch.leader()).or_default() += 1;
        }
        prop_assert!(led.values().all(|&batches| batches <= 2), "{led:?}");
    }

    #[test]
    fn halving_a_batch_keeps_its_rows(lengths in prop::collection::vec(50_usize..54, 1..16)) {
        let mut batcher = Batcher::new(BatchLimits { tokens_max: 5000, ..limits() });
        batcher.push(1, items(&lengths, 0), None, Instant::now());
        let batch = batcher.flush().expect("something waits");
        let (rows, count) = (batch.rows().to_vec(), batch.rows().len());
        let (first, second) = batch.split();
        prop_assert_eq!(first.rows().len(), count.div_ceil(2));
        let halves = first.into_rows().into_iter().chain(second.into_iter().flat_map(Batch::into_rows));
        prop_assert_eq!(halves.collect::<Vec<_>>(), rows);
    }
}

#[test]
fn an_item_longer_than_the_budget_runs_alone_and_at_once() {
    let (mut batcher, now) = (Batcher::new(limits()), Instant::now());
    batcher.push(1, items(&[2000, 2000, 1], 0), None, now);
    for _ in 0..2 {
        let batch = batcher.next(now).expect("it can't find company");
        assert_eq!((batch.rows().len(), batch.padded_tokens()), (1, 2000));
    }
    assert_eq!(batcher.next(now), None);
}

#[test]
fn a_batch_waits_for_company_until_its_oldest_item_has_lingered() {
    let (mut batcher, now) = (Batcher::new(limits()), Instant::now());
    batcher.push(1, items(&[20], 0), None, now);
    assert_eq!(batcher.next(now), None);
    assert_eq!(batcher.wake_at(), Some(now + LINGER));
    batcher.push(2, items(&[20], 1), None, now + LINGER / 2);
    let batch = batcher.next(now + LINGER).expect("the first has lingered");
    assert_eq!(batch.rows().len(), 2);
}

#[test]
fn a_near_deadline_closes_the_batch_and_a_passed_one_expires() {
    let (mut batcher, now) = (Batcher::new(limits()), Instant::now());
    batcher.push(1, items(&[20], 0), Some(now + LINGER + Duration::from_millis(1)), now);
    assert_eq!(batcher.next(now), None);
    assert_eq!(batcher.wake_at(), Some(now + Duration::from_millis(1)));
    assert!(batcher.next(now + Duration::from_millis(1)).is_some());
    batcher.push(2, items(&[20, 30], 0), Some(now), now);
    batcher.push(3, items(&[20], 0), None, now);
    assert_eq!(batcher.expire(now), [Member { job: 2, index: 0 }, Member { job: 2, index: 1 }]);
    assert_eq!(batcher.items_waiting(), 1);
}

#[test]
fn a_thousand_jobs_of_one_item_fill_the_batches_of_one_job_of_a_thousand() {
    let lengths: Vec<usize> = (0..1000).map(|n| 8 + n * 7919 % 120).collect();
    let (mut one, mut many, now) = (Batcher::new(limits()), Batcher::new(limits()), Instant::now());
    one.push(0, items(&lengths, 0), None, now);
    for (job, item) in (0..).zip(items(&lengths, 0)) {
        many.push(job, [item], None, now);
    }
    let (one, many) = (drain(&mut one), drain(&mut many));
    assert!(many.len() * 20 <= one.len() * 21, "{} batches instead of {}", many.len(), one.len());
    assert!(waste(&many) <= 0.10);
}

#[test]
fn small_jobs_beside_a_job_of_100_000_items_are_through_after_a_fair_share_of_batches() {
    let (mut batcher, now) = (Batcher::new(limits()), Instant::now());
    let length = |n: usize| 10 + n * 31 % 100;
    batcher.push(0, items(&(0..100_000).map(length).collect::<Vec<_>>(), 0), None, now);
    for job in 1..=1000 {
        batcher.push(job, items(&[length(job as usize)], 200_000 + job as u32), None, now);
    }
    let (mut left, mut batches, mut led_by_big) = (1000, 0, 0);
    while left > 0 {
        let batch = batcher.next(now + LINGER).expect("small jobs wait");
        batches += 1;
        led_by_big += u32::from(batch.leader() == 0);
        left -= batch.rows().iter().filter(|row| row.members[0].job != 0).count();
    }
    assert!(led_by_big <= 2, "{led_by_big} of {batches}");
    assert!(batches <= 400, "{batches}");
}

#[test]
fn a_million_items_are_pushed_and_batched() {
    let limits = BatchLimits { tokens_max: 4096, items_max: 256, linger: LINGER, padding: Padding::Longest };
    let (mut batcher, now) = (Batcher::new(limits), Instant::now());
    for job in 0..10_000_u64 {
        let item = |n: u32| (n, tokens(4 + (n as usize * 17 + job as usize * 5) % 60, job as u32 * 100 + n));
        batcher.push(job, (0..100).map(item), None, now);
    }
    let batches = drain(&mut batcher);
    let items: usize = batches.iter().flat_map(Batch::rows).map(|row| row.members.len()).sum();
    assert_eq!(items, 1_000_000);
    assert!(waste(&batches) <= 0.10);
}

#[test]
fn equal_items_of_100_000_jobs_are_one_row_and_leave_one_by_one() {
    let (mut batcher, now) = (Batcher::new(limits()), Instant::now());
    for job in 0..100_000 {
        batcher.push(job, items(&[20], 7), None, now);
    }
    for job in 0..50_000 {
        assert_eq!(batcher.remove(job).len(), 1);
    }
    let batch = batcher.flush().expect("half of them wait");
    assert_eq!((batch.rows().len(), batch.rows()[0].members.len()), (1, 50_000));
    assert!(batcher.is_empty());
}

/// A backlog of mixed lengths, topped up as it is worked off, as the worker holds it below its token budget.
#[test]
fn mixed_lengths_under_a_steady_backlog_waste_at_most_a_tenth_and_fill_their_batches() {
    let limits = BatchLimits { tokens_max: 4096, items_max: 256, linger: LINGER, padding: Padding::Longest };
    let (mut batcher, mut now, mut batches, mut job) = (Batcher::new(limits), Instant::now(), Vec::new(), 0_u64);
    let mut seed = 1_u64;
    let mut length = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // From 5 to 256, most of them short.
        let unit = (seed >> 11) as f64 / (1_u64 << 53) as f64;
        (5.0 * 50_f64.powf(unit)) as usize
    };
    while job < 320 {
        while batcher.tokens_waiting() < 65_536 && job < 320 {
            let lengths: Vec<usize> = (0..64).map(|_| length()).collect();
            batcher.push(job, items(&lengths, 64 * job as u32), None, now);
            job += 1;
        }
        now += LINGER * 20;
        batches.extend(batcher.next(now));
    }
    let fill = batches.iter().map(Batch::padded_tokens).sum::<usize>() as f64 / (4096 * batches.len()) as f64;
    assert!(waste(&batches) <= 0.10);
    assert!(fill >= 0.7, "batches are {fill:.2} full");
    println!("waste {:.3}, fill {fill:.3}, {} batches", waste(&batches), batches.len());
}

fn on_rungs(tokens_max: usize) -> Batcher {
    Batcher::new(BatchLimits { tokens_max, items_max: 4096, linger: LINGER, padding: Padding::Rungs })
}

#[test]
fn a_rung_is_full_when_it_can_take_no_other_row_padded_as_it_is() {
    let (mut batcher, now) = (on_rungs(256), Instant::now());
    batcher.push(1, items(&[50, 55, 64], 1), None, now);
    assert_eq!(batcher.next(now), None);
    batcher.push(2, items(&[49], 9), None, now);
    let batch = batcher.next(now).expect("four rows of 64 are 256 tokens");
    assert_eq!((batch.rows().len(), batch.padded_length(), batch.padded_tokens()), (4, 64, 256));
}

proptest! {
    #[test]
    fn on_rungs_every_item_runs_once_and_longer_padding_than_the_rungs_costs_nothing(
        lengths in prop::collection::vec(1_usize..2000, 1..200),
        tokens_max in 1_usize..10_000,
    ) {
        let mut batcher = on_rungs(tokens_max);
        batcher.push(1, items(&lengths, 1000), None, Instant::now());
        let batches = drain(&mut batcher);
        prop_assert_eq!(batches.iter().map(|batch| batch.rows().len()).sum::<usize>(), lengths.len());
        for batch in &batches {
            let (rows, padded) = (batch.rows(), batch.padded_tokens());
            let alone: usize = rows.iter().map(|row| Padding::Rungs.length(row.length())).sum();
            prop_assert!(padded <= tokens_max || rows.len() == 1);
            prop_assert!(padded <= 2048 || padded * 10 <= alone * 11, "{padded} for {alone}");
        }
    }
}
