// Checks clusters of two blocks as kernels/linear.cu uses them: each block copies half of every chunk to
// both, and arrives at the barriers of both when it has read a chunk.
#pragma once

#include "../../../kernels/wgmma.cuh"
#include "machine.cuh"

constexpr uint32_t CLUSTER_BLOCKS = 2, CLUSTER_CHUNKS = 64, CLUSTER_STAGES = 2;
constexpr uint32_t HALF_WORDS = 512, CHUNK_WORDS = CLUSTER_BLOCKS * HALF_WORDS;

struct ProbeClusterParams {
    // [clusters][chunks][2 halves][words]
    const uint32_t* in;
    // [blocks][chunks]: the sum of a chunk's words, each times its place from 1 on.
    uint32_t* sums;
};

// The first warp copies, the second one adds.
KERNEL_CLUSTER(probe_clusters, ProbeClusterParams, 64, CLUSTER_BLOCKS) {
    auto* full = reinterpret_cast<uint64_t*>(tile_memory() + CLUSTER_STAGES * CHUNK_WORDS * 4);
    uint64_t* empty = full + CLUSTER_STAGES;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < CLUSTER_STAGES; ++stage) {
            barrier_init(&full[stage], 1);
            barrier_init(&empty[stage], CLUSTER_BLOCKS);
        }
        barrier_init_fence();
    }
    cluster_sync();
    const uint32_t first = blockIdx.x / CLUSTER_BLOCKS * CLUSTER_CHUNKS;
    for (uint32_t chunk = 0; chunk < CLUSTER_CHUNKS; ++chunk) {
        const uint32_t stage = chunk % CLUSTER_STAGES, parity = chunk / CLUSTER_STAGES % 2;
        auto* words = reinterpret_cast<uint32_t*>(tile_memory()) + stage * CHUNK_WORDS;
        if (threadIdx.x == 0) {
            const uint32_t half = cluster_rank() * HALF_WORDS;
            const uint32_t* from = p.in + (first + chunk) * CHUNK_WORDS + half;
            barrier_wait(&empty[stage], parity ^ 1);
            barrier_expect(&full[stage], CHUNK_WORDS * 4);
            bulk_copy_to((1 << CLUSTER_BLOCKS) - 1, words + half, from, HALF_WORDS * 4, &full[stage]);
        } else if (threadIdx.x >= 32) {
            barrier_wait(&full[stage], parity);
            uint32_t sum = 0;
            for (uint32_t i = lane_id(); i < CHUNK_WORDS; i += 32) sum += words[i] * (i + 1);
            for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
            if (lane_id() < CLUSTER_BLOCKS) barrier_arrive_at(&empty[stage], lane_id());
            if (lane_id() == 0) p.sums[blockIdx.x * CLUSTER_CHUNKS + chunk] = sum;
        }
    }
    cluster_sync();
}

namespace probe {

// 66 clusters: one for each two multiprocessors.
inline void clusters(Report& report) {
    constexpr uint32_t count = 66, blocks = count * CLUSTER_BLOCKS, chunks = count * CLUSTER_CHUNKS;
    Random random;
    std::vector<uint32_t> words(chunks * CHUNK_WORDS);
    for (uint32_t& word : words) word = random.below(1u << 31);
    const Array<uint32_t> in(words), sums(blocks * CLUSTER_CHUNKS);
    const ProbeClusterParams params{in.at(), sums.at()};
    const uint32_t shared = CLUSTER_STAGES * (CHUNK_WORDS * 4 + 2 * 8);
    PROBE_LAUNCH_CLUSTERS(probe_clusters, CLUSTER_BLOCKS, blocks, 64, shared, params);
    const std::vector<uint32_t> got = sums.read();
    size_t wrong = 0;
    for (uint32_t at = 0; at < chunks; ++at) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < CHUNK_WORDS; ++i) sum += words[at * CHUNK_WORDS + i] * (i + 1);
        const uint32_t cluster = at / CLUSTER_CHUNKS, chunk = at % CLUSTER_CHUNKS;
        for (uint32_t rank = 0; rank < CLUSTER_BLOCKS; ++rank) {
            wrong += got[(cluster * CLUSTER_BLOCKS + rank) * CLUSTER_CHUNKS + chunk] != sum;
        }
    }
    report.count("copies to both blocks of a cluster", blocks * CLUSTER_CHUNKS, wrong);
}

}  // namespace probe
