//! What of a checkpoint goes where: names, merges, division between ranks and quantisation, decided from headers and
//! small tensors before any weight is read.

use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::checkpoint::{Checkpoint, Tensor};
use super::config::ModelConfig;
use super::convert;
use super::error::LoadError;
use super::scheme::Scheme;
use super::{Precision, Shard};
use crate::device::{ActQuant, Activation, HeadShape, LayerKv, NormKind};

/// A matrix that each rank has one of, all of the same shape.
#[derive(Debug)]
pub(super) struct MatrixPlan {
    pub(super) out: usize,
    pub(super) input: usize,
    /// Whether elements are BF16, rather than E4M3.
    pub(super) bf16: bool,
    /// The form in which it wants its input.
    pub(super) quant: ActQuant,
}

/// What becomes of a stored matrix.
#[derive(Debug)]
pub(super) enum WeightForm {
    /// E4M3 as stored, with these scales, one for each row.
    Codes(Vec<f32>),
    /// Floats, to be quantised with a scale per row: that of the whole row, whatever part of it a rank has, so that the
    /// ranks of a group have the weights that one rank would have.
    Quantised,
    /// Floats, to be rounded to BF16.
    Bf16,
}

/// A stored matrix \[rows, input\], and who has which part of it.
#[derive(Debug)]
pub(super) struct StoredMatrix {
    pub(super) tensor: Tensor,
    pub(super) form: WeightForm,
    pub(super) parts: Vec<RankPart>,
}

/// Rows and columns of a stored matrix that are a rank's.
#[derive(Debug)]
pub(super) struct RankPart {
    /// Index into the ranks that are loaded.
    pub(super) rank: usize,
    /// Index into the matrices.
    pub(super) matrix: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    /// Row of the matrix that the first of `rows` is.
    pub(super) first: usize,
}

/// A norm's weights, whole on every rank.
#[derive(Debug)]
pub(super) struct NormPlan {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
}

/// A layer: its norms, and indices of its matrices.
#[derive(Debug)]
pub(super) struct LayerPlan {
    pub(super) input_norm: NormPlan,
    pub(super) qkv: usize,
    pub(super) kv: LayerKv,
    pub(super) output: usize,
    pub(super) mlp_norm: NormPlan,
    pub(super) up: usize,
    pub(super) down: usize,
}

/// All of a model.
#[derive(Debug)]
pub(super) struct LoadPlan {
    pub(super) matrices: Vec<MatrixPlan>,
    pub(super) sources: Vec<StoredMatrix>,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) final_norm: NormPlan,
    pub(super) embedding: usize,
    /// `None` where the embedding is the head.
    pub(super) head: Option<usize>,
}

/// A module of a matrix: its name, its outputs, and those that each rank has.
struct ModulePlan {
    name: &'static str,
    out: usize,
    rows: Vec<Range<usize>>,
}

/// Input columns of a matrix.
struct Inputs<'a> {
    /// Columns of the stored matrix.
    all: usize,
    /// Columns that each loaded rank has.
    cols: &'a [Range<usize>],
}

struct LoadPlanner<'a> {
    /// The whole model's.
    config: &'a ModelConfig,
    /// Of the ranks that are loaded.
    shards: &'a [Shard],
    precision: Precision,
    checkpoint: Checkpoint,
    matrices: Vec<MatrixPlan>,
    sources: Vec<StoredMatrix>,
    /// How the first of the layers' float weights is stored, and its name.
    floats: Option<(Dtype, String)>,
}

impl LoadPlan {
    /// Of the ranks' parts of a model.
    pub(super) fn new(
        dir: &Path,
        config: &ModelConfig,
        shards: &[Shard],
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(dir)?;
        let (matrices, sources) = (Vec::new(), Vec::new());
        let mut planner =
            LoadPlanner { config, shards, precision, checkpoint, matrices, sources, floats: None };
        let layers = (0..config.layers).map(|layer| planner.layer(layer)).collect::<Result<_, _>>()?;
        let final_norm = planner.norm("model.norm")?;
        let embedding = planner.table("model.embed_tokens")?;
        let head = if config.tied {
            // Some exports store the tied head once more; it is the same tensor.
            planner.checkpoint.skip("lm_head.weight");
            None
        } else {
            Some(planner.table("lm_head")?)
        };
        if config.reward {
            planner.reward_head()?;
        }
        planner.checkpoint.finish()?;
        let LoadPlanner { matrices, sources, .. } = planner;
        Ok(Self { matrices, sources, layers, final_norm, embedding, head })
    }
}

impl LoadPlanner<'_> {
    fn layer(&mut self, index: usize) -> Result<LayerPlan, LoadError> {
        let base = format!("model.layers.{index}");
        let HeadShape { q_heads, kv_heads, head_dim } = self.config.heads;
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        // How each tensor is divided: Q, K, V, gate and up by their outputs, O and down by their inputs.
        let of_heads = |heads: Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let own_q = self.each(|shard| of_heads(shard.part(q_heads)));
        let own_kv = self.each(|shard| of_heads(shard.kv_heads(kv_heads)));
        let own_ffn = self.each(|shard| shard.part(ffn));
        let whole = self.each(|_| 0..hidden);
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let module = |name, out, rows: &[Range<usize>]| ModulePlan { name, out, rows: rows.to_vec() };
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
        let output = [module("self_attn.o_proj", hidden, &whole)];
        let down = [module("mlp.down_proj", hidden, &whole)];
        Ok(LayerPlan {
            input_norm: self.norm(&format!("{base}.input_layernorm"))?,
            qkv: self.linear(&base, &qkv, Inputs { all: hidden, cols: &whole })?,
            kv: self.kv_scales(index, &base)?,
            output: self.linear(&base, &output, Inputs { all: q, cols: &own_q })?,
            mlp_norm: self.norm(&format!("{base}.post_attention_layernorm"))?,
            up: self.linear(&base, up, Inputs { all: hidden, cols: &whole })?,
            down: self.linear(&base, &down, Inputs { all: ffn, cols: &own_ffn })?,
        })
    }

    fn each(&self, part: impl Fn(Shard) -> Range<usize>) -> Vec<Range<usize>> {
        self.shards.iter().map(|shard| part(*shard)).collect()
    }

    /// One matrix of one or more modules, their outputs one after the other. Of their inputs, `cols` are each rank's.
    fn linear(&mut self, base: &str, modules: &[ModulePlan], inputs: Inputs<'_>) -> Result<usize, LoadError> {
        let matrix = self.matrices.len();
        let mut input_scale: Option<f32> = None;
        let mut stored_fp8 = 0;
        let mut bf16: Option<bool> = None;
        let mut first = 0;
        for ModulePlan { name, out, rows } in modules {
            let module = format!("{base}.{name}");
            let (tensor, form) = if self.config.scheme.covers(&module) {
                stored_fp8 += 1;
                let (tensor, form, scale) = self.stored_fp8(&module, &[*out, inputs.all])?;
                input_scale = max(input_scale, scale);
                (tensor, form)
            } else {
                self.stored_floats(&module, &[*out, inputs.all])?
            };
            let is_bf16 = matches!(form, WeightForm::Bf16);
            if bf16.is_some_and(|bf16| bf16 != is_bf16) {
                let StoredMatrix { tensor: other, .. } = &self.sources[self.sources.len() - 1];
                let message = format!(
                    "expected {:?} as of `{}`, a part of the same matrix, got {:?}; FP8 quantisation takes both",
                    other.dtype, other.name, tensor.dtype
                );
                return Err(tensor.error(message));
            }
            bf16 = Some(is_bf16);
            let parts = rows.iter().zip(inputs.cols).enumerate().map(|(rank, (rows, cols))| {
                let (rows, cols) = (rows.clone(), cols.clone());
                RankPart { rank, matrix, rows, cols, first }
            });
            self.sources.push(StoredMatrix { tensor, form, parts: parts.collect() });
            first += rows[0].len();
        }
        let quant = match (self.precision, input_scale) {
            (Precision::None, _) => ActQuant::Bf16,
            // A static scale holds for the merged input only if every part was calibrated with one.
            (Precision::Fp8, Some(scale)) if stored_fp8 == modules.len() => ActQuant::Fp8Static(scale),
            (Precision::Fp8, _) => ActQuant::Fp8PerToken,
        };
        let bf16 = bf16.expect("a matrix has at least one module");
        self.matrices.push(MatrixPlan { out: first, input: inputs.cols[0].len(), bf16, quant });
        Ok(matrix)
    }

    /// A module whose weight is stored as E4M3, and its input scale if it has one.
    fn stored_fp8(
        &mut self,
        module: &str,
        shape: &[usize; 2],
    ) -> Result<(Tensor, WeightForm, Option<f32>), LoadError> {
        let tensor = self.checkpoint.take_shaped(&format!("{module}.weight"), shape)?;
        if tensor.dtype != Dtype::F8_E4M3 {
            return Err(tensor.error(format!("expected F8_E4M3, got {:?}", tensor.dtype)));
        }
        let scales = self.checkpoint.take(&format!("{module}.weight_scale"))?;
        let scales = convert::row_scales(&scales, shape[0])?;
        let is_static = matches!(&self.config.scheme, Scheme::Fp8(scheme) if scheme.static_activations);
        let input_scale = if is_static {
            Some(convert::scalar(&self.checkpoint.take(&format!("{module}.input_scale"))?)?)
        } else {
            None
        };
        Ok((tensor, WeightForm::Codes(scales), input_scale))
    }

    /// A module whose weight is stored as floats, quantised if asked for. All layers have theirs in one type: others are
    /// no one model's.
    fn stored_floats(&mut self, module: &str, shape: &[usize; 2]) -> Result<(Tensor, WeightForm), LoadError> {
        let tensor = self.checkpoint.take_shaped(&format!("{module}.weight"), shape)?;
        convert::float_width(&tensor)?;
        let (dtype, name) = self.floats.get_or_insert_with(|| (tensor.dtype, tensor.name.clone()));
        if *dtype != tensor.dtype {
            return Err(tensor.error(format!("expected {dtype:?} as of `{name}`, got {:?}", tensor.dtype)));
        }
        let form = match self.precision {
            Precision::Fp8 => WeightForm::Quantised,
            Precision::None => WeightForm::Bf16,
        };
        Ok((tensor, form))
    }

    /// An embedding or LM head, divided by ids: BF16, unless it is stored as E4M3. Ranks whose ids are fewer than the
    /// others' have zeros for the rest.
    fn table(&mut self, module: &str) -> Result<usize, LoadError> {
        let (vocab, input) = (self.config.vocab, self.config.hidden);
        let ids = self.each(|shard| shard.ids(vocab));
        let out = vocab.div_ceil(self.shards[0].ranks);
        let tensor = self.checkpoint.take_shaped(&format!("{module}.weight"), &[vocab, input])?;
        let (form, quant) = if tensor.dtype == Dtype::F8_E4M3 {
            let (_, form, scale) = self.stored_fp8(module, &[vocab, input])?;
            let quant = match (self.precision, scale) {
                (Precision::None, _) => ActQuant::Bf16,
                (Precision::Fp8, Some(scale)) => ActQuant::Fp8Static(scale),
                (Precision::Fp8, None) => ActQuant::Fp8PerToken,
            };
            (form, quant)
        } else {
            convert::float_width(&tensor)?;
            (WeightForm::Bf16, ActQuant::Bf16)
        };
        let matrix = self.matrices.len();
        self.matrices.push(MatrixPlan { out, input, bf16: matches!(form, WeightForm::Bf16), quant });
        let parts = ids.into_iter().enumerate();
        let parts =
            parts.map(|(rank, rows)| RankPart { rank, matrix, rows, cols: 0..input, first: 0 }).collect();
        self.sources.push(StoredMatrix { tensor, form, parts });
        Ok(matrix)
    }

    /// The reward head is held to its shape; nothing computes with it yet.
    fn reward_head(&mut self) -> Result<(), LoadError> {
        let hidden = self.config.hidden;
        let weight = self.checkpoint.take("rm_head.weight")?;
        let rewards = match weight.shape[..] {
            [rewards, input] if input == hidden => rewards,
            [rewards, _] => {
                let message = format!("expected shape [{rewards}, {hidden}], got {:?}", weight.shape);
                return Err(weight.error(message));
            }
            _ => {
                let message = format!("expected shape [rewards, {hidden}], got {:?}", weight.shape);
                return Err(weight.error(message));
            }
        };
        convert::floats(&weight)?;
        if self.checkpoint.has("rm_head.bias") {
            convert::floats(&self.checkpoint.take_shaped("rm_head.bias", &[rewards])?)?;
        }
        Ok(())
    }

    fn norm(&mut self, module: &str) -> Result<NormPlan, LoadError> {
        let weight = self.vector(&format!("{module}.weight"))?;
        let bias = match self.config.norm {
            NormKind::LayerNorm1p => Some(self.vector(&format!("{module}.bias"))?),
            NormKind::RmsNorm => None,
        };
        Ok(NormPlan { weight, bias })
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        convert::floats(&self.checkpoint.take_shaped(name, &[self.config.hidden])?)
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
}

fn max(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}
