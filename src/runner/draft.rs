//! The draft model of a rank. It proposes the drafts of a step's rows before the model computes them. All
//! ranks propose the same drafts.
//!
//! Its KV cache has a block for each block of the model's cache, under the same id: the scheduler keeps the
//! books of one pool, and cached prefixes serve both models. The draft model does not follow every step. A
//! step of the model overwrites positions, and those that the draft model has not computed since are missing.
//! It computes them when drafts of their sequence are wanted, at most a step's tokens at a time. A sequence
//! whose tokens do not fit has no drafts until a later step.
//!
//! A draft is sampled by the row's own parameters, seed, position and mask. So the two models choose by the
//! same random number, and choose the same token where their probabilities are alike. A draft's mask is
//! computed while the draft model runs the pass before that draft. The model later samples the same position
//! by the same mask, so no mask is computed twice. Only its bits go to the device twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::decoder::{Decoder, Links, ToSample};
use super::mask_pool::{MaskJob, RankPlace};
use super::sampler::SamplerSlots;
use crate::comm::Communicator;
use crate::device::{
    BLOCK_TOKENS, DECODE_ROWS, Device, DeviceError, SampleResult, SampleRow, Segment, StepInputs, Token,
};
use crate::scheduler::step_plan::{Row, StepPlan, TokenSource};

/// A rank's draft model.
pub(super) struct DraftModel<D: Device> {
    /// Operations of the draft model need scratch memory of their own.
    pub(super) device: D,
    pub(super) decoder: Decoder<D>,
    filled: Filled,
    /// The most tokens of a pass.
    most_tokens: usize,
}

/// A plan with the drafts of the rows that want some.
pub(super) struct Proposed {
    pub(super) plan: Arc<StepPlan>,
    /// Time for which the device had to wait for masks.
    pub(super) mask_wait: Duration,
}

/// The parts of a rank that a pass of its draft model uses.
struct RankContext<'a, C> {
    links: &'a Links<C>,
    slots: &'a SamplerSlots,
    place: &'a RankPlace,
}

/// For each KV block, the number of its first positions whose keys and values the draft model has computed
/// from the tokens that the model has there.
struct Filled(Vec<u8>);

/// The drafts of a row while they are proposed.
struct Proposal<'a> {
    /// The index of the row in its plan.
    index: usize,
    row: &'a Row,
    /// The tokens of the next pass.
    fed: Vec<u32>,
    /// The position of the first of them.
    position: usize,
    drafts: Vec<u32>,
    /// Whether the next pass ends with the last known token, after which a draft is sampled.
    caught_up: bool,
    wanted: usize,
}

impl Filled {
    /// Takes in that the model computes these positions.
    fn overwrite(&mut self, blocks: &[u32], from: usize, end: usize) {
        let firsts = (0..end).step_by(BLOCK_TOKENS);
        for (first, block) in firsts.zip(blocks).skip(from / BLOCK_TOKENS) {
            let filled = &mut self.0[*block as usize];
            *filled = (*filled).min(from.saturating_sub(first) as u8);
        }
    }

    /// Takes in that the draft model has computed these positions, and all before them in their first block.
    fn fill(&mut self, blocks: &[u32], from: usize, end: usize) {
        let firsts = (0..end).step_by(BLOCK_TOKENS);
        for (first, block) in firsts.zip(blocks).skip(from / BLOCK_TOKENS) {
            self.0[*block as usize] = (end - first).min(BLOCK_TOKENS) as u8;
        }
    }

    /// The first position that is missing, at most `end`.
    fn first_missing(&self, blocks: &[u32], end: usize) -> usize {
        let filled = |block: &u32| usize::from(self.0[*block as usize]);
        let whole = blocks.iter().take_while(|block| filled(block) == BLOCK_TOKENS).count();
        let missing = whole * BLOCK_TOKENS + blocks.get(whole).map_or(0, filled);
        missing.min(end)
    }
}

impl<D: Device> DraftModel<D> {
    /// `blocks` is the number of KV blocks.
    pub(super) fn new(device: D, decoder: Decoder<D>, blocks: usize, most_tokens: usize) -> Self {
        Self { device, decoder, filled: Filled(vec![0; blocks]), most_tokens }
    }

    /// The plan with the drafts of the rows that want some. Results of all earlier steps have been read if
    /// there are any.
    pub(super) fn propose<C: Communicator<D>>(
        &mut self,
        links: &Links<C>,
        slots: &SamplerSlots,
        place: &RankPlace,
        plan: Arc<StepPlan>,
    ) -> Result<Proposed, DeviceError> {
        for row in &plan.rows {
            let from = row.position as usize;
            self.filled.overwrite(&row.blocks, from, from + row.tokens.len() + row.proposals);
        }
        let mut proposals = self.begin(slots, &plan);
        if proposals.is_empty() {
            drop(proposals);
            return Ok(Proposed::unchanged(plan));
        }
        let (mut with_drafts, mut mask_wait) = (StepPlan::clone(&plan), Duration::ZERO);
        let around = RankContext { links, slots, place };
        while !proposals.is_empty() {
            mask_wait += self.pass(&around, &mut proposals)?;
            for ended in proposals.extract_if(.., |proposal| proposal.has_ended()) {
                let row = &mut with_drafts.rows[ended.index];
                row.drafts = ended.drafts.len();
                if let TokenSource::Host(tokens) = &mut row.tokens {
                    tokens.extend(ended.drafts);
                }
            }
        }
        Ok(Proposed { plan: Arc::new(with_drafts), mask_wait })
    }

    /// The rows that want drafts, with the tokens that the draft model has to compute first. A cached block
    /// that several sequences share is computed for the first of them; the others have no drafts in this
    /// step.
    fn begin<'a>(&self, slots: &SamplerSlots, plan: &'a StepPlan) -> Vec<Proposal<'a>> {
        let mut room = self.most_tokens;
        let mut written: BTreeSet<u32> = BTreeSet::new();
        let most_positions = self.decoder.model.config().max_positions;
        let wanting = plan.rows.iter().enumerate().filter(|(_, row)| row.proposals > 0);
        let begin = |(index, row): (usize, &'a Row)| {
            let end = row.position as usize + row.tokens.len();
            // A token before `end` is missing at least: the model is about to compute it.
            let position = self.filled.first_missing(&row.blocks, end - 1);
            let len = room.min(end - position);
            // The last draft is not computed.
            let wanted = row.proposals.min((most_positions + 1).saturating_sub(end));
            let known = slots.get(row.slot).tokens();
            if len == 0 || wanted == 0 || known.len() != end {
                return None;
            }
            let blocks = &row.blocks[position / BLOCK_TOKENS..(position + len).div_ceil(BLOCK_TOKENS)];
            if blocks.iter().any(|block| written.contains(block)) {
                return None;
            }
            written.extend(blocks);
            room -= len;
            let fed = known[position..position + len].to_vec();
            let caught_up = position + len == end;
            Some(Proposal { index, row, fed, position, drafts: Vec::new(), caught_up, wanted })
        };
        wanting.filter_map(begin).collect()
    }

    /// Computes the next tokens of all rows, and samples a draft after those that are caught up. Returns the
    /// time for which the device had to wait for masks.
    fn pass<C: Communicator<D>>(
        &mut self,
        around: &RankContext<'_, C>,
        proposals: &mut [Proposal<'_>],
    ) -> Result<Duration, DeviceError> {
        let RankContext { links, slots, place } = around;
        let job = |proposal: &Proposal<'_>| slots.draft_mask_job(proposal.row, &proposal.drafts);
        let jobs = || proposals.iter().map(|proposal| job(proposal).filter(|_| proposal.caught_up));
        place.submit(jobs());
        let jobs: Vec<Option<MaskJob>> = jobs().collect();
        let mut inputs = StepInputs::default();
        let mut lasts = Vec::with_capacity(proposals.len());
        for proposal in proposals.iter() {
            proposal.add_to(&mut inputs, D::LAYOUT.captures());
            lasts.push(inputs.tokens.len() - 1);
        }
        self.decoder.forward(&self.device, links, &mut inputs)?;
        for proposal in proposals.iter() {
            let end = proposal.position + proposal.fed.len();
            self.filled.fill(&proposal.row.blocks, proposal.position, end);
        }
        let masks = place.masks(&jobs, &self.device)?;
        let mut positions = Vec::with_capacity(proposals.len());
        for (at, proposal) in proposals.iter_mut().enumerate().filter(|(_, proposal)| proposal.caught_up) {
            let mask = masks.rows[at].get(proposal.drafts.len()).cloned();
            if mask.is_none() && jobs[at].is_some() {
                proposal.end_with(masks.rows[at].len());
                continue;
            }
            let Proposal { index, row, drafts, .. } = proposal;
            positions.push((at, slots.draft_position(*index, row, drafts, mask)));
        }
        let mut wanting = Vec::with_capacity(positions.len());
        for (at, position) in &positions {
            let sampling = SampleRow { logprobs: None, ..slots.sample_row(proposals[*at].row, position) };
            wanting.push(ToSample { row: *at, residual: lasts[*at] as u32, sampling });
        }
        let pieces = self.decoder.sample(&self.device, &links.comm, wanting)?;
        for piece in pieces {
            let results = self.device.take_sampled(&mut self.decoder.space.first.step)?;
            for (at, result) in piece.into_iter().zip(results) {
                proposals[at].take(result, slots);
            }
        }
        Ok(masks.wait)
    }
}

impl Proposed {
    pub(super) fn unchanged(plan: Arc<StepPlan>) -> Self {
        Self { plan, mask_wait: Duration::ZERO }
    }
}

impl Proposal<'_> {
    /// Adds the tokens of the next pass. On devices with graphs few tokens become segments that a graph
    /// takes.
    fn add_to(&self, inputs: &mut StepInputs, captures: bool) {
        let (first, count) = (inputs.tokens.len(), self.fed.len());
        inputs.tokens.extend(self.fed.iter().map(|token| Token::Id(*token)));
        let longest = if captures && count <= 2 * DECODE_ROWS { DECODE_ROWS } else { count };
        let segment = |at: usize| Segment {
            first: first + at,
            len: longest.min(count - at),
            position: self.position + at,
            blocks: Arc::clone(&self.row.blocks),
        };
        inputs.segments.extend((0..count).step_by(longest).map(segment));
    }

    /// Takes the draft that was sampled. There are no more drafts after one that ends the answer, which is
    /// none itself, since nothing follows it.
    fn take(&mut self, result: SampleResult, slots: &SamplerSlots) {
        let ends = |token: u32| slots.get(self.row.slot).start().sampling.barred.contains(&token);
        match result {
            SampleResult::Token(token, _) if !ends(token) => {
                self.position += self.fed.len();
                self.drafts.push(token);
                self.fed = vec![token];
            }
            _ => self.wanted = self.drafts.len(),
        }
    }

    /// Ends the drafts where no mask follows. The last of `masks` masks is that of a draft that completes the
    /// answer, which is none itself.
    fn end_with(&mut self, masks: usize) {
        self.drafts.truncate(masks.saturating_sub(1));
        self.wanted = self.drafts.len();
    }

    fn has_ended(&self) -> bool {
        !self.caught_up || self.drafts.len() >= self.wanted
    }
}
