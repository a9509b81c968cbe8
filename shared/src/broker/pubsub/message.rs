//! Messages of the contract as Pub/Sub's, and back.
//!
//! In: a [`Message`], or what arrived. Out: the other. Pure. What Pub/Sub would not take is refused by name before
//! anything is sent: <https://cloud.google.com/pubsub/quotas#resource_limits>.

use google_cloud_pubsub::model::Message as PubSubMessage;

use super::super::{Attributes, BrokerError, Message};
use crate::job::attribute;

/// A message's body and attributes together.
const BYTES_MAX: usize = 10_000_000;
/// What a publish adds around one message.
const OVERHEAD: usize = 4096;
/// Attributes of one message.
const ATTRIBUTES_MAX: usize = 100;
/// The name of one attribute, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The value of one attribute, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 1024;

/// What Pub/Sub itself writes beside a message that it moves to the dead letters.
const DEAD_BY_BROKER: &str = "CloudPubSubDeadLetterSource";

/// The message as it is published; `now` stands in where it does not say when that was.
///
/// # Errors
/// `Refused` when it passes one of Pub/Sub's limits.
pub(super) fn encode(message: Message, now: i64) -> Result<PubSubMessage, BrokerError> {
    let Message { body, mut attributes } = message;
    // Also, without any attribute an empty message would be refused.
    attributes.entry(attribute::PUBLISHED_AT.to_owned()).or_insert_with(|| now.to_string());
    check(body.len(), &attributes)?;
    Ok(PubSubMessage::new().set_data(body).set_attributes(attributes))
}

fn check(body: usize, attributes: &Attributes) -> Result<(), BrokerError> {
    let refused = |text: String| Err(BrokerError::Refused(text));
    if attributes.len() > ATTRIBUTES_MAX {
        return refused(format!("{} attributes: Pub/Sub allows {ATTRIBUTES_MAX}", attributes.len()));
    }
    let mut bytes = body;
    for (name, value) in attributes {
        bytes += name.len() + value.len();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with("goog") {
            let rule = format!("1 to {NAME_BYTES_MAX} bytes, not beginning with goog");
            return refused(format!("an attribute is named {name:.40?}…: Pub/Sub allows {rule}"));
        }
        if value.len() > VALUE_BYTES_MAX {
            return refused(format!("attribute {name} of {} bytes: Pub/Sub allows {VALUE_BYTES_MAX}", value.len()));
        }
    }
    if bytes + OVERHEAD > BYTES_MAX {
        let ways = "send fewer items a message, encode base64, or use a bucket";
        return refused(format!("a message of {bytes} bytes: Pub/Sub allows {BYTES_MAX}; {ways}"));
    }
    Ok(())
}

/// What arrived, and the attempt that its publisher wrote beside it, where that was not the first.
pub(super) fn decode(message: PubSubMessage) -> (Message, u32) {
    let PubSubMessage { data, attributes: told, publish_time, .. } = message;
    let mut attributes = Attributes::new();
    let (mut attempt, mut dead) = (1, Dead::default());
    for (name, value) in told {
        match &*name {
            attribute::ATTEMPT => attempt = value.parse().unwrap_or(1).max(1),
            _ if name.starts_with(DEAD_BY_BROKER) => dead.note(&name[DEAD_BY_BROKER.len()..], value),
            _ => drop(attributes.insert(name, value)),
        }
    }
    dead.tell(&mut attributes);
    if let Some(time) = publish_time {
        let at = || (time.seconds() * 1000 + i64::from(time.nanos()) / 1_000_000).to_string();
        attributes.entry(attribute::PUBLISHED_AT.to_owned()).or_insert_with(at);
    }
    (Message { body: data, attributes }, attempt)
}

/// Why Pub/Sub itself set a message aside: it says so in its own way, here as our dead letters do.
#[derive(Debug, Default)]
struct Dead {
    deliveries: Option<String>,
    subscription: Option<String>,
}

impl Dead {
    fn note(&mut self, what: &str, value: String) {
        match what {
            "DeliveryCount" => self.deliveries = Some(value),
            "Subscription" => self.subscription = Some(value),
            _ => {}
        }
    }

    fn tell(self, attributes: &mut Attributes) {
        let Some(subscription) = self.subscription else { return };
        let deliveries = self.deliveries.unwrap_or_default();
        let reason = "delivery_limit".to_owned();
        let told = [
            (attribute::DEAD_REASON, reason),
            (attribute::DEAD_QUEUE, subscription),
            (attribute::DEAD_ATTEMPT, deliveries),
        ];
        for (name, value) in told {
            attributes.entry(name.to_owned()).or_insert(value);
        }
    }
}

/// Why a message is set aside.
pub(super) struct Epitaph<'a> {
    /// The reason.
    pub(super) reason: &'a str,
    /// The queue that it comes from.
    pub(super) queue: &'a str,
    /// The attempt that gave up.
    pub(super) attempt: u32,
    /// When, in milliseconds since 1970.
    pub(super) at: i64,
}

/// The message as it lies among the dead letters.
pub(super) fn dead(mut message: Message, epitaph: &Epitaph<'_>) -> Message {
    let reason = clipped(epitaph.reason, VALUE_BYTES_MAX);
    let said = [
        (attribute::DEAD_REASON, reason.to_owned()),
        (attribute::DEAD_QUEUE, epitaph.queue.to_owned()),
        (attribute::DEAD_ATTEMPT, epitaph.attempt.to_string()),
        (attribute::DEAD_AT, epitaph.at.to_string()),
    ];
    message.attributes.extend(said.map(|(name, value)| (name.to_owned(), value)));
    message
}

/// As much of a text as fits.
fn clipped(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(pairs: &[(&str, &str)]) -> Message {
        let attributes = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Message { body: bytes::Bytes::from_static(b"body"), attributes }
    }

    #[test]
    fn attributes_survive_the_way_there_and_back() {
        let mut sent = message(&[("a", ""), (attribute::CONTENT_TYPE, "text/plain"), ("ü", "日本")]);
        let encoded = encode(sent.clone(), 5).expect("Pub/Sub carries them");
        sent.attributes.insert(attribute::PUBLISHED_AT.to_owned(), "5".to_owned());
        assert_eq!(decode(encoded), (sent, 1));
        let empty = encode(Message::default(), 7).expect("an empty message has its time");
        assert_eq!(empty.attributes.len(), 1);
    }

    #[test]
    fn the_attempt_of_a_copy_is_read_and_a_wrong_one_ignored() {
        for (text, attempt) in [("3", 3), ("0", 1), ("", 1), ("many", 1), ("99999999999", 1)] {
            let encoded = encode(message(&[(attribute::ATTEMPT, text)]), 0).expect("it fits");
            assert_eq!(decode(encoded).1, attempt);
        }
    }

    #[test]
    fn what_pub_sub_set_aside_says_why() {
        let told =
            [("CloudPubSubDeadLetterSourceDeliveryCount", "100"), ("CloudPubSubDeadLetterSourceSubscription", "jobs")];
        let (letter, _) = decode(encode(message(&told), 0).expect("it fits"));
        let expected = [
            (attribute::DEAD_REASON, "delivery_limit"),
            (attribute::DEAD_QUEUE, "jobs"),
            (attribute::DEAD_ATTEMPT, "100"),
        ];
        assert_eq!(letter, message(&[&expected[..], &[(attribute::PUBLISHED_AT, "0")]].concat()));
    }

    #[test]
    fn a_dead_letter_s_reason_is_cut_to_what_fits() {
        let epitaph = Epitaph { reason: &"ü".repeat(1000), queue: "jobs", attempt: 2, at: 9 };
        let letter = dead(message(&[]), &epitaph);
        assert_eq!(letter.attributes[attribute::DEAD_REASON].len(), VALUE_BYTES_MAX);
        assert!(encode(letter, 0).is_ok());
    }

    #[test]
    fn what_pub_sub_would_not_take_is_refused() {
        let refused = |message: Message| matches!(encode(message, 0), Err(BrokerError::Refused(_)));
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        assert!(refused(message(&[("a", &long)])));
        assert!(!refused(message(&[("a", &long[1..])])));
        assert!(refused(message(&[("googclient", "")])));
        assert!(refused(message(&[(&"n".repeat(257), "")])));
        assert!(refused(message(
            &(0..100).map(|n| n.to_string()).collect::<Vec<_>>().iter().map(|n| (&**n, "")).collect::<Vec<_>>()
        )));
        assert!(refused(Message { body: vec![0; BYTES_MAX - 4000].into(), attributes: Attributes::new() }));
        assert!(!refused(Message { body: vec![0; 9 << 20].into(), attributes: Attributes::new() }));
    }
}
