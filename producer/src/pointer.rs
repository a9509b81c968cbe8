//! Replies that point at objects: from there to the results themselves.
//!
//! In: replies, which come from whoever may publish on the route, and the prefixes that results may be read from. Out: the
//! results of an object, or the parts of a job that was split. A pointer is followed only to an object of its own job,
//! beneath a prefix that the submission asked for or the user allowed. It holds one object at a time.

use bytes::Bytes;
use inferq_shared::bucket::{AllowList, BucketError, Buckets, Uri};
use inferq_shared::columns;
use inferq_shared::job::ObjectFormat;
use inferq_shared::manifest::{MANIFEST, Manifest, Part};
use inferq_shared::reply::{ItemResult, Reply};

/// The flag that allows further prefixes.
const FLAG: &str = "--allow-read";
/// The largest object that is read; a part of 10,000 items with vectors of 1,024 numbers as JSON has about 120 MB.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// Why a pointer leads to no results.
#[derive(Debug, thiserror::Error)]
pub enum PointerError {
    /// It points where it must not, or at what answers no job.
    #[error("{0}")]
    Unfit(String),
    /// The object can't be read.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Follows pointers.
#[derive(Debug, Clone)]
pub struct Pointers {
    buckets: Buckets,
    allowed: AllowList,
}

/// What a reply points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One object with all results.
    Object(Uri, ObjectFormat),
    /// The manifest of a job that was split.
    Manifest(Uri),
}

impl Pointers {
    /// Follows what points beneath `allowed`, and nothing else.
    pub fn new(buckets: Buckets, allowed: AllowList) -> Self {
        Self { buckets, allowed }
    }

    /// Follows nothing.
    pub fn none() -> Self {
        Self::new(Buckets::with_options([]), AllowList::default())
    }

    /// What `reply` points at; none if it holds its results, or an error, itself.
    ///
    /// # Errors
    /// When it points where it must not.
    pub fn target(&self, reply: &Reply) -> Result<Option<Target>, PointerError> {
        let Some(text) = reply.output_uri.as_ref().filter(|_| reply.results.is_empty()) else { return Ok(None) };
        let uri = Uri::parse(text).map_err(|why| PointerError::Unfit(format!("output_uri {why}")))?;
        self.allowed.check(&uri, FLAG).map_err(|error| PointerError::Unfit(error.to_string()))?;
        let target = target_of(uri, reply.id.as_str());
        target.map(Some).ok_or_else(|| PointerError::Unfit(format!("{text} names no results of job {}", reply.id)))
    }

    /// The reply with the results that it points at. One of a job that was split stays as it is.
    ///
    /// # Errors
    /// When it points where it must not, or its object can't be read.
    pub async fn inlined(&self, mut reply: Reply) -> Result<Reply, PointerError> {
        if let Some(Target::Object(uri, format)) = self.target(&reply)? {
            reply.results = self.results(&uri, format).await?;
        }
        Ok(reply)
    }

    /// The manifest at `uri`.
    ///
    /// # Errors
    /// When it can't be read, or is none.
    pub async fn manifest(&self, uri: &Uri) -> Result<Manifest, PointerError> {
        let body = self.body(uri).await?;
        Manifest::decode(&body).map_err(|why| PointerError::Unfit(format!("{uri}: {why}")))
    }

    /// The results of one part of the manifest at `uri`.
    ///
    /// # Errors
    /// When they can't be read, or are not as many as the manifest says.
    pub async fn part(&self, uri: &Uri, manifest: &Manifest, part: &Part) -> Result<Vec<ItemResult>, PointerError> {
        let misnamed = |why| PointerError::Unfit(format!("{uri}: part {:?} {why}", part.name));
        let folder = uri.to_string();
        let folder = Uri::parse(folder.strip_suffix(MANIFEST).unwrap_or(&folder)).map_err(misnamed)?;
        let place = folder.join(&part.name).map_err(misnamed)?;
        let results = self.results(&place, manifest.format).await?;
        if results.len() as u64 != u64::from(part.usage.items) {
            let message = format!("{place}: has {} results, its manifest says {}", results.len(), part.usage.items);
            return Err(PointerError::Unfit(message));
        }
        Ok(results)
    }

    async fn results(&self, uri: &Uri, format: ObjectFormat) -> Result<Vec<ItemResult>, PointerError> {
        let body = self.body(uri).await?;
        let results = match format {
            ObjectFormat::Jsonl => lines(&body),
            ObjectFormat::Parquet => columns::read(body),
        };
        results.map_err(|why| PointerError::Unfit(format!("{uri}: {why}")))
    }

    async fn body(&self, uri: &Uri) -> Result<Bytes, BucketError> {
        let found = self.buckets.read_all(uri, OBJECT_BYTES_MAX).await?;
        found.map(|(_, body)| body).ok_or_else(|| BucketError::NotFound { uri: uri.clone() })
    }
}

/// The objects that job `id` may have: `{id}.jsonl`, `{id}.parquet`, `{id}/_manifest.json`.
fn target_of(uri: Uri, id: &str) -> Option<Target> {
    let of_job = uri.name().strip_prefix(id).and_then(|rest| rest.strip_prefix('.'));
    let formats = [ObjectFormat::Jsonl, ObjectFormat::Parquet];
    if let Some(format) = formats.into_iter().find(|format| of_job == Some(format.extension())) {
        return Some(Target::Object(uri, format));
    }
    let folder = uri.key().strip_suffix(MANIFEST)?.strip_suffix('/')?;
    (folder.rsplit('/').next() == Some(id)).then_some(Target::Manifest(uri))
}

fn lines(body: &[u8]) -> Result<Vec<ItemResult>, String> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let parse = |(number, line)| serde_json::from_slice(line).map_err(|error| format!("line {number}: {error}"));
    (1..).zip(lines).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointed(id: &str, uri: &str) -> Result<Option<Target>, String> {
        let body = format!(
            r#"{{"version":1,"id":"{id}","status":"succeeded","model":"m","revision":"","results":[],"error":null,
            "output_uri":"{uri}","usage":{{"items":2,"tokens":3}},
            "timings_ms":{{"queued":0,"intake":0,"batch":0,"engine":0}},"worker":"w","attempt":1,"metadata":{{}}}}"#
        );
        let reply = Reply::decode(body.as_bytes()).expect("a reply");
        let allowed = ["gs://bucket/out/".parse().expect("a prefix")].into_iter().collect();
        Pointers::new(Buckets::with_options([]), allowed).target(&reply).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pointer_is_followed_only_to_its_own_job_beneath_the_prefix() {
        let uri = |text: &str| Uri::parse(text).expect("an address");
        let good = [
            ("gs://bucket/out/s-1.jsonl", Target::Object(uri("gs://bucket/out/s-1.jsonl"), ObjectFormat::Jsonl)),
            ("gs://bucket/out/s-1.parquet", Target::Object(uri("gs://bucket/out/s-1.parquet"), ObjectFormat::Parquet)),
            ("gs://bucket/out/s-1/_manifest.json", Target::Manifest(uri("gs://bucket/out/s-1/_manifest.json"))),
        ];
        for (text, target) in good {
            assert_eq!(pointed("s-1", text), Ok(Some(target)), "{text}");
        }
        for bad in [
            "gs://bucket/out/s-2.jsonl",
            "gs://bucket/out/s-1.json",
            "gs://bucket/out/s-11.jsonl",
            "gs://bucket/out/s-1/00000.jsonl",
            "gs://bucket/out/x-s-1/_manifest.json",
            "gs://bucket/out/_manifest.json",
            "gs://bucket/other/s-1.jsonl",
            "gs://bucket/out/../s-1.jsonl",
            "file:///etc/s-1.jsonl",
            "https://bucket/out/s-1.jsonl",
        ] {
            assert!(pointed("s-1", bad).is_err(), "{bad}");
        }
    }
}
