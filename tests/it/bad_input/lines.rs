//! Lines of a producer's input. All are in one file, each followed by a good line: `inferq run` answers every good one,
//! and the output has a row for each bad one, in its place, that says what is wrong.

use inferq_tests::process::command;
use serde_json::{Value, json};

use super::{Answer, item};

/// A line and what comes of it.
pub(super) struct Row {
    pub(super) given: &'static str,
    pub(super) answer: Answer,
    line: fn() -> Vec<u8>,
}

const fn row(given: &'static str, line: fn() -> Vec<u8>, answer: Answer) -> Row {
    Row { given, answer, line }
}

/// A line of so many bytes: an object with a short text and a long field that is ignored.
fn of_bytes(bytes: usize) -> Vec<u8> {
    let filled = |filling: usize| format!(r#"{{"text":"a","filling":"{}"}}"#, "x".repeat(filling)).into_bytes();
    filled(bytes - filled(0).len())
}

/// What a file of the format jsonl holds, beside good lines.
pub(super) const LINES: &[Row] = &[
    row(
        "text that is not JSON",
        || b"nonsense".into(),
        item("malformed", "not a JSON string, an object or a pair of strings"),
    ),
    row("a line cut short", || br#"{"text":"a te"#.into(), item("malformed", "not a JSON object: EOF")),
    row("two values in a line", || br#""a" "b""#.into(), item("malformed", "trailing characters")),
    row("a number", || b"7".into(), item("malformed", "not a JSON string, an object or a pair of strings")),
    row("`null`", || b"null".into(), item("malformed", "not a JSON string, an object or a pair of strings")),
    row("bytes that are not UTF-8", || b"\"a\xff\"".into(), item("malformed", "not UTF-8 from byte 2 on")),
    row(
        "random bytes",
        || (0..=255).filter(|byte| *byte != b'\n').collect(),
        item("malformed", "not UTF-8 from byte 127 on"),
    ),
    row("a NUL byte", || b"\"a\x00b\"".into(), item("malformed", "control character")),
    row("an escaped NUL", || br#""a\u0000b""#.into(), Answer::Succeeded),
    row("half of a surrogate pair", || br#""\ud83d""#.into(), item("malformed", "unexpected end of hex escape")),
    row("an empty text", || b"\"\"".into(), Answer::Succeeded),
    row("a carriage return at the end", || b"\"a\"\r".into(), Answer::Succeeded),
    row(
        "an object without `text`",
        || br#"{"id":"a"}"#.into(),
        item("malformed", "the object has no field \"text\"; --text-field names another one"),
    ),
    row("`text` a number", || br#"{"text":7}"#.into(), item("malformed", "field \"text\" is no string")),
    row("`text` `null`", || br#"{"text":null}"#.into(), item("malformed", "field \"text\" is no string")),
    row(
        "`id` empty",
        || br#"{"id":"","text":"a"}"#.into(),
        item("malformed", "field \"id\" has 0 bytes, an id must have 1 to 512"),
    ),
    row(
        "`id` of 513 bytes",
        || format!(r#"{{"id":"{}","text":"a"}}"#, "x".repeat(513)).into(),
        item("malformed", "field \"id\" has 513 bytes, an id must have 1 to 512"),
    ),
    row("`id` 1.5", || br#"{"id":1.5,"text":"a"}"#.into(), item("malformed", "field \"id\" is no string or integer")),
    row(
        "`id` a list",
        || br#"{"id":["a"],"text":"a"}"#.into(),
        item("malformed", "field \"id\" is no string or integer"),
    ),
    row(
        "a list of three",
        || br#"["a","b","c"]"#.into(),
        item("malformed", "a pair must be exactly a query and a passage"),
    ),
    row("a pair with a number", || br#"["a",7]"#.into(), item("malformed", "invalid type: integer")),
    row(
        "1,000,000 arrays in one another",
        || vec![b'['; 1_000_000],
        item("malformed", "not a JSON string, an object or a pair of strings"),
    ),
    row("a text of 1 MiB", || format!("\"{}\"", "x".repeat(1 << 20)).into(), Answer::Succeeded),
    row(
        "a text of 1 MiB and a byte",
        || format!("\"{}\"", "x".repeat((1 << 20) + 1)).into(),
        item("limit_exceeded", "the text has 1048577 bytes, the limit is 1048576"),
    ),
    row(
        "a line of 16 MiB and a byte",
        || of_bytes((16 << 20) + 1),
        item("limit_exceeded", "the limit is 16777216: split or shorten it"),
    ),
];

fn differs(row: &Row, output: &Value) -> Option<String> {
    let error = &output["error"];
    let agrees = match row.answer {
        Answer::Succeeded => output["embedding"].is_array(),
        Answer::Item { code, says } => {
            error["code"] == code && error["message"].as_str().is_some_and(|message| message.contains(says))
        }
        _ => false,
    };
    (!agrees).then(|| format!("{}: {} was expected, not {output}", row.given, row.answer))
}

#[test]
fn every_bad_line_is_a_row_that_says_why_and_every_good_one_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("lines.jsonl"), folder.path().join("out.jsonl"));
    let good = |number: usize| json!({"id": format!("good-{number}"), "text": "a good text"}).to_string().into_bytes();
    let lines = LINES.iter().enumerate().flat_map(|(number, row)| [(row.line)(), good(number)]);
    std::fs::write(&input, lines.collect::<Vec<_>>().join(&b'\n')).unwrap();
    let ran = command("inferq")
        .args(["run", "--engine", "echo", "--items-per-job", "8", "--input"])
        .arg(&input)
        .arg("--output")
        .arg(&output)
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(2), "{}", String::from_utf8_lossy(&ran.stderr));
    let rows: Vec<Value> =
        std::fs::read_to_string(&output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2 * LINES.len());
    let mut wrong = Vec::new();
    for (number, (row, output)) in LINES.iter().zip(rows.as_chunks::<2>().0).enumerate() {
        let [bad, good] = output;
        assert!(good["id"] == format!("good-{number}") && good["embedding"].is_array(), "after {}: {good}", row.given);
        wrong.extend(differs(row, bad));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
