// The arithmetic of the products of warpgroups, and how their operands lie in shared memory.
#include <algorithm>
#include <cstdlib>

#include "fibers.h"
#include "products.h"

namespace host {

namespace {

// The memory at a descriptor's start, of which `tile_rows` rows are read.
const unsigned char* start_of(uint64_t tile, uint32_t tile_rows) {
    if (tile >> 14 != (1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62) >> 14) {
        die("a descriptor of a layout that tile_descriptor does not make");
    }
    const uintptr_t base = reinterpret_cast<uintptr_t>(place.shared);
    const size_t offset = ((tile << 4) - base) & 0x3FFFF;
    if (offset % 1024 > 96 || offset % 32 != 0) die("a tile at an address that its swizzle does not allow");
    if (offset / 1024 * 1024 + tile_rows * 128 > block->shared_bytes) die("a tile outside of shared memory");
    return place.shared + offset;
}

// Reads 32 bytes along K of each row of a tile, undoing the swizzle by the bits of addresses.
void read_tile(uint64_t tile, uint32_t tile_rows, unsigned char (*to)[depth_bytes]) {
    const unsigned char* start = start_of(tile, tile_rows);
    for (uint32_t row = 0; row < tile_rows; ++row) {
        for (uint32_t byte = 0; byte < depth_bytes; byte += 16) {
            const auto address = reinterpret_cast<uintptr_t>(start + row / 8 * 1024 + row % 8 * 128 + byte);
            const uintptr_t swizzled = address ^ (address >> 3 & 0x70);
            std::memcpy(to[row] + byte, reinterpret_cast<const void*>(swizzled), 16);
        }
    }
}

// The value of every E4M3 code, and what the truncating accumulator knows of it: the significand is value
// * 2^(3 - exponent), and the exponent of zero is below all others.
struct Codes {
    std::array<float, 256> values;
    std::array<int16_t, 256> exponents;
    Codes() {
        for (unsigned code = 0; code < 256; ++code) {
            values[code] = float_of_e4m3(static_cast<uint8_t>(code));
            const int exponent = static_cast<int>(code >> 3 & 15);
            exponents[code] = static_cast<int16_t>((code & 0x7F) == 0 ? -1000 : std::max(exponent, 1) - 7);
        }
    }
};

const Codes& codes() {
    static const Codes instance;
    return instance;
}

// The operands of a product, in F64.
template <uint32_t Depth>
struct Operands {
    double a[rows][Depth], b[Depth][most_columns];
};

// d[m][n] += sum over k of a[m][k] * b[k][n]. Products of E4M3 and their sum are exact in F64; it is rounded
// to F32 with the accumulator added.
template <uint32_t N, uint32_t Depth>
void add_columns(float* d, const Operands<Depth>& x) {
    for (uint32_t m = 0; m < rows; ++m) {
        double sums[N] = {};
        for (uint32_t k = 0; k < Depth; ++k) {
            for (uint32_t i = 0; i < N; ++i) sums[i] += x.a[m][k] * x.b[k][i];
        }
        float* row = d + m * most_columns;
        for (uint32_t i = 0; i < N; ++i) row[i] = static_cast<float>(row[i] + sums[i]);
    }
}

template <uint32_t Depth>
void add_products(float* d, uint32_t n, const Operands<Depth>& x) {
    switch (n) {
        case 8: return add_columns<8>(d, x);
        case 16: return add_columns<16>(d, x);
        case 32: return add_columns<32>(d, x);
        case 64: return add_columns<64>(d, x);
        case 128: return add_columns<128>(d, x);
        case 256: return add_columns<256>(d, x);
        default: die("a product of an unknown number of columns");
    }
}

void multiply_bf16(const Product& product, float* d) {
    constexpr uint32_t depth = depth_bytes / 2;
    unsigned char bytes[most_columns][depth_bytes];
    static thread_local Operands<depth> x;
    const auto element = [](const void* from) {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof bits);
        return float_of_bf16(bits);
    };
    if (product.operand == Operand::bf16) read_tile(product.a_tile, rows, bytes);
    for (uint32_t m = 0; m < rows; ++m) {
        if (product.operand == Operand::bf16_in_registers) {
            std::memcpy(bytes[m], product.a[m].data(), depth_bytes);
        }
        for (uint32_t k = 0; k < depth; ++k) x.a[m][k] = element(bytes[m] + 2 * k);
    }
    read_tile(product.b_tile, product.n, bytes);
    for (uint32_t i = 0; i < product.n; ++i) {
        for (uint32_t k = 0; k < depth; ++k) x.b[k][i] = element(bytes[i] + 2 * k);
    }
    add_products(d, product.n, x);
}

// As add_products, with an accumulator of 13 fraction bits: products and accumulator are shifted to the
// largest exponent among them, truncated towards zero to 13 bits after its binary point, added exactly,
// and the sum is truncated to 13 fraction bits. An exponent of a product is the sum of its factors'.
//
// This is what others found on Hopper: DeepSeek-V3's report, section 3.5.2 ("aligning 32 mantissa
// products by right-shifting based on the maximum exponent", of which 14 bits are kept), and
// SageAttention 2, section 3.3 (an accumulator of one sign bit, eight exponent bits and 13 mantissa bits,
// the others truncated). Whether hardware truncates negative terms towards zero, and how it takes
// subnormal codes, they do not say.
void add_truncated(float* d, uint32_t n, const unsigned char (*a)[depth_bytes],
                   const unsigned char (*b)[depth_bytes]) {
    static thread_local float b_values[depth_bytes][most_columns];
    static thread_local int16_t b_exponents[depth_bytes][most_columns];
    const auto& [values, exponents] = codes();
    for (uint32_t i = 0; i < n; ++i) {
        for (uint32_t k = 0; k < depth_bytes; ++k) {
            b_values[k][i] = values[b[i][k]];
            b_exponents[k][i] = exponents[b[i][k]];
        }
    }
    for (uint32_t m = 0; m < rows; ++m) {
        float* row = d + m * most_columns;
        int16_t largest[most_columns];
        float scales[most_columns], exact[most_columns];
        int32_t sums[most_columns];
        for (uint32_t i = 0; i < n; ++i) {
            exact[i] = row[i];
            const auto exponent = static_cast<int>(__float_as_uint(row[i]) >> 23 & 0xFF) - 127;
            largest[i] = static_cast<int16_t>(exponent < 128 ? std::max(exponent, -100) : -100);
        }
        for (uint32_t k = 0; k < depth_bytes; ++k) {
            const int16_t exponent = exponents[a[m][k]];
            for (uint32_t i = 0; i < n; ++i) {
                const auto sum = static_cast<int16_t>(exponent + b_exponents[k][i]);
                largest[i] = sum > largest[i] ? sum : largest[i];
            }
        }
        for (uint32_t i = 0; i < n; ++i) {
            scales[i] = __uint_as_float(static_cast<uint32_t>(127 + 13 - largest[i]) << 23);
            const float scaled = row[i] * scales[i];
            sums[i] = std::fabs(scaled) < 0x1p30f ? static_cast<int32_t>(scaled) : 0;
        }
        for (uint32_t k = 0; k < depth_bytes; ++k) {
            const float value = values[a[m][k]];
            for (uint32_t i = 0; i < n; ++i) {
                const float term = value * b_values[k][i];
                exact[i] += term;
                sums[i] += static_cast<int32_t>(term == term ? term * scales[i] : 0.0f);
            }
        }
        for (uint32_t i = 0; i < n; ++i) {
            const float sum = static_cast<float>(sums[i]) / scales[i];
            const float kept = __uint_as_float(__float_as_uint(sum) & 0xFFFFFC00);
            row[i] = std::isfinite(exact[i]) ? kept : exact[i];
        }
    }
}

bool truncates() {
    static const bool is_set = [] {
        const char* value = std::getenv("OCTANT_HOST_TRUNCATES");
        return value != nullptr && std::strcmp(value, "1") == 0;
    }();
    return is_set;
}

void multiply_e4m3(const Product& product, float* d) {
    unsigned char a_codes[rows][depth_bytes], b_codes[most_columns][depth_bytes];
    read_tile(product.a_tile, rows, a_codes);
    read_tile(product.b_tile, product.n, b_codes);
    if (truncates()) return add_truncated(d, product.n, a_codes, b_codes);
    static thread_local Operands<depth_bytes> x;
    const std::array<float, 256>& values = codes().values;
    for (uint32_t m = 0; m < rows; ++m) {
        for (uint32_t k = 0; k < depth_bytes; ++k) x.a[m][k] = values[a_codes[m][k]];
    }
    for (uint32_t i = 0; i < product.n; ++i) {
        for (uint32_t k = 0; k < depth_bytes; ++k) x.b[k][i] = values[b_codes[i][k]];
    }
    add_products(d, product.n, x);
}

}  // namespace

void multiply(const Product& product, float* d) {
    for (uint32_t m = 0; m < rows && !product.accumulate; ++m) {
        std::fill_n(d + m * most_columns, product.n, 0.0f);
    }
    if (product.operand == Operand::e4m3) {
        multiply_e4m3(product, d);
    } else {
        multiply_bf16(product, d);
    }
}

}  // namespace host
