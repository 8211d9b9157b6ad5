//! Per-slot sampling state of a rank: what it keeps of each running sequence in order to sample its tokens.
//! The rank's own thread counts the generated tokens for penalties when it has read a step's results, while
//! the forward pass of the next step may run already. Masks of grammars are computed on a pool.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use super::mask_pool::MaskJob;
use crate::device::{self, RowLogprob, SampleRow};
use crate::grammar::{GrammarProgress, TokenMask};
use crate::request::{SampledToken, SamplingParams, TokenLogprob};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepPlan, TokenSource};

/// The state of each scheduler slot up to the highest one used; `None` until its first occupant.
pub(super) struct SamplerSlots {
    states: Vec<Option<SlotState>>,
    /// Whether the tokens of sequences are kept, for a draft model.
    keeps_tokens: bool,
}

/// The sampling state of a running sequence.
pub(super) struct SlotState {
    start: Arc<SlotStart>,
    /// (id, occurrences) of the generated tokens, sorted by id. Counted only if a penalty reads it.
    output: Vec<(u32, u32)>,
    /// All known tokens. Kept only for a draft model.
    tokens: Vec<u32>,
}

impl SlotState {
    fn new(start: &Arc<SlotStart>, keeps_tokens: bool) -> Self {
        let tokens = if keeps_tokens { start.tokens.clone() } else { Vec::new() };
        let mut slot = Self { start: Arc::clone(start), output: Vec::new(), tokens };
        for token in &start.tokens[start.prompt_len..] {
            slot.count(*token);
        }
        slot
    }

    /// The occupant of the slot.
    pub(super) fn start(&self) -> &Arc<SlotStart> {
        &self.start
    }

    /// All known tokens of the sequence, if they are kept.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
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
        if self.has_penalty() {
            add_token(&mut self.output, token);
        }
    }

    /// The counts of the generated tokens if these drafts follow them.
    fn counts_with(&self, drafts: &[u32]) -> Cow<'_, [(u32, u32)]> {
        if drafts.is_empty() || !self.has_penalty() {
            return Cow::Borrowed(&self.output);
        }
        let mut counts = self.output.clone();
        drafts.iter().for_each(|draft| add_token(&mut counts, *draft));
        Cow::Owned(counts)
    }
}

/// Adds a token to counts that are sorted by id.
fn add_token(counts: &mut Vec<(u32, u32)>, token: u32) {
    match counts.binary_search_by_key(&token, |(id, _)| *id) {
        Ok(at) => counts[at].1 += 1,
        Err(at) => counts.insert(at, (token, 1)),
    }
}

/// A position of a row from whose logits a token is sampled.
#[derive(Debug, Clone)]
pub(super) struct SampledPosition<'a> {
    /// The index of the row in its plan.
    pub(super) row: usize,
    /// Drafts of the row before the token.
    pub(super) drafts: usize,
    /// The token's mask.
    mask: Option<TokenMask>,
    /// The counts of the generated tokens before it.
    output: Cow<'a, [(u32, u32)]>,
}

impl SamplerSlots {
    /// Creates the states of `count` slots. Slots above the first few take memory when they are used.
    pub(super) fn new(count: usize, keeps_tokens: bool) -> Self {
        Self { states: (0..count.min(1024)).map(|_| None).collect(), keeps_tokens }
    }

    /// Sets the state of the slots that get a new occupant with this step.
    pub(super) fn admit(&mut self, plan: &StepPlan) {
        for row in &plan.rows {
            if let Some(start) = &row.start {
                let slot = row.slot as usize;
                if slot >= self.states.len() {
                    self.states.resize_with(slot + 1, || None);
                }
                self.states[slot] = Some(SlotState::new(start, self.keeps_tokens));
            }
        }
    }

    pub(super) fn get(&self, slot: u32) -> &SlotState {
        self.states[slot as usize].as_ref().expect("the first row of a slot's occupant carries its SlotStart")
    }

    /// The masks that a row samples by; `None` if it samples without a grammar.
    pub(super) fn mask_job(&self, row: &Row) -> Option<MaskJob> {
        self.draft_mask_job(row, row.draft_tokens())
    }

    /// The same with these drafts.
    pub(super) fn draft_mask_job(&self, row: &Row, drafts: &[u32]) -> Option<MaskJob> {
        let start = &self.get(row.slot).start;
        start.grammar.as_ref().filter(|_| row.sample).map(|_| MaskJob {
            start: Arc::clone(start),
            index: generated(row, start),
            drafts: drafts.to_vec(),
        })
    }

    /// The plan without the drafts that the grammars of their rows refuse, and those after them. A row with
    /// drafts follows tokens that are known.
    pub(super) fn without_refused(&self, mut plan: Arc<StepPlan>) -> Arc<StepPlan> {
        for index in 0..plan.rows.len() {
            let row = &plan.rows[index];
            let Some(job) = self.mask_job(row).filter(|job| !job.drafts.is_empty()) else { continue };
            let refused = row.drafts - job.count_allowed();
            if refused == 0 {
                continue;
            }
            let row = &mut Arc::make_mut(&mut plan).rows[index];
            row.drafts -= refused;
            if let TokenSource::Host(tokens) = &mut row.tokens {
                tokens.truncate(tokens.len() - refused);
            }
        }
        plan
    }

    /// The positions of a row that a token is sampled for: after its last token, and after each draft that
    /// its grammar can follow.
    pub(super) fn positions(&self, index: usize, row: &Row, masks: &[TokenMask]) -> Vec<SampledPosition<'_>> {
        let slot = self.get(row.slot);
        let count = if slot.start.grammar.is_some() { masks.len().max(1) } else { row.drafts + 1 };
        let position = |drafts: usize| SampledPosition {
            row: index,
            drafts,
            mask: masks.get(drafts).cloned(),
            output: slot.counts_with(&row.draft_tokens()[..drafts]),
        };
        (0..count).map(position).collect()
    }

    /// The position of a row after `drafts`, for which a draft is sampled by `mask`.
    pub(super) fn draft_position(
        &self,
        index: usize,
        row: &Row,
        drafts: &[u32],
        mask: Option<TokenMask>,
    ) -> SampledPosition<'_> {
        let output = self.get(row.slot).counts_with(drafts);
        SampledPosition { row: index, drafts: drafts.len(), mask, output }
    }

    /// The sampling parameters of the token for a position of a row.
    pub(super) fn sample_row<'a>(&'a self, row: &Row, at: &'a SampledPosition<'_>) -> SampleRow<'a> {
        let slot = self.get(row.slot);
        let p = &slot.start.sampling;
        let mask = at.mask.as_ref();
        let position = row.position + (row.len_without_drafts() + at.drafts) as u32;
        let too_early = generated(row, &slot.start) + at.drafts < p.min_tokens as usize;
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
            output: &at.output,
            seed: p.seed,
            position,
            logprobs: p.logprobs,
            slot: row.slot,
        }
    }

    /// Adds the tokens that were sampled for a row to its output: those up to the first that differs from its
    /// draft. Adds them to the slot's counts unless the slot has another occupant by now, and the sequence's
    /// grammar consumes them.
    pub(super) fn add_sampled(
        &mut self,
        row: &Row,
        start: &Arc<SlotStart>,
        sampled: Vec<device::SampleResult>,
        out: &mut RowOutput,
    ) {
        let mut drafts = row.draft_tokens().iter();
        for result in sampled {
            match result {
                // After accepted drafts, the next step computes it again and reports it.
                device::SampleResult::NonFinite => {
                    out.non_finite = out.tokens.is_empty();
                    break;
                }
                device::SampleResult::Token(token, logprob) => {
                    let logprob = logprob.map(|logprob| Box::new(with_token(token, logprob)));
                    out.tokens.push(SampledToken { id: token, logprob });
                    if drafts.next() != Some(&token) {
                        break;
                    }
                }
            }
        }
        if let Some(grammar) = start.grammar.as_ref().filter(|_| !out.tokens.is_empty()) {
            let ids: SmallVec<[u32; 4]> = out.tokens.iter().map(|token| token.id).collect();
            let accepted = grammar.accept(generated(row, start), &ids);
            let is_stuck = accepted.progress == GrammarProgress::Stuck;
            out.tokens.truncate(if is_stuck { 0 } else { accepted.tokens.max(1) });
            out.grammar = accepted.progress;
        }
        let keeps_tokens = self.keeps_tokens;
        let slot = self.states[row.slot as usize].as_mut().filter(|slot| Arc::ptr_eq(&slot.start, start));
        if let Some(slot) = slot {
            out.tokens.iter().for_each(|token| slot.count(token.id));
            slot.tokens.extend(out.tokens.iter().map(|token| token.id).filter(|_| keeps_tokens));
        }
    }
}

/// The number of tokens generated before the first one that a row samples.
fn generated(row: &Row, start: &SlotStart) -> usize {
    row.position as usize + row.len_without_drafts() - start.prompt_len
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
