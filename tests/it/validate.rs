//! Tests of request validation: which bodies are refused, and what accepted bodies become.

mod accepted;
mod constraints;
mod defaults;
mod grammars;
mod refused;

use octant::server::error::ApiError;
use octant::server::fields::Fields;
use octant::server::json::parse_object;
use octant::server::validate::{self, Defaults, Limits, ValidRequest};
use octant::tools::{ToolFormat, ToolSupport};
use serde_json::{Value, json};

/// Limits of a model with 100 token ids, of which 99 ends a generation.
fn limits() -> Limits {
    let defaults = Defaults { temperature: 0.7, top_p: 0.9, top_k: 40, min_p: 0.05, repetition_penalty: 1.1 };
    let models = vec!["model".to_owned(), "alias".to_owned()];
    Limits {
        models,
        model_paths: vec!["/models/a".to_owned(), "a".to_owned()],
        vocab_size: 100,
        eos_ids: vec![99],
        tools: Some(ToolSupport {
            format: Some(ToolFormat::Hermes),
            in_template: true,
            calls_in_template: true,
        }),
        defaults,
        template_fields: Vec::new(),
        scoring: None,
        takes_system: true,
        own_markers: Vec::new(),
        reject_unknown_fields: false,
        keys_have_priorities: false,
    }
}

fn chat(body: &Value) -> Result<ValidRequest, ApiError> {
    chat_within(body, &limits())
}

fn chat_within(body: &Value, limits: &Limits) -> Result<ValidRequest, ApiError> {
    let map = parse_object(body.to_string().as_bytes())?;
    validate::chat(Fields::new(map), limits, 4711)
}

fn completion(body: &Value) -> Result<ValidRequest, ApiError> {
    let map = parse_object(body.to_string().as_bytes())?;
    validate::completion(Fields::new(map), &limits(), 4711)
}

/// Adds fields to a request body.
fn with(base: Value, more: &Value) -> Value {
    let mut base = base;
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

/// A valid chat body with more fields.
fn a_chat(more: &Value) -> Value {
    with(json!({ "messages": [{ "role": "user", "content": "hi" }] }), more)
}

/// A valid completion body with more fields.
fn a_completion(more: &Value) -> Value {
    with(json!({ "prompt": "hi" }), more)
}
