//! Results as Parquet: the schema, row groups that any thread can encode, and the file that they are appended to.
//!
//! In: [`Row`]s whose results are of one [`Kind`]. Out: the columns `id`, `index`, `embedding` (or `labels`), `tokens`,
//! `error_code` and `error_message`, compressed with zstd, and the models and revisions in the file's metadata. A result
//! that is null has an error. It never holds more than the row groups in work.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, TypePtr};

use crate::reply::{Embedding, ItemResult, Label, ReplyError};

mod batch;
mod read;

pub use self::read::read;

use self::batch::Batch;

/// What the results of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Vectors of so many numbers.
    Embedding(usize),
    /// A classifier's labels and scores.
    Labels,
    /// There is no result at all.
    Unknown,
}

impl Kind {
    /// What the first of a job's results is.
    pub fn of(results: &[ItemResult]) -> Self {
        let kind = results.iter().find_map(|result| match (&result.embedding, &result.labels) {
            (Some(embedding), _) => Some(Self::Embedding(embedding.values().len())),
            (None, Some(_)) => Some(Self::Labels),
            (None, None) => None,
        });
        kind.unwrap_or(Self::Unknown)
    }
}

/// One item's row.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The item's id.
    pub id: &'a str,
    /// The item's place, from 0.
    pub index: u64,
    /// Its vector.
    pub embedding: Option<&'a Embedding>,
    /// A classifier's scores.
    pub labels: Option<&'a [Label]>,
    /// Why there is neither.
    pub error: Option<&'a ReplyError>,
    /// Tokens the model read.
    pub tokens: Option<u32>,
}

impl<'a> From<&'a ItemResult> for Row<'a> {
    fn from(result: &'a ItemResult) -> Self {
        Self {
            id: &result.id,
            index: result.index.into(),
            embedding: result.embedding.as_ref(),
            labels: result.labels.as_deref(),
            error: result.error.as_ref(),
            tokens: result.tokens,
        }
    }
}

/// Why rows are not in the file.
#[derive(Debug, thiserror::Error)]
pub enum ColumnsError {
    /// A column has one type, and this row's result is of another.
    #[error("{0}")]
    Misfit(String),
    /// They could not be encoded.
    #[error("can't encode rows as Parquet: {0}")]
    Encode(#[from] ParquetError),
    /// They could not be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Makes row groups of one schema, and files of them.
pub struct Columns {
    kind: Kind,
    schema: SchemaRef,
    root: TypePtr,
    properties: Arc<WriterProperties>,
    row_groups: ArrowRowGroupWriterFactory,
}

/// Rows that are being encoded.
pub struct Rows<'a> {
    columns: &'a Columns,
    writers: Vec<ArrowColumnWriter>,
    batch: Batch,
}

/// Encoded rows.
pub struct RowGroup(Vec<ArrowColumnChunk>);

/// The file.
pub struct Writer<W: Write + Send>(SerializedFileWriter<W>);

/// Rows that become arrays at a time: enough to encode them fast, few enough to hold them beside the replies.
const ROWS: usize = 1024;

impl Columns {
    /// For results of `kind`.
    pub fn new(kind: Kind) -> Self {
        let schema = Arc::new(schema(kind));
        let mut properties = properties();
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let root = ArrowSchemaConverter::new().convert(&schema).expect("the schema is one of three").root_schema_ptr();
        let properties = Arc::new(properties);
        // The factory takes what it needs from a file's writer; any will do, and this one writes nowhere.
        let file = SerializedFileWriter::new(io::sink(), root.clone(), properties.clone()).expect("a sink takes all");
        let row_groups = ArrowRowGroupWriterFactory::new(&file, schema.clone());
        Self { kind, schema, root, properties, row_groups }
    }

    /// Starts a file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn start<W: Write + Send>(&self, file: W) -> io::Result<Writer<W>> {
        Ok(Writer(SerializedFileWriter::new(file, self.root.clone(), self.properties.clone())?))
    }

    /// Starts a row group.
    ///
    /// # Errors
    /// When the schema can't be encoded.
    pub fn rows(&self) -> Result<Rows<'_>, ColumnsError> {
        Ok(Rows { columns: self, writers: self.row_groups.create_column_writers(0)?, batch: Batch::new(self.kind) })
    }
}

impl Rows<'_> {
    /// Adds a row.
    ///
    /// # Errors
    /// When its result is of another kind.
    pub fn push(&mut self, row: Row<'_>) -> Result<(), ColumnsError> {
        self.batch.push(row, self.columns.kind)?;
        if self.batch.rows >= ROWS {
            self.write()?;
        }
        Ok(())
    }

    /// Ends the row group.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub fn finish(mut self) -> Result<RowGroup, ColumnsError> {
        self.write()?;
        let chunks: Result<_, ParquetError> = self.writers.into_iter().map(ArrowColumnWriter::close).collect();
        Ok(RowGroup(chunks?))
    }

    fn write(&mut self) -> Result<(), ParquetError> {
        let mut writers = self.writers.iter_mut();
        for (field, array) in self.columns.schema.fields().iter().zip(self.batch.finish()) {
            for leaf in compute_leaves(field, &array)? {
                writers.next().expect("a writer a leaf").write(&leaf)?;
            }
        }
        Ok(())
    }
}

impl<W: Write + Send> Writer<W> {
    /// Appends a row group.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn append(&mut self, rows: RowGroup) -> io::Result<()> {
        let mut row_group = self.0.next_row_group()?;
        rows.0.into_iter().try_for_each(|column| column.append_to_row_group(&mut row_group))?;
        row_group.close()?;
        Ok(())
    }

    /// Ends the file, which names the models and revisions that computed its rows, and gives back what it was written to.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(mut self, models: String, revisions: String) -> io::Result<W> {
        for (name, value) in [("inferq.model", models), ("inferq.revision", revisions)] {
            self.0.append_key_value_metadata(KeyValue::new(name.to_owned(), value));
        }
        let mut file = self.0.into_inner()?;
        file.flush()?;
        Ok(file)
    }
}

/// A job's results as a whole file.
///
/// # Errors
/// When they are not of one kind.
pub fn file(results: &[ItemResult], model: &str, revision: &str) -> Result<Vec<u8>, ColumnsError> {
    let columns = Columns::new(Kind::of(results));
    let mut rows = columns.rows()?;
    results.iter().try_for_each(|result| rows.push(result.into()))?;
    let mut file = columns.start(Vec::new())?;
    file.append(rows.finish()?)?;
    Ok(file.finish(model.to_owned(), revision.to_owned())?)
}

fn properties() -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("level 1 exists")))
        .set_statistics_enabled(EnabledStatistics::Chunk);
    // No two of their values are alike, so that a dictionary would be built and thrown away.
    for column in [&["id"][..], &["index"], EMBEDDING] {
        properties = properties.set_column_dictionary_enabled(path(column), false);
    }
    // The least and greatest number of all vectors together help nobody to find one.
    properties.set_column_statistics_enabled(path(EMBEDDING), EnabledStatistics::None).build()
}

const EMBEDDING: &[&str] = &["embedding", "list", "element"];

fn path(parts: &[&str]) -> ColumnPath {
    ColumnPath::new(parts.iter().map(|part| (*part).to_owned()).collect())
}

fn schema(kind: Kind) -> Schema {
    let (name, results) = match kind {
        Kind::Embedding(dimensions) => ("embedding", DataType::FixedSizeList(number(), size(dimensions))),
        Kind::Labels => ("labels", DataType::List(label())),
        Kind::Unknown => ("embedding", DataType::List(number())),
    };
    Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("index", DataType::Int64, false),
        Field::new(name, results, true),
        Field::new("tokens", DataType::Int32, true),
        Field::new("error_code", DataType::Utf8, true),
        Field::new("error_message", DataType::Utf8, true),
    ])
}

/// A reply's body is far too small for more numbers than an i32 counts.
fn size(dimensions: usize) -> i32 {
    i32::try_from(dimensions).unwrap_or(i32::MAX)
}

fn number() -> FieldRef {
    Arc::new(Field::new("element", DataType::Float32, false))
}

fn label_fields() -> Fields {
    vec![Field::new("label", DataType::Utf8, false), Field::new("score", DataType::Float32, false)].into()
}

fn label() -> FieldRef {
    Arc::new(Field::new("element", DataType::Struct(label_fields()), false))
}
