//! The operations a decoder needs, fused as its layers use them, and the devices that provide them.
//!
//! The CPU device is the reference and the embedded default; a CUDA device has the same operations with the same
//! quantisation points, so that the two differ by summation order alone.
//!
//! Buffers are allocated at start-up for the largest step and reused; an operation sets the row count of what it
//! writes from what it reads. For every operation, a row of the output depends on the same row of the input only,
//! in an order of summation that does not depend on how many rows there are.

pub mod cpu;
#[cfg(feature = "kernels")]
pub mod cuda;
pub mod fp8;
pub mod host;
mod layout;
pub mod random_weights;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub use host::{HostMatrix, HostRows, MatrixData};
pub use layout::{Layout, SPLIT_BLOCKS};
pub use random_weights::RandomWeights;

/// A failure of the device itself: ours to fix, fatal to the process.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{op}: {message}")]
pub struct DeviceError {
    /// The operation or kernel.
    pub op: &'static str,
    /// What happened.
    pub message: String,
}

/// How the input of a matrix product is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActQuant {
    /// Rounded to BF16.
    Bf16,
    /// E4M3 with one scale per row, amax / 448 of that row (1 for a row of zeros).
    Fp8PerToken,
    /// E4M3 with this scale for all rows, from the checkpoint; values beyond ±448 × scale saturate.
    Fp8Static(f32),
}

/// LayerNorm1p subtracts the mean and multiplies by (1 + weight); RMSNorm does neither. Computed in F32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// (x − mean) / sqrt(var + eps) × (1 + weight) + bias.
    LayerNorm1p,
    /// x / sqrt(mean(x²) + eps) × weight.
    RmsNorm,
}

/// The weights of one normalisation.
#[derive(Debug)]
pub struct Norm<V> {
    /// Which formula.
    pub kind: NormKind,
    /// As stored in the checkpoint, \[hidden\].
    pub weight: V,
    /// Present for LayerNorm1p, \[hidden\].
    pub bias: Option<V>,
    /// Added to the variance.
    pub eps: f32,
}

/// The nonlinearity between the two halves of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// relu(x)², input \[rows, ffn\].
    SquaredRelu,
    /// silu(gate) × up, input \[rows, 2 × ffn\], gate first.
    SwiGlu,
}

/// Storage of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// E4M3 with a scale per layer for K and for V.
    Fp8,
    /// BF16, no scale.
    Bf16,
}

/// Heads as one rank sees them. A QKV row is \[q_heads × head_dim | kv_heads × head_dim | kv_heads × head_dim\].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; divides `q_heads`; query head h reads KV head h / (q_heads / kv_heads).
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

/// Shape and storage of a paged KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Blocks of [`BLOCK_TOKENS`] positions, shared by all layers: one id addresses a block in each.
    pub blocks: usize,
    /// Heads.
    pub heads: HeadShape,
    /// Element type.
    pub dtype: KvDtype,
}

/// Positions per KV block.
pub const BLOCK_TOKENS: usize = 64;

/// Inverse frequencies of the rotary embedding: pairs (i, i + rotary_dim / 2) of the first `2 × inv_freq.len()`
/// elements of each head turn (the NeoX half-split); the rest pass through.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// One per pair, Llama 3 scaling already applied.
    pub inv_freq: Vec<f32>,
}

/// Which of the cache's values a step writes and reads, for one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerKv {
    /// Layer index.
    pub layer: usize,
    /// K is stored as E4M3(k / k_scale); 1 where the checkpoint has none.
    pub k_scale: f32,
    /// As `k_scale`, for V.
    pub v_scale: f32,
}

/// Embeddings of the ids from `first` on, \[ids, hidden\].
#[derive(Debug)]
pub struct Table<'a, M> {
    /// Packed as for a product.
    pub matrix: &'a M,
    /// Of the first row.
    pub first: usize,
}

/// One layer's part of a cache, to read.
#[derive(Debug)]
pub struct Cached<'a, C> {
    /// Which layer, and its scales.
    pub kv: LayerKv,
    /// The cache of all layers.
    pub cache: &'a C,
}

// By hand: a derive would ask that the cache itself be copied.
impl<C> Clone for Cached<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Cached<'_, C> {}

/// One sequence's tokens in a step: rows `first..first + len` of the step, at positions `position..position + len`.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// First row.
    pub first: usize,
    /// Rows.
    pub len: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// Cache blocks of positions 0.., enough for `position + len`.
    pub blocks: Arc<[u32]>,
}

/// A token to feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// This one.
    Id(u32),
    /// The one that a sequence drew last, which only the device may know yet.
    Last {
        /// The sequence's [`SampleRow::slot`].
        slot: u32,
    },
}

/// The inputs of one forward pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInputs {
    /// One per row.
    pub tokens: Vec<Token>,
    /// In row order, without gaps.
    pub segments: Vec<Segment>,
    /// Rows that the step's operations do, if more than there are tokens: those of recorded work, which was recorded
    /// for so many. What the rows beyond the tokens compute is nobody's.
    pub graph_rows: usize,
}

/// One row of logits to draw from.
#[derive(Debug, Clone)]
pub struct SampleRow<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// (id, added to its logit).
    pub logit_bias: &'a [(u32, f32)],
    /// Masked ids.
    pub barred: &'a [u32],
    /// Tokens of the prompt, for the repetition penalty; any order, repeats allowed.
    pub prompt: &'a [u32],
    /// (id, occurrences) of the tokens generated so far.
    pub output: &'a [(u32, u32)],
    /// With `position`, the key of the draw.
    pub seed: u64,
    /// The position that the drawn token will have.
    pub position: u32,
    /// Alternatives to report; `None`: no log-probability at all.
    pub logprobs: Option<u8>,
    /// Where the token is kept for [`Token::Last`]; no two rows of a sample have the same.
    pub slot: u32,
}

/// Candidates that a rank of a group names for each row: no row that is drawn from such lists may have a larger top-k.
pub const SHORTLIST: usize = 64;

impl SampleRow<'_> {
    /// Whether the largest [`SHORTLIST`] logits of each rank are all that the draw depends on.
    pub fn is_short(&self) -> bool {
        let few = self.temperature == 0.0 || (1..=SHORTLIST as u32).contains(&self.top_k);
        few && self.logprobs.is_none()
    }
}

/// How much may be drawn before it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawRoom {
    /// Calls of [`Device::sample`] and [`Device::pick`].
    pub samples: usize,
    /// Rows of each.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
}

/// The token drawn from one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Draw {
    /// A token, and its log-probability under the raw logits where asked for.
    Token(u32, Option<RowLogprob>),
    /// The row holds NaN or infinity; nothing can be drawn from it.
    NonFinite,
}

/// A token's log-probability under a row of raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLogprob {
    /// Natural logarithm.
    pub logprob: f32,
    /// The most probable tokens, most probable first, lowest id first on ties.
    pub top: Vec<(u32, f32)>,
}

/// A device: where weights, activations and the KV cache live, and the operations over them.
///
/// All buffers belong to the device that made them. Shapes are checked by assertion: a wrong one is a bug of ours.
pub trait Device: Send + Sync + 'static {
    /// A weight matrix \[out, in\] in whatever layout its products like best.
    type Matrix: Debug + Send + Sync;
    /// A matrix whose rows are on their way.
    type Filling: Debug + Send + Sync;
    /// A vector of F32.
    type Vector: Debug + Send + Sync;
    /// Floats \[rows, cols\]: the residual stream and the outputs of products. `rows` changes from step to step.
    type Floats: Debug + Send;
    /// Quantised inputs of matrix products \[rows, cols\], with their scales.
    type Acts: Debug + Send;
    /// A paged KV cache for all layers.
    type Cache: Debug + Send;
    /// The inputs of the current step.
    type Step: Debug + Send;
    /// What sequences drew last, and what was drawn and not asked for yet.
    type Sampled: Debug + Send;
    /// Operations recorded once, to be repeated over the inputs of another step.
    type Recording: Debug + Send;

    /// How much memory things take.
    const LAYOUT: Layout;
    /// Whether operations can be recorded, which is worth it where to call one costs time.
    const CAPTURES: bool;

    /// Copies a matrix to the device.
    fn matrix(&self, host: HostMatrix<'_>) -> Result<Self::Matrix, DeviceError>;
    /// Room for a matrix \[out, in\] of BF16 or E4M3, whose rows come piece by piece. Rows that never come are zeros.
    fn filling(&self, out: usize, input: usize, bf16: bool) -> Result<Self::Filling, DeviceError>;
    /// Copies rows from `first` on, each row once and in any order, from any thread.
    fn fill(&self, filling: &Self::Filling, first: usize, rows: HostRows<'_>) -> Result<(), DeviceError>;
    /// The matrix, all of whose rows have come.
    fn filled(&self, filling: Self::Filling) -> Result<Self::Matrix, DeviceError>;
    /// Makes a matrix of random weights; on the host, if the device has no way of its own.
    fn random_weights(&self, noise: &RandomWeights<'_>) -> Result<Self::Matrix, DeviceError> {
        let (out, input, codes) = (noise.out, noise.input, noise.codes());
        match noise.bf16 {
            true => {
                let halves = noise.halves(&codes);
                self.matrix(HostMatrix { out, input, data: MatrixData::Bf16(&halves) })
            }
            false => {
                let scales = vec![noise.scale; out];
                self.matrix(HostMatrix {
                    out,
                    input,
                    data: MatrixData::Fp8 { codes: &codes, scales: &scales },
                })
            }
        }
    }
    /// Copies a vector to the device.
    fn vector(&self, host: &[f32]) -> Result<Self::Vector, DeviceError>;
    /// A buffer for at most `rows` rows.
    fn floats(&self, rows: usize, cols: usize) -> Result<Self::Floats, DeviceError>;
    /// A buffer for at most `rows` rows.
    fn acts(&self, rows: usize, cols: usize) -> Result<Self::Acts, DeviceError>;
    /// A cache of zeros.
    fn cache(&self, spec: CacheSpec) -> Result<Self::Cache, DeviceError>;
    /// Room for a step of at most `rows` rows, of sequences of at most `max_positions`.
    fn step(&self, rows: usize, max_positions: usize) -> Result<Self::Step, DeviceError>;

    /// Room for what `slots` sequences draw.
    fn draws(&self, slots: usize, room: DrawRoom) -> Result<Self::Sampled, DeviceError>;

    /// Makes `inputs` the current step.
    fn begin(&self, inputs: &StepInputs, step: &mut Self::Step) -> Result<(), DeviceError>;
    /// Records operations over the current step, which must have been done once before, instead of doing them. Only
    /// where the device records.
    fn record(
        &self,
        operations: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Self::Recording, DeviceError>;
    /// Does what was recorded over the current step, begun with as many `graph_rows` as when it was recorded.
    /// `false` if the step cannot be done so, and nothing was.
    fn repeat(&self, recording: &Self::Recording, step: &Self::Step) -> Result<bool, DeviceError>;
    /// Says how many rows of a buffer a repeated operation has written.
    fn written(&self, floats: &mut Self::Floats, rows: usize);
    /// out\[r\] = table\[token\[r\]\], in F32; 0 for tokens that the table does not have.
    fn embed(
        &self,
        step: &Self::Step,
        table: Table<'_, Self::Matrix>,
        draws: &Self::Sampled,
        out: &mut Self::Floats,
    ) -> Result<(), DeviceError>;
    /// residual += delta (if any); out = quant(norm(residual)).
    fn norm(
        &self,
        residual: &mut Self::Floats,
        delta: Option<&Self::Floats>,
        norm: &Norm<Self::Vector>,
        quant: ActQuant,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// out = x · wᵀ, scaled: \[rows, in\] × \[out, in\] → \[rows, out\]; F32 accumulation.
    fn linear(&self, x: &Self::Acts, w: &Self::Matrix, out: &mut Self::Floats) -> Result<(), DeviceError>;
    /// Turns Q and K of each row by its position and writes K and V into the cache.
    fn rope(
        &self,
        step: &Self::Step,
        rope: &Rope,
        kv: LayerKv,
        qkv: &mut Self::Floats,
        cache: &mut Self::Cache,
    ) -> Result<(), DeviceError>;
    /// Causal attention of each row over its sequence's cached positions; reads K and V from the cache only.
    /// out = quant(softmax(q·kᵀ / sqrt(head_dim)) · v), \[rows, q_heads × head_dim\].
    fn attention(
        &self,
        step: &Self::Step,
        qkv: &Self::Floats,
        cached: Cached<'_, Self::Cache>,
        quant: ActQuant,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// out = quant(activation(h)).
    fn activation(
        &self,
        kind: Activation,
        h: &Self::Floats,
        quant: ActQuant,
        out: &mut Self::Acts,
    ) -> Result<(), DeviceError>;
    /// residual\[rows\] → out: the rows whose logits are wanted, after the last layer.
    fn select(
        &self,
        residual: &Self::Floats,
        rows: &[u32],
        out: &mut Self::Floats,
    ) -> Result<(), DeviceError>;
    /// Draws one token from each of the first `rows.len()` rows of logits; `vocab` is the number of ids that a
    /// tokenizer knows, and padding beyond it is never drawn. Need not wait: the next step may feed the tokens.
    fn sample(
        &self,
        logits: &Self::Floats,
        vocab: usize,
        rows: &[SampleRow<'_>],
        draws: &mut Self::Sampled,
    ) -> Result<(), DeviceError>;
    /// The largest of each row of a rank's logits, which are those of `ids`, after bias, penalties and masks, in the order
    /// of ids: `out` \[rows, 2 × SHORTLIST\] gets them, -∞ where there are fewer, and then their ids as numbers. A row
    /// that holds NaN or infinity begins with NaN.
    fn shortlist(
        &self,
        logits: &Self::Floats,
        ids: Range<u32>,
        rows: &[SampleRow<'_>],
        out: &mut Self::Floats,
    ) -> Result<(), DeviceError>;
    /// As [`Device::sample`], from the shortlists of all ranks, one after the other; every row is short.
    fn pick(
        &self,
        shortlists: &Self::Floats,
        rows: &[SampleRow<'_>],
        draws: &mut Self::Sampled,
    ) -> Result<(), DeviceError>;
    /// Waits for the earliest sample that has not been asked for, and for nothing that was enqueued after it.
    fn take_sampled(&self, draws: &mut Self::Sampled) -> Result<Vec<Draw>, DeviceError>;
    /// Scores `targets[r]` under row r of the logits, with `top` alternatives. `None` for a row with NaN or
    /// infinity.
    fn score(
        &self,
        logits: &Self::Floats,
        vocab: usize,
        targets: &[u32],
        top: u8,
    ) -> Result<Vec<Option<RowLogprob>>, DeviceError>;
    /// x = x + each of the parts, element by element and in their order; the parts have as many elements at least.
    fn add(&self, parts: &[Self::Floats], x: &mut Self::Floats) -> Result<(), DeviceError>;
    /// Valid rows of a buffer.
    fn rows(&self, floats: &Self::Floats) -> usize;
    /// Elements per row of a buffer.
    fn cols(&self, floats: &Self::Floats) -> usize;
    /// Copies the valid rows to the host, row-major.
    fn read(&self, floats: &Self::Floats) -> Result<Vec<f32>, DeviceError>;
    /// Overwrites the valid rows from the host; `host.len()` must be a multiple of the columns and sets the rows.
    fn write(&self, host: &[f32], floats: &mut Self::Floats) -> Result<(), DeviceError>;
}
