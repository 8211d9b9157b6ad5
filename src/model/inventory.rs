//! The list of tensors in a checkpoint of a model, by name and shape, for code that writes checkpoints.
//! `load_plan.rs` takes the same names one by one when loading.

use super::config::ModelConfig;
use crate::device::{HeadShape, NormKind};

/// A tensor that a model must have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Whether this is a linear weight of a layer, which FP8 serving stores as E4M3.
    pub(crate) linear: bool,
}

/// All required tensors with their unquantised shapes, in the order of the forward pass.
pub(crate) fn tensors(config: &ModelConfig) -> Vec<Expected> {
    let HeadShape { q_heads, kv_heads, head_dim } = config.heads;
    let (hidden, ffn, q, kv) = (config.hidden, config.ffn, q_heads * head_dim, kv_heads * head_dim);
    let mut all = vec![Expected::table("model.embed_tokens", config)];
    for layer in 0..config.layers {
        let base = format!("model.layers.{layer}");
        let linear = |name: &str, out: usize, input: usize| Expected {
            name: format!("{base}.{name}.weight"),
            shape: vec![out, input],
            linear: true,
        };
        all.extend(Expected::norm(&format!("{base}.input_layernorm"), config));
        all.push(linear("self_attn.q_proj", q, hidden));
        all.push(linear("self_attn.k_proj", kv, hidden));
        all.push(linear("self_attn.v_proj", kv, hidden));
        all.push(linear("self_attn.o_proj", hidden, q));
        all.extend(Expected::norm(&format!("{base}.post_attention_layernorm"), config));
        if config.activation.is_gated() {
            all.push(linear("mlp.gate_proj", ffn, hidden));
        }
        all.push(linear("mlp.up_proj", ffn, hidden));
        all.push(linear("mlp.down_proj", hidden, ffn));
    }
    all.extend(Expected::norm("model.norm", config));
    match &config.reward {
        Some(head) => {
            all.push(Expected { name: head.weight(), shape: vec![head.width, config.hidden], linear: false })
        }
        None if !config.tied => all.push(lm_head(config)),
        None => {}
    }
    all
}

/// The LM head. A reward model may have one, which nothing uses.
pub(crate) fn lm_head(config: &ModelConfig) -> Expected {
    Expected::table("lm_head", config)
}

/// Whether a checkpoint may have this tensor in addition to the required ones.
pub(crate) fn is_optional(name: &str, config: &ModelConfig) -> bool {
    let unused_head = (config.tied || config.reward.is_some()) && name == "lm_head.weight";
    let ignored = name.ends_with("rotary_emb.inv_freq") || unused_head;
    ignored || config.reward.as_ref().is_some_and(|head| name == head.bias())
}

impl Expected {
    fn table(module: &str, config: &ModelConfig) -> Self {
        Self { name: format!("{module}.weight"), shape: vec![config.vocab, config.hidden], linear: false }
    }

    fn norm(module: &str, config: &ModelConfig) -> impl Iterator<Item = Self> + use<> {
        let parts: &[&str] = match config.norm {
            NormKind::LayerNorm1p => &["weight", "bias"],
            NormKind::RmsNorm => &["weight"],
        };
        let (module, hidden) = (module.to_owned(), config.hidden);
        parts.iter().map(move |part| Self {
            name: format!("{module}.{part}"),
            shape: vec![hidden],
            linear: false,
        })
    }
}
