// OP: out[m][n] = (sum over k of x[m][k] * w[n][k]) * x_scale[m] * w_scale[n]
// INPUTS: x E4M3 [m, k] with scales f32 [m], or BF16 [m, k]; w packed as in pack.cuh, E4M3 with scales f32
//     [n], or BF16
// OUTPUTS: out f32 [m, n]
// LAUNCH: `ctas` blocks of 256 threads; shared memory for one unit of x, computed in
//     src/device/cuda/linear.rs
// LIMITS: m at most 8 * N of the variant, N = 1, 2, 4, 8 or 16; k a multiple of 16; counters zero before
// NUMERICS: exact products, F32 sums in an order that depends on the weight's shape alone: a row's bits do
//     not depend on the other rows; within 1e-5 of the sum of magnitudes in F64
// COST: bytes of w; bound by memory up to about 64 rows
// TWINS: src/device/cpu/linear/mod.rs
//
// The weight is read once, directly into registers in the form that the tensor cores take, several K blocks
// ahead. x is small and staged in shared memory for the eight warps of a block, each of which computes 16
// outputs.
//
// Work is cut into units of 128 outputs by eight K blocks, numbered along k first. Each block computes one
// contiguous range of units, so that all blocks finish together for any shape. If a tile of outputs is cut
// between blocks, each block writes its sums, and the last to arrive adds them in the order of k.
#include "pack.cuh"

// K blocks of a unit.
constexpr uint32_t UNIT = 8;

struct LinearParams {
    const uint8_t* x;
    const float* x_scales;
    const uint8_t* w;
    const float* w_scales;
    float* out;
    // [tiles + ctas][8 warps][N][32 lanes]: sums of the parts of cut tiles.
    float4* partials;
    // [tiles]: the number of parts that have arrived; zero before and after.
    uint32_t* counters;
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t k_blocks;
    // Tiles of 128 outputs.
    uint32_t tiles;
    // Units per tile.
    uint32_t units;
    uint32_t ctas;
    uint32_t unused;
};
static_assert(sizeof(LinearParams) == 88);

DEVICE uint16_t low_half(uint32_t word) { return static_cast<uint16_t>(word); }
DEVICE uint16_t high_half(uint32_t word) { return static_cast<uint16_t>(word >> 16); }

// Element type of an operand.
enum class Type { e4m3, bf16 };

template <Type W, Type X, uint32_t N>
struct Linear {
    static constexpr uint32_t DEPTH = W == Type::bf16 ? 16 : 32;
    // 16-bit elements of a row of x in shared memory: a unit, and padding that puts eight rows on different
    // banks.
    static constexpr uint32_t STRIDE = UNIT * DEPTH + (W == Type::bf16 ? 16 : 32);

    // Loads that a warp keeps in flight.
    static constexpr uint32_t AHEAD = UNIT;

    const LinearParams& p;
    uint16_t* stage;
    float sums[N][4];

    // The number of units, the first unit of a block, and the block that computes a unit.
    DEVICE_MEMBER uint64_t total() const { return static_cast<uint64_t>(p.tiles) * p.units; }
    DEVICE_MEMBER uint64_t first_of(uint64_t cta) const { return cta * total() / p.ctas; }
    DEVICE_MEMBER uint32_t owner_of(uint64_t unit) const {
        return static_cast<uint32_t>(((unit + 1) * p.ctas - 1) / total());
    }

    // Copies a unit's inputs of all rows to shared memory, as F16 or BF16; zeros beyond m and k.
    DEVICE_MEMBER void stage_x(uint32_t unit) {
        constexpr uint32_t per_load = X == Type::bf16 ? 8 : 16, loads = UNIT * DEPTH / per_load;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < N * 8 * loads; i += blockDim.x) {
            const uint32_t row = i / loads, at = i % loads * per_load, k = unit * UNIT * DEPTH + at;
            uint4 halves[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
            if (row < p.m && k < p.k) {
                const uint8_t* from = p.x + (static_cast<size_t>(row) * p.k + k) * (X == Type::bf16 ? 2 : 1);
                const uint4 raw = *reinterpret_cast<const uint4*>(from);
                if (X == Type::bf16) {
                    halves[0] = raw;
                } else {
                    halves[0] = widen(raw.x, raw.y);
                    halves[1] = widen(raw.z, raw.w);
                }
            }
            auto* to = reinterpret_cast<uint4*>(stage + row * STRIDE + at);
            to[0] = halves[0];
            if (X == Type::e4m3) to[1] = halves[1];
        }
        __syncthreads();
    }

    static DEVICE_MEMBER uint4 widen(uint32_t a, uint32_t b) {
        return make_uint4(f16x2_of_e4m3x2(low_half(a)), f16x2_of_e4m3x2(high_half(a)),
                          f16x2_of_e4m3x2(low_half(b)), f16x2_of_e4m3x2(high_half(b)));
    }

    // Two E4M3 codes in the type of x's operand: F16 or BF16. Both are exact.
    static DEVICE_MEMBER uint32_t pair_of(uint16_t codes) {
        const uint32_t f16 = f16x2_of_e4m3x2(codes);
        if (X == Type::e4m3) return f16;
        return bf16x2(float_of_f16(low_half(f16)), float_of_f16(high_half(f16)));
    }

    static DEVICE_MEMBER void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        if (X == Type::bf16) {
            mma_bf16(d, a, b0, b1);
        } else {
            mma_f16(d, a, b0, b1);
        }
    }

    // Multiplies one K block of 16 outputs by all rows. `block` is its number within the unit.
    DEVICE_MEMBER void multiply(const uint4& raw, uint32_t block) {
        const uint32_t g = lane_id() / 4, t = lane_id() % 4;
        if constexpr (W == Type::bf16) {
            const uint32_t a[4] = {raw.x, raw.z, raw.y, raw.w};
#pragma unroll
            for (uint32_t i = 0; i < N; ++i) {
                const uint16_t* from = stage + (i * 8 + g) * STRIDE + block * 16 + 4 * t;
                const auto b = *reinterpret_cast<const uint2*>(from);
                product(sums[i], a, b.x, b.y);
            }
        } else {
            const uint32_t low[4] = {pair_of(low_half(raw.x)), pair_of(low_half(raw.z)),
                                     pair_of(high_half(raw.x)), pair_of(high_half(raw.z))};
            const uint32_t high[4] = {pair_of(low_half(raw.y)), pair_of(low_half(raw.w)),
                                      pair_of(high_half(raw.y)), pair_of(high_half(raw.w))};
#pragma unroll
            for (uint32_t i = 0; i < N; ++i) {
                const uint16_t* from = stage + (i * 8 + g) * STRIDE + block * 32 + 8 * t;
                const auto b = *reinterpret_cast<const uint4*>(from);
                product(sums[i], low, b.x, b.y);
                product(sums[i], high, b.z, b.w);
            }
        }
    }

    // Computes the units begin..end of one tile.
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

    // Scales the sums and stores those within m and n.
    DEVICE_MEMBER void store(uint32_t tile) {
        const uint32_t g = lane_id() / 4, t = lane_id() % 4;
        const uint32_t output = tile * 128 + threadIdx.x / 32 * 16 + g;
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                const uint32_t n = output + j / 2 * 8, m = i * 8 + 2 * t + j % 2;
                if (n < p.n && m < p.m) {
                    const float x_scale = X == Type::bf16 ? 1.0f : p.x_scales[m];
                    const float w_scale = W == Type::bf16 ? 1.0f : p.w_scales[n];
                    p.out[static_cast<size_t>(m) * p.n + n] = sums[i][j] * x_scale * w_scale;
                }
            }
        }
    }

    DEVICE_MEMBER float4* partial(uint32_t tile, uint32_t cta) const {
        // From one part to the next either the tile or the block increases by one, so that their sum is
        // unique.
        const size_t part = static_cast<size_t>(tile) + cta;
        return p.partials + (part * 8 + threadIdx.x / 32) * N * 32 + lane_id();
    }

    // Writes this block's part of a tile. The last block to arrive adds all parts and stores the tile.
    DEVICE_MEMBER void write_part(uint32_t tile, uint32_t first, uint32_t last) {
        SHARED uint32_t arrived;
        float4* mine = partial(tile, blockIdx.x);
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
            mine[i * 32] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        }
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
                write_part(tile, first, last);
            }
            unit = stop;
        }
    }
};

#define LINEAR(name, W, X, N)                                                              \
    KERNEL(name, LinearParams, 256) {                                                      \
        Linear<Type::W, Type::X, N> linear{p, reinterpret_cast<uint16_t*>(shared_memory()), {}}; \
        linear.run();                                                                      \
    }
#define LINEAR_VARIANTS(name, W, X) \
    LINEAR(name##_1, W, X, 1)       \
    LINEAR(name##_2, W, X, 2)       \
    LINEAR(name##_4, W, X, 4)       \
    LINEAR(name##_8, W, X, 8)       \
    LINEAR(name##_16, W, X, 16)

LINEAR_VARIANTS(linear_e4m3, e4m3, e4m3)
LINEAR_VARIANTS(linear_e4m3_bf16, e4m3, bf16)
LINEAR_VARIANTS(linear_bf16, bf16, bf16)
