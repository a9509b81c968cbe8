//! One dead letter: what is known of it, whether it is meant, and the job that it becomes again.
//!
//! In: a message from a queue of dead letters. Out: a [`Letter`], and from it what is published to run it again. Pure:
//! the instant is an argument.

use std::fmt;
use std::time::Duration;

use inferq_shared::broker::{Attributes, Message};
use inferq_shared::job::{Job, Limits, attribute};
use jiff::{Span, SpanRelativeTo, Timestamp};
use sha2::{Digest, Sha256};

use crate::progress::duration;

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// Names it where it has no id, or shares one: made from its attributes and bytes, so the same over every broker.
    pub key: String,
    /// The job's id, if anybody could tell.
    pub id: Option<String>,
    /// Why it is here.
    pub reason: String,
    /// The attempt that ended here.
    pub attempts: Option<u32>,
    /// When it came here.
    pub at: Option<Timestamp>,
    /// The queue that it comes from.
    pub queue: Option<String>,
    /// What was published, with what the broker noted beside it.
    pub message: Message,
}

/// What a broker adds when it sets a delivery aside, and what a new attempt must not inherit.
const OF_THE_DEAD: [&str; 5] =
    [attribute::DEAD_REASON, attribute::DEAD_QUEUE, attribute::DEAD_AT, attribute::DEAD_ATTEMPT, attribute::ATTEMPT];

impl Letter {
    /// Reads what is known of a dead letter.
    pub fn new(message: Message) -> Self {
        let attribute = |name: &str| message.attributes.get(name);
        Self {
            key: key(&message),
            id: attribute(attribute::JOB_ID).cloned().or_else(|| id_in(&message.body)),
            reason: attribute(attribute::DEAD_REASON).cloned().unwrap_or_default(),
            attempts: attribute(attribute::DEAD_ATTEMPT).and_then(|attempt| attempt.parse().ok()),
            at: attribute(attribute::DEAD_AT)
                .and_then(|ms| ms.parse().ok())
                .and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            queue: attribute(attribute::DEAD_QUEUE).cloned(),
            message,
        }
    }

    /// Whether `name` is its key or its job's id.
    pub fn is_called(&self, name: &str) -> bool {
        self.key == name || self.id.as_deref() == Some(name)
    }

    /// The job as published anew at `now`: the same bytes, nothing of its death, all attempts before it.
    pub fn revived(&self, now: Timestamp) -> Message {
        let kept = |(name, _): &(&String, &String)| !OF_THE_DEAD.contains(&name.as_str());
        let mut attributes: Attributes =
            self.message.attributes.iter().filter(kept).map(|(name, value)| (name.clone(), value.clone())).collect();
        // What waits too long for a fitting worker is counted from here.
        attributes.insert(attribute::PUBLISHED_AT.to_owned(), now.as_millisecond().to_string());
        Message { body: self.message.body.clone(), attributes }
    }
}

/// The first 12 hexadecimal digits of a digest of what stays the same wherever the letter lies.
fn key(message: &Message) -> String {
    let ours = |name: &&String| name.starts_with("inferq-") && *name != attribute::ATTEMPT;
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for name in message.attributes.keys().filter(ours) {
        part(name.as_bytes());
        part(message.attributes[name].as_bytes());
    }
    part(&message.body);
    hasher.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn id_in(body: &[u8]) -> Option<String> {
    match Job::decode(body, &Limits::default()) {
        Ok(job) => Some(job.id.to_string()),
        Err(error) => error.id.map(|id| id.to_string()),
    }
}

/// Which dead letters are meant: all that no flag excludes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Only those whose reason begins so, like malformed or reply_undeliverable; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub reason: Vec<String>,
    /// Only those that died longer ago than this, like 10m, 2h or 7d.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub older_than: Option<Duration>,
    /// Only those that died no longer ago than this.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub newer_than: Option<Duration>,
    /// Only those with this job id or key; may be repeated.
    #[arg(long, value_name = "ID|KEY")]
    pub id: Vec<String>,
}

impl Filter {
    /// Whether `letter` is meant at `now`. One whose age nobody knows is neither older nor newer than anything.
    pub fn matches(&self, letter: &Letter, now: Timestamp) -> bool {
        let age = letter.at.map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        let reason = self.reason.is_empty() || self.reason.iter().any(|reason| letter.reason.starts_with(reason));
        let id = self.id.is_empty() || self.id.iter().any(|id| letter.is_called(id));
        let older = self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit));
        let newer = self.newer_than.is_none_or(|limit| age.is_some_and(|age| age <= limit));
        reason && id && older && newer
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let either =
            |name: &str, words: &[String]| (!words.is_empty()).then(|| format!("{name} {}", words.join(" or ")));
        let age = |name: &str, age: Option<Duration>| age.map(|age| format!("{name} than {}", duration(age)));
        let parts = [
            either("reason", &self.reason),
            either("id", &self.id),
            age("older", self.older_than),
            age("newer", self.newer_than),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        formatter.write_str(&if parts.is_empty() { "no filter".to_owned() } else { parts.join(", ") })
    }
}

/// A time like 10m, 2h or 7d; days have 24 hours.
///
/// # Errors
/// When it is none.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: give a number and s, m, h, d or w, like 10m, 2h or 7d");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(time).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(attributes: &[(&str, &str)], body: &str) -> Letter {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Letter::new(Message { body: body.to_owned().into(), attributes })
    }

    #[test]
    fn a_letter_is_called_by_its_jobs_id_or_its_key() {
        let labelled = letter(&[(attribute::JOB_ID, "a"), (attribute::DEAD_REASON, "malformed: x")], "{");
        assert_eq!(labelled.id.as_deref(), Some("a"));
        let inside = letter(&[], r#"{"version":1,"id":"b","inputs":["x"]}"#);
        assert_eq!(inside.id.as_deref(), Some("b"));
        let nameless = letter(&[(attribute::DEAD_AT, "1")], "\u{0}");
        assert_eq!((nameless.id.as_deref(), nameless.key.len()), (None, 12));
        assert!(nameless.is_called(&nameless.key) && !nameless.is_called(&inside.key));
        let later = letter(&[(attribute::DEAD_AT, "2")], "\u{0}");
        assert_ne!(nameless.key, later.key, "two deaths of the same bytes are two letters");
        let moved = letter(&[(attribute::DEAD_AT, "1"), (attribute::ATTEMPT, "3"), ("x-death", "y")], "\u{0}");
        assert_eq!(nameless.key, moved.key, "what brokers note on the way changes nothing");
    }

    #[test]
    fn what_is_revived_has_its_bytes_and_nothing_of_its_death() {
        let dead = letter(
            &[
                (attribute::JOB_ID, "a"),
                (attribute::SUBMISSION, "s1"),
                (attribute::PUBLISHED_AT, "1"),
                (attribute::DEAD_REASON, "no_worker: x"),
                (attribute::DEAD_QUEUE, "jobs"),
                (attribute::DEAD_AT, "5"),
                (attribute::DEAD_ATTEMPT, "4"),
                (attribute::ATTEMPT, "4"),
            ],
            "body",
        );
        let revived = dead.revived(Timestamp::from_millisecond(77).expect("an instant"));
        let attributes: Vec<_> = revived.attributes.iter().map(|(name, value)| (&**name, &**value)).collect();
        let expected = [(attribute::JOB_ID, "a"), (attribute::PUBLISHED_AT, "77"), (attribute::SUBMISSION, "s1")];
        assert_eq!((attributes.as_slice(), &revived.body[..]), (&expected[..], &b"body"[..]));
    }

    #[test]
    fn filters_narrow_each_other_down() {
        let now = Timestamp::from_second(100_000).expect("an instant");
        let dead_at = (100_000 - 7200) * 1000;
        let two_hours = letter(
            &[
                (attribute::DEAD_REASON, "malformed: x"),
                (attribute::DEAD_AT, &dead_at.to_string()),
                (attribute::JOB_ID, "a"),
            ],
            "{",
        );
        let (hour, day) = (Some(Duration::from_secs(3600)), Some(Duration::from_secs(86400)));
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (filter, expected) in [
            (Filter::default(), true),
            (Filter { reason: words(&["mal", "invalid"]), ..Filter::default() }, true),
            (Filter { reason: words(&["alformed"]), ..Filter::default() }, false),
            (Filter { older_than: hour, newer_than: day, ..Filter::default() }, true),
            (Filter { older_than: day, ..Filter::default() }, false),
            (Filter { newer_than: hour, ..Filter::default() }, false),
            (Filter { id: words(&["b", "a"]), ..Filter::default() }, true),
            (Filter { id: words(&["b"]), reason: words(&["mal"]), ..Filter::default() }, false),
        ] {
            assert_eq!(filter.matches(&two_hours, now), expected, "{filter}");
        }
        let ageless = letter(&[(attribute::DEAD_REASON, "malformed")], "{");
        assert!(!Filter { older_than: hour, ..Filter::default() }.matches(&ageless, now));
        assert!(!Filter { newer_than: day, ..Filter::default() }.matches(&ageless, now));
        let both = Filter { older_than: hour, reason: words(&["a", "b"]), ..Filter::default() };
        assert_eq!(both.to_string(), "reason a or b, older than 1 h 0 min");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let seconds = |text| time(text).map(|time| time.as_secs());
        assert_eq!(
            ["30s", "10m", "2h", "7d", "1w", "1d 12h"].map(|text| seconds(text).ok()),
            [30, 600, 7200, 604_800, 604_800, 129_600].map(Some)
        );
        for text in ["", "7", "tomorrow", "-2h", "1month", "1y"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
