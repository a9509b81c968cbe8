//! Where a sync reads from: a model's directory or a root with `current`, on a disk or in a bucket.
//!
//! In: what the operator names. Out: a [`Listing`] of the model's files, then their bytes, a range at a time. Every range
//! is of the file as it was when it was listed: one that has changed since is an error, never mixed.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use inferq_shared::bucket::{Buckets, PAGE_MAX, Uri};

use super::command::Failure;
use super::disk::on;
use super::look::model_files;
use super::manifest::{Fingerprint, MANIFEST, Manifest, is_model_file};
use super::{AssetsError, CURRENT, ModelDirectory, locate};
use crate::offload::Offload;

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A directory.
    Folder(PathBuf),
    /// What begins with this address.
    Bucket(Buckets, Uri),
}

/// One file of a source.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    /// Its name relative to the model's directory.
    pub(super) name: String,
    /// Its bytes.
    pub(super) size: u64,
    /// What changes when the file does.
    pub(super) version: String,
}

/// What a source holds.
pub(super) struct Listing {
    /// Where exactly, with `current` followed.
    pub(super) place: Source,
    /// What the model is called there.
    pub(super) name: String,
    /// Its files, in the order of their names.
    pub(super) files: Vec<SourceFile>,
    /// What its files should be, if it says so.
    pub(super) manifest: Option<Manifest>,
}

impl Listing {
    /// What a file should be, if the source says so.
    pub(super) fn expected(&self, name: &str) -> Option<&Fingerprint> {
        self.manifest.as_ref().and_then(|manifest| manifest.files.get(name))
    }

    /// Bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Source {
    /// What an operator names.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match Place::parse(text)? {
            Place::Folder(path) => Ok(Self::Folder(path)),
            Place::Bucket(prefix) => Ok(Self::Bucket(Buckets::new(), prefix)),
        }
    }

    /// What tells it from other sources.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Folder(path) => path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string(),
            Self::Bucket(_, prefix) => prefix.to_string(),
        }
    }

    /// Looks what is there.
    pub(super) async fn list(&self) -> Result<Listing, Failure> {
        match self {
            Self::Folder(path) => {
                let path = path.clone();
                Offload::Threads.run(move || list_folder(&path)).await
            }
            Self::Bucket(buckets, prefix) => list_bucket(buckets, prefix).await,
        }
    }

    /// Reads a range of a file, as it was when it was listed.
    pub(super) async fn read(&self, file: &SourceFile, range: Range<u64>) -> Result<Bytes, Failure> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self {
            Self::Folder(directory) => {
                let (path, version) = (directory.join(&file.name), file.version.clone());
                Offload::Threads.run(move || read_range(&path, &version, range)).await
            }
            Self::Bucket(buckets, prefix) => {
                let (uri, length) = (prefix.join(&file.name)?, range.end - range.start);
                let block = buckets.read(&uri, range, Some(&file.version)).await?;
                match block.len() as u64 == length {
                    true => Ok(block),
                    false => Err(Failure::Changed(uri.to_string())),
                }
            }
        }
    }
}

/// What an operator names.
pub(super) enum Place {
    /// A path, or `file://` and an absolute one.
    Folder(PathBuf),
    /// An address in a bucket, with a / at its end.
    Bucket(Uri),
}

impl Place {
    /// From the command line.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Folder(PathBuf::from(path))),
            Some(("file", _)) => Err(Failure::Usage(format!("{text}: a file address has an absolute path: file:///…"))),
            Some(_) => {
                let prefix = Uri::parse(&format!("{}/", text.trim_end_matches('/')));
                prefix.map(Self::Bucket).map_err(|error| Failure::Usage(format!("{text}: {error}")))
            }
            None => Ok(Self::Folder(PathBuf::from(text))),
        }
    }
}

fn list_folder(path: &Path) -> Result<Listing, Failure> {
    let directory = locate(path)?;
    let model = ModelDirectory::open(&directory)?;
    let names = match model.manifest() {
        Some(manifest) => manifest.files.keys().cloned().collect(),
        None => model_files(&directory)?,
    };
    let file = |name: String| {
        let path = directory.join(&name);
        let found = on(&path, path.metadata())?;
        Ok(SourceFile { size: found.len(), version: version(&found), name })
    };
    let files = names.into_iter().map(file).collect::<Result<Vec<_>, Failure>>()?;
    let listing =
        Listing { name: model.name(), files, manifest: model.manifest().cloned(), place: Source::Folder(directory) };
    listing.check_sizes()?;
    Ok(listing)
}

/// The most bytes of a manifest or a `current` in a bucket.
const SMALL_BYTES: u64 = 16 << 20;

async fn list_bucket(buckets: &Buckets, root: &Uri) -> Result<Listing, Failure> {
    let prefix = match buckets.read_all(&root.join(CURRENT)?, SMALL_BYTES).await? {
        Some((_, folder)) => root.join(&format!("{}/", String::from_utf8_lossy(&folder).trim()))?,
        None => root.clone(),
    };
    let place = Source::Bucket(buckets.clone(), prefix.clone());
    let manifest = match buckets.read_all(&prefix.join(MANIFEST)?, SMALL_BYTES).await? {
        Some((_, bytes)) => {
            let malformed = |what| AssetsError::Malformed { path: place.path_of(MANIFEST), what };
            Some(Manifest::decode(&bytes).map_err(malformed)?)
        }
        None => None,
    };
    let mut files = objects(buckets, &prefix).await?;
    match &manifest {
        Some(manifest) => files.retain(|file| manifest.files.contains_key(&file.name)),
        None => files.retain(|file| is_model_file(&file.name)),
    }
    let is_there = |name: &str| files.iter().any(|file| file.name == name);
    let listed = manifest.iter().flat_map(|manifest| manifest.files.keys()).map(String::as_str);
    if let Some(missing) = listed.chain(files.is_empty().then_some("config.json")).find(|name| !is_there(name)) {
        let hint = "no whole model is there".to_owned();
        return Err(AssetsError::Missing { path: place.path_of(missing), hint }.into());
    }
    let last = root.key().trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty());
    let name = manifest.as_ref().map_or_else(|| last.unwrap_or(root.bucket()).to_owned(), |there| there.name.clone());
    let listing = Listing { place, name, files, manifest };
    listing.check_sizes()?;
    Ok(listing)
}

/// Everything beneath a prefix, by names relative to it, sorted.
async fn objects(buckets: &Buckets, prefix: &Uri) -> Result<Vec<SourceFile>, Failure> {
    let (mut files, mut after) = (Vec::new(), None);
    loop {
        let page = buckets.list(prefix, after.as_ref()).await?;
        let (is_last, last) = (page.len() < PAGE_MAX, page.last().map(|object| object.uri.clone()));
        files.extend(page.into_iter().map(|object| SourceFile {
            name: object.uri.key()[prefix.key().len()..].to_owned(),
            size: object.size,
            version: object.etag,
        }));
        if is_last {
            return Ok(files);
        }
        after = last;
    }
}

impl Listing {
    /// What does not even have the right length needs no copying to be refused.
    fn check_sizes(&self) -> Result<(), Failure> {
        for SourceFile { name, size, .. } in &self.files {
            if let Some(expected) = self.expected(name)
                && expected.size != *size
            {
                let what = format!("{size} bytes, its manifest says {}", expected.size);
                return Err(AssetsError::Mismatch { path: self.place.path_of(name), what }.into());
            }
        }
        Ok(())
    }
}

impl Source {
    /// A file's address, for people.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(directory) => directory.join(name),
            Self::Bucket(_, prefix) => PathBuf::from(format!("{prefix}{name}")),
        }
    }
}

/// What changes when the file does.
pub(super) fn version(found: &Metadata) -> String {
    format!("{}-{}.{:09}-{}", found.len(), found.mtime(), found.mtime_nsec(), found.ino())
}

fn read_range(path: &Path, listed: &str, range: Range<u64>) -> Result<Bytes, Failure> {
    let length = usize::try_from(range.end - range.start).expect("a block fits into memory");
    let mut bytes = vec![0; length];
    let file = on(path, File::open(path))?;
    let read = file.read_exact_at(&mut bytes, range.start);
    // Looked at after reading: what was written in between has moved the time.
    if version(&on(path, file.metadata())?) != listed {
        return Err(Failure::Changed(path.display().to_string()));
    }
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failure::Changed(path.display().to_string())),
        read => Ok(on(path, read).map(|()| bytes.into())?),
    }
}
