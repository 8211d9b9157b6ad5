//! Reader of the tokenizer's and chat template's files in a model directory in Hugging Face's layout.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::TextError;

/// Contents of the tokenizer's files, before they are interpreted.
pub(super) struct TokenizerFiles {
    /// `tokenizer.json`. Tokens that only the other files flag as special are flagged here too.
    pub(super) tokenizer: Value,
    /// `tokenizer_config.json`, or an empty object.
    pub(super) config: Value,
    /// The special tokens that have names (`bos_token`, `eos_token`, …): name to text, as templates get
    /// them.
    pub(super) special_tokens: Map<String, Value>,
}

impl TokenizerFiles {
    /// Reads the files of a model directory. Only `tokenizer.json` is required.
    pub(super) fn read(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let tokenizer = read_json(&path)?.ok_or_else(|| file_error(&path, "no such file"))?;
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
        let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or_else(|| json!({}));
        let mut files = Self { tokenizer, config, special_tokens: Map::new() };
        let (mut flagged, mut names) = (Vec::new(), Vec::new());
        for token in files.config["added_tokens_decoder"].as_object().into_iter().flat_map(Map::values) {
            if token["special"] == true {
                flagged.extend(content(token).map(str::to_owned));
            }
        }
        // `tokenizer_config.json` is the newer format and comes last, so that its values win.
        for (name, value) in [&map, &files.config].into_iter().filter_map(Value::as_object).flatten() {
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
        files.special_tokens.extend(names);
        for token in flagged {
            files.flag_special(&token);
        }
        Ok(files)
    }

    /// Flags a token as special in `tokenizer.json`, and adds it to the added tokens if it is a piece of the
    /// model's vocabulary only.
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

/// The chat templates of a model directory.
pub(super) struct TemplateFile {
    /// File that they were read from.
    pub(super) path: PathBuf,
    /// The templates; at least one.
    pub(super) templates: Vec<TemplateSource>,
}

/// Jinja source of a chat template.
pub(super) struct TemplateSource {
    pub(super) name: String,
    pub(super) source: String,
}

impl TemplateSource {
    /// A template that is not one of several.
    pub(super) fn single(source: &str) -> Vec<Self> {
        vec![Self { name: "default".to_owned(), source: source.to_owned() }]
    }
}

/// Reads the chat templates of a model directory; `None` if it has none.
pub(super) fn chat_templates(dir: &Path) -> Result<Option<TemplateFile>, TextError> {
    let path = dir.join("chat_template.jinja");
    if let Some(source) = read_text(&path)? {
        let templates = TemplateSource::single(&source);
        return Ok(Some(TemplateFile { path, templates }));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(name);
        let Some(file) = read_json(&path)? else { continue };
        let templates = match &file["chat_template"] {
            Value::Null => continue,
            Value::String(source) => TemplateSource::single(source),
            Value::Array(list) => {
                let entries = list.iter().map(|entry| {
                    let (name, source) = entry["name"].as_str().zip(entry["template"].as_str())?;
                    Some(TemplateSource { name: name.to_owned(), source: source.to_owned() })
                });
                entries.collect::<Option<Vec<_>>>().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if templates.is_empty() {
            return Err(file_error(
                &path,
                "chat_template is neither a string nor a list of {name, template}",
            ));
        }
        return Ok(Some(TemplateFile { path, templates }));
    }
    Ok(None)
}

/// The error for a file that is missing, unreadable or invalid.
pub(super) fn file_error(path: &Path, message: impl ToString) -> TextError {
    TextError::File { path: path.to_owned(), message: message.to_string() }
}

/// Reads a JSON object; `None` if the file does not exist.
fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let value: Value = serde_json::from_str(&text).map_err(|e| file_error(path, format!("not JSON: {e}")))?;
    if value.is_object() { Ok(Some(value)) } else { Err(file_error(path, "not a JSON object")) }
}

/// Reads UTF-8 text; `None` if the file does not exist.
fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| file_error(path, "not UTF-8")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path, error)),
    }
}

/// The text of a token, which is a string or an object with the field `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str()).filter(|token| !token.is_empty())
}
