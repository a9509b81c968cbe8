//! One line of an input → an item, or why it is none. Whoever reads lines reads them here, so that a text says the same
//! to a producer that sends it and to a worker that finds it in an object.
//!
//! In: the bytes of a line without its end, the names of the fields, the limits. Out: an [`Item`], or a [`BadLine`] that
//! says what is wrong and keeps the item's id where it could be read. It reads each line once, copies of it only what it
//! gives back, and must never panic. Pure.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Input, Item, Limits, clipped};
use crate::reply::ReplyError;

/// The names of the fields that are read from a JSON object; all others are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// Holds the text.
    pub text: String,
    /// Holds the item's id, a string or an integer; may be absent.
    pub id: String,
    /// What else is said of an object without a text: how another field is named, where it can be.
    pub hint: &'static str,
}

impl Default for Fields {
    fn default() -> Self {
        Self { text: "text".to_owned(), id: "id".to_owned(), hint: "" }
    }
}

/// A line that is no item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// The item's own id, where it could be read.
    pub id: Option<String>,
    /// What is wrong.
    pub error: ReplyError,
}

impl BadLine {
    /// It can't be read.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self { id: None, error: ReplyError::new("malformed", message) }
    }

    /// It passes a limit.
    pub fn too_long(what: &str, bytes: u64, limit: usize) -> Self {
        let message = format!("{what} has {bytes} bytes, the limit is {limit}: split or shorten it");
        Self { id: None, error: ReplyError::new("limit_exceeded", message) }
    }

    /// The same, with the item's id.
    pub fn of(self, id: Option<String>) -> Self {
        Self { id, ..self }
    }
}

/// A line of a text file: its text as it stands.
///
/// # Errors
/// When it is too long or not UTF-8.
pub fn text(line: &[u8], limits: &Limits) -> Result<Item, BadLine> {
    if line.len() > limits.input_bytes {
        return Err(BadLine::too_long("the line", line.len() as u64, limits.input_bytes));
    }
    Ok(Item { id: None, input: Input::Text(utf8(line)?.to_owned()) })
}

/// A line of a JSONL file: a string, an object or a pair.
///
/// # Errors
/// When it is none of these, or passes a limit.
pub fn item(line: &[u8], fields: &Fields, limits: &Limits) -> Result<Item, BadLine> {
    let line = utf8(line)?.trim_ascii();
    let item = if line.starts_with('{') { object(line, fields)? } else { string_or_pair(line)? };
    let bytes = item.input.len_bytes();
    if bytes > limits.input_bytes {
        return Err(BadLine::too_long("the text", bytes as u64, limits.input_bytes).of(item.id));
    }
    Ok(item)
}

fn utf8(line: &[u8]) -> Result<&str, BadLine> {
    std::str::from_utf8(line)
        .map_err(|error| BadLine::malformed(format!("not UTF-8 from byte {} on", error.valid_up_to())))
}

fn string_or_pair(line: &str) -> Result<Item, BadLine> {
    serde_json::from_str(line).map_err(|error| {
        BadLine::malformed(format!("not a JSON string, an object or a pair of strings: {}", column_only(&error)))
    })
}

fn object(line: &str, fields: &Fields) -> Result<Item, BadLine> {
    let found = found(line, fields)
        .map_err(|error| BadLine::malformed(format!("not a JSON object: {}", column_only(&error))))?;
    if let Some(twice) = found.twice {
        return Err(BadLine::malformed(format!("field {twice:?} stands twice")));
    }
    let id = found.id.map_or(Ok(None), |id| item_id(id, &fields.id))?;
    match found.text {
        Some(Value::Text(text)) => Ok(Item { id, input: Input::Text(text) }),
        Some(_) => Err(BadLine::malformed(format!("field {:?} is no string", fields.text)).of(id)),
        None => {
            let message = format!("the object has no field {:?}{}", fields.text, fields.hint);
            Err(BadLine::malformed(message).of(id))
        }
    }
}

/// An item's id: a string or an integer; `null` is none.
fn item_id(id: Value, field: &str) -> Result<Option<String>, BadLine> {
    let id = match id {
        Value::Null => return Ok(None),
        Value::Text(id) | Value::Integer(id) => id,
        Value::Other => return Err(BadLine::malformed(format!("field {field:?} is no string or integer"))),
    };
    check_id(&id, &format_args!("field {field:?}"))?;
    Ok(Some(id))
}

/// Checks the length of an item's id.
///
/// # Errors
/// When it is empty or too long; the message begins with `what`.
pub fn check_id(id: &str, what: &dyn fmt::Display) -> Result<(), BadLine> {
    let (bytes, limit) = (id.len(), Item::ID_BYTES_MAX);
    if bytes == 0 || bytes > limit {
        return Err(BadLine::malformed(format!("{what} has {bytes} bytes, an id must have 1 to {limit}")));
    }
    Ok(())
}

/// A JSON error without the line, which is always 1 here. What was sent may be quoted in it, but only a little.
fn column_only(error: &serde_json::Error) -> String {
    clipped(error.to_string().replace(" at line 1 column", " at column"))
}

fn found(line: &str, fields: &Fields) -> serde_json::Result<Found> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = json.deserialize_map(ObjectVisitor(fields))?;
    json.end().map(|()| found)
}

/// What an object holds of the two fields.
#[derive(Default)]
struct Found {
    text: Option<Value>,
    id: Option<Value>,
    twice: Option<String>,
}

/// A field's value, as far as it matters here.
enum Value {
    Null,
    Text(String),
    Integer(String),
    Other,
}

struct ObjectVisitor<'f>(&'f Fields);

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(key) = map.next_key_seed(KeySeed(self.0))? {
            let (slot, name) = match key {
                Key::Text => (&mut found.text, &self.0.text),
                Key::Id => (&mut found.id, &self.0.id),
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.replace(map.next_value_seed(ValueSeed)?).is_some() {
                found.twice = Some(name.clone());
            }
        }
        Ok(found)
    }
}

/// Which field a key names. The key itself is not copied.
enum Key {
    Text,
    Id,
    Other,
}

struct KeySeed<'f>(&'f Fields);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(match name {
            name if name == self.0.text => Key::Text,
            name if name == self.0.id => Key::Id,
            _ => Key::Other,
        })
    }
}

struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Integer(number.to_string()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

#[cfg(test)]
mod tests;
