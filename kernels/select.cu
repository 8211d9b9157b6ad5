// OP: out[i] = from[rows[i]]: the rows whose logits are wanted, or rows of logits
// INPUTS: from f32 [*, cols], rows u32 [n]
// OUTPUTS: out f32 [n, cols]
// LAUNCH: one block of 256 threads per output row; no shared memory
// LIMITS: every index of rows is a row of `from`
// NUMERICS: F32, exact
// COST: n * cols * 8 bytes; bound by memory
// TWINS: src/device/cpu/mod.rs
#include "device.cuh"

struct SelectParams {
    const float* from;
    const uint32_t* rows;
    float* out;
    uint32_t cols;
    uint32_t unused;
};
static_assert(sizeof(SelectParams) == 32);

KERNEL(select, SelectParams, 256) {
    const size_t from = static_cast<size_t>(p.rows[blockIdx.x]) * p.cols;
    const size_t to = static_cast<size_t>(blockIdx.x) * p.cols;
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) p.out[to + i] = p.from[from + i];
}
