//! The manifest of a job that was split: what its parts are and what is in them.
//!
//! In: what the workers know of finished parts. Out: `{prefix}{id}/_manifest.json`, the object that the job's pointer
//! reply names, and the names of everything that lies beside it. Pure. The parts lie in folders of [`GROUP`] each, so
//! that nobody ever lists more than one folder to know whether it is complete.

use serde::{Deserialize, Serialize};

use crate::job::{JobId, ObjectFormat, VERSION};
use crate::reply::{Status, Usage};

/// Parts of one folder.
pub const GROUP: u32 = 100;
/// The manifest's name, below the job's folder.
pub const MANIFEST: &str = "_manifest.json";

/// Which parts a split job has; the job is complete when there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The wire format's version, always 1.
    pub version: u32,
    /// The job's id.
    pub id: JobId,
    /// The name of the model that ran it.
    pub model: String,
    /// The object that it read.
    pub input_uri: String,
    /// The version of that object.
    pub etag: String,
    /// The format of every part.
    pub format: ObjectFormat,
    /// How the job as a whole ended.
    pub status: Status,
    /// What was counted, all parts together.
    pub usage: Usage,
    /// Every part, in the order of the input.
    pub parts: Vec<Part>,
}

/// One part: the results of one shard, one entry an item, with indices that count from the job's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name, below the folder that the manifest lies in.
    pub name: String,
    /// How its items ended.
    pub status: Status,
    /// What was counted.
    #[serde(flatten)]
    pub usage: Usage,
}

impl Manifest {
    /// The manifest as JSON.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys")
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When the bytes are none, or are of another version.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(body).map_err(|error| format!("not a manifest: {error}"))?;
        if manifest.version != VERSION {
            return Err(format!("manifest version {} is not supported; this build reads {VERSION}", manifest.version));
        }
        Ok(manifest)
    }
}

/// How several pieces together ended, and what was counted in all.
pub fn sum<'a>(parts: impl IntoIterator<Item = &'a Part>) -> (Status, Usage) {
    let mut usage = Usage::default();
    let (mut all, mut any, mut expired) = (true, false, true);
    for part in parts {
        usage.items = usage.items.saturating_add(part.usage.items);
        usage.tokens += part.usage.tokens;
        all &= part.status == Status::Succeeded;
        any |= matches!(part.status, Status::Succeeded | Status::Partial);
        expired &= part.status == Status::Expired;
    }
    let status = match (all, any, expired) {
        (true, ..) => Status::Succeeded,
        (_, true, _) => Status::Partial,
        (_, _, true) => Status::Expired,
        _ => Status::Failed,
    };
    (status, usage)
}

/// The name of part `number` below the job's folder.
pub fn part_name(number: u32, format: ObjectFormat) -> String {
    format!("{}{number:05}.{}", group_name(number / GROUP), format.extension())
}

/// The folder that the parts of `group` lie in.
pub fn group_name(group: u32) -> String {
    format!("part-{group:03}/")
}

/// How many parts `group` has when a job has `count`.
pub fn group_size(group: u32, count: u32) -> u32 {
    count.saturating_sub(group * GROUP).min(GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_one_group() {
        for count in [1u32, 99, 100, 101, 250, 10_000] {
            let groups = count.div_ceil(GROUP);
            assert_eq!((0..groups).map(|group| group_size(group, count)).sum::<u32>(), count);
            assert!((0..groups).all(|group| group_size(group, count) > 0));
        }
        assert_eq!(part_name(0, ObjectFormat::Jsonl), "part-000/00000.jsonl");
        assert_eq!(part_name(99_999, ObjectFormat::Parquet), "part-999/99999.parquet");
    }

    #[test]
    fn parts_together_end_as_items_together_do() {
        use Status::{Expired, Failed, Partial, Rejected, Succeeded};
        for (statuses, whole) in [
            (vec![Succeeded, Succeeded], Succeeded),
            (vec![Succeeded, Failed], Partial),
            (vec![Partial, Failed], Partial),
            (vec![Failed, Expired], Failed),
            (vec![Expired, Expired], Expired),
            (vec![Rejected], Failed),
        ] {
            let part = |status| Part { name: String::new(), status, usage: Usage { items: 2, tokens: 3 } };
            let parts: Vec<Part> = statuses.iter().copied().map(part).collect();
            let usage = Usage { items: 2 * parts.len() as u32, tokens: 3 * parts.len() as u64 };
            assert_eq!(sum(&parts), (whole, usage), "{statuses:?}");
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let part =
            Part { name: "part-000/00000.jsonl".into(), status: Status::Partial, usage: Usage { items: 2, tokens: 9 } };
        let manifest = Manifest {
            version: VERSION,
            id: JobId::new("nightly").expect("an id"),
            model: "echo".into(),
            input_uri: "gs://bucket/texts.jsonl".into(),
            etag: "\"1\"".into(),
            format: ObjectFormat::Jsonl,
            status: Status::Partial,
            usage: part.usage,
            parts: vec![part],
        };
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
        let newer = Manifest { version: 2, ..manifest };
        assert!(Manifest::decode(&newer.encode()).is_err_and(|error| error.contains("version 2")));
    }
}
