//! Outputs that are whole or absent.
//!
//! In: what `--output` says. Out: the file, written beside its place as `<name>.partial`, synced, and renamed over what was
//! there. `-` is stdout; what exists and is no regular file (a pipe, `/dev/null`) is written directly. An object is made as
//! a file in the folder for temporary files, and uploaded whole. A partial file is locked while it is written, so that two
//! commands never write one output.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use inferq_shared::bucket::{Buckets, Uri};
use tempfile::NamedTempFile;
use tokio::runtime::Handle;

use super::Format;
use crate::address::Address;
use crate::outage;
use crate::outcome::Error;

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// `-`.
    Stdout,
    /// A file.
    File(PathBuf),
    /// An object in a bucket.
    Object(Uri),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("an output must be a path, or - for stdout".to_owned()),
            "-" => Ok(Self::Stdout),
            text => match Address::of(text) {
                None => Ok(Self::File(text.into())),
                Some(Ok(Address::File(path))) => Ok(Self::File(path)),
                Some(Ok(Address::Object(uri))) => Ok(Self::Object(uri)),
                Some(Err(why)) => Err(why),
            },
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("stdout"),
            Self::File(path) => path.display().fmt(formatter),
            Self::Object(uri) => uri.fmt(formatter),
        }
    }
}

impl Output {
    /// Checks that the output can be written, so that long work doesn't end in vain.
    ///
    /// # Errors
    /// When it is a directory, or its directory is absent.
    pub fn check(&self) -> Result<(), Error> {
        let Self::File(path) = self else { return Ok(()) };
        if path.is_dir() {
            return Err(Error::Usage(format!("output {} is a directory: name a file in it", path.display())));
        }
        if !folder(path).is_dir() {
            let message = format!("output {}: there is no directory {}", path.display(), folder(path).display());
            return Err(Error::Usage(message));
        }
        Ok(())
    }

    /// The file, unless it is stdout or something else that can't be replaced.
    pub fn regular_file(&self) -> Option<&Path> {
        match self {
            Self::File(path) if path.metadata().map_or(true, |meta| meta.is_file()) => Some(path),
            _ => None,
        }
    }

    /// The format that the name asks for.
    pub fn format(&self) -> Format {
        if self.has_extension("parquet") { Format::Parquet } else { Format::Jsonl }
    }

    /// Whether the name asks for compressed lines.
    pub fn is_zstd(&self) -> bool {
        self.has_extension("zst")
    }

    fn has_extension(&self, expected: &str) -> bool {
        self.name().and_then(Path::extension).is_some_and(|extension| extension == expected)
    }

    /// The name that its ends are told from: a path, or that of an object without its bucket and folder.
    pub fn name(&self) -> Option<&Path> {
        match self {
            Self::Stdout => None,
            Self::File(path) => Some(path),
            Self::Object(uri) => Some(Path::new(uri.name())),
        }
    }

    /// An error of writing here.
    pub fn error(&self, error: impl Into<io::Error>) -> Error {
        Error::io(format!("can't write {self}"), error.into())
    }
}

/// An output that nobody else writes meanwhile.
#[derive(Debug)]
pub struct Reserved {
    pub(super) output: Output,
    place: Placed,
}

#[derive(Debug)]
enum Placed {
    /// Written where it goes.
    Direct,
    /// Renamed over what was there.
    Beside(Place),
    /// Made here first, then uploaded: an object appears whole.
    Uploaded(Uri, NamedTempFile),
}

/// A file that is not yet in its place. Dropped before that, it leaves nothing.
#[derive(Debug)]
struct Place {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    taken: bool,
}

impl Reserved {
    /// Reserves `output` for this process.
    ///
    /// # Errors
    /// When another process is writing it, or its file can't be made.
    pub fn new(output: Output) -> Result<Self, Error> {
        output.check()?;
        let place = match (&output, output.regular_file()) {
            (Output::Object(uri), _) => {
                Placed::Uploaded(uri.clone(), NamedTempFile::new().map_err(|error| output.error(error))?)
            }
            (_, None) => Placed::Direct,
            (_, Some(path)) => Placed::Beside(Place::reserve(path).map_err(|error| refused(&output, error))?),
        };
        Ok(Self { output, place })
    }

    pub(super) fn writer(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match (&self.place, &self.output) {
            (Placed::Beside(place), _) => Box::new(place.file.try_clone()?),
            (Placed::Uploaded(_, file), _) => Box::new(file.as_file().try_clone()?),
            (Placed::Direct, Output::File(path)) => Box::new(File::options().write(true).open(path)?),
            (Placed::Direct, _) => Box::new(io::stdout()),
        })
    }

    /// Makes the output durable and puts it into its place.
    ///
    /// # Errors
    /// When the file can't be written, or the bucket refuses the object.
    pub fn finish(mut self) -> Result<(), Error> {
        match &mut self.place {
            Placed::Direct => Ok(()),
            Placed::Beside(place) => place.take().map_err(|error| self.output.error(error)),
            Placed::Uploaded(uri, file) => upload(uri, file.path()),
        }
    }
}

/// Puts an object into its place, replacing what was there.
fn upload(uri: &Uri, file: &Path) -> Result<(), Error> {
    let buckets = Buckets::new();
    outage::blocking(&Handle::current(), || buckets.upload(uri, file, |_| ()))?;
    Ok(())
}

/// The error of an output that could not be reserved.
pub fn refused(output: &Output, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => Error::Usage(format!(
            "output {output} is being written by another process: wait for it, or name another file"
        )),
        _ => output.error(error),
    }
}

impl Place {
    fn reserve(path: &Path) -> io::Result<Self> {
        // Through links, so that the rename replaces the file and not the link to it.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&partial)?;
            file.try_lock()?;
            // Whoever had it may have renamed or removed it between our opening and our locking.
            if is_at(&file, &partial) {
                file.set_len(0)?;
                return Ok(Self { file, partial, path, taken: false });
            }
        }
    }

    fn take(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.taken = true;
        File::open(folder(&self.path))?.sync_all()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            // What stays is written anew by the next one.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Whether `path` still names the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: io::Result<fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
    id(file.metadata()).is_some_and(|ours| id(fs::metadata(path)) == Some(ours))
}

/// The folder that a file lies in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
