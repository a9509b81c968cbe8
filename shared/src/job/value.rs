//! How the parts of a job are read: items, parameters, where the reply goes, instants and words.
//!
//! In: JSON of bounded size, which `decode.rs` has found. Out: a value, or a fragment that says what was expected; the
//! path to it is added there. What is refused here is refused by `docs/job.schema.json` too, and the other way round.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Encoding, Input, Item, ObjectFormat, Parameters, ReplyTo};

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, {\"id\",\"text\"}, or [\"query\",\"passage\"]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item { id: None, input: Input::Text(text.to_owned()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let pair = || de::Error::custom("a pair must be exactly a query and a passage");
        let query = seq.next_element()?.ok_or_else(pair)?;
        let passage = seq.next_element()?.ok_or_else(pair)?;
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(pair());
        }
        Ok(Item { id: None, input: Input::Pair(query, passage) })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
        #[derive(Deserialize)]
        struct Named {
            id: Option<ItemId>,
            text: String,
        }
        let Named { id, text } = Named::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(Item { id: id.map(|ItemId(id)| id), input: Input::Text(text) })
    }
}

struct ItemId(String);

impl<'de> Deserialize<'de> for ItemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        let (bytes, limit) = (id.len(), Item::ID_BYTES_MAX);
        if id.is_empty() || bytes > limit {
            return Err(de::Error::custom(format_args!("must have 1 to {limit} bytes, has {bytes}")));
        }
        Ok(Self(id))
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            truncate: Option<bool>,
            normalize: Option<bool>,
            dimensions: Option<NonZeroU32>,
            encoding: Option<Encoding>,
        }
        let Object(raw) = Object::<Raw>::deserialize(deserializer)?;
        let default = Self::default();
        Ok(Self {
            truncate: raw.truncate.unwrap_or(default.truncate),
            normalize: raw.normalize.unwrap_or(default.normalize),
            dimensions: raw.dimensions.map(u32::from),
            encoding: raw.encoding.unwrap_or_default(),
        })
    }
}

impl<'de> Deserialize<'de> for ReplyTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            queue: Option<NonEmpty>,
            uri: Option<NonEmpty>,
            format: Option<ObjectFormat>,
        }
        let Object(raw) = Object::<Raw>::deserialize(deserializer)?;
        match (raw.queue, raw.uri, raw.format) {
            (Some(NonEmpty(queue)), None, None) => Ok(Self::Queue(queue)),
            (Some(_), None, Some(_)) => Err(de::Error::custom("format goes with uri, not with queue")),
            (None, Some(NonEmpty(prefix)), format) if prefix.ends_with('/') => {
                Ok(Self::Bucket { prefix, format: format.unwrap_or_default() })
            }
            (None, Some(_), _) => Err(de::Error::custom("uri must be a prefix that ends in /")),
            _ => Err(de::Error::custom("must have exactly one of queue and uri")),
        }
    }
}

/// A `T` written as an object. Serde's own structs are also read from arrays, which the schema does not allow.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}

/// A text that is not empty.
pub(super) struct NonEmpty(pub(super) String);

impl<'de> Deserialize<'de> for NonEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(de::Error::custom("must not be empty"));
        }
        Ok(Self(text))
    }
}

/// An instant in RFC 3339's own form, which clients in every language write: `2026-12-01T12:00:00Z`, fractions and
/// offsets allowed. jiff alone would read much more.
pub(super) struct Deadline(pub(super) Timestamp);

impl<'de> Deserialize<'de> for Deadline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = || de::Error::custom("expected an instant like 2026-12-01T12:00:00Z (RFC 3339)");
        if !is_rfc_3339(text.as_bytes()) {
            return Err(expected());
        }
        text.parse().ok().or_else(|| end_of_time(&text)).map(Self).ok_or_else(expected)
    }
}

/// The latest instant there is, for one in the year 9999 that lies beyond: clients write `9999-12-31T23:59:59Z` for
/// "never", which is some hours later than jiff's last.
fn end_of_time(text: &str) -> Option<Timestamp> {
    let a_year_before = format!("9998{}", text.strip_prefix("9999")?);
    a_year_before.parse::<Timestamp>().is_ok().then_some(Timestamp::MAX)
}

fn is_rfc_3339(text: &[u8]) -> bool {
    let Some((date_time, rest)) = text.split_at_checked(19) else { return false };
    let fraction = match rest.split_first() {
        Some((b'.', rest)) => rest.iter().take_while(|byte| byte.is_ascii_digit()).count(),
        _ => 0,
    };
    let offset = match rest.first() {
        Some(b'.') => &rest[1 + fraction..],
        _ => rest,
    };
    let fraction_is_well_formed = rest.first() != Some(&b'.') || (1..=9).contains(&fraction);
    fraction_is_well_formed && looks_like(date_time, b"0000-00-00T00:00:00") && is_offset(offset)
}

fn is_offset(text: &[u8]) -> bool {
    text == b"Z" || looks_like(text, b"+00:00") || looks_like(text, b"-00:00")
}

/// Whether `text` has a digit wherever `pattern` has a 0, and is equal elsewhere.
fn looks_like(text: &[u8], pattern: &[u8]) -> bool {
    let same = |(byte, model): (&u8, &u8)| if *model == b'0' { byte.is_ascii_digit() } else { byte == model };
    text.len() == pattern.len() && text.iter().zip(pattern).all(same)
}

/// Reads one of a fixed set of words. Serde's own enums are also read from `{"word": null}`, which the schema does not
/// allow.
pub(crate) fn one_of<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    words: &[(&'static str, T)],
) -> Result<T, D::Error> {
    let word = String::deserialize(deserializer)?;
    let found = words.iter().find(|(known, _)| *known == word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        de::Error::custom(format_args!("must be one of {}", known.join(", ")))
    })
}
