//! Speculative decoding: which sequences feed drafts in the next step, and how many.
//!
//! A row feeds the sequence's last token and its drafts, and samples at each of these positions. A sample is
//! a function of the seed, the position and the tokens before it. So the samples up to the first that differs
//! from its draft, and this one, are the tokens that steps without drafts would have sampled: speculation
//! changes when tokens come, and no token and no log-probability.
//!
//! A draft needs the sequence's last token. So while drafts are in flight, or while the next step is expected
//! to have some, one step is in flight for all sequences. (With two, a sequence with drafts would have a row
//! in every second step only.)
//!
//! Drafts are chosen by their chances ([`super::ngram`]) and by the times of steps
//! ([`super::step_times`]): those that raise the expected tokens per second most, and none unless they raise
//! them by [`LEAST_GAIN`].

use super::Scheduler;
use super::blocks::Pool;
use super::sequence::{Order, Sequence};
use super::step_plan::BLOCK_TOKENS;
use super::step_times::StepTimes;

/// The most drafts of a row.
pub const MAX_DRAFTS: usize = 16;
/// The least expected gain in tokens per second. A smaller one would be lost again: with one step in flight
/// the device waits for the host, and chances and times are estimates.
const LEAST_GAIN: f64 = 1.08;
/// A step has at most this many drafts and one for each slot, so that all its samples fit into the sampling
/// launches that a runner has room for (`samples` in `src/model/workspace.rs`).
const SPARE_SAMPLES: usize = 64;
/// The least chance of a draft that is fed.
const LEAST_CHANCE: f32 = 0.05;
/// The most decode rows of a step that is considered for drafts.
const MOST_DECODES: usize = 256;

/// A draft that a sequence may feed.
struct Candidate {
    order: Order,
    /// The probability that it and all drafts before it are accepted.
    chance: f32,
    /// Positions before it, about.
    context: usize,
}

impl Scheduler {
    /// Sets the times by which drafts are chosen. Before that, a step is taken to last the same time whatever
    /// it feeds.
    pub fn set_step_times(&mut self, step_times: StepTimes) {
        self.step_times = step_times;
    }

    /// The most steps in flight now.
    pub(super) fn most_in_flight(&mut self) -> usize {
        let one = self.batches_alone()
            || self.drafts_in_flight
            || self.steps_in_flight() > 0 && !self.chosen_drafts().is_empty();
        if one { 1 } else { super::MAX_IN_FLIGHT }
    }

    /// Sets the number of drafts of each running sequence for a step that is planned now.
    pub(super) fn choose_drafts(&mut self) {
        if self.config.max_drafts == 0 {
            return;
        }
        self.running.values_mut().for_each(|sequence| sequence.wanted_drafts = 0);
        if self.steps_in_flight() > 0 {
            return;
        }
        for Candidate { order, .. } in self.chosen_drafts() {
            if let Some(sequence) = self.running.get_mut(&order) {
                sequence.wanted_drafts += 1;
            }
        }
    }

    /// The sequences that have a decode row in the next step, if the budget allows.
    fn decoding(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().filter(|sequence| sequence.pending() == 1)
    }

    /// The drafts with which the next step is expected to yield the most tokens per second; none if they gain
    /// too little. With a step in flight, the drafts that follow its tokens, if these are as expected.
    fn chosen_drafts(&mut self) -> Vec<Candidate> {
        if self.config.max_drafts == 0 {
            return Vec::new();
        }
        let decodes = self.decoding().count();
        let budget = self.config.max_num_batched_tokens;
        if decodes == 0 || decodes > MOST_DECODES.min(budget) {
            return Vec::new();
        }
        let prompts = (self.unfed_tokens() + self.waiting_tokens).min(budget - decodes);
        let times = &self.step_times;
        let context: usize = self.decoding().map(Sequence::len).sum();
        // Prompts have to be computed in any case, so their time is none of generating. A draft must be cheaper
        // than a later step without prompts, which would generate the token as well.
        let of_prompts = times.seconds(decodes + prompts) - times.seconds(decodes);
        let others = times.first_row * context as f64 - of_prompts;
        let seconds = |drafts: usize| others + times.seconds(decodes + prompts + drafts);
        let needed = decodes as f64 / seconds(0) * LEAST_GAIN;
        // Drafts that are all accepted.
        let can_pay = |drafts: usize| (decodes + drafts) as f64 / seconds(drafts) >= needed;
        let most = self.config.max_drafts;
        if !(1..=most).any(|each| can_pay(each) || can_pay(each * decodes)) {
            return Vec::new();
        }
        let mut candidates = Vec::new();
        for (order, sequence) in &mut self.running {
            let (order, context) = (*order, sequence.len());
            let chances = sequence.draft_chances(most).into_iter();
            let likely = chances.take_while(|chance| *chance >= LEAST_CHANCE);
            candidates.extend(likely.map(|chance| Candidate { order, chance, context }));
        }
        // Drafts of one sequence stay in order, since their chances fall and the sort is stable.
        candidates.sort_by(|one, other| other.chance.total_cmp(&one.chance));
        candidates.truncate((budget - decodes).min(self.config.max_num_seqs + SPARE_SAMPLES));
        let (mut expected, mut chosen, mut best) = (decodes as f64, 0, needed);
        let mut context = 0;
        for (index, candidate) in candidates.iter().enumerate() {
            expected += f64::from(candidate.chance);
            context += candidate.context;
            let rate = expected / (seconds(index + 1) + times.further_row * context as f64);
            if rate >= best {
                (chosen, best) = (index + 1, rate);
            }
        }
        candidates.truncate(chosen);
        candidates
    }
}

/// The drafts that a decode row feeds: as many as are wanted and fit into `budget` tokens after the row's
/// own, and into the blocks held with one more, if that is free.
pub(super) fn fitting_drafts(
    sequence: &mut Sequence,
    budget: usize,
    pool: &mut Pool,
    reserved: &mut usize,
) -> usize {
    let wanted = sequence.wanted_drafts.min(budget.saturating_sub(1));
    let held = |sequence: &Sequence| sequence.table.len() * BLOCK_TOKENS - sequence.planned() - 1;
    if wanted > held(sequence) && !sequence.order.batch {
        // Without a free block there are fewer drafts.
        let _grown = super::planner::grow(sequence, pool, reserved, 0);
    }
    wanted.min(held(sequence))
}
