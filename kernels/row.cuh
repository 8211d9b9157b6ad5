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

// The sum over a warp, returned to every lane.
DEVICE float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// The maximum over a warp, returned to every lane; NaN is ignored.
DEVICE float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// The sum of the sums of warps, in order.
DEVICE float sum_of_warps(const float* partial, uint32_t warps) {
    float sum = 0.0f;
    for (uint32_t warp = 0; warp < warps; ++warp) sum += partial[warp];
    return sum;
}

// The sum over the block, returned to every thread.
DEVICE float block_sum(float x) {
    SHARED float partial[ROW_THREADS / 32];
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return sum_of_warps(partial, blockDim.x / 32);
}

// The maximum over the block of non-negative values, returned to every thread; NaN is ignored.
DEVICE float block_max(float x) {
    SHARED float partial[ROW_THREADS / 32];
    x = warp_max(x);
    __syncthreads();
    if (lane_id() == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float largest = 0.0f;
    for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, partial[warp]);
    return largest;
}

// A row in shared memory. Thread i / 8 modulo the block's size reads and writes element i; other threads may
// do so before and after a barrier. The number of elements is a multiple of 8.
struct SharedRow {
    float* values;
    uint32_t cols;

    // Half of the threads begin with the upper four elements, so that eight threads in a row access all
    // banks.
    static DEVICE_MEMBER uint32_t swaps() { return threadIdx.x / 4 % 2; }

    DEVICE_MEMBER Eight load(uint32_t i) const {
        const auto* fours = reinterpret_cast<const float4*>(values) + 2 * i;
        const float4 a = fours[swaps()], b = fours[1 - swaps()];
        return swaps() ? Eight{b, a} : Eight{a, b};
    }

    DEVICE_MEMBER void store(uint32_t i, const Eight& x) const {
        auto* fours = reinterpret_cast<float4*>(values) + 2 * i;
        fours[swaps()] = swaps() ? x.high : x.low;
        fours[1 - swaps()] = swaps() ? x.low : x.high;
    }

    // Calls `function` with the index of each of this thread's groups of eight.
    template <typename Function>
    DEVICE_MEMBER void each(Function function) const {
        for (uint32_t i = threadIdx.x; i < cols / 8; i += blockDim.x) function(i);
    }
};

DEVICE Eight zeros() { return {make_float4(0.0f, 0.0f, 0.0f, 0.0f), make_float4(0.0f, 0.0f, 0.0f, 0.0f)}; }

// The sum of eight floats and `sum`, in order.
DEVICE float sum_of(Eight x, float sum) {
    x.each([&](uint32_t, float& x) { sum += x; });
    return sum;
}

// The largest magnitude of eight floats and `amax`; NaN is ignored.
DEVICE float amax_of(Eight x, float amax) {
    x.each([&](uint32_t, float& x) { amax = fmaxf(amax, fabsf(x)); });
    return amax;
}

// The weights of a norm, in global or shared memory.
struct NormWeights {
    const float* weight;
    const float* bias;
    uint32_t layer_norm;
    float eps;
};

// Adds the squares of eight differences from the mean to `squares`, in order.
DEVICE float squares_of(Eight x, float mean, float squares) {
    x.each([&](uint32_t, float& x) { squares += (x - mean) * (x - mean); });
    return squares;
}

// The factor of a norm over `cols` elements with this sum of squares.
DEVICE float norm_factor(float squares, uint32_t cols, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(cols) + eps);
}

// Normalises eight elements with the weights and biases 8i to 8i + 7.
DEVICE Eight normalised(Eight x, const NormWeights& norm, uint32_t i, float mean, float factor) {
    const float offset = norm.layer_norm ? 1.0f : 0.0f;
    Eight weight = eight_at(norm.weight, false, i), bias = {};
    if (norm.bias != nullptr) bias = eight_at(norm.bias, false, i);
    float weights[8], biases[8];
    weight.each([&](uint32_t at, float& w) { weights[at] = w; });
    bias.each([&](uint32_t at, float& b) { biases[at] = b; });
    x.each([&](uint32_t at, float& x) {
        x = (x - mean) * factor * (weights[at] + offset);
        if (norm.bias != nullptr) x += biases[at];
    });
    return x;
}

// Normalises a row in place; `sum` is this thread's part of the row's sum. Returns the thread's largest
// magnitude.
DEVICE float norm_row(const SharedRow& row, float sum, const NormWeights& norm) {
    const float mean = norm.layer_norm ? block_sum(sum) / static_cast<float>(row.cols) : 0.0f;
    float squares = 0.0f;
    row.each([&](uint32_t i) { squares = squares_of(row.load(i), mean, squares); });
    const float factor = norm_factor(block_sum(squares), row.cols, norm.eps);
    float amax = 0.0f;
    row.each([&](uint32_t i) {
        const Eight x = normalised(row.load(i), norm, i, mean, factor);
        row.store(i, x);
        amax = amax_of(x, amax);
    });
    return amax;
}

// Not fmaxf, which turns NaN into 0: the NaN must reach the sampler, which reports it.
DEVICE float squared_relu(float x) {
    const float positive = x < 0.0f ? 0.0f : x;
    return positive * positive;
}

DEVICE uint32_t e4m3x4(const float4& x) {
    return e4m3x2(x.x, x.y) | static_cast<uint32_t>(e4m3x2(x.z, x.w)) << 16;
}

// The scale of a row of E4M3 whose largest magnitude is `amax`. Below 1e-30 the quotient would be subnormal
// or zero, and its reciprocal infinite.
DEVICE float scale_of(float amax) { return amax > 1e-30f ? amax / 448.0f : 1.0f; }

// Stores elements 8i to 8i + 7 of a row of type `kind`; E4M3 is multiplied by `inverse` first.
DEVICE void store_quantised(Eight x, float inverse, uint32_t kind, const RowAddress& to, uint32_t i) {
    if (kind == 0) {
        *reinterpret_cast<uint4*>(to.at(16 * i)) =
            make_uint4(bf16x2(x.low.x, x.low.y), bf16x2(x.low.z, x.low.w), bf16x2(x.high.x, x.high.y),
                       bf16x2(x.high.z, x.high.w));
        return;
    }
    x.each([&](uint32_t, float& x) { x *= inverse; });
    *reinterpret_cast<uint2*>(to.at(8 * i)) = make_uint2(e4m3x4(x.low), e4m3x4(x.high));
}

// Quantises a row to `to`, pads it with zeros, and returns the scale to every thread. `amax` is the largest
// magnitude of this thread's elements.
DEVICE float quantise_row(const SharedRow& row, float amax, const Quantised& out, const RowAddress& to) {
    const float scale = out.kind == 1 ? scale_of(block_max(amax)) : out.static_scale;
    const float inverse = 1.0f / scale;
    const auto store = [&](uint32_t kind) {
        for (uint32_t i = threadIdx.x; i < padded(row.cols) / 8; i += blockDim.x) {
            store_quantised(8 * i < row.cols ? row.load(i) : zeros(), inverse, kind, to, i);
        }
    };
    // A loop for each type of output, without branches on the type.
    if (out.kind == 0) {
        store(0);
    } else {
        store(1);
    }
    return scale;
}

// Quantises a row to row `index` of `out`.
DEVICE void store_row(const SharedRow& row, float amax, const Quantised& out, uint32_t index) {
    const float scale = quantise_row(row, amax, out, row_of(out, index));
    if (threadIdx.x == 0) out.scales[index] = scale;
}

// The same for a row whose elements any threads have written.
DEVICE void store_row(const float* values, uint32_t cols, const Quantised& out, uint32_t index) {
    __syncthreads();
    const SharedRow row = {const_cast<float*>(values), cols};
    float amax = 0.0f;
    row.each([&](uint32_t i) { amax = amax_of(row.load(i), amax); });
    store_row(row, amax, out, index);
}
