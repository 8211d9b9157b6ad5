// How linear.cu stores a tile's sums: as F32 outputs, as BF16 outputs, or as SwiGLU of BF16 outputs.
#pragma once

#include "linear_tiles.cuh"
#include "output_rows.cuh"
#include "pack.cuh"
#include "silu.cuh"

// Threads of the warpgroups that multiply, and of the one whose first warp copies.
constexpr uint32_t CONSUMERS = 256;
constexpr uint32_t PRODUCERS = 128;
// Words of a row that warps exchange. Four are padding, so that the eight rows of a matrix are in different
// banks.
constexpr uint32_t ROW_WORDS = 36;

struct LinearParams {
    const uint8_t* x;
    const float* x_scales;
    const uint8_t* w;
    const float* w_scales;
    OutputRows out;
    // [2 * parts][N / 8][256 threads]: sums of segments of cut tiles.
    float4* partials;
    // [tiles]: the number of segments that have been written; zero before and after.
    uint32_t* counters;
    uint32_t m;
    uint32_t n;
    // Rows of a chunk of x in memory, a multiple of 8.
    uint32_t x_rows;
    Tiles tiles;
    uint32_t out_bf16;
    // Only if outputs are BF16.
    RowMaxima maxima;
    // Whether outputs are gates and what they multiply, in alternating groups of eight, and SwiGLU of them is
    // stored. Only if both operands are E4M3, and with maxima; n is a multiple of 16.
    uint32_t gated;
    uint32_t unused;
};
static_assert(sizeof(LinearParams) == 192);

// Element type of an operand.
enum class Type { e4m3, bf16 };

// Stores the sums of a tile for N rows, within m and n, with scales. The threads of a warpgroup have the sums
// of 64 outputs; a thread's sum 4i + 2h + j is of its output + 8h and its row + 8i + j.
template <Type W, Type X, uint32_t N>
struct TileStore {
    const LinearParams& p;
    const Segment& segment;
    // Of the two warpgroups.
    uint32_t group;
    // Shared memory of the warpgroup for 16 rows.
    uint32_t* words;

    DEVICE_MEMBER void store(const float (&sums)[N / 2]) const {
        const uint32_t warp = (threadIdx.x - PRODUCERS) / 32;
        const uint32_t output = segment.tile * TILE + warp * 16 + lane_id() / 4;
        float w_scales[2] = {1.0f, 1.0f};
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
            if (W == Type::e4m3 && output + 8 * h < p.n) w_scales[h] = p.w_scales[output + 8 * h];
        }
        if (W == Type::e4m3 && X == Type::e4m3 && p.gated) {
            store_gated(sums, w_scales);
        } else if (p.out_bf16) {
            store_bf16(sums, w_scales);
        } else {
            store_f32(output, sums, w_scales);
        }
    }

    DEVICE_MEMBER float x_scale_of(uint32_t row) const {
        return X == Type::e4m3 && row < p.m ? p.x_scales[row] : 1.0f;
    }

    DEVICE_MEMBER void store_f32(uint32_t output, const float (&sums)[N / 2],
                                 const float (&w_scales)[2]) const {
        const uint32_t row = segment.row + lane_id() % 4 * 2;
        OutputCursor rows = {p.out, p.n, 0};
#pragma unroll
        for (uint32_t i = 0; i < N / 4; ++i) {
            const uint32_t m = row + i / 2 * 8 + i % 2;
            const float x_scale = x_scale_of(m);
            if (m >= p.m) continue;
            float* to = rows.at<float>(m);
#pragma unroll
            for (uint32_t h = 0; h < 2; ++h) {
                const uint32_t n = output + 8 * h;
                const float y = sums[i / 2 * 4 + 2 * h + i % 2] * x_scale * w_scales[h];
                if (n < p.n) to[n] = y;
            }
        }
    }

    // An output of two rows as BF16, the first in the low half. `pair`: the rows' sums.
    static DEVICE_MEMBER uint32_t outputs_of(const float* pair, const float (&x_scales)[2], float w_scale) {
        return bf16x2(pair[0] * x_scales[0] * w_scale, pair[1] * x_scales[1] * w_scale);
    }

    // Stores BF16 outputs. The threads of a warpgroup exchange sums through shared memory, 16 rows at a time,
    // so that eight lanes store 128 contiguous bytes of a row.
    DEVICE_MEMBER void store_bf16(const float (&sums)[N / 2], const float (&w_scales)[2]) const {
        const uint32_t thread = threadIdx.x % 128, warp = thread / 32, g = lane_id() / 4, t = lane_id() % 4;
        const uint32_t n = segment.tile * TILE + group * 64 + thread % 8 * 8;
        OutputCursor outputs = {p.out, p.n, 0};
#pragma unroll
        for (uint32_t rows = 0; rows < N; rows += 16) {
            // All have stored the rows before.
            sync_warpgroup();
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                // The smallest variant has eight rows only.
                if (rows + 8 * i >= N) continue;
                const uint32_t row = segment.row + rows + 8 * i + 2 * t;
                const float x_scales[2] = {x_scale_of(row), x_scale_of(row + 1)};
                // Matrix h has eight rows and the eight outputs from 8h on. A lane gets two outputs of row g.
#pragma unroll
                for (uint32_t h = 0; h < 2; ++h) {
                    const float* pair = sums + (rows + 8 * i) / 2 + 2 * h;
                    words[(8 * i + g) * ROW_WORDS + warp * 8 + h * 4 + t] =
                        transposed(outputs_of(pair, x_scales, w_scales[h]));
                }
            }
            sync_warpgroup();
            const uint32_t row = rows + thread / 8, m = segment.row + row;
            const bool exists = row < N && m < p.m;
            uint4 pairs = make_uint4(0, 0, 0, 0);
            if (exists && n < p.n) {
                pairs = reinterpret_cast<const uint4*>(words + thread / 8 * ROW_WORDS)[thread % 8];
                store_outputs(outputs.at<uint16_t>(m), n, p.n, pairs);
            }
            if (p.maxima.values == nullptr) continue;
            const float2 both = floats_of_bf16x2(
                bf16x2_max(bf16x2_max(pairs.x, pairs.y), bf16x2_max(pairs.z, pairs.w)));
            store_largest(m, exists, fmaxf(both.x, both.y));
        }
    }

    // Stores SwiGLU of BF16 outputs as F32, n / 2 of a row: 128 contiguous bytes of 16 rows at a time, as
    // above. A thread has a gate and the value that it multiplies.
    // Its loop is like that of store_bf16. One loop that takes the differences as functions spills a register
    // of the variant for 256 rows.
    DEVICE_MEMBER void store_gated(const float (&sums)[N / 2], const float (&w_scales)[2]) const {
        const uint32_t thread = threadIdx.x % 128, warp = thread / 32, g = lane_id() / 4, t = lane_id() % 4;
        const uint32_t n = segment.tile * (TILE / 2) + group * 32 + thread % 8 * 4, cols = p.n / 2;
        auto* floats = reinterpret_cast<float*>(words);
        OutputCursor outputs = {p.out, cols, 0};
#pragma unroll
        for (uint32_t rows = 0; rows < N; rows += 16) {
            sync_warpgroup();
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                if (rows + 8 * i >= N) continue;
                const uint32_t row = segment.row + rows + 8 * i + 2 * t;
                const float x_scales[2] = {x_scale_of(row), x_scale_of(row + 1)};
                const float* pair = sums + (rows + 8 * i) / 2;
                const float2 gates = floats_of_bf16x2(outputs_of(pair, x_scales, w_scales[0]));
                const float2 ups = floats_of_bf16x2(outputs_of(pair + 2, x_scales, w_scales[1]));
                float* to = floats + (8 * i + 2 * t) * ROW_WORDS + warp * 8 + g;
                to[0] = silu(gates.x) * ups.x;
                to[ROW_WORDS] = silu(gates.y) * ups.y;
            }
            sync_warpgroup();
            const uint32_t row = rows + thread / 8, m = segment.row + row;
            const bool exists = row < N && m < p.m;
            float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (exists && n < cols) {
                values = reinterpret_cast<const float4*>(floats + thread / 8 * ROW_WORDS)[thread % 8];
                *reinterpret_cast<float4*>(outputs.at<float>(m) + n) = values;
            }
            store_largest(m, exists, fmaxf(fmaxf(fabsf(values.x), fabsf(values.y)),
                                           fmaxf(fabsf(values.z), fabsf(values.w))));
        }
    }

    // Stores the largest of this warpgroup's part of row `m`, if the row exists. Eight lanes have the row;
    // every lane of a warp calls this.
    DEVICE_MEMBER void store_largest(uint32_t m, bool exists, float largest) const {
        const size_t tile = static_cast<size_t>(m) * p.tiles.outputs + segment.tile;
        p.maxima.store(largest, exists, 2 * tile + group);
    }

    // Waits for the threads of this warpgroup. Constant ids, so that the kernel takes few barriers.
    DEVICE_MEMBER void sync_warpgroup() const {
        if (group == 0) {
            group_sync(2, 128);
        } else {
            group_sync(3, 128);
        }
    }
};
