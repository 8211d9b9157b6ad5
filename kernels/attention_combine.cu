// OP: out[r] = quant(v_scale * sum / denominator), where row r's entries are summed relative to the larger of
//     their maxima
// INPUTS: sums f32 [entry][q_heads][head_dim] and stats f32 [entry][q_heads][2] of attention_decode and
//     attention_prefill; entries u32 [rows + 1]: the index of each row's first entry
// OUTPUTS: out [rows, q_heads * head_dim] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; q_heads * head_dim alone decides its number of threads, 32 to 512; 4 * q_heads *
//     head_dim bytes of shared memory
// LIMITS: q_heads * head_dim even, at most 56,000
// NUMERICS: F32, entries in order
// COST: entries * q_heads * (head_dim + 2) * 4 bytes and the output; bound by memory
// TWINS: src/device/cpu/attention.rs
#include "attention.cuh"
#include "row.cuh"

struct AttentionCombineParams {
    const float* sums;
    const float* stats;
    const uint32_t* entries;
    Quantised out;
    uint32_t q_heads;
    uint32_t head_dim;
    float v_scale;
    uint32_t unused;
};
static_assert(sizeof(AttentionCombineParams) == 72);

KERNEL(attention_combine, AttentionCombineParams, ROW_THREADS) {
    const uint32_t cols = p.q_heads * p.head_dim;
    auto* row = reinterpret_cast<float*>(shared_memory());
    const uint32_t begin = p.entries[blockIdx.x], end = p.entries[blockIdx.x + 1];
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        for (uint32_t i = 2 * pair; i < 2 * pair + 2; ++i) {
            const uint32_t head = i / p.head_dim;
            float maximum = -INFINITY, denominator = 0.0f, sum = 0.0f;
            for (uint32_t entry = begin; entry < end; ++entry) {
                const float* stat = p.stats + (static_cast<size_t>(entry) * p.q_heads + head) * 2;
                const Merge m = merge(maximum, stat[0]);
                sum = blend(m.mine, sum, m.other, p.sums[static_cast<size_t>(entry) * cols + i]);
                denominator = blend(m.mine, denominator, m.other, stat[1]);
                maximum = m.maximum;
            }
            row[i] = sum * (p.v_scale / denominator);
        }
    }
    store_row(row, cols, p.out, blockIdx.x);
}
