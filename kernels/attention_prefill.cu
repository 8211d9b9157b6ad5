// OP: the same as attention_decode for many rows of one sequence: each row over all its positions, causal,
//     splits combined
// INPUTS: queries f32 [rows, q_heads * head_dim]; the paged cache of a layer, E4M3 or BF16;
//     items of attention.cuh
// OUTPUTS: sums f32 [entry][q_heads][head_dim], stats f32 [entry][q_heads][2]: entry item.entry + row -
//     item.row
// LAUNCH: one block of 128 threads per (item, KV head); 4 * (16 * D + 128) * 4 bytes of shared memory
// LIMITS: those of attention_decode
// NUMERICS: those of attention_decode, bit for bit
// COST: 4 * head_dim * q_heads flops per pair of row and position; bound by the tensor cores
// TWINS: src/device/cpu/attention.rs
//
// A query row is one head of one token. A warp computes 16 query rows of a group, so that only the last tile
// has empty rows. The sums of a split are in registers; those of all splits are in shared memory that only
// the warp accesses.
#include "attention.cuh"

template <uint32_t D, bool Bf16>
struct Prefill {
    const AttentionParams& p;
    const AttentionItem& item;
    // The first of the warp's 16 query rows, in tokens times heads.
    uint32_t first;

    DEVICE_MEMBER void run(float* totals) {
        constexpr uint32_t bytes = Bf16 ? 2 : 1;
        const uint32_t rows = item.rows * group();
        Queries<D, Bf16> queries;
        queries.load(query(row(0)), query(row(1)), p.head_dim);
        float* stats = totals + 16 * D;
        float maximum[2], denominator[2];
        const uint32_t last = item.position + min(first + 15, rows - 1) / group() + 1;
        float sums[D / 8][4];
        for (uint32_t block = 0; block * BLOCK < last; ++block) {
            if (block % SPLIT == 0) {
#pragma unroll
                for (uint32_t n = 0; n < D / 8; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
                maximum[0] = maximum[1] = -INFINITY;
                denominator[0] = denominator[1] = 0.0f;
            }
            const uint32_t start = block * BLOCK;
            const uint32_t seen[2] = {seen_by(row(0), start), seen_by(row(1), start)};
            const size_t id = p.blocks[item.first_block + block];
            const uint8_t* keys = p.cache + (id * p.kv_heads + blockIdx.y) * 2 * BLOCK * D * bytes;
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
            if (block % SPLIT == SPLIT - 1 || start + BLOCK >= last) {
                add_split(block < SPLIT, sums, maximum, denominator, totals, stats);
            }
        }
        write(totals, stats);
    }

    DEVICE_MEMBER uint32_t group() const { return p.q_heads / p.kv_heads; }

    // A query row's token within the item and its head; `real` is false for an empty row.
    struct Row {
        uint32_t token, head;
        bool real;
    };

    // Query rows g and g + 8 of the warp; computed when needed, to save registers.
    DEVICE_MEMBER Row row(uint32_t r) const {
        const uint32_t index = first + lane_id() / 4 + 8 * r;
        return {index / group(), blockIdx.y * group() + index % group(), index < item.rows * group()};
    }

    // The number of the block's positions that a row attends to.
    DEVICE_MEMBER uint32_t seen_by(const Row& row, uint32_t start) const {
        const uint32_t end = row.real ? item.position + row.token + 1 : 0;
        return end > start ? min(BLOCK, end - start) : 0;
    }

    DEVICE_MEMBER const float* query(const Row& row) const {
        if (!row.real) return nullptr;
        const size_t at = (static_cast<size_t>(item.row) + row.token) * p.q_heads;
        return p.queries + (at + row.head) * p.head_dim;
    }

    DEVICE_MEMBER void write(const float* totals, const float* stats) const {
        const uint32_t t = lane_id() % 4;
        for (uint32_t r = 0; r < 2; ++r) {
            const Row row = this->row(r);
            if (!row.real) continue;
            const size_t out = static_cast<size_t>(item.entry + row.token) * p.q_heads + row.head;
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

    // Adds a split to the totals. Each lane keeps its part: 4 sums of each 8 dimensions, and the maxima and
    // denominators of its two rows.
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
            *total = make_float4(
                blend(a.mine, x.x, a.other, sums[n][0]), blend(a.mine, x.y, a.other, sums[n][1]),
                blend(b.mine, x.z, b.other, sums[n][2]), blend(b.mine, x.w, b.other, sums[n][3]));
        }
    }
};

template <uint32_t D, bool Bf16>
DEVICE void attend(const AttentionParams& p) {
    const AttentionItem& item = p.items[blockIdx.x];
    const uint32_t group = p.q_heads / p.kv_heads, warp = threadIdx.x / 32;
    const uint32_t first = item.part + warp * 16;
    if (first >= item.rows * group) return;
    auto* totals = reinterpret_cast<float*>(shared_memory()) + warp * (16 * D + 128);
    Prefill<D, Bf16> prefill{p, item, first};
    prefill.run(totals);
}

#define ATTENTION_PREFILL(D)                                                                       \
    KERNEL(attention_prefill_e4m3_##D, AttentionParams, 128) { attend<D, false>(p); }              \
    KERNEL(attention_prefill_bf16_##D, AttentionParams, 128) { attend<D, true>(p); }

ATTENTION_PREFILL(64)
ATTENTION_PREFILL(128)
ATTENTION_PREFILL(192)
