//! The normalizer of tokenizer.json: what SentencePiece does to a text before it encodes it.

use serde_json::{Value, json};

use super::charsmap;
use super::error::SentencePieceError;
use super::proto::{ModelProto, NormalizerSpec, PieceType, SPACE};
use super::replace::{replace, replace_all};

/// Returns whether normalisation depends on where a text begins or ends, so that it must see the whole text.
pub(super) fn needs_whole_text(normalizer: &NormalizerSpec) -> bool {
    normalizer.add_dummy_prefix() || normalizer.remove_extra_whitespaces()
}

/// Returns the `normalizer` object of tokenizer.json.
pub(super) fn normalizer(model: &ModelProto) -> Result<Value, SentencePieceError> {
    let spec = &model.normalizer_spec;
    let space = SPACE.to_string();
    let mut steps = Vec::new();
    if !spec.precompiled_charsmap().is_empty() {
        steps.extend(charsmap::steps(spec.precompiled_charsmap())?);
    }
    if spec.remove_extra_whitespaces() {
        steps.push(replace_all(" {2,}", " "));
        steps.push(replace_all(r"\A | \z", ""));
    }
    steps.push(replace(" ", &space));
    if spec.remove_extra_whitespaces() {
        steps.push(replace_all(&format!(r"{SPACE}+\z"), ""));
    }
    if spec.add_dummy_prefix() {
        steps.push(replace_all(&prefix_pattern(model), &space));
    }
    Ok(json!({"type": "Sequence", "normalizers": steps}))
}

/// Returns a pattern that matches the empty string where the dummy prefix goes: at the start of a text.
///
/// `tokenizers` also normalises the names of added tokens, so the pattern excludes a text that is only the
/// name of a user-defined piece. One unassigned character may precede the name: the server inserts it to tell
/// its own markers from text that spells them.
fn prefix_pattern(model: &ModelProto) -> String {
    let names: Vec<String> = model
        .pieces
        .iter()
        .filter(|piece| piece.piece_type() == PieceType::UserDefined)
        .map(|piece| escaped(piece.piece()))
        .collect();
    if names.is_empty() { r"\A".to_owned() } else { format!(r"\A(?!\p{{Cn}}?(?:{})\z)", names.join("|")) }
}

/// Returns a regular expression that matches exactly `text`.
fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
