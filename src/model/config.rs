//! A decoder's architecture, read from `config.json`.

use std::path::Path;

use super::config_keys::{self, Facts};
use super::directory::check_model_directory;
use super::error::LoadError;
use super::family::Family;
use super::json::Object;
use super::reward_head::RewardHead;
use super::scheme::Scheme;
use super::{Precision, rope, tied_head};
use crate::device::{Activation, HeadShape, NormKind};

/// A decoder's architecture. The two families differ only in these values.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Class name in the checkpoint's `architectures`.
    pub architecture: &'static str,
    /// Number of decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of the MLP.
    pub ffn: usize,
    /// Vocabulary size: rows of the embedding and of the LM head.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub max_positions: usize,
    /// Attention heads and their width.
    pub heads: HeadShape,
    /// Kind of norm: LayerNorm1p or RMSNorm.
    pub norm: NormKind,
    /// Epsilon that the norms add to the variance.
    pub norm_eps: f32,
    /// Activation of the MLP: squared ReLU, or SwiGLU with a gate.
    pub activation: Activation,
    /// Whether the LM head shares the embedding's weights.
    pub tied: bool,
    /// Element type of an LM head that is stored as floats; a setting, BF16 in a configuration that was just
    /// read.
    pub head_dtype: HeadDtype,
    /// Inverse frequencies of the rotary embedding, one per pair of rotated dimensions.
    pub inv_freq: Vec<f32>,
    /// The reward head, which a model has instead of an LM head.
    pub reward: Option<RewardHead>,
    /// Storage format of the checkpoint's linear weights.
    pub scheme: Scheme,
    /// Warnings for the operator: keys that have no effect or contradict others.
    pub warnings: Vec<String>,
}

/// Element type of an LM head that is stored as floats. A head that is stored as E4M3 stays E4M3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HeadDtype {
    /// BF16.
    #[default]
    Bf16,
    /// E4M3 with a scale per row, quantised on load. Its inputs are BF16: E4M3 inputs would add as much error
    /// again and save nothing, since reading the weights is what takes the time.
    Fp8,
}

impl HeadDtype {
    /// The default beside linear layers of this precision.
    pub(crate) fn beside(_precision: Precision) -> Self {
        Self::Bf16
    }
}

impl ModelConfig {
    /// Reads `config.json`, and `hf_quant_config.json` if there is one. If the LM head should share the
    /// embedding's weights but is stored too, and differs, the stored one counts.
    pub fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        check_model_directory(dir)?;
        let mut config = Self::from_object(dir, &Object::read(&dir.join("config.json"))?)?;
        if config.tied && config.reward.is_none() && tied_head::differs(dir)? {
            config.tied = false;
            let warning = "`tie_word_embeddings` is true, but the stored `lm_head.weight` differs from the \
                           embedding and is used";
            config.warnings.push(warning.to_owned());
        }
        Ok(config)
    }

    /// Parses the text of a `config.json` without its directory.
    ///
    /// # Errors
    /// The same as those of [`ModelConfig::from_dir`].
    pub(crate) fn from_text(text: &str) -> Result<Self, LoadError> {
        let path = Path::new("config.json");
        let map = serde_json::from_str(text).map_err(|e| LoadError::file(path, format!("not JSON: {e}")))?;
        Self::from_object(path, &Object::from_map(path, map))
    }

    /// Parses the contents of a `config.json` in `dir`.
    pub(crate) fn from_object(dir: &Path, config: &Object) -> Result<Self, LoadError> {
        let (architecture, family, has_reward) = Family::read(config)?;
        let hidden = config.require_count("hidden_size")?;
        let heads = heads(config, hidden)?;
        let reward = has_reward.then(|| RewardHead::read(dir, config, family)).transpose()?;
        let mut warnings = Vec::new();
        let max_positions = config.require_count("max_position_embeddings")?;
        config_keys::check(
            config,
            &Facts { family, head_dim: heads.head_dim, max_positions },
            &mut warnings,
        )?;
        Ok(Self {
            architecture,
            layers: config.require_count("num_hidden_layers")?,
            hidden,
            ffn: config.require_count("intermediate_size")?,
            vocab: config.require_count("vocab_size")?,
            max_positions,
            heads,
            norm: family.norm(),
            norm_eps: norm_eps(config, family, &mut warnings)? as f32,
            activation: activation(config, family)?,
            tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
            head_dtype: HeadDtype::default(),
            inv_freq: rope::inverse_frequencies(config, family, heads.head_dim, &mut warnings)?,
            reward,
            scheme: Scheme::read(dir, config)?,
            warnings,
        })
    }

    /// Returns the configuration of one rank's share if `ranks` ranks share the model. Each rank has an equal
    /// part of the heads, the MLP width and the vocabulary. With fewer KV heads than ranks, each rank has one
    /// KV head. A vocabulary that is not divisible is padded.
    ///
    /// # Errors
    /// A dimension cannot be divided; the error names it.
    pub fn share(&self, ranks: usize) -> Result<Self, LoadError> {
        let divide = |what: &str, count: usize| match count % ranks {
            0 => Ok(count / ranks),
            _ => Err(LoadError::Ranks(format!("{what}: expected a multiple of {ranks} ranks, got {count}"))),
        };
        let HeadShape { q_heads, kv_heads, head_dim } = self.heads;
        let q_heads = divide("query heads", q_heads)?;
        let kv_heads = match ranks % kv_heads {
            0 => 1,
            // If `ranks` were no multiple of the KV heads, a rank's query heads could need several KV heads.
            _ if kv_heads < ranks => {
                let message = format!("ranks: expected a multiple of {kv_heads} KV heads, got {ranks}");
                return Err(LoadError::Ranks(message));
            }
            _ => divide("KV heads", kv_heads)?,
        };
        Ok(Self {
            heads: HeadShape { q_heads, kv_heads, head_dim },
            ffn: divide("MLP width", self.ffn)?,
            vocab: self.vocab.div_ceil(ranks),
            ..self.clone()
        })
    }

    /// This model as a draft model of another: its LM head has the element type of the other's, and its
    /// longest sequence is at most the other's.
    pub(crate) fn drafting_for(self, model: &Self) -> Self {
        let max_positions = self.max_positions.min(model.max_positions);
        Self { head_dtype: model.head_dtype, max_positions, ..self }
    }

    /// Values of the reward head; 0 for a model without one, which generates.
    pub fn reward_width(&self) -> usize {
        self.reward.as_ref().map_or(0, |head| head.width)
    }

    /// Number of parameters of the whole model, including biases and norms. An LM head that shares the
    /// embedding's weights adds none. A reward head counts with a bias.
    pub fn parameters(&self) -> u64 {
        let [qkv, o, up, down] = self.linear_shapes().map(|(out, input)| (out * input) as u64);
        let per_norm = self.hidden as u64 * if self.norm.has_bias() { 2 } else { 1 };
        let table = (self.vocab * self.hidden) as u64;
        let head = match &self.reward {
            Some(head) => head.elements(self.hidden) as u64,
            None if self.tied => 0,
            None => table,
        };
        self.layers as u64 * (qkv + o + up + down + 2 * per_norm) + per_norm + table + head
    }

    /// (outputs, inputs) of a layer's linear weights: merged QKV, O, merged gate and up, down.
    pub fn linear_shapes(&self) -> [(usize, usize); 4] {
        let HeadShape { q_heads, kv_heads, head_dim } = self.heads;
        let gates = if self.activation.is_gated() { 2 } else { 1 };
        [
            ((q_heads + 2 * kv_heads) * head_dim, self.hidden),
            (self.hidden, q_heads * head_dim),
            (gates * self.ffn, self.hidden),
            (self.hidden, self.ffn),
        ]
    }
}

/// Reads the attention heads. Without `num_key_value_heads` every query head has its own KV head, as in
/// models older than grouped-query attention.
fn heads(config: &Object, hidden: usize) -> Result<HeadShape, LoadError> {
    let q_heads = config.require_count("num_attention_heads")?;
    let kv_heads = config.count("num_key_value_heads")?.unwrap_or(q_heads);
    if q_heads % kv_heads != 0 {
        let message = format!("expected a divisor of num_attention_heads = {q_heads}, got {kv_heads}");
        return Err(config.error("num_key_value_heads", message));
    }
    let given = match (config.count("head_dim")?, config.count("kv_channels")?) {
        (Some(head_dim), Some(channels)) if head_dim != channels => {
            let message = format!("expected the value of `head_dim`, which is {head_dim}, got {channels}");
            return Err(config.error("kv_channels", message));
        }
        (head_dim, channels) => head_dim.or(channels),
    };
    let head_dim = match given {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
        None => {
            let message = format!("missing, and hidden_size = {hidden} is not a multiple of {q_heads} heads");
            return Err(config.error("head_dim", message));
        }
    };
    if head_dim % 8 != 0 {
        return Err(config.error("head_dim", format!("expected a multiple of 8, got {head_dim}")));
    }
    Ok(HeadShape { q_heads, kv_heads, head_dim })
}

fn activation(config: &Object, family: Family) -> Result<Activation, LoadError> {
    let (expected, activation) = family.activation();
    match config.text("hidden_act")? {
        None => Ok(activation),
        Some(name) if name == expected => Ok(activation),
        Some(name) => Err(config.error("hidden_act", format!("expected `{expected}`, got `{name}`"))),
    }
}

/// Reads the norms' epsilon. transformers goes by the first of its names.
fn norm_eps(config: &Object, family: Family, warnings: &mut Vec<String>) -> Result<f64, LoadError> {
    let (keys, default) = family.norm_eps();
    let mut found: Option<(&str, f64)> = None;
    for key in keys {
        match (found, config.number(key)?) {
            (None, Some(eps)) => found = Some((key, eps)),
            (Some((first, eps)), Some(other)) if eps != other => {
                warnings.push(format!("`{first}` = {eps} counts, and not `{key}` = {other}"));
            }
            _ => {}
        }
    }
    Ok(found.map_or(default, |(_, eps)| eps))
}
