// Number formats and the products of a warp, in software.
#include "fibers.h"

namespace host {

float float_of_f16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    if ((bits & 0x7C00) == 0x7C00) {
        return __uint_as_float(sign | 0x7F800000 | static_cast<uint32_t>(bits & 0x3FF) << 13);
    }
    // The product corrects the bias of the exponent, and is exact for subnormals too.
    const float magnitude = __uint_as_float(static_cast<uint32_t>(bits & 0x7FFF) << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(magnitude));
}

uint16_t f16_of(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

uint16_t bf16_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (std::isnan(x)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float float_of_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

float float_of_e4m3(uint8_t code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((code & 0x7F) == 0x7F) magnitude = NAN;
    return (code & 0x80) ? -magnitude : magnitude;
}

namespace {

std::array<uint16_t, 256> e4m3_in_f16() {
    std::array<uint16_t, 256> table;
    for (unsigned code = 0; code < 256; ++code) {
        table[code] = f16_of(float_of_e4m3(static_cast<uint8_t>(code)));
    }
    return table;
}

}  // namespace

uint16_t f16_of_e4m3(uint8_t code) {
    static const std::array<uint16_t, 256> table = e4m3_in_f16();
    return table[code];
}

uint8_t e4m3_of(float x) {
    if (std::isnan(x)) return 0x7F;
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    const float magnitude = std::fmin(std::fabs(x), 448.0f);
    int exponent;
    std::frexp(magnitude, &exponent);
    // The exponent of the last of four significant bits of a value in [2^(e-1), 2^e); for subnormals that of
    // 2^-6.
    const int last = std::max(exponent - 4, -9);
    // nearbyint rounds to nearest even by default.
    const float units = std::nearbyint(std::ldexp(magnitude, -last));
    const float rounded = std::ldexp(units, last);
    if (rounded < std::ldexp(1.0f, -6)) return sign | static_cast<uint8_t>(std::ldexp(rounded, 9));
    std::frexp(rounded, &exponent);
    const int mantissa = static_cast<int>(std::ldexp(rounded, 4 - exponent)) - 8;
    return sign | static_cast<uint8_t>((exponent + 6) << 3 | mantissa);
}

namespace {

struct MmaOperand {
    float d[4];
    uint32_t a[4];
    uint32_t b[2];
};
static_assert(sizeof(MmaOperand) <= stride);

template <bool Bf16>
inline float half_of(uint32_t pair, unsigned which) {
    const auto bits = static_cast<uint16_t>(pair >> (16 * which));
    return Bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : float_of_f16(bits);
}

template <bool Bf16>
void mma_of_warp(const unsigned char* in, unsigned char* out) {
    float a[16][16], b[16][8], d[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        MmaOperand operand;
        std::memcpy(&operand, in + lane * stride, sizeof operand);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 2; ++i) {
            a[g][2 * t + i] = half_of<Bf16>(operand.a[0], i);
            a[g + 8][2 * t + i] = half_of<Bf16>(operand.a[1], i);
            a[g][2 * t + 8 + i] = half_of<Bf16>(operand.a[2], i);
            a[g + 8][2 * t + 8 + i] = half_of<Bf16>(operand.a[3], i);
            b[2 * t + i][g] = half_of<Bf16>(operand.b[0], i);
            b[2 * t + 8 + i][g] = half_of<Bf16>(operand.b[1], i);
            d[g][2 * t + i] = operand.d[i];
            d[g + 8][2 * t + i] = operand.d[2 + i];
        }
    }
    // The inner loop is over n, so that it becomes vector instructions. Each sum still runs over k in order.
    for (unsigned m = 0; m < 16; ++m)
        for (unsigned k = 0; k < 16; ++k)
            for (unsigned n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned g = lane / 4, t = lane % 4;
        const float result[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
        std::memcpy(out + lane * stride, result, sizeof result);
    }
}

}  // namespace

void mma(bool bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaOperand operand;
    std::memcpy(operand.d, d, sizeof d);
    std::memcpy(operand.a, a, sizeof a);
    operand.b[0] = b0;
    operand.b[1] = b1;
    operand = bf16 ? collective("mma_bf16", operand, mma_of_warp<true>)
                   : collective("mma_f16", operand, mma_of_warp<false>);
    std::memcpy(d, operand.d, sizeof d);
}

}  // namespace host
