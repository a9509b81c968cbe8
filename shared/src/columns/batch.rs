//! Rows → arrays, one a column, some rows at a time.
//!
//! In: rows in order. Out: the columns of the schema. It holds the rows since it began anew; one whose result is of another
//! kind than the column is refused.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder,
};

use super::{ColumnsError, Kind, ROWS, Row, label, label_fields, number, size};
use crate::reply::Label;

/// Rows on their way into arrays.
pub(super) struct Batch {
    pub(super) rows: usize,
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
    pub(super) fn new(kind: Kind) -> Self {
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

    pub(super) fn push(&mut self, row: Row<'_>, kind: Kind) -> Result<(), ColumnsError> {
        self.results.push(row, kind)?;
        self.rows += 1;
        self.id.append_value(row.id);
        self.index.append_value(row.index.cast_signed());
        self.tokens.append_option(row.tokens.map(|tokens| i32::try_from(tokens).unwrap_or(i32::MAX)));
        self.error_code.append_option(row.error.map(|error| &error.code));
        self.error_message.append_option(row.error.map(|error| &error.message));
        Ok(())
    }

    /// The columns in the schema's order; the batch begins anew.
    pub(super) fn finish(&mut self) -> [ArrayRef; 6] {
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

    fn push(&mut self, row: Row<'_>, kind: Kind) -> Result<(), ColumnsError> {
        match (self, kind, row.embedding, row.labels) {
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
fn misfit(row: Row<'_>, kind: Kind) -> ColumnsError {
    let is = match (row.embedding, row.labels) {
        (Some(embedding), _) => format!("an embedding of {} numbers", embedding.values().len()),
        (None, Some(_)) => "labels".to_owned(),
        (None, None) => "no result".to_owned(),
    };
    let others = match kind {
        Kind::Embedding(dimensions) => format!("have embeddings of {dimensions} numbers"),
        Kind::Labels => "have labels".to_owned(),
        Kind::Unknown => "have none".to_owned(),
    };
    ColumnsError::Misfit(format!(
        "item {} at index {} has {is}, the items before it {others}: a Parquet column holds one kind",
        row.id, row.index
    ))
}
