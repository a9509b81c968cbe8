//! The store's contract over files, S3 and Google Cloud Storage; what it makes of faults between; and what it refuses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use inferq_shared::bucket::{BucketError, Created, ObjectInfo};
use inferq_tests::endpoints::{Endpoints, Fault, Store};

mod attacks;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn names(page: &[ObjectInfo]) -> Vec<&str> {
    page.iter().map(|info| info.uri.name()).collect()
}

async fn objects_are_created_once(store: &Store) {
    let (buckets, uri) = (&store.buckets, store.uri("a/s7f3-00012.jsonl"));
    assert_eq!(buckets.head(&uri).await.unwrap(), None);
    assert_eq!(buckets.digest(&uri).await.unwrap(), None);
    assert_eq!(buckets.read_all(&uri, 10).await.unwrap(), None);
    assert_eq!(buckets.read(&uri, 0..1, None).await, Err(BucketError::NotFound { uri: uri.clone() }));
    let digest = "sha256:1;status=succeeded;items=3;tokens=17";
    assert_eq!(buckets.create(&uri, bytes("one"), digest).await.unwrap(), Created::New);
    let before = buckets.head(&uri).await.unwrap().expect("it is there");
    let again = buckets.create(&uri, bytes("two"), "sha256:2").await.unwrap();
    assert_eq!(again, Created::Exists { digest: Some(digest.to_owned()) });
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(Some(digest.to_owned())));
    assert_eq!(buckets.head(&uri).await.unwrap(), Some(before.clone()), "the etag is as it was");
    assert_eq!(buckets.read_all(&uri, 3).await.unwrap(), Some((before, bytes("one"))));
}

async fn ranges_are_of_one_version(store: &Store) {
    let (buckets, uri) = (&store.buckets, store.uri("a name with spaces, ümlauts & +.txt"));
    buckets.create(&uri, bytes("0123456789"), "").await.unwrap();
    let etag = buckets.head(&uri).await.unwrap().expect("it is there").etag;
    assert_eq!(buckets.read(&uri, 2..5, Some(&etag)).await.unwrap(), "234");
    assert_eq!(buckets.read(&uri, 8..20, Some(&etag)).await.unwrap(), "89");
    assert_eq!(buckets.read(&uri, 3..3, Some(&etag)).await.unwrap(), "");
    assert!(matches!(buckets.read(&uri, 10..11, Some(&etag)).await, Err(BucketError::Refused { .. })));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "abcdefghij!").unwrap();
    buckets.upload(&uri, file.path(), |_| ()).await.unwrap();
    assert_eq!(buckets.read(&uri, 2..5, Some(&etag)).await, Err(BucketError::Changed { uri: uri.clone() }));
    assert_eq!(buckets.read(&uri, 2..5, None).await.unwrap(), "cde");
    let too_large = BucketError::TooLarge { uri: uri.clone(), size: 11, limit: 10 };
    assert_eq!(buckets.read_all(&uri, 10).await, Err(too_large));
}

async fn lists_come_in_pages(store: &Store) {
    let buckets = &store.buckets;
    let mut expected: Vec<String> = (0..30).map(|n| format!("{n:05}.jsonl")).collect();
    for name in &expected {
        let uri = store.uri(&format!("list/part-000/{name}"));
        buckets.create(&uri, bytes(name), "digest").await.unwrap();
    }
    buckets.create(&store.uri("list/part-0001"), bytes("beside"), "digest").await.unwrap();
    let prefix = store.uri("list/part-000/");
    let page = buckets.list(&prefix, None).await.unwrap();
    assert_eq!(names(&page), expected);
    assert_eq!(buckets.head(&page[7].uri).await.unwrap().as_ref(), Some(&page[7]), "the same etag and size");
    let page = buckets.list(&prefix, Some(&page[9].uri)).await.unwrap();
    assert_eq!(names(&page), expected.split_off(10));
    assert_eq!(buckets.list(&store.uri("absent/"), None).await.unwrap(), []);
    assert!(matches!(buckets.list(&store.uri("list"), None).await, Err(BucketError::Refused { .. })));
}

async fn large_files_go_in_parts(store: &Store) {
    let (buckets, uri) = (&store.buckets, store.uri("large.bin"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let body: Vec<u8> = (0..20_000_003_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(file.path(), &body).unwrap();
    let told = AtomicU64::new(0);
    let progress = |n| {
        told.fetch_add(n, Ordering::Relaxed);
    };
    let info = buckets.upload(&uri, file.path(), progress).await.unwrap();
    assert_eq!((info.size, told.into_inner()), (body.len() as u64, body.len() as u64));
    assert_eq!(buckets.head(&uri).await.unwrap().as_ref(), Some(&info));
    let (_, read) = buckets.read_all(&uri, info.size).await.unwrap().expect("it is there");
    assert!(read == body);
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(None));
}

#[tokio::test]
async fn an_upload_that_is_done_without_an_answer_is_done() {
    let Some(endpoints) = Endpoints::start() else { return };
    for store in [endpoints.s3().await, endpoints.gs().await] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'x'; 17 << 20]).unwrap();
        // The first POST begins the upload, the next puts its parts together.
        let told = AtomicU64::new(0);
        let lose_the_answer = |_| {
            if told.fetch_add(1, Ordering::Relaxed) == 0 {
                store.proxy().fail_next(Method::POST, &[Fault::LoseAnswer]);
            }
        };
        let info = store.buckets.upload(&store.uri("large.bin"), file.path(), lose_the_answer).await.unwrap();
        assert_eq!(store.buckets.head(&store.uri("large.bin")).await.unwrap(), Some(info));
    }
}

async fn what_is_deleted_is_gone(store: &Store) {
    let (buckets, uri) = (&store.buckets, store.uri("x"));
    buckets.create(&uri, bytes("one"), "1").await.unwrap();
    buckets.delete(&uri).await.unwrap();
    buckets.delete(&uri).await.unwrap();
    assert_eq!(buckets.head(&uri).await.unwrap(), None);
    assert_eq!(buckets.create(&uri, bytes("two"), "2").await.unwrap(), Created::New);
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(Some("2".to_owned())));
}

async fn contract(store: &Store) {
    objects_are_created_once(store).await;
    ranges_are_of_one_version(store).await;
    lists_come_in_pages(store).await;
    large_files_go_in_parts(store).await;
    what_is_deleted_is_gone(store).await;
}

#[tokio::test]
async fn files_keep_the_contract() {
    contract(&Store::file()).await;
}

#[tokio::test]
async fn s3_keeps_the_contract() {
    let Some(endpoints) = Endpoints::start() else { return };
    contract(&endpoints.s3().await).await;
}

#[tokio::test]
async fn google_cloud_storage_keeps_the_contract() {
    let Some(endpoints) = Endpoints::start() else { return };
    contract(&endpoints.gs().await).await;
}

#[tokio::test]
async fn what_breaks_for_a_moment_is_tried_again() {
    let Some(endpoints) = Endpoints::start() else { return };
    for store in [endpoints.s3().await, endpoints.gs().await] {
        let (buckets, proxy, uri) = (&store.buckets, store.proxy(), store.uri("x"));
        let body = bytes(&"0123456789".repeat(10_000));
        proxy.fail_next(Method::PUT, &[Fault::Answer(503), Fault::Answer(429), Fault::Answer(500)]);
        assert_eq!(buckets.create(&uri, body.clone(), "d").await.unwrap(), Created::New);
        let etag = buckets.head(&uri).await.unwrap().expect("it is there").etag;
        for fault in [Fault::Reset, Fault::Truncate, Fault::LoseAnswer, Fault::Answer(503)] {
            proxy.fail_next(Method::GET, &[fault]);
            let read = buckets.read(&uri, 0..100_000, Some(&etag)).await;
            assert!(read.as_ref().is_ok_and(|read| *read == body), "{fault:?}: {:?}", read.err());
            proxy.fail_next(Method::GET, &[fault, fault]);
            let (_, read) = buckets.read_all(&uri, 100_000).await.unwrap().expect("it is there");
            assert!(read == body, "{fault:?}");
            proxy.fail_next(Method::GET, &[fault]);
            assert_eq!(names(&buckets.list(&store.root, None).await.unwrap()), ["x"], "{fault:?}");
        }
        proxy.fail_next(Method::HEAD, &[Fault::LoseAnswer, Fault::Answer(502)]);
        assert_eq!(buckets.digest(&uri).await.unwrap(), Some(Some("d".to_owned())));
        proxy.fail_next(Method::DELETE, &[Fault::LoseAnswer, Fault::Answer(503)]);
        buckets.delete(&uri).await.unwrap();
        assert_eq!(buckets.head(&uri).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_there_once() {
    let Some(endpoints) = Endpoints::start() else { return };
    for store in [endpoints.s3().await, endpoints.gs().await] {
        let (buckets, uri) = (&store.buckets, store.uri("x"));
        store.proxy().fail_next(Method::PUT, &[Fault::LoseAnswer]);
        let created = buckets.create(&uri, bytes("one"), "ours").await.unwrap();
        assert_eq!(created, Created::Exists { digest: Some("ours".to_owned()) });
        let (_, read) = buckets.read_all(&uri, 10).await.unwrap().expect("it is there");
        assert_eq!(read, "one");
    }
}

#[tokio::test]
async fn a_slow_drip_is_broken_off() {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let uri = store.uri("x");
    store.buckets.create(&uri, bytes(&"x".repeat(10_000)), "d").await.unwrap();
    // A thousand seconds for the whole of it.
    let impatient = store.with_option("AWS_TIMEOUT", "1s");
    store.proxy().fail_next(Method::GET, &[Fault::Drip]);
    let started = Instant::now();
    assert_eq!(impatient.read(&uri, 0..10_000, None).await.unwrap().len(), 10_000);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_storm_of_503_is_an_outage_after_about_ten_seconds() {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let (buckets, uri) = (&store.buckets, store.uri("x"));
    store.proxy().fail_always(Method::PUT, Fault::Answer(503));
    let started = Instant::now();
    let error = buckets.create(&uri, bytes("one"), "d").await.unwrap_err();
    let took = started.elapsed();
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.to_string(), format!("{uri}: the store is not available: status 503"));
    assert!((8..20).contains(&took.as_secs()), "{took:?}");
    assert!(store.proxy().requests() > 4, "{} requests", store.proxy().requests());
    store.proxy().heal();
    assert_eq!(buckets.create(&uri, bytes("one"), "d").await.unwrap(), Created::New);
}

#[tokio::test]
async fn denied_and_absent_are_not_tried_again() {
    let Some(endpoints) = Endpoints::start() else { return };
    for (store, permissions) in [
        (endpoints.s3().await, ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject"]),
        (
            endpoints.gs().await,
            ["storage.objects.get", "storage.objects.create", "storage.objects.list", "storage.objects.delete"],
        ),
    ] {
        let (buckets, proxy, uri) = (&store.buckets, store.proxy(), store.uri("x"));
        for method in [Method::GET, Method::PUT, Method::GET, Method::DELETE] {
            proxy.fail_next(method, &[Fault::Answer(403)]);
        }
        let errors = [
            buckets.read(&uri, 0..1, None).await.unwrap_err(),
            buckets.create(&uri, bytes("x"), "d").await.unwrap_err(),
            buckets.list(&store.root, None).await.unwrap_err(),
            buckets.delete(&uri).await.unwrap_err(),
        ];
        assert_eq!(proxy.requests(), 4, "one request each");
        for (error, permission) in errors.iter().zip(permissions) {
            let text = error.to_string();
            let named = [permission, uri.bucket(), "some/folder/"].into_iter().all(|word| text.contains(word));
            assert!(matches!(error, BucketError::Forbidden { .. }) && named, "{text}");
        }
        let absent = buckets.read(&uri, 0..1, None).await.unwrap_err();
        assert_eq!(absent, BucketError::NotFound { uri: uri.clone() });
        assert!(absent.to_string().contains(&format!("or no bucket {}", uri.bucket())), "{absent}");
        assert_eq!(proxy.requests(), 5, "one request more");
    }
}
