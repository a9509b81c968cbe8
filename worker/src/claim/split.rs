//! A large input is split: the plan is fixed, and shards are published.
//!
//! In: the pieces that `whole.rs` counts. Out: shards, confirmed by their queue; then the parent is done. The plan, put
//! only if absent, holds for every later attempt: the version of the object and the size of a piece. So whoever comes
//! again makes the same shards, whatever its own settings are.

use bytes::Bytes;
use inferq_shared::broker::{Attributes, Message, Publisher};
use inferq_shared::bucket::{Created, ObjectInfo, Uri};
use inferq_shared::job::{Inputs, Job, ParentId, Shard, VERSION, attribute};
use inferq_shared::packing::Packing;
use inferq_shared::reply::ReplyError;
use inferq_shared::telemetry::story;
use serde::{Deserialize, Serialize};

use super::plan::{Piece, PieceSize};
use super::reader::Ended;
use super::whole::below;
use super::{Answer, Claim, Desk};
use crate::outage::NoAnswer;

/// The plan's name, below the job's folder.
const PLAN: &str = "_plan.json";
/// A plan is no longer than this.
const PLAN_BYTES: u64 = 1 << 16;
/// Shards published at once.
const SHARDS_A_PUBLISH: usize = 100;

/// What every attempt at a split job has in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    version: u32,
    input_uri: String,
    etag: String,
    items: u32,
    bytes: u64,
}

impl<P: Publisher> Desk<P> {
    /// Makes sure that the job can be split, and fixes how. Another size: an attempt before this one has fixed that.
    pub(super) async fn begin_split(
        &mut self,
        claim: &Claim,
        info: &ObjectInfo,
        digest: &str,
        size: PieceSize,
    ) -> Result<Option<PieceSize>, Ended> {
        let invalid = |message: String| Ended::Failed(ReplyError::new("invalid", message));
        let Some(place) = &claim.place else {
            let limit = size.items;
            return Err(invalid(format!(
                "input_uri has more than {limit} items or {} bytes, so that it is split: give reply_to.uri",
                size.bytes
            )));
        };
        ParentId::new(claim.case.id.clone()).map_err(invalid)?;
        let uri = below(&place.folder, PLAN)?;
        let plan = Plan {
            version: VERSION,
            input_uri: info.uri.to_string(),
            etag: info.etag.clone(),
            items: size.items,
            bytes: size.bytes,
        };
        let body = Bytes::from(serde_json::to_vec(&plan).expect("a plan has only string keys"));
        let kept = format!("sha256:{digest}");
        let (buckets, at) = (&self.buckets, claim.case.at);
        let created = self.writing.ask("put", at, || buckets.create(&uri, body.clone(), &kept)).await;
        match created.map_err(Ended::unwritten)? {
            Created::New => Ok(None),
            Created::Exists { .. } if crate::mutant::active("plan_ignored") => Ok(None),
            Created::Exists { digest } => {
                let read = self.reading.ask("read", at, || buckets.read_all(&uri, PLAN_BYTES)).await;
                let read = read.map_err(Ended::unwritten)?;
                let before = read.and_then(|(_, body)| serde_json::from_slice::<Plan>(&body).ok());
                resume(&uri, before, &plan, digest.as_deref() == Some(&kept))
            }
        }
    }

    /// Publishes a shard a piece.
    pub(super) async fn publish(
        &mut self,
        claim: &Claim,
        info: &ObjectInfo,
        pieces: &[Piece],
    ) -> Result<Answer, Ended> {
        let messages: Vec<Message> = self.messages(claim, info, pieces);
        for some in messages.chunks(SHARDS_A_PUBLISH) {
            if crate::mutant::active("shards_unconfirmed") {
                let _ = self.publisher.publish(&self.feeder.intake.settings.queues.shards(), some.to_vec()).await;
                continue;
            }
            self.publish_some(some, claim).await?;
        }
        story::split(&claim.case.id, pieces.len(), pieces.iter().map(|piece| u64::from(piece.items)).sum());
        Ok(Answer::Done)
    }

    fn messages(&self, claim: &Claim, info: &ObjectInfo, pieces: &[Piece]) -> Vec<Message> {
        let parent = ParentId::new(claim.case.id.clone()).expect("the id was checked when splitting began");
        let count = u32::try_from(pieces.len()).expect("the planner bounds the pieces");
        let unpacked = Packing::of(info.uri.name()) != Packing::Plain;
        let published = self.feeder.intake.clock.wall().as_millisecond().to_string();
        let is_own = claim.case.route != self.feeder.intake.submission_route(claim.case.submission.as_ref());
        let reply_to = is_own.then_some(&claim.case.route);
        let shard = |(number, piece): (u32, &Piece)| Shard {
            parent: parent.clone(),
            number,
            count,
            etag: info.etag.clone(),
            unpacked,
            from: piece.from,
            to: piece.to,
            line: piece.line,
            index: piece.index,
            items: piece.items,
        };
        let message = |shard: Shard| {
            let attributes = attributes(claim, &shard, &published, reply_to);
            let (id, uri) = (shard.id(), info.uri.to_string());
            let job = Job { id, inputs: Inputs::Shard { uri, shard }, ..claim.job.clone() };
            Message { body: Bytes::from(job.encode()), attributes }
        };
        (0..).zip(pieces).map(shard).map(message).collect()
    }

    /// Publishes until it is confirmed, refused, or the parent was held too long.
    async fn publish_some(&mut self, messages: &[Message], claim: &Claim) -> Result<(), Ended> {
        let queue = self.feeder.intake.settings.queues.shards();
        match self.writing.publish(claim.case.at, (&self.publisher, &queue), messages).await {
            Err(NoAnswer::Released(reason)) => Err(Ended::Released(reason)),
            Err(NoAnswer::Refused(error)) => Err(Ended::Undeliverable(format!("shards_undeliverable: {error}"))),
            Ok(()) => Ok(()),
        }
    }
}

/// How an attempt goes on that finds a plan: with its size, or not at all.
fn resume(uri: &Uri, before: Option<Plan>, plan: &Plan, same: bool) -> Result<Option<PieceSize>, Ended> {
    match before {
        Some(before) if same => {
            let size = PieceSize { items: before.items, bytes: before.bytes };
            Ok((size != PieceSize { items: plan.items, bytes: plan.bytes }).then_some(size))
        }
        Some(before) if before.input_uri == plan.input_uri && before.etag != plan.etag => {
            let message = format!(
                "input_uri {} has changed since the job was first split: submit it under another id",
                plan.input_uri
            );
            Err(Ended::Failed(ReplyError::new("source_changed", message)))
        }
        _ => {
            let message = format!("{uri} is there already and is the plan of another job: choose another id or prefix");
            Err(Ended::Failed(ReplyError::new("id_conflict", message)))
        }
    }
}

/// What stands beside a shard; `reply_to`: where its parent's client listens, for who completes the job.
fn attributes(claim: &Claim, shard: &Shard, published: &str, reply_to: Option<&String>) -> Attributes {
    let mut attributes = Attributes::from([
        (attribute::CONTENT_TYPE.to_owned(), "application/json".to_owned()),
        (attribute::VERSION.to_owned(), VERSION.to_string()),
        (attribute::JOB_ID.to_owned(), shard.id().to_string()),
        (attribute::PARENT.to_owned(), shard.parent.to_string()),
        (attribute::ITEMS.to_owned(), shard.items.to_string()),
        // As producers estimate them: bytes / 4.
        (attribute::TOKENS.to_owned(), (shard.to - shard.from).div_ceil(4).to_string()),
        (attribute::PUBLISHED_AT.to_owned(), published.to_owned()),
    ]);
    let passed_on = [
        (attribute::SUBMISSION, claim.case.submission.as_ref()),
        (attribute::AMQP_REPLY_TO, reply_to),
        (attribute::AMQP_CORRELATION_ID, claim.case.correlation_id.as_ref()),
    ];
    for (name, value) in passed_on {
        attributes.extend(value.map(|value| (name.to_owned(), value.clone())));
    }
    claim.case.trace.context().put(&mut attributes);
    attributes
}
