//! A plan's rows as the flat arrays of a forward pass.

use super::sampler::Slots;
use crate::device::{Segment, StepInputs};
use crate::scheduler::plan::{StepPlan, TokenSource};

/// Rows one after the other, each a segment.
pub(super) fn flatten(plan: &StepPlan, slots: &Slots) -> StepInputs {
    let mut inputs = StepInputs::default();
    for row in &plan.rows {
        let first = inputs.tokens.len();
        match &row.tokens {
            TokenSource::Host(tokens) => inputs.tokens.extend(tokens),
            TokenSource::LastSampled => inputs.tokens.push(slots.get(row.slot).last()),
        }
        inputs.segments.push(Segment {
            first,
            len: inputs.tokens.len() - first,
            position: row.position as usize,
            blocks: row.blocks.clone(),
        });
    }
    inputs
}
