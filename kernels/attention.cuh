// The arithmetic that attention_decode and attention_prefill share: one block of 64 positions against 16
// query rows, and the combination of blocks. Both use it in the same order, so that a row's bits do not
// depend on the kernel.
//
// A row of a tile is one query head of one token. With g = lane / 4 and t = lane % 4, a lane has rows g and g
// + 8. Positions and dimensions are permuted so that each lane reads 16 neighbouring elements at once: of
// keys the 16 dimensions from 16t on, of values (which the cache holds transposed) the 16 positions from 16t
// on. Column c of score tile j is position 16 (c / 2) + 2j + c % 2.
#pragma once

#include "device.cuh"

constexpr uint32_t BLOCK = 64;
// Blocks of a split. The blocks of a split are combined first, and then the splits.
constexpr uint32_t SPLIT = 4;

// Parameters of both kernels.
struct AttentionParams {
    // Rotated: [rows, q_heads, head_dim].
    const float* queries;
    // The layer's part of the cache: [block][kv_head][K: 64 x D | V: D x 64].
    const uint8_t* cache;
    // Block ids of all sequences, concatenated.
    const uint32_t* blocks;
    const struct AttentionItem* items;
    // The number of items, read by the kernel since the grid of a captured launch is fixed.
    const uint32_t* count;
    // [entry][q_heads][head_dim]: sums of a split of a row; [entry][q_heads][2]: maximum and denominator.
    float* sums;
    float* stats;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    // k_scale / sqrt(head_dim) * log2(e).
    float scale;
};
static_assert(sizeof(AttentionParams) == 72);

// Decode: one split of one row. Prefill: 64 query rows, tokens times heads of a group, of one sequence.
struct AttentionItem {
    // The first row of the step.
    uint32_t row;
    // Rows of the sequence from `row` on.
    uint32_t rows;
    // The position of `row`.
    uint32_t position;
    // The index in `blocks` of the sequence's first block.
    uint32_t first_block;
    // Decode: the split. Prefill: the first query row, counted in tokens times heads.
    uint32_t part;
    // The first entry of `row`.
    uint32_t entry;
};

template <bool Bf16>
DEVICE uint32_t pair_of(float low, float high) {
    return Bf16 ? bf16x2(low, high) : f16x2(low, high);
}

template <bool Bf16>
DEVICE void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if (Bf16) {
        mma_bf16(d, a, b0, b1);
    } else {
        mma_f16(d, a, b0, b1);
    }
}

// 16 neighbouring elements of the cache as 8 pairs.
template <bool Bf16>
DEVICE void load_pairs(const uint8_t* from, uint32_t (&pairs)[8]) {
    if (Bf16) {
        const uint4 a = *reinterpret_cast<const uint4*>(from), b = *reinterpret_cast<const uint4*>(from + 16);
        pairs[0] = a.x, pairs[1] = a.y, pairs[2] = a.z, pairs[3] = a.w;
        pairs[4] = b.x, pairs[5] = b.y, pairs[6] = b.z, pairs[7] = b.w;
    } else {
        const uint4 raw = *reinterpret_cast<const uint4*>(from);
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            pairs[2 * i] = f16x2_of_e4m3x2(static_cast<uint16_t>(words[i]));
            pairs[2 * i + 1] = f16x2_of_e4m3x2(static_cast<uint16_t>(words[i] >> 16));
        }
    }
}

// The larger of two maxima, and the factors that make two sums relative to it. An empty sum, with a maximum
// of -infinity, has factor 0.
struct Merge {
    float maximum, mine, other;
};
DEVICE Merge merge(float maximum, float other) {
    const float larger = fmaxf(maximum, other);
    const float reference = larger == -INFINITY ? 0.0f : larger;
    return {larger, exp2f(maximum - reference), exp2f(other - reference)};
}
// a × x + b × y with fixed rounding.
DEVICE float blend(float a, float x, float b, float y) { return __fmaf_rn(b, y, __fmul_rn(a, x)); }

// 16 query rows in registers, as operands of the product with the keys.
template <uint32_t D, bool Bf16>
struct Queries {
    uint32_t pairs[D / 16][4];

    // `low` and `high` are the rows g and g + 8; null for an empty row.
    DEVICE_MEMBER void load(const float* low, const float* high, uint32_t head_dim) {
        const uint32_t t = lane_id() % 4;
#pragma unroll
        for (uint32_t step = 0; step < D / 16; ++step) {
            const uint32_t d = step / 4 * 64 + 16 * t + step % 4 * 4;
            pairs[step][0] = pair_at(low, d, head_dim);
            pairs[step][1] = pair_at(high, d, head_dim);
            pairs[step][2] = pair_at(low, d + 2, head_dim);
            pairs[step][3] = pair_at(high, d + 2, head_dim);
        }
    }

    static DEVICE_MEMBER uint32_t pair_at(const float* row, uint32_t d, uint32_t head_dim) {
        return row == nullptr || d >= head_dim ? 0 : pair_of<Bf16>(row[d], row[d + 1]);
    }
};

// One block's probabilities for 16 rows, relative to the block's maxima, as operands of the product with the
// values. Index 0 is row g, 1 is row g + 8.
template <bool Bf16>
struct Weights {
    uint32_t pairs[4][4];
    float maximum[2];
    float denominator[2];
};

// Computes the probabilities. `seen`: the number of the block's positions that each of the two rows attends
// to.
template <uint32_t D, bool Bf16>
DEVICE Weights<Bf16> weigh(const Queries<D, Bf16>& queries, const uint8_t* keys, float scale,
                           const uint32_t (&seen)[2]) {
    constexpr uint32_t bytes = Bf16 ? 2 : 1;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float scores[8][4];
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) {
        scores[j][0] = scores[j][1] = scores[j][2] = scores[j][3] = 0.0f;
        const uint8_t* row = keys + (g / 2 * 16 + 2 * j + g % 2) * D * bytes;
#pragma unroll
        for (uint32_t i = 0; i < D / 64; ++i) {
            uint32_t k[8];
            load_pairs<Bf16>(row + (i * 64 + 16 * t) * bytes, k);
#pragma unroll
            for (uint32_t s = 0; s < 4; ++s) {
                product<Bf16>(scores[j], queries.pairs[4 * i + s], k[2 * s], k[2 * s + 1]);
            }
        }
    }
    Weights<Bf16> weights;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
        float maximum = -INFINITY;
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) {
#pragma unroll
            for (uint32_t b = 0; b < 2; ++b) {
                float& score = scores[j][2 * r + b];
                score = 16 * t + 2 * j + b < seen[r] ? score * scale : -INFINITY;
                maximum = fmaxf(maximum, score);
            }
        }
        maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
        const float reference = maximum == -INFINITY ? 0.0f : maximum;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) {
            scores[j][2 * r] = exp2f(scores[j][2 * r] - reference);
            scores[j][2 * r + 1] = exp2f(scores[j][2 * r + 1] - reference);
            sum += scores[j][2 * r];
            sum += scores[j][2 * r + 1];
            weights.pairs[j / 2][j % 2 * 2 + r] = pair_of<Bf16>(scores[j][2 * r], scores[j][2 * r + 1]);
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        weights.maximum[r] = maximum;
        weights.denominator[r] = sum;
    }
    return weights;
}

// The block's sums of the eight dimensions from 8n on. `valid`: positions of the block that any row attends
// to. Later positions may hold NaN, and 0 × NaN is NaN, so they are replaced by 0.
template <uint32_t D, bool Bf16>
DEVICE void apply(const Weights<Bf16>& weights, const uint8_t* values, uint32_t n, uint32_t valid,
                  float (&sums)[4]) {
    constexpr uint32_t bytes = Bf16 ? 2 : 1;
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    uint32_t v[8];
    load_pairs<Bf16>(values + ((8 * n + g) * BLOCK + 16 * t) * bytes, v);
    if (valid < BLOCK) {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            const uint32_t at = 16 * t + 2 * i;
            v[i] = at + 1 < valid ? v[i] : at < valid ? v[i] & 0xFFFF : 0;
        }
    }
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) product<Bf16>(sums, weights.pairs[s], v[2 * s], v[2 * s + 1]);
}
