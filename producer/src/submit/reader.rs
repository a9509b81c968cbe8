//! The reader of a submission: input → entries → chunks → jobs, in groups.
//!
//! In: a checked input and what its jobs say. Out: [`Group`]s in input order, until the input ends or nobody takes them.
//! It runs on a thread of its own, which blocks on files and on the channel; what is ahead of the publisher is bounded.

use inferq_shared::broker::Message;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::check::CheckedInput;
use crate::chunk::{Chunk, Chunker};
use crate::ledger::Confirmed;
use crate::outcome::Error;
use crate::recipe::Recipe;

/// A publish carries no more jobs than this,
const GROUP_JOBS: usize = 256;
/// and no more bytes, unless one job alone has more.
const GROUP_BYTES: usize = 4 << 20;

/// Jobs that are published together.
#[derive(Default)]
pub(super) struct Group {
    /// What the ledger keeps of each job, and what is published.
    pub(super) jobs: Vec<(Confirmed, Option<Message>)>,
    /// Lines for people, about what was read.
    pub(super) notes: Vec<String>,
    /// The share of the input that has been read.
    pub(super) fraction: Option<f64>,
    /// Of the bodies.
    pub(super) bytes: usize,
}

/// Reads the whole input into groups. The last thing sent is why reading ended, if that is an error.
pub(super) fn read(
    input: CheckedInput,
    recipe: &Recipe,
    submission: &str,
    groups: &mpsc::Sender<Result<Group, Error>>,
) {
    if let Err(error) = send_all(input, recipe, submission, groups) {
        // Nobody takes it: the submission has ended already.
        let _ = groups.blocking_send(Err(error));
    }
}

fn send_all(
    input: CheckedInput,
    recipe: &Recipe,
    submission: &str,
    groups: &mpsc::Sender<Result<Group, Error>>,
) -> Result<(), Error> {
    let CheckedInput { mut source, mut check } = input;
    let mut chunker = Chunker::new(recipe.chunk_limits());
    let mut group = Group::default();
    while let Some(entry) = source.next_entry()? {
        group.notes.extend(check.see(&entry)?);
        if let Some(chunk) = chunker.push(entry) {
            group.add(chunk, recipe, submission);
        }
        if group.is_full() {
            let full = Group { fraction: source.fraction_read(), ..std::mem::take(&mut group) };
            if groups.blocking_send(Ok(full)).is_err() {
                return Ok(());
            }
        }
    }
    if let Some(chunk) = chunker.finish() {
        group.add(chunk, recipe, submission);
    }
    group.notes.extend(check.more_bad_lines());
    let sent = groups.blocking_send(Ok(Group { fraction: Some(1.0), ..group }));
    if sent.is_ok() { check.end(None) } else { Ok(()) }
}

impl Group {
    fn add(&mut self, chunk: Chunk, recipe: &Recipe, submission: &str) {
        let confirmed = Confirmed::of(&chunk);
        let message = recipe.message_of(submission, chunk.number, chunk.work, Timestamp::now());
        self.bytes += message.as_ref().map_or(0, |message| message.body.len());
        self.jobs.push((confirmed, message));
    }

    fn is_full(&self) -> bool {
        self.jobs.len() >= GROUP_JOBS || self.bytes >= GROUP_BYTES
    }
}
