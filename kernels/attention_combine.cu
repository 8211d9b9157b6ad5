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

// Entries of a row: all from `begin` to `end`, and those that are added now from `first` on.
struct Entries {
    uint32_t begin, end, first;

    DEVICE_MEMBER bool are_last() const { return first + AT_A_TIME >= end; }
};

// Computes the factors of at most AT_A_TIME entries for all heads: the sum so far is multiplied by x and the
// entry's sum by y. `totals` are the maximum and the denominator so far; in the end, the factor of the sum
// and the denominator.
DEVICE void weigh_entries(const AttentionCombineParams& p, const Entries& entries, float2* factors,
                          float2* totals) {
    for (uint32_t head = threadIdx.x; head < p.q_heads; head += blockDim.x) {
        float2 stats[AT_A_TIME];
#pragma unroll
        for (uint32_t i = 0; i < AT_A_TIME; ++i) {
            const size_t at = (static_cast<size_t>(entries.first) + i) * p.q_heads + head;
            if (entries.first + i >= entries.end) continue;
            stats[i] = reinterpret_cast<const float2*>(p.stats)[at];
        }
        float2 total = totals[head];
#pragma unroll
        for (uint32_t i = 0; i < AT_A_TIME; ++i) {
            if (entries.first + i >= entries.end) continue;
            const Merge m = merge(total.x, stats[i].x);
            total = make_float2(m.maximum, blend(m.mine, total.y, m.other, stats[i].y));
            factors[i * p.q_heads + head] = make_float2(m.mine, m.other);
        }
        if (entries.are_last()) total.x = p.v_scale / total.y;
        totals[head] = total;
    }
}

// Adds the sums of at most COUNT entries to `pairs`.
template <uint32_t COUNT>
DEVICE void add_entries(const AttentionCombineParams& p, const Entries& entries, const float2* factors,
                        const float2* totals, float2* pairs) {
    const uint32_t count = p.q_heads * p.head_dim / 2;
    for (uint32_t pair = threadIdx.x; pair < count; pair += blockDim.x) {
        float2 sums[COUNT];
#pragma unroll
        for (uint32_t i = 0; i < COUNT; ++i) {
            const size_t at = (static_cast<size_t>(entries.first) + i) * count + pair;
            if (entries.first + i < entries.end) sums[i] = reinterpret_cast<const float2*>(p.sums)[at];
        }
        const uint32_t head = 2 * pair / p.head_dim;
        float2 sum = entries.first == entries.begin ? make_float2(0.0f, 0.0f) : pairs[pair];
#pragma unroll
        for (uint32_t i = 0; i < COUNT; ++i) {
            if (entries.first + i >= entries.end) continue;
            const float2 factor = factors[i * p.q_heads + head];
            sum.x = blend(factor.x, sum.x, factor.y, sums[i].x);
            sum.y = blend(factor.x, sum.y, factor.y, sums[i].y);
        }
        if (entries.are_last()) sum.x *= totals[head].x, sum.y *= totals[head].x;
        pairs[pair] = sum;
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
    Entries entries = {p.entries[blockIdx.x], p.entries[blockIdx.x + 1], 0};
    for (entries.first = entries.begin; entries.first < entries.end; entries.first += AT_A_TIME) {
        // A thread weighs the same heads each time. The others have read the factors before.
        __syncthreads();
        weigh_entries(p, entries, factors, totals);
        __syncthreads();
        // A row of a prompt has one entry.
        if (entries.end - entries.begin == 1) {
            add_entries<1>(p, entries, factors, totals, pairs);
        } else {
            add_entries<AT_A_TIME>(p, entries, factors, totals, pairs);
        }
    }
    store_row(row, cols, p.out, blockIdx.x);
}
