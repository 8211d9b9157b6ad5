// OP: residual += the sum over ranks of delta; out = quant(norm(residual)), with norm as in norm.cu
// INPUTS: deltas f32 or bf16 [rows, cols], one of each rank, of which only this rank's rows are accessed;
//     residual f32 [rows, cols], valid in this rank's rows; weight f32 [cols], bias f32 [cols] or null
// OUTPUTS: residual in this rank's rows; out [rows, cols] as BF16, or as E4M3 with scales f32 [rows];
//     one-shot writes this rank's out, two-shot every rank's
// LAUNCH: any number of blocks; cols alone decides their number of threads, 32 to 512; 4 * cols bytes of
//     shared memory, 4 or 8 * cols more for weights and biases if `copied`, and if two-shot 2 * cols more,
//     padded to 256; every rank launches the same operations in the same order
// LIMITS: up to 8 ranks; cols a multiple of 16, at most 36,000; two consecutive one-shot launches read
//     different deltas
// NUMERICS: F32; each sum starts at 0 and adds the ranks in order; one-shot and two-shot give the same bits,
//     those of reduce.cu followed by norm.cu
// COST: per rank over the link: one-shot receives rows * cols * (2 or 4) * (ranks - 1) bytes; two-shot
//     receives 1 / ranks of that, or nothing if products have pushed the deltas to this rank's memory, and
//     sends and receives rows * cols * (ranks - 1) / ranks codes; bound by latency for few rows, then by the
//     link
// TWINS: src/comm/local.rs
#include "norm_weights.cuh"
#include "peers.cuh"

struct ReduceNormParams {
    Peers peers;
    // Each delta's row 0. In two-shot mode memory may begin with this rank's first row.
    const void* deltas[MAX_RANKS];
    float* residual;
    const float* weight;
    const float* bias;
    // Indexed by rank. One-shot writes only this rank's.
    Quantised out[MAX_RANKS];
    uint32_t cols;
    uint32_t layer_norm;
    // The rows that this rank computes, first to last - 1: all if one-shot, its share if two-shot.
    uint32_t first, last;
    uint32_t two_shot;
    float eps;
    uint32_t delta_bf16;
    // Whether weights and biases are copied to shared memory while the ranks wait for one another.
    uint32_t copied;
};
static_assert(sizeof(ReduceNormParams) == 464);

// Writes a row to every rank. The row is quantised in shared memory first, so that each store to another rank
// has 16 bytes.
DEVICE void push_row(const ReduceNormParams& p, const SharedRow& row, float amax, unsigned char* copy,
                     uint32_t index) {
    const Quantised& target = p.out[p.peers.rank];
    const RowAddress here = {copy, CHUNK, 0};
    const float scale = quantise_row(row, amax, target, here);
    __syncthreads();
    const uint32_t bytes = padded(p.cols) * (target.kind == 0 ? 2 : 1);
    for (uint32_t at = 16 * threadIdx.x; at < bytes; at += 16 * blockDim.x) {
        const uint4 vector = *reinterpret_cast<const uint4*>(here.at(at));
#pragma unroll
        for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= p.peers.count) continue;
            *reinterpret_cast<uint4*>(row_of(p.out[rank], index).at(at)) = vector;
        }
    }
    if (threadIdx.x < p.peers.count) p.out[threadIdx.x].scales[index] = scale;
}

KERNEL(reduce_norm, ReduceNormParams, ROW_THREADS) {
    SHARED uint64_t weights_copied;
    const uint32_t operation = operation_of(p.peers);
    const SharedRow row = {reinterpret_cast<float*>(shared_memory()), p.cols};
    NormWeights norm = {p.weight, p.bias, p.layer_norm, p.eps};
    if (p.copied) norm = copied(norm, p.cols, row.values + p.cols, &weights_copied);
    const bool begun = all_begin(p.peers, operation);
    for (uint32_t index = p.first + blockIdx.x; begun && index < p.last; index += gridDim.x) {
        const size_t start = static_cast<size_t>(index) * p.cols / 8;
        float sum = 0.0f;
        row.each([&](uint32_t i) {
            const Eight delta = sum_of_parts(p.deltas, p.delta_bf16, p.peers.count, start + i);
            const Eight x = add(eight_at(p.residual, false, start + i), delta);
            store_eight(p.residual, start + i, x);
            row.store(i, x);
            sum = sum_of(x, sum);
        });
        if (p.copied) barrier_wait(&weights_copied, 0);
        const float amax = norm_row(row, sum, norm);
        if (p.two_shot) {
            push_row(p, row, amax, shared_memory() + 4 * p.cols, index);
        } else {
            store_row(row, amax, p.out[p.peers.rank], index);
        }
        __syncthreads();
    }
    // The copies must have ended before the block does.
    if (p.copied) barrier_wait(&weights_copied, 0);
    all_end(p.peers, operation, p.two_shot != 0);
}
