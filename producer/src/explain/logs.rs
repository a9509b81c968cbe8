//! What the workers' logs say of one job.
//!
//! In: log files as the worker writes them when stderr is no terminal, one JSON object a line. Out: the lines whose
//! `job.id` or `job.ids` names the job, in the order of their times. Files are read line by line; what is kept is
//! bounded by [`LINES_MAX`], and a line that is longer than [`LINE_BYTES_MAX`] is no line of ours.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

/// Lines that are kept.
pub(super) const LINES_MAX: usize = 1000;
/// The longest line that is looked at.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Line {
    /// When.
    pub(super) time: Option<Timestamp>,
    /// `INFO`, `WARNING`…
    pub(super) severity: String,
    /// What happened.
    pub(super) message: String,
    /// Everything else that the line says, but the job's id.
    pub(super) fields: Map<String, Value>,
    /// The file it is in.
    pub(super) file: String,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) lines: Vec<Line>,
    /// Lines that name the job beyond those that are kept.
    pub(super) more: u64,
    /// Lines that hold the id and are no JSON.
    pub(super) unreadable: u64,
}

impl Lines {
    /// Adds what a file says of `job`.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn read(&mut self, file: &Path, job: &str) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, File::open(file)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            // Most lines are about other jobs: a search is far cheaper than reading each as JSON.
            if contains(&line, job.as_bytes()) {
                self.add(&line, job, &file.display().to_string());
            }
        }
    }

    /// In the order of their times.
    pub(super) fn sort(&mut self) {
        self.lines.sort_by_key(|line| line.time);
    }

    fn add(&mut self, line: &[u8], job: &str, file: &str) {
        let Ok(Value::Object(fields)) = serde_json::from_slice(line) else {
            self.unreadable += 1;
            return;
        };
        if !names(&fields, job) {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.more += 1;
            return;
        }
        self.lines.push(Line::new(fields, file));
    }
}

fn contains(line: &[u8], word: &[u8]) -> bool {
    // The first byte is searched for by the library's fast way; ids are short.
    let Some((&first, _)) = word.split_first() else { return false };
    let mut rest = line;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(word) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Whether `job.id` is the job, or `job.ids` lists it: as an array, or as text with something between the ids.
fn names(fields: &Map<String, Value>, job: &str) -> bool {
    let is_id = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    let lists = |ids: &Value| match ids {
        Value::Array(ids) => ids.iter().any(|id| id == job),
        Value::String(ids) => ids.split(|c| !is_id(c)).any(|id| id == job),
        _ => false,
    };
    fields.get("job.id").is_some_and(|id| id == job) || fields.get("job.ids").is_some_and(lists)
}

impl Line {
    fn new(mut fields: Map<String, Value>, file: &str) -> Self {
        let mut take = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (time, severity, message) = (take("time").parse().ok(), take("severity"), take("message"));
        for name in ["job.id", "job.ids", "target"] {
            fields.remove(name);
        }
        Self { time, severity, message, fields, file: file.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(files: &[&str], job: &str) -> Lines {
        let mut lines = Lines::default();
        for content in files {
            let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.write_all(content.as_bytes()).expect("it can be written");
            lines.read(file.path(), job).expect("it can be read");
        }
        lines.sort();
        lines
    }

    #[test]
    fn lines_that_name_the_job_come_in_the_order_of_their_times() {
        let one = r#"{"time":"2026-01-01T00:00:02Z","severity":"INFO","message":"answered","job.id":"s1-01","attempt":2}
{"time":"2026-01-01T00:00:00.5Z","severity":"WARNING","message":"released","job.id":"s1-01"}
{"time":"2026-01-01T00:00:01Z","message":"another","job.id":"s1-011"}
no JSON, but s1-01
"#;
        let two = r#"{"time":"2026-01-01T00:00:01Z","message":"batch","job.ids":["s1-00","s1-01"],"batch.items":7}
{"time":"2026-01-01T00:00:01.5Z","message":"ran","job.ids":"s1-00,s1-01"}
{"time":"2026-01-01T00:00:01.6Z","message":"other batch","job.ids":"s1-010 s1-011"}
{"time":"2026-01-01T00:00:01.7Z","message":"it only mentions s1-01"}"#;
        let lines = read(&[one, two], "s1-01");
        let messages: Vec<_> = lines.lines.iter().map(|line| &*line.message).collect();
        assert_eq!(messages, ["released", "batch", "ran", "answered"]);
        assert_eq!((lines.more, lines.unreadable), (0, 1));
        assert_eq!(Value::from(lines.lines[3].fields.clone()), serde_json::json!({"attempt": 2}));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_rest_is_counted() {
        let line = "{\"message\":\"x\",\"job.id\":\"a\"}\n";
        let lines = read(&[&line.repeat(LINES_MAX + 5)], "a");
        assert_eq!((lines.lines.len(), lines.more), (LINES_MAX, 5));
        let endless = format!("{{\"message\":\"{}\",\"job.id\":\"a\"}}\n{line}", "x".repeat(3 << 20));
        assert_eq!(read(&[&endless], "a").lines.len(), 1);
    }
}
