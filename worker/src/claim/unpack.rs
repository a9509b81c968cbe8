//! Objects that are compressed with gzip or zstd → their bytes, a block at a time.
//!
//! In: the object's bytes as they come, cut anywhere. Out: blocks of bounded size, or why there are none: what is damaged,
//! and what unpacks to more than an operator allows. It never waits: when it needs more it says so.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use inferq_shared::packing::Packing;

/// How much a compressed object may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackCaps {
    /// Bytes.
    pub bytes: u64,
    /// Bytes for each compressed byte.
    pub ratio: u64,
}

/// Why an object does not unpack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// It is damaged, cut short, or not what its name says.
    #[error("not {name} or damaged after {unpacked} unpacked bytes: {reason}")]
    Damaged {
        /// The format.
        name: &'static str,
        /// How far it could be read.
        unpacked: u64,
        /// What the format's library says.
        reason: String,
    },
    /// It unpacks to too much.
    #[error("unpacks to more than {limit} bytes, --limit-unpacked-bytes: split it")]
    TooMuch {
        /// The limit.
        limit: u64,
    },
    /// It unpacks to too much for its size.
    #[error("unpacks to more than {limit} times its size, --limit-unpacked-ratio: send it uncompressed")]
    TooDense {
        /// The limit.
        limit: u64,
    },
}

/// How far a call of [`Unpacker::unpack`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpacked {
    /// There is a block.
    Block,
    /// Nothing, and more is needed.
    Hungry,
    /// That was all.
    End,
}

/// Unpacks one object.
pub struct Unpacker {
    decoder: Decoder,
    caps: UnpackCaps,
    unpacked: u64,
    buffer: Vec<u8>,
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<Inbox>>),
    Zstd(Box<zstd::Decoder<'static, Inbox>>),
}

/// The most bytes of a block.
pub const BLOCK_BYTES: usize = 1 << 20;
/// So little may come from any object, however dense it is.
const DENSE_BYTES: u64 = 1 << 20;

impl Unpacker {
    /// Nothing read yet. `None`: there is nothing to unpack.
    ///
    /// # Panics
    /// When there is no memory for a decoder.
    pub fn new(packing: Packing, caps: UnpackCaps) -> Option<Self> {
        let decoder = match packing {
            Packing::Plain => return None,
            Packing::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(Inbox::default()))),
            Packing::Zstd => {
                let decoder = zstd::Decoder::with_buffer(Inbox::default());
                Decoder::Zstd(Box::new(decoder.expect("only a lack of memory keeps a decoder from being made")))
            }
        };
        Some(Self { decoder, caps, unpacked: 0, buffer: vec![0; BLOCK_BYTES] })
    }

    /// Takes the next bytes of the object, after [`Unpacked::Hungry`]; `None` is its end.
    pub fn feed(&mut self, chunk: Option<Bytes>) {
        let inbox = self.inbox();
        inbox.ended = chunk.is_none();
        inbox.chunk = chunk.unwrap_or_default();
    }

    /// Appends the next block to `block`.
    ///
    /// # Errors
    /// When the object is damaged or passes a cap.
    pub fn unpack(&mut self, block: &mut Vec<u8>) -> Result<Unpacked, UnpackError> {
        let mut filled = 0;
        let ended = loop {
            if filled == self.buffer.len() {
                break Unpacked::Block;
            }
            let read = match &mut self.decoder {
                Decoder::Gzip(decoder) => decoder.read(&mut self.buffer[filled..]),
                Decoder::Zstd(decoder) => decoder.read(&mut self.buffer[filled..]),
            };
            match read {
                Ok(0) => break if filled > 0 { Unpacked::Block } else { Unpacked::End },
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    break if filled > 0 { Unpacked::Block } else { Unpacked::Hungry };
                }
                Err(error) => return Err(self.damaged(&error)),
            }
        };
        self.unpacked += filled as u64;
        self.check()?;
        block.extend_from_slice(&self.buffer[..filled]);
        Ok(ended)
    }

    fn check(&mut self) -> Result<(), UnpackError> {
        let UnpackCaps { bytes, ratio } = self.caps;
        if self.unpacked > bytes {
            return Err(UnpackError::TooMuch { limit: bytes });
        }
        let packed = self.inbox().taken;
        if self.unpacked > packed.saturating_mul(ratio).saturating_add(DENSE_BYTES) {
            return Err(UnpackError::TooDense { limit: ratio });
        }
        Ok(())
    }

    fn damaged(&self, error: &io::Error) -> UnpackError {
        let name = match self.decoder {
            Decoder::Gzip(_) => "gzip",
            Decoder::Zstd(_) => "zstd",
        };
        UnpackError::Damaged { name, unpacked: self.unpacked, reason: error.to_string() }
    }

    fn inbox(&mut self) -> &mut Inbox {
        match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

/// What a decoder reads from: the bytes at hand, and then not an end but a pause.
#[derive(Default)]
struct Inbox {
    chunk: Bytes,
    ended: bool,
    taken: u64,
}

impl BufRead for Inbox {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.chunk.split_to(amount);
        self.taken += amount as u64;
    }
}

impl Read for Inbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&available[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
