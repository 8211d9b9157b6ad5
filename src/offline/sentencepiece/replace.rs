//! `Replace` steps of a tokenizer.json normalizer.

use serde_json::{Value, json};

/// Returns a step that replaces every occurrence of the string `from` by `to`.
pub(super) fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// Returns a step that replaces every match of a regular expression by `content`.
///
/// `pattern` uses only syntax that Oniguruma (Hugging Face's default) and `fancy-regex` (Octant's) both
/// accept.
pub(super) fn replace_all(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
}
