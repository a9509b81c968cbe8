//! Lines as they come in practice: ends, marks, blanks, wrong ones, long ones.

use super::*;

fn fields() -> Fields {
    Fields { text: "text".to_owned(), id: "id".to_owned() }
}

fn entries(format: Format, content: &[u8]) -> Vec<Entry> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("input");
    std::fs::write(&path, content).expect("a file");
    let mut source = Source::new(&[path.display().to_string()], Some(format), fields()).expect("an input");
    let mut entries = Vec::new();
    while let Some(entry) = source.next_entry().expect("a readable file") {
        entries.push(entry);
    }
    assert!(content.is_empty() || source.fraction_read() == Some(1.0), "all bytes are counted");
    entries
}

fn text(id: Option<&str>, text: &str) -> Item {
    Item { id: id.map(str::to_owned), input: Input::Text(text.to_owned()) }
}

fn items(format: Format, content: &[u8]) -> Vec<Item> {
    entries(format, content).into_iter().map(|entry| entry.item.expect("an item")).collect()
}

#[test]
fn each_line_of_a_text_file_is_one_text_and_a_blank_one_is_empty() {
    let expected = vec![text(None, "one"), text(None, ""), text(None, " two "), text(None, "\"three\"")];
    assert_eq!(items(Format::Text, "\u{feff}one\r\n\n two \n\"three\"".as_bytes()), expected);
    assert_eq!(items(Format::Text, b""), vec![]);
}

#[test]
fn json_lines_are_strings_objects_or_pairs_and_blank_ones_are_skipped() {
    let content = b"\"one\"\n\n  \r\n{\"id\": \"b\", \"text\": \"t\\u0077o\", \"other\": {\"text\": 1}}\n{\"id\":7,\"text\":\"x\"}\n\
        {\"id\":null,\"text\":\"y\"}\n[\"q\",\"p\"]";
    let pair = Item { id: None, input: Input::Pair("q".to_owned(), "p".to_owned()) };
    let expected = vec![text(None, "one"), text(Some("b"), "two"), text(Some("7"), "x"), text(None, "y"), pair];
    assert_eq!(items(Format::Jsonl, content), expected);
}

#[test]
fn a_bad_line_is_named_and_those_after_it_are_read() {
    let content =
        b"{\"id\":\"a\"}\nnonsense\n{\"text\": 5}\n{\"text\":\"x\",\"id\":1.5}\n\"\xff\"\n{\"text\": \"cut\n\"fine\"\n";
    let read = entries(Format::Jsonl, content);
    let messages: Vec<_> =
        read[..6].iter().map(|entry| entry.item.as_ref().expect_err("a bad line").error.message.clone()).collect();
    for (line, (message, part)) in messages
        .iter()
        .zip(["no field \"text\"", "not a JSON string", "is no string", "is no string or integer", "not UTF-8", "EOF"])
        .enumerate()
    {
        assert!(message.contains(&format!("line {}: ", line + 1)) && message.contains(part), "{message}");
    }
    assert_eq!(read[0].item.as_ref().expect_err("no text").id.as_deref(), Some("a"));
    assert_eq!(read[6].item, Ok(text(None, "fine")));
    assert_eq!(read.len(), 7);
}

#[test]
fn a_text_over_the_limit_is_a_bad_line_and_is_not_kept() {
    let mut content = vec![b'x'; (1 << 20) + 1];
    content.extend_from_slice(b"\nshort\n");
    content.extend(std::iter::repeat_n(b'y', LINE_BYTES_MAX + 5));
    let read = entries(Format::Text, &content);
    assert_eq!(read.len(), 3);
    let long = read[0].item.as_ref().expect_err("too long");
    assert_eq!(long.error.code, "limit_exceeded");
    assert!(long.error.message.contains("1048576"), "{}", long.error.message);
    assert_eq!(read[1].item, Ok(text(None, "short")));
    assert!(read[2].item.is_err());
}

#[test]
fn a_json_text_over_the_limit_keeps_its_id() {
    let content = format!("{{\"id\":\"big\",\"text\":\"{}\"}}", "x".repeat((1 << 20) + 1));
    let read = entries(Format::Jsonl, content.as_bytes());
    let bad = read[0].item.as_ref().expect_err("too long");
    assert_eq!((bad.id.as_deref(), bad.error.code.as_str()), (Some("big"), "limit_exceeded"));
}

#[test]
fn patterns_are_read_in_the_order_of_their_names_and_lines_count_in_each_file() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in [("b.txt", "b1\n"), ("a.txt", "a1\na2"), ("c.md", "no")] {
        std::fs::write(dir.path().join(name), content).expect("a file");
    }
    let pattern = dir.path().join("*.txt").display().to_string();
    let mut source = Source::new(&[pattern], None, fields()).expect("two files");
    let mut seen = Vec::new();
    while let Some(entry) = source.next_entry().expect("readable files") {
        seen.push((entry.item.expect("an item").input, entry.place.line));
    }
    let text = |text: &str| Input::Text(text.to_owned());
    assert_eq!(seen, vec![(text("a1"), 1), (text("a2"), 2), (text("b1"), 1)]);
}

#[test]
fn what_can_not_be_an_input_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path().display().to_string();
    std::fs::write(dir.path().join("a.csv"), "x").expect("a file");
    for (input, part) in [
        (folder.clone(), "is a directory"),
        (format!("{folder}/none.txt"), "does not exist"),
        (format!("{folder}/*.none"), "no file matches"),
        (format!("{folder}/a.csv"), "--format"),
        ("-".to_owned(), "--format"),
    ] {
        let error = Source::new(&[input], None, fields()).err().expect("an error").to_string();
        assert!(error.contains(part), "{error}");
    }
}
