//! An explanation for people: a heading a source, a line a fact.
//!
//! In: an [`Explanation`]. Out: text. Everything that others wrote is made safe for a terminal.

use std::time::Duration;

use serde_json::Value;

use super::logs::Line;
use super::parts::Parts;
use super::places::{Held, Place, Stands};
use super::{Answer, Explanation, Published};
use crate::paint::Paint;
use crate::progress::{duration, grouped};
use crate::shown;

fn safe(text: &str) -> String {
    shown::line(text.as_bytes(), 1000)
}

fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{} {noun}s", grouped(count)) }
}

fn seconds(seconds: f64) -> String {
    duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e12)))
}

impl Explanation {
    pub(super) fn text(&self, paint: Paint) -> String {
        let mut text = paint.heading(&safe(&self.id)) + "\n";
        if let (Some(job), Some(item)) = (&self.job, self.item) {
            text += &format!("  item {item} (from 0) of job {}\n", safe(job));
        }
        text += &format!("  {}\n", safe(&self.verdict));
        let mut section = |name: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                text += &format!("\n{}\n", paint.heading(name));
                lines.iter().for_each(|line| text += &format!("  {line}\n"));
            }
        };
        section("published", self.published.as_ref().map(Published::lines).unwrap_or_default());
        section("now", self.places.iter().map(Place::sentence).collect());
        section("parts", self.parts.as_ref().map(Parts::lines).unwrap_or_default());
        section("logs", self.log.iter().map(Line::sentence).collect());
        section("reply", self.reply.as_ref().map(Answer::lines).unwrap_or_default());
        section("not seen", self.not_seen.iter().map(|line| safe(line)).collect());
        text
    }
}

impl Published {
    fn lines(&self) -> Vec<String> {
        let Self { ledger, chunk, place, first, items, item_id, bad_lines, bad } = self;
        let entries = items + *bad_lines as u64;
        let mut lines = vec![format!(
            "confirmed by the broker, as the ledger {} says: chunk {chunk}, {}, the input's entries {} to {}, \
             from {} on",
            safe(ledger),
            counted(*items, "item"),
            grouped(*first),
            grouped(first + entries.saturating_sub(1)),
            safe(place)
        )];
        lines.extend(item_id.iter().map(|id| format!("item id {}", safe(id))));
        if *bad_lines > 0 {
            lines.push(format!("{} of its lines can't be items", grouped(*bad_lines as u64)));
        }
        lines.extend(bad.iter().map(|bad| format!("this line: {}: {}", safe(&bad.code), safe(&bad.message))));
        lines
    }
}

impl Place {
    /// What it says of the job; the first in order counts most.
    pub(super) fn verdict(&self) -> (u8, String) {
        match self {
            Self::Reply { status, .. } => {
                (0, format!("answered ({}), not yet collected", safe(status.as_deref().unwrap_or("no status"))))
            }
            Self::DeadLetter { reason, shard: None, .. } => (1, format!("dead letter: {}", safe(reason))),
            Self::DeadLetter { reason, shard: Some(shard), .. } => {
                (1, format!("open until its shard {} is redriven, a dead letter: {}", safe(shard), safe(reason)))
            }
            Self::Shards { waiting, delayed, leased_in_all, .. } => {
                let left = counted(waiting + delayed + leased_in_all, "shard");
                (2, format!("split: {left} left, {leased_in_all} of them with workers"))
            }
            Self::Job { standing: Stands::Leased(_), attempt, .. } => {
                (2, format!("a worker has it, attempt {attempt}"))
            }
            Self::Job { standing: Stands::Waiting, .. } => (3, "waiting for a worker".to_owned()),
            Self::Job { standing: Stands::Delayed(left), .. } => (4, format!("put off for another {}", seconds(*left))),
        }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Job { queue, standing, attempt, ahead, published_s } => {
                let ahead = ahead.map_or(String::new(), |ahead| format!(", {} before it", counted(ahead, "message")));
                let (published, standing) = (seconds(*published_s), standing.sentence());
                format!("the job {standing} in {queue}{ahead}: attempt {attempt}, published {published} ago")
            }
            Self::Shards { queue, waiting, delayed, leased, leased_in_all } => {
                let held = |held: &Held| {
                    let (id, left) = (safe(&held.id), seconds(held.ends_in_s));
                    format!("\n    {id} is leased (for {left} unless that is renewed): attempt {}", held.attempt)
                };
                let named: String = leased.iter().map(held).collect();
                let counts = format!("{waiting} waiting, {leased_in_all} leased, {delayed} put off");
                format!("its shards in {}: {counts}{named}", safe(queue))
            }
            Self::DeadLetter { queue, key, reason, attempts, at, shard } => {
                let what = shard
                    .as_ref()
                    .map_or("a dead letter".to_owned(), |id| format!("its shard {}, a dead letter", safe(id)));
                let at = at.map_or(String::new(), |at| format!(" since {at}"));
                let attempts = attempts.map_or(String::new(), |attempts| format!(" at attempt {attempts}"));
                format!("{what} in {queue}{at}{attempts}: {} (`inferq dead show {key}`)", safe(reason))
            }
            Self::Reply { queue, standing, status, published_s } => {
                let status = safe(status.as_deref().unwrap_or("no status"));
                format!(
                    "a reply ({status}) {} in {}, published {} ago",
                    standing.sentence(),
                    safe(queue),
                    seconds(*published_s)
                )
            }
        }
    }
}

impl Parts {
    fn lines(&self) -> Vec<String> {
        let Self { folder, shards, there, missing, complete } = self;
        let of = shards.map_or(String::new(), |shards| format!(" of {}", grouped(shards.into())));
        let folder = safe(folder);
        if *complete {
            return vec![format!("all {} and the manifest lie in {folder}", counted((*there).into(), "part"))];
        }
        let mut lines = vec![format!("{}{of} in {folder}", counted((*there).into(), "part"))];
        if !missing.is_empty() {
            let named: Vec<_> = missing.iter().map(u32::to_string).collect();
            let unnamed = shards.unwrap_or(0) - there - missing.len() as u32;
            let more = if unnamed > 0 { format!(" and {} more", grouped(unnamed.into())) } else { String::new() };
            lines.push(format!("none yet of shard {}{more}", named.join(", ")));
        }
        lines
    }
}

impl Stands {
    fn sentence(self) -> String {
        match self {
            Self::Waiting => "waits".to_owned(),
            Self::Leased(left) => format!("is leased (for {} unless that is renewed)", seconds(left)),
            Self::Delayed(left) => format!("is put off for {}", seconds(left)),
        }
    }
}

impl Line {
    fn sentence(&self) -> String {
        let time = self.time.map_or("no time".to_owned(), |time| time.to_string());
        let field = |(name, value): (&String, &Value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!(" {}={}", safe(name), safe(&value))
        };
        let fields: String = self.fields.iter().map(field).collect();
        format!("{time} {} {}{fields}", safe(&self.severity), safe(&self.message))
    }
}

impl Answer {
    fn lines(&self) -> Vec<String> {
        let Self { status, worker, attempt, model, revision, results, item_errors, tokens, timings_ms, .. } = self;
        let mut lines = vec![
            format!("{status}, by {} at attempt {attempt}, model {} {}", safe(worker), safe(model), safe(revision)),
            format!(
                "{} results, {} of them errors; {} tokens",
                grouped(*results as u64),
                item_errors,
                grouped(*tokens)
            ),
            format!(
                "queued {:.1} ms, intake {:.1} ms, batch {:.1} ms, engine {:.1} ms",
                timings_ms.queued, timings_ms.intake, timings_ms.batch, timings_ms.engine
            ),
        ];
        lines.extend(self.error.iter().map(|error| format!("{}: {}", safe(&error.code), safe(&error.message))));
        lines.extend(self.item.iter().map(|item| format!("this item: {}", safe(item))));
        lines
    }
}
