//! The shard of a model that one rank of a tensor-parallel group has.
//!
//! Q, K, V, gate and up are divided by outputs, O and down by inputs: a rank computes its heads and its part
//! of the MLP alone until the outputs are summed. The embedding and the LM head are divided by ids. Norms are
//! not divided.

use std::ops::Range;

/// One rank of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Index of the rank, below `ranks`.
    pub rank: usize,
    /// Number of ranks that share the model.
    pub ranks: usize,
}

impl Shard {
    /// The only rank of a group of one.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// All ranks of a group.
    pub fn all(ranks: usize) -> impl Iterator<Item = Self> {
        (0..ranks).map(move |rank| Self { rank, ranks })
    }

    /// This rank's part of `count` items, which must be divisible by the number of ranks.
    pub(super) fn part(self, count: usize) -> Range<usize> {
        let each = count / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// This rank's KV heads. With fewer KV heads than ranks it has the one that its query heads read; other
    /// ranks have a copy of it.
    pub(super) fn kv_heads(self, count: usize) -> Range<usize> {
        if count >= self.ranks {
            return self.part(count);
        }
        let head = self.rank * count / self.ranks;
        head..head + 1
    }

    /// This rank's ids. If the vocabulary is not divisible, the last ranks have fewer.
    pub(super) fn ids(self, vocab: usize) -> Range<usize> {
        let each = vocab.div_ceil(self.ranks);
        (self.rank * each).min(vocab)..((self.rank + 1) * each).min(vocab)
    }
}
