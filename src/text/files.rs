//! Reader of the tokenizer's and chat template's files in a model directory in Hugging Face's layout.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::TextError;

/// Contents of the tokenizer's files, before they are interpreted.
pub(super) struct TokenizerFiles {
    /// `tokenizer.json`.
    pub(super) tokenizer: Value,
    /// `tokenizer_config.json`, or an empty object.
    pub(super) config: Value,
    /// Tokens of the other files, in the order in which they are added to those of `tokenizer.json`.
    pub(super) added: Vec<ListedToken>,
    /// The special tokens that have names (`bos_token`, `eos_token`, …): name to text, as templates get
    /// them.
    pub(super) special_tokens: Map<String, Value>,
    /// Texts of all tokens that a file calls special.
    pub(super) special: HashSet<String>,
    /// The ids of the tokens that begin and end a sequence, from `generation_config.json`.
    pub(super) end_ids: Vec<u32>,
}

/// A token outside `tokenizer.json`.
pub(super) struct ListedToken {
    pub(super) token: AddedToken,
    /// The file that lists the token, and the id that it gives.
    pub(super) listed: Option<(PathBuf, u32)>,
}

/// Names of special tokens, in the order in which `transformers` adds those that the tokenizer lacks.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerFiles {
    /// Reads the files of a model directory as `transformers` does. Only `tokenizer.json` is required. If
    /// `tokenizer_config.json` has `added_tokens_decoder`, it has all tokens of the other files. If not,
    /// `special_tokens_map.json` overrides its names, and `added_tokens.json` has more tokens.
    pub(super) fn read(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let tokenizer = read_json(&path)?.ok_or_else(|| file_error(&path, "no such file"))?;
        let config_path = dir.join("tokenizer_config.json");
        let mut config = read_json(&config_path)?.unwrap_or_else(|| json!({}));
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        let generation = read_json(&dir.join("generation_config.json"))?.unwrap_or_default();
        if config["extra_special_tokens"].is_null() && !config["additional_special_tokens"].is_null() {
            config["extra_special_tokens"] = config["additional_special_tokens"].take();
        }
        let mut added = Vec::new();
        if let Some(decoder) = config["added_tokens_decoder"].as_object() {
            for (id, token) in decoder {
                let token = id.parse().ok().zip(added_token(token)).ok_or_else(|| {
                    file_error(&config_path, format!("added_tokens_decoder[{id:?}] is not an added token"))
                })?;
                added.push(ListedToken { token: token.1, listed: Some((config_path.clone(), token.0)) });
            }
        } else {
            for (name, value) in map.as_ref().and_then(Value::as_object).into_iter().flatten() {
                override_value(&mut config, name, value);
            }
            added = tokens_of_added_tokens_json(dir, &special_texts(&config))?;
        }
        added.sort_by_key(|token| token.listed.as_ref().map(|(_, id)| *id));
        let named = named_tokens(&config);
        let mut special = special_texts(&config);
        special.extend(added.iter().filter(|t| t.token.special).map(|t| t.token.content.clone()));
        let known = |value: &&Value| content(value).is_some_and(|text| has_added_token(&tokenizer, text));
        for value in named.iter().map(|&(_, value)| value).chain(extra_tokens(&config)) {
            let text = content(value).unwrap_or_default();
            if !known(&value) && !added.iter().any(|known| known.token.content == text) {
                added.extend(special_token(value).map(|token| ListedToken { token, listed: None }));
            }
        }
        let names = named.iter().filter_map(|(name, value)| Some((name.clone(), json!(content(value)?))));
        let special_tokens = names.collect();
        let ids = ["bos_token_id", "eos_token_id"].map(|name| match &generation[name] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            id => id.as_u64().into_iter().collect::<Vec<_>>(),
        });
        let end_ids = ids.into_iter().flatten().filter_map(|id| u32::try_from(id).ok()).collect();
        Ok(Self { tokenizer, config, added, special_tokens, special, end_ids })
    }
}

/// The tokens with names in a configuration: the usual ones, then those that only this model has.
fn named_tokens(config: &Value) -> Vec<(String, &Value)> {
    let has_text = |value: &&Value| content(value).is_some();
    let usual = NAMED.iter().filter_map(|&name| Some((name.to_owned(), config.get(name).filter(has_text)?)));
    let own = config.as_object().into_iter().flatten().filter(|(name, value)| {
        name.ends_with("_token") && !NAMED.contains(&name.as_str()) && has_text(value)
    });
    let extra = config["extra_special_tokens"].as_object().into_iter().flatten();
    let more =
        own.chain(extra.filter(|(_, value)| has_text(value))).map(|(name, value)| (name.clone(), value));
    usual.chain(more).collect()
}

/// The special tokens without names in a configuration.
fn extra_tokens(config: &Value) -> impl Iterator<Item = &Value> {
    config["extra_special_tokens"].as_array().into_iter().flatten().filter(|value| content(value).is_some())
}

/// Texts of all tokens that a configuration calls special.
fn special_texts(config: &Value) -> HashSet<String> {
    let named = named_tokens(config);
    let values = named.iter().map(|&(_, value)| value).chain(extra_tokens(config));
    values.filter_map(content).map(str::to_owned).collect()
}

/// Sets a value of the configuration to that of `special_tokens_map.json`; a list of tokens is continued.
fn override_value(config: &mut Value, name: &str, value: &Value) {
    let name = if name == "additional_special_tokens" { "extra_special_tokens" } else { name };
    if let (Some(list), Some(more)) = (config[name].as_array_mut(), value.as_array()) {
        let new = more.iter().filter(|token| !list.iter().any(|known| content(known) == content(token)));
        let new: Vec<Value> = new.cloned().collect();
        list.extend(new);
    } else {
        config[name] = value.clone();
    }
}

/// The tokens of `added_tokens.json`, which maps texts to ids. Those of `special` are special.
fn tokens_of_added_tokens_json(dir: &Path, special: &HashSet<String>) -> Result<Vec<ListedToken>, TextError> {
    let path = dir.join("added_tokens.json");
    let file = read_json(&path)?.unwrap_or_default();
    let one = |(text, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| file_error(&path, format!("the id of {text:?} is not a token id")))?;
        let token = AddedToken::from(text.clone(), special.contains(text));
        Ok(ListedToken { token, listed: Some((path.clone(), id)) })
    };
    file.as_object().into_iter().flatten().map(one).collect()
}

/// Whether `tokenizer.json` has an added token with this text.
fn has_added_token(tokenizer: &Value, text: &str) -> bool {
    tokenizer["added_tokens"].as_array().into_iter().flatten().any(|token| token["content"] == text)
}

/// An added token as its object describes it; a flag that is missing has the default of `transformers`.
fn added_token(value: &Value) -> Option<AddedToken> {
    let text = content(value).filter(|_| value.is_object())?;
    let flag = |name: &str| value[name].as_bool();
    let token = AddedToken::from(text, flag("special").unwrap_or(false));
    let normalized = flag("normalized").unwrap_or(token.normalized);
    let single_word = token.normalized(normalized).single_word(flag("single_word").unwrap_or(false));
    Some(single_word.lstrip(flag("lstrip").unwrap_or(false)).rstrip(flag("rstrip").unwrap_or(false)))
}

/// A special token that is a string, or an object with flags.
fn special_token(value: &Value) -> Option<AddedToken> {
    let token = added_token(value).or_else(|| Some(AddedToken::from(content(value)?, true)))?;
    let normalized = value["normalized"].as_bool().unwrap_or(false);
    Some(token.special(true).normalized(normalized))
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
