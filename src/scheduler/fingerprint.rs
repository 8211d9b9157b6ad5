//! A 64-bit hash of a step plan. Replays compare hashes instead of storing plans.

use super::step_plan::{Row, SlotStart, StepPlan, TokenSource};
use crate::request::SamplingParams;

/// The state of the hash: each word is mixed in, in order. The result is the same on every machine and is
/// stored in traces, so a change of the mixing changes the trace format.
struct Fingerprint(u64);

impl StepPlan {
    /// Hashes every field of the plan. The hash is not cryptographic: collisions can be constructed.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut print = Fingerprint(0);
        print.add(self.id);
        print.add(self.rows.len() as u64);
        for row in &self.rows {
            print.row(row);
        }
        print.0
    }
}

impl Fingerprint {
    fn add(&mut self, word: u64) {
        let x = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = x ^ (x >> 29);
    }

    fn list(&mut self, words: impl ExactSizeIterator<Item = u64>) {
        self.add(words.len() as u64);
        words.for_each(|word| self.add(word));
    }

    fn ids(&mut self, ids: &[u32]) {
        self.list(ids.iter().map(|id| u64::from(*id)));
    }

    fn row(&mut self, row: &Row) {
        self.add(u64::from(row.slot));
        self.add(u64::from(row.start.is_some()));
        if let Some(start) = &row.start {
            self.start(start);
        }
        match &row.tokens {
            TokenSource::Host(tokens) => self.ids(tokens),
            // A host list has fewer than 2^64 - 1 tokens, so this value cannot be the length of one.
            TokenSource::LastSampled => self.add(u64::MAX),
        }
        self.add(u64::from(row.position));
        self.ids(&row.blocks);
        self.add(u64::from(row.sample));
        self.add(row.drafts as u64);
        self.add(row.proposals as u64);
        self.ids(&row.score);
        self.add(u64::from(row.score_from));
        self.add(u64::from(row.reward));
    }

    fn start(&mut self, start: &SlotStart) {
        self.add(start.prompt_len as u64);
        self.ids(&start.tokens);
        self.add(start.prompt_logprobs.map_or(u64::MAX, u64::from));
        self.sampling(&start.sampling);
    }

    fn sampling(&mut self, params: &SamplingParams) {
        // All fields are named, so that a new one cannot be forgotten here.
        let SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            logprobs,
            min_tokens,
            barred,
            // A recording does not keep it.
            grammar: _,
        } = params;
        let floats = [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty];
        self.list(floats.iter().map(|x| u64::from(x.to_bits())));
        self.list(logit_bias.iter().map(|(id, x)| u64::from(*id) << 32 | u64::from(x.to_bits())));
        self.add(u64::from(*top_k));
        self.add(*seed);
        self.add(logprobs.map_or(u64::MAX, u64::from));
        self.add(u64::from(*min_tokens));
        self.ids(barred);
    }
}
