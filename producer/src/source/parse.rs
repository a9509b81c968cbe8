//! Pure: one line of an input → a whole job, or why it is none.
//!
//! In: the bytes of a line without its end, the limits. Out: a [`Job`], or a [`BadLine`] that says what is wrong and keeps
//! the job's id where it could be read. Nothing of this crate is named here, so that the fuzzer can take the file alone.

use inferq_shared::bucket::Uri;
use inferq_shared::job::line::BadLine;
use inferq_shared::job::{Job, Limits, ReplyTo};
use inferq_shared::reply::ReplyError;

/// A line that is a whole job of the wire format.
///
/// # Errors
/// When it is none, passes a limit, or asks for its reply to go where nobody would collect it.
pub(super) fn job(line: &[u8], limits: &Limits) -> Result<Job, BadLine> {
    let bad = |id: Option<String>, code: &str, message: String| BadLine { id, error: ReplyError::new(code, message) };
    let job = Job::decode(line.trim_ascii(), limits)
        .map_err(|error| bad(error.id.map(|id| id.to_string()), error.kind.code(), error.message))?;
    match refused(job.reply_to.as_ref()) {
        Some(why) => Err(bad(Some(job.id.to_string()), "invalid", why)),
        None => Ok(job),
    }
}

/// Why a job can't ask for its reply there, if it can't. Results in a bucket are well: what points at them comes to the
/// submission all the same.
fn refused(reply_to: Option<&ReplyTo>) -> Option<String> {
    match reply_to? {
        ReplyTo::Queue(_) => {
            Some("reply_to.queue: the reply would not come to this submission: leave it out".to_owned())
        }
        ReplyTo::Bucket { prefix, .. } => Uri::parse(prefix).err().map(|why| format!("reply_to.uri {why}")),
    }
}

#[cfg(test)]
mod tests;
