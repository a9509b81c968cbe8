//! Messages of the contract as AMQP's: attributes are headers of long strings, a few are properties of their own.
//!
//! In: a [`Message`], or the properties of a delivery. Out: the other. Pure. A header of a foreign client is rendered
//! where it has a plain value and left out where it has none; nothing that a client sends makes this fail.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, MAX_SHORT_STRING_LENGTH, ShortString};

use super::super::{Attributes, BrokerError, Message};
use super::declare::is_delay;
use crate::job::attribute;

/// Written to disk before it is confirmed.
const PERSISTENT: u8 = 2;
/// AMQP puts all headers into one frame, of which the broker allows 128 KiB.
const ATTRIBUTES_BYTES_MAX: usize = 100 << 10;
/// The broker's own count of deliveries that were given back; absent at first.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Queues beside the one that it was sent to, <https://www.rabbitmq.com/docs/sender-selected>.
const COPIES_TO: [&str; 2] = ["CC", "BCC"];
/// How a message has come from queue to queue, the latest way first.
const DEATHS: &str = "x-death";

/// What the broker puts into headers on its way: never an attribute, and never published again, or the broker would
/// believe that it comes from itself.
fn is_the_brokers(name: &str) -> bool {
    let own = [DELIVERY_COUNT, DEATHS, "x-acquired-count"];
    own.contains(&name) || name.starts_with("x-first-death-") || name.starts_with("x-last-death-")
}

/// A text as AMQP's short string.
///
/// # Errors
/// `Refused` when it has more than 255 bytes.
pub(super) fn short(text: impl Into<String>) -> Result<ShortString, BrokerError> {
    let text = text.into();
    if text.len() > MAX_SHORT_STRING_LENGTH {
        let (bytes, max) = (text.len(), MAX_SHORT_STRING_LENGTH);
        return Err(BrokerError::Refused(format!("{text:.40}… has {bytes} bytes: AMQP allows {max}")));
    }
    Ok(ShortString::from(text))
}

/// The properties that carry these attributes; `now` stands in where they don't say when it was published.
///
/// # Errors
/// `Refused` when AMQP can't carry them.
pub(super) fn encode(attributes: Attributes, now: i64) -> Result<BasicProperties, BrokerError> {
    let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ATTRIBUTES_BYTES_MAX {
        let message = format!("attributes of {bytes} bytes: AMQP's frames allow {ATTRIBUTES_BYTES_MAX}");
        return Err(BrokerError::Refused(message));
    }
    let mut headers = FieldTable::default();
    if !attributes.contains_key(attribute::PUBLISHED_AT) {
        headers.insert(attribute::PUBLISHED_AT.into(), text(now.to_string()));
    }
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    for (name, value) in attributes {
        match &*name {
            attribute::AMQP_REPLY_TO => properties = properties.with_reply_to(short(value)?),
            attribute::AMQP_CORRELATION_ID => properties = properties.with_correlation_id(short(value)?),
            _ => {
                if let (attribute::CONTENT_TYPE, Ok(value)) = (&*name, short(&*value)) {
                    properties = properties.with_content_type(value);
                }
                headers.insert(short(name)?, text(value));
            }
        }
    }
    Ok(properties.with_headers(headers))
}

/// The attributes of a delivery.
pub(super) fn decode(properties: &BasicProperties) -> Attributes {
    let mut attributes = Attributes::new();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        if !is_the_brokers(name)
            && name != attribute::ATTEMPT
            && let Some(value) = rendered(value)
        {
            attributes.insert(name.to_owned(), value);
        }
    }
    let named = [
        (attribute::CONTENT_TYPE, properties.content_type()),
        (attribute::AMQP_REPLY_TO, properties.reply_to()),
        (attribute::AMQP_CORRELATION_ID, properties.correlation_id()),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            attributes.entry(name.to_owned()).or_insert_with(|| value.as_str().to_owned());
        }
    }
    if let Some(seconds) = properties.timestamp() {
        let at = || seconds.saturating_mul(1000).to_string();
        attributes.entry(attribute::PUBLISHED_AT.to_owned()).or_insert_with(at);
    }
    for (name, value) in death(properties) {
        attributes.entry(name.to_owned()).or_insert(value);
    }
    attributes
}

/// Why the broker itself set a message aside, and in which queue: it says so in its own way, here as our dead letters do.
fn death(properties: &BasicProperties) -> Vec<(&'static str, String)> {
    let Some(AMQPValue::FieldArray(deaths)) = header(properties, DEATHS) else { return Vec::new() };
    let Some(AMQPValue::FieldTable(latest)) = deaths.as_slice().first() else { return Vec::new() };
    let told = |name: &str| latest.inner().get(name).and_then(rendered);
    match (told("reason"), told("queue")) {
        // A delay's end is no death.
        (Some(reason), Some(queue)) if reason != "expired" || !is_delay(&queue) => {
            vec![(attribute::DEAD_REASON, reason), (attribute::DEAD_QUEUE, queue)]
        }
        _ => Vec::new(),
    }
}

/// 1 + the times that this delivery's lease was lost: what our header says, and what the broker has counted since.
pub(super) fn attempt(properties: &BasicProperties, redelivered: bool) -> u32 {
    let number = |name| header(properties, name).and_then(rendered).and_then(|text| text.parse::<u32>().ok());
    // Classic queues count nothing, but say that it was delivered before.
    let since = number(DELIVERY_COUNT).unwrap_or(u32::from(redelivered));
    number(attribute::ATTEMPT).unwrap_or(1).max(1).saturating_add(since)
}

/// The properties of the same message published again, for its delivery number `attempt`.
pub(super) fn again(properties: &BasicProperties, attempt: u32) -> BasicProperties {
    let mut headers = own_headers(properties);
    if attempt > 1 {
        headers.insert(attribute::ATTEMPT.into(), text(attempt.to_string()));
    }
    let again = carried(properties).with_headers(headers);
    // What was to be worth nothing after a time still is.
    match properties.expiration() {
        Some(expiration) => again.with_expiration(expiration.clone()),
        None => again,
    }
}

/// The properties that a copy can have too, without headers.
///
/// It is published by another user than the original, whose name the broker would refuse. And what is set aside is kept,
/// though the original was to expire.
fn carried(properties: &BasicProperties) -> BasicProperties {
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<ShortString>, With); 7] = [
        (properties.content_type(), BasicProperties::with_content_type),
        (properties.content_encoding(), BasicProperties::with_content_encoding),
        (properties.correlation_id(), BasicProperties::with_correlation_id),
        (properties.reply_to(), BasicProperties::with_reply_to),
        (properties.message_id(), BasicProperties::with_message_id),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
    ];
    let mut carried = BasicProperties::default().with_delivery_mode(PERSISTENT);
    for (text, with) in texts {
        if let Some(text) = text {
            carried = with(carried, text.clone());
        }
    }
    if let Some(priority) = properties.priority() {
        carried = carried.with_priority(*priority);
    }
    if let Some(timestamp) = properties.timestamp() {
        carried = carried.with_timestamp(*timestamp);
    }
    carried
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

/// The properties of a message that is set aside.
pub(super) fn dead(properties: &BasicProperties, epitaph: &Epitaph<'_>) -> BasicProperties {
    let mut headers = own_headers(properties);
    let said = [
        (attribute::DEAD_REASON, epitaph.reason),
        (attribute::DEAD_QUEUE, epitaph.queue),
        (attribute::DEAD_ATTEMPT, &epitaph.attempt.to_string()),
        (attribute::DEAD_AT, &epitaph.at.to_string()),
    ];
    for (name, value) in said {
        headers.insert(name.into(), text(value));
    }
    carried(properties).with_headers(headers)
}

/// The headers without the attempt, and without the broker's, but for what these say of why it was set aside.
///
/// Nor do copies go where the original has gone beside this queue. What is too much for a frame with a copy's own headers
/// is left out: the broker would close the connection, and each time anew.
fn own_headers(properties: &BasicProperties) -> FieldTable {
    let mut headers = FieldTable::default();
    for (name, value) in death(properties) {
        headers.insert(name.into(), text(value));
    }
    let mut bytes = 0;
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let left_out = is_the_brokers(name.as_str()) || COPIES_TO.contains(&name.as_str());
        let more = name.as_str().len() + size(value);
        if !left_out && name.as_str() != attribute::ATTEMPT && bytes + more <= ATTRIBUTES_BYTES_MAX {
            headers.insert(name.clone(), value.clone());
            bytes += more;
        }
    }
    headers
}

/// The most that a value may have on the wire, in bytes.
fn size(value: &AMQPValue) -> usize {
    // A type and a length, or a number.
    9 + match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size).sum(),
        AMQPValue::FieldTable(fields) => {
            fields.inner().iter().map(|(name, value)| name.as_str().len() + size(value)).sum()
        }
        _ => 0,
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn text(value: impl Into<LongString>) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A header's value as text; `None` for what is no plain value.
fn rendered(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => return None,
    })
}

/// A message with its properties.
///
/// # Errors
/// As [`encode`].
pub(super) fn outgoing(message: Message, now: i64) -> Result<Outgoing, BrokerError> {
    Ok(Outgoing { properties: encode(message.attributes, now)?, body: message.body })
}

/// What goes over the wire.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    /// The payload.
    pub(super) body: bytes::Bytes,
    /// What stands beside it.
    pub(super) properties: BasicProperties,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_headers(pairs: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in pairs {
            headers.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn attributes_survive_the_way_there_and_back() {
        let pairs =
            [("a", ""), (attribute::CONTENT_TYPE, "text/plain"), ("ü", "日本"), (attribute::AMQP_REPLY_TO, "q")];
        let mut attributes: Attributes = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let properties = encode(attributes.clone(), 5).expect("AMQP carries them");
        attributes.insert(attribute::PUBLISHED_AT.to_owned(), "5".to_owned());
        assert_eq!(decode(&properties), attributes);
        assert_eq!(decode(&again(&properties, 3)), attributes);
    }

    #[test]
    fn attempts_add_up_over_copies_and_deliveries() {
        let count = |count| (DELIVERY_COUNT, AMQPValue::LongLongInt(count));
        assert_eq!(attempt(&BasicProperties::default(), false), 1);
        assert_eq!(attempt(&BasicProperties::default(), true), 2);
        assert_eq!(attempt(&with_headers(&[count(3)]), true), 4);
        let copy = again(&with_headers(&[count(3)]), 4);
        assert_eq!(attempt(&copy, false), 4);
        for wrong in ["", "-1", "many", "99999999999"] {
            assert_eq!(attempt(&with_headers(&[(attribute::ATTEMPT, text(wrong))]), false), 1);
        }
        assert_eq!(attempt(&with_headers(&[(attribute::ATTEMPT, text("4294967295")), count(9)]), false), u32::MAX);
    }

    #[test]
    fn a_copy_remembers_why_the_broker_set_it_aside() {
        let mut latest = FieldTable::default();
        latest.insert("reason".into(), text("delivery_limit"));
        latest.insert("queue".into(), text("jobs"));
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(latest)].into());
        let copy = again(&with_headers(&[(DEATHS, deaths)]), 1);
        assert!(header(&copy, DEATHS).is_none());
        let told = decode(&copy);
        assert_eq!((&*told[attribute::DEAD_REASON], &*told[attribute::DEAD_QUEUE]), ("delivery_limit", "jobs"));
    }

    #[test]
    fn a_message_that_expired_in_its_queue_says_so_and_one_that_was_delayed_does_not() {
        let told = |queue: &str| {
            let mut latest = FieldTable::default();
            latest.insert("reason".into(), text("expired"));
            latest.insert("queue".into(), text(queue));
            let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(latest)].into());
            decode(&with_headers(&[(DEATHS, deaths)])).remove(attribute::DEAD_REASON)
        };
        assert_eq!((told("jobs"), told("jobs.delay.30")), (Some("expired".to_owned()), None));
    }

    #[test]
    fn a_copy_carries_nothing_that_keeps_the_broker_from_taking_it() {
        let headers = [
            ("CC", AMQPValue::FieldArray(vec![text("elsewhere")].into())),
            ("kept", text("x")),
            ("large", text("x".repeat(ATTRIBUTES_BYTES_MAX))),
        ];
        let original = with_headers(&headers).with_user_id("somebody".into()).with_expiration("60000".into());
        let original = original.with_priority(9).with_type("t".into()).with_timestamp(7);
        let epitaph = Epitaph { reason: "r", queue: "q", attempt: 1, at: 0 };
        for (copy, expiration) in [(again(&original, 2), Some("60000")), (dead(&original, &epitaph), None)] {
            let names: Vec<_> =
                copy.headers().iter().flat_map(FieldTable::inner).map(|(name, _)| name.as_str()).collect();
            assert!(names.contains(&"kept") && !names.contains(&"CC") && !names.contains(&"large"), "{names:?}");
            assert_eq!((copy.user_id(), copy.expiration().as_ref().map(ShortString::as_str)), (&None, expiration));
            assert_eq!((copy.priority(), copy.timestamp()), (&Some(9), &Some(7)));
            assert_eq!(copy.kind().as_ref().map(ShortString::as_str), Some("t"));
        }
    }

    #[test]
    fn what_amqp_can_not_carry_is_refused() {
        let one = |name: String, value: String| encode(Attributes::from([(name, value)]), 0);
        assert!(matches!(one("n".repeat(256), String::new()), Err(BrokerError::Refused(_))));
        assert!(matches!(one("n".to_owned(), "v".repeat(200 << 10)), Err(BrokerError::Refused(_))));
        assert!(one("n".repeat(255), "v".repeat(64 << 10)).is_ok());
    }
}
