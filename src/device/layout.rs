//! Constants of the memory that each device needs. The memory plan also uses those of a device that is not
//! part of this build or this machine. Each device asserts at compile time that its own constants agree.

use super::FloatType;

/// Memory that a device needs in addition to the model's sizes, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Output features of a matrix are padded to a multiple of this.
    pub outputs: usize,
    /// Input features of a matrix are padded to a multiple of this: of E4M3, and of BF16.
    pub inputs: [usize; 2],
    /// The number of E4M3 scales is padded to a multiple of this.
    pub scales: usize,
    /// Elements of a cached head are padded to a multiple of this.
    pub head_dim: usize,
    /// KV blocks that the device allocates in addition to those of sequences.
    pub spare_blocks: usize,
    /// Bytes of a BF16 element of [`Floats`](super::Floats).
    pub bf16: usize,
    /// Rows and elements of a row of [`Device::Acts`](super::Device::Acts) are padded to multiples of these.
    pub acts: [usize; 2],
    /// Bytes per element of `Acts`.
    pub act_bytes: usize,
    /// Bytes per element of the largest `Acts`, allocated once.
    pub act_stage: usize,
    /// Scratch of products, whatever the matrices.
    pub product_scratch: usize,
    /// Scratch of products per tile of `outputs` output features of the widest matrix.
    pub product_counter: usize,
    /// Scratch of attention per element of its output, for each row and for each [`SPLIT_BLOCKS`] cache
    /// blocks.
    pub attention_scratch: usize,
    /// Scratch of the rotary embedding per pair of elements of a head.
    pub rope_pair: usize,
    /// Scratch of the rotary embedding per row and element of its query heads.
    pub rope_query: usize,
    /// Tables of a step: in all, per row, per row and [`SPLIT_BLOCKS`] blocks of its context, and per row and
    /// block of its context.
    pub step: [usize; 4],
    /// Scratch for the indices of selected rows, per row of a step.
    pub select_row: usize,
    /// Sampling: bytes per row of a call.
    pub sample_row: usize,
    /// Sampling: bytes per row of each call whose results have not been taken.
    pub sample_result: usize,
    /// Sampling: bytes per row and logit.
    pub sample_logit: usize,
    /// Sampling: bytes per row and 32 logits.
    pub sample_word: usize,
    /// A rank's mailbox.
    pub mailbox: usize,
    /// Copies of BF16 messages of up to [`PACKET_ROWS`] rows that a rank has room for, for each rank.
    pub packet_sets: usize,
    /// Workspace of the library for products that need not be deterministic, beside room for the largest
    /// matrix; 0 for a device without a library.
    pub library_workspace: usize,
    /// Launches of a decoder layer in a captured graph; 0 for a device that does not capture.
    pub graph_launches: usize,
}

/// KV blocks that attention computes as one split.
pub(crate) const SPLIT_BLOCKS: usize = 4;

/// Rows of the largest sum between ranks that goes by packets.
pub(crate) const PACKET_ROWS: usize = 16;
/// Blocks of a cluster that computes a row of such a sum: `SLICES` of `kernels/row_slices.cuh`.
pub(crate) const ROW_SLICES: usize = 4;

impl Layout {
    /// Whether the device captures operations, which pays off if a launch is slow.
    pub(crate) fn captures(&self) -> bool {
        self.graph_launches > 0
    }

    /// Bytes of an element of [`Floats`](super::Floats).
    pub(crate) fn float_bytes(&self, float_type: FloatType) -> usize {
        match float_type {
            FloatType::F32 => 4,
            FloatType::Bf16 => self.bf16,
        }
    }

    /// The CPU device.
    pub const CPU: Self = Self {
        outputs: 32,
        inputs: [2, 2],
        scales: 32,
        head_dim: 1,
        spare_blocks: 0,
        // Kept as F32 values, which products and attention read.
        bf16: 4,
        acts: [1, 1],
        // A BF16 bit pattern and the same value as F32.
        act_bytes: 2 + 4,
        // F32 rows of attention before they are quantised.
        act_stage: 4,
        product_scratch: 0,
        product_counter: 0,
        attention_scratch: 0,
        rope_pair: 0,
        rope_query: 0,
        // Per row: its position, its cache block and a tile of attention.
        step: [0, 4 + 4 + 24, 0, 0],
        select_row: 0,
        sample_row: 0,
        sample_result: 0,
        sample_logit: 0,
        sample_word: 0,
        mailbox: 0,
        packet_sets: 0,
        library_workspace: 0,
        graph_launches: 0,
    };

    /// The CUDA device.
    pub const CUDA: Self = Self {
        outputs: 128,
        // A chunk is 128 bytes of a row.
        inputs: [128, 64],
        scales: 1,
        head_dim: 64,
        // The block of padding rows.
        spare_blocks: 1,
        bf16: 2,
        acts: [8, 128],
        act_bytes: 2,
        act_stage: 0,
        // Two tiles of F32 sums for each of 132 blocks.
        product_scratch: 2 * 132 * 128 * 256 * 4,
        product_counter: 4,
        attention_scratch: 4,
        rope_pair: 4,
        rope_query: 4,
        // In all: two words. Per row: four words and two prefill items. Per split: a decode item. Per block:
        // its id.
        step: [8, 4 * (4 + 6 + 6), 24, 4],
        select_row: 4,
        // Parameters, 8,192 words of lists, and a result.
        sample_row: 96 + 4 * 8192 + 180,
        sample_result: 180,
        sample_logit: 4,
        sample_word: 4,
        mailbox: 96,
        // One to write to, one to read and one to empty.
        packet_sets: 3,
        library_workspace: 64 << 20,
        // Two reductions with norm, four products, rope, three of attention, activation.
        graph_launches: 11,
    };
}
