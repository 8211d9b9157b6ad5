//! Reads `config.json` of both model families, in the old and the new Hugging Face format.

use std::path::Path;

use super::directory::check_model_directory;
use super::error::LoadError;
use super::json::Object;
use super::scheme::Scheme;
use crate::device::{Activation, HeadShape, NormKind};

/// A decoder's architecture. The two families differ only in these values.
#[derive(Debug, Clone, PartialEq)]
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
    /// Inverse frequencies of the rotary embedding, one per pair of rotated dimensions.
    pub inv_freq: Vec<f32>,
    /// Whether the checkpoint has a reward head in addition to the LM head.
    pub reward: bool,
    /// Storage format of the checkpoint's linear weights.
    pub scheme: Scheme,
}

/// Class name of a checkpoint with `rm_head.weight` \[rewards, hidden\] and optionally `rm_head.bias`
/// \[rewards\]. This is NeMo's head, which has a bias. The transformers class of the same name calls its head
/// `score`.
pub(crate) const REWARD: &str = "NemotronForSequenceClassification";

/// The supported model families.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Nemotron,
    Llama,
}

impl ModelConfig {
    /// Reads `config.json`, and `hf_quant_config.json` if there is one.
    pub fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        check_model_directory(dir)?;
        Self::from_object(dir, &Object::read(&dir.join("config.json"))?)
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
        let (architecture, family) = architecture(config)?;
        for key in ["attention_bias", "mlp_bias"] {
            if config.flag(key)?.unwrap_or(false) {
                return Err(config.error(key, "linear layers with biases are not supported"));
            }
        }
        let hidden = config.require_count("hidden_size")?;
        let heads = heads(config, hidden)?;
        let activation = activation(config, family)?;
        let eps_keys: &[&str] = match family {
            Family::Nemotron => &["norm_eps", "layer_norm_eps"],
            Family::Llama => &["rms_norm_eps"],
        };
        Ok(Self {
            architecture,
            layers: config.require_count("num_hidden_layers")?,
            hidden,
            ffn: config.require_count("intermediate_size")?,
            vocab: config.require_count("vocab_size")?,
            max_positions: config.require_count("max_position_embeddings")?,
            heads,
            norm: match family {
                Family::Nemotron => NormKind::LayerNorm1p,
                Family::Llama => NormKind::RmsNorm,
            },
            norm_eps: first_number(config, eps_keys)?.unwrap_or(if family == Family::Nemotron {
                1e-5
            } else {
                1e-6
            }) as f32,
            activation,
            tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
            inv_freq: inverse_frequencies(config, family, heads.head_dim)?,
            reward: architecture == REWARD,
            scheme: Scheme::read(dir, config)?,
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

    /// Number of parameters of the whole model, including biases and norms. An LM head that shares the
    /// embedding's weights adds none, and a reward head is not counted.
    pub fn parameters(&self) -> u64 {
        let [qkv, o, up, down] = self.linear_shapes().map(|(out, input)| (out * input) as u64);
        let per_norm = self.hidden as u64 * if self.norm == NormKind::LayerNorm1p { 2 } else { 1 };
        let table = (self.vocab * self.hidden) as u64;
        let tables = if self.tied { table } else { 2 * table };
        self.layers as u64 * (qkv + o + up + down + 2 * per_norm) + per_norm + tables
    }

    /// (outputs, inputs) of a layer's linear weights: merged QKV, O, merged gate and up, down.
    pub fn linear_shapes(&self) -> [(usize, usize); 4] {
        let HeadShape { q_heads, kv_heads, head_dim } = self.heads;
        let gates = if self.activation == Activation::SwiGlu { 2 } else { 1 };
        [
            ((q_heads + 2 * kv_heads) * head_dim, self.hidden),
            (self.hidden, q_heads * head_dim),
            (gates * self.ffn, self.hidden),
            (self.hidden, self.ffn),
        ]
    }
}

fn architecture(config: &Object) -> Result<(&'static str, Family), LoadError> {
    const KNOWN: [(&str, Family); 3] = [
        ("NemotronForCausalLM", Family::Nemotron),
        (REWARD, Family::Nemotron),
        ("LlamaForCausalLM", Family::Llama),
    ];
    let names = config.texts("architectures")?;
    let known = match names.as_slice() {
        [name] => KNOWN.into_iter().find(|(known, _)| known == name),
        _ => None,
    };
    known.ok_or_else(|| {
        let expected = KNOWN.map(|(name, _)| format!("[\"{name}\"]")).join(" or ");
        config.error("architectures", format!("expected {expected}, got {names:?}"))
    })
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
    let given = match config.count("head_dim")? {
        None => config.count("kv_channels")?,
        given => given,
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
    let (expected, activation) = match family {
        Family::Nemotron => ("relu2", Activation::SquaredRelu),
        Family::Llama => ("silu", Activation::SwiGlu),
    };
    match config.text("hidden_act")? {
        None => Ok(activation),
        Some(name) if name == expected => Ok(activation),
        Some(name) => Err(config.error("hidden_act", format!("expected `{expected}`, got `{name}`"))),
    }
}

fn first_number(config: &Object, keys: &[&str]) -> Result<Option<f64>, LoadError> {
    for key in keys {
        if let Some(number) = config.number(key)? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// Inverse frequencies theta^(-2i / d) of the d rotated dimensions, rescaled if the configuration says so.
/// New configurations have theta, the fraction of rotated dimensions and the scaling in `rope_parameters`.
/// Old ones have theta and the fraction at top level, and the scaling in `rope_scaling`.
fn inverse_frequencies(config: &Object, family: Family, head_dim: usize) -> Result<Vec<f32>, LoadError> {
    const FRACTIONS: [&str; 4] = ["partial_rotary_factor", "rope_percent", "rope_percentage", "rope_pct"];
    let nested = config.object("rope_parameters")?;
    let mut theta = first_number(config, &["rope_theta"])?;
    let mut fraction = first_number(config, &FRACTIONS)?;
    if let Some(nested) = &nested {
        theta = nested.number("rope_theta")?.or(theta);
        fraction = first_number(nested, &FRACTIONS)?.or(fraction);
    }
    // These are the defaults of transformers: a Nemotron configuration may omit its fraction of 0.5.
    let fraction = fraction.unwrap_or(if family == Family::Nemotron { 0.5 } else { 1.0 });
    let theta = theta.unwrap_or(10_000.0);
    let rotary = (head_dim as f64 * fraction) as usize;
    let sound = fraction > 0.0 && fraction <= 1.0 && rotary.is_multiple_of(2) && theta > 1.0;
    if !sound {
        let message = format!(
            "expected theta above 1 and a fraction of at most 1 that rotates an even number of dimensions, \
             got theta {theta} and fraction {fraction} ({rotary} of {head_dim} dimensions)"
        );
        return Err(config.error("rope_parameters", message));
    }
    let mut inv_freq: Vec<f64> =
        (0..rotary / 2).map(|i| theta.powf(-(2.0 * i as f64) / rotary as f64)).collect();
    let scaling = match nested {
        Some(nested) => Some(nested),
        None => config.object("rope_scaling")?,
    };
    if let Some(scaling) = scaling {
        rescale(&scaling, config, &mut inv_freq)?;
    }
    Ok(inv_freq.into_iter().map(|f| f as f32).collect())
}

/// Llama 3's scaling: divides the frequencies of long wavelengths by `factor`, keeps those of short ones, and
/// interpolates in between.
fn rescale(scaling: &Object, config: &Object, inv_freq: &mut [f64]) -> Result<(), LoadError> {
    let kind = match scaling.text("rope_type")? {
        None => scaling.text("type")?.unwrap_or("default"),
        Some(kind) => kind,
    };
    match kind {
        "default" => return Ok(()),
        "llama3" => {}
        other => {
            return Err(scaling.error("rope_type", format!("expected `default` or `llama3`, got `{other}`")));
        }
    }
    let need = |key: &str| scaling.number(key)?.ok_or_else(|| scaling.error(key, "missing"));
    let (factor, low, high) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
    let original = match scaling.number("original_max_position_embeddings")? {
        Some(original) => original,
        None => need("original_max_position_embeddings")
            .or_else(|e| config.number("original_max_position_embeddings")?.ok_or(e))?,
    };
    if factor < 1.0 || low >= high || low <= 0.0 || original <= 0.0 {
        let message = format!(
            "expected factor >= 1, 0 < low_freq_factor < high_freq_factor and a positive original length, \
             got {factor}, {low}, {high} and {original}"
        );
        return Err(scaling.error("factor", message));
    }
    for f in inv_freq {
        let turns = original * *f / std::f64::consts::TAU;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *f = *f / factor * (1.0 - smooth) + *f * smooth;
    }
    Ok(())
}

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
