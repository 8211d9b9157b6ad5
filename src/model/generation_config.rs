//! Reads `generation_config.json`.

use std::path::Path;

use super::error::LoadError;
use super::json::Object;
use super::key_rules::{Neutral, is_one_of};

/// Keys that are read.
const READ: [&str; 7] =
    ["do_sample", "eos_token_id", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"];

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
    /// Default temperature.
    pub temperature: Option<f32>,
    /// Default top-p.
    pub top_p: Option<f32>,
    /// Default top-k.
    pub top_k: Option<u32>,
    /// Default min-p.
    pub min_p: Option<f32>,
    /// Default repetition penalty.
    pub repetition_penalty: Option<f32>,
    /// Warnings for the operator: keys that have no effect.
    pub warnings: Vec<String>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` if it exists. End-of-sequence ids fall back to `config.json`.
    ///
    /// # Errors
    /// A value is outside the range that requests may use: every request without its own value would be
    /// rejected.
    pub fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        let config = Object::read(&dir.join("config.json"))?;
        let Some(file) = Object::read_if_exists(&dir.join("generation_config.json"))? else {
            return Ok(Self { eos: ids(&config, "eos_token_id")?, ..Self::default() });
        };
        let mut eos = ids(&file, "eos_token_id")?;
        if eos.is_empty() {
            eos = ids(&config, "eos_token_id")?;
        }
        // `do_sample: false` means greedy, whatever the other values are.
        let greedy = file.flag("do_sample")? == Some(false);
        let temperature = default_of(&file, "temperature", |x| x >= 0.0, "at least 0")?;
        let top_k = default_of(&file, "top_k", |x| x >= 0.0 && x.fract() == 0.0, "an integer of at least 0")?;
        Ok(Self {
            eos,
            temperature: if greedy { Some(0.0) } else { temperature },
            top_p: default_of(&file, "top_p", |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")?,
            top_k: top_k.map(|x| x as u32),
            min_p: default_of(&file, "min_p", |x| (0.0..=1.0).contains(&x), "from 0 to 1")?,
            repetition_penalty: default_of(&file, "repetition_penalty", |x| x > 0.0, "above 0")?,
            warnings: unused(&file).into_iter().collect(),
        })
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
        !value.is_null() && !neutral && !READ.contains(key) && !HARMLESS.contains(key)
    });
    let unused: Vec<String> = unused.map(|(key, value)| format!("`{key}` = {value}")).collect();
    let list = unused.join(", ");
    (!unused.is_empty()).then(|| format!("generation_config.json has keys without an effect: {list}"))
}

/// Reads a default sampling parameter; an error if it is outside its range.
fn default_of(
    file: &Object,
    key: &str,
    sound: fn(f32) -> bool,
    expected: &str,
) -> Result<Option<f32>, LoadError> {
    match file.number(key)?.map(|x| x as f32) {
        Some(x) if !x.is_finite() || !sound(x) => {
            Err(file.error(key, format!("expected {expected}, got {x}")))
        }
        value => Ok(value),
    }
}

/// Reads one token id, or a list of them.
fn ids(object: &Object, key: &str) -> Result<Vec<u32>, LoadError> {
    let Some(value) = object.get(key) else { return Ok(Vec::new()) };
    let items = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let ids = items.iter().map(|i| i.as_u64().and_then(|i| u32::try_from(i).ok())).collect::<Option<_>>();
    ids.ok_or_else(|| object.error(key, format!("expected a token id or a list of them, got {value}")))
}
