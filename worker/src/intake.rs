//! Delivery → ticket: decode, check limits, deadline and the size the reply can reach, tokenise.
//!
//! In: what was received. Out: an [`Admission`]: a ticket to run, or how the job leaves the line at once. Synchronous,
//! run on CPU threads. It never settles a lease and never waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inferq_shared::broker::QueueNames;
use inferq_shared::bucket::{AllowList, Uri};
use inferq_shared::job::{
    DecodeErrorKind, Encoding, Input, Inputs, Item, Job, JobId, Limits, ObjectFormat, Parameters, ReplyTo, attribute,
};
use inferq_shared::reply::{ReplyError, Status};
use inferq_shared::telemetry::story;
use inferq_shared::telemetry::traces::{self, JobReceived, Trace, TraceContext};
use jiff::{SignedDuration, Timestamp};

use crate::assemble::Signature;
use crate::claim::Claim;
use crate::clock::Clock;
use crate::engine::{ModelInfo, Tokens};
use crate::object::{self, Source, Target};
use crate::ticket::{Case, Outbound, Received, ReleaseReason, Ticket, TicketItem};
use crate::tokenize::{TokenizeError, Tokenizer};

/// What intake checks jobs against.
#[derive(Debug, Clone)]
pub struct IntakeSettings {
    /// The limits of a message.
    pub limits: Limits,
    /// The queues that belong to the jobs queue.
    pub queues: QueueNames,
    /// Queues that a job may name in `reply_to`.
    pub reply_queues: Vec<String>,
    /// Prefixes that a job may name in `input_uri`.
    pub readable: AllowList,
    /// Prefixes that a job may name in `reply_to`.
    pub writable: AllowList,
    /// The most that an object of results can have, in bytes.
    pub object_bytes: usize,
    /// Attempts after which a job is answered `attempts_exhausted`.
    pub attempts_max: u32,
    /// How long after publishing a job that fits no worker is answered `no_worker`.
    pub unfit_limit: Duration,
    /// How far other machines' clocks may be off.
    pub clock_skew: Duration,
}

/// Decodes, checks and tokenises.
#[derive(Clone)]
pub struct Intake {
    /// What to check against.
    pub settings: Arc<IntakeSettings>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model.
    pub info: Arc<ModelInfo>,
    /// What replies are signed with.
    pub signature: Arc<Signature>,
    /// The time.
    pub clock: Clock,
}

/// What becomes of a delivery.
#[derive(Debug)]
pub enum Admission {
    /// It runs.
    Run(Ticket),
    /// It runs once its inputs are read from their object.
    Claim(Box<Claim>),
    /// It leaves the line now.
    Leave(Outbound),
    /// It leaves the line because this worker can't run it, though another may.
    Misfit(Outbound),
}

/// How long a job that another worker may run stays out of sight.
const MISFIT_DELAY: Duration = Duration::from_secs(5);
/// The longest JSON number of an f32, with its comma: `-1.17549435e-38,`.
const FLOAT_BYTES_MAX: usize = 16;
/// What a result holds beside id and embedding: names, braces, index, tokens, or an error's sentence.
const RESULT_BYTES_MAX: usize = 256;
/// What a reply holds beside its results and metadata.
const REPLY_BYTES_MAX: usize = 2048;

/// The flag whose prefixes a job may write to.
const ALLOW_WRITE: &str = "--allow-write";
/// The flag whose prefixes a job may read from.
const ALLOW_READ: &str = "--allow-read";

/// The object that a job's results become.
type Destination = (Uri, ObjectFormat);

/// Why a job as a whole is not run.
struct Refusal {
    status: Status,
    error: ReplyError,
}

impl Refusal {
    fn rejected(code: &str, message: impl Into<String>) -> Self {
        Self { status: Status::Rejected, error: ReplyError::new(code, message) }
    }
}

impl Intake {
    /// Looks into one delivery.
    pub fn admit(&self, received: Received) -> Admission {
        let started = self.clock.now();
        let decoded = Job::decode(&received.message.body, &self.settings.limits);
        self.tell(&received, decoded.as_ref().map_or_else(|error| error.id.as_ref(), |job| Some(&job.id)));
        match decoded {
            Ok(job) if self.fits(&job) => self.accept(job, received, started),
            Ok(job) => self.misfit(received, Some(job.id), "another model"),
            Err(error) if error.kind == DecodeErrorKind::Version => {
                self.misfit(received, error.id, "a newer version of the wire format")
            }
            Err(error) => {
                let refusal = Refusal::rejected(error.kind.code(), error.message);
                self.refuse_undecoded(received, error.id, refusal)
            }
        }
    }

    fn tell(&self, received: &Received, id: Option<&JobId>) {
        if received.attempt > 1 || story::is_told() {
            let queued = self.published_at(received).map(|at| self.clock.since(at));
            story::received(id, received.attempt, queued, &self.signature.worker);
        }
    }

    fn fits(&self, job: &Job) -> bool {
        job.model.as_ref().is_none_or(|model| *model == self.info.name)
    }

    /// What no worker takes for long enough is answered; until then another worker may come.
    fn misfit(&self, received: Received, id: Option<JobId>, needs: &str) -> Admission {
        let published = self.published_at(&received);
        if published.is_none_or(|at| self.clock.since(at) < self.settings.unfit_limit) {
            return Admission::Misfit(received.release(ReleaseReason::Misfit, MISFIT_DELAY));
        }
        let limit_s = self.settings.unfit_limit.as_secs();
        let message = format!("the job needs {needs}, and no worker that has it took the job within {limit_s} s");
        self.refuse_undecoded(received, id, Refusal::rejected("no_worker", message))
    }

    /// Answers a job whose body could not be read, if its id can be told; else it is a dead letter.
    fn refuse_undecoded(&self, received: Received, id: Option<JobId>, refusal: Refusal) -> Admission {
        let named = || received.message.attributes.get(attribute::JOB_ID).and_then(|id| JobId::new(id).ok());
        let Some(id) = id.or_else(named) else {
            let reason = format!("{}: {}", refusal.error.code, refusal.error.message);
            return Admission::Leave(Outbound::Dead { id: None, lease: received.lease, hold: received.hold, reason });
        };
        let route = self.clients_route(&received).0;
        let case = self.case(received, id, Parameters::default(), route, Duration::ZERO);
        self.refuse(case, 0, refusal)
    }

    fn refuse(&self, case: Case, items: usize, refusal: Refusal) -> Admission {
        let reply = self.signature.refusal(&case, items, refusal.status, refusal.error);
        Admission::Leave(Outbound::Reply(Box::new(case.answered(reply))))
    }

    fn accept(&self, mut job: Job, received: Received, started: Instant) -> Admission {
        let (parameters, deadline) = (job.parameters, job.deadline);
        let (route, destination) = self.route(&received, &job.id, job.reply_to.clone());
        let mut case = self.case(received, job.id.clone(), parameters, route, Duration::ZERO);
        case.metadata = job.metadata.clone();
        let inputs = std::mem::replace(&mut job.inputs, Inputs::Items(Vec::new()));
        let items = match inputs {
            Inputs::Items(items) => items,
            Inputs::Uri(uri) => return self.claim(case, job, destination, (uri, None)),
            Inputs::Shard { uri, shard } => return self.claim(case, job, destination, (uri, Some(shard))),
        };
        let target = destination.and_then(|destination| {
            let bytes_max = self.check(&case, &items, deadline, destination.is_some())?;
            Ok(destination.map(|(uri, format)| {
                let digest = object::digest(&self.info.name, parameters, Source::Inputs(&items));
                Box::new(Target { uri, format, digest, bytes_max })
            }))
        });
        match target {
            Ok(target) => {
                // Results that wait for a bucket, and the object made of them, are held here.
                case.hold.carry(target.as_ref().map_or(0, |target| target.bytes_max));
                case.object = target;
            }
            Err(refusal) => return self.refuse(case, items.len(), refusal),
        }
        let items = self.tokenise(&case.id, parameters.truncate, items);
        case.hold.set_tokens(items.iter().filter_map(|item| item.tokens.as_ref().ok()).map(|t| t.ids.len()).sum());
        case.intake = self.clock.now().saturating_duration_since(started);
        case.trace.stage("intake");
        let deadline = deadline.filter(|_| !crate::mutant::active("deadlines_ignored"));
        Admission::Run(Ticket { case, items, deadline: deadline.map(|deadline| self.instant_of(deadline)) })
    }

    /// The queue that a job's reply goes to, and the object that its results become; or why it can't be as it asked.
    fn route(
        &self,
        received: &Received,
        id: &JobId,
        reply_to: Option<ReplyTo>,
    ) -> (Option<String>, Result<Option<Destination>, Refusal>) {
        match reply_to {
            None => self.clients_route(received),
            Some(ReplyTo::Queue(queue)) if self.settings.reply_queues.contains(&queue) => (Some(queue), Ok(None)),
            Some(ReplyTo::Queue(queue)) if queue == self.default_route(received) => (Some(queue), Ok(None)),
            Some(ReplyTo::Queue(queue)) => (None, Err(forbidden("reply_to.queue", &queue))),
            Some(ReplyTo::Bucket { prefix, format }) => {
                // The reply that points at the object goes where any other would.
                let (route, allowed) = self.clients_route(received);
                let object = allowed.and_then(|_| self.destination(id, &prefix, format));
                (route, object.map(|uri| Some((uri, format))))
            }
        }
    }

    /// Where an AMQP client listens, for a job that itself names no route.
    fn clients_route(&self, received: &Received) -> (Option<String>, Result<Option<Destination>, Refusal>) {
        let Some(queue) = received.message.attributes.get(attribute::AMQP_REPLY_TO) else { return (None, Ok(None)) };
        let is_allowed = CLIENTS_OWN.iter().any(|prefix| queue.starts_with(prefix))
            || self.settings.reply_queues.contains(queue)
            || *queue == self.default_route(received);
        if is_allowed { (Some(queue.clone()), Ok(None)) } else { (None, Err(forbidden("reply_to", queue))) }
    }

    /// The object that a job's results become, if the operator lets it.
    fn destination(&self, id: &JobId, prefix: &str, format: ObjectFormat) -> Result<Uri, Refusal> {
        let name = format!("{id}.{}", format.extension());
        let uri = Uri::parse(prefix)
            .and_then(|prefix| prefix.join(&name))
            .map_err(|error| Refusal::rejected("invalid", format!("reply_to.uri {error}")))?;
        let allowed = self.settings.writable.check(&uri, ALLOW_WRITE);
        allowed.map_err(|error| Refusal::rejected("forbidden", format!("reply_to.uri is not allowed: {error}")))?;
        Ok(uri)
    }

    fn default_route(&self, received: &Received) -> String {
        self.submission_route(received.message.attributes.get(attribute::SUBMISSION))
    }

    /// Where replies of a submission's jobs go, and of those that name none.
    pub(crate) fn submission_route(&self, submission: Option<&String>) -> String {
        match submission.filter(|name| JobId::new(name.as_str()).is_ok()) {
            Some(_) if crate::mutant::active("routes_mixed_up") => self.settings.queues.results(),
            Some(submission) => self.settings.queues.submission(submission),
            None => self.settings.queues.results(),
        }
    }

    /// Refuses what is not worth running, or gives the most bytes that the results can have.
    fn check(
        &self,
        case: &Case,
        items: &[Item],
        deadline: Option<Timestamp>,
        is_object: bool,
    ) -> Result<usize, Refusal> {
        self.check_case(case, deadline)?;
        self.check_reply_bytes(case, items, is_object)
    }

    /// Refuses what is not worth running whatever its inputs are.
    fn check_case(&self, case: &Case, deadline: Option<Timestamp>) -> Result<(), Refusal> {
        if case.attempt > self.settings.attempts_max && !crate::mutant::active("attempts_unlimited") {
            story::exhausted(&case.id, case.attempt);
            let message = format!("a worker was lost {} times while it had this job", case.attempt - 1);
            return Err(Refusal { status: Status::Failed, error: ReplyError::new("attempts_exhausted", message) });
        }
        let is_past = |deadline| self.clock.since(deadline) > self.settings.clock_skew;
        if deadline.is_some_and(is_past) && !crate::mutant::active("deadlines_ignored") {
            let message = "the job's deadline had passed when a worker took it";
            return Err(Refusal { status: Status::Expired, error: ReplyError::new("expired", message) });
        }
        self.check_dimensions(case.parameters.dimensions)
    }

    fn check_dimensions(&self, dimensions: Option<u32>) -> Result<(), Refusal> {
        let width = self.info.dimensions;
        match dimensions {
            Some(wanted) if wanted == 0 || wanted as usize > width => {
                let message = format!("parameters.dimensions is {wanted}, it must be 1 to {width}, what the model has");
                Err(Refusal::rejected("invalid", message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what could only be answered by a reply or an object above the limit, before anything is computed.
    fn check_reply_bytes(&self, case: &Case, items: &[Item], is_object: bool) -> Result<usize, Refusal> {
        // An id of control characters grows sixfold in JSON.
        let ids: usize =
            items.iter().map(|item| item.id.as_ref().map_or(case.id.as_str().len() + 5, |id| id.len() * 6)).sum();
        let bytes = REPLY_BYTES_MAX
            + self.settings.limits.metadata_bytes * 6
            + ids
            + items.len() * self.result_bytes(case.parameters);
        let (what, limit, way_out) = match is_object {
            false => ("reply", self.settings.limits.reply_bytes, ", or a bucket"),
            true => ("object", self.settings.object_bytes, ""),
        };
        if bytes <= limit {
            return Ok(bytes);
        }
        let message = format!(
            "the {what} could reach {bytes} bytes, the limit is {limit}: use encoding base64, fewer items a job{way_out}"
        );
        Err(Refusal::rejected("limit_exceeded", message))
    }

    /// The most that one result can have beside its id, in bytes.
    fn result_bytes(&self, parameters: Parameters) -> usize {
        let dimensions = parameters.dimensions.map_or(self.info.dimensions, |wanted| wanted as usize);
        let embedding = match parameters.encoding {
            Encoding::Float => dimensions * FLOAT_BYTES_MAX,
            Encoding::Base64 => (dimensions * 4).div_ceil(3) * 4,
        };
        embedding + RESULT_BYTES_MAX
    }

    fn tokenise(&self, id: &JobId, truncate: bool, items: Vec<Item>) -> Vec<TicketItem> {
        let one = |(index, item): (usize, Item)| TicketItem {
            tokens: self.tokens(&item.input, truncate),
            id: item.id.unwrap_or_else(|| format!("{id}/{index}")),
        };
        items.into_iter().enumerate().map(one).collect()
    }

    fn tokens(&self, input: &Input, truncate: bool) -> Result<Arc<Tokens>, ReplyError> {
        if matches!(input, Input::Pair(..)) && !self.info.reads_pairs {
            let message = "the model reads single texts, and this is a pair: send texts, or use a cross-encoder";
            return Err(ReplyError::new("invalid", message));
        }
        self.tokenizer.encode(input, truncate).map(Arc::new).map_err(|error| item_error(&error))
    }

    fn case(
        &self,
        mut received: Received,
        id: JobId,
        parameters: Parameters,
        route: Option<String>,
        intake: Duration,
    ) -> Case {
        let route = route.unwrap_or_else(|| self.default_route(&received));
        let queued = self.published_at(&received).map(|at| self.clock.since(at)).unwrap_or_default();
        let trace = self.trace(&mut received, &id, queued);
        let Received { mut message, attempt, lease, hold, at } = received;
        Case {
            id,
            parameters,
            metadata: serde_json::Map::new(),
            route,
            object: None,
            attempt,
            trace,
            correlation_id: message.attributes.remove(attribute::AMQP_CORRELATION_ID),
            submission: message.attributes.remove(attribute::SUBMISSION),
            lease,
            hold,
            at,
            queued,
            intake,
        }
    }

    /// Begins its span, where traces are on.
    fn trace(&self, received: &mut Received, id: &JobId, queued: Duration) -> Trace {
        let came = TraceContext::take(&mut received.message.attributes);
        if !traces::is_on() {
            return Trace::passing(came);
        }
        let (attributes, queues) = (&received.message.attributes, &self.settings.queues);
        let queue = if attributes.contains_key(attribute::PARENT) { queues.shards() } else { queues.jobs.clone() };
        let job = JobReceived {
            id,
            queue: &queue,
            submission: attributes.get(attribute::SUBMISSION).map(String::as_str),
            attempt: received.attempt,
            worker: &self.signature.worker,
            at: received.at,
            queued,
        };
        Trace::processing(came, &job)
    }

    fn published_at(&self, received: &Received) -> Option<Timestamp> {
        let millis = received.message.attributes.get(attribute::PUBLISHED_AT)?.parse().ok()?;
        Timestamp::from_millisecond(millis).ok()
    }

    /// The runtime's instant at which a deadline has passed for sure.
    fn instant_of(&self, deadline: Timestamp) -> Instant {
        let skew = SignedDuration::try_from(self.settings.clock_skew).unwrap_or(SignedDuration::MAX);
        // From a deadline that has passed, the skew lasts no longer than from any other.
        let left = deadline.duration_since(self.clock.wall()).saturating_add(skew);
        if crate::mutant::active("deadlines_early") {
            return self.clock.now();
        }
        // A deadline centuries away is none.
        let left = Duration::try_from(left).unwrap_or_default().min(Duration::from_secs(365 * 24 * 3600));
        self.clock.now() + left
    }
}

fn item_error(error: &TokenizeError) -> ReplyError {
    let code = match error {
        TokenizeError::TooLong { .. } => "input_too_long",
        TokenizeError::Failed(_) => "failed",
    };
    ReplyError::new(code, error.to_string())
}

mod claims;

/// Queues that the broker itself names for one client: direct replies, and exclusive queues without a name.
const CLIENTS_OWN: [&str; 2] = ["amq.rabbitmq.reply-to.", "amq.gen-"];

fn forbidden(field: &str, queue: &str) -> Refusal {
    let message = format!("{field} {queue:?} is not allowed; the operator allows one by --allow-reply-queue");
    Refusal::rejected("forbidden", message)
}

#[cfg(test)]
mod tests;
