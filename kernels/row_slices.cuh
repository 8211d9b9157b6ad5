// A row over the blocks of a cluster, with the bits that one block computes (row.cuh).
//
// In one block, of `threads` threads, a thread adds up every `threads`-th group of eight elements, a warp
// adds its threads' sums, and every thread adds the warps' sums in order. A block of a cluster has the groups
// of some of these warps, its slice. Its first threads do what those warps would do. Then the blocks store
// the warps' sums in each other's shared memory, and every thread adds all of them in the same order. Loads,
// norm and quantisation take each element by itself, so a block has more threads for them.
#pragma once

#include "row.cuh"
#include "wgmma.cuh"

// Blocks of a row's cluster.
constexpr uint32_t SLICES = 4;
// The largest number of threads of a block that computes a slice: one for each group of a slice if a row has
// at most 20,480 elements.
constexpr uint32_t SLICE_THREADS = 640;
// Results of warps that blocks exchange at a time.
constexpr uint32_t EXCHANGED = SLICES * SLICE_THREADS / 32;

// A block's slice of a row, in slots of eight elements: `rounds` times `lanes`. A thread accesses the slots
// of its index modulo the block's size; other threads may do so before and after a barrier.
struct RowSlice {
    // The slots; `cols` are the row's.
    SharedRow slots;
    // Threads of a block that would compute the row alone, how many of them this one stands for, and the
    // first of those.
    uint32_t threads, lanes, first;
    uint32_t rounds;
    // This thread's place in a round, its first round, and the number of rounds to the next. The block's size
    // is a multiple of `lanes`.
    uint32_t lane, round, step;

    // The slice of a row of `cols` elements that this block has, with memory for it from `at` on.
    static DEVICE_MEMBER RowSlice of(float* at, uint32_t cols, uint32_t threads) {
        const uint32_t lanes = (threads / 32 + SLICES - 1) / SLICES * 32;
        const uint32_t rounds = (padded(cols) / 8 + threads - 1) / threads;
        return {{at, cols}, threads, lanes, cluster_rank() * lanes, rounds, threadIdx.x % lanes,
                threadIdx.x / lanes, blockDim.x / lanes};
    }

    // The floats of all slots.
    DEVICE_MEMBER uint32_t floats() const { return 8 * rounds * lanes; }

    // Whether every block of the cluster adds up groups.
    DEVICE_MEMBER bool all_add() const { return (SLICES - 1) * lanes < threads; }

    // Whether this thread adds up groups.
    DEVICE_MEMBER bool adds() const { return threadIdx.x < lanes && first + threadIdx.x < threads; }

    // Calls `function` with each of this thread's slots and its group, of the row's first `groups`.
    template <typename Function>
    DEVICE_MEMBER void each(uint32_t groups, Function function) const {
        if (first + lane >= threads) return;
        for (uint32_t at = round; at < rounds; at += step) {
            const uint32_t group = at * threads + first + lane;
            if (group < groups) function(at * lanes + lane, group);
        }
    }

    // Calls `function` with each slot that this thread adds up, in order.
    template <typename Function>
    DEVICE_MEMBER void each_added(Function function) const {
        uint32_t slot = threadIdx.x;
        for (uint32_t group = first + threadIdx.x; group < slots.cols / 8; group += threads, slot += lanes) {
            function(slot);
        }
    }
};

// Results that blocks exchange of a row.
enum class Result : uint32_t { sum, squares, largest };
constexpr uint32_t RESULTS = 3;

// Exchanges results of warps between the blocks of a cluster. A warp stores its result in every block and
// completes bytes of that block's barrier, where all threads wait. So none waits for its other writes.
//
// Rows r and r + 2 use the same memory. Before a block stores results of row r + 2, it has received results
// of row r + 1 from every block. A block sends those only after all its threads have ended row r. They are
// the squares, or the maxima if some blocks add no groups.
struct SliceExchange {
    // [2][RESULTS][EXCHANGED] results and [2][RESULTS] barriers, at the same places in each block.
    float* results;
    uint64_t* barriers;
    // Rows before this one.
    uint32_t rows;

    // Bytes of shared memory of all results and barriers.
    static constexpr uint32_t BYTES = 1984;
    static_assert(BYTES >= 2 * RESULTS * (4 * EXCHANGED + 8) && BYTES % 16 == 0);

    static DEVICE_MEMBER SliceExchange in(unsigned char* shared) {
        auto* results = reinterpret_cast<float*>(shared);
        return {results, reinterpret_cast<uint64_t*>(results + 2 * RESULTS * EXCHANGED), 0};
    }

    // Every thread calls it before a cluster_begin.
    DEVICE_MEMBER void init() const {
        if (threadIdx.x != 0) return;
        for (uint32_t i = 0; i < 2 * RESULTS; ++i) barrier_init(&barriers[i], 1);
        barrier_init_fence();
    }

    DEVICE_MEMBER uint32_t index(Result which) const {
        return rows % 2 * RESULTS + static_cast<uint32_t>(which);
    }

    // Stores this warp's result, the one `at`, in every block.
    DEVICE_MEMBER void send(Result which, uint32_t at, float x) const {
        float* to = results + index(which) * EXCHANGED + at;
        if (lane_id() < SLICES) store_in_block(to, &barriers[index(which)], lane_id(), x);
    }

    // Waits for `count` results.
    DEVICE_MEMBER const float* receive(Result which, uint32_t count) const {
        uint64_t* barrier = &barriers[index(which)];
        if (threadIdx.x == 0) barrier_expect(barrier, 4 * count);
        barrier_wait_for_blocks(barrier, rows / 2 % 2);
        return results + index(which) * EXCHANGED;
    }

    // The row's sum, of the sums `x` of the threads that add up groups, returned to every thread.
    DEVICE_MEMBER float sum(const RowSlice& slice, Result which, float x) const {
        const uint32_t warps = slice.threads / 32;
        if (slice.adds()) send(which, (slice.first + threadIdx.x) / 32, warp_sum(x));
        return sum_of_warps(receive(which, warps), warps);
    }

    // The maximum over the cluster of non-negative values, returned to every thread; NaN is ignored.
    DEVICE_MEMBER float max(float x) const {
        const uint32_t warps = blockDim.x / 32;
        send(Result::largest, cluster_rank() * warps + threadIdx.x / 32, warp_max(x));
        const float* all = receive(Result::largest, SLICES * warps);
        float largest = 0.0f;
        for (uint32_t i = lane_id(); i < SLICES * warps; i += 32) largest = fmaxf(largest, all[i]);
        return warp_max(largest);
    }
};

// Copies the weights and biases of a slice to shared memory, from `to` on, in its slots. Each thread copies
// those that it uses.
DEVICE NormWeights copied(const NormWeights& norm, const RowSlice& slice, float* to) {
    float* biases = norm.bias == nullptr ? nullptr : to + slice.floats();
    slice.each(slice.slots.cols / 8, [&](uint32_t slot, uint32_t group) {
        store_eight(to, slot, eight_at(norm.weight, false, group));
        if (biases != nullptr) store_eight(biases, slot, eight_at(norm.bias, false, group));
    });
    return {to, biases, norm.layer_norm, norm.eps};
}

// Normalises a row in place, of which this block has a slice; `norm` is of the slice. Returns the thread's
// largest magnitude. Every block of the cluster calls it, after a barrier of the block.
DEVICE float norm_slice(const RowSlice& slice, const SliceExchange& exchange, const NormWeights& norm) {
    const SharedRow& row = slice.slots;
    float mean = 0.0f, squares = 0.0f, amax = 0.0f;
    if (norm.layer_norm) {
        float sum = 0.0f;
        if (slice.adds()) slice.each_added([&](uint32_t slot) { sum = sum_of(row.load(slot), sum); });
        mean = exchange.sum(slice, Result::sum, sum) / static_cast<float>(row.cols);
    }
    if (slice.adds()) {
        slice.each_added([&](uint32_t slot) { squares = squares_of(row.load(slot), mean, squares); });
    }
    const float factor = norm_factor(exchange.sum(slice, Result::squares, squares), row.cols, norm.eps);
    slice.each(row.cols / 8, [&](uint32_t slot, uint32_t) {
        const Eight x = normalised(row.load(slot), norm, slot, mean, factor);
        row.store(slot, x);
        amax = amax_of(x, amax);
    });
    return amax;
}

// Quantises a row to row `index` of `out`, of which this block has a slice, and pads it with zeros. Every
// block of the cluster calls it.
DEVICE void store_slice(const RowSlice& slice, const SliceExchange& exchange, float amax,
                        const Quantised& out, uint32_t index) {
    const SharedRow& row = slice.slots;
    float scale = out.static_scale;
    if (out.kind == 1 || !slice.all_add()) {
        const float largest = exchange.max(amax);
        if (out.kind == 1) scale = scale_of(largest);
    }
    const float inverse = 1.0f / scale;
    const RowAddress to = row_of(out, index);
    slice.each(padded(row.cols) / 8, [&](uint32_t slot, uint32_t group) {
        store_quantised(8 * group < row.cols ? row.load(slot) : zeros(), inverse, out.kind, to, group);
    });
    if (slice.first == 0 && threadIdx.x == 0) out.scales[index] = scale;
}
