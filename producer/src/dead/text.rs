//! Dead letters for people and scripts: a line in a list, all of one, JSON.
//!
//! In: a [`Letter`] and the instant. Out: text in which nothing acts on a terminal.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use inferq_shared::job::attribute;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::letter::Letter;
use crate::paint::Paint;
use crate::progress::{duration, grouped};
use crate::shown;

/// Characters of a letter's body in the list.
const HEAD: usize = 40;
/// Characters of a reason and an id in the list.
const REASON: usize = 48;
pub(super) const ID: usize = 32;

const COLUMNS: [&str; 7] = ["key", "id", "reason", "attempts", "when", "bytes", "begins"];

pub(super) fn row(letter: &Letter, now: Timestamp) -> Vec<String> {
    vec![
        letter.key.clone(),
        letter.id.as_ref().map_or("-".to_owned(), |id| shown::line(id.as_bytes(), ID)),
        shown::line(letter.reason.as_bytes(), REASON),
        letter.attempts.map_or("-".to_owned(), |attempts| attempts.to_string()),
        when(letter, now),
        grouped(letter.message.body.len() as u64),
        shown::line(&letter.message.body, HEAD),
    ]
}

fn when(letter: &Letter, now: Timestamp) -> String {
    let age = |at| duration(Duration::try_from(now.duration_since(at)).unwrap_or_default());
    letter.at.map_or("-".to_owned(), |at| format!("{} ago", age(at)))
}

/// The rows under their headings, each column as wide as it must be.
pub(super) fn table(rows: &[Vec<String>], paint: Paint) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(COLUMNS[column].len())
    };
    let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = paint.heading(&line(&COLUMNS)) + "\n";
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        text.push('\n');
    }
    text
}

/// What is known of a letter, but its attributes and body; documented in docs/operations.md.
pub(super) fn facts(letter: &Letter) -> Map<String, Value> {
    let facts = json!({
        "key": letter.key,
        "id": letter.id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "at": letter.at,
        "queue": letter.queue,
        "bytes": letter.message.body.len(),
        "begins": shown::line(&letter.message.body, HEAD),
    });
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}

pub(super) fn whole(letter: &Letter) -> Value {
    let mut whole = facts(letter);
    let (text, base64) = match std::str::from_utf8(&letter.message.body) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(&letter.message.body))),
    };
    whole.extend([
        ("attributes".to_owned(), json!(letter.message.attributes)),
        ("body".to_owned(), json!(text)),
        ("body_base64".to_owned(), json!(base64)),
    ]);
    Value::Object(whole)
}

pub(super) fn described(letter: &Letter, now: Timestamp, paint: Paint) -> String {
    let safe = |text: &str| shown::line(text.as_bytes(), 4096);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut text = String::new();
    let mut fact = |name: &str, value: String| text += &format!("{} {value}\n", paint.heading(&format!("{name:10}")));
    fact("key", letter.key.clone());
    fact("id", or_dash(letter.id.as_deref().map(safe)));
    fact("reason", safe(&letter.reason));
    fact("attempts", or_dash(letter.attempts.map(|attempts| attempts.to_string())));
    fact("when", letter.at.map_or("-".to_owned(), |at| format!("{at} ({})", when(letter, now))));
    fact("from", or_dash(letter.queue.as_deref().map(safe)));
    if let Some(parent) = letter.message.attributes.get(attribute::PARENT) {
        fact("parent", format!("{}, which stays open until this shard is redriven", safe(parent)));
    }
    fact("bytes", grouped(letter.message.body.len() as u64));
    for (name, value) in &letter.message.attributes {
        fact("attribute", format!("{}: {}", safe(name), safe(value)));
    }
    format!("{text}{}\n{}\n\n", paint.heading("body"), shown::block(&letter.message.body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_line_a_letter_and_nothing_in_it_acts_on_the_terminal() {
        let attributes = [("inferq-dead-reason", "malformed: \u{1b}[2J"), ("inferq-dead-attempt", "2")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let letter = Letter::new(inferq_shared::broker::Message { body: "\u{7}{\n}".into(), attributes });
        let table = table(&[row(&letter, Timestamp::UNIX_EPOCH)], Paint::new(crate::paint::When::Never));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("key           id  reason"), "{table}");
        let expected = format!("{}  -   malformed: \\u{{1b}}[2J  2         -     4      \\u{{7}}{{\\n}}", letter.key);
        assert_eq!(lines[1], expected);
    }
}
