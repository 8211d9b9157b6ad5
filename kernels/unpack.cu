// OP: rows[o][i] = w[o][i]: unpacks a matrix to row-major, as cuBLASLt takes it
// INPUTS: w packed as in pack.cuh, E4M3 [n, k]
// OUTPUTS: rows u8 [n, k], row-major
// LAUNCH: any number of blocks of 256 threads; no shared memory
// LIMITS: k a multiple of 16
// NUMERICS: exact
// COST: 2 * n * k bytes; bound by memory
// TWINS: src/device/cuda/matrix.rs
#include "pack.cuh"

struct UnpackParams {
    const uint8_t* w;
    uint8_t* rows;
    uint32_t n;
    uint32_t k;
    uint32_t k_blocks;
    uint32_t unused;
};
static_assert(sizeof(UnpackParams) == 32);

KERNEL(unpack, UnpackParams, 256) {
    // The 16 bytes of a lane: 8 inputs of one output, and the same inputs of the output 8 rows on.
    const uint64_t lanes = static_cast<uint64_t>((p.n + 15) / 16) * p.k_blocks * 32;
    for (uint64_t i = global_thread(); i < lanes; i += global_threads()) {
        const uint32_t lane = static_cast<uint32_t>(i % 32);
        const uint64_t block = i / 32;
        const uint32_t output = static_cast<uint32_t>(block / p.k_blocks) * 16 + lane / 4;
        const uint32_t input = static_cast<uint32_t>(block % p.k_blocks) * 32 + lane % 4 * 8;
        if (input >= p.k) continue;
        const uint4 both = load_once(reinterpret_cast<const uint4*>(p.w) + i);
        const uint2 first = make_uint2(both.x, both.y), second = make_uint2(both.z, both.w);
        uint8_t* to = p.rows + static_cast<size_t>(output) * p.k + input;
        if (output < p.n) *reinterpret_cast<uint2*>(to) = first;
        if (output + 8 < p.n) *reinterpret_cast<uint2*>(to + static_cast<size_t>(8) * p.k) = second;
    }
}
