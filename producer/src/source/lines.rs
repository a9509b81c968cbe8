//! A file of lines as entries.
//!
//! In: a stream of bytes and what its lines are. Out: one entry a line, in order; blank lines of JSON are none. It
//! holds one line at a time, and of a line that is too long not even that.

use std::io::{self, BufRead};

use bytes::Bytes;
use inferq_shared::job::Limits;
use inferq_shared::job::line::{self, BadLine, Fields};
use inferq_shared::packing::Packing;

use super::object::is_of_bucket;
use super::parse;
use super::{Content, Entry, Place, ReadyJob, SourceError};

/// A JSON line may be longer than its text: escapes and other fields. Beyond this it is not even read.
pub(super) const LINE_BYTES_MAX: usize = 16 << 20;

/// What the lines are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LineFormat {
    Json(Fields),
    Text,
    Jobs,
}

/// A stream of lines.
pub(super) struct Lines {
    pub(super) reader: Box<dyn BufRead + Send>,
    pub(super) packing: Packing,
    pub(super) format: LineFormat,
    /// Where the line stands that was read last.
    pub(super) place: Place,
    pub(super) line: Vec<u8>,
}

impl Lines {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub(super) fn next_entry(&mut self, limits: &Limits) -> Result<Option<Entry>, SourceError> {
        loop {
            let bytes = read_line(&mut self.reader, &mut self.line, LINE_BYTES_MAX).map_err(|e| self.failed(e))?;
            if bytes == 0 {
                return Ok(None);
            }
            self.place.number += 1;
            let line = trimmed(&self.line, self.place.number == 1);
            if self.format != LineFormat::Text && line.trim_ascii().is_empty() {
                continue;
            }
            let content = self.parse(line, bytes, limits);
            return Ok(Some(Entry { place: self.place.clone(), content }));
        }
    }

    fn parse(&self, line: &[u8], bytes: u64, limits: &Limits) -> Result<Content, BadLine> {
        if bytes > LINE_BYTES_MAX as u64 {
            let limit = if self.format == LineFormat::Text { limits.input_bytes } else { LINE_BYTES_MAX };
            return Err(BadLine::too_long("the line", bytes, limit));
        }
        match &self.format {
            LineFormat::Text => line::text(line, limits).map(Content::Item),
            LineFormat::Json(fields) => line::item(line, fields, limits).map(Content::Item),
            LineFormat::Jobs => {
                let job = parse::job(line, limits)?;
                let body = Bytes::copy_from_slice(line.trim_ascii());
                Ok(Content::Job(Box::new(ReadyJob { job, body })))
            }
        }
    }

    fn failed(&self, error: io::Error) -> SourceError {
        let (name, number) = (self.place.name.clone(), self.place.number);
        // What the decompressor refuses is no failure of the system.
        if self.packing != Packing::Plain && error.raw_os_error().is_none() && !is_of_bucket(&error) {
            return SourceError::Damaged(format!("{name} is cut short or damaged after line {number}: {error}"));
        }
        SourceError::Io { name, number, error }
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
        let newline = memchr::memchr(b'\n', available);
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
