//! Rules on single tokens of an answer: the only ids that are allowed, and sequences that never occur.

use super::TokenMask;

/// Which tokens an answer may have. Nothing in it is text: words have been tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The tokens that are allowed wherever they stand, as a mask of the vocabulary.
    always: TokenMask,
    /// Sequences of at least two tokens that never occur. The last token is masked where the others are the
    /// end of the answer.
    sequences: Vec<Vec<u32>>,
}

impl TokenRules {
    /// Rules over `vocab` ids: only the ids of `allowed` occur if it is given, and none of the sequences.
    /// Ids beyond the vocabulary are left out.
    pub fn new(vocab: usize, allowed: Option<&[u32]>, sequences: Vec<Vec<u32>>) -> Self {
        let mut always = match allowed {
            None => all(vocab),
            Some(ids) => {
                let mut mask = vec![0; vocab.div_ceil(32)];
                ids.iter().filter(|id| (**id as usize) < vocab).for_each(|id| set(&mut mask, *id, true));
                mask
            }
        };
        let (single, sequences): (Vec<_>, Vec<_>) =
            sequences.into_iter().filter(|ids| !ids.is_empty()).partition(|ids| ids.len() == 1);
        single.iter().flatten().for_each(|id| set(&mut always, *id, false));
        Self { always: always.into(), sequences }
    }

    /// Whether a token may follow an answer.
    pub(super) fn allow(&self, answer: &[u32], token: u32) -> bool {
        let has_bit = |word: &u32| word >> (token % 32) & 1 == 1;
        let completes = |ids: &Vec<u32>| {
            ids.split_last().is_some_and(|(last, before)| *last == token && answer.ends_with(before))
        };
        self.always.get(token as usize / 32).is_some_and(has_bit) && !self.sequences.iter().any(completes)
    }

    /// Masks what may not follow an answer.
    pub(super) fn apply(&self, mask: &mut [u32], answer: &[u32]) {
        mask.iter_mut().zip(&*self.always).for_each(|(word, always)| *word &= always);
        for ids in &self.sequences {
            if let Some((last, before)) = ids.split_last()
                && answer.ends_with(before)
            {
                set(mask, *last, false);
            }
        }
    }
}

/// A mask that allows all ids.
pub(super) fn all(vocab: usize) -> Vec<u32> {
    let bits = |word: usize| match vocab - word * 32 {
        rest if rest < 32 => (1 << rest) - 1,
        _ => u32::MAX,
    };
    (0..vocab.div_ceil(32)).map(bits).collect()
}

/// Sets the bit of an id, if the mask has one.
fn set(mask: &mut [u32], id: u32, allowed: bool) {
    if let Some(word) = mask.get_mut(id as usize / 32) {
        let bit = 1 << (id % 32);
        *word = if allowed { *word | bit } else { *word & !bit };
    }
}
