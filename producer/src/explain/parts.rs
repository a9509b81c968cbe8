//! Which parts of a split job are in its bucket.
//!
//! In: the job's folder, and how many shards it has where that is known. Out: [`Parts`]. It lists a folder of a hundred
//! parts at a time, reads the manifest where there is one, and changes nothing.

use std::collections::BTreeSet;

use inferq_shared::bucket::{BucketError, Buckets, Uri, UriError};
use inferq_shared::manifest::{GROUP, MANIFEST, Manifest, group_name, group_size};
use serde::Serialize;

/// Shards that are named one by one.
const NAMED: usize = 20;
/// A manifest of 100,000 parts has about 10 MB.
const MANIFEST_BYTES: u64 = 64 << 20;

/// How far a split job is, as its bucket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Parts {
    /// The job's folder.
    pub(super) folder: String,
    /// How many shards there are.
    pub(super) shards: Option<u32>,
    /// How many have a part.
    pub(super) there: u32,
    /// The first that have none.
    pub(super) missing: Vec<u32>,
    /// The manifest is there: nothing is missing.
    pub(super) complete: bool,
}

/// What of a job's folder can be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartsError {
    /// The job has no such folder.
    #[error("its folder {0}")]
    Name(#[from] UriError),
    /// The bucket can't be read.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// What is there is no manifest.
    #[error("{0}: {1}")]
    Manifest(Uri, String),
}

impl Parts {
    /// Looks for the parts of `job` beneath `prefix`. `None`: it has none, and nobody knows that it should.
    ///
    /// # Errors
    /// When the bucket can't be read.
    pub(super) async fn look(
        buckets: &Buckets,
        prefix: &Uri,
        job: &str,
        shards: Option<u32>,
    ) -> Result<Option<Self>, PartsError> {
        let folder = prefix.join(&format!("{job}/"))?;
        let manifest = folder.join(MANIFEST)?;
        if let Some((_, body)) = buckets.read_all(&manifest, MANIFEST_BYTES).await? {
            let parts = Manifest::decode(&body).map_err(|why| PartsError::Manifest(manifest, why))?.parts.len() as u32;
            let folder = folder.to_string();
            return Ok(Some(Self { folder, shards: Some(parts), there: parts, missing: Vec::new(), complete: true }));
        }
        let numbers = numbers_in(buckets, &folder, shards).await?;
        if numbers.is_empty() && shards.is_none() {
            return Ok(None);
        }
        let missing = (0..shards.unwrap_or(0)).filter(|number| !numbers.contains(number)).take(NAMED).collect();
        let (folder, there) = (folder.to_string(), numbers.len() as u32);
        Ok(Some(Self { folder, shards, there, missing, complete: false }))
    }
}

/// The numbers of the parts that are there: of each folder, or up to the first empty one where nobody knows how many there
/// should be.
async fn numbers_in(buckets: &Buckets, folder: &Uri, shards: Option<u32>) -> Result<BTreeSet<u32>, PartsError> {
    let mut numbers = BTreeSet::new();
    for group in 0.. {
        if shards.is_some_and(|shards| group_size(group, shards) == 0) {
            break;
        }
        let listed = buckets.list(&folder.join(&group_name(group))?, None).await?;
        let found = listed.iter().filter_map(|object| object.uri.name().split('.').next()?.parse::<u32>().ok());
        let before = numbers.len();
        numbers.extend(found.filter(|number| number / GROUP == group));
        if shards.is_none() && numbers.len() == before {
            break;
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use inferq_shared::job::ObjectFormat;
    use inferq_shared::manifest::part_name;

    use super::*;

    #[tokio::test]
    async fn parts_are_counted_over_all_folders_and_the_missing_ones_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("its path").join("out/");
        let (buckets, prefix) = (Buckets::with_options([]), Uri::from_path(&path).expect("an address"));
        let parts = async |shards| Parts::look(&buckets, &prefix, "job", shards).await.expect("a folder can be read");
        assert_eq!(parts(None).await, None);
        for number in (0..205).filter(|number| ![7, 150].contains(number)) {
            let uri = prefix.join(&format!("job/{}", part_name(number, ObjectFormat::Jsonl))).expect("an address");
            buckets.create(&uri, Bytes::from_static(b"{}"), "digest").await.expect("it is put");
        }
        let found = parts(Some(206)).await.expect("it has parts");
        assert_eq!((found.there, &found.missing[..], found.complete), (203, &[7, 150, 205][..], false));
        let found = parts(None).await.expect("it has parts");
        assert_eq!((found.shards, found.there, found.missing.len()), (None, 203, 0));
    }
}
