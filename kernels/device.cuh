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

// Elements 2i and 2i + 1 of an array of F32 or BF16.
DEVICE float2 pair_at(const void* values, bool bf16, size_t i) {
    if (bf16) return floats_of_bf16x2(static_cast<const uint32_t*>(values)[i]);
    return static_cast<const float2*>(values)[i];
}

// The index of a thread among all threads of a one-dimensional launch, and their number.
DEVICE uint64_t global_thread() { return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE uint64_t global_threads() { return static_cast<uint64_t>(gridDim.x) * blockDim.x; }
