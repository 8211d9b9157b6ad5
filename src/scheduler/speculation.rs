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
//! Drafts are chosen by their chances ([`super::ngram`], [`super::draft_model`]) and by the times of steps
//! ([`super::step_times`]): those that raise the expected tokens per second most, and none unless they raise
//! them by [`LEAST_GAIN`]. With a draft model, the time that it takes counts as part of the step.

use super::Scheduler;
use super::blocks::Pool;
use super::draft_model::FedDrafts;
use super::sequence::{Order, PlannedRow, Sequence};
use super::step_plan::{BLOCK_TOKENS, RowOutput};
use super::step_times::StepTimes;
use crate::grammar::GrammarProgress;

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

/// Drafts of a trial of a draft model.
const TRIAL_DRAFTS: usize = 2;

/// A draft that a sequence may feed.
#[derive(Debug)]
struct Candidate {
    order: Order,
    /// Its place among the sequence's drafts, from 0 on.
    place: usize,
    /// The probability that it and all drafts before it are accepted.
    chance: f32,
    /// Positions before it, about.
    context: usize,
    /// Tokens that the draft model has to compute before it proposes the sequence's first draft.
    missing: usize,
    /// Tokens that the sequence is expected to generate still.
    tokens_left: f64,
}

/// The next step without drafts.
struct PlainStep<'a> {
    times: &'a StepTimes,
    /// Decode rows.
    decodes: usize,
    /// Prompt tokens.
    prompts: usize,
    /// Seconds of attention, less those of the prompts.
    others: f64,
}

/// The time that the draft model takes in a step: one pass for each place.
struct DraftPasses<'a> {
    times: &'a StepTimes,
    /// Sequences in each pass.
    sequences: [usize; MAX_DRAFTS],
    seconds: f64,
}

impl PlainStep<'_> {
    /// Seconds with this many drafts, without the time of the draft model and of attention.
    fn seconds(&self, drafts: usize) -> f64 {
        self.others + self.times.seconds(self.decodes + self.prompts + drafts)
    }

    /// A later step of this many decode rows with contexts as long, and no prompts.
    fn later(&self, decodes: usize) -> Self {
        let of_prompts = self.times.seconds(self.decodes + self.prompts) - self.times.seconds(self.decodes);
        let others = (self.others + of_prompts) * decodes as f64 / self.decodes as f64;
        Self { times: self.times, decodes, prompts: 0, others }
    }

    /// Decode rows per second, times the least gain.
    fn needed(&self) -> f64 {
        self.decodes as f64 / self.seconds(0) * LEAST_GAIN
    }

    /// Whether some number of drafts pays if all are accepted, at most `most` for each sequence.
    fn can_pay(&self, most: usize) -> bool {
        let pays = |sequences: usize, each: usize| {
            let (drafts, passes) = (each * sequences, each as f64 * self.times.draft_seconds(sequences));
            (self.decodes + drafts) as f64 / (self.seconds(drafts) + passes) >= self.needed()
        };
        (1..=most).any(|each| pays(1, each) || pays(self.decodes, each))
    }
}

impl DraftPasses<'_> {
    fn add(&mut self, draft: &Candidate) {
        let sequences = &mut self.sequences[draft.place];
        *sequences += 1;
        let before = if *sequences > 1 { self.times.draft_seconds(*sequences - 1) } else { 0.0 };
        self.seconds += self.times.draft_seconds(*sequences) - before;
        if draft.place == 0 {
            // The share of this step in the rest of the answer.
            let share = (1.0 + f64::from(draft.chance)) / draft.tokens_left;
            self.seconds += self.times.catch_up_seconds(draft.missing) * share.min(1.0);
        }
    }
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
            || self.steps_in_flight() > 0 && !self.chosen_drafts().drafts.is_empty();
        if one { 1 } else { super::MAX_IN_FLIGHT }
    }

    /// Sets the number of drafts of each running sequence for a step that is planned now.
    pub(super) fn choose_drafts(&mut self) {
        if self.config.max_drafts == 0 {
            return;
        }
        self.running.values_mut().for_each(|sequence| sequence.wanted_drafts = 0);
        let soon = self.running.len() + self.waiting.len();
        self.draft_model.run(soon.min(self.config.max_num_seqs));
        if self.steps_in_flight() > 0 {
            return;
        }
        let Chosen { drafts, is_trial } = self.chosen_drafts();
        if is_trial {
            self.draft_model.tried();
        }
        for Candidate { order, .. } in drafts {
            if let Some(sequence) = self.running.get_mut(&order) {
                sequence.wanted_drafts += 1;
            }
        }
    }

    /// The sequences that have a decode row in the next step, if the budget allows.
    fn decoding(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().filter(|sequence| sequence.pending() == 1)
    }

    /// The next step without drafts; `None` if it has no decode rows, or too many for drafts.
    fn plain_step(&self) -> Option<PlainStep<'_>> {
        let decodes = self.decoding().count();
        let budget = self.config.max_num_batched_tokens;
        if decodes == 0 || decodes > MOST_DECODES.min(budget) {
            return None;
        }
        let prompts = (self.unfed_tokens() + self.waiting_tokens).min(budget - decodes);
        let times = &self.step_times;
        let context: usize = self.decoding().map(Sequence::len).sum();
        // Prompts have to be computed in any case, so their time is none of generating. A draft must be
        // cheaper than a later step without prompts, which would generate the token as well.
        let of_prompts = times.seconds(decodes + prompts) - times.seconds(decodes);
        let others = times.first_row * context as f64 - of_prompts;
        Some(PlainStep { times, decodes, prompts, others })
    }

    /// The drafts with which the next step is expected to yield the most tokens per second; none if they gain
    /// too little. With a step in flight, the drafts that follow its tokens, if these are as expected.
    fn chosen_drafts(&mut self) -> Chosen {
        let most = self.config.max_drafts;
        if most == 0 {
            return Chosen::default();
        }
        let Some(step) = self.plain_step() else { return Chosen::default() };
        let (may_pay, may_try) = (step.can_pay(most), self.config.draft_model && self.draft_model.may_try());
        if !may_pay && !may_try {
            return Chosen::default();
        }
        let room = self.config.max_num_batched_tokens - step.decodes;
        let usual = self.draft_model.usual_sequences().max(step.decodes);
        let pay_for_long = self.config.draft_model && step.later(usual).can_pay(most);
        let mut candidates = self.candidates(pay_for_long);
        candidates.truncate(room.min(self.config.max_num_seqs + SPARE_SAMPLES));
        let Some(step) = self.plain_step().filter(|_| !candidates.is_empty()) else {
            return Chosen::default();
        };
        let chosen = if may_pay { best_number(&step, &candidates) } else { 0 };
        let is_trial = chosen == 0 && may_try;
        let drafts = match is_trial {
            true => self.trial(candidates),
            false => {
                candidates.truncate(chosen);
                candidates
            }
        };
        Chosen { is_trial: is_trial && !drafts.is_empty(), drafts }
    }

    /// The drafts of a trial of the draft model: the first ones of the sequence that costs least, if that is
    /// allowed. `candidates` are in order of their chances.
    fn trial(&mut self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let first = candidates.iter().filter(|one| one.place == 0);
        let Some(cheapest) = first.min_by_key(|one| one.missing) else { return Vec::new() };
        let times = &self.step_times;
        let each = times.draft_seconds(1) + times.seconds(2) - times.seconds(1);
        let seconds = TRIAL_DRAFTS as f64 * each + times.catch_up_seconds(cheapest.missing);
        if !self.draft_model.allows(seconds) {
            return Vec::new();
        }
        let order = cheapest.order;
        candidates.into_iter().filter(|one| one.order == order && one.place < TRIAL_DRAFTS).collect()
    }

    /// Learns from the output of a row that asked for drafts of a draft model.
    pub(super) fn observe_proposals(&mut self, row: &PlannedRow, output: &RowOutput) {
        if !self.config.draft_model || row.drafts == 0 || output.non_finite {
            return;
        }
        let fed = output.drafts.len();
        let accepted = output.tokens.len().saturating_sub(1).min(fed);
        // Where a grammar ends the answer, the next draft is not rejected by its token.
        let is_one_rejected = accepted < fed && output.grammar == GrammarProgress::default();
        let of = FedDrafts { fed, accepted, is_one_rejected };
        self.draft_model.observe(&of);
        if let Some(sequence) = self.running.get_mut(&row.order) {
            let len = sequence.len();
            let most = self.config.max_num_batched_tokens;
            sequence.model_drafts.iter_mut().for_each(|drafts| drafts.observe(&of, len, most));
        }
    }

    /// The drafts of all decode rows, the most likely ones first. `pay_for_long`: whether drafts of a draft
    /// model are expected to pay until the answers end, so that its work on a sequence serves them all.
    fn candidates(&mut self, pay_for_long: bool) -> Vec<Candidate> {
        let (most, with_model) = (self.config.max_drafts, self.config.draft_model);
        let mut candidates = Vec::new();
        for (order, sequence) in &mut self.running {
            let chances = sequence.draft_chances(most, &self.draft_model);
            let missing = sequence.model_drafts.as_ref().map_or(0, |drafts| drafts.missing(sequence.len()));
            let tokens_left = if pay_for_long {
                self.draft_model.tokens_left(sequence.generated(), sequence.most_tokens_left())
            } else {
                1.0
            };
            let (order, context) = (*order, sequence.len());
            let of_trial = |place: usize| with_model && place < TRIAL_DRAFTS;
            let all = chances.into_iter().enumerate();
            let likely = all.take_while(|(place, chance)| *chance >= LEAST_CHANCE || of_trial(*place));
            candidates.extend(likely.map(|(place, chance)| Candidate {
                order,
                place,
                chance,
                context,
                missing,
                tokens_left,
            }));
        }
        // Drafts of one sequence stay in order, since their chances fall and the sort is stable.
        candidates.sort_by(|one, other| other.chance.total_cmp(&one.chance));
        candidates
    }
}

/// The drafts of a step.
#[derive(Default)]
struct Chosen {
    drafts: Vec<Candidate>,
    /// Whether they are not expected to pay and show only how many are accepted now.
    is_trial: bool,
}

/// The number of the first candidates with which a step yields the most tokens per second; 0 if they gain too
/// little.
fn best_number(step: &PlainStep<'_>, candidates: &[Candidate]) -> usize {
    let mut passes = DraftPasses { times: step.times, sequences: [0; MAX_DRAFTS], seconds: 0.0 };
    let (mut expected, mut chosen, mut best) = (step.decodes as f64, 0, step.needed());
    let mut context = 0;
    for (index, candidate) in candidates.iter().enumerate() {
        expected += f64::from(candidate.chance);
        context += candidate.context;
        passes.add(candidate);
        let attention = step.times.further_row * context as f64;
        let rate = expected / (step.seconds(index + 1) + attention + passes.seconds);
        if rate >= best {
            (chosen, best) = (index + 1, rate);
        }
    }
    chosen
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
