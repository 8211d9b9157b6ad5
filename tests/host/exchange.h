// A kernel for tests of the emulator (async.cpp): the blocks of a cluster store floats in each other's shared
// memory and add them up, with faults that a test chooses.
#pragma once

#include <string>

#include "../../kernels/wgmma.cuh"

namespace {

constexpr uint32_t BLOCKS = 4;

enum class ExchangeFault {
    none,
    no_sync_before,
    no_sync_after,
    no_sync_at_all,
    sync_of_the_block,
    same_memory_again,
    same_place,
    write_in_flight,
    to_no_block,
    outside,
};

struct ExchangeParams {
    // [blocks]
    float* sums;
    ExchangeFault fault;
};

// In each of three turns every block stores a number in every block; turns use two places in turn.
void exchanged_sum(const void* params) {
    SHARED float elsewhere[BLOCKS];
    const auto& p = *static_cast<const ExchangeParams*>(params);
    const auto has = [&](ExchangeFault fault) { return p.fault == fault; };
    auto* places = reinterpret_cast<float*>(shared_memory());
    const uint32_t rank = cluster_rank();
    float sum = 0.0f;
    wait_for_earlier();
    if (has(ExchangeFault::no_sync_before) || has(ExchangeFault::no_sync_at_all)) {
        __syncthreads();
    } else {
        cluster_sync();
    }
    for (uint32_t turn = 0; turn < 3; ++turn) {
        float* place = places + (has(ExchangeFault::same_memory_again) ? 0 : turn % 2 * BLOCKS);
        const uint32_t at = has(ExchangeFault::same_place) ? 0 : rank;
        float* to = (has(ExchangeFault::outside) ? elsewhere : place) + at;
        const uint32_t other = threadIdx.x + has(ExchangeFault::to_no_block);
        if (threadIdx.x < BLOCKS) store_in_block(to, other, static_cast<float>(10 * turn + rank));
        if (has(ExchangeFault::write_in_flight)) place[(rank + 1) % BLOCKS] = 1.0f;
        if (turn == 2 && (has(ExchangeFault::sync_of_the_block) || has(ExchangeFault::no_sync_after))) {
            __syncthreads();
        } else {
            cluster_sync();
        }
        for (uint32_t i = 0; i < BLOCKS; ++i) sum += place[i];
    }
    // Without it, a block could end before the others have stored there.
    if (has(ExchangeFault::sync_of_the_block)) cluster_sync();
    if (threadIdx.x == 0) p.sums[blockIdx.x] = sum;
}

template <ExchangeFault fault>
std::string exchanged(bool descending) {
    float sums[BLOCKS] = {};
    const ExchangeParams params{sums, fault};
    const OctantLaunch launch{"exchanged_sum", exchanged_sum, &params,    {BLOCKS, 1, 1},
                              64,              2 * BLOCKS * 4, descending, BLOCKS};
    octant_launch(&launch);
    for (const float sum : sums) {
        if (std::isnan(sum)) return "NaN";
        if (sum != 3 * (0 + 1 + 2 + 3) + 4 * (0 + 10 + 20)) return "wrong";
    }
    return "right";
}

}  // namespace
