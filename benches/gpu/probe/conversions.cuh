// Checks the conversions of kernels/ptx.cuh: every code of E4M3 and F16, and roundings of F32 on and beside
// every midpoint of two E4M3 or F16 numbers.
#pragma once

#include "machine.cuh"
#include "numbers.cuh"

struct ConvertParams {
    const float* in;
    // [count] of each conversion.
    uint32_t* e4m3_of_f32;
    uint32_t* f16_of_f32;
    uint32_t* bf16_of_f32;
    // [65536]
    uint32_t* f16_of_e4m3;
    float* f32_of_f16;
    uint32_t count;
    uint32_t unused;
};

// Element i of each result is that of values i and count - 1 - i, or of the codes i.
KERNEL(probe_convert, ConvertParams, 256) {
    for (uint32_t i = static_cast<uint32_t>(global_thread()); i < p.count; i += global_threads()) {
        const float low = p.in[i], high = p.in[p.count - 1 - i];
        p.e4m3_of_f32[i] = e4m3x2(low, high);
        p.f16_of_f32[i] = f16x2(low, high);
        p.bf16_of_f32[i] = bf16x2(low, high);
    }
    for (uint32_t i = static_cast<uint32_t>(global_thread()); i < 65536; i += global_threads()) {
        p.f16_of_e4m3[i] = f16x2_of_e4m3x2(static_cast<uint16_t>(i));
        p.f32_of_f16[i] = float_of_f16(static_cast<uint16_t>(i));
    }
}

namespace probe {

// All F16 numbers, the midpoints of two neighbours with their own neighbours in F32, the same of E4M3, and
// random F32 numbers.
inline std::vector<float> inputs_of_conversions() {
    std::vector<float> all = {0.0f, INFINITY, NAN, 449.0f, 464.0f, 480.0f, 1e30f, 1e-30f, 1e-42f};
    const auto with_midpoint = [&](Format format, uint32_t code) {
        const double low = value_of(format, code), high = value_of(format, code + 1);
        const float middle = static_cast<float>((low + high) / 2.0);
        for (const float x : {static_cast<float>(low), middle, std::nextafter(middle, 0.0f),
                              std::nextafter(middle, INFINITY)}) {
            all.push_back(x);
        }
    };
    for (uint32_t code = 0; code < 0x7C00; ++code) with_midpoint(F16, code);
    for (uint32_t code = 0; code < 0x7E; ++code) with_midpoint(E4M3, code);
    Random random;
    for (uint32_t i = 0; i < 20000; ++i) all.push_back(float_of(random.below(1u << 31)));
    const size_t positive = all.size();
    for (size_t i = 0; i < positive; ++i) all.push_back(-all[i]);
    return all;
}

// Whether two codes of a 16-bit format are equal, or both NaN. `infinity` is the code of infinity.
inline bool same(uint32_t a, uint32_t b, uint32_t infinity) {
    const bool nan = (a & 0x7FFF) > infinity && (b & 0x7FFF) > infinity;
    return a == b || nan;
}

inline void conversions(Report& report) {
    const std::vector<float> in = inputs_of_conversions();
    const Array<float> values(in);
    const Array<uint32_t> e4m3(in.size()), f16(in.size()), bf16(in.size()), widened(65536);
    const Array<float> floats(65536);
    const ConvertParams params{values.at(), e4m3.at(),   f16.at(), bf16.at(), widened.at(),
                               floats.at(), static_cast<uint32_t>(in.size()), 0};
    PROBE_LAUNCH(probe_convert, 64, 256, 0, params);

    size_t wrong[3] = {};
    const std::vector<uint32_t> got[3] = {e4m3.read(), f16.read(), bf16.read()};
    for (size_t i = 0; i < in.size(); ++i) {
        const float pair[2] = {in[i], in[in.size() - 1 - i]};
        for (uint32_t half = 0; half < 2; ++half) {
            wrong[0] += (got[0][i] >> 8 * half & 0xFF) != e4m3_code(pair[half]);
            wrong[1] += !same(got[1][i] >> 16 * half & 0xFFFF, f16_code(pair[half]), 0x7C00);
            wrong[2] += !same(got[2][i] >> 16 * half & 0xFFFF, bf16_code(pair[half]), 0x7F80);
        }
    }
    report.count("F32 to E4M3, nearest even, saturating", 2 * in.size(), wrong[0]);
    report.count("F32 to F16, nearest even", 2 * in.size(), wrong[1]);
    report.count("F32 to BF16, nearest even", 2 * in.size(), wrong[2]);

    size_t wrong_codes = 0, wrong_floats = 0;
    const std::vector<uint32_t> f16_pairs = widened.read();
    const std::vector<float> f32 = floats.read();
    for (uint32_t i = 0; i < 65536; ++i) {
        for (uint32_t half = 0; half < 2; ++half) {
            const float expected = e4m3_value(static_cast<uint8_t>(i >> 8 * half));
            wrong_codes += !same(f16_pairs[i] >> 16 * half & 0xFFFF, f16_code(expected), 0x7C00);
        }
        const float expected = f16_value(static_cast<uint16_t>(i));
        wrong_floats += bits_of(f32[i]) != bits_of(expected) && !(std::isnan(f32[i]) && std::isnan(expected));
    }
    report.count("E4M3 to F16, all pairs of codes", 2 * 65536, wrong_codes);
    report.count("F16 to F32, all codes", 65536, wrong_floats);
}

}  // namespace probe
