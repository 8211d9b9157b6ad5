//! The tokenizer's files in a model directory, as Hugging Face lays them out.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::TextError;

/// What the files say, before it is interpreted.
pub(super) struct Source {
    /// `tokenizer.json`, with the special tokens of the other files among its added tokens.
    pub(super) tokenizer: Value,
    /// `tokenizer_config.json`, or an empty object.
    pub(super) config: Value,
    /// Named special tokens (`bos_token`, `eos_token`, …) that are set, as templates get them.
    pub(super) named: Map<String, Value>,
}

impl Source {
    pub(super) fn read(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let tokenizer = read_json(&path)?.ok_or_else(|| file_error(&path, "no such file"))?;
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
        let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_else(|| json!({}));
        let mut source = Self { tokenizer, config, named: Map::new() };
        let (mut flagged, mut names) = (Vec::new(), Vec::new());
        for token in source.config["added_tokens_decoder"].as_object().into_iter().flat_map(Map::values) {
            if token["special"] == true {
                flagged.extend(content(token).map(str::to_owned));
            }
        }
        // The configuration is the newer of the two files, so it is asked last.
        for (name, value) in [&map, &source.config].into_iter().filter_map(Value::as_object).flatten() {
            if name.ends_with("_token")
                && let Some(token) = content(value)
            {
                names.push((name.clone(), json!(token)));
                flagged.push(token.to_owned());
            }
            if matches!(name.as_str(), "additional_special_tokens" | "extra_special_tokens") {
                let list = value.as_array().into_iter().flatten();
                let values = value.as_object().into_iter().flat_map(Map::values);
                flagged.extend(list.chain(values).filter_map(content).map(str::to_owned));
            }
        }
        source.named.extend(names);
        for token in flagged {
            source.flag_special(&token);
        }
        Ok(source)
    }

    /// A special token may be marked so in the other files only.
    fn flag_special(&mut self, token: &str) {
        let id = self.tokenizer["model"]["vocab"].get(token).cloned();
        let Some(root) = self.tokenizer.as_object_mut() else { return };
        let added = root.entry("added_tokens").or_insert_with(|| json!([]));
        let Some(list) = added.as_array_mut() else { return };
        if let Some(known) = list.iter_mut().find(|known| known["content"] == token) {
            known["special"] = json!(true);
        } else if let Some(id) = id {
            list.push(json!({
                "id": id, "content": token, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            }));
        }
    }
}

/// The chat templates of a directory.
pub(super) struct Templates {
    /// The file they are from.
    pub(super) path: PathBuf,
    /// (name, source), at least one.
    pub(super) named: Vec<(String, String)>,
}

pub(super) fn chat_templates(dir: &Path) -> Result<Option<Templates>, TextError> {
    let alone = |source: &str| vec![("default".to_owned(), source.to_owned())];
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read_text(&path)? {
        let named = alone(&source);
        return Ok(Some(Templates { path, named }));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(name);
        let Some(file) = read_json(&path)? else { continue };
        let named = match &file["chat_template"] {
            Value::Null => continue,
            Value::String(source) => alone(source),
            Value::Array(list) => {
                let entries = list.iter().map(|entry| {
                    let name = entry["name"].as_str()?;
                    Some((name.to_owned(), entry["template"].as_str()?.to_owned()))
                });
                entries.collect::<Option<Vec<_>>>().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if named.is_empty() {
            return Err(file_error(
                &path,
                "chat_template is neither a string nor a list of {name, template}",
            ));
        }
        return Ok(Some(Templates { path, named }));
    }
    Ok(None)
}

pub(super) fn file_error(path: &Path, message: impl ToString) -> TextError {
    TextError::File { path: path.to_owned(), message: message.to_string() }
}

/// `None` where there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let value: Value = serde_json::from_str(&text).map_err(|e| file_error(path, format!("not JSON: {e}")))?;
    if value.is_object() { Ok(Some(value)) } else { Err(file_error(path, "not a JSON object")) }
}

fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| file_error(path, "not UTF-8")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path, error)),
    }
}

/// A token given as a string or as an object with its content.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str()).filter(|token| !token.is_empty())
}
