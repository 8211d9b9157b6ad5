// OP: out[r] = table[t - first], where t = tokens[r], or last[slot] if tokens[r] is slot + 2^31; 0 if the
//     table has no such row. The table is the packed matrix of the LM head, so that a tied embedding is
//     stored once
// INPUTS: tokens u32 [rows]; last u32 [slots]; table, packed BF16 or E4M3 as in pack.cuh; scales f32
//     [vocabulary], or null for BF16
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
    uint32_t chunks;
    // The id of the table's first row, and the number of rows.
    uint32_t first;
    uint32_t rows;
};
static_assert(sizeof(EmbedParams) == 56);

KERNEL(embed, EmbedParams, 256) {
    const uint32_t word = p.tokens[blockIdx.x];
    const uint32_t id = word >> 31 != 0 ? p.last[word & 0x7fffffff] : word;
    // The difference wraps around for ids before the first row, which makes it too large as well.
    const uint32_t token = id - p.first;
    float* out = p.out + static_cast<size_t>(blockIdx.x) * p.cols;
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
        if (token >= p.rows) {
            out[i] = 0.0f;
        } else if (p.scales == nullptr) {
            const size_t at = packed_at<true>(token, i, p.chunks);
            const uint32_t bits = *reinterpret_cast<const uint16_t*>(p.table + at);
            out[i] = __uint_as_float(bits << 16);
        } else {
            const uint32_t pair = f16x2_of_e4m3x2(p.table[packed_at<false>(token, i, p.chunks)]);
            out[i] = float_of_f16(static_cast<uint16_t>(pair)) * p.scales[token];
        }
    }
}
