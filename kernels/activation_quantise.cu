// OP: out = quant(relu(h)^2), or quant(h) if the product before has computed SwiGLU, for rows whose maxima it
//     has stored
// INPUTS: h bf16 [rows, cols], or f32 after SwiGLU; maxima f32 [rows, tiles, 2], as in output_rows.cuh, with
//     tiles of 128 columns, or 64 after SwiGLU
// OUTPUTS: out E4M3 [rows, cols] with scales f32 [rows]
// LAUNCH: blocks of 96 threads: one per row in x, and in y one per 3,072 columns, or 1,536 after SwiGLU; no
//     dynamic shared memory
// LIMITS: cols a multiple of 8
// NUMERICS: the bits of activation.cu; NaN stays NaN
// COST: rows * cols * (2 + 1 + 1 / 16) bytes, or (4 + 1 + 1 / 8) after SwiGLU; bound by memory
// TWINS: src/device/cpu/activation.rs
#include "row.cuh"

constexpr uint32_t THREADS = 96;
// 16 bytes that a thread loads at a time. Groups of eight columns take half as many if they are F32. A row of
// 9,216 columns of BF16 takes three blocks.
constexpr uint32_t LOADS = 4;

struct ActivationQuantiseParams {
    const void* h;
    const float2* maxima;
    Quantised out;
    uint32_t cols;
    uint32_t gated;
};
static_assert(sizeof(ActivationQuantiseParams) == 56);

// Eight elements as they are loaded.
struct Bf16Group {
    uint4 pairs;
    DEVICE_MEMBER Eight activated() const {
        Eight x = floats_of_bf16x8(pairs);
        x.each([](uint32_t, float& value) { value = squared_relu(value); });
        return x;
    }
    static DEVICE_MEMBER float largest(float output) { return squared_relu(output); }
};
struct F32Group {
    Eight values;
    DEVICE_MEMBER Eight activated() const { return values; }
    static DEVICE_MEMBER float largest(float value) { return value; }
};

// `row_tiles`: tiles of the product.
template <typename Group>
DEVICE void quantise(const ActivationQuantiseParams& p, uint32_t row_tiles) {
    constexpr uint32_t GROUPS = LOADS * sizeof(uint4) / sizeof(Group);
    const uint32_t row = blockIdx.x, groups = p.cols / 8;
    const uint32_t first = blockIdx.y * (GROUPS * THREADS) + threadIdx.x;
    const Group* h = static_cast<const Group*>(p.h) + static_cast<size_t>(row) * groups;
    Group inputs[GROUPS];
#pragma unroll
    for (uint32_t load = 0; load < GROUPS; ++load) {
        const uint32_t i = first + load * THREADS;
        inputs[load] = Group{};
        if (i < groups) inputs[load] = h[i];
    }
    // A thread loads the maxima of one tile if a row of the product has at most 12,288 outputs.
    float largest = 0.0f;
#pragma unroll 1
    for (uint32_t tile = threadIdx.x; tile < row_tiles; tile += THREADS) {
        const float2 both = p.maxima[static_cast<size_t>(row) * row_tiles + tile];
        largest = fmaxf(largest, fmaxf(both.x, both.y));
    }
    const float scale = scale_of(Group::largest(block_max(largest))), inverse = 1.0f / scale;
    const RowAddress to = row_of(p.out, row);
#pragma unroll
    for (uint32_t load = 0; load < GROUPS; ++load) {
        const uint32_t i = first + load * THREADS;
        if (i < padded(p.cols) / 8) store_quantised(inputs[load].activated(), inverse, 1, to, i);
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) p.out.scales[row] = scale;
}

KERNEL(activation_quantise, ActivationQuantiseParams, THREADS) {
    if (p.gated) {
        quantise<F32Group>(p, padded(2 * p.cols) / TILE);
    } else {
        quantise<Bf16Group>(p, padded(p.cols) / TILE);
    }
}
