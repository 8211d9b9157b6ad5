// Number formats, written from their definitions alone, as the reference of the GPU's conversions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace probe {

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// A binary format without a sign.
struct Format {
    int mantissa_bits;
    // The exponent of the smallest normal number.
    int smallest;
};
constexpr Format E4M3{3, -6};
constexpr Format F16{10, -14};

// The code of a finite magnitude, to nearest even. A magnitude beyond the format has a code beyond it.
inline uint32_t code_of(Format format, double magnitude) {
    if (magnitude == 0.0) return 0;
    const int exponent = std::max(std::ilogb(magnitude), format.smallest);
    const double units = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
    const uint32_t one = 1u << format.mantissa_bits;
    return static_cast<uint32_t>(exponent - format.smallest) * one + static_cast<uint32_t>(units);
}

inline double value_of(Format format, uint32_t code) {
    const uint32_t one = 1u << format.mantissa_bits, exponent = std::max(code / one, 1u);
    const double units = code / one == 0 ? code : code % one + one;
    return std::ldexp(units, static_cast<int>(exponent) - 1 + format.smallest - format.mantissa_bits);
}

inline float e4m3_value(uint8_t code) {
    if ((code & 0x7F) == 0x7F) return NAN;
    const double magnitude = value_of(E4M3, code & 0x7F);
    return static_cast<float>(code & 0x80 ? -magnitude : magnitude);
}
// Saturates at 448; NaN is 0x7F.
inline uint8_t e4m3_code(float x) {
    if (std::isnan(x)) return 0x7F;
    const uint32_t code = code_of(E4M3, std::min(std::fabs(x), 448.0f));
    return static_cast<uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}

inline float f16_value(uint16_t code) {
    const uint32_t magnitude = code & 0x7FFF;
    double value = magnitude == 0x7C00 ? INFINITY : value_of(F16, magnitude);
    if (magnitude > 0x7C00) value = NAN;
    return static_cast<float>(code & 0x8000 ? -value : value);
}
inline uint16_t f16_code(float x) {
    const uint32_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7FFF;
    const uint32_t code = std::isinf(x) ? 0x7C00 : code_of(F16, std::fabs(x));
    return static_cast<uint16_t>(std::min(code, 0x7C00u) | sign);
}

inline uint16_t bf16_code(float x) {
    if (std::isnan(x)) return 0x7FFF;
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(uint16_t code) { return float_of(static_cast<uint32_t>(code) << 16); }

}  // namespace probe
