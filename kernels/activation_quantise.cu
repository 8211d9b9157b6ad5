// OP: out = quant(relu(h)^2), for rows whose maxima the product before has stored
// INPUTS: h bf16 [rows, cols]; maxima f32 [rows, tiles, 2], as in output_rows.cuh, with tiles of 128 columns
// OUTPUTS: out E4M3 [rows, cols] with scales f32 [rows]
// LAUNCH: blocks of 96 threads: one per row in x, and in y one per 3,072 columns; no dynamic shared memory
// LIMITS: cols a multiple of 8
// NUMERICS: the bits of activation.cu; NaN stays NaN
// COST: rows * cols * (2 + 1 + 1 / 16) bytes; bound by memory
// TWINS: src/device/cpu/activation.rs
#include "row.cuh"

// Threads of a block, and groups of eight columns that a thread computes. A row of 9,216 columns takes three
// blocks.
constexpr uint32_t THREADS = 96, LOADS = 4;

struct ActivationQuantiseParams {
    const uint4* h;
    const float2* maxima;
    Quantised out;
    uint32_t cols;
    uint32_t unused;
};
static_assert(sizeof(ActivationQuantiseParams) == 56);

KERNEL(activation_quantise, ActivationQuantiseParams, THREADS) {
    const uint32_t row = blockIdx.x, groups = p.cols / 8, tiles = padded(p.cols) / TILE;
    const uint32_t first = blockIdx.y * (LOADS * THREADS) + threadIdx.x;
    uint4 inputs[LOADS];
#pragma unroll
    for (uint32_t load = 0; load < LOADS; ++load) {
        const uint32_t i = first + load * THREADS;
        inputs[load] = make_uint4(0, 0, 0, 0);
        if (i < groups) inputs[load] = p.h[static_cast<size_t>(row) * groups + i];
    }
    // A thread loads the maxima of one tile if a row has at most 12,288 columns.
    float largest = 0.0f;
#pragma unroll 1
    for (uint32_t tile = threadIdx.x; tile < tiles; tile += THREADS) {
        const float2 both = p.maxima[static_cast<size_t>(row) * tiles + tile];
        largest = fmaxf(largest, fmaxf(both.x, both.y));
    }
    largest = block_max(largest);
    const float scale = scale_of(squared_relu(largest)), inverse = 1.0f / scale;
    const RowAddress to = row_of(p.out, row);
#pragma unroll
    for (uint32_t load = 0; load < LOADS; ++load) {
        const uint32_t i = first + load * THREADS;
        if (i >= tiles * (TILE / 8)) continue;
        Eight x = floats_of_bf16x8(inputs[load]);
        x.each([](uint32_t, float& value) { value = squared_relu(value); });
        store_quantised(x, inverse, 1, to, i);
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) p.out.scales[row] = scale;
}
