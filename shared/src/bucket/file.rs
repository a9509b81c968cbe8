//! Objects that are files, with what a bucket promises: put only if absent, whole or not at all, durable on return.
//!
//! In: `file://` addresses. Out: what was asked for. A file appears under its name when all of it is on the disk, and its
//! digest, in a file beside it (`.NAME.inferq-digest`), is there first. Who puts or deletes an object holds a lock on
//! that digest's file, so that digest and object are of one put. The functions block; [`blocking`] runs them elsewhere.

use std::fs::{File, Metadata};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::Action;
use super::{BucketError, Created, ObjectInfo, PAGE_MAX, Uri, refused};

mod beneath;

use beneath::{Folder, Step};

/// The longest digest that is read.
const DIGEST_MAX: u64 = 4096;
/// What is copied at a time.
const CHUNK: usize = 1 << 20;
/// How our own files beside objects begin or end: lists leave them out.
const TEMPORARY: &str = ".inferq-";
const SIDECAR: &str = ".inferq-digest";

/// Runs a blocking function on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    uri: &Uri,
    work: impl FnOnce(&Uri) -> Result<T, BucketError> + Send + 'static,
) -> Result<T, BucketError> {
    let uri = uri.clone();
    tokio::task::spawn_blocking(move || work(&uri)).await.expect("file operations don't panic")
}

pub(super) fn head(uri: &Uri) -> Result<Option<ObjectInfo>, BucketError> {
    Ok(open(uri)?.map(|(_, _, info)| info))
}

pub(super) fn read(uri: &Uri, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, BucketError> {
    let (_, file, info) = open(uri)?.ok_or_else(|| BucketError::NotFound { uri: uri.clone() })?;
    if etag.is_some_and(|etag| etag != info.etag) {
        return Err(BucketError::Changed { uri: uri.clone() });
    }
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    if range.start >= info.size {
        return Err(refused(uri, "the range is not in the object"));
    }
    read_of(uri, &file, &info, range.start..range.end.min(info.size))
}

pub(super) fn read_all(uri: &Uri, limit: u64) -> Result<Option<(ObjectInfo, Bytes)>, BucketError> {
    let Some((_, file, info)) = open(uri)? else { return Ok(None) };
    if info.size > limit {
        return Err(BucketError::TooLarge { uri: uri.clone(), size: info.size, limit });
    }
    let bytes = read_of(uri, &file, &info, 0..info.size)?;
    Ok(Some((info, bytes)))
}

/// Reads a range that is there, unless the file changes meanwhile.
fn read_of(uri: &Uri, file: &File, info: &ObjectInfo, range: Range<u64>) -> Result<Bytes, BucketError> {
    let fault = |e: std::io::Error| Step::from(e).fault(uri, Action::Read);
    let size = usize::try_from(range.end - range.start).map_err(|_| refused(uri, "the range is too large"))?;
    let mut bytes = BytesMut::zeroed(size);
    let read = file.read_exact_at(&mut bytes, range.start);
    if etag(&file.metadata().map_err(fault)?) != info.etag {
        return Err(BucketError::Changed { uri: uri.clone() });
    }
    read.map_err(fault)?;
    Ok(bytes.freeze())
}

pub(super) fn digest(uri: &Uri) -> Result<Option<Option<String>>, BucketError> {
    let Some((folder, _, _)) = open(uri)? else { return Ok(None) };
    kept(&folder, uri).map(Some).map_err(|e| e.fault(uri, Action::Look))
}

pub(super) fn create(uri: &Uri, body: &[u8], digest: &str) -> Result<Created, BucketError> {
    create_in(uri, body, digest).map_err(|e| e.fault(uri, Action::Create))
}

fn create_in(uri: &Uri, body: &[u8], digest: &str) -> Result<Created, Step> {
    let folder = Folder::holding(uri.key(), true)?;
    if folder.stat(uri.name()).is_ok() {
        return Ok(Created::Exists { digest: kept(&folder, uri)? });
    }
    let mut lock = locked(&folder, uri)?;
    if folder.stat(uri.name()).is_ok() {
        return Ok(Created::Exists { digest: kept(&folder, uri)? });
    }
    lock.set_len(0)?;
    lock.write_all(digest.as_bytes())?;
    lock.sync_all()?;
    let mut temporary = Temporary::new(folder)?;
    temporary.file.write_all(body)?;
    temporary.file.sync_all()?;
    match temporary.folder.link(&temporary.name, uri.name()) {
        Ok(()) => temporary.folder.sync()?,
        // By somebody who keeps no digests.
        Err(Errno::EXIST) => {
            lock.set_len(0)?;
            return Ok(Created::Exists { digest: None });
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(Created::New)
}

pub(super) fn delete(uri: &Uri) -> Result<(), BucketError> {
    let deleted = Folder::holding(uri.key(), false).and_then(|folder| {
        // Only if it is there: a lock would make the digest's file.
        let _lock = folder.stat(&sidecar(uri)).is_ok().then(|| locked(&folder, uri)).transpose()?;
        folder.remove(uri.name())?;
        folder.remove(&sidecar(uri))?;
        Ok(folder.sync()?)
    });
    match deleted {
        Err(step) if step.is_absent() => Ok(()),
        outcome => outcome.map_err(|e| e.fault(uri, Action::Delete)),
    }
}

pub(super) async fn upload(
    uri: &Uri,
    file: &Path,
    progress: impl Fn(u64) + Send + Sync,
) -> Result<ObjectInfo, BucketError> {
    let unread = |e: std::io::Error| refused(uri, format!("{} can't be read: {e}", file.display()));
    let unwritten = |e: std::io::Error| Step::from(e).fault(uri, Action::Replace);
    let mut source = tokio::fs::File::open(file).await.map_err(unread)?;
    let temporary = blocking(uri, |uri| {
        let made = Folder::holding(uri.key(), true).and_then(Temporary::new);
        made.map_err(|e| e.fault(uri, Action::Replace))
    });
    let temporary = temporary.await?;
    let mut target = tokio::fs::File::from_std(temporary.file.try_clone().map_err(unwritten)?);
    let mut chunk = BytesMut::zeroed(CHUNK);
    loop {
        let size = source.read(&mut chunk).await.map_err(unread)?;
        if size == 0 {
            break;
        }
        target.write_all(&chunk[..size]).await.map_err(unwritten)?;
        progress(size as u64);
    }
    target.sync_all().await.map_err(unwritten)?;
    blocking(uri, move |uri| temporary.replace(uri).map_err(|e| e.fault(uri, Action::Replace))).await
}

pub(super) fn list(prefix: &Uri, after: Option<&Uri>) -> Result<Vec<ObjectInfo>, BucketError> {
    let mut page = Page { after: after.map_or("", Uri::key), found: Vec::new() };
    let listed = Folder::holding(prefix.key(), false).and_then(|folder| page.walk(&folder, prefix));
    match listed {
        Err(step) if !step.is_absent() => Err(step.fault(prefix, Action::List)),
        _ => Ok(page.found),
    }
}

/// The objects of a list so far.
struct Page<'a> {
    after: &'a str,
    found: Vec<ObjectInfo>,
}

impl Page<'_> {
    fn walk(&mut self, folder: &Folder, prefix: &Uri) -> Result<(), Step> {
        for (name, is_folder) in folder.names()? {
            let Ok(uri) = prefix.join(&name) else { continue };
            if self.found.len() == PAGE_MAX {
                break;
            }
            if is_folder && (uri.key() >= self.after || self.after.starts_with(uri.key())) {
                self.enter(folder, name.trim_end_matches('/'), &uri)?;
            } else if !is_folder && uri.key() > self.after && !is_ours(&name) {
                self.add(folder, uri);
            }
        }
        Ok(())
    }

    /// A folder that went away meanwhile has nothing in it.
    fn enter(&mut self, folder: &Folder, name: &str, uri: &Uri) -> Result<(), Step> {
        match folder.enter(name).and_then(|inner| self.walk(&inner, uri)) {
            Err(step) if step.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    fn add(&mut self, folder: &Folder, uri: Uri) {
        if let Ok(stat) = folder.stat(uri.name()) {
            let (size, etag) = (
                stat.st_size.cast_unsigned(),
                version(stat.st_ino, stat.st_mtime, stat.st_mtime_nsec.cast_signed(), stat.st_size.cast_unsigned()),
            );
            self.found.push(ObjectInfo { uri, size, etag });
        }
    }
}

/// A file under a name of its own until it is whole; gone again if it never is.
struct Temporary {
    folder: Folder,
    name: String,
    file: File,
}

impl Temporary {
    fn new(folder: Folder) -> Result<Self, Step> {
        let name = format!("{TEMPORARY}{:016x}", rand::rng().random::<u64>());
        let file = folder.make(&name)?;
        Ok(Self { folder, name, file })
    }

    /// Gives it the object's name, in place of what was there, whose digest goes.
    fn replace(self, uri: &Uri) -> Result<ObjectInfo, Step> {
        let has_digest = self.folder.stat(&sidecar(uri)).is_ok();
        let _lock = has_digest.then(|| locked(&self.folder, uri)).transpose()?;
        self.folder.rename(&self.name, uri.name())?;
        self.folder.remove(&sidecar(uri))?;
        self.folder.sync()?;
        let metadata = self.file.metadata()?;
        Ok(ObjectInfo { uri: uri.clone(), size: metadata.len(), etag: etag(&metadata) })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed, it isn't there; else nobody will miss it, and lists leave it out.
        let _ = self.folder.remove(&self.name);
    }
}

type Opened = (Folder, File, ObjectInfo);

fn open(uri: &Uri) -> Result<Option<Opened>, BucketError> {
    let opened = open_in(uri);
    match opened {
        Err(step) if step.is_absent() => Ok(None),
        outcome => outcome.map_err(|e| e.fault(uri, Action::Read)),
    }
}

fn open_in(uri: &Uri) -> Result<Option<Opened>, Step> {
    let folder = Folder::holding(uri.key(), false)?;
    let Some(file) = folder.open(uri.name())? else { return Ok(None) };
    let metadata = file.metadata()?;
    let info = ObjectInfo { uri: uri.clone(), size: metadata.len(), etag: etag(&metadata) };
    Ok(Some((folder, file, info)))
}

/// The digest beside an object; an empty one is none.
fn kept(folder: &Folder, uri: &Uri) -> Result<Option<String>, Step> {
    let Some(file) = folder.open(&sidecar(uri))? else { return Ok(None) };
    let size = file.metadata()?.len().min(DIGEST_MAX);
    let mut digest = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut digest, 0)?;
    Ok(String::from_utf8(digest).ok().filter(|digest| !digest.is_empty()))
}

/// The digest's file, locked until it is dropped.
fn locked(folder: &Folder, uri: &Uri) -> Result<File, Step> {
    loop {
        let file = folder.open_or_make(&sidecar(uri))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        // Deleted while we waited: that lock guards nothing any more.
        if file.metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

fn sidecar(uri: &Uri) -> String {
    format!(".{}{SIDECAR}", uri.name())
}

fn is_ours(name: &str) -> bool {
    name.starts_with(TEMPORARY) || (name.starts_with('.') && name.ends_with(SIDECAR))
}

fn etag(metadata: &Metadata) -> String {
    version(metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len())
}

/// Another file, another size or another time of writing is another version.
fn version(inode: u64, seconds: i64, nanoseconds: i64, size: u64) -> String {
    format!("{inode:x}-{seconds:x}.{nanoseconds:x}-{size:x}")
}
