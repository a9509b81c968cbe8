//! `--follow`: rows are appended to the output as replies come, whole jobs at a time, in the order of their coming.
//!
//! In: chunks whose replies the ledger has. Out: their rows at the output's end, synced, and then a note in the ledger of
//! which chunks the output holds and how long it is. After a crash the file is cut to that length, so that no row is
//! lost, doubled or half. Where a length can't be kept (stdout, a pipe) rows of the last moment may come twice.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use inferq_shared::job::Encoding;

use crate::ledger::{Answered, Followed, Ledger};
use crate::outcome::Error;
use crate::output::Encoded;
use crate::rows::Tally;
use crate::sink::{Block, Encoder, Output, refused};

/// Appends rows to one output.
pub struct Follower {
    file: Target,
    output: Output,
    followed: Followed,
    encoder: Encoder,
    tally: Tally,
}

enum Target {
    Stream(Box<dyn Write + Send>),
    File(File),
}

/// Chunks whose rows are written and noted together while catching up.
const CHUNKS: usize = 64;

impl Follower {
    /// Opens the output where the ledger says that it ends.
    ///
    /// # Errors
    /// When it holds something else, was begun with another encoding, is being written by another process, or can't be
    /// written.
    pub fn open(ledger: &mut Ledger, output: &Output, encoding: Encoding) -> Result<Self, Error> {
        let name = match output {
            Output::Stdout => "-".to_owned(),
            Output::Object(uri) => uri.to_string(),
            Output::File(path) => std::path::absolute(path).map_err(|error| output.error(error))?.display().to_string(),
        };
        let fresh = Followed { output: name, encoding, bytes: 0 };
        let before = ledger.followed()?.filter(|before| before.output == fresh.output);
        let (file, followed) = match output.regular_file() {
            None => {
                let bytes = before.map_or(0, |before| before.bytes);
                (Target::Stream(stream(output)?), Followed { bytes, ..fresh.clone() })
            }
            Some(path) => {
                let file = open(path).map_err(|error| refused(output, error))?;
                let length = file.metadata().map_err(|error| output.error(error))?.len();
                let followed = go_on(output, before, fresh.clone(), length)?;
                (Target::File(file), followed)
            }
        };
        if followed.encoding != encoding {
            return Err(other_encoding(output));
        }
        if followed.bytes == 0 && followed == fresh {
            // Noted before the first row: from now on the file is ours to cut.
            ledger.begin_followed(&followed)?;
        }
        let mut follower =
            Self { file, output: output.clone(), followed, encoder: Encoder::Lines(encoding), tally: Tally::default() };
        follower.cut().map_err(|error| output.error(error))?;
        Ok(follower)
    }

    fn cut(&mut self) -> io::Result<()> {
        let Target::File(file) = &mut self.file else { return Ok(()) };
        file.set_len(self.followed.bytes)?;
        file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// Writes what the ledger holds and the output lacks.
    ///
    /// # Errors
    /// When the ledger or the output can't be read or written.
    pub fn catch_up(&mut self, ledger: &mut Ledger) -> Result<(), Error> {
        let mut next = 0;
        loop {
            let chunks = ledger.unfollowed(next, CHUNKS)?;
            let Some(last) = chunks.last() else { return Ok(()) };
            next = last + 1;
            self.write(ledger, &chunks)?;
        }
    }

    /// Writes the rows of `chunks`, which the ledger holds and the output lacks.
    ///
    /// # Errors
    /// When the ledger or the output can't be read or written.
    pub fn write(&mut self, ledger: &mut Ledger, chunks: &[u64]) -> Result<(), Error> {
        for chunks in chunks.chunks(CHUNKS) {
            let group = chunks.iter().filter_map(|chunk| ledger.chunk(*chunk).transpose());
            let group: Vec<Answered> = group.collect::<Result<_, _>>()?;
            let encoded = Encoded::of(group, &self.encoder)?;
            if let Block::Lines(lines) = encoded.block {
                self.file.append(&lines).map_err(|error| self.output.error(error))?;
                self.followed.bytes += lines.len() as u64;
            }
            ledger.record_followed(&self.followed, chunks)?;
            self.tally.add(encoded.tally);
        }
        Ok(())
    }

    /// Writes what is left, and says what this process's rows have in common.
    ///
    /// # Errors
    /// When the ledger or the output can't be read or written.
    pub fn finish(mut self, ledger: &mut Ledger) -> Result<Tally, Error> {
        self.catch_up(ledger)?;
        Ok(self.tally)
    }
}

impl Target {
    /// Writes whole lines; returns once they are as durable as the output makes them.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(lines).and_then(|()| stream.flush()),
            Self::File(file) => file.write_all(lines).and_then(|()| file.sync_data()),
        }
    }
}

fn stream(output: &Output) -> Result<Box<dyn Write + Send>, Error> {
    match output {
        Output::Stdout => Ok(Box::new(io::stdout())),
        Output::Object(_) => Err(output.error(io::ErrorKind::Unsupported)),
        Output::File(path) => {
            let file = File::options().write(true).open(path).map_err(|error| output.error(error))?;
            Ok(Box::new(file))
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    file.try_lock()?;
    Ok(file)
}

/// Where the file goes on: where the ledger says, or at its start when there is nothing in it.
fn go_on(output: &Output, before: Option<Followed>, fresh: Followed, length: u64) -> Result<Followed, Error> {
    match before {
        _ if length == 0 => Ok(fresh),
        Some(before) if before.bytes <= length => Ok(before),
        Some(_) => Err(Error::Usage(format!(
            "output {output} is shorter than it was: remove it to have all rows written again"
        ))),
        None => Err(Error::Usage(format!(
            "output {output} is there already, and this ledger did not begin it with --follow: remove it, or name another file"
        ))),
    }
}

fn other_encoding(output: &Output) -> Error {
    Error::Usage(format!(
        "output {output} was begun with another --encoding: give the same, or remove the file to have it written again"
    ))
}
