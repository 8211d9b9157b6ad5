//! Lists of the known keys of `config.json` in the two families: keys that are read, keys without an effect,
//! and keys with an effect that is not supported. Other keys cause a warning.

use serde_json::Value;

use super::error::LoadError;
use super::family::Family;
use super::json::Object;
use super::key_rules::{Neutral, is_one_of, is_same};
use super::rope::{FRACTIONS, ORIGINAL};

/// Keys that are read.
const READ: [&str; 30] = [
    ORIGINAL,
    "architectures",
    "attention_chunk_size",
    "attention_multiplier",
    "compression_config",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "id2label",
    "intermediate_size",
    "kv_channels",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "no_rope_layers",
    "nope_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_labels",
    "quantization_config",
    "query_pre_attn_scalar",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Keys without an effect on inference, whatever their value: those of training, of other tasks, of Python
/// objects, and notes about the file.
const HARMLESS: [&str; 50] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    // Divides the scores before the softmax, and multiplies them by the same number within it.
    "apply_query_key_layer_scaling",
    "attention_dropout",
    "attention_softmax_in_fp32",
    "attn_implementation",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_sequence_length",
    "max_window_layers",
    "model_max_length",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Keys whose other values would change the result in a way that is not supported.
const NEUTRAL: [Neutral; 65] = [
    ("add_cross_attention", &["false"]),
    ("add_qkv_bias", &["false"]),
    ("alibi", &["false"]),
    ("alibi_bias_max", &["0"]),
    ("attention_bias", &["false"]),
    ("attention_in_bias", &["false"]),
    ("attention_k_eq_v", &["false"]),
    ("attention_out_bias", &["false"]),
    ("attention_output_bias", &["false"]),
    ("attn_logit_softcapping", &[]),
    ("attn_scale", &["1"]),
    ("attn_temperature_tuning", &["false", "0"]),
    ("bias", &["false"]),
    ("clip_qkv", &[]),
    ("embedding_multiplier", &["1"]),
    ("embedding_scale", &["1"]),
    ("final_logit_softcapping", &[]),
    ("is_causal", &["true"]),
    ("is_encoder_decoder", &["false"]),
    ("kv_lora_rank", &[]),
    ("logit_scale", &["1"]),
    ("logit_softcap", &[]),
    ("logits_scaling", &["1"]),
    ("mlp_bias", &["false"]),
    ("moe_layers", &["[]"]),
    ("multi_query", &["false"]),
    ("mup_width_multiplier", &["1"]),
    ("n_routed_experts", &["0"]),
    ("no_rope_layer_interval", &["0"]),
    ("nope_layer_interval", &["0"]),
    ("num_experts", &["0"]),
    ("num_kv_shared_layers", &["0"]),
    ("num_local_experts", &["0"]),
    ("o_bias", &["false"]),
    ("parallel_attn", &["false"]),
    ("parallel_residual", &["false"]),
    ("per_layer_config", &["{}", "[]"]),
    ("position_embedding_type", &["\"rope\"", "\"rotary\""]),
    ("pruned_heads", &["{}"]),
    ("qk_layernorm", &["false"]),
    ("qk_norm", &["false"]),
    ("qkv_bias", &["false"]),
    ("quantization", &[]),
    ("query_key_norm", &["false"]),
    ("residual_multiplier", &["1"]),
    ("residual_scale", &["1"]),
    ("rope_interleave", &["false"]),
    ("rope_interleaved", &["false"]),
    ("rope_traditional", &["false"]),
    ("rotary_interleaved", &["false"]),
    ("scale_attn_weights", &["true"]),
    ("scale_depth", &[]),
    ("scale_emb", &["1"]),
    ("sliding_window_pattern", &["0"]),
    ("sparsity_config", &["{}"]),
    ("use_alibi", &["false"]),
    ("use_attention_bias", &["false"]),
    ("use_bias", &["false"]),
    ("use_mlp_bias", &["false"]),
    ("use_parallel_residual", &["false"]),
    ("use_post_norm", &["false"]),
    ("use_qk_layernorm", &["false"]),
    ("use_qk_norm", &["false"]),
    ("use_qkv_bias", &["false"]),
    ("use_sink", &["false"]),
];

/// Names that other families have for a key that is read, with that key. Their values must be equal.
const OTHER_NAMES: [(&str, &str); 7] = [
    ("hidden_activation", "hidden_act"),
    ("activation_function", "hidden_act"),
    ("rotary_pct", FRACTIONS[0]),
    ("rotary_emb_fraction", FRACTIONS[0]),
    ("rotary_emb_base", "rope_theta"),
    ("rope_base", "rope_theta"),
    ("n_head_kv", "num_key_value_heads"),
];

/// Parameters of generation, with their defaults. transformers saves them in `generation_config.json`, and
/// ignores those in `config.json`.
const GENERATION: [Neutral; 35] = [
    ("assistant_confidence_threshold", &["0.4"]),
    ("assistant_lookbehind", &["10"]),
    ("bad_words_ids", &[]),
    ("begin_suppress_tokens", &[]),
    ("diversity_penalty", &["0"]),
    ("do_sample", &["false"]),
    ("early_stopping", &["false"]),
    ("encoder_no_repeat_ngram_size", &["0"]),
    ("encoder_repetition_penalty", &["1"]),
    ("epsilon_cutoff", &["0"]),
    ("eta_cutoff", &["0"]),
    ("exponential_decay_length_penalty", &[]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("length_penalty", &["1"]),
    ("max_length", &["20"]),
    ("min_length", &["0"]),
    ("min_p", &[]),
    ("no_repeat_ngram_size", &["0"]),
    ("num_assistant_tokens", &["20"]),
    ("num_assistant_tokens_schedule", &["\"constant\""]),
    ("num_beam_groups", &["1"]),
    ("num_beams", &["1"]),
    ("num_return_sequences", &["1"]),
    ("output_scores", &["false"]),
    ("remove_invalid_values", &["false"]),
    ("repetition_penalty", &["1"]),
    ("return_dict_in_generate", &["false"]),
    ("suppress_tokens", &[]),
    ("target_lookbehind", &["10"]),
    ("temperature", &["1"]),
    ("top_k", &["50"]),
    ("top_p", &["1"]),
    ("typical_p", &["1"]),
    ("max_new_tokens", &[]),
];

/// Keys that transformers and vLLM once read for these families and now ignore, with the value that never had
/// an effect.
const IGNORED: [Neutral; 1] = [("pretraining_tp", &["1"])];

/// Facts of the model that keys are compared with.
pub(super) struct Facts {
    pub(super) family: Family,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
}

/// Checks all keys at top level.
///
/// # Errors
/// A key has a value that would change the result in a way that is not supported.
pub(super) fn check(config: &Object, facts: &Facts, warnings: &mut Vec<String>) -> Result<(), LoadError> {
    config.require_neutral(&NEUTRAL)?;
    check_windows(config, facts.max_positions)?;
    let head_dim = facts.head_dim as f64;
    for (key, expected) in
        [("attention_multiplier", head_dim.powf(-0.5)), ("query_pre_attn_scalar", head_dim)]
    {
        if let Some(got) = config.number(key)?
            && (got / expected - 1.0).abs() > 1e-6
        {
            return Err(config.error(key, format!("expected {expected} for heads of {head_dim}, got {got}")));
        }
    }
    for (other, key) in OTHER_NAMES {
        if let Some(got) = config.get(other)
            && !config.get(key).is_some_and(|value| is_same(value, got))
        {
            let value = config.get(key).map_or_else(|| "absent".to_owned(), ToString::to_string);
            return Err(
                config.error(other, format!("expected the value of `{key}`, which is {value}, got {got}"))
            );
        }
    }
    let mut unknown = Vec::new();
    for (key, value) in config.entries().filter(|(_, value)| !value.is_null()) {
        let ignored = GENERATION.iter().chain(&IGNORED).find(|(name, _)| *name == key);
        match ignored {
            Some((_, neutral)) if !is_one_of(value, neutral) => {
                warnings.push(format!("`{key}` = {value} in config.json has no effect"));
            }
            None if !is_known(key, facts.family) => unknown.push(format!("`{key}`")),
            _ => {}
        }
    }
    if !unknown.is_empty() {
        warnings
            .push(format!("config.json has keys that are not known and not used: {}", unknown.join(", ")));
    }
    Ok(())
}

fn is_known(key: &str, family: Family) -> bool {
    let listed = READ.iter().chain(&HARMLESS).chain(&FRACTIONS);
    listed.chain(family.norm_eps().0).any(|known| *known == key)
        || NEUTRAL.iter().any(|(known, _)| *known == key)
        || OTHER_NAMES.iter().any(|(known, _)| *known == key)
}

/// Checks that every layer attends to all positions.
fn check_windows(config: &Object, max_positions: usize) -> Result<(), LoadError> {
    let types = config.get("layer_types");
    let layers = types.and_then(Value::as_array);
    if let Some(other) = layers.into_iter().flatten().find(|layer| *layer != "full_attention") {
        return Err(config.error("layer_types", format!("expected `full_attention` only, got {other}")));
    }
    if types.is_some() && layers.is_none() {
        return Err(config.error("layer_types", "expected a list"));
    }
    for key in ["no_rope_layers", "nope_layers"] {
        let layers = config.get(key).and_then(Value::as_array);
        let rotates = |layer: &Value| key == "no_rope_layers" && (layer == 1 || layer == true);
        if let Some(layers) = layers.filter(|layers| !layers.iter().all(rotates)) {
            let message =
                format!("expected rotary embedding in all layers, got {}", Value::from(layers.clone()));
            return Err(config.error(key, message));
        }
    }
    let unused = types.is_some() || config.flag("use_sliding_window")? == Some(false);
    for key in ["sliding_window", "attention_chunk_size"] {
        if let Some(window) = config.number(key)?
            && window < max_positions as f64
            && !unused
        {
            let message = format!(
                "expected no value, or at least max_position_embeddings = {max_positions}, got {window}"
            );
            return Err(config.error(key, message));
        }
    }
    Ok(())
}
