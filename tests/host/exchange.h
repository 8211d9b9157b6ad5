// A kernel for tests of the emulator (async.cpp): the blocks of a cluster store floats in each other's shared
// memory, wait for them and add them up, with faults that a test chooses.
#pragma once

#include <string>

#include "../../kernels/wgmma.cuh"

namespace {

constexpr uint32_t BLOCKS = 4;

enum class ExchangeFault {
    none,
    no_sync_before,
    no_wait,
    late_wait,
    same_place,
    write_in_flight,
    fewer_bytes,
    more_bytes,
    to_no_block,
    outside,
    other_barrier,
};

struct ExchangeParams {
    // [blocks]
    float* sums;
    ExchangeFault fault;
};

// In each of three turns every block stores a number in every block, in memory of that turn.
void exchanged_sum(const void* params) {
    SHARED float elsewhere[BLOCKS];
    SHARED uint64_t other_barrier;
    const auto& p = *static_cast<const ExchangeParams*>(params);
    const auto has = [&](ExchangeFault fault) { return p.fault == fault; };
    auto* barriers = reinterpret_cast<uint64_t*>(shared_memory());
    auto* places = reinterpret_cast<float*>(barriers + 3);
    const uint32_t rank = cluster_rank();
    float sum = 0.0f;
    wait_for_earlier();
    if (threadIdx.x == 0) {
        for (uint32_t turn = 0; turn < 3; ++turn) barrier_init(&barriers[turn], 1);
        barrier_init_fence();
    }
    if (has(ExchangeFault::no_sync_before)) {
        __syncthreads();
    } else {
        cluster_begin();
    }
    for (uint32_t turn = 0; turn < 3; ++turn) {
        float* place = places + turn * BLOCKS;
        const uint32_t at = has(ExchangeFault::same_place) ? 0 : rank;
        float* to = (has(ExchangeFault::outside) ? elsewhere : place) + at;
        uint64_t* done = has(ExchangeFault::other_barrier) ? &other_barrier : &barriers[turn];
        const uint32_t block = threadIdx.x + has(ExchangeFault::to_no_block);
        if (threadIdx.x < BLOCKS) store_in_block(to, done, block, static_cast<float>(10 * turn + rank));
        if (has(ExchangeFault::write_in_flight)) place[rank] = 1.0f;
        const uint32_t count = BLOCKS - has(ExchangeFault::fewer_bytes) + has(ExchangeFault::more_bytes);
        if (threadIdx.x == 0) barrier_expect(&barriers[turn], 4 * count);
        const bool late = has(ExchangeFault::late_wait);
        if (!late && !has(ExchangeFault::no_wait)) barrier_wait_for_blocks(&barriers[turn], 0);
        for (uint32_t i = 0; i < BLOCKS; ++i) sum += place[i];
        if (late) barrier_wait_for_blocks(&barriers[turn], 0);
    }
    if (threadIdx.x == 0) p.sums[blockIdx.x] = sum;
}

template <ExchangeFault fault>
std::string exchanged(bool descending) {
    float sums[BLOCKS] = {};
    const ExchangeParams params{sums, fault};
    const uint32_t shared = 3 * (8 + 4 * BLOCKS);
    const OctantLaunch launch{"exchanged_sum", exchanged_sum, &params,    {BLOCKS, 1, 1},
                              64,              shared,        descending, BLOCKS};
    octant_launch(&launch);
    for (const float sum : sums) {
        if (std::isnan(sum)) return "NaN";
        if (sum != 3 * (0 + 1 + 2 + 3) + 4 * (0 + 10 + 20)) return "wrong";
    }
    return "right";
}

}  // namespace
