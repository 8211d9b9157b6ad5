//! Drafts by prompt lookup: where the last tokens of a sequence occur earlier in it, the tokens that followed
//! there are likely to follow again. Editing, quoting and code repeat long runs.
//!
//! A [`Drafter`] takes in the tokens of one sequence and follows one earlier place, the source. It compares
//! each new token with the one at the source, whether drafts were fed or not, and so learns how often its
//! drafts would be accepted at no cost to the device. After a difference the source moves past it, as after a
//! replaced word; a longer match elsewhere replaces the source.
//!
//! A token costs at most [`CHAIN`] comparisons of at most [`LONGEST`] tokens. Memory is 8 to 12 bytes per
//! token of the sequence.

/// Tokens whose earlier occurrence begins a match.
const GRAM: usize = 3;
/// Earlier occurrences that are compared, latest first.
const CHAIN: usize = 8;
/// Tokens up to which a match is measured.
const LONGEST: usize = 32;
/// The largest table of occurrences, in entries.
const MOST_HEADS: usize = 1 << 17;
/// The share of an observation's weight that is left after each later one of its class.
const DECAY: f32 = 0.9;
/// Observations that the prior probability of a class counts as.
const PRIOR_WEIGHT: f32 = 2.0;
/// The probability that a draft is accepted before anything has been observed, by class.
const PRIORS: [f32; 7] = [0.3, 0.4, 0.5, 0.5, 0.65, 0.8, 0.9];

/// Finds the drafts of one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    /// The last position before which the tokens with this hash occur; 0 for none.
    heads: Vec<u32>,
    /// The position before, with the same hash, for each position; 0 for none.
    earlier: Vec<u32>,
    /// Tokens taken in.
    known: usize,
    /// The position of the token that is expected next.
    source: Option<usize>,
    /// Tokens before the source that agree with the last ones of the sequence.
    matched: usize,
    /// Observed agreement, by class of the match.
    classes: [Agreement; PRIORS.len()],
}

/// How often expected tokens came, with weights that decay.
#[derive(Debug, Clone, Copy, Default)]
struct Agreement {
    agreed: f32,
    seen: f32,
}

/// The class of a match of this many tokens.
fn class(matched: usize) -> usize {
    match matched {
        0..=2 => matched,
        3..=4 => 3,
        5..=8 => 4,
        9..=16 => 5,
        _ => 6,
    }
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self {
            heads: Vec::new(),
            earlier: Vec::new(),
            known: 0,
            source: None,
            matched: 0,
            classes: Default::default(),
        }
    }

    /// Takes in the tokens that were added since the last call. Those from `generated` on were generated.
    pub(super) fn extend(&mut self, tokens: &[u32], generated: usize) {
        if self.known == tokens.len() {
            return;
        }
        self.grow(tokens);
        for position in self.known..tokens.len() {
            if position >= generated {
                self.observe(tokens, position);
                self.find(tokens, position + 1);
            }
            self.insert(tokens, position + 1);
        }
        self.known = tokens.len();
    }

    /// Makes room for all tokens.
    fn grow(&mut self, tokens: &[u32]) {
        self.earlier.resize(tokens.len() + 1, 0);
        let heads = tokens.len().next_power_of_two().clamp(64, MOST_HEADS);
        if heads > self.heads.len() {
            // Twice the tokens, so that this happens after ever longer intervals.
            let heads = (2 * heads).min(MOST_HEADS);
            self.heads = vec![0; heads];
            (1..=self.known).for_each(|end| self.insert(tokens, end));
        }
    }

    /// The place in the table of the tokens before `end`; `None` if there are too few.
    fn place(&self, tokens: &[u32], end: usize) -> Option<usize> {
        let gram = &tokens[end.checked_sub(GRAM)?..end];
        let mix = |hash: u64, token: &u32| (hash ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = gram.iter().fold(0u64, |hash, token| mix(hash, token).rotate_left(23));
        Some((hash >> 32) as usize & (self.heads.len() - 1))
    }

    fn insert(&mut self, tokens: &[u32], end: usize) {
        if let Some(place) = self.place(tokens, end) {
            // Positions fit in 32 bits.
            self.earlier[end] = std::mem::replace(&mut self.heads[place], end as u32);
        }
    }

    /// Compares the token at `position` with the expected one.
    fn observe(&mut self, tokens: &[u32], position: usize) {
        let Some(source) = self.source else { return };
        let agrees = tokens[source] == tokens[position];
        self.classes[class(self.matched)].observe(agrees);
        (self.source, self.matched) = match (agrees, self.matched) {
            (true, matched) => (Some(source + 1), matched + 1),
            (false, 0) => (None, 0),
            (false, _) => (Some(source + 1), 0),
        };
    }

    /// Moves the source to the longest match of the tokens before `end`, if it is longer than the present
    /// one. Among equally long ones the latest is taken.
    fn find(&mut self, tokens: &[u32], end: usize) {
        if self.matched >= LONGEST {
            return;
        }
        let Some(place) = self.place(tokens, end) else { return };
        let mut candidate = self.heads[place] as usize;
        for _ in 0..CHAIN {
            if candidate == 0 {
                return;
            }
            let pairs = tokens[..candidate].iter().rev().zip(tokens[..end].iter().rev());
            let matched = pairs.take(LONGEST).take_while(|(one, other)| one == other).count();
            if matched >= GRAM && matched > self.matched {
                (self.source, self.matched) = (Some(candidate), matched);
            }
            candidate = self.earlier[candidate] as usize;
        }
    }

    /// The probabilities that the next `most` tokens are all as expected, up to the first, the second and so
    /// on. Empty if nothing is expected.
    pub(super) fn chances(&self, most: usize) -> impl Iterator<Item = f32> + '_ {
        let expected = if self.source.is_some() { most } else { 0 };
        (0..expected).scan(1.0, |all, i| {
            let class = class(self.matched + i);
            *all *= self.classes[class].chance(PRIORS[class]);
            Some(*all)
        })
    }

    /// The next `count` tokens as expected; none if nothing is expected. `tokens` have been taken in. Where
    /// the source reaches their end, it goes on with the drafts: a repeated run repeats again.
    pub(super) fn drafts(&self, tokens: &[u32], count: usize) -> Vec<u32> {
        let mut drafts = Vec::with_capacity(count);
        let Some(source) = self.source else { return drafts };
        for position in source..source + count {
            let token = tokens.get(position).or_else(|| drafts.get(position - tokens.len()));
            let Some(token) = token.copied() else { break };
            drafts.push(token);
        }
        drafts
    }
}

impl Agreement {
    fn observe(&mut self, agrees: bool) {
        self.agreed = self.agreed * DECAY + f32::from(u8::from(agrees));
        self.seen = self.seen * DECAY + 1.0;
    }

    fn chance(self, prior: f32) -> f32 {
        (self.agreed + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
    }
}
