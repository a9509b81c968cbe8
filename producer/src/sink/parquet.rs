//! Rows as Parquet: the schema, row groups that any thread can encode, and the file that they are appended to.
//!
//! In: rows whose results are of one [`Kind`]. Out: the columns `id`, `index`, `embedding` (or `labels`), `tokens`,
//! `error_code` and `error_message`, compressed with zstd, and the models and revisions in the file's metadata. A result
//! that is null has an error. It never holds more than the row groups in work.

use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder,
};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use inferq_shared::reply::{Label, Reply};
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, TypePtr};

use crate::outcome::Error;
use crate::rows::{Row, Rows, Tally};

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
    /// What the first result of `reply` is.
    pub fn of(reply: &Reply) -> Self {
        let kind = reply.results.iter().find_map(|result| match (&result.embedding, &result.labels) {
            (Some(embedding), _) => Some(Self::Embedding(embedding.values().len())),
            (None, Some(_)) => Some(Self::Labels),
            (None, None) => None,
        });
        kind.unwrap_or(Self::Unknown)
    }
}

/// Encodes row groups.
pub struct Columns {
    kind: Kind,
    schema: SchemaRef,
    root: TypePtr,
    properties: Arc<WriterProperties>,
    row_groups: ArrowRowGroupWriterFactory,
}

/// Encoded rows.
pub struct RowGroup(Vec<ArrowColumnChunk>);

/// The file.
pub(super) struct Writer(SerializedFileWriter<Box<dyn Write + Send>>);

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
    pub(super) fn start(&self, file: Box<dyn Write + Send>) -> io::Result<Writer> {
        Ok(Writer(SerializedFileWriter::new(file, self.root.clone(), self.properties.clone())?))
    }

    /// Encodes rows as one row group.
    pub(super) fn encode(&self, groups: impl Iterator<Item = Result<Rows, Error>>) -> Result<RowGroup, Error> {
        let mut columns = self.row_groups.create_column_writers(0).map_err(encoding)?;
        let mut batch = Batch::new(self.kind);
        for rows in groups {
            rows?.rows.iter().try_for_each(|row| batch.push(row, self.kind))?;
            if batch.rows >= ROWS {
                self.write(&mut columns, &mut batch).map_err(encoding)?;
            }
        }
        self.write(&mut columns, &mut batch).map_err(encoding)?;
        let chunks = columns.into_iter().map(ArrowColumnWriter::close).collect::<Result<_, _>>();
        chunks.map(RowGroup).map_err(encoding)
    }

    fn write(&self, columns: &mut [ArrowColumnWriter], batch: &mut Batch) -> Result<(), ParquetError> {
        let mut columns = columns.iter_mut();
        for (field, array) in self.schema.fields().iter().zip(batch.finish()) {
            for leaf in compute_leaves(field, &array)? {
                columns.next().expect("a writer a leaf").write(&leaf)?;
            }
        }
        Ok(())
    }
}

fn encoding(error: ParquetError) -> Error {
    Error::io("can't encode rows as Parquet", error.into())
}

impl Writer {
    pub(super) fn append(&mut self, rows: RowGroup) -> io::Result<()> {
        let mut row_group = self.0.next_row_group()?;
        rows.0.into_iter().try_for_each(|column| column.append_to_row_group(&mut row_group))?;
        row_group.close()?;
        Ok(())
    }

    pub(super) fn finish(mut self, tally: &Tally) -> io::Result<()> {
        let joined = |of: fn(&(String, String)) -> &str| {
            let mut names: Vec<_> = tally.origins.iter().map(of).collect();
            names.dedup();
            names.join(", ")
        };
        for (name, value) in [("inferq.model", joined(|(model, _)| model)), ("inferq.revision", joined(|(_, r)| r))] {
            self.0.append_key_value_metadata(KeyValue::new(name.to_owned(), value));
        }
        self.0.finish()?;
        self.0.inner_mut().flush()
    }
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

/// Rows on their way into arrays.
struct Batch {
    rows: usize,
    id: StringBuilder,
    index: Int64Builder,
    results: Results,
    tokens: Int32Builder,
    error_code: StringBuilder,
    error_message: StringBuilder,
}

enum Results {
    Embedding(FixedSizeListBuilder<Float32Builder>),
    Labels(ListBuilder<StructBuilder>),
    Unknown(ListBuilder<Float32Builder>),
}

impl Batch {
    fn new(kind: Kind) -> Self {
        Self {
            rows: 0,
            id: StringBuilder::new(),
            index: Int64Builder::new(),
            results: Results::new(kind),
            tokens: Int32Builder::new(),
            error_code: StringBuilder::new(),
            error_message: StringBuilder::new(),
        }
    }

    fn push(&mut self, row: &Row, kind: Kind) -> Result<(), Error> {
        self.results.push(row, kind)?;
        self.rows += 1;
        self.id.append_value(&row.id);
        self.index.append_value(row.index.cast_signed());
        self.tokens.append_option(row.tokens.map(|tokens| i32::try_from(tokens).unwrap_or(i32::MAX)));
        self.error_code.append_option(row.error.as_ref().map(|error| &error.code));
        self.error_message.append_option(row.error.as_ref().map(|error| &error.message));
        Ok(())
    }

    /// The columns in the schema's order; the batch begins anew.
    fn finish(&mut self) -> [ArrayRef; 6] {
        self.rows = 0;
        [
            Arc::new(self.id.finish()),
            Arc::new(self.index.finish()),
            self.results.finish(),
            Arc::new(self.tokens.finish()),
            Arc::new(self.error_code.finish()),
            Arc::new(self.error_message.finish()),
        ]
    }
}

impl Results {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Embedding(dimensions) => {
                let values = Float32Builder::with_capacity(ROWS * dimensions);
                Self::Embedding(FixedSizeListBuilder::new(values, size(dimensions)).with_field(number()))
            }
            Kind::Labels => {
                Self::Labels(ListBuilder::new(StructBuilder::from_fields(label_fields(), ROWS)).with_field(label()))
            }
            Kind::Unknown => Self::Unknown(ListBuilder::new(Float32Builder::new()).with_field(number())),
        }
    }

    fn push(&mut self, row: &Row, kind: Kind) -> Result<(), Error> {
        match (self, kind, &row.embedding, &row.labels) {
            (Self::Embedding(lists), Kind::Embedding(dimensions), None, None) => {
                lists.values().append_value_n(0.0, dimensions);
                lists.append(false);
            }
            (Self::Embedding(lists), Kind::Embedding(dimensions), Some(embedding), _)
                if embedding.values().len() == dimensions =>
            {
                lists.values().append_slice(embedding.values());
                lists.append(true);
            }
            (Self::Labels(lists), _, None, None) => lists.append(false),
            (Self::Labels(lists), _, None, Some(labels)) => {
                labels.iter().for_each(|label| push_label(lists.values(), label));
                lists.append(true);
            }
            (Self::Unknown(lists), _, None, None) => lists.append(false),
            _ => return Err(misfit(row, kind)),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Embedding(lists) => Arc::new(lists.finish()),
            Self::Labels(lists) => Arc::new(lists.finish()),
            Self::Unknown(lists) => Arc::new(lists.finish()),
        }
    }
}

fn push_label(labels: &mut StructBuilder, label: &Label) {
    let field = "the struct was made of these two fields";
    labels.field_builder::<StringBuilder>(0).expect(field).append_value(&label.label);
    labels.field_builder::<Float32Builder>(1).expect(field).append_value(label.score);
    labels.append(true);
}

/// A column has one type: what came is another one.
fn misfit(row: &Row, kind: Kind) -> Error {
    let is = match (&row.embedding, &row.labels) {
        (Some(embedding), _) => format!("an embedding of {} numbers", embedding.values().len()),
        (None, Some(_)) => "labels".to_owned(),
        (None, None) => "no result".to_owned(),
    };
    let others = match kind {
        Kind::Embedding(dimensions) => format!("have embeddings of {dimensions} numbers"),
        Kind::Labels => "have labels".to_owned(),
        Kind::Unknown => "have none".to_owned(),
    };
    Error::Usage(format!(
        "item {} at index {} has {is}, the items before it {others}: a Parquet column holds one kind; collect into JSONL \
         (--output-format jsonl)",
        row.id, row.index
    ))
}
