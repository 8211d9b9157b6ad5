//! Conversations of one request that share messages.

use std::sync::Arc;

use crate::text::ChatMessage;

/// A conversation to score: the beginning of a list of messages, and the answer after it if the list does not
/// have it. Conversations of one request share their lists, because there can be many answers to one prompt,
/// and one conversation for each turn.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Arc<[ChatMessage]>,
    /// Number of messages of the list that belong to the conversation.
    length: usize,
    answer: Option<ChatMessage>,
}

impl Conversation {
    /// The first `length` messages of a list.
    pub(crate) fn beginning(messages: &Arc<[ChatMessage]>, length: usize) -> Self {
        Self { messages: Arc::clone(messages), length, answer: None }
    }

    /// A list of messages and the answer to them.
    pub(crate) fn answered(prompt: &Arc<[ChatMessage]>, answer: ChatMessage) -> Self {
        Self { messages: Arc::clone(prompt), length: prompt.len(), answer: Some(answer) }
    }

    /// The messages in order.
    fn iter(&self) -> impl Iterator<Item = &ChatMessage> {
        self.messages[..self.length].iter().chain(&self.answer)
    }

    /// A copy of the messages, as the template takes them.
    pub(super) fn messages(&self) -> Vec<ChatMessage> {
        self.iter().cloned().collect()
    }

    /// Bytes of the text.
    pub(super) fn text_bytes(&self) -> usize {
        self.iter().map(ChatMessage::text_bytes).sum()
    }
}
