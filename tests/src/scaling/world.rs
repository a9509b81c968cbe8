//! The world: events in order of time.
//!
//! In: a [`Plan`]. Out: an [`Outcome`]. Everything random comes from the plan's seed, and what happens at the same time happens
//! in the order in which it was planned.
//!
//! A job is with the queue, with one worker, or waits for a lease to expire; `answer` is the only place where it ends.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::scaling::autoscaler::{Autoscaler, Settings, next_turn};
use crate::scaling::cluster::{Cluster, NodeId, Pool, between};
use crate::scaling::outcome::{Moment, Outcome, percentile, reversals};
use crate::scaling::trace::{Storm, Trace};
use crate::scaling::worker::{JobId, Line, Speed};
use crate::scaling::{Ms, ms, seconds};

pub mod signals;

use signals::{Path, Signals};

/// What a worker's pod is like.
#[derive(Debug, Clone, Copy)]
pub struct Pod {
    /// Its worker.
    pub speed: Speed,
    /// From the container's start to ready: the sum of the phases that `/status` gives.
    pub phases_s: f64,
    /// `--lease-s`: what a lost worker held is delivered again after it.
    pub lease_s: f64,
    /// Whether the worker keeps its pod's deletion cost up to date.
    pub tells_cost: bool,
}

/// A worker that is started and stopped by the plan.
#[derive(Debug, Clone, Copy)]
pub struct Scripted {
    /// When it is started.
    pub start: Ms,
    /// What it is like.
    pub pod: Pod,
    /// When it gets the stop signal.
    pub stop: Option<Ms>,
}

/// Workers that the autoscaler starts and stops.
#[derive(Debug, Clone)]
pub struct Scaled {
    /// The autoscaler's settings.
    pub settings: Settings,
    /// The nodes.
    pub pool: Pool,
    /// Each worker's pod.
    pub pod: Pod,
    /// How the queue's length reaches the autoscaler.
    pub path: Path,
    /// The window of the mean tokens of a job, in seconds.
    pub mean_s: f64,
}

/// Who starts and stops workers.
#[derive(Debug, Clone)]
pub enum Control {
    /// The autoscaler, on nodes of a pool.
    Autoscaled(Box<Scaled>),
    /// The plan, without nodes.
    Scripted(Vec<Scripted>),
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What arrives.
    pub trace: Trace,
    /// Who scales.
    pub control: Control,
    /// What everything random follows from.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without a node.
    Pending,
    Starting,
    Ready,
    Draining,
    Gone,
}

#[derive(Debug)]
struct Worker {
    state: State,
    node: Option<NodeId>,
    line: Line,
    pod: Pod,
    told_cost: u64,
    batch_began: Ms,
    ready: Option<Ms>,
    ended: Option<Ms>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrivals,
    Start(usize),
    Stop(usize),
    Ready(usize),
    BatchEnd(usize),
    DrainLimit(usize),
    NodeReady(NodeId),
    Notice(NodeId, Ms),
    NodeLost(NodeId),
    LeaseEnd(JobId),
    Replace,
    Storm(usize),
    Sync,
    Poll,
    Scan,
    QueueSample,
    Scrape,
    Cost,
    Moment,
}

/// How often the cluster autoscaler looks: `--scan-interval`.
const SCAN_S: u32 = 10;
/// How often a worker may change its deletion cost.
const COST_S: u32 = 15;
/// From a node's sudden end to its pods' replacement: heartbeats missing for 50 s (`--node-monitor-grace-period`) and the
/// node object's removal with its machine.
const NOTICED_S: f64 = 60.0;
/// A simulation that has not ended so long after the last arrival has jobs that nobody answers.
const PATIENCE_S: u32 = 24 * 3600;

/// Runs a plan to its end.
pub fn simulate(plan: &Plan) -> Outcome {
    let mut world = World::new(plan);
    world.run();
    world.outcome()
}

#[derive(Debug)]
struct World<'a> {
    plan: &'a Plan,
    now: Ms,
    events: BinaryHeap<Reverse<(Ms, u64, Event)>>,
    planned: u64,
    random: StdRng,
    arrived: usize,
    queue: VecDeque<(JobId, u32)>,
    workers: Vec<Worker>,
    scaler: Option<Autoscaler>,
    cluster: Option<Cluster>,
    signals: Signals,
    wanted: u32,
    answers: Vec<Option<Ms>>,
    tally: Tally,
}

/// What is counted on the way.
#[derive(Debug, Default)]
struct Tally {
    answered: u32,
    attempts_spent: u32,
    given_back: u32,
    last_answer: Ms,
    tokens_computed: u64,
    tokens_unanswered: u64,
    tokens_by_time: f64,
    busy: Ms,
    changes: Vec<(Ms, i64)>,
    moments: Vec<Moment>,
    ready_max: u32,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let (scaler, cluster, signals) = match &plan.control {
            Control::Autoscaled(scaled) => (
                Some(Autoscaler::new(scaled.settings.clone())),
                Some(Cluster::new(scaled.pool)),
                Signals::new(scaled.path, scaled.mean_s),
            ),
            Control::Scripted(_) => (None, None, Signals::new(Path::SCRAPED, 0.0)),
        };
        let mut world = Self {
            plan,
            now: 0,
            events: BinaryHeap::new(),
            planned: 0,
            random: StdRng::seed_from_u64(plan.seed),
            arrived: 0,
            queue: VecDeque::new(),
            workers: Vec::new(),
            scaler,
            cluster,
            signals,
            wanted: 0,
            answers: vec![None; plan.trace.arrivals.len()],
            tally: Tally::default(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        if let Some(first) = self.plan.trace.arrivals.first() {
            self.at(first.at, Event::Arrivals);
        }
        match &self.plan.control {
            Control::Scripted(workers) => {
                for (index, worker) in workers.iter().enumerate() {
                    self.at(worker.start, Event::Start(index));
                    if let Some(stop) = worker.stop {
                        self.at(stop, Event::Stop(index));
                    }
                }
            }
            Control::Autoscaled(scaled) => {
                let (settings, path) = (&scaled.settings, scaled.path);
                self.wanted = settings.min_replicas;
                self.reconcile();
                // Who looks how often has no common beat.
                for (every_s, event) in [
                    (settings.sync_s, Event::Sync),
                    (settings.polling_s, Event::Poll),
                    (SCAN_S, Event::Scan),
                    (path.every_s, Event::QueueSample),
                    (signals::SCRAPE_S, Event::Scrape),
                    (COST_S, Event::Cost),
                ] {
                    let phase = self.random.random_range(0..Ms::from(every_s) * 1000);
                    self.at(phase, event);
                }
                for (index, storm) in self.plan.trace.storms.iter().enumerate() {
                    self.at(storm.at, Event::Storm(index));
                }
            }
        }
        self.at(0, Event::Moment);
    }

    fn at(&mut self, when: Ms, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((when, self.planned, event)));
    }

    fn run(&mut self) {
        let last = self.plan.trace.arrivals.last().map_or(0, |arrival| arrival.at);
        while let Some(Reverse((when, _, event))) = self.events.pop() {
            if when > last + Ms::from(PATIENCE_S) * 1000 {
                break;
            }
            self.now = when;
            self.happen(event);
            if self.is_over() {
                break;
            }
        }
    }

    /// Everything is answered, and nothing costs anything any more, or never will stop to.
    fn is_over(&self) -> bool {
        if (self.tally.answered as usize) < self.answers.len() {
            return false;
        }
        match (&self.scaler, &self.cluster) {
            (Some(scaler), Some(cluster)) => {
                scaler.settings().min_replicas > 0 || (self.wanted == 0 && cluster.count() == 0)
            }
            _ => self.workers.iter().all(|worker| worker.state != State::Draining),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrivals => self.arrivals(),
            Event::Start(index) => self.start_scripted(index),
            Event::Stop(index) => self.stop(index, None),
            Event::Ready(index) => self.ready(index),
            Event::BatchEnd(index) => self.batch_end(index),
            Event::DrainLimit(index) => self.drain_limit(index),
            Event::NodeReady(node) => self.node_ready(node),
            Event::Notice(node, notice) => self.notice(node, notice),
            Event::NodeLost(node) => self.node_lost(node),
            Event::LeaseEnd(job) => self.redeliver(job),
            Event::Replace => self.reconcile(),
            Event::Storm(index) => self.storm(index),
            Event::Sync => self.sync(),
            Event::Poll => self.poll(),
            Event::Scan => self.scan(),
            Event::QueueSample => self.queue_sample(),
            Event::Scrape => self.scrape(),
            Event::Cost => self.tell_costs(),
            Event::Moment => self.moment(),
        }
    }

    /// Arrivals of the same second come together, so that a million of them are no million events.
    fn arrivals(&mut self) {
        let arrivals = &self.plan.trace.arrivals;
        while let Some(arrival) = arrivals.get(self.arrived).filter(|arrival| arrival.at <= self.now) {
            self.queue.push_back((self.arrived as JobId, arrival.tokens));
            self.tally.tokens_unanswered += u64::from(arrival.tokens);
            self.arrived += 1;
        }
        if let Some(next) = arrivals.get(self.arrived) {
            self.at(next.at.max(self.now + 1).next_multiple_of(1000), Event::Arrivals);
        }
        self.dispatch();
    }

    /// Hands what waits to the workers that have room, always to the one that has least.
    fn dispatch(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let open = self.workers.iter().enumerate();
        let open = open.filter(|(_, worker)| worker.state == State::Ready && worker.line.has_room());
        let mut open: BinaryHeap<_> = open.map(|(index, worker)| Reverse((worker.line.tokens(), index))).collect();
        let mut fed = Vec::new();
        while let Some(Reverse((_, index))) = open.pop()
            && let Some((job, tokens)) = self.queue.pop_front()
        {
            let line = &mut self.workers[index].line;
            line.take(job, tokens);
            fed.push(index);
            if line.has_room() {
                open.push(Reverse((line.tokens(), index)));
            }
        }
        fed.sort_unstable();
        fed.dedup();
        for index in fed {
            if let Some(length) = self.workers[index].line.run() {
                self.begin_batch(index, length);
            }
        }
    }

    fn begin_batch(&mut self, index: usize, length: Ms) {
        self.workers[index].batch_began = self.now;
        self.at(self.now + length, Event::BatchEnd(index));
    }

    fn batch_end(&mut self, index: usize) {
        if self.workers[index].state == State::Gone {
            return;
        }
        let worker = &mut self.workers[index];
        let (answered, next) = worker.line.end_batch();
        let is_done = worker.state == State::Draining && worker.line.is_idle();
        let length = self.now - worker.batch_began;
        self.tally.busy += length;
        self.tally.tokens_by_time += seconds(length) * worker.pod.speed.tokens_per_s;
        for (job, tokens) in answered {
            self.answer(job, tokens);
        }
        if let Some(length) = next {
            self.begin_batch(index, length);
        }
        if is_done {
            self.end(index);
        }
        self.dispatch();
    }

    fn answer(&mut self, job: JobId, tokens: u32) {
        self.tally.tokens_computed += u64::from(tokens);
        self.signals.answered(tokens);
        let answer = &mut self.answers[job as usize];
        assert!(answer.is_none(), "a job is in one place at a time");
        *answer = Some(self.now);
        self.tally.answered += 1;
        self.tally.tokens_unanswered -= u64::from(tokens);
        self.tally.last_answer = self.now;
    }

    fn give_back(&mut self, jobs: Vec<(JobId, u32)>) {
        self.tally.given_back += jobs.len() as u32;
        // They are the oldest there are.
        for (job, tokens) in jobs.into_iter().rev() {
            self.queue.push_front((job, tokens));
        }
    }

    fn redeliver(&mut self, job: JobId) {
        self.queue.push_front((job, self.plan.trace.arrivals[job as usize].tokens));
        self.dispatch();
    }

    fn add(&mut self, pod: Pod, state: State) -> usize {
        let line = Line::new(pod.speed);
        self.workers.push(Worker {
            state,
            node: None,
            line,
            pod,
            told_cost: 0,
            batch_began: 0,
            ready: None,
            ended: None,
        });
        self.workers.len() - 1
    }

    fn start_scripted(&mut self, index: usize) {
        let Control::Scripted(workers) = &self.plan.control else { return };
        let pod = workers[index].pod;
        let added = self.add(pod, State::Starting);
        assert_eq!(added, index, "scripted workers are in the order in which they start");
        self.at(self.now + ms(pod.phases_s), Event::Ready(index));
    }

    fn ready(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.state != State::Starting {
            return;
        }
        worker.state = State::Ready;
        worker.ready = Some(self.now);
        self.tally.ready_max = self.tally.ready_max.max(self.count(State::Ready));
        self.dispatch();
    }

    /// The stop signal. `killed` is when the process is killed, if that comes before its own limit.
    fn stop(&mut self, index: usize, killed: Option<Ms>) {
        let worker = &mut self.workers[index];
        match worker.state {
            State::Pending | State::Starting => self.end(index),
            State::Ready => {
                worker.state = State::Draining;
                let back = worker.line.close();
                let is_idle = worker.line.is_idle();
                let limit = self.now + ms(worker.pod.speed.drain_limit_s);
                self.give_back(back);
                if is_idle {
                    self.end(index);
                } else if killed.is_none_or(|at| limit <= at) {
                    self.at(limit, Event::DrainLimit(index));
                }
                self.dispatch();
            }
            State::Draining | State::Gone => {}
        }
    }

    fn drain_limit(&mut self, index: usize) {
        if self.workers[index].state == State::Draining {
            let back = self.workers[index].line.empty();
            self.give_back(back);
            self.end(index);
            self.dispatch();
        }
    }

    fn end(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.state = State::Gone;
        worker.ended = Some(self.now);
        if let (Some(node), Some(cluster)) = (worker.node.take(), &mut self.cluster) {
            cluster.vacate(node, self.now);
        }
    }

    /// The process is gone with what it had in hand: delivered again when the leases are over.
    fn kill(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let lost = worker.line.empty();
        let lease = ms(worker.pod.lease_s);
        self.end(index);
        self.tally.attempts_spent += lost.len() as u32;
        for (job, _) in lost {
            self.at(self.now + lease, Event::LeaseEnd(job));
        }
    }

    fn count(&self, state: State) -> u32 {
        self.workers.iter().filter(|worker| worker.state == state).count() as u32
    }

    /// Pods that the Deployment counts: a pod that ends has its successor already.
    fn current(&self) -> Vec<usize> {
        let counts = |worker: &Worker| matches!(worker.state, State::Pending | State::Starting | State::Ready);
        (0..self.workers.len()).filter(|&index| counts(&self.workers[index])).collect()
    }

    /// The ReplicaSet: as many pods as are wanted. First go those without a node, then those not ready, then those whose
    /// deletion cost is lowest, then the newest (`pkg/controller/controller_utils.go`, `ActivePodsWithRanks`).
    fn reconcile(&mut self) {
        let Control::Autoscaled(scaled) = &self.plan.control else { return };
        let mut current = self.current();
        for _ in current.len()..self.wanted as usize {
            self.add(scaled.pod, State::Pending);
        }
        if current.len() > self.wanted as usize {
            current.sort_by_key(|&index| {
                let worker = &self.workers[index];
                let rank = match worker.state {
                    State::Pending => 0,
                    State::Starting => 1,
                    _ => 2,
                };
                (rank, worker.told_cost, Reverse(index))
            });
            let surplus = current.len() - self.wanted as usize;
            for index in current.into_iter().take(surplus) {
                self.stop(index, None);
            }
        }
        self.schedule();
    }

    /// The scheduler: pods without a node onto nodes with a place.
    fn schedule(&mut self) {
        let pending: Vec<_> =
            self.current().into_iter().filter(|&at| self.workers[at].state == State::Pending).collect();
        for index in pending {
            let Some(cluster) = &mut self.cluster else { return };
            let Some((node, image_at)) = cluster.place(self.now, &mut self.random) else { return };
            let worker = &mut self.workers[index];
            worker.node = Some(node);
            worker.state = State::Starting;
            let ready = image_at + ms(worker.pod.phases_s);
            self.at(ready, Event::Ready(index));
        }
    }

    fn scan(&mut self) {
        let pending = self.count(State::Pending);
        let Some(cluster) = &mut self.cluster else { return };
        cluster.shrink(self.now);
        for (node, ready) in cluster.grow(self.now, pending, &mut self.random) {
            self.at(ready, Event::NodeReady(node));
        }
        self.at(next_turn(self.now, SCAN_S), Event::Scan);
    }

    fn node_ready(&mut self, node: NodeId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.arrive(node, self.now);
        }
        self.schedule();
    }

    fn storm(&mut self, index: usize) {
        let storm: Storm = self.plan.trace.storms[index];
        let Some(cluster) = &mut self.cluster else { return };
        cluster.sell_out(self.now + ms(storm.within_s + storm.sold_out_s));
        for node in cluster.ready() {
            if !self.random.random_bool(storm.share) {
                continue;
            }
            let when = self.now + between(&mut self.random, (0.0, storm.within_s));
            if self.random.random_bool(storm.abrupt) {
                self.at(when, Event::NodeLost(node));
            } else {
                self.at(when, Event::Notice(node, ms(storm.notice_s)));
            }
        }
    }

    /// The kubelet stops the node's pods, and kills them at the end of the notice.
    fn notice(&mut self, node: NodeId, notice: Ms) {
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| cluster.is_ready(node)) else { return };
        cluster.leave(node);
        self.at(self.now + notice, Event::NodeLost(node));
        for index in self.on(node) {
            self.stop(index, Some(self.now + notice));
        }
        self.reconcile();
    }

    fn on(&self, node: NodeId) -> Vec<usize> {
        (0..self.workers.len()).filter(|&index| self.workers[index].node == Some(node)).collect()
    }

    fn node_lost(&mut self, node: NodeId) {
        for index in self.on(node) {
            self.kill(index);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.lose(node, self.now);
        }
        self.at(self.now + ms(NOTICED_S), Event::Replace);
    }

    fn values(&mut self) -> Vec<f64> {
        let Some(scaler) = &self.scaler else { return Vec::new() };
        let triggers = scaler.settings().triggers.clone();
        triggers.iter().map(|trigger| self.signals.value(trigger.signal, self.now)).collect()
    }

    fn sync(&mut self) {
        let values = self.values();
        let current = self.wanted;
        let Some(scaler) = &mut self.scaler else { return };
        let next = scaler.sync(self.now, current, &values);
        let again = next_turn(self.now, scaler.settings().sync_s);
        self.scale(next);
        self.at(again, Event::Sync);
    }

    fn poll(&mut self) {
        let values = self.values();
        let current = self.wanted;
        let Some(scaler) = &mut self.scaler else { return };
        let next = scaler.poll(self.now, current, &values);
        let again = next_turn(self.now, scaler.settings().polling_s);
        self.scale(next);
        self.at(again, Event::Poll);
    }

    fn scale(&mut self, next: u32) {
        if next != self.wanted {
            self.tally.changes.push((self.now, i64::from(next) - i64::from(self.wanted)));
            self.wanted = next;
            self.reconcile();
        }
    }

    fn unanswered(&self) -> u32 {
        self.arrived as u32 - self.tally.answered
    }

    fn queue_sample(&mut self) {
        let unanswered = self.unanswered();
        self.signals.sample_queue(self.now, unanswered, &mut self.random);
        self.at(next_turn(self.now, self.signals.path().every_s), Event::QueueSample);
    }

    fn scrape(&mut self) {
        let rates = self.workers.iter().filter(|worker| worker.state == State::Ready);
        let rates: Vec<f64> = rates.filter_map(|worker| worker.line.rate()).collect();
        let rate = (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64);
        self.signals.scrape(self.now, rate);
        self.at(next_turn(self.now, signals::SCRAPE_S), Event::Scrape);
    }

    fn tell_costs(&mut self) {
        for worker in self.workers.iter_mut().filter(|worker| worker.pod.tells_cost && worker.state == State::Ready) {
            worker.told_cost = worker.line.tokens();
        }
        self.at(next_turn(self.now, COST_S), Event::Cost);
    }

    fn moment(&mut self) {
        let moment = Moment {
            at_s: seconds(self.now),
            unanswered: self.unanswered(),
            tokens: self.tally.tokens_unanswered,
            wanted: self.wanted,
            ready: self.count(State::Ready),
            nodes: self.cluster.as_ref().map_or(0, Cluster::count),
        };
        self.tally.moments.push(moment);
        self.at(self.now + 30_000, Event::Moment);
    }

    fn outcome(self) -> Outcome {
        let arrivals = &self.plan.trace.arrivals;
        let mut waits: Vec<Ms> =
            self.answers.iter().zip(arrivals).filter_map(|(answer, arrival)| Some((*answer)? - arrival.at)).collect();
        waits.sort_unstable();
        let node_hours = self.cluster.as_ref().map_or(0.0, |cluster| cluster.hours(self.now));
        let price = match &self.plan.control {
            Control::Autoscaled(scaled) => scaled.pool.price_an_hour,
            Control::Scripted(_) => 0.0,
        };
        let first = arrivals.first().map_or(0, |arrival| arrival.at);
        let at = |when: Option<Ms>| when.map(seconds);
        Outcome {
            jobs: arrivals.len() as u32,
            lost: arrivals.len() as u32 - self.tally.answered,
            attempts_spent: self.tally.attempts_spent,
            given_back: self.tally.given_back,
            cleared_s: seconds(self.tally.last_answer - first),
            wait_p50_s: percentile(&waits, 0.5),
            wait_p99_s: percentile(&waits, 0.99),
            wait_max_s: percentile(&waits, 1.0),
            node_hours,
            cost: node_hours * price,
            busy_hours: seconds(self.tally.busy) / 3600.0,
            reversals: reversals(&self.tally.changes, ms(600.0)),
            changes: self.tally.changes.len() as u32,
            ready_max: self.tally.ready_max,
            tokens: arrivals.iter().map(|arrival| u64::from(arrival.tokens)).sum(),
            tokens_computed: self.tally.tokens_computed,
            tokens_by_time: self.tally.tokens_by_time,
            workers: self.workers.iter().map(|worker| (at(worker.ready), at(worker.ended))).collect(),
            moments: self.tally.moments,
        }
    }
}
