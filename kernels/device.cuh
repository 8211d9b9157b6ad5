// Included by every kernel: the functions of ptx.cuh on a GPU, or of host/cuda.h on the host.
#pragma once

#ifdef OCTANT_HOST
#include "host/cuda.h"
#else
#include "ptx.cuh"
#endif

DEVICE float4 add(const float4& a, const float4& b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The values of two BF16, the first in the low half.
DEVICE float2 floats_of_bf16x2(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000)};
}

// Eight floats.
struct Eight {
    float4 low, high;

    template <typename Function>
    DEVICE_MEMBER void each(Function function) {
        function(0, low.x), function(1, low.y), function(2, low.z), function(3, low.w);
        function(4, high.x), function(5, high.y), function(6, high.z), function(7, high.w);
    }
};

DEVICE Eight add(const Eight& a, const Eight& b) { return {add(a.low, b.low), add(a.high, b.high)}; }

// The values of eight BF16.
DEVICE Eight floats_of_bf16x8(const uint4& pairs) {
    const float2 a = floats_of_bf16x2(pairs.x), b = floats_of_bf16x2(pairs.y);
    const float2 c = floats_of_bf16x2(pairs.z), d = floats_of_bf16x2(pairs.w);
    return {make_float4(a.x, a.y, b.x, b.y), make_float4(c.x, c.y, d.x, d.y)};
}

// Elements 8i to 8i + 7 of an array of F32 or BF16, by loads of 16 bytes.
DEVICE Eight eight_at(const void* values, bool bf16, size_t i) {
    if (bf16) return floats_of_bf16x8(static_cast<const uint4*>(values)[i]);
    const auto* fours = static_cast<const float4*>(values);
    return {fours[2 * i], fours[2 * i + 1]};
}

DEVICE void store_eight(float* values, size_t i, const Eight& x) {
    auto* fours = reinterpret_cast<float4*>(values);
    fours[2 * i] = x.low;
    fours[2 * i + 1] = x.high;
}

// The index of a thread among all threads of a one-dimensional launch, and their number.
DEVICE uint64_t global_thread() { return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE uint64_t global_threads() { return static_cast<uint64_t>(gridDim.x) * blockDim.x; }
