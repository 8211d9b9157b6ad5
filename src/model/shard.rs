//! Which part of a model one rank of a tensor-parallel group has.
//!
//! Q, K, V, gate and up are divided by outputs, O and down by inputs, so that a rank's heads and MLP need no other's
//! until their outputs are added up. The embedding and the head are divided by ids. Norms are whole on every rank.

use std::ops::Range;

/// A rank of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Below `ranks`.
    pub rank: usize,
    /// Ranks that share the model.
    pub ranks: usize,
}

impl Shard {
    /// One rank that has all.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// All ranks of a group.
    pub fn all(ranks: usize) -> impl Iterator<Item = Self> {
        (0..ranks).map(move |rank| Self { rank, ranks })
    }

    /// This rank's part of what is divided evenly.
    pub(super) fn part(self, count: usize) -> Range<usize> {
        let each = count / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// This rank's KV heads: where there are fewer than ranks, the one that its query heads read, which some others have
    /// too.
    pub(super) fn kv_heads(self, count: usize) -> Range<usize> {
        if count >= self.ranks {
            return self.part(count);
        }
        let head = self.rank * count / self.ranks;
        head..head + 1
    }

    /// This rank's ids: as many as every rank has, but for the last ranks where the vocabulary cannot be divided.
    pub(super) fn ids(self, vocab: usize) -> Range<usize> {
        let each = vocab.div_ceil(self.ranks);
        (self.rank * each).min(vocab)..((self.rank + 1) * each).min(vocab)
    }
}
