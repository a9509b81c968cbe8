//! Parquet files as other programs write them, and as they should not be.

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, Int64Array, LargeStringArray, StringArray, StringViewArray,
};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::super::{Fields, Reading, Source};
use super::*;

/// A file of these columns, `rows_a_group` rows in a row group.
fn file(columns: Vec<(&str, ArrayRef)>, rows_a_group: usize) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
        .expect("columns of one length");
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(rows_a_group))
        .set_compression(parquet::basic::Compression::SNAPPY)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("a file");
    bytes
}

fn read(bytes: &[u8], columns: Columns) -> Result<Vec<Entry>, SourceError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("texts.parquet");
    std::fs::write(&path, bytes).expect("a file");
    let fields = Fields::default();
    let reading = Reading { format: None, fields, columns };
    let mut source = Source::new(&[path.display().to_string()], reading)?;
    let mut entries = Vec::new();
    while let Some(entry) = source.next_entry()? {
        entries.push(entry);
    }
    assert!(bytes.is_empty() || source.fraction_read().is_some_and(|read| read > 0.99), "all rows are counted");
    Ok(entries)
}

fn columns(input: &[&str], id: Option<&str>) -> Columns {
    Columns { input: input.iter().map(|name| (*name).to_owned()).collect(), id: id.map(str::to_owned) }
}

fn item(id: Option<&str>, text: &str) -> Result<Content, BadLine> {
    Ok(Content::Item(Item { id: id.map(str::to_owned), input: Input::Text(text.to_owned()) }))
}

fn contents(entries: Vec<Entry>) -> Vec<Result<Content, BadLine>> {
    entries.into_iter().map(|entry| entry.content).collect()
}

#[test]
fn every_kind_of_text_column_is_read_and_no_other_column() {
    let texts = vec!["one", "two", "", "two", "five"];
    let kinds: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(StringViewArray::from(texts.clone())),
        Arc::new(texts.iter().copied().collect::<DictionaryArray<Int32Type>>()),
    ];
    for kind in kinds {
        let other: ArrayRef = Arc::new(Float64Array::from(vec![0.5; 5]));
        let bytes = file(vec![("other", other), ("body", kind)], 2);
        let entries = read(&bytes, columns(&["body"], None)).expect("a readable file");
        assert_eq!(entries[3].place.within_file(), "row 4");
        assert_eq!(contents(entries), texts.iter().map(|text| item(None, text)).collect::<Vec<_>>());
    }
}

#[test]
fn ids_are_strings_or_integers_and_two_columns_are_a_pair() {
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["x", "y"])) };
    let integers: ArrayRef = Arc::new(Int64Array::from(vec![Some(-7), None]));
    let strings: ArrayRef = Arc::new(StringArray::from(vec!["a", ""]));
    let bytes = file(vec![("text", text()), ("n", integers), ("s", strings), ("more", text())], 9);
    let by_number = contents(read(&bytes, columns(&["text"], Some("n"))).expect("a readable file"));
    assert_eq!(by_number, [item(Some("-7"), "x"), item(None, "y")]);
    let by_string = contents(read(&bytes, columns(&["text"], Some("s"))).expect("a readable file"));
    assert_eq!(by_string[0], item(Some("a"), "x"));
    let message = &by_string[1].as_ref().expect_err("an empty id").error.message;
    assert!(message.contains("row 2") && message.contains("1 to 512"), "{message}");
    let pairs = contents(read(&bytes, columns(&["text", "more"], None)).expect("a readable file"));
    let pair = Item { id: None, input: Input::Pair("x".to_owned(), "x".to_owned()) };
    assert_eq!(pairs[0], Ok(Content::Item(pair)));
}

#[test]
fn a_null_and_a_huge_text_are_bad_rows_and_those_after_them_are_read() {
    let huge = "x".repeat((1 << 20) + 1);
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("one"), None, Some(&huge), Some("four")]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
    let read =
        contents(read(&file(vec![("text", texts), ("id", ids)], 9), columns(&["text"], Some("id"))).expect("ok"));
    let bad = |at: usize| read[at].as_ref().expect_err("a bad row");
    assert_eq!((bad(1).id.as_deref(), bad(1).error.code.as_str()), (Some("2"), "invalid"));
    assert!(bad(1).error.message.contains("texts.parquet row 2: column \"text\" is null"), "{:?}", bad(1));
    assert_eq!((bad(2).id.as_deref(), bad(2).error.code.as_str()), (Some("3"), "limit_exceeded"));
    assert_eq!((&read[0], &read[3]), (&item(Some("1"), "one"), &item(Some("4"), "four")));
}

#[test]
fn one_huge_text_that_a_dictionary_holds_for_every_row_takes_no_room_for_each() {
    let huge = "x".repeat(1 << 20);
    let texts: ArrayRef = Arc::new(std::iter::repeat_n(huge.as_str(), 8192).collect::<DictionaryArray<Int32Type>>());
    let bytes = file(vec![("text", texts)], 1 << 20);
    assert!(bytes.len() < 4 << 20, "{} bytes: the writer made no dictionary", bytes.len());
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("huge.parquet");
    std::fs::write(&path, &bytes).expect("a file");
    let origin = Origin::File(path);
    let mut rows = Rows::open(&origin, columns(&["text"], None), &Arc::default()).expect("a readable file");
    let mut count = 0;
    while let Some(entry) = rows.next_entry(&Limits::default()).expect("readable rows") {
        assert!(entry.content.is_ok());
        let batch = rows.batch.as_ref().expect("a batch");
        assert!(batch.get_array_memory_size() < 64 << 20, "{} bytes in a batch", batch.get_array_memory_size());
        count += 1;
    }
    assert_eq!(count, 8192);
}

#[test]
fn a_column_that_is_not_there_or_holds_something_else_is_refused_by_name() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let number: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
    let bytes = file(vec![("text", text), ("number", number)], 9);
    for (columns, parts) in [
        (columns(&["body"], None), ["texts.parquet has no column \"body\" for --column", "text, number"]),
        (columns(&["text"], Some("key")), ["no column \"key\" for --id-column", "text, number"]),
        (columns(&["number"], None), ["column \"number\" of", "is Float64, not string"]),
        (columns(&["text"], Some("number")), ["column \"number\" of", "is Float64, not string or integer"]),
    ] {
        let error = read(&bytes, columns).expect_err("a column that can't be read").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_file_cut_short_or_changed_anywhere_is_refused_by_name_or_read_and_never_a_panic() {
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    let texts: ArrayRef = Arc::new(StringArray::from(texts));
    let whole = file(vec![("text", texts)], 15);
    for length in 0..whole.len() {
        let error = read(&whole[..length], columns(&["text"], None)).expect_err("a cut file").to_string();
        assert!(error.contains("texts.parquet is no Parquet file"), "{length}: {error}");
    }
    let mut refused = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= change;
            let read = read(&changed, columns(&["text"], None));
            refused += u32::from(read.is_err_and(|error| error.to_string().contains("texts.parquet")));
        }
    }
    assert!(refused > 0, "some change is found out");
}
