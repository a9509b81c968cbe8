//! One bucket of a cloud, or of what speaks like one, through `object_store`.
//!
//! In: addresses in this bucket. Out: what was asked for, or a [`BucketError`] by what the caller can do. Two layers of
//! retries share the ten seconds: the library's, which resumes a body where it broke off, and ours around it for what the
//! library gives up at once (a put whose connection broke: repeating it is safe, as it is conditional or writes the same
//! bytes).

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::ready;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, Error, GetOptions, GetResult, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};

use super::error::Action;
use super::{BucketError, Created, ObjectInfo, PAGE_MAX, Scheme, Uri, refused};
use crate::backoff::Backoff;

mod fault;
mod upload;

/// The name of the digest in an object's metadata.
const DIGEST: &str = "inferq-digest";
/// After so long nothing is begun again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts of ours.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(2) };
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a store may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request may take in all: what ends a slow drip.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The client of one bucket.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
}

impl Remote {
    /// Makes the client for the bucket of `uri`. Nothing is contacted yet.
    pub(super) fn new(uri: &Uri, options: &[(String, String)]) -> Result<Self, BucketError> {
        let store = match uri.scheme() {
            Scheme::Gs => gs(uri.bucket(), options),
            Scheme::S3 => s3(uri.bucket(), options),
            Scheme::File => unreachable!("files need no client"),
        };
        // What may be in such an error is a file's name and a parser's complaint.
        let store = store.map_err(|e| refused(uri, format!("no client can be made from the environment: {e}")))?;
        Ok(Self { store })
    }

    /// An object's size and etag, and the digest kept with it.
    pub(super) async fn look(&self, uri: &Uri) -> Result<Option<(ObjectInfo, Option<String>)>, BucketError> {
        patiently(|| self.look_once(uri)).await
    }

    async fn look_once(&self, uri: &Uri) -> Result<Option<(ObjectInfo, Option<String>)>, BucketError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(&path(uri)?, options).await {
            Ok(found) => Ok(Some((info(uri, &found.meta), digest_of(&found.attributes)))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(fault::of(uri, Action::Look, &e)),
        }
    }

    /// A range of the version that `etag` names.
    pub(super) async fn read(&self, uri: &Uri, range: Range<u64>, etag: Option<String>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let options = GetOptions { range: Some(range.into()), if_match: etag.clone(), ..GetOptions::default() };
        patiently(|| async {
            let fault = |e| fault::of(uri, Action::Read, &e);
            let found = self.store.get_opts(&path(uri)?, options.clone()).await.map_err(fault)?;
            // A store that knows no conditions answers with whatever is there.
            if etag.is_some() && found.meta.e_tag != etag {
                return Err(BucketError::Changed { uri: uri.clone() });
            }
            whole(uri, found).await
        })
        .await
    }

    /// A small object whole.
    pub(super) async fn read_all(&self, uri: &Uri, limit: u64) -> Result<Option<(ObjectInfo, Bytes)>, BucketError> {
        patiently(|| async {
            let found = match self.store.get(&path(uri)?).await {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(fault::of(uri, Action::Read, &e)),
            };
            let info = info(uri, &found.meta);
            if info.size > limit {
                return Err(BucketError::TooLarge { uri: uri.clone(), size: info.size, limit });
            }
            Ok(Some((info, whole(uri, found).await?)))
        })
        .await
    }

    /// Puts an object if there is none.
    pub(super) async fn create(&self, uri: &Uri, body: Bytes, digest: &str) -> Result<Created, BucketError> {
        let attributes = Attributes::from_iter([(Attribute::Metadata(DIGEST.into()), digest.to_owned())]);
        let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
        patiently(|| async {
            match self.store.put_opts(&path(uri)?, body.clone().into(), options.clone()).await {
                Ok(_) => Ok(Created::New),
                Err(Error::AlreadyExists { .. }) => self.already(uri).await,
                Err(e) => Err(fault::of(uri, Action::Create, &e)),
            }
        })
        .await
    }

    /// What is there already. S3 also answers so while two puts of one object are under way.
    async fn already(&self, uri: &Uri) -> Result<Created, BucketError> {
        match self.look_once(uri).await? {
            Some((_, digest)) => Ok(Created::Exists { digest }),
            None => {
                let reason = "another put of it is under way".to_owned();
                Err(BucketError::Unavailable { uri: uri.clone(), reason })
            }
        }
    }

    /// A page of the objects beneath a prefix.
    pub(super) async fn list(&self, prefix: &Uri, after: Option<&Uri>) -> Result<Vec<ObjectInfo>, BucketError> {
        let folder = path(prefix)?;
        let after = after.map(path).transpose()?;
        patiently(|| async {
            let found = match &after {
                Some(after) => self.store.list_with_offset(Some(&folder), after),
                None => self.store.list(Some(&folder)),
            };
            let listed = found.try_filter_map(|meta| ready(Ok(listed(prefix, &meta))));
            let page: Result<Vec<ObjectInfo>, Error> = take(listed).await;
            page.map_err(|e| fault::of(prefix, Action::List, &e))
        })
        .await
    }

    /// Deletes an object; one that is absent is as good as deleted.
    pub(super) async fn delete(&self, uri: &Uri) -> Result<(), BucketError> {
        patiently(|| async {
            match self.store.delete(&path(uri)?).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(fault::of(uri, Action::Delete, &e)),
            }
        })
        .await
    }
}

/// Tries until it works, or fails for good, or patience is at its end.
async fn patiently<T, F: Future<Output = Result<T, BucketError>>>(attempt: impl Fn() -> F) -> Result<T, BucketError> {
    let start = Instant::now();
    for retry in 0.. {
        match attempt().await {
            Err(e) if e.is_transient() && start.elapsed() < PATIENCE => {
                // The generator stays on its thread, so it must be gone before anything is waited for.
                let wait = BACKOFF.delay(retry, &mut rand::rng());
                tokio::time::sleep(wait).await;
            }
            outcome => return outcome,
        }
    }
    unreachable!("only an outcome ends the loop")
}

async fn take(found: impl futures_util::Stream<Item = Result<ObjectInfo, Error>>) -> Result<Vec<ObjectInfo>, Error> {
    use futures_util::StreamExt;
    found.take(PAGE_MAX).try_collect().await
}

/// A body, which must be as long as its head said.
async fn whole(uri: &Uri, found: GetResult) -> Result<Bytes, BucketError> {
    let expected = found.range.end - found.range.start;
    let bytes = found.bytes().await.map_err(|e| fault::of(uri, Action::Read, &e))?;
    if bytes.len() as u64 != expected {
        let reason = format!("the body has {} of {expected} bytes", bytes.len());
        return Err(BucketError::Unavailable { uri: uri.clone(), reason });
    }
    Ok(bytes)
}

fn path(uri: &Uri) -> Result<Path, BucketError> {
    // Not `Path::from`, which encodes: the key is sent as it is.
    Path::parse(uri.key()).map_err(|e| refused(uri, format!("the client refuses this key: {e}")))
}

fn info(uri: &Uri, meta: &ObjectMeta) -> ObjectInfo {
    ObjectInfo { uri: uri.clone(), size: meta.size, etag: meta.e_tag.clone().unwrap_or_default() }
}

/// An object of a list, unless its key has no checked address, or is the prefix's own marker.
fn listed(prefix: &Uri, meta: &ObjectMeta) -> Option<ObjectInfo> {
    let text = format!("{}://{}/{}", prefix.scheme().as_str(), prefix.bucket(), meta.location);
    let uri = Uri::parse(&text).ok().filter(|uri| uri.starts_with(prefix) && !uri.is_prefix())?;
    Some(info(&uri, meta))
}

fn digest_of(attributes: &Attributes) -> Option<String> {
    attributes.get(&Attribute::Metadata(DIGEST.into())).map(|value| value.to_string())
}

fn retries() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: BACKOFF.first, max_backoff: BACKOFF.cap, base: 2.0 };
    RetryConfig { backoff, max_retries: 10, retry_timeout: PATIENCE }
}

fn timeouts() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
}

fn s3(bucket: &str, options: &[(String, String)]) -> Result<Arc<dyn ObjectStore>, Error> {
    let start = AmazonS3Builder::new()
        .with_retry(retries())
        .with_client_options(timeouts())
        // Deleting one object by its own request is what every such store can do.
        .with_disable_bulk_delete(true);
    let builder = known(options, "AWS_").fold(start, |builder, (key, value)| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    Ok(Arc::new(builder.with_bucket_name(bucket).build()?))
}

fn gs(bucket: &str, options: &[(String, String)]) -> Result<Arc<dyn ObjectStore>, Error> {
    let start = GoogleCloudStorageBuilder::new().with_retry(retries());
    // As the library has it: Google's own endpoints are named by https, and only an operator can name another.
    let start = start.with_client_options(timeouts().with_allow_http(true));
    let builder = known(options, "GOOGLE_").fold(start, |builder, (key, value)| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    Ok(Arc::new(builder.with_bucket_name(bucket).build()?))
}

/// The options of one cloud, named as the library reads them.
fn known<'a>(options: &'a [(String, String)], prefix: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    let of_cloud = options.iter().filter(move |(key, _)| key.to_ascii_uppercase().starts_with(prefix));
    of_cloud.map(|(key, value)| (key.to_ascii_lowercase(), value.as_str()))
}
