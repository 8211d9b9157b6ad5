//! Reads `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::LoadError;
use super::json::Object;
use super::key_rules::{Neutral, is_one_of};

/// Keys of sampling parameters. Fields of requests have the same names.
const SAMPLING: [&str; 5] = ["min_p", "repetition_penalty", "temperature", "top_k", "top_p"];
/// Further keys that are read.
const READ: [&str; 2] = ["do_sample", "eos_token_id"];

/// Keys without an effect on what is sampled.
const HARMLESS: [&str; 18] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "decoder_start_token_id",
    "disable_compile",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
];

/// Keys with their defaults. Other values have no effect here; requests have fields for some of them.
const UNUSED: [Neutral; 16] = [
    ("diversity_penalty", &["0"]),
    ("early_stopping", &["false"]),
    ("encoder_no_repeat_ngram_size", &["0"]),
    ("encoder_repetition_penalty", &["1"]),
    ("epsilon_cutoff", &["0"]),
    ("eta_cutoff", &["0"]),
    ("guidance_scale", &["1"]),
    ("length_penalty", &["1"]),
    ("max_length", &["20"]),
    ("min_length", &["0"]),
    ("no_repeat_ngram_size", &["0"]),
    ("num_beam_groups", &["1"]),
    ("num_beams", &["1"]),
    ("num_return_sequences", &["1"]),
    ("remove_invalid_values", &["false"]),
    ("typical_p", &["1"]),
];

/// `generation_config.json`: the default sampling parameters of the model's authors, and the ids that end a
/// generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// End-of-sequence ids.
    pub eos: Vec<u32>,
    /// Default sampling parameters as the file has them: `temperature`, `top_p`, `top_k`, `min_p` and
    /// `repetition_penalty`. The server checks them like those of a request.
    pub sampling: Map<String, Value>,
    /// Warnings for the operator: keys that have no effect, and a `do_sample` of the wrong type.
    pub warnings: Vec<String>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` if it exists. End-of-sequence ids fall back to `config.json`.
    ///
    /// # Errors
    /// A file is not JSON, or its `eos_token_id` is neither a token id nor a list of them.
    pub fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        let config = Object::read(&dir.join("config.json"))?;
        let Some(file) = Object::read_if_exists(&dir.join("generation_config.json"))? else {
            return Ok(Self { eos: ids(&config, "eos_token_id")?, ..Self::default() });
        };
        let mut eos = ids(&file, "eos_token_id")?;
        if eos.is_empty() {
            eos = ids(&config, "eos_token_id")?;
        }
        let sampling = SAMPLING.iter().filter_map(|key| Some(((*key).to_owned(), file.get(key)?.clone())));
        let mut sampling: Map<String, Value> = sampling.collect();
        let mut warnings: Vec<String> = unused(&file).into_iter().collect();
        match file.get("do_sample") {
            // Decoding is greedy, whatever the other values are.
            Some(Value::Bool(false)) => _ = sampling.insert("temperature".to_owned(), 0.into()),
            None | Some(Value::Bool(true)) => {}
            Some(other) => warnings.push(format!(
                "generation_config.json: do_sample: expected true or false, got {other}; not used"
            )),
        }
        Ok(Self { eos, sampling, warnings })
    }
}

impl GenerationConfig {
    /// The end-of-sequence ids, or the tokenizer's if the model names none.
    ///
    /// # Errors
    /// An id is not below `vocab`. Every request would be rejected because of this id.
    pub fn eos_within(&self, tokenizer: Option<u32>, vocab: usize) -> Result<Vec<u32>, LoadError> {
        let ids = if self.eos.is_empty() { tokenizer.into_iter().collect() } else { self.eos.clone() };
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(LoadError::config(
                Path::new("generation_config.json"),
                "eos_token_id",
                format!("expected ids below {vocab}, got {id}"),
            )),
            None => Ok(ids),
        }
    }
}

/// Returns a warning that names the keys without an effect, if there are any.
fn unused(file: &Object) -> Option<String> {
    let unused = file.entries().filter(|(key, value)| {
        let neutral = UNUSED.iter().find(|(known, _)| known == key).is_some_and(|(_, n)| is_one_of(value, n));
        !value.is_null() && !neutral && ![&SAMPLING[..], &READ, &HARMLESS].concat().contains(key)
    });
    let unused: Vec<String> = unused.map(|(key, value)| format!("`{key}` = {value}")).collect();
    let list = unused.join(", ");
    (!unused.is_empty()).then(|| format!("generation_config.json has keys without an effect: {list}"))
}

/// Reads one token id, or a list of them.
fn ids(object: &Object, key: &str) -> Result<Vec<u32>, LoadError> {
    let Some(value) = object.get(key) else { return Ok(Vec::new()) };
    let items = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    // Some files have 2.0 in place of 2.
    let id =
        |item: &Value| item.as_f64().filter(|id| id.fract() == 0.0 && (0.0..=u32::MAX.into()).contains(id));
    let ids = items.iter().map(|item| id(item).map(|id| id as u32)).collect::<Option<_>>();
    ids.ok_or_else(|| object.error(key, format!("expected a token id or a list of them, got {value}")))
}
