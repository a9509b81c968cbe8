//! The flags that say where rows go, and the way from the ledger to there.
//!
//! In: flags, and a ledger that has every reply. Out: the output, whole or absent, and beside it the list of failures.
//! One thread reads the ledger, a few decode and encode, one writes, all in order and bounded: it never holds more than
//! a handful of groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use inferq_shared::job::Encoding;
use tokio_util::sync::CancellationToken;

use self::chunks::Chunks;
use crate::follow::Follower;
use crate::ledger::{Answered, Ledger, Selection};
use crate::outcome::Error;
use crate::pointer::Pointers;
use crate::progress::{Progress, Tally as Done, Total};
use crate::rows::{Rows, Tally};
use crate::sink::{Block, Encoder, Format, Output, Reserved, Sink};
use crate::submit::encoding;

mod chunks;

/// Where rows go.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputArgs {
    /// Where the rows go: a file or an object (gs://, s3://), replaced only when all rows are there, or - for stdout. A
    /// name that ends in .parquet asks for Parquet, one that ends in .zst for compressed JSONL. An object is made as a
    /// file in TMPDIR first.
    #[arg(long, env = "INFERQ_OUTPUT", value_name = "FILE|URI|-")]
    output: Output,
    /// The output's format, whatever its name says.
    #[arg(long, env = "INFERQ_OUTPUT_FORMAT", value_enum)]
    output_format: Option<Format>,
    /// How JSONL holds embeddings: as numbers, or as base64 of little-endian f32.
    #[arg(long, env = "INFERQ_OUTPUT_ENCODING", value_name = "float|base64", default_value = "float", value_parser = encoding)]
    encoding: Encoding,
    /// Where items with an error are listed, one JSON object a line; no file when there is none. Default: the output's
    /// name with .failures.jsonl in place of its extension, for an object in this directory.
    #[arg(long, env = "INFERQ_FAILURES", value_name = "FILE")]
    failures: Option<PathBuf>,
    /// Write each job's rows as soon as its reply comes, in that order, to stdout or into the file itself. After a crash
    /// a file is cut to its last whole rows and goes on; stdout may get the rows of the last moment twice.
    #[arg(long, env = "INFERQ_FOLLOW")]
    follow: bool,
}

/// Where rows go: checked, and reserved for this process.
#[derive(Debug)]
pub struct Target {
    output: Output,
    format: Format,
    encoding: Encoding,
    failures: Option<PathBuf>,
    /// Absent when the output is followed.
    whole: Option<Reserved>,
    pointers: Pointers,
}

impl OutputArgs {
    /// The output as the flags name it.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Checks the flags, and reserves the output.
    ///
    /// # Errors
    /// When the flags don't go together, or the output can't be written.
    pub fn target(&self) -> Result<Target, Error> {
        let format = self.output_format.unwrap_or_else(|| self.output.format());
        self.check(format)?;
        self.output.check()?;
        self.failures.iter().try_for_each(|path| Output::File(path.clone()).check())?;
        let whole = if self.follow { None } else { Some(Reserved::new(self.output.clone())?) };
        let failures = self.failures.clone().or_else(|| self.default_failures());
        let (output, pointers) = (self.output.clone(), Pointers::none());
        Ok(Target { output, format, encoding: self.encoding, failures, whole, pointers })
    }

    /// Beside the output; of an object in this directory.
    fn default_failures(&self) -> Option<PathBuf> {
        match &self.output {
            Output::Object(_) => self.output.name().map(failures_of),
            _ => self.output.regular_file().map(failures_of),
        }
    }

    fn check(&self, format: Format) -> Result<(), Error> {
        let usage = |message: &str| Err(Error::Usage(message.to_owned()));
        if self.follow && matches!(self.output, Output::Object(_)) {
            return usage("--follow can't write an object, which appears whole: name a file, or leave --follow away");
        }
        if format == Format::Parquet && self.encoding != Encoding::Float {
            return usage("--encoding is for JSONL: Parquet holds the numbers themselves");
        }
        if self.follow && format == Format::Parquet {
            return usage(
                "--follow writes JSONL: a Parquet file can't be read before it is whole; leave --follow away",
            );
        }
        if self.follow && self.output.is_zstd() {
            return usage("--follow writes plain JSONL: a compressed file can't be cut to whole rows after a crash");
        }
        match (&self.failures, &self.output) {
            (Some(failures), Output::File(output)) if failures == output => {
                usage("--failures and --output name the same file")
            }
            _ => Ok(()),
        }
    }
}

/// Beside the output, by its name without its extension.
fn failures_of(output: &Path) -> PathBuf {
    let is_zstd = output.extension().is_some_and(|extension| extension == "zst");
    let stem = if is_zstd { output.with_extension("") } else { output.to_owned() };
    stem.with_extension("failures.jsonl")
}

impl Target {
    /// Where the rows go.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Where failures are listed, if anywhere.
    pub fn failures(&self) -> Option<&Path> {
        self.failures.as_deref()
    }

    /// The same, with results read from where `pointers` lead.
    pub fn reading(self, pointers: Pointers) -> Self {
        Self { pointers, ..self }
    }

    /// What appends rows as replies come, if that is asked for; it has written what the ledger holds already.
    ///
    /// # Errors
    /// When the output is not the ledger's, or can't be written.
    pub fn follower(&self, ledger: &mut Ledger) -> Result<Option<Follower>, Error> {
        if self.whole.is_some() {
            return Ok(None);
        }
        if ledger.has_items_elsewhere()? {
            let message = "--follow can't number the rows of jobs whose items lie in a bucket: leave --follow away";
            return Err(Error::Usage(message.to_owned()));
        }
        let mut follower = Follower::open(ledger, &self.output, self.encoding)?;
        follower.catch_up(ledger)?;
        Ok(Some(follower))
    }

    /// Writes all rows, or what `follower` lacks, and the list of failures. Every job has a reply by now.
    ///
    /// # Errors
    /// When the ledger can't be read, a file can't be written, or `stop` was cancelled.
    pub fn finish(
        self,
        ledger: &mut Ledger,
        follower: Option<Follower>,
        stop: &CancellationToken,
    ) -> Result<Tally, Error> {
        let entries = ledger.counts().entries;
        let progress = Progress::new();
        progress.expect(Total::Exactly(entries));
        let mut failures = Failures { path: self.failures.clone(), file: None };
        let Some(reserved) = self.whole else {
            let mut tally = follower.map_or(Ok(Tally::default()), |follower| follower.finish(ledger))?;
            let chunks = Chunks { ledger, pointers: &self.pointers, stop };
            let failed =
                write(&chunks, Selection::Failed, &Encoder::Nothing, Sink::nothing(), &mut failures, &progress)?;
            failures.finish()?;
            tally.failed = failed.failed;
            tally.rows = entries;
            return Ok(tally);
        };
        let chunks = Chunks { ledger, pointers: &self.pointers, stop };
        let encoder = Encoder::new(self.format, self.encoding, chunks.kind()?);
        let sink = Sink::start(&reserved, &encoder)?;
        let tally = write(&chunks, Selection::All, &encoder, sink, &mut failures, &progress)?;
        // The list first: where the output is, it is complete.
        failures.finish()?;
        reserved.finish()?;
        Ok(tally)
    }
}

/// The list of failures: a file that is only there when it has a line.
struct Failures {
    path: Option<PathBuf>,
    file: Option<(Reserved, Sink)>,
}

impl Failures {
    fn append(&mut self, lines: Vec<u8>) -> Result<(), Error> {
        let Some(path) = self.path.as_ref().filter(|_| !lines.is_empty()) else { return Ok(()) };
        if self.file.is_none() {
            let reserved = Reserved::new(Output::File(path.clone()))?;
            let sink = Sink::start(&reserved, &Encoder::Nothing)?;
            self.file = Some((reserved, sink));
        }
        self.file.as_mut().map_or(Ok(()), |(_, sink)| sink.append(Block::Lines(lines)))
    }

    /// Puts the list into its place, or removes an older one.
    fn finish(self) -> Result<(), Error> {
        match (self.file, self.path) {
            (Some((reserved, sink)), _) => {
                sink.finish(&Tally::default())?;
                reserved.finish()
            }
            (None, Some(path)) if path.is_file() => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io(format!("can't remove the older {}", path.display()), error))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// A group of chunks, encoded.
pub struct Encoded {
    /// Their rows.
    pub block: Block,
    /// The lines of those that are errors.
    pub failures: Vec<u8>,
    /// What they have in common.
    pub tally: Tally,
}

impl Encoded {
    /// Decodes and encodes.
    ///
    /// # Errors
    /// When a reply is none, or a row does not fit the format.
    pub fn of(group: Vec<Answered>, encoder: &Encoder) -> Result<Self, Error> {
        let (mut failures, mut tally) = (Vec::new(), Tally::default());
        let rows = group.into_iter().map(|answered| {
            let (rows, part) = Rows::of(answered)?;
            for failure in rows.failures() {
                serde_json::to_writer(&mut failures, &failure).expect("a failure has only string keys");
                failures.push(b'\n');
            }
            tally.add(part);
            Ok(rows)
        });
        let block = encoder.encode(rows)?;
        Ok(Self { block, failures, tally })
    }
}

/// A group, and where its rows are waited for.
type Work = (Vec<Answered>, SyncSender<Result<Encoded, Error>>);
/// Rows that will come.
type Promise = Receiver<Result<Encoded, Error>>;

/// Writes the rows of the selection, in order, and the failures among them.
fn write(
    chunks: &Chunks<'_>,
    selection: Selection,
    encoder: &Encoder,
    sink: Sink,
    failures: &mut Failures,
    progress: &Progress,
) -> Result<Tally, Error> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (work, waiting) = sync_channel::<Work>(0);
    let waiting = Arc::new(Mutex::new(waiting));
    let (promises, promised) = sync_channel::<Promise>(1);
    thread::scope(|scope| {
        for _ in 0..threads {
            let waiting = waiting.clone();
            scope.spawn(move || encode_groups(&waiting, encoder));
        }
        drop(waiting);
        let writing = scope.spawn(move || write_blocks(promised, sink, failures, progress));
        let read = chunks.in_groups(selection, encoder.block_size(), |group| {
            let (done, promise) = sync_channel(1);
            work.send((group, done)).ok().and_then(|()| promises.send(promise).ok())
        });
        drop((work, promises));
        // What writing says comes first: reading stops when nobody takes its groups.
        let (sink, tally) = writing.join().expect("writing does not panic")?;
        read?;
        sink.finish(&tally)?;
        Ok(tally)
    })
}

/// Appends what was promised, in order.
fn write_blocks(
    promised: Receiver<Promise>,
    mut sink: Sink,
    failures: &mut Failures,
    progress: &Progress,
) -> Result<(Sink, Tally), Error> {
    let mut tally = Tally::default();
    for promise in promised {
        let encoded = promise.recv().expect("encoding does not panic")?;
        sink.append(encoded.block)?;
        failures.append(encoded.failures)?;
        tally.add(encoded.tally);
        progress.reach(Done { items: tally.rows, tokens: 0 });
    }
    Ok((sink, tally))
}

/// Encodes groups until no more come.
fn encode_groups(waiting: &Mutex<Receiver<Work>>, encoder: &Encoder) {
    let next = || waiting.lock().expect("taking work does not panic").recv();
    while let Ok((group, done)) = next() {
        // Nobody waits for it when writing has failed.
        let _ = done.send(Encoded::of(group, encoder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_listed_beside_the_output_under_its_name() {
        let cases = [
            ("a/vectors.jsonl", "a/vectors.failures.jsonl"),
            ("vectors.parquet", "vectors.failures.jsonl"),
            ("v.1.jsonl.zst", "v.1.failures.jsonl"),
            ("vectors", "vectors.failures.jsonl"),
        ];
        for (output, failures) in cases {
            assert_eq!(failures_of(Path::new(output)), Path::new(failures), "{output}");
        }
    }
}
