//! `manifest.json`: what a model's files must be, and what a known input must become. Pure.
//!
//! In: its bytes. Out: a [`Manifest`] whose names stay within the model's directory. It says which files of a directory
//! belong to a model at all, and from names, sizes and digests the revision, which names what computes a reply.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use inferq_shared::digest::hex;
use inferq_shared::reply::Embedding;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The manifest's name in a model's directory.
pub const MANIFEST: &str = "manifest.json";

/// What the directory of a published revision is called: this and the digest.
pub const FOLDER_PREFIX: &str = "sha256-";

/// Endings of what a worker may read. No pickle, ever; and a cache has the weights in other programs' formats beside.
const ENDINGS: [&str; 5] = [".json", ".txt", ".safetensors", ".model", KERNELS];

/// The ending of files with a card's kernels, which travel with the model so that a fresh machine starts warm. They change how
/// soon it computes, not what: they are no part of the revision.
const KERNELS: &str = ".kernels";

/// What identifies one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub size: u64,
    /// The digest, 64 hexadecimal digits.
    pub sha256: String,
}

/// An input and what the model makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// A text.
    pub input: String,
    /// Its embedding, of length 1.
    pub embedding: Embedding,
}

/// The model's name, what each of its files must be, and how to tell that it computes as it should.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ManifestJson")]
pub struct Manifest {
    /// The name that jobs call the model by.
    pub name: String,
    /// Its files, by their names below the model's directory.
    pub files: BTreeMap<String, Fingerprint>,
    /// A known input, if somebody made one.
    pub canary: Option<Canary>,
}

#[derive(Serialize, Deserialize)]
struct ManifestFile {
    name: String,
    #[serde(flatten)]
    fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
struct ManifestJson {
    name: String,
    files: Vec<ManifestFile>,
    #[serde(default)]
    canary: Option<Canary>,
}

impl Manifest {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("no manifest: {error}"))
    }

    /// As the bytes of a `manifest.json`.
    pub fn encode(&self) -> Vec<u8> {
        let file =
            |(name, print): (&String, &Fingerprint)| ManifestFile { name: name.clone(), fingerprint: print.clone() };
        let json = ManifestJson {
            name: self.name.clone(),
            files: self.files.iter().map(file).collect(),
            canary: self.canary.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&json).expect("a manifest has only what JSON has");
        bytes.push(b'\n');
        bytes
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// What names exactly these files.
    pub fn revision(&self) -> String {
        revision(&self.files)
    }

    /// The name of the directory that holds exactly these files.
    pub fn folder(&self) -> String {
        self.revision().replace(':', "-")
    }
}

impl TryFrom<ManifestJson> for Manifest {
    type Error = String;

    fn try_from(json: ManifestJson) -> Result<Self, String> {
        let mut files = BTreeMap::new();
        for ManifestFile { name, fingerprint } in json.files {
            if !is_inside(&name) {
                return Err(format!("the file name {name:?} leads out of the model's directory"));
            }
            if fingerprint.sha256.len() != 64 || !fingerprint.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("the sha256 of {name} is not 64 hexadecimal digits"));
            }
            if files.insert(name.clone(), fingerprint).is_some() {
                return Err(format!("the file {name} stands twice"));
            }
        }
        match json.name.is_empty() {
            true => Err("the name is empty".to_owned()),
            false => Ok(Self { name: json.name, files, canary: json.canary }),
        }
    }
}

/// `sha256:` and the digest over the sorted lines `name size sha256` of what decides the answers.
pub fn revision(files: &BTreeMap<String, Fingerprint>) -> String {
    let mut lines = Sha256::new();
    for (name, Fingerprint { size, sha256 }) in files.iter().filter(|(name, _)| !name.ends_with(KERNELS)) {
        lines.update(format!("{name} {size} {sha256}\n"));
    }
    format!("sha256:{}", hex(&lines.finalize()))
}

/// Whether a file of this name, relative to a model's directory, belongs to the model.
pub fn is_model_file(name: &str) -> bool {
    let hidden = name.split('/').any(|part| part.starts_with('.'));
    !hidden && name != MANIFEST && ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Whether a name stays within the directory that it is relative to.
pub fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest() -> Manifest {
        let print = |size| Fingerprint { size, sha256: DIGEST.to_owned() };
        let files = [("b/c.json", 2), ("a.json", 1)].map(|(name, size)| (name.to_owned(), print(size)));
        let embedding = Embedding::Base64(vec![0.6, -0.8]);
        Manifest {
            name: "tiny".to_owned(),
            files: files.into(),
            canary: Some(Canary { input: "a bird".to_owned(), embedding }),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
        let bare = Manifest { canary: None, ..manifest() };
        assert_eq!(Manifest::decode(&bare.encode()), Ok(bare.clone()));
        assert_eq!(bare.revision(), manifest().revision(), "a canary changes nothing about the files");
    }

    #[test]
    fn the_revision_names_names_sizes_and_digests() {
        let lines = format!("a.json 1 {DIGEST}\nb/c.json 2 {DIGEST}\n");
        let digest = hex(&Sha256::digest(lines));
        assert_eq!(manifest().revision(), format!("sha256:{digest}"));
        assert_eq!(manifest().folder(), format!("{FOLDER_PREFIX}{digest}"));
    }

    #[test]
    fn kernels_travel_with_the_model_and_are_no_part_of_its_revision() {
        let mut with = manifest();
        with.files.insert("kernels/NVIDIA-L4.kernels".to_owned(), Fingerprint { size: 3, sha256: DIGEST.to_owned() });
        assert_eq!(with.revision(), manifest().revision());
        assert!(is_model_file("kernels/NVIDIA-L4.kernels"));
    }

    #[test]
    fn what_is_no_manifest_says_why() {
        let with = |name: &str, digest: &str| {
            let file = format!(r#"{{"name": "{name}", "size": 1, "sha256": "{digest}"}}"#);
            let text = format!(r#"{{"name": "tiny", "files": [{file}, {file}]}}"#);
            Manifest::decode(text.as_bytes()).unwrap_err()
        };
        assert!(with("../a", DIGEST).contains("leads out of the model's directory"));
        assert!(with("/a", DIGEST).contains("leads out of the model's directory"));
        assert!(with("a", "abc").contains("the sha256 of a is not 64"));
        assert!(with("a", DIGEST).contains("the file a stands twice"));
        let error = Manifest::decode(br#"{"name": "", "files": []}"#).unwrap_err();
        assert!(error.contains("the name is empty"), "{error}");
    }

    #[test]
    fn what_a_worker_may_read_belongs_to_the_model() {
        for name in ["config.json", "1_Pooling/config.json", "model-00001-of-00002.safetensors", "vocab.txt"] {
            assert!(is_model_file(name), "{name}");
        }
        for name in [MANIFEST, "pytorch_model.bin", ".cache/x.json", "onnx/model.onnx", "README.md", ".complete"] {
            assert!(!is_model_file(name), "{name}");
        }
    }
}
