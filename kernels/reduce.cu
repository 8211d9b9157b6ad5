// OP: x = (base +) the sum over ranks of x, on every rank: an all-reduce in place, or residual += the sum of
//     deltas
// INPUTS: parts f32 or bf16 [elements], one of each rank, of which only this rank's share is accessed; base
//     f32 [elements] or null, valid in this rank's share
// OUTPUTS: targets f32 [elements], one of each rank: the parts themselves, or other buffers
// LAUNCH: any number of blocks of 256 threads on every rank, the same operations in the same order; no shared
//     memory
// LIMITS: up to 8 ranks; elements a multiple of 4, of 8 if BF16; BF16 parts are not targets; memory that all
//     ranks can access
// NUMERICS: F32, from 0 in rank order, then base + that: the same bits on every rank, and the CPU twin's
// COST: elements * 8 * (ranks - 1) / ranks bytes in and as many out of a rank (4 each way), with BF16 parts
//     6, or 4 if products have pushed them; bound by the link
// TWINS: src/comm/local.rs
#include "peers.cuh"

struct ReduceParams {
    Peers peers;
    const void* parts[MAX_RANKS];
    float4* targets[MAX_RANKS];
    const float4* base;
    // This rank's share, in groups of 16 bytes of a part.
    uint64_t first, last;
    uint32_t parts_bf16;
    uint32_t unused;
};
static_assert(sizeof(ReduceParams) == 248);

// Writes base + sum, or the sum, to every rank.
DEVICE void write_sum(const ReduceParams& p, uint64_t at, float4 sum) {
    if (p.base != nullptr) sum = add(p.base[at], sum);
#pragma unroll
    for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank < p.peers.count) p.targets[rank][at] = sum;
    }
}

KERNEL(reduce, ReduceParams, 256) {
    const uint32_t operation = operation_of(p.peers);
    if (all_begin(p.peers, operation)) {
        for (uint64_t i = p.first + global_thread(); i < p.last; i += global_threads()) {
            if (p.parts_bf16) {
                const Eight sum = sum_of_parts(p.parts, true, p.peers.count, i);
                write_sum(p, 2 * i, sum.low);
                write_sum(p, 2 * i + 1, sum.high);
            } else {
                write_sum(p, i, sum_of_fours(p.parts, p.peers.count, i));
            }
        }
    }
    all_end(p.peers, operation, true);
}
