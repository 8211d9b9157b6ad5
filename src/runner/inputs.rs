//! Converts a step plan to the flat arrays of a forward pass.

use std::sync::Arc;

use crate::device::{Segment, StepInputs, Token};
use crate::scheduler::step_plan::{StepPlan, TokenSource};

/// Concatenates the rows of a plan; each row becomes a segment.
pub(super) fn flatten(plan: &StepPlan) -> StepInputs {
    let mut inputs = StepInputs::default();
    for row in &plan.rows {
        let first = inputs.tokens.len();
        match &row.tokens {
            TokenSource::Host(tokens) => inputs.tokens.extend(tokens.iter().map(|id| Token::Id(*id))),
            TokenSource::LastSampled => inputs.tokens.push(Token::Last { slot: row.slot }),
        }
        inputs.segments.push(Segment {
            first,
            len: inputs.tokens.len() - first,
            position: row.position as usize,
            blocks: Arc::clone(&row.blocks),
        });
    }
    inputs
}
