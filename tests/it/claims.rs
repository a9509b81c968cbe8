//! Inputs that are objects: read, split, computed by several workers, and put together again, whatever breaks meanwhile.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use inferq_shared::broker::{Attributes, Consumer, Message};
use inferq_shared::job::{Job, Limits, attribute};
use inferq_shared::manifest::Manifest;
use inferq_shared::reply::{ItemResult, Reply, Status};
use inferq_shared::telemetry::story;
use inferq_tests::endpoints::{Endpoints, Store};
use inferq_tests::process::{WorkerProcess, command, worker_command};
use inferq_tests::queue_file::{QueueFile, numbered, taken};
use serde_json::{Value, json};

pub(crate) mod crashes;
mod outages;

/// A queue, a folder to read from, a folder to write to.
struct Bench {
    queue: QueueFile,
}

impl Bench {
    async fn new() -> Self {
        let queue = QueueFile::new().await;
        for folder in ["in", "out"] {
            std::fs::create_dir(queue.beside(folder)).unwrap();
        }
        Self { queue }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.queue.beside(name)
    }

    fn uri(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let whole = self.path("new");
        std::fs::write(&whole, bytes).unwrap();
        std::fs::rename(whole, self.path(&format!("in/{name}"))).unwrap();
    }

    /// A worker with the echo engine that may read and write here.
    fn worker(&self, flags: &[&str]) -> WorkerProcess {
        let (read, write) = (self.uri("in/"), self.uri("out/"));
        let ours = ["--allow-read", &read, "--allow-write", &write, "--lease-s", "1", "--log", "debug"];
        WorkerProcess::start(&self.queue.path, &[&ours[..], flags].concat())
    }

    /// A job that reads `in/{name}`, with further fields.
    fn job(&self, id: &str, name: &str, more: Value) -> Message {
        let mut job = json!({"version": 1, "id": id, "input_uri": self.uri(&format!("in/{name}"))});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Job::decode(job.to_string().as_bytes(), &Limits::default()).expect("a job");
        let attributes = Attributes::from([(attribute::JOB_ID.to_owned(), id.to_owned())]);
        Message { body: job.to_string().into(), attributes }
    }

    /// The same, its results to be put below `out/`.
    fn large(&self, id: &str, name: &str) -> Message {
        self.job(id, name, json!({"reply_to": {"uri": self.uri("out/")}, "metadata": {"of": id}}))
    }

    /// Runs one job to its reply.
    async fn run(&self, job: Message) -> Reply {
        self.forget().await;
        self.queue.publish([job]).await;
        self.reply().await
    }

    /// Takes what is left of jobs before: a job that is split may be answered twice.
    async fn forget(&self) {
        let names = &self.queue.names;
        for queue in [names.jobs.clone(), names.shards()] {
            while self.queue.waiting_and_leased(&queue).await != (0, 0) {
                tokio::task::yield_now().await;
            }
        }
        let mut consumer = self.queue.consumer(&names.results()).await;
        while self.queue.waiting_and_leased(&names.results()).await != (0, 0) {
            taken(&mut consumer, 16).await;
        }
        consumer.close().await;
    }

    async fn reply(&self) -> Reply {
        self.queue.collect(1, |_| {}).await.into_values().next().unwrap()
    }

    /// All results that a pointer reply leads to, in the order of the manifest.
    fn results(&self, reply: &Reply) -> Vec<ItemResult> {
        let path = PathBuf::from(
            reply
                .output_uri
                .as_ref()
                .unwrap_or_else(|| panic!("no pointer: {reply:?}"))
                .strip_prefix("file://")
                .unwrap(),
        );
        let manifest = Manifest::decode(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((manifest.status, manifest.usage), (reply.status, reply.usage));
        let folder = path.parent().unwrap();
        manifest.parts.iter().flat_map(|part| lines(&folder.join(&part.name))).collect()
    }
}

fn lines(path: &Path) -> Vec<ItemResult> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// So many lines; every hundredth is no item, and every seventh is followed by a blank one.
fn text(items: usize) -> String {
    let line = |number: usize| match number {
        number if number % 100 == 50 => "no JSON".to_owned(),
        number if number % 7 == 3 => format!("{{\"id\": \"own-{number}\", \"text\": \"text {number}\"}}\n"),
        number => format!("\"text {number}\""),
    };
    (0..items).map(|number| line(number) + "\n").collect()
}

/// Every item of `text(items)` has its one result, and its own embedding.
fn check(results: &[ItemResult], items: usize, job: &str) {
    assert_eq!(results.len(), items);
    let mut line = 0;
    let mut embeddings = BTreeMap::new();
    for (number, result) in results.iter().enumerate() {
        line += 1;
        assert_eq!(result.index as usize, number);
        let own = number % 100 != 50 && number % 7 == 3;
        assert_eq!(result.id, if own { format!("own-{number}") } else { format!("{job}/{number}") });
        match &result.error {
            Some(error) => {
                assert!(number % 100 == 50 && error.code == "malformed", "{result:?}");
                assert!(error.message.starts_with(&format!("line {line}: ")), "{} is in line {line}", error.message);
            }
            None => {
                let bits: Vec<u32> = result.embedding.as_ref().unwrap().values().iter().map(|v| v.to_bits()).collect();
                assert_eq!(embeddings.insert(bits, number), None, "two texts have one embedding");
            }
        }
        line += usize::from(own);
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_input_is_one_job_however_it_is_packed() {
    let bench = Bench::new().await;
    let _worker = bench.worker(&[]);
    bench.write("a.jsonl", text(120));
    bench.write("a.jsonl.gz", gzip(&text(120)));
    bench.write("a.jsonl.zst", zstd::encode_all(text(120).as_bytes(), 3).unwrap());
    for (id, name) in [("plain", "a.jsonl"), ("gzip", "a.jsonl.gz"), ("zstd", "a.jsonl.zst")] {
        let reply = bench.run(bench.job(id, name, json!({}))).await;
        assert_eq!((reply.status, reply.usage.items, &reply.output_uri), (Status::Partial, 120, &None), "{reply:?}");
        check(&reply.results, 120, id);
        let reply = bench.run(bench.large(&format!("{id}-object"), name)).await;
        let object = bench.path(&format!("out/{id}-object.jsonl"));
        assert_eq!(reply.output_uri, Some(format!("file://{}", object.display())), "{reply:?}");
        check(&lines(&object), 120, &format!("{id}-object"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_input_is_split_over_workers_and_ends_in_a_manifest() {
    const ITEMS: usize = 1_250;
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(ITEMS));
    bench.write("a.jsonl.gz", gzip(&text(ITEMS)));
    // 250 shards in three folders.
    let _workers: Vec<_> = (0..2).map(|_| bench.worker(&["--shard-items", "5"])).collect();
    for (id, name) in [("plain", "a.jsonl"), ("packed", "a.jsonl.gz")] {
        let reply = bench.run(bench.large(id, name)).await;
        assert_eq!((reply.id.as_str(), reply.status, reply.metadata["of"].as_str()), (id, Status::Partial, Some(id)));
        check(&bench.results(&reply), ITEMS, id);
        let left = std::fs::read_dir(bench.path(&format!("out/{id}/_input"))).map_or(0, |folder| {
            folder.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "jsonl")).count()
        });
        assert_eq!(left, 0, "unpacked pieces go when their parts are there");
        // The same job again is answered by what is there; another one of its id is not.
        let manifest = std::fs::metadata(bench.path(&format!("out/{id}/_manifest.json"))).unwrap().modified().unwrap();
        let again = bench.run(bench.large(id, name)).await;
        assert_eq!((again.output_uri, again.usage), (reply.output_uri, reply.usage));
        let other = json!({"reply_to": {"uri": bench.uri("out/")}, "parameters": {"normalize": false}});
        let other = bench.run(bench.job(id, name, other)).await;
        assert_eq!(other.error.unwrap().code, "id_conflict");
        let after = std::fs::metadata(bench.path(&format!("out/{id}/_manifest.json"))).unwrap().modified().unwrap();
        assert_eq!(after, manifest);
    }
    let (shards, dead) = (bench.queue.names.shards(), bench.queue.names.dead());
    assert_eq!(bench.queue.waiting_and_leased(&shards).await.0, 0);
    assert_eq!(bench.queue.waiting_and_leased(&dead).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_jobs_are_answered_while_a_large_one_runs() {
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(6_000));
    let worker = bench.worker(&["--shard-items", "1000", "--echo-batch-ms", "40", "--replicas", "1"]);
    bench.queue.publish([bench.large("large", "a.jsonl")]).await;
    worker.until_logged(story::SPLIT);
    bench.queue.publish(numbered(0..20)).await;
    let mut consumer = bench.queue.consumer(&bench.queue.names.results()).await;
    let mut ids = Vec::new();
    while ids.len() < 21 {
        ids.extend(
            taken(&mut consumer, 8).await.iter().map(|reply| Reply::decode(&reply.body).unwrap().id.to_string()),
        );
    }
    assert_eq!(ids.last().map(String::as_str), Some("large"), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_again_and_again_leave_every_line_once() {
    const ITEMS: usize = 3_000;
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(ITEMS));
    bench.write("b.jsonl.gz", gzip(&text(ITEMS)));
    let flags = ["--shard-items", "20", "--echo-batch-ms", "2", "--max-attempts", "100"];
    bench.queue.publish([bench.large("plain", "a.jsonl"), bench.large("packed", "b.jsonl.gz")]).await;
    // The first lives until it has begun to split, the others until they have put a part or two, and the last to the end.
    let first = bench.worker(&flags);
    first.until_logged("ready");
    first.kill();
    for parts in 0..8 {
        let worker = bench.worker(&flags);
        worker.until_logged("ready");
        for _ in 0..parts {
            worker.until_logged(story::SETTLED);
        }
        worker.kill();
    }
    let _last = bench.worker(&flags);
    let replies = bench.queue.collect(2, |_| {}).await;
    for (id, reply) in &replies {
        check(&bench.results(reply), ITEMS, id);
    }
    assert_eq!(replies.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_in_the_middle_is_noticed() {
    const ITEMS: usize = 600;
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(ITEMS));
    let worker = bench.worker(&["--shard-items", "20", "--echo-batch-ms", "30", "--replicas", "1"]);
    bench.queue.publish([bench.large("changing", "a.jsonl")]).await;
    worker.until_logged(story::SPLIT);
    // The job itself, and a shard that has read what was there first.
    worker.until_logged(story::SETTLED);
    worker.until_logged(story::SETTLED);
    bench.write("a.jsonl", text(ITEMS).replace("text", "other"));
    let reply = bench.reply().await;
    assert_eq!(reply.status, Status::Partial, "{reply:?}");
    let results = bench.results(&reply);
    let indices: Vec<usize> = results.iter().map(|result| result.index as usize).collect();
    assert_eq!(indices, (0..ITEMS).collect::<Vec<_>>());
    let changed = results.iter().filter(|r| r.error.as_ref().is_some_and(|error| error.code == "source_changed"));
    assert!((20..ITEMS).contains(&changed.count()));
    // Who else saw the last part may still put the manifest.
    bench.forget().await;
    // A parent that comes again, as after a crash before its ack, finds the plan of another version.
    std::fs::remove_file(bench.path("out/changing/_manifest.json")).unwrap();
    let again = bench.run(bench.large("changing", "a.jsonl")).await;
    assert_eq!(
        (again.status, again.error.map(|error| error.code).as_deref()),
        (Status::Failed, Some("source_changed"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_comes_again_on_a_worker_with_another_shard_size_makes_the_same_shards() {
    const ITEMS: usize = 300;
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(ITEMS));
    let first = bench.worker(&["--shard-items", "20"]);
    let reply = bench.run(bench.large("twice", "a.jsonl")).await;
    first.kill();
    std::fs::remove_file(bench.path("out/twice/_manifest.json")).unwrap();
    let _second = bench.worker(&["--shard-items", "7"]);
    let again = bench.run(bench.large("twice", "a.jsonl")).await;
    assert_eq!((again.status, again.usage, &again.output_uri), (reply.status, reply.usage, &reply.output_uri));
    check(&bench.results(&again), ITEMS, "twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_lettered_shard_leaves_its_parent_open_until_it_is_redriven() {
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(40));
    // Where a folder of parts should be, there is a file.
    std::fs::create_dir(bench.path("out/blocked")).unwrap();
    std::fs::write(bench.path("out/blocked/part-000"), "in the way").unwrap();
    let worker = bench.worker(&["--shard-items", "20"]);
    bench.queue.publish([bench.large("blocked", "a.jsonl")]).await;
    for _ in 0..2 {
        let told = worker.until_logged(story::DEAD_LETTERED);
        assert!(told["reason"].as_str().unwrap().starts_with("reply_undeliverable: "), "{told}");
    }
    let show =
        command("inferq").args(["dead", "show", "blocked.00001", "--queue", &bench.queue.url()]).output().unwrap();
    assert!(String::from_utf8_lossy(&show.stdout).contains("inferq-parent: blocked\n"), "{show:?}");
    assert!(String::from_utf8_lossy(&show.stdout).contains("parent     blocked, which stays open"), "{show:?}");
    std::fs::remove_file(bench.path("out/blocked/part-000")).unwrap();
    let redriven = command("inferq").args(["dead", "redrive", "--queue", &bench.queue.url()]).output().unwrap();
    assert!(redriven.status.success(), "{redriven:?}");
    let reply = bench.reply().await;
    check(&bench.results(&reply), 40, "blocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_kills_its_workers_ends_in_a_part_of_errors() {
    let bench = Bench::new().await;
    bench.write("a.jsonl", text(60).replace("text 30", "!kill"));
    bench.queue.publish([bench.large("poisoned", "a.jsonl")]).await;
    let flags = ["--shard-items", "20", "--echo-faults", "--max-attempts", "3"];
    let mut consumer = bench.queue.consumer(&bench.queue.names.results()).await;
    let replies = taken(&mut consumer, 1);
    tokio::pin!(replies);
    let mut worker = bench.worker(&flags);
    let reply = loop {
        tokio::select! {
            replies = &mut replies => break Reply::decode(&replies[0].body).unwrap(),
            () = tokio::task::yield_now() => {}
        }
        if worker.has_ended() {
            worker = bench.worker(&flags);
        }
    };
    let results = bench.results(&reply);
    for (index, result) in results.iter().enumerate() {
        let exhausted = result.error.as_ref().is_some_and(|error| error.code == "attempts_exhausted");
        assert_eq!(exhausted, (20..40).contains(&index), "{result:?}");
    }
    assert_eq!((results.len(), reply.status), (60, Status::Partial));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_read_is_refused_by_name() {
    let bench = Bench::new().await;
    let _worker = bench.worker(&["--shard-items", "20", "--limit-input-bytes", "64"]);
    bench.write("large.jsonl", text(40));
    bench.write("blank.jsonl", "\n \n\r\n");
    bench.write("broken.jsonl.gz", &gzip(&text(40))[..60]);
    bench.write("bomb.jsonl.zst", zstd::encode_all(&vec![b' '; 16 << 20][..], 3).unwrap());
    std::os::unix::fs::symlink("/etc/hostname", bench.path("in/link.jsonl")).unwrap();
    let elsewhere = json!({"input_uri": "file:///etc/hostname"});
    let prefix = json!({"input_uri": bench.uri("in/")});
    let to = json!({"reply_to": {"uri": bench.uri("out/")}});
    for (number, (name, more, code, words)) in [
        ("absent.jsonl", json!({}), "not_found", "there is no such object"),
        ("large.jsonl", elsewhere, "forbidden", "--allow-read"),
        ("large.jsonl", json!({"input_uri": "file:///etc/../etc/hostname"}), "invalid", "input_uri"),
        ("large.jsonl", prefix, "invalid", "must name an object"),
        ("large.jsonl", json!({"reply_to": {"uri": "file:///tmp/"}}), "forbidden", "--allow-write"),
        ("link.jsonl", json!({}), "unreadable", "link"),
        ("large.jsonl", json!({}), "invalid", "give reply_to.uri"),
        (
            "large.jsonl",
            json!({"id": "x".repeat(121), "reply_to": {"uri": bench.uri("out/")}}),
            "invalid",
            "at most 120",
        ),
        ("blank.jsonl", json!({}), "invalid", "has no items"),
        ("broken.jsonl.gz", to.clone(), "malformed", "not gzip or damaged"),
        ("bomb.jsonl.zst", to, "limit_exceeded", "--limit-unpacked-ratio"),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = bench.run(bench.job(&format!("job-{number}"), name, more)).await;
        let error = reply.error.unwrap_or_else(|| panic!("{name} is not refused"));
        assert_eq!((reply.status, error.code.as_str()), (Status::Rejected, code), "{}", error.message);
        assert!(error.message.contains(words), "{} does not say {words}", error.message);
    }
    bench.write("long.jsonl", format!("\"a\"\n\"{}\"\n\"{}\"\n\"b\"", "x".repeat(65), "y".repeat(20_000)));
    let reply = bench.run(bench.job("long", "long.jsonl", json!({}))).await;
    let codes: Vec<_> = reply.results.iter().map(|r| r.error.as_ref().map_or("", |error| &error.code)).collect();
    assert_eq!(codes, ["", "limit_exceeded", "limit_exceeded", ""]);
}

/// A large input in a bucket, split and computed by two workers.
async fn split_in(store: &Store, name: &str, bytes: Vec<u8>) {
    const ITEMS: usize = 330;
    let queue = QueueFile::new().await;
    store.buckets.create(&store.uri(&format!("in/{name}")), bytes.into(), "input").await.unwrap();
    let (read, write) = (store.uri("in/").to_string(), store.uri("out/").to_string());
    let start = || {
        let flags = ["--engine", "echo", "--allow-read", &read, "--allow-write", &write, "--shard-items", "3"];
        let mut command = worker_command(&queue.path, &flags);
        WorkerProcess::spawn(command.envs(store.variables().iter().map(|(name, value)| (name, value))))
    };
    let _workers = [start(), start()];
    let id = name.replace('.', "-");
    let job = json!({"version": 1, "id": id, "input_uri": format!("{read}{name}"), "reply_to": {"uri": write}});
    let attributes = Attributes::from([(attribute::JOB_ID.to_owned(), id.clone())]);
    queue.publish([Message { body: job.to_string().into(), attributes }]).await;
    let reply = queue.collect(1, |_| {}).await.into_values().next().unwrap();
    let uri = store.uri(&format!("out/{id}/_manifest.json"));
    assert_eq!(reply.output_uri, Some(uri.to_string()), "{reply:?}");
    let (_, manifest) = store.buckets.read_all(&uri, 1 << 20).await.unwrap().unwrap();
    let mut results = Vec::new();
    for part in Manifest::decode(&manifest).unwrap().parts {
        let part = store.uri(&format!("out/{id}/{}", part.name));
        let (_, body) = store.buckets.read_all(&part, 1 << 20).await.unwrap().unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        results.extend(text.lines().map(|line| serde_json::from_str::<ItemResult>(line).unwrap()));
    }
    check(&results, ITEMS, &id);
    assert!(store.buckets.list(&store.uri(&format!("out/{id}/_input/")), None).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_inputs_are_split_in_buckets_as_on_disks() {
    let Some(endpoints) = Endpoints::start() else { return };
    for store in [endpoints.s3().await, endpoints.gs().await] {
        split_in(&store, "plain.jsonl", text(330).into_bytes()).await;
        split_in(&store, "packed.jsonl.gz", gzip(&text(330))).await;
    }
}
