// OP: whole[row] = part_0[row] | part_1[row] | ...: an all-gather by columns
// INPUTS: parts f32 [rows, cols], one of each rank
// OUTPUTS: whole f32 [rows, ranks * cols]
// LAUNCH: any number of blocks of 256 threads on every rank, the same operations in the same order; no shared
//     memory
// LIMITS: up to 8 ranks; memory that all ranks can access
// NUMERICS: copies
// COST: rows * cols * 4 * (ranks - 1) bytes into a rank; bound by the link
// TWINS: src/comm/local.rs
#include "peers.cuh"

struct GatherParams {
    Peers peers;
    const float* parts[MAX_RANKS];
    float* whole;
    uint32_t rows;
    uint32_t cols;
};
static_assert(sizeof(GatherParams) == 168);

KERNEL(gather, GatherParams, 256) {
    const uint32_t operation = operation_of(p.peers);
    if (all_begin(p.peers, operation)) {
        const uint32_t pieces = p.rows * p.peers.count;
        for (uint32_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
            const uint32_t row = piece / p.peers.count, rank = piece % p.peers.count;
            const float* from = p.parts[rank] + static_cast<size_t>(row) * p.cols;
            float* to = p.whole + static_cast<size_t>(piece) * p.cols;
            if (p.cols % 4 == 0) {
                const auto* fours = reinterpret_cast<const float4*>(from);
                for (uint32_t i = threadIdx.x; i < p.cols / 4; i += blockDim.x) {
                    reinterpret_cast<float4*>(to)[i] = load_l2(fours + i);
                }
                continue;
            }
            for (uint32_t col = threadIdx.x; col < p.cols; col += blockDim.x) to[col] = load_l2(from + col);
        }
    }
    all_end(p.peers, operation, true);
}
