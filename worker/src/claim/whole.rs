//! A job whose inputs are an object: looked for, counted, and run here if it is small.
//!
//! In: a claim that is no shard. Out: its reply, or that its shards are published. Whether its answer is there already is
//! asked before anything is read.

use inferq_shared::broker::Publisher;
use inferq_shared::bucket::{ObjectInfo, Uri};
use inferq_shared::manifest::MANIFEST;
use inferq_shared::packing::Packing;
use inferq_shared::reply::ReplyError;

use super::plan::{Piece, PieceSize, Planner};
use super::reader::{Ended, Source};
use super::windows::Asker;
use super::{Answer, Claim, Desk};
use crate::object::{self, Mark, Target};

/// What one look at every line has found.
pub(super) enum Counted {
    /// No item.
    Nothing,
    /// So few that they are one piece.
    Small(Piece),
    /// Many pieces; those of a compressed object are objects of their own by now.
    Pieces(Vec<Piece>),
    /// It was split before, into pieces of another size: count again.
    Again(PieceSize),
}

/// The pieces that lines have closed, with their text where that is kept.
type Closed = Vec<(Piece, Vec<u8>)>;

impl<P: Publisher> Desk<P> {
    pub(super) async fn whole(&mut self, claim: &mut Claim) -> Result<Answer, Ended> {
        let uri = claim.uri.clone().map_err(|uri| Ended::Failed(ReplyError::new("invalid", uri)))?;
        let since = claim.case.at;
        let info = self.reading.ask("head", since, || self.buckets.head(&uri)).await.map_err(Ended::unread)?;
        let Some(info) = info else {
            return Err(Ended::Failed(ReplyError::new(
                "not_found",
                format!("input_uri {uri}: there is no such object"),
            )));
        };
        let source = object::Source::Object { uri: &uri.to_string(), etag: &info.etag };
        let digest = object::digest(&self.feeder.intake.info.name, claim.case.parameters, source);
        if let Some(answer) = self.found(claim, &digest).await? {
            return Ok(answer);
        }
        let mut size = self.piece_size(&claim.job);
        loop {
            match self.count(claim, &info, &digest, size).await? {
                Counted::Nothing => {
                    let message = format!("input_uri {uri} has no items: every line is blank");
                    return Err(Ended::Failed(ReplyError::new("invalid", message)));
                }
                Counted::Small(piece) => return self.small(claim, &info, digest, piece).await,
                Counted::Pieces(pieces) => return self.publish(claim, &info, &pieces).await,
                Counted::Again(other) => size = other,
            }
        }
    }

    /// The answer to a job whose object or manifest is there.
    async fn found(&mut self, claim: &Claim, digest: &str) -> Result<Option<Answer>, Ended> {
        let Some(place) = &claim.place else { return Ok(None) };
        let manifest = below(&place.folder, MANIFEST)?;
        for uri in [&place.object, &manifest] {
            let kept = self.reading.ask("look", claim.case.at, || self.buckets.digest(uri)).await;
            if let Some(kept) = kept.map_err(Ended::unwritten)? {
                if *uri == manifest && is_packed(claim) {
                    self.sweep(claim, place).await?;
                }
                return Ok(Some(self.points_at(claim, uri, Mark::ours(kept.as_deref(), digest))));
            }
        }
        Ok(None)
    }

    /// The answer that points at an object with this mark, or says that it is another job's.
    pub(super) fn points_at(&self, claim: &Claim, uri: &Uri, mark: Option<Mark>) -> Answer {
        let reply = self.feeder.intake.signature.uncomputed(&claim.case, 0);
        Answer::Reply(Box::new(match mark {
            Some(mark) => object::pointer(reply, uri, mark),
            None => object::conflict(reply, uri),
        }))
    }

    /// Looks at every line once. An object that turns out to be no good leaves no pieces.
    async fn count(
        &mut self,
        claim: &Claim,
        info: &ObjectInfo,
        digest: &str,
        size: PieceSize,
    ) -> Result<Counted, Ended> {
        let mut pieces = Vec::new();
        let counted = self.count_into(&mut pieces, claim, info, digest, size).await;
        if let (Err(Ended::Failed(error)), Some(place), true) = (&counted, &claim.place, is_packed(claim))
            && !pieces.is_empty()
            && ["malformed", "limit_exceeded"].contains(&&*error.code)
        {
            self.sweep(claim, place).await?;
        }
        counted
    }

    async fn count_into(
        &mut self,
        pieces: &mut Vec<Piece>,
        claim: &Claim,
        info: &ObjectInfo,
        digest: &str,
        size: PieceSize,
    ) -> Result<Counted, Ended> {
        let packing = Packing::of(info.uri.name());
        let source = Source { uri: info.uri.clone(), etag: Some(info.etag.clone()), at: 0, end: info.size };
        let mut reader = self.reader(source, packing, claim.case.at);
        let mut splitter = self.splitter(0, 1);
        let mut planner = Planner::new(size);
        let mut text = Vec::new();
        loop {
            let block = reader.next().await?;
            let mut closed = Closed::new();
            let add = |line: super::lines::Line<'_>| {
                let full = planner.add(&line)?;
                closed.extend(full.map(|piece| (piece, std::mem::take(&mut text))));
                if packing != Packing::Plain && planner.has_begun() {
                    text.extend_from_slice(line.bytes());
                    text.push(b'\n');
                }
                Ok(())
            };
            let added: Result<(), super::plan::TooManyPieces> = match &block {
                Some(block) => splitter.push(block, add),
                None => splitter.finish(add),
            };
            added.map_err(|error| {
                Ended::Failed(ReplyError::new("limit_exceeded", format!("input_uri {}: {error}", info.uri)))
            })?;
            if pieces.is_empty()
                && !closed.is_empty()
                && let Some(other) = self.begin_split(claim, info, digest, size).await?
            {
                return Ok(Counted::Again(other));
            }
            self.keep(claim, packing, closed, pieces).await?;
            if block.is_none() {
                break;
            }
        }
        let Some(last) = planner.finish() else { return Ok(Counted::Nothing) };
        if pieces.is_empty() {
            return Ok(Counted::Small(last));
        }
        self.keep(claim, packing, vec![(last, text)], pieces).await?;
        Ok(Counted::Pieces(std::mem::take(pieces)))
    }

    /// Runs all of a small input.
    async fn small(
        &mut self,
        claim: &mut Claim,
        info: &ObjectInfo,
        digest: String,
        piece: Piece,
    ) -> Result<Answer, Ended> {
        let case = &claim.case;
        let packing = Packing::of(info.uri.name());
        let (mut source, mut whole) =
            (Source { uri: info.uri.clone(), etag: Some(info.etag.clone()), at: 0, end: info.size }, piece);
        if packing == Packing::Plain {
            (source.at, source.end) = (piece.from, piece.to);
        } else {
            (whole.from, whole.line) = (0, 1);
        }
        let room = match &claim.place {
            Some(_) => None,
            None => Some(self.feeder.intake.room_for_ids(case, piece.items).map_err(Ended::Failed)?),
        };
        let (trace, deadline) = (case.trace.parent().cloned(), claim.deadline);
        let asker = Asker { id: case.id.clone(), parameters: case.parameters, index: 0, deadline, room, trace };
        let computed = self.compute(asker, (source, packing), &whole, case.at).await?;
        let reply = self.feeder.intake.signature.whole(case, computed.results, computed.run);
        let target = claim.place.as_ref().map(|place| {
            let bytes_max = self.feeder.intake.settings.object_bytes;
            Box::new(Target { uri: place.object.clone(), format: place.format, digest, bytes_max })
        });
        Ok(Answer::Results(Box::new(reply), target))
    }
}

fn is_packed(claim: &Claim) -> bool {
    claim.uri.as_ref().is_ok_and(|uri| Packing::of(uri.name()) != Packing::Plain)
}

/// What lies below a job's folder.
pub(super) fn below(folder: &Uri, name: &str) -> Result<Uri, Ended> {
    folder.join(name).map_err(|error| Ended::Failed(ReplyError::new("invalid", format!("reply_to.uri {error}"))))
}
