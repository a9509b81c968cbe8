//! A batch in the making, and the lengths that may share one.
//!
//! Pure. In: rows, one after the other. Out: whether one more fits within the limits and the waste allowed.

use super::{BatchLimits, Padding, Row};
use crate::engine::RUNGS;

/// A batch in the making.
pub(super) struct Draft {
    limits: BatchLimits,
    pub(super) rows: Vec<Row>,
    longest: usize,
    /// Tokens that the rows would have, each alone.
    alone: usize,
    /// A row did not fit: the batch is complete.
    pub(super) closed: bool,
}

impl Draft {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self { limits, rows: Vec::new(), longest: 0, alone: 0, closed: false }
    }

    pub(super) fn has_room_for(&mut self, length: usize) -> bool {
        let BatchLimits { items_max, tokens_max, padding, .. } = self.limits;
        let count = self.rows.len() + 1;
        let padded = padding.length(self.longest.max(length)).saturating_mul(count);
        let fits =
            count <= items_max && padded <= tokens_max && padding.pays(padded, self.alone + padding.length(length));
        self.closed |= !fits;
        fits && !self.closed
    }

    pub(super) fn add(&mut self, row: Row) {
        self.longest = self.longest.max(row.length());
        self.alone += self.limits.padding.length(row.length());
        self.rows.push(row);
    }
}

/// A batch is padded to at most 11/10 of what its rows have alone. On a CPU what a separate run costs is worth some tens
/// of tokens, so more padding than this never pays, and a batch of few rows loses little.
const WASTE_ABOVE: usize = 11;
const WASTE_BELOW: usize = 10;

/// Padded tokens that a card runs in about the time of one: kernels so small wait for their launch. Reasoned from launches
/// of some microseconds and a card's rate, not tuned.
const RUN_FOR_NOTHING: usize = 2048;

impl Padding {
    /// What a row of this length is padded to, beside none that is longer.
    pub(super) fn length(self, length: usize) -> usize {
        match self {
            Self::Longest => length,
            Self::Rungs => match RUNGS.iter().find(|rung| **rung >= length) {
                Some(rung) => *rung,
                None => length.next_power_of_two(),
            },
        }
    }

    /// Whether so many tokens are no waste for rows that have so many, each alone. On rungs, shorter rows also come along
    /// as long as that costs nothing.
    fn pays(self, padded: usize, alone: usize) -> bool {
        let wasteful = padded.saturating_mul(WASTE_BELOW) > alone.saturating_mul(WASTE_ABOVE);
        !wasteful || self == Self::Rungs && padded <= RUN_FOR_NOTHING
    }

    /// The greatest length of each bucket. Where rows are padded to the longest, the lengths of a bucket differ by at most
    /// a tenth, so that a batch of one bucket keeps within the waste above whatever its mix: 1, 2, … 9, 10–11, 12–13, …
    /// 100–110, and so on for ever. Else a bucket is a rung.
    pub(super) fn bucket_bounds(self) -> Vec<usize> {
        let mut bounds = Vec::new();
        let mut least = 1_usize;
        while least < usize::MAX / 64 {
            let greatest = match self {
                Self::Longest => least * WASTE_ABOVE / WASTE_BELOW,
                Self::Rungs => self.length(least),
            };
            bounds.push(greatest);
            least = greatest + 1;
        }
        bounds
    }
}
