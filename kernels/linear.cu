// OP: out[m][n] = (sum over k of x[m][k] * w[n][k]) * x_scale[m] * w_scale[n]
// INPUTS: x as in row.cuh, E4M3 with scales f32 [m], or BF16; w as in pack.cuh, E4M3 with scales f32 [n], or
//     BF16
// OUTPUTS: out [m, n], F32 or BF16, in this GPU's memory or in that of several ranks (OutputRows), or F32
//     [m, n / 2], SwiGLU of BF16 outputs; largest magnitudes of rows (RowMaxima)
// LAUNCH: 384 threads; spread: `parts` blocks, m at most the variant's N; whole: any even number of blocks,
//     any number of rows; shared memory for the stages, computed in src/device/cuda/linear.rs
// LIMITS: N = 8, 16, 32, 64, 128 or 256, if whole 64 or 128; counters zero before
// NUMERICS: exact products; 128 bytes of K of a weight are summed by the tensor cores, from zero, and these
//     sums are added in F32 in an order that depends on the weight's shape alone, so that a row's bits do
//     not depend on the other rows, then scaled and rounded to nearest; SwiGLU has the bits of activation.cu;
//     bounds in tests/gpu/dev.rs
// COST: bytes of w from memory, once per 256 rows if spread, else once; per chunk 16 KB + N * 128 bytes from
//     L2 if spread, 24 KB per 128 rows if whole; by estimate bound by memory up to 256 rows, by the tensor
//     cores beyond; rows of other ranks over the link, 128 bytes at a time if BF16, else 32:
//     maxima m * n / 16 bytes; kernels/README.md has the counts
// TWINS: src/device/cpu/linear/mod.rs, src/device/cpu/activation.rs
//
// A tile is 128 outputs, a chunk 128 bytes of their weights along K. The first warp copies chunks of weights
// and of the rows' inputs to stages in shared memory. Two warpgroups, of 64 outputs each, multiply them by
// all rows of the block. The weights are the operand of 64 rows in every variant, so that rows of inputs are
// columns of the product, whatever their number.
//
// The chunks of all tiles, numbered along K first, are cut into `parts` contiguous parts of equal size. A
// segment is the intersection of a part and a tile: its chunks are added one after the other, and then the
// segments of a tile are added in the order of K. If the work is spread, each block computes one part for
// all rows, so that all blocks finish together for any shape; segments of a cut tile are written to memory,
// and the last block to arrive adds the others to its own. Otherwise each block computes whole tiles for N
// rows, one segment after the other, and keeps the total in registers. The two blocks of a cluster compute
// neighbouring tiles for the same rows: each block copies half of the inputs to both.
#include "linear_store.cuh"
#include "pack.cuh"
#include "wgmma.cuh"

// Chunks of weights that a block reads to L2 while earlier kernels run, behind those that it copies to
// stages. src/device/product_tiles.rs has the same number.
constexpr uint32_t READ_AHEAD = 8;
// The largest dynamic shared memory of a block, and its part behind the stages, for barriers.
constexpr uint32_t SHARED_BYTES = 220 << 10, BARRIER_BYTES = 256;

template <Type W, Type X, uint32_t N, bool WHOLE>
struct Linear {
    // Chunks of x along K that belong to a chunk of w.
    static constexpr uint32_t X_CHUNKS = W == Type::e4m3 && X == Type::bf16 ? 2 : 1;
    static constexpr uint32_t STAGE_BYTES = TILE * CHUNK + X_CHUNKS * N * CHUNK;
    static constexpr uint32_t FITTING = (SHARED_BYTES - BARRIER_BYTES) / STAGE_BYTES;
    static constexpr uint32_t STAGES = FITTING < 12 ? FITTING : 12;
    // Blocks that read a stage's inputs.
    static constexpr uint32_t READERS = WHOLE ? PAIR : 1;
    // Rows of one instruction. 256 rows take two, so that their sums fit in the registers beside the sums of
    // the instruction.
    static constexpr uint32_t ROWS = N < 128 ? N : 128;
    static constexpr uint32_t SUMS = ROWS / 2;
    // Loads of sums at a time, as many as there are registers for.
    static constexpr uint32_t LOADS = N / 8 < 8 ? N / 8 : 8;

    const LinearParams& p;

    // Barriers of the stages: inputs have arrived; all warps have read them, also those of the other block of
    // a pair.
    static DEVICE_MEMBER uint64_t* full(uint32_t stage) {
        return reinterpret_cast<uint64_t*>(stage_at(STAGES)) + stage;
    }
    static DEVICE_MEMBER uint64_t* empty(uint32_t stage) { return full(STAGES + stage); }
    // Whether this block is the last to arrive at a cut tile.
    static DEVICE_MEMBER uint32_t* arrived() { return reinterpret_cast<uint32_t*>(full(2 * STAGES)); }
    static_assert(2 * STAGES * 8 + 4 <= BARRIER_BYTES);

    using Place = RingPlace<STAGES>;

    static DEVICE_MEMBER unsigned char* stage_at(uint32_t stage) {
        return tile_memory() + stage * STAGE_BYTES;
    }

    // Copies the chunks of all segments. One thread runs this. Of the first `ahead` chunks the weights have
    // been asked for.
    DEVICE_MEMBER void produce(uint32_t ahead) const {
        Place place;
        if constexpr (WHOLE) {
            WholeTiles<N> tiles(p.tiles);
            for (Segment tile; tiles.next(tile);) produce(tile, place, 0);
        } else {
            Part part(p.tiles);
            for (Segment segment; part.next(segment);) {
                produce(segment, place, ahead);
                ahead -= min(ahead, segment.end - segment.begin);
            }
        }
    }

    // Rows of x from `row` on that are copied. The buffer of x holds the rows padded to a multiple of 8.
    DEVICE_MEMBER uint32_t rows_of_inputs(uint32_t row) const {
        return min(N, (p.m - row + 7) / 8 * 8);
    }

    // Asks for the weights of the part's first chunks while earlier kernels run: copies as many as there are
    // stages, and reads the next ones to L2. Returns the number of chunks that are copied.
    DEVICE_MEMBER uint32_t ask_for_weights(Part part) const {
        const uint32_t bytes = (TILE + X_CHUNKS * rows_of_inputs(0)) * CHUNK;
        uint32_t asked = 0;
        for (Segment segment; asked < STAGES + READ_AHEAD && part.next(segment);) {
            const uint8_t* w = weights_of(segment);
            const uint32_t end = asked + segment.end - segment.begin;
            for (; asked < min(end, STAGES + READ_AHEAD); ++asked, w += TILE * CHUNK) {
                if (asked >= STAGES) {
                    bulk_read_to_l2(w, TILE * CHUNK);
                } else {
                    barrier_expect(full(asked), bytes);
                    bulk_copy_once(stage_at(asked), w, TILE * CHUNK, full(asked));
                }
            }
        }
        return min(asked, STAGES);
    }

    // The weights of a segment's first chunk.
    DEVICE_MEMBER const uint8_t* weights_of(const Segment& segment) const {
        const size_t at = static_cast<size_t>(segment.tile) * p.tiles.chunks + segment.begin;
        return p.w + at * (TILE * CHUNK);
    }

    // Copies the chunks of a segment. Of the first `ahead` chunks the weights have been asked for.
    DEVICE_MEMBER void produce(const Segment& segment, Place& place, uint32_t ahead) const {
        const uint32_t rows = rows_of_inputs(segment.row);
        // The rows that this block copies. A block of a pair copies the first or the second half of N.
        const uint32_t first = WHOLE ? cluster_rank() * (N / PAIR) : 0;
        const uint32_t count = WHOLE ? min(N / PAIR, rows - min(rows, first)) : rows;
        const bool exists = !WHOLE || segment.tile < p.tiles.outputs;
        const uint32_t expected = (exists ? TILE * CHUNK : 0) + X_CHUNKS * rows * CHUNK;
        const uint8_t* w = weights_of(segment);
        const size_t x_stride = static_cast<size_t>(p.x_rows) * CHUNK;
        const uint8_t* x = p.x + segment.begin * X_CHUNKS * x_stride;
        x += static_cast<size_t>(segment.row + first) * CHUNK;
        for (uint32_t chunk = segment.begin; chunk < segment.end; ++chunk) {
            uint64_t* barrier = full(place.stage);
            unsigned char* to = stage_at(place.stage);
            if (WHOLE || chunk - segment.begin >= ahead) {
                barrier_wait(empty(place.stage), place.parity ^ 1);
                barrier_expect(barrier, expected);
                // A whole tile is read by several blocks at about the same time, from L2.
                if (!WHOLE) {
                    bulk_copy_once(to, w, TILE * CHUNK, barrier);
                } else if (exists) {
                    bulk_copy(to, w, TILE * CHUNK, barrier);
                }
            }
            w += TILE * CHUNK;
            to += (TILE + first) * CHUNK;
#pragma unroll
            for (uint32_t i = 0; i < X_CHUNKS; ++i) {
                if (!WHOLE) {
                    bulk_copy(to + i * N * CHUNK, x, count * CHUNK, barrier);
                } else if (count > 0) {
                    bulk_copy_to((1 << PAIR) - 1, to + i * N * CHUNK, x, count * CHUNK, barrier);
                }
                x += x_stride;
            }
            place.advance();
        }
    }

    // Adds the product of a chunk to `sums`. `group` is the warpgroup.
    static DEVICE_MEMBER void multiply(const unsigned char* stage, uint32_t group, float (&sums)[N / 2]) {
        const unsigned char* outputs = stage + group * 64 * CHUNK;
#pragma unroll
        for (uint32_t part = 0; part < N / ROWS; ++part) {
            const unsigned char* rows = stage + TILE * CHUNK + part * ROWS * CHUNK;
            float products[SUMS];
            if constexpr (X_CHUNKS == 2) {
                multiply_widened(outputs, rows, products);
            } else {
                const uint64_t a = tile_descriptor(outputs), b = tile_descriptor(rows);
                wgmma_fence();
#pragma unroll
                for (uint32_t step = 0; step < 4; ++step) {
                    // 32 bytes along K, in the descriptor's unit of 16.
                    if constexpr (W == Type::e4m3) {
                        wgmma_e4m3<ROWS>(products, a + 2 * step, b + 2 * step, step != 0);
                    } else {
                        wgmma_bf16<ROWS>(products, a + 2 * step, b + 2 * step, step != 0);
                    }
                }
                wgmma_commit();
                wgmma_wait<0>(products);
            }
#pragma unroll
            for (uint32_t i = 0; i < SUMS; ++i) sums[part * SUMS + i] += products[i];
        }
    }

    // E4M3 weights by BF16 inputs: each thread converts its weights of the 64 outputs to BF16, which is
    // exact.
    static DEVICE_MEMBER void multiply_widened(const unsigned char* outputs, const unsigned char* rows,
                                               float (&products)[SUMS]) {
        const uint32_t warp = threadIdx.x / 32 % 4, g = lane_id() / 4, t = lane_id() % 4;
        uint32_t a[8][4];
#pragma unroll
        for (uint32_t step = 0; step < 8; ++step) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                // Rows g and g + 8 of the warp's 16, elements 2t and 2t + 8 of the step's 16.
                const uint32_t row = warp * 16 + g + i % 2 * 8, at = step * 16 + 2 * t + i / 2 * 8;
                const unsigned char* from = outputs + swizzled(row * CHUNK + at);
                const uint32_t f16 = f16x2_of_e4m3x2(*reinterpret_cast<const uint16_t*>(from));
                a[step][i] = bf16x2(float_of_f16(static_cast<uint16_t>(f16)),
                                    float_of_f16(static_cast<uint16_t>(f16 >> 16)));
            }
        }
        wgmma_fence(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
#pragma unroll
        for (uint32_t step = 0; step < 8; ++step) {
            const uint64_t b = tile_descriptor(rows + step / 4 * N * CHUNK);
            wgmma_bf16<ROWS>(products, a[step], b + 2 * (step % 4), step != 0);
        }
        wgmma_commit();
        wgmma_wait<0>(products);
    }

    DEVICE_MEMBER void consume() const {
        Place place;
        if constexpr (WHOLE) {
            WholeTiles<N> tiles(p.tiles);
            for (Segment tile; tiles.next(tile);) consume_tile(tile, place);
        } else {
            Part part(p.tiles);
            float sums[N / 2];
            for (Segment segment; part.next(segment);) {
                sum(segment, place, sums);
                if (segment.begin == 0 && segment.end == p.tiles.chunks) {
                    store(segment, sums);
                } else {
                    write_segment(segment, sums);
                }
            }
        }
    }

    // Adds up the products of a segment's chunks.
    DEVICE_MEMBER void sum(const Segment& segment, Place& place, float (&sums)[N / 2]) const {
        const uint32_t group = threadIdx.x / 128 - 1;
#pragma unroll
        for (uint32_t i = 0; i < N / 2; ++i) sums[i] = 0.0f;
        for (uint32_t chunk = segment.begin; chunk < segment.end; ++chunk) {
            barrier_wait(full(place.stage), place.parity);
            multiply(stage_at(place.stage), group, sums);
            release(place);
        }
    }

    // Lets the producers of all blocks that copy to the stage use it again.
    static DEVICE_MEMBER void release(Place& place) {
        if (X_CHUNKS == 2) __syncwarp();
        if constexpr (WHOLE) {
            if (lane_id() < PAIR) barrier_arrive_at(empty(place.stage), lane_id());
        } else {
            if (lane_id() == 0) barrier_arrive(empty(place.stage));
        }
        place.advance();
    }

    // Adds the segments of a whole tile, and stores the total.
    DEVICE_MEMBER void consume_tile(Segment tile, Place& place) const {
        if (tile.tile >= p.tiles.outputs) {
            for (uint32_t chunk = 0; chunk < p.tiles.chunks; ++chunk) {
                barrier_wait(full(place.stage), place.parity);
                release(place);
            }
            return;
        }
        float sums[N / 2], total[N / 2];
#pragma unroll
        for (uint32_t i = 0; i < N / 2; ++i) total[i] = 0.0f;
        for (Segment segment = tile; segment.begin < p.tiles.chunks; segment.begin = segment.end) {
            segment.end = p.tiles.end_of(segment.tile, segment.begin);
            sum(segment, place, sums);
#pragma unroll
            for (uint32_t i = 0; i < N / 2; ++i) total[i] += sums[i];
        }
        store(tile, total);
    }

    DEVICE_MEMBER void store(const Segment& segment, const float (&sums)[N / 2]) const {
        const uint32_t group = threadIdx.x / 128 - 1;
        TileStore<W, X, N>{p, segment, group, exchanged(group)}.store(sums);
    }

    // Memory of a warpgroup for 16 rows of 64 outputs. A block of a cluster has it behind its barriers.
    static DEVICE_MEMBER uint32_t* exchanged(uint32_t group) {
        if constexpr (WHOLE) {
            unsigned char* start = stage_at(STAGES) + BARRIER_BYTES;
            return reinterpret_cast<uint32_t*>(start) + group * (16 * ROW_WORDS);
        } else {
            SHARED uint32_t words[CONSUMERS / 128][16 * ROW_WORDS];
            return words[group];
        }
    }

    // The sums of a part's segment of a tile. A part has at most two segments of cut tiles: one from the
    // tile's start on, and one of a tile that an earlier part starts.
    DEVICE_MEMBER float4* partial(uint32_t part, bool first) const {
        const size_t segment = 2 * part + first;
        return p.partials + segment * (N / 8 * CONSUMERS) + (threadIdx.x - PRODUCERS);
    }

    static DEVICE_MEMBER void write(float4* to, const float (&sums)[N / 2]) {
#pragma unroll
        for (uint32_t i = 0; i < N / 8; ++i) {
            to[i * CONSUMERS] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
        }
    }

    // Adds the tile's segments in the order of K: those of the parts before this block's, `sums`, and those
    // of the parts after it. Sums are never -0, so none has to be added to 0 first.
    DEVICE_MEMBER void add_segments(uint32_t first, uint32_t last, float (&sums)[N / 2]) const {
        constexpr uint32_t HALF = LOADS / 2 > 0 ? LOADS / 2 : 1;
#pragma unroll
        for (uint32_t some = 0; some < N / 8; some += LOADS) {
            if (first < blockIdx.x) {
                float4 before[LOADS];
                load_some(partial(first, true), some, before);
#pragma unroll 1
                for (uint32_t part = first + 1; part < blockIdx.x; ++part) {
#pragma unroll
                    for (uint32_t half = 0; half < LOADS; half += HALF) {
                        float4 more[HALF];
                        load_some(partial(part, false), some + half, more);
#pragma unroll
                        for (uint32_t i = 0; i < HALF; ++i) before[half + i] = add(before[half + i], more[i]);
                    }
                }
                add_some(sums, some, before);
            }
#pragma unroll 1
            for (uint32_t part = blockIdx.x + 1; part <= last; ++part) {
                float4 after[LOADS];
                load_some(partial(part, false), some, after);
                add_some(sums, some, after);
            }
        }
    }

    template <uint32_t Count>
    static DEVICE_MEMBER void load_some(const float4* segment, uint32_t from, float4 (&x)[Count]) {
#pragma unroll
        for (uint32_t i = 0; i < Count; ++i) x[i] = load_l2(segment + (from + i) * CONSUMERS);
    }

    static DEVICE_MEMBER void add_some(float (&sums)[N / 2], uint32_t from, const float4 (&x)[LOADS]) {
#pragma unroll
        for (uint32_t i = 0; i < LOADS; ++i) {
            float* sum = sums + 4 * (from + i);
            sum[0] += x[i].x, sum[1] += x[i].y, sum[2] += x[i].z, sum[3] += x[i].w;
        }
    }

    // Writes the segment's sums. The last block to arrive adds all segments of the tile and stores the total.
    DEVICE_MEMBER void write_segment(const Segment& segment, float (&sums)[N / 2]) const {
        const uint32_t start = segment.tile * p.tiles.chunks;
        const uint32_t first = p.tiles.part_of(start), last = p.tiles.part_of(start + p.tiles.chunks - 1);
        write(partial(blockIdx.x, segment.begin == 0), sums);
        __threadfence();
        group_sync(1, CONSUMERS);
        if (threadIdx.x == PRODUCERS) *arrived() = atomicAdd(&p.counters[segment.tile], 1u);
        group_sync(1, CONSUMERS);
        if (*arrived() != last - first) return;
        __threadfence();
        add_segments(first, last, sums);
        store(segment, sums);
        if (threadIdx.x == PRODUCERS) p.counters[segment.tile] = 0;
    }
};

template <Type W, Type X, uint32_t N, bool WHOLE>
DEVICE void linear(const LinearParams& p) {
    using Product = Linear<W, X, N, WHOLE>;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < Product::STAGES; ++stage) {
            barrier_init(Product::full(stage), 1);
            barrier_init(Product::empty(stage), Product::READERS * (CONSUMERS / 32));
        }
        barrier_init_fence();
    }
    if (WHOLE) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    const Product product{p};
    uint32_t ahead = 0;
    if (!WHOLE) {
        // If the other lanes of the warp waited first, the compiler would make lane 0 join them before it
        // asks.
        if (threadIdx.x == 0) ahead = product.ask_for_weights(Part(p.tiles));
        __syncwarp();
        wait_for_earlier();
    }
    if (threadIdx.x < PRODUCERS) {
        registers_lower<56>();
        if (threadIdx.x == 0) product.produce(ahead);
    } else {
        registers_raise<224>();
        product.consume();
    }
    // The other block's warps arrive at this block's barriers until they end.
    if (WHOLE) cluster_sync();
}

#define LINEAR(name, W, X, N) \
    KERNEL_AHEAD(name##_##N, LinearParams, PRODUCERS + CONSUMERS) { linear<Type::W, Type::X, N, false>(p); }
// Kernels for up to 128 rows, and the one that computes whole tiles for `N` rows at a time.
#define LINEAR_VARIANTS(name, W, X, N)                                         \
    LINEAR(name, W, X, 8)                                                      \
    LINEAR(name, W, X, 16)                                                     \
    LINEAR(name, W, X, 32)                                                     \
    LINEAR(name, W, X, 64)                                                     \
    LINEAR(name, W, X, 128)                                                    \
    KERNEL_CLUSTER(name##_whole, LinearParams, PRODUCERS + CONSUMERS, PAIR) { \
        linear<Type::W, Type::X, N, true>(p);                                  \
    }

LINEAR_VARIANTS(linear_e4m3, e4m3, e4m3, 128)
LINEAR(linear_e4m3, e4m3, e4m3, 256)
LINEAR_VARIANTS(linear_e4m3_bf16, e4m3, bf16, 64)
LINEAR_VARIANTS(linear_bf16, bf16, bf16, 128)
LINEAR(linear_bf16, bf16, bf16, 256)
