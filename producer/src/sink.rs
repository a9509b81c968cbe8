//! Rows to an output file that is whole or absent: JSONL now, another format is another sink.
//!
//! In: [`Row`]s in input order. Out: the file, written beside its place as `<name>.partial`, synced, and renamed over
//! what was there. `-` is stdout; what exists and is no regular file (a pipe, `/dev/null`) is written directly.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use inferq_shared::reply::{Embedding, Label, ReplyError};
use serde::Serialize;

use crate::outcome::Error;

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// `-`.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// One item's line.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    /// The item's own id, else `<job id>/<its place in the job>`.
    pub id: Cow<'a, str>,
    /// The item's place in the input, from 0.
    pub index: u64,
    /// Its vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
    /// A classifier's scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Label>>,
    /// Why there is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'a, ReplyError>>,
    /// Tokens the model read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

/// Writes rows as JSON lines.
pub struct Sink {
    writer: BufWriter<Box<dyn Write>>,
    place: Option<Place>,
    name: String,
}

/// A file that is not yet in its place.
struct Place {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("an output must be a path, or - for stdout".to_owned()),
            "-" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
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
}

impl std::fmt::Display for Output {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("stdout"),
            Self::File(path) => path.display().fmt(formatter),
        }
    }
}

impl Sink {
    /// Opens `output`.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn create(output: &Output) -> Result<Self, Error> {
        Self::open(output).map_err(|error| Error::io(format!("can't write {output}"), error))
    }

    fn open(output: &Output) -> io::Result<Self> {
        let name = output.to_string();
        let Output::File(path) = output else {
            return Ok(Self { writer: buffered(io::stdout()), place: None, name });
        };
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            return Ok(Self { writer: buffered(File::options().write(true).open(path)?), place: None, name });
        }
        // Through links, so that the rename replaces the file and not the link to it.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial)?;
        Ok(Self { writer: buffered(file.try_clone()?), place: Some(Place { file, partial, path }), name })
    }

    /// Writes one row.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&mut self, row: &Row<'_>) -> Result<(), Error> {
        serde_json::to_writer(&mut self.writer, row)
            .map_err(io::Error::from)
            .and_then(|()| self.writer.write_all(b"\n"))
            .map_err(|error| Error::io(format!("can't write {}", self.name), error))
    }

    /// Makes the output durable and puts it into its place.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn finish(mut self) -> Result<(), Error> {
        let done = self.writer.flush().and_then(|()| self.place.as_ref().map_or(Ok(()), Place::take));
        done.map_err(|error| Error::io(format!("can't write {}", self.name), error))
    }
}

impl Place {
    fn take(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        File::open(folder(&self.path))?.sync_all()
    }
}

fn buffered(writer: impl Write + 'static) -> BufWriter<Box<dyn Write>> {
    BufWriter::with_capacity(1 << 18, Box::new(writer))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u64) -> Row<'static> {
        let embedding = Some(Embedding::Float(vec![0.1, -1.0]));
        Row { id: format!("i{index}").into(), index, embedding, labels: None, error: None, tokens: Some(3) }
    }

    #[test]
    fn the_output_appears_whole_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out.jsonl");
        fs::write(&path, "before").expect("a file");
        let output = Output::File(path.clone());
        let mut sink = Sink::create(&output).expect("a sink");
        sink.write(&row(0)).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "before");
        sink.finish().expect("finished");
        let expected = "{\"id\":\"i0\",\"index\":0,\"embedding\":[0.1,-1.0],\"tokens\":3}\n";
        assert_eq!(fs::read_to_string(&path).expect("readable"), expected);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing lies beside it");
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let mut sink = Sink::create(&Output::File("/dev/null".into())).expect("a sink");
        sink.write(&row(0)).expect("written");
        sink.finish().expect("finished");
        assert!(!Path::new("/dev/null").is_file());
    }

    #[test]
    fn an_output_that_can_not_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |path: PathBuf| Output::File(path).check().map_err(|error| error.to_string());
        assert!(check(dir.path().into()).expect_err("a directory").contains("is a directory"));
        assert!(check(dir.path().join("none/out")).expect_err("no directory").contains("no directory"));
        assert_eq!(check("out.jsonl".into()), Ok(()));
    }
}
