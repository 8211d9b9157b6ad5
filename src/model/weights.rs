//! From a checkpoint's tensors to a device's matrices: names, merges and quantisation, a tensor at a time.

use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::convert::{self, Rows, Slice};
use super::error::LoadError;
use super::scheme::Scheme;
use super::{Layer, Linear, Model, Precision, Shard};
use crate::device::{
    ActQuant, Activation, Device, HeadShape, HostMatrix, LayerKv, MatrixData, Norm, NormKind, Rope,
};

/// How far loading has got.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadProgress<'a> {
    /// Bytes of the checkpoint taken in.
    pub done: u64,
    /// Bytes of the checkpoint.
    pub total: u64,
    /// The tensor just taken in.
    pub tensor: &'a str,
}

struct Loader<'a, D: Device> {
    device: &'a D,
    /// The whole model's.
    config: &'a ModelConfig,
    shard: Shard,
    precision: Precision,
    checkpoint: Checkpoint,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(LoadProgress<'_>),
}

/// A module of a product: its name, its outputs, and those that a rank has.
struct Module {
    name: &'static str,
    out: usize,
    rows: Range<usize>,
}

/// Loads a rank's part of a model's weights onto its device.
pub(super) fn load<D: Device>(
    dir: &Path,
    config: &ModelConfig,
    (shard, precision): (Shard, Precision),
    device: &D,
    progress: &mut dyn FnMut(LoadProgress<'_>),
) -> Result<Model<D>, LoadError> {
    let share = config.share(shard.ranks).map_err(|message| LoadError::file(dir, message))?;
    let checkpoint = Checkpoint::open(dir)?;
    let total = checkpoint.bytes();
    let mut loader = Loader { device, config, shard, precision, checkpoint, done: 0, total, progress };
    let layers = (0..config.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
    let final_norm = loader.norm("model.norm")?;
    let embedding = loader.table("model.embed_tokens")?;
    let head = if config.tied {
        // Some exports store the tied head once more; it is the same tensor.
        loader.checkpoint.skip("lm_head.weight");
        None
    } else {
        Some(loader.table("lm_head")?)
    };
    if config.reward {
        loader.reward_head()?;
    }
    loader.checkpoint.finish()?;
    let rope = Rope { inv_freq: config.inv_freq.clone() };
    Ok(Model { config: share, shard, vocab: config.vocab, embedding, layers, final_norm, head, rope })
}

impl<D: Device> Loader<'_, D> {
    fn layer(&mut self, index: usize) -> Result<Layer<D>, LoadError> {
        let base = format!("model.layers.{index}");
        let HeadShape { q_heads, kv_heads, head_dim } = self.config.heads;
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        // How each tensor is divided: Q, K, V, gate and up by their outputs, O and down by their inputs.
        let of_heads = |heads: Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let own_q = of_heads(self.shard.part(q_heads));
        let own_kv = of_heads(self.shard.kv_heads(kv_heads));
        let own_ffn = self.shard.part(ffn);
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let module = |name, out, rows: &Range<usize>| Module { name, out, rows: rows.clone() };
        let qkv = [
            module("self_attn.q_proj", q, &own_q),
            module("self_attn.k_proj", kv, &own_kv),
            module("self_attn.v_proj", kv, &own_kv),
        ];
        let up_proj = module("mlp.up_proj", ffn, &own_ffn);
        let up: &[_] = match self.config.activation {
            Activation::SquaredRelu => &[up_proj],
            Activation::SwiGlu => &[module("mlp.gate_proj", ffn, &own_ffn), up_proj],
        };
        let whole = 0..hidden;
        let output = [module("self_attn.o_proj", hidden, &whole)];
        let down = [module("mlp.down_proj", hidden, &whole)];
        Ok(Layer {
            input_norm: self.norm(&format!("{base}.input_layernorm"))?,
            qkv: self.linear(&base, &qkv, (hidden, &whole))?,
            kv: self.kv_scales(index, &base)?,
            output: self.linear(&base, &output, (q, &own_q))?,
            mlp_norm: self.norm(&format!("{base}.post_attention_layernorm"))?,
            up: self.linear(&base, up, (hidden, &whole))?,
            down: self.linear(&base, &down, (ffn, &own_ffn))?,
        })
    }

    /// One product of one or more modules, their outputs one after the other. Of their inputs, `cols` are this rank's.
    fn linear(
        &mut self,
        base: &str,
        parts: &[Module],
        (input, cols): (usize, &Range<usize>),
    ) -> Result<Linear<D::Matrix>, LoadError> {
        let mut merged: Option<Rows> = None;
        let mut input_scale: Option<f32> = None;
        let mut stored_fp8 = 0;
        for Module { name, out, rows } in parts {
            let module = format!("{base}.{name}");
            let slice = Slice { rows: rows.clone(), cols: cols.clone() };
            let (rows, scale) = if self.config.scheme.covers(&module) {
                stored_fp8 += 1;
                self.stored_fp8(&module, (*out, input), &slice)?
            } else {
                (self.float_rows(&module, (*out, input), &slice)?, None)
            };
            input_scale = max(input_scale, scale);
            merged = Some(match merged {
                None => rows,
                Some(merged) => self.append(merged, rows, &module)?,
            });
        }
        let rows = merged.expect("a product has at least one module");
        let quant = match (self.precision, input_scale) {
            (Precision::None, _) => ActQuant::Bf16,
            // A static scale holds for the merged input only if every part was calibrated with one.
            (Precision::Fp8, Some(scale)) if stored_fp8 == parts.len() => ActQuant::Fp8Static(scale),
            (Precision::Fp8, _) => ActQuant::Fp8PerToken,
        };
        let out = parts.iter().map(|module| module.rows.len()).sum();
        Ok(Linear { matrix: self.upload(out, cols.len(), &rows)?, quant })
    }

    fn append(&self, merged: Rows, rows: Rows, module: &str) -> Result<Rows, LoadError> {
        match (merged, rows) {
            (Rows::Bf16(mut a), Rows::Bf16(b)) => {
                a.extend(b);
                Ok(Rows::Bf16(a))
            }
            (Rows::Fp8 { mut codes, mut scales }, Rows::Fp8 { codes: c, scales: s }) => {
                codes.extend(c);
                scales.extend(s);
                Ok(Rows::Fp8 { codes, scales })
            }
            _ => {
                let message = "stored unquantised beside quantised ones of the same product; \
                               load it with FP8 quantisation";
                Err(LoadError::tensor(self.checkpoint.dir(), &format!("{module}.weight"), message))
            }
        }
    }

    /// A module whose weight is stored as E4M3, and its input scale if it has one.
    fn stored_fp8(
        &mut self,
        module: &str,
        (out, input): (usize, usize),
        slice: &Slice,
    ) -> Result<(Rows, Option<f32>), LoadError> {
        let name = format!("{module}.weight");
        let codes = convert::codes(&self.checkpoint.take_shaped(&name, &[out, input])?, slice)?;
        self.took(&name);
        let scales = convert::row_scales(&self.checkpoint.take(&format!("{module}.weight_scale"))?, out)?;
        let scales = scales[slice.rows.clone()].to_vec();
        let is_static = matches!(&self.config.scheme, Scheme::Fp8(scheme) if scheme.static_activations);
        let input_scale = if is_static {
            Some(convert::scalar(&self.checkpoint.take(&format!("{module}.input_scale"))?)?)
        } else {
            None
        };
        Ok((Rows::Fp8 { codes, scales }, input_scale))
    }

    /// A module whose weight is stored as floats, quantised if asked for.
    fn float_rows(
        &mut self,
        module: &str,
        (out, input): (usize, usize),
        slice: &Slice,
    ) -> Result<Rows, LoadError> {
        let name = format!("{module}.weight");
        let tensor = self.checkpoint.take_shaped(&name, &[out, input])?;
        let rows = match self.precision {
            Precision::Fp8 => convert::quantize(&tensor, slice)?,
            Precision::None => Rows::Bf16(convert::to_bf16(&tensor, slice)?),
        };
        self.took(&name);
        Ok(rows)
    }

    /// An embedding or LM head, divided by ids: BF16, unless it is stored as E4M3. Ranks whose ids are fewer than the
    /// others' have zeros for the rest.
    fn table(&mut self, module: &str) -> Result<Linear<D::Matrix>, LoadError> {
        let name = format!("{module}.weight");
        let (vocab, input) = (self.config.vocab, self.config.hidden);
        let slice = Slice { rows: self.shard.ids(vocab), cols: 0..input };
        let out = vocab.div_ceil(self.shard.ranks);
        let tensor = self.checkpoint.take_shaped(&name, &[vocab, input])?;
        if tensor.dtype == Dtype::F8_E4M3 {
            let (mut rows, scale) = self.stored_fp8(module, (vocab, input), &slice)?;
            if let Rows::Fp8 { codes, scales } = &mut rows {
                codes.resize(out * input, 0);
                scales.resize(out, 1.0);
            }
            let quant = match (self.precision, scale) {
                (Precision::None, _) => ActQuant::Bf16,
                (Precision::Fp8, Some(scale)) => ActQuant::Fp8Static(scale),
                (Precision::Fp8, None) => ActQuant::Fp8PerToken,
            };
            return Ok(Linear { matrix: self.upload(out, input, &rows)?, quant });
        }
        let mut halves = convert::to_bf16(&tensor, &slice)?;
        halves.resize(out * input, 0);
        let rows = Rows::Bf16(halves);
        self.took(&name);
        Ok(Linear { matrix: self.upload(out, input, &rows)?, quant: ActQuant::Bf16 })
    }

    /// The reward head is held to its shape; nothing computes with it yet.
    fn reward_head(&mut self) -> Result<(), LoadError> {
        let (name, hidden) = ("rm_head.weight", self.config.hidden);
        let weight = self.checkpoint.take(name)?;
        let [rewards, input] = *weight.shape else {
            return Err(weight.error(format!("expected shape [rewards, {hidden}], got {:?}", weight.shape)));
        };
        if input != hidden {
            return Err(weight.error(format!("expected shape [{rewards}, {hidden}], got {:?}", weight.shape)));
        }
        convert::floats(&weight)?;
        if self.checkpoint.has("rm_head.bias") {
            convert::floats(&self.checkpoint.take_shaped("rm_head.bias", &[rewards])?)?;
        }
        Ok(())
    }

    fn norm(&mut self, module: &str) -> Result<Norm<D::Vector>, LoadError> {
        let weight = self.vector(&format!("{module}.weight"))?;
        let bias = match self.config.norm {
            NormKind::LayerNorm1p => Some(self.vector(&format!("{module}.bias"))?),
            NormKind::RmsNorm => None,
        };
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }

    fn vector(&mut self, name: &str) -> Result<D::Vector, LoadError> {
        let floats = convert::floats(&self.checkpoint.take_shaped(name, &[self.config.hidden])?)?;
        self.took(name);
        Ok(self.device.vector(&floats)?)
    }

    /// A layer's cache scales, by whichever of their names the exporter used; 1 where there is none.
    fn kv_scales(&mut self, layer: usize, base: &str) -> Result<LayerKv, LoadError> {
        const KEYS: [&str; 5] =
            ["k_scale", "attn.k_scale", "k_proj.k_scale", "k_proj.output_scale", "kv_scale"];
        const VALUES: [&str; 5] =
            ["v_scale", "attn.v_scale", "v_proj.v_scale", "v_proj.output_scale", "kv_scale"];
        let k_scale = self.first_scale(base, &KEYS)?;
        let v_scale = self.first_scale(base, &VALUES)?;
        Ok(LayerKv { layer, k_scale, v_scale })
    }

    fn first_scale(&mut self, base: &str, names: &[&str]) -> Result<f32, LoadError> {
        let names = names.iter().map(|name| format!("{base}.self_attn.{name}"));
        let Some(name) = names.into_iter().find(|name| self.checkpoint.has(name)) else { return Ok(1.0) };
        convert::scalar(&self.checkpoint.take(&name)?)
    }

    fn upload(&self, out: usize, input: usize, rows: &Rows) -> Result<D::Matrix, LoadError> {
        let data = match rows {
            Rows::Bf16(values) => MatrixData::Bf16(values),
            Rows::Fp8 { codes, scales } => MatrixData::Fp8 { codes, scales },
        };
        Ok(self.device.matrix(HostMatrix { out, input, data })?)
    }

    /// The tensor has been copied: its pages may go, and the operator sees it go by.
    fn took(&mut self, name: &str) {
        self.checkpoint.release(name);
        self.done += self.checkpoint.size(name);
        (self.progress)(LoadProgress { done: self.done.min(self.total), total: self.total, tensor: name });
    }
}

fn max(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}
