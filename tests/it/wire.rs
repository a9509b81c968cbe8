//! The wire format: what is written can be read, schema and code agree, and nothing anybody sends does harm.
//!
//! `tests/fixtures/wire/v1/` holds one message of every kind. What lies there stays for ever: clients of that time
//! still speak it.

use std::path::{Path, PathBuf};

use inferq_shared::broker::BrokerUrl;
use inferq_shared::job::{DecodeErrorKind, Job, Limits};
use inferq_shared::reply::Reply;
use jsonschema::Validator;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

mod messages;

use messages::{job, reply, text, value};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace").to_owned()
}

fn schema(name: &str) -> Validator {
    schema_at(&root().join("docs").join(name))
}

/// The schema of this kind of message of every version.
pub(crate) fn kept_schemas(kind: &str) -> Vec<Validator> {
    let versions = std::fs::read_dir(root().join("tests/fixtures/wire")).expect("the fixtures are there");
    versions.map(|version| schema_at(&version.expect("a folder").path().join(format!("{kind}.schema.json")))).collect()
}

fn schema_at(path: &Path) -> Validator {
    let text = std::fs::read_to_string(path).expect("the schema is there");
    let schema = serde_json::from_str(&text).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("the schema is a schema")
}

/// The name and text of every fixture whose name starts with `kind`, of every version; no schema is one.
pub(crate) fn fixtures(kind: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for version in std::fs::read_dir(root().join("tests/fixtures/wire")).expect("the fixtures are there") {
        for file in std::fs::read_dir(version.expect("a folder a version").path()).expect("fixtures of a version") {
            let path = file.expect("a fixture").path();
            let name = path.file_stem().expect("fixtures have names").to_string_lossy().into_owned();
            if name.starts_with(kind) && !name.ends_with(".schema") {
                found.push((name, std::fs::read_to_string(&path).expect("fixtures are text")));
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn decode(body: impl AsRef<[u8]>) -> Result<Job, (DecodeErrorKind, String)> {
    Job::decode(body.as_ref(), &Limits::default()).map_err(|error| {
        assert!(!error.message.is_empty() && error.message.len() < 1024, "{error:?}");
        (error.kind, error.message)
    })
}

/// Bits of every embedding: equality of floats takes -0 for 0 and no NaN for itself.
fn bits(reply: &Reply) -> Vec<Vec<u32>> {
    let embeddings = reply.results.iter().filter_map(|result| result.embedding.as_ref());
    embeddings.map(|embedding| embedding.values().iter().map(|value| value.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_job_is_read_as_it_was_written_and_fits_its_schema(job in job()) {
        let body = job.encode();
        prop_assert_eq!(decode(&body), Ok(job));
        let value: Value = serde_json::from_slice(&body).expect("a job is JSON");
        prop_assert!(schema("job.schema.json").is_valid(&value), "{}", value);
        // Workers of earlier versions read it too, while they are replaced.
        prop_assert!(kept_schemas("job").iter().all(|schema| schema.is_valid(&value)), "{}", value);
    }

    #[test]
    fn a_reply_is_read_as_it_was_written_and_fits_its_schema(reply in reply()) {
        let body = reply.encode();
        let again = Reply::decode(&body).expect("what was written can be read");
        prop_assert_eq!(bits(&again), bits(&reply));
        prop_assert_eq!(again.encode(), body.clone());
        let value: Value = serde_json::from_slice(&body).expect("a reply is JSON");
        prop_assert!(schema("reply.schema.json").is_valid(&value), "{}", value);
        prop_assert!(kept_schemas("reply").iter().all(|schema| schema.is_valid(&value)), "{}", value);
    }

    #[test]
    fn any_bytes_are_a_job_or_a_fault(body in vec(any::<u8>(), 0..200), text in text()) {
        let _ = decode(&body);
        let _ = decode(&text);
        let _ = Reply::decode(&body);
        let _ = text.parse::<BrokerUrl>();
    }

    #[test]
    fn a_job_with_bytes_changed_cut_or_doubled_is_a_job_or_a_fault(
        job in job(), at in any::<prop::sample::Index>(), end in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let body = job.encode();
        let (at, end) = (at.index(body.len()), end.index(body.len()));
        let (from, to) = (at.min(end), at.max(end));
        let mut changed = body.clone();
        changed[at] = byte;
        for body in [changed, body[..at].to_vec(), [&body[..to], &body[from..]].concat(), [&body[..], b"}"].concat()] {
            if let Ok(job) = decode(&body) {
                prop_assert_eq!(decode(job.encode()), Ok(job));
            }
        }
    }

    #[test]
    fn schema_and_reader_judge_a_changed_job_alike(job in job(), place in any::<prop::sample::Index>(), other in value()) {
        let mut message: Value = serde_json::from_slice(&job.encode()).expect("a job is JSON");
        // Instants that the pattern lets through and the calendar does not are the reader's alone.
        replace_one(&mut message, place, other);
        let read = decode(message.to_string());
        if !matches!(read, Err((DecodeErrorKind::TooLarge, _))) {
            prop_assert_eq!(read.is_ok(), schema("job.schema.json").is_valid(&message), "{:?} for {}", read, message);
        }
    }

    #[test]
    fn what_the_reply_schema_allows_can_be_read(
        reply in reply(), place in any::<prop::sample::Index>(), other in value()
    ) {
        let mut message: Value = serde_json::from_slice(&reply.encode()).expect("a reply is JSON");
        replace_one(&mut message, place, other);
        if schema("reply.schema.json").is_valid(&message) {
            let read = Reply::decode(message.to_string().as_bytes());
            prop_assert!(read.is_ok(), "{:?} for {}", read, message);
        }
    }
}

/// Puts `other` into one of the places of `message`.
fn replace_one(message: &mut Value, place: prop::sample::Index, other: Value) {
    let mut pointers = Vec::new();
    list_places(message, String::new(), &mut pointers);
    let pointer = &pointers[place.index(pointers.len())];
    *message.pointer_mut(pointer).expect("a place just listed") = other;
}

fn list_places(value: &Value, at: String, pointers: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, v)| list_places(v, format!("{at}/{}", escaped(key)), pointers))
        }
        Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| list_places(v, format!("{at}/{i}"), pointers)),
        _ => {}
    }
    pointers.push(at);
}

// ---- fixtures, snapshots, schemas

#[test]
fn every_job_ever_kept_is_still_read() {
    let schema = schema("job.schema.json");
    let fixtures = fixtures("job");
    assert!(fixtures.len() >= 9, "the fixtures are there");
    for (name, text) in fixtures {
        let job = decode(&text).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(decode(job.encode()), Ok(job.clone()), "{name}");
        assert!(schema.is_valid(&serde_json::from_str(&text).expect("JSON")), "{name}");
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, String::from_utf8(job.encode()).expect("UTF-8"));
        });
    }
}

#[test]
fn every_reply_ever_kept_is_still_read() {
    let schema = schema("reply.schema.json");
    let fixtures = fixtures("reply");
    assert!(fixtures.len() >= 10, "the fixtures are there");
    for (name, text) in fixtures {
        let reply = Reply::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Reply::decode(&reply.encode()).expect("what was written"), reply, "{name}");
        assert!(schema.is_valid(&serde_json::from_str(&text).expect("JSON")), "{name}");
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, String::from_utf8(reply.encode()).expect("UTF-8"));
        });
    }
}

#[test]
fn every_status_has_a_fixture() {
    let mut seen: Vec<&str> = Vec::new();
    for (name, text) in fixtures("reply") {
        seen.push(Reply::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}")).status.as_str());
    }
    for status in ["succeeded", "partial", "failed", "rejected", "expired"] {
        assert!(seen.contains(&status), "no fixture of a reply that is {status}");
    }
}

#[test]
fn the_examples_of_the_documentation_are_messages() {
    let text = std::fs::read_to_string(root().join("docs/wire-format.md")).expect("docs/wire-format.md");
    let examples: Vec<&str> =
        text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect();
    assert!(examples.len() >= 4, "an example for each kind of message");
    for example in examples {
        let value: Value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{error}: {example}"));
        if value.get("status").is_some() {
            assert!(schema("reply.schema.json").is_valid(&value), "{example}");
            Reply::decode(example.as_bytes()).unwrap_or_else(|error| panic!("{error}: {example}"));
        } else {
            assert!(schema("job.schema.json").is_valid(&value), "{example}");
            decode(example).unwrap_or_else(|error| panic!("{error:?}: {example}"));
        }
    }
}

#[test]
fn schema_and_reader_refuse_the_same_jobs() {
    let schema = schema("job.schema.json");
    let right = json!({"version": 1, "id": "j", "inputs": ["a"]});
    for (field, wrong) in [
        ("version", json!([null, 0, 2, -1, "1", 1.5, {}, []])),
        ("id", json!([null, "", ".", "..", "a b", "ä", 7, {}, [], true, "x".repeat(129)])),
        ("model", json!(["", 7, {}, ["m"], true])),
        (
            "inputs",
            json!([null, [], "a", 7, {}, [null], [7], [{}], [{"id": "a"}], [{"text": 7}], [["a"]], [[["a", "b"]]],
            [["a", "b", "c"]], [["a", 1]], [{"id": "", "text": "a"}], [{"id": 7, "text": "a"}], vec!["a"; 4097]]),
        ),
        ("input_uri", json!(["gs://b/o", "", 7])),
        (
            "parameters",
            json!(["a", [], 7, {"truncate": 1}, {"normalize": "yes"}, {"dimensions": 0}, {"dimensions": -1},
            {"dimensions": 1.5}, {"dimensions": "8"}, {"dimensions": 4294967296u64}, {"encoding": "Float"},
            {"encoding": ["float"]}, {"encoding": {"float": null}}]),
        ),
        (
            "reply_to",
            json!(["q", [], {}, {"queue": ""}, {"queue": 7}, {"uri": "gs://b/o"}, {"uri": ""}, {"uri": 7},
            {"queue": "q", "uri": "gs://b/"}, {"queue": "q", "format": "jsonl"}, {"uri": "gs://b/", "format": "csv"},
            {"format": "jsonl"}]),
        ),
        ("deadline", json!([7, "", "tomorrow", "2026-12-01", "2026-12-01T12:00:00", "2026-12-01 12:00:00Z", {}])),
        ("metadata", json!(["a", [], 7, true])),
        ("shard", json!(["a", 7, {}, {"parent": "j"}])),
    ] {
        for value in wrong.as_array().expect("a list of wrong values") {
            let mut job = right.clone();
            job[field] = value.clone();
            assert!(!schema.is_valid(&job), "the schema allows {job}");
            let (_, message) = decode(job.to_string()).expect_err(&format!("the reader allows {job}"));
            assert!(message.contains(field), "{message} does not name {field}");
        }
    }
    assert!(schema.is_valid(&right) && decode(right.to_string()).is_ok());
}

#[test]
fn schema_and_reader_refuse_the_same_replies() {
    let schema = schema("reply.schema.json");
    let (_, text) = fixtures("reply-partial").remove(0);
    let right: Value = serde_json::from_str(&text).expect("JSON");
    let result = |more: Value| {
        let mut result = json!({"id": "a", "index": 0});
        result.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!([result])
    };
    for (field, wrong) in [
        ("version", vec![json!(0), json!(2), json!("1"), Value::Null]),
        ("id", vec![json!(""), json!(7), json!("a b")]),
        ("status", vec![json!("done"), json!({"failed": null}), Value::Null]),
        (
            "results",
            vec![
                json!({}),
                json!([7]),
                json!([{"index": 0, "labels": []}]),
                result(json!({})),
                result(json!({"embedding": []  , "labels": []})),
                result(json!({"embedding": ["a"]})),
                result(json!({"embedding": "%"})),
                result(json!({"embedding": [1e39]})),
                result(json!({"error": {}})),
                result(json!({"labels": [{"label": "a"}]})),
                result(json!({"labels": [], "tokens": -1})),
            ],
        ),
        ("error", vec![json!("a"), json!({"code": 7, "message": "a"})]),
        ("usage", vec![json!({}), json!({"items": -1, "tokens": 0})]),
        ("timings_ms", vec![json!({}), json!({"queued": "a", "intake": 0, "batch": 0, "engine": 0})]),
        ("attempt", vec![json!(-1), json!("1")]),
        ("metadata", vec![Value::Null, json!([])]),
    ] {
        for value in wrong {
            let mut reply = right.clone();
            reply[field] = value;
            assert!(!schema.is_valid(&reply), "the schema allows {reply}");
            assert!(Reply::decode(reply.to_string().as_bytes()).is_err(), "the reader allows {reply}");
        }
    }
    assert!(schema.is_valid(&right));
}

// ---- limits

/// A body of exactly `bytes` bytes, made up by unknown fields.
fn padded(bytes: usize) -> String {
    let job = r#"{"version":1,"id":"j","inputs":["a"],"padding":""}"#;
    job.replace(r#""padding":"""#, &format!(r#""padding":"{}""#, "x".repeat(bytes - job.len())))
}

/// A body that measures so much in one respect.
type BodyOf<'a> = &'a dyn Fn(usize) -> String;

#[test]
fn each_limit_holds_exactly() {
    let limits = Limits::default();
    let items = |n: usize| json!({"version": 1, "id": "j", "inputs": vec!["a"; n]}).to_string();
    let input = |n: usize| json!({"version": 1, "id": "j", "inputs": ["a", {"text": "é".repeat(n / 2)}]}).to_string();
    let pair = |n: usize| json!({"version": 1, "id": "j", "inputs": [["a".repeat(n - 1), "b"]]}).to_string();
    let metadata = |n: usize| {
        format!(
            r#"{{"version":1,"id":"j","inputs":["a"],"metadata":{{"a":"{}"}}}}"#,
            "x".repeat(n - r#"{"a":""}"#.len())
        )
    };
    // The job's own object is the first level.
    let nesting = |n: usize| {
        format!(r#"{{"version":1,"id":"j","inputs":["a"],"deep":{}{}}}"#, "[".repeat(n - 1), "]".repeat(n - 1))
    };
    let cases: [(BodyOf<'_>, usize, usize, &str); 6] = [
        (&padded, limits.body_bytes, 1, "the body has 8388609 bytes, the limit is 8388608"),
        (&items, limits.items, 1, "inputs has more than 4096 entries, the limit"),
        (&input, limits.input_bytes, 2, "inputs[1].text has 1048578 bytes, the limit is 1048576"),
        (&pair, limits.input_bytes, 1, "inputs[0] has 1048577 bytes, the limit is 1048576"),
        (&metadata, limits.metadata_bytes, 1, "metadata has 4097 bytes of JSON, the limit is 4096"),
        (&nesting, limits.nesting, 1, "more than 32 arrays and objects in one another at byte"),
    ];
    for (body, limit, step, message) in cases {
        decode(body(limit)).unwrap_or_else(|error| panic!("at the limit {limit}: {error:?}"));
        let (kind, said) = decode(body(limit + step)).expect_err(message);
        assert!(said.starts_with(message), "{said}");
        assert_eq!(kind, DecodeErrorKind::TooLarge);
        assert!(said.contains(": "), "{said} names no way out");
    }
}

#[test]
fn limits_can_be_chosen() {
    let limits = Limits { items: 2, input_bytes: 3, ..Limits::default() };
    for (inputs, limit) in [(json!(["a", "b", "c"]), "2"), (json!(["abcd"]), "3")] {
        let body = json!({"version": 1, "id": "j", "inputs": inputs}).to_string();
        let error = Job::decode(body.as_bytes(), &limits).expect_err("beyond the limit");
        assert!(error.message.contains(limit) && error.id.is_some_and(|id| id.as_str() == "j"), "{}", error.message);
    }
}

// ---- hostile bodies

const EIGHT_MIB: usize = 8 << 20;

/// `unit` repeated to just below the limit of a body, between `head` and `tail`.
fn filled(head: &str, unit: &str, tail: &str) -> String {
    let times = (EIGHT_MIB - head.len() - tail.len()) / unit.len();
    format!("{head}{}{tail}", unit.repeat(times))
}

#[test]
fn hostile_bodies_are_refused_with_a_short_message() {
    const INPUTS: &str = r#"{"version":1,"id":"j","inputs":["#;
    let bodies = [
        (filled("", "[", ""), "the body is not a JSON object"),
        (filled("{\"a\":", "[", ""), "more than 32 arrays"),
        (filled("{\"a\":", "{\"a\":", ""), "more than 32 arrays"),
        (filled(INPUTS, "\"a\",", "\"a\"]}"), "inputs has more than 4096 entries"),
        (filled(INPUTS, "1,", "1]}"), "inputs has more than 4096 entries"),
        (filled(INPUTS, "[],", "[]]}"), "inputs has more than 4096 entries"),
        (filled("\"", "a", "\""), "the body is not a JSON object"),
        (filled("{\"version\":1,\"id\":\"", "a", "\",\"inputs\":[\"a\"]}"), "id has 83"),
        (filled("{\"version\":1,\"id\":\"j\",\"model\":\"", "a", "\",\"inputs\":[\"a\"]}"), "model has 83"),
        (filled("{\"version\":1,\"id\":\"j\",\"inputs\":\"", "a", "\"}"), "inputs: expected an array"),
        (filled("{\"version\":", "9", ",\"id\":\"j\",\"inputs\":[\"a\"]}"), "version has 83"),
        (filled(&format!("{INPUTS}\""), "\\u0001", "\"]}"), "inputs[0] has 139809"),
        (filled("{\"", "a", "\""), "EOF while parsing"),
        ("\u{feff}{}".to_owned(), "the body starts with a byte order mark"),
        (format!("{INPUTS}\"a\"]}} x"), "trailing characters"),
        (format!("{INPUTS}\"\u{0}\"]}}"), "control character"),
        (format!("{INPUTS}1e999999]}}"), "inputs[0]: number out of range"),
        (format!("{INPUTS}\"\\ud800\\ud800\"]}}"), "inputs[0]: lone leading surrogate"),
        (format!("{INPUTS}\"a\"],\"inputs\":[]}}"), "inputs stands twice"),
        (String::new(), "the body is not a JSON object"),
        ("null".to_owned(), "the body is not a JSON object"),
    ];
    for (body, message) in bodies {
        let start: String = body.chars().take(60).collect();
        let (_, said) = decode(&body).expect_err(&start);
        assert!(said.starts_with(message), "{said} for {start}");
        assert!(Reply::decode(body.as_bytes()).is_err_and(|error| error.to_string().len() < 1024), "{start}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let (kind, message) = decode(b"{\"version\":1,\"id\":\"\xff\"}").expect_err("no UTF-8");
    assert_eq!(
        (kind, message.as_str()),
        (DecodeErrorKind::Malformed, "the body is not UTF-8 at byte 19: send UTF-8 JSON")
    );
}

#[test]
fn a_million_unknown_fields_are_skipped() {
    let body = filled("{\"version\":1,\"id\":\"j\",", "\"a\":1,", "\"inputs\":[\"a\"]}");
    assert!(body.matches("\"a\":").count() > 1_000_000);
    assert_eq!(decode(body).map(|job| job.items()), Ok(1));
}

#[test]
fn a_string_of_escapes_is_measured_as_text() {
    // Six bytes of JSON for one of text: the limit counts what the model reads.
    let body = format!(r#"{{"version":1,"id":"j","inputs":["{}"]}}"#, "\\u0061".repeat(1 << 20));
    assert_eq!(decode(body).map(|job| job.items()), Ok(1));
}
