//! What the simulated model says: a function that anyone can compute.
//!
//! With `mix` the finaliser of SplitMix64, all arithmetic modulo 2^64, and `words` a list of token ids in ascending order:
//!
//! - The key of an answer: `k = mix(number of prompt tokens)`, then `k = mix(k ^ t)` for each prompt token `t`, and where
//!   the temperature is above 0, `k = mix(k ^ mix(seed))`.
//! - Its token number `i`, from 0: `words[mix(k + (i + 1) * 0x9e3779b97f4a7c15) % words.len()]`; if that is barred and
//!   fewer than `min_tokens` have been generated, the next of the list that is not.
//! - Its length, with the token that ends it: geometric of the given mean, from `mix(!k)`; not before `min_tokens`, and
//!   only where one of the end-of-sequence ids ends the answer. [`SamplingParams::barred`] says so: it names them also
//!   where `min_tokens` is 0, unless the client wants them ignored. Else the answer ends by `max_tokens` alone.
//!
//! So no answer depends on its neighbours, on blocks, or on preemption, and a test knows what must come. Penalties, bias
//! and the like have no effect: there are no logits. Log-probabilities are those of a model that gives its choice 1/2,
//! the next candidate 1/4, and so on.

use crate::random::{STEP, mix};
use crate::request::{Finish, Request, SamplingParams, TokenLogprob};

/// Which tokens there are, and how long answers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Voice {
    words: Vec<u32>,
    eos: Vec<u32>,
    mean: f64,
    vocab: u32,
}

/// Names one answer: all that its tokens depend on beside their number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Key(u64);

impl Voice {
    /// `words` are said, one of `eos` ends an answer of `mean` tokens on average, and all ids are below `vocab`.
    ///
    /// # Errors
    /// There is no word, one is not below `vocab` or ends an answer, or the mean is below 1.
    pub fn new(mut words: Vec<u32>, eos: Vec<u32>, mean: f64, vocab: usize) -> Result<Self, String> {
        let vocab = u32::try_from(vocab).map_err(|_| format!("vocabulary: {vocab} ids are too many"))?;
        words.sort_unstable();
        words.dedup();
        if words.is_empty() {
            return Err("the vocabulary has no token that is plain text".to_owned());
        }
        if let Some(id) = words.iter().find(|id| **id >= vocab || eos.contains(id)) {
            return Err(format!("token {id}: expected an id below {vocab} that does not end an answer"));
        }
        if !(mean.is_finite() && mean >= 1.0) {
            return Err(format!("answers: expected a mean of at least 1 token, got {mean}"));
        }
        Ok(Self { words, eos, mean, vocab })
    }

    /// The key of the answer to a prompt.
    pub fn key(prompt: &[u32], sampling: &SamplingParams) -> Key {
        let fold = |key, token: &u32| mix(key ^ u64::from(*token));
        let key = prompt.iter().fold(mix(prompt.len() as u64), fold);
        Key(if sampling.temperature > 0.0 { mix(key ^ mix(sampling.seed)) } else { key })
    }

    /// Tokens of an answer that nothing else ends, the last of them its end.
    pub fn length(&self, key: Key) -> u64 {
        let uniform = ((mix(!key.0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        // Of the numbers of trials until the first success of probability 1 / mean.
        1 + (uniform.ln() / (-1.0 / self.mean).ln_1p()) as u64
    }

    /// Token number `i` of an answer.
    pub fn token(&self, key: Key, i: usize, sampling: &SamplingParams) -> u32 {
        let free = i >= sampling.min_tokens as usize;
        let end = self.eos.iter().find(|id| sampling.barred.contains(id));
        if let Some(end) = end.filter(|_| free && i as u64 + 1 >= self.length(key)) {
            return *end;
        }
        let drawn = mix(key.0.wrapping_add(STEP.wrapping_mul(i as u64 + 1)));
        let at = (drawn % self.words.len() as u64) as usize;
        let mut from_there = self.words[at..].iter().chain(&self.words[..at]);
        // With every word barred, barring has no meaning.
        let allowed = from_there.find(|id| free || !sampling.barred.contains(id));
        *allowed.unwrap_or(&self.words[at])
    }

    /// The whole answer to a request, as a client must get it.
    pub fn answer(&self, request: &Request) -> (Vec<u32>, Finish) {
        let sampling = &request.sampling;
        let key = Self::key(&request.prompt, sampling);
        let mut tokens = Vec::new();
        while tokens.len() < request.stop.max_tokens as usize {
            let token = self.token(key, tokens.len(), sampling);
            tokens.push(token);
            if tokens.len() >= sampling.min_tokens as usize && request.stop.stop_ids.contains(&token) {
                return (tokens, Finish::Stop(token));
            }
        }
        (tokens, Finish::Length)
    }

    /// The log-probability of a token, with so many candidates: itself, the words that follow it, then any other ids.
    pub fn score(&self, token: u32, alternatives: u8) -> TokenLogprob {
        let after = self.words.partition_point(|word| *word <= token);
        let words = self.words[after..].iter().chain(&self.words[..after]).copied();
        let others = (0..self.vocab).filter(|id| self.words.binary_search(id).is_err());
        let rest = words.chain(others).filter(|id| *id != token);
        let half = |i: u8| -std::f32::consts::LN_2 * (f32::from(i) + 1.0);
        let top = std::iter::once(token).chain(rest).zip((0..alternatives).map(half)).collect();
        TokenLogprob { token, logprob: half(0), top }
    }
}
