//! What a worker says of itself where others can read it, and what follows from it for a queue.
//!
//! In and out: [`Presence`] and the text that [`crate::broker::Broker::report_worker`] carries, each other's inverse.
//! Pure. Unknown fields are ignored, so that workers of several builds can share a queue.

use serde::{Deserialize, Serialize};

/// What a worker says of itself every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// Its name in replies; several workers may share it.
    pub name: String,
    /// Its process's id on its machine.
    pub process: u32,
    /// The name of its model.
    pub model: String,
    /// Where the model runs.
    pub device: String,
    /// Its state: `ready`, `unfit`, `draining`…
    pub state: String,
    /// Tokens a second that it computes while it is busy, by its last batches; absent before the first.
    pub tokens_per_s: Option<f64>,
    /// Items a second, likewise.
    pub items_per_s: Option<f64>,
    /// Jobs that it holds.
    pub jobs_in_flight: u64,
    /// Tokens of those jobs.
    pub tokens_in_flight: u64,
    /// When it began to take jobs, in milliseconds since 1970.
    pub started_at_ms: i64,
}

impl Presence {
    /// As text.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a presence has only string keys")
    }

    /// From text; `None` when it is no presence of a build that this one can read.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Whether it takes jobs now.
    pub fn takes_jobs(&self) -> bool {
        self.state == "ready"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_build_adds_is_ignored_and_what_is_absent_is_unknown() {
        let text = r#"{"name":"w","process":7,"model":"m","device":"cpu","state":"ready","jobs_in_flight":2,
            "tokens_in_flight":9,"started_at_ms":1,"mood":"good"}"#;
        let presence = Presence::decode(text).expect("it is a presence");
        assert_eq!((presence.tokens_per_s, presence.items_per_s, presence.takes_jobs()), (None, None, true));
        assert_eq!(Presence::decode(&presence.encode()), Some(presence));
        assert_eq!(Presence::decode("{}"), None);
    }
}
