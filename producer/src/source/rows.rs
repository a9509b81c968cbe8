//! A Parquet file as entries, one a row.
//!
//! In: a file and the names of the columns that are read; the others are not touched. Out: entries in the order of the
//! rows. It holds one batch of rows, a few megabytes where texts are of about one length. A row that is no item is
//! data; a file that is damaged is an error.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, downcast_integer_array};
use arrow_schema::{DataType, Field, Schema};
use inferq_shared::job::{Input, Item, Limits};
use inferq_shared::reply::ReplyError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;

use super::inputs::Origin;
use super::{Content, Entry, Place, SourceError, Unit};
use inferq_shared::job::line::{BadLine, check_id};

/// The columns of a Parquet file that are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// Holds the text; two hold a query and a passage.
    pub input: Vec<String>,
    /// Holds the item's id, a string or an integer.
    pub id: Option<String>,
}

/// Rows that are decoded at once, at most,
const BATCH_ROWS_MAX: usize = 8192;
/// and about how many bytes they take.
const BATCH_BYTES: usize = 4 << 20;

/// A stream of rows.
pub(super) struct Rows {
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// The next row of the batch.
    next: usize,
    columns: Columns,
    place: Place,
    /// Rows and bytes of the whole file: what is read of it is told by its rows.
    size: (u64, u64),
    read: Arc<AtomicU64>,
}

impl Rows {
    /// Opens a file and checks its columns.
    ///
    /// # Errors
    /// When it can't be opened, is no Parquet file, or its columns are not there or hold something else.
    pub(super) fn open(origin: &Origin, columns: Columns, read: &Arc<AtomicU64>) -> Result<Self, SourceError> {
        let name = origin.name();
        let damaged = |error: String| {
            SourceError::Damaged(format!("{name} is no Parquet file, or cut short, damaged or encrypted: {error}"))
        };
        let file = origin.file()?;
        // By Parquet's own types every text is one type, whatever it was in the program that wrote it.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let found = guarded(|| ArrowReaderMetadata::load(&file, options)).map_err(damaged)?;
        let wanted = wanted(found.schema(), &columns, &name)?;
        let options = ArrowReaderOptions::new().with_schema(Arc::new(with_views(found.schema())));
        let metadata = guarded(|| ArrowReaderMetadata::try_new(found.metadata().clone(), options)).map_err(damaged)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let rows = builder.metadata().file_metadata().num_rows().unsigned_abs();
        let batch_rows = batch_rows(builder.metadata(), &mask);
        let reader = guarded(|| builder.with_projection(mask).with_batch_size(batch_rows).build()).map_err(damaged)?;
        let size = (rows, origin.bytes().unwrap_or_default());
        let place = Place { name, unit: Unit::Row, number: 0 };
        Ok(Self { reader, batch: None, next: 0, columns, place, size, read: read.clone() })
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When the file turns out to be damaged.
    pub(super) fn next_entry(&mut self, limits: &Limits) -> Result<Option<Entry>, SourceError> {
        while self.batch.as_ref().is_none_or(|batch| self.next >= batch.num_rows()) {
            let (name, row) = (&self.place.name, self.place.number);
            let batch = guarded(|| self.reader.next().transpose()).map_err(|error| {
                SourceError::Damaged(format!("{name} is cut short or damaged after row {row}: {error}"))
            })?;
            let Some(batch) = batch else { return self.end() };
            self.count(batch.num_rows() as u64);
            self.batch = Some(batch);
            self.next = 0;
        }
        let batch = self.batch.as_ref().expect("a batch with rows was read just above");
        let content = item(batch, self.next, &self.columns, limits).map(Content::Item);
        self.next += 1;
        self.place.number += 1;
        Ok(Some(Entry { place: self.place.clone(), content }))
    }

    /// Nothing, if all rows have been read.
    fn end(&self) -> Result<Option<Entry>, SourceError> {
        let (name, read, rows) = (&self.place.name, self.place.number, self.size.0);
        if read != rows {
            return Err(SourceError::Damaged(format!("{name} is damaged: it has {read} rows and says {rows}")));
        }
        Ok(None)
    }

    fn count(&self, more: u64) {
        let (rows, bytes) = self.size;
        let share = |rows_read: u64| (u128::from(bytes) * u128::from(rows_read) / u128::from(rows.max(1))) as u64;
        let before = self.place.number;
        self.read.fetch_add(share(before + more) - share(before), Ordering::Relaxed);
    }
}

/// What `read` says, or why not. The library takes some damage for a fault of its own and panics; nothing that it held is
/// used after that.
fn guarded<T, E: fmt::Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("its parts contradict each other".to_owned()),
    }
}

/// The schema with texts as views: a text that a dictionary holds once is not copied for each row that has it.
fn with_views(schema: &Schema) -> Schema {
    let view = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => field.clone(),
    };
    Schema::new(schema.fields().iter().map(view).collect::<Vec<_>>())
}

/// The places of the columns that are read.
fn wanted(schema: &Schema, columns: &Columns, file: &str) -> Result<Vec<usize>, SourceError> {
    let mut wanted = Vec::new();
    for name in &columns.input {
        let (at, field) = column(schema, name, "--column", file)?;
        if field.data_type() != &DataType::Utf8 {
            return Err(wrong_type(field, "string", file));
        }
        wanted.push(at);
    }
    if let Some(name) = &columns.id {
        let (at, field) = column(schema, name, "--id-column", file)?;
        if field.data_type() != &DataType::Utf8 && !field.data_type().is_integer() {
            return Err(wrong_type(field, "string or integer", file));
        }
        wanted.push(at);
    }
    Ok(wanted)
}

fn column<'s>(schema: &'s Schema, name: &str, flag: &str, file: &str) -> Result<(usize, &'s Field), SourceError> {
    schema.column_with_name(name).ok_or_else(|| {
        let there: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let there = there.join(", ");
        SourceError::Unusable(format!("{file} has no column {name:?} for {flag}; its columns are: {there}"))
    })
}

fn wrong_type(field: &Field, wanted: &str, file: &str) -> SourceError {
    let (name, found) = (field.name(), field.data_type());
    SourceError::Unusable(format!("column {name:?} of {file} is {found}, not {wanted}"))
}

/// So many rows that a batch of them takes about [`BATCH_BYTES`].
fn batch_rows(metadata: &ParquetMetaData, mask: &ProjectionMask) -> usize {
    let bytes: i64 = metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns().iter().enumerate())
        .filter(|(leaf, _)| mask.leaf_included(*leaf))
        .map(|(_, column)| column.uncompressed_size().max(0))
        .sum();
    let rows = metadata.file_metadata().num_rows().max(1);
    let bytes_a_row = usize::try_from(bytes / rows).unwrap_or(usize::MAX).max(1);
    (BATCH_BYTES / bytes_a_row).clamp(1, BATCH_ROWS_MAX)
}

fn item(batch: &RecordBatch, row: usize, columns: &Columns, limits: &Limits) -> Result<Item, BadLine> {
    let id = match &columns.id {
        Some(name) => id(batch, row, name)?,
        None => None,
    };
    let texts = columns.input.iter().map(|name| text(batch, row, name, limits));
    let texts = texts.collect::<Result<Vec<_>, _>>().map_err(|bad| bad.of(id.clone()))?;
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    if bytes > limits.input_bytes {
        return Err(BadLine::too_long("the text", bytes as u64, limits.input_bytes).of(id));
    }
    let input = match texts[..] {
        [query, passage] => Input::Pair(query.to_owned(), passage.to_owned()),
        _ => Input::Text(texts.concat()),
    };
    Ok(Item { id, input })
}

fn text<'b>(batch: &'b RecordBatch, row: usize, name: &str, limits: &Limits) -> Result<&'b str, BadLine> {
    let texts = values(batch, name).as_string_view();
    if texts.is_null(row) {
        return Err(BadLine { id: None, error: ReplyError::new("invalid", format!("column {name:?} is null")) });
    }
    let text = texts.value(row);
    if text.len() > limits.input_bytes {
        return Err(BadLine::too_long("the text", text.len() as u64, limits.input_bytes));
    }
    Ok(text)
}

fn id(batch: &RecordBatch, row: usize, name: &str) -> Result<Option<String>, BadLine> {
    let ids = values(batch, name);
    if ids.is_null(row) {
        return Ok(None);
    }
    let id = downcast_integer_array!(
        ids => ids.value(row).to_string(),
        _ => ids.as_string_view().value(row).to_owned(),
    );
    check_id(&id, &format_args!("column {name:?}"))?;
    Ok(Some(id))
}

fn values<'b>(batch: &'b RecordBatch, name: &str) -> &'b dyn Array {
    batch.column_by_name(name).expect("every column that is read was found in the schema")
}

#[cfg(test)]
mod tests;
