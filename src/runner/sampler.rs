//! Per-slot sampling state of a rank: what it keeps of each running sequence in order to sample its tokens.
//! The rank's own thread counts the generated tokens for penalties when it has read a step's results, while
//! the forward pass of the next step may run already. Masks of grammars are computed on a pool.

use std::sync::Arc;

use crate::device::{self, RowLogprob, SampleRow};
use crate::grammar::{GrammarProgress, TokenMask};
use crate::request::{SampledToken, SamplingParams, TokenLogprob};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepPlan};

/// The state of each scheduler slot up to the highest one used; `None` until its first occupant.
pub(super) struct SamplerSlots(Vec<Option<SlotState>>);

/// The sampling state of a running sequence.
pub(super) struct SlotState {
    start: Arc<SlotStart>,
    /// (id, occurrences) of the generated tokens, sorted by id. Counted only if a penalty reads it.
    output: Vec<(u32, u32)>,
}

impl SlotState {
    fn new(start: &Arc<SlotStart>) -> Self {
        let mut slot = Self { start: Arc::clone(start), output: Vec::new() };
        for token in &start.tokens[start.prompt_len..] {
            slot.count(*token);
        }
        slot
    }

    /// The occupant of the slot.
    pub(super) fn start(&self) -> &Arc<SlotStart> {
        &self.start
    }

    /// Whether the tokens generated before must be known before the next one is sampled.
    pub(super) fn needs_last_token(&self) -> bool {
        self.has_penalty() || self.start.grammar.is_some()
    }

    /// Whether a penalty makes the next token depend on the tokens generated before.
    fn has_penalty(&self) -> bool {
        // All fields are named, so that a new penalty cannot be forgotten here.
        let SamplingParams {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            temperature: _,
            top_p: _,
            top_k: _,
            min_p: _,
            logit_bias: _,
            seed: _,
            logprobs: _,
            min_tokens: _,
            barred: _,
            // `needs_last_token` asks for it.
            grammar: _,
        } = &*self.start.sampling;
        *repetition_penalty != 1.0 || *presence_penalty != 0.0 || *frequency_penalty != 0.0
    }

    /// Number of alternatives to report with each scored prompt token.
    pub(super) fn prompt_top(&self) -> u8 {
        self.start.prompt_logprobs.unwrap_or_default()
    }

    fn count(&mut self, token: u32) {
        if !self.has_penalty() {
            return;
        }
        match self.output.binary_search_by_key(&token, |(id, _)| *id) {
            Ok(at) => self.output[at].1 += 1,
            Err(at) => self.output.insert(at, (token, 1)),
        }
    }
}

impl SamplerSlots {
    /// Creates the states of `count` slots. Slots above the first few take memory when they are used.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count.min(1024)).map(|_| None).collect())
    }

    /// Sets the state of the slots that get a new occupant with this step.
    pub(super) fn admit(&mut self, plan: &StepPlan) {
        for row in &plan.rows {
            if let Some(start) = &row.start {
                let slot = row.slot as usize;
                if slot >= self.0.len() {
                    self.0.resize_with(slot + 1, || None);
                }
                self.0[slot] = Some(SlotState::new(start));
            }
        }
    }

    pub(super) fn get(&self, slot: u32) -> &SlotState {
        self.0[slot as usize].as_ref().expect("the first row of a slot's occupant carries its SlotStart")
    }

    /// The sequence of a row that samples by a grammar, and the index in its answer of the token that the row
    /// samples.
    pub(super) fn mask_of(&self, row: &Row) -> Option<(Arc<SlotStart>, usize)> {
        let start = &self.get(row.slot).start;
        start.grammar.as_ref().filter(|_| row.sample).map(|_| (Arc::clone(start), generated(row, start)))
    }

    /// The sampling parameters of a row's next token, with its grammar's mask.
    pub(super) fn sample_row<'a>(&'a self, row: &Row, mask: Option<&'a TokenMask>) -> SampleRow<'a> {
        let slot = self.get(row.slot);
        let p = &slot.start.sampling;
        let position = row.position + row.tokens.len() as u32;
        let too_early = generated(row, &slot.start) < p.min_tokens as usize;
        // A grammar that allows only an end has precedence over the least number of tokens.
        let goes_on = mask.is_none_or(|mask| allows_another(mask, &p.barred));
        let barred: &[u32] = if too_early && goes_on { &p.barred } else { &[] };
        SampleRow {
            temperature: p.temperature,
            top_p: p.top_p,
            top_k: p.top_k,
            min_p: p.min_p,
            repetition_penalty: p.repetition_penalty,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            logit_bias: &p.logit_bias,
            barred,
            allowed: mask.map(|mask| &**mask),
            prompt: &slot.start.tokens[..slot.start.prompt_len],
            output: &slot.output,
            seed: p.seed,
            position,
            logprobs: p.logprobs,
            slot: row.slot,
        }
    }

    /// Adds a sampled token to the row's output, and to the slot's counts unless the slot has another
    /// occupant by now. The sequence's grammar consumes the token.
    pub(super) fn add_sampled(
        &mut self,
        row: &Row,
        start: &Arc<SlotStart>,
        sampled: device::SampleResult,
        out: &mut RowOutput,
    ) {
        match sampled {
            device::SampleResult::NonFinite => out.non_finite = true,
            device::SampleResult::Token(token, logprob) => {
                if let Some(grammar) = &start.grammar {
                    out.grammar = grammar.advance(generated(row, start), token);
                    if out.grammar == GrammarProgress::Stuck {
                        return;
                    }
                }
                let slot = self.0[row.slot as usize].as_mut().filter(|slot| Arc::ptr_eq(&slot.start, start));
                if let Some(slot) = slot {
                    slot.count(token);
                }
                let logprob = logprob.map(|logprob| Box::new(with_token(token, logprob)));
                out.tokens.push(SampledToken { id: token, logprob });
            }
        }
    }
}

/// The number of tokens generated before the one that a row samples.
fn generated(row: &Row, start: &SlotStart) -> usize {
    row.position as usize + row.tokens.len() - start.prompt_len
}

/// Whether a mask allows an id that is not barred.
fn allows_another(mask: &TokenMask, barred: &[u32]) -> bool {
    let allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
    let is_allowed =
        |id: &&u32| mask.get(**id as usize / 32).is_some_and(|word| word >> (**id % 32) & 1 == 1);
    allowed as usize > barred.iter().filter(is_allowed).count()
}

/// Adds the scores of one chunk of a prompt to the row's output.
pub(super) fn add_scores(targets: &[u32], scores: Vec<Option<RowLogprob>>, out: &mut RowOutput) {
    for (target, score) in targets.iter().zip(scores) {
        match score {
            Some(score) => out.scores.push(with_token(*target, score)),
            None => out.non_finite = true,
        }
    }
}

fn with_token(token: u32, logprob: RowLogprob) -> TokenLogprob {
    TokenLogprob { token, logprob: logprob.logprob, rank: logprob.rank, top: logprob.top }
}
