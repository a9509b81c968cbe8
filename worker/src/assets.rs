//! A model's files on a volume: reads them, hashes them while reading, and refuses what the manifest does not vouch for.
//!
//! In: a Hugging Face model directory, with or without a `manifest.json` of ours. Out: the bytes of the files that are
//! asked for, and the revision: the digest of exactly those files, so that a reply names what computed it. Files are
//! read from start to end, which network volumes like best. It never writes, and never opens a file outside the
//! directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Bytes read and hashed at a time: small enough to be hashed while still in the processor's cache.
const CHUNK: usize = 512 * 1024;

/// The name of our own list of a model's files.
const MANIFEST: &str = "manifest.json";

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
    /// Not the file that the manifest describes.
    #[error("{}: {what}; the copy is damaged or of another revision: copy the model again", path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// What identifies one file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Fingerprint {
    size: u64,
    sha256: String,
}

#[derive(Deserialize)]
struct ManifestFile {
    name: String,
    #[serde(flatten)]
    fingerprint: Fingerprint,
}

#[derive(Deserialize)]
struct ManifestJson {
    name: String,
    files: Vec<ManifestFile>,
}

/// The manifest: the model's name, and what each of its files must be.
struct Manifest {
    name: String,
    files: BTreeMap<String, Fingerprint>,
}

/// A model's directory, and what has been read of it.
pub struct ModelDirectory {
    path: PathBuf,
    manifest: Option<Manifest>,
    read: Mutex<BTreeMap<String, Fingerprint>>,
}

impl ModelDirectory {
    /// Opens a directory and reads its manifest, if it has one.
    ///
    /// # Errors
    /// When it is no directory, or its manifest can't be read.
    pub fn open(path: &Path) -> Result<Self, AssetsError> {
        if !path.is_dir() {
            let (path, hint) =
                (path.to_owned(), "a model is a directory with config.json, tokenizer.json and model.safetensors");
            return Err(match path.exists() {
                true => AssetsError::Malformed { path, what: format!("not a directory; {hint}") },
                false => AssetsError::Missing { path, hint: hint.to_owned() },
            });
        }
        let manifest = read_manifest(&path.join(MANIFEST))?;
        Ok(Self { path: path.to_owned(), manifest, read: Mutex::default() })
    }

    /// The model's name: the manifest's, else the directory's.
    pub fn name(&self) -> String {
        if let Some(manifest) = &self.manifest {
            return manifest.name.clone();
        }
        let resolved = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        resolved.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// Where a file of this name lies.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.path_of(name).is_file()
    }

    /// Reads a file whole, and makes it part of the revision. `hint` says what the file is for, should it be missing.
    ///
    /// # Errors
    /// When it is missing, unreadable or not what the manifest says.
    pub fn read(&self, name: &str, hint: &str) -> Result<Vec<u8>, AssetsError> {
        let path = self.path_of(name);
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
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

    /// Reads a file that a model may lack.
    ///
    /// # Errors
    /// As [`ModelDirectory::read`], but for its absence.
    pub fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, AssetsError> {
        if self.has(name) { self.read(name, "").map(Some) } else { Ok(None) }
    }

    /// `sha256:` and the digest over the sorted lines `name size sha256` of all files read so far.
    pub fn revision(&self) -> String {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Sha256::new();
        for (name, Fingerprint { size, sha256 }) in read.iter() {
            lines.update(format!("{name} {size} {sha256}\n"));
        }
        format!("sha256:{}", hex(&lines.finalize()))
    }

    fn vouch(&self, name: &str, path: &Path, found: &Fingerprint) -> Result<(), AssetsError> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let what = match manifest.files.get(name) {
            Some(expected) if expected == found => return Ok(()),
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
    let json: ManifestJson = serde_json::from_slice(&bytes)
        .map_err(|error| AssetsError::Malformed { path: path.to_owned(), what: format!("no manifest: {error}") })?;
    let files = json.files.into_iter().map(|file| (file.name, file.fingerprint)).collect();
    Ok(Some(Manifest { name: json.name, files }))
}

fn read_and_hash(path: &Path, hint: &str) -> Result<(Vec<u8>, Fingerprint), AssetsError> {
    let fail = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => AssetsError::Missing { path: path.to_owned(), hint: hint.to_owned() },
        _ => AssetsError::Unreadable { path: path.to_owned(), source },
    };
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn manifest(sha256: &str) -> String {
        format!(r#"{{"name": "tiny", "files": [{{"name": "a", "size": 3, "sha256": "{sha256}"}}], "canary": null}}"#)
    }

    #[test]
    fn the_revision_is_the_digest_of_the_files_read_in_any_order() {
        let directory = directory(&[("a", "abc"), ("b", ""), ("README.md", "unread")]);
        let forwards = ModelDirectory::open(directory.path()).unwrap();
        forwards.read("a", "").unwrap();
        forwards.read("b", "").unwrap();
        let backwards = ModelDirectory::open(directory.path()).unwrap();
        backwards.read("b", "").unwrap();
        assert_eq!(backwards.read_if_there("a").unwrap().unwrap(), b"abc");
        assert_eq!(backwards.read_if_there("c").unwrap(), None);
        let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let lines = format!("a 3 {OF_ABC}\nb 0 {of_nothing}\n");
        assert_eq!(forwards.revision(), format!("sha256:{}", hex(&Sha256::digest(lines))));
        assert_eq!(forwards.revision(), backwards.revision());
    }

    #[test]
    fn a_large_file_is_read_whole() {
        let text = "0123456789abcdef".repeat(CHUNK / 8);
        let directory = directory(&[("large", &text)]);
        let model = ModelDirectory::open(directory.path()).unwrap();
        assert!(model.read("large", "").unwrap() == text.as_bytes());
        let line = format!("large {} {}\n", text.len(), hex(&Sha256::digest(&text)));
        assert_eq!(model.revision(), format!("sha256:{}", hex(&Sha256::digest(line))));
    }

    #[test]
    fn the_manifest_names_the_model_and_vouches_for_its_files() {
        let directory = directory(&[("a", "abc"), ("b", "x"), (MANIFEST, &manifest(OF_ABC))]);
        let model = ModelDirectory::open(directory.path()).unwrap();
        assert_eq!(model.name(), "tiny");
        model.read("a", "").unwrap();
        let error = model.read("b", "").unwrap_err().to_string();
        assert!(error.contains("not listed in manifest.json"), "{error}");
    }

    #[test]
    fn a_file_that_differs_from_the_manifest_is_refused() {
        let other_digest = directory(&[("a", "abd"), (MANIFEST, &manifest(OF_ABC))]);
        let error = ModelDirectory::open(other_digest.path()).unwrap().read("a", "").unwrap_err();
        assert!(matches!(error, AssetsError::Mismatch { .. }) && error.to_string().contains(OF_ABC), "{error}");
        let other_size = directory(&[("a", "abcd"), (MANIFEST, &manifest(OF_ABC))]);
        let error = ModelDirectory::open(other_size.path()).unwrap().read("a", "").unwrap_err().to_string();
        assert!(error.contains("4 bytes, manifest.json says 3"), "{error}");
    }

    #[test]
    fn a_broken_manifest_and_a_missing_file_are_named() {
        let broken = directory(&[(MANIFEST, "[]")]);
        let error = ModelDirectory::open(broken.path()).err().unwrap().to_string();
        assert!(error.contains("manifest.json: no manifest"), "{error}");
        let empty = directory(&[]);
        let error = ModelDirectory::open(empty.path()).unwrap().read("a", "it holds the a").unwrap_err().to_string();
        assert!(error.ends_with("/a: no such file; it holds the a"), "{error}");
        let error = ModelDirectory::open(&empty.path().join("none")).err().unwrap().to_string();
        assert!(error.contains("none: no such file; a model is a directory with"), "{error}");
    }

    #[test]
    fn a_name_that_leads_out_of_the_directory_is_refused() {
        let directory = directory(&[("a", "abc")]);
        let model = ModelDirectory::open(directory.path()).unwrap();
        for name in ["../a", "/etc/passwd", "x/../../a"] {
            assert!(matches!(model.read(name, ""), Err(AssetsError::Malformed { .. })), "{name}");
        }
    }
}
