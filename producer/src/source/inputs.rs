//! What `--input` names: files in order, their formats, and how their bytes are read.
//!
//! In: paths, patterns, addresses of objects and `-`. Out: [`Origin`]s, which open as a stream of lines, decompressed where the name says so,
//! or as a file. Whatever is read counts towards the progress. Nothing is opened before its turn.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use inferq_shared::packing::Packing;

use super::object::Object;
use super::{Format, SourceError};
use crate::address::Address;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 18;

/// One input.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Stdin,
    File(PathBuf),
    Object(Object),
}

impl Origin {
    /// What people call it.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Stdin => "stdin".into(),
            Self::File(path) => path.display().to_string().into(),
            Self::Object(object) => object.uri().to_string().into(),
        }
    }

    /// Its size as it lies there; `None` for what can be read only once.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Stdin => None,
            Self::File(path) => path.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len()),
            Self::Object(object) => Some(object.size()),
        }
    }

    /// How it is compressed.
    pub(super) fn packing(&self) -> Packing {
        Packing::of(&self.file_name())
    }

    /// The format that its name tells.
    ///
    /// # Errors
    /// When it tells none.
    pub(super) fn format(&self) -> Result<Format, SourceError> {
        let name = self.file_name();
        let extension = Path::new(Packing::split(&name).0).extension().map(|end| end.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
            Some("txt" | "text") => Ok(Format::Text),
            Some("parquet") => Ok(Format::Parquet),
            _ => Err(SourceError::Unusable(format!(
                "the format of {} can't be told from its name (.jsonl, .ndjson, .txt, .parquet; .gz or .zst after \
                 them): give --format jsonl, text, parquet or jobs",
                self.name()
            ))),
        }
    }

    /// What its ends are told from; empty for what has no name.
    fn file_name(&self) -> String {
        match self {
            Self::Stdin => String::new(),
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Object(object) => object.uri().name().to_owned(),
        }
    }

    /// Its bytes, decompressed; `read` counts those on the disk.
    ///
    /// # Errors
    /// When it can't be opened.
    pub(super) fn lines(&self, read: &Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>, SourceError> {
        let inner: Box<dyn Read + Send> = match self {
            Self::Stdin => return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin()))),
            Self::File(path) => Box::new(open(path)?),
            Self::Object(object) => Box::new(object.reader()),
        };
        let bytes = Counted { inner, read: read.clone() };
        let buffered = |reader: Box<dyn Read + Send>| Box::new(BufReader::with_capacity(BUFFER_BYTES, reader));
        Ok(match self.packing() {
            Packing::Plain => Box::new(BufReader::with_capacity(BUFFER_BYTES, bytes)),
            Packing::Gzip => buffered(Box::new(MultiGzDecoder::new(BufReader::new(bytes)))),
            Packing::Zstd => buffered(Box::new(zstd::Decoder::new(bytes).map_err(|e| cant_open(&self.name(), &e))?)),
        })
    }

    /// The file itself, for a format that is not read from its beginning to its end.
    ///
    /// # Errors
    /// When it is no regular file, or can't be opened.
    pub(super) fn file(&self) -> Result<File, SourceError> {
        match self {
            Self::File(path) if self.bytes().is_some() && self.packing() == Packing::Plain => open(path),
            _ => Err(SourceError::Unusable(format!(
                "{} can't be read as Parquet, which is not read from its beginning: name an uncompressed file on this machine",
                self.name()
            ))),
        }
    }
}

fn open(path: &Path) -> Result<File, SourceError> {
    File::open(path).map_err(|error| cant_open(&path.display(), &error))
}

fn cant_open(name: &dyn fmt::Display, error: &io::Error) -> SourceError {
    SourceError::Unusable(format!("can't open input {name}: {error}"))
}

/// Counts what is read.
struct Counted {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// The inputs that one `--input` names, in order.
///
/// # Errors
/// When it is absent, a directory, or matches nothing.
pub(super) fn resolve(input: &str) -> Result<Vec<Origin>, SourceError> {
    if input == "-" {
        return Ok(vec![Origin::Stdin]);
    }
    if let Some(address) = Address::of(input) {
        let address = address.map_err(|why| SourceError::Unusable(format!("input {input:?} {why}")))?;
        return Ok(vec![match address {
            Address::File(path) => Origin::File(path),
            Address::Object(uri) => Origin::Object(Object::look(&uri)?),
        }]);
    }
    let path = Path::new(input);
    if path.is_dir() {
        let message = format!("input {input} is a directory: name files, or a pattern like '{input}/*.jsonl'");
        return Err(SourceError::Unusable(message));
    }
    if path.exists() {
        return Ok(vec![Origin::File(path.to_owned())]);
    }
    if !input.contains(['*', '?', '[']) {
        return Err(SourceError::Unusable(format!("input {input} does not exist")));
    }
    matches_of(input)
}

fn matches_of(pattern: &str) -> Result<Vec<Origin>, SourceError> {
    let unusable = |what: &dyn fmt::Display| SourceError::Unusable(format!("input pattern {pattern}: {what}"));
    let paths = glob::glob(pattern).map_err(|error| unusable(&error))?;
    let paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| unusable(&error))?;
    let files: Vec<_> = paths.into_iter().filter(|path| path.is_file()).map(Origin::File).collect();
    if files.is_empty() {
        return Err(unusable(&"no file matches"));
    }
    Ok(files)
}
