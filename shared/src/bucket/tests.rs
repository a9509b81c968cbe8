//! What addresses and files promise; the same contract runs over real endpoints in the tests crate.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;

/// A folder of the test's own and its address, with a slash.
fn folder() -> (TempDir, Uri) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().canonicalize().expect("its path");
    let uri = Uri::from_path(&path.join("")).expect("an address");
    (folder, uri)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn an_object_is_created_once_and_keeps_its_digest() {
    let (_folder, root) = folder();
    let (buckets, uri) = (Buckets::with_options([]), root.join("a/b/c.jsonl").unwrap());
    assert_eq!(buckets.head(&uri).await.unwrap(), None);
    assert_eq!(buckets.digest(&uri).await.unwrap(), None);
    assert_eq!(buckets.create(&uri, bytes("one"), "sha256:1").await.unwrap(), Created::New);
    let before = buckets.head(&uri).await.unwrap().expect("it is there");
    let again = buckets.create(&uri, bytes("two"), "sha256:2").await.unwrap();
    assert_eq!(again, Created::Exists { digest: Some("sha256:1".to_owned()) });
    assert_eq!(buckets.head(&uri).await.unwrap(), Some(before.clone()));
    assert_eq!(buckets.read_all(&uri, 3).await.unwrap(), Some((before, bytes("one"))));
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(Some("sha256:1".to_owned())));
}

#[tokio::test]
async fn many_who_create_one_object_agree_on_its_digest() {
    let (_folder, root) = folder();
    let (buckets, uri) = (Buckets::with_options([]), root.join("x").unwrap());
    let puts = (0..16).map(|n| {
        let (buckets, uri) = (buckets.clone(), uri.clone());
        async move { buckets.create(&uri, bytes(&n.to_string()), &n.to_string()).await.unwrap() }
    });
    let outcomes = futures_util::future::join_all(puts).await;
    let (_, body) = buckets.read_all(&uri, 10).await.unwrap().expect("it is there");
    let winner = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Created::New).count(), 1);
    let others = outcomes.into_iter().filter(|outcome| *outcome != Created::New);
    assert!(others.into_iter().all(|outcome| outcome == Created::Exists { digest: Some(winner.clone()) }));
}

#[tokio::test]
async fn a_range_is_of_the_version_that_was_looked_at() {
    let (_folder, root) = folder();
    let (buckets, uri) = (Buckets::with_options([]), root.join("x").unwrap());
    buckets.create(&uri, bytes("0123456789"), "").await.unwrap();
    let etag = buckets.head(&uri).await.unwrap().unwrap().etag;
    assert_eq!(buckets.read(&uri, 2..5, Some(&etag)).await.unwrap(), "234");
    assert_eq!(buckets.read(&uri, 8..20, Some(&etag)).await.unwrap(), "89");
    std::fs::write(uri.path().unwrap(), "another").unwrap();
    assert_eq!(buckets.read(&uri, 2..5, Some(&etag)).await, Err(BucketError::Changed { uri: uri.clone() }));
    let too_large = BucketError::TooLarge { uri: uri.clone(), size: 7, limit: 6 };
    assert_eq!(buckets.read_all(&uri, 6).await, Err(too_large));
}

#[tokio::test]
async fn a_list_is_in_the_order_of_keys_and_leaves_out_what_is_ours() {
    let (_folder, root) = folder();
    let buckets = Buckets::with_options([]);
    let names = ["a-b", "a.b", "a/b", "a/c/d", "ab", "z"];
    for name in names {
        buckets.create(&root.join(name).unwrap(), bytes(name), "digest").await.unwrap();
    }
    std::fs::write(root.join(".inferq-0123").unwrap().path().unwrap(), "half").unwrap();
    let keys = |page: Vec<ObjectInfo>| -> Vec<String> {
        page.iter().map(|info| info.uri.key().strip_prefix(root.key()).unwrap().to_owned()).collect()
    };
    assert_eq!(keys(buckets.list(&root, None).await.unwrap()), names);
    for (index, name) in names.iter().enumerate() {
        let after = root.join(name).unwrap();
        assert_eq!(keys(buckets.list(&root, Some(&after)).await.unwrap()), names[index + 1..], "{name}");
    }
    assert_eq!(keys(buckets.list(&root.join("a/").unwrap(), None).await.unwrap()), ["a/b", "a/c/d"]);
    assert_eq!(buckets.list(&root.join("absent/").unwrap(), None).await.unwrap(), []);
    let info = buckets.list(&root, None).await.unwrap().remove(0);
    assert_eq!(buckets.head(&info.uri).await.unwrap(), Some(info));
}

#[tokio::test]
async fn an_upload_replaces_the_object_and_forgets_its_digest() {
    let (folder, root) = folder();
    let (buckets, uri) = (Buckets::with_options([]), root.join("in/to").unwrap());
    buckets.create(&uri, bytes("one"), "sha256:1").await.unwrap();
    let source = folder.path().join("source");
    std::fs::write(&source, vec![7; (3 << 20) + 5]).unwrap();
    let told = AtomicU64::new(0);
    let progress = |n| {
        told.fetch_add(n, Ordering::Relaxed);
    };
    let info = buckets.upload(&uri, &source, progress).await.unwrap();
    assert_eq!(info.size, (3 << 20) + 5);
    assert_eq!(told.into_inner(), info.size);
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(None));
    assert_eq!(buckets.head(&uri).await.unwrap(), Some(info));
    assert_eq!(buckets.list(&root.join("in/").unwrap(), None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_deleted_can_be_created_anew() {
    let (_folder, root) = folder();
    let (buckets, uri) = (Buckets::with_options([]), root.join("x").unwrap());
    buckets.create(&uri, bytes("one"), "sha256:1").await.unwrap();
    buckets.delete(&uri).await.unwrap();
    buckets.delete(&uri).await.unwrap();
    assert_eq!(buckets.digest(&uri).await.unwrap(), None);
    assert_eq!(buckets.create(&uri, bytes("two"), "sha256:2").await.unwrap(), Created::New);
    assert_eq!(buckets.digest(&uri).await.unwrap(), Some(Some("sha256:2".to_owned())));
}

#[tokio::test]
async fn a_link_anywhere_on_the_path_is_refused() {
    let (folder, root) = folder();
    let buckets = Buckets::with_options([]);
    buckets.create(&root.join("real/x").unwrap(), bytes("secret"), "").await.unwrap();
    symlink(folder.path().join("real"), folder.path().join("linked")).unwrap();
    symlink(folder.path().join("real/x"), folder.path().join("link")).unwrap();
    for name in ["linked/x", "link"] {
        let uri = root.join(name).unwrap();
        let outcomes = [
            buckets.head(&uri).await.map(|_| ()),
            buckets.read(&uri, 0..1, None).await.map(|_| ()),
            buckets.read_all(&uri, 10).await.map(|_| ()),
            buckets.digest(&uri).await.map(|_| ()),
        ];
        for outcome in outcomes {
            assert!(outcome.unwrap_err().to_string().contains("symbolic link"), "{name}");
        }
    }
    let through = buckets.create(&root.join("linked/new").unwrap(), bytes("x"), "").await;
    assert!(through.unwrap_err().to_string().contains("symbolic link"));
    let listed = buckets.list(&root, None).await.unwrap();
    assert_eq!(listed.iter().map(|info| info.uri.name()).collect::<Vec<_>>(), ["x"]);
}

#[tokio::test]
async fn what_is_no_regular_file_is_no_object() {
    let (folder, root) = folder();
    let buckets = Buckets::with_options([]);
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    for name in ["pipe", "folder"] {
        assert_eq!(buckets.head(&root.join(name).unwrap()).await.unwrap(), None, "{name}");
    }
    assert_eq!(buckets.list(&root, None).await.unwrap(), []);
}
