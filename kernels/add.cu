// OP: x[i] = x[i] + part_0[i] + part_1[i] + ...: the sum of an all-reduce on one rank, in rank order
// INPUTS: x f32 [elements]; parts f32 [elements] each, up to 7
// OUTPUTS: x
// LAUNCH: any number of blocks of 256 threads; no shared memory
// LIMITS: elements a multiple of 4; all buffers different
// NUMERICS: F32, in the order above: the CPU twin's bits
// COST: elements * 4 * (parts + 2) bytes; bound by memory
// TWINS: src/device/cpu/mod.rs
#include "device.cuh"

constexpr uint32_t MAX_PARTS = 7;

struct AddParams {
    float4* x;
    const float4* parts[MAX_PARTS];
    uint64_t vectors;
    uint32_t count;
    uint32_t unused;
};
static_assert(sizeof(AddParams) == 80);

KERNEL(add, AddParams, 256) {
    for (uint64_t i = global_thread(); i < p.vectors; i += global_threads()) {
        float4 parts[MAX_PARTS];
#pragma unroll
        for (uint32_t part = 0; part < MAX_PARTS; ++part) {
            if (part < p.count) parts[part] = p.parts[part][i];
        }
        float4 sum = p.x[i];
#pragma unroll
        for (uint32_t part = 0; part < MAX_PARTS; ++part) {
            if (part < p.count) {
                sum.x += parts[part].x;
                sum.y += parts[part].y;
                sum.z += parts[part].z;
                sum.w += parts[part].w;
            }
        }
        p.x[i] = sum;
    }
}
