//! Pure: a chunk and its job's reply become the rows of the output, one an entry, in input order.
//!
//! In: what the ledger knows of a chunk ([`Answered`]). Out: [`Row`]s, and what a summary wants to know of them
//! ([`Tally`]). A job that was not run as a whole gives every one of its items the job's error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use inferq_shared::columns;
use inferq_shared::job::{Encoding, JobId};
use inferq_shared::reply::{Embedding, ItemResult, Label, Reply, ReplyError, Timings};
use serde::Serialize;

use crate::ledger::Answered;
use crate::outcome::Error;

/// One item's row.
#[derive(Debug, PartialEq, Serialize)]
pub struct Row {
    /// The item's own id, else `<job id>/<its place in the job>`.
    pub id: String,
    /// The item's place in the input, from 0.
    pub index: u64,
    /// Its vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
    /// A classifier's scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Label>>,
    /// Why there is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyError>,
    /// Tokens the model read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
}

/// One line of the list of failures.
#[derive(Debug, PartialEq, Serialize)]
pub struct Failure<'a> {
    /// The row's id.
    pub id: &'a str,
    /// The row's index.
    pub index: u64,
    /// Where the entry stands in the input.
    pub place: String,
    /// The error's code.
    pub code: &'a str,
    /// The error's message.
    pub message: &'a str,
}

/// What many rows have in common. Sums of parts are the whole, in any order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Rows with an error, by its code.
    pub failed: BTreeMap<String, u64>,
    /// The jobs that took a worker longest, the longest first.
    pub slowest: Vec<Slow>,
    /// What computed them: models and revisions.
    pub origins: BTreeSet<(String, String)>,
}

/// A job and where its time went.
#[derive(Debug, Clone, PartialEq)]
pub struct Slow {
    /// Which job.
    pub job: JobId,
    /// In milliseconds.
    pub timings: Timings,
}

/// The rows of one chunk.
#[derive(Debug)]
pub struct Rows {
    /// One an entry.
    pub rows: Vec<Row>,
    /// The chunk's place in the input, which a row's place is counted from.
    place: String,
    /// The index of the entry that stands there.
    place_index: u64,
}

/// Slow jobs that are kept.
const SLOWEST: usize = 5;
/// Models and revisions that are kept: more than one is unusual, many are a mistake.
const ORIGINS: usize = 16;

impl Tally {
    /// Adds another part.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        for (code, rows) in other.failed {
            *self.failed.entry(code).or_default() += rows;
        }
        for origin in other.origins {
            self.add_origin(origin);
        }
        self.slowest.extend(other.slowest);
        self.slowest.sort_by(|a, b| b.work_ms().total_cmp(&a.work_ms()).then_with(|| a.job.cmp(&b.job)));
        // A job that comes in pieces is one job.
        self.slowest.dedup_by(|one, other| one.job == other.job);
        self.slowest.truncate(SLOWEST);
    }

    /// Rows with an error.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// What computed them, as a file's metadata names it.
    pub fn models(&self) -> String {
        joined(self.origins.iter().map(|(model, _)| model.as_str()))
    }

    /// The revisions of those models.
    pub fn revisions(&self) -> String {
        joined(self.origins.iter().map(|(_, revision)| revision.as_str()))
    }

    fn add_origin(&mut self, origin: (String, String)) {
        if self.origins.len() < ORIGINS {
            self.origins.insert(origin);
        }
    }

    fn of(rows: &[Row], reply: Option<&Head>) -> Self {
        let mut tally = Self { rows: rows.len() as u64, ..Self::default() };
        for error in rows.iter().filter_map(|row| row.error.as_ref()) {
            *tally.failed.entry(error.code.clone()).or_default() += 1;
        }
        if let Some(head) = reply {
            tally.slowest.push(head.slow.clone());
            if head.ran {
                tally.add_origin(head.origin.clone());
            }
        }
        tally
    }
}

fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    names.dedup();
    names.join(", ")
}

impl Slow {
    /// From receiving to answering; what it waited in the queue is the backlog's doing.
    fn work_ms(&self) -> f64 {
        self.timings.intake + self.timings.batch + self.timings.engine
    }
}

/// What a reply says besides its results.
struct Head {
    slow: Slow,
    origin: (String, String),
    /// Whether anything was computed.
    ran: bool,
}

impl Rows {
    /// Makes the rows of `answered`, and counts them.
    ///
    /// # Errors
    /// When the ledger's reply is none.
    pub fn of(answered: Answered) -> Result<(Self, Tally), Error> {
        let Answered { job, first, place, place_index, items, mut ids, bad, reply, .. } = answered;
        ids.resize(items as usize, None);
        let reply = match reply {
            Some(body) => Some(Reply::decode(&body).map_err(|error| unreadable(&job, &error))?),
            None if items == 0 => None,
            None => return Err(unreadable(&job, &"it has no reply")),
        };
        let head = reply.as_ref().map(|reply| Head {
            slow: Slow { job: job.clone(), timings: reply.timings_ms },
            origin: (reply.model.clone(), reply.revision.clone()),
            ran: reply.results.iter().any(|result| result.error.is_none()),
        });
        let mut answers = reply.map_or_else(Vec::new, |reply| answers(reply, items)).into_iter().zip(ids).enumerate();
        let mut bad = bad.into_iter().peekable();
        let entries = first..first + items + bad.len() as u64;
        let row = |index| {
            if let Some((_, id, error)) = bad.next_if(|(at, _, _)| *at == index) {
                let id = id.unwrap_or_else(|| format!("{job}/bad-{index}"));
                return Some(Row { id, index, embedding: None, labels: None, error: Some(error), tokens: None });
            }
            let (at, (answer, id)) = answers.next()?;
            let ItemResult { embedding, labels, error, tokens, .. } = answer;
            let id = id.unwrap_or_else(|| format!("{job}/{at}"));
            Some(Row { id, index, embedding, labels, error, tokens })
        };
        let rows: Vec<Row> = entries.map_while(row).collect();
        let tally = Tally::of(&rows, head.as_ref());
        Ok((Self { rows, place, place_index }, tally))
    }

    /// Those that are errors, for the list of failures.
    pub fn failures(&self) -> impl Iterator<Item = Failure<'_>> {
        self.rows.iter().filter_map(move |row| {
            let ReplyError { code, message } = row.error.as_ref()?;
            let place = place_of(&self.place, row.index - self.place_index);
            Some(Failure { id: &row.id, index: row.index, place, code, message })
        })
    }
}

impl<'a> From<&'a Row> for columns::Row<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            id: &row.id,
            index: row.index,
            embedding: row.embedding.as_ref(),
            labels: row.labels.as_deref(),
            error: row.error.as_ref(),
            tokens: row.tokens,
        }
    }
}

impl Row {
    /// The row with its embedding written in `encoding`.
    pub fn encoded(mut self, encoding: Encoding) -> Self {
        self.embedding = self.embedding.map(|embedding| match (embedding, encoding) {
            (Embedding::Base64(values), Encoding::Float) => Embedding::Float(values),
            (Embedding::Float(values), Encoding::Base64) => Embedding::Base64(values),
            (embedding, _) => embedding,
        });
        self
    }
}

/// Where an entry stands: the ledger knows where its chunk begins.
fn place_of(chunk: &str, entries_before: u64) -> String {
    match entries_before {
        0 => chunk.to_owned(),
        1 => format!("{chunk}, 1 entry further"),
        _ => format!("{chunk}, {entries_before} entries further"),
    }
}

/// A job's answers, one an item; the job's own error for each when it was not run.
fn answers(reply: Reply, items: u64) -> Vec<ItemResult> {
    if !reply.results.is_empty() {
        return reply.results;
    }
    let error =
        reply.error.unwrap_or_else(|| ReplyError::new("no_result", "the reply holds neither results nor an error"));
    let result = |index| ItemResult {
        id: String::new(),
        index: index as u32,
        embedding: None,
        labels: None,
        error: Some(error.clone()),
        tokens: None,
    };
    (0..items).map(result).collect()
}

fn unreadable(job: &JobId, why: &dyn Display) -> Error {
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_string());
    Error::io(format!("the ledger's reply to {job}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(job: u32, engine: f64, code: Option<&str>) -> Tally {
        let timings = Timings { engine, queued: 1e9 - engine, ..Timings::default() };
        let job = JobId::new(format!("s-{job:06}")).expect("an id");
        Tally {
            rows: 2,
            failed: code.map(|code| (code.to_owned(), 1)).into_iter().collect(),
            slowest: vec![Slow { job, timings }],
            origins: [("m".to_owned(), "r".to_owned())].into(),
        }
    }

    #[test]
    fn parts_add_up_in_any_order_and_the_slowest_jobs_stay() {
        let parts: Vec<Tally> =
            (0..9).map(|job| part(job, f64::from(job * 7 % 9), (job % 2 == 0).then_some("failed"))).collect();
        let (mut forwards, mut backwards) = (Tally::default(), Tally::default());
        parts.iter().cloned().for_each(|part| forwards.add(part));
        parts.into_iter().rev().for_each(|part| backwards.add(part));
        assert_eq!(forwards, backwards);
        assert_eq!((forwards.rows, forwards.failures()), (18, 5));
        let engine: Vec<f64> = forwards.slowest.iter().map(|slow| slow.timings.engine).collect();
        assert_eq!(engine, [8.0, 7.0, 6.0, 5.0, 4.0], "the wait in the queue does not count");
    }

    #[test]
    fn a_later_piece_of_a_job_counts_from_where_the_job_begins_and_is_no_second_slow_job() {
        let job = JobId::new("s-000000").expect("an id");
        let body = r#"{"version":1,"id":"s-000000","status":"failed","model":"","revision":"",
            "results":[{"id":"a","index":0,"error":{"code":"malformed","message":"no"}}],
            "error":null,"output_uri":null,"usage":{"items":1,"tokens":0},
            "timings_ms":{"queued":0,"intake":0,"batch":0,"engine":0},"worker":"w","attempt":1,"metadata":{}}"#;
        let piece = |first| Answered {
            job: job.clone(),
            first,
            place: "f line 1".to_owned(),
            place_index: 0,
            items: 1,
            ids: vec![None],
            bad: Vec::new(),
            reply: Some(body.into()),
            elsewhere: true,
        };
        let (rows, mut tally) = Rows::of(piece(4000)).expect("rows");
        let places: Vec<_> = rows.failures().map(|failure| failure.place).collect();
        assert_eq!(places, ["f line 1, 4000 entries further"]);
        tally.add(Rows::of(piece(0)).expect("rows").1);
        assert_eq!(tally.slowest.len(), 1);
    }

    #[test]
    fn a_job_s_own_error_is_each_item_s_and_bad_lines_stand_between_them() {
        let job = JobId::new("s-000003").expect("an id");
        let error = ReplyError::new("malformed", "f line 6: no");
        let body = r#"{"version":1,"id":"s-000003","status":"rejected","model":"","revision":"","results":[],
            "error":{"code":"no_worker","message":"nobody"},"output_uri":null,"usage":{"items":2,"tokens":0},
            "timings_ms":{"queued":0,"intake":0,"batch":0,"engine":0},"worker":"w","attempt":1,"metadata":{}}"#;
        let answered = Answered {
            job,
            first: 10,
            place: "f line 5".to_owned(),
            place_index: 10,
            items: 2,
            ids: vec![Some("a".to_owned()), None],
            bad: vec![(11, None, error)],
            reply: Some(body.into()),
            elsewhere: false,
        };
        let (rows, tally) = Rows::of(answered).expect("rows");
        let ids: Vec<&str> = rows.rows.iter().map(|row| &*row.id).collect();
        assert_eq!(ids, ["a", "s-000003/bad-11", "s-000003/1"]);
        let failures: Vec<_> = rows.failures().map(|failure| (failure.code.to_owned(), failure.place)).collect();
        let expected = [("no_worker", "f line 5"), ("malformed", "f line 5, 1 entry further")];
        assert_eq!(failures[..2], expected.map(|(code, place)| (code.to_owned(), place.to_owned())));
        assert_eq!((tally.rows, tally.failures(), tally.origins.len()), (3, 3, 0));
    }
}
