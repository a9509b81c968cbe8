//! Lines as they come in practice: ends, marks, blanks, wrong ones, long ones.

use inferq_shared::job::Input;

use super::lines::LINE_BYTES_MAX;
use super::*;

fn reading(format: Option<Format>) -> Reading {
    let fields = Fields::default();
    Reading { format, fields, columns: Columns { input: vec!["text".to_owned()], id: None } }
}

fn entries(format: Format, content: &[u8]) -> Vec<Entry> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("input");
    std::fs::write(&path, content).expect("a file");
    let mut source = Source::new(&[path.display().to_string()], reading(Some(format))).expect("an input");
    let mut entries = Vec::new();
    while let Some(entry) = source.next_entry().expect("a readable file") {
        entries.push(entry);
    }
    assert!(content.is_empty() || source.fraction_read() == Some(1.0), "all bytes are counted");
    entries
}

fn item(entry: Entry) -> Item {
    match entry.content.expect("no bad line") {
        Content::Item(item) => item,
        Content::Job(job) => panic!("a job: {job:?}"),
    }
}

fn bad(entry: &Entry) -> &BadLine {
    entry.content.as_ref().expect_err("a bad line")
}

fn text(id: Option<&str>, text: &str) -> Item {
    Item { id: id.map(str::to_owned), input: Input::Text(text.to_owned()) }
}

fn items(format: Format, content: &[u8]) -> Vec<Item> {
    entries(format, content).into_iter().map(item).collect()
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
    let messages: Vec<_> = read[..6].iter().map(|entry| bad(entry).error.message.clone()).collect();
    for (line, (message, part)) in messages
        .iter()
        .zip(["no field \"text\"", "not a JSON string", "is no string", "is no string or integer", "not UTF-8", "EOF"])
        .enumerate()
    {
        assert!(message.contains(&format!("line {}: ", line + 1)) && message.contains(part), "{message}");
    }
    assert_eq!(bad(&read[0]).id.as_deref(), Some("a"));
    assert_eq!(item(read[6].clone()), text(None, "fine"));
    assert_eq!(read.len(), 7);
}

#[test]
fn a_text_over_the_limit_is_a_bad_line_and_is_not_kept() {
    let mut content = vec![b'x'; (1 << 20) + 1];
    content.extend_from_slice(b"\nshort\n");
    content.extend(std::iter::repeat_n(b'y', LINE_BYTES_MAX + 5));
    let read = entries(Format::Text, &content);
    assert_eq!(read.len(), 3);
    let long = bad(&read[0]);
    assert_eq!(long.error.code, "limit_exceeded");
    assert!(long.error.message.contains("1048576"), "{}", long.error.message);
    assert_eq!(item(read[1].clone()), text(None, "short"));
    assert!(read[2].content.is_err());
}

#[test]
fn a_json_text_over_the_limit_keeps_its_id() {
    let content = format!("{{\"id\":\"big\",\"text\":\"{}\"}}", "x".repeat((1 << 20) + 1));
    let read = entries(Format::Jsonl, content.as_bytes());
    let bad = bad(&read[0]);
    assert_eq!((bad.id.as_deref(), bad.error.code.as_str()), (Some("big"), "limit_exceeded"));
}

#[test]
fn patterns_are_read_in_the_order_of_their_names_and_lines_count_in_each_file() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, content) in [("b.txt", "b1\n"), ("a.txt", "a1\na2"), ("c.md", "no")] {
        std::fs::write(dir.path().join(name), content).expect("a file");
    }
    let pattern = dir.path().join("*.txt").display().to_string();
    let mut source = Source::new(&[pattern], reading(None)).expect("two files");
    let mut seen = Vec::new();
    while let Some(entry) = source.next_entry().expect("readable files") {
        let number = entry.place.number;
        seen.push((item(entry).input, number));
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
        let error = Source::new(&[input], reading(None)).err().expect("an error").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn compressed_lines_are_those_of_the_file_inside_and_a_cut_archive_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let content: String = (0..5000).map(|n| format!("\"text {}\"\n", n * 7919 % 5000)).collect();
    let gzip = |part: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, part.as_bytes()).expect("memory");
        encoder.finish().expect("memory")
    };
    // As `cat a.gz b.gz` makes them: an archive of two parts.
    let (head, tail) = content.split_at(777);
    let archives = [
        ("a.jsonl.gz", [gzip(head), gzip(tail)].concat()),
        ("a.jsonl.zst", zstd::encode_all(content.as_bytes(), 1).expect("memory")),
    ];
    for (name, archive) in archives {
        let path = dir.path().join(name);
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("a file");
            let mut source = Source::new(&[path.display().to_string()], reading(None)).expect("an input");
            let mut lines = String::new();
            while let Some(entry) = source.next_entry()? {
                let Input::Text(text) = item(entry).input else { panic!("a text") };
                lines += &format!("\"{text}\"\n");
            }
            Ok::<_, SourceError>(lines)
        };
        assert_eq!(read(&archive).expect("a whole archive"), content);
        for cut in [archive.len() - 1, archive.len() / 2, 30] {
            let error = read(&archive[..cut]).expect_err("a cut archive");
            assert!(matches!(&error, SourceError::Damaged(what) if what.contains(name)), "{cut}: {error}");
        }
    }
}

#[test]
fn a_line_of_jobs_keeps_its_bytes() {
    let content = b"\n  {\"version\": 1, \"id\": \"a\", \"inputs\": [\"x\"], \"later\": 1}  \r\n{\"id\":\"b\"}\n";
    let read = entries(Format::Jobs, content);
    let Ok(Content::Job(ready)) = &read[0].content else { panic!("a job: {:?}", read[0]) };
    assert_eq!(&ready.body[..], b"{\"version\": 1, \"id\": \"a\", \"inputs\": [\"x\"], \"later\": 1}");
    assert_eq!((read[0].id(), read[0].place.number), (Some("a"), 2));
    assert_eq!(bad(&read[1]).id.as_deref(), Some("b"));
    assert!(bad(&read[1]).error.message.contains("line 3: version is missing"), "{:?}", read[1]);
}

#[test]
fn a_second_stream_begins_anew_and_stdin_has_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.txt");
    std::fs::write(&path, "one\ntwo\n").expect("a file");
    let mut source = Source::new(&[path.display().to_string()], reading(None)).expect("an input");
    source.next_entry().expect("readable");
    let mut again = source.again().expect("a file can be read again");
    assert_eq!(item(again.next_entry().expect("readable").expect("a line")), text(None, "one"));
    assert!(Source::new(&["-".to_owned()], reading(Some(Format::Text))).expect("stdin").again().is_none());
}
