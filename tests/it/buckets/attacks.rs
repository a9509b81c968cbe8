//! Addresses by which a job might get at what the operator did not allow: each is refused, and the table says how.

use std::os::unix::fs::symlink;

use bytes::Bytes;
use inferq_shared::bucket::{AllowList, BucketError, Buckets, Uri, UriError};
use tempfile::TempDir;

/// How an address is refused.
#[derive(Debug, PartialEq)]
enum Refusal {
    /// It is no address.
    Address(UriError),
    /// It lies beneath no allowed prefix.
    NotAllowed,
    /// There is a link on its path.
    Link,
    /// No file is there, or what is there is no file.
    Absent,
}

use Refusal::{Absent, Address, Link, NotAllowed};

const FLAG: &str = "--allow-read";

/// What is tried. ROOT is a folder with `allowed/`, which alone is allowed, and `secret/` beside it.
const ATTACKS: &[(&str, Refusal)] = &[
    // Dot segments.
    ("gs://models/public/../private/x", Address(UriError::Segment)),
    ("gs://models/public/./x", Address(UriError::Segment)),
    ("gs://models/..", Address(UriError::Segment)),
    ("s3://data/in/../../other/x", Address(UriError::Segment)),
    ("file://ROOT/allowed/../secret/x", Address(UriError::Segment)),
    ("file://ROOT/allowed/..", Address(UriError::Segment)),
    ("file:///../etc/passwd", Address(UriError::Segment)),
    // Doubled slashes.
    ("gs://models//public/x", Address(UriError::Segment)),
    ("file://ROOT/allowed//x", Address(UriError::Segment)),
    ("file:////etc/passwd", Address(UriError::Segment)),
    // Codes for slashes, dots and letters.
    ("gs://models/public/%2e%2e/private/x", Address(UriError::Encoded)),
    ("gs://models/public/..%2fprivate/x", Address(UriError::Encoded)),
    ("gs://models/public/%252e%252e%252fx", Address(UriError::Encoded)),
    ("file://ROOT/allowed/%2e%2e/secret/x", Address(UriError::Encoded)),
    ("s3://data/in/..\\..\\other\\x", Address(UriError::Encoded)),
    ("gs://models/public/x\0.jsonl", Address(UriError::Encoded)),
    ("gs://models/public/x\r\nHost: other", Address(UriError::Encoded)),
    ("gs://models/public/\u{202e}lnosj.x", Address(UriError::Encoded)),
    ("gs://models/pub\u{200b}lic/x", Address(UriError::Encoded)),
    // Prefixes that look alike.
    ("gs://models/public-not/x", NotAllowed),
    ("gs://models/publicx", NotAllowed),
    ("gs://models/public", NotAllowed),
    ("gs://models/Public/x", NotAllowed),
    ("gs://models-private/public/x", NotAllowed),
    ("s3://models/public/x", NotAllowed),
    ("gs://data/in/x", NotAllowed),
    ("s3://data/input/x", NotAllowed),
    ("file://ROOT/allowed-not/x", NotAllowed),
    ("file://ROOT/allowed", NotAllowed),
    ("file:///etc/passwd", NotAllowed),
    ("file:///proc/self/environ", NotAllowed),
    ("file:///", NotAllowed),
    ("gs://models", NotAllowed),
    // Letters of other alphabets: the Cyrillic а.
    ("gs://m\u{43e}dels/public/x", Address(UriError::Bucket)),
    ("gs://models/public\u{ff0f}x", NotAllowed),
    ("file://ROOT/\u{430}llowed/x", NotAllowed),
    // Users, passwords, ports and hosts.
    ("gs://user@models/public/x", Address(UriError::Authority)),
    ("gs://user:password@models/public/x", Address(UriError::Authority)),
    ("s3://data:443/in/x", Address(UriError::Authority)),
    ("file://localhost/etc/passwd", Address(UriError::Authority)),
    ("file://evil.example/share/x", Address(UriError::Authority)),
    // Queries and fragments.
    ("gs://models/public/x?generation=1", Address(UriError::Query)),
    ("s3://data/in/x?versionId=1&X-Amz-Signature=0", Address(UriError::Query)),
    ("gs://models/public/x#/../private", Address(UriError::Query)),
    ("gs://models?/public/x", Address(UriError::Bucket)),
    // Metadata servers.
    ("gs://169.254.169.254/computeMetadata/v1/", Address(UriError::Bucket)),
    ("s3://169.254.169.254/latest/meta-data/iam/", Address(UriError::Bucket)),
    ("gs://metadata.google.internal/computeMetadata/v1/", Address(UriError::Bucket)),
    ("s3://[fd00:ec2::254]/latest/meta-data/", Address(UriError::Authority)),
    ("s3://0251.0376.0251.0376/x", Address(UriError::Bucket)),
    // Other schemes.
    ("http://169.254.169.254/latest/meta-data/", Address(UriError::Scheme)),
    ("https://storage.googleapis.com/models/public/x", Address(UriError::Scheme)),
    ("ftp://host/x", Address(UriError::Scheme)),
    ("data:text/plain,x", Address(UriError::Scheme)),
    ("memory:///x", Address(UriError::Scheme)),
    ("az://container/x", Address(UriError::Scheme)),
    ("GS://models/public/x", Address(UriError::Scheme)),
    (" gs://models/public/x", Address(UriError::Scheme)),
    ("file:/etc/passwd", Address(UriError::Scheme)),
    ("/etc/passwd", Address(UriError::Scheme)),
    ("models/public/x", Address(UriError::Scheme)),
    ("", Address(UriError::Scheme)),
    // Nothing, or too much.
    ("gs:///public/x", Address(UriError::Bucket)),
    ("gs://M/x", Address(UriError::Bucket)),
    ("file://", Address(UriError::Length)),
    // Links and what is no file, beneath the allowed folder.
    ("file://ROOT/allowed/link-to-file", Link),
    ("file://ROOT/allowed/link-to-folder/x", Link),
    ("file://ROOT/allowed/link-to-link/x", Link),
    ("file://ROOT/allowed/relative-link", Link),
    ("file://ROOT/allowed/link-to-nothing", Link),
    ("file://ROOT/allowed/deep/link-up/secret/x", Link),
    ("file://ROOT/allowed/link-inside", Link),
    ("file://ROOT/allowed/pipe", Absent),
    ("file://ROOT/allowed/deep", Absent),
    ("file://ROOT/allowed/good/below-a-file", Absent),
];

/// The folder that ROOT stands for.
fn root() -> TempDir {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    for folder in ["allowed/deep", "allowed-not", "secret"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    for file in ["secret/x", "allowed/good", "allowed-not/x"] {
        std::fs::write(at(file), "a secret").unwrap();
    }
    let links = [
        ("link-to-file", at("secret/x")),
        ("link-to-folder", at("secret")),
        ("link-to-link", at("allowed/link-to-folder")),
        ("relative-link", "../secret/x".into()),
        ("link-to-nothing", at("nothing")),
        ("deep/link-up", "../..".into()),
        ("link-inside", at("allowed/good")),
    ];
    for (name, target) in links {
        symlink(target, at("allowed").join(name)).unwrap();
    }
    let pipe = std::process::Command::new("mkfifo").arg(at("allowed/pipe")).status().unwrap();
    assert!(pipe.success());
    root
}

fn allowed(root: &str) -> AllowList {
    let prefixes = ["gs://models/public/", "s3://data/in", &format!("file://{root}/allowed/")];
    prefixes.into_iter().map(|prefix| prefix.parse::<Uri>().unwrap()).collect()
}

/// What a worker does with an address before it reads or writes there.
async fn outcome(allowed: &AllowList, text: &str) -> Result<(), Refusal> {
    let uri = Uri::parse(text).map_err(Address)?;
    allowed.check(&uri, FLAG).map_err(|_| NotAllowed)?;
    let buckets = Buckets::with_options([]);
    let refusal = |error: BucketError| if error.to_string().contains("symbolic link") { Link } else { Absent };
    let there = buckets.head(&uri).await.map_err(refusal)?.is_some();
    let read = buckets.read_all(&uri, 100).await.map_err(refusal)?.is_some();
    assert_eq!(there, read, "{text}");
    if there { Ok(()) } else { Err(Absent) }
}

#[tokio::test]
async fn every_attack_is_refused_as_the_table_says() {
    let root = root();
    let path = root.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    let allowed = allowed(&path);
    assert!(ATTACKS.len() >= 30);
    for (attack, refusal) in ATTACKS {
        let text = attack.replace("ROOT", &path);
        assert_eq!(outcome(&allowed, &text).await.as_ref(), Err(refusal), "{attack}");
    }
    let good = format!("file://{path}/allowed/good");
    assert_eq!(outcome(&allowed, &good).await, Ok(()), "the table proves nothing if everything is refused");
}

#[tokio::test]
async fn nothing_is_written_through_a_link_or_over_it() {
    let root = root();
    let path = root.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    let buckets = Buckets::with_options([]);
    for (attack, _) in ATTACKS.iter().filter(|(_, refusal)| *refusal == Link) {
        let uri = Uri::parse(&attack.replace("ROOT", &path)).unwrap();
        let created = buckets.create(&uri, Bytes::from_static(b"evil"), "digest").await;
        let over = matches!(created, Ok(inferq_shared::bucket::Created::Exists { .. }));
        assert!(over || created.is_err(), "{attack}: {created:?}");
    }
    assert_eq!(std::fs::read_to_string(root.path().join("secret/x")).unwrap(), "a secret");
    assert_eq!(std::fs::read_dir(root.path().join("secret")).unwrap().count(), 1, "nothing beside it either");
    assert!(!root.path().join("nothing").exists());
}

#[test]
fn an_empty_list_allows_nothing_and_says_which_flag_would() {
    let uri = Uri::parse("gs://models/public/x.jsonl").unwrap();
    let refused = AllowList::default().check(&uri, FLAG).unwrap_err().to_string();
    assert_eq!(
        refused,
        "gs://models/public/x.jsonl is beneath no prefix that --allow-read allows: the operator can add one, such as \
         --allow-read gs://models/public/"
    );
}

#[test]
fn what_is_beneath_a_prefix_is_allowed_with_and_without_its_slash() {
    let allowed = allowed("/data");
    for good in ["gs://models/public/x", "gs://models/public/a/b", "s3://data/in", "s3://data/in/x", "s3://data/in/"] {
        assert_eq!(allowed.check(&Uri::parse(good).unwrap(), FLAG), Ok(()), "{good}");
    }
}

#[test]
fn a_key_of_1_024_bytes_is_the_longest() {
    let key = |bytes: usize| Uri::parse(&format!("gs://models/{}", "x".repeat(bytes))).map(|_| ());
    assert_eq!((key(1024), key(1025)), (Ok(()), Err(UriError::Length)));
    let base = Uri::parse(&format!("gs://models/{}/", "x".repeat(1000))).unwrap();
    assert_eq!(base.join(&"y".repeat(24)), Err(UriError::Length));
    assert_eq!(base.join("../y"), Err(UriError::Segment));
    assert_eq!(base.join("/y"), Err(UriError::Segment));
}
