// Functions of kernels whose output is a quantised row, the input of a product. One block computes a row in
// shared memory. The order of reductions depends on the block's size alone.
#pragma once

#include "pack.cuh"

// The largest number of threads of a block that computes one row.
constexpr uint32_t ROW_THREADS = 512;

// The address and type of quantised rows, in the layout of pack.cuh. `kind`: 0 for BF16, 1 for E4M3 with the
// row's scale amax / 448, 2 for E4M3 with `static_scale`. `rows` is the number of rows, padded to a multiple
// of 8.
struct Quantised {
    unsigned char* values;
    float* scales;
    uint32_t kind;
    float static_scale;
    uint32_t rows;
    uint32_t unused;
};
static_assert(sizeof(Quantised) == 32);

// Elements of a row of `cols` elements with its padding.
DEVICE uint32_t padded(uint32_t cols) { return (cols + 127) / 128 * 128; }

// Where the chunks of a row are.
struct RowAddress {
    unsigned char* first;
    // Bytes from a chunk to the next.
    size_t stride;
    // Exchanges the pieces of a chunk.
    uint32_t swizzle;

    // The address of a byte of the row.
    DEVICE_MEMBER unsigned char* at(uint32_t byte) const {
        return first + byte / CHUNK * stride + (byte % CHUNK ^ swizzle);
    }
};

// The address of row `index` of `out`.
DEVICE RowAddress row_of(const Quantised& out, uint32_t index) {
    const size_t row = static_cast<size_t>(index) * CHUNK, stride = static_cast<size_t>(out.rows) * CHUNK;
    return {out.values + row, stride, index % 8 * 16};
}

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

// Quantises a row of shared memory to `to`, pads it with zeros, and returns the scale to every thread.
// Thread i / 2 modulo the block's size reads element i, and must have written it. `cols` is even.
DEVICE float quantise_row(const float* row, uint32_t cols, uint32_t kind, float static_scale,
                          const RowAddress& to) {
    const uint32_t pairs = padded(cols) / 2;
    if (kind == 0) {
        for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
            const uint32_t pair = i < cols / 2 ? bf16x2(row[2 * i], row[2 * i + 1]) : 0;
            *reinterpret_cast<uint32_t*>(to.at(4 * i)) = pair;
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
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        const uint16_t codes = i < cols / 2 ? e4m3x2(row[2 * i] * inverse, row[2 * i + 1] * inverse) : 0;
        *reinterpret_cast<uint16_t*>(to.at(2 * i)) = codes;
    }
    return scale;
}

// Quantises a row of shared memory to row `index` of `out`.
DEVICE void store_row(const float* row, uint32_t cols, const Quantised& out, uint32_t index) {
    const float scale = quantise_row(row, cols, out.kind, out.static_scale, row_of(out, index));
    if (threadIdx.x == 0) out.scales[index] = scale;
}
