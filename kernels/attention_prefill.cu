// OP: the same as attention_decode for many rows of one sequence: each row over all its positions, causal,
//     splits combined
// INPUTS: queries f32 [rows, q_heads * head_dim]; the paged cache of a layer, E4M3 or BF16;
//     items of attention.cuh
// OUTPUTS: sums f32 [entry][q_heads][head_dim], stats f32 [entry][q_heads][2]: entry item.entry + row -
//     item.row
// LAUNCH: one block of 256 threads per (item, KV head); shared memory computed in
//     src/device/cuda/attention.rs
// LIMITS: those of attention_decode
// NUMERICS: those of attention_decode, bit for bit
// COST: 4 * head_dim * q_heads flops per pair of row and position; bound by the tensor cores:
//     kernels/README.md has the counts
// TWINS: src/device/cpu/attention.rs
//
// An item is up to 96 query rows: the heads of a group times tokens, so that only the last item of a sequence
// has empty rows. Two warpgroups, of 48 query rows each, compute it. K and V of one split after the other are
// copied to shared memory: the last warp that reads a tile starts the copy of the next. The sums of all
// splits are in registers. Two warpgroups may have 255 each per thread, so that no third one copies.
#include "attention.cuh"

constexpr uint32_t CONSUMERS = 2;
constexpr uint32_t THREADS = CONSUMERS * WARPGROUP;
// Query rows of a warpgroup.
constexpr uint32_t ROWS = 48;

template <uint32_t D, bool Bf16>
struct Prefill {
    using Rows = QueryRows<D, Bf16, ROWS>;
    static constexpr uint32_t STAGES = Tiles<D, Bf16>::STAGES;
    static constexpr uint32_t POSITIONS = SPLIT * BLOCK;

    const AttentionParams& p;
    Tiles<D, Bf16> tiles;
    // The number of warps that have read the tile of each stage.
    uint32_t* readers;

    DEVICE_MEMBER const AttentionItem& item() const { return p.items[blockIdx.x]; }
    DEVICE_MEMBER uint32_t group() const { return p.q_heads / p.kv_heads; }
    // The number of positions that the last of the query rows before `end` attends to.
    DEVICE_MEMBER uint32_t positions(uint32_t end) const {
        return item().position + (min(end, item().rows * group()) - 1) / group() + 1;
    }
    DEVICE_MEMBER uint32_t splits(uint32_t end) const { return (positions(end) + POSITIONS - 1) / POSITIONS; }
    // Blocks that the block of threads reads.
    DEVICE_MEMBER uint32_t blocks() const {
        return (positions(item().part + CONSUMERS * ROWS) + BLOCK - 1) / BLOCK;
    }

    // The id of the block of the cache whose K and V a lane copies; NO_BLOCK if there is none.
    DEVICE_MEMBER uint32_t id_of(uint32_t split) const {
        const uint32_t block = split * SPLIT + lane_id();
        return lane_id() < SPLIT && block < blocks() ? p.blocks[item().first_block + block] : NO_BLOCK;
    }

    // The warp has read a tile. The last warp to do so copies the next tile to its stage. `id` and `next` are
    // the ids of the blocks of this split and the next.
    DEVICE_MEMBER void release(uint32_t tile, uint32_t id, uint32_t next) const {
        __syncwarp();
        uint32_t* count = readers + tiles.stage(tile);
        const bool mine = lane_id() == tile % SPLIT;
        if (mine && add_in_block(count, 1) + 1 == CONSUMERS * WARPGROUP / 32) {
            *count = 0;
            // The stages take all tiles of a split, or K and then V.
            if (STAGES == 2 * SPLIT) {
                tiles.copy(p, tile, next);
            } else {
                tiles.copy(p, (tile + SPLIT) % (2 * SPLIT), tile < SPLIT ? id : next);
            }
        }
        // Products need whole warps.
        __syncwarp();
    }

    // Computes a split and adds it to `totals`, the sums of the splits before it. `rows.kept()` has their
    // maxima and denominators.
    template <bool Masked>
    DEVICE_MEMBER void add(uint32_t split, uint32_t first, Rows& rows,
                           float (&totals)[Rows::CHUNKS][ROWS / 2]) const {
        const uint32_t start = split * POSITIONS, id = id_of(split), next = id_of(split + 1);
        const auto read = [&](uint32_t tile) { release(tile, id, next); };
        rows.template weigh<Masked>(tiles, split, start, read, [] {});
        float2* kept = rows.kept();
        float mine[Rows::COLUMNS], other[Rows::COLUMNS];
#pragma unroll
        for (uint32_t x = 0; x < Rows::COLUMNS; ++x) {
            const float2 before = kept[Rows::row_of(x)];
            const Merge m = merge(before.x, rows.maximum[x]);
            rows.maximum[x] = m.maximum;
            rows.denominator[x] = blend(m.mine, before.y, m.other, rows.denominator[x]);
            mine[x] = m.mine, other[x] = m.other;
        }
        __syncwarp();
        keep(rows);
        rows.template apply<Masked>(
            tiles, split, positions(first + ROWS) - start, read, [&](uint32_t chunk, const auto& sums) {
#pragma unroll
                for (uint32_t i = 0; i < ROWS / 2; ++i) {
                    const uint32_t x = i / 4 * 2 + i % 2;
                    totals[chunk][i] = blend(mine[x], totals[chunk][i], other[x], sums[i]);
                }
            });
    }

    // The lanes of a warp that have the same rows write the same values.
    static DEVICE_MEMBER void keep(const Rows& rows) {
#pragma unroll
        for (uint32_t x = 0; x < Rows::COLUMNS; ++x) {
            rows.kept()[Rows::row_of(x)] = make_float2(rows.maximum[x], rows.denominator[x]);
        }
    }

    DEVICE_MEMBER void compute(uint32_t consumer, uint32_t first) const {
        const uint32_t end = item().rows * group();
        const auto head = [&](uint32_t index) { return blockIdx.y * group() + index % group(); };
        Rows rows;
        rows.memory = tile_memory() + STAGES * Tiles<D, Bf16>::BYTES + consumer * Rows::BYTES;
        rows.barrier = 1 + consumer;
        rows.scale = p.scale;
        float totals[Rows::CHUNKS][ROWS / 2];
#pragma unroll
        for (uint32_t i = 0; i < Rows::CHUNKS * ROWS / 2; ++i) totals[i / (ROWS / 2)][i % (ROWS / 2)] = 0.0f;
#pragma unroll
        for (uint32_t x = 0; x < Rows::COLUMNS; ++x) rows.maximum[x] = -INFINITY, rows.denominator[x] = 0.0f;
        keep(rows);
        rows.load(
            [&](uint32_t n) {
                const uint32_t index = first + n;
                return index < end ? query_of(p, item().row + index / group(), head(index)) : nullptr;
            },
            [&](uint32_t n) { return item().position + (first + n) / group() + 1; }, p.head_dim);
        // Splits of positions that all rows attend to.
        const uint32_t whole = positions(first + 1) / POSITIONS, count = splits(first + ROWS);
        uint32_t split = 0;
        for (; split < whole; ++split) add<false>(split, first, rows, totals);
        for (; split < count; ++split) add<true>(split, first, rows, totals);
        const auto target_of = [&](uint32_t n) {
            const uint32_t index = first + n;
            const size_t entry = item().entry + index / group();
            return typename Rows::Target{index < end, entry * p.q_heads + head(index)};
        };
#pragma unroll
        for (uint32_t i = 0; i < Rows::CHUNKS; ++i) rows.store(p, i, totals[i], target_of);
        rows.store_stats(p, target_of);
    }

    DEVICE_MEMBER void run() const {
        // The same for all threads of a warp, which the compiler cannot know otherwise.
        const uint32_t consumer = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
        const uint32_t first = item().part + consumer * ROWS;
        const bool any = first < item().rows * group();
        if (threadIdx.x < SPLIT) {
            const uint32_t id = id_of(0);
            for (uint32_t tile = threadIdx.x; tile < STAGES; tile += SPLIT) tiles.copy(p, tile, id);
        }
        if (any) compute(consumer, first);
        // Splits that only the other warpgroup computes.
        const uint32_t count = splits(item().part + CONSUMERS * ROWS);
        for (uint32_t split = any ? splits(first + ROWS) : 0; split < count; ++split) {
            const uint32_t id = id_of(split), next = id_of(split + 1);
            for (uint32_t tile = 0; tile < 2 * SPLIT; ++tile) {
                // The tile of the split before is gone.
                tiles.wait(split, tile);
                release(tile, id, next);
            }
        }
    }
};

template <uint32_t D, bool Bf16>
DEVICE void attend(const AttentionParams& p) {
    using Kernel = Prefill<D, Bf16>;
    SHARED uint64_t full[Kernel::STAGES];
    SHARED uint32_t readers[Kernel::STAGES];
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < Kernel::STAGES; ++i) {
            barrier_init(&full[i], 1);
            readers[i] = 0;
        }
        barrier_init_fence();
    }
    __syncthreads();
    Kernel{p, {full}, readers}.run();
}

#define ATTENTION_PREFILL(D)                                                                       \
    KERNEL_ALONE(attention_prefill_e4m3_##D, AttentionParams, THREADS) { attend<D, false>(p); }    \
    KERNEL_ALONE(attention_prefill_bf16_##D, AttentionParams, THREADS) { attend<D, true>(p); }

ATTENTION_PREFILL(64)
ATTENTION_PREFILL(128)
ATTENTION_PREFILL(192)
