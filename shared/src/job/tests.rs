//! What the job's reader says, field by field and limit by limit. Round trips and hostile bodies are in
//! `tests/it/wire.rs`.

use super::*;

fn decode(json: &str) -> Result<Job, DecodeError> {
    Job::decode(json.as_bytes(), &Limits::default())
}

fn with(fields: &str) -> String {
    format!(r#"{{"version":1,"id":"j","inputs":["a"],{fields}}}"#)
}

fn refused(json: &str) -> DecodeError {
    decode(json).expect_err(json)
}

#[test]
fn a_job_with_every_field_is_read() {
    let job = decode(
        r#"{"version": 1, "id": "s7f3-00012", "model": "all-MiniLM-L6-v2",
            "inputs": [{"id": "doc-1", "text": "first text"}, "second text", ["query", "passage"]],
            "parameters": {"truncate": false, "dimensions": 8, "encoding": "base64"},
            "reply_to": {"uri": "gs://bucket/embeddings/", "format": "parquet"},
            "deadline": "2026-12-01T13:00:00.25+01:00", "metadata": {"tenant": "a"}, "colour": "red"}"#,
    )
    .expect("a whole job");
    assert_eq!(job.items(), 3);
    assert_eq!(
        job.parameters,
        Parameters { truncate: false, normalize: true, dimensions: Some(8), encoding: Encoding::Base64 }
    );
    let bucket = ReplyTo::Bucket { prefix: "gs://bucket/embeddings/".to_owned(), format: ObjectFormat::Parquet };
    assert_eq!(job.reply_to, Some(bucket));
    assert_eq!(job.deadline.map(|instant| instant.to_string()).as_deref(), Some("2026-12-01T12:00:00.25Z"));
}

#[test]
fn null_is_absent() {
    let nulls = r#""model":null,"input_uri":null,"parameters":null,"reply_to":null,"deadline":null,"metadata":null"#;
    let job = decode(&with(nulls)).expect("a job of defaults");
    assert_eq!(job, decode(r#"{"version":1,"id":"j","inputs":["a"]}"#).expect("the same job"));
    assert!(decode(&with(r#""parameters":{"truncate":null,"dimensions":null,"encoding":null}"#)).is_ok());
}

#[test]
fn a_wrong_field_is_named_with_its_path() {
    for (fields, message) in [
        (r#""model":7"#, "model: invalid type: integer `7`, expected a string"),
        (r#""model":"""#, "model: must not be empty"),
        (r#""input_uri":"file:///a""#, "input_uri stands beside inputs: a job has one of the two"),
        (r#""parameters":[true]"#, "parameters: invalid type: sequence, expected an object"),
        (r#""parameters":{"truncate":1}"#, "parameters.truncate: invalid type: integer `1`, expected a boolean"),
        (r#""parameters":{"encoding":"hex"}"#, "parameters.encoding: must be one of float, base64"),
        (r#""parameters":{"encoding":{"float":null}}"#, "parameters.encoding: invalid type: map, expected a string"),
        (r#""reply_to":{}"#, "reply_to: must have exactly one of queue and uri"),
        (r#""reply_to":{"uri":"gs://b/x"}"#, "reply_to: uri must be a prefix that ends in /"),
        (r#""reply_to":{"queue":"q","format":"jsonl"}"#, "reply_to: format goes with uri, not with queue"),
        (r#""deadline":"tomorrow""#, "deadline: expected an instant like 2026-12-01T12:00:00Z (RFC 3339)"),
        (r#""metadata":[]"#, "metadata: invalid type: sequence, expected a map"),
    ] {
        let error = refused(&with(fields));
        assert_eq!((error.message.as_str(), error.kind), (message, DecodeErrorKind::Invalid));
        assert_eq!(error.id.as_ref().map(JobId::as_str), Some("j"), "{message}");
    }
    for dimensions in ["0", "-1", "4294967296", "1.5", "\"8\"", "1e999999"] {
        let error = refused(&with(&format!(r#""parameters":{{"dimensions":{dimensions}}}"#)));
        assert!(error.message.starts_with("parameters.dimensions: "), "{error}");
    }
}

#[test]
fn a_wrong_input_is_named_with_its_place() {
    for (inputs, message) in [
        ("7", "inputs: expected an array"),
        ("[]", "inputs: must have at least one entry"),
        (r#"["a",null]"#, "inputs[1]: invalid type: null, expected a string"),
        (r#"["a",{"text":5}]"#, "inputs[1].text: invalid type: integer `5`, expected a string"),
        (r#"["a",{"id":5,"text":"b"}]"#, "inputs[1].id: invalid type: integer `5`, expected a string"),
        (r#"[{"id":"","text":"b"}]"#, "inputs[0].id: must have 1 to 512 bytes, has 0"),
        (r#"[{"id":"a"}]"#, "inputs[0]: missing field `text`"),
        (r#"[{"text":"a","text":"b"}]"#, "inputs[0]: duplicate field `text`"),
        (r#"[["a"]]"#, "inputs[0]: a pair must be exactly a query and a passage"),
        (r#"[["a","b","c"]]"#, "inputs[0]: a pair must be exactly a query and a passage"),
        (r#"[["a",1]]"#, "inputs[0][1]: invalid type: integer `1`, expected a string"),
        (r#"["a","\ud800"]"#, "inputs[1]: unexpected end of hex escape"),
    ] {
        let error = refused(&format!(r#"{{"version":1,"id":"j","inputs":{inputs}}}"#));
        assert!(error.message.starts_with(message), "{error} for {inputs}");
        assert_eq!(error.kind, DecodeErrorKind::Invalid);
    }
}

#[test]
fn ids_are_checked_and_named() {
    let long = "x".repeat(129);
    for id in ["", ".", "..", "a b", "a/b", "é", "a\u{0}", long.as_str()] {
        let error = refused(&serde_json::json!({"version": 1, "id": id, "inputs": ["a"]}).to_string());
        assert!(error.message.starts_with("id: ") && error.id.is_none(), "{error}");
    }
    for id in ["a", "...", "A-Z.a_z:0", &long[1..]] {
        assert_eq!(JobId::new(id).map(|id| id.to_string()).as_deref(), Ok(id));
    }
    assert_eq!(refused(r#"{"version":1,"inputs":["a"]}"#).message, "id is missing");
}

#[test]
fn deadlines_are_rfc_3339() {
    for right in ["2026-12-01T12:00:00Z", "2026-12-01T12:00:00.123456789-11:30", "2024-02-29T23:59:59+00:00"] {
        assert!(decode(&with(&format!(r#""deadline":"{right}""#))).is_ok(), "{right}");
    }
    for wrong in [
        "2026-12-01T12:00:00",
        "2026-12-01 12:00:00Z",
        "2026-12-01t12:00:00z",
        "2026-12-01T12:00Z",
        "2026-12-01T12:00:00.Z",
        "2026-12-01T12:00:00+01",
        "2026-12-01T12:00:00+01:00[Europe/Berlin]",
        "2025-02-29T12:00:00Z",
        "2026-13-01T12:00:00Z",
        "+002026-12-01T12:00:00Z",
        "1767225600",
        "",
    ] {
        assert!(refused(&with(&format!(r#""deadline":"{wrong}""#))).message.starts_with("deadline: "), "{wrong}");
    }
}

#[test]
fn a_version_that_is_not_ours_is_told_from_a_wrong_one() {
    for version in ["2", "4294967296"] {
        let error = refused(&format!(r#"{{"version":{version},"id":"j","inputs":{{"new":"shape"}}}}"#));
        assert_eq!(error.kind, DecodeErrorKind::Version);
        assert_eq!(error.id.as_ref().map(JobId::as_str), Some("j"));
    }
    for version in ["0", "-1", "1.5", "\"1\"", "[1]", "1e999999"] {
        let error = refused(&format!(r#"{{"version":{version},"id":"j","inputs":["a"]}}"#));
        assert_eq!(error.kind, DecodeErrorKind::Invalid, "{error}");
        assert!(error.message.starts_with("version: "), "{error}");
    }
    assert_eq!(refused(r#"{"id":"j","inputs":["a"]}"#).message, "version is missing");
}

#[test]
fn the_id_survives_a_fault_elsewhere_but_not_a_second_id() {
    for body in [r#"{"id":"j","version":"#, r#"{"id":"j"} x"#, r#"{"id":"j","model":"a","model":"b"}"#, r#"{"id":"j"}"#]
    {
        assert_eq!(refused(body).id.as_ref().map(JobId::as_str), Some("j"), "{body}");
    }
    let error = refused(r#"{"version":1,"id":"j","id":"k","inputs":["a"]}"#);
    assert_eq!((error.kind, error.id), (DecodeErrorKind::Malformed, None));
    assert!(error.message.starts_with("id stands twice at line 1"), "{}", error.message);
}

#[test]
fn a_message_quotes_only_a_little_of_what_was_sent() {
    let error = refused(&with(&format!(r#""parameters":{{"truncate":"{}"}}"#, "é".repeat(2000))));
    assert!(error.message.len() < 600 && error.message.ends_with('…'), "{}", error.message.len());
}
