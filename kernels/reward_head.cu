// OP: out = norm(hidden) * weight^T + bias, with the norms of norm.cu
// INPUTS: hidden f32 [rows, cols]; norm_weight f32 [cols]; norm_bias f32 [cols] or null; weight f32
//     [width, cols]; bias f32 [width]
// OUTPUTS: out f32 [rows, width]
// LAUNCH: one block per row; cols alone decides its number of threads, 32 to 512; 4 * cols bytes of shared
//     memory
// LIMITS: cols even, at most 56,000
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
    const uint32_t cols = p.cols;
    auto* row = reinterpret_cast<float*>(shared_memory());
    const float* hidden = p.hidden + static_cast<size_t>(blockIdx.x) * cols;
    float sum = 0.0f;
    for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
        for (uint32_t i = 2 * pair; i < 2 * pair + 2; ++i) {
            row[i] = hidden[i];
            sum += row[i];
        }
    }
    norm_row(row, cols, sum, {p.norm_weight, p.norm_bias, p.layer_norm, p.eps});
    for (uint32_t value = 0; value < p.width; ++value) {
        const float* weight = p.weight + static_cast<size_t>(value) * cols;
        float product = 0.0f;
        // A thread reads the elements that it has normalised.
        for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
            product += row[2 * pair] * weight[2 * pair];
            product += row[2 * pair + 1] * weight[2 * pair + 1];
        }
        const float total = block_sum(product);
        const size_t at = static_cast<size_t>(blockIdx.x) * p.width + value;
        if (threadIdx.x == 0) p.out[at] = total + p.bias[value];
    }
}
