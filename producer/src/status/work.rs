//! How long the waiting jobs would take the workers that are there. Pure.
//!
//! In: how many messages wait, what a sample of them says of its tokens, what the workers say of themselves. Out:
//! [`Work`]: tokens waiting, tokens a second, and their quotient, or why it can't be told.

use inferq_shared::presence::Presence;
use serde::Serialize;

use crate::progress::{duration, grouped};

/// The first of the waiting messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Messages looked at.
    pub messages: u64,
    /// Those of them that say how many tokens they have.
    pub labelled: u64,
    /// Tokens of those.
    pub tokens: u64,
}

/// Messages of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How many wait; absent where the broker can't tell.
    pub messages: Option<u64>,
    /// The first of them.
    pub sample: Sample,
}

/// What waits, measured in work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Work {
    /// Tokens of the waiting messages.
    pub tokens_waiting: Option<u64>,
    /// Whether that is their sum; otherwise it is a mean times their number.
    pub exact: bool,
    /// Tokens a second of the workers that take jobs.
    pub tokens_per_s: Option<f64>,
    /// How long they would take.
    pub seconds: Option<f64>,
    /// Why that can't be told.
    pub unknown: Option<&'static str>,
}

impl Work {
    /// Of the messages that wait in these queues together.
    pub fn estimate(queues: &[Waiting], workers: Option<&[Presence]>) -> Self {
        let each: Vec<_> = queues.iter().map(|queue| queue.tokens(workers.unwrap_or_default())).collect();
        let tokens_waiting = each.iter().map(|(tokens, _)| *tokens).sum();
        let exact = each.iter().all(|(_, exact)| *exact);
        let live: Vec<_> = workers.unwrap_or_default().iter().filter(|worker| worker.takes_jobs()).collect();
        let speeds: Vec<_> =
            live.iter().filter_map(|worker| worker.tokens_per_s).filter(|speed| *speed > 0.0).collect();
        let tokens_per_s = (!speeds.is_empty()).then(|| speeds.iter().sum());
        let seconds = match (tokens_waiting, tokens_per_s) {
            (Some(0), _) => Some(0.0),
            (Some(tokens), Some(speed)) => Some(tokens as f64 / speed),
            _ => None,
        };
        let reasons = [
            (queues.iter().any(|queue| queue.messages.is_none()), "this broker can't tell how many messages wait"),
            (workers.is_none(), "this broker keeps no word of the workers"),
            (live.is_empty(), "no worker takes jobs"),
            (speeds.is_empty(), "no worker has run a batch yet"),
            (true, "the messages don't say how many tokens they have"),
        ];
        let reason = reasons.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason);
        let unknown = reason.filter(|_| seconds.is_none());
        Self { tokens_waiting, exact, tokens_per_s, seconds, unknown }
    }

    /// In one line.
    pub fn sentence(&self) -> String {
        let about = if self.exact { "" } else { "about " };
        let tokens = self.tokens_waiting.map(|tokens| format!("{about}{} tokens wait", grouped(tokens)));
        let speed =
            self.tokens_per_s.map(|speed| format!("the workers compute {} tokens/s", grouped(speed.round() as u64)));
        let parts: Vec<_> = tokens.into_iter().chain(speed).collect();
        let seconds = match (self.seconds, self.unknown) {
            (Some(0.0), _) => "none".to_owned(),
            (Some(seconds), _) => duration(std::time::Duration::from_secs_f64(seconds.min(1e12))),
            (None, reason) => format!("unknown, because {}", reason.unwrap_or("nothing is known")),
        };
        let basis = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join("; ")) };
        format!("work waiting: {seconds}{basis}")
    }
}

impl Waiting {
    /// Tokens that wait, and whether that is a sum.
    pub fn tokens(&self, workers: &[Presence]) -> (Option<u64>, bool) {
        let Self { messages, sample } = self;
        let Some(waiting) = *messages else { return (None, false) };
        if waiting == 0 {
            return (Some(0), true);
        }
        if sample.labelled > 0 {
            let exact = sample.messages >= waiting && sample.labelled == sample.messages;
            let mean = sample.tokens as f64 / sample.labelled as f64;
            return (Some(if exact { sample.tokens } else { (mean * waiting as f64).round() as u64 }), exact);
        }
        // What the workers hold is the next best sample.
        let (tokens, jobs) = workers
            .iter()
            .fold((0, 0), |(tokens, jobs), worker| (tokens + worker.tokens_in_flight, jobs + worker.jobs_in_flight));
        let mean = tokens as f64 / jobs as f64;
        ((jobs > 0).then(|| (mean * waiting as f64).round() as u64), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(messages: Option<u64>, sample: Sample) -> Waiting {
        Waiting { messages, sample }
    }

    fn worker(state: &str, tokens_per_s: Option<f64>) -> Presence {
        Presence {
            name: "w".to_owned(),
            process: 1,
            model: "m".to_owned(),
            device: "cpu".to_owned(),
            state: state.to_owned(),
            tokens_per_s,
            items_per_s: None,
            jobs_in_flight: 0,
            tokens_in_flight: 0,
            started_at_ms: 0,
        }
    }

    #[test]
    fn seconds_are_tokens_over_the_speed_of_the_workers_that_take_jobs() {
        let sample = Sample { messages: 10, labelled: 10, tokens: 500 };
        let workers = [worker("ready", Some(30.0)), worker("ready", Some(20.0)), worker("draining", Some(99.0))];
        let all = Work::estimate(&[of(Some(10), sample)], Some(&workers));
        assert_eq!((all.tokens_waiting, all.exact, all.seconds), (Some(500), true, Some(10.0)));
        assert_eq!(all.sentence(), "work waiting: 10 s (500 tokens wait; the workers compute 50 tokens/s)");
        let more = Work::estimate(&[of(Some(100), sample)], Some(&workers));
        assert_eq!((more.tokens_waiting, more.exact, more.seconds), (Some(5000), false, Some(100.0)));
        let shards = Sample { messages: 2, labelled: 2, tokens: 1000 };
        let both = Work::estimate(&[of(Some(10), sample), of(Some(2), shards)], Some(&workers));
        assert_eq!((both.tokens_waiting, both.exact, both.seconds), (Some(1500), true, Some(30.0)));
    }

    #[test]
    fn what_the_workers_hold_stands_in_for_messages_that_say_nothing() {
        let busy = Presence { jobs_in_flight: 4, tokens_in_flight: 40, ..worker("ready", Some(5.0)) };
        let work = Work::estimate(&[of(Some(7), Sample { messages: 7, ..Sample::default() })], Some(&[busy]));
        assert_eq!((work.tokens_waiting, work.exact, work.seconds), (Some(70), false, Some(14.0)));
    }

    #[test]
    fn what_nobody_can_tell_is_unknown_with_the_reason() {
        let sample = Sample { messages: 1, labelled: 1, tokens: 5 };
        let none = Sample { messages: 1, ..Sample::default() };
        for (waiting, sample, workers, reason) in [
            (None, sample, Some(vec![worker("ready", Some(1.0))]), "how many messages wait"),
            (Some(1), sample, None, "no word of the workers"),
            (Some(1), sample, Some(vec![]), "no worker takes jobs"),
            (Some(1), sample, Some(vec![worker("unfit", Some(1.0))]), "no worker takes jobs"),
            (Some(1), sample, Some(vec![worker("ready", None)]), "no worker has run a batch yet"),
            (Some(1), none, Some(vec![worker("ready", Some(1.0))]), "don't say how many tokens"),
        ] {
            let work = Work::estimate(&[of(waiting, sample)], workers.as_deref());
            assert_eq!(work.seconds, None, "{reason}");
            assert!(work.sentence().contains(reason), "{}: {reason}", work.sentence());
        }
        let idle = Work::estimate(&[of(Some(0), Sample::default())], Some(&[]));
        assert_eq!((idle.seconds, idle.unknown), (Some(0.0), None));
    }
}
