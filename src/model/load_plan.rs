//! The load plan: which rows and columns of each stored tensor go to which rank, and how they are converted.
//! It is made from headers and small tensors, before any weight is read.

use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::checkpoint::{Checkpoint, Tensor};
use super::config::ModelConfig;
use super::convert;
use super::error::LoadError;
use super::scheme::{Scheme, StoredFormat};
use super::{HeadDtype, Precision, Shard};
use crate::device::{ActQuant, Activation, GatedRows, HeadShape, LayerKv, NormKind};

/// A matrix of the model; every rank has one of this shape.
#[derive(Debug)]
pub(super) struct MatrixPlan {
    pub(super) out: usize,
    pub(super) input: usize,
    /// Element type: BF16 if true, E4M3 if false.
    pub(super) bf16: bool,
    /// Format of the input of the matrix's product.
    pub(super) quant: ActQuant,
}

/// Conversion of a stored matrix.
#[derive(Debug)]
pub(super) enum WeightForm {
    /// Stored as E4M3; kept, with these scales, one per row.
    Codes(Vec<f32>),
    /// Stored as floats; quantised to E4M3 with one scale per whole row, even if a rank has only some of its
    /// columns. The weights therefore do not depend on the number of ranks.
    Quantised,
    /// Stored as floats; rounded to BF16.
    Bf16,
}

/// A stored matrix \[rows, input\], and the ranks' parts of it.
#[derive(Debug)]
pub(super) struct StoredMatrix {
    pub(super) tensor: Tensor,
    pub(super) form: WeightForm,
    pub(super) parts: Vec<RankPart>,
}

impl StoredMatrix {
    /// Whether rows of both alternate in the ranks' matrices.
    pub(super) fn alternates_with(&self, other: &Self) -> bool {
        let gated = |source: &Self| {
            source.parts.first().filter(|part| matches!(part.place, Place::Gated(_))).map(|part| part.matrix)
        };
        gated(self).is_some() && gated(self) == gated(other)
    }
}

/// The rows and columns of a stored matrix that one rank needs.
#[derive(Debug)]
pub(super) struct RankPart {
    /// Index into the loaded ranks.
    pub(super) rank: usize,
    /// Index into [`LoadPlan::matrices`].
    pub(super) matrix: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    pub(super) place: Place,
}

/// Where the rows of a rank's part are in its matrix.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// From this row on.
    From(usize),
    /// Alternating with the other rows of a gated MLP.
    Gated(GatedRows),
}

impl RankPart {
    /// Divides some rows of the stored matrix that this part has into runs that are consecutive in the rank's
    /// matrix too. Returns each run, and its first row in the rank's matrix.
    pub(super) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        assert!(rows.start >= self.rows.start && rows.end <= self.rows.end, "{rows:?} of {:?}", self.rows);
        let (start, len, place) = (self.rows.start, self.rows.len(), self.place);
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let index = (next < rows.end).then(|| next - start)?;
            let (most, first) = match place {
                Place::From(first) => (len, first + index),
                Place::Gated(which) => (GatedRows::GROUP - index % GatedRows::GROUP, which.row(index, len)),
            };
            let run = next..rows.end.min(next + most);
            next = run.end;
            Some((run, first))
        })
    }
}

/// A norm's weights; every rank has all of them.
#[derive(Debug)]
pub(super) struct NormPlan {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
}

/// A layer's norms, and the indices of its matrices.
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

/// The load plan of a model.
#[derive(Debug)]
pub(super) struct LoadPlan {
    pub(super) matrices: Vec<MatrixPlan>,
    pub(super) sources: Vec<StoredMatrix>,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) final_norm: NormPlan,
    pub(super) embedding: usize,
    pub(super) head: HeadPlan,
}

/// The head of a model.
#[derive(Debug)]
pub(super) enum HeadPlan {
    /// The embedding is the LM head.
    Embedding,
    /// An LM head with weights of its own.
    Matrix(usize),
    /// A reward head \[width, hidden\] with a bias \[width\], in F32; every rank has all of it.
    Reward { weight: Vec<f32>, bias: Vec<f32> },
}

/// A stored module that is part of a matrix: its name, its outputs, and each rank's rows of them.
struct ModulePlan {
    name: &'static str,
    out: usize,
    rows: Vec<Range<usize>>,
    /// Which outputs of a gated MLP these are, if any.
    gated: Option<GatedRows>,
}

/// Input columns of a matrix.
struct Inputs<'a> {
    /// Columns of the stored matrix.
    all: usize,
    /// Columns that each loaded rank has.
    cols: &'a [Range<usize>],
}

struct LoadPlanner<'a> {
    /// Architecture of the whole model.
    config: &'a ModelConfig,
    /// The ranks to load.
    shards: &'a [Shard],
    precision: Precision,
    checkpoint: Checkpoint,
    matrices: Vec<MatrixPlan>,
    sources: Vec<StoredMatrix>,
    /// Dtype and name of the first float weight found in a layer.
    floats: Option<(Dtype, String)>,
}

impl LoadPlan {
    /// Plans the loading of some ranks' shards. Reads the headers and scales of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has a shape, dtype or value that is not supported.
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
        let embedding = planner.embedding()?;
        let head = planner.head()?;
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
        // Q, K, V, gate and up are divided by outputs; O and down are divided by inputs.
        let of_heads = |heads: Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let own_q = self.each(|shard| of_heads(shard.part(q_heads)));
        let own_kv = self.each(|shard| of_heads(shard.kv_heads(kv_heads)));
        let own_ffn = self.each(|shard| shard.part(ffn));
        let whole = self.each(|_| 0..hidden);
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let module =
            |name, out, rows: &[Range<usize>]| ModulePlan { name, out, rows: rows.to_vec(), gated: None };
        let qkv = [
            module("self_attn.q_proj", q, &own_q),
            module("self_attn.k_proj", kv, &own_kv),
            module("self_attn.v_proj", kv, &own_kv),
        ];
        let up_proj = module("mlp.up_proj", ffn, &own_ffn);
        let up: &[_] = match self.config.activation {
            Activation::SquaredRelu => &[up_proj],
            Activation::SwiGlu => &[
                ModulePlan { gated: Some(GatedRows::Gate), ..module("mlp.gate_proj", ffn, &own_ffn) },
                ModulePlan { gated: Some(GatedRows::Up), ..up_proj },
            ],
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

    /// Plans a matrix of one or more modules, whose outputs are concatenated or, of a gated MLP, alternate.
    fn linear(&mut self, base: &str, modules: &[ModulePlan], inputs: Inputs<'_>) -> Result<usize, LoadError> {
        let matrix = self.matrices.len();
        let mut input_scale: Option<f32> = None;
        let mut stored_fp8 = 0;
        let mut bf16: Option<bool> = None;
        let mut first = 0;
        for ModulePlan { name, out, rows, gated } in modules {
            let module = format!("{base}.{name}");
            let (tensor, form) = if self.is_fp8(&module)? {
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
                    "expected {:?} like `{}` in the same matrix, got {:?}; FP8 quantisation accepts both",
                    other.dtype, other.name, tensor.dtype
                );
                return Err(tensor.error(message));
            }
            bf16 = Some(is_bf16);
            let parts = rows.iter().zip(inputs.cols).enumerate().map(|(rank, (rows, cols))| {
                let (rows, cols) = (rows.clone(), cols.clone());
                RankPart { rank, matrix, rows, cols, place: gated.map_or(Place::From(first), Place::Gated) }
            });
            self.sources.push(StoredMatrix { tensor, form, parts: parts.collect() });
            first += rows[0].len();
        }
        let quant = match (self.precision, input_scale) {
            (Precision::None, _) => ActQuant::Bf16,
            // A static input scale needs one from every module; the largest holds for the merged input.
            (Precision::Fp8, Some(scale)) if stored_fp8 == modules.len() => ActQuant::Fp8Static(scale),
            (Precision::Fp8, _) => ActQuant::Fp8PerToken,
        };
        let bf16 = bf16.expect("a matrix has at least one module");
        self.matrices.push(MatrixPlan { out: first, input: inputs.cols[0].len(), bf16, quant });
        Ok(matrix)
    }

    /// Whether a module's weight is stored as E4M3. Where libraries read the configuration differently, the
    /// stored type decides.
    fn is_fp8(&self, module: &str) -> Result<bool, LoadError> {
        let format = self.config.scheme.stored_format(module);
        Ok(match format.map_err(|error| LoadError::file(self.checkpoint.dir(), error.to_string()))? {
            StoredFormat::Fp8 => true,
            StoredFormat::Float => false,
            StoredFormat::Either => {
                let dtype = self.checkpoint.dtype(&format!("{module}.weight"));
                dtype == Some(Dtype::F8_E4M3)
            }
        })
    }

    /// Takes a module with an E4M3 weight. Returns its input scale if activations are static.
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

    /// Takes a module with a float weight, to be quantised if `precision` asks for it. All layers must have
    /// the same dtype, otherwise the files are not of one model.
    fn stored_floats(&mut self, module: &str, shape: &[usize; 2]) -> Result<(Tensor, WeightForm), LoadError> {
        let tensor = self.checkpoint.take_shaped(&format!("{module}.weight"), shape)?;
        convert::float_width(&tensor)?;
        let (dtype, name) = self.floats.get_or_insert_with(|| (tensor.dtype, tensor.name.clone()));
        if *dtype != tensor.dtype {
            return Err(tensor.error(format!("expected {dtype:?} like `{name}`, got {:?}", tensor.dtype)));
        }
        let form = match self.precision {
            Precision::Fp8 => WeightForm::Quantised,
            Precision::None => WeightForm::Bf16,
        };
        Ok((tensor, form))
    }

    /// Plans the embedding. A checkpoint whose LM head shares its weights may have stored them as the head's.
    fn embedding(&mut self) -> Result<usize, LoadError> {
        let stored = self.checkpoint.has("model.embed_tokens.weight");
        let as_head = !stored && self.config.tied && self.checkpoint.has("lm_head.weight");
        self.table(if as_head { "lm_head" } else { "model.embed_tokens" }, HeadDtype::Bf16)
    }

    /// Plans an embedding or LM head. It has type `dtype` and BF16 inputs unless stored as E4M3.
    fn table(&mut self, module: &str, dtype: HeadDtype) -> Result<usize, LoadError> {
        let (vocab, input) = (self.config.vocab, self.config.hidden);
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
            let form = match dtype {
                HeadDtype::Bf16 => WeightForm::Bf16,
                HeadDtype::Fp8 => WeightForm::Quantised,
            };
            (form, ActQuant::Bf16)
        };
        Ok(self.add_table(tensor, form, quant))
    }

    /// Adds an embedding or LM head, divided by ids. If the last ranks have fewer ids than the others, their
    /// remaining rows are zero.
    fn add_table(&mut self, tensor: Tensor, form: WeightForm, quant: ActQuant) -> usize {
        let (vocab, input) = (self.config.vocab, self.config.hidden);
        let ids = self.each(|shard| shard.ids(vocab));
        let out = vocab.div_ceil(self.shards[0].ranks);
        let matrix = self.matrices.len();
        self.matrices.push(MatrixPlan { out, input, bf16: matches!(form, WeightForm::Bf16), quant });
        let parts = ids.into_iter().enumerate();
        let parts = parts
            .map(|(rank, rows)| RankPart { rank, matrix, rows, cols: 0..input, place: Place::From(0) })
            .collect();
        self.sources.push(StoredMatrix { tensor, form, parts });
        matrix
    }

    /// Plans an LM head that is the embedding, which was planned last. If it should be E4M3 and the embedding
    /// is BF16, the head is a second matrix: the embedding keeps the exact values of its rows.
    fn tied_head(&mut self) -> HeadPlan {
        let StoredMatrix { tensor, form, .. } = &self.sources[self.sources.len() - 1];
        match (form, self.config.head_dtype) {
            (WeightForm::Bf16, HeadDtype::Fp8) => {
                HeadPlan::Matrix(self.add_table(tensor.clone(), WeightForm::Quantised, ActQuant::Bf16))
            }
            _ => HeadPlan::Embedding,
        }
    }

    /// Plans the LM head or the reward head.
    fn head(&mut self) -> Result<HeadPlan, LoadError> {
        let Some(head) = &self.config.reward else {
            if !self.config.tied {
                return Ok(HeadPlan::Matrix(self.table("lm_head", self.config.head_dtype)?));
            }
            // Some exports store the tied LM head a second time.
            self.checkpoint.skip("lm_head.weight");
            return Ok(self.tied_head());
        };
        // NeMo stores the LM head that the reward model was trained from.
        self.checkpoint.skip("lm_head.weight");
        let shape = [head.width, self.config.hidden];
        let weight = convert::floats(&self.checkpoint.take_shaped(&head.weight(), &shape)?)?;
        let bias = match self.checkpoint.has(&head.bias()) {
            true => convert::floats(&self.checkpoint.take_shaped(&head.bias(), &[head.width])?)?,
            false => vec![0.0; head.width],
        };
        Ok(HeadPlan::Reward { weight, bias })
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

    /// A layer's KV cache scales, under any of the names that exporters use. Default: 1.
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
