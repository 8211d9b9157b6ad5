//! Converts a step plan to the flat arrays of a forward pass.

use std::sync::Arc;

use crate::device::{Segment, StepInputs, Token};
use crate::scheduler::step_plan::{StepPlan, TokenSource};

/// Concatenates the rows of a plan; each row becomes a segment, and one with drafts becomes segments of at
/// most `longest` tokens.
pub(super) fn flatten(plan: &StepPlan, longest: usize) -> StepInputs {
    let mut inputs = StepInputs::default();
    for row in &plan.rows {
        let first = inputs.tokens.len();
        match &row.tokens {
            TokenSource::Host(tokens) => inputs.tokens.extend(tokens.iter().map(|id| Token::Id(*id))),
            TokenSource::LastSampled => inputs.tokens.push(Token::Last { slot: row.slot }),
        }
        let (end, position) = (inputs.tokens.len(), row.position as usize);
        let longest = if row.drafts > 0 { longest } else { end - first };
        let segment = |at: usize| Segment {
            first: at,
            len: longest.min(end - at),
            position: position + at - first,
            blocks: Arc::clone(&row.blocks),
        };
        inputs.segments.extend((first..end).step_by(longest).map(segment));
    }
    inputs
}
