//! How subscriptions should be, and where one that exists differs.
//!
//! In: a place, what it is for, and the subscription that is there. Out: the subscription that `setup` makes, and the
//! differences by name. Pure.

use std::fmt;
use std::time::Duration;

use google_cloud_pubsub::model::{DeadLetterPolicy, ExpirationPolicy, RetryPolicy, Subscription};

use super::place::Place;

/// A lease that nobody extends ends after so long.
const ACK_DEADLINE_S: i32 = 60;
/// How long messages are kept that nobody takes: the most that Pub/Sub allows.
const RETENTION: Duration = Duration::from_secs(31 * 86400);
/// The most that the emulator allows.
const RETENTION_EMULATOR: Duration = Duration::from_secs(7 * 86400);
/// What is given back waits at least so long, and longer each time.
const BACKOFF: Duration = Duration::from_secs(1);
/// No longer than this.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Deliveries after which Pub/Sub itself sets a job aside: the most that it allows, and above any sensible
/// `--max-attempts`.
const DELIVERIES_MAX: i32 = 100;
/// A subscription that nobody uses can't be made to go sooner than this.
const EXPIRY_MIN: Duration = Duration::from_secs(86400);

/// What a subscription is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Purpose {
    /// The topic for what was delivered too often; with it deliveries are counted.
    pub(super) dead_topic: Option<String>,
    /// It goes when nobody has used it for so long.
    pub(super) expires: Option<Duration>,
    /// Acks are answered, and a message is with one consumer at a time.
    pub(super) exactly_once: bool,
    /// It is the emulator's.
    pub(super) emulated: bool,
}

/// The subscription of `place`.
pub(super) fn wanted(place: &Place, purpose: &Purpose) -> Subscription {
    let retention = if purpose.emulated { RETENTION_EMULATOR } else { RETENTION };
    let mut expiration = ExpirationPolicy::new();
    expiration.ttl = purpose.expires.and_then(|expires| expires.max(EXPIRY_MIN).try_into().ok());
    let mut backoff = RetryPolicy::new();
    (backoff.minimum_backoff, backoff.maximum_backoff) = (BACKOFF.try_into().ok(), BACKOFF_MAX.try_into().ok());
    let dead =
        |topic: &String| DeadLetterPolicy::new().set_dead_letter_topic(topic).set_max_delivery_attempts(DELIVERIES_MAX);
    let mut wanted = Subscription::new()
        .set_name(&place.subscription)
        .set_topic(&place.topic)
        .set_ack_deadline_seconds(ACK_DEADLINE_S)
        .set_filter(place.share.filter())
        // The emulator stops delivering messages that wait out short backoffs at the same time.
        .set_or_clear_retry_policy((!purpose.emulated).then_some(backoff))
        // Without a policy it would go after 31 days without a consumer; one that says nothing keeps it for ever.
        .set_expiration_policy(expiration)
        .set_or_clear_dead_letter_policy(purpose.dead_topic.as_ref().map(dead))
        .set_enable_exactly_once_delivery(purpose.exactly_once);
    wanted.message_retention_duration = retention.try_into().ok();
    wanted
}

/// One thing in which a subscription is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// As Pub/Sub's API calls it.
    pub(super) field: &'static str,
    /// As it is.
    pub(super) is: String,
    /// As it should be.
    pub(super) wanted: String,
    /// Pub/Sub can change it.
    pub(super) can_change: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, is, wanted, can_change } = self;
        write!(formatter, "  - {field}: {is}\n  + {field}: {wanted}")?;
        let way = " (Pub/Sub can't change it: delete the subscription and run setup again)";
        formatter.write_str(if *can_change { "" } else { way })
    }
}

/// What is not as it should be, in the order of the API.
pub(super) fn differences(exists: &Subscription, wanted: &Subscription) -> Vec<Difference> {
    let rows = |of: &Subscription| {
        [
            ("topic", of.topic.clone(), false),
            ("ack_deadline_seconds", of.ack_deadline_seconds.to_string(), true),
            ("message_retention_duration", of.message_retention_duration.map_or_else(unset, String::from), true),
            ("expiration_policy", expiry(of), true),
            ("filter", if of.filter.is_empty() { "none".to_owned() } else { of.filter.clone() }, false),
            ("dead_letter_policy", dead_letters(of), true),
            ("retry_policy", backoff(of), true),
            ("enable_exactly_once_delivery", of.enable_exactly_once_delivery.to_string(), true),
        ]
    };
    let pairs = rows(exists).into_iter().zip(rows(wanted));
    let differing = pairs.filter(|((_, is, _), (_, wanted, _))| is != wanted);
    differing.map(|((field, is, can_change), (_, wanted, _))| Difference { field, is, wanted, can_change }).collect()
}

fn unset() -> String {
    "unset".to_owned()
}

/// A subscription without a policy has Pub/Sub's: 31 days.
fn expiry(of: &Subscription) -> String {
    let Some(policy) = &of.expiration_policy else { return "unset".to_owned() };
    policy.ttl.map_or_else(|| "never".to_owned(), String::from)
}

fn dead_letters(of: &Subscription) -> String {
    let Some(policy) = &of.dead_letter_policy else { return "none".to_owned() };
    format!("{} after {} deliveries", policy.dead_letter_topic, policy.max_delivery_attempts)
}

fn backoff(of: &Subscription) -> String {
    let Some(policy) = &of.retry_policy else { return "none".to_owned() };
    let text = |of: &Option<_>| of.map_or_else(unset, String::from);
    format!("{} to {}", text(&policy.minimum_backoff), text(&policy.maximum_backoff))
}

#[cfg(test)]
mod tests {
    use super::super::address::PubSubUrl;
    use super::*;

    fn place(queue: &str) -> Place {
        Place::of(&PubSubUrl::parse("//p/jobs", &[]).expect("a good address"), queue)
    }

    fn purpose() -> Purpose {
        Purpose { dead_topic: Some("projects/p/topics/jobs.dead".to_owned()), ..Purpose::default() }
    }

    #[test]
    fn what_setup_makes_does_not_differ_from_it() {
        let made = wanted(&place("jobs"), &purpose());
        assert_eq!(differences(&made, &made), []);
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let should = wanted(&place("jobs"), &purpose());
        let mut is = wanted(
            &place("jobs.results.s1"),
            &Purpose { expires: Some(Duration::from_secs(5)), emulated: true, ..Purpose::default() },
        );
        is.ack_deadline_seconds = 10;
        is.retry_policy = None;
        is.enable_exactly_once_delivery = true;
        let found = differences(&is, &should);
        let told: Vec<_> =
            found.iter().map(|found| (found.field, &*found.is, &*found.wanted, found.can_change)).collect();
        let expected = [
            ("topic", "projects/p/topics/jobs.results", "projects/p/topics/jobs", false),
            ("ack_deadline_seconds", "10", "60", true),
            ("message_retention_duration", "604800s", "2678400s", true),
            ("expiration_policy", "86400s", "never", true),
            ("filter", "attributes.inferq-submission = \"s1\"", "none", false),
            ("dead_letter_policy", "none", "projects/p/topics/jobs.dead after 100 deliveries", true),
            ("retry_policy", "none", "1s to 60s", true),
            ("enable_exactly_once_delivery", "true", "false", true),
        ];
        assert_eq!(told, expected);
        assert!(found[0].to_string().contains("can't change it") && !found[1].to_string().contains("can't"));
    }
}
