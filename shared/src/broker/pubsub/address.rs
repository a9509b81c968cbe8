//! Addresses of Pub/Sub: `pubsub://PROJECT/TOPIC[?subscription=NAME][&endpoint=HOST:PORT]`.
//!
//! In: the parts of an address. Out: a [`PubSubUrl`]. There is no secret in it: credentials come from where the program
//! runs (Application Default Credentials). It never connects.

use std::fmt;

/// How to reach the queues of one Pub/Sub topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PubSubUrl {
    /// The project's id.
    pub(super) project: String,
    /// The topic that jobs are published to.
    pub(super) topic: String,
    /// The subscription that workers share.
    pub(super) subscription: String,
    /// An emulator's `host:port`: plain text, no credentials.
    pub(super) endpoint: Option<String>,
    /// `setup` makes the subscriptions that workers take from exactly-once, or not; unset, it leaves that as it is.
    pub exactly_once: Option<bool>,
    /// `setup` changes what exists where it differs.
    pub update: bool,
}

/// How an address looks, for errors.
const FORM: &str = "write pubsub://PROJECT/TOPIC[?subscription=NAME]";

impl PubSubUrl {
    /// Reads what stands between `pubsub:` and the `?`, and the options.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(rest: &str, options: &[(String, String)]) -> Result<Self, String> {
        let path = rest.strip_prefix("//").and_then(|rest| rest.split_once('/'));
        let (project, topic) = path.ok_or_else(|| format!("not an address of Pub/Sub: {FORM}"))?;
        let (project, topic) = (project_id(project)?, resource(topic, "topic")?);
        let (mut subscription, mut endpoint) = (topic.clone(), None);
        for (key, value) in options {
            match &**key {
                "subscription" => subscription = resource(value, "subscription")?,
                "endpoint" => endpoint = Some(host_and_port(value)?),
                _ => return Err(format!("unknown option {key:?} in the address: subscription and endpoint are known")),
            }
        }
        Ok(Self { project, topic, subscription, endpoint, exactly_once: None, update: false })
    }

    /// The topic's name, from which the names of all queues follow.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

/// <https://cloud.google.com/resource-manager/docs/creating-managing-projects>; older ones have a domain before a colon.
fn project_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
    if text.is_empty() || !text.chars().all(allowed) {
        return Err(format!("project {text:?} must be made of A-Z a-z 0-9 - . : ({FORM})"));
    }
    Ok(text.to_owned())
}

/// <https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names>; fewer characters than Pub/Sub allows, which leaves
/// room for what is appended, and suits every broker.
fn resource(text: &str, what: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.starts_with("goog");
    if !(3..=128).contains(&text.len()) || !begins || !text.chars().all(allowed) {
        let rule = "must be 3 to 128 of A-Z a-z 0-9 . _ -, begin with a letter, and not with goog";
        return Err(format!("{what} {text:?} {rule} ({FORM})"));
    }
    Ok(text.to_owned())
}

fn host_and_port(text: &str) -> Result<String, String> {
    let sound = text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let sound = sound.filter(|(host, _)| host.chars().all(|c| c.is_ascii_alphanumeric() || ".-[]:".contains(c)));
    sound.map(|_| text.to_owned()).ok_or_else(|| format!("endpoint {text:?} must be an emulator's host:port"))
}

impl fmt::Display for PubSubUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { project, topic, subscription, endpoint, .. } = self;
        write!(formatter, "pubsub://{project}/{topic}")?;
        let other = (subscription != topic).then(|| format!("subscription={subscription}"));
        let options: Vec<_> = other.into_iter().chain(endpoint.iter().map(|at| format!("endpoint={at}"))).collect();
        if options.is_empty() { Ok(()) } else { write!(formatter, "?{}", options.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pub_sub_would_not_take_is_refused_by_name() {
        for (rest, option, named) in [
            ("p/jobs", None, "pubsub://PROJECT/TOPIC"),
            ("//p", None, "pubsub://PROJECT/TOPIC"),
            ("///jobs", None, "project"),
            ("//p/jo", None, "topic"),
            ("//p/1jobs", None, "topic"),
            ("//p/google", None, "topic"),
            ("//p/jobs/more", None, "topic"),
            ("//p/jobs", Some(("subscription", "a b c")), "subscription"),
            ("//p/jobs", Some(("endpoint", "http://h:1")), "endpoint"),
            ("//p/jobs", Some(("endpoint", "localhost")), "endpoint"),
            ("//p/jobs", Some(("queue", "other")), "queue"),
        ] {
            let options: Vec<_> = option.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let error = PubSubUrl::parse(rest, &options).expect_err("a wrong address");
            assert!(error.contains(named), "{rest}: {error}");
        }
    }
}
