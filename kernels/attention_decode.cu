// OP: for each item, a split of 256 positions of one row: the sum of e^(q . k - max) * v, that maximum, and
//     the sum of e^(q . k - max)
// INPUTS: queries f32 [rows, q_heads * head_dim]; the paged cache of a layer, E4M3 or BF16;
//     items of attention.cuh
// OUTPUTS: sums f32 [entry][q_heads][head_dim], stats f32 [entry][q_heads][2]: entry item.entry + item.part
// LAUNCH: blocks of 128 threads: any number for the items, one per KV head, one per 16 heads of its group;
//     shared memory computed in src/device/cuda/attention.rs
// LIMITS: head_dim even, at most D of the variant: 64, 128 or 192; cache padded to D with zeros
// NUMERICS: Q and P in F16 (E4M3 cache) or BF16 (BF16 cache), sums in F32 in an order that depends on the
//     position alone; after the combine within 2e-3 (F16) or 2e-2 (BF16) of the largest value
// COST: positions * kv_heads * 2 * D bytes of cache elements, read once for all heads of a group; bound by
//     memory: kernels/README.md has the counts
// TWINS: src/device/cpu/attention.rs
//
// A block of threads is a warpgroup. Its first thread copies K and V of the next item to shared memory while
// the warpgroup computes an item. Two or more blocks share a multiprocessor.
#include "attention.cuh"

template <uint32_t D, bool Bf16>
struct Decode {
    using Rows = QueryRows<D, Bf16, 16>;
    static constexpr uint32_t STAGES = Tiles<D, Bf16>::STAGES;

    const AttentionParams& p;
    Tiles<D, Bf16> tiles;
    // The number of items.
    uint32_t count;

    // The number of positions of an item's split.
    static DEVICE_MEMBER uint32_t positions(const AttentionItem& item) {
        return min(SPLIT * BLOCK, item.position + 1 - item.part * SPLIT * BLOCK);
    }

    // Copies four tiles of an item, from `first_tile` on. The first thread runs this when their stages are
    // free.
    DEVICE_MEMBER void copy(uint32_t index, uint32_t first_tile) const {
        if (index >= count) return;
        const AttentionItem& item = p.items[index];
        const uint32_t blocks = (positions(item) + BLOCK - 1) / BLOCK;
        const uint32_t* ids = p.blocks + item.first_block + item.part * SPLIT;
#pragma unroll
        for (uint32_t i = 0; i < SPLIT; ++i) {
            tiles.copy(p, first_tile + i, i < blocks ? ids[i] : NO_BLOCK);
        }
    }

    template <bool Masked>
    DEVICE_MEMBER void attend(uint32_t index, uint32_t split, const AttentionItem& item, Rows& rows,
                              uint32_t heads) const {
        const uint32_t valid = positions(item), next = index + gridDim.x;
        const auto nothing = [](uint32_t) {};
        const uint32_t start = item.part * SPLIT * BLOCK;
        rows.template weigh<Masked>(tiles, split, start, nothing, [&] {
            // K has been read.
            if (threadIdx.x > 0) return;
            if (STAGES == SPLIT) {
                copy(index, SPLIT);
            } else {
                copy(next, 0);
            }
        });
        const uint32_t head = blockIdx.y * (p.q_heads / p.kv_heads) + blockIdx.z * 16;
        const size_t out = (static_cast<size_t>(item.entry) + item.part) * p.q_heads + head;
        const auto target_of = [&](uint32_t n) { return typename Rows::Target{n < heads, out + n}; };
        rows.store_stats(p, target_of);
        rows.template apply<Masked>(tiles, split, valid, nothing, [&](uint32_t chunk, const auto& sums) {
            rows.store(p, chunk, sums, target_of);
        });
    }

    DEVICE_MEMBER void run() const {
        const uint32_t group = p.q_heads / p.kv_heads, first_head = blockIdx.z * 16;
        const uint32_t heads = min(16u, group - first_head), head = blockIdx.y * group + first_head;
        if (threadIdx.x == 0) copy(blockIdx.x, 0);
        Rows rows;
        rows.memory = tile_memory() + STAGES * Tiles<D, Bf16>::BYTES;
        rows.barrier = 1;
        rows.scale = p.scale;
        uint32_t split = 0;
        for (uint32_t i = blockIdx.x; i < count; i += gridDim.x, ++split) {
            const AttentionItem item = p.items[i];
            rows.load([&](uint32_t n) { return n < heads ? query_of(p, item.row, head + n) : nullptr; },
                      [&](uint32_t) { return item.position + 1; }, p.head_dim);
            // All threads have read V of the item before.
            if (threadIdx.x == 0) {
                if (STAGES != SPLIT) {
                    copy(i, SPLIT);
                } else if (split > 0) {
                    copy(i, 0);
                }
            }
            if (positions(item) == SPLIT * BLOCK) {
                attend<false>(i, split, item, rows, heads);
            } else {
                attend<true>(i, split, item, rows, heads);
            }
        }
    }
};

template <uint32_t D, bool Bf16>
DEVICE void attend(const AttentionParams& p) {
    using Kernel = Decode<D, Bf16>;
    SHARED uint64_t full[Kernel::STAGES];
    const uint32_t count = *p.count;
    if (blockIdx.x >= count) return;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < Kernel::STAGES; ++i) barrier_init(&full[i], 1);
        barrier_init_fence();
    }
    __syncthreads();
    Kernel{p, {full}, count}.run();
}

#define ATTENTION_DECODE(D)                                                                       \
    KERNEL(attention_decode_e4m3_##D, AttentionParams, WARPGROUP) { attend<D, false>(p); }        \
    KERNEL(attention_decode_bf16_##D, AttentionParams, WARPGROUP) { attend<D, true>(p); }

ATTENTION_DECODE(64)
ATTENTION_DECODE(128)
ATTENTION_DECODE(192)
