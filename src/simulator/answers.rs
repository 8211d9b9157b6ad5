//! Tokens that the simulated model generates, by a formula that tests and clients can compute too.
//!
//! `mix` is the finaliser of SplitMix64, all arithmetic is modulo 2^64, and `words` is a list of token ids in
//! ascending order:
//!
//! - Key of an answer: `k = mix(number of prompt tokens)`, then `k = mix(k ^ t)` for each prompt token `t`,
//!   then `k = mix(k ^ mix(seed))` if the temperature is above 0.
//! - Token number `i`, counted from 0: `words[mix(k + (i + 1) * 0x9e3779b97f4a7c15) % words.len()]`. If that
//!   token is barred and fewer than `min_tokens` have been generated, the next token of the list that is not
//!   barred is used.
//! - Length, including the end-of-sequence token: geometric with the given mean, from `mix(!k)`, and not
//!   below `min_tokens`. It applies only if one of the end-of-sequence ids can end the answer, which means
//!   that [`SamplingParams::barred`] contains it: the server lists these ids there even if `min_tokens` is 0,
//!   unless the client set `ignore_eos`. Otherwise only `max_tokens` ends the answer.
//! - Value number `i` of a reward head, counted from 0, for the key `k` of a greedy answer: the upper 24 bits
//!   of `mix(k + (i + 1) * 0x9e3779b97f4a7c15)`, divided by 2^22; so from 0 to below 4.
//!
//! An answer therefore does not depend on the rest of the batch, on KV blocks or on preemption. Penalties,
//! bias and truncation (top-k, top-p, min-p) have no effect, since the simulator computes no logits.
//! Log-probabilities are those of a model that gives its choice probability 1/2, the next candidate 1/4, and
//! so on.

use std::sync::Arc;

use super::error::SettingsError;
use crate::random::{STEP, mix, unit};
use crate::request::{Finish, Request, SamplingParams, TokenLogprob};

/// Vocabulary and mean length of the generated answers.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticAnswers {
    words: Vec<u32>,
    eos: Vec<u32>,
    mean: f64,
    vocab: u32,
}

/// Hash of everything that the tokens of one answer depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerKey(u64);

impl AnswerKey {
    /// A number from 0 to 1 for a token of the answer that this key and this sampling seed select.
    pub(super) fn chance(self, index: usize, seed: u64) -> f64 {
        unit(mix(self.0 ^ mix(seed ^ mix(index as u64))))
    }
}

impl SyntheticAnswers {
    /// Answers of tokens out of `words`, ended by one of `eos`, with `mean` tokens on average. All ids are
    /// below `vocab`.
    ///
    /// # Errors
    /// `words` is empty, a word is in `eos` or not below `vocab`, or the mean is below 1.
    pub fn new(mut words: Vec<u32>, eos: Vec<u32>, mean: f64, vocab: usize) -> Result<Self, SettingsError> {
        let vocab = u32::try_from(vocab).map_err(|_| SettingsError::Vocabulary(vocab))?;
        words.sort_unstable();
        words.dedup();
        if words.is_empty() {
            return Err(SettingsError::NoWord);
        }
        if let Some(id) = words.iter().find(|id| **id >= vocab || eos.contains(id)) {
            return Err(SettingsError::Word { id: *id, vocab });
        }
        if !(mean.is_finite() && mean >= 1.0) {
            return Err(SettingsError::MeanAnswer(mean));
        }
        Ok(Self { words, eos, mean, vocab })
    }

    /// Key of the answer to a prompt.
    pub fn key(prompt: &[u32], sampling: &SamplingParams) -> AnswerKey {
        let key = prompt_key(prompt);
        AnswerKey(if sampling.temperature > 0.0 { mix(key ^ mix(sampling.seed)) } else { key })
    }

    /// Values of a reward head for a prompt.
    pub fn rewards(prompt: &[u32], width: usize) -> Arc<[f32]> {
        let key = prompt_key(prompt);
        let bits = |i: usize| mix(key.wrapping_add(STEP.wrapping_mul(i as u64 + 1))) >> 40;
        (0..width).map(|i| bits(i) as f32 / (1u32 << 22) as f32).collect()
    }

    /// Length of an answer in tokens, including its end-of-sequence token, before `min_tokens` and other
    /// limits of the request apply.
    pub fn length(&self, key: AnswerKey) -> u64 {
        // Geometric distribution: the number of trials until the first success of probability 1 / mean.
        1 + (unit(mix(!key.0)).ln() / (-1.0 / self.mean).ln_1p()) as u64
    }

    /// Token number `i` of an answer.
    pub fn token(&self, key: AnswerKey, i: usize, sampling: &SamplingParams) -> u32 {
        let free = i >= sampling.min_tokens as usize;
        let end = self.eos.iter().find(|id| sampling.barred.contains(id));
        if let Some(end) = end.filter(|_| free && i as u64 + 1 >= self.length(key)) {
            return *end;
        }
        let random = mix(key.0.wrapping_add(STEP.wrapping_mul(i as u64 + 1)));
        let at = (random % self.words.len() as u64) as usize;
        let mut from_there = self.words[at..].iter().chain(&self.words[..at]);
        // If all words are barred, the barred word at `at` is used.
        let allowed = from_there.find(|id| free || !sampling.barred.contains(id));
        *allowed.unwrap_or(&self.words[at])
    }

    /// The complete answer that a client must get for a request.
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

    /// Log-probability of a token, with `alternatives` candidates: the token, the words after it in cyclic
    /// order, then the other ids in ascending order.
    pub fn score(&self, token: u32, alternatives: u8) -> TokenLogprob {
        let after = self.words.partition_point(|word| *word <= token);
        let words = self.words[after..].iter().chain(&self.words[..after]).copied();
        let others = (0..self.vocab).filter(|id| self.words.binary_search(id).is_err());
        let rest = words.chain(others).filter(|id| *id != token);
        let half = |i: u8| -std::f32::consts::LN_2 * (f32::from(i) + 1.0);
        let top = std::iter::once(token).chain(rest).zip((0..alternatives).map(half)).collect();
        TokenLogprob { token, logprob: half(0), rank: 1, top }
    }
}

/// Key of the greedy answer to a prompt.
fn prompt_key(prompt: &[u32]) -> u64 {
    prompt.iter().fold(mix(prompt.len() as u64), |key, token| mix(key ^ u64::from(*token)))
}
