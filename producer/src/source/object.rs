//! An input that lies in a bucket, as a stream of bytes.
//!
//! In: an address. Out: the object as it was when it was looked at, by ranged reads, one block in memory. An outage is
//! waited for; another version in the middle is an error.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use inferq_shared::bucket::{BucketError, Buckets, ObjectInfo, Uri};
use tokio::runtime::Handle;

use super::SourceError;
use crate::outage;

/// Bytes that are asked for at once.
const BLOCK: u64 = 8 << 20;

/// An object, looked at.
#[derive(Debug, Clone)]
pub(super) struct Object(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: ObjectInfo,
    buckets: Buckets,
    runtime: Handle,
}

impl Object {
    /// Looks at the object at `uri`.
    ///
    /// # Errors
    /// When there is none, or that can't be told.
    pub(super) fn look(uri: &Uri) -> Result<Self, SourceError> {
        let (buckets, runtime) = (Buckets::new(), Handle::current());
        let found = outage::blocking(&runtime, || buckets.head(uri));
        let found = found.and_then(|info| info.ok_or_else(|| BucketError::NotFound { uri: uri.clone() }));
        let info = found.map_err(|error| SourceError::Unusable(format!("input {error}")))?;
        Ok(Self(Arc::new(Inner { info, buckets, runtime })))
    }

    /// Its address.
    pub(super) fn uri(&self) -> &Uri {
        &self.0.info.uri
    }

    /// Its bytes.
    pub(super) fn size(&self) -> u64 {
        self.0.info.size
    }

    /// Its bytes from the first on.
    pub(super) fn reader(&self) -> ObjectReader {
        ObjectReader { object: self.clone(), at: 0, block: Bytes::new() }
    }

    fn block(&self, at: u64) -> Result<Bytes, BucketError> {
        let Inner { info, buckets, runtime } = &*self.0;
        let range = at..info.size.min(at + BLOCK);
        outage::blocking(runtime, || buckets.read(&info.uri, range.clone(), Some(&info.etag)))
    }
}

/// Reads an object from its beginning to its end.
pub(super) struct ObjectReader {
    object: Object,
    at: u64,
    block: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty() && self.at < self.object.size() {
            self.block = self.object.block(self.at).map_err(io::Error::other)?;
            if self.block.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.at += self.block.len() as u64;
        }
        let bytes = self.block.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&self.block.split_to(bytes));
        Ok(bytes)
    }
}

/// Whether reading failed at the bucket, not in what was read.
pub(super) fn is_of_bucket(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<BucketError>())
}
