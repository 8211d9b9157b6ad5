// OP: out[block] = the XOR of the block's share of the input: reads everything once, to measure bandwidth
// INPUTS: data u32 [4 * vectors]
// OUTPUTS: out u32 [blocks]
// LAUNCH: any number of blocks of 512 threads; no dynamic shared memory
// LIMITS: none
// NUMERICS: exact
// COST: 16 * vectors bytes; bound by memory, by definition
// TWINS: src/device/cuda/stream_read.rs
#include "device.cuh"

struct StreamReadParams {
    const uint4* data;
    uint32_t* out;
    uint64_t vectors;
};
static_assert(sizeof(StreamReadParams) == 24);

KERNEL(stream_read, StreamReadParams, 512) {
    constexpr uint32_t ahead = 8;
    const uint64_t stride = global_threads();
    uint64_t at = global_thread();
    uint32_t sum = 0;
    for (; at + (ahead - 1) * stride < p.vectors; at += ahead * stride) {
        uint4 x[ahead];
#pragma unroll
        for (uint32_t i = 0; i < ahead; ++i) x[i] = load_once(p.data + at + i * stride);
#pragma unroll
        for (uint32_t i = 0; i < ahead; ++i) sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    for (; at < p.vectors; at += stride) {
        const uint4 x = load_once(p.data + at);
        sum ^= x.x ^ x.y ^ x.z ^ x.w;
    }
    for (int step = 16; step > 0; step /= 2) sum ^= __shfl_xor_sync(~0u, sum, step);
    SHARED uint32_t partial[16];
    if (lane_id() == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t all = 0;
        for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) all ^= partial[warp];
        p.out[blockIdx.x] = all;
    }
}
