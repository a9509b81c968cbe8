//! What `--input` and `--output` name when it is an address and no path: `gs://…`, `s3://…`, `file:///…`.
//!
//! In: the text of a flag. Out: an object's address, or the path of what lies on this machine. Pure.

use std::path::PathBuf;

use inferq_shared::bucket::Uri;

/// Where something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On this machine.
    File(PathBuf),
    /// In a bucket.
    Object(Uri),
}

impl Address {
    /// Reads an address. `None`: it is none, but a path or a pattern.
    pub fn of(text: &str) -> Option<Result<Self, String>> {
        text.contains("://").then(|| Self::parse(text))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let uri = Uri::parse(text).map_err(|why| why.to_string())?;
        if uri.is_prefix() {
            return Err("must name one object: it ends in /, as a folder's does".to_owned());
        }
        Ok(uri.path().map_or(Self::Object(uri), Self::File))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_object_s_or_a_file_s_and_anything_else_a_path() {
        let object = |text: &str| Some(Ok(Address::Object(Uri::parse(text).expect("an address"))));
        assert_eq!(Address::of("gs://bucket/a.jsonl"), object("gs://bucket/a.jsonl"));
        assert_eq!(Address::of("s3://bucket/a/b.gz"), object("s3://bucket/a/b.gz"));
        assert_eq!(Address::of("file:///a/b.jsonl"), Some(Ok(Address::File("/a/b.jsonl".into()))));
        for path in ["a.jsonl", "-", "in/*.jsonl", "gs:/a", "/a//b"] {
            assert_eq!(Address::of(path), None, "{path}");
        }
        for bad in ["gs://bucket/a/", "https://host/a", "gs://bucket", "file://a/b", "s3://bucket/../a"] {
            assert!(Address::of(bad).is_some_and(|read| read.is_err()), "{bad}");
        }
    }
}
