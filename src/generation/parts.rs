//! The order of text and tool calls within a delta.

use super::Delta;
use crate::tools::ToolCallDelta;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    /// New text.
    Text(String),
    /// A new part of a tool call.
    Call(ToolCallDelta),
}

impl Delta {
    /// Takes the text and the parts of calls, in the order in which the model wrote them.
    pub(crate) fn take_parts(&mut self) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        let (text, mut taken) = (std::mem::take(&mut self.text), 0);
        for call in std::mem::take(&mut self.calls) {
            if call.text_before > taken {
                parts.push(AnswerPart::Text(text[taken..call.text_before].to_owned()));
                taken = call.text_before;
            }
            parts.push(AnswerPart::Call(call));
        }
        if taken < text.len() {
            parts.push(AnswerPart::Text(text[taken..].to_owned()));
        }
        parts
    }
}
