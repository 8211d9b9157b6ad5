//! Drafts of a draft model, as the scheduler sees them. The executor proposes them at the beginning of the
//! step that feeds them. Their tokens are not known here, only how many were fed and how many were accepted.
//!
//! The draft model does not follow every step: with many sequences it would cost time and gain none. When a
//! sequence asks for drafts, the draft model first computes the tokens that it has missed, which are those of
//! the prompt at first. Their cost is spread over the tokens that the answer is expected to have still, so
//! that drafts do not begin for the last tokens of an answer. It is not spread if drafts pay only because
//! fewer sequences run than usual: another one may join in the next step.
//!
//! The chance of a draft is learned from those before it, of the same sequence and of all. Where drafts do
//! not pay, none are fed and nothing is learned. Therefore one sequence is tried now and then, for
//! [`TRIAL_SHARE`] of the time.

/// The share of a draft's weight that is left after each later one of the same sequence.
const DECAY: f32 = 0.95;
/// The same for the drafts of all sequences.
const DECAY_OF_ALL: f32 = 0.995;
/// Drafts of one sequence as which the experience with all sequences counts.
const PRIOR_WEIGHT: f32 = 4.0;
/// Taken to be known of all sequences before the first draft.
const PRIOR: Acceptance = Acceptance { accepted: 4.2, seen: 6.0 };
/// Expected tokens of an answer before any has ended, which count as one answer.
const USUAL_ANSWER: f64 = 128.0;
/// Factor by which each ended answer lowers the weight of all earlier answers.
const ANSWER_DECAY: f64 = 0.97;
/// The share of the distance that the usual number of sequences falls in a step in which fewer run.
const FALL: f64 = 0.05;
/// The share of the time that is spent on drafts that are not expected to pay.
const TRIAL_SHARE: f64 = 0.003;

/// The drafts of a row that was committed.
#[derive(Debug)]
pub(super) struct FedDrafts {
    pub(super) fed: usize,
    pub(super) accepted: usize,
    /// Whether the draft after the accepted ones was rejected. It was not if the answer ended before it.
    pub(super) is_one_rejected: bool,
}

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

/// Experience with the drafts and the answers of all sequences.
#[derive(Debug)]
pub(super) struct DraftModelState {
    acceptance: Acceptance,
    /// Tokens of ended answers, with weights that decay.
    answer_tokens: f64,
    /// Ended answers, with the same weights.
    answers: f64,
    /// Sequences that run or wait for a slot. Those that have just ended still count for some steps.
    sequences: f64,
    /// Seconds that a trial may cost.
    allowance: f64,
    /// Seconds that the last trial considered would have cost; 0 if it was made.
    too_dear: f64,
}

impl Default for DraftModelState {
    fn default() -> Self {
        Self {
            acceptance: PRIOR,
            answer_tokens: USUAL_ANSWER,
            answers: 1.0,
            sequences: 0.0,
            allowance: 0.0,
            too_dear: 0.0,
        }
    }
}

impl Acceptance {
    fn observe(&mut self, of: &FedDrafts, decay: f32) {
        let accepted = std::iter::repeat_n(true, of.accepted);
        for is_accepted in accepted.chain(of.is_one_rejected.then_some(false)) {
            self.accepted = self.accepted * decay + f32::from(u8::from(is_accepted));
            self.seen = self.seen * decay + 1.0;
        }
    }

    fn chance(self, prior: f32) -> f32 {
        (self.accepted + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
    }
}

impl ModelDrafts {
    /// Takes in that the sequence starts with `cached` positions in the prefix cache. The draft model has
    /// most likely computed them too.
    pub(super) fn start(&mut self, cached: usize) {
        self.computed = cached;
    }

    /// Tokens that the draft model computes before it can propose, for a sequence of `len` tokens: the last
    /// one, and those that it has missed.
    pub(super) fn missing(&self, len: usize) -> usize {
        len.saturating_sub(self.computed).max(1)
    }

    /// Learns from a row of a sequence of `len` tokens, in a step of at most `most_tokens`.
    pub(super) fn observe(&mut self, of: &FedDrafts, len: usize, most_tokens: usize) {
        self.acceptance.observe(of, DECAY);
        // The last draft was not fed to the draft model. Without a draft, it has not caught up.
        self.computed = match of.fed {
            0 => len.min(self.computed + most_tokens),
            fed => len + of.accepted.min(fed - 1),
        };
    }
}

impl DraftModelState {
    /// The chance that a draft is accepted if those before it are.
    pub(super) fn chance(&self, drafts: &ModelDrafts) -> f32 {
        drafts.acceptance.chance(self.acceptance.accepted / self.acceptance.seen)
    }

    /// Tokens that an answer is expected to have still, after `generated` of them, if it may have `most`
    /// more; at least 1.
    pub(super) fn tokens_left(&self, generated: usize, most: usize) -> f64 {
        // An answer that is longer than usual is expected to become twice as long.
        let expected = (self.answer_tokens / self.answers - generated as f64).max(generated as f64);
        expected.min(most as f64).max(1.0)
    }

    /// Takes in how many sequences run or wait for a slot when a step is planned.
    pub(super) fn run(&mut self, sequences: usize) {
        let now = sequences as f64;
        self.sequences = now.max(self.sequences - FALL * (self.sequences - now));
    }

    /// The number of sequences that are expected to run for a while.
    pub(super) fn usual_sequences(&self) -> usize {
        self.sequences.round() as usize
    }

    /// Learns from a row of any sequence.
    pub(super) fn observe(&mut self, of: &FedDrafts) {
        self.acceptance.observe(of, DECAY_OF_ALL);
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

    /// Whether a trial may cost this many seconds.
    pub(super) fn allows(&mut self, seconds: f64) -> bool {
        let allows = seconds <= self.allowance;
        self.too_dear = if allows { 0.0 } else { seconds };
        allows
    }

    /// Takes in that a trial is made.
    pub(super) fn tried(&mut self) {
        (self.allowance, self.too_dear) = (0.0, 0.0);
    }
}
