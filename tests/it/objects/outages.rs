//! Results that are objects, where the bucket itself fails: a real S3 server, and one that speaks as Google's does, with
//! faults between.

use std::collections::BTreeMap;

use hyper::Method;
use inferq_shared::broker::memory::FaultPlan;
use inferq_shared::job::ObjectFormat;
use inferq_shared::reply::Status;
use inferq_tests::endpoints::{Endpoints, Fault, Store};
use inferq_tests::line::{Line, job, job_into};

use super::assert_points;

async fn line(store: &Store) -> Line {
    Line::new(&store.buckets, &["--allow-write", &store.root.to_string()], FaultPlan::default()).await
}

/// Runs `test` with each kind of server.
async fn with_servers(test: impl AsyncFn(&Store)) {
    let Some(endpoints) = Endpoints::start() else { return };
    test(&endpoints.s3().await).await;
    test(&endpoints.gs().await).await;
}

#[tokio::test]
async fn results_become_objects_in_either_cloud_and_change_no_byte_when_they_come_again() {
    with_servers(async |store| {
        let line = line(store).await;
        let asked = || job_into(&store.root, ObjectFormat::Jsonl, "job", &["one", "two"]);
        line.publish([asked(), asked()]).await;
        let mut replies = line.work(line.replies(2)).await.expect("nothing is planned");
        let object = store.buckets.read_all(&store.uri("job.jsonl"), 1 << 20).await.unwrap();
        line.publish([asked()]).await;
        replies.extend(line.work(line.replies(1)).await.expect("nothing is planned"));
        replies.iter().for_each(|reply| assert_points(reply, &store.uri("job.jsonl"), 2));
        assert!(line.batches() <= 2, "the third was answered from the bucket");
        assert!(object.is_some());
        assert_eq!(store.buckets.read_all(&store.uri("job.jsonl"), 1 << 20).await.unwrap(), object);
    })
    .await;
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_known_as_ones_own() {
    with_servers(async |store| {
        let line = line(store).await;
        store.proxy().fail_next(Method::PUT, &[Fault::LoseAnswer]);
        line.publish([job_into(&store.root, ObjectFormat::Jsonl, "job", &["one"])]).await;
        let reply = line.work(line.replies(1)).await.expect("nothing is planned").remove(0);
        assert_points(&reply, &store.uri("job.jsonl"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_bucket_that_is_down_pauses_pulling_and_nothing_is_lost_or_spent() {
    a_bucket_that_is_down(Method::PUT).await;
}

#[tokio::test]
async fn a_bucket_that_can_not_be_looked_into_pauses_pulling_too() {
    a_bucket_that_is_down(Method::HEAD).await;
}

pub(crate) async fn a_bucket_that_is_down(method: Method) {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let line = line(&store).await;
    store.proxy().fail_always(method, Fault::Answer(503));
    line.publish([job_into(&store.root, ObjectFormat::Jsonl, "first", &["one"])]).await;
    // This worker stops in the outage, and gives back what it holds.
    line.work(line.paused()).await.expect("nothing is planned");
    assert_eq!(line.jobs().await.waiting, Some(1));
    let during = async {
        line.paused().await;
        line.publish([job("second", &["two"])]).await;
        assert_eq!(line.jobs().await.waiting, Some(1), "nothing is pulled");
        store.proxy().heal();
        let mut replies = BTreeMap::new();
        line.replies_to(2, &mut replies).await;
        replies
    };
    let replies = line.work(during).await.expect("nothing is planned");
    assert_points(&replies["first"], &store.uri("first.jsonl"), 1);
    assert_eq!(replies["second"].status, Status::Succeeded);
    assert!(replies.values().all(|reply| reply.attempt == 1), "no attempt is spent");
}

#[tokio::test]
async fn a_bucket_that_refuses_makes_a_dead_letter_that_names_object_and_permission() {
    with_servers(async |store| {
        let line = line(store).await;
        let (get, put) = match store.root.scheme().as_str() {
            "s3" => ("s3:GetObject", "s3:PutObject"),
            _ => ("storage.objects.get", "storage.objects.create"),
        };
        for (method, permission, batches) in [(Method::HEAD, get, 0), (Method::PUT, put, 1)] {
            store.proxy().fail_always(method, Fault::Answer(403));
            line.publish([job_into(&store.root, ObjectFormat::Jsonl, "job", &["one"])]).await;
            let reason = line.work(line.dead(1)).await.expect("nothing is planned").remove(0);
            assert!(reason.starts_with("reply_undeliverable: "), "{reason}");
            assert!(reason.contains(&store.uri("job.jsonl").to_string()) && reason.contains(permission), "{reason}");
            assert_eq!(line.batches(), batches, "nothing is computed where looking fails");
        }
    })
    .await;
}
