//! The operations of a decoder, fused as its layers use them, and the devices that provide them.
//!
//! The CPU device is the reference and always available. The CUDA device has the same operations and rounds
//! at the same points, so that the two differ only by the order of sums.
//!
//! Buffers are allocated at start-up for the largest step and reused. An operation sets the number of valid
//! rows of its output. A row of the output depends only on the same row of the input, and the order of its
//! sums does not depend on the number of rows.

mod activation;
pub(crate) mod attention_tiles;
pub mod cpu;
#[cfg(feature = "kernels")]
pub mod cuda;
mod error;
mod floats;
pub mod fp8;
pub mod host;
mod layout;
pub(crate) mod product_tiles;
pub mod random_weights;
mod sample_row;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub use activation::{Activation, GatedRows, QuantisedActivation};
pub(crate) use attention_tiles::DECODE_ROWS;
pub use error::{DeviceError, PEER};
pub use floats::{FloatType, Floats, Message, upload_floats, upload_matrix};
pub use host::{HostMatrix, HostRows, MatrixData, MatrixShape};
pub use layout::Layout;
pub(crate) use layout::{PACKET_ROWS, ROW_SLICES, SPLIT_BLOCKS};
pub use random_weights::{MakeRandomMatrix, RandomWeights, upload_random};
pub use sample_row::{SHORTLIST, SampleRow};

impl DeviceError {
    /// Names the buffer that could not be allocated.
    pub(crate) fn at(self, buffer: &str) -> Self {
        Self { op: self.op, message: format!("{buffer}: {}", self.message) }
    }
}

/// Element type of the input of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActQuant {
    /// Rounded to BF16.
    Bf16,
    /// E4M3 with one scale per row: amax / 448 of that row, or 1 for a row of zeros.
    Fp8PerToken,
    /// E4M3 with this scale, from the checkpoint, for all rows. Values beyond ±448 × scale saturate.
    Fp8Static(f32),
}

/// LayerNorm1p subtracts the mean and multiplies by (1 + weight); RMSNorm does neither. Computed in F32.
///
/// Kinds cannot be compared: every use is a `match`, which a new kind does not pass unnoticed.
#[derive(Debug, Clone, Copy)]
pub enum NormKind {
    /// (x − mean) / sqrt(var + eps) × (1 + weight) + bias.
    LayerNorm1p,
    /// x / sqrt(mean(x²) + eps) × weight.
    RmsNorm,
}

impl NormKind {
    /// Whether the norm has a bias beside its weight.
    pub fn has_bias(self) -> bool {
        match self {
            Self::LayerNorm1p => true,
            Self::RmsNorm => false,
        }
    }

    /// The weight with which the norm does not scale.
    pub(crate) fn neutral_weight(self) -> f32 {
        match self {
            Self::LayerNorm1p => 0.0,
            Self::RmsNorm => 1.0,
        }
    }
}

/// The weights of one normalisation.
#[derive(Debug)]
pub struct Norm<D: Device> {
    /// The formula.
    pub kind: NormKind,
    /// \[1, hidden\], as stored in the checkpoint.
    pub weight: Floats<D>,
    /// \[1, hidden\], for LayerNorm1p.
    pub bias: Option<Floats<D>>,
    /// Added to the variance.
    pub eps: f32,
}

/// The weights of a reward head, which are never quantised.
#[derive(Debug)]
pub struct RewardWeights<D: Device> {
    /// \[width, hidden\].
    pub weight: Floats<D>,
    /// \[1, width\].
    pub bias: Floats<D>,
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// E4M3, with a scale per layer for K and one for V.
    Fp8,
    /// BF16 without scales.
    Bf16,
}

/// Attention heads of one rank. A QKV row is
/// \[q_heads × head_dim | kv_heads × head_dim | kv_heads × head_dim\].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; divides `q_heads`. Query head h reads KV head h / (q_heads / kv_heads).
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

/// Shape and element type of a paged KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Blocks of [`BLOCK_TOKENS`] positions. A block id addresses one block in every layer.
    pub blocks: usize,
    /// Heads of this rank.
    pub heads: HeadShape,
    /// Element type.
    pub dtype: KvDtype,
}

/// Positions per KV block.
pub const BLOCK_TOKENS: usize = 64;

/// Rotary embedding in the NeoX half-split: rotates the pairs (i, i + rotary_dim / 2) of the first
/// rotary_dim = 2 × `inv_freq.len()` elements of each head. The other elements stay as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Inverse frequency of each pair, after Llama 3 scaling.
    pub inv_freq: Vec<f32>,
}

/// The layer of the cache that an operation accesses, with its scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerKv {
    /// Layer index.
    pub layer: usize,
    /// K is stored as E4M3(k / k_scale). 1 if the checkpoint has no scale.
    pub k_scale: f32,
    /// V is stored as E4M3(v / v_scale). 1 if the checkpoint has no scale.
    pub v_scale: f32,
}

/// One rank's rows of the embedding, \[ids, hidden\].
#[derive(Debug)]
pub struct EmbeddingTable<'a, M> {
    /// The rows, packed as for a product.
    pub matrix: &'a M,
    /// The id of the first row.
    pub first: usize,
}

/// Constants of the attention of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionLayer<'a> {
    /// The rotary embedding.
    pub rope: &'a Rope,
    /// The layer of the cache, and its scales.
    pub kv: LayerKv,
    /// Element type of the output.
    pub quant: ActQuant,
}

/// One sequence's tokens in a step: rows `first..first + len`, at positions `position..position + len`.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The first row of the step.
    pub first: usize,
    /// The number of rows.
    pub len: usize,
    /// The position of the first row in its sequence.
    pub position: usize,
    /// Cache blocks of the positions from 0 on, at least up to `position + len`.
    pub blocks: Arc<[u32]>,
}

/// An input token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A known token.
    Id(u32),
    /// The token sampled last for a sequence, which may not have reached the host yet.
    Last {
        /// The sequence's [`SampleRow::slot`].
        slot: u32,
    },
}

/// The inputs of one forward pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInputs {
    /// One token per row.
    pub tokens: Vec<Token>,
    /// Segments in row order, without gaps.
    pub segments: Vec<Segment>,
    /// Rows of the captured graph that runs this step, at least as many as tokens; 0 without a graph. The
    /// rows after the tokens are padding.
    pub graph_rows: usize,
}

/// The input of sampling.
#[derive(Debug)]
pub enum SampleSource<'a, D: Device> {
    /// Logits \[rows, cols\], whose columns from `vocab` on are padding and never sampled.
    Logits {
        /// The logits.
        logits: &'a Floats<D>,
        /// Ids that the tokenizer knows, at most `cols`.
        vocab: usize,
    },
    /// The shortlists of all ranks side by side, \[rows, ranks × 2 × SHORTLIST\]; see [`Device::shortlist`].
    /// Every row is short, and its bias, penalties and masks have been applied.
    Shortlists(&'a Floats<D>),
}

/// The capacity of a [`Device::Step`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCapacity {
    /// Rows per step.
    pub rows: usize,
    /// Tokens per sequence.
    pub max_positions: usize,
    /// Sequences whose last sampled token is kept.
    pub slots: usize,
    /// Calls of [`Device::sample`] whose results have not been taken.
    pub samples: usize,
    /// Rows per call of [`Device::sample`].
    pub sampled_rows: usize,
    /// Logits per sampled row.
    pub vocab: usize,
}

/// The result of sampling one row.
#[derive(Debug, Clone, PartialEq)]
pub enum SampleResult {
    /// A token, with its log-probability under the raw logits if that was asked for.
    Token(u32, Option<RowLogprob>),
    /// The row holds NaN or infinity, or every token is masked.
    NonFinite,
}

/// A token's log-probability under a row of raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLogprob {
    /// Natural logarithm.
    pub logprob: f32,
    /// The token's place among all tokens, from 1 on, in the order of `top`.
    pub rank: u32,
    /// The most probable tokens, most probable first; ties by lower id.
    pub top: Vec<(u32, f32)>,
}

/// Captured operations. A call replays them over the current step.
pub type Graph = Box<dyn Fn() -> Result<(), DeviceError> + Send>;

/// A device: holds weights, activations and the KV cache, and runs the operations over them.
///
/// Buffers belong to the device that made them. Shapes are checked by assertions, since a wrong one is a bug.
/// A device may run operations asynchronously. Then a later call returns their errors, at the latest one that
/// waits: [`Device::read`], [`Device::take_sampled`] or [`Device::score`].
pub trait Device: Debug + Sized + Send + Sync + 'static {
    /// A weight matrix \[out, in\] in the layout that products read.
    type Matrix: Debug + Send + Sync;
    /// A weight matrix while its rows are written.
    type MatrixBuilder: Debug + Send + Sync;
    /// The memory of [`Floats`].
    type FloatBuffer: Debug + Send + Sync;
    /// Quantised inputs of matrix products \[rows, cols\], with their scales.
    type Acts: Debug + Send;
    /// A paged KV cache of all layers.
    type Cache: Debug + Send;
    /// The inputs of the current step, the token sampled last for each slot, and results of sampling that
    /// have not been taken.
    type Step: Debug + Send;

    /// The device's memory needs, and whether it captures operations.
    const LAYOUT: Layout;

    /// The same hardware with scratch memory of its own, for a second model: operations of both run one after
    /// the other. Its products are deterministic.
    fn sibling(&self) -> Self;

    // Weights.

    /// Allocates a matrix of zeros, to be written row by row.
    fn begin_matrix(&self, shape: MatrixShape) -> Result<Self::MatrixBuilder, DeviceError>;
    /// Copies rows from row `first` on. Each row is written at most once, in any order and from any thread.
    fn write_rows(
        &self,
        builder: &Self::MatrixBuilder,
        first: usize,
        rows: HostRows<'_>,
    ) -> Result<(), DeviceError>;
    /// Completes a matrix. Rows that were not written are zeros.
    fn finish_matrix(&self, builder: Self::MatrixBuilder) -> Result<Self::Matrix, DeviceError>;

    // Buffers.

    /// Allocates a buffer of at most `rows` rows of elements of a type.
    fn floats_of(&self, float_type: FloatType, rows: usize, cols: usize)
    -> Result<Floats<Self>, DeviceError>;
    /// Allocates a buffer of at most `rows` rows in F32.
    fn floats(&self, rows: usize, cols: usize) -> Result<Floats<Self>, DeviceError> {
        self.floats_of(FloatType::F32, rows, cols)
    }
    /// Allocates inputs of products of at most `rows` rows.
    fn acts(&self, rows: usize, cols: usize) -> Result<Self::Acts, DeviceError>;
    /// Allocates a cache of zeros.
    fn cache(&self, spec: CacheSpec) -> Result<Self::Cache, DeviceError>;
    /// Allocates the inputs of steps and the results of sampling.
    fn step(&self, capacity: StepCapacity) -> Result<Self::Step, DeviceError>;
    /// Copies the valid rows to the host, row-major, as F32.
    fn read(&self, floats: &Floats<Self>) -> Result<Vec<f32>, DeviceError>;
    /// Overwrites the valid rows from the host, rounded to the buffer's type. `host` holds whole rows and
    /// sets their number.
    fn write(&self, host: &[f32], floats: &mut Floats<Self>) -> Result<(), DeviceError>;

    // Steps.

    /// Makes `inputs` the current step. Returns whether operations that were captured over a step with the
    /// same `graph_rows` can compute it; `false` without a graph, or if the step needs other operations.
    fn begin_step(&self, inputs: &StepInputs, step: &mut Self::Step) -> Result<bool, DeviceError>;
    /// Captures operations over the current step instead of running them. They must have run once before.
    /// Their buffers must live as long as the graph. Only for devices that capture.
    fn capture(&self, operations: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError>;

    /// Runs the operations of batch `number`, 0 or 1, after all operations so far, beside those that follow
    /// until [`Device::join`] of that batch. Operations that run beside others keep their order. A device may
    /// run them in order with all others.
    fn beside(
        &self,
        _number: usize,
        operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        operations()
    }
    /// Lets operations that follow start after those of batch `number` that run beside others.
    fn join(&self, _number: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    // Layers.

    // Residual streams, logits and the weights of norms and reward heads are F32. The results of products
    // that other operations of a layer read are of either type.

    /// out\[r\] = table\[token\[r\]\]; 0 for tokens that the table does not have.
    fn embed(
        &self,
        step: &Self::Step,
        table: EmbeddingTable<'_, Self::Matrix>,
        out: &mut Floats<Self>,
    ) -> Result<(), DeviceError>;
    /// residual += delta, if there is one; out = quant(norm(residual)).
    fn norm(
        &self,
        residual: &mut Floats<Self>,
        delta: Option<&Floats<Self>>,
        norm: &Norm<Self>,
        quant: ActQuant,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// out = x · wᵀ, scaled: \[rows, in\] × \[out, in\] → \[rows, out\], accumulated in F32 and rounded to
    /// the type of `out`.
    fn linear(&self, x: &Self::Acts, w: &Self::Matrix, out: &mut Floats<Self>) -> Result<(), DeviceError>;
    /// Rotates Q and K of each row by its position, in F32, and writes K and V to the cache. Then computes
    /// the causal attention of each row over its sequence's cached positions; K and V are read from the cache
    /// only. out = quant(softmax(q·kᵀ / sqrt(head_dim)) · v), \[rows, q_heads × head_dim\].
    fn attention(
        &self,
        step: &Self::Step,
        layer: AttentionLayer<'_>,
        qkv: &mut Floats<Self>,
        cache: &mut Self::Cache,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// out = quant(activation(h)).
    fn activation(
        &self,
        kind: Activation,
        h: &Floats<Self>,
        quant: ActQuant,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// The first product of an MLP and its activation: out = quant(activation(x · wᵀ)), with the bits of
    /// [`Device::linear`] and [`Device::activation`]. `h` has memory for the product; what it holds
    /// afterwards is up to the device.
    fn linear_activation(
        &self,
        x: &Self::Acts,
        w: &Self::Matrix,
        activation: QuantisedActivation,
        h: &mut Floats<Self>,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError> {
        self.linear(x, w, h)?;
        self.activation(activation.kind, h, activation.quant, out)
    }
    /// x = x + each of the parts, element by element and in order, in F32; the sum is rounded to the type of
    /// `x`. Parts have at least the elements of `x`, and all have the same type.
    fn add(&self, parts: &[Floats<Self>], x: &mut Floats<Self>) -> Result<(), DeviceError>;
    /// out\[first + i\] = from\[rows\[i\]\], F32: the rows of the residual stream whose logits are wanted,
    /// the rows of logits that are sampled next, or the residual stream of a second batch behind that of the
    /// first. Rows before `first` are kept; later ones are not valid afterwards.
    fn select(
        &self,
        from: &Floats<Self>,
        rows: &[u32],
        out: &mut Floats<Self>,
        first: usize,
    ) -> Result<(), DeviceError>;

    /// out = norm(hidden) · weightᵀ + bias, \[rows, width\], all in F32. `hidden` are selected rows.
    fn reward_head(
        &self,
        hidden: &Floats<Self>,
        norm: &Norm<Self>,
        head: &RewardWeights<Self>,
        out: &mut Floats<Self>,
    ) -> Result<(), DeviceError>;

    // Sampling.

    /// Samples one token from each of the first `rows.len()` rows. Need not wait: the next step may take the
    /// tokens as [`Token::Last`].
    fn sample(
        &self,
        source: SampleSource<'_, Self>,
        rows: &[SampleRow<'_>],
        step: &mut Self::Step,
    ) -> Result<(), DeviceError>;
    /// The [`SHORTLIST`] largest logits of each row of one rank, after bias, penalties and masks, in the
    /// order of ids. Column i of `logits` is id `ids.start + i`.
    ///
    /// A row of `out` \[rows, 2 × SHORTLIST\] holds the logits, padded with -∞, and then their ids as
    /// numbers. The row begins with NaN if the logits hold NaN or infinity.
    fn shortlist(
        &self,
        logits: &Floats<Self>,
        ids: Range<u32>,
        rows: &[SampleRow<'_>],
        out: &mut Floats<Self>,
    ) -> Result<(), DeviceError>;
    /// Waits for the earliest call of [`Device::sample`] whose results have not been taken, but not for work
    /// enqueued after it.
    fn take_sampled(&self, step: &mut Self::Step) -> Result<Vec<SampleResult>, DeviceError>;
    /// Whether all work enqueued so far has ended, as far as can be said without waiting.
    fn is_idle(&self) -> Result<bool, DeviceError>;
    /// Log-probabilities of `targets[r]` under row r of the logits, with `top` alternatives. `None` for a row
    /// with NaN or infinity.
    fn score(
        &self,
        logits: &Floats<Self>,
        vocab: usize,
        targets: &[u32],
        top: u8,
    ) -> Result<Vec<Option<RowLogprob>>, DeviceError>;
}
