//! One step of a model on simulated GPUs, without a clock: the output of the step and the time that it would
//! take.

use std::sync::Arc;

use super::answers::{AnswerKey, SyntheticAnswers};
use crate::cost::{CostModel, RowShape, StepTime};
use crate::grammar::{GrammarProgress, next_allowed};
use crate::request::{SampledToken, SamplingParams, TokenLogprob};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepOutput, StepPlan};

/// A model on simulated GPUs: a cost model, a source of answers, and the sequence in each slot.
#[derive(Debug, Clone)]
pub struct SimulatedModel {
    cost: CostModel,
    answers: AnswerSource,
    slots: Vec<Option<SimulatedSlot>>,
    /// Values of the reward head; 0 without one.
    reward_width: usize,
    draft: Option<SimulatedDraftModel>,
}

/// A draft model on the same GPUs.
#[derive(Debug, Clone)]
pub struct SimulatedDraftModel {
    /// Its step times.
    pub cost: CostModel,
    /// The probability that a draft is accepted if those before it are.
    pub acceptance: f64,
}

impl SimulatedDraftModel {
    /// The acceptance if none is given.
    pub(crate) const ACCEPTANCE: f64 = 0.7;
}

/// Source of the generated tokens.
#[derive(Debug, Clone)]
enum AnswerSource {
    Synthetic(SyntheticAnswers),
    /// Given answers; the seed of a request is the index of its answer.
    Scripted(Vec<Arc<[u32]>>),
}

/// A running sequence.
#[derive(Debug, Clone)]
struct SimulatedSlot {
    start: Arc<SlotStart>,
    key: AnswerKey,
    /// Positions that the draft model has computed. It is taken to have computed those of the prefix cache.
    drafted: usize,
}

impl SimulatedModel {
    /// A model that generates synthetic answers. All slots are empty.
    pub fn new(cost: CostModel, answers: SyntheticAnswers) -> Self {
        Self::of(cost, AnswerSource::Synthetic(answers))
    }

    /// A model that generates the answers given to [`SimulatedModel::add_answer`].
    pub fn scripted(cost: CostModel) -> Self {
        Self::of(cost, AnswerSource::Scripted(Vec::new()))
    }

    fn of(cost: CostModel, answers: AnswerSource) -> Self {
        Self { cost, answers, slots: Vec::new(), reward_width: 0, draft: None }
    }

    /// Gives the model a draft model, which proposes the drafts that plans ask for.
    pub fn with_draft_model(self, draft: Option<SimulatedDraftModel>) -> Self {
        Self { draft, ..self }
    }

    /// Gives the model a reward head of this many values; 0 for none.
    pub fn with_reward_head(self, reward_width: usize) -> Self {
        Self { reward_width, ..self }
    }

    /// Adds an answer and returns the sampling seed that selects it. Token 0 follows the end of the answer. A
    /// model of synthetic answers ignores this and returns 0.
    pub(super) fn add_answer(&mut self, answer: Arc<[u32]>) -> u64 {
        match &mut self.answers {
            AnswerSource::Synthetic(_) => 0,
            AnswerSource::Scripted(answers) => {
                answers.push(answer);
                answers.len() as u64 - 1
            }
        }
    }

    /// Returns the output of a step and the time that the step would take.
    ///
    /// # Panics
    /// If a row's slot was never started, which is a bug in the scheduler.
    pub fn step(&mut self, plan: &StepPlan) -> (StepOutput, StepTime) {
        let time = self.predict(plan);
        let rows = plan.rows.iter().map(|row| self.row(row)).collect();
        (StepOutput { id: plan.id, rows, ..StepOutput::default() }, time)
    }

    /// Time that a step would take.
    pub fn predict(&self, plan: &StepPlan) -> StepTime {
        let step = self.cost.step(plan.rows.iter().map(shape));
        let Some(draft) = &self.draft else { return step };
        let most = plan.rows.iter().map(|row| row.proposals).max().unwrap_or(0);
        let pass = |place: usize| {
            let rows = plan.rows.iter().filter(move |row| row.proposals > place);
            draft.cost.step(rows.map(|row| self.drafting(row, place)))
        };
        std::iter::once(step).chain((0..most).map(pass)).sum()
    }

    /// A row of a pass of the draft model. The first one computes the tokens that it has missed.
    fn drafting(&self, row: &Row, place: usize) -> RowShape {
        let end = row.position as usize + row.tokens.len() + place;
        let slot = self.slots.get(row.slot as usize).and_then(Option::as_ref);
        let missed = slot.map_or(end, |slot| slot.drafted);
        let position = if place == 0 { missed.min(end - 1) } else { end - 1 };
        let count = |n: usize| u32::try_from(n).expect("a sequence's tokens fit in 32 bits");
        RowShape { tokens: count(end - position), position: count(position), logits: 1 }
    }

    fn row(&mut self, row: &Row) -> RowOutput {
        let at = row.slot as usize;
        if let Some(start) = &row.start {
            if self.slots.len() <= at {
                self.slots.resize(at + 1, None);
            }
            let key = match &self.answers {
                AnswerSource::Synthetic(_) => {
                    SyntheticAnswers::key(&start.tokens[..start.prompt_len], &start.sampling)
                }
                AnswerSource::Scripted(_) => AnswerKey::default(),
            };
            let drafted = row.position as usize;
            self.slots[at] = Some(SimulatedSlot { start: Arc::clone(start), key, drafted });
        }
        let slot = self.slots.get(at).and_then(Option::as_ref);
        let slot = slot.expect("the first row of a sequence has `start`");
        let SimulatedSlot { start, key, .. } = slot;
        let prompt_top = start.prompt_logprobs.unwrap_or_default();
        let scores = row.score.iter().map(|token| self.answers.score(*token, prompt_top)).collect();
        if !row.sample {
            let prompt = &start.tokens[..start.prompt_len];
            let reward = row.reward.then(|| SyntheticAnswers::rewards(prompt, self.reward_width));
            return RowOutput { scores, reward, ..RowOutput::default() };
        }
        // The position alone determines the number of the token in the answer.
        let generated = row.position as usize + row.len_without_drafts() - start.prompt_len;
        let mut drafts = [row.draft_tokens(), &self.proposed(row, slot, generated)].concat();
        if let Some(grammar) = start.grammar.as_ref().filter(|_| !drafts.is_empty()) {
            drafts.truncate(grammar.count_allowed(generated, &drafts));
        }
        let mut output = RowOutput { scores, drafts: drafts.clone(), ..RowOutput::default() };
        let drafts = drafts.iter().map(Some).chain([None]);
        for (index, draft) in (generated..).zip(drafts) {
            let chosen = self.answers.token(*key, index, &start.sampling);
            let mask = start.grammar.as_ref().and_then(|grammar| grammar.mask(index));
            let token = mask.map_or(chosen, |mask| next_allowed(&mask, chosen));
            let grammar = start.grammar.as_ref().map(|grammar| grammar.advance(index, token));
            let grammar = grammar.unwrap_or_default();
            // After accepted drafts, the next step reports it.
            let is_stuck = grammar == GrammarProgress::Stuck;
            if is_stuck && !output.tokens.is_empty() {
                break;
            }
            let is_open = grammar == GrammarProgress::Open;
            output.grammar = grammar;
            if is_stuck {
                break;
            }
            let logprob = start.sampling.logprobs.map(|top| Box::new(self.answers.score(token, top)));
            output.tokens.push(SampledToken { id: token, logprob });
            if !is_open || draft != Some(&token) {
                break;
            }
        }
        if row.proposals > 0
            && let Some(slot) = &mut self.slots[at]
        {
            let accepted = output.tokens.len().saturating_sub(1).min(row.proposals - 1);
            slot.drafted = row.position as usize + row.tokens.len() + accepted;
        }
        output
    }

    /// The drafts of a row whose first sampled token has this index in the answer. Each is right with the
    /// draft model's probability, by a hash of the answer's key and the index.
    fn proposed(&self, row: &Row, slot: &SimulatedSlot, generated: usize) -> Vec<u32> {
        let SimulatedSlot { start, key, .. } = slot;
        let acceptance = self.draft.as_ref().map_or(0.0, |draft| draft.acceptance);
        let draft = |index: usize| {
            let token = self.answers.token(*key, index, &start.sampling);
            let is_right = key.chance(index, start.sampling.seed) < acceptance;
            if is_right { token } else { u32::from(token == 0) }
        };
        (generated..generated + row.proposals).map(draft).collect()
    }
}

impl AnswerSource {
    fn token(&self, key: AnswerKey, i: usize, sampling: &SamplingParams) -> u32 {
        match self {
            Self::Synthetic(synthetic) => synthetic.token(key, i, sampling),
            Self::Scripted(answers) => {
                let answer = answers.get(sampling.seed as usize);
                answer.and_then(|answer| answer.get(i)).copied().unwrap_or(0)
            }
        }
    }

    fn score(&self, token: u32, alternatives: u8) -> TokenLogprob {
        match self {
            Self::Synthetic(synthetic) => synthetic.score(token, alternatives),
            Self::Scripted(_) => TokenLogprob { token, logprob: 0.0, rank: 1, top: Vec::new() },
        }
    }
}

/// Shape of a row for the cost model.
fn shape(row: &Row) -> RowShape {
    let logits = row.score.len() + usize::from(row.sample) + row.drafts + row.proposals;
    let count = |n: usize| u32::try_from(n).expect("a step's tokens fit in 32 bits");
    let tokens = row.tokens.len() + row.proposals;
    RowShape { tokens: count(tokens), position: row.position, logits: count(logits) }
}
