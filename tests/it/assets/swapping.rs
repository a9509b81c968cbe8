//! Hot swap under load, with the real worker and two revisions of the real model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use inferq_shared::job::Input;
use inferq_shared::reply::{Reply, Status};
use inferq_tests::process::{PATIENCE, WorkerProcess, binary};
use inferq_tests::queue_file::{QueueFile, job, message, taken};
use inferq_worker::engine::Answer;
use inferq_worker::engine::burn::{LoadOptions, load};
use serde_json::Value;

use super::serving::Model;
use super::{current, done, flip_a_byte};

const TEXT: &str = "a text that every job asks for";

/// Adds to some weights of the first layer, so that every embedding is another.
fn change_weights(model: &Path) {
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = names["embeddings.LayerNorm.bias"]["data_offsets"][0].as_u64().unwrap() as usize;
    for number in 0..384 {
        let at = 8 + header + start + 4 * number;
        let change = if number % 2 == 0 { 1.0 } else { -1.0 };
        let weight = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) + change;
        bytes[at..at + 4].copy_from_slice(&weight.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
    done(&[&"manifest", &model, &"--canary"]);
}

/// What the model in this directory makes of the text.
fn embedding(directory: PathBuf) -> Vec<f32> {
    let mut loaded = load(&LoadOptions::new(directory)).unwrap();
    let tokens = loaded.tokenizer.encode(&Input::Text(TEXT.to_owned()), true).unwrap();
    let answer = loaded.engines[0].infer(&[&tokens]).unwrap().remove(0);
    let Answer::Embedding(vector) = answer else { panic!("an embedding model") };
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Load on a queue: so many jobs at once, of a few items each, until somebody has seen enough.
struct Load<'a> {
    queue: &'a QueueFile,
    published: usize,
    replies: BTreeMap<String, Reply>,
}

impl<'a> Load<'a> {
    const AT_ONCE: usize = 150;

    fn new(queue: &'a QueueFile) -> Self {
        Self { queue, published: 0, replies: BTreeMap::new() }
    }

    /// Keeps the worker busy until `enough` says so of the replies so far.
    async fn until(&mut self, what: &str, mut enough: impl FnMut(&BTreeMap<String, Reply>) -> bool) {
        let mut consumer = self.queue.consumer(&self.queue.names.results()).await;
        let started = Instant::now();
        while !enough(&self.replies) {
            assert!(started.elapsed() < PATIENCE, "never: {what}");
            let missing = Self::AT_ONCE - (self.published - self.replies.len());
            let texts = |number| (0..4).map(move |item| format!("text {number} {item}")).chain([TEXT.to_owned()]);
            let jobs =
                (self.published..self.published + missing).map(|number| job(&format!("job-{number}"), texts(number)));
            self.queue.publish(jobs).await;
            self.published += missing;
            for message in taken(&mut consumer, 64).await {
                let reply = Reply::decode(&message.body).unwrap();
                self.replies.insert(reply.id.to_string(), reply);
            }
        }
    }

    fn revisions(&self) -> BTreeSet<&str> {
        self.replies.values().map(|reply| reply.revision.as_str()).collect()
    }
}

fn metric(worker: &WorkerProcess, line: &str) -> bool {
    worker.get("/metrics").1.lines().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_job_fails_and_each_reply_names_the_revision_that_computed_it() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    let first = model.sync();
    let before = embedding(current(&model.root()));
    let root = model.root().display().to_string();
    let worker = WorkerProcess::start_with(&queue.path, &["--model", &root, "--watch-assets"]);
    worker.until_logged("ready");
    let mut load = Load::new(&queue);
    load.until("replies by the first revision", |replies| replies.len() > 200).await;
    assert_eq!(load.revisions(), BTreeSet::from([first.as_str()]));

    change_weights(&model.source());
    let second = model.sync();
    let after = embedding(current(&model.root()));
    assert!(apart(&before, &after) > 0.02, "the revisions can be told apart: {}", apart(&before, &after));
    let of = |replies: &BTreeMap<String, Reply>, revision: &str| {
        replies.values().filter(|reply| reply.revision == revision).count()
    };
    load.until("replies by the second revision", |replies| of(replies, &second) > 200).await;
    assert!(metric(&worker, "inferq_model_swaps_total{result=\"switched\"} 1"));
    assert_eq!(worker.get("/healthz").0, 200);

    // One that is damaged on the volume: refused, and the second stays.
    let (good, bad) = (current(&model.root()), model.root().join("sha256-bad"));
    fs::create_dir_all(bad.join("1_Pooling")).unwrap();
    for name in super::files(&good) {
        fs::copy(good.join(&name), bad.join(&name)).unwrap();
    }
    flip_a_byte(&bad.join("model.safetensors"), 40_000_000);
    let beside = model.root().join("next");
    std::os::unix::fs::symlink("sha256-bad", &beside).unwrap();
    fs::rename(&beside, model.root().join("current")).unwrap();
    let refused = "inferq_model_swaps_total{result=\"refused\"} 1";
    load.until("the damaged revision is refused", |_| metric(&worker, refused)).await;
    let status: Value = serde_json::from_str(&worker.get("/status").1).unwrap();
    assert!(status["reason"].as_str().unwrap().contains("sha256-bad/model.safetensors: sha256"), "{status}");
    assert_eq!((&status["state"], &status["revision"]), (&"ready".into(), &second.as_str().into()));
    let answered = load.replies.len();
    load.until("the second revision goes on", |replies| replies.len() > answered + 200).await;

    assert_eq!(load.revisions(), BTreeSet::from([first.as_str(), second.as_str()]));
    for reply in load.replies.values() {
        assert_eq!((reply.status, reply.attempt), (Status::Succeeded, 1), "{reply:?}");
        let computed = reply.results[4].embedding.as_ref().unwrap().values();
        let expected = if reply.revision == first { &before } else { &after };
        assert!(apart(computed, expected) < 1e-3, "{} was not computed by {}", reply.id, reply.revision);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_memory_for_two_the_one_is_drained_before_the_other_is_loaded() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    let first = model.sync();
    let root = model.root().display().to_string();
    let flags = ["--model", &root, "--watch-assets", "--health", "127.0.0.1:0", "--queue", &queue.url()];
    let limited = |kib: Option<u64>| {
        let limit = kib.map_or("unlimited".to_owned(), |kib| kib.to_string());
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -v {limit}; exec \"$0\" \"$@\""))
            .arg(binary("inferq-worker"))
            .args(flags);
        WorkerProcess::spawn(&mut command)
    };
    let needed = {
        let worker = limited(None);
        worker.until_logged("ready");
        queue.publish([message("warm", TEXT)]).await;
        queue.collect(1, |_| ()).await;
        worker.figure_kib("VmPeak:").unwrap()
    };
    let worker = limited(Some(needed + (40 << 10)));
    worker.until_logged("ready");
    change_weights(&model.source());
    let second = model.sync();
    worker.until_logged("no memory for two revisions at once: jobs are held back while the other is loaded");
    assert_eq!(worker.until_logged("revision switched")["revision"], second.as_str());
    worker.until_logged("ready");
    queue.publish([message("after", TEXT)]).await;
    let reply = queue.collect(1, |_| ()).await.remove("after").unwrap();
    assert_eq!((reply.status, reply.revision.as_str()), (Status::Succeeded, second.as_str()));

    // A bad one: the one before, whose memory was given up, is loaded again.
    flip_a_byte(&model.root().join(first.replace(':', "-")).join("model.safetensors"), 40_000_000);
    let beside = model.root().join("next");
    std::os::unix::fs::symlink(first.replace(':', "-"), &beside).unwrap();
    fs::rename(&beside, model.root().join("current")).unwrap();
    worker.until_logged("revision refused; the one before stays");
    worker.until_logged("ready");
    queue.publish([message("again", TEXT)]).await;
    let reply = queue.collect(1, |_| ()).await.remove("again").unwrap();
    assert_eq!((reply.status, reply.revision.as_str()), (Status::Succeeded, second.as_str()));
}
