//! Pure: one line of an input → a whole job, or why it is none.
//!
//! In: the bytes of a line without its end, the limits. Out: a [`Job`], or a [`BadLine`] that says what is wrong and keeps
//! the job's id where it could be read. Nothing of this crate is named here, so that the fuzzer can take the file alone.

use inferq_shared::job::line::BadLine;
use inferq_shared::job::{Job, Limits};
use inferq_shared::reply::ReplyError;

/// A line that is a whole job of the wire format.
///
/// # Errors
/// When it is none, passes a limit, or asks for its reply to go where nobody would collect it.
pub(super) fn job(line: &[u8], limits: &Limits) -> Result<Job, BadLine> {
    let bad = |id: Option<String>, code: &str, message: String| BadLine { id, error: ReplyError::new(code, message) };
    let job = Job::decode(line.trim_ascii(), limits)
        .map_err(|error| bad(error.id.map(|id| id.to_string()), error.kind.code(), error.message))?;
    if job.reply_to.is_some() {
        let message = "reply_to: the reply would not come to this submission: leave it out";
        return Err(bad(Some(job.id.to_string()), "invalid", message.to_owned()));
    }
    Ok(job)
}

#[cfg(test)]
mod tests;
