//! Which piece of a large input a job is, and the id of a job that can be in pieces.
//!
//! In: numbers from whoever may publish. Out: a [`Shard`], its own id, or what is wrong with it. Pure.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::JobId;

/// Which piece of a large input a job is: what its parent's worker found when it counted the lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The job that was split.
    pub parent: ParentId,
    /// Its place among the shards, from 0.
    pub number: u32,
    /// How many shards there are.
    pub count: u32,
    /// The object's version that was counted.
    pub etag: String,
    /// Its lines were unpacked into an object of their own, beside the parts: all of that is the piece.
    pub unpacked: bool,
    /// The first byte of the piece.
    pub from: u64,
    /// The byte after its last.
    pub to: u64,
    /// The number of its first line in the whole input, from 1.
    pub line: u64,
    /// The index of its first item in the whole input, from 0.
    pub index: u32,
    /// Items in it.
    pub items: u32,
}

impl Shard {
    /// The most shards of a job: what five digits of an id can tell apart.
    pub const COUNT_MAX: u32 = 100_000;

    /// The shard's own id: `{parent}.{number}`, five digits.
    pub fn id(&self) -> JobId {
        let id = format!("{}.{:05}", self.parent.0, self.number);
        JobId::new(id).expect("a parent's id leaves room for a number")
    }

    /// What is wrong with its numbers, if anything: they come from whoever may publish.
    pub fn fault(&self) -> Option<String> {
        let Self { number, count, from, to, index, items, .. } = self;
        if *count == 0 || *count > Self::COUNT_MAX || number >= count {
            return Some(format!(
                "shard.number is {number} of {count}, it must be below, and that at most {}",
                Self::COUNT_MAX
            ));
        }
        if from >= to || *items == 0 || index.checked_add(*items).is_none() {
            return Some(format!("shard has {items} items from {index} in bytes {from} to {to}, it must have some"));
        }
        None
    }
}

/// The id of a job that can be split: one with room for a shard's number, at most 120 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ParentId(JobId);

impl ParentId {
    /// The longest id, in characters.
    pub const LENGTH_MAX: usize = 120;

    /// Checks that a job's id leaves room.
    ///
    /// # Errors
    /// What is wrong with it, as a fragment.
    pub fn new(id: JobId) -> Result<Self, String> {
        let (length, limit) = (id.as_str().len(), Self::LENGTH_MAX);
        if length > limit {
            return Err(format!(
                "the id of a job that is split must have at most {limit} characters, this one has {length}"
            ));
        }
        Ok(Self(id))
    }

    /// The job's id.
    pub fn as_job(&self) -> &JobId {
        &self.0
    }
}

impl fmt::Display for ParentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl<'de> Deserialize<'de> for ParentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(JobId::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
