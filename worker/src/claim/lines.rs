//! Pure: blocks of bytes → lines with their numbers and places → items.
//!
//! In: the blocks of an object, or of one piece of it, in order and cut anywhere. Out: each line once, however the blocks
//! were cut; a line belongs to the piece that it starts in. It holds at most one line, and of a line that is too long no
//! more than the limit.

use inferq_shared::job::line::{self, Fields};
use inferq_shared::job::{Item, Limits};
use inferq_shared::reply::ReplyError;

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number in the whole input, from 1.
    pub number: u64,
    /// The place of its first byte.
    pub from: u64,
    /// The place after its last byte, its end included.
    pub to: u64,
    /// What it says.
    pub text: Text<'a>,
}

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// More than the limit: its beginning, one byte longer than that.
    TooLong(&'a [u8]),
}

impl Line<'_> {
    /// Whether it is no item: blank lines of JSON are none.
    pub fn is_blank(&self) -> bool {
        matches!(self.text, Text::Whole(text) if text.trim_ascii().is_empty())
    }

    /// What has to be kept of it so that it is read again as the same line.
    pub fn bytes(&self) -> &[u8] {
        match self.text {
            Text::Whole(text) | Text::TooLong(text) => text,
        }
    }
}

/// Cuts blocks into lines.
#[derive(Debug)]
pub struct Splitter {
    /// The beginning of a line that goes on in the next block.
    begun: Vec<u8>,
    from: u64,
    to: u64,
    number: u64,
    limit: usize,
}

impl Splitter {
    /// For a piece that begins at byte `from` with line `number`; longer lines than `limit` bytes are not kept.
    pub fn new(from: u64, number: u64, limit: usize) -> Self {
        Self { begun: Vec::new(), from, to: from, number, limit }
    }

    /// Takes the next block, and hands over the lines that end in it.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn push<E>(&mut self, block: &[u8], mut each: impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut rest = block;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(at + 1);
            rest = after;
            self.to += line.len() as u64;
            self.end(&line[..at], &mut each)?;
        }
        self.to += rest.len() as u64;
        self.keep(rest);
        Ok(())
    }

    /// The last line may have no end.
    ///
    /// # Errors
    /// The error of `each`.
    pub fn finish<E>(&mut self, mut each: impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.to == self.from { Ok(()) } else { self.end(&[], &mut each) }
    }

    /// Bytes of an unfinished line that it holds.
    pub fn held(&self) -> usize {
        self.begun.len()
    }

    fn keep(&mut self, part: &[u8]) {
        let room = (self.limit + 1).saturating_sub(self.begun.len());
        self.begun.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn end<E>(&mut self, last: &[u8], each: &mut impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        let whole = if self.begun.is_empty() && last.len() <= self.limit {
            last
        } else {
            self.keep(last);
            &self.begun
        };
        let (from, to, number) = (self.from, self.to, self.number);
        let text = if whole.len() > self.limit { Text::TooLong(whole) } else { Text::Whole(trimmed(whole, from == 0)) };
        let told = each(Line { number, from, to, text });
        self.begun.clear();
        self.begun.shrink_to(SPARE_BYTES);
        self.from = to;
        self.number += 1;
        told
    }
}

/// What is kept of the room that an unfinished line needed.
const SPARE_BYTES: usize = 1 << 16;

/// The line without a carriage return, and at the start of an object without a byte order mark.
fn trimmed(line: &[u8], is_first: bool) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if is_first { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line }
}

/// The longest line that can hold an input within its limit: an escape takes six bytes of JSON for one of text.
pub fn line_bytes_max(limits: &Limits) -> usize {
    limits.input_bytes.saturating_mul(6).saturating_add(Item::ID_BYTES_MAX * 6 + 4096)
}

/// The item of a line that is not blank, or why it is none, with the line's number.
///
/// # Errors
/// When the line or its text is too long, or it is not a JSON string, an object with a text, or a pair.
pub fn item(line: &Line<'_>, limits: &Limits) -> Result<Item, ReplyError> {
    let number = line.number;
    let Text::Whole(text) = line.text else {
        let limit = line_bytes_max(limits);
        let message = format!("line {number} has more than {limit} bytes, the limit: split the text");
        return Err(ReplyError::new("limit_exceeded", message));
    };
    line::item(text, &Fields::default(), limits)
        .map_err(|bad| ReplyError::new(&bad.error.code, format!("line {number}: {}", bad.error.message)))
}

#[cfg(test)]
mod tests;
