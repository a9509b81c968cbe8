//! The unpacked text of a compressed input: one object a piece, there from the split until the piece's part is.
//!
//! In: pieces as they are counted, then shards whose part is there. Out: objects below `_input/`, and their end. A shard
//! deletes its own. A parent that comes again puts them anew, also those of shards that are done, and may die before
//! its shards clear them: so whoever ends the job sweeps the folder. What may put but not delete leaves them there.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use inferq_shared::broker::Publisher;
use inferq_shared::bucket::{PAGE_MAX, Uri};
use inferq_shared::job::Shard;
use inferq_shared::packing::Packing;

use super::plan::Piece;
use super::reader::Ended;
use super::shard::deliverable;
use super::whole::below;
use super::{Claim, Desk, Place};

/// Their folder, below the job's.
const PIECES: &str = "_input/";
/// Deleted at once.
const AT_ONCE: usize = 16;

impl<P: Publisher> Desk<P> {
    /// Notes closed pieces. Those of a compressed input are put, and then are that object.
    pub(super) async fn keep(
        &mut self,
        claim: &Claim,
        packing: Packing,
        closed: Vec<(Piece, Vec<u8>)>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Ended> {
        for (mut piece, text) in closed {
            if let (true, Some(place)) = (packing != Packing::Plain, &claim.place) {
                let number = u32::try_from(pieces.len()).expect("the planner numbers them");
                let uri = piece_uri(&place.folder, number)?;
                (piece.from, piece.to) = (0, text.len() as u64);
                let body = Bytes::from(text);
                let put = || self.buckets.create(&uri, body.clone(), "piece");
                self.writing.ask("put", claim.case.at, put).await.map_err(Ended::unwritten)?;
            }
            pieces.push(piece);
        }
        Ok(())
    }

    /// Deletes the piece of a shard whose part is there.
    pub(super) async fn delete_piece(&mut self, claim: &Claim, shard: &Shard, place: &Place) -> Result<(), Ended> {
        if !shard.unpacked {
            return Ok(());
        }
        let uri = deliverable(piece_uri(&place.folder, shard.number))?;
        left_there(self.delete(claim, uri).await)
    }

    /// Deletes every piece of a job that has ended: its manifest is there, or its input is no good.
    pub(super) async fn sweep(&mut self, claim: &Claim, place: &Place) -> Result<(), Ended> {
        if crate::mutant::active("pieces_stay") {
            return Ok(());
        }
        let folder = deliverable(below(&place.folder, PIECES))?;
        left_there(self.empty(claim, &folder).await)
    }

    async fn empty(&mut self, claim: &Claim, folder: &Uri) -> Result<(), Ended> {
        loop {
            let listed = self.writing.ask("list", claim.case.at, || self.buckets.list(folder, None)).await;
            let listed = listed.map_err(Ended::unwritten)?;
            let is_last = listed.len() < PAGE_MAX;
            let deleted = listed.into_iter().map(|object| {
                let mut desk = self.clone();
                async move { desk.delete(claim, object.uri).await }
            });
            stream::iter(deleted).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn delete(&mut self, claim: &Claim, uri: Uri) -> Result<(), Ended> {
        let deleted = self.writing.ask("delete", claim.case.at, || self.buckets.delete(&uri)).await;
        deleted.map_err(Ended::unwritten)
    }
}

/// Being forbidden to list or delete ends no job.
fn left_there(deleted: Result<(), Ended>) -> Result<(), Ended> {
    match deleted {
        Err(Ended::Undeliverable(reason)) => {
            tracing::warn!(reason, "unpacked pieces stay");
            Ok(())
        }
        deleted => deleted,
    }
}

/// Where the unpacked text of a piece lies, below the job's folder.
pub(super) fn piece_uri(folder: &Uri, number: u32) -> Result<Uri, Ended> {
    below(folder, &format!("{PIECES}{number:05}.jsonl"))
}
