// OP: out = quant(relu(h)^2), or with a gate quant(silu(gate) * up)
// INPUTS: h f32 or bf16 [rows, cols], or [rows, 2 * cols] with the gate first
// OUTPUTS: out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols even, at most 56,000
// NUMERICS: F32; out within one unit in the last place of the CPU twin's; NaN stays NaN
// COST: rows * cols * (2 or 4, twice that with a gate, + bytes of an output element); bound by memory
// TWINS: src/device/cpu/activation.rs
#include "row.cuh"

struct ActivationParams {
    const void* h;
    Quantised out;
    uint32_t cols;
    uint32_t gated;
    uint32_t bf16;
    uint32_t unused;
};
static_assert(sizeof(ActivationParams) == 56);

// Not fmaxf, which turns NaN into 0: the NaN must reach the sampler, which reports it.
DEVICE float squared_relu(float x) {
    const float positive = x < 0.0f ? 0.0f : x;
    return positive * positive;
}

DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

KERNEL(activation, ActivationParams, ROW_THREADS) {
    const uint32_t cols = p.cols;
    auto* row = reinterpret_cast<float*>(shared_memory());
    const size_t start = static_cast<size_t>(blockIdx.x) * (cols / 2) * (p.gated ? 2 : 1);
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        float2 x = pair_at(p.h, p.bf16, start + pair);
        if (p.gated) {
            const float2 up = pair_at(p.h, p.bf16, start + cols / 2 + pair);
            x = {silu(x.x) * up.x, silu(x.y) * up.y};
        } else {
            x = {squared_relu(x.x), squared_relu(x.y)};
        }
        reinterpret_cast<float2*>(row)[pair] = x;
    }
    store_row(row, cols, p.out, blockIdx.x);
}
