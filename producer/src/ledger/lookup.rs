//! Finding one job or item in a ledger, by any of its names.
//!
//! In: a job's id, an item's own id, `<job id>/<index>`, or the name of a bad line. Out: the chunk it is in, and where.
//! An item's own id is looked for in every row: no index is kept for it, since it would cost every submission.

use inferq_shared::job::JobId;
use rusqlite::{OptionalExtension, Row, params};

use super::{Answered, Ledger, LedgerError, chunk_of};

/// What a ledger knows of a job or item.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The number of its chunk.
    pub chunk: u64,
    /// Where in the input the chunk begins.
    pub place: String,
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
        let spot = match self.by_job(name) {
            Some(spot) => Some(spot),
            None => self.by_item(name).map_err(self.named())?,
        };
        let Some(spot) = spot else { return Ok(None) };
        self.found(spot).map_err(self.named())
    }

    /// By `<job id>`, `<job id>/<index>` and `<job id>/bad-<index>`.
    fn by_job(&self, name: &str) -> Option<Spot> {
        let submission = self.submission()?;
        let (job, rest) = name.split_once('/').map_or((name, None), |(job, rest)| (job, Some(rest)));
        let chunk = chunk_of(submission, &JobId::new(job).ok()?)?;
        let spot = Spot { chunk, ..Spot::default() };
        match rest {
            None => Some(spot),
            Some(rest) => match rest.strip_prefix("bad-") {
                Some(index) => Some(Spot { bad: Some(index.parse().ok()?), ..spot }),
                None => Some(Spot { item: Some(rest.parse().ok()?), ..spot }),
            },
        }
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

    fn found(&self, spot: Spot) -> rusqlite::Result<Option<Found>> {
        let submission = self.submission().unwrap_or_default().to_owned();
        let select =
            "SELECT j.chunk, j.first, j.items, j.ids, r.body, j.place FROM jobs j LEFT JOIN replies r USING (chunk)
            WHERE j.chunk = ?1";
        let Spot { chunk, item, bad } = spot;
        let found = |row: &Row<'_>| {
            Ok(Found { chunk, place: row.get(5)?, answered: self.answered(row, &submission)?, item, bad })
        };
        let found = self.connection.query_row(select, params![chunk], found).optional()?;
        let is_there = |found: &Found| {
            item.is_none_or(|item| item < found.answered.items)
                && bad.is_none_or(|bad| found.answered.bad.iter().any(|(index, ..)| *index == bad))
        };
        Ok(found.filter(is_there))
    }
}
