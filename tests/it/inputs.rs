//! What `inferq` accepts as input, and what it refuses before anything is published: formats, archives, ids that stand
//! twice, bad lines, dry runs.
//!
//! As the tests of the producer: the binary from outside, over the real embedded queue; replies come from a responder in
//! the test, or from the echo worker inside `inferq run`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use inferq_shared::job::attribute;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use crate::producer::{Done, Place, Responder, fed, ids, inferq, jsonl, reading, rows};

/// A Parquet file of these columns, in small row groups.
fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1000)).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A column of texts `<kind> 0`, `<kind> 1` and so on.
fn texts(kind: &str, rows: usize) -> ArrayRef {
    Arc::new((0..rows).map(|n| Some(format!("{kind} {n}"))).collect::<StringArray>())
}

fn numbers(rows: i64) -> ArrayRef {
    Arc::new((0..rows).collect::<Int64Array>())
}

impl Place {
    /// Runs the echo engine over an input.
    fn run(&self, input: &str, flags: &[&str]) -> Done {
        let output = self.name("out.jsonl");
        inferq(&[&["run", "--engine", "echo", "--input", input, "--output", &output], flags].concat())
    }

    async fn waiting(&self) -> u64 {
        let responder = Responder::on(self).await;
        let waiting = responder.waiting().await;
        responder.close().await;
        waiting
    }
}

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn embeddings(rows: &[Value]) -> Vec<&Value> {
    rows.iter().map(|row| &row["embedding"]).collect()
}

#[test]
fn every_format_of_the_same_texts_gives_the_same_rows() {
    let place = Place::new();
    let lines: String = (0..100).map(|n| format!("{}\n", json!({"id": n, "text": format!("text {n}")}))).collect();
    let plain: String = (0..100).map(|n| format!("text {n}\n")).collect();
    let jobs: String = (0..10)
        .map(|job| {
            let inputs: Vec<_> =
                (job * 10..job * 10 + 10).map(|n| json!({"id": n.to_string(), "text": format!("text {n}")})).collect();
            format!("{}\n", json!({"version": 1, "id": format!("job-{job}"), "inputs": inputs}))
        })
        .collect();
    fs::write(place.path("a.jsonl.gz"), gzip(&lines)).unwrap();
    fs::write(place.path("a.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    fs::write(place.path("a.txt.gz"), gzip(&plain)).unwrap();
    parquet(&place.path("a.parquet"), vec![("key", numbers(100)), ("body", texts("text", 100))]);
    assert_eq!(place.run(&place.file("a.jsonl", &lines), &[]).code, 0);
    let expected = place.rows();
    assert_eq!((expected.len(), ids(&expected)[99]), (100, "99"));
    let jobs = place.file("a.jobs", &jobs);
    let columns = ["--column", "body", "--id-column", "key"];
    for (input, flags, has_ids) in [
        (place.name("a.jsonl.gz"), &[][..], true),
        (place.name("a.jsonl.zst"), &[], true),
        (place.name("a.txt.gz"), &[], false),
        (place.name("a.parquet"), &columns, true),
        (place.name("a.parquet"), &columns[..2], false),
        (jobs, &["--format", "jobs"], true),
    ] {
        let done = place.run(&input, flags);
        assert_eq!(done.code, 0, "{input}: {}", done.stderr);
        let rows = place.rows();
        assert_eq!(embeddings(&rows), embeddings(&expected), "{input}");
        assert_eq!(ids(&rows) == ids(&expected), has_ids, "{input}");
    }
}

#[test]
fn what_is_no_parquet_file_or_archive_is_refused_by_name() {
    let place = Place::new();
    parquet(&place.path("a.parquet"), vec![("key", numbers(5)), ("body", texts("text", 5))]);
    let whole = fs::read(place.path("a.parquet")).unwrap();
    fs::write(place.path("cut.parquet"), &whole[..whole.len() / 2]).unwrap();
    fs::write(place.path("text.parquet"), "no table").unwrap();
    fs::write(place.path("empty.parquet"), "").unwrap();
    let archive = gzip(&jsonl(2000));
    fs::write(place.path("cut.jsonl.gz"), &archive[..archive.len() / 2]).unwrap();
    fs::write(place.path("text.jsonl.zst"), "no archive").unwrap();
    let (url, ledger) = (place.url(), place.name("l.db"));
    for (input, flags, part) in [
        (
            place.name("a.parquet"),
            &["--column", "text"][..],
            "has no column \"text\" for --column; its columns are: key, body",
        ),
        (place.name("a.parquet"), &["--column", "key"], "column \"key\" of"),
        (place.name("a.parquet"), &["--column", "key", "body", "--column", "more"], "one column, or two"),
        (place.name("cut.parquet"), &[], "cut.parquet is no Parquet file"),
        (place.name("text.parquet"), &[], "text.parquet is no Parquet file"),
        (place.name("empty.parquet"), &[], "empty.parquet is no Parquet file"),
        ("-".to_owned(), &["--format", "parquet", "--ledger", &ledger], "name an uncompressed file"),
        (place.name("cut.jsonl.gz"), &[], "cut.jsonl.gz is cut short or damaged after line"),
        (place.name("text.jsonl.zst"), &[], "text.jsonl.zst is cut short or damaged after line 0"),
    ] {
        let done = inferq(&[&["submit", "--queue", &url, "--input", &input], flags].concat());
        assert_eq!((done.code, done.stdout.as_str()), (64, ""), "{input}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{input}: {}", done.stderr);
    }
    let left = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.contains("ledger") || name.contains("l.db")).collect();
    assert_eq!(left, Vec::<String>::new(), "nothing was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_submit_of_a_table_or_of_jobs_goes_on_and_doubles_no_id() {
    let place = Place::new();
    parquet(&place.path("a.parquet"), vec![("id", numbers(1200)), ("text", texts("text", 1200))]);
    let jobs: String =
        (0..1200).map(|n| format!("{{\"version\":1,\"id\":\"j{n}\",\"inputs\":[\"text {n}\"]}}\n")).collect();
    let table_flags = ["--id-column", "id", "--items-per-job", "1"];
    for (input, flags) in
        [(place.name("a.parquet"), &table_flags[..]), (place.file("a.jobs", &jobs), &["--format", "jobs"])]
    {
        let url = place.url();
        let mut responder = Responder::on(&place).await;
        let mut child = reading(&[&["submit", "--queue", &url, "--input", &input], flags].concat());
        let mut taken = responder.take(256).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let done = place.submit(&input, flags);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let left = responder.waiting().await;
        taken.extend(responder.take(left as usize).await);
        let distinct: BTreeSet<_> = taken.iter().map(|(job, _)| job.id.clone()).collect();
        assert_eq!(distinct.len(), 1200);
        responder.answer(taken).await;
        responder.close().await;
        let done = place.collect(&format!("{input}.ledger.db"), &[]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let rows = place.rows();
        assert_eq!(ids(&rows).iter().collect::<BTreeSet<_>>().len(), 1200, "each row once, under an id of its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_job_is_published_as_it_stands_and_answered_under_its_own_id() {
    let place = Place::new();
    let line = r#"{"version": 1, "id": "nightly", "model": "m", "inputs": [{"id": "doc-1", "text": "one"}, "two"], "deadline": "2199-01-01T00:00:00Z", "later": 1}"#;
    let elsewhere = r#"{"version":1,"id":"b","inputs":["x"],"reply_to":{"queue":"q"}}"#;
    let last = r#"{"version":1,"id":"c","inputs":["three"]}"#;
    let input = place.file("a.jobs", &format!("{line}\n{elsewhere}\n{last}\n"));
    let done = place.submit(&input, &["--format", "jobs"]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("a.jobs line 2: reply_to.queue: "), "{}", done.stderr);
    let mut responder = Responder::on(&place).await;
    let taken = responder.take(2).await;
    let (_, delivery) = &taken[0];
    assert_eq!(delivery.message.body, line.as_bytes());
    let attributes = &delivery.message.attributes;
    assert_eq!((&*attributes[attribute::JOB_ID], &*attributes[attribute::ITEMS]), ("nightly", "2"));
    responder.answer(taken).await;
    responder.close().await;
    let done = place.collect(&format!("{input}.ledger.db"), &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    let rows = place.rows();
    assert_eq!(ids(&rows), ["doc-1", "nightly/1", "b", "c/0"]);
    assert_eq!(rows.iter().map(|row| row["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(rows[2]["error"]["code"], "invalid");

    let again = place.submit(&input, &["--format", "jobs"]);
    assert!(again.stdout.contains("0 of them published now"), "{} {}", again.stdout, again.stderr);
    let flags = place.submit(&input, &["--format", "jobs", "--dimensions", "7"]);
    assert_eq!(flags.code, 64);
    assert!(flags.stderr.contains("--dimensions does not go with --format jobs"), "{}", flags.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_stand_twice_are_refused_before_anything_is_published() {
    let place = Place::new();
    // Line 100 + n has the id of line n.
    let twice: String = (0..130).map(|n| format!("{{\"id\":\"doc-{}\",\"text\":\"x\"}}\n", (n % 99) + 1)).collect();
    let input = place.file("twice.jsonl", &twice);
    let done = place.submit(&input, &[]);
    assert_eq!((done.code, done.stdout.as_str()), (64, ""), "{}", done.stderr);
    assert!(done.stderr.contains("31 ids stand twice"), "{}", done.stderr);
    assert!(done.stderr.contains("id \"doc-1\" on ") && done.stderr.contains("line 100 is on line 1 already"));
    assert_eq!(done.stderr.matches("already").count(), 20, "{}", done.stderr);
    assert!(done.stderr.contains("and 11 more") && done.stderr.contains("nothing is published"), "{}", done.stderr);
    assert!(!Path::new(&format!("{input}.ledger.db")).exists(), "no ledger is left");

    let (one, other) = (
        place.file("1.jsonl", "{\"id\":7,\"text\":\"x\"}\n"),
        place.file("2.jsonl", "\n{\"id\":\"7\",\"text\":\"y\"}\n"),
    );
    let done = place.submit(&one, &[&other, "--ledger", &place.name("l.db")]);
    assert_eq!(done.code, 64, "{}", done.stderr);
    let expected = format!("id \"7\" on {other} line 2 is on {one} line 1 already");
    assert!(done.stderr.contains(&expected), "{}", done.stderr);

    let job = r#"{"version":1,"id":"a","inputs":["x"]}"#;
    let jobs = place.file("a.jobs", &format!("{job}\n{job}\n"));
    let done = place.submit(&jobs, &["--format", "jobs"]);
    assert_eq!(done.code, 64, "{}", done.stderr);
    assert!(done.stderr.contains("id \"a\" on") && done.stderr.contains("line 2 is on line 1"), "{}", done.stderr);
    parquet(&place.path("a.parquet"), vec![("id", Arc::new(Int64Array::from(vec![1, 2, 1]))), ("text", texts("t", 3))]);
    let done = place.submit(&place.name("a.parquet"), &["--id-column", "id"]);
    assert!(done.code == 64 && done.stderr.contains("row 3 is on row 1 already"), "{}", done.stderr);
    assert_eq!(place.waiting().await, 0);
    assert_eq!(place.submit(&place.name("a.parquet"), &[]).code, 0, "a column that is not read may say what it likes");
}

#[test]
fn from_stdin_ids_that_stand_twice_are_refused_at_its_end() {
    let place = Place::new();
    let (url, ledger) = (place.url(), place.name("l.db"));
    let from_stdin = |format, input: &str| {
        fed(reading(&["submit", "--queue", &url, "--input", "-", "--format", format, "--ledger", &ledger]), input)
    };
    let done = from_stdin("jsonl", "{\"id\":\"a\",\"text\":\"x\"}\n\"y\"\n{\"id\":\"a\",\"text\":\"z\"}\n");
    assert_eq!(done.code, 64, "{}", done.stderr);
    assert!(done.stderr.contains("stdin line 3 is on line 1 already"), "{}", done.stderr);
    let done = place.collect(&ledger, &[]);
    assert!(done.code == 64 && done.stderr.contains("not complete"), "{}", done.stderr);
    fs::remove_file(&ledger).unwrap();
    let job = r#"{"version":1,"id":"a","inputs":["x"]}"#;
    let done = from_stdin("jobs", &format!("{job}\n{job}\n"));
    assert_eq!(done.code, 64, "{}", done.stderr);
    assert!(done.stderr.contains("twice"), "{}", done.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_are_listed_and_refused_or_left_out_as_asked() {
    let place = Place::new();
    let bad: String = (0..25).map(|n| format!("\"good {n}\"\nbad {n}\n")).collect();
    let input = place.file("texts.jsonl", &bad);
    let listed = |done: &Done| {
        let lines = done.stderr.matches("bad input: ").count();
        assert!(lines == 21 && done.stderr.contains("texts.jsonl line 40: not a JSON string"), "{}", done.stderr);
        assert!(done.stderr.contains("and 5 more") && !done.stderr.contains("line 42"), "{}", done.stderr);
    };
    let done = place.submit(&input, &["--on-bad-input", "fail"]);
    assert_eq!(done.code, 64, "{}", done.stderr);
    listed(&done);
    assert!(done.stderr.contains("25 lines are no good input") && done.stderr.contains("nothing is published"));
    assert_eq!(place.waiting().await, 0);
    let done = place.submit(&input, &[]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    listed(&done);

    let (url, ledger) = (place.url(), place.name("l.db"));
    let flags = ["submit", "--queue", &url, "--input", "-", "--format", "jsonl", "--ledger", &ledger];
    let done = fed(reading(&[&flags[..], &["--on-bad-input", "fail"]].concat()), &bad);
    assert_eq!(done.code, 64, "{}", done.stderr);
    assert!(done.stderr.contains("stdin line 2: not a JSON string"), "{}", done.stderr);
    // A text can only be bad by its length or its bytes; its file is looked through all the same.
    fs::write(place.path("bytes.txt"), b"good\n\xff\n").unwrap();
    let done = place.submit(&place.name("bytes.txt"), &["--on-bad-input", "fail"]);
    assert!(done.code == 64 && done.stderr.contains("nothing is published"), "{}", done.stderr);
}

#[test]
fn a_dry_run_counts_and_needs_no_queue() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &format!("{}nonsense\n", jsonl(100)));
    let model =
        std::env::var("INFERQ_TEST_MODEL").expect("INFERQ_TEST_MODEL names a model's directory: `make test` sets it");
    let dry =
        |flags: &[&str]| inferq(&[&["submit", "--dry-run", "--input", &input, "--items-per-job", "8"], flags].concat());
    let figures = |done: &Done| -> Vec<u64> {
        let number = |line: &str| line[10..].split_whitespace().next().unwrap().replace(',', "").parse().unwrap();
        done.stdout.lines().map(number).collect()
    };
    let about = dry(&[]);
    assert_eq!(about.code, 2, "{}", about.stderr);
    assert!(
        about.stdout.contains("bytes / 4") && about.stderr.contains("line 101"),
        "{} {}",
        about.stdout,
        about.stderr
    );
    assert_eq!((figures(&about)[0], figures(&about)[1], figures(&about)[4]), (100, 13, 1));
    let exact = dry(&["--model", &model]);
    assert!(exact.stdout.contains("by the model's tokenizer"), "{} {}", exact.stdout, exact.stderr);
    assert_eq!(figures(&exact)[3], figures(&about)[3], "bytes don't depend on the model");
    assert!(!Path::new(&format!("{input}.ledger.db")).exists(), "no ledger is made");
    assert_eq!(dry(&["--model", &place.name("none")]).code, 64);

    // What was told is what is published, and what the model reads.
    let output = place.name("out.jsonl");
    let flags = ["--model", &model, "--input", &input, "--output", &output, "--items-per-job", "8"];
    let done = inferq(&[&["run"], &flags[..]].concat());
    assert_eq!(done.code, 2, "{}", done.stderr);
    let tokens: u64 = rows(Path::new(&output)).iter().filter_map(|row| row["tokens"].as_u64()).sum();
    assert_eq!(figures(&exact)[2], tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_published_job_are_exact_with_the_model_at_hand() {
    let place = Place::new();
    let model =
        std::env::var("INFERQ_TEST_MODEL").expect("INFERQ_TEST_MODEL names a model's directory: `make test` sets it");
    let input = place.file("texts.txt", "the cat sat on the mat\nantidisestablishmentarianism\n");
    let done = place.submit(&input, &["--model", &model]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let mut responder = Responder::on(&place).await;
    let taken = responder.take(1).await;
    let dry = inferq(&["submit", "--dry-run", "--input", &input, "--model", &model]);
    let told = &taken[0].1.message.attributes[attribute::TOKENS];
    assert!(dry.stdout.contains(&format!("{told:>16}  by the model")), "{told}: {}", dry.stdout);
    responder.answer(taken).await;
    responder.close().await;
}

#[test]
fn a_changed_flag_is_refused_with_its_value_before_and_now() {
    let place = Place::new();
    let input = place.file("texts.jsonl", &jsonl(10));
    assert_eq!(place.submit(&input, &["--dimensions", "7"]).code, 0);
    for (flags, part) in [
        (&["--dimensions", "8"][..], "began with --dimensions 7, not --dimensions 8"),
        (&[], "began with --dimensions 7, not no --dimensions"),
    ] {
        let done = place.submit(&input, flags);
        assert!(done.code == 64 && done.stderr.contains(part), "{}", done.stderr);
    }
}
