//! Tests of `text`. Most compare with results of transformers in `tests/data/text`
//! (`scripts/make_text_fixtures.py`, `scripts/compare_tokenization.py`).

mod added_tokens;
mod content_format;
pub mod demo;
mod detokenizer;
mod jinja;
mod models;
mod provenance;
mod safety;
mod sentencepiece;
mod stop;
mod template;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octant::text::{ChatMessage, RenderOptions, Role, Tokenizer};
use serde_json::Value;

/// The fixture tokenizers: byte-level BPE, and SentencePiece BPE in its current and its legacy form.
const FIXTURES: [&str; 3] = ["byte_level", "sentencepiece", "sentencepiece_legacy"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

fn load(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_dir(&data(name)).unwrap())
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn message(role: Role, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

/// Reads messages from a golden file.
fn messages(value: &Value) -> Vec<ChatMessage> {
    let one = |value: &Value| {
        let role = match value["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::Tool,
        };
        let name = value["name"].as_str().map(str::to_owned);
        let mut fields = value.as_object().unwrap().clone();
        fields.retain(|name, _| !["role", "content", "name"].contains(&name.as_str()));
        ChatMessage { name, fields, ..message(role, value["content"].as_str().unwrap()) }
    };
    value.as_array().unwrap().iter().map(one).collect()
}

/// Reads the keyword arguments of `apply_chat_template`.
fn options(value: &Value) -> RenderOptions {
    let mut kwargs = value.as_object().unwrap().clone();
    let mut flag = |name: &str| kwargs.shift_remove(name).is_some_and(|value| value == true);
    let (add_generation_prompt, continue_final_message) =
        (flag("add_generation_prompt"), flag("continue_final_message"));
    RenderOptions { add_generation_prompt, continue_final_message, kwargs }
}
