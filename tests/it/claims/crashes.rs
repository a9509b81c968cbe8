//! A worker that splits a large job dies at every step of the way, between any two calls to bucket or broker, and another
//! goes on. In the end it is as if nothing had been: each line once, one manifest, no object put twice, nothing left over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use inferq_shared::broker::memory::{Call, Fault, FaultPlan};
use inferq_shared::bucket::{Gate, Moment, Uri};
use inferq_shared::job::{Job, ObjectFormat};
use inferq_shared::manifest::{Manifest, part_name};
use inferq_shared::reply::{ItemResult, Reply, Status};
use inferq_tests::endpoints::Store;
use inferq_tests::line::{Line, job_of};
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;

use super::{check, gzip, text};

/// A large input, and how it is split.
#[derive(Clone, Copy)]
struct Large {
    packed: bool,
    items: usize,
    shard_items: usize,
}

const PLAIN: Large = Large { packed: false, items: 60, shard_items: 20 };
const PACKED: Large = Large { packed: true, ..PLAIN };
/// More shards than are published in one go, in two folders.
const MANY: Large = Large { packed: false, items: 104, shard_items: 1 };

impl Large {
    fn name(self) -> &'static str {
        if self.packed { "in/a.jsonl.gz" } else { "in/a.jsonl" }
    }

    fn bytes(self, text: &str) -> Vec<u8> {
        if self.packed { gzip(text) } else { text.into() }
    }

    fn shards(self) -> usize {
        self.items.div_ceil(self.shard_items)
    }

    /// What lies in the job's folder in the end.
    fn objects(self) -> BTreeSet<String> {
        let parts = (0..self.shards()).map(|number| part_name(number.try_into().unwrap(), ObjectFormat::Jsonl));
        let markers = (0..self.shards().div_ceil(100)).map(|folder| format!("_done/{folder:03}.json"));
        ["_manifest.json", "_plan.json"].map(str::to_owned).into_iter().chain(parts).chain(markers).collect()
    }
}

/// A moment of a call to the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    call: &'static str,
    name: String,
    moment: Moment,
}

/// Sees every call to the bucket; at one of them the process dies.
#[derive(Default)]
struct Watch {
    root: String,
    death: Option<Step>,
    died: CancellationToken,
    seen: Mutex<Vec<Step>>,
    /// The versions of every object that was there after it was put.
    put: Mutex<BTreeMap<String, BTreeSet<(u64, i64)>>>,
}

impl Watch {
    /// Whether the process dies here.
    fn passes(&self, call: &'static str, uri: &Uri, moment: Moment) -> bool {
        let name = uri.to_string().strip_prefix(&self.root).unwrap().to_owned();
        if (call, moment) == ("create", Moment::After) && !name.contains("_input/") {
            let file = std::fs::metadata(uri.path().unwrap()).unwrap();
            self.put.lock().unwrap().entry(name.clone()).or_default().insert((file.ino(), file.mtime_nsec()));
        }
        let step = Step { call, name, moment };
        let mut seen = self.seen.lock().unwrap();
        if seen.contains(&step) {
            return false;
        }
        let dies = self.death.as_ref() == Some(&step);
        seen.push(step);
        dies
    }

    fn gate(self: &Arc<Self>) -> Gate {
        let watch = Arc::clone(self);
        Gate::new(move |call, uri, moment| {
            let dies = watch.passes(call, uri, moment);
            let died = watch.died.clone();
            Box::pin(async move {
                if dies {
                    died.cancel();
                    std::future::pending().await
                }
            })
        })
    }
}

/// One large job, and the workers that live one after the other.
struct Scene {
    large: Large,
    store: Store,
    line: Line,
    watch: Arc<Watch>,
    job: Job,
}

impl Scene {
    async fn new(large: Large, death: Option<Step>, plan: FaultPlan) -> Self {
        let store = Store::file();
        let watch = Arc::new(Watch { root: store.root.to_string(), death, ..Watch::default() });
        let gate = watch.gate();
        Self::behind(gate, large, store, watch, plan).await
    }

    async fn behind(gate: Gate, large: Large, store: Store, watch: Arc<Watch>, plan: FaultPlan) -> Self {
        let flags = flags(&store, large.shard_items);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let line = Line::new(&store.buckets.behind(gate), &flags, plan).await;
        let job = job_of(&store.uri(large.name()), &store.uri("out/"), ObjectFormat::Jsonl, "job");
        let scene = Self { large, store, line, watch, job };
        scene.write(&text(large.items)).await;
        scene
    }

    async fn sound(large: Large) -> Self {
        Self::new(large, None, FaultPlan::default()).await
    }

    /// Puts the input, or another version of it.
    async fn write(&self, text: &str) {
        let uri = self.store.uri(self.large.name());
        let (path, new) = (uri.path().unwrap(), uri.path().unwrap().with_extension("new"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&new, self.large.bytes(text)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Publishes the job and lets a worker run until all is settled. Whether it died on the way.
    async fn begin(&self) -> bool {
        self.line.publish([self.job.clone()]).await;
        self.line.work_until(self.watch.died.cancelled(), self.line.settled()).await.is_none()
    }

    /// Lets further workers run until all is settled.
    async fn go_on(&self) {
        while self.line.work(self.line.settled()).await.is_none() {}
    }

    fn manifest(&self) -> Uri {
        self.store.uri("out/job/_manifest.json")
    }

    /// The results that the manifest leads to; nothing without one.
    async fn results(&self) -> Option<Vec<ItemResult>> {
        let read = async |name: &str| {
            let read = self.store.buckets.read_all(&self.store.uri(&format!("out/job/{name}")), 1 << 24).await.unwrap();
            read.map(|(_, body)| body)
        };
        let manifest = Manifest::decode(&read("_manifest.json").await?).unwrap();
        let mut results = Vec::new();
        for part in manifest.parts {
            let body = read(&part.name).await.expect("a manifest names parts that are there");
            let text = String::from_utf8(body.to_vec()).unwrap();
            results.extend(text.lines().map(|line| serde_json::from_str::<ItemResult>(line).unwrap()));
        }
        Some(results)
    }

    async fn objects(&self) -> BTreeSet<String> {
        let folder = self.store.uri("out/job/");
        let listed = self.store.buckets.list(&folder, None).await.unwrap();
        listed.iter().map(|object| object.uri.to_string()[folder.to_string().len()..].to_owned()).collect()
    }

    /// Nothing tells that anybody died.
    async fn assert_complete(&self) {
        let replies = self.line.all_replies().await;
        assert!(!replies.is_empty(), "the job is answered");
        for reply in replies {
            assert_eq!((reply.id.as_str(), reply.output_uri), ("job", Some(self.manifest().to_string())));
            assert_eq!((reply.status, reply.usage.items as usize), (Status::Partial, self.large.items));
        }
        check(&self.results().await.expect("a manifest"), self.large.items, "job");
        assert_eq!(self.objects().await, self.large.objects());
        assert_eq!(self.line.dead_letters().await, 0);
        self.assert_put_once();
    }

    /// No object is another than when it was first there.
    fn assert_put_once(&self) {
        for (name, versions) in &*self.watch.put.lock().unwrap() {
            let file = std::fs::metadata(self.store.uri(name).path().unwrap()).unwrap();
            assert_eq!(*versions, BTreeSet::from([(file.ino(), file.mtime_nsec())]), "{name}");
        }
    }
}

fn flags(store: &Store, shard_items: usize) -> [String; 6] {
    let (read, write) = (store.uri("in/").to_string(), store.uri("out/").to_string());
    [
        "--allow-read".to_owned(),
        read,
        "--allow-write".to_owned(),
        write,
        "--shard-items".to_owned(),
        shard_items.to_string(),
    ]
}

/// Every step that a worker takes whom nothing befalls.
async fn steps(large: Large) -> Vec<Step> {
    let scene = Scene::sound(large).await;
    assert!(!scene.begin().await);
    scene.assert_complete().await;
    std::mem::take(&mut scene.watch.seen.lock().unwrap())
}

async fn dies_at_steps(large: Large, is_meant: impl Fn(&Step) -> bool) {
    let steps: Vec<_> = steps(large).await.into_iter().filter(is_meant).collect();
    assert!(steps.len() > 6, "{steps:?}");
    for step in steps {
        println!("dies at {step:?}");
        let scene = Scene::new(large, Some(step), FaultPlan::default()).await;
        assert!(scene.begin().await, "it comes there");
        scene.go_on().await;
        scene.assert_complete().await;
    }
}

async fn dies_at_calls_to_the_broker(large: Large, calls: &[(Call, u64)]) {
    for (call, least) in calls {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            for number in 0.. {
                println!("{fault:?}: {call:?} {number}");
                let plan = FaultPlan::default().and(*call, number, fault.clone());
                let scene = Scene::new(large, None, plan).await;
                let died = scene.begin().await;
                scene.go_on().await;
                scene.assert_complete().await;
                if !died {
                    assert!(number >= *least, "{number} calls");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_worker_that_dies_at_any_step_of_a_plain_input_leaves_no_trace() {
    dies_at_steps(PLAIN, |_| true).await;
}

#[tokio::test]
async fn a_worker_that_dies_at_any_step_of_a_packed_input_leaves_no_trace() {
    dies_at_steps(PACKED, |_| true).await;
}

#[tokio::test]
async fn a_worker_that_dies_while_it_puts_many_parts_together_leaves_no_trace() {
    let is_last = |step: &Step| step.name.contains("_done/") || step.name.contains("_manifest");
    // After one step is before the next.
    dies_at_steps(MANY, |step| is_last(step) && step.moment == Moment::Before).await;
}

#[tokio::test]
async fn a_worker_that_dies_at_any_call_to_the_broker_leaves_no_trace() {
    // The shards and the reply; the parent and three shards.
    let calls = [(Call::Publish, 2), (Call::Receive, 3), (Call::Settle, 3)];
    dies_at_calls_to_the_broker(PLAIN, &calls).await;
    dies_at_calls_to_the_broker(PACKED, &calls).await;
    // A hundred shards, the other four, and the reply.
    dies_at_calls_to_the_broker(MANY, &[(Call::Publish, 3)]).await;
}

pub(crate) async fn the_broker_loses_calls() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer, Fault::Partly] {
        println!("{fault:?}");
        let scene = Scene::new(PLAIN, None, FaultPlan::default().and(Call::Publish, 0, fault)).await;
        assert!(!scene.begin().await);
        scene.assert_complete().await;
    }
}

#[tokio::test]
async fn a_parent_is_acked_only_when_all_its_shards_are_confirmed() {
    the_broker_loses_calls().await;
}

/// The input is another one when the next worker comes: old and new are never mixed.
async fn the_source_changes_at_steps(large: Large, is_meant: impl Fn(&Step) -> bool) {
    // Of one length, so that nothing but the version tells.
    let (old, new) = (text(large.items), text(large.items).replace("text ", "next "));
    let mut versions = Vec::new();
    for text in [&old, &new] {
        let scene = Scene::sound(large).await;
        scene.write(text).await;
        assert!(!scene.begin().await);
        versions.push(scene.results().await.expect("a manifest"));
    }
    for step in steps(large).await.into_iter().filter(is_meant) {
        println!("changes at {step:?}");
        let scene = Scene::new(large, Some(step), FaultPlan::default()).await;
        assert!(scene.begin().await, "it comes there");
        scene.write(&new).await;
        scene.go_on().await;
        let replies = scene.line.all_replies().await;
        assert!(!replies.is_empty() && replies.iter().all(|reply| reply.id.as_str() == "job"), "{replies:?}");
        let refused = |reply: &Reply| reply.error.as_ref().is_some_and(|error| error.code == "source_changed");
        assert!(replies.iter().all(|reply| reply.output_uri.is_some() || refused(reply)), "{replies:?}");
        match scene.results().await {
            Some(results) => assert_of_one_version(&results, &versions),
            None => assert!(replies.iter().all(refused), "{replies:?}"),
        }
        assert_eq!(scene.line.dead_letters().await, 0);
        scene.assert_put_once();
    }
}

fn assert_of_one_version(results: &[ItemResult], versions: &[Vec<ItemResult>]) {
    assert_eq!(results.len(), versions[0].len());
    let agrees = |(result, version): (&ItemResult, &ItemResult)| match &result.error {
        Some(error) => error.code == "source_changed" || version.error.as_ref() == Some(error),
        None => (&result.id, &result.embedding) == (&version.id, &version.embedding),
    };
    assert!(versions.iter().any(|version| results.iter().zip(version).all(agrees)), "a mixture: {results:?}");
    assert!(results.iter().enumerate().all(|(place, result)| result.index as usize == place), "each line once");
}

pub(crate) async fn the_source_of_a_plain_input_changes() {
    the_source_changes_at_steps(PLAIN, |step| step.moment == Moment::After).await;
}

#[tokio::test]
async fn a_source_that_changes_at_any_step_is_never_mixed_with_the_old_one() {
    the_source_of_a_plain_input_changes().await;
    the_source_changes_at_steps(PACKED, |step| step.moment == Moment::After).await;
}

/// A parent came again after its shards were done, put a piece anew, and died.
pub(crate) async fn a_parent_dies_again() {
    for manifest_is_there in [true, false] {
        let scene = Scene::sound(PACKED).await;
        assert!(!scene.begin().await);
        scene.assert_complete().await;
        let batches = scene.line.batches();
        let piece = scene.store.uri("out/job/_input/00001.jsonl");
        scene.store.buckets.create(&piece, "left behind".into(), "piece").await.unwrap();
        if !manifest_is_there {
            scene.store.buckets.delete(&scene.manifest()).await.unwrap();
            scene.watch.put.lock().unwrap().clear();
        }
        assert!(!scene.begin().await);
        scene.assert_complete().await;
        assert_eq!(scene.line.batches(), batches, "what has its part is not computed again");
    }
}

#[tokio::test]
async fn what_a_parent_that_came_again_left_behind_is_swept() {
    a_parent_dies_again().await;
}

#[tokio::test]
async fn an_input_that_turns_out_damaged_leaves_no_pieces() {
    let scene = Scene::sound(PACKED).await;
    let mut whole = gzip(&text(400));
    whole.truncate(whole.len() - 100);
    std::fs::write(scene.store.uri(PACKED.name()).path().unwrap(), whole).unwrap();
    assert!(!scene.begin().await);
    let codes: Vec<_> = scene.line.all_replies().await.into_iter().map(|reply| reply.error.unwrap().code).collect();
    assert_eq!(codes, ["malformed"]);
    let left = scene.objects().await;
    assert_eq!(left, BTreeSet::from(["_plan.json".to_owned()]));
    let put = scene.watch.seen.lock().unwrap().iter().filter(|step| step.name.contains("_input/0")).count();
    assert!(put > 0, "pieces had been put");
}

/// The parent comes again on a worker that would make smaller shards, when the first shard is done.
pub(crate) async fn a_worker_of_another_shard_size_goes_on() {
    let death = Step { call: "create", name: "out/job/part-000/00000.jsonl".to_owned(), moment: Moment::After };
    let scene = Scene::new(PLAIN, Some(death), FaultPlan::default()).await;
    assert!(scene.begin().await);
    let flags = flags(&scene.store, 7);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let scene = Scene { line: scene.line.with_flags(&flags), ..scene };
    scene.line.publish([scene.job.clone()]).await;
    scene.go_on().await;
    scene.assert_complete().await;
}

#[tokio::test]
async fn a_worker_of_another_shard_size_makes_the_shards_that_were_planned() {
    a_worker_of_another_shard_size_goes_on().await;
}

/// One shard runs twice at once, and both put its part at the same time.
pub(crate) async fn a_shard_has_a_twin() {
    let store = Store::file();
    let watch = Arc::new(Watch { root: store.root.to_string(), ..Watch::default() });
    let (noted, both, puts) = (Arc::clone(&watch), Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    let gate = Gate::new(move |call, uri, moment| {
        noted.passes(call, uri, moment);
        let is_twin = call == "create" && uri.to_string().ends_with("part-000/00000.jsonl") && moment == Moment::Before;
        let both = (is_twin && puts.fetch_add(1, Ordering::Relaxed) < 2).then(|| Arc::clone(&both));
        Box::pin(async move {
            if let Some(both) = both {
                both.wait().await;
            }
        })
    });
    // The parent is received first, then its first shard, which also stays in the queue.
    let plan = FaultPlan::default().and(Call::Receive, 1, Fault::Duplicate);
    let scene = Scene::behind(gate, PLAIN, store, watch, plan).await;
    assert!(!scene.begin().await);
    scene.assert_complete().await;
}

#[tokio::test]
async fn a_shard_that_runs_twice_at_once_puts_its_part_once() {
    a_shard_has_a_twin().await;
}
