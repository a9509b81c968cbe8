//! One engine and the batches it runs: out of memory halves, any other failure bisects, a sick device ends the worker.
//!
//! In: a [`Batch`]. Out: a [`Ran`]: an answer or an error for each row, or the loss of the device. It never sees a lease.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use inferq_shared::reply::ReplyError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::batch::Batch;
use crate::engine::{Answer, Engine, EngineError, Tokens};

/// A resident engine and where it runs.
pub struct Replica {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Where it runs.
    pub host: Host,
}

/// Where an engine runs.
pub enum Host {
    /// On a thread of its own.
    Thread,
    /// On the runtime's thread, each batch taking as long as this function says. For the simulation.
    Inline(Cost),
}

/// How long a batch takes on the runtime's clock.
pub type Cost = Box<dyn FnMut(&Batch) -> Duration + Send>;

/// A batch that has run.
#[derive(Debug)]
pub struct Ran {
    /// Which replica ran it.
    pub lane: usize,
    /// What ran.
    pub batch: Batch,
    /// One answer a row, in order, or why the device is lost.
    pub outcome: Result<Vec<RowAnswer>, String>,
    /// When it started.
    pub started: Instant,
    /// How long it took.
    pub took: Duration,
}

/// What a row is answered with.
pub type RowAnswer = Result<Answer, ReplyError>;

/// Runs batches on this thread until the channel of batches ends or nobody wants the answers. Checks the device with a
/// batch every `check_every`, before its answers are believed.
pub fn run_on_thread(
    lane: usize,
    mut engine: Box<dyn Engine>,
    mut batches: mpsc::Receiver<Batch>,
    ran: &mpsc::Sender<Ran>,
    check_every: Duration,
) {
    let mut checked = Instant::now();
    while let Some(batch) = batches.blocking_recv() {
        let started = Instant::now();
        let is_due = started - checked >= check_every;
        // A panic is a bug: it ends the worker like a lost device, instead of leaving its jobs to hang.
        let outcome = catch_unwind(AssertUnwindSafe(|| run_checked(engine.as_mut(), &batch, is_due)))
            .unwrap_or_else(|_| Err("the engine panicked".to_owned()));
        if is_due {
            checked = started;
        }
        let ended = outcome.is_err();
        let answered = ran.blocking_send(Ran { lane, batch, outcome, started, took: started.elapsed() });
        if ended || answered.is_err() {
            return;
        }
    }
}

/// Runs batches as a task, on the runtime's clock, until working stops: as a process ends without its threads.
pub async fn run_inline(
    lane: usize,
    mut engine: Box<dyn Engine>,
    mut cost: Cost,
    mut batches: mpsc::Receiver<Batch>,
    ran: mpsc::Sender<Ran>,
    (working, check_every): (CancellationToken, Duration),
) {
    let mut checked = tokio::time::Instant::now();
    while let Some(batch) = batches.recv().await {
        let started = tokio::time::Instant::now();
        let is_due = started - checked >= check_every;
        tokio::select! {
            biased;
            () = tokio::time::sleep(cost(&batch)) => {}
            () = working.cancelled() => return,
        }
        let outcome = run_checked(engine.as_mut(), &batch, is_due);
        if is_due {
            checked = started;
        }
        let ended = outcome.is_err();
        let ran_batch = Ran { lane, batch, outcome, started: started.into_std(), took: started.elapsed() };
        if ran.send(ran_batch).await.is_err() || ended {
            return;
        }
    }
}

fn run_checked(engine: &mut dyn Engine, batch: &Batch, is_due: bool) -> Result<Vec<RowAnswer>, String> {
    let answers = run(engine, batch)?;
    if is_due {
        engine.check().map_err(|error| error.to_string())?;
    }
    Ok(answers)
}

/// Runs one batch to the end: every row gets an answer or an error, or the device is lost.
///
/// # Errors
/// Why the device is lost.
pub fn run(engine: &mut dyn Engine, batch: &Batch) -> Result<Vec<RowAnswer>, String> {
    let rows: Vec<&Tokens> = batch.rows().iter().map(|row| &*row.tokens).collect();
    let mut run = Run { engine, checked: false, answers: Vec::with_capacity(rows.len()) };
    run.rows(&rows)?;
    assert_eq!(run.answers.len(), rows.len(), "every row is answered once");
    Ok(run.answers)
}

struct Run<'a> {
    engine: &'a mut dyn Engine,
    /// The device has been checked since the batch's first failure.
    checked: bool,
    answers: Vec<RowAnswer>,
}

impl Run<'_> {
    fn rows(&mut self, rows: &[&Tokens]) -> Result<(), String> {
        match self.engine.infer(rows) {
            Ok(answers) if answers.len() == rows.len() => {
                self.answers.extend(answers.into_iter().map(Ok));
                Ok(())
            }
            Ok(answers) => Err(format!("the engine gave {} answers to {} items", answers.len(), rows.len())),
            Err(EngineError::DeviceLost(reason)) => Err(reason),
            Err(EngineError::OutOfMemory(reason)) => {
                self.halves(rows, &format!("out of memory on this item alone: {reason}"))
            }
            Err(EngineError::Failed(reason)) => {
                self.check()?;
                self.halves(rows, &reason)
            }
        }
    }

    /// Once a batch: is it the batch, or the device?
    fn check(&mut self) -> Result<(), String> {
        if self.checked {
            return Ok(());
        }
        self.checked = true;
        self.engine.check().map_err(|error| error.to_string())
    }

    fn halves(&mut self, rows: &[&Tokens], reason: &str) -> Result<(), String> {
        if let [_] = rows {
            self.answers.push(Err(ReplyError::new("failed", format!("the model failed on this item: {reason}"))));
            return Ok(());
        }
        if crate::mutant::active("no_bisect") {
            let error = ReplyError::new("failed", reason.to_owned());
            self.answers.extend(rows.iter().map(|_| Err(error.clone())));
            return Ok(());
        }
        let (first, second) = rows.split_at(rows.len() / 2);
        self.rows(first)?;
        self.rows(second)
    }
}

#[cfg(test)]
mod tests;
