//! Selection of the rows of a source that belong to a weight.

use std::ops::Range;

/// The rows of a source that belong to a weight: from `first` on, the first `block` of every `stride` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowMap {
    pub(super) first: usize,
    pub(super) block: usize,
    pub(super) stride: usize,
}

impl RowMap {
    /// All rows.
    pub(super) const ALL: Self = Self { first: 0, block: usize::MAX, stride: 0 };

    /// Returns the runs of source rows that hold a range of the weight's rows.
    pub(super) fn runs(self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let within = next % self.block;
            let len = (self.block - within).min(rows.end - next);
            let start = self.first + next / self.block * self.stride + within;
            next += len;
            (len > 0).then_some(start..start + len)
        })
    }
}
