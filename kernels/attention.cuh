// The arithmetic that attention_decode and attention_prefill share: a split of four blocks of 64 positions
// against the query rows of a warpgroup. Both kernels use this code, with another number of rows, so that a
// row's bits do not depend on the kernel: as in linear.cu, an element of a product must not depend on the
// number of rows.
//
// A query row is one query head of one token. Query rows are the columns of products, and keys or values
// their rows: scores are K x Q, sums are V x P. Each thread reads its elements of K and V from shared memory
// in the form that products take, and widens E4M3 to F16, which is exact. Q and P are in shared memory, in
// the form of `tile_descriptor`. All scores of a split are computed before its probabilities, so that these
// are relative to the split's maximum. Positions that a row does not attend to have probability 0.
//
// With w the warp of the warpgroup, g = lane / 4 and c = lane % 4, a thread has positions (or dimensions)
// 16w + g and 16w + g + 8, and query rows 8j + 2c + i.
#pragma once

#include "cache.cuh"
#include "wgmma.cuh"

// Blocks of a split.
constexpr uint32_t SPLIT = 4;
constexpr uint32_t WARPGROUP = 128;
// Stands for a block that a sequence does not have. Its tiles hold anything.
constexpr uint32_t NO_BLOCK = ~0u;

// Parameters of both kernels.
struct AttentionParams {
    // Rotated: [rows, q_heads, head_dim].
    const float* queries;
    // The layer's part of the cache: [block][kv_head] in the layout of cache.cuh.
    const uint8_t* cache;
    // Block ids of all sequences, concatenated.
    const uint32_t* blocks;
    const struct AttentionItem* items;
    // The number of items, read by the kernel since the grid of a captured launch is fixed.
    const uint32_t* count;
    // [entry][q_heads][head_dim]: sums of a split of a row; [entry][q_heads][2]: maximum and denominator.
    float* sums;
    float* stats;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    // k_scale / sqrt(head_dim) * log2(e), above 0.
    float scale;
};
static_assert(sizeof(AttentionParams) == 72);

// Decode: one split of one row. Prefill: some query rows, tokens times heads of a group, of one sequence.
struct AttentionItem {
    // The first row of the step.
    uint32_t row;
    // Rows of the sequence from `row` on.
    uint32_t rows;
    // The position of `row`.
    uint32_t position;
    // The index in `blocks` of the sequence's first block.
    uint32_t first_block;
    // Decode: the split. Prefill: the first query row, counted in tokens times heads.
    uint32_t part;
    // The first entry of `row`.
    uint32_t entry;
};

// The query of a head in a row of the step.
DEVICE const float* query_of(const AttentionParams& p, uint32_t row, uint32_t head) {
    return p.queries + (static_cast<size_t>(row) * p.q_heads + head) * p.head_dim;
}

// The larger of two maxima, and the factors that make two sums relative to it. An empty sum, with a maximum
// of -infinity, has factor 0.
struct Merge {
    float maximum, mine, other;
};
DEVICE Merge merge(float maximum, float other) {
    const float larger = fmaxf(maximum, other);
    const float reference = larger == -INFINITY ? 0.0f : larger;
    return {larger, exp2_fast(__fadd_rn(maximum, -reference)), exp2_fast(__fadd_rn(other, -reference))};
}
// a × x + b × y with fixed rounding.
DEVICE float blend(float a, float x, float b, float y) { return __fmaf_rn(b, y, __fmul_rn(a, x)); }

// K or V of a block in shared memory is a tile. Tiles 0 to 3 of a split are K of its blocks, and tiles 4 to 7
// V. A tile has a stage of shared memory, and the barrier of the copy that brings it.
template <uint32_t D, bool Bf16>
struct Tiles {
    static constexpr uint32_t BYTES = BLOCK * D * (Bf16 ? 2 : 1);
    // 96 KiB of a head of 192 elements.
    static constexpr uint32_t STAGES = Bf16 ? SPLIT : 2 * SPLIT;

    uint64_t* full;

    static DEVICE_MEMBER uint32_t stage(uint32_t tile) { return tile % STAGES; }
    static DEVICE_MEMBER unsigned char* at(uint32_t tile) { return tile_memory() + stage(tile) * BYTES; }
    // The parity of the phase of a tile's barrier; `split` counts the splits that used the stages.
    static DEVICE_MEMBER uint32_t parity(uint32_t split, uint32_t tile) {
        return STAGES == SPLIT ? tile / SPLIT : split % 2;
    }

    // Copies a tile of block `id`. The stage is free.
    DEVICE_MEMBER void copy(const AttentionParams& p, uint32_t tile, uint32_t id) const {
        uint64_t* barrier = full + stage(tile);
        if (id == NO_BLOCK) return barrier_arrive(barrier);
        const size_t half = (static_cast<size_t>(id) * p.kv_heads + blockIdx.y) * 2 + tile / SPLIT;
        barrier_expect(barrier, BYTES);
        bulk_copy(at(tile), p.cache + half * BYTES, BYTES, barrier);
    }

    DEVICE_MEMBER void wait(uint32_t split, uint32_t tile) const {
        barrier_wait(full + stage(tile), parity(split, tile));
    }
};

// N query rows of a warpgroup.
template <uint32_t D, bool Bf16, uint32_t N>
struct QueryRows {
    static constexpr uint32_t WIDTH = Bf16 ? 2 : 1;
    // Chunks of 64 dimensions.
    static constexpr uint32_t CHUNKS = D / 64;
    // Query rows of a thread.
    static constexpr uint32_t COLUMNS = N / 4;
    // Bytes of an operand in shared memory: 64 elements of Q, or the probabilities of a block, of N rows.
    static constexpr uint32_t OPERAND_BYTES = N * 128;
    // Shared memory of a warpgroup: Q, P, for each warp and row a maximum, a sum, and two numbers that
    // prefill keeps, and for each row its end.
    static constexpr uint32_t BYTES = ((CHUNKS + SPLIT) * OPERAND_BYTES + 17 * N * 4 + 1023) / 1024 * 1024;

    // Aligned to 1,024 bytes.
    unsigned char* memory;
    // The warpgroup's id for `group_sync`.
    uint32_t barrier;
    float scale;
    // The maximum of the split's scaled scores, and the sum of its probabilities, which are relative to the
    // maximum. Index 2j + i is of query row 8j + 2c + i.
    float maximum[COLUMNS];
    float denominator[COLUMNS];

    static DEVICE_MEMBER uint32_t warp() { return threadIdx.x / 32 % 4; }
    // The query row of an index of `maximum`.
    static DEVICE_MEMBER uint32_t row_of(uint32_t x) { return x / 2 * 8 + lane_id() % 4 * 2 + x % 2; }
    // The index in an accumulator of an index of `maximum`, for position or dimension 16w + g. The index for
    // 16w + g + 8 is two more.
    static constexpr DEVICE_MEMBER uint32_t of(uint32_t x) { return x / 2 * 4 + x % 2; }

    DEVICE_MEMBER unsigned char* weights() const { return memory + CHUNKS * OPERAND_BYTES; }
    DEVICE_MEMBER float* maxima() const {
        return reinterpret_cast<float*>(weights() + SPLIT * OPERAND_BYTES);
    }
    DEVICE_MEMBER float* denominators() const { return maxima() + 4 * N; }
    // Two numbers of a row, of this warp.
    DEVICE_MEMBER float2* kept() const { return reinterpret_cast<float2*>(maxima() + 8 * N) + warp() * N; }

    // The number of positions that each row attends to.
    DEVICE_MEMBER uint32_t* ends() const { return reinterpret_cast<uint32_t*>(maxima() + 16 * N); }

    // Writes Q to shared memory. `query_at(n)` is the address of a row's query; null for an empty row.
    // `end_of(n)` is the number of positions that the row attends to.
    template <typename QueryAt, typename EndOf>
    DEVICE_MEMBER void load(const QueryAt& query_at, const EndOf& end_of, uint32_t head_dim) const {
        const bool aligned = head_dim % 4 == 0;
        if (threadIdx.x % WARPGROUP < N) ends()[threadIdx.x % WARPGROUP] = end_of(threadIdx.x % WARPGROUP);
#pragma unroll 6
        for (uint32_t i = threadIdx.x % WARPGROUP; i < N * D / 4; i += WARPGROUP) {
            const uint32_t n = i / (D / 4), d = i % (D / 4) * 4;
            const float* from = query_at(n);
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (from != nullptr && d < head_dim) {
                if (aligned) {
                    x = *reinterpret_cast<const float4*>(from + d);
                } else {
                    x.x = from[d], x.y = from[d + 1];
                    if (d + 2 < head_dim) x.z = from[d + 2], x.w = from[d + 3];
                }
            }
            // A thread multiplies elements 16c + 4s + 2u of K by elements 2c + 8u of step s.
            const uint32_t at = n * 128 + d % 16 / 4 * 32 + d % 64 / 16 * 4;
            unsigned char* to = memory + d / 64 * OPERAND_BYTES;
            *reinterpret_cast<uint32_t*>(to + swizzled(at)) = pair(x.x, x.y);
            *reinterpret_cast<uint32_t*>(to + swizzled(at + 16)) = pair(x.z, x.w);
        }
        async_fence();
        group_sync(barrier, WARPGROUP);
    }

    // Computes the probabilities of a split, and `maximum` and `denominator`. `start` is the split's first
    // position, used only if `Masked`; else all rows attend to all positions. `split` counts the splits that
    // used `tiles`. `read(tile)` runs when the warp has read a tile of K, and `between` when all threads have
    // read all of them.
    template <bool Masked, typename Read, typename Between>
    DEVICE_MEMBER void weigh(const Tiles<D, Bf16>& tiles, uint32_t split, uint32_t start, const Read& read,
                             const Between& between) {
        float scores[SPLIT][N / 2];
        score<BUFFERS<Masked>>(tiles, split, read, scores);
        if (Masked) mask(scores, start);
#pragma unroll
        for (uint32_t x = 0; x < COLUMNS; ++x) {
            maximum[x] = -INFINITY;
#pragma unroll
            for (uint32_t b = 0; b < SPLIT; ++b) {
                maximum[x] = fmaxf(maximum[x], fmaxf(scores[b][of(x)], scores[b][of(x) + 2]));
            }
        }
        reduce<false, COLUMNS, 16>(maximum, 0, maxima() + warp() * N);
        group_sync(barrier, WARPGROUP);
        between();
        combine<false>(maximum, maxima());
        exponentials(scores);
        reduce<true, COLUMNS, 16>(denominator, 0, denominators() + warp() * N);
        async_fence();
        group_sync(barrier, WARPGROUP);
        combine<true>(denominator, denominators());
    }

    // Computes the sums of P x V of the split: calls `use(i, sums)` for each chunk i. Sum 4j + 2h + i is of
    // dimension 16w + g + 8h of the chunk and query row 8j + 2c + i. `valid` is the number of the split's
    // positions that any row attends to, used only if `Masked`. `read(tile)` runs when the warp has read a
    // tile of V.
    template <bool Masked, typename Read, typename Use>
    DEVICE_MEMBER void apply(const Tiles<D, Bf16>& tiles, uint32_t split, uint32_t valid, const Read& read,
                             const Use& use) const {
        const uint32_t row = (warp() * 16 + lane_id() / 4) * BLOCK * WIDTH;
        constexpr uint32_t count = BUFFERS<Masked>;
        uint32_t a[count][4][4];
        float sums[2][N / 2];
#pragma unroll
        for (uint32_t q = 0; q < CHUNKS * SPLIT; ++q) {
            const uint32_t chunk = q / SPLIT, block = q % SPLIT;
            if (chunk == 0) tiles.wait(split, SPLIT + block);
            // The products that read the registers before.
            const bool ends = q >= count && (q - count) % SPLIT == SPLIT - 1;
            float(&finished)[N / 2] = sums[(q - count) / SPLIT % 2];
            if (q >= count) wait<count>(finished, ends);
            uint32_t(&v)[4][4] = a[q % count];
            load_fragments<BLOCK>(tiles.at(SPLIT + block) + row + chunk * 64 * BLOCK * WIDTH, 0, v);
            if (chunk == CHUNKS - 1) read(SPLIT + block);
            if (Masked) clear(v, valid, block);
            const uint64_t b = tile_descriptor(weights() + block * OPERAND_BYTES);
            multiply<count>(sums[chunk % 2], v, b, block > 0);
            if (ends) use((q - count) / SPLIT, finished);
        }
        wgmma_wait<0>(sums[(CHUNKS - 1) % 2]);
        use(CHUNKS - 1, sums[(CHUNKS - 1) % 2]);
    }

    // Where the results of a query row are.
    struct Target {
        // False for an empty row.
        bool real;
        // (entry, query head), counted in heads.
        size_t index;
    };

    // Stores the sums of a chunk. `target_of(n)` is the target of row n.
    template <typename TargetOf>
    DEVICE_MEMBER void store(const AttentionParams& p, uint32_t chunk, const float (&sums)[N / 2],
                             const TargetOf& target_of) const {
#pragma unroll
        for (uint32_t x = 0; x < COLUMNS; ++x) {
            const Target target = target_of(row_of(x));
            if (!target.real) continue;
            const uint32_t d = chunk * 64 + warp() * 16 + lane_id() / 4;
            float* to = p.sums + target.index * p.head_dim + d;
            if (d < p.head_dim) to[0] = sums[of(x)];
            if (d + 8 < p.head_dim) to[8] = sums[of(x) + 2];
        }
    }
    // Stores `maximum` and `denominator`.
    template <typename TargetOf>
    DEVICE_MEMBER void store_stats(const AttentionParams& p, const TargetOf& target_of) const {
        if (threadIdx.x % WARPGROUP >= 4) return;
#pragma unroll
        for (uint32_t x = 0; x < COLUMNS; ++x) {
            const Target target = target_of(row_of(x));
            if (!target.real) continue;
            p.stats[target.index * 2] = maximum[x];
            p.stats[target.index * 2 + 1] = denominator[x];
        }
    }

   private:
    static DEVICE_MEMBER uint32_t pair(float low, float high) {
        return Bf16 ? bf16x2(low, high) : f16x2(low, high);
    }

    // Elements of rows g and g + 8 of 16 rows of K or V for four steps: 16 of each row, from 16c on of the 64
    // that begin at byte `at`. `row` is the address of row g.
    template <uint32_t RowElements>
    static DEVICE_MEMBER void load_fragments(const unsigned char* row, uint32_t at, uint32_t (&a)[4][4]) {
        const uint32_t flip = lane_id() / 4 % 2 * exchanged(RowElements, WIDTH);
        const unsigned char* from = row + ((at + lane_id() % 4 * 16 * WIDTH) ^ (Bf16 ? 0 : flip));
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
            if constexpr (Bf16) {
#pragma unroll
                for (uint32_t half = 0; half < 2; ++half) {
                    const uint4 x = *reinterpret_cast<const uint4*>(from + (half * 16 ^ flip));
                    a[2 * half][h] = x.x, a[2 * half][h + 2] = x.y;
                    a[2 * half + 1][h] = x.z, a[2 * half + 1][h + 2] = x.w;
                }
            } else {
                const uint4 x = *reinterpret_cast<const uint4*>(from);
                const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (uint32_t step = 0; step < 4; ++step) {
                    f16x4_of_e4m3x4(words[step], a[step][h], a[step][h + 2]);
                }
            }
            from += 8 * RowElements * WIDTH;
        }
    }

    // While products run, the operands of the next ones are loaded to another buffer of registers. Masked
    // splits, which are few, have one buffer, because masks take registers.
    template <bool Masked>
    static constexpr uint32_t BUFFERS = Masked ? 1 : 2;

    // Waits for the products that read a buffer. `ends` is true if they are the last of the accumulator.
    template <uint32_t Buffers>
    static DEVICE_MEMBER void wait(float (&accumulator)[N / 2], bool ends) {
        if (Buffers == 1 || ends) {
            wgmma_wait<Buffers - 1>(accumulator);
        } else {
            wgmma_wait<Buffers - 1>();
        }
    }

    // The products of four steps. `b` describes N rows of 128 bytes.
    template <uint32_t Buffers>
    static DEVICE_MEMBER void multiply(float (&d)[N / 2], uint32_t (&a)[4][4], uint64_t b, bool adds) {
        if (Buffers == 1 && adds) {
            wgmma_fence(d, a[0], a[1], a[2], a[3]);
        } else {
            wgmma_fence(a[0], a[1], a[2], a[3]);
        }
#pragma unroll
        for (uint32_t step = 0; step < 4; ++step) {
            // 32 bytes along K, in the descriptor's unit of 16.
            if constexpr (Bf16) {
                wgmma_bf16<N>(d, a[step], b + 2 * step, adds || step > 0);
            } else {
                wgmma_f16<N>(d, a[step], b + 2 * step, adds || step > 0);
            }
        }
        wgmma_commit();
    }

    template <uint32_t Buffers, typename Read>
    DEVICE_MEMBER void score(const Tiles<D, Bf16>& tiles, uint32_t split, const Read& read,
                             float (&scores)[SPLIT][N / 2]) const {
        const uint32_t row = (warp() * 16 + lane_id() / 4) * D * WIDTH;
        uint32_t a[Buffers][4][4];
#pragma unroll
        for (uint32_t q = 0; q < SPLIT * CHUNKS; ++q) {
            const uint32_t block = q / CHUNKS, chunk = q % CHUNKS;
            if (chunk == 0) tiles.wait(split, block);
            // The products that read the registers before.
            const uint32_t before = q - Buffers;
            if (q >= Buffers) wait<Buffers>(scores[before / CHUNKS], before % CHUNKS == CHUNKS - 1);
            uint32_t(&k)[4][4] = a[q % Buffers];
            load_fragments<D>(tiles.at(block) + row, chunk * 64 * WIDTH, k);
            if (chunk == CHUNKS - 1) read(block);
            multiply<Buffers>(scores[block], k, tile_descriptor(memory + chunk * OPERAND_BYTES), chunk > 0);
        }
        wgmma_wait<0>(scores[SPLIT - 2], scores[SPLIT - 1]);
    }

    // Makes the scores of positions -infinity that a row does not attend to.
    DEVICE_MEMBER void mask(float (&scores)[SPLIT][N / 2], uint32_t start) const {
        const uint32_t first = start + warp() * 16 + lane_id() / 4;
#pragma unroll
        for (uint32_t x = 0; x < COLUMNS; ++x) {
            const auto left = static_cast<int32_t>(ends()[row_of(x)] - first);
#pragma unroll
            for (int32_t b = 0; b < static_cast<int32_t>(SPLIT); ++b) {
                if (left <= b * static_cast<int32_t>(BLOCK)) scores[b][of(x)] = -INFINITY;
                if (left <= b * static_cast<int32_t>(BLOCK) + 8) scores[b][of(x) + 2] = -INFINITY;
            }
        }
    }

    static DEVICE_MEMBER float sum_or_maximum(bool sum, float a, float b) {
        return sum ? __fadd_rn(a, b) : fmaxf(a, b);
    }

    // Combines the values of the lanes of equal c for each query row, `Count` of them from `first` on. Lanes
    // divide the rows among themselves while their number is even. The last step writes the warp's values.
    template <bool Sum, uint32_t Count, uint32_t Step>
    static DEVICE_MEMBER void reduce(float (&values)[COLUMNS], uint32_t first, float* to) {
        if constexpr (Step < 4) {
#pragma unroll
            for (uint32_t x = 0; x < Count; ++x) to[row_of(first + x)] = values[x];
        } else {
            constexpr bool divides = Count % 2 == 0;
            constexpr uint32_t kept = divides ? Count / 2 : Count;
            const bool upper = (lane_id() & Step) != 0;
#pragma unroll
            for (uint32_t x = 0; x < kept; ++x) {
                const float a = values[x], b = values[x + Count - kept];
                const float mine = divides && upper ? b : a, sent = divides && !upper ? b : a;
                values[x] = sum_or_maximum(Sum, mine, __shfl_xor_sync(~0u, sent, Step));
            }
            reduce<Sum, kept, Step / 2>(values, divides && upper ? first + kept : first, to);
        }
    }

    // Combines the values of the four warps.
    template <bool Sum>
    static DEVICE_MEMBER void combine(float (&values)[COLUMNS], const float* from) {
#pragma unroll
        for (uint32_t j = 0; j < COLUMNS / 2; ++j) {
            float2 x = *reinterpret_cast<const float2*>(from + row_of(2 * j));
#pragma unroll
            for (uint32_t w = 1; w < 4; ++w) {
                const float2 y = *reinterpret_cast<const float2*>(from + w * N + row_of(2 * j));
                x.x = sum_or_maximum(Sum, x.x, y.x), x.y = sum_or_maximum(Sum, x.y, y.y);
            }
            values[2 * j] = x.x, values[2 * j + 1] = x.y;
        }
    }

    // Writes the probabilities to shared memory and adds those of the thread. `maximum` is of unscaled scores
    // before, and of scaled ones after.
    DEVICE_MEMBER void exponentials(const float (&scores)[SPLIT][N / 2]) {
        // Positions 16w + g and 16w + g + 8 are neighbours in a row of P, as in a row of V.
        const uint32_t word = warp() * 32 + lane_id() / 4 * 4, c = lane_id() % 4;
#pragma unroll
        for (uint32_t x = 0; x < COLUMNS; ++x) {
            maximum[x] = __fmul_rn(maximum[x], scale);
            const float reference = maximum[x] == -INFINITY ? 0.0f : maximum[x];
            const uint32_t row = x / 2 * 1024 + (2 * c + x % 2) * 128;
            unsigned char* to = weights() + row + (word ^ (2 * c + x % 2) * 16);
            denominator[x] = 0.0f;
#pragma unroll
            for (uint32_t b = 0; b < SPLIT; ++b) {
                const float low = exp2_fast(__fmaf_rn(scores[b][of(x)], scale, -reference));
                const float high = exp2_fast(__fmaf_rn(scores[b][of(x) + 2], scale, -reference));
                denominator[x] = __fadd_rn(denominator[x], __fadd_rn(low, high));
                *reinterpret_cast<uint32_t*>(to + b * OPERAND_BYTES) = pair(low, high);
            }
        }
    }

    // Makes the elements of V of a block zero at positions of the split from `valid` on: they may be NaN, and
    // 0 × NaN is NaN.
    static DEVICE_MEMBER void clear(uint32_t (&a)[4][4], uint32_t valid, uint32_t block) {
        if (valid >= (block + 1) * BLOCK) return;
#pragma unroll
        for (uint32_t step = 0; step < 4; ++step) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                const uint32_t position = block * BLOCK + step * 16 + lane_id() % 4 + i / 2 * 4;
                a[step][i] &= position + 8 < valid ? ~0u : position < valid ? 0xFFFF : 0;
            }
        }
    }
};
