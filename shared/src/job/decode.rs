//! Reads a job from bytes that anybody may have written.
//!
//! In: a body and the limits. Out: a job, or a fault that names the field, the limit and the way out, with the job's id
//! wherever that could be read. The fields are first found in the body without being copied; each is then read only
//! when its size is known to be within its limit. So memory stays within a few times the body's own limit, and no
//! message repeats more than a little of what was sent. It must never panic.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::value::{Deadline, NonEmpty, Object};
use super::{DecodeError, DecodeErrorKind, Input, Inputs, Item, Job, JobId, Limits, Metadata, VERSION};

/// The most that any field but `inputs` and `metadata` may take, in bytes of JSON: names, addresses, instants.
const FIELD_BYTES_MAX: usize = 4096;

/// The longest message of a fault, in bytes: what was sent may be quoted in it.
const MESSAGE_BYTES_MAX: usize = 512;

pub(super) fn job(body: &[u8], limits: &Limits) -> Result<Job, DecodeError> {
    let text = text(body, limits)?;
    let mut fields = Fields::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let found = FieldsSeed(&mut fields).deserialize(&mut json).and_then(|()| json.end());
    // What was found before the fault may hold the id.
    let id = fields.id();
    found
        .map_err(|error| fault(DecodeErrorKind::Malformed, error.to_string()))
        .and_then(|()| fields.job(limits))
        .map_err(|error| DecodeError { id: id.ok(), ..error })
}

/// The body as text that is an object and is not nested too deep.
fn text<'a>(body: &'a [u8], limits: &Limits) -> Result<&'a str, DecodeError> {
    if body.len() > limits.body_bytes {
        let (bytes, limit) = (body.len(), limits.body_bytes);
        return Err(too_large(format!(
            "the body has {bytes} bytes, the limit is {limit}: put fewer inputs into a job"
        )));
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let offset = error.valid_up_to();
        fault(DecodeErrorKind::Malformed, format!("the body is not UTF-8 at byte {offset}: send UTF-8 JSON"))
    })?;
    if text.starts_with('\u{feff}') {
        return Err(fault(DecodeErrorKind::Malformed, "the body starts with a byte order mark: leave it out"));
    }
    if !text.trim_ascii_start().starts_with('{') {
        return Err(fault(DecodeErrorKind::Malformed, "the body is not a JSON object"));
    }
    if let Some(offset) = nesting_passes(body, limits.nesting) {
        let limit = limits.nesting;
        let message = format!("more than {limit} arrays and objects in one another at byte {offset}: flatten the job");
        return Err(too_large(message));
    }
    Ok(text)
}

/// The offset of the first bracket that nests deeper than `limit`, if any. Looks only at brackets outside strings.
fn nesting_passes(json: &[u8], limit: usize) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (offset, byte) in json.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return Some(offset);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The fields as they stand in the body, not yet read; `null` is absent.
#[derive(Default)]
struct Fields<'a> {
    version: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    model: Option<&'a RawValue>,
    inputs: Option<&'a RawValue>,
    input_uri: Option<&'a RawValue>,
    shard: Option<&'a RawValue>,
    parameters: Option<&'a RawValue>,
    reply_to: Option<&'a RawValue>,
    deadline: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn slot(&mut self, field: &str) -> Option<&mut Option<&'a RawValue>> {
        Some(match field {
            "version" => &mut self.version,
            "id" => &mut self.id,
            "model" => &mut self.model,
            "inputs" => &mut self.inputs,
            "input_uri" => &mut self.input_uri,
            "shard" => &mut self.shard,
            "parameters" => &mut self.parameters,
            "reply_to" => &mut self.reply_to,
            "deadline" => &mut self.deadline,
            "metadata" => &mut self.metadata,
            _ => return None,
        })
    }

    fn id(&self) -> Result<JobId, DecodeError> {
        required(self.id, "id")
    }

    fn job(&self, limits: &Limits) -> Result<Job, DecodeError> {
        check_version(required(self.version, "version")?)?;
        Ok(Job {
            id: self.id()?,
            model: optional(self.model, "model")?.map(|NonEmpty(model)| model),
            inputs: self.inputs(limits)?,
            parameters: optional(self.parameters, "parameters")?.unwrap_or_default(),
            reply_to: optional(self.reply_to, "reply_to")?,
            deadline: optional(self.deadline, "deadline")?.map(|Deadline(instant)| instant),
            metadata: self.metadata(limits)?,
        })
    }

    fn inputs(&self, limits: &Limits) -> Result<Inputs, DecodeError> {
        match (self.inputs, self.input_uri, self.shard) {
            (Some(raw), None, None) => Ok(Inputs::Items(items(raw, limits)?)),
            (None, Some(raw), shard) => {
                let NonEmpty(uri) = required(Some(raw), "input_uri")?;
                let shard = optional(shard, "shard")?.map(|Object(shard)| shard);
                Ok(shard.map_or_else(|| Inputs::Uri(uri.clone()), |shard| Inputs::Shard { uri: uri.clone(), shard }))
            }
            (None, None, _) => Err(invalid("inputs is missing: a job has either inputs or input_uri")),
            (Some(_), Some(_), _) => Err(invalid("input_uri stands beside inputs: a job has one of the two")),
            (Some(_), None, Some(_)) => Err(invalid("shard stands beside inputs: it goes with input_uri")),
        }
    }

    fn metadata(&self, limits: &Limits) -> Result<Metadata, DecodeError> {
        let Some(raw) = self.metadata else { return Ok(Metadata::default()) };
        check_size(raw, "metadata", limits.metadata_bytes)?;
        read(raw, &"metadata")
    }
}

/// Finds the fields, and leaves those found before a fault where they are.
struct FieldsSeed<'s, 'a>(&'s mut Fields<'a>);

impl<'a> DeserializeSeed<'a> for FieldsSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for FieldsSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(field)) = map.next_key()? {
            let Some(slot) = field.and_then(|field| self.0.slot(field)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if slot.is_some() {
                // Which of the two would be meant? Not even the id is certain then.
                self.0.id = self.0.id.filter(|_| field != Some("id"));
                return Err(de::Error::custom(format_args!("{} stands twice", field.unwrap_or_default())));
            }
            *slot = map.next_value()?;
        }
        Ok(())
    }
}

/// A key of the job's object if it is one of ours. No other is copied, however long it is.
struct Key(Option<&'static str>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a field's name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Key, E> {
        const FIELDS: [&str; 10] = [
            "version",
            "id",
            "model",
            "inputs",
            "input_uri",
            "shard",
            "parameters",
            "reply_to",
            "deadline",
            "metadata",
        ];
        Ok(Key(FIELDS.into_iter().find(|field| *field == name)))
    }
}

fn check_version(version: u64) -> Result<(), DecodeError> {
    match version {
        0 => Err(invalid("version: is 0, the first is 1")),
        version if version == u64::from(VERSION) => Ok(()),
        newer => {
            let message = format!("version: {newer} is newer than {VERSION}, which this worker reads: upgrade it");
            Err(fault(DecodeErrorKind::Version, message))
        }
    }
}

fn items(raw: &RawValue, limits: &Limits) -> Result<Vec<Item>, DecodeError> {
    if !raw.get().starts_with('[') {
        return Err(invalid("inputs: expected an array"));
    }
    let mut entries = Vec::new();
    let mut json = serde_json::Deserializer::from_str(raw.get());
    let all = EntriesSeed { entries: &mut entries, limit: limits.items }.deserialize(&mut json);
    if entries.len() > limits.items {
        let limit = limits.items;
        return Err(too_large(format!("inputs has more than {limit} entries, the limit: use more jobs or input_uri")));
    }
    all.map_err(|error| invalid(format!("inputs: {}", without_position(&error))))?;
    if entries.is_empty() {
        return Err(invalid("inputs: must have at least one entry"));
    }
    entries.into_iter().enumerate().map(|(index, entry)| item(entry, index, limits)).collect()
}

fn item(raw: &RawValue, index: usize, limits: &Limits) -> Result<Item, DecodeError> {
    let item: Item = read(raw, &format_args!("inputs[{index}]"))?;
    let (bytes, limit) = (item.input.len_bytes(), limits.input_bytes);
    if bytes > limit {
        let part = if matches!(item.input, Input::Text(_)) && raw.get().starts_with('{') { ".text" } else { "" };
        let message = format!("inputs[{index}]{part} has {bytes} bytes, the limit is {limit}: split the text");
        return Err(too_large(message));
    }
    Ok(item)
}

/// Finds the entries of an array, and stops at the first beyond the limit.
struct EntriesSeed<'s, 'a> {
    entries: &'s mut Vec<&'a RawValue>,
    limit: usize,
}

impl<'a> DeserializeSeed<'a> for EntriesSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for EntriesSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        while self.entries.len() <= self.limit {
            let Some(entry) = seq.next_element()? else { break };
            self.entries.push(entry);
        }
        Ok(())
    }
}

fn required<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, field: &str) -> Result<T, DecodeError> {
    optional(raw, field)?.ok_or_else(|| invalid(format!("{field} is missing")))
}

fn optional<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, field: &str) -> Result<Option<T>, DecodeError> {
    let Some(raw) = raw else { return Ok(None) };
    check_size(raw, field, FIELD_BYTES_MAX)?;
    read(raw, &field).map(Some)
}

fn check_size(raw: &RawValue, field: &str, limit: usize) -> Result<(), DecodeError> {
    let bytes = raw.get().len();
    if bytes > limit {
        return Err(too_large(format!("{field} has {bytes} bytes of JSON, the limit is {limit}: shorten it")));
    }
    Ok(())
}

/// Reads the value at `path`. Only a value that is wrong is read a second time, to find out where.
fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue, path: &dyn fmt::Display) -> Result<T, DecodeError> {
    serde_json::from_str(raw.get()).map_err(|error| {
        let mut json = serde_json::Deserializer::from_str(raw.get());
        let tracked: Result<T, _> = serde_path_to_error::deserialize(&mut json);
        let within = tracked.err().map_or_else(String::new, |error| error.path().to_string());
        let separator = if within.starts_with('[') || within == "." { "" } else { "." };
        let within = if within == "." { "" } else { &within };
        invalid(format!("{path}{separator}{within}: {}", without_position(&error)))
    })
}

/// The message of a JSON error without its line and column, which count from the field and would mislead.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(text, _)| text.to_owned())
}

fn invalid(message: impl Into<String>) -> DecodeError {
    fault(DecodeErrorKind::Invalid, message)
}

fn too_large(message: String) -> DecodeError {
    fault(DecodeErrorKind::TooLarge, message)
}

fn fault(kind: DecodeErrorKind, message: impl Into<String>) -> DecodeError {
    DecodeError { kind, message: clipped(message.into()), id: None }
}

/// A message that quotes no more than a little of what was sent.
pub(crate) fn clipped(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}
