//! Large inputs where the store itself fails: a real S3 server with faults between, while shards read, while a parent is
//! planned, and for longer than a lease lasts. And parts in columns, from a user's file to a user's program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;
use inferq_shared::broker::memory::FaultPlan;
use inferq_shared::bucket::{Buckets, Gate, Moment, Uri};
use inferq_shared::columns;
use inferq_shared::job::{Job, ObjectFormat};
use inferq_shared::manifest::Manifest;
use inferq_shared::reply::ItemResult;
use inferq_tests::endpoints::{Endpoints, Fault, Store};
use inferq_tests::line::{Line, job, job_of};
use inferq_tests::process::WorkerProcess;

use super::{check, gzip, text};
use crate::outputs::duckdb;
use crate::producer::{Place, inferq, jsonl};

const ITEMS: usize = 60;

async fn line(store: &Store, buckets: &Buckets, flags: &[&str]) -> Line {
    let (read, write) = (store.uri("in/").to_string(), store.uri("out/").to_string());
    let ours = ["--allow-read", &read, "--allow-write", &write, "--shard-items", "20"];
    Line::new(buckets, &[&ours, flags].concat(), FaultPlan::default()).await
}

/// A large job, whose input is there.
async fn large(store: &Store) -> Job {
    let input = store.uri("in/a.jsonl.gz");
    store.buckets.create(&input, gzip(&text(ITEMS)).into(), "input").await.unwrap();
    job_of(&input, &store.uri("out/"), ObjectFormat::Jsonl, "job")
}

/// Every line has its one result, nothing is dead, and nothing but the results is left.
async fn assert_complete(store: &Store, line: &Line) {
    for reply in line.all_replies().await {
        assert_eq!(reply.output_uri, Some(store.uri("out/job/_manifest.json").to_string()), "{reply:?}");
    }
    let read = async |name: &str| {
        let uri = store.uri(&format!("out/job/{name}"));
        store.buckets.read_all(&uri, 1 << 24).await.unwrap().unwrap_or_else(|| panic!("{uri} is there")).1
    };
    let manifest = Manifest::decode(&read("_manifest.json").await).unwrap();
    let mut results = Vec::new();
    for part in manifest.parts {
        let text = String::from_utf8(read(&part.name).await.to_vec()).unwrap();
        results.extend(text.lines().map(|line| serde_json::from_str::<ItemResult>(line).unwrap()));
    }
    check(&results, ITEMS, "job");
    assert_eq!(line.dead_letters().await, 0);
    let left = store.buckets.list(&store.uri("out/job/_input/"), None).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Calls `pass` before each call to the bucket.
fn before_each(pass: impl Fn(&'static str, &Uri) + Send + Sync + 'static) -> Gate {
    Gate::new(move |call, uri, moment| {
        if moment == Moment::Before {
            pass(call, uri);
        }
        Box::pin(std::future::ready(()))
    })
}

#[tokio::test]
async fn a_store_that_breaks_every_read_of_a_shard_costs_no_line() {
    const FAULTS: [Fault; 6] =
        [Fault::Answer(503), Fault::Reset, Fault::Answer(429), Fault::Truncate, Fault::Drip, Fault::LoseAnswer];
    let Some(endpoints) = Endpoints::start() else { return };
    let store = Arc::new(endpoints.s3().await);
    let job = large(&store).await;
    let (broken, read) = (Arc::clone(&store), Arc::new(AtomicUsize::new(0)));
    let reads = Arc::clone(&read);
    let gate = before_each(move |call, uri| {
        if call == "read" && uri.to_string().contains("/_input/") {
            broken.proxy().fail_next(Method::GET, &FAULTS);
            reads.fetch_add(1, Ordering::Relaxed);
        }
    });
    // A drip would take minutes.
    let buckets = store.with_option("AWS_TIMEOUT", "1s").behind(gate);
    let line = line(&store, &buckets, &[]).await;
    line.publish([job]).await;
    line.work(line.settled()).await.expect("nothing is planned");
    assert_complete(&store, &line).await;
    assert!(read.load(Ordering::Relaxed) >= 3, "every shard has read");
}

/// The store fails from the parent's planning on; its worker stops; the next one still meets the outage, then its end.
async fn a_store_that_is_down_while_a_parent_is_planned(method: Method) {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let large = large(&store).await;
    let line = line(&store, &store.buckets, &[]).await;
    store.proxy().fail_always(method, Fault::Answer(503));
    line.publish([large]).await;
    line.work(line.paused()).await.expect("nothing is planned");
    assert_eq!(line.jobs().await.waiting, Some(1), "it is given back");
    let during = async {
        line.paused().await;
        line.publish([job("second", &["two"])]).await;
        assert_eq!(line.jobs().await.waiting, Some(1), "nothing is pulled");
        store.proxy().heal();
        let replies = line.replies(2).await;
        line.settled().await;
        replies
    };
    let replies = line.work(during).await.expect("nothing is planned");
    assert!(replies.iter().all(|reply| reply.attempt == 1), "no attempt is spent: {replies:?}");
    let ids: BTreeSet<_> = replies.iter().map(|reply| reply.id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["job", "second"]));
    assert_complete(&store, &line).await;
}

#[tokio::test]
async fn a_store_that_can_not_be_written_while_a_parent_is_planned_pauses_pulling() {
    a_store_that_is_down_while_a_parent_is_planned(Method::PUT).await;
}

#[tokio::test]
async fn a_store_that_can_not_be_read_while_a_parent_is_planned_pauses_pulling() {
    a_store_that_is_down_while_a_parent_is_planned(Method::GET).await;
}

#[tokio::test]
async fn an_outage_that_outlasts_the_lease_loses_and_doubles_nothing() {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = Arc::new(endpoints.s3().await);
    let large = large(&store).await;
    let (healed, plans) = (Arc::clone(&store), AtomicUsize::new(0));
    // The first one's lease is over by then, and another has come for the same job.
    let gate = before_each(move |call, uri| {
        if call == "create" && uri.name() == "_plan.json" && plans.fetch_add(1, Ordering::Relaxed) == 1 {
            healed.proxy().heal();
        }
    });
    let flags = ["--lease-s", "1", "--max-lease-s", "1"];
    let line = line(&store, &store.buckets.behind(gate), &flags).await;
    store.proxy().fail_always(Method::PUT, Fault::Answer(503));
    line.publish([large]).await;
    line.work(line.settled()).await.expect("nothing is planned");
    assert_complete(&store, &line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_file_becomes_parts_in_columns_and_comes_back_as_one() {
    let (place, store) = (Place::new(), Store::file());
    let input = place.file("texts.jsonl", &jsonl(230));
    let to = store.root.to_string();
    let submitted = ["submit", "--queue", &place.url(), "--input", &input, "--to", &to, "--reply-format", "parquet"];
    let done = inferq(&submitted);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let flags = ["--allow-read", &to, "--allow-write", &to, "--shard-items", "30"];
    let _workers = [(); 2].map(|()| WorkerProcess::start(&place.path("queue.db"), &flags));
    let (ledger, output) = (format!("{input}.ledger.db"), place.name("out.parquet"));
    let done = inferq(&["collect", "--ledger", &ledger, "--output", &output, "--timeout-s", "60"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let results = columns::read(std::fs::read(&output).unwrap().into()).unwrap();
    let ids: Vec<_> = results.iter().map(|result| result.id.clone()).collect();
    assert_eq!(ids, (0..230).map(|number| format!("doc-{number}")).collect::<Vec<_>>());
    assert!(results.iter().all(|result| result.embedding.is_some()), "{results:?}");
    let parts = format!("{}**/*.parquet", store.root.path().unwrap().display());
    if let Some(python) = duckdb("the parts of a large job, read by DuckDB") {
        assert_eq!(rows_in(&python, &parts), "230 230 0 229 8");
    }
}

/// How many rows all parts have, how many indices, from which to which, in how many files.
fn rows_in(python: &Path, parts: &str) -> String {
    let query = "import duckdb, sys
print(*duckdb.execute('select count(*), count(distinct \"index\"), min(\"index\"), max(\"index\"), count(distinct filename) from read_parquet(?, filename = true) where embedding is not null', [sys.argv[1]]).fetchone())";
    let read = Command::new(python).args(["-c", query, parts]).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    String::from_utf8(read.stdout).unwrap().trim().to_owned()
}
