//! Files of any size into a bucket: one put up to 16 MiB, parts above.
//!
//! In: a file on this machine. Out: the object, whole or not at all: parts become an object only when all are there. A few parts are
//! in the air at once, so memory is bounded. A file that is replaced or grows meanwhile is an error, not a mixture.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::{MultipartUpload, ObjectStoreExt, PutResult};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::super::error::Action;
use super::super::{BucketError, ObjectInfo, Uri, refused};
use super::{BACKOFF, Remote, fault, path, patiently};

/// What goes by one request.
const SINGLE_MAX: u64 = 16 << 20;
/// The smallest part of a larger file.
const PART_MIN: u64 = 8 << 20;
/// Both clouds count to 10,000.
const PARTS_MAX: u64 = 9_000;
/// Parts in the air at once.
const IN_FLIGHT: usize = 4;
/// How long an object may take to appear after its parts were put together without an answer.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

/// The file that is sent, and how much of it there should be.
struct Source<'a> {
    uri: &'a Uri,
    name: &'a Path,
    file: File,
    left: u64,
}

impl Remote {
    /// Uploads a file, replacing what is there.
    pub(in crate::bucket) async fn upload(
        &self,
        uri: &Uri,
        file: &Path,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<ObjectInfo, BucketError> {
        let mut source = Source::open(uri, file).await?;
        let size = source.left;
        let etag = if size <= SINGLE_MAX {
            let body = source.next(size).await?;
            source.end().await?;
            let put = patiently(|| self.put(uri, body.clone())).await?;
            progress(size);
            put.e_tag
        } else {
            self.in_parts(uri, source, &progress).await?
        };
        Ok(ObjectInfo { uri: uri.clone(), size, etag: etag.unwrap_or_default() })
    }

    async fn put(&self, uri: &Uri, body: Bytes) -> Result<PutResult, BucketError> {
        self.store.put(&path(uri)?, body.into()).await.map_err(|e| fault::of(uri, Action::Replace, &e))
    }

    async fn in_parts(
        &self,
        uri: &Uri,
        source: Source<'_>,
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<Option<String>, BucketError> {
        let place = path(uri)?;
        let fault = |e| fault::of(uri, Action::Replace, &e);
        let size = source.left;
        // Who may put but not look can't be told afterwards what is new.
        let before = self.look_once(uri).await.ok().map(|found| found.map(|(info, _)| info.etag));
        let mut upload = patiently(|| async { self.store.put_multipart(&place).await.map_err(fault) }).await?;
        let sent = send(&mut *upload, source, progress).await;
        let done = match sent {
            Ok(()) => match upload.complete().await {
                Ok(done) => Ok(done.e_tag),
                Err(e) => match before {
                    Some(before) => self.appeared(uri, size, before).await.map(Some).ok_or_else(|| fault(e)),
                    None => Err(fault(e)),
                },
            },
            Err(e) => Err(e),
        };
        if done.is_err() {
            // As far as it goes: the bucket's own rules clear what is left of an upload.
            let _ = upload.abort().await;
        }
        done
    }

    /// The etag of an object whose parts were put together all the same. A store may need longer for that than an answer
    /// is waited for, and asked again it says that there is no such upload any more.
    async fn appeared(&self, uri: &Uri, size: u64, before: Option<String>) -> Option<String> {
        let start = Instant::now();
        for retry in 0.. {
            match self.look_once(uri).await.ok()? {
                Some((info, _)) if info.size == size && before.as_ref() != Some(&info.etag) => return Some(info.etag),
                _ if start.elapsed() >= APPEARS_WITHIN => break,
                _ => {}
            }
            let wait = BACKOFF.delay(retry, &mut rand::rng());
            tokio::time::sleep(wait).await;
        }
        None
    }
}

async fn send(
    upload: &mut dyn MultipartUpload,
    mut source: Source<'_>,
    progress: &(impl Fn(u64) + Send + Sync),
) -> Result<(), BucketError> {
    let uri = source.uri;
    let part_bytes = PART_MIN.max(source.left.div_ceil(PARTS_MAX));
    let mut in_flight = FuturesUnordered::new();
    while source.left > 0 {
        let part = source.next(part_bytes).await?;
        let (sent, size) = (upload.put_part(part.clone().into()), part.len() as u64);
        in_flight.push(async move { sent.await.map(|()| progress(size)) });
        if in_flight.len() == IN_FLIGHT {
            in_flight.try_next().await.map_err(|e| fault::of(uri, Action::Replace, &e))?;
        }
    }
    in_flight.try_collect::<()>().await.map_err(|e| fault::of(uri, Action::Replace, &e))?;
    source.end().await
}

impl<'a> Source<'a> {
    async fn open(uri: &'a Uri, name: &'a Path) -> Result<Self, BucketError> {
        let opened = async {
            let file = File::open(name).await?;
            let left = file.metadata().await?.len();
            Ok(Self { uri, name, file, left })
        };
        opened.await.map_err(|e: std::io::Error| unread(uri, name, &e))
    }

    /// The next `size` bytes, or what is left if that is less.
    async fn next(&mut self, size: u64) -> Result<Bytes, BucketError> {
        let size = size.min(self.left);
        let mut part = BytesMut::zeroed(usize::try_from(size).expect("a part fits into memory"));
        self.file.read_exact(&mut part).await.map_err(|e| unread(self.uri, self.name, &e))?;
        self.left -= size;
        Ok(part.freeze())
    }

    /// Nothing must have come behind what was sent.
    async fn end(&mut self) -> Result<(), BucketError> {
        match self.file.read(&mut [0]).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(refused(self.uri, format!("{} grew while it was uploaded", self.name.display()))),
            Err(e) => Err(unread(self.uri, self.name, &e)),
        }
    }
}

fn unread(uri: &Uri, name: &Path, error: &std::io::Error) -> BucketError {
    refused(uri, format!("{} can't be read: {error}", name.display()))
}
