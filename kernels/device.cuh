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

// The index of a thread among all threads of a one-dimensional launch, and their number.
DEVICE uint64_t global_thread() { return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE uint64_t global_threads() { return static_cast<uint64_t>(gridDim.x) * blockDim.x; }
