//! Results read back from the columns that they were written to.
//!
//! In: a whole Parquet file in memory, as [`super::file`] makes it. Out: the results, or what is wrong with the file.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, Int32Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::reply::{Embedding, ItemResult, Label, ReplyError};

/// Reads a job's results.
///
/// # Errors
/// When it is no such file, as a fragment.
pub fn read(body: Bytes) -> Result<Vec<ItemResult>, String> {
    // The library panics on some damaged files.
    catch_unwind(AssertUnwindSafe(|| results(body))).unwrap_or_else(|_| Err("the Parquet file is damaged".to_owned()))
}

fn results(body: Bytes) -> Result<Vec<ItemResult>, String> {
    let mut found = Vec::new();
    let damaged = |error: &dyn std::fmt::Display| format!("not a Parquet file of results: {error}");
    let reader = ParquetRecordBatchReaderBuilder::try_new(body).map_err(|error| damaged(&error))?;
    for batch in reader.build().map_err(|error| damaged(&error))? {
        add(&batch.map_err(|error| damaged(&error))?, &mut found)?;
    }
    Ok(found)
}

fn add(batch: &RecordBatch, found: &mut Vec<ItemResult>) -> Result<(), String> {
    let (id, index): (&StringArray, &Int64Array) = (column(batch, "id")?, column(batch, "index")?);
    let tokens: &Int32Array = column(batch, "tokens")?;
    let (code, message): (&StringArray, &StringArray) = (column(batch, "error_code")?, column(batch, "error_message")?);
    for row in 0..batch.num_rows() {
        let error = code.is_valid(row).then(|| ReplyError::new(code.value(row), message.value(row)));
        let index = u32::try_from(index.value(row)).map_err(|_| format!("row {row} has an index out of range"))?;
        found.push(ItemResult {
            id: id.value(row).to_owned(),
            index,
            embedding: embedding(batch, row),
            labels: labels(batch, row)?,
            error,
            tokens: tokens.is_valid(row).then(|| tokens.value(row).cast_unsigned()),
        });
    }
    Ok(())
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, String> {
    let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
    column.ok_or_else(|| format!("column {name} is missing, or holds something else"))
}

/// A file without any embedding has a column of lists that are all null.
fn embedding(batch: &RecordBatch, row: usize) -> Option<Embedding> {
    let lists = batch.column_by_name("embedding")?.as_fixed_size_list_opt()?;
    let numbers = lists.is_valid(row).then(|| lists.value(row))?;
    Some(Embedding::Base64(numbers.as_primitive_opt::<Float32Type>()?.values().to_vec()))
}

fn labels(batch: &RecordBatch, row: usize) -> Result<Option<Vec<Label>>, String> {
    let Some(lists) = batch.column_by_name("labels").and_then(|column| column.as_list_opt::<i32>()) else {
        return Ok(None);
    };
    if lists.is_null(row) {
        return Ok(None);
    }
    let list = lists.value(row);
    let fields = list.as_struct_opt().filter(|fields| fields.num_columns() == 2);
    let columns = fields.and_then(|fields| {
        Some((fields.column(0).as_string_opt::<i32>()?, fields.column(1).as_primitive_opt::<Float32Type>()?))
    });
    let (names, scores) = columns.ok_or_else(|| "column labels holds something else".to_owned())?;
    let label = |at| Label { label: names.value(at).to_owned(), score: scores.value(at) };
    Ok(Some((0..names.len()).map(label).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn result(index: u32) -> ItemResult {
        let id = format!("doc-{index}");
        ItemResult { id, index, embedding: None, labels: None, error: None, tokens: None }
    }

    #[test]
    fn what_was_written_is_read() {
        let error = |index| ItemResult { error: Some(ReplyError::new("input_too_long", "no")), ..result(index) };
        let embedding = |index: u32| {
            let numbers = Embedding::Base64(vec![index as f32, 1.0 / 3.0]);
            ItemResult { embedding: Some(numbers), tokens: Some(index), ..result(index) }
        };
        let labels = |index| {
            let label = |label: &str, score| Label { label: label.to_owned(), score };
            ItemResult { labels: Some(vec![label("a", 0.75), label("b", 0.25)]), ..result(index) }
        };
        let files = [
            (0..3000).map(|index| if index % 7 == 0 { error(index) } else { embedding(index) }).collect::<Vec<_>>(),
            vec![labels(0), error(1), labels(2)],
            vec![error(0), error(1)],
            Vec::new(),
        ];
        for results in files {
            let body = file(&results, "model", "sha256:0").expect("they are of one kind");
            assert_eq!(read(body.into()).as_ref(), Ok(&results));
        }
    }

    #[test]
    fn what_is_no_such_file_is_said_so() {
        let body = file(&[result(0)], "model", "sha256:0").expect("a file");
        for bad in [&b"{}"[..], b"", &body[..body.len() - 9], &body[10..]] {
            assert!(read(Bytes::copy_from_slice(bad)).is_err());
        }
    }
}
