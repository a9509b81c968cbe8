//! Files as a copy needs them: found, hashed, written so that a crash leaves the old or the new, and moved into place.
//!
//! In: paths. Out: names, digests and files that are on the disk when a function returns. It knows nothing of models.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use inferq_shared::digest::{self, hex};

use super::CHUNK;
use super::manifest::Fingerprint;

/// A call that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct DiskError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Says which path an error is about.
pub(super) fn on<T>(path: &Path, result: io::Result<T>) -> Result<T, DiskError> {
    result.map_err(|source| DiskError { path: path.to_owned(), source })
}

/// The files below a directory, by their names relative to it, sorted. A link to a file is that file, as in a cache of
/// Hugging Face's; links to directories and what is hidden are passed by.
pub(super) fn files_below(directory: &Path) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    walk(directory, "", &mut names)?;
    names.sort();
    Ok(names)
}

fn walk(directory: &Path, prefix: &str, names: &mut Vec<String>) -> Result<(), DiskError> {
    for entry in on(directory, fs::read_dir(directory))? {
        let entry = on(directory, entry)?;
        // A name that is not text is nobody's model file.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if on(&path, entry.file_type())?.is_dir() {
            walk(&path, &format!("{name}/"), names)?;
        } else if path.is_file() {
            names.push(name);
        }
    }
    Ok(())
}

/// Hashes a file in bounded memory; `progress` is told bytes.
pub(super) fn hash(path: &Path, progress: impl Fn(u64)) -> Result<Fingerprint, DiskError> {
    let file = on(path, File::open(path))?;
    let hashed = digest::of(file, |bytes| {
        progress(bytes);
        Ok(())
    });
    let (sha256, size) = on(path, hashed)?;
    Ok(Fingerprint { size, sha256: hex(&sha256) })
}

/// Reads the first `limit` bytes of a file, a piece at a time.
pub(super) fn read_on(path: &Path, limit: u64, mut piece: impl FnMut(&[u8])) -> Result<(), DiskError> {
    let mut file = on(path, File::open(path))?.take(limit);
    let mut buffer = vec![0; CHUNK];
    loop {
        match on(path, file.read(&mut buffer))? {
            0 => return Ok(()),
            read => piece(&buffer[..read]),
        }
    }
}

/// Writes a file that is there whole, or as it was before, whatever happens meanwhile.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    on(&beside, written)?;
    on(path, fs::rename(&beside, path))?;
    sync(parent(path))
}

/// Makes `link` point to `target`, at once.
pub(super) fn link(target: &str, link: &Path) -> Result<(), DiskError> {
    let beside = beside(link);
    on(&beside, std::os::unix::fs::symlink(target, &beside))?;
    on(link, fs::rename(&beside, link))?;
    sync(parent(link))
}

/// A hidden name in the same directory that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()))
}

/// The directory that a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What a directory lists survives a power cut.
pub(super) fn sync(directory: &Path) -> Result<(), DiskError> {
    on(directory, File::open(directory).and_then(|directory| directory.sync_all()))
}

/// As [`sync`], for a directory and all below it.
pub(super) fn sync_below(directory: &Path) -> Result<(), DiskError> {
    for entry in on(directory, fs::read_dir(directory))? {
        let path = on(directory, entry)?.path();
        if path.is_dir() && !path.is_symlink() {
            sync_below(&path)?;
        }
    }
    sync(directory)
}

/// Bytes that may be written to the file system of `directory`.
pub(super) fn free(directory: &Path) -> Result<u64, DiskError> {
    let found = rustix::fs::statvfs(directory).map_err(io::Error::from);
    on(directory, found).map(|found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Removes a file or a directory with all below it; what is absent is no error.
pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => on(path, removed),
    }
}
