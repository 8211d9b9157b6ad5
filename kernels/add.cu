// OP: x[i] = x[i] + part_0[i] + part_1[i] + ...: the sum of an all-reduce on one rank, in rank order
// INPUTS: x f32 or bf16 [elements]; parts f32 or bf16 [elements] each, up to 7
// OUTPUTS: x
// LAUNCH: any number of blocks of 256 threads; no shared memory
// LIMITS: elements a multiple of 4; all buffers different
// NUMERICS: F32, in the order above, then to the nearest of x's type: the CPU twin's bits
// COST: elements * (4 * (parts + 2)) bytes, half for BF16; bound by memory
// TWINS: src/device/cpu/mod.rs
#include "device.cuh"

constexpr uint32_t MAX_PARTS = 7;

struct AddParams {
    void* x;
    const void* parts[MAX_PARTS];
    // Groups of four elements.
    uint64_t vectors;
    uint32_t count;
    uint32_t x_bf16;
    uint32_t parts_bf16;
    uint32_t unused;
};
static_assert(sizeof(AddParams) == 88);

// Elements 4i to 4i + 3.
DEVICE float4 four_at(const void* values, bool bf16, uint64_t i) {
    if (!bf16) return static_cast<const float4*>(values)[i];
    const uint2 pairs = static_cast<const uint2*>(values)[i];
    const float2 a = floats_of_bf16x2(pairs.x), b = floats_of_bf16x2(pairs.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

KERNEL(add, AddParams, 256) {
    for (uint64_t i = global_thread(); i < p.vectors; i += global_threads()) {
        float4 parts[MAX_PARTS];
#pragma unroll
        for (uint32_t part = 0; part < MAX_PARTS; ++part) {
            if (part < p.count) parts[part] = four_at(p.parts[part], p.parts_bf16, i);
        }
        float4 sum = four_at(p.x, p.x_bf16, i);
#pragma unroll
        for (uint32_t part = 0; part < MAX_PARTS; ++part) {
            if (part < p.count) sum = add(sum, parts[part]);
        }
        if (p.x_bf16) {
            static_cast<uint2*>(p.x)[i] = make_uint2(bf16x2(sum.x, sum.y), bf16x2(sum.z, sum.w));
        } else {
            static_cast<float4*>(p.x)[i] = sum;
        }
    }
}
