//! Which ids stand twice in an input of any length, in memory of one size.
//!
//! In: ids with the places they stand at. Out: how many stand twice, and the first of them. Of an id only a digest of
//! 128 bits is kept; digests are sorted in pieces, each a temporary file without a name, and merged at the end. What
//! fits into one piece never touches the disk. It never holds more than one piece and a little of each file.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// How much is sorted and merged at once.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Records of a piece.
    piece: usize,
    /// Files that are merged into one when there are so many.
    files: usize,
}

/// 6 MiB a piece, and files enough for millions of millions of ids.
const SIZES: Sizes = Sizes { piece: 1 << 18, files: 32 };
/// Bytes of each file that are in memory while it is read.
const READ_BYTES: usize = 1 << 15;
/// Bytes of a record on the disk.
const RECORD_BYTES: usize = 24;

/// An id's digest in two halves, and where the id stands: in this order what belongs together stands together.
type Record = (u64, u64, u64);

/// Ids as they come.
pub struct Ids {
    folder: PathBuf,
    sizes: Sizes,
    piece: Vec<Record>,
    /// Sorted files; those of a level are as many times larger than those of the level below as a level has files.
    levels: Vec<Vec<Sorted>>,
}

/// Ids that stand twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeats {
    /// How many there are, each time after the first counted.
    pub count: u64,
    /// Those at the first places, in order.
    pub first: Vec<Repeat>,
}

/// An id that stands where it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repeat {
    /// Where.
    pub at: u64,
    /// Where it stands first.
    pub before: u64,
}

impl Ids {
    /// Starts with none. Files, should they be needed, are made in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self::with_sizes(folder, SIZES)
    }

    fn with_sizes(folder: &Path, sizes: Sizes) -> Self {
        Self { folder: folder.to_owned(), sizes, piece: Vec::new(), levels: Vec::new() }
    }

    /// Takes one id, which stands at `at`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn add(&mut self, id: &str, at: u64) -> io::Result<()> {
        let digest = Sha256::digest(id);
        let half = |half: usize| digest[8 * half..8 * half + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.piece.push((half(0), half(1), at));
        if self.piece.len() >= self.sizes.piece { self.put_away() } else { Ok(()) }
    }

    /// The ids that stand twice, of which at most `named` are told one by one.
    ///
    /// # Errors
    /// When a file can't be written or read.
    pub fn finish(mut self, named: usize) -> io::Result<Repeats> {
        self.piece.sort_unstable();
        let mut found = Found { repeats: Repeats::default(), latest: BinaryHeap::new(), named, group: None };
        if self.levels.is_empty() {
            self.piece.iter().for_each(|record| found.see(*record));
        } else {
            self.put_away()?;
            let files = self.levels.into_iter().flatten().collect();
            merge(files, |record| {
                found.see(record);
                Ok(())
            })?;
        }
        Ok(found.end())
    }

    /// Sorts the piece into a file, and merges files where there are enough of them.
    fn put_away(&mut self) -> io::Result<()> {
        self.piece.sort_unstable();
        let mut writer = Writer::in_folder(&self.folder)?;
        self.piece.drain(..).try_for_each(|record| writer.write(record))?;
        let mut file = writer.finish()?;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(file);
            if self.levels[level].len() < self.sizes.files {
                break;
            }
            let mut writer = Writer::in_folder(&self.folder)?;
            merge(std::mem::take(&mut self.levels[level]), |record| writer.write(record))?;
            file = writer.finish()?;
        }
        Ok(())
    }
}

/// What a walk over sorted records has found.
struct Found {
    repeats: Repeats,
    /// The repeats at the first places, the last of them on top.
    latest: BinaryHeap<Repeat>,
    named: usize,
    /// The id that is walked over, and where it stands first.
    group: Option<Record>,
}

impl Found {
    fn see(&mut self, record: Record) {
        match self.group {
            Some((high, low, before)) if (high, low) == (record.0, record.1) => {
                self.repeats.count += 1;
                self.latest.push(Repeat { at: record.2, before });
                if self.latest.len() > self.named {
                    self.latest.pop();
                }
            }
            _ => self.group = Some(record),
        }
    }

    fn end(self) -> Repeats {
        Repeats { first: self.latest.into_sorted_vec(), ..self.repeats }
    }
}

/// A sorted file, read from its beginning.
struct Sorted {
    reader: BufReader<File>,
    left: u64,
}

impl Sorted {
    fn next(&mut self) -> io::Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = [0; RECORD_BYTES];
        self.reader.read_exact(&mut bytes)?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Some((number(0), number(8), number(16))))
    }
}

struct Writer {
    file: BufWriter<File>,
    records: u64,
}

impl Writer {
    fn in_folder(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::with_capacity(1 << 18, tempfile::tempfile_in(folder)?), records: 0 })
    }

    fn write(&mut self, (high, low, at): Record) -> io::Result<()> {
        self.records += 1;
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&high.to_le_bytes());
        bytes[8..16].copy_from_slice(&low.to_le_bytes());
        bytes[16..].copy_from_slice(&at.to_le_bytes());
        self.file.write_all(&bytes)
    }

    fn finish(self) -> io::Result<Sorted> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Sorted { reader: BufReader::with_capacity(READ_BYTES, file), left: self.records })
    }
}

/// Calls `visit` with the records of all files in order.
fn merge(mut files: Vec<Sorted>, mut visit: impl FnMut(Record) -> io::Result<()>) -> io::Result<()> {
    let mut heads = BinaryHeap::new();
    for (file, sorted) in files.iter_mut().enumerate() {
        heads.extend(sorted.next()?.map(|record| Reverse((record, file))));
    }
    while let Some(mut head) = heads.peek_mut() {
        let Reverse((record, file)) = *head;
        visit(record)?;
        match files[file].next()? {
            Some(next) => *head = Reverse((next, file)),
            None => drop(std::collections::binary_heap::PeekMut::pop(head)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn repeats(ids: &[String], sizes: Sizes, named: usize) -> Repeats {
        let folder = tempfile::tempdir().expect("a directory");
        let mut found = Ids::with_sizes(folder.path(), sizes);
        for (id, at) in ids.iter().zip(0..) {
            found.add(id, at).expect("room on the disk");
        }
        let found = found.finish(named).expect("what was written is read");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a directory").count(), 0, "nothing is left");
        found
    }

    fn expected(ids: &[String], named: usize) -> Repeats {
        let mut seen = HashMap::new();
        let mut all = Vec::new();
        for (id, at) in ids.iter().zip(0..) {
            match seen.get(id) {
                Some(before) => all.push(Repeat { at, before: *before }),
                None => drop(seen.insert(id, at)),
            }
        }
        let count = all.len() as u64;
        all.truncate(named);
        Repeats { count, first: all }
    }

    proptest! {
        #[test]
        fn the_same_repeats_are_found_as_by_a_map(
            ids in proptest::collection::vec("[a-d]{1,4}", 0..300), piece in 1usize..40, files in 2usize..5,
            named in 0usize..30,
        ) {
            prop_assert_eq!(repeats(&ids, Sizes { piece, files }, named), expected(&ids, named));
        }
    }

    #[test]
    fn ids_that_differ_stand_once_however_many_there_are() {
        let mut ids: Vec<String> = (0..100_000).map(|n| format!("doc-{n}")).collect();
        let sizes = Sizes { piece: 500, files: 4 };
        assert_eq!(repeats(&ids, sizes, 20), Repeats::default());
        ids.push("doc-70000".to_owned());
        let expected = Repeats { count: 1, first: vec![Repeat { at: 100_000, before: 70_000 }] };
        assert_eq!(repeats(&ids, sizes, 20), expected);
    }
}
