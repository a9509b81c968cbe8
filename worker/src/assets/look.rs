//! `assets manifest`, `verify`, `list` and `prune`: what needs only a disk.
//!
//! In: a model's directory or a root of them. Out: lines on stdout, a manifest beside the files, or fewer revisions. A
//! revision in use is never removed.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::SystemTime;

use inferq_shared::job::Input;
use inferq_shared::reply::Embedding;

use super::command::{Failure, ListArgs, ManifestArgs, PruneArgs, VerifyArgs, say};
use super::disk;
use super::manifest::{Canary, FOLDER_PREFIX, Fingerprint, MANIFEST, Manifest, is_model_file};
use super::progress::{Bytes, human};
use super::volume::{self, Revision, STAGING};
use super::{AssetsError, ModelDirectory, locate, name_of};
use crate::engine::{Answer, EngineError, burn, unit};

/// `assets manifest`.
pub(super) fn manifest(args: ManifestArgs) -> Result<(), Failure> {
    let directory = locate(&args.directory)?;
    if directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX)) {
        let path = directory.display();
        let message = format!("{path} is a published revision: make the manifest where the model comes from, and sync");
        return Err(Failure::Usage(message));
    }
    let before = fs::read(directory.join(MANIFEST)).ok().and_then(|bytes| Manifest::decode(&bytes).ok());
    let name = args.name.or_else(|| before.as_ref().map(|before| before.name.clone()));
    let mut manifest = Manifest {
        name: name.unwrap_or_else(|| name_of(&directory)),
        files: fingerprints(&directory, model_files(&directory)?)?,
        canary: None,
    };
    // A canary belongs to the files that it was made with.
    manifest.canary = before.filter(|before| before.files == manifest.files).and_then(|before| before.canary);
    let path = directory.join(MANIFEST);
    disk::write(&path, &manifest.encode())?;
    if let Some(text) = args.canary {
        manifest.canary = Some(canary(&directory, text)?);
        disk::write(&path, &manifest.encode())?;
    }
    let canary = if manifest.canary.is_some() { "with a canary" } else { "no canary" };
    say(&format!("{}: {}", path.display(), described(&manifest)))?;
    say(&format!("{}, {canary}", manifest.revision()))
}

/// Digests of files in a directory.
pub(super) fn fingerprints(directory: &Path, names: Vec<String>) -> Result<BTreeMap<String, Fingerprint>, Failure> {
    let sizes = names.iter().map(|name| directory.join(name).metadata().map_or(0, |found| found.len()));
    let bar = Bytes::of(sizes.sum());
    let hash = |name: String| {
        bar.on(&name);
        let print = disk::hash(&directory.join(&name), |bytes| bar.add(bytes))?;
        Ok((name, print))
    };
    names.into_iter().map(hash).collect()
}

/// The names of the model's files in a directory. Says which files are left out.
pub(super) fn model_files(directory: &Path) -> Result<Vec<String>, Failure> {
    let (names, others): (Vec<_>, Vec<_>) =
        disk::files_below(directory)?.into_iter().partition(|name| is_model_file(name));
    let others: Vec<_> = others.into_iter().filter(|name| name != MANIFEST).collect();
    if !others.is_empty() {
        eprintln!("left out, as no worker reads them: {}", others.join(", "));
    }
    if names.is_empty() {
        let hint = "it holds no model: config.json, tokenizer.json and model.safetensors are expected".to_owned();
        return Err(AssetsError::Missing { path: directory.join("config.json"), hint }.into());
    }
    Ok(names)
}

/// Runs the model on a text. Loading it checks the files against the manifest just written.
fn canary(directory: &Path, input: String) -> Result<Canary, Failure> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let loaded = burn::load(&burn::LoadOptions { threads, ..burn::LoadOptions::new(directory.to_owned()) })?;
    let tokens = loaded.tokenizer.encode(&Input::Text(input.clone()), true);
    let tokens = tokens.map_err(|error| Failure::Usage(format!("--canary {input:?}: {error}")))?;
    let mut engine = loaded.engines.into_iter().next().expect("one replica is asked for");
    engine.check()?;
    let answer = engine.infer(&[&tokens])?.pop();
    let Some(Answer::Embedding(raw)) = answer else {
        return Err(EngineError::Failed("the model gave no embedding for the canary".to_owned()).into());
    };
    let embedding = unit(&raw).ok_or_else(|| EngineError::Failed("the canary's vector has no length".to_owned()))?;
    Ok(Canary { input, embedding: Embedding::Base64(embedding) })
}

/// `assets verify`.
pub(super) fn verify(args: VerifyArgs) -> Result<(), Failure> {
    let directory = locate(&args.directory)?;
    let model = ModelDirectory::open(&directory)?;
    let Some(manifest) = model.manifest() else {
        let hint = "there is nothing to compare with: `inferq-worker assets manifest` makes it".to_owned();
        return Err(AssetsError::Missing { path: directory.join(MANIFEST), hint }.into());
    };
    let folder = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if folder.starts_with(FOLDER_PREFIX) && folder != manifest.folder() {
        let what = format!("it describes {}, not what the directory is named for", manifest.revision());
        return Err(AssetsError::Mismatch { path: directory.join(MANIFEST), what }.into());
    }
    let bar = Bytes::of(manifest.size());
    let mut damaged = 0;
    for name in manifest.files.keys() {
        bar.on(name);
        if let Err(error) = model.verify(name, |bytes| bar.add(bytes)) {
            eprintln!("{error}");
            damaged += 1;
        }
    }
    drop(bar);
    if damaged > 0 {
        return Err(Failure::Damaged { directory, damaged, files: manifest.files.len() });
    }
    say(&format!("{}: {}, all as the manifest says", directory.display(), described(manifest)))?;
    say(&manifest.revision())
}

/// `assets list`.
pub(super) fn list(args: ListArgs) -> Result<(), Failure> {
    let revisions = volume::revisions(&args.root)?;
    if revisions.is_empty() {
        eprintln!("{}: no revision; `inferq-worker assets sync SRC {0}` puts one there", args.root.display());
    }
    revisions.iter().try_for_each(|revision| say(&line_of(revision)))
}

/// `assets prune`.
pub(super) fn prune(args: PruneArgs) -> Result<(), Failure> {
    // A sync must not make current what is being removed.
    let _alone = args.yes.then(|| volume::alone(&args.root)).transpose()?;
    let revisions = volume::revisions(&args.root)?;
    if revisions.iter().all(|revision| !revision.is_current) && !revisions.is_empty() {
        let message = format!("{}: no revision is current, so none is known to be out of use", args.root.display());
        return Err(Failure::Usage(message));
    }
    // The current one is kept whatever its age, and counts.
    let (current, mut others): (Vec<_>, Vec<_>) = revisions.into_iter().partition(|revision| revision.is_current);
    let surplus = others.split_off(args.keep.get().saturating_sub(current.len()).min(others.len()));
    for revision in &surplus {
        say(&line_of(revision))?;
        if args.yes {
            remove(&args.root, revision)?;
        }
    }
    let abandoned = if args.yes { remove_abandoned(&args.root)? } else { 0 };
    match (surplus.len(), args.yes) {
        (0, _) => eprintln!("no revision to remove"),
        (count, true) => eprintln!("{count} removed"),
        (count, false) => eprintln!("{count} would be removed; --yes removes them"),
    }
    if abandoned > 0 {
        eprintln!("{abandoned} unfinished copies removed");
    }
    Ok(())
}

/// First out of sight in one step, so that nobody finds half of it.
fn remove(root: &Path, revision: &Revision) -> Result<(), Failure> {
    let staging = root.join(STAGING);
    disk::on(&staging, fs::create_dir_all(&staging))?;
    let grave = staging.join(format!("removed-{:016x}", rand::random::<u64>()));
    disk::on(&revision.path, fs::rename(&revision.path, &grave))?;
    disk::sync(root)?;
    Ok(disk::remove(&grave)?)
}

/// Removes what syncs that ended early have left, and says how many copies that were; a copy that somebody works on is
/// locked.
fn remove_abandoned(root: &Path) -> Result<usize, Failure> {
    let staging = root.join(STAGING);
    let Ok(entries) = fs::read_dir(&staging) else { return Ok(0) };
    let mut removed = 0;
    for entry in entries {
        let path = disk::on(&staging, entry)?.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            continue;
        }
        let lock = path.with_extension("lock");
        let file = disk::on(&lock, fs::File::options().create(true).append(true).open(&lock))?;
        match file.try_lock() {
            Ok(()) => disk::remove(&path)?,
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(source)) => return Err(disk::DiskError { path: lock, source }.into()),
        }
        removed += 1;
    }
    Ok(removed)
}

fn line_of(revision: &Revision) -> String {
    let Revision { folder, manifest, since, is_current, .. } = revision;
    let mark = if *is_current { '*' } else { ' ' };
    let days = SystemTime::now().duration_since(*since).unwrap_or_default().as_secs() / 86_400;
    let what = manifest.as_ref().map_or_else(|| "its manifest can't be read".to_owned(), described);
    format!("{mark} {folder}  {what}, {days} days old")
}

/// What a manifest says, in a few words.
pub(super) fn described(manifest: &Manifest) -> String {
    format!("{}, {} files, {}", manifest.name, manifest.files.len(), human(manifest.size()))
}
