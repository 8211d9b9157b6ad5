//! Drafts of a draft model, as the scheduler sees them. The executor proposes them at the beginning of the step
//! that feeds them. Their tokens are not known here, only how many were fed and how many of them were accepted.
//!
//! The draft model does not follow every step: with many sequences it would cost time and gain none. When a
//! sequence asks for drafts, the draft model first computes the tokens that it has missed, which are those of
//! the prompt at first. Their cost is spread over the tokens that the answer is expected to have still, so that
//! drafts do not begin for the last tokens of an answer.
//!
//! The chance of a draft is learned from those before it, of the same sequence and of all. Where drafts do not
//! pay, none are fed and nothing is learned. Therefore one sequence is tried now and then, for
//! [`TRIAL_SHARE`] of the time.

use super::sequence::{PlannedRow, Sequence};
use super::speculation::Candidate;
use super::step_plan::RowOutput;
use super::{Scheduler, StepTimes};
use crate::grammar::GrammarProgress;

/// The share of a draft's weight that is left after each later one of the same sequence.
const DECAY: f32 = 0.95;
/// The same for the drafts of all sequences.
const DECAY_OF_ALL: f32 = 0.995;
/// Drafts of one sequence that what all sequences have shown counts as.
const PRIOR_WEIGHT: f32 = 4.0;
/// What is taken to be known of all sequences before the first draft.
const PRIOR: Acceptance = Acceptance { accepted: 4.2, seen: 6.0 };
/// Expected tokens of an answer before any has ended, which count as one answer.
const USUAL_ANSWER: f64 = 128.0;
/// Factor by which each ended answer lowers the weight of all earlier answers.
const ANSWER_DECAY: f64 = 0.97;
/// The share of the time that is spent on drafts that are not expected to pay.
const TRIAL_SHARE: f64 = 0.003;
/// Drafts of a trial.
pub(super) const TRIAL_DRAFTS: usize = 2;

/// How often drafts were accepted, with weights that decay.
#[derive(Debug, Clone, Copy, Default)]
struct Acceptance {
    accepted: f32,
    seen: f32,
}

/// The draft model's state of one sequence.
#[derive(Debug, Default)]
pub(super) struct ModelDrafts {
    acceptance: Acceptance,
    /// Positions that the draft model has computed. The executor knows it exactly.
    computed: usize,
}

/// What is known of the drafts and the answers of all sequences.
#[derive(Debug)]
pub(super) struct DraftModelState {
    acceptance: Acceptance,
    /// Tokens of ended answers, with weights that decay.
    answer_tokens: f64,
    /// Ended answers, with the same weights.
    answers: f64,
    /// Seconds that a trial may cost.
    allowance: f64,
    /// Seconds that the last trial considered would have cost; 0 if it was made.
    too_dear: f64,
}

impl Default for DraftModelState {
    fn default() -> Self {
        Self { acceptance: PRIOR, answer_tokens: USUAL_ANSWER, answers: 1.0, allowance: 0.0, too_dear: 0.0 }
    }
}

impl Acceptance {
    fn observe(&mut self, accepted: usize, rejected: bool, decay: f32) {
        for is_accepted in std::iter::repeat_n(true, accepted).chain(rejected.then_some(false)) {
            self.accepted = self.accepted * decay + f32::from(u8::from(is_accepted));
            self.seen = self.seen * decay + 1.0;
        }
    }

    fn chance(self, prior: f32) -> f32 {
        (self.accepted + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
    }
}

impl ModelDrafts {
    /// Takes in that the sequence starts with `cached` positions in the prefix cache. The draft model has most
    /// likely computed them too.
    pub(super) fn start(&mut self, cached: usize) {
        self.computed = cached;
    }

    /// Tokens that the draft model computes before it can propose, for a sequence of `len` tokens: the last one,
    /// and those that it has missed.
    pub(super) fn missing(&self, len: usize) -> usize {
        len.saturating_sub(self.computed).max(1)
    }
}

impl DraftModelState {
    /// The chance that a draft is accepted if those before it are.
    pub(super) fn chance(&self, drafts: &ModelDrafts) -> f32 {
        drafts.acceptance.chance(self.acceptance.accepted / self.acceptance.seen)
    }

    /// Tokens that the answer of a sequence is expected to have still; at least 1.
    pub(super) fn tokens_left(&self, sequence: &Sequence) -> f64 {
        let generated = sequence.generated() as f64;
        // An answer that is longer than usual is expected to become twice as long.
        let expected = (self.answer_tokens / self.answers - generated).max(generated);
        expected.min(sequence.most_tokens_left() as f64).max(1.0)
    }

    /// Takes in the length of an ended answer.
    pub(super) fn answered(&mut self, tokens: usize) {
        self.answer_tokens = (self.answer_tokens + tokens as f64) * ANSWER_DECAY;
        self.answers = (self.answers + 1.0) * ANSWER_DECAY;
    }

    /// Allows trials a share of the time of a step of `seconds` seconds that generates and feeds no drafts.
    pub(super) fn allow(&mut self, seconds: f64) {
        self.allowance += TRIAL_SHARE * seconds;
    }

    /// Whether a trial may be allowed.
    pub(super) fn may_try(&self) -> bool {
        self.allowance > self.too_dear
    }

    /// The drafts of a trial: the first ones of the sequence that costs least, if that is allowed.
    /// `candidates` are in order of their chances.
    pub(super) fn trial(&mut self, candidates: Vec<Candidate>, times: &StepTimes) -> Vec<Candidate> {
        let least = |one: &&Candidate, other: &&Candidate| one.missing.cmp(&other.missing);
        let Some(cheapest) = candidates.iter().filter(|one| one.place == 0).min_by(least) else {
            return Vec::new();
        };
        let drafts = TRIAL_DRAFTS as f64 * (times.draft_seconds(1) + times.seconds(2) - times.seconds(1));
        let seconds = drafts + times.catch_up_seconds(cheapest.missing);
        if seconds > self.allowance {
            self.too_dear = seconds;
            return Vec::new();
        }
        let order = cheapest.order;
        candidates.into_iter().filter(|one| one.order == order && one.place < TRIAL_DRAFTS).collect()
    }

    /// Takes in that a trial is made.
    pub(super) fn tried(&mut self) {
        (self.allowance, self.too_dear) = (0.0, 0.0);
    }
}

impl Scheduler {
    /// Learns from the output of a row that asked for drafts.
    pub(super) fn observe_proposals(&mut self, row: &PlannedRow, output: &RowOutput) {
        if !self.config.draft_model || row.drafts == 0 || output.non_finite {
            return;
        }
        let fed = output.drafts.len();
        let accepted = output.tokens.len().saturating_sub(1).min(fed);
        // Where a grammar ends the answer, the drafts after that are not rejected by their tokens.
        let rejected = accepted < fed && output.grammar == GrammarProgress::default();
        self.draft_model.acceptance.observe(accepted, rejected, DECAY_OF_ALL);
        let most = self.config.max_num_batched_tokens;
        let Some(sequence) = self.running.get_mut(&row.order) else { return };
        let len = sequence.len();
        let Some(drafts) = &mut sequence.model_drafts else { return };
        drafts.acceptance.observe(accepted, rejected, DECAY);
        // The last draft was not fed to the draft model. Without a draft, it has not caught up.
        drafts.computed = if fed > 0 { len + accepted.min(fed - 1) } else { len.min(drafts.computed + most) };
    }
}
