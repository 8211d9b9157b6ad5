// OP: residual += delta; out = quant(norm(residual)), where norm is LayerNorm1p, (x - mean) / sqrt(var + eps)
//     * (1 + w) + b, or RMSNorm, x / sqrt(mean(x^2) + eps) * w
// INPUTS: residual f32 [rows, cols], delta f32 or bf16 [rows, cols] or null, weight f32 [cols], bias f32
//     [cols] or null
// OUTPUTS: residual, if there is a delta; out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols a multiple of 8, at most 56,000
// NUMERICS: F32, sums as a tree over the block; out within one unit in the last place of the CPU twin's
// COST: rows * cols * (4 + 2 or 4 of a delta and 4 written back + bytes of an output element) bytes, and cols
//     * 8; bound by memory
// TWINS: src/device/cpu/norm.rs
#include "row.cuh"

struct NormParams {
    float* residual;
    const void* delta;
    const float* weight;
    const float* bias;
    Quantised out;
    uint32_t cols;
    uint32_t layer_norm;
    float eps;
    uint32_t delta_bf16;
};
static_assert(sizeof(NormParams) == 80);

KERNEL(norm, NormParams, ROW_THREADS) {
    const SharedRow row = {reinterpret_cast<float*>(shared_memory()), p.cols};
    const size_t start = static_cast<size_t>(blockIdx.x) * p.cols / 8;
    float sum = 0.0f;
    row.each([&](uint32_t i) {
        Eight x = eight_at(p.residual, false, start + i);
        if (p.delta != nullptr) {
            x = add(x, eight_at(p.delta, p.delta_bf16, start + i));
            store_eight(p.residual, start + i, x);
        }
        row.store(i, x);
        sum = sum_of(x, sum);
    });
    const float amax = norm_row(row, sum, {p.weight, p.bias, p.layer_norm, p.eps});
    store_row(row, amax, p.out, blockIdx.x);
}
