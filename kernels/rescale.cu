// OP: out[m][n] = out[m][n] * x_scales[m] * w_scales[n]: applies the scales to a product without scales
// INPUTS: x_scales f32 [m], w_scales f32 [n]
// OUTPUTS: out f32 [m, n], in place
// LAUNCH: blocks of 256 threads: one per row in x, any number in y, which divide n; no shared memory
// LIMITS: none
// NUMERICS: F32, in the order above
// COST: 8 * m * n bytes; bound by memory
// TWINS: src/device/cuda/cublaslt_linear.rs
#include "device.cuh"

struct RescaleParams {
    float* out;
    const float* x_scales;
    const float* w_scales;
    uint32_t n;
    uint32_t unused;
};
static_assert(sizeof(RescaleParams) == 32);

KERNEL(rescale, RescaleParams, 256) {
    float* row = p.out + static_cast<size_t>(blockIdx.x) * p.n;
    const float scale = p.x_scales[blockIdx.x];
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < p.n; i += gridDim.y * blockDim.x) {
        row[i] = row[i] * scale * p.w_scales[i];
    }
}
