//! Where a sync reads from: a model's directory, or a root with `current`.
//!
//! In: what the operator names. Out: a [`Listing`] of the model's files, then their bytes, a range at a time. Every range
//! is of the file as it was when it was listed: one that has changed since is an error, never mixed.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::command::Failure;
use super::disk::on;
use super::look::model_files;
use super::manifest::{Fingerprint, Manifest};
use super::{AssetsError, ModelDirectory, locate};
use crate::offload::Offload;

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A directory.
    Folder(PathBuf),
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
        Ok(Self::Folder(folder(text)?))
    }

    /// What tells it from other sources.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Folder(path) => path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string(),
        }
    }

    /// Looks what is there.
    pub(super) async fn list(&self) -> Result<Listing, Failure> {
        match self {
            Self::Folder(path) => {
                let path = path.clone();
                Offload::Threads.run(move || list_folder(&path)).await
            }
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
        }
    }
}

/// The directory that an operator names: a path, or `file://` and an absolute one.
pub(super) fn folder(text: &str) -> Result<PathBuf, Failure> {
    let path = text.strip_prefix("file://").unwrap_or(text);
    match text.split_once("://") {
        Some(("file", path)) if !path.starts_with('/') => {
            Err(Failure::Usage(format!("{text}: a file address has an absolute path: file:///…")))
        }
        Some((scheme, _)) if scheme != "file" => {
            Err(Failure::Usage(format!("{text}: {scheme}: is not supported; a folder is")))
        }
        _ => Ok(PathBuf::from(path)),
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
        }
    }
}

fn version(found: &Metadata) -> String {
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
