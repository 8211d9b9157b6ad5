//! A step of the simulated GPUs, outside of time: what it answers and how long it would take.

use std::sync::Arc;

use super::tokens::{Key, Voice};
use crate::cost::{CostModel, RowShape, StepTime};
use crate::request::{SampledToken, SamplingParams, TokenLogprob};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepOutput, StepPlan};

/// The GPUs: a cost, what they say, and who has which slot.
#[derive(Debug, Clone)]
pub struct Machine {
    cost: CostModel,
    speech: Speech,
    slots: Vec<Option<Slot>>,
}

/// Where tokens come from.
#[derive(Debug, Clone)]
enum Speech {
    Voice(Voice),
    /// The answer to the request whose seed is its index.
    Script(Vec<Arc<[u32]>>),
}

/// A running sequence.
#[derive(Debug, Clone)]
struct Slot {
    start: Arc<SlotStart>,
    key: Key,
}

impl Machine {
    /// With nobody in any slot.
    pub fn new(cost: CostModel, voice: Voice) -> Self {
        Self { cost, speech: Speech::Voice(voice), slots: Vec::new() }
    }

    /// One that answers as it is told by [`Machine::learn`].
    pub fn scripted(cost: CostModel) -> Self {
        Self { cost, speech: Speech::Script(Vec::new()), slots: Vec::new() }
    }

    /// Adds an answer; a request says that it is its own by the seed returned. Behind its end comes token 0. A machine
    /// with a voice of its own learns nothing.
    pub fn learn(&mut self, answer: Arc<[u32]>) -> u64 {
        match &mut self.speech {
            Speech::Voice(_) => 0,
            Speech::Script(answers) => {
                answers.push(answer);
                answers.len() as u64 - 1
            }
        }
    }

    /// Executes a step at once, and says what it would take.
    ///
    /// # Panics
    /// If a row's slot was never started, which is a bug in the scheduler.
    pub fn step(&mut self, plan: &StepPlan) -> (StepOutput, StepTime) {
        let time = self.predict(plan);
        let rows = plan.rows.iter().map(|row| self.row(row)).collect();
        (StepOutput { id: plan.id, rows }, time)
    }

    /// What a step would take.
    pub fn predict(&self, plan: &StepPlan) -> StepTime {
        self.cost.step(plan.rows.iter().map(shape))
    }

    fn row(&mut self, row: &Row) -> RowOutput {
        let index = row.slot as usize;
        if let Some(start) = &row.start {
            if self.slots.len() <= index {
                self.slots.resize(index + 1, None);
            }
            let key = match &self.speech {
                Speech::Voice(_) => Voice::key(&start.tokens[..start.prompt_len], &start.sampling),
                Speech::Script(_) => Key::default(),
            };
            self.slots[index] = Some(Slot { start: Arc::clone(start), key });
        }
        let slot = self.slots.get(index).and_then(Option::as_ref);
        let Slot { start, key } = slot.expect("a sequence's first row says how it starts");
        let prompt_top = start.prompt_logprobs.unwrap_or_default();
        let scores = row.score.iter().map(|token| self.speech.score(*token, prompt_top)).collect();
        if !row.sample {
            return RowOutput { scores, ..RowOutput::default() };
        }
        // Positions alone say which token of the answer this is; what the one before was need not be known.
        let generated = row.position as usize + row.tokens.len() - start.prompt_len;
        let token = self.speech.token(*key, generated, &start.sampling);
        let logprob = start.sampling.logprobs.map(|top| self.speech.score(token, top));
        let tokens = std::iter::once(SampledToken { id: token, logprob }).collect();
        RowOutput { tokens, scores, non_finite: false }
    }
}

impl Speech {
    fn token(&self, key: Key, i: usize, sampling: &SamplingParams) -> u32 {
        match self {
            Self::Voice(voice) => voice.token(key, i, sampling),
            Self::Script(answers) => {
                let answer = answers.get(sampling.seed as usize);
                answer.and_then(|answer| answer.get(i)).copied().unwrap_or(0)
            }
        }
    }

    fn score(&self, token: u32, alternatives: u8) -> TokenLogprob {
        match self {
            Self::Voice(voice) => voice.score(token, alternatives),
            Self::Script(_) => TokenLogprob { token, logprob: 0.0, top: Vec::new() },
        }
    }
}

/// A row as the cost model sees it.
pub fn shape(row: &Row) -> RowShape {
    let logits = row.score.len() + usize::from(row.sample);
    let count = |n: usize| u32::try_from(n).expect("a step's tokens fit in 32 bits");
    RowShape { tokens: count(row.tokens.len()), position: row.position, logits: count(logits) }
}
