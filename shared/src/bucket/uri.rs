//! Addresses of objects and prefixes: `gs://bucket/key`, `s3://bucket/key`, `file:///absolute/path`.
//!
//! In: text from jobs, flags and manifests, which nobody trusts. Out: a [`Uri`] that names the same thing to everybody
//! who reads it, or a [`UriError`]. There is one spelling for each object, so that comparing text compares objects:
//! whatever could mean another place by encoding, dots or doubled slashes is refused, never repaired. Errors don't
//! repeat the address: what is refused may hold a password or a signature. Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where an object's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Google Cloud Storage.
    Gs,
    /// Amazon S3 and what speaks like it.
    S3,
    /// A folder of this machine.
    File,
}

impl Scheme {
    /// The word before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gs => "gs",
            Self::S3 => "s3",
            Self::File => "file",
        }
    }
}

/// The longest key, in bytes; what both clouds allow.
const KEY_BYTES_MAX: usize = 1024;

/// The checked address of an object, or of a prefix when it ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uri {
    scheme: Scheme,
    /// Empty for files.
    bucket: String,
    /// Without a leading slash; empty for a whole bucket.
    key: String,
}

/// Why text is no address of an object. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// None of the schemes there are.
    #[error("must begin with gs://, s3:// or file:///")]
    Scheme,
    /// A user, a password, a port, or a host before a file's path.
    #[error("must have no user, password, port or host: only a bucket's name, or file:///absolute/path")]
    Authority,
    /// A name that no bucket has.
    #[error("must name a bucket: 3 to 222 of a-z 0-9 . _ -, beginning and ending in a letter or digit, and no host")]
    Bucket,
    /// A query or a fragment.
    #[error("must have no query (?) and no fragment (#)")]
    Query,
    /// Percent signs, backslashes, control and invisible characters.
    #[error("must be written out: no % codes, no backslashes, no control or invisible characters")]
    Encoded,
    /// `.`, `..` or nothing between two slashes.
    #[error("must have no . and .. and nothing empty between slashes")]
    Segment,
    /// Too long, or nothing.
    #[error("must name an object of 1 to {KEY_BYTES_MAX} bytes")]
    Length,
}

impl Uri {
    /// Checks an address.
    ///
    /// # Errors
    /// When it is not the one spelling of an object or prefix.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = scheme_of(text)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':']) || (scheme == Scheme::File && !bucket.is_empty()) {
            return Err(UriError::Authority);
        }
        if scheme != Scheme::File && !is_bucket(bucket) {
            return Err(UriError::Bucket);
        }
        if scheme == Scheme::File && rest.is_empty() {
            return Err(UriError::Length);
        }
        check_key(key)?;
        Ok(Self { scheme, bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The address of an absolute path. A path that ends in `/` is a prefix.
    ///
    /// # Errors
    /// When the path is relative, not UTF-8, or has no one spelling.
    pub fn from_path(path: &Path) -> Result<Self, UriError> {
        let text = path.to_str().ok_or(UriError::Encoded)?;
        let key = text.strip_prefix('/').ok_or(UriError::Authority)?;
        check_key(key)?;
        Ok(Self { scheme: Scheme::File, bucket: String::new(), key: key.to_owned() })
    }

    /// Which kind of store.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket's name; empty for files.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key within the bucket, or the path without its leading slash.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The path, if it is on this machine.
    pub fn path(&self) -> Option<PathBuf> {
        (self.scheme == Scheme::File).then(|| Path::new("/").join(&self.key))
    }

    /// Whether it names everything that begins with it rather than one object: it ends in `/`.
    pub fn is_prefix(&self) -> bool {
        self.key.is_empty() || self.key.ends_with('/')
    }

    /// The address of `name`, such as `a/b.jsonl`, beneath this prefix. What is no prefix is taken as one.
    ///
    /// # Errors
    /// When `name` would lead elsewhere or the key becomes too long.
    pub fn join(&self, name: &str) -> Result<Self, UriError> {
        if name.is_empty() || name.starts_with('/') {
            return Err(UriError::Segment);
        }
        let slash = if self.is_prefix() { "" } else { "/" };
        let key = format!("{}{slash}{name}", self.key);
        check_key(&key)?;
        Ok(Self { key, ..self.clone() })
    }

    /// The last segment: an object's or folder's own name; the bucket's where there is no key.
    pub fn name(&self) -> &str {
        let key = self.key.strip_suffix('/').unwrap_or(&self.key);
        match key.rsplit('/').next() {
            Some("") | None => &self.bucket,
            Some(name) => name,
        }
    }

    /// Whether it lies at or beneath `prefix`. `gs://b/models` is at `gs://b/models` but not beneath `gs://b/mod`.
    pub fn starts_with(&self, prefix: &Self) -> bool {
        if self.scheme != prefix.scheme || self.bucket != prefix.bucket {
            return false;
        }
        match self.key.strip_prefix(prefix.key.as_str()) {
            None => false,
            Some(rest) => prefix.is_prefix() || rest.is_empty() || rest.starts_with('/'),
        }
    }
}

fn scheme_of(text: &str) -> Result<(Scheme, &str), UriError> {
    [Scheme::Gs, Scheme::S3, Scheme::File]
        .into_iter()
        .find_map(|scheme| Some((scheme, text.strip_prefix(scheme.as_str())?.strip_prefix("://")?)))
        .ok_or(UriError::Scheme)
}

/// What both clouds accept as a bucket's name, less what reads like a host: an address of numbers, or a name of Google's
/// internal domain, where the metadata server is.
fn is_bucket(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte);
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    (3..=222).contains(&bytes.len())
        && bytes.iter().all(allowed)
        && is_end(bytes.first())
        && is_end(bytes.last())
        && name.split('.').all(|label| !label.is_empty())
        && !name.split('.').all(is_number)
        && !name.ends_with(".internal")
}

/// Whether a key is the only spelling of what it names. A slash at its end makes it a prefix.
fn check_key(key: &str) -> Result<(), UriError> {
    if key.contains(['?', '#']) {
        return Err(UriError::Query);
    }
    if key.contains(['%', '\\']) || key.chars().any(is_unseen) {
        return Err(UriError::Encoded);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(UriError::Length);
    }
    let path = key.strip_suffix('/').unwrap_or(key);
    if !key.is_empty() && path.split('/').any(|segment| ["", ".", ".."].contains(&segment)) {
        return Err(UriError::Segment);
    }
    Ok(())
}

/// Characters that would make two addresses look alike, or an address look like something else in a log.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl fmt::Display for Uri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}/{}", self.scheme.as_str(), self.bucket, self.key)
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl Serialize for Uri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
