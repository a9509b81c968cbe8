//! Results that are objects: put once, pointed at after that, never doubled, never lost. The real stages over real
//! folders; what goes wrong is the broker, the process, and what lies there already.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use inferq_shared::broker::memory::{Call, Event, Fault, FaultPlan};
use inferq_shared::bucket::Uri;
use inferq_shared::job::{Job, ObjectFormat};
use inferq_shared::reply::{ItemResult, Reply, Status};
use inferq_tests::endpoints::Store;
use inferq_tests::line::{Line, job, job_into};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) mod outages;

/// A folder that jobs may write to.
struct Place(Store);

impl Place {
    fn new() -> Self {
        Self(Store::file())
    }

    async fn line(&self, plan: FaultPlan) -> Line {
        Line::new(&self.0.buckets, &["--allow-write", &self.0.root.to_string()], plan).await
    }

    fn uri(&self, name: &str) -> Uri {
        self.0.uri(name)
    }

    /// The folder itself.
    fn path(&self) -> PathBuf {
        self.0.root.path().unwrap()
    }

    fn job(&self, id: &str, texts: &[&str]) -> Job {
        job_into(&self.0.root, ObjectFormat::Jsonl, id, texts)
    }

    async fn object(&self, name: &str) -> Option<(String, Vec<u8>)> {
        let (info, bytes) = self.0.buckets.read_all(&self.uri(name), 1 << 20).await.unwrap()?;
        Some((info.etag, bytes.to_vec()))
    }

    async fn results(&self, name: &str) -> Vec<ItemResult> {
        let (_, bytes) = self.object(name).await.unwrap_or_else(|| panic!("{name} is there"));
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What the file system says of an object, down to the moment of its last change.
    fn file(&self, name: &str) -> (u64, i64, i64) {
        let meta = std::fs::metadata(self.uri(name).path().unwrap()).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec())
    }
}

fn code(reply: &Reply) -> &str {
    reply.error.as_ref().map_or("", |error| &error.code)
}

fn assert_points(reply: &Reply, uri: &Uri, items: u32) {
    assert_eq!(reply.output_uri, Some(uri.to_string()), "{reply:?}");
    assert_eq!((reply.status, reply.usage.items), (Status::Succeeded, items));
    assert!(reply.results.is_empty() && reply.error.is_none() && reply.usage.tokens > 0, "{reply:?}");
}

#[tokio::test]
async fn results_become_an_object_and_the_reply_points_at_it() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    let texts = ["one", "two words", "three more words"];
    line.publish([
        job("plain", &texts),
        place.job("lines", &texts),
        job_into(&place.0.root, ObjectFormat::Parquet, "columns", &texts),
    ])
    .await;
    let mut replies = BTreeMap::new();
    line.work(line.replies_to(3, &mut replies)).await.expect("nothing is planned");
    let expected = &replies["plain"].results;
    assert_points(&replies["lines"], &place.uri("lines.jsonl"), 3);
    assert_eq!(replies["lines"].usage, replies["plain"].usage);
    assert_eq!(place.results("lines.jsonl").await, *expected);

    assert_points(&replies["columns"], &place.uri("columns.parquet"), 3);
    let (_, bytes) = place.object("columns.parquet").await.expect("it is there");
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap().build().unwrap();
    let rows: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1);
    let ids: Vec<_> = rows[0]["id"].as_string::<i32>().iter().map(Option::unwrap).collect();
    assert_eq!(ids, ["item-0", "item-1", "item-2"]);
    for (row, result) in expected.iter().enumerate() {
        let numbers = rows[0]["embedding"].as_fixed_size_list().value(row);
        assert_eq!(numbers.as_primitive::<Float32Type>().values(), result.embedding.as_ref().unwrap().values());
    }
}

#[tokio::test]
async fn every_pointer_is_published_after_its_object() {
    pointers_come_after_objects().await;
}

pub(crate) async fn pointers_come_after_objects() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    let (seen, early) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, noted) = (Arc::clone(&seen), Arc::clone(&early));
    line.observe(Arc::new(move |event: &Event| {
        let Event::Published { queue, message, .. } = event else { return };
        if queue != "jobs.results" {
            return;
        }
        counted.fetch_add(1, Ordering::Relaxed);
        let uri = Reply::decode(&message.body).unwrap().output_uri.unwrap();
        if !Uri::parse(&uri).unwrap().path().unwrap().exists() {
            noted.lock().unwrap().push(uri);
        }
    }));
    let ids: Vec<String> = (0..20).map(|number| format!("job-{number}")).collect();
    line.publish(ids.iter().map(|id| place.job(id, &["a text"]))).await;
    line.work(line.replies(20)).await.expect("nothing is planned");
    assert_eq!(seen.load(Ordering::Relaxed), 20);
    assert_eq!(*early.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_job_that_comes_again_is_answered_without_computing_and_changes_no_byte() {
    a_job_that_comes_again().await;
}

pub(crate) async fn a_job_that_comes_again() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    line.publish([place.job("job", &["one", "two"])]).await;
    let first = line.work(line.replies(1)).await.expect("nothing is planned").remove(0);
    let (object, file, batches) = (place.object("job.jsonl").await, place.file("job.jsonl"), line.batches());
    assert_eq!(batches, 1);
    line.publish([place.job("job", &["one", "two"]), place.job("job", &["one", "two"])]).await;
    let again = line.work(line.replies(2)).await.expect("nothing is planned");
    for reply in again {
        assert_points(&reply, &place.uri("job.jsonl"), 2);
        assert_eq!((reply.usage, &reply.revision), (first.usage, &first.revision));
    }
    assert_eq!(line.batches(), batches, "nothing was computed");
    assert_eq!((place.object("job.jsonl").await, place.file("job.jsonl")), (object, file));
}

#[tokio::test]
async fn a_worker_that_dies_between_object_and_reply_leaves_the_reply_to_the_next() {
    let place = Place::new();
    let line = place.line(FaultPlan::default().and(Call::Publish, 0, Fault::DieBefore)).await;
    line.publish([place.job("job", &["one"])]).await;
    assert!(line.work(line.replies(1)).await.is_none(), "the process died");
    let (object, file) = (place.object("job.jsonl").await, place.file("job.jsonl"));
    assert!(object.is_some(), "the object was put first");
    let reply = line.work(line.replies(1)).await.expect("nothing more is planned").remove(0);
    assert_points(&reply, &place.uri("job.jsonl"), 1);
    assert_eq!((reply.attempt, line.batches()), (2, 1), "it was not computed twice");
    assert_eq!((place.object("job.jsonl").await, place.file("job.jsonl")), (object, file));
}

#[tokio::test]
async fn another_job_of_the_same_id_is_told_so() {
    another_job_of_the_same_id().await;
}

pub(crate) async fn another_job_of_the_same_id() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    // Both are looked for before either is put, so the second finds out when it puts.
    line.publish([place.job("job", &["one"]), place.job("job", &["other"])]).await;
    let replies = line.work(line.replies(2)).await.expect("nothing is planned");
    let mut codes: Vec<_> = replies.iter().map(code).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["", "id_conflict"]);
    let (object, batches) = (place.object("job.jsonl").await, line.batches());
    // And this one before it is computed.
    line.publish([place.job("job", &["a third"])]).await;
    let reply = line.work(line.replies(1)).await.expect("nothing is planned").remove(0);
    assert_eq!((code(&reply), reply.status, reply.output_uri.as_deref()), ("id_conflict", Status::Rejected, None));
    assert!(reply.error.unwrap().message.contains(&place.uri("job.jsonl").to_string()));
    assert_eq!((line.batches(), place.object("job.jsonl").await), (batches, object));
}

#[tokio::test]
async fn what_others_put_there_is_left_alone() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    let path = place.uri("job.jsonl").path().unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "not ours").unwrap();
    line.publish([place.job("job", &["one"])]).await;
    let reply = line.work(line.replies(1)).await.expect("nothing is planned").remove(0);
    assert_eq!((code(&reply), line.batches()), ("id_conflict", 0));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "not ours");
}

#[tokio::test]
async fn nobody_writes_where_the_operator_does_not_let_them() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    let text = place.0.root.to_string();
    let outside = Uri::parse(&format!("{}-else/", text.trim_end_matches('/'))).unwrap();
    line.publish([job_into(&outside, ObjectFormat::Jsonl, "job", &["one"])]).await;
    let reply = line.work(line.replies(1)).await.expect("nothing is planned").remove(0);
    assert_eq!((code(&reply), reply.status, line.batches()), ("forbidden", Status::Rejected, 0));
    let message = reply.error.unwrap().message;
    assert!(message.contains(&outside.to_string()) && message.contains("--allow-write"), "{message}");
    assert!(!place.path().parent().unwrap().exists(), "nothing was written");
}

#[tokio::test]
async fn a_place_that_can_not_be_written_makes_a_dead_letter_that_names_it() {
    let place = Place::new();
    let line = place.line(FaultPlan::default()).await;
    // A link where the folder should be: the way out of an allowed folder.
    std::fs::create_dir(place.path().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/tmp", place.path().components().as_path()).unwrap();
    line.publish([place.job("job", &["one"]), job("plain", &["one"])]).await;
    let (replies, reasons) = line.work(async { (line.replies(1).await, line.dead(1).await) }).await.unwrap();
    assert_eq!(replies[0].id.as_str(), "plain");
    assert!(reasons[0].starts_with("reply_undeliverable: "), "{reasons:?}");
    assert!(reasons[0].contains(&place.uri("job.jsonl").to_string()), "{reasons:?}");
}

/// Every job ends in one object and in a reply that points at it, whatever the broker does and whenever the process dies.
#[tokio::test]
async fn nothing_is_lost_or_doubled_whatever_goes_wrong_with_the_broker() {
    const JOBS: usize = 12;
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let place = Place::new();
        let line = place.line(plan(&mut rng)).await;
        let texts: Vec<String> = (0..JOBS).map(|job| format!("text {job} of {seed}")).collect();
        let id = |job: usize| format!("job-{job}");
        line.publish((0..JOBS).map(|job| place.job(&id(job), &[&texts[job]]))).await;
        let mut replies = BTreeMap::new();
        while line.work(line.replies_to(JOBS, &mut replies)).await.is_none() {}
        // A process that died while it drained leaves what it had not acked to the next one, which answers it again.
        while line.jobs().await.waiting != Some(0) {
            line.work(line.replies(1)).await;
        }
        for job in 0..JOBS {
            assert_points(&replies[&id(job)], &place.uri(&format!("job-{job}.jsonl")), 1);
            assert_eq!(place.results(&format!("job-{job}.jsonl")).await.len(), 1, "seed {seed}");
        }
        let status = line.jobs().await;
        assert_eq!((status.waiting, status.leased), (Some(0), Some(0)), "seed {seed}: all are settled");
    }
}

fn plan(rng: &mut StdRng) -> FaultPlan {
    let mut plan = FaultPlan::default();
    for _ in 0..rng.random_range(1..5) {
        let call = [Call::Publish, Call::Receive, Call::Settle][rng.random_range(0..3)];
        let fault = match rng.random_range(0..5) {
            0 => Fault::LoseAnswer,
            1 if call != Call::Receive => Fault::LoseRequest,
            2 if call == Call::Receive => Fault::Duplicate,
            3 => Fault::DieBefore,
            _ => Fault::DieAfter,
        };
        plan = plan.and(call, rng.random_range(0..3), fault);
    }
    plan
}
