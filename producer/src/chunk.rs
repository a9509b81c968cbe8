//! Pure: which entries of the input form which job. The same input and limits give the same chunks, so that job ids
//! made from a chunk's number stay the same when a submission goes on after a crash.
//!
//! In: entries in input order. Out: [`Chunk`]s, each of consecutive entries, good and bad, none lost or doubled. A
//! chunk's good items never pass the number or the bytes that one job may have; a job that comes whole is a chunk.

use inferq_shared::job::{Input, Inputs, Item};
use sha2::{Digest, Sha256};

use crate::source::{BadLine, Content, Entry, Place, ReadyJob};

/// What one job may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Entries; at least 1.
    pub entries: usize,
    /// Bytes of all items as JSON.
    pub bytes: usize,
}

/// Consecutive entries of the input: one job and the bad lines among its items. What is counted are rows of the
/// output: items, and bad lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// The chunk's place among the chunks, from 0.
    pub number: u64,
    /// The index of its first row among all rows, from 0.
    pub first: u64,
    /// Where its first entry stands.
    pub place: Place,
    /// What its job is made of.
    pub work: Work,
    /// The bad lines, each with its index among all rows.
    pub bad: Vec<(u64, BadLine)>,
    /// A digest of all its entries.
    pub digest: ChunkDigest,
}

/// What a job is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// The good entries, in order; none when all are bad, and then there is no job.
    Items(Vec<Item>),
    /// A job that came whole.
    Job(Box<ReadyJob>),
}

/// The first 16 bytes of a SHA-256.
pub type ChunkDigest = [u8; 16];

impl Chunk {
    /// Its rows: items and bad lines together.
    pub fn rows(&self) -> u64 {
        self.work.rows() + self.bad.len() as u64
    }
}

impl Work {
    /// The rows of its answer: one an item, and one for a job whose items are elsewhere.
    pub fn rows(&self) -> u64 {
        match self {
            Self::Items(items) => items.len() as u64,
            Self::Job(ready) => ready.job.items().max(1) as u64,
        }
    }

    /// Its items, as far as they are here.
    pub fn items(&self) -> &[Item] {
        match self {
            Self::Items(items) => items,
            Self::Job(ready) => match &ready.job.inputs {
                Inputs::Items(items) => items,
                Inputs::Uri(_) | Inputs::Shard { .. } => &[],
            },
        }
    }
}

/// Forms chunks.
pub struct Chunker {
    limits: ChunkLimits,
    number: u64,
    next: u64,
    open: Option<Open>,
}

struct Open {
    chunk: Chunk,
    bytes: usize,
    hasher: Sha256,
}

impl Chunker {
    /// Starts with chunk 0.
    pub fn new(limits: ChunkLimits) -> Self {
        Self { limits, number: 0, next: 0, open: None }
    }

    /// Takes one entry; gives back the chunk that it no longer fits into.
    pub fn push(&mut self, entry: Entry) -> Option<Chunk> {
        let Entry { place, content } = entry;
        let bytes = match &content {
            Ok(Content::Item(item)) => json_bytes_max(item),
            _ => 0,
        };
        let closed = if self.fits(&content, bytes) { None } else { self.close() };
        let open = self.open.get_or_insert_with(|| Open::new(self.number, self.next, place));
        open.bytes += bytes;
        hash_entry(&mut open.hasher, &content);
        match (content, &mut open.chunk.work) {
            (Ok(Content::Item(item)), Work::Items(items)) => items.push(item),
            (Ok(Content::Item(item)), work) => *work = Work::Items(vec![item]),
            (Ok(Content::Job(ready)), work) => *work = Work::Job(ready),
            (Err(bad), _) => open.chunk.bad.push((self.next, bad)),
        }
        self.next = open.chunk.first + open.chunk.rows();
        closed
    }

    /// The last chunk, if it has any entries.
    pub fn finish(mut self) -> Option<Chunk> {
        self.close()
    }

    fn fits(&self, content: &Result<Content, BadLine>, bytes: usize) -> bool {
        let Some(open) = &self.open else { return true };
        let whole = matches!(open.chunk.work, Work::Job(_)) || matches!(content, Ok(Content::Job(_)));
        !whole && open.chunk.rows() < self.limits.entries as u64 && open.bytes + bytes <= self.limits.bytes
    }

    fn close(&mut self) -> Option<Chunk> {
        let Open { mut chunk, hasher, .. } = self.open.take()?;
        chunk.digest.copy_from_slice(&hasher.finalize()[..16]);
        self.number += 1;
        Some(chunk)
    }
}

impl Open {
    fn new(number: u64, first: u64, place: Place) -> Self {
        let chunk = Chunk { number, first, place, work: Work::Items(Vec::new()), bad: Vec::new(), digest: [0; 16] };
        Self { chunk, bytes: 0, hasher: Sha256::new() }
    }
}

/// What an item takes as JSON, at most.
fn json_bytes_max(item: &Item) -> usize {
    let id = item.id.as_deref().map_or(0, |id| json_string_bytes(id) + r#"{"id":,"text":}"#.len());
    let input = match &item.input {
        Input::Text(text) => json_string_bytes(text),
        Input::Pair(query, passage) => json_string_bytes(query) + json_string_bytes(passage) + "[,]".len(),
    };
    id + input + ",".len()
}

fn json_string_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// Feeds an entry so that no two different sequences of entries feed the same bytes.
fn hash_entry(hasher: &mut Sha256, content: &Result<Content, BadLine>) {
    let mut part = |tag: u8, text: &[u8]| {
        hasher.update([tag]);
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    match content {
        Ok(Content::Item(item)) => {
            part(b'i', item.id.as_deref().unwrap_or("").as_bytes());
            match &item.input {
                Input::Text(text) => part(b't', text.as_bytes()),
                Input::Pair(query, passage) => {
                    part(b'q', query.as_bytes());
                    part(b'p', passage.as_bytes());
                }
            }
        }
        Ok(Content::Job(ready)) => part(b'j', &ready.body),
        // Not the message: it holds the file's name, and a file may move.
        Err(bad) => {
            part(b'b', bad.id.as_deref().unwrap_or("").as_bytes());
            part(b'c', bad.error.code.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use inferq_shared::reply::ReplyError;
    use proptest::prelude::*;

    use super::*;
    use crate::source::Unit;

    fn entry(number: u64, content: Result<(Option<String>, String), ()>) -> Entry {
        let content = content
            .map(|(id, text)| Content::Item(Item { id, input: Input::Text(text) }))
            .map_err(|()| BadLine { id: None, error: ReplyError::new("malformed", "x") });
        Entry { place: Place { name: "f".into(), unit: Unit::Line, number }, content }
    }

    fn item(entry: Entry) -> Option<Item> {
        match entry.content {
            Ok(Content::Item(item)) => Some(item),
            _ => None,
        }
    }

    fn contents() -> impl Strategy<Value = Vec<Result<(Option<String>, String), ()>>> {
        let good = (proptest::option::of("[a-z\"\\\\]{1,8}"), ".{0,40}").prop_map(Ok);
        proptest::collection::vec(prop_oneof![9 => good, 1 => Just(Err(()))], 0..200)
    }

    fn chunks(entries: Vec<Entry>, limits: ChunkLimits) -> Vec<Chunk> {
        let mut chunker = Chunker::new(limits);
        let mut chunks: Vec<_> = entries.into_iter().filter_map(|entry| chunker.push(entry)).collect();
        chunks.extend(chunker.finish());
        chunks
    }

    proptest! {
        #[test]
        fn no_entry_is_lost_or_doubled_and_limits_are_kept(contents in contents(), entries in 1usize..20, bytes in 1usize..2000) {
            let all: Vec<_> = contents.into_iter().zip(1..).map(|(content, line)| entry(line, content)).collect();
            let limits = ChunkLimits { entries, bytes };
            let chunks = chunks(all.clone(), limits);
            let mut next = 0;
            let mut items = Vec::new();
            for (number, chunk) in chunks.iter().enumerate() {
                prop_assert_eq!((chunk.number, chunk.first), (number as u64, next));
                prop_assert!(chunk.rows() >= 1 && chunk.rows() <= entries as u64);
                let size = serde_json::to_vec(chunk.work.items()).expect("items are JSON").len();
                prop_assert!(size <= bytes + 2 || chunk.work.items().len() == 1, "{} bytes, the limit is {}", size, bytes);
                for (index, _) in &chunk.bad {
                    prop_assert!(all[*index as usize].content.is_err());
                }
                next += chunk.rows();
                items.extend(chunk.work.items().iter().cloned());
            }
            prop_assert_eq!(next, all.len() as u64);
            let good: Vec<_> = all.into_iter().filter_map(item).collect();
            prop_assert_eq!(items, good);
        }

        #[test]
        fn a_changed_entry_changes_its_chunk_and_no_other(contents in contents(), at in any::<prop::sample::Index>()) {
            prop_assume!(!contents.is_empty());
            let limits = ChunkLimits { entries: 7, bytes: usize::MAX };
            let before: Vec<_> = contents.into_iter().map(|content| entry(1, content)).collect();
            let at = at.index(before.len());
            let mut after = before.clone();
            after[at] = entry(1, Ok((None, "a text that no other entry has, longer than forty characters".to_owned())));
            for (old, new) in chunks(before, limits).iter().zip(chunks(after, limits)) {
                prop_assert_eq!(old.digest != new.digest, old.number == (at / 7) as u64);
            }
        }
    }

    #[test]
    fn a_whole_job_is_a_chunk_and_counts_its_items() {
        let ready = |body: &str| {
            let body = body.to_owned().into_bytes();
            let job = inferq_shared::job::Job::decode(&body, &Default::default()).expect("a job");
            Ok(Content::Job(Box::new(ReadyJob { job, body: body.into() })))
        };
        let bad = || Err(BadLine::malformed("x"));
        let contents = [
            bad(),
            ready(r#"{"version":1,"id":"a","inputs":["x","y","z"]}"#),
            ready(r#"{"version":1,"id":"b","input_uri":"s3://b/x"}"#),
            bad(),
            bad(),
            ready(r#"{"version":1,"id":"c","inputs":["x"]}"#),
        ];
        let place = Place { name: "f".into(), unit: Unit::Line, number: 1 };
        let entries = contents.into_iter().map(|content| Entry { place: place.clone(), content }).collect();
        let chunks = chunks(entries, ChunkLimits { entries: 2, bytes: 1 });
        let shapes: Vec<_> = chunks.iter().map(|chunk| (chunk.first, chunk.work.rows(), chunk.bad.len())).collect();
        assert_eq!(shapes, [(0, 0, 1), (1, 3, 0), (4, 1, 0), (5, 0, 2), (7, 1, 0)]);
        assert_eq!(chunks[3].bad.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [5, 6]);
    }
}
