//! Conversations to score.
//!
//! A conversation is scored at the end of its last answer, and never cut: a prompt without its end, where the
//! head is read, gets a number that means nothing.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Limits, chat, tools};
use crate::generation::{ChatMessage, Conversation, Prompts, Role};
use crate::server::error::ApiError;
use crate::server::fields::wrong_type;
use crate::server::reward::types::PROMPT;
use crate::server::reward::writer::Subject;
use crate::server::types::MAX_SEQUENCES;

/// A conversation whose messages are read.
pub(super) struct Read {
    pub(super) path: String,
    /// The messages; without the answer, if `answer` has it.
    pub(super) messages: Arc<[ChatMessage]>,
    pub(super) answer: Option<ChatMessage>,
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
    Ok(Read { path: path.to_owned(), messages: plain(messages, limits).into(), answer: None })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

/// The messages with tool calls as text, if the template shows none.
fn plain(messages: Vec<ChatMessage>, limits: &Limits) -> Vec<ChatMessage> {
    match limits.tools {
        Some(support) => tools::as_text(messages, support, &[]),
        None => messages,
    }
}

/// Reads a prompt and the answers to it.
pub(super) fn answered(
    prompt: Value,
    answers: Vec<Value>,
    ignored: &mut Vec<String>,
    limits: &Limits,
) -> Result<Vec<Read>, ApiError> {
    let messages = match prompt {
        Value::String(text) => vec![ChatMessage::new(Role::User, text)],
        Value::Array(items) => chat::messages("prompt", &items, ignored)?,
        other => return Err(wrong_type("prompt", PROMPT, &other)),
    };
    let shared: Arc<[ChatMessage]> = plain(messages, limits).into();
    let one = |(i, answer): (usize, Value)| {
        let path = format!("answers[{i}]");
        let Value::String(text) = answer else { return Err(wrong_type(&path, "a string", &answer)) };
        let answer = Some(ChatMessage::new(Role::Assistant, text));
        Ok(Read { path, messages: Arc::clone(&shared), answer })
    };
    answers.into_iter().enumerate().map(one).collect()
}

/// The prompts of conversations: each up to its last answer, or up to each of its answers.
pub(super) fn ends(
    conversations: Vec<Read>,
    every_turn: bool,
    kwargs: Map<String, Value>,
    limits: &Limits,
) -> Result<(Prompts, Vec<Subject>), ApiError> {
    let (mut prompts, mut subjects) = (Vec::new(), Vec::new());
    for Read { path, messages, answer } in conversations {
        if limits.tools.is_none() {
            let text = "this model has no chat template; send text as input of /classify or /pooling";
            return Err(ApiError::invalid(path, text));
        }
        let answers = messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
        let mut ends: Vec<usize> = answers.map(|(i, _)| i).collect();
        ends.extend(answer.as_ref().map(|_| messages.len()));
        if !every_turn {
            ends.drain(..ends.len() - 1);
        }
        for end in &ends {
            prompts.push(match &answer {
                Some(answer) if *end == messages.len() => Conversation::answered(&messages, answer.clone()),
                _ => Conversation::beginning(&messages, end + 1),
            });
        }
        if prompts.len() > MAX_SEQUENCES {
            let got = prompts.len();
            let text = format!("expected at most {MAX_SEQUENCES} answers to score in a request, got {got}");
            return Err(ApiError::invalid(if every_turn { "every_turn" } else { &path }, text));
        }
        subjects.push(Subject { path, ends });
    }
    Ok((Prompts::Conversations { conversations: prompts, kwargs }, subjects))
}
