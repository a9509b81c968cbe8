//! An object, or a range of it, as blocks of bytes, unpacked where its name says so.
//!
//! In: an address and the version that was seen first. Out: blocks in order, or why there are no more: the object is
//! gone, forbidden, changed or damaged; or the store is down for too long, or the worker stops, and the job goes back. It
//! holds one read and one block.

use std::time::Instant;

use bytes::Bytes;
use inferq_shared::bucket::{BucketError, Buckets, Uri};
use inferq_shared::packing::Packing;
use inferq_shared::reply::ReplyError;

use super::unpack::{UnpackCaps, UnpackError, Unpacked, Unpacker};
use crate::offload::Offload;
use crate::outage::{NoAnswer, Patience};
use crate::ticket::ReleaseReason;

/// Why a job can't go on.
#[derive(Debug)]
pub enum Ended {
    /// It goes back unspent.
    Released(ReleaseReason),
    /// It can't be run as it is.
    Failed(ReplyError),
    /// It may have been the end of a device: its lease is dropped.
    Lost,
    /// Its results can't be put, or its shards not be published: a dead letter.
    Undeliverable(String),
}

impl Ended {
    /// What a bucket's refusal to be read means.
    pub fn unread(reason: NoAnswer) -> Self {
        match reason {
            NoAnswer::Released(reason) => Self::Released(reason),
            NoAnswer::Refused(error) => Self::Failed(unreadable(&error)),
        }
    }

    /// What a bucket's refusal to be written means.
    pub fn unwritten(reason: NoAnswer) -> Self {
        match reason {
            NoAnswer::Released(reason) => Self::Released(reason),
            NoAnswer::Refused(error) => Self::Undeliverable(format!("reply_undeliverable: {error}")),
        }
    }
}

/// What can't be read, for the submitter.
pub fn unreadable(error: &BucketError) -> ReplyError {
    let code = match error {
        BucketError::NotFound { .. } => "not_found",
        BucketError::Forbidden { .. } => "forbidden",
        BucketError::Changed { .. } => "source_changed",
        _ => "unreadable",
    };
    ReplyError::new(code, format!("input_uri {error}"))
}

fn undecodable(uri: &Uri, error: &UnpackError) -> ReplyError {
    let code = match error {
        UnpackError::Damaged { .. } => "malformed",
        UnpackError::TooMuch { .. } | UnpackError::TooDense { .. } => "limit_exceeded",
    };
    ReplyError::new(code, format!("input_uri {uri}: {error}"))
}

/// Reads blocks.
pub struct Reader {
    buckets: Buckets,
    patience: Patience,
    offload: Offload,
    source: Source,
    since: Instant,
    unpacker: Option<Unpacker>,
    is_hungry: bool,
}

/// What is read: a range of a version of an object.
#[derive(Debug, Clone)]
pub struct Source {
    /// The object.
    pub uri: Uri,
    /// The version; nothing where none is expected.
    pub etag: Option<String>,
    /// The next byte.
    pub at: u64,
    /// The byte after the last.
    pub end: u64,
}

/// Bytes asked for at once.
const READ_BYTES: u64 = 2 << 20;

impl Reader {
    /// Reads `source` for a job that came at `since`; it is unpacked as `packing` says.
    pub fn new(
        (buckets, patience, offload): (Buckets, Patience, Offload),
        source: Source,
        (packing, caps): (Packing, UnpackCaps),
        since: Instant,
    ) -> Self {
        let unpacker = Unpacker::new(packing, caps);
        Self { buckets, patience, offload, source, since, unpacker, is_hungry: true }
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    /// When there is none though it is not the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            let Some(unpacker) = self.unpacker.take() else { return self.read().await };
            let fed = if self.is_hungry { Some(self.read().await?) } else { None };
            let (unpacker, block, unpacked) = self.offload.run(move || unpack(unpacker, fed)).await;
            self.unpacker = Some(unpacker);
            let unpacked = unpacked.map_err(|error| Ended::Failed(undecodable(&self.source.uri, &error)))?;
            self.is_hungry = unpacked == Unpacked::Hungry;
            match unpacked {
                Unpacked::Block => return Ok(Some(block.into())),
                Unpacked::Hungry => {}
                Unpacked::End => return Ok(None),
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Ended> {
        let Source { uri, etag, at, end } = &mut self.source;
        if *at >= *end {
            return Ok(None);
        }
        let range = *at..(*end).min(*at + READ_BYTES);
        let (buckets, wanted) = (&self.buckets, range.clone());
        let etag = etag.as_deref().filter(|_| !crate::mutant::active("etag_unchecked"));
        let ask = || buckets.read(uri, wanted.clone(), etag);
        let bytes = self.patience.ask("read", self.since, ask).await.map_err(Ended::unread)?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(Ended::Failed(unreadable(&BucketError::Changed { uri: uri.clone() })));
        }
        *at = range.end;
        Ok(Some(bytes))
    }
}

type Step = (Unpacker, Vec<u8>, Result<Unpacked, UnpackError>);

fn unpack(mut unpacker: Unpacker, fed: Option<Option<Bytes>>) -> Step {
    if let Some(chunk) = fed {
        unpacker.feed(chunk);
    }
    let mut block = Vec::new();
    let unpacked = unpacker.unpack(&mut block);
    (unpacker, block, unpacked)
}
