//! A step of the simulated GPUs, outside of time: what it answers and how long it would take.

use std::sync::Arc;

use super::tokens::{Key, Voice};
use crate::cost::{CostModel, RowShape, StepTime};
use crate::scheduler::plan::{Row, RowOutput, SlotStart, StepOutput, StepPlan};

/// The GPUs: a cost, a voice, and who has which slot.
#[derive(Debug, Clone)]
pub struct Machine {
    cost: CostModel,
    voice: Voice,
    slots: Vec<Option<Slot>>,
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
        Self { cost, voice, slots: Vec::new() }
    }

    /// Executes a step at once, and says what it would take.
    ///
    /// # Panics
    /// If a row's slot was never started, which is a bug in the scheduler.
    pub fn step(&mut self, plan: &StepPlan) -> (StepOutput, StepTime) {
        let time = self.cost.step(plan.rows.iter().map(shape));
        let rows = plan.rows.iter().map(|row| self.row(row)).collect();
        (StepOutput { id: plan.id, rows }, time)
    }

    fn row(&mut self, row: &Row) -> RowOutput {
        let index = row.slot as usize;
        if let Some(start) = &row.start {
            if self.slots.len() <= index {
                self.slots.resize(index + 1, None);
            }
            let key = Voice::key(&start.tokens[..start.prompt_len], &start.sampling);
            self.slots[index] = Some(Slot { start: Arc::clone(start), key });
        }
        let slot = self.slots.get(index).and_then(Option::as_ref);
        let Slot { start, key } = slot.expect("a sequence's first row says how it starts");
        let prompt_top = start.prompt_logprobs.unwrap_or_default();
        let scores = row.score.iter().map(|token| self.voice.score(*token, prompt_top)).collect();
        if !row.sample {
            return RowOutput { scores, ..RowOutput::default() };
        }
        // Positions alone say which token of the answer this is; what the one before was need not be known.
        let generated = row.position as usize + row.tokens.len() - start.prompt_len;
        let token = self.voice.token(*key, generated, &start.sampling);
        let logprob = start.sampling.logprobs.map(|top| self.voice.score(token, top));
        RowOutput { token: Some(token), logprob, scores, non_finite: false }
    }
}

/// A row as the cost model sees it.
pub fn shape(row: &Row) -> RowShape {
    let logits = row.score.len() + usize::from(row.sample);
    let count = |n: usize| u32::try_from(n).expect("a step's tokens fit in 32 bits");
    RowShape { tokens: count(row.tokens.len()), position: row.position, logits: count(logits) }
}
