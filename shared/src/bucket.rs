//! Objects in buckets and folders: `gs://`, `s3://`, `file://`, one contract over all.
//!
//! In: checked addresses ([`Uri`]). Out: ranges of objects, objects put only if absent, pages of lists, or a
//! [`BucketError`]. Clients are made when a bucket is first used, one a bucket, with endpoints and credentials from the
//! environment (`AWS_…`, `GOOGLE_…`). Short retries happen inside, for about ten seconds; what then still fails is
//! `Unavailable`, and the caller waits. It decides nothing about who may read or write what: that is [`AllowList`]'s, and
//! its callers ask it first. Only `bucket.rs` and `bucket/` name the client library.
//!
//! `file://` follows no symbolic link anywhere on a path: a link is the one way out of an allowed folder that comparing
//! addresses can't see.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

mod allow;
mod error;
mod file;
mod gate;
mod remote;
#[cfg(test)]
mod tests;
mod uri;

pub use allow::{AllowList, NotAllowed};
pub use error::BucketError;
pub use gate::{Gate, Moment};
use remote::Remote;
pub use uri::{Scheme, Uri, UriError};

/// The most objects of one page of a list.
pub const PAGE_MAX: usize = 1000;

/// An object as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its address.
    pub uri: Uri,
    /// Its bytes.
    pub size: u64,
    /// Names this version of it; another etag means other bytes.
    pub etag: String,
}

/// What came of putting an object that must be new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is there now, by this call.
    New,
    /// One was there already. A digest equal to the caller's may also be this call's own put, repeated after its answer
    /// was lost.
    Exists {
        /// The digest kept with what is there.
        digest: Option<String>,
    },
}

/// Every bucket this process speaks to.
#[derive(Debug, Clone)]
pub struct Buckets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Vec<(String, String)>,
    clients: Mutex<HashMap<(Scheme, String), Remote>>,
    gate: Option<Gate>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new()
    }
}

impl Buckets {
    /// With endpoints and credentials from the environment: `AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`,
    /// `GOOGLE_APPLICATION_CREDENTIALS` and their like. Nothing is contacted yet.
    pub fn new() -> Self {
        let is_ours = |key: &String| key.starts_with("AWS_") || key.starts_with("GOOGLE_");
        let variables =
            std::env::vars_os().filter_map(|(key, value)| Some((key.to_str()?.into(), value.to_str()?.into())));
        Self::with_options(variables.filter(|(key, _): &(String, String)| is_ours(key)))
    }

    /// With these options only, named like the environment's variables.
    pub fn with_options(options: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(Arc::new(Inner { options: options.into_iter().collect(), clients: Mutex::default(), gate: None }))
    }

    /// The same places, every call to which goes through `gate`.
    #[must_use]
    pub fn behind(&self, gate: Gate) -> Self {
        let options = self.0.options.clone();
        Self(Arc::new(Inner { options, clients: Mutex::default(), gate: Some(gate) }))
    }

    /// Looks at an object. `None`: there is no such object.
    ///
    /// # Errors
    /// When that can't be told.
    pub async fn head(&self, uri: &Uri) -> Result<Option<ObjectInfo>, BucketError> {
        let call = async {
            match self.object(uri)? {
                Some(remote) => Ok(remote.look(uri).await?.map(|(info, _)| info)),
                None => file::blocking(uri, file::head).await,
            }
        };
        self.through("head", uri, call).await
    }

    /// One range, in one request, of the object as it was at `etag`. Shorter than asked where the object ends before.
    ///
    /// # Errors
    /// `Changed` if there is another version by now; when it is absent or can't be read.
    pub async fn read(&self, uri: &Uri, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, BucketError> {
        let etag = etag.map(str::to_owned);
        let call = async {
            match self.object(uri)? {
                Some(remote) => remote.read(uri, range, etag).await,
                None => file::blocking(uri, move |uri| file::read(uri, range, etag.as_deref())).await,
            }
        };
        self.through("read", uri, call).await
    }

    /// The whole of a small object. `None`: there is no such object.
    ///
    /// # Errors
    /// `TooLarge` above `limit` bytes; when it can't be read.
    pub async fn read_all(&self, uri: &Uri, limit: u64) -> Result<Option<(ObjectInfo, Bytes)>, BucketError> {
        let call = async {
            match self.object(uri)? {
                Some(remote) => remote.read_all(uri, limit).await,
                None => file::blocking(uri, move |uri| file::read_all(uri, limit)).await,
            }
        };
        self.through("read_all", uri, call).await
    }

    /// Puts an object by a single request, only if there is none, with `digest` kept beside it (files: in
    /// `.NAME.inferq-digest`). Durable on return.
    ///
    /// # Errors
    /// When it isn't there afterwards, as far as can be told.
    pub async fn create(&self, uri: &Uri, body: Bytes, digest: &str) -> Result<Created, BucketError> {
        let digest = digest.to_owned();
        let call = async {
            match self.object(uri)? {
                Some(remote) => remote.create(uri, body, &digest).await,
                None => file::blocking(uri, move |uri| file::create(uri, &body, &digest)).await,
            }
        };
        self.through("create", uri, call).await
    }

    /// The digest that [`create`](Self::create) kept with an object. `None`: no such object; `Some(None)`: one without.
    ///
    /// # Errors
    /// When that can't be told.
    pub async fn digest(&self, uri: &Uri) -> Result<Option<Option<String>>, BucketError> {
        let call = async {
            match self.object(uri)? {
                Some(remote) => Ok(remote.look(uri).await?.map(|(_, digest)| digest)),
                None => file::blocking(uri, file::digest).await,
            }
        };
        self.through("digest", uri, call).await
    }

    /// The objects beneath `prefix` in the order of their keys, at most [`PAGE_MAX`]: those after `after`, if given. What
    /// has no checked address, a symbolic link say, is left out. A short page is the last.
    ///
    /// # Errors
    /// When it can't be listed. A folder that doesn't exist is an empty one.
    pub async fn list(&self, prefix: &Uri, after: Option<&Uri>) -> Result<Vec<ObjectInfo>, BucketError> {
        if !prefix.is_prefix() {
            return Err(refused(prefix, "names an object, not a prefix: end it in /"));
        }
        let after = after.cloned();
        let call = async {
            match self.remote(prefix)? {
                Some(remote) => remote.list(prefix, after.as_ref()).await,
                None => file::blocking(prefix, move |prefix| file::list(prefix, after.as_ref())).await,
            }
        };
        self.through("list", prefix, call).await
    }

    /// Uploads a file of any size, replacing what is there, whole or not at all, in bounded memory. `progress` is told how
    /// many bytes have gone since it was last told.
    ///
    /// # Errors
    /// When it isn't there afterwards, or `file` changes meanwhile.
    pub async fn upload(
        &self,
        uri: &Uri,
        file: &Path,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<ObjectInfo, BucketError> {
        let call = async {
            match self.object(uri)? {
                Some(remote) => remote.upload(uri, file, progress).await,
                None => file::upload(uri, file, progress).await,
            }
        };
        self.through("upload", uri, call).await
    }

    /// Deletes an object. What is absent is no error.
    ///
    /// # Errors
    /// When it may still be there.
    pub async fn delete(&self, uri: &Uri) -> Result<(), BucketError> {
        let call = async {
            match self.object(uri)? {
                Some(remote) => remote.delete(uri).await,
                None => file::blocking(uri, file::delete).await,
            }
        };
        self.through("delete", uri, call).await
    }

    async fn through<T>(&self, name: &'static str, uri: &Uri, call: impl Future<Output = T>) -> T {
        match &self.0.gate {
            Some(gate) => gate.through(name, uri, call).await,
            None => call.await,
        }
    }

    /// The client for an object's bucket; `None` for files.
    fn object(&self, uri: &Uri) -> Result<Option<Remote>, BucketError> {
        if uri.is_prefix() {
            return Err(refused(uri, "names a prefix, not an object: it ends in /"));
        }
        self.remote(uri)
    }

    fn remote(&self, uri: &Uri) -> Result<Option<Remote>, BucketError> {
        if uri.scheme() == Scheme::File {
            return Ok(None);
        }
        let place = (uri.scheme(), uri.bucket().to_owned());
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = clients.get(&place) {
            return Ok(Some(remote.clone()));
        }
        let remote = Remote::new(uri, &self.0.options)?;
        clients.insert(place, remote.clone());
        Ok(Some(remote))
    }
}

fn refused(uri: &Uri, reason: impl Into<String>) -> BucketError {
    BucketError::Refused { uri: uri.clone(), reason: reason.into() }
}
