//! Lines of an object → results, a window at a time, so that a large input never fills the line.
//!
//! In: a [`Reader`] and where its first line stands. Out: one result an item, in order; a bad line's is an error with the
//! line's number. What is read and unanswered is at most two windows, and only that counts as in flight: small jobs find
//! room beside it. It settles nothing.

use std::collections::VecDeque;
use std::time::Instant;

use inferq_shared::job::{Item, JobId, Parameters};
use inferq_shared::reply::{ItemResult, ReplyError};
use inferq_shared::telemetry::traces::Parent;
use tokio::sync::{mpsc, oneshot};

use super::lines::{self, Splitter};
use super::reader::{Ended, Reader};
use crate::assemble::Run;
use crate::in_flight::InFlight;
use crate::intake::Intake;
use crate::offload::Offload;
use crate::ticket::{ReleaseReason, Window, WindowEnd};

/// The most items of a window.
const WINDOW_ITEMS: usize = 512;
/// Windows of a job that are unanswered at once: one runs while the next is made.
const WINDOWS: usize = 2;
/// So many windows fill the line: a few large jobs together leave half of it to others.
const WINDOWS_A_LINE: usize = 8;
/// A guess before tokenising: English has about four bytes a token.
const BYTES_PER_TOKEN: usize = 4;

/// Whose lines, and how they are answered.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The job that items are named after.
    pub id: JobId,
    /// How items are answered.
    pub parameters: Parameters,
    /// The index of the first item.
    pub index: u32,
    /// After this instant nobody wants the answers.
    pub deadline: Option<Instant>,
    /// Bytes that ids and the rest of the reply may take; passing them ends the job.
    pub room: Option<usize>,
    /// The span of the job that asks, if it has one.
    pub trace: Option<Parent>,
}

/// Feeds windows to the line.
pub struct Feeder {
    /// Tokenises.
    pub intake: Intake,
    /// Where that is done.
    pub offload: Offload,
    /// What the worker holds.
    pub in_flight: InFlight,
    /// To dispatch.
    pub windows: mpsc::Sender<Window>,
}

/// What became of all items.
pub struct Computed {
    /// One result an item.
    pub results: Vec<ItemResult>,
    /// Where the time went.
    pub run: Run,
}

type Lines = VecDeque<Result<Item, ReplyError>>;

impl Feeder {
    /// Computes every item that `reader` brings.
    ///
    /// # Errors
    /// When not all could be answered.
    pub async fn compute(&self, asker: Asker, mut reader: Reader, mut splitter: Splitter) -> Result<Computed, Ended> {
        let mut work =
            Work { asker, lines: Lines::new(), sent: VecDeque::new(), results: Vec::new(), run: Run::default() };
        let mut ended = self.feed(&mut work, &mut reader, &mut splitter).await;
        // Whatever ended it: a window that is lost with a device must not go unnoticed.
        while let Some(answer) = work.sent.pop_front() {
            match answer.await {
                Err(_) => ended = Err(Ended::Lost),
                Ok(end) if ended.is_ok() => ended = work.take(end),
                Ok(_) => {}
            }
        }
        ended.map(|()| Computed { results: work.results, run: work.run })
    }

    async fn feed(&self, work: &mut Work, reader: &mut Reader, splitter: &mut Splitter) -> Result<(), Ended> {
        let limits = &self.intake.settings.limits;
        loop {
            let block = reader.next().await?;
            let is_last = block.is_none();
            let note = |line: lines::Line<'_>| {
                if !line.is_blank() {
                    work.lines.push_back(lines::item(&line, limits));
                }
                Ok::<(), std::convert::Infallible>(())
            };
            match &block {
                Some(block) => splitter.push(block, note),
                None => splitter.finish(note),
            }
            .unwrap_or_else(|never| match never {});
            while let Some(window) = work.next_window(self.window_bytes(), is_last) {
                self.send(work, window).await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Text of one window, so that a few large jobs leave room for others.
    fn window_bytes(&self) -> usize {
        (self.in_flight.tokens_max() / WINDOWS_A_LINE).max(1).saturating_mul(BYTES_PER_TOKEN)
    }

    async fn send(&self, work: &mut Work, lines: Vec<Result<Item, ReplyError>>) -> Result<(), Ended> {
        while work.sent.len() >= WINDOWS {
            let answer = work.sent.pop_front().expect("there are some");
            work.take(answer.await.map_err(|_| Ended::Lost)?)?;
        }
        let mut hold = self.in_flight.hold(lines.iter().map(bytes).sum());
        let (intake, asker) = (self.intake.clone(), work.asker.clone());
        let count = lines.len();
        let items = self.offload.run(move || intake.items(&asker.id, asker.index, asker.parameters, lines)).await;
        hold.set_tokens(items.iter().filter_map(|item| item.tokens.as_ref().ok()).map(|t| t.ids.len()).sum());
        work.make_room_for(items.iter().map(|item| item.id.len()).sum())?;
        let (back, answer) = oneshot::channel();
        let Asker { id, parameters, index, deadline, trace, .. } = work.asker.clone();
        let window = Window { id, parameters, index, items, deadline, hold, trace, back };
        // Dispatch is gone only when the device is lost or the drain limit has come.
        self.windows.send(window).await.map_err(|_| Ended::Released(ReleaseReason::DrainLimit))?;
        work.sent.push_back(answer);
        work.asker.index += u32::try_from(count).expect("a window is small");
        Ok(())
    }
}

fn bytes(line: &Result<Item, ReplyError>) -> usize {
    line.as_ref().map_or(0, |item| item.input.len_bytes())
}

/// What has been read, sent and answered.
struct Work {
    asker: Asker,
    lines: Lines,
    sent: VecDeque<oneshot::Receiver<WindowEnd>>,
    results: Vec<ItemResult>,
    run: Run,
}

impl Work {
    /// The next lines that make a window; fewer only at the end.
    fn next_window(&mut self, bytes_max: usize, is_last: bool) -> Option<Vec<Result<Item, ReplyError>>> {
        let (mut total, mut count) = (0, 0);
        while count < WINDOW_ITEMS && total < bytes_max {
            let Some(line) = self.lines.get(count) else { break };
            total += bytes(line);
            count += 1;
        }
        let is_full = count == WINDOW_ITEMS || total >= bytes_max;
        (count > 0 && (is_full || is_last)).then(|| self.lines.drain(..count).collect())
    }

    fn make_room_for(&mut self, bytes: usize) -> Result<(), Ended> {
        let Some(room) = &mut self.asker.room else { return Ok(()) };
        *room = room.checked_sub(bytes).ok_or_else(|| {
            let message = "the ids make the reply pass its limit: use shorter ids, fewer lines, or a bucket";
            Ended::Failed(ReplyError::new("limit_exceeded", message))
        })?;
        Ok(())
    }

    fn take(&mut self, end: WindowEnd) -> Result<(), Ended> {
        match end {
            WindowEnd::Answered(mut results, run) => {
                self.results.append(&mut results);
                self.run.waited = self.run.waited.max(run.waited);
                self.run.engine = self.run.engine.max(run.engine);
                Ok(())
            }
            WindowEnd::Released(reason) => Err(Ended::Released(reason)),
        }
    }
}
