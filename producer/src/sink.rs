//! The formats that rows are written in.
//!
//! In: groups of [`Rows`] in input order. Out: the bytes of an output, which [`Reserved`] puts into its place whole. An
//! [`Encoder`] makes a [`Block`] of a group on any thread; a [`Sink`] appends blocks in order.

use std::io::{self, BufWriter, Write};

use inferq_shared::columns::{Columns, ColumnsError, Kind, RowGroup, Writer};
use inferq_shared::job::Encoding;

use crate::outcome::Error;
use crate::rows::{Rows, Tally};

pub use self::place::{Output, Reserved, refused};

mod place;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line; compressed with zstd when the file's name ends in .zst.
    Jsonl,
    /// Columns, compressed with zstd.
    Parquet,
}

/// Makes blocks of rows; shared by threads.
pub enum Encoder {
    /// JSON lines.
    Lines(Encoding),
    /// Parquet row groups.
    Columns(Columns),
    /// Nothing: the rows are only counted.
    Nothing,
}

/// Rows as they are written.
pub enum Block {
    /// Whole lines.
    Lines(Vec<u8>),
    /// A row group.
    Columns(RowGroup),
}

/// How large a block grows, at most and by one job.
#[derive(Debug, Clone, Copy)]
pub struct BlockSize {
    /// Bytes of the replies that are in it.
    pub reply_bytes: usize,
    /// Its rows.
    pub rows: u64,
}

impl Encoder {
    /// For rows of this kind; a Parquet file has one, which its first result decides.
    pub fn new(format: Format, encoding: Encoding, kind: Kind) -> Self {
        match format {
            Format::Jsonl => Self::Lines(encoding),
            Format::Parquet => Self::Columns(Columns::new(kind)),
        }
    }

    /// What makes a good block: a row group is worth less the smaller it is, lines are not.
    pub fn block_size(&self) -> BlockSize {
        match self {
            Self::Columns(_) => BlockSize { reply_bytes: 32 << 20, rows: 65_536 },
            Self::Lines(_) | Self::Nothing => BlockSize { reply_bytes: 1 << 20, rows: 8_192 },
        }
    }

    /// Writes rows into a block.
    ///
    /// # Errors
    /// When a row does not fit the format.
    pub fn encode(&self, mut groups: impl Iterator<Item = Result<Rows, Error>>) -> Result<Block, Error> {
        match self {
            Self::Nothing => groups.try_for_each(|rows| rows.map(drop)).map(|()| Block::Lines(Vec::new())),
            Self::Lines(encoding) => lines(groups, *encoding).map(Block::Lines),
            Self::Columns(columns) => row_group(columns, groups).map(Block::Columns),
        }
    }
}

fn lines(groups: impl Iterator<Item = Result<Rows, Error>>, encoding: Encoding) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    for rows in groups {
        for row in rows?.rows {
            serde_json::to_writer(&mut text, &row.encoded(encoding)).expect("a row has only string keys");
            text.push(b'\n');
        }
    }
    Ok(text)
}

fn row_group(columns: &Columns, groups: impl Iterator<Item = Result<Rows, Error>>) -> Result<RowGroup, Error> {
    let mut row_group = columns.rows().map_err(refused_row)?;
    for rows in groups {
        rows?.rows.iter().try_for_each(|row| row_group.push(row.into())).map_err(refused_row)?;
    }
    row_group.finish().map_err(refused_row)
}

fn refused_row(error: ColumnsError) -> Error {
    match error {
        ColumnsError::Misfit(message) => Error::Usage(format!("{message}; collect into JSONL (--output-format jsonl)")),
        error => Error::io("can't encode rows", io::Error::other(error)),
    }
}

/// Appends blocks to an output.
pub struct Sink {
    file: Writing,
    output: Output,
}

enum Writing {
    Lines(BufWriter<Box<dyn Write + Send>>),
    Zstd(zstd::Encoder<'static, Box<dyn Write + Send>>),
    Columns(Writer<Box<dyn Write + Send>>),
    Nothing,
}

impl Sink {
    /// Starts the file with what `encoder` makes.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn start(reserved: &Reserved, encoder: &Encoder) -> Result<Self, Error> {
        let output = reserved.output.clone();
        let file = reserved.writer().and_then(|writer| {
            Ok(match encoder {
                Encoder::Columns(columns) => Writing::Columns(columns.start(writer)?),
                _ if output.is_zstd() => Writing::Zstd(zstd::Encoder::new(writer, ZSTD_LEVEL)?),
                _ => Writing::Lines(BufWriter::with_capacity(1 << 18, writer)),
            })
        });
        Ok(Self { file: file.map_err(|error| output.error(error))?, output })
    }

    /// A sink that takes the blocks of [`Encoder::Nothing`].
    pub fn nothing() -> Self {
        Self { file: Writing::Nothing, output: Output::Stdout }
    }

    /// Writes one block.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn append(&mut self, block: Block) -> Result<(), Error> {
        let written = match (&mut self.file, block) {
            (Writing::Lines(file), Block::Lines(lines)) => file.write_all(&lines),
            (Writing::Zstd(file), Block::Lines(lines)) => file.write_all(&lines),
            (Writing::Columns(file), Block::Columns(rows)) => file.append(rows),
            _ => Ok(()),
        };
        written.map_err(|error| self.output.error(error))
    }

    /// Ends the file, which says what all rows have in common where its format can.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn finish(self, tally: &Tally) -> Result<(), Error> {
        let Self { file, output } = self;
        let written = match file {
            Writing::Lines(mut file) => file.flush(),
            Writing::Zstd(file) => file.finish().and_then(|mut file| file.flush()),
            Writing::Columns(file) => file.finish(tally.models(), tally.revisions()).map(drop),
            Writing::Nothing => Ok(()),
        };
        written.map_err(|error| output.error(error))
    }
}

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn the_output_appears_whole_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out.jsonl");
        fs::write(&path, "before").expect("a file");
        let reserved = Reserved::new(Output::File(path.clone())).expect("nobody else writes it");
        let encoder = Encoder::new(Format::Jsonl, Encoding::Float, Kind::Unknown);
        let mut sink = Sink::start(&reserved, &encoder).expect("a sink");
        sink.append(Block::Lines(b"{}\n".to_vec())).expect("written");
        sink.finish(&Tally::default()).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "before");
        reserved.finish().expect("finished");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "{}\n");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing lies beside it");
    }

    #[test]
    fn an_output_is_reserved_by_one_at_a_time_and_given_up_without_a_trace() {
        let dir = tempfile::tempdir().expect("a directory");
        let output = Output::File(dir.path().join("out.jsonl"));
        let reserved = Reserved::new(output.clone()).expect("nobody else writes it");
        let refused = Reserved::new(output.clone()).expect_err("somebody does").to_string();
        assert!(refused.contains("is being written by another process"), "{refused}");
        drop(reserved);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
        Reserved::new(output).expect("free again");
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let reserved = Reserved::new(Output::File("/dev/null".into())).expect("a device");
        let mut sink = Sink::start(&reserved, &Encoder::Nothing).expect("a sink");
        sink.append(Block::Lines(b"{}\n".to_vec())).expect("written");
        sink.finish(&Tally::default()).expect("written");
        reserved.finish().expect("finished");
        assert!(!Path::new("/dev/null").is_file());
    }

    #[test]
    fn an_output_that_can_not_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |path: PathBuf| Output::File(path).check().map_err(|error| error.to_string());
        assert!(check(dir.path().into()).expect_err("a directory").contains("is a directory"));
        assert!(check(dir.path().join("none/out")).expect_err("no directory").contains("no directory"));
        assert_eq!(check("out.jsonl".into()), Ok(()));
    }
}
