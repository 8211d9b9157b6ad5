// OP: out = quant(relu(h)^2), or with a gate quant(silu(gate) * up)
// INPUTS: h f32 or bf16 [rows, cols], or [rows, 2 * cols]: eight gates, the eight that they
//     multiply, and so on
// OUTPUTS: out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols a multiple of 8, at most 56,000
// NUMERICS: F32; out within one unit in the last place of the CPU twin's, but 0 for gates below -87.3; NaN
//     stays NaN
// COST: rows * cols * (2 or 4, twice that with a gate, + bytes of an output element); bound by memory
// TWINS: src/device/cpu/activation.rs
#include "row.cuh"
#include "silu.cuh"

struct ActivationParams {
    const void* h;
    Quantised out;
    uint32_t cols;
    uint32_t gated;
    uint32_t bf16;
    uint32_t unused;
};
static_assert(sizeof(ActivationParams) == 56);

// Computes a row before it is quantised, and returns the largest magnitude of the thread's elements. GATED:
// inputs are gates and the values that they multiply, otherwise the values alone.
template <bool GATED>
DEVICE float activate(const ActivationParams& p, const SharedRow& row) {
    // Groups of eight that a thread loads at a time: as many as leave registers for two blocks of 512
    // threads on a multiprocessor, 64 for each thread.
    constexpr uint32_t LOADS = GATED ? 2 : 3;
    const uint32_t groups = p.cols / 8;
    const size_t start = static_cast<size_t>(blockIdx.x) * groups * (GATED ? 2 : 1);
    float amax = 0.0f;
    for (uint32_t first = threadIdx.x; first < groups; first += LOADS * blockDim.x) {
        Eight inputs[LOADS], ups[LOADS];
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            const uint32_t i = first + load * blockDim.x;
            if (i >= groups) continue;
            inputs[load] = eight_at(p.h, p.bf16, start + (GATED ? 2 * i : i));
            if (GATED) ups[load] = eight_at(p.h, p.bf16, start + 2 * i + 1);
        }
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            const uint32_t i = first + load * blockDim.x;
            if (i >= groups) continue;
            Eight x = inputs[load];
            if (GATED) {
                float up[8];
                ups[load].each([&](uint32_t at, float& value) { up[at] = value; });
                x.each([&](uint32_t at, float& value) { value = silu(value) * up[at]; });
            } else {
                x.each([&](uint32_t, float& value) { value = squared_relu(value); });
            }
            row.store(i, x);
            amax = amax_of(x, amax);
        }
    }
    return amax;
}

KERNEL(activation, ActivationParams, ROW_THREADS) {
    const SharedRow row = {reinterpret_cast<float*>(shared_memory()), p.cols};
    store_row(row, p.gated ? activate<true>(p, row) : activate<false>(p, row), p.out, blockIdx.x);
}
