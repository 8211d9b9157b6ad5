//! How text is normalised.

use serde_json::{Value, json};

use super::proto::{Kind, Model, Normalizer};
use super::{SPACE, SentencePieceError, charsmap};

/// Whether normalising depends on where a text begins or ends, so that it must see all of it at once.
pub(super) fn whole_text(normalizer: &Normalizer) -> bool {
    normalizer.dummy_prefix || normalizer.remove_extra_whitespaces
}

/// The normalizer of tokenizer.json.
pub(super) fn normalizer(model: &Model) -> Result<Value, SentencePieceError> {
    let spec = &model.normalizer;
    let space = SPACE.to_string();
    let mut steps = Vec::new();
    if !spec.charsmap.is_empty() {
        steps.extend(charsmap::steps(spec.charsmap)?);
    }
    if spec.remove_extra_whitespaces {
        steps.push(replace_all(" {2,}", " "));
        steps.push(replace_all(r"\A | \z", ""));
    }
    steps.push(replace(" ", &space));
    if spec.remove_extra_whitespaces {
        steps.push(replace_all(&format!(r"{SPACE}+\z"), ""));
    }
    if spec.dummy_prefix {
        steps.push(replace_all(&start(model), &space));
    }
    Ok(json!({"type": "Sequence", "normalizers": steps}))
}

/// Replaces a text wherever it stands.
pub(super) fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// Replaces all that matches a regular expression, in what Oniguruma and `fancy-regex` have in common.
pub(super) fn replace_all(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
}

/// Where the prefix goes: before a text, but not before the name of a user-defined piece, since the names of added
/// tokens are normalised as texts are. A name may have an unassigned character before it: where the server reads the
/// file, it tells its own markers from text that spells them so.
fn start(model: &Model) -> String {
    let names: Vec<String> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind == Kind::UserDefined)
        .map(|piece| escaped(piece.text))
        .collect();
    if names.is_empty() { r"\A".to_owned() } else { format!(r"\A(?!\p{{Cn}}?(?:{})\z)", names.join("|")) }
}

/// A text as a pattern that matches it.
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
