// OP: out[r] = table[t], t = tokens[r], or last[slot] where that is slot + 2^31, less `first`; 0 beyond the table; read from the packed matrix: a tied LM head and embedding are one copy
// INPUTS: tokens u32 [rows]; last u32 [slots]; table, packed BF16 or E4M3 as in pack.cuh; scales f32 [vocabulary], or null for BF16
// OUTPUTS: out f32 [rows, cols]
// LAUNCH: one block of 256 threads per row; no shared memory
// LIMITS: every slot within last
// NUMERICS: exact
// COST: rows * cols * (4 + bytes of an element); bound by memory
// TWINS: src/device/cpu/embed.rs
#include "pack.cuh"

struct EmbedParams {
    const uint32_t* tokens;
    const uint32_t* last;
    const uint8_t* table;
    const float* scales;
    float* out;
    uint32_t cols;
    uint32_t k_blocks;
    // The id of the table's first row, and how many there are.
    uint32_t first;
    uint32_t rows;
};
static_assert(sizeof(EmbedParams) == 56);

KERNEL(embed, EmbedParams, 256) {
    const uint32_t word = p.tokens[blockIdx.x];
    const uint32_t id = word >> 31 != 0 ? p.last[word & 0x7fffffff] : word;
    // Ids before the first wrap around, and are beyond the table too.
    const uint32_t token = id - p.first;
    float* out = p.out + static_cast<size_t>(blockIdx.x) * p.cols;
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
        if (token >= p.rows) {
            out[i] = 0.0f;
        } else if (p.scales == nullptr) {
            const size_t at = packed_at<true>(token, i, p.k_blocks);
            out[i] = __uint_as_float(static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(p.table + at)) << 16);
        } else {
            const uint32_t pair = f16x2_of_e4m3x2(p.table[packed_at<false>(token, i, p.k_blocks)]);
            out[i] = float_of_f16(static_cast<uint16_t>(pair)) * p.scales[token];
        }
    }
}
