// OP: x = (base +) the sum over ranks of x, on every rank: an all-reduce in place, or residual += the sum of
//     deltas
// INPUTS: parts f32 [elements], one of each rank; base f32 [elements] or null, valid in this rank's share
// OUTPUTS: targets f32 [elements], one of each rank: the parts themselves, or other buffers
// LAUNCH: any number of blocks of 256 threads on every rank, the same operations in the same order; no shared
//     memory
// LIMITS: up to 8 ranks; elements a multiple of 4; memory that all ranks can access
// NUMERICS: F32, from 0 in rank order, then base + that: the same bits on every rank, and the CPU twin's
// COST: elements * 8 * (ranks - 1) / ranks bytes in and as many out of a rank (4 each way); bound by the link
// TWINS: src/comm/local.rs
#include "peers.cuh"

struct ReduceParams {
    Peers peers;
    const float4* parts[MAX_RANKS];
    float4* targets[MAX_RANKS];
    const float4* base;
    // This rank's share, in vectors of four elements.
    uint64_t first, last;
};
static_assert(sizeof(ReduceParams) == 240);

KERNEL(reduce, ReduceParams, 256) {
    const uint32_t operation = operation_of(p.peers);
    if (all_begin(p.peers, operation)) {
        for (uint64_t i = p.first + global_thread(); i < p.last; i += global_threads()) {
            float4 sum = sum_of_parts(p.parts, p.peers.count, i);
            if (p.base != nullptr) sum = add(p.base[i], sum);
#pragma unroll
            for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
                if (rank < p.peers.count) p.targets[rank][i] = sum;
            }
        }
    }
    all_end(p.peers, operation, true);
}
