// OP: for each item, a split of 256 positions of one row: the sum of e^(q . k - max) * v, that maximum, and
//     the sum of e^(q . k - max)
// INPUTS: queries f32 [rows, q_heads * head_dim]; the paged cache of a layer, E4M3 or BF16;
//     items of attention.cuh
// OUTPUTS: sums f32 [entry][q_heads][head_dim], stats f32 [entry][q_heads][2]: entry item.entry + item.part
// LAUNCH: blocks of 128 threads: any number for the items, one per KV head, one per 16 heads of its group; 4
//     * 16 * (D + 2) * 4 bytes of shared memory
// LIMITS: head_dim even, at most D of the variant: 64, 128 or 192; cache padded to D with zeros
// NUMERICS: Q and P in F16 (E4M3 cache) or BF16 (BF16 cache), sums in F32 in an order that depends on the
//     position alone; after the combine within 2e-3 (F16) or 2e-2 (BF16) of the largest value
// COST: positions * kv_heads * 2 * D bytes of cache elements, read once for all heads of a group; bound by
//     memory
// TWINS: src/device/cpu/attention.rs
//
// Each of the four warps computes one block of the split. Keys and values are loaded from memory directly to
// registers, in the form that the tensor cores take.
#include "attention.cuh"

template <uint32_t D, bool Bf16>
DEVICE void attend(const AttentionParams& p, const AttentionItem& item) {
    constexpr uint32_t bytes = Bf16 ? 2 : 1;
    const uint32_t kv_head = blockIdx.y, group = p.q_heads / p.kv_heads, first_head = blockIdx.z * 16;
    const uint32_t warp = threadIdx.x / 32, g = lane_id() / 4, t = lane_id() % 4;
    // [warp][16][D], then [warp][16][2].
    auto* sums = reinterpret_cast<float*>(shared_memory());
    float* stats = sums + SPLIT * 16 * D;
    const uint32_t end = item.position + 1, block = item.part * SPLIT + warp;
    const uint32_t count = min(SPLIT, (end + BLOCK - 1) / BLOCK - item.part * SPLIT);
    if (warp < count) {
        const float* row = p.queries + static_cast<size_t>(item.row) * p.q_heads * p.head_dim;
        const uint32_t low = first_head + g, high = low + 8;
        const float* heads = row + static_cast<size_t>(kv_head) * group * p.head_dim;
        Queries<D, Bf16> queries;
        queries.load(low < group ? heads + low * p.head_dim : nullptr,
                     high < group ? heads + high * p.head_dim : nullptr, p.head_dim);
        const size_t id = p.blocks[item.first_block + block];
        const uint8_t* keys = p.cache + (id * p.kv_heads + kv_head) * 2 * BLOCK * D * bytes;
        const uint32_t valid = min(BLOCK, end - block * BLOCK), seen[2] = {valid, valid};
        const auto weights = weigh<D, Bf16>(queries, keys, p.scale, seen);
#pragma unroll 4
        for (uint32_t n = 0; n < D / 8; ++n) {
            float out[4];
            apply<D, Bf16>(weights, keys + BLOCK * D * bytes, n, valid, out);
            float* to = sums + (warp * 16 + g) * D + 8 * n + 2 * t;
            to[0] = out[0], to[1] = out[1], to[8 * D] = out[2], to[8 * D + 1] = out[3];
        }
        if (t == 0) {
            for (uint32_t r = 0; r < 2; ++r) {
                stats[(warp * 16 + g + 8 * r) * 2] = weights.maximum[r];
                stats[(warp * 16 + g + 8 * r) * 2 + 1] = weights.denominator[r];
            }
        }
    }
    __syncthreads();
    const uint32_t heads = min(16u, group - first_head);
    const size_t entry = static_cast<size_t>(item.entry) + item.part;
    const size_t out = entry * p.q_heads + kv_head * group + first_head;
    for (uint32_t i = threadIdx.x; i < heads * p.head_dim; i += blockDim.x) {
        const uint32_t head = i / p.head_dim, d = i % p.head_dim;
        float maximum = -INFINITY, denominator = 0.0f, sum = 0.0f;
        for (uint32_t w = 0; w < count; ++w) {
            const float* stat = stats + (w * 16 + head) * 2;
            const Merge m = merge(maximum, stat[0]);
            sum = blend(m.mine, sum, m.other, sums[(w * 16 + head) * D + d]);
            denominator = blend(m.mine, denominator, m.other, stat[1]);
            maximum = m.maximum;
        }
        p.sums[(out + head) * p.head_dim + d] = sum;
        if (d == 0) {
            p.stats[(out + head) * 2] = maximum;
            p.stats[(out + head) * 2 + 1] = denominator;
        }
    }
}

template <uint32_t D, bool Bf16>
DEVICE void attend_all(const AttentionParams& p) {
    const uint32_t count = *p.count;
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        attend<D, Bf16>(p, p.items[i]);
        // The next item overwrites the shared memory of this one.
        __syncthreads();
    }
}

#define ATTENTION_DECODE(D)                                                                       \
    KERNEL(attention_decode_e4m3_##D, AttentionParams, 128) { attend_all<D, false>(p); }          \
    KERNEL(attention_decode_bf16_##D, AttentionParams, 128) { attend_all<D, true>(p); }

ATTENTION_DECODE(64)
ATTENTION_DECODE(128)
ATTENTION_DECODE(192)
