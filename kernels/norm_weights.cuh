// Weights of a norm that arrive in shared memory while a kernel waits for something else.
#pragma once

#include "row.cuh"
#include "wgmma.cuh"

// Starts copies of weights and biases of `cols` elements to shared memory, from `to` on, and returns the
// copies. They are there once the barrier's phase 0 has completed.
DEVICE NormWeights copied(const NormWeights& norm, uint32_t cols, float* to, uint64_t* barrier) {
    const uint32_t bytes = 4 * cols;
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
        barrier_expect(barrier, norm.bias == nullptr ? bytes : 2 * bytes);
        bulk_copy(to, norm.weight, bytes, barrier);
        if (norm.bias != nullptr) bulk_copy(to + cols, norm.bias, bytes, barrier);
    }
    __syncthreads();
    return {to, norm.bias == nullptr ? nullptr : to + cols, norm.layer_norm, norm.eps};
}
