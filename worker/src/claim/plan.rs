//! Pure: the lines of a large input → pieces of bounded size.
//!
//! In: lines in order, blank ones too. Out: [`Piece`]s that together hold every item once, each of at most so many items
//! and about so many bytes. The same lines make the same pieces. It holds one piece's numbers and none of its text.

use inferq_shared::job::Shard;

use super::lines::Line;

/// How much a piece may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSize {
    /// Items.
    pub items: u32,
    /// Bytes; the line that passes them begins another piece.
    pub bytes: u64,
}

/// Lines of the input that one shard reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The first byte.
    pub from: u64,
    /// The byte after the last.
    pub to: u64,
    /// The first line's number, from 1.
    pub line: u64,
    /// The first item's index, from 0.
    pub index: u32,
    /// Items.
    pub items: u32,
}

/// The input needs more pieces than can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has more than {} shards of {items} items, the limit: raise --shard-items or split it", Shard::COUNT_MAX)]
pub struct TooManyPieces {
    items: u32,
}

/// Counts lines into pieces.
#[derive(Debug)]
pub struct Planner {
    size: PieceSize,
    open: Option<Piece>,
    closed: u32,
}

impl Planner {
    /// No lines yet.
    pub fn new(size: PieceSize) -> Self {
        Self { size, open: None, closed: 0 }
    }

    /// Adds a line; the piece before it, if that is complete.
    ///
    /// # Errors
    /// When there are more pieces than a job may have.
    pub fn add(&mut self, line: &Line<'_>) -> Result<Option<Piece>, TooManyPieces> {
        if line.is_blank() {
            return Ok(None);
        }
        if let Some(open) = self.open.as_mut()
            && open.items < self.size.items
            && line.to - open.from <= self.size.bytes
        {
            open.to = line.to;
            open.items += 1;
            return Ok(None);
        }
        let full = self.open.take();
        self.closed += u32::from(full.is_some());
        if self.closed >= Shard::COUNT_MAX {
            return Err(TooManyPieces { items: self.size.items });
        }
        let index = full.map_or(0, |full| full.index + full.items);
        self.open = Some(Piece { from: line.from, to: line.to, line: line.number, index, items: 1 });
        Ok(full)
    }

    /// Whether a piece has begun: blank lines before the first item are in none.
    pub fn has_begun(&self) -> bool {
        self.open.is_some()
    }

    /// The last piece; `None`: there was no item at all.
    pub fn finish(self) -> Option<Piece> {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::lines::Splitter;
    use super::*;

    fn pieces(bytes: &[u8], size: PieceSize) -> Vec<Piece> {
        let mut planner = Planner::new(size);
        let mut pieces = Vec::new();
        let mut splitter = Splitter::new(0, 1, 64);
        let mut add = |line: Line<'_>| {
            pieces.extend(planner.add(&line).expect("few pieces"));
            Ok::<(), Infallible>(())
        };
        splitter.push(bytes, &mut add).expect("nothing fails");
        splitter.finish(&mut add).expect("nothing fails");
        pieces.extend(planner.finish());
        pieces
    }

    fn items(bytes: &[u8], from: u64, line: u64) -> Vec<(u64, Vec<u8>)> {
        let mut items = Vec::new();
        let mut splitter = Splitter::new(from, line, 64);
        let mut note = |line: Line<'_>| {
            if !line.is_blank() {
                items.push((line.number, line.bytes().to_vec()));
            }
            Ok::<(), Infallible>(())
        };
        splitter.push(bytes, &mut note).expect("nothing fails");
        splitter.finish(&mut note).expect("nothing fails");
        items
    }

    proptest! {
        #[test]
        fn pieces_hold_every_item_once_in_order(
            lines in vec("[a-z ]{0,10}", 0..60), items_max in 1u32..9, bytes_max in 1u64..60
        ) {
            let text = lines.join("\n");
            let pieces = pieces(text.as_bytes(), PieceSize { items: items_max, bytes: bytes_max });
            let mut read = Vec::new();
            for piece in &pieces {
                let of_piece = items(&text.as_bytes()[piece.from as usize..piece.to as usize], piece.from, piece.line);
                prop_assert_eq!(of_piece.len(), piece.items as usize);
                prop_assert_eq!(piece.index as usize, read.len());
                prop_assert!(piece.items <= items_max && (piece.items == 1 || piece.to - piece.from <= bytes_max));
                read.extend(of_piece);
            }
            prop_assert_eq!(read, items(text.as_bytes(), 0, 1));
        }
    }

    #[test]
    fn more_pieces_than_can_be_numbered_are_refused() {
        let text = "1\n".repeat(Shard::COUNT_MAX as usize + 1);
        let mut planner = Planner::new(PieceSize { items: 1, bytes: 1 << 20 });
        let refused = Splitter::new(0, 1, 64).push(text.as_bytes(), |line| planner.add(&line).map(|_| ()));
        assert_eq!(refused, Err(TooManyPieces { items: 1 }));
    }
}
