//! What anybody may hand in, and what comes of it: each row of one table is given to the real binaries, and the same
//! table stands in docs/operations.md.
//!
//! `bad_input/` holds the rows by who is given what: a worker a [`jobs`] message, in any
//! form that [`amqp`] has, a producer a [`lines`] of input or a
//! whole [`commands`] line, a worker a [`models`] directory. To add a row, add it there; `UPDATE_DOCS=1 make test`
//! writes the document.

use std::fmt;
use std::process::Output;

use inferq_shared::reply::{Reply, Status};
use serde_json::Value;

use crate::documents::check_block;

mod amqp;
mod commands;
mod jobs;
mod lines;
mod models;

/// What comes of a row. `says` is a part of the message, as short as tells the reader what is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// It is no bad input at all.
    Succeeded,
    /// The job runs, and an item of it is answered with this error; or a line becomes a row with it.
    Item { code: &'static str, says: &'static str },
    /// The job as a whole is answered with this error.
    Refused { status: Status, code: &'static str, says: &'static str },
    /// The job can't be answered: a dead letter with this reason.
    Dead { reason: &'static str, says: &'static str },
    /// The process ends.
    Exit { code: i32, says: &'static str },
}

const fn item(code: &'static str, says: &'static str) -> Answer {
    Answer::Item { code, says }
}

const fn rejected(code: &'static str, says: &'static str) -> Answer {
    Answer::Refused { status: Status::Rejected, code, says }
}

const fn dead(reason: &'static str, says: &'static str) -> Answer {
    Answer::Dead { reason, says }
}

const fn exit(code: i32, says: &'static str) -> Answer {
    Answer::Exit { code, says }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => write!(f, "succeeds"),
            Self::Item { code, says } => write!(f, "item error `{code}`: {says}"),
            Self::Refused { status, code, says } if status.as_str() == *code => write!(f, "reply `{code}`: {says}"),
            Self::Refused { status, code, says } => write!(f, "reply `{}`, `{code}`: {says}", status.as_str()),
            Self::Dead { reason, says } => write!(f, "dead letter `{reason}`: {says}"),
            Self::Exit { code, says } => write!(f, "exit {code}: {says}"),
        }
    }
}

impl Answer {
    /// What is wrong with a reply as this answer, if anything.
    fn differs_from(self, reply: &Reply) -> Option<String> {
        let errors = reply.results.iter().filter_map(|result| result.error.as_ref()).chain(&reply.error);
        let said = errors.clone().map(|error| format!("{}: {}", error.code, error.message)).collect::<Vec<_>>();
        let has =
            |code: &str, says: &str| errors.clone().any(|error| error.code == code && error.message.contains(says));
        let agrees = match self {
            Self::Succeeded => reply.status == Status::Succeeded,
            Self::Item { code, says } => reply.error.is_none() && has(code, says),
            Self::Refused { status, code, says } => {
                reply.status == status && reply.results.is_empty() && has(code, says)
            }
            Self::Dead { .. } | Self::Exit { .. } => false,
        };
        (!agrees).then(|| format!("a reply {}: {}", reply.status.as_str(), said.join("; ")))
    }

    /// What is wrong with an end of a process as this answer, if anything. What failed says why in one line.
    fn differs_from_end(self, ended: &Output) -> Option<String> {
        let said = String::from_utf8_lossy(&ended.stderr);
        let errors: Vec<String> = said.lines().filter_map(error_of).collect();
        let agrees = match self {
            Self::Exit { code: code @ (0 | 2), says } => ended.status.code() == Some(code) && said.contains(says),
            Self::Exit { code, says } => {
                ended.status.code() == Some(code) && errors.len() == 1 && errors[0].contains(says)
            }
            _ => false,
        };
        (!agrees).then(|| format!("{:?}: {errors:#?}", ended.status.code()))
    }
}

/// What a line of stderr says went wrong, if anything: a log's, a command's own, clap's, or a panic's.
fn error_of(line: &str) -> Option<String> {
    match serde_json::from_str::<Value>(line) {
        Ok(event) if event["severity"] == "INFO" => None,
        Ok(event) => Some(event["error"].as_str().unwrap_or(line).to_owned()),
        Err(_) => {
            let is_error = ["inferq: ", "inferq-worker: ", "error: "].iter().any(|start| line.starts_with(start));
            (is_error || line.contains("panicked")).then(|| line.to_owned())
        }
    }
}

/// A part of the table: a heading, and each row's two cells.
fn part(heading: &str, rows: impl IntoIterator<Item = (&'static str, Answer)>) -> String {
    let rows = rows.into_iter().map(|(given, answer)| format!("| {given} | {answer} |\n")).collect::<String>();
    format!("\n### {heading}\n\n| given | comes of it |\n|---|---|\n{rows}")
}

#[test]
fn the_table_of_bad_input_is_true() {
    let parts = [
        part("A job as a whole", jobs::BODIES.iter().map(|row| (row.given, row.answer))),
        part("A job's fields", jobs::FIELDS.iter().map(|row| (row.given, row.answer))),
        part("A message over AMQP", amqp::MESSAGES.iter().map(|row| (row.given, row.answer))),
        part("A job for a model", jobs::FOR_A_MODEL.iter().map(|row| (row.given, row.answer))),
        part("A line of a producer's input", lines::LINES.iter().map(|row| (row.given, row.answer))),
        part("A producer's command", commands::COMMANDS.iter().map(|row| (row.given, row.answer))),
        part("A model's directory", models::MODELS.iter().map(|row| (row.given, row.answer))),
    ];
    check_block("docs/operations.md", "bad input", &format!("{}\n", parts.concat()));
}
