//! Converts the `model_config.yaml` of a NeMo model to a Hugging Face `config.json`.
//!
//! Keys and defaults are those of NeMo's `MegatronGPTModel`. A value that this model family does not use
//! would change the meaning of the weights, so every such key is checked, even if nothing else reads it. The
//! exception is `apply_query_key_layer_scaling`: it divides by the layer number before the softmax and
//! multiplies within it, to avoid overflow, and does not change the result.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::model::{LoadError, NEMOTRON_REWARD, Object, RewardHead};

/// Keys that must be present, with the value (in JSON) that this model family requires.
const REQUIRED: [(&str, &str); 5] = [
    ("normalization", "\"layernorm1p\""),
    ("activation", "\"squared-relu\""),
    ("position_embedding_type", "\"rope\""),
    ("bias", "false"),
    ("share_embeddings_and_output_weights", "false"),
];

/// Keys that may be absent, with the value (in JSON) that this model family requires; it is also the meaning
/// of an absent key.
const REQUIRED_OR_ABSENT: [(&str, &str); 12] = [
    ("transformer_block_type", "\"pre_ln\""),
    ("attention_type", "\"multihead\""),
    ("rotary_interleaved", "false"),
    ("seq_len_interpolation_factor", "null"),
    ("fp32_residual_connection", "false"),
    ("normalize_attention_scores", "true"),
    ("headscale", "false"),
    ("qk_layernorm", "false"),
    ("apply_embedding_scaling", "false"),
    ("num_moe_experts", "null"),
    ("window_size", "null"),
    ("megatron_legacy", "false"),
];

/// Token ids of the family's SentencePiece models.
const BOS: u32 = 2;
const EOS: u32 = 3;
const PAD: u32 = 0;

/// Facts that only the stored arrays tell.
pub(super) struct ArrayFacts {
    /// Number of rows of the embedding.
    pub(super) vocab: usize,
    /// Type of the weights, by transformers' name.
    pub(super) dtype: &'static str,
    /// The reward head, if the checkpoint has one.
    pub(super) reward: Option<RewardHead>,
}

/// Reads a YAML file that holds one mapping.
pub(super) fn read(path: &Path) -> Result<Object, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|e| LoadError::io(path, e))?;
    let map: Value =
        yaml_serde::from_str(&text).map_err(|e| LoadError::file(path, format!("not YAML: {e}")))?;
    let Value::Object(map) = map else { return Err(LoadError::file(path, "expected a mapping")) };
    Ok(Object::from_map(path, resolve_references(path, map)?))
}

/// Replaces references to another key, such as `${.encoder_seq_length}`, by the value of that key.
fn resolve_references(path: &Path, map: Map<String, Value>) -> Result<Map<String, Value>, LoadError> {
    let mut out = map.clone();
    for (key, value) in &mut out {
        let Some(text) = value.as_str().filter(|text| text.contains("${")) else { continue };
        let name = text.strip_prefix("${.").and_then(|rest| rest.strip_suffix('}'));
        let target = name.and_then(|name| map.get(name));
        // An expression such as `${multiply:4, ${.hidden_size}}` is not evaluated: an error if the key is
        // read.
        match target.filter(|target| !target.to_string().contains("${")) {
            Some(target) => *value = target.clone(),
            None if is_read(key) => {
                return Err(LoadError::config(path, key, format!("expected a value, got `{text}`")));
            }
            None => {}
        }
    }
    Ok(out)
}

/// Returns whether [`hugging_face`] reads a key.
fn is_read(key: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "max_position_embeddings",
        "encoder_seq_length",
        "layernorm_epsilon",
        "rotary_percentage",
        "rotary_base",
        "init_method_std",
    ];
    OTHERS.contains(&key) || REQUIRED.iter().chain(&REQUIRED_OR_ABSENT).any(|(required, _)| *required == key)
}

/// Returns the contents of `config.json`.
///
/// # Errors
/// If a key is missing, or has a value that this model family does not use.
pub(super) fn hugging_face(yaml: &Object, facts: &ArrayFacts) -> Result<Map<String, Value>, LoadError> {
    let required = REQUIRED.map(|(key, expected)| (key, expected, false));
    let optional = REQUIRED_OR_ABSENT.map(|(key, expected)| (key, expected, true));
    for (key, expected, may_be_absent) in required.into_iter().chain(optional) {
        let value = yaml.get(key).unwrap_or(&Value::Null).to_string();
        let absent = value == "null" && may_be_absent;
        if value != expected && !absent {
            return Err(yaml.error(key, format!("expected {expected}, got {value}")));
        }
    }
    let hidden = yaml.require_count("hidden_size")?;
    let heads = yaml.require_count("num_attention_heads")?;
    let head_dim = match yaml.count("kv_channels")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let message =
                format!("missing, and hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
            return Err(yaml.error("kv_channels", message));
        }
    };
    let positions = match yaml.count("max_position_embeddings")? {
        Some(positions) => positions,
        None => yaml.require_count("encoder_seq_length")?,
    };
    let number = |key: &str| yaml.number(key)?.ok_or_else(|| yaml.error(key, "missing"));
    let rotary = number("rotary_percentage")?;
    if !(rotary > 0.0 && rotary <= 1.0) {
        return Err(yaml.error("rotary_percentage", format!("expected above 0 and at most 1, got {rotary}")));
    }
    let config = json!({
        "architectures": [if facts.reward.is_some() { NEMOTRON_REWARD } else { "NemotronForCausalLM" }],
        "attention_bias": false,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": head_dim,
        "hidden_act": "relu2",
        "hidden_size": hidden,
        "initializer_range": yaml.number("init_method_std")?,
        "intermediate_size": yaml.require_count("ffn_hidden_size")?,
        "max_position_embeddings": positions,
        "mlp_bias": false,
        "model_type": "nemotron",
        "norm_eps": number("layernorm_epsilon")?,
        "num_attention_heads": heads,
        "num_hidden_layers": yaml.require_count("num_layers")?,
        "num_key_value_heads": yaml.count("num_query_groups")?.unwrap_or(heads),
        "pad_token_id": PAD,
        "partial_rotary_factor": rotary,
        "rope_scaling": null,
        "rope_theta": yaml.number("rotary_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": false,
        "torch_dtype": facts.dtype,
        "use_cache": true,
        "vocab_size": facts.vocab,
    });
    let Value::Object(mut config) = config else { unreachable!("the value above is an object") };
    config.retain(|key, value| !value.is_null() || key == "rope_scaling");
    if let Some(head) = &facts.reward {
        let names = || head.attributes.iter().enumerate();
        let id2label: Map<String, Value> = names().map(|(i, name)| (i.to_string(), json!(name))).collect();
        let label2id: Map<String, Value> = names().map(|(i, name)| (name.clone(), json!(i))).collect();
        config.insert("id2label".to_owned(), Value::Object(id2label));
        config.insert("label2id".to_owned(), Value::Object(label2id));
    }
    Ok(config)
}
