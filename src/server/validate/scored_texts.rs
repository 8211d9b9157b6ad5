//! Conversations to score that are given as text or as token ids.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::conversations::{Read, answers_of, ends, plain};
use super::values::token_ids;
use super::{Limits, chat};
use crate::generation::{ChatMessage, Content, Prompts, Role};
use crate::server::error::ApiError;
use crate::server::fields::wrong_type;
use crate::server::reward::templated_text::{
    self, begins_with_turn, is_default_system, marker_in_answer, turn_markers, without_edges,
};
use crate::server::reward::types::PROMPT;
use crate::server::reward::writer::Subject;
use crate::server::types::MAX_SEQUENCES;

/// Most bytes of a prompt with turn markers, once for each of its answers.
const MAX_JOINED_BYTES: usize = 64 << 20;

/// A text of a request, with its path.
pub(super) struct InputText {
    path: String,
    pub(super) text: String,
    /// The text's beginning that is the prompt, if the client says so.
    pub(super) prompt: Option<String>,
}

/// Reads one or more texts.
pub(super) fn texts(field: &str, value: Value, expected: &str) -> Result<Vec<InputText>, ApiError> {
    let (items, is_list) = match value {
        Value::String(_) => (vec![value], false),
        Value::Array(items) => (items, true),
        other => return Err(wrong_type(field, expected, &other)),
    };
    let got = items.len();
    if got == 0 || got > MAX_SEQUENCES {
        let text = format!("expected 1 to {MAX_SEQUENCES} texts, got {got}");
        return Err(ApiError::invalid(field, text));
    }
    let one = |(i, item): (usize, Value)| {
        let path = if is_list { format!("{field}[{i}]") } else { field.to_owned() };
        match item {
            Value::String(text) => Ok(InputText { path, text, prompt: None }),
            other => Err(wrong_type(&path, "a string", &other)),
        }
    };
    items.into_iter().enumerate().map(one).collect()
}

/// Token ids, if the input is of numbers.
pub(super) fn numbers(input: &Value, vocab_size: usize) -> Result<Option<Vec<Vec<u32>>>, ApiError> {
    let Value::Array(items) = input else { return Ok(None) };
    let lists = match items.first() {
        Some(Value::Number(_)) => vec![token_ids("input", items, vocab_size)?],
        Some(Value::Array(_)) => {
            let list = |(i, item): (usize, &Value)| {
                let path = format!("input[{i}]");
                match item {
                    Value::Array(ids) if ids.is_empty() => {
                        Err(ApiError::invalid(path, "expected at least one token id, got an empty array"))
                    }
                    Value::Array(ids) => token_ids(&path, ids, vocab_size),
                    other => Err(wrong_type(&path, "an array of token ids", other)),
                }
            };
            items.iter().enumerate().map(list).collect::<Result<_, _>>()?
        }
        _ => return Ok(None),
    };
    if lists.len() > MAX_SEQUENCES {
        let text = format!("expected at most {MAX_SEQUENCES} inputs, got {}", lists.len());
        return Err(ApiError::invalid("input", text));
    }
    Ok(Some(lists))
}

pub(super) fn text_subject(field: &str, count: usize, index: usize) -> Subject {
    let path = if count > 1 { format!("{field}[{index}]") } else { field.to_owned() };
    Subject { path, ends: vec![0] }
}

/// The prompts of texts. A model without a chat template gets the texts as they are.
pub(super) fn text_prompts(
    inputs: Vec<InputText>,
    add_special: bool,
    kwargs: Map<String, Value>,
    limits: &Limits,
) -> Result<(Prompts, Vec<Subject>), ApiError> {
    if limits.tools.is_some() {
        let read = inputs.into_iter().map(|input| turns(input, limits)).collect::<Result<_, _>>()?;
        return ends(read, false, kwargs, limits);
    }
    let (mut texts, mut subjects) = (Vec::new(), Vec::new());
    for InputText { path, text, .. } in inputs {
        let mut markers = turn_markers().filter(|marker| text.contains(marker));
        if let Some(marker) = markers.find(|marker| !limits.own_markers.contains(marker)) {
            let text = format!("expected no turn marker of another model, got {marker}");
            return Err(ApiError::invalid(path, text));
        }
        texts.push(text);
        subjects.push(Subject { path, ends: vec![0] });
    }
    Ok((Prompts::Texts { texts, add_special }, subjects))
}

/// Reads the turns of a text.
fn turns(input: InputText, limits: &Limits) -> Result<Read, ApiError> {
    let InputText { path, text, prompt } = input;
    let invalid = |text: String| ApiError::invalid(path.clone(), text);
    let messages = templated_text::messages(&text).map_err(|error| invalid(error.to_string()))?;
    let mut messages = match messages {
        Some(messages) => messages,
        None => {
            let prompt = prompt.as_deref().map(without_edges).filter(|prompt| !prompt.is_empty());
            let parts = prompt.and_then(|prompt| Some((prompt, without_edges(&text).strip_prefix(prompt)?)));
            let (prompt, answer) = parts.ok_or_else(|| {
                invalid(
                    "expected text with turn markers of Nemotron, ChatML, Llama 3 or Llama 2, got text \
                     without markers; send the conversation as `messages` or as token ids instead"
                        .to_owned(),
                )
            })?;
            vec![ChatMessage::new(Role::User, prompt), ChatMessage::new(Role::Assistant, answer)]
        }
    };
    let system = messages.iter().position(|message| message.role == Role::System);
    if let Some(at) = system.filter(|_| !limits.takes_system) {
        let is_default = matches!(&messages[at].content, Content::Text(text) if is_default_system(text));
        if !is_default {
            let text = "expected no turn of the system, which this model's chat template does not take, \
                        other than one that templates write of themselves";
            return Err(invalid(text.to_owned()));
        }
        messages.remove(at);
    }
    let answers = answers_of(&messages).collect();
    Ok(Read { path, messages: messages.into(), answer: None, answers })
}

/// Reads a prompt and the answers to it. An answer with a marker, such as the end of its turn, is refused: it
/// is generated text, and the marker as plain text would give a plausible wrong number.
pub(super) fn answered(
    prompt: Value,
    answers: Vec<Value>,
    ignored: &mut Vec<String>,
    limits: &Limits,
) -> Result<Vec<Read>, ApiError> {
    let messages = match prompt {
        Value::String(text) if begins_with_turn(&text) => return templated(&text, answers, limits),
        Value::String(text) => vec![ChatMessage::new(Role::User, text)],
        Value::Array(items) => chat::messages("prompt", &items, ignored)?,
        other => return Err(wrong_type("prompt", PROMPT, &other)),
    };
    let before: Vec<usize> = answers_of(&messages).chain([messages.len()]).collect();
    let shared: Arc<[ChatMessage]> = plain(messages, limits).into();
    let one = |(i, answer): (usize, Value)| {
        let path = format!("answers[{i}]");
        let Value::String(text) = answer else { return Err(wrong_type(&path, "a string", &answer)) };
        if let Some(marker) = marker_in_answer(&text) {
            let text = format!(
                "expected the text of an answer, got the marker {marker}; leave it out, or send \
                 messages_list, where markers are text"
            );
            return Err(ApiError::invalid(path, text));
        }
        let answer = Some(ChatMessage::new(Role::Assistant, text));
        Ok(Read { path, messages: Arc::clone(&shared), answer, answers: before.clone() })
    };
    answers.into_iter().enumerate().map(one).collect()
}

/// Reads answers to a prompt that has turn markers, up to the beginning of the answer.
fn templated(prompt: &str, answers: Vec<Value>, limits: &Limits) -> Result<Vec<Read>, ApiError> {
    let bytes = prompt.len().saturating_mul(answers.len());
    if bytes > MAX_JOINED_BYTES {
        let text = format!(
            "expected messages in place of text with turn markers, which takes {bytes} bytes with all answers"
        );
        return Err(ApiError::invalid("prompt", text));
    }
    let one = |(i, answer): (usize, Value)| {
        let path = format!("answers[{i}]");
        match answer {
            Value::String(answer) => {
                turns(InputText { path, text: format!("{prompt}{answer}"), prompt: None }, limits)
            }
            other => Err(wrong_type(&path, "a string", &other)),
        }
    };
    answers.into_iter().enumerate().map(one).collect()
}
