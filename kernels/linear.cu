// OP: out[m][n] = (sum over k of x[m][k] * w[n][k]) * x_scale[m] * w_scale[n]
// INPUTS: x E4M3 [m, k] with scales f32 [m], or BF16 [m, k]; w packed as in pack.cuh, E4M3 with scales f32 [n], or BF16
// OUTPUTS: out f32 [m, n]
// LAUNCH: `ctas` blocks of 256 threads; shared memory as gemm_stream_shared() of src/device/cuda/linear.rs says
// LIMITS: m at most 8 * N of the variant, N = 1, 2, 4, 8 or 16; k a multiple of 16; partials and counters as below, counters zero
// NUMERICS: exact products, F32 sums whose order depends on the weight's shape alone: a row's bits are the same whatever the rows beside it; within 1e-5 of the sum of magnitudes of F64
// COST: bytes of w; bound by memory up to about 64 rows
// TWINS: src/device/cpu/linear/mod.rs
//
// The weight is read once, straight into registers in the form that the tensor cores take, several K blocks ahead; x is
// small and staged in shared memory for the eight warps of a block, each of which has 16 outputs.
//
// Work is cut into units of 128 outputs by eight K blocks, numbered along k first, and each block does one contiguous
// range of units, so that all end together whatever the shape. Where a tile of outputs is cut between blocks, each
// writes its sums, and the last to arrive adds them in the order of k.
#include "pack.cuh"

// K blocks of a unit.
constexpr uint32_t UNIT = 8;

struct GemmStreamParams {
    const uint8_t* x;
    const float* x_scales;
    const uint8_t* w;
    const float* w_scales;
    float* out;
    // [tiles + ctas][8 warps][N][32 lanes] float4: sums of the parts of cut tiles.
    float4* partials;
    // [tiles]: parts that have arrived; zero before and after.
    uint32_t* counters;
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t k_blocks;
    // Tiles of 128 outputs.
    uint32_t tiles;
    // Units of a tile.
    uint32_t units;
    uint32_t ctas;
    uint32_t unused;
};
static_assert(sizeof(GemmStreamParams) == 88);

// What the two operands are stored as.
enum class Form { e4m3, bf16 };

template <Form W, Form X, uint32_t N>
struct Stream {
    static constexpr uint32_t DEPTH = W == Form::bf16 ? 16 : 32;
    // Halves of a row of x in shared memory: a unit, and what keeps eight rows on different banks.
    static constexpr uint32_t STRIDE = UNIT * DEPTH + (W == Form::bf16 ? 16 : 32);

    // Loads that a warp has under way.
    static constexpr uint32_t AHEAD = UNIT;

    const GemmStreamParams& p;
    uint16_t* stage;
    float sums[N][4];

    // The first unit of a block, and the block that does a unit.
    DEVICE_MEMBER uint64_t total() const { return static_cast<uint64_t>(p.tiles) * p.units; }
    DEVICE_MEMBER uint64_t first_of(uint64_t cta) const { return cta * total() / p.ctas; }
    DEVICE_MEMBER uint32_t owner_of(uint64_t unit) const {
        return static_cast<uint32_t>(((unit + 1) * p.ctas - 1) / total());
    }

    // Brings a unit's inputs of all rows to shared memory, as F16 or BF16; zeros where there are none.
    DEVICE_MEMBER void stage_x(uint32_t unit) {
        constexpr uint32_t per_load = X == Form::bf16 ? 8 : 16, loads = UNIT * DEPTH / per_load;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < N * 8 * loads; i += blockDim.x) {
            const uint32_t row = i / loads, at = i % loads * per_load, k = unit * UNIT * DEPTH + at;
            uint4 halves[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
            if (row < p.m && k < p.k) {
                const uint8_t* from = p.x + (static_cast<size_t>(row) * p.k + k) * (X == Form::bf16 ? 2 : 1);
                const uint4 raw = *reinterpret_cast<const uint4*>(from);
                if (X == Form::bf16) {
                    halves[0] = raw;
                } else {
                    halves[0] = widen(raw.x, raw.y);
                    halves[1] = widen(raw.z, raw.w);
                }
            }
            auto* to = reinterpret_cast<uint4*>(stage + row * STRIDE + at);
            to[0] = halves[0];
            if (X == Form::e4m3) to[1] = halves[1];
        }
        __syncthreads();
    }

    static DEVICE_MEMBER uint4 widen(uint32_t a, uint32_t b) {
        return make_uint4(f16x2_of_e4m3x2(static_cast<uint16_t>(a)), f16x2_of_e4m3x2(static_cast<uint16_t>(a >> 16)),
                          f16x2_of_e4m3x2(static_cast<uint16_t>(b)), f16x2_of_e4m3x2(static_cast<uint16_t>(b >> 16)));
    }

    // E4M3 codes as the products take them beside x: F16, or BF16, both exact.
    static DEVICE_MEMBER uint32_t pair_of(uint16_t codes) {
        const uint32_t f16 = f16x2_of_e4m3x2(codes);
        if (X == Form::e4m3) return f16;
        return bf16x2(float_of_f16(static_cast<uint16_t>(f16)), float_of_f16(static_cast<uint16_t>(f16 >> 16)));
    }

    static DEVICE_MEMBER void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        if (X == Form::bf16) {
            mma_bf16(d, a, b0, b1);
        } else {
            mma_f16(d, a, b0, b1);
        }
    }

    // One K block of 16 outputs against all rows. `block` is its number within the unit.
    DEVICE_MEMBER void multiply(const uint4& raw, uint32_t block) {
        const uint32_t g = lane_id() / 4, t = lane_id() % 4;
        if constexpr (W == Form::bf16) {
            const uint32_t a[4] = {raw.x, raw.z, raw.y, raw.w};
#pragma unroll
            for (uint32_t i = 0; i < N; ++i) {
                const auto b = *reinterpret_cast<const uint2*>(stage + (i * 8 + g) * STRIDE + block * 16 + 4 * t);
                product(sums[i], a, b.x, b.y);
            }
        } else {
            const uint32_t low[4] = {pair_of(static_cast<uint16_t>(raw.x)), pair_of(static_cast<uint16_t>(raw.z)),
                                     pair_of(static_cast<uint16_t>(raw.x >> 16)), pair_of(static_cast<uint16_t>(raw.z >> 16))};
            const uint32_t high[4] = {pair_of(static_cast<uint16_t>(raw.y)), pair_of(static_cast<uint16_t>(raw.w)),
                                      pair_of(static_cast<uint16_t>(raw.y >> 16)), pair_of(static_cast<uint16_t>(raw.w >> 16))};
#pragma unroll
            for (uint32_t i = 0; i < N; ++i) {
                const auto b = *reinterpret_cast<const uint4*>(stage + (i * 8 + g) * STRIDE + block * 32 + 8 * t);
                product(sums[i], low, b.x, b.y);
                product(sums[i], high, b.z, b.w);
            }
        }
    }

    // Units begin..end of one tile.
    DEVICE_MEMBER void accumulate(uint32_t tile, uint32_t begin, uint32_t end) {
        const uint32_t warp = threadIdx.x / 32;
        const size_t tile16 = static_cast<size_t>(tile) * 8 + warp;
        const auto* w = reinterpret_cast<const uint4*>(p.w) + (tile16 * p.k_blocks) * 32 + lane_id();
        const uint32_t last = min(end * UNIT, p.k_blocks);
        const uint4 zero = make_uint4(0, 0, 0, 0);
        uint4 ahead[AHEAD];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; ++i) {
            const uint32_t block = begin * UNIT + i;
            ahead[i] = block < last ? load_once(w + static_cast<size_t>(block) * 32) : zero;
        }
        for (uint32_t unit = begin; unit < end; ++unit) {
            stage_x(unit);
#pragma unroll
            for (uint32_t i = 0; i < UNIT; ++i) {
                const uint4 now = ahead[i % AHEAD];
                const uint32_t block = unit * UNIT + i + AHEAD;
                ahead[i % AHEAD] = block < last ? load_once(w + static_cast<size_t>(block) * 32) : zero;
                multiply(now, i);
            }
        }
    }

    // Scales the sums and stores those that exist.
    DEVICE_MEMBER void store(uint32_t tile) {
        const uint32_t g = lane_id() / 4, t = lane_id() % 4;
        const uint32_t output = tile * 128 + threadIdx.x / 32 * 16 + g;
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t n = output + j / 2 * 8, m = i * 8 + 2 * t + j % 2;
                if (n < p.n && m < p.m) {
                    const float x_scale = X == Form::bf16 ? 1.0f : p.x_scales[m];
                    const float w_scale = W == Form::bf16 ? 1.0f : p.w_scales[n];
                    p.out[static_cast<size_t>(m) * p.n + n] = sums[i][j] * x_scale * w_scale;
                }
            }
        }
    }

    DEVICE_MEMBER float4* partial(uint32_t tile, uint32_t cta) const {
        // From one part to the next either the tile or the block changes, so that the sum names it.
        const size_t part = static_cast<size_t>(tile) + cta;
        return p.partials + (part * 8 + threadIdx.x / 32) * N * 32 + lane_id();
    }

    // Leaves this block's part of a tile, and if it was the last to come, adds all up.
    DEVICE_MEMBER void leave(uint32_t tile, uint32_t first, uint32_t last) {
        SHARED uint32_t arrived;
        float4* mine = partial(tile, blockIdx.x);
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) mine[i * 32] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) arrived = atomicAdd(&p.counters[tile], 1u);
        __syncthreads();
        if (arrived != last - first) return;
        __threadfence();
        clear();
        for (uint32_t cta = first; cta <= last; ++cta) {
            const float4* part = partial(tile, cta);
#pragma unroll
            for (uint32_t i = 0; i < N; ++i) {
                const float4 x = load_l2(part + i * 32);
                sums[i][0] += x.x, sums[i][1] += x.y, sums[i][2] += x.z, sums[i][3] += x.w;
            }
        }
        store(tile);
        if (threadIdx.x == 0) p.counters[tile] = 0;
    }

    DEVICE_MEMBER void clear() {
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    }

    DEVICE_MEMBER void run() {
        const uint64_t end = first_of(blockIdx.x + 1);
        for (uint64_t unit = first_of(blockIdx.x); unit < end;) {
            const auto tile = static_cast<uint32_t>(unit / p.units);
            const uint64_t start = static_cast<uint64_t>(tile) * p.units;
            const uint64_t stop = min(end, start + p.units);
            clear();
            accumulate(tile, static_cast<uint32_t>(unit - start), static_cast<uint32_t>(stop - start));
            const uint32_t first = owner_of(start), last = owner_of(start + p.units - 1);
            if (first == last) {
                store(tile);
            } else {
                leave(tile, first, last);
            }
            unit = stop;
        }
    }
};

#define GEMM_STREAM(name, W, X, N)                                                                        \
    KERNEL(name, GemmStreamParams, 256) {                                                                 \
        Stream<Form::W, Form::X, N> stream{p, reinterpret_cast<uint16_t*>(shared_memory()), {}};          \
        stream.run();                                                                                     \
    }
#define GEMM_STREAMS(name, W, X)                                                                          \
    GEMM_STREAM(name##_1, W, X, 1)                                                                        \
    GEMM_STREAM(name##_2, W, X, 2)                                                                        \
    GEMM_STREAM(name##_4, W, X, 4)                                                                        \
    GEMM_STREAM(name##_8, W, X, 8)                                                                        \
    GEMM_STREAM(name##_16, W, X, 16)

GEMM_STREAMS(gemm_stream_e4m3, e4m3, e4m3)
GEMM_STREAMS(gemm_stream_e4m3_bf16, e4m3, bf16)
GEMM_STREAMS(gemm_stream_bf16, bf16, bf16)
