//! What the reply's reader refuses, and how statuses rank. Round trips are in `tests/it/wire.rs`.

use super::*;

fn reply(results: &str) -> String {
    format!(
        r#"{{"version":1,"id":"j","status":"succeeded","model":"m","revision":"sha256:00","results":{results},
            "usage":{{"items":1,"tokens":3}},"timings_ms":{{"queued":1,"intake":0.5,"batch":2,"engine":3}},
            "worker":"w","attempt":1,"metadata":{{}}}}"#
    )
}

fn decode(json: &str) -> Result<Reply, ReplyDecodeError> {
    Reply::decode(json.as_bytes())
}

#[test]
fn both_encodings_hold_the_same_numbers() {
    let floats = decode(&reply(r#"[{"id":"a","index":0,"embedding":[1.5,-0.0]}]"#)).expect("a reply");
    let base64 = decode(&reply(r#"[{"id":"a","index":0,"embedding":"AADAPwAAAIA="}]"#)).expect("a reply");
    for reply in [floats, base64] {
        let values = reply.results[0].embedding.as_ref().map(|embedding| embedding.values().to_vec());
        assert_eq!(values.map(|values| values.iter().map(|v| v.to_bits()).collect()), Some(vec![0x3fc0_0000, 1 << 31]));
    }
}

#[test]
fn a_wrong_result_is_named_with_its_place() {
    for (results, message) in [
        (r#"[{"id":"a","index":0}]"#, "results[0]: must have exactly one of embedding, labels and error"),
        (r#"[{"id":"a","index":0,"embedding":[1],"labels":[]}]"#, "results[0]: must have exactly one of"),
        (r#"[{"id":"a","index":0,"embedding":[1e39]}]"#, "results[0].embedding[0]: number out of range"),
        (r#"[{"id":"a","index":0,"embedding":[null]}]"#, "results[0].embedding[0]: invalid type: null"),
        (r#"[{"id":"a","index":0,"embedding":"AAAA"}]"#, "results[0].embedding: a base64 embedding must hold"),
        (r#"[{"id":"a","index":0,"embedding":"!"}]"#, "results[0].embedding: "),
        (r#"[{"id":"a","index":-1,"labels":[]}]"#, "results[0].index: invalid value: integer `-1`"),
        (
            r#"[{"id":"a","index":0,"labels":[{"label":"x","score":1e39}]}]"#,
            "results[0].labels[0].score: number out of range",
        ),
        ("7", "results: invalid type: integer `7`"),
    ] {
        let error = decode(&reply(results)).expect_err(results).to_string();
        assert!(error.starts_with(&format!("not a reply: {message}")), "{error} for {results}");
    }
    assert!(decode(&(reply("[]") + "x")).is_err());
}

#[test]
fn another_version_is_named_even_if_it_looks_different() {
    for body in [reply("[]").replace("\"version\":1", "\"version\":2"), r#"{"version":2,"answer":42}"#.to_owned()] {
        assert!(matches!(decode(&body), Err(ReplyDecodeError::Version(2))), "{body}");
    }
}

#[test]
fn success_is_better_than_partial_and_partial_than_the_rest() {
    assert!(Status::Succeeded.is_better_than(Status::Partial));
    assert!(Status::Partial.is_better_than(Status::Expired));
    assert!(!Status::Failed.is_better_than(Status::Rejected) && !Status::Rejected.is_better_than(Status::Failed));
}
