// OP: as attention_decode, for many rows of one sequence: each row over all its positions, causal, splits added up
// INPUTS: qkv f32 [rows, (q_heads + 2 * kv_heads) * head_dim]; the paged cache of a layer, E4M3 or BF16; items of attention.cuh
// OUTPUTS: sums f32 [entry][q_heads][head_dim], stats f32 [entry][q_heads][2]: entry item.entry + row - item.row
// LAUNCH: one block of 128 threads per (item, KV head); 4 * (16 * D + 128) * 4 bytes of shared memory
// LIMITS: as attention_decode
// NUMERICS: as attention_decode, bit for bit
// COST: 4 * head_dim * q_heads flops per pair of row and position; bound by the tensor cores
// TWINS: src/device/cpu/attention.rs
//
// A warp has 16 query rows, tokens times heads of a group, so that no row of a tile is empty but the last. The sums of
// a split are in registers, those of all splits in shared memory that only the warp itself touches.
#include "attention.cuh"

template <uint32_t D, bool Bf16>
struct Prefill {
    const AttentionParams& p;
    const AttentionItem& item;
    uint32_t group;
    uint32_t kv_head;
    // Of rows g and g + 8: the token within the item and its head, and whether there is one.
    uint32_t token[2];
    uint32_t head[2];
    bool real[2];

    DEVICE_MEMBER void run(uint32_t first, float* totals) {
        constexpr uint32_t bytes = Bf16 ? 2 : 1;
        const uint32_t g = lane_id() / 4, t = lane_id() % 4, rows = item.rows * group;
        const float* row[2];
        uint32_t end[2];
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
            const uint32_t index = first + g + 8 * r;
            real[r] = index < rows;
            token[r] = real[r] ? index / group : 0;
            head[r] = kv_head * group + index % group;
            row[r] = real[r] ? query(r) : nullptr;
            end[r] = real[r] ? item.position + token[r] + 1 : 0;
        }
        Queries<D, Bf16> queries;
        queries.load(row[0], row[1], p.head_dim);
        float* stats = totals + 16 * D;
        float maximum[2], denominator[2];
        const uint32_t last = item.position + min(first + 15, rows - 1) / group + 1;
        const uint32_t count = (last + BLOCK - 1) / BLOCK;
        for (uint32_t split = 0; split * SPLIT < count; ++split) {
            float sums[D / 8][4];
#pragma unroll
            for (uint32_t n = 0; n < D / 8; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
            maximum[0] = maximum[1] = -INFINITY;
            denominator[0] = denominator[1] = 0.0f;
            for (uint32_t block = split * SPLIT; block < min(count, (split + 1) * SPLIT); ++block) {
                const uint32_t start = block * BLOCK;
                const uint32_t seen[2] = {end[0] > start ? min(BLOCK, end[0] - start) : 0,
                                          end[1] > start ? min(BLOCK, end[1] - start) : 0};
                const uint8_t* keys = p.cache + (static_cast<size_t>(p.blocks[item.first_block + block]) * p.kv_heads +
                                                 kv_head) * 2 * BLOCK * D * bytes;
                const auto weights = weigh<D, Bf16>(queries, keys, p.scale, seen);
                const Merge a = merge(maximum[0], weights.maximum[0]), b = merge(maximum[1], weights.maximum[1]);
#pragma unroll
                for (uint32_t n = 0; n < D / 8; ++n) {
                    float out[4];
                    apply<D, Bf16>(weights, keys + BLOCK * D * bytes, n, min(BLOCK, last - start), out);
                    sums[n][0] = blend(a.mine, sums[n][0], a.other, out[0]);
                    sums[n][1] = blend(a.mine, sums[n][1], a.other, out[1]);
                    sums[n][2] = blend(b.mine, sums[n][2], b.other, out[2]);
                    sums[n][3] = blend(b.mine, sums[n][3], b.other, out[3]);
                }
                maximum[0] = a.maximum, maximum[1] = b.maximum;
                denominator[0] = blend(a.mine, denominator[0], a.other, weights.denominator[0]);
                denominator[1] = blend(b.mine, denominator[1], b.other, weights.denominator[1]);
            }
            add_split(split == 0, sums, maximum, denominator, totals, stats);
        }
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
            if (!real[r]) continue;
            const size_t out = static_cast<size_t>(item.entry + token[r]) * p.q_heads + head[r];
            for (uint32_t n = 0; n < D / 8; ++n) {
                const float* from = totals + (n * 32 + lane_id()) * 4 + 2 * r;
                const uint32_t d = 8 * n + 2 * t;
                if (d < p.head_dim) {
                    p.sums[out * p.head_dim + d] = from[0];
                    p.sums[out * p.head_dim + d + 1] = from[1];
                }
            }
            if (t == 0) {
                p.stats[out * 2] = stats[lane_id() * 4 + r];
                p.stats[out * 2 + 1] = stats[lane_id() * 4 + 2 + r];
            }
        }
    }

    DEVICE_MEMBER const float* query(uint32_t r) const {
        const size_t row = (static_cast<size_t>(item.row) + token[r]) * (p.q_heads + 2 * p.kv_heads);
        return p.qkv + (row + head[r]) * p.head_dim;
    }

    // Each lane keeps its own part of the totals: 4 sums of each 8 dimensions, and of its two rows maxima and
    // denominators.
    DEVICE_MEMBER void add_split(bool first, const float (&sums)[D / 8][4], const float (&maximum)[2],
                                 const float (&denominator)[2], float* totals, float* stats) {
        float4* stat = reinterpret_cast<float4*>(stats) + lane_id();
        const float4 old = first ? make_float4(-INFINITY, -INFINITY, 0.0f, 0.0f) : *stat;
        const Merge a = merge(old.x, maximum[0]), b = merge(old.y, maximum[1]);
        *stat = make_float4(a.maximum, b.maximum, blend(a.mine, old.z, a.other, denominator[0]),
                            blend(b.mine, old.w, b.other, denominator[1]));
#pragma unroll
        for (uint32_t n = 0; n < D / 8; ++n) {
            float4* total = reinterpret_cast<float4*>(totals) + n * 32 + lane_id();
            const float4 x = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : *total;
            *total = make_float4(blend(a.mine, x.x, a.other, sums[n][0]), blend(a.mine, x.y, a.other, sums[n][1]),
                                 blend(b.mine, x.z, b.other, sums[n][2]), blend(b.mine, x.w, b.other, sums[n][3]));
        }
    }
};

template <uint32_t D, bool Bf16>
DEVICE void attend(const AttentionParams& p) {
    const AttentionItem item = p.items[blockIdx.x];
    const uint32_t group = p.q_heads / p.kv_heads, warp = threadIdx.x / 32;
    const uint32_t first = item.part + warp * 16;
    if (first >= item.rows * group) return;
    auto* totals = reinterpret_cast<float*>(shared_memory()) + warp * (16 * D + 128);
    Prefill<D, Bf16> prefill{p, item, group, blockIdx.y, {}, {}, {}};
    prefill.run(first, totals);
}

#define ATTENTION_PREFILL(D)                                                                       \
    KERNEL(attention_prefill_e4m3_##D, AttentionParams, 128) { attend<D, false>(p); }              \
    KERNEL(attention_prefill_bf16_##D, AttentionParams, 128) { attend<D, true>(p); }

ATTENTION_PREFILL(64)
ATTENTION_PREFILL(128)
ATTENTION_PREFILL(192)
