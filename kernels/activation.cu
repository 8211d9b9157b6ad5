// OP: out = quant(relu(h)^2), or with a gate quant(silu(gate) * up)
// INPUTS: h f32 [rows, cols], or [rows, 2 * cols] with the gate first
// OUTPUTS: out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols even, at most 56,000
// NUMERICS: F32; out within one unit in the last place of the CPU twin's; NaN stays NaN
// COST: rows * cols * (4, or 8 with a gate, + bytes of an output element); bound by memory
// TWINS: src/device/cpu/activation.rs
#include "row.cuh"

struct ActivationParams {
    const float* h;
    Quantised out;
    uint32_t cols;
    uint32_t gated;
};
static_assert(sizeof(ActivationParams) == 48);

KERNEL(activation, ActivationParams, ROW_THREADS) {
    const uint32_t cols = p.cols;
    auto* row = reinterpret_cast<float*>(shared_memory());
    const float* h = p.h + static_cast<size_t>(blockIdx.x) * cols * (p.gated ? 2 : 1);
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        for (uint32_t i = 2 * pair; i < 2 * pair + 2; ++i) {
            const float x = h[i];
            if (p.gated) {
                row[i] = x / (1.0f + expf(-x)) * h[cols + i];
            } else {
                // Not fmaxf, which turns NaN into 0: the NaN must reach the sampler, which reports it.
                const float positive = x < 0.0f ? 0.0f : x;
                row[i] = positive * positive;
            }
        }
    }
    store_row(row, cols, p.out, blockIdx.x);
}
