//! How much memory a device takes for what it is given: the arithmetic of the memory plan, which has to know a device
//! that need not be there, nor be built. Each device asserts that its own constants are these.

/// What a device adds to what it is given. Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Output features of a matrix are padded to a multiple of this.
    pub outputs: usize,
    /// Input features of a matrix of E4M3, and of one of BF16, are padded to a multiple of this.
    pub inputs: [usize; 2],
    /// The scales of E4M3 are padded to a multiple of this.
    pub scales: usize,
    /// Elements of a cached head are padded to a multiple of this.
    pub head_dim: usize,
    /// KV blocks that nobody leases.
    pub spare_blocks: usize,
    /// An element of [`Device::Acts`](super::Device::Acts).
    pub act_bytes: usize,
    /// For each element of the largest `Acts`, once.
    pub act_stage: usize,
    /// Rows of a product for which its matrix is read once, where products are deterministic.
    pub pass_rows: usize,
    /// Scratch for each output feature of the widest matrix, padded, and for `product_tiles` tiles of such features more.
    pub product_scratch: usize,
    /// Tiles of output features.
    pub product_tiles: usize,
    /// Scratch for each tile of output features of the widest matrix.
    pub product_counter: usize,
    /// Scratch for each element of attention's output, per row and per four cache blocks.
    pub attention_scratch: usize,
    /// Scratch for a pair of an element of a head.
    pub rope_pair: usize,
    /// A step's tables: as such, for each row, for each row and [`SPLIT_BLOCKS`] blocks of its context, and for each row
    /// and block of it.
    pub step: [usize; 4],
    /// For each row whose logits may be drawn from at a time.
    pub draw_row: usize,
    /// For each of these rows, and each time that they may be drawn from before the results are asked for.
    pub draw_result: usize,
    /// For each logit of these rows.
    pub draw_logit: usize,
    /// For each 32 logits of these rows.
    pub draw_logits: usize,
    /// A rank's end of a group.
    pub mailbox: usize,
    /// Where products of many rows need not be deterministic, beside a copy of the largest matrix; 0 where they always are.
    pub large_products: usize,
    /// Launches of a decoder layer in a recorded step; 0 where steps are not recorded.
    pub recorded_launches: usize,
}

/// KV blocks that attention does as one split.
pub const SPLIT_BLOCKS: usize = 4;

impl Layout {
    /// The CPU device.
    pub const CPU: Self = Self {
        outputs: 32,
        inputs: [2, 2],
        scales: 32,
        head_dim: 1,
        spare_blocks: 0,
        // A bit pattern and a float.
        act_bytes: 2 + 4,
        // What attention stages before it quantises.
        act_stage: 4,
        pass_rows: usize::MAX,
        product_scratch: 0,
        product_tiles: 0,
        product_counter: 0,
        attention_scratch: 0,
        rope_pair: 0,
        // A position, a place and a tile.
        step: [0, 4 + 4 + 24, 0, 0],
        draw_row: 0,
        draw_result: 0,
        draw_logit: 0,
        draw_logits: 0,
        mailbox: 0,
        large_products: 0,
        recorded_launches: 0,
    };

    /// The CUDA device.
    pub const CUDA: Self = Self {
        outputs: 128,
        // Rows are cut into pieces of 32 bytes.
        inputs: [32, 16],
        scales: 1,
        head_dim: 64,
        // That of rows that are nobody's.
        spare_blocks: 1,
        act_bytes: 2,
        act_stage: 0,
        pass_rows: 128,
        // A sum of F32 for each of these rows.
        product_scratch: 4 * 128,
        product_tiles: 264,
        product_counter: 4,
        attention_scratch: 4,
        rope_pair: 4,
        // Two words; of a row four words, an item of prefill and as many again for groups of heads, and its number in
        // a selection; an item of decode; a block's id.
        step: [8, 4 * (4 + 6 + 6 + 1), 24, 4],
        // Parameters, and 8,192 words of lists; a result.
        draw_row: 84 + 4 * 8192 + 176,
        draw_result: 176,
        draw_logit: 4,
        draw_logits: 4,
        mailbox: 80,
        // What cuBLASLt works in.
        large_products: 64 << 20,
        // Two reductions with norms, four products, rope, attention in three, activation.
        recorded_launches: 11,
    };
}
