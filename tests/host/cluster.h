// A kernel for tests of the emulator (async.cpp): a cluster of two blocks, of which each copies half of every
// chunk to both and adds up all of it, with faults that a test chooses.
#pragma once

#include <numeric>
#include <string>
#include <vector>

#include "../../kernels/wgmma.cuh"

namespace {

constexpr uint32_t PAIR = 2, PIECES = 3, PIECE_WORDS = 64, PIECE_BYTES = 4 * PIECE_WORDS, PIECE_COUNT = 10;

enum class ClusterFault {
    none,
    no_sync_at_start,
    no_sync_at_end,
    sync_of_one_warp,
    no_release_of_the_other,
    early_release_of_the_other,
    release_of_no_block,
    copy_to_no_block,
    copy_to_one_block,
    static_barrier,
    odd_grid,
    copy_before_wait,
    no_wait_of_a_warp,
};

struct ClusterParams {
    // [clusters][chunks][2 halves][words]
    const uint32_t* x;
    // [blocks]
    uint32_t* sums;
    ClusterFault fault;
};

// The first warp copies, the second one adds.
struct PairedSum {
    const ClusterParams& p;
    uint64_t* full;
    uint64_t* empty;

    bool has(ClusterFault fault) const { return p.fault == fault; }

    void produce() const {
        const uint32_t rank = cluster_rank();
        const uint32_t* x = p.x + blockIdx.x / PAIR * (PIECE_COUNT * PAIR * PIECE_WORDS);
        for (uint32_t chunk = 0; chunk < PIECE_COUNT; ++chunk) {
            const uint32_t stage = chunk % PIECES;
            barrier_wait(&empty[stage], chunk / PIECES % 2 ^ 1);
            barrier_expect(&full[stage], PAIR * PIECE_BYTES);
            const uint32_t half = chunk * PAIR + rank;
            unsigned char* to = shared_memory() + (stage * PAIR + rank) * PIECE_BYTES;
            const bool alone = has(ClusterFault::copy_to_one_block);
            const uint16_t blocks = has(ClusterFault::copy_to_no_block) ? 1 << PAIR : alone ? 1 : 3;
            bulk_copy_to(blocks, to, x + half * PIECE_WORDS, PIECE_BYTES, &full[stage]);
        }
    }

    void release(uint32_t stage, uint32_t rank) const {
        const bool other = rank != cluster_rank();
        if (other && has(ClusterFault::no_release_of_the_other)) return;
        const uint32_t more = has(ClusterFault::release_of_no_block) * PAIR;
        if (lane_id() == 0) barrier_arrive_at(&empty[stage], rank + more);
    }

    void consume() const {
        uint32_t sum = 0;
        const uint32_t rank = cluster_rank(), other = rank ^ 1;
        const bool early = has(ClusterFault::early_release_of_the_other);
        for (uint32_t chunk = 0; chunk < PIECE_COUNT; ++chunk) {
            const uint32_t stage = chunk % PIECES;
            // A release that depends on nothing of this block's.
            if (early) release(stage, other);
            barrier_wait(&full[stage], chunk / PIECES % 2);
            const unsigned char* from = shared_memory() + stage * PAIR * PIECE_BYTES;
            const auto* words = reinterpret_cast<const uint32_t*>(from);
            for (uint32_t i = lane_id(); i < PAIR * PIECE_WORDS; i += 32) sum += words[i] * (i + 1 + rank);
            __syncwarp();
            release(stage, rank);
            if (!early) release(stage, other);
        }
        for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        if (lane_id() == 0) p.sums[blockIdx.x] = sum;
    }

    void run() const {
        if (threadIdx.x == 0) {
            for (uint32_t stage = 0; stage < PIECES; ++stage) {
                barrier_init(&full[stage], 1);
                barrier_init(&empty[stage], has(ClusterFault::no_release_of_the_other) ? 1 : PAIR);
            }
            barrier_init_fence();
        }
        if (has(ClusterFault::no_sync_at_start)) {
            __syncthreads();
        } else {
            cluster_sync();
        }
        const bool early = has(ClusterFault::copy_before_wait) && threadIdx.x < 32;
        const bool never = has(ClusterFault::no_wait_of_a_warp) && threadIdx.x >= 32;
        if (!early && !never) wait_for_earlier();
        if (threadIdx.x == 0) produce();
        if (threadIdx.x >= 32) consume();
        if (early) wait_for_earlier();
        const bool syncs = !has(ClusterFault::sync_of_one_warp) || threadIdx.x < 32;
        if (!has(ClusterFault::no_sync_at_end) && syncs) cluster_sync();
    }
};

void paired_sum(const void* params) {
    SHARED uint64_t elsewhere[PAIR][2 * PIECES];
    const auto& p = *static_cast<const ClusterParams*>(params);
    auto* full = reinterpret_cast<uint64_t*>(shared_memory() + PIECES * PAIR * PIECE_BYTES);
    if (p.fault == ClusterFault::static_barrier) full = elsewhere[cluster_rank()];
    PairedSum{p, full, full + PIECES}.run();
}

// Runs two clusters and compares their sums.
template <ClusterFault fault>
std::string in_cluster(bool descending) {
    constexpr uint32_t words = PIECE_COUNT * PAIR * PIECE_WORDS, clusters = 2;
    std::vector<uint4> aligned(clusters * words / 4);
    auto* x = reinterpret_cast<uint32_t*>(aligned.data());
    std::iota(x, x + clusters * words, 1000u);
    uint32_t sums[clusters * PAIR] = {};
    const ClusterParams params{x, sums, fault};
    const uint32_t blocks = clusters * PAIR - (fault == ClusterFault::odd_grid);
    const uint32_t shared = PIECES * PAIR * PIECE_BYTES + 2 * PIECES * 8;
    const OctantLaunch launch{"paired_sum", paired_sum, &params,    {blocks, 1, 1},
                              64,           shared,     descending, PAIR,           true};
    octant_launch(&launch);
    for (uint32_t at = 0; at < clusters * PAIR; ++at) {
        uint32_t expected = 0;
        for (uint32_t i = 0; i < words; ++i) {
            expected += x[at / PAIR * words + i] * (i % (PAIR * PIECE_WORDS) + 1 + at % PAIR);
        }
        if (sums[at] != expected) return "wrong";
    }
    return "right";
}

}  // namespace
