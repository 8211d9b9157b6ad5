// OP: out[r] = quant(v_scale * sum / denominator), where row r's entries are summed relative to the larger of
//     their maxima
// INPUTS: sums f32 [entry][q_heads][head_dim] and stats f32 [entry][q_heads][2] of attention_decode and
//     attention_prefill; entries u32 [rows + 1]: the index of each row's first entry
// OUTPUTS: out [rows, q_heads * head_dim] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; q_heads * head_dim alone decides its number of threads, 32 to 512; 4 * q_heads *
//     (head_dim + 18) bytes of shared memory
// LIMITS: q_heads * head_dim even; the shared memory of a block
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

// Entries whose sums are loaded at a time.
constexpr uint32_t AT_A_TIME = 8;

// Computes the factors of entries `first` to `end`, at most AT_A_TIME of them, for all heads: the sum so far
// is multiplied by x and the entry's sum by y. `totals` are the maximum and the denominator so far.
DEVICE void weigh_entries(const AttentionCombineParams& p, uint32_t first, uint32_t end, float2* factors,
                          float2* totals) {
    for (uint32_t head = threadIdx.x; head < p.q_heads; head += blockDim.x) {
        float2 stats[AT_A_TIME];
#pragma unroll
        for (uint32_t i = 0; i < AT_A_TIME; ++i) {
            const size_t at = (static_cast<size_t>(first) + i) * p.q_heads + head;
            if (first + i < end) stats[i] = reinterpret_cast<const float2*>(p.stats)[at];
        }
        float2 total = totals[head];
#pragma unroll
        for (uint32_t i = 0; i < AT_A_TIME; ++i) {
            if (first + i >= end) continue;
            const Merge m = merge(total.x, stats[i].x);
            total = make_float2(m.maximum, blend(m.mine, total.y, m.other, stats[i].y));
            factors[i * p.q_heads + head] = make_float2(m.mine, m.other);
        }
        totals[head] = total;
    }
}

KERNEL(attention_combine, AttentionCombineParams, ROW_THREADS) {
    const uint32_t cols = p.q_heads * p.head_dim;
    auto* row = reinterpret_cast<float*>(shared_memory());
    auto* pairs = reinterpret_cast<float2*>(row);
    float2 *factors = pairs + cols / 2, *totals = factors + AT_A_TIME * p.q_heads;
    for (uint32_t head = threadIdx.x; head < p.q_heads; head += blockDim.x) {
        totals[head] = make_float2(-INFINITY, 0.0f);
    }
    const uint32_t begin = p.entries[blockIdx.x], end = p.entries[blockIdx.x + 1];
    for (uint32_t first = begin; first < end; first += AT_A_TIME) {
        // A thread weighs the same heads each time. The others have read the factors before.
        __syncthreads();
        weigh_entries(p, first, end, factors, totals);
        __syncthreads();
        for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
            float2 sums[AT_A_TIME];
#pragma unroll
            for (uint32_t i = 0; i < AT_A_TIME; ++i) {
                const size_t at = (static_cast<size_t>(first) + i) * (cols / 2) + pair;
                if (first + i < end) sums[i] = reinterpret_cast<const float2*>(p.sums)[at];
            }
            const uint32_t head = 2 * pair / p.head_dim;
            float2 sum = first == begin ? make_float2(0.0f, 0.0f) : pairs[pair];
#pragma unroll
            for (uint32_t i = 0; i < AT_A_TIME; ++i) {
                if (first + i >= end) continue;
                const float2 factor = factors[i * p.q_heads + head];
                sum.x = blend(factor.x, sum.x, factor.y, sums[i].x);
                sum.y = blend(factor.x, sum.y, factor.y, sums[i].y);
            }
            if (first + AT_A_TIME >= end) {
                const float scale = p.v_scale / totals[head].y;
                sum.x *= scale, sum.y *= scale;
            }
            pairs[pair] = sum;
        }
    }
    store_row(row, cols, p.out, blockIdx.x);
}
