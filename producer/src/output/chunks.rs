//! The ledger's chunks, in groups that are encoded together.
//!
//! In: the ledger. Out: groups in input order, until nobody takes them. A job whose results lie in parts in a bucket comes
//! a piece at a time, each piece as if it were a chunk with its reply. One part is held, never the whole.

use inferq_shared::bucket::Uri;
use inferq_shared::columns::Kind;
use inferq_shared::manifest::Manifest;
use inferq_shared::reply::{ItemResult, Reply};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::connect::this_command;
use crate::ledger::{Answered, Ledger, Selection};
use crate::outcome::Error;
use crate::pointer::{PointerError, Pointers, Target};
use crate::sink::BlockSize;

/// Results of a part that become one piece.
const PIECE: usize = 1024;

/// Where chunks come from.
pub(super) struct Chunks<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) pointers: &'a Pointers,
    pub(super) stop: &'a CancellationToken,
}

#[derive(Default)]
struct Group {
    chunks: Vec<Answered>,
    bytes: usize,
    rows: u64,
}

impl Group {
    fn add(&mut self, chunk: Answered) {
        self.bytes += chunk.reply.as_ref().map_or(0, Vec::len);
        self.rows += chunk.items + chunk.bad.len() as u64;
        self.chunks.push(chunk);
    }
}

impl Chunks<'_> {
    /// Hands over the chunks of the selection in groups of this size, until nobody takes them.
    pub(super) fn in_groups(
        &self,
        selection: Selection,
        block: BlockSize,
        mut hand_over: impl FnMut(Vec<Answered>) -> Option<()>,
    ) -> Result<(), Error> {
        let interrupted = || Error::Interrupted(format!("interrupted while writing; to go on: {}", this_command()));
        let mut group = Group::default();
        let mut add = |chunk| {
            group.add(chunk);
            if group.bytes < block.reply_bytes && group.rows < block.rows {
                return Ok(());
            }
            let taken = hand_over(std::mem::take(&mut group).chunks);
            if self.stop.is_cancelled() || taken.is_none() { Err(interrupted()) } else { Ok(()) }
        };
        self.ledger.for_each(selection, |chunk| self.expand(chunk, &mut add))?;
        if group.chunks.is_empty() {
            return Ok(());
        }
        hand_over(group.chunks).ok_or_else(interrupted)
    }

    /// A chunk as it is, or in pieces when its results lie in parts.
    fn expand(&self, chunk: Answered, visit: &mut impl FnMut(Answered) -> Result<(), Error>) -> Result<(), Error> {
        // A reply that is none is named with its job when its rows are made.
        let reply = chunk.reply.as_ref().filter(|_| chunk.elsewhere).and_then(|body| Reply::decode(body).ok());
        let Some(reply) = reply else { return visit(chunk) };
        match self.pointers.target(&reply)? {
            Some(Target::Manifest(uri)) => self.parts(&chunk, reply, &uri, visit),
            // Of an object without a line.
            Some(Target::Object(..)) => Ok(()),
            None if reply.error.is_none() && reply.results.is_empty() => Ok(()),
            None => visit(Answered { ids: ids(&reply.results), ..chunk }),
        }
    }

    fn parts(
        &self,
        chunk: &Answered,
        reply: Reply,
        uri: &Uri,
        visit: &mut impl FnMut(Answered) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let manifest = wait(self.pointers.manifest(uri))?;
        check(uri, &manifest, &reply)?;
        let mut first = chunk.first;
        for part in &manifest.parts {
            let mut results = wait(self.pointers.part(uri, &manifest, part))?;
            while !results.is_empty() {
                let rest = results.split_off(results.len().min(PIECE));
                let items = results.len() as u64;
                visit(piece(chunk, &reply, first, results))?;
                first += items;
                results = rest;
            }
        }
        Ok(())
    }

    /// What the first result of all is; a Parquet file's columns follow from it.
    pub(super) fn kind(&self) -> Result<Kind, Error> {
        let reply = self.ledger.first_result()?.and_then(|body| Reply::decode(&body).ok());
        let Some(reply) = reply else { return Ok(Kind::Unknown) };
        let Some(Target::Manifest(uri)) = self.pointers.target(&reply)? else { return Ok(Kind::of(&reply.results)) };
        let manifest = wait(self.pointers.manifest(&uri))?;
        for part in &manifest.parts {
            let kind = Kind::of(&wait(self.pointers.part(&uri, &manifest, part))?);
            if kind != Kind::Unknown {
                return Ok(kind);
            }
        }
        Ok(Kind::Unknown)
    }
}

/// The ledger counts what the reply says, so that the manifest must say the same.
fn check(uri: &Uri, manifest: &Manifest, reply: &Reply) -> Result<(), PointerError> {
    let items: u64 = manifest.parts.iter().map(|part| u64::from(part.usage.items)).sum();
    if items == u64::from(reply.usage.items) {
        return Ok(());
    }
    Err(PointerError::Unfit(format!("{uri}: its parts have {items} items, the reply says {}", reply.usage.items)))
}

fn piece(chunk: &Answered, reply: &Reply, first: u64, results: Vec<ItemResult>) -> Answered {
    let ids = ids(&results);
    Answered {
        job: chunk.job.clone(),
        first,
        place: chunk.place.clone(),
        place_index: chunk.place_index,
        items: results.len() as u64,
        ids,
        bad: Vec::new(),
        reply: Some(Reply { results, ..reply.clone() }.encode()),
        elsewhere: true,
    }
}

fn ids(results: &[ItemResult]) -> Vec<Option<String>> {
    results.iter().map(|result| Some(result.id.clone())).collect()
}

/// Waits for a bucket, on a thread that the runtime has given up for the ledger.
fn wait<T>(reading: impl Future<Output = Result<T, PointerError>>) -> Result<T, PointerError> {
    Handle::current().block_on(reading)
}
