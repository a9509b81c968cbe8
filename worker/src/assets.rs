//! A model's files on a volume: reads them, hashes them while reading, and refuses what the manifest does not vouch for.
//!
//! In: a Hugging Face model directory, with or without a `manifest.json` of ours. Out: the bytes of the files that are
//! asked for, and the revision: the digest of exactly those files, so that a reply names what computed it. Files are
//! read from start to end, which network volumes like best. It never writes, and never opens a file outside the
//! directory. The files below it are the operator's side, `inferq-worker assets`: [`command`], which calls `look` (list,
//! verify, prune, manifest) and `sync` (from a `source` to a `volume`, or by `upload` to a bucket).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use inferq_shared::digest::hex;
use sha2::{Digest, Sha256};

use self::manifest::{FOLDER_PREFIX, Fingerprint, MANIFEST, Manifest, is_inside, revision};

pub mod command;
mod disk;
mod look;
pub mod manifest;
mod progress;
mod source;
mod sync;
mod upload;
mod volume;

/// Bytes read and hashed at a time: small enough to be hashed while still in the processor's cache.
const CHUNK: usize = 512 * 1024;

/// The link in a root to the revision that is to be used.
pub const CURRENT: &str = "current";

/// Why a model's file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// Not there.
    #[error("{}: no such file; {hint}", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What should be there, or how to get it.
        hint: String,
    },
    /// There, but the system does not let us read it.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A name that leads out of the model's directory, or a manifest that is none.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// Where it was found.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Not as long yet as the manifest says.
    #[error("{}: {found} bytes, {MANIFEST} says {expected}; the copy is not complete: copy the model again", path.display())]
    Short {
        /// Which file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The bytes it should have.
        expected: u64,
    },
    /// Not the file that the manifest describes.
    #[error("{}: {what}; the copy is damaged or of another revision: copy the model again", path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

impl AssetsError {
    /// Whether somebody may still be copying the model: then it is worth looking again.
    pub fn may_be_on_its_way(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Short { .. })
    }
}

/// Where a model lies: the directory itself, or the one that its `current` points to. Found once, so that nobody reads
/// half of one revision and half of the next.
///
/// # Errors
/// When `current` points nowhere.
pub fn locate(path: &Path) -> Result<PathBuf, AssetsError> {
    let link = path.join(CURRENT);
    if !link.is_symlink() {
        return Ok(path.to_owned());
    }
    let hint = "it points to a revision that is not there: `inferq-worker assets sync` fills it";
    link.canonicalize().map_err(|source| unreadable(&link, hint, source))
}

/// What changes when something in a model's directory does: where it lies, and its files with their sizes and times.
pub fn glance(path: &Path) -> String {
    let Ok(directory) = locate(path) else { return String::new() };
    let names = disk::files_below(&directory).unwrap_or_default();
    let file = |name: &String| {
        let found = directory.join(name).metadata().ok();
        format!("{name} {:?}", found.map(|found| (found.len(), found.modified().ok())))
    };
    let files: Vec<_> = names.iter().map(file).collect();
    format!("{}\n{}", directory.display(), files.join("\n"))
}

/// Bytes of all files in a model's directory that may belong to the model.
pub fn bytes_below(directory: &Path) -> u64 {
    let names =
        disk::files_below(directory).unwrap_or_default().into_iter().filter(|name| manifest::is_model_file(name));
    names.filter_map(|name| directory.join(name).metadata().ok()).map(|found| found.len()).sum()
}

/// A model's directory, and what has been read of it.
pub struct ModelDirectory {
    path: PathBuf,
    manifest: Option<Manifest>,
    read: Mutex<BTreeMap<String, Fingerprint>>,
}

impl ModelDirectory {
    /// Opens a directory, or what its `current` points to, and reads its manifest, if it has one.
    ///
    /// # Errors
    /// When it is no directory, or its manifest can't be read.
    pub fn open(path: &Path) -> Result<Self, AssetsError> {
        let path = locate(path)?;
        if !path.is_dir() {
            let (path, hint) = (path, "a model is a directory with config.json, tokenizer.json and model.safetensors");
            return Err(match path.exists() {
                true => AssetsError::Malformed { path, what: format!("not a directory; {hint}") },
                false => AssetsError::Missing { path, hint: hint.to_owned() },
            });
        }
        let manifest = read_manifest(&path.join(MANIFEST))?;
        Ok(Self { path, manifest, read: Mutex::default() })
    }

    /// The model's name: the manifest's, else the directory's.
    pub fn name(&self) -> String {
        self.manifest.as_ref().map_or_else(|| name_of(&self.path), |manifest| manifest.name.clone())
    }

    /// Its manifest, if it has one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Where a file of this name lies.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is a file of this name, or should be one.
    pub fn has(&self, name: &str) -> bool {
        let is_listed = self.manifest.as_ref().is_some_and(|manifest| manifest.files.contains_key(name));
        is_listed || self.path_of(name).is_file()
    }

    /// Whether every file of the manifest is there and as long as it should be. Reads none of them.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_sizes(&self) -> Result<(), AssetsError> {
        for (name, Fingerprint { size, .. }) in self.manifest.iter().flat_map(|manifest| &manifest.files) {
            let path = self.path_of(name);
            let found = path.metadata().map_err(|source| unreadable(&path, "the manifest lists it", source))?.len();
            if found < *size {
                return Err(AssetsError::Short { path, found, expected: *size });
            }
        }
        Ok(())
    }

    /// Reads a file whole, and makes it part of the revision. `hint` says what the file is for, should it be missing.
    ///
    /// # Errors
    /// When it is missing, unreadable or not what the manifest says.
    pub fn read(&self, name: &str, hint: &str) -> Result<Vec<u8>, AssetsError> {
        let path = self.path_of(name);
        if !is_inside(name) {
            return Err(AssetsError::Malformed {
                path,
                what: "the name leads out of the model's directory".to_owned(),
            });
        }
        let (bytes, fingerprint) = read_and_hash(&path, hint)?;
        self.vouch(name, &path, &fingerprint)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), fingerprint);
        Ok(bytes)
    }

    /// Compares a file with the manifest, in bounded memory; `progress` is told bytes.
    ///
    /// # Errors
    /// When it is missing, unreadable or not what the manifest says.
    pub fn verify(&self, name: &str, progress: impl Fn(u64)) -> Result<(), AssetsError> {
        let path = self.path_of(name);
        let hint = "the manifest lists it";
        let found = disk::hash(&path, progress).map_err(|error| unreadable(&path, hint, error.source))?;
        self.vouch(name, &path, &found)
    }

    /// Reads a file that a model may lack.
    ///
    /// # Errors
    /// As [`ModelDirectory::read`], but for its absence.
    pub fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, AssetsError> {
        if self.has(name) { self.read(name, "").map(Some) } else { Ok(None) }
    }

    /// What names the model's files: those of the manifest, else all that have been read.
    pub fn revision(&self) -> String {
        match &self.manifest {
            Some(manifest) => manifest.revision(),
            None => revision(&self.read.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn vouch(&self, name: &str, path: &Path, found: &Fingerprint) -> Result<(), AssetsError> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let what = match manifest.files.get(name) {
            Some(expected) if expected == found => return Ok(()),
            Some(Fingerprint { size, .. }) if found.size < *size => {
                return Err(AssetsError::Short { path: path.to_owned(), found: found.size, expected: *size });
            }
            Some(expected) if expected.size != found.size => {
                format!("{} bytes, {MANIFEST} says {}", found.size, expected.size)
            }
            Some(expected) => format!("sha256 {}, {MANIFEST} says {}", found.sha256, expected.sha256),
            None => format!("not listed in {MANIFEST}"),
        };
        Err(AssetsError::Mismatch { path: path.to_owned(), what })
    }
}

fn read_manifest(path: &Path) -> Result<Option<Manifest>, AssetsError> {
    if !path.is_file() {
        return Ok(None);
    }
    let (bytes, _) = read_and_hash(path, "")?;
    let malformed = |what| AssetsError::Malformed { path: path.to_owned(), what };
    Manifest::decode(&bytes).map(Some).map_err(malformed)
}

/// What a model in this directory is called: never after a digest.
pub fn name_of(directory: &Path) -> String {
    let resolved = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let part = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let parent = resolved.parent().unwrap_or(&resolved);
    // A cache of Hugging Face's: models--ORGANISATION--NAME/snapshots/COMMIT.
    if part(parent).as_deref() == Some("snapshots")
        && let Some(repository) = parent.parent().and_then(part)
        && let Some(name) = repository.rsplit("--").next().filter(|_| repository.starts_with("models--"))
    {
        return name.to_owned();
    }
    let named = if part(&resolved).is_some_and(|name| name.starts_with(FOLDER_PREFIX)) { parent } else { &resolved };
    part(named).unwrap_or_else(|| "model".to_owned())
}

fn unreadable(path: &Path, hint: &str, source: std::io::Error) -> AssetsError {
    match source.kind() {
        ErrorKind::NotFound => AssetsError::Missing { path: path.to_owned(), hint: hint.to_owned() },
        _ => AssetsError::Unreadable { path: path.to_owned(), source },
    }
}

fn read_and_hash(path: &Path, hint: &str) -> Result<(Vec<u8>, Fingerprint), AssetsError> {
    let fail = |source| unreadable(path, hint, source);
    let mut file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let mut sha256 = Sha256::new();
    loop {
        let start = bytes.len();
        let read = file.by_ref().take(CHUNK as u64).read_to_end(&mut bytes).map_err(fail)?;
        if read == 0 {
            break;
        }
        sha256.update(&bytes[start..]);
    }
    let fingerprint = Fingerprint { size: bytes.len() as u64, sha256: hex(&sha256.finalize()) };
    Ok((bytes, fingerprint))
}

#[cfg(test)]
mod tests;
