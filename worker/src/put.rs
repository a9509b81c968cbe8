//! A reply's results become an object, before the reply that points at it is published.
//!
//! In: answers whose job asked for an object. Out: the same with a reply that points at it, or that says why not; or the
//! job has left: given back while its bucket is down, a dead letter when the bucket refuses. An object is put only if
//! there is none, so a job that runs twice changes nothing. It never acks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use inferq_shared::bucket::{Buckets, Created};
use inferq_shared::job::JobId;
use inferq_shared::reply::Reply;
use inferq_shared::telemetry::story;

use crate::object::{self, Mark, Target};
use crate::offload::Offload;
use crate::outage::{NoAnswer, Patience};
use crate::ticket::Answered;

/// Puts objects.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where they go.
    pub buckets: Buckets,
    /// How long a bucket is waited for.
    pub patience: Patience,
    /// Where they are encoded.
    pub offload: Offload,
}

impl Put {
    /// Puts what `answered` asks for.
    pub async fn answer(mut self, mut answered: Answered) -> Option<Answered> {
        let Some(target) = answered.object.take() else { return Some(answered) };
        let encode = move || {
            let encoded = encoded(&mut answered.reply, &target);
            (answered, target, encoded)
        };
        let (mut answered, target, encoded) = self.offload.run(encode).await;
        let Some(body) = encoded else { return Some(answered) };
        let mark = Mark::new(&target.digest, &answered.reply);
        let created = self.create(&answered.reply.id, &target, body, mark, answered.at).await;
        answered.trace.stage("put");
        match created {
            Ok(Some(mark)) => answered.reply = object::pointer(answered.reply, &target.uri, mark),
            Ok(None) => answered.reply = object::conflict(answered.reply, &target.uri),
            Err(reason) => {
                leave(answered, reason).await;
                return None;
            }
        }
        answered.hold.carry(0);
        Some(answered)
    }

    /// Puts an object, for a job that came at `since`: its mark, be it by this call or by one before. `None`: there is
    /// one that answers another job.
    ///
    /// # Errors
    /// When the bucket refuses, or is down for too long.
    pub async fn create(
        &mut self,
        id: &JobId,
        target: &Target,
        body: Bytes,
        mark: Mark,
        since: Instant,
    ) -> Result<Option<Mark>, NoAnswer> {
        let (kept, bytes) = (mark.to_string(), body.len());
        let Self { buckets, patience, .. } = self;
        let created = patience.ask("put", since, || buckets.create(&target.uri, body.clone(), &kept)).await?;
        let is_new = created == Created::New;
        story::put(id, &target.uri, bytes, is_new);
        Ok(match created {
            Created::New => Some(mark),
            Created::Exists { digest } => Mark::ours(digest.as_deref(), &mark.digest),
        })
    }
}

/// The object's bytes, taken from the reply's results. `None`: they can't be written so, and the reply says why.
fn encoded(reply: &mut Reply, target: &Target) -> Option<Bytes> {
    let results = std::mem::take(&mut reply.results);
    match object::encode(target.format, &results, &reply.model, &reply.revision) {
        Ok(body) => Some(body.into()),
        Err(error) => {
            *reply = object::unwritable(reply.clone(), &error);
            None
        }
    }
}

/// Settles a job whose object could not be put.
async fn leave(answered: Answered, reason: NoAnswer) {
    let Answered { reply, trace, lease, hold, .. } = answered;
    match reason {
        NoAnswer::Released(reason) => {
            trace.released(reason.as_str());
            let released = lease.release(Duration::ZERO).await;
            story::released(Some(&reply.id), reason.as_str(), Duration::ZERO, released);
        }
        NoAnswer::Refused(error) => {
            let reason = format!("reply_undeliverable: {error}");
            trace.fail("dead_lettered", &reason);
            story::dead_lettered(Some(&reply.id), &reason, lease.dead_letter(reason.as_str()).await);
        }
    }
    drop(hold);
}
