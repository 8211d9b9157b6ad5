//! Validation of the prompt of a text completion, which has four JSON shapes.

use serde_json::Value;

use super::values::token_ids;
use crate::generation::Prompts;
use crate::server::error::ApiError;
use crate::server::fields::{missing, wrong_type};
use crate::server::types::{MAX_SEQUENCES, PROMPT};

/// Reads the prompts: one string, an array of strings, an array of token ids, or an array of such arrays.
/// Arrays must not be empty or mixed. `add_special`: whether text gets the tokenizer's special tokens, such
/// as BOS.
pub(super) fn prompts(
    prompt: Option<Value>,
    add_special: bool,
    vocab_size: usize,
) -> Result<Prompts, ApiError> {
    match prompt {
        None => Err(missing("prompt", PROMPT)),
        Some(Value::String(text)) => Ok(Prompts::Texts { texts: vec![text], add_special }),
        Some(Value::Array(items)) => match items.first() {
            None => Err(ApiError::invalid("prompt", "expected at least one prompt, got an empty array")),
            Some(Value::Number(_)) => Ok(Prompts::Ids(vec![ids(&items, vocab_size)?])),
            Some(Value::String(_)) => Ok(Prompts::Texts { texts: several(items, text)?, add_special }),
            Some(Value::Array(_)) => Ok(Prompts::Ids(several(items, |item| match item {
                Value::Array(list) => ids(&list, vocab_size),
                other => Err(wrong_type("prompt", "an array of token ids", &other)),
            })?)),
            Some(other) => Err(wrong_type("prompt", PROMPT, other)),
        },
        Some(other) => Err(wrong_type("prompt", PROMPT, &other)),
    }
}

fn several<T>(items: Vec<Value>, read: impl Fn(Value) -> Result<T, ApiError>) -> Result<Vec<T>, ApiError> {
    if items.len() > MAX_SEQUENCES {
        let text = format!("expected at most {MAX_SEQUENCES} prompts, got {}", items.len());
        return Err(ApiError::invalid("prompt", text));
    }
    items.into_iter().map(read).collect()
}

fn text(item: Value) -> Result<String, ApiError> {
    match item {
        Value::String(text) => Ok(text),
        other => Err(wrong_type("prompt", "a string", &other)),
    }
}

fn ids(items: &[Value], vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("prompt", "expected at least one token id, got an empty array"));
    }
    token_ids("prompt", items, vocab_size)
}
