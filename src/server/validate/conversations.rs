//! Conversations to score.
//!
//! A conversation is scored at the end of its last answer, and never cut: a prompt without its end, where the
//! head is read, gets a number that means nothing.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Limits, chat, tools};
use crate::generation::{ChatMessage, Conversation, Prompts, Role};
use crate::server::error::ApiError;
use crate::server::reward::writer::Subject;
use crate::server::types::MAX_SEQUENCES;

/// A conversation whose messages are read.
pub(super) struct Read {
    pub(super) path: String,
    /// The messages; without the answer, if `answer` has it.
    pub(super) messages: Arc<[ChatMessage]>,
    pub(super) answer: Option<ChatMessage>,
    /// The client's index of each answer, those within the messages first.
    pub(super) answers: Vec<usize>,
}

/// Reads a conversation that ends with an answer.
pub(super) fn conversation(
    path: &str,
    items: &[Value],
    ignored: &mut Vec<String>,
    limits: &Limits,
) -> Result<Read, ApiError> {
    let messages = chat::messages(path, items, ignored)?;
    let last = messages.last().map(|message| message.role);
    if last != Some(Role::Assistant) {
        let got = last.map_or("none", role_name);
        let text = format!(
            "expected a last message with the role assistant, which is the answer to score, got {got}"
        );
        return Err(ApiError::invalid(path, text));
    }
    let answers = answers_of(&messages).collect();
    Ok(Read { path: path.to_owned(), messages: plain(messages, limits).into(), answer: None, answers })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

/// Indices of the answers among messages.
pub(super) fn answers_of(messages: &[ChatMessage]) -> impl Iterator<Item = usize> {
    let is_answer = |message: &ChatMessage| message.role == Role::Assistant;
    messages.iter().enumerate().filter(move |(_, message)| is_answer(message)).map(|(i, _)| i)
}

/// The messages with tool calls as text, if the template shows none.
pub(super) fn plain(messages: Vec<ChatMessage>, limits: &Limits) -> Vec<ChatMessage> {
    match limits.tools {
        Some(support) => tools::as_text(messages, support, &[]),
        None => messages,
    }
}

/// The prompts of conversations: each up to its last answer, or up to each of its answers.
pub(super) fn ends(
    conversations: Vec<Read>,
    every_turn: bool,
    kwargs: Map<String, Value>,
    limits: &Limits,
) -> Result<(Prompts, Vec<Subject>), ApiError> {
    let (mut prompts, mut subjects) = (Vec::new(), Vec::new());
    for Read { path, messages, answer, answers } in conversations {
        if limits.tools.is_none() {
            let text = "this model has no chat template; send text as input of /classify or /pooling";
            return Err(ApiError::invalid(path, text));
        }
        // Not the client's indices where results of tools have become one message.
        let places: Vec<usize> = answers_of(&messages).collect();
        let within = places.iter().map(|place| Conversation::beginning(&messages, place + 1));
        let last = answer.map(|answer| Conversation::answered(&messages, answer));
        let skipped = if every_turn { 0 } else { answers.len() - 1 };
        prompts.extend(within.chain(last).skip(skipped));
        if prompts.len() > MAX_SEQUENCES {
            let got = prompts.len();
            let text = format!("expected at most {MAX_SEQUENCES} answers to score in a request, got {got}");
            return Err(ApiError::invalid(if every_turn { "every_turn" } else { &path }, text));
        }
        subjects.push(Subject { path, ends: answers[skipped..].to_vec() });
    }
    Ok((Prompts::Conversations { conversations: prompts, kwargs }, subjects))
}
