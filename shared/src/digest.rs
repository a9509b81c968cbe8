//! sha256 of what is read a piece at a time, and digests as text.
//!
//! In: a reader. Out: its digest and size, in bounded memory. It opens nothing.

use std::fmt::Write as _;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Bytes that are hashed at once.
const PIECE: usize = 1 << 20;

/// The sha256 of all that `reader` gives, and how many bytes that was. `piece` is told the size of each piece, and may end
/// the reading by an error.
///
/// # Errors
/// When reading fails, or what `piece` says.
pub fn of(mut reader: impl Read, mut piece: impl FnMut(u64) -> io::Result<()>) -> io::Result<([u8; 32], u64)> {
    let (mut sha256, mut size, mut buffer) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok((sha256.finalize().into(), size));
        }
        sha256.update(&buffer[..read]);
        size += read as u64;
        piece(read as u64)?;
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_all_bytes() {
        let (digest, size) = of(&b"abc"[..], |_| Ok(())).expect("memory is no file");
        assert_eq!((&*hex(&digest[..4]), size), ("ba7816bf", 3));
        let ended = of(&b"abc"[..], |_| Err(io::ErrorKind::Interrupted.into()));
        assert!(ended.is_err());
    }
}
