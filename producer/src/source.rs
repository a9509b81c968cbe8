//! Input files as a stream of entries, one a line: JSONL or plain text, from paths, patterns or standard input.
//!
//! In: what `--input`, `--format` and the field flags say. Out: [`Entry`]s in input order, each an item or the reason
//! why its line is none. A bad line is data, not an error: the lines after it are read all the same. It never holds
//! more than one line, and of a line that is too long not even that. Another format is another `Format` here.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inferq_shared::job::{Input, Item, Limits};
use inferq_shared::reply::ReplyError;
use serde_json::value::RawValue;

/// How items are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON value a line: a string, {"id", "text"}, or ["query", "passage"]. Blank lines are skipped.
    Jsonl,
    /// One text a line; a blank line is an empty text.
    Text,
}

/// The names of the fields that are read from a JSON object; all others are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// Holds the text.
    pub text: String,
    /// Holds the item's id, a string or an integer; may be absent.
    pub id: String,
}

/// Why an input could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What the flags name can't be an input.
    #[error("{0}")]
    Unusable(String),
    /// Reading failed in the middle.
    #[error("can't read {name} after line {line}: {error}")]
    Io {
        /// Which input.
        name: Arc<str>,
        /// The last line that was read.
        line: u64,
        /// What the system says.
        error: io::Error,
    },
}

/// Where an entry stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or `stdin`.
    pub name: Arc<str>,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} line {}", self.name, self.line)
    }
}

/// One line of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What it holds.
    pub item: Result<Item, BadLine>,
}

/// A line that is no item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// The item's own id, where it could be read.
    pub id: Option<String>,
    /// What is wrong, with file and line.
    pub error: ReplyError,
}

/// A stream of entries.
pub struct Source {
    waiting: VecDeque<(Origin, Format)>,
    open: Option<Open>,
    fields: Fields,
    limits: Limits,
    line: Vec<u8>,
    bytes_read: u64,
    bytes_total: Option<u64>,
}

enum Origin {
    Stdin,
    File(PathBuf),
}

struct Open {
    reader: Box<dyn BufRead + Send>,
    format: Format,
    place: Place,
}

/// A JSON line may be longer than its text: escapes and other fields. Beyond this it is not even read.
const LINE_BYTES_MAX: usize = 16 << 20;

impl Source {
    /// Resolves `inputs` (paths, patterns, `-`) to files in order, without opening them. `format` overrides what the
    /// extensions say.
    ///
    /// # Errors
    /// When an input is absent, a directory, matches nothing, or has an unknown format.
    pub fn new(inputs: &[String], format: Option<Format>, fields: Fields) -> Result<Self, SourceError> {
        let mut waiting = VecDeque::new();
        for origin in inputs.iter().map(|input| resolve(input)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
            let format = format.map_or_else(|| format_of(&origin), Ok)?;
            waiting.push_back((origin, format));
        }
        let bytes_total = waiting.iter().map(|(origin, _)| origin.bytes()).sum();
        let (limits, line) = (Limits::default(), Vec::new());
        Ok(Self { waiting, open: None, fields, limits, line, bytes_read: 0, bytes_total })
    }

    /// The share of the input that has been read, between 0 and 1; `None` when its size is unknown.
    pub fn fraction_read(&self) -> Option<f64> {
        let total = self.bytes_total.filter(|total| *total > 0)?;
        Some((self.bytes_read as f64 / total as f64).min(1.0))
    }

    /// The next entry; `None` at the end of the last input.
    ///
    /// # Errors
    /// When an input can't be opened or read. A bad line is no error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        loop {
            if self.open.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let open = self.open.as_mut().expect("an input was opened just above");
            let bytes = read_line(&mut open.reader, &mut self.line, LINE_BYTES_MAX)
                .map_err(|error| SourceError::Io { name: open.place.name.clone(), line: open.place.line, error })?;
            if bytes == 0 {
                self.open = None;
                continue;
            }
            self.bytes_read += bytes;
            open.place.line += 1;
            let text = trimmed(&self.line, open.place.line == 1);
            if open.format == Format::Jsonl && text.trim_ascii().is_empty() {
                continue;
            }
            let item = parse(text, bytes, open.format, &self.fields, &self.limits);
            let place = open.place.clone();
            let item = item.map_err(|bad| bad.at(&place));
            return Ok(Some(Entry { place, item }));
        }
    }

    fn open_next(&mut self) -> Result<bool, SourceError> {
        let Some((origin, format)) = self.waiting.pop_front() else { return Ok(false) };
        let place = Place { name: origin.name(), line: 0 };
        let reader: Box<dyn BufRead + Send> = match &origin {
            Origin::Stdin => Box::new(BufReader::with_capacity(1 << 16, io::stdin())),
            Origin::File(path) => {
                let file = File::open(path)
                    .map_err(|error| SourceError::Unusable(format!("can't open input {}: {error}", path.display())))?;
                Box::new(BufReader::with_capacity(1 << 16, file))
            }
        };
        self.open = Some(Open { reader, format, place });
        Ok(true)
    }
}

impl Origin {
    fn name(&self) -> Arc<str> {
        match self {
            Self::Stdin => "stdin".into(),
            Self::File(path) => path.display().to_string().into(),
        }
    }

    fn bytes(&self) -> Option<u64> {
        match self {
            Self::Stdin => None,
            Self::File(path) => path.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len()),
        }
    }
}

fn resolve(input: &str) -> Result<Vec<Origin>, SourceError> {
    if input == "-" {
        return Ok(vec![Origin::Stdin]);
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

fn format_of(origin: &Origin) -> Result<Format, SourceError> {
    let extension = match origin {
        Origin::Stdin => None,
        Origin::File(path) => path.extension().and_then(|extension| extension.to_str()),
    };
    match extension {
        Some("jsonl" | "ndjson") => Ok(Format::Jsonl),
        Some("txt" | "text") => Ok(Format::Text),
        _ => {
            let message = format!(
                "the format of {} can't be told from its name (.jsonl, .ndjson, .txt): give --format jsonl or text",
                origin.name()
            );
            Err(SourceError::Unusable(message))
        }
    }
}

/// Reads one line into `line`, of which no more than `limit` bytes are kept. Returns the bytes that the line has in the
/// file, 0 at its end.
fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, limit: usize) -> io::Result<u64> {
    line.clear();
    let mut bytes = 0;
    loop {
        let available = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            available => available?,
        };
        if available.is_empty() {
            return Ok(bytes);
        }
        let newline = available.iter().position(|byte| *byte == b'\n');
        let taken = newline.map_or(available.len(), |at| at + 1);
        let kept = taken.min(limit.saturating_sub(line.len()));
        line.extend_from_slice(&available[..kept]);
        reader.consume(taken);
        bytes += taken as u64;
        if newline.is_some() {
            return Ok(bytes);
        }
    }
}

/// The line without its end, and at the start of a file without a byte order mark.
fn trimmed(line: &[u8], first: bool) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if first { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line }
}

impl BadLine {
    fn malformed(message: impl Into<String>) -> Self {
        Self { id: None, error: ReplyError::new("malformed", message) }
    }

    fn too_long(what: &str, bytes: u64, limit: usize) -> Self {
        let message = format!("{what} has {bytes} bytes, the limit is {limit}: split or shorten it");
        Self { id: None, error: ReplyError::new("limit_exceeded", message) }
    }

    fn at(mut self, place: &Place) -> Self {
        self.error.message = format!("{place}: {}", self.error.message);
        self
    }
}

fn parse(line: &[u8], bytes: u64, format: Format, fields: &Fields, limits: &Limits) -> Result<Item, BadLine> {
    let limit = if format == Format::Text { limits.input_bytes } else { LINE_BYTES_MAX };
    if bytes > LINE_BYTES_MAX as u64 || line.len() > limit {
        return Err(BadLine::too_long("the line", bytes, limit));
    }
    let line = std::str::from_utf8(line)
        .map_err(|error| BadLine::malformed(format!("not UTF-8 from byte {} on", error.valid_up_to())))?;
    let item = match format {
        Format::Text => Item { id: None, input: Input::Text(line.to_owned()) },
        Format::Jsonl => parse_json(line.trim(), fields)?,
    };
    let bytes = item.input.len_bytes();
    if bytes > limits.input_bytes {
        let bad = BadLine::too_long("the text", bytes as u64, limits.input_bytes);
        return Err(BadLine { id: item.id, ..bad });
    }
    Ok(item)
}

fn parse_json(line: &str, fields: &Fields) -> Result<Item, BadLine> {
    if line.starts_with('{') {
        return parse_object(line, fields);
    }
    serde_json::from_str(line).map_err(|error| {
        BadLine::malformed(format!("not a JSON string, an object or a pair of strings: {}", column_only(&error)))
    })
}

fn parse_object(line: &str, fields: &Fields) -> Result<Item, BadLine> {
    let object: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(line)
        .map_err(|error| BadLine::malformed(format!("not a JSON object: {}", column_only(&error))))?;
    let id = object.get(fields.id.as_str()).map(|raw| item_id(raw, &fields.id)).transpose()?.flatten();
    let named = |message: String| BadLine { id: id.clone(), ..BadLine::malformed(message) };
    let Some(raw) = object.get(fields.text.as_str()) else {
        let message = format!("the object has no field {:?}; --text-field names another one", fields.text);
        return Err(named(message));
    };
    let text = serde_json::from_str(raw.get()).map_err(|_| named(format!("field {:?} is no string", fields.text)))?;
    Ok(Item { id, input: Input::Text(text) })
}

/// An item's id: a string or an integer; `null` is none.
fn item_id(raw: &RawValue, field: &str) -> Result<Option<String>, BadLine> {
    let id = match serde_json::from_str(raw.get()) {
        Ok(serde_json::Value::Null) => return Ok(None),
        Ok(serde_json::Value::String(id)) => id,
        Ok(serde_json::Value::Number(number)) if !number.is_f64() => number.to_string(),
        _ => return Err(BadLine::malformed(format!("field {field:?} is no string or integer"))),
    };
    if id.is_empty() || id.len() > Item::ID_BYTES_MAX {
        let (bytes, limit) = (id.len(), Item::ID_BYTES_MAX);
        return Err(BadLine::malformed(format!("field {field:?} has {bytes} bytes, an id must have 1 to {limit}")));
    }
    Ok(Some(id))
}

/// A JSON error without the line, which is always 1 here.
fn column_only(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

#[cfg(test)]
mod tests;
