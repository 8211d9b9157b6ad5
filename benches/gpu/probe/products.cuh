// Checks the products of kernels/wgmma.cuh: that swizzle and descriptors are right, by products of integers;
// and that the bits of an element depend neither on the number of rows of B, nor on the element's place, nor
// on which of its operands is A.
#pragma once

#include "machine.cuh"
#include "numbers.cuh"

enum class Kind { e4m3, bf16, bf16_in_registers, f16_in_registers };

struct ProductParams {
    // [chunk][a_rows][128 bytes] and [chunk][b_rows][128 bytes], swizzled.
    const uint8_t* a;
    const uint8_t* b;
    // [a_rows][b_rows]
    float* out;
    uint32_t a_rows;
    uint32_t b_rows;
    uint32_t chunks;
    // Instructions of a chunk, of 32 bytes along K each: 1 to 4.
    uint32_t steps;
};

constexpr uint32_t PROBE_CHUNK = 128;

template <Kind kind, uint32_t N>
DEVICE void probe_product(const ProductParams& p) {
    SHARED uint64_t full;
    constexpr uint32_t A_BYTES = 64 * PROBE_CHUNK, B_BYTES = N * PROBE_CHUNK;
    const uint32_t across = p.b_rows / N;
    const uint32_t a_row = blockIdx.x / across * 64, b_row = blockIdx.x % across * N;
    if (threadIdx.x == 0) {
        barrier_init(&full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(&full, p.chunks * (A_BYTES + B_BYTES));
        for (uint32_t chunk = 0; chunk < p.chunks; ++chunk) {
            unsigned char* to = tile_memory() + chunk * (A_BYTES + B_BYTES);
            bulk_copy(to, p.a + (chunk * p.a_rows + a_row) * PROBE_CHUNK, A_BYTES, &full);
            bulk_copy(to + A_BYTES, p.b + (chunk * p.b_rows + b_row) * PROBE_CHUNK, B_BYTES, &full);
        }
    }
    barrier_wait(&full, 0);

    const uint32_t warp = threadIdx.x / 32, g = lane_id() / 4, c = lane_id() % 4;
    float d[N / 2];
#pragma unroll
    for (uint32_t i = 0; i < N / 2; ++i) d[i] = 0.0f;
    for (uint32_t step = 0; step < p.chunks * p.steps; ++step) {
        const unsigned char* stage = tile_memory() + step / p.steps * (A_BYTES + B_BYTES);
        const uint32_t along = step % p.steps;
        const uint64_t a = tile_descriptor(stage) + 2 * along;
        const uint64_t b = tile_descriptor(stage + A_BYTES) + 2 * along;
        uint32_t registers[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = warp * 16 + g + i % 2 * 8, byte = along * 32 + 4 * c + i / 2 * 16;
            registers[i] = *reinterpret_cast<const uint32_t*>(stage + swizzled(row * PROBE_CHUNK + byte));
        }
        wgmma_fence(d, registers);
        if constexpr (kind == Kind::e4m3) wgmma_e4m3<N>(d, a, b, step != 0);
        if constexpr (kind == Kind::bf16) wgmma_bf16<N>(d, a, b, step != 0);
        if constexpr (kind == Kind::bf16_in_registers) wgmma_bf16<N>(d, registers, b, step != 0);
        if constexpr (kind == Kind::f16_in_registers) wgmma_f16<N>(d, registers, b, step != 0);
        wgmma_commit();
        wgmma_wait<0>(d);
    }
#pragma unroll
    for (uint32_t i = 0; i < N / 2; ++i) {
        const uint32_t row = a_row + warp * 16 + g + i / 2 % 2 * 8;
        const uint32_t column = b_row + i / 4 * 8 + 2 * c + i % 2;
        p.out[static_cast<size_t>(row) * p.b_rows + column] = d[i];
    }
}

#define PROBE_PRODUCT(kind, n) \
    KERNEL_ALONE(probe_##kind##_##n, ProductParams, 128) { probe_product<Kind::kind, n>(p); }
#define PROBE_PRODUCTS(kind)  \
    PROBE_PRODUCT(kind, 8)    \
    PROBE_PRODUCT(kind, 16)   \
    PROBE_PRODUCT(kind, 32)   \
    PROBE_PRODUCT(kind, 64)   \
    PROBE_PRODUCT(kind, 128)  \
    PROBE_PRODUCT(kind, 256)
PROBE_PRODUCTS(e4m3)
PROBE_PRODUCTS(bf16)
PROBE_PRODUCTS(bf16_in_registers)
PROBE_PRODUCTS(f16_in_registers)
// The rows of kernels/attention_prefill.cu.
PROBE_PRODUCT(bf16_in_registers, 48)
PROBE_PRODUCT(f16_in_registers, 48)

namespace probe {

constexpr Kind KINDS[] = {Kind::e4m3, Kind::bf16, Kind::bf16_in_registers, Kind::f16_in_registers};
constexpr uint32_t SIZES[] = {8, 16, 32, 64, 128, 256};

// Rows along K, as values; and as bytes in the layout of kernels/pack.cuh.
struct Matrix {
    uint32_t rows = 0;
    // [row][k]
    std::vector<float> values;

    uint32_t columns() const { return static_cast<uint32_t>(values.size()) / rows; }

    std::vector<uint8_t> packed(Kind kind) const {
        const uint32_t width = kind == Kind::e4m3 ? 1 : 2, row_bytes = columns() * width;
        std::vector<uint8_t> bytes(rows * row_bytes);
        for (uint32_t row = 0; row < rows; ++row) {
            for (uint32_t byte = 0; byte < row_bytes; ++byte) {
                const float x = values[row * columns() + byte / width];
                const uint32_t half = kind == Kind::f16_in_registers ? f16_code(x) : bf16_code(x);
                const uint32_t code = width == 1 ? e4m3_code(x) : half;
                // Piece i of 16 bytes is at place i ^ row % 8 of its 128 bytes.
                const uint32_t place = byte % PROBE_CHUNK ^ row % 8 * 16;
                bytes[(byte / PROBE_CHUNK * rows + row) * PROBE_CHUNK + place] =
                    static_cast<uint8_t>(code >> byte % width * 8);
            }
        }
        return bytes;
    }
};

inline void launch_product(Kind kind, uint32_t n, const ProductParams& params) {
    const uint32_t blocks = params.a_rows / 64 * (params.b_rows / n);
    const uint32_t shared = params.chunks * (64 + n) * PROBE_CHUNK;
#define PROBE_CASE(kind, n) \
    case n: return PROBE_LAUNCH(probe_##kind##_##n, blocks, 128, shared, params)
#define PROBE_SWITCH(kind)       \
    switch (n) {                 \
        PROBE_CASE(kind, 8);     \
        PROBE_CASE(kind, 16);    \
        PROBE_CASE(kind, 32);    \
        PROBE_CASE(kind, 64);    \
        PROBE_CASE(kind, 128);   \
        PROBE_CASE(kind, 256);   \
    }
    if (kind == Kind::e4m3) PROBE_SWITCH(e4m3)
    if (kind == Kind::bf16) PROBE_SWITCH(bf16)
    if (kind == Kind::bf16_in_registers && n == 48) {
        return PROBE_LAUNCH(probe_bf16_in_registers_48, blocks, 128, shared, params);
    }
    if (kind == Kind::f16_in_registers && n == 48) {
        return PROBE_LAUNCH(probe_f16_in_registers_48, blocks, 128, shared, params);
    }
    if (kind == Kind::bf16_in_registers) PROBE_SWITCH(bf16_in_registers)
    if (kind == Kind::f16_in_registers) PROBE_SWITCH(f16_in_registers)
}

// a × bᵀ by instructions for `n` rows of b. `steps` is the number of instructions per 128 bytes.
inline std::vector<float> product(Kind kind, uint32_t n, const Matrix& a, const Matrix& b,
                                  uint32_t steps = 4) {
    const Array<uint8_t> a_tiles(a.packed(kind)), b_tiles(b.packed(kind));
    const Array<float> out(static_cast<size_t>(a.rows) * b.rows);
    const uint32_t chunks = a.columns() * (kind == Kind::e4m3 ? 1 : 2) / PROBE_CHUNK;
    launch_product(kind, n, {a_tiles.at(), b_tiles.at(), out.at(), a.rows, b.rows, chunks, steps});
    return out.read();
}

inline const char* name_of(Kind kind) {
    if (kind == Kind::e4m3) return "wgmma E4M3";
    if (kind == Kind::f16_in_registers) return "wgmma F16, A in registers";
    return kind == Kind::bf16 ? "wgmma BF16" : "wgmma BF16, A in registers";
}

// 256 rows of two chunks.
template <typename Next>
Matrix matrix_of(Kind kind, const Next& next) {
    const uint32_t columns = 2 * PROBE_CHUNK / (kind == Kind::e4m3 ? 1 : 2);
    Matrix matrix{256, std::vector<float>(256 * columns)};
    for (float& x : matrix.values) x = next();
    return matrix;
}

// Swizzle, descriptors and the places of elements: products of integers.
inline void layouts(Report& report) {
    for (const Kind kind : KINDS) {
        Random random;
        const auto integer = [&] { return static_cast<float>(random.below(17)) - 8.0f; };
        const Matrix a = matrix_of(kind, integer), b = matrix_of(kind, integer);
        std::vector<float> expected;
        for (uint32_t row = 0; row < a.rows; ++row) {
            for (uint32_t column = 0; column < b.rows; ++column) {
                const float* x = &a.values[row * a.columns()];
                const float* y = &b.values[column * b.columns()];
                float sum = 0.0f;
                for (uint32_t k = 0; k < a.columns(); ++k) sum += x[k] * y[k];
                expected.push_back(sum);
            }
        }
        for (const uint32_t n : SIZES) {
            const std::vector<float> got = product(kind, n, a, b);
            size_t wrong = 0;
            for (size_t i = 0; i < expected.size(); ++i) wrong += got[i] != expected[i];
            const std::string name = name_of(kind);
            report.count(name + ", n = " + std::to_string(n) + ": integers", got.size(), wrong);
        }
    }
}

// Elements of `got` whose bits differ from those of the element of `expected` that `place` names.
template <typename Place>
size_t differences(const std::vector<float>& expected, const std::vector<float>& got, const Place& place) {
    size_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) wrong += bits_of(got[i]) != bits_of(expected[place(i)]);
    return wrong;
}

// Bits of an element for any n, at any place, in both positions. Values have all exponents, so that sums are
// rounded.
inline void invariance(Report& report) {
    for (const Kind kind : KINDS) {
        Random random;
        const auto value = [&] {
            const uint32_t sign = random.below(2);
            if (kind == Kind::e4m3) return e4m3_value(static_cast<uint8_t>(random.below(127) | sign << 7));
            const uint32_t exponent = 117 + random.below(20);
            return float_of(sign << 31 | exponent << 23 | random.below(128) << 16);
        };
        const Matrix a = matrix_of(kind, value), b = matrix_of(kind, value);
        const std::vector<float> reference = product(kind, 8, a, b);
        const std::string name = name_of(kind);
        // The rows of both, moved by 72 places.
        constexpr uint32_t moved = 72;
        const auto rotated = [](const Matrix& from) {
            Matrix to = from;
            const auto first = static_cast<ptrdiff_t>(moved * from.columns());
            std::rotate(to.values.begin(), to.values.begin() + first, to.values.end());
            return to;
        };
        const Matrix a_moved = rotated(a), b_moved = rotated(b);
        for (const uint32_t n : SIZES) {
            const std::string size = ", n = " + std::to_string(n);
            const std::vector<float> same = product(kind, n, a, b);
            report.count(name + size + ": bits of n = 8", same.size(),
                         differences(reference, same, [](size_t i) { return i; }));
            const std::vector<float> elsewhere = product(kind, n, a_moved, b_moved);
            report.count(name + size + ": bits at other places", elsewhere.size(),
                         differences(reference, elsewhere, [](size_t i) {
                             return (i / 256 + moved) % 256 * 256 + (i % 256 + moved) % 256;
                         }));
            const std::vector<float> exchanged = product(kind, n, b, a);
            report.count(name + size + ": bits with A and B exchanged", exchanged.size(),
                         differences(reference, exchanged, [](size_t i) { return i % 256 * 256 + i / 256; }));
        }
        if (kind != Kind::bf16_in_registers && kind != Kind::f16_in_registers) continue;
        // As many rows as 48 divides.
        Matrix few = b;
        few.rows = 240;
        few.values.resize(240 * b.columns());
        const std::vector<float> got = product(kind, 48, a, few);
        report.count(name + ", n = 48: bits of n = 8", got.size(),
                     differences(reference, got, [](size_t i) { return i / 240 * 256 + i % 240; }));
    }
}

}  // namespace probe
