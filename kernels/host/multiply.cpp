// The arithmetic of the products of warpgroups, and how their operands lie in shared memory.
#include <algorithm>
#include <cstdlib>

#include "fibers.h"
#include "products.h"

namespace host {

namespace {

// Reads 32 bytes along K of each row of a tile, as the PTX ISA describes it ("Matrix Descriptor Format" and
// "Canonical Layouts" of wgmma, K-major with the 128-byte swizzle): rows of a group of eight are 128 bytes
// apart, groups as many as bits 32 to 45 say in units of 16, and bits 4 to 6 of an address change by bits 7
// to 9.
void read_tile(uint64_t tile, uint32_t tile_rows, unsigned char (*to)[depth_bytes]) {
    const uint64_t base_offset = tile >> 49 & 7, mode = tile >> 62;
    if (mode != 1 || base_offset != 0) die("a descriptor of another layout than the 128-byte swizzle");
    const size_t group_bytes = (tile >> 32 & 0x3FFF) * 16;
    const size_t offset = ((tile & 0x3FFF) * 16 - shared_address(place.shared)) & 0x3FFFF;
    if (offset % 1024 > 96 || offset % 32 != 0) die("a tile at an address that its swizzle does not allow");
    if (offset / 1024 * 1024 + (tile_rows / 8 - 1) * group_bytes + 1024 > block->shared_bytes) {
        die("a tile outside of shared memory");
    }
    for (uint32_t row = 0; row < tile_rows; ++row) {
        for (uint32_t byte = 0; byte < depth_bytes; byte += 16) {
            const size_t address = offset + row / 8 * group_bytes + row % 8 * 128 + byte;
            std::memcpy(to[row] + byte, place.shared + (address ^ (address >> 3 & 0x70)), 16);
        }
    }
}

// The value of every E4M3 code, and what the truncating accumulator knows of it: its exponent. That of zero
// is below all others.
struct Codes {
    std::array<double, 256> values;
    std::array<float, 256> floats;
    std::array<int32_t, 256> exponents;
    Codes() {
        for (unsigned code = 0; code < 256; ++code) {
            values[code] = floats[code] = float_of_e4m3(static_cast<uint8_t>(code));
            const int exponent = static_cast<int>(code >> 3 & 15);
            exponents[code] = (code & 0x7F) == 0 ? -1000 : std::max(exponent, 1) - 7;
        }
    }
};

const Codes& codes() {
    static const Codes instance;
    return instance;
}

// Eight columns of a row; four of them in F64.
constexpr uint32_t lanes = 8;
using Halves = float __attribute__((vector_size(2 * lanes)));
using Doubles = double __attribute__((vector_size(4 * lanes)));
using Floats = float __attribute__((vector_size(4 * lanes)));
using Ints = int32_t __attribute__((vector_size(4 * lanes)));

// Copies a vector's bits. A vector that a function returns would be returned in other ways with AVX2.
template <typename To, typename From>
[[gnu::always_inline]] inline void copy_bits(To& to, const From& from) {
    std::memcpy(&to, &from, std::max(sizeof to, sizeof from));
}

// Adds a term, truncated to whole units. NaN and infinities count as zero.
[[gnu::always_inline]] inline void add_units(Ints& units, const Floats& term, const Floats& scale) {
    units += __builtin_convertvector(term * scale, Ints) & (term - term == 0.0f);
}

// The operands of a product: columns in groups of eight.
template <uint32_t Depth>
struct Operands {
    double a[rows][Depth];
    alignas(64) double b[most_columns / lanes][Depth][lanes];
};

// d[m][n] += sum over k of a[m][k] * b[k][n]. Products of E4M3 and their sum are exact in F64; it is rounded
// to F32 with the accumulator added.
template <uint32_t Depth>
[[gnu::always_inline]] inline void add_products_by_rows(float* d, uint32_t n, const Operands<Depth>& x) {
    constexpr uint32_t at_a_time = 4;
    for (uint32_t group = 0; group < n / lanes; ++group) {
        for (uint32_t m = 0; m < rows; m += at_a_time) {
            Doubles low[at_a_time] = {}, high[at_a_time] = {};
            for (uint32_t k = 0; k < Depth; ++k) {
                const auto* b = reinterpret_cast<const Doubles*>(x.b[group][k]);
                for (uint32_t i = 0; i < at_a_time; ++i) low[i] += x.a[m + i][k] * b[0];
                for (uint32_t i = 0; i < at_a_time; ++i) high[i] += x.a[m + i][k] * b[1];
            }
            for (uint32_t i = 0; i < at_a_time; ++i) {
                float* to = d + (m + i) * most_columns + group * lanes;
                for (uint32_t half = 0; half < 2; ++half) {
                    Halves sum;
                    copy_bits(sum, to[4 * half]);
                    const Doubles before = __builtin_convertvector(sum, Doubles);
                    sum = __builtin_convertvector(before + (half == 0 ? low[i] : high[i]), Halves);
                    copy_bits(to[4 * half], sum);
                }
            }
        }
    }
}

// The codes of a product: those of columns in groups of eight, as values and exponents.
struct CodeOperands {
    unsigned char a[rows][depth_bytes];
    alignas(32) float values[most_columns / lanes][depth_bytes][lanes];
    alignas(32) int32_t exponents[most_columns / lanes][depth_bytes][lanes];
};

// As add_products, with an accumulator of 13 fraction bits: products and accumulator are shifted to the
// largest exponent among them, truncated towards zero to 13 bits after its binary point, added exactly, and
// the sum is truncated to 13 fraction bits. An exponent of a product is the sum of its factors'.
//
// This is what others found on Hopper: DeepSeek-V3's report, section 3.5.2 ("aligning 32 mantissa products by
// right-shifting based on the maximum exponent", of which 14 bits are kept), and SageAttention 2, section 3.3
// (an accumulator of one sign bit, eight exponent bits and 13 mantissa bits, the others truncated). Whether
// hardware truncates negative terms towards zero, and how it takes subnormal codes, they do not say.
[[gnu::always_inline]] inline void add_truncated_by_rows(float* d, uint32_t n, const CodeOperands& x) {
    const Codes& all = codes();
    for (uint32_t group = 0; group < n / lanes; ++group) {
        for (uint32_t m = 0; m < rows; ++m) {
            float* to = d + m * most_columns + group * lanes;
            Floats sum, scale;
            Ints largest, kept;
            copy_bits(sum, *to);
            copy_bits(largest, *to);
            largest = (largest >> 23 & 0xFF) - 127;
            // Zero, and an infinity or NaN, which the sum becomes in any case, have no exponent.
            largest = (largest < -100) | (largest == 128) ? Ints{} - 100 : largest;
            for (uint32_t k = 0; k < depth_bytes; ++k) {
                const int32_t exponent = all.exponents[x.a[m][k]];
                const Ints of_product = exponent + *reinterpret_cast<const Ints*>(x.exponents[group][k]);
                largest = of_product > largest ? of_product : largest;
            }
            // 2^(13 - largest)
            const Ints bits = (127 + 13 - largest) << 23;
            copy_bits(scale, bits);
            Ints units = {};
            add_units(units, sum, scale);
            for (uint32_t k = 0; k < depth_bytes; ++k) {
                const float a = all.floats[x.a[m][k]];
                const Floats term = a * *reinterpret_cast<const Floats*>(x.values[group][k]);
                add_units(units, term, scale);
                sum += term;
            }
            Floats result = __builtin_convertvector(units, Floats) / scale;
            copy_bits(kept, result);
            kept &= ~0x3FF;
            copy_bits(result, kept);
            result = sum - sum == 0.0f ? result : sum;
            copy_bits(*to, result);
        }
    }
}

// The same functions with the instructions of AVX2, if this CPU has them. No instruction adds a product
// without rounding it first, so results are the same.
template <uint32_t Depth>
[[gnu::target("avx2")]] void add_products_avx2(float* d, uint32_t n, const Operands<Depth>& x) {
    add_products_by_rows(d, n, x);
}
[[gnu::target("avx2")]] void add_truncated_avx2(float* d, uint32_t n, const CodeOperands& x) {
    add_truncated_by_rows(d, n, x);
}

bool has_avx2() {
    static const bool has = __builtin_cpu_supports("avx2");
    return has;
}

template <uint32_t Depth>
void add_products(float* d, uint32_t n, const Operands<Depth>& x) {
    if (has_avx2()) return add_products_avx2(d, n, x);
    add_products_by_rows(d, n, x);
}

void add_truncated(float* d, uint32_t n, const CodeOperands& x) {
    if (has_avx2()) return add_truncated_avx2(d, n, x);
    add_truncated_by_rows(d, n, x);
}

// A product of BF16 or F16.
void multiply_halves(const Product& product, float* d) {
    constexpr uint32_t depth = depth_bytes / 2;
    static thread_local Operands<depth> x;
    unsigned char bytes[most_columns][depth_bytes];
    const bool is_f16 = product.operand == Operand::f16_in_registers;
    const auto element = [is_f16](const void* from) {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof bits);
        return is_f16 ? float_of_f16(bits) : float_of_bf16(bits);
    };
    if (product.operand == Operand::bf16) read_tile(product.a_tile, rows, bytes);
    for (uint32_t m = 0; m < rows; ++m) {
        if (product.operand != Operand::bf16) {
            std::memcpy(bytes[m], product.a[m].data(), depth_bytes);
        }
        for (uint32_t k = 0; k < depth; ++k) x.a[m][k] = element(bytes[m] + 2 * k);
    }
    read_tile(product.b_tile, product.n, bytes);
    for (uint32_t i = 0; i < product.n; ++i) {
        for (uint32_t k = 0; k < depth; ++k) x.b[i / lanes][k][i % lanes] = element(bytes[i] + 2 * k);
    }
    add_products(d, product.n, x);
}

bool truncates() {
    static const bool is_set = [] {
        const char* value = std::getenv("OCTANT_HOST_TRUNCATES");
        return value != nullptr && std::strcmp(value, "1") == 0;
    }();
    return is_set;
}

void multiply_e4m3(const Product& product, float* d) {
    unsigned char a[rows][depth_bytes], b[most_columns][depth_bytes];
    read_tile(product.a_tile, rows, a);
    read_tile(product.b_tile, product.n, b);
    const Codes& all = codes();
    if (truncates()) {
        static thread_local CodeOperands x;
        std::memcpy(x.a, a, sizeof a);
        for (uint32_t i = 0; i < product.n; ++i) {
            for (uint32_t k = 0; k < depth_bytes; ++k) {
                x.values[i / lanes][k][i % lanes] = all.floats[b[i][k]];
                x.exponents[i / lanes][k][i % lanes] = all.exponents[b[i][k]];
            }
        }
        add_truncated(d, product.n, x);
        return;
    }
    static thread_local Operands<depth_bytes> x;
    for (uint32_t m = 0; m < rows; ++m) {
        for (uint32_t k = 0; k < depth_bytes; ++k) x.a[m][k] = all.values[a[m][k]];
    }
    for (uint32_t i = 0; i < product.n; ++i) {
        for (uint32_t k = 0; k < depth_bytes; ++k) x.b[i / lanes][k][i % lanes] = all.values[b[i][k]];
    }
    add_products(d, product.n, x);
}

}  // namespace

void multiply(const Product& product, float* d) {
    for (uint32_t m = 0; m < rows && !product.accumulate; ++m) {
        std::fill_n(d + m * most_columns, product.n, 0.0f);
    }
    if (product.n % lanes != 0 || product.n > most_columns) die("a product of an unknown number of columns");
    if (product.operand == Operand::e4m3) {
        multiply_e4m3(product, d);
    } else {
        multiply_halves(product, d);
    }
}

}  // namespace host
