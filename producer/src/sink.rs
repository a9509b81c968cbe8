//! Output files that are whole or absent, and the formats that rows are written in.
//!
//! In: groups of [`Rows`] in input order. Out: the file, written beside its place as `<name>.partial`, synced, and
//! renamed over what was there. `-` is stdout; what exists and is no regular file (a pipe, `/dev/null`) is written
//! directly. An object is made as a file in the folder for temporary files, and uploaded whole. A partial file is locked while it is written, so that two commands never write one output. An [`Encoder`]
//! makes a [`Block`] of a group on any thread; a [`Sink`] appends blocks in order.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use inferq_shared::bucket::{Buckets, Uri};
use inferq_shared::columns::{Columns, ColumnsError, Kind, RowGroup, Writer};
use inferq_shared::job::Encoding;
use tempfile::NamedTempFile;
use tokio::runtime::Handle;

use crate::address::Address;
use crate::outage;
use crate::outcome::Error;
use crate::rows::{Rows, Tally};

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// `-`.
    Stdout,
    /// A file.
    File(PathBuf),
    /// An object in a bucket.
    Object(Uri),
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line; compressed with zstd when the file's name ends in .zst.
    Jsonl,
    /// Columns, compressed with zstd.
    Parquet,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("an output must be a path, or - for stdout".to_owned()),
            "-" => Ok(Self::Stdout),
            text => match Address::of(text) {
                None => Ok(Self::File(text.into())),
                Some(Ok(Address::File(path))) => Ok(Self::File(path)),
                Some(Ok(Address::Object(uri))) => Ok(Self::Object(uri)),
                Some(Err(why)) => Err(why),
            },
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("stdout"),
            Self::File(path) => path.display().fmt(formatter),
            Self::Object(uri) => uri.fmt(formatter),
        }
    }
}

impl Output {
    /// Checks that the output can be written, so that long work doesn't end in vain.
    ///
    /// # Errors
    /// When it is a directory, or its directory is absent.
    pub fn check(&self) -> Result<(), Error> {
        let Self::File(path) = self else { return Ok(()) };
        if path.is_dir() {
            return Err(Error::Usage(format!("output {} is a directory: name a file in it", path.display())));
        }
        if !folder(path).is_dir() {
            let message = format!("output {}: there is no directory {}", path.display(), folder(path).display());
            return Err(Error::Usage(message));
        }
        Ok(())
    }

    /// The file, unless it is stdout or something else that can't be replaced.
    pub fn regular_file(&self) -> Option<&Path> {
        match self {
            Self::File(path) if path.metadata().map_or(true, |meta| meta.is_file()) => Some(path),
            _ => None,
        }
    }

    /// The format that the name asks for.
    pub fn format(&self) -> Format {
        if self.has_extension("parquet") { Format::Parquet } else { Format::Jsonl }
    }

    /// Whether the name asks for compressed lines.
    pub fn is_zstd(&self) -> bool {
        self.has_extension("zst")
    }

    fn has_extension(&self, expected: &str) -> bool {
        self.name().and_then(Path::extension).is_some_and(|extension| extension == expected)
    }

    /// The name that its ends are told from: a path, or that of an object without its bucket and folder.
    pub fn name(&self) -> Option<&Path> {
        match self {
            Self::Stdout => None,
            Self::File(path) => Some(path),
            Self::Object(uri) => Some(Path::new(uri.name())),
        }
    }

    /// An error of writing here.
    pub fn error(&self, error: impl Into<io::Error>) -> Error {
        Error::io(format!("can't write {self}"), error.into())
    }
}

/// An output that nobody else writes meanwhile.
#[derive(Debug)]
pub struct Reserved {
    output: Output,
    place: Placed,
}

#[derive(Debug)]
enum Placed {
    /// Written where it goes.
    Direct,
    /// Renamed over what was there.
    Beside(Place),
    /// Made here first, then uploaded: an object appears whole.
    Uploaded(Uri, NamedTempFile),
}

/// A file that is not yet in its place. Dropped before that, it leaves nothing.
#[derive(Debug)]
struct Place {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    taken: bool,
}

impl Reserved {
    /// Reserves `output` for this process.
    ///
    /// # Errors
    /// When another process is writing it, or its file can't be made.
    pub fn new(output: Output) -> Result<Self, Error> {
        output.check()?;
        let place = match (&output, output.regular_file()) {
            (Output::Object(uri), _) => {
                Placed::Uploaded(uri.clone(), NamedTempFile::new().map_err(|error| output.error(error))?)
            }
            (_, None) => Placed::Direct,
            (_, Some(path)) => Placed::Beside(Place::reserve(path).map_err(|error| refused(&output, error))?),
        };
        Ok(Self { output, place })
    }

    fn writer(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match (&self.place, &self.output) {
            (Placed::Beside(place), _) => Box::new(place.file.try_clone()?),
            (Placed::Uploaded(_, file), _) => Box::new(file.as_file().try_clone()?),
            (Placed::Direct, Output::File(path)) => Box::new(File::options().write(true).open(path)?),
            (Placed::Direct, _) => Box::new(io::stdout()),
        })
    }

    /// Makes the output durable and puts it into its place.
    ///
    /// # Errors
    /// When the file can't be written, or the bucket refuses the object.
    pub fn finish(mut self) -> Result<(), Error> {
        match &mut self.place {
            Placed::Direct => Ok(()),
            Placed::Beside(place) => place.take().map_err(|error| self.output.error(error)),
            Placed::Uploaded(uri, file) => upload(uri, file.path()),
        }
    }
}

/// Puts an object into its place, replacing what was there.
fn upload(uri: &Uri, file: &Path) -> Result<(), Error> {
    let buckets = Buckets::new();
    outage::blocking(&Handle::current(), || buckets.upload(uri, file, |_| ()))?;
    Ok(())
}

/// The error of an output that could not be reserved.
pub fn refused(output: &Output, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => Error::Usage(format!(
            "output {output} is being written by another process: wait for it, or name another file"
        )),
        _ => output.error(error),
    }
}

impl Place {
    fn reserve(path: &Path) -> io::Result<Self> {
        // Through links, so that the rename replaces the file and not the link to it.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&partial)?;
            file.try_lock()?;
            // Whoever had it may have renamed or removed it between our opening and our locking.
            if is_at(&file, &partial) {
                file.set_len(0)?;
                return Ok(Self { file, partial, path, taken: false });
            }
        }
    }

    fn take(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.taken = true;
        File::open(folder(&self.path))?.sync_all()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            // What stays is written anew by the next one.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Whether `path` still names the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: io::Result<fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
    id(file.metadata()).is_some_and(|ours| id(fs::metadata(path)) == Some(ours))
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

/// The folder that a file lies in.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
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
