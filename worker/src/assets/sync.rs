//! `assets sync`: copies a model to a root so that no reader ever sees half of it.
//!
//! In: a source and a root. Out: `ROOT/sha256-…`, whole, synced and renamed into place, and `current` pointing to it.
//! Blocks are read several at once and written in order, so what is on the disk of a file is always its beginning: a copy
//! killed at any byte goes on from there. Digests are taken while writing. Memory is the blocks in flight, whatever the
//! model's size. It never writes into a revision that is published.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream::{self, StreamExt};
use inferq_shared::digest::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command::{Failure, SyncArgs, say};
use super::disk::{self, DiskError, on};
use super::look::described;
use super::manifest::{Fingerprint, MANIFEST, Manifest};
use super::progress::{self, human};
use super::source::{Listing, Place, Source, SourceFile};
use super::volume::{self, STAGING};
use super::{AssetsError, ModelDirectory, upload};
use crate::offload::Offload;

/// Bytes read at once.
const BLOCK: u64 = 8 << 20;
/// Blocks read ahead of the one being written.
const BLOCKS: usize = 8;
/// Bytes that are hashed and written together.
const PIECE: usize = 256 << 10;
/// What a copy needs beside the model's own bytes: manifest, directories, notes.
const MARGIN: u64 = 1 << 20;

/// `assets sync`.
pub(super) async fn sync(args: SyncArgs) -> Result<(), Failure> {
    let source = Source::parse(&args.source)?;
    match Place::parse(&args.destination)? {
        Place::Folder(root) => {
            let trust = if args.trust_sizes { Trust::Sizes } else { Trust::Digests };
            into_folder(&source, &root, args.name, trust).await
        }
        Place::Bucket(root) => upload::into_bucket(&source, &root, args.name).await,
    }
}

/// What shows that a revision which is there already is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Its files have the right sizes.
    Sizes,
    /// Every byte has been read.
    Digests,
}

async fn into_folder(source: &Source, root: &Path, name: Option<String>, trust: Trust) -> Result<(), Failure> {
    on(root, fs::create_dir_all(root))?;
    let staging = Staging::lock(root, source).await?;
    let mut listing = source.list().await?;
    listing.name = name.unwrap_or(listing.name);
    if let Some(manifest) = &listing.manifest
        && publish_again(root, &Manifest { name: listing.name.clone(), ..manifest.clone() }, trust)?
    {
        say(&format!("{} is there already", manifest.folder()))?;
        return staging.clear();
    }
    let copied = match copy(&listing, &staging).await {
        // What an earlier copy had left is not what this source has: once more, from the beginning.
        Err(Copied::Stale(name)) => {
            eprintln!("{name}: what was copied before differs from the source; copying it again");
            copy(&listing, &staging).await
        }
        copied => copied,
    };
    let files = copied.map_err(|error| match error {
        Copied::Failed(error) => error,
        Copied::Stale(name) => {
            AssetsError::Mismatch { path: listing.place.path_of(&name), what: "two readings differ".to_owned() }.into()
        }
    })?;
    let canary = listing.manifest.and_then(|manifest| manifest.canary);
    let manifest = Manifest { name: listing.name, files, canary };
    staging.publish(root, &manifest, trust)?;
    say(&format!("{}: {}", root.join(manifest.folder()).display(), described(&manifest)))?;
    staging.clear()
}

/// Makes a revision current that is there already, with this name and canary. False: it is not there, or not whole.
fn publish_again(root: &Path, manifest: &Manifest, trust: Trust) -> Result<bool, Failure> {
    // Read before anybody is kept waiting: nobody writes into a published revision.
    if !is_whole(&root.join(manifest.folder()), manifest, trust) {
        return Ok(false);
    }
    let _alone = volume::alone(root)?;
    use_again(root, manifest, Trust::Sizes)
}

fn use_again(root: &Path, manifest: &Manifest, trust: Trust) -> Result<bool, Failure> {
    let path = root.join(manifest.folder());
    if !is_whole(&path, manifest, trust) {
        return Ok(false);
    }
    let (place, bytes) = (path.join(MANIFEST), manifest.encode());
    if on(&place, fs::read(&place))? != bytes {
        disk::write(&place, &bytes)?;
    }
    volume::use_revision(root, &manifest.folder())?;
    Ok(true)
}

/// Whether all files of a manifest are in a directory. Says which is not what it should be.
fn is_whole(directory: &Path, manifest: &Manifest, trust: Trust) -> bool {
    let Ok(model) = ModelDirectory::open(directory) else { return false };
    let is_same = model.manifest().is_some_and(|there| there.files == manifest.files);
    if !is_same || model.check_sizes().is_err() {
        return false;
    }
    if trust == Trust::Sizes {
        return true;
    }
    let bar = progress::Bytes::of(manifest.size());
    manifest.files.keys().all(|name| {
        bar.on(name);
        let verified = model.verify(name, |bytes| bar.add(bytes));
        if let Err(error) = &verified {
            eprintln!("{error}; it is copied again");
        }
        verified.is_ok()
    })
}

/// A copy in the making, which only its owner touches.
struct Staging {
    directory: PathBuf,
    /// Locked until dropped, or until the process dies.
    _lock: File,
}

/// What the files of an interrupted copy are of.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Note {
    /// The boot that they were written in: bytes that were not synced may be lost in a power cut.
    boot: String,
    /// What the source's files were.
    versions: BTreeMap<String, String>,
}

impl Staging {
    /// Waits until nobody else copies from this source to this root.
    async fn lock(root: &Path, source: &Source) -> Result<Self, Failure> {
        let all = root.join(STAGING);
        on(&all, fs::create_dir_all(&all))?;
        let key = hex(&Sha256::digest(source.identity())[..8]);
        let path = all.join(format!("{key}.lock"));
        let lock = on(&path, File::options().create(true).append(true).open(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("another sync copies the same model here: waiting for it");
                let (waiting, path) = (on(&path, lock.try_clone())?, path.clone());
                Offload::Threads.run(move || on(&path, waiting.lock())).await?;
            }
            Err(TryLockError::Error(source)) => return Err(DiskError { path, source }.into()),
        }
        Ok(Self { directory: all.join(key), _lock: lock })
    }

    fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.files().join(name)
    }

    /// Keeps what an interrupted copy has left of the same files, and removes the rest. How many bytes are kept.
    fn prepare(&self, listing: &Listing) -> Result<u64, Failure> {
        let files = self.files();
        on(&files, fs::create_dir_all(&files))?;
        let place = self.directory.join("note.json");
        let before: Note =
            fs::read(&place).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let now = Note { boot: boot(), versions: versions(listing) };
        for name in disk::files_below(&files)? {
            // Where a digest is known, bytes that a power cut has taken are noticed.
            let is_safe = before.boot == now.boot || listing.expected(&name).is_some();
            let is_same = now.versions.contains_key(&name) && now.versions.get(&name) == before.versions.get(&name);
            if !(is_safe && is_same) {
                disk::remove(&self.path_of(&name))?;
            }
        }
        if before != now {
            disk::write(&place, &serde_json::to_vec(&now).expect("a note has only what JSON has"))?;
        }
        listing.files.iter().map(|file| self.kept(file)).sum()
    }

    /// Bytes of a file that are there already.
    fn kept(&self, file: &SourceFile) -> Result<u64, Failure> {
        let path = self.path_of(&file.name);
        match path.metadata() {
            Ok(found) if found.len() > file.size => disk::remove(&path).map(|()| 0).map_err(Failure::from),
            Ok(found) => Ok(found.len()),
            Err(_) => Ok(0),
        }
    }

    /// Gives the copy its name, at once, and makes it current; unless another sync has put the same there meanwhile.
    fn publish(&self, root: &Path, manifest: &Manifest, trust: Trust) -> Result<(), Failure> {
        let (from, to) = (self.files(), root.join(manifest.folder()));
        disk::write(&from.join(MANIFEST), &manifest.encode())?;
        disk::sync_below(&from)?;
        let _alone = volume::alone(root)?;
        if use_again(root, manifest, trust)? {
            return Ok(());
        }
        if to.symlink_metadata().is_ok() {
            // It is not whole, else it would have been used. Who has its files open goes on reading them.
            on(&to, fs::rename(&to, self.directory.join(format!("broken-{:016x}", rand::random::<u64>()))))?;
        }
        on(&to, fs::rename(&from, &to))?;
        disk::sync(root)?;
        Ok(volume::use_revision(root, &manifest.folder())?)
    }

    fn clear(self) -> Result<(), Failure> {
        Ok(disk::remove(&self.directory)?)
    }
}

fn versions(listing: &Listing) -> BTreeMap<String, String> {
    listing.files.iter().map(|file| (file.name.clone(), file.version.clone())).collect()
}

/// What is another after each start of the machine; elsewhere than on Linux nothing is, and nothing is kept unvouched.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| format!("{:016x}", rand::random::<u64>()))
}

/// Why a copy is not there.
enum Copied {
    /// A file is not what it should be, and its beginning was of an earlier copy; it is removed.
    Stale(String),
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Copied {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Copies every file to the staging directory; their fingerprints.
async fn copy(listing: &Listing, staging: &Staging) -> Result<BTreeMap<String, Fingerprint>, Copied> {
    let kept = staging.prepare(listing)?;
    let (needed, free) = (listing.size() - kept + MARGIN, disk::free(&staging.directory)?);
    if needed > free {
        let root = disk::parent(disk::parent(&staging.directory)).to_owned();
        return Err(Failure::NoRoom { root, needed: human(needed), free: human(free) }.into());
    }
    if kept > 0 {
        eprintln!("going on after {} of {}", human(kept), human(listing.size()));
    }
    let bar = progress::Bytes::of(listing.size());
    let mut fingerprints = BTreeMap::new();
    let mut blocks = std::pin::pin!(
        stream::iter(blocks(listing, staging)?)
            .map(|(file, range)| async move { (file, listing.place.read(file, range.clone()).await, range) })
            .buffered(BLOCKS)
    );
    let mut writing: Option<Writing> = None;
    let mut next = blocks.next().await;
    while let Some((file, block, range)) = next {
        let (block, is_last) = (block?, range.end == file.size);
        let before = match writing.take() {
            Some(writing) => writing,
            None => {
                bar.on(&file.name);
                let path = staging.path_of(&file.name);
                let begun = Offload::Threads.run(move || Writing::begin(path, range.start)).await?;
                bar.add(range.start);
                begun
            }
        };
        bar.add(block.len() as u64);
        // The next blocks go on arriving while this one is written.
        let write = Offload::Threads.run(move || before.write(&block, is_last));
        let (written, following) = join(write, blocks.next()).await;
        next = following;
        match written? {
            Written::Open(open) => writing = Some(open),
            Written::Whole { fingerprint, resumed } => {
                check(listing, staging, file, &fingerprint, resumed)?;
                fingerprints.insert(file.name.clone(), fingerprint);
            }
        }
    }
    Ok(fingerprints)
}

/// The blocks of all files in order, without what is kept; one empty block for a file that lacks nothing.
fn blocks<'a>(
    listing: &'a Listing,
    staging: &Staging,
) -> Result<impl Iterator<Item = (&'a SourceFile, Range<u64>)> + use<'a>, Failure> {
    let starts = listing.files.iter().map(|file| staging.kept(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(listing.files.iter().zip(starts).flat_map(|(file, start)| {
        let count = (file.size - start).div_ceil(BLOCK).max(1);
        (0..count).map(move |number| {
            let from = start + number * BLOCK;
            (file, from..(from + BLOCK).min(file.size))
        })
    }))
}

fn check(
    listing: &Listing,
    staging: &Staging,
    file: &SourceFile,
    found: &Fingerprint,
    resumed: bool,
) -> Result<(), Copied> {
    let Some(expected) = listing.expected(&file.name).filter(|expected| *expected != found) else { return Ok(()) };
    disk::remove(&staging.path_of(&file.name))?;
    if resumed {
        return Err(Copied::Stale(file.name.clone()));
    }
    let what = format!("sha256 {}, its manifest says {}", found.sha256, expected.sha256);
    Err(AssetsError::Mismatch { path: listing.place.path_of(&file.name), what }.into())
}

/// A file that is being written, and the digest of what it holds.
struct Writing {
    path: PathBuf,
    file: File,
    sha256: Sha256,
    size: u64,
    resumed: bool,
}

enum Written {
    Open(Writing),
    Whole { fingerprint: Fingerprint, resumed: bool },
}

impl Writing {
    /// Goes on after the first `kept` bytes.
    fn begin(path: PathBuf, kept: u64) -> Result<Self, DiskError> {
        let directory = disk::parent(&path);
        on(directory, fs::create_dir_all(directory))?;
        let file = on(&path, File::options().create(true).append(true).open(&path))?;
        on(&path, file.set_len(kept))?;
        let mut sha256 = Sha256::new();
        disk::read_on(&path, kept, |bytes| sha256.update(bytes))?;
        Ok(Self { path, file, sha256, size: kept, resumed: kept > 0 })
    }

    fn write(mut self, block: &Bytes, is_last: bool) -> Result<Written, DiskError> {
        // By pieces that stay in the processor's cache from the one to the other.
        for piece in block.chunks(PIECE) {
            self.sha256.update(piece);
            on(&self.path, self.file.write_all(piece))?;
        }
        self.size += block.len() as u64;
        if !is_last {
            return Ok(Written::Open(self));
        }
        on(&self.path, self.file.sync_all())?;
        let fingerprint = Fingerprint { size: self.size, sha256: hex(&self.sha256.finalize()) };
        Ok(Written::Whole { fingerprint, resumed: self.resumed })
    }
}
