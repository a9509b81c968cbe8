//! After each part: is the job complete? Who finds it so puts the manifest and answers the job.
//!
//! In: a shard whose part is there. Out: nothing more to do, or the reply that points at the manifest. What to ask for
//! [`Completion`] decides; this file asks.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use inferq_shared::broker::Publisher;
use inferq_shared::bucket::{Created, Uri};
use inferq_shared::job::{Shard, VERSION};
use inferq_shared::manifest::{GROUP, MANIFEST, Manifest, Part, sum};
use inferq_shared::reply::Reply;

use super::completion::{Ask, Completion};
use super::reader::Ended;
use super::whole::below;
use super::{Answer, Claim, Desk, Place};
use crate::object::{self, Mark};

/// Requests at once.
const AT_ONCE: usize = 16;
/// A marker is no longer than this.
const MARKER_BYTES: u64 = 1 << 20;

impl<P: Publisher> Desk<P> {
    pub(super) async fn finish(&mut self, claim: &Claim, shard: &Shard, place: &Place) -> Result<Answer, Ended> {
        let (mut completion, mut ask) = Completion::after(shard.number, shard.count, place.format);
        loop {
            ask = match ask {
                Ask::Nothing => return Ok(Answer::Done),
                Ask::Finish(parts) => return self.conclude(claim, shard, place, parts).await,
                Ask::List { folder, names } => {
                    completion.listed(self.count_names(claim, place, &folder, &names).await?)
                }
                Ask::Look(names) => completion.seen(self.each(claim, place, names, Self::look_at).await?),
                Ask::Read(names) => completion.read(self.each(claim, place, names, Self::read_marker).await?),
                Ask::Mark { name, parts } => {
                    let body = Bytes::from(serde_json::to_vec(&parts).expect("parts have only string keys"));
                    self.create(claim, &at(place, &name)?, body, "marker").await?;
                    completion.marked()
                }
            };
        }
    }

    /// How many of `names` the folder holds.
    async fn count_names(
        &mut self,
        claim: &Claim,
        place: &Place,
        folder: &str,
        names: &[String],
    ) -> Result<usize, Ended> {
        let prefix = at(place, folder)?;
        let listed = self.writing.ask("list", claim.case.at, || self.buckets.list(&prefix, None)).await;
        let there: BTreeSet<Uri> = listed.map_err(Ended::unwritten)?.into_iter().map(|object| object.uri).collect();
        Ok(names.iter().filter(|name| at(place, name).is_ok_and(|uri| there.contains(&uri))).count())
    }

    /// Asks for each of `names`, a few at once, in their order.
    async fn each<T, Asked: Future<Output = Result<T, Ended>>>(
        &self,
        claim: &Claim,
        place: &Place,
        names: Vec<String>,
        ask: impl Fn(Self, std::time::Instant, String, Uri) -> Asked,
    ) -> Result<Vec<T>, Ended> {
        let addressed: Result<Vec<_>, Ended> =
            names.into_iter().map(|name| at(place, &name).map(|uri| (name, uri))).collect();
        let asked = addressed?.into_iter().map(|(name, uri)| ask(self.clone(), claim.case.at, name, uri));
        stream::iter(asked).buffered(AT_ONCE.min(GROUP as usize)).try_collect().await
    }

    async fn look_at(mut self, since: std::time::Instant, name: String, uri: Uri) -> Result<Part, Ended> {
        let kept = self.writing.ask("look", since, || self.buckets.digest(&uri)).await.map_err(Ended::unwritten)?;
        match kept.flatten().and_then(|kept| kept.parse::<Mark>().ok()) {
            Some(Mark { status, usage, .. }) => Ok(Part { name, status, usage }),
            None => Err(Ended::Undeliverable(format!("reply_undeliverable: {uri} is no part of inferq: remove it"))),
        }
    }

    async fn read_marker(mut self, since: std::time::Instant, _: String, uri: Uri) -> Result<Vec<Part>, Ended> {
        let read = self.writing.ask("read", since, || self.buckets.read_all(&uri, MARKER_BYTES)).await;
        let parts = read.map_err(Ended::unwritten)?.and_then(|(_, body)| serde_json::from_slice(&body).ok());
        parts.ok_or_else(|| Ended::Undeliverable(format!("reply_undeliverable: {uri} is no marker: remove it")))
    }

    /// Puts the manifest, and answers the job by it; whoever else does so says the same.
    async fn conclude(
        &mut self,
        claim: &Claim,
        shard: &Shard,
        place: &Place,
        parts: Vec<Part>,
    ) -> Result<Answer, Ended> {
        let info = &self.feeder.intake.info;
        let (status, usage) = sum(&parts);
        let input_uri = claim.uri.as_ref().map_or_else(Clone::clone, ToString::to_string);
        let source = object::Source::Object { uri: &input_uri, etag: &shard.etag };
        let digest = object::digest(&info.name, claim.case.parameters, source);
        let mark = Mark { digest, status, usage, revision: info.revision.clone() };
        let manifest = Manifest {
            version: VERSION,
            id: shard.parent.as_job().clone(),
            model: info.name.clone(),
            input_uri: input_uri.clone(),
            etag: shard.etag.clone(),
            format: place.format,
            status,
            usage,
            parts,
        };
        let uri = at(place, MANIFEST)?;
        let body = Bytes::from(manifest.encode());
        let created = self.create(claim, &uri, body, &mark.to_string()).await?;
        if shard.unpacked {
            self.sweep(claim, place).await?;
        }
        let mark = match created {
            Created::New => Some(mark),
            Created::Exists { digest } => Mark::ours(digest.as_deref(), &mark.digest),
        };
        let Answer::Reply(reply) = self.points_at(claim, &uri, mark) else { return Ok(Answer::Done) };
        Ok(Answer::Reply(Box::new(Reply { id: manifest.id, ..*reply })))
    }

    async fn create(&mut self, claim: &Claim, uri: &Uri, body: Bytes, kept: &str) -> Result<Created, Ended> {
        let buckets = &self.buckets;
        let created = self.writing.ask("put", claim.case.at, || buckets.create(uri, body.clone(), kept)).await;
        created.map_err(Ended::unwritten)
    }
}

/// What lies below the job's folder.
fn at(place: &Place, name: &str) -> Result<Uri, Ended> {
    below(&place.folder, name).map_err(|_| Ended::Undeliverable(format!("invalid: {name} makes too long a key")))
}
