// OP: out[m][n] = out[m][n] * x_scales[m] * w_scales[n]: applies the scales to a product without scales
// INPUTS: x_scales f32 [m], w_scales f32 [n]
// OUTPUTS: out bf16 [m, n], in place
// LAUNCH: blocks of 256 threads: one per row in x, any number in y, which divide n; no shared memory
// LIMITS: n even
// NUMERICS: F32, in the order above, then to nearest BF16
// COST: 4 * m * n bytes; bound by memory
// TWINS: src/device/cuda/cublaslt_linear.rs
#include "device.cuh"

struct RescaleParams {
    uint32_t* out;
    const float* x_scales;
    const float* w_scales;
    uint32_t n;
    uint32_t unused;
};
static_assert(sizeof(RescaleParams) == 32);

KERNEL(rescale, RescaleParams, 256) {
    uint32_t* pairs = p.out + static_cast<size_t>(blockIdx.x) * (p.n / 2);
    const float scale = p.x_scales[blockIdx.x];
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < p.n / 2; i += gridDim.y * blockDim.x) {
        const float2 x = floats_of_bf16x2(pairs[i]);
        pairs[i] = bf16x2(x.x * scale * p.w_scales[2 * i], x.y * scale * p.w_scales[2 * i + 1]);
    }
}
