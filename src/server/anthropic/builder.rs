//! Builds a message from the deltas of an answer: its content blocks, and the events of a stream.
//!
//! A text and each call are a block of their own, in the order in which the model wrote them. Only the last
//! block is open; it is closed when the next one begins or the answer ends.

use serde_json::{Map, Value};

use super::reply::{
    AnthropicError, BlockDelta, ContentBlock, MessageEnd, MessageEvent, MessageReply, MessageUsage,
};
use crate::generation::{AnswerPart, Delta, FinishReason, Usage};
use crate::server::error::ApiError;
use crate::tools::ToolCallDelta;

/// The event [`MessageEvent::Ping`] as it is sent.
pub(crate) const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// Builds one message.
pub(crate) struct MessageBuilder {
    /// The message without the answer.
    reply: MessageReply,
    /// The limit of the request, in tokens.
    max_tokens: u32,
    blocks: Vec<Block>,
    /// Whether the last block is open.
    open: bool,
    finish: Option<FinishReason>,
}

/// A block so far.
enum Block {
    Text(String),
    Call { id: String, name: String, arguments: String },
}

/// Where events are written; `None` if the reply is whole.
type Events<'a> = Option<&'a mut Vec<u8>>;

impl MessageBuilder {
    pub(crate) fn new(id: String, model: String, max_tokens: u32) -> Self {
        let reply = MessageReply {
            id,
            kind: "message",
            role: "assistant",
            model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage::default(),
        };
        Self { reply, max_tokens, blocks: Vec::new(), open: false, finish: None }
    }

    /// The message's id.
    pub(crate) fn id(&self) -> &str {
        &self.reply.id
    }

    /// Writes the events that precede the answer.
    pub(crate) fn begin(&mut self, usage: Usage, out: &mut Vec<u8>) {
        self.reply.usage = usage.into();
        emit(&mut Some(out), &MessageEvent::MessageStart { message: &self.reply });
        emit(&mut Some(out), &MessageEvent::Ping);
    }

    /// Adds a delta.
    pub(crate) fn push(&mut self, mut delta: Delta, mut events: Events<'_>) {
        for part in delta.take_parts() {
            match part {
                AnswerPart::Text(text) => self.text(text, &mut events),
                AnswerPart::Call(call) => self.call(call, &mut events),
            }
        }
        self.finish = delta.finish.or(self.finish);
        self.reply.stop_sequence = delta.stop_string.or(self.reply.stop_sequence.take());
    }

    /// Ends the answer. Returns the JSON of the whole message.
    pub(crate) fn end(&mut self, usage: Usage, mut events: Events<'_>) -> String {
        self.close(&mut events);
        self.reply.usage = usage.into();
        let by_string = self.reply.stop_sequence.is_some();
        let stop_reason = match self.finish {
            Some(FinishReason::ToolCalls) => "tool_use",
            Some(FinishReason::Length) if usage.completion_tokens < self.max_tokens as usize => {
                "model_context_window_exceeded"
            }
            Some(FinishReason::Length) => "max_tokens",
            _ if by_string => "stop_sequence",
            _ => "end_turn",
        };
        self.reply.stop_reason = Some(stop_reason);
        let end = MessageEnd {
            stop_reason: self.reply.stop_reason,
            stop_sequence: self.reply.stop_sequence.as_deref(),
        };
        emit(&mut events, &MessageEvent::MessageDelta { delta: end, usage: self.reply.usage });
        emit(&mut events, &MessageEvent::MessageStop);
        let block = |block| match block {
            Block::Text(text) => ContentBlock::Text { text },
            Block::Call { id, name, arguments } => {
                ContentBlock::ToolUse { id, name, input: complete_members(&arguments) }
            }
        };
        self.reply.content = std::mem::take(&mut self.blocks).into_iter().map(block).collect();
        serde_json::to_string(&self.reply).expect("text and finite numbers can be written as JSON")
    }

    /// Writes the last event of an answer that failed.
    pub(crate) fn failed(&self, error: &ApiError, out: &mut Vec<u8>) {
        let error = AnthropicError::new(error, error.status().as_u16());
        emit(&mut Some(out), &MessageEvent::Error { error });
    }

    /// Adds text to the open block, or begins one.
    fn text(&mut self, new: String, events: &mut Events<'_>) {
        if !(self.open && matches!(self.blocks.last(), Some(Block::Text(_)))) {
            self.close(events);
            let content_block = &ContentBlock::Text { text: String::new() };
            emit(events, &MessageEvent::ContentBlockStart { index: self.blocks.len(), content_block });
            self.blocks.push(Block::Text(String::new()));
            self.open = true;
        }
        let index = self.blocks.len() - 1;
        let delta = BlockDelta::TextDelta { text: &new };
        emit(events, &MessageEvent::ContentBlockDelta { index, delta });
        if let Some(Block::Text(text)) = self.blocks.last_mut() {
            text.push_str(&new);
        }
    }

    /// Adds a part of a call to the open one, or begins one if the part has a name.
    fn call(&mut self, part: ToolCallDelta, events: &mut Events<'_>) {
        if let Some(name) = part.name {
            self.close(events);
            let random = self.reply.id.rsplit('_').next().unwrap_or_default();
            let id = format!("toolu_{}_{}", random.get(..24).unwrap_or(random), part.call);
            let content_block = ContentBlock::ToolUse { id, name, input: Map::new() };
            let index = self.blocks.len();
            emit(events, &MessageEvent::ContentBlockStart { index, content_block: &content_block });
            if let ContentBlock::ToolUse { id, name, .. } = content_block {
                self.blocks.push(Block::Call { id, name, arguments: String::new() });
            }
            self.open = true;
        }
        let index = self.blocks.len().saturating_sub(1);
        let Some(Block::Call { arguments, .. }) = self.blocks.last_mut() else { return };
        if !part.arguments.is_empty() {
            let delta = BlockDelta::InputJsonDelta { partial_json: &part.arguments };
            emit(events, &MessageEvent::ContentBlockDelta { index, delta });
            arguments.push_str(&part.arguments);
        }
    }

    /// Closes the open block, if there is one.
    fn close(&mut self, events: &mut Events<'_>) {
        if std::mem::take(&mut self.open) {
            emit(events, &MessageEvent::ContentBlockStop { index: self.blocks.len() - 1 });
        }
    }
}

/// Writes an event.
fn emit(events: &mut Events<'_>, event: &MessageEvent<'_>) {
    let Some(out) = events else { return };
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.name().as_bytes());
    out.extend_from_slice(b"\ndata: ");
    serde_json::to_writer(&mut **out, event).expect("text and finite numbers can be written as JSON");
    out.extend_from_slice(b"\n\n");
}

/// The members of an object whose text may have been cut off: those that are complete.
fn complete_members(text: &str) -> Map<String, Value> {
    if let Ok(members) = serde_json::from_str(text) {
        return members;
    }
    // Each member but the last is followed by a comma outside strings and inner brackets.
    let (mut depth, mut in_string, mut escaped, mut last) = (0_usize, false, false, None);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => last = Some(at),
            _ => {}
        }
    }
    last.and_then(|at| serde_json::from_str(&format!("{}}}", &text[..at])).ok()).unwrap_or_default()
}
