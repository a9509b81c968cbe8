//! The inputs of a job that lie in an object: whether it may read them, and how its lines become items.
//!
//! In: a decoded job with `input_uri`. Out: a [`Claim`], or how the job leaves the line at once. It reads nothing.

use inferq_shared::bucket::Uri;
use inferq_shared::job::{Item, Job, JobId, Parameters, ReplyTo, Shard};
use inferq_shared::reply::ReplyError;

use super::{ALLOW_READ, Admission, Destination, Intake, REPLY_BYTES_MAX, Refusal};
use crate::claim::{Claim, Place};
use crate::ticket::{Case, TicketItem};

impl Intake {
    /// What becomes of a job, or a shard, whose inputs are the object `uri`.
    pub(super) fn claim(
        &self,
        case: Case,
        job: Job,
        destination: Result<Option<Destination>, Refusal>,
        (uri, shard): (String, Option<Shard>),
    ) -> Admission {
        let place = destination.and_then(|object| self.place(&job, object, shard.as_ref()));
        let readable = self.readable(&uri).and_then(|uri| self.check_case(&case, job.deadline).map(|()| uri));
        let deadline = job.deadline.filter(|_| !crate::mutant::active("deadlines_ignored"));
        let deadline = deadline.map(|deadline| self.instant_of(deadline));
        let claim = |mut case: Case, uri, place, refusal| {
            case.trace.stage("intake");
            Admission::Claim(Box::new(Claim { case, job, uri, shard: shard.clone(), place, deadline, refusal }))
        };
        match (place, readable, &shard) {
            (Ok(place), Ok(uri), _) => claim(case, Ok(uri), place, None),
            // A shard always ends in a part, if it may write one.
            (Ok(place), Err(refusal), Some(_)) => claim(case, Err(uri), place, Some(refusal.error)),
            (Err(Refusal { error, .. }), _, Some(_)) => {
                Admission::Leave(case.dead(format!("{}: {}", error.code, error.message)))
            }
            (Err(refusal), ..) | (_, Err(refusal), None) => self.refuse(case, 0, refusal),
        }
    }

    /// Where results of the job go: into the object, or into a folder of the job that was split.
    fn place(&self, job: &Job, object: Option<Destination>, shard: Option<&Shard>) -> Result<Option<Place>, Refusal> {
        let (Some((object, format)), Some(ReplyTo::Bucket { prefix, .. })) = (object, &job.reply_to) else {
            return Ok(None);
        };
        let id = shard.map_or(&job.id, |shard| shard.parent.as_job());
        let folder = Uri::parse(prefix).and_then(|prefix| prefix.join(&format!("{id}/")));
        let folder = folder.map_err(|error| Refusal::rejected("invalid", format!("reply_to.uri {error}")))?;
        Ok(Some(Place { object, folder, format }))
    }

    /// The object's address, if the operator lets it be read.
    fn readable(&self, uri: &str) -> Result<Uri, Refusal> {
        let uri = Uri::parse(uri).map_err(|error| Refusal::rejected("invalid", format!("input_uri {error}")))?;
        if uri.is_prefix() {
            return Err(Refusal::rejected(
                "invalid",
                format!("input_uri {uri} names a prefix, it must name an object"),
            ));
        }
        let allowed = self.settings.readable.check(&uri, ALLOW_READ);
        allowed.map_err(|error| Refusal::rejected("forbidden", format!("input_uri is not allowed: {error}")))?;
        Ok(uri)
    }

    /// The items of a large input from `index` on; what is no item has its error.
    pub(crate) fn items(
        &self,
        job: &JobId,
        index: u32,
        parameters: Parameters,
        lines: Vec<Result<Item, ReplyError>>,
    ) -> Vec<TicketItem> {
        let one = |(index, line): (u32, Result<Item, ReplyError>)| {
            let own = || format!("{job}/{index}");
            match line {
                Ok(item) => TicketItem {
                    tokens: self.tokens(&item.input, parameters.truncate),
                    id: item.id.unwrap_or_else(own),
                },
                Err(error) => TicketItem { id: own(), tokens: Err(error) },
            }
        };
        (index..).zip(lines).map(one).collect()
    }

    /// The most items whose results, with ids of any length, fit an object.
    pub(crate) fn items_of_an_object(&self, parameters: Parameters) -> u32 {
        let each = self.result_bytes(parameters) + Item::ID_BYTES_MAX * 6;
        u32::try_from(self.settings.object_bytes / each).unwrap_or(u32::MAX).max(1)
    }

    /// What the ids of so many items may take of the reply; for an object they always fit.
    ///
    /// # Errors
    /// When the reply could pass its limit even with the ids that items have by default.
    pub(crate) fn room_for_ids(&self, case: &Case, items: u32) -> Result<usize, ReplyError> {
        let items = items as usize;
        let fixed = REPLY_BYTES_MAX
            + self.settings.limits.metadata_bytes * 6
            + items.saturating_mul(self.result_bytes(case.parameters));
        let limit = self.settings.limits.reply_bytes;
        let bytes = fixed.saturating_add(items.saturating_mul(case.id.as_str().len() + "/0000000000".len()));
        if bytes > limit {
            let message = format!(
                "input_uri has {items} items, whose reply could reach {bytes} bytes, the limit is {limit}: use encoding \
                 base64, fewer lines, or reply_to.uri"
            );
            return Err(ReplyError::new("limit_exceeded", message));
        }
        Ok(limit - fixed)
    }
}
