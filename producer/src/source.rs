//! Input files as a stream of entries: lines of JSON or text, whole jobs, or the rows of a Parquet file; from paths,
//! patterns or standard input.
//!
//! In: what `--input`, `--format` and the names of fields and columns say. Out: [`Entry`]s in input order, each an item,
//! a job, or the reason why it is neither. A bad line is data, not an error: the lines after it are read all the same.
//! It never holds more than a few megabytes, whatever the files hold. Another format is another `Format` here.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use inferq_shared::job::{Item, Job, Limits};

pub use self::rows::Columns;
pub use inferq_shared::job::line::{BadLine, Fields};

use self::inputs::{Origin, resolve};
use self::lines::{LineFormat, Lines};
use self::rows::Rows;

mod inputs;
mod lines;
mod object;
mod parse;
mod rows;

/// How items are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON value a line: a string, {"id", "text"}, or ["query", "passage"]. Blank lines are skipped.
    Jsonl,
    /// One text a line; a blank line is an empty text.
    Text,
    /// One item a row, in the columns that --column and --id-column name.
    Parquet,
    /// One whole job of the wire format a line, published as it stands. Blank lines are skipped.
    Jobs,
}

/// How the inputs are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Their format; each file's own, by its name, when absent.
    pub format: Option<Format>,
    /// The fields of a JSON object.
    pub fields: Fields,
    /// The columns of a Parquet file.
    pub columns: Columns,
}

/// Why an input could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What the flags name can't be an input.
    #[error("{0}")]
    Unusable(String),
    /// It is not what its format asks for, as a whole.
    #[error("{0}")]
    Damaged(String),
    /// Reading failed in the middle.
    #[error("can't read {name} after line {number}: {error}")]
    Io {
        /// Which input.
        name: Arc<str>,
        /// The last line that was read.
        number: u64,
        /// What the system says.
        error: io::Error,
    },
}

/// Where an entry stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or `stdin`.
    pub name: Arc<str>,
    /// What is counted.
    pub unit: Unit,
    /// Which of them, from 1.
    pub number: u64,
}

/// What the entries of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Lines of text.
    Line,
    /// Rows of a table.
    Row,
}

impl Place {
    /// Where it stands within its file.
    pub fn within_file(&self) -> String {
        match self.unit {
            Unit::Line => format!("line {}", self.number),
            Unit::Row => format!("row {}", self.number),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.within_file())
    }
}

/// One line or row of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What it holds.
    pub content: Result<Content, BadLine>,
}

/// What an entry holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An item, to be put into a job.
    Item(Item),
    /// A job.
    Job(Box<ReadyJob>),
}

/// A whole job of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyJob {
    /// What it says.
    pub job: Job,
    /// The same, as it stands in the input.
    pub body: Bytes,
}

impl Entry {
    /// The id that no other entry may have: the item's own or the job's.
    pub fn id(&self) -> Option<&str> {
        match &self.content {
            Ok(Content::Item(item)) => item.id.as_deref(),
            Ok(Content::Job(ready)) => Some(ready.job.id.as_str()),
            Err(bad) => bad.id.as_deref(),
        }
    }
}

/// A stream of entries.
pub struct Source {
    inputs: Arc<[(Origin, Format)]>,
    reading: Arc<Reading>,
    waiting: VecDeque<(Origin, Format)>,
    open: Option<Open>,
    limits: Limits,
    bytes_read: Arc<AtomicU64>,
    bytes_total: Option<u64>,
}

enum Open {
    Lines(Lines),
    Rows(Box<Rows>),
}

impl Source {
    /// Resolves `inputs` (paths, patterns, `-`) to files in order, without opening them.
    ///
    /// # Errors
    /// When an input is absent, a directory, matches nothing, or has an unknown format.
    pub fn new(inputs: &[String], reading: Reading) -> Result<Self, SourceError> {
        let origins = inputs.iter().map(|input| resolve(input)).collect::<Result<Vec<_>, _>>()?;
        let formatted = origins.into_iter().flatten().map(|origin| {
            let format = reading.format.map_or_else(|| origin.format(), Ok)?;
            Ok((origin, format))
        });
        Ok(Self::of(formatted.collect::<Result<_, SourceError>>()?, Arc::new(reading)))
    }

    fn of(inputs: Arc<[(Origin, Format)]>, reading: Arc<Reading>) -> Self {
        let bytes_total = inputs.iter().map(|(origin, _)| origin.bytes()).sum();
        let (waiting, bytes_read) = (inputs.iter().cloned().collect(), Arc::default());
        Self { inputs, reading, waiting, open: None, limits: Limits::default(), bytes_read, bytes_total }
    }

    /// A second stream of the same entries, from the first on; `None` when an input can be read only once.
    pub fn again(&self) -> Option<Self> {
        let can = self.inputs.iter().all(|(origin, _)| origin.bytes().is_some());
        can.then(|| Self::of(self.inputs.clone(), self.reading.clone()))
    }

    /// Opens every file once, so that one that can't be read, or is no table with the columns named, is refused early.
    ///
    /// # Errors
    /// When a file can't be an input.
    pub fn check_files(&self) -> Result<(), SourceError> {
        // What can be read only once is left alone.
        let is_file = |origin: &Origin, format| origin.bytes().is_some() || format == Format::Parquet;
        let mut files = self.inputs.iter().filter(|(origin, format)| is_file(origin, *format));
        files.try_for_each(|(origin, format)| self.open(origin, *format).map(drop))
    }

    /// Whether entries may have ids of their own.
    pub fn may_have_ids(&self) -> bool {
        self.inputs.iter().any(|(_, format)| match format {
            Format::Text => false,
            Format::Parquet => self.reading.columns.id.is_some(),
            Format::Jsonl | Format::Jobs => true,
        })
    }

    /// The share of the input that has been read, between 0 and 1; `None` when its size is unknown.
    pub fn fraction_read(&self) -> Option<f64> {
        let total = self.bytes_total.filter(|total| *total > 0)?;
        Some((self.bytes_read.load(Ordering::Relaxed) as f64 / total as f64).min(1.0))
    }

    /// The next entry; `None` at the end of the last input.
    ///
    /// # Errors
    /// When an input can't be opened or read. A bad line is no error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        loop {
            let entry = match &mut self.open {
                Some(Open::Lines(lines)) => lines.next_entry(&self.limits)?,
                Some(Open::Rows(rows)) => rows.next_entry(&self.limits)?,
                None => None,
            };
            if let Some(entry) = entry {
                return Ok(Some(entry.located()));
            }
            let Some((origin, format)) = self.waiting.pop_front() else {
                self.open = None;
                return Ok(None);
            };
            self.open = Some(self.open(&origin, format)?);
        }
    }

    fn open(&self, origin: &Origin, format: Format) -> Result<Open, SourceError> {
        let format = match format {
            Format::Parquet => {
                let rows = Rows::open(origin, self.reading.columns.clone(), &self.bytes_read)?;
                return Ok(Open::Rows(Box::new(rows)));
            }
            Format::Jsonl => LineFormat::Json(self.reading.fields.clone()),
            Format::Text => LineFormat::Text,
            Format::Jobs => LineFormat::Jobs,
        };
        let (reader, packing) = (origin.lines(&self.bytes_read)?, origin.packing());
        let place = Place { name: origin.name(), unit: Unit::Line, number: 0 };
        Ok(Open::Lines(Lines { reader, packing, format, place, line: Vec::new() }))
    }
}

impl Entry {
    /// The same, where what is wrong with it says where it stands.
    fn located(mut self) -> Self {
        if let Err(bad) = &mut self.content {
            bad.error.message = format!("{}: {}", self.place, bad.error.message);
        }
        self
    }
}

#[cfg(test)]
mod tests;
