//! Finding one job or item in a ledger, by any of its names.
//!
//! In: a job's id, an item's own id, `<job id>/<index>`, or the name of a bad line. Out: the chunk it is in, and where.
//! An item's own id is looked for in every row: no index is kept for it, since it would cost every submission.

use inferq_shared::job::JobId;
use rusqlite::{OptionalExtension, Row};

use super::{Answered, Ledger, LedgerError, chunk_of_job};

/// What a ledger knows of a job or item.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The number of its chunk.
    pub chunk: u64,
    /// What was asked and what has come.
    pub answered: Answered,
    /// Which of the job's items was asked for, if it was not the job.
    pub item: Option<u64>,
    /// Which bad line was asked for: its index among all entries.
    pub bad: Option<u64>,
}

/// A place in the ledger.
#[derive(Debug, Clone, Copy, Default)]
struct Spot {
    chunk: u64,
    item: Option<u64>,
    bad: Option<u64>,
}

impl Ledger {
    /// The job or item called `name`; the first, if the input gives several items one id.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn look_up(&self, name: &str) -> Result<Option<Found>, LedgerError> {
        let spot = match self.by_job(name).map_err(self.named())? {
            Some(spot) => Some(spot),
            None => self.by_item(name).map_err(self.named())?,
        };
        let Some(spot) = spot else { return Ok(None) };
        self.found(spot)
    }

    /// By `<job id>`, `<job id>/<index>` and `<job id>/bad-<index>`.
    fn by_job(&self, name: &str) -> rusqlite::Result<Option<Spot>> {
        let (job, rest) = name.split_once('/').map_or((name, None), |(job, rest)| (job, Some(rest)));
        let Ok(job) = JobId::new(job) else { return Ok(None) };
        let submission = self.submission().unwrap_or_default();
        let chunk = chunk_of_job(&self.connection, self.own_ids, submission, &job)?;
        Ok(chunk.and_then(|chunk| spot(chunk, rest)))
    }

    /// By an id that the input gives.
    fn by_item(&self, name: &str) -> rusqlite::Result<Option<Spot>> {
        // The column is a JSON list, so an id stands in it as a JSON string.
        let quoted = serde_json::to_string(name).expect("a string is JSON");
        let mut select =
            self.connection.prepare("SELECT chunk, ids FROM jobs WHERE instr(ids, ?1) > 0 ORDER BY chunk")?;
        let mut rows = select.query([quoted])?;
        while let Some(row) = rows.next()? {
            let ids: Vec<Option<String>> = serde_json::from_str(&row.get::<_, String>(1)?).unwrap_or_default();
            if let Some(item) = ids.iter().position(|id| id.as_deref() == Some(name)) {
                return Ok(Some(Spot { chunk: row.get(0)?, item: Some(item as u64), bad: None }));
            }
        }
        let bad = |row: &Row<'_>| Ok(Spot { chunk: row.get(0)?, item: None, bad: Some(row.get(1)?) });
        let select = "SELECT chunk, position FROM bad WHERE id = ?1 ORDER BY position LIMIT 1";
        self.connection.query_row(select, [name], bad).optional()
    }

    fn found(&self, spot: Spot) -> Result<Option<Found>, LedgerError> {
        let Spot { chunk, item, bad } = spot;
        let Some(answered) = self.chunk(chunk)? else { return Ok(None) };
        let found = Found { chunk, answered, item, bad };
        let is_there = |found: &Found| {
            item.is_none_or(|item| item < found.answered.items)
                && bad.is_none_or(|bad| found.answered.bad.iter().any(|(index, ..)| *index == bad))
        };
        Ok(Some(found).filter(is_there))
    }
}

fn spot(chunk: u64, rest: Option<&str>) -> Option<Spot> {
    let spot = Spot { chunk, ..Spot::default() };
    let Some(rest) = rest else { return Some(spot) };
    match rest.strip_prefix("bad-") {
        Some(index) => Some(Spot { bad: Some(index.parse().ok()?), ..spot }),
        None => Some(Spot { item: Some(rest.parse().ok()?), ..spot }),
    }
}
