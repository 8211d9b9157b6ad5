// Operations that end in a row which a product reads: one block a row, the row in shared memory, reductions in an
// order that depends on the block's size alone.
#pragma once

#include "device.cuh"

// The most threads of a block that does one row.
constexpr uint32_t ROW_THREADS = 512;

// Where quantised rows go. `kind`: 0 rounds to BF16; 1 to E4M3 with the scale amax / 448 of the row; 2 to E4M3 with
// `static_scale`.
struct Quantised {
    void* values;
    float* scales;
    uint32_t kind;
    float static_scale;
};
static_assert(sizeof(Quantised) == 24);

// The sum over the block; every thread gets it.
DEVICE float block_sum(float x) {
    SHARED float partial[ROW_THREADS / 32];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    __syncthreads();
    if (lane_id() == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    return sum;
}

// The largest over the block of values that are not negative; NaN does not count.
DEVICE float block_max(float x) {
    SHARED float partial[ROW_THREADS / 32];
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads();
    if (lane_id() == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float largest = 0.0f;
    for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, partial[warp]);
    return largest;
}

// The weights of a norm.
struct NormWeights {
    const float* weight;
    const float* bias;
    uint32_t layer_norm;
    float eps;
};

// Normalises a row of shared memory in place; `sum` is this thread's part of the row's sum. Element i is read and written
// by thread i / 2 modulo the block's size. `cols` is even.
DEVICE void norm_row(float* row, uint32_t cols, float sum, const NormWeights& norm) {
    const float count = static_cast<float>(cols);
    const float mean = norm.layer_norm ? block_sum(sum) / count : 0.0f;
    float squares = 0.0f;
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        const float a = row[2 * pair] - mean, b = row[2 * pair + 1] - mean;
        squares += a * a;
        squares += b * b;
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / count + norm.eps);
    const float offset = norm.layer_norm ? 1.0f : 0.0f;
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        for (uint32_t i = 2 * pair; i < 2 * pair + 2; ++i) {
            const float y = (row[i] - mean) * inverse * (norm.weight[i] + offset);
            row[i] = norm.bias == nullptr ? y : y + norm.bias[i];
        }
    }
}

// Quantises a row of shared memory, each element of which was written by the thread that reads it here: element i by
// thread i / 2 modulo the block's size. `cols` is even. Every thread gets the scale.
DEVICE float quantise_row(const float* row, uint32_t cols, uint32_t kind, float static_scale, void* to) {
    if (kind == 0) {
        auto* values = static_cast<uint32_t*>(to);
        for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x) values[i] = bf16x2(row[2 * i], row[2 * i + 1]);
        return 1.0f;
    }
    float scale = static_scale;
    if (kind == 1) {
        float amax = 0.0f;
        for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x)
            amax = fmaxf(amax, fmaxf(fabsf(row[2 * i]), fabsf(row[2 * i + 1])));
        amax = block_max(amax);
        // Below this the quotient would be subnormal or zero, and its reciprocal infinite.
        scale = amax > 1e-30f ? amax / 448.0f : 1.0f;
    }
    const float inverse = 1.0f / scale;
    auto* codes = static_cast<uint16_t*>(to);
    for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x)
        codes[i] = e4m3x2(row[2 * i] * inverse, row[2 * i + 1] * inverse);
    return scale;
}

// The same, to where it belongs.
DEVICE void store_row(const float* row, uint32_t cols, const Quantised& out, uint32_t index) {
    const size_t start = static_cast<size_t>(index) * cols * (out.kind == 0 ? 2 : 1);
    const float scale = quantise_row(row, cols, out.kind, out.static_scale, static_cast<unsigned char*>(out.values) + start);
    if (threadIdx.x == 0) out.scales[index] = scale;
}
