// OP: residual += sum over ranks of delta; out = quant(norm(residual)), as norm.cu has it
// INPUTS: deltas f32 [rows, cols], one of each rank; residual f32 [rows, cols], right in this rank's rows; weight f32 [cols], bias f32 [cols] or null
// OUTPUTS: residual in this rank's rows; out [rows, cols] as BF16 or E4M3 with scales f32 [rows]: own, or those of every rank
// LAUNCH: any number of blocks of 32 to 512 threads, by cols alone; 4 * cols bytes of shared memory, or 6 * cols if rows are shared out; the same operations in the same order on every rank
// LIMITS: up to 8 ranks; cols a multiple of 16, at most 36,000; unless rows are shared out, two in a row read different deltas
// NUMERICS: F32, from 0 in rank order; the same bits however rows are shared out, and those of reduce.cu followed by norm.cu
// COST: all rows on every rank: rows * cols * 4 * (ranks - 1) bytes in; shared out: that / ranks in, and rows * cols * (ranks - 1) / ranks codes in and out; bound by latency up to some rows, then by the link
// TWINS: src/comm/local.rs
#include "peers.cuh"
#include "row.cuh"

struct ReduceNormParams {
    Peers peers;
    const float4* deltas[MOST_RANKS];
    float4* residual;
    const float* weight;
    const float* bias;
    // Of each rank; if rows are not shared out, this rank's is the only one that is written.
    Quantised out[MOST_RANKS];
    uint32_t cols;
    uint32_t layer_norm;
    // This rank's rows: all, or its share.
    uint32_t first, last;
    uint32_t shared_out;
    float eps;
};
static_assert(sizeof(ReduceNormParams) == 392);

// Gives every rank a row, through a copy in shared memory: a link likes wide stores.
DEVICE void push_row(const ReduceNormParams& p, const float* row, unsigned char* copy, uint32_t index) {
    const Quantised& form = p.out[p.peers.rank];
    const float scale = quantise_row(row, p.cols, form.kind, form.static_scale, copy);
    __syncthreads();
    const uint32_t bytes = form.kind == 0 ? 2 * p.cols : p.cols;
    const auto* from = reinterpret_cast<const uint4*>(copy);
    for (uint32_t i = threadIdx.x; i < bytes / 16; i += blockDim.x) {
        const uint4 vector = from[i];
#pragma unroll
        for (uint32_t rank = 0; rank < MOST_RANKS; ++rank) {
            if (rank >= p.peers.count) continue;
            auto* to = static_cast<unsigned char*>(p.out[rank].values) + static_cast<size_t>(index) * bytes;
            reinterpret_cast<uint4*>(to)[i] = vector;
        }
    }
    if (threadIdx.x < p.peers.count) p.out[threadIdx.x].scales[index] = scale;
}

KERNEL(reduce_norm, ReduceNormParams, ROW_THREADS) {
    const uint32_t operation = operation_of(p.peers);
    const uint32_t cols = p.cols;
    auto* row = reinterpret_cast<float*>(shared_memory());
    const bool come = all_begin(p.peers, operation);
    for (uint32_t index = p.first + blockIdx.x; come && index < p.last; index += gridDim.x) {
        const size_t start = static_cast<size_t>(index) * cols / 4;
        for (uint32_t i = threadIdx.x; i < cols / 4; i += blockDim.x) {
            const float4 x = add(p.residual[start + i], sum_of_parts(p.deltas, p.peers.count, start + i));
            p.residual[start + i] = x;
            reinterpret_cast<float4*>(row)[i] = x;
        }
        __syncthreads();
        float sum = 0.0f;
        for (uint32_t pair = threadIdx.x; pair < cols / 2; pair += blockDim.x) {
            sum += row[2 * pair];
            sum += row[2 * pair + 1];
        }
        norm_row(row, cols, sum, {p.weight, p.bias, p.layer_norm, p.eps});
        if (p.shared_out) {
            push_row(p, row, shared_memory() + 4 * cols, index);
        } else {
            store_row(row, cols, p.out[p.peers.rank], index);
        }
        __syncthreads();
    }
    all_end(p.peers, operation, p.shared_out != 0);
}
