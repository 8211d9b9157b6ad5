// OP: w[o][i] = codes[b], where b is byte i % 8 of output o * k / 8 + i / 8 of splitmix64, counted from 0:
//     random weights
// INPUTS: codes u8 [256], E4M3; scale f32; seed u64
// OUTPUTS: w packed as in pack.cuh, as E4M3 codes, or as BF16 of code * scale; scales f32 [n], all `scale`,
//     for E4M3
// LAUNCH: any number of blocks of 256 threads; no dynamic shared memory
// LIMITS: k a multiple of 8; w zero before, since padding is not written
// NUMERICS: exact
// COST: bytes of w, and one hash per 8 elements; bound by memory
// TWINS: src/device/random_weights.rs
#include "pack.cuh"

struct RandomWeightsParams {
    uint8_t* w;
    // Null for BF16.
    float* scales;
    uint64_t seed;
    uint64_t codes[32];
    uint32_t n;
    uint32_t k;
    uint32_t chunks;
    float scale;
};
static_assert(sizeof(RandomWeightsParams) == 296);

// Output n of splitmix64, counted from 1.
DEVICE uint64_t splitmix64(uint64_t seed, uint64_t n) {
    uint64_t z = seed + n * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

DEVICE uint64_t code_of(const RandomWeightsParams& p, uint64_t byte) {
    return (p.codes[byte / 8] >> (byte % 8 * 8)) & 0xff;
}

// The bits of code * scale as BF16, rounded to nearest even; no code is NaN.
DEVICE uint64_t scaled(uint64_t code, float scale) {
    const uint32_t half = f16x2_of_e4m3x2(static_cast<uint16_t>(code));
    const uint32_t bits = __float_as_uint(float_of_f16(static_cast<uint16_t>(half)) * scale);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

KERNEL_SERIAL(random_weights, RandomWeightsParams, 256) {
    const uint64_t per_row = p.k / 8, pieces = per_row * p.n;
    for (uint64_t piece = global_thread(); piece < pieces; piece += global_threads()) {
        const uint64_t bytes = splitmix64(p.seed, piece + 1);
        const uint32_t output = static_cast<uint32_t>(piece / per_row);
        const uint32_t input = static_cast<uint32_t>(piece % per_row) * 8;
        uint64_t codes = 0, low = 0, high = 0;
        for (uint32_t i = 0; i < 8; ++i) {
            const uint64_t code = code_of(p, (bytes >> (8 * i)) & 0xff);
            codes |= code << (8 * i);
            (i < 4 ? low : high) |= scaled(code, p.scale) << (16 * (i % 4));
        }
        if (p.scales != nullptr) {
            *reinterpret_cast<uint64_t*>(p.w + packed_at<false>(output, input, p.chunks)) = codes;
            if (input == 0) p.scales[output] = p.scale;
        } else {
            *reinterpret_cast<uint64_t*>(p.w + packed_at<true>(output, input, p.chunks)) = low;
            *reinterpret_cast<uint64_t*>(p.w + packed_at<true>(output, input + 4, p.chunks)) = high;
        }
    }
    // `linear` reads weights before it waits for earlier kernels, so the weights must be visible when this
    // kernel ends.
    __threadfence();
}
