//! A root of models on a volume: one directory a revision, named by its digest, and the link `current` to the one in use.
//!
//! ```text
//! ROOT/sha256-53aa…/   config.json, model.safetensors, …, manifest.json: whole, or not there
//! ROOT/current         → sha256-53aa…
//! ROOT/.sync/          what is being copied
//! ```
//!
//! In: a root. Out: what is in it. A revision appears by one rename and is never written to again, and `current` is
//! replaced by another; so no reader ever sees half a model.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::CURRENT;
use super::disk::{self, DiskError, on};
use super::manifest::{FOLDER_PREFIX, MANIFEST, Manifest};

/// Where copies are made.
pub(super) const STAGING: &str = ".sync";

/// One revision of a model in a root.
pub(super) struct Revision {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// `sha256-` and its digest.
    pub(super) folder: String,
    /// What it holds; `None` where that can't be read.
    pub(super) manifest: Option<Manifest>,
    /// When it was put there.
    pub(super) since: SystemTime,
    /// Whether it is the one in use.
    pub(super) is_current: bool,
}

/// The revisions in a root, the newest first.
pub(super) fn revisions(root: &Path) -> Result<Vec<Revision>, DiskError> {
    let current = fs::read_link(root.join(CURRENT)).ok();
    let mut revisions = Vec::new();
    for entry in on(root, fs::read_dir(root))? {
        let path = on(root, entry)?.path();
        let Some(folder) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        if !folder.starts_with(FOLDER_PREFIX) || !path.is_dir() {
            continue;
        }
        let manifest = fs::read(path.join(MANIFEST)).ok().and_then(|bytes| Manifest::decode(&bytes).ok());
        let since = on(&path, path.metadata().and_then(|found| found.modified()))?;
        let is_current = current.as_deref() == Some(Path::new(&folder));
        revisions.push(Revision { path, folder, manifest, since, is_current });
    }
    revisions.sort_by(|a, b| b.since.cmp(&a.since).then_with(|| a.folder.cmp(&b.folder)));
    Ok(revisions)
}

/// Lets nobody else publish or remove a revision until the file is dropped. Held for moments only.
pub(super) fn alone(root: &Path) -> Result<File, DiskError> {
    let staging = root.join(STAGING);
    // Not the root itself: an address that was mistyped is not to be made.
    let made = fs::create_dir(&staging).or_else(|error| if staging.is_dir() { Ok(()) } else { Err(error) });
    on(&staging, made)?;
    let path = staging.join("root.lock");
    let file = on(&path, File::options().create(true).append(true).open(&path))?;
    on(&path, file.lock())?;
    Ok(file)
}

/// Makes this revision the one in use.
pub(super) fn use_revision(root: &Path, folder: &str) -> Result<(), DiskError> {
    let link = root.join(CURRENT);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(folder)) {
        return Ok(());
    }
    disk::link(folder, &link)
}
