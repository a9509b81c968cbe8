//! Item answers → the job's reply, in input order.
//!
//! Pure. In: a ticket, then an answer for each of its items that runs. Out: one [`Answered`]. It applies what belongs
//! to an item rather than to a run: `dimensions`, then `normalize`, then the encoding.

use std::time::Duration;

use inferq_shared::job::{Encoding, JobId, Parameters, VERSION};
use inferq_shared::reply::{Embedding, ItemResult, Label, Reply, ReplyError, Status, Timings, Usage};
use inferq_shared::telemetry::traces::Parent;
use tokio::sync::oneshot;

use crate::engine::{Answer, ModelInfo};
use crate::in_flight::Hold;
use crate::ticket::{Answered, Case, Outbound, ReleaseReason, Ticket, TicketItem, Window, WindowEnd};

/// What every reply of this worker says of its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The model's name.
    pub model: String,
    /// The model's revision.
    pub revision: String,
    /// The worker's name.
    pub worker: String,
}

impl Signature {
    /// The signature of `worker`, running the model that `info` describes.
    pub fn new(info: &ModelInfo, worker: impl Into<String>) -> Self {
        Self { model: info.name.clone(), revision: info.revision.clone(), worker: worker.into() }
    }

    /// The reply to a job that was not run.
    pub fn refusal(&self, case: &Case, items: usize, status: Status, error: ReplyError) -> Reply {
        Reply { status, error: Some(error), ..self.uncomputed(case, items) }
    }

    /// A reply to a job whose items were not run here; what became of it is still to be said.
    pub fn uncomputed(&self, case: &Case, items: usize) -> Reply {
        let usage = Usage { items: u32::try_from(items).unwrap_or(u32::MAX), tokens: 0 };
        self.reply(case, Status::Rejected, usage, Run::default())
    }

    /// The reply to a job whose every item has a result.
    pub fn whole(&self, case: &Case, results: Vec<ItemResult>, run: Run) -> Reply {
        match tally(&results) {
            (Status::Expired, usage) => self.refusal(
                case,
                usage.items as usize,
                Status::Expired,
                ReplyError::new("expired", "the job's deadline passed while it waited for the engine"),
            ),
            (status, usage) => Reply { results, ..self.reply(case, status, usage, run) },
        }
    }

    fn reply(&self, case: &Case, status: Status, usage: Usage, run: Run) -> Reply {
        Reply {
            version: VERSION,
            id: case.id.clone(),
            status,
            model: self.model.clone(),
            revision: self.revision.clone(),
            results: Vec::new(),
            error: None,
            output_uri: None,
            usage,
            timings_ms: Timings {
                queued: millis(case.queued),
                intake: millis(case.intake),
                batch: millis(run.waited),
                engine: millis(run.engine),
            },
            worker: self.worker.clone(),
            attempt: case.attempt,
            metadata: case.metadata.clone(),
        }
    }
}

/// Where a row's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Waiting for its batch to start.
    pub waited: Duration,
    /// Running.
    pub engine: Duration,
}

/// A job, or a window of one, whose items are being answered.
#[derive(Debug)]
pub struct Open {
    owner: Owner,
    items: Vec<TicketItem>,
    answers: Vec<Option<Result<Answer, ReplyError>>>,
    missing: usize,
    run: Run,
}

/// Who is told in the end.
#[derive(Debug)]
enum Owner {
    /// The submitter, by a reply.
    Job(Case),
    /// Who reads the rest of the job's inputs.
    Reader(Reader),
}

#[derive(Debug)]
struct Reader {
    id: JobId,
    parameters: Parameters,
    index: u32,
    hold: Hold,
    trace: Option<Parent>,
    back: oneshot::Sender<WindowEnd>,
}

impl Open {
    /// A ticket's items, those that never ran being answered already.
    pub fn new(ticket: Ticket) -> Self {
        let Ticket { case, items, .. } = ticket;
        Self::of(Owner::Job(case), items)
    }

    /// A window's items, likewise.
    pub fn of_window(window: Window) -> Self {
        let Window { id, parameters, index, items, hold, trace, back, .. } = window;
        Self::of(Owner::Reader(Reader { id, parameters, index, hold, trace, back }), items)
    }

    fn of(owner: Owner, items: Vec<TicketItem>) -> Self {
        let answers: Vec<_> =
            items.iter().map(|item| item.tokens.as_ref().err().map(|error| Err(error.clone()))).collect();
        let missing = answers.iter().filter(|answer| answer.is_none()).count();
        Self { owner, items, answers, missing, run: Run::default() }
    }

    /// Whether every item is answered.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Answers one item; a second answer to the same item is ignored.
    pub fn answer(&mut self, index: u32, answer: Result<Answer, ReplyError>, run: Run) {
        let slot = &mut self.answers[index as usize];
        if slot.is_none() {
            *slot = Some(answer);
            self.missing -= 1;
        }
        self.run.waited = self.run.waited.max(run.waited);
        self.run.engine = self.run.engine.max(run.engine);
    }

    /// The reply to a complete job; a window's reader is told at once.
    pub fn finish(self, signature: &Signature) -> Option<Outbound> {
        let Self { owner, items, answers, run, .. } = self;
        let answers = answers.into_iter().map(|answer| answer.expect("a complete job has every answer"));
        let results = |first: u32, parameters| {
            let result = |(index, (item, answer))| item_result(index, item, answer, parameters);
            (first..).zip(items.into_iter().zip(answers)).map(result).collect()
        };
        match owner {
            Owner::Job(mut case) => {
                case.trace.skip();
                let reply = signature.whole(&case, results(0, case.parameters), run);
                case.trace.stage("assemble");
                Some(Outbound::Reply(Box::new(case.answered(reply))))
            }
            Owner::Reader(Reader { parameters, index, hold, back, .. }) => {
                // A reader that is gone wants no answers.
                let _ = back.send(WindowEnd::Answered(results(index, parameters), run));
                drop(hold);
                None
            }
        }
    }

    /// Gives the job back unanswered and unspent; a window's reader is told at once.
    pub fn release(self, reason: ReleaseReason) -> Option<Outbound> {
        match self.owner {
            Owner::Job(case) => Some(case.release(reason)),
            Owner::Reader(Reader { hold, back, .. }) => {
                let _ = back.send(WindowEnd::Released(reason));
                drop(hold);
                None
            }
        }
    }

    /// Lets go of the job, its attempt spent: the device was lost on it.
    pub fn lose(self) {
        if let Owner::Job(case) = self.owner {
            case.trace.fail("dropped", "device_lost");
        }
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        match &self.owner {
            Owner::Job(case) => &case.id,
            Owner::Reader(reader) => &reader.id,
        }
    }

    /// The job's span, if it has one.
    pub fn trace(&self) -> Option<&Parent> {
        match &self.owner {
            Owner::Job(case) => case.trace.parent(),
            Owner::Reader(reader) => reader.trace.as_ref(),
        }
    }
}

impl Case {
    /// Ends the case with its reply.
    pub fn answered(self, reply: Reply) -> Answered {
        let Self { route, object, trace, correlation_id, submission, lease, hold, at, .. } = self;
        // Without results there is nothing to put.
        let object = object.filter(|_| !reply.results.is_empty());
        Answered { reply, route, object, trace, correlation_id, submission, lease, hold, at }
    }
}

/// How items together ended, and what was counted.
pub fn tally(results: &[ItemResult]) -> (Status, Usage) {
    let ran = results.iter().filter(|result| result.error.is_none());
    let usage = Usage {
        items: u32::try_from(results.len()).unwrap_or(u32::MAX),
        tokens: ran.filter_map(|result| result.tokens).map(u64::from).sum(),
    };
    (overall(results), usage)
}

/// How the job as a whole ended, from how its items did.
fn overall(results: &[ItemResult]) -> Status {
    let failed = results.iter().filter_map(|result| result.error.as_ref());
    let expired = failed.clone().filter(|error| error.code == "expired").count();
    match failed.count() {
        0 => Status::Succeeded,
        _ if expired == results.len() => Status::Expired,
        all if all == results.len() => Status::Failed,
        _ => Status::Partial,
    }
}

fn item_result(index: u32, item: TicketItem, answer: Result<Answer, ReplyError>, parameters: Parameters) -> ItemResult {
    let tokens = item.tokens.as_ref().ok().map(|tokens| u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX));
    let mut result = ItemResult { id: item.id, index, embedding: None, labels: None, error: None, tokens };
    match answer {
        Ok(Answer::Embedding(raw)) => match embedding(&raw, parameters) {
            Some(embedding) => result.embedding = Some(embedding),
            None => result.error = Some(ReplyError::new("failed", "the model's embedding is not finite")),
        },
        Ok(Answer::Labels(labels)) => {
            result.labels =
                Some(labels.iter().map(|(label, score)| Label { label: label.clone(), score: *score }).collect());
        }
        Err(error) => result.error = Some(error),
    }
    result
}

/// Cuts, scales and encodes; nothing where a number is not finite, which JSON could not carry.
fn embedding(raw: &[f32], parameters: Parameters) -> Option<Embedding> {
    let kept = parameters.dimensions.map_or(raw.len(), |wanted| (wanted as usize).min(raw.len()));
    let mut values = raw[..kept].to_vec();
    if parameters.normalize {
        normalize(&mut values);
    }
    let finite = values.iter().all(|value| value.is_finite());
    finite.then_some(match parameters.encoding {
        Encoding::Float => Embedding::Float(values),
        Encoding::Base64 => Embedding::Base64(values),
    })
}

/// Scales to length 1; a vector of zeros stays as it is, as in PyTorch's `normalize`.
fn normalize(values: &mut [f32]) {
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt().max(1e-12);
    for value in values {
        *value = (f64::from(*value) / length) as f32;
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests;
