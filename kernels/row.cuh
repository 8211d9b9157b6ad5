// Functions of kernels whose output is a quantised row, the input of a product. One block computes a row in
// shared memory. The order of reductions depends on the block's size alone.
#pragma once

#include "device.cuh"

// The largest number of threads of a block that computes one row.
constexpr uint32_t ROW_THREADS = 512;

// The address and type of quantised rows. `kind`: 0 for BF16, 1 for E4M3 with the row's scale amax / 448, 2
// for E4M3 with `static_scale`.
struct Quantised {
    void* values;
    float* scales;
    uint32_t kind;
    float static_scale;
};
static_assert(sizeof(Quantised) == 24);

// The sum over the block, returned to every thread.
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

// The maximum over the block of non-negative values, returned to every thread; NaN is ignored.
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

// Normalises a row of shared memory in place; `sum` is this thread's part of the row's sum. Thread i / 2
// modulo the block's size reads and writes element i. `cols` is even.
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

// Quantises a row of shared memory to `to` and returns the scale to every thread. Thread i / 2 modulo the
// block's size reads element i, and must have written it. `cols` is even.
DEVICE float quantise_row(const float* row, uint32_t cols, uint32_t kind, float static_scale, void* to) {
    if (kind == 0) {
        auto* values = static_cast<uint32_t*>(to);
        for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x) {
            values[i] = bf16x2(row[2 * i], row[2 * i + 1]);
        }
        return 1.0f;
    }
    float scale = static_scale;
    if (kind == 1) {
        float amax = 0.0f;
        for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x)
            amax = fmaxf(amax, fmaxf(fabsf(row[2 * i]), fabsf(row[2 * i + 1])));
        amax = block_max(amax);
        // Below 1e-30 the quotient would be subnormal or zero, and its reciprocal infinite.
        scale = amax > 1e-30f ? amax / 448.0f : 1.0f;
    }
    const float inverse = 1.0f / scale;
    auto* codes = static_cast<uint16_t*>(to);
    for (uint32_t i = threadIdx.x; i < cols / 2; i += blockDim.x)
        codes[i] = e4m3x2(row[2 * i] * inverse, row[2 * i + 1] * inverse);
    return scale;
}

// Quantises a row of shared memory to row `index` of `out`.
DEVICE void store_row(const float* row, uint32_t cols, const Quantised& out, uint32_t index) {
    const size_t start = static_cast<size_t>(index) * cols * (out.kind == 0 ? 2 : 1);
    unsigned char* to = static_cast<unsigned char*>(out.values) + start;
    const float scale = quantise_row(row, cols, out.kind, out.static_scale, to);
    if (threadIdx.x == 0) out.scales[index] = scale;
}
