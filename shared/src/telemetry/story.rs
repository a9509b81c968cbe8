//! What happens to a job: counted, and told as log events, so that the logs of all workers tell one job's story.
//!
//! In: one call a step. Out: counters, and events of the target [`TARGET`] whose message is one of [`STEPS`] and whose
//! field `job.id` names the job. The ordinary steps are told at debug, the others at info. The messages and their fields
//! don't change: a command reads them. No step tells what is inside a job.

use std::time::{Duration, Instant};

use metrics::{counter, histogram};

use super::metric;
use crate::broker::BrokerError;
use crate::bucket::Uri;
use crate::job::JobId;
use crate::reply::{Reply, ReplyError};

/// The target of all steps, for a filter such as `info,inferq::job=debug`.
pub const TARGET: &str = "inferq::job";

/// A worker has the job. Fields `attempt`, `queued_ms`, `worker`.
pub const RECEIVED: &str = "job received";
/// A worker has it that is not the first. Fields as of [`RECEIVED`].
pub const RECEIVED_AGAIN: &str = "job received again";
/// Items of it are in a batch. Fields `job.items`, `batch.items`, `batch.padded_tokens`.
pub const BATCHED: &str = "job batched";
/// One of its items has an error instead of a result. Fields `item.index`, `error.code`.
pub const ITEM_FAILED: &str = "item failed";
/// Its reply is made. Fields `status`, `error.code`, `job.items`, `job.tokens`.
pub const ANSWERED: &str = "job answered";
/// Its results were an object already when a worker looked, before computing. Field `object.ours`: whether it answers
/// this very job.
pub const FOUND: &str = "object found";
/// Its results are an object. Fields `object.uri`, `object.bytes`, `object.new`: whether they were not there before.
pub const PUT: &str = "object put";
/// It was cut into shards, which are published. Fields `job.shards`, `job.items`.
pub const SPLIT: &str = "job split";
/// Its reply is confirmed and the job is done. Field `duration_ms`, from receiving to here.
pub const SETTLED: &str = "job settled";
/// It goes back to the queue, its attempt unspent. Fields `reason`, `delay_ms`.
pub const RELEASED: &str = "job released";
/// It goes back to the queue, its attempt spent: it may be what the device was lost on.
pub const DROPPED: &str = "job dropped";
/// It is answered without being run, because too many workers were lost that had it. Field `attempt`.
pub const EXHAUSTED: &str = "attempts exhausted";
/// It is a dead letter. Field `reason`.
pub const DEAD_LETTERED: &str = "job dead-lettered";
/// Its lease could not be settled: it comes again, here or elsewhere. Fields `verdict`, `error`.
pub const UNSETTLED: &str = "job not settled";

/// Every step, in the order in which a job can meet them.
pub const STEPS: [&str; 14] = [
    RECEIVED,
    RECEIVED_AGAIN,
    EXHAUSTED,
    FOUND,
    SPLIT,
    BATCHED,
    ITEM_FAILED,
    ANSWERED,
    PUT,
    SETTLED,
    RELEASED,
    DROPPED,
    DEAD_LETTERED,
    UNSETTLED,
];

/// Whether the ordinary steps are told, for callers to whom it costs something to say them.
pub fn is_told() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
}

/// A worker has a job, if its id can be told.
pub fn received(id: Option<&JobId>, attempt: u32, queued: Option<Duration>, worker: &str) {
    let (id, queued_ms) = (id.map(JobId::as_str), queued.map(millis));
    if attempt > 1 {
        tracing::info!(target: TARGET, { job.id = id, attempt, queued_ms, worker }, "{RECEIVED_AGAIN}");
    } else {
        tracing::debug!(target: TARGET, { job.id = id, attempt, queued_ms, worker }, "{RECEIVED}");
    }
}

/// So many items of a job are in a batch of so many.
pub fn batched(id: &JobId, items: usize, batch_items: usize, padded_tokens: usize) {
    tracing::debug!(
        target: TARGET, { job.id = id.as_str(), job.items = items, batch.items = batch_items,
        batch.padded_tokens = padded_tokens }, "{BATCHED}"
    );
}

/// An item has an error instead of a result.
pub fn item_failed(id: &JobId, index: u32, error: &ReplyError) {
    tracing::info!(target: TARGET, { job.id = id.as_str(), item.index = index, error.code = error.code }, "{ITEM_FAILED}");
}

/// A job has been tried as often as it may be.
pub fn exhausted(id: &JobId, attempt: u32) {
    tracing::info!(target: TARGET, { job.id = id.as_str(), attempt }, "{EXHAUSTED}");
}

/// A job's reply is made.
pub fn answered(reply: &Reply) {
    let code = reply.error.as_ref().map(|error| error.code.as_str());
    tracing::debug!(
        target: TARGET, { job.id = reply.id.as_str(), status = reply.status.as_str(), error.code = code,
        job.items = reply.usage.items, job.tokens = reply.usage.tokens }, "{ANSWERED}"
    );
}

/// A job's object was there before it was run.
pub fn found(id: &JobId, ours: bool) {
    counter!(metric::OBJECTS, "result" => "there already").increment(1);
    tracing::info!(target: TARGET, { job.id = id.as_str(), object.ours = ours }, "{FOUND}");
}

/// A job's object is there.
pub fn put(id: &JobId, uri: &Uri, bytes: usize, new: bool) {
    counter!(metric::OBJECTS, "result" => if new { "put" } else { "there already" }).increment(1);
    tracing::debug!(
        target: TARGET, { job.id = id.as_str(), object.uri = %uri, object.bytes = bytes, object.new = new }, "{PUT}"
    );
}

/// The reply to a job that was received at this instant is confirmed.
pub fn confirmed(reply: &Reply, received_at: Instant) {
    counter!(metric::JOBS, "outcome" => reply.status.as_str()).increment(1);
    histogram!(metric::JOB_SECONDS).record(received_at.elapsed().as_secs_f64());
    histogram!(metric::JOB_TOKENS).record(reply.usage.tokens as f64);
    let times = &reply.timings_ms;
    for (stage, ms) in
        [("queued", times.queued), ("intake", times.intake), ("batch", times.batch), ("engine", times.engine)]
    {
        histogram!(metric::STAGE_SECONDS, "stage" => stage).record(ms / 1e3);
    }
}

/// The lease on a job that was received at this instant, and whose reply is confirmed, is acked, or could not be.
pub fn acked(reply: &Reply, received_at: Instant, result: Result<(), BrokerError>) {
    if settled(Some(&reply.id), "ack", result) {
        let duration_ms = millis(received_at.elapsed());
        tracing::debug!(target: TARGET, { job.id = reply.id.as_str(), duration_ms }, "{SETTLED}");
    }
}

/// The lease on a job that was received at this instant, and whose answer others will send, is acked, or could not be.
pub fn done(id: &JobId, received_at: Instant, result: Result<(), BrokerError>) {
    if settled(Some(id), "ack", result) {
        let duration_ms = millis(received_at.elapsed());
        tracing::debug!(target: TARGET, { job.id = id.as_str(), duration_ms }, "{SETTLED}");
    }
}

/// A job was split into so many shards.
pub fn split(id: &JobId, shards: usize, items: u64) {
    tracing::info!(target: TARGET, { job.id = id.as_str(), job.shards = shards, job.items = items }, "{SPLIT}");
}

/// A job goes back to the queue, or could not be given back.
pub fn released(id: Option<&JobId>, reason: &'static str, after: Duration, result: Result<(), BrokerError>) {
    counter!(metric::RELEASES, "reason" => reason).increment(1);
    if settled(id, "release", result) {
        let id = id.map(JobId::as_str);
        tracing::info!(target: TARGET, { job.id = id, reason, delay_ms = millis(after) }, "{RELEASED}");
    }
}

/// A job's lease is dropped.
pub fn dropped(id: &JobId) {
    tracing::info!(target: TARGET, { job.id = id.as_str() }, "{DROPPED}");
}

/// A job becomes a dead letter, or could not. Only the first word of the reason is counted by.
pub fn dead_lettered(id: Option<&JobId>, reason: &str, result: Result<(), BrokerError>) {
    let word = reason.split(':').next().unwrap_or_default();
    counter!(metric::DEAD_LETTERS, "reason" => word.to_owned()).increment(1);
    if settled(id, "dead_letter", result) {
        tracing::warn!(target: TARGET, { job.id = id.map(JobId::as_str), reason }, "{DEAD_LETTERED}");
    }
}

/// Counts a settled lease, and tells when it could not be settled.
fn settled(id: Option<&JobId>, verdict: &'static str, result: Result<(), BrokerError>) -> bool {
    let word = match &result {
        Ok(()) => "ok",
        Err(BrokerError::LeaseLost) => "lease_lost",
        Err(_) => "failed",
    };
    counter!(metric::SETTLED, "verdict" => verdict, "result" => word).increment(1);
    if let Err(error) = &result {
        tracing::warn!(target: TARGET, { job.id = id.map(JobId::as_str), verdict, %error }, "{UNSETTLED}");
    }
    result.is_ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
