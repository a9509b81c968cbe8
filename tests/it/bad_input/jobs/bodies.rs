//! The body as a whole, its version, its id, its model.

use inferq_shared::job::attribute;
use serde_json::json;

use super::super::{Answer, dead, rejected};
use super::{Beside, Row, row, with};

/// A good job with so many arrays and objects in one another, its own object being the first.
fn nested(levels: usize) -> Vec<u8> {
    let arrays = levels - 2;
    let metadata = format!(r#"{{"k":{}{}}}"#, "[".repeat(arrays), "]".repeat(arrays));
    format!(r#"{{"version":1,"id":"bad","inputs":["a"],"metadata":{metadata}}}"#).into_bytes()
}

/// A good job whose body has exactly so many bytes.
fn of_bytes(bytes: usize) -> Vec<u8> {
    let largest = "x".repeat(1 << 20);
    let inputs = |last: usize| json!({"inputs": [largest, largest, largest, largest, largest, largest, largest, "x".repeat(last)]});
    with(inputs(bytes - with(inputs(0)).len()))
}

const MILLION: usize = 1_000_000;

/// What a worker is given.
pub(in crate::bad_input) const BODIES: &[Row] = &[
    row("an empty body", Vec::new, dead("malformed", "the body is not a JSON object")),
    row("text that is not JSON", || b"nonsense".into(), dead("malformed", "the body is not a JSON object")),
    row(
        "the same, with the attribute `inferq-job-id`",
        || b"nonsense".into(),
        rejected("malformed", "the body is not a JSON object"),
    )
    .beside(Beside::Id),
    row("a JSON array", || b"[1]".into(), dead("malformed", "the body is not a JSON object")),
    row("a JSON string", || b"\"a text\"".into(), dead("malformed", "the body is not a JSON object")),
    row("a JSON number", || b"7".into(), dead("malformed", "the body is not a JSON object")),
    row("`null`", || b"null".into(), dead("malformed", "the body is not a JSON object")),
    row(
        "a job cut short",
        || br#"{"version":1,"id":"bad","inputs":["a te"#.into(),
        rejected("malformed", "EOF while parsing a string"),
    ),
    row(
        "a job and more after it",
        || [with(json!({})), b" x".into()].concat(),
        rejected("malformed", "trailing characters"),
    ),
    row(
        "bytes that are not UTF-8",
        || b"{\"id\":\"bad\xff\"}".into(),
        dead("malformed", "the body is not UTF-8 at byte 10"),
    ),
    row(
        "the same, with the attribute",
        || b"{\"id\":\"bad\xff\"}".into(),
        rejected("malformed", "the body is not UTF-8 at byte 10"),
    )
    .beside(Beside::Id),
    row(
        "UTF-16",
        || "{}".encode_utf16().flat_map(u16::to_be_bytes).collect(),
        dead("malformed", "the body is not a JSON object"),
    ),
    row(
        "a gzip file",
        || b"\x1f\x8b\x08\x00\x00\x00\x00\x00".into(),
        dead("malformed", "the body is not UTF-8 at byte 1"),
    ),
    row(
        "a byte order mark",
        || [b"\xef\xbb\xbf".into(), with(json!({}))].concat(),
        dead("malformed", "the body starts with a byte order mark: leave it out"),
    ),
    row(
        "a NUL byte in a text",
        || b"{\"version\":1,\"id\":\"bad\",\"inputs\":[\"a\x00b\"]}".into(),
        rejected("malformed", "control character"),
    ),
    row(
        "a field twice",
        || br#"{"version":1,"id":"bad","inputs":["a"],"inputs":["b"]}"#.into(),
        rejected("malformed", "inputs stands twice"),
    ),
    row(
        "the id twice",
        || br#"{"version":1,"id":"a","id":"b","inputs":["a"]}"#.into(),
        dead("malformed", "id stands twice"),
    ),
    row("unknown fields", || with(json!({"priority": 7, "inputs_": [[[]]]})), Answer::Succeeded),
    row(
        "1,000,000 arrays in one another",
        || format!(r#"{{"version":1,"id":"bad","inputs":{}}}"#, "[".repeat(MILLION)).into(),
        dead("limit_exceeded", "more than 32 arrays and objects in one another"),
    ),
    row(
        "the same, with the attribute",
        || format!(r#"{{"version":1,"id":"bad","inputs":{}}}"#, "[".repeat(MILLION)).into(),
        rejected("limit_exceeded", "more than 32 arrays and objects in one another"),
    )
    .beside(Beside::Id),
    row("32 arrays and objects in one another", || nested(32), Answer::Succeeded),
    row("33 arrays and objects in one another", || nested(33), dead("limit_exceeded", "more than 32 arrays")),
    row("a body of 8 MiB", || of_bytes(8 << 20), Answer::Succeeded),
    row(
        "a body of 8 MiB and a byte",
        || of_bytes((8 << 20) + 1),
        dead("limit_exceeded", "the body has 8388609 bytes, the limit is 8388608"),
    ),
    row(
        "the same, with the attribute",
        || of_bytes((8 << 20) + 1),
        rejected("limit_exceeded", "the body has 8388609 bytes"),
    )
    .beside(Beside::Id),
    // The version.
    row("no `version`", || with(json!({"version": null})), rejected("invalid", "version is missing")),
    row("`version` 0", || with(json!({"version": 0})), rejected("invalid", "version: is 0, the first is 1")),
    row("`version` -1", || with(json!({"version": -1})), rejected("invalid", "version: invalid value: integer `-1`")),
    row(
        "`version` 1.5",
        || with(json!({"version": 1.5})),
        rejected("invalid", "version: invalid type: floating point"),
    ),
    row("`version` \"1\"", || with(json!({"version": "1"})), rejected("invalid", "version: invalid type: string")),
    row(
        "`version` 2^64",
        || with(json!({"version": 2f64.powi(64)})),
        rejected("invalid", "version: invalid type: floating point"),
    ),
    row(
        "`version` 2, and no worker that reads it within `--unfit-limit-s`",
        || with(json!({"version": 2})),
        rejected("no_worker", "a newer version of the wire format"),
    )
    .beside(Beside::LongAgo),
    // The id.
    row("no `id`", || with(json!({"id": null})), dead("invalid", "id is missing")),
    row("the same, with the attribute", || with(json!({"id": null})), rejected("invalid", "id is missing"))
        .beside(Beside::Id),
    row("`id` empty", || with(json!({"id": ""})), dead("invalid", "an id must have 1 to 128 characters")),
    row("`id` of 128 characters", || with(json!({"id": "x".repeat(128)})), Answer::Succeeded),
    row(
        "`id` of 129 characters",
        || with(json!({"id": "x".repeat(129)})),
        dead("invalid", "an id must have 1 to 128 characters"),
    ),
    row(
        "`id` of 5,000 characters",
        || with(json!({"id": "x".repeat(5000)})),
        dead("limit_exceeded", "id has 5002 bytes of JSON"),
    ),
    row("`id` `..`", || with(json!({"id": ".."})), dead("invalid", "not be . or ..")),
    row("`id` `.`", || with(json!({"id": "."})), dead("invalid", "not be . or ..")),
    row("`id` `a/b`", || with(json!({"id": "a/b"})), dead("invalid", "an id must be made of")),
    row("`id` `ä`", || with(json!({"id": "ä"})), dead("invalid", "an id must be made of")),
    row("NUL in the `id`", || with(json!({"id": "a\0b"})), dead("invalid", "an id must be made of")),
    row(
        "half of a surrogate pair in the `id`",
        || br#"{"version":1,"id":"\ud800","inputs":["a"]}"#.into(),
        dead("invalid", "id: unexpected end of hex escape"),
    ),
    row("`id` 7", || with(json!({"id": 7})), dead("invalid", "id: invalid type: integer")),
    row("`id` a list", || with(json!({"id": ["bad"]})), dead("invalid", "id: invalid type: sequence")),
    row(
        "`inferq-job-id` that is no id, beside a body without one",
        || with(json!({"id": null})),
        dead("invalid", "id is missing"),
    )
    .beside(Beside::One(attribute::JOB_ID, "a b")),
    // The model.
    row("`model` empty", || with(json!({"model": ""})), rejected("invalid", "model: must not be empty")),
    row("`model` 7", || with(json!({"model": 7})), rejected("invalid", "model: invalid type: integer")),
    row(
        "another `model`, and no worker that has it within `--unfit-limit-s`",
        || with(json!({"model": "another"})),
        rejected("no_worker", "the job needs another model"),
    )
    .beside(Beside::LongAgo),
];
