//! The shapes that a graphics card runs: few, so that each can be compiled, tuned and warmed before the first job.
//!
//! Pure. In: the tokens that a batch may have and that the model reads. Out: lengths and counts of rows; for any batch the
//! least of them that holds it.

/// Lengths that items are padded to, as far as the model reads; beyond them the powers of two.
pub const RUNGS: [usize; 12] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];

/// One count of rows is so many times the next smaller. Only a batch that is not full is padded with rows, and then the
/// card has time for it.
const ROWS_FACTOR: usize = 4;

/// The shapes of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shapes {
    /// Ascending; the last is what the model reads.
    lengths: Vec<usize>,
    /// Tokens of a batch, padding included.
    tokens_max: usize,
}

/// Rows of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Items, those that only fill up included.
    pub(super) rows: usize,
    /// Tokens of each, padding included.
    pub(super) length: usize,
}

impl Shape {
    pub(super) fn tokens(self) -> usize {
        self.rows * self.length
    }
}

impl Shapes {
    /// For a model that reads `length_max` tokens, in batches of `tokens_max`. An item that is longer runs alone.
    pub(super) fn new(length_max: usize, tokens_max: usize) -> Self {
        let mut lengths: Vec<usize> = RUNGS.into_iter().filter(|length| *length < length_max).collect();
        let doubled = std::iter::successors(Some(2 * RUNGS[RUNGS.len() - 1]), |length| length.checked_mul(2));
        lengths.extend(doubled.take_while(|length| *length < length_max));
        lengths.push(length_max);
        Self { lengths, tokens_max }
    }

    /// Tokens of a batch, padding included.
    pub(super) fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// The length that an item of this one is padded to.
    pub(super) fn length(&self, length: usize) -> usize {
        let place = self.lengths.partition_point(|padded| *padded < length);
        self.lengths[place.min(self.lengths.len() - 1)]
    }

    /// The least shape that holds so many items, none of them longer than this; where none does, the one with the most rows.
    /// It has at most `tokens_max` tokens, or one row.
    pub(super) fn holding(&self, items: usize, length: usize, tokens_max: usize) -> Shape {
        let length = self.length(length);
        let fits = |rows: &usize| *rows == 1 || rows * length <= tokens_max;
        let counts: Vec<usize> = self.rows(length).filter(fits).collect();
        let holding = counts.iter().rev().find(|rows| **rows >= items);
        Shape { rows: *holding.unwrap_or(&counts[0]), length }
    }

    /// All of them, the largest first: what does not fit shows at once.
    pub(super) fn all(&self) -> Vec<Shape> {
        let of = |length: &usize| {
            self.rows(*length).map({
                let length = *length;
                move |rows| Shape { rows, length }
            })
        };
        let mut all: Vec<Shape> = self.lengths.iter().rev().flat_map(of).collect();
        all.sort_by_key(|shape| std::cmp::Reverse(shape.tokens()));
        all
    }

    /// The counts of rows of one length, descending to one. The second is half the first: what a batch is cut to when the
    /// card has less memory than it seemed.
    fn rows(&self, length: usize) -> impl Iterator<Item = usize> {
        let most = (self.tokens_max / length).max(1);
        let smaller = |rows: usize, factor: usize| (rows > 1).then_some(rows.div_ceil(factor));
        let after = std::iter::successors(smaller(most, 2), move |rows| smaller(*rows, ROWS_FACTOR));
        std::iter::once(most).chain(after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_set_is_small() {
        let shapes = Shapes::new(256, 32 * 1024);
        assert_eq!(shapes.lengths, [16, 32, 48, 64, 96, 128, 192, 256]);
        assert_eq!(shapes.rows(16).collect::<Vec<_>>(), [2048, 1024, 256, 64, 16, 4, 1]);
        assert_eq!(Shapes::new(256, 256).rows(256).collect::<Vec<_>>(), [1]);
        assert!(shapes.all().len() < 60, "{}", shapes.all().len());
        assert_eq!(Shapes::new(8192, 8192).lengths.last(), Some(&8192));
    }

    proptest! {
        #[test]
        fn every_batch_has_a_shape_of_the_set(
            length_max in 1usize..3000,
            tokens_max in 1usize..100_000,
            length in 1usize..3000,
            items in 1usize..5000,
            room in 1usize..100_000,
        ) {
            let length = length.min(length_max);
            let shapes = Shapes::new(length_max, tokens_max);
            let shape = shapes.holding(items, length, room);
            prop_assert!(shapes.all().contains(&shape));
            prop_assert!(shape.length >= length);
            prop_assert!(shape.length < 2 * length.max(16) || shape.length == length_max);
            prop_assert!(shape.tokens() <= tokens_max.min(room) || shape.rows == 1);
            prop_assert!(shape.rows <= items * ROWS_FACTOR);
            let twice = Shape { rows: shape.rows * ROWS_FACTOR, ..shape };
            prop_assert!(shape.rows >= items || twice.tokens() > tokens_max.min(room));
        }
    }
}
