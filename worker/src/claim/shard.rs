//! A shard: one piece of a large input becomes one part, put only if absent.
//!
//! In: a claim that is a shard. Out: its part is there, and what `finish.rs` finds then. A shard always ends in a part: one
//! that can't be run, or ran out of attempts, or whose source has changed, puts a part of errors. Only a shard whose part
//! can't be put is a dead letter; redriving it completes the job.

use bytes::Bytes;
use inferq_shared::broker::Publisher;
use inferq_shared::bucket::Uri;
use inferq_shared::job::Shard;
use inferq_shared::manifest::part_name;
use inferq_shared::packing::Packing;
use inferq_shared::reply::{ItemResult, ReplyError};

use super::pieces::piece_uri;
use super::plan::Piece;
use super::reader::{Ended, Source};
use super::whole::below;
use super::windows::Asker;
use super::{Answer, Claim, Desk, Place};
use crate::assemble::tally;
use crate::object::{self, Mark};

impl<P: Publisher> Desk<P> {
    pub(super) async fn shard(&mut self, claim: &mut Claim, shard: &Shard) -> Result<Answer, Ended> {
        let place = placed(claim, shard)?;
        let uri = deliverable(below(&place.folder, &part_name(shard.number, place.format)))?;
        let digest = self.part_digest(claim, shard);
        let kept = self.writing.ask("look", claim.case.at, || self.buckets.digest(&uri)).await;
        let part_is_ours = match kept.map_err(Ended::unwritten)? {
            Some(kept) if !crate::mutant::active("part_not_looked_for") => {
                Mark::ours(kept.as_deref(), &digest).is_some()
            }
            _ => self.put_part(claim, shard, &place, (&uri, digest)).await?,
        };
        if !part_is_ours {
            tracing::warn!(shard = %claim.case.id, part = %uri, "the part is there and of another plan: nothing to do");
            return Ok(Answer::Done);
        }
        self.delete_piece(claim, shard, &place).await?;
        self.finish(claim, shard, &place).await
    }

    /// What a part is of: the job, the object's version, and the piece.
    fn part_digest(&self, claim: &Claim, shard: &Shard) -> String {
        let uri = claim.uri.as_ref().map_or_else(Clone::clone, ToString::to_string);
        let piece = format!("{}#{}/{}:{}-{}", shard.etag, shard.number, shard.count, shard.from, shard.to);
        let source = object::Source::Object { uri: &uri, etag: &piece };
        object::digest(&self.feeder.intake.info.name, claim.case.parameters, source)
    }

    /// Computes and puts the part; whether the one that is there then is this shard's.
    async fn put_part(
        &mut self,
        claim: &mut Claim,
        shard: &Shard,
        place: &Place,
        (uri, digest): (&Uri, String),
    ) -> Result<bool, Ended> {
        let results = match self.results(claim, shard, place).await {
            Ok(results) => results,
            Err(Ended::Failed(error)) if !crate::mutant::active("failed_shard_leaves_no_part") => errors(shard, &error),
            Err(ended) => return Err(ended),
        };
        let (body, mark) = self.part(shard, place, results, digest).await?;
        claim.case.hold.carry(body.len());
        let (buckets, kept) = (&self.buckets, mark.to_string());
        let put = self.writing.ask("put", claim.case.at, || buckets.create(uri, body.clone(), &kept)).await;
        claim.case.hold.carry(0);
        if crate::mutant::active("part_put_over") {
            let _ = (buckets.delete(uri).await, buckets.create(uri, body.clone(), &kept).await);
        }
        Ok(match put.map_err(Ended::unwritten)? {
            inferq_shared::bucket::Created::New => true,
            inferq_shared::bucket::Created::Exists { digest } => Mark::ours(digest.as_deref(), &mark.digest).is_some(),
        })
    }

    async fn results(&mut self, claim: &Claim, shard: &Shard, place: &Place) -> Result<Vec<ItemResult>, Ended> {
        if let Some(error) = &claim.refusal {
            return Err(Ended::Failed(error.clone()));
        }
        let Ok(object) = &claim.uri else {
            return Err(Ended::Failed(ReplyError::new("invalid", "input_uri names no object")));
        };
        let source = if shard.unpacked {
            Source { uri: piece_uri(&place.folder, shard.number)?, etag: None, at: shard.from, end: shard.to }
        } else {
            Source { uri: object.clone(), etag: Some(shard.etag.clone()), at: shard.from, end: shard.to }
        };
        let asker = Asker {
            id: shard.parent.as_job().clone(),
            parameters: claim.case.parameters,
            index: shard.index,
            deadline: claim.deadline,
            room: None,
            trace: claim.case.trace.parent().cloned(),
        };
        let Shard { from, to, line, index, items, .. } = *shard;
        let piece = Piece { from, to, line, index, items };
        Ok(self.compute(asker, (source, Packing::Plain), &piece, claim.case.at).await?.results)
    }

    /// The part's bytes and mark. Results that can't be written so are a part of errors.
    async fn part(
        &self,
        shard: &Shard,
        place: &Place,
        results: Vec<ItemResult>,
        digest: String,
    ) -> Result<(Bytes, Mark), Ended> {
        let (format, signature, shard) = (place.format, self.feeder.intake.signature.clone(), shard.clone());
        let encode = move || {
            let (model, revision) = (&signature.model, &signature.revision);
            let (results, body) = match object::encode(format, &results, model, revision) {
                Ok(body) => (results, body),
                Err(error) => {
                    let results = errors(&shard, &ReplyError::new("failed", error.to_string()));
                    let body = object::encode(format, &results, model, revision);
                    (results, body.map_err(|error| Ended::Undeliverable(format!("reply_undeliverable: {error}")))?)
                }
            };
            let (status, usage) = tally(&results);
            Ok((Bytes::from(body), Mark { digest, status, usage, revision: revision.clone() }))
        };
        self.feeder.offload.run(encode).await
    }
}

/// Where the part goes, if the shard is one that a worker made.
fn placed(claim: &Claim, shard: &Shard) -> Result<Place, Ended> {
    let wrong = |reason: String| Ended::Undeliverable(format!("invalid: {reason}"));
    if let Some(fault) = shard.fault() {
        return Err(wrong(fault));
    }
    if claim.case.id != shard.id() {
        return Err(wrong(format!("the id of shard {} must be {}", claim.case.id, shard.id())));
    }
    claim.place.clone().ok_or_else(|| wrong("a shard needs reply_to.uri".to_owned()))
}

/// A shard that has no address to put its part at can't end in one.
pub(super) fn deliverable<T>(made: Result<T, Ended>) -> Result<T, Ended> {
    made.map_err(|ended| match ended {
        Ended::Failed(error) => Ended::Undeliverable(format!("{}: {}", error.code, error.message)),
        ended => ended,
    })
}

/// A part of errors: the ids that items have by default, since their own were not read.
fn errors(shard: &Shard, error: &ReplyError) -> Vec<ItemResult> {
    let parent = &shard.parent;
    let one = |index: u32| ItemResult {
        id: format!("{parent}/{index}"),
        index,
        embedding: None,
        labels: None,
        error: Some(error.clone()),
        tokens: None,
    };
    (shard.index..shard.index + shard.items).map(one).collect()
}
