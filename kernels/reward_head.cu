// OP: out = norm(hidden) * weight^T + bias, with the norms of norm.cu
// INPUTS: hidden f32 [rows, cols]; norm_weight f32 [cols]; norm_bias f32 [cols] or null; weight f32
//     [width, cols]; bias f32 [width]
// OUTPUTS: out f32 [rows, width]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols a multiple of 8, at most 56,000
// NUMERICS: F32, sums as a tree over the block, the values in order; within a few units in the last place of
//     the largest summand of the CPU twin's
// COST: rows * cols * 4 + width * cols * 4 bytes; bound by memory
// TWINS: src/device/cpu/reward_head.rs
#include "row.cuh"

struct RewardHeadParams {
    const float* hidden;
    const float* norm_weight;
    const float* norm_bias;
    const float* weight;
    const float* bias;
    float* out;
    uint32_t cols;
    uint32_t width;
    uint32_t layer_norm;
    float eps;
};
static_assert(sizeof(RewardHeadParams) == 64);

KERNEL(reward_head, RewardHeadParams, ROW_THREADS) {
    const SharedRow row = {reinterpret_cast<float*>(shared_memory()), p.cols};
    const size_t start = static_cast<size_t>(blockIdx.x) * p.cols / 8;
    float sum = 0.0f;
    row.each([&](uint32_t i) {
        const Eight x = eight_at(p.hidden, false, start + i);
        row.store(i, x);
        sum = sum_of(x, sum);
    });
    norm_row(row, sum, {p.norm_weight, p.norm_bias, p.layer_norm, p.eps});
    for (uint32_t value = 0; value < p.width; ++value) {
        const float* weight = p.weight + static_cast<size_t>(value) * p.cols;
        float product = 0.0f;
        row.each([&](uint32_t i) {
            float weights[8];
            eight_at(weight, false, i).each([&](uint32_t at, float& w) { weights[at] = w; });
            row.load(i).each([&](uint32_t at, float& x) { product += x * weights[at]; });
        });
        const float total = block_sum(product);
        const size_t at = static_cast<size_t>(blockIdx.x) * p.width + value;
        if (threadIdx.x == 0) p.out[at] = total + p.bias[value];
    }
}
