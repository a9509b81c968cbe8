//! A batch in the making, and the lengths that may share one.
//!
//! Pure. In: rows, one after the other. Out: whether one more fits within the limits and the waste allowed.

use super::{BatchLimits, Row};

/// A batch in the making.
pub(super) struct Draft {
    limits: BatchLimits,
    pub(super) rows: Vec<Row>,
    longest: usize,
    real: usize,
    /// A row did not fit: the batch is complete.
    pub(super) closed: bool,
}

impl Draft {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self { limits, rows: Vec::new(), longest: 0, real: 0, closed: false }
    }

    pub(super) fn has_room_for(&mut self, length: usize) -> bool {
        let count = self.rows.len() + 1;
        let padded = self.longest.max(length).saturating_mul(count);
        let fits = count <= self.limits.items_max
            && padded <= self.limits.tokens_max
            && padded * WASTE_BELOW <= (self.real + length) * WASTE_ABOVE;
        self.closed |= !fits;
        fits && !self.closed
    }

    pub(super) fn add(&mut self, row: Row) {
        self.longest = self.longest.max(row.length());
        self.real += row.length();
        self.rows.push(row);
    }
}

/// A batch is padded to at most 11/10 of its real tokens. On a CPU what a separate run costs is worth some tens of
/// tokens, so more padding than this never pays, and a batch of few rows loses little.
const WASTE_ABOVE: usize = 11;
const WASTE_BELOW: usize = 10;

/// The greatest length of each bucket. The lengths of a bucket differ by at most a tenth, so that a batch of one bucket
/// keeps within the waste above whatever its mix: 1, 2, … 9, 10–11, 12–13, … 100–110, and so on for ever.
pub(super) fn bucket_bounds() -> Vec<usize> {
    let mut bounds = Vec::new();
    let mut least = 1_usize;
    while least < usize::MAX / 64 {
        let greatest = least * WASTE_ABOVE / WASTE_BELOW;
        bounds.push(greatest);
        least = greatest + 1;
    }
    bounds
}
