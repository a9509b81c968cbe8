//! The fields of a job that has a body, an id and a version: inputs, parameters, where the reply goes, deadline,
//! metadata; and what only a model can tell of them.

use inferq_shared::job::attribute;
use inferq_shared::reply::Status;
use serde_json::json;

use super::super::{Answer, dead, item, rejected};
use super::{Beside, Row, row, with, with_text};

/// A good job whose metadata has exactly so many bytes.
fn of_metadata(bytes: usize) -> Vec<u8> {
    with(json!({"metadata": {"k": "x".repeat(bytes - r#"{"k":""}"#.len())}}))
}

/// A good job of so many items whose ids take the most room that a reply may need for them.
fn of_long_ids(items: usize) -> Vec<u8> {
    let item = |index| json!({"id": format!("{index:0>512}"), "text": "a"});
    with(json!({"inputs": (0..items).map(item).collect::<Vec<_>>()}))
}

const EXPIRED: Answer =
    Answer::Refused { status: Status::Expired, code: "expired", says: "the job's deadline had passed" };
const NO_INSTANT: Answer = rejected("invalid", "deadline: expected an instant like 2026-12-01T12:00:00Z");

/// What a worker is given.
pub(in crate::bad_input) const FIELDS: &[Row] = &[
    // The inputs.
    row(
        "neither `inputs` nor `input_uri`",
        || with(json!({"inputs": null})),
        rejected("invalid", "a job has either inputs or input_uri"),
    ),
    row("both", || with(json!({"input_uri": "gs://bucket/o"})), rejected("invalid", "input_uri stands beside inputs")),
    row("`inputs` empty", || with(json!({"inputs": []})), rejected("invalid", "inputs: must have at least one entry")),
    row("`inputs` a text", || with(json!({"inputs": "a"})), rejected("invalid", "inputs: expected an array")),
    row(
        "`inputs` an object",
        || with(json!({"inputs": {"text": "a"}})),
        rejected("invalid", "inputs: expected an array"),
    ),
    row("4,096 inputs", || with(json!({"inputs": vec!["a"; 4096]})), Answer::Succeeded),
    row(
        "4,097 inputs",
        || with(json!({"inputs": vec!["a"; 4097]})),
        rejected("limit_exceeded", "inputs has more than 4096 entries, the limit"),
    ),
    row("an input of 1 MiB", || with_text("x".repeat(1 << 20)), Answer::Succeeded),
    row(
        "an input of 1 MiB and a byte",
        || with_text("x".repeat((1 << 20) + 1)),
        rejected("limit_exceeded", "inputs[0] has 1048577 bytes, the limit is 1048576"),
    ),
    row(
        "a pair of 1 MiB and a byte together",
        || with(json!({"inputs": [["x".repeat(1 << 19), "x".repeat((1 << 19) + 1)]]})),
        rejected("limit_exceeded", "inputs[0] has 1048577 bytes, the limit is 1048576"),
    ),
    row(
        "an input that is a number",
        || with(json!({"inputs": ["a", 7]})),
        rejected("invalid", "inputs[1]: invalid type: integer"),
    ),
    row(
        "an input that is `null`",
        || with(json!({"inputs": [null]})),
        rejected("invalid", "inputs[0]: invalid type: null"),
    ),
    row(
        "an input without `text`",
        || with(json!({"inputs": [{"id": "a"}]})),
        rejected("invalid", "inputs[0]: missing field `text`"),
    ),
    row(
        "`text` a number",
        || with(json!({"inputs": [{"text": 7}]})),
        rejected("invalid", "inputs[0].text: invalid type: integer"),
    ),
    row(
        "`text` twice in one input",
        || br#"{"version":1,"id":"bad","inputs":[{"text":"a","text":"b"}]}"#.into(),
        rejected("invalid", "duplicate field `text`"),
    ),
    row(
        "an input's `id` empty",
        || with(json!({"inputs": [{"id": "", "text": "a"}]})),
        rejected("invalid", "inputs[0].id: must have 1 to 512 bytes"),
    ),
    row(
        "an input's `id` of 513 bytes",
        || with(json!({"inputs": [{"id": "x".repeat(513), "text": "a"}]})),
        rejected("invalid", "must have 1 to 512 bytes, has 513"),
    ),
    row(
        "an input's `id` 7",
        || with(json!({"inputs": [{"id": 7, "text": "a"}]})),
        rejected("invalid", "inputs[0].id: invalid type: integer"),
    ),
    row(
        "a pair of one",
        || with(json!({"inputs": [["a"]]})),
        rejected("invalid", "a pair must be exactly a query and a passage"),
    ),
    row(
        "a pair of three",
        || with(json!({"inputs": [["a", "b", "c"]]})),
        rejected("invalid", "a pair must be exactly a query and a passage"),
    ),
    row(
        "half of a surrogate pair in a text",
        || br#"{"version":1,"id":"bad","inputs":["\ud83d"]}"#.into(),
        rejected("invalid", "inputs[0]: unexpected end of hex escape"),
    ),
    row("an escaped NUL in a text", || with_text("a\0b"), Answer::Succeeded),
    row("an empty text", || with_text(""), Answer::Succeeded),
    row(
        "`input_uri` empty",
        || with(json!({"inputs": null, "input_uri": ""})),
        rejected("invalid", "input_uri: must not be empty"),
    ),
    row(
        "`input_uri` 7",
        || with(json!({"inputs": null, "input_uri": 7})),
        rejected("invalid", "input_uri: invalid type: integer"),
    ),
    row(
        "`input_uri` that the operator does not allow",
        || with(json!({"inputs": null, "input_uri": "file:///etc/passwd"})),
        rejected("forbidden", "input_uri is not allowed"),
    ),
    // The parameters.
    row(
        "`parameters` a list",
        || with(json!({"parameters": []})),
        rejected("invalid", "parameters: invalid type: sequence"),
    ),
    row(
        "`truncate` \"yes\"",
        || with(json!({"parameters": {"truncate": "yes"}})),
        rejected("invalid", "parameters.truncate: invalid type: string"),
    ),
    row(
        "`normalize` 1",
        || with(json!({"parameters": {"normalize": 1}})),
        rejected("invalid", "parameters.normalize: invalid type: integer"),
    ),
    row(
        "`dimensions` -1",
        || with(json!({"parameters": {"dimensions": -1}})),
        rejected("invalid", "parameters.dimensions: invalid value: integer `-1`"),
    ),
    row(
        "`dimensions` 0",
        || with(json!({"parameters": {"dimensions": 0}})),
        rejected("invalid", "parameters.dimensions: invalid value: integer `0`"),
    ),
    row(
        "`dimensions` 1.5",
        || with(json!({"parameters": {"dimensions": 1.5}})),
        rejected("invalid", "parameters.dimensions: invalid type: floating point"),
    ),
    row(
        "`dimensions` 1e308",
        || with(json!({"parameters": {"dimensions": 1e308}})),
        rejected("invalid", "parameters.dimensions: invalid type: floating point"),
    ),
    row(
        "`dimensions` 2^64",
        || with(json!({"parameters": {"dimensions": 2f64.powi(64)}})),
        rejected("invalid", "parameters.dimensions: invalid type: floating point"),
    ),
    row(
        "`dimensions` more than the model has",
        || with(json!({"parameters": {"dimensions": 9}})),
        rejected("invalid", "parameters.dimensions is 9, it must be 1 to 8, what the model has"),
    ),
    row(
        "`encoding` unknown",
        || with(json!({"parameters": {"encoding": "float16"}})),
        rejected("invalid", "parameters.encoding: must be one of float, base64"),
    ),
    // Where the reply goes.
    row(
        "`reply_to` a text",
        || with(json!({"reply_to": "answers"})),
        rejected("invalid", "reply_to: invalid type: string"),
    ),
    row(
        "`reply_to` empty",
        || with(json!({"reply_to": {}})),
        rejected("invalid", "reply_to: must have exactly one of queue and uri"),
    ),
    row(
        "`reply_to` with both",
        || with(json!({"reply_to": {"queue": "q", "uri": "gs://bucket/"}})),
        rejected("invalid", "reply_to: must have exactly one of queue and uri"),
    ),
    row(
        "a reply queue that the operator does not allow",
        || with(json!({"reply_to": {"queue": "answers"}})),
        rejected("forbidden", "reply_to.queue \"answers\" is not allowed"),
    ),
    row(
        "the jobs queue as reply queue",
        || with(json!({"reply_to": {"queue": "jobs"}})),
        rejected("forbidden", "reply_to.queue \"jobs\" is not allowed"),
    ),
    row(
        "`uri` that the operator does not allow",
        || with(json!({"reply_to": {"uri": "gs://bucket/"}})),
        rejected("forbidden", "reply_to.uri is not allowed"),
    ),
    row(
        "`uri` that is no prefix",
        || with(json!({"reply_to": {"uri": "gs://bucket/o"}})),
        rejected("invalid", "uri must be a prefix that ends in /"),
    ),
    row(
        "`format` unknown",
        || with(json!({"reply_to": {"uri": "gs://bucket/", "format": "csv"}})),
        rejected("invalid", "reply_to.format: must be one of jsonl, parquet"),
    ),
    row(
        "a submission whose route is gone",
        || with(json!({})),
        dead("reply_undeliverable", "no queue named jobs.results.gone"),
    )
    .beside(Beside::One(attribute::SUBMISSION, "gone")),
    row("`inferq-submission` that is no name", || with(json!({})), Answer::Succeeded)
        .beside(Beside::One(attribute::SUBMISSION, "../x")),
    row("`inferq-published-at` that is no time", || with(json!({})), Answer::Succeeded)
        .beside(Beside::One(attribute::PUBLISHED_AT, "yesterday")),
    // The deadline.
    row("`deadline` that has passed", || with(json!({"deadline": "2026-01-01T00:00:00Z"})), EXPIRED),
    row("`deadline` in the year 0", || with(json!({"deadline": "0000-01-01T00:00:00Z"})), EXPIRED),
    row(
        "`deadline` at the end of the year 9999",
        || with(json!({"deadline": "9999-12-31T23:59:59Z"})),
        Answer::Succeeded,
    ),
    row("`deadline` in the year -1", || with(json!({"deadline": "-0001-01-01T00:00:00Z"})), NO_INSTANT),
    row("`deadline` in the year 999999", || with(json!({"deadline": "+999999-01-01T00:00:00Z"})), NO_INSTANT),
    row("`deadline` on 30 February", || with(json!({"deadline": "2027-02-30T00:00:00Z"})), NO_INSTANT),
    row("`deadline` \"tomorrow\"", || with(json!({"deadline": "tomorrow"})), NO_INSTANT),
    row("`deadline` without an offset", || with(json!({"deadline": "2099-01-01T00:00:00"})), NO_INSTANT),
    row(
        "`deadline` a number",
        || with(json!({"deadline": 1_900_000_000})),
        rejected("invalid", "deadline: invalid type: integer"),
    ),
    // The metadata.
    row("metadata of 4 KiB", || of_metadata(4096), Answer::Succeeded),
    row(
        "metadata of 4 KiB and a byte",
        || of_metadata(4097),
        rejected("limit_exceeded", "metadata has 4097 bytes of JSON, the limit is 4096"),
    ),
    row(
        "metadata that is no object",
        || with(json!({"metadata": ["a"]})),
        rejected("invalid", "metadata: invalid type: sequence"),
    ),
    row(
        "1e400 in the metadata",
        || br#"{"version":1,"id":"bad","inputs":["a"],"metadata":{"k":1e400}}"#.into(),
        rejected("invalid", "number out of range"),
    ),
    // The reply.
    row("a reply that can reach 8 MiB", || of_long_ids(2419), Answer::Succeeded),
    row(
        "a reply that can pass 8 MiB",
        || of_long_ids(2420),
        rejected("limit_exceeded", "use encoding base64, fewer items a job, or a bucket"),
    ),
    row(
        "an input on which the model fails",
        || with(json!({"inputs": ["!fail", "a mate that succeeds"]})),
        item("failed", "!fail"),
    ),
];

/// What a worker with MiniLM is given: 384 dimensions, 256 tokens.
pub(in crate::bad_input) const FOR_A_MODEL: &[Row] = &[
    row("an empty text", || with_text(""), Answer::Succeeded),
    row("a text of control characters", || with_text("\0\u{1}\u{7f}\u{200b}"), Answer::Succeeded),
    row("1 MiB without a space", || with_text("x".repeat(1 << 20)), Answer::Succeeded),
    row("1 MiB of Chinese", || with_text("字".repeat((1 << 20) / 3)), Answer::Succeeded),
    row(
        "a long text, `truncate` false",
        || with(json!({"inputs": ["a ".repeat(300)], "parameters": {"truncate": false}})),
        item("input_too_long", "the input has 302 tokens, the limit is 256"),
    ),
    row(
        "a pair for a model that embeds single texts",
        || with(json!({"inputs": [["a query", "a passage"], "a text"]})),
        item("invalid", "the model reads single texts, and this is a pair"),
    ),
    row(
        "`dimensions` 385",
        || with(json!({"parameters": {"dimensions": 385}})),
        rejected("invalid", "parameters.dimensions is 385, it must be 1 to 384, what the model has"),
    ),
    row(
        "4,096 inputs with float embeddings",
        || with(json!({"inputs": vec!["a"; 4096]})),
        rejected("limit_exceeded", "use encoding base64, fewer items a job, or a bucket"),
    ),
    row(
        "another `model`, and no worker that has it within `--unfit-limit-s`",
        || with(json!({"model": "all-mpnet-base-v2"})),
        rejected("no_worker", "the job needs another model"),
    )
    .beside(Beside::LongAgo),
];
