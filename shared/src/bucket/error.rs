//! What can go wrong with an object, by what the caller does about it.
//!
//! In: the faults of clients and file systems, classified in `remote.rs` and `file.rs`. Out: a [`BucketError`] that names
//! bucket and object and, where access is denied, the permission to ask for. It holds no credentials and no contents.

use super::{Scheme, Uri};

/// Why an object could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// No such object, or no such bucket.
    #[error("{uri}: there is no such object{}", or_bucket(.uri))]
    NotFound {
        /// What was asked for.
        uri: Uri,
    },
    /// These credentials may not do it.
    #[error("{uri}: access is denied: it needs {permission}{}", on_bucket(.uri))]
    Forbidden {
        /// What was asked for.
        uri: Uri,
        /// What these credentials lack.
        permission: &'static str,
    },
    /// Another version is there by now.
    #[error("{uri}: the object has changed since it was first looked at")]
    Changed {
        /// What was asked for.
        uri: Uri,
    },
    /// Larger than the caller reads.
    #[error("{uri}: has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// What was asked for.
        uri: Uri,
        /// The object's bytes.
        size: u64,
        /// The most that the caller reads.
        limit: u64,
    },
    /// The store doesn't answer, or asks to be left alone; short retries didn't help.
    #[error("{uri}: the store is not available: {reason}")]
    Unavailable {
        /// What was asked for.
        uri: Uri,
        /// What was seen last.
        reason: String,
    },
    /// The store won't, and won't later.
    #[error("{uri}: {reason}")]
    Refused {
        /// What was asked for.
        uri: Uri,
        /// Why, and what to do about it.
        reason: String,
    },
}

impl BucketError {
    /// Whether the same may work later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

fn or_bucket(uri: &Uri) -> String {
    if uri.scheme() == Scheme::File { String::new() } else { format!(", or no bucket {}", uri.bucket()) }
}

fn on_bucket(uri: &Uri) -> String {
    if uri.scheme() == Scheme::File { String::new() } else { format!(" on bucket {}", uri.bucket()) }
}

/// What is done to an object, for the permission it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Look,
    Create,
    List,
    Replace,
    Delete,
}

impl Action {
    /// What to ask the bucket's owner for.
    pub(super) fn permission(self, scheme: Scheme) -> &'static str {
        match (scheme, self) {
            (Scheme::Gs, Self::Read | Self::Look) => "storage.objects.get",
            (Scheme::Gs, Self::Create) => "storage.objects.create",
            (Scheme::Gs, Self::List) => "storage.objects.list",
            (Scheme::Gs, Self::Replace) => "storage.objects.create and storage.objects.delete",
            (Scheme::Gs, Self::Delete) => "storage.objects.delete",
            (Scheme::S3, Self::Read) => "s3:GetObject",
            // https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
            (Scheme::S3, Self::Look) => "s3:GetObject, and s3:ListBucket to tell that an object is absent,",
            (Scheme::S3, Self::Create | Self::Replace) => "s3:PutObject",
            (Scheme::S3, Self::List) => "s3:ListBucket",
            (Scheme::S3, Self::Delete) => "s3:DeleteObject",
            (Scheme::File, Self::Read | Self::Look | Self::List) => "permission to read the file and its folders",
            (Scheme::File, Self::Create | Self::Replace | Self::Delete) => "permission to write in its folder",
        }
    }
}
