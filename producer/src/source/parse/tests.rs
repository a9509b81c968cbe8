//! A line of `--format jobs` is a job or a fault.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_bytes_are_a_job_or_a_fault(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let limits = Limits { body_bytes: 100, ..Limits::default() };
        prop_assert!(job(&line, &limits).err().is_none_or(|bad| !bad.error.message.is_empty()));
    }
}

#[test]
fn a_job_is_the_wire_format_s_and_its_reply_comes_to_its_submission() {
    let read = job(br#" {"version":1,"id":"a","inputs":["x"],"later":true} "#, &Limits::default()).expect("a job");
    assert_eq!((read.id.as_str(), read.items()), ("a", 1));
    let elsewhere = br#"{"version":1,"id":"a","inputs":["x"],"reply_to":{"uri":"gs://bucket/out/"}}"#;
    assert!(job(elsewhere, &Limits::default()).is_ok());
    for (line, id, code, part) in [
        (r#"{"version":1,"id":"a","inputs":[]}"#, Some("a"), "invalid", "inputs"),
        (r#"{"version":9,"id":"a","inputs":["x"]}"#, Some("a"), "unsupported_version", "9"),
        (r#"{"version":1,"inputs":["x"]}"#, None, "invalid", "id is missing"),
        (r#"{"version":1,"id":"a","inputs":["x"],"reply_to":{"queue":"q"}}"#, Some("a"), "invalid", "reply_to.queue"),
        (
            r#"{"version":1,"id":"a","inputs":["x"],"reply_to":{"uri":"https://h/"}}"#,
            Some("a"),
            "invalid",
            "reply_to.uri",
        ),
        ("nonsense", None, "malformed", "JSON object"),
    ] {
        let bad = job(line.as_bytes(), &Limits::default()).expect_err("no job");
        assert_eq!((bad.id.as_deref(), bad.error.code.as_str()), (id, code), "{line}");
        assert!(bad.error.message.contains(part), "{line}: {}", bad.error.message);
    }
}
