// Checks the fragments of mma.sync and movmatrix as kernels/ptx.cuh describes them: products of integers are
// exact.
#pragma once

#include "machine.cuh"
#include "numbers.cuh"

struct FragmentParams {
    // [16][16] and [8][16]: rows along K.
    const uint16_t* a;
    const uint16_t* b;
    // [16][8], added to.
    float* d;
    uint32_t bf16;
    uint32_t unused;
};

KERNEL(probe_fragments, FragmentParams, 32) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    const auto pair = [](const uint16_t* from) { return from[0] | static_cast<uint32_t>(from[1]) << 16; };
    uint32_t a[4], b[2];
    float d[4];
    for (uint32_t i = 0; i < 4; ++i) {
        a[i] = pair(p.a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8);
        d[i] = p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    }
    for (uint32_t i = 0; i < 2; ++i) b[i] = pair(p.b + g * 16 + 2 * t + i * 8);
    if (p.bf16) {
        mma_bf16(d, a, b[0], b[1]);
    } else {
        mma_f16(d, a, b[0], b[1]);
    }
    for (uint32_t i = 0; i < 4; ++i) p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

struct TransposedParams {
    // [8][8].
    const uint16_t* in;
    uint16_t* out;
};

KERNEL(probe_transposed, TransposedParams, 32) {
    const uint32_t at = lane_id() / 4 * 8 + lane_id() % 4 * 2;
    const uint32_t out = transposed(p.in[at] | static_cast<uint32_t>(p.in[at + 1]) << 16);
    p.out[at] = static_cast<uint16_t>(out);
    p.out[at + 1] = static_cast<uint16_t>(out >> 16);
}

namespace probe {

inline void transpositions(Report& report) {
    std::vector<uint16_t> values(64);
    for (uint32_t i = 0; i < 64; ++i) values[i] = static_cast<uint16_t>(1000 * i + 1);
    const Array<uint16_t> in(values), out(values);
    const TransposedParams params{in.at(), out.at()};
    PROBE_LAUNCH(probe_transposed, 1, 32, 0, params);
    const std::vector<uint16_t> got = out.read();
    size_t wrong = 0;
    for (uint32_t i = 0; i < 64; ++i) wrong += got[i] != values[i % 8 * 8 + i / 8];
    report.count("movmatrix m8n8", 64, wrong);
}

inline void fragments(Report& report) {
    for (const bool bf16 : {false, true}) {
        Random random;
        const auto integers = [&](size_t size) {
            std::vector<float> values(size);
            for (float& x : values) x = static_cast<float>(random.below(33)) - 16.0f;
            return values;
        };
        const auto codes = [&](const std::vector<float>& values) {
            std::vector<uint16_t> all;
            for (const float x : values) all.push_back(bf16 ? bf16_code(x) : f16_code(x));
            return all;
        };
        const std::vector<float> a = integers(16 * 16), b = integers(8 * 16), c = integers(16 * 8);
        const Array<uint16_t> a_codes(codes(a)), b_codes(codes(b));
        const Array<float> d(c);
        const FragmentParams params{a_codes.at(), b_codes.at(), d.at(), bf16, 0};
        PROBE_LAUNCH(probe_fragments, 1, 32, 0, params);
        const std::vector<float> got = d.read();
        size_t wrong = 0;
        for (uint32_t row = 0; row < 16; ++row) {
            for (uint32_t column = 0; column < 8; ++column) {
                float sum = c[row * 8 + column];
                for (uint32_t k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[column * 16 + k];
                wrong += got[row * 8 + column] != sum;
            }
        }
        report.count(bf16 ? "mma.sync m16n8k16 BF16" : "mma.sync m16n8k16 F16", 16 * 8, wrong);
    }
    transpositions(report);
}

}  // namespace probe
