// OP: rotates Q and K of each row by its position, in pairs (i, i + half) of a head, and stores K and V in
//     the cache
// INPUTS: qkv f32 [rows, (q_heads + 2 * kv_heads) * head_dim]; positions u32 [rows]; blocks u32 [rows]: the
//     KV block of each position; inv_freq f32 [half]
// OUTPUTS: qkv in place; cache of the layer, E4M3(x / scale) or BF16, [block][kv_head] in the layout of
//     cache.cuh
// LAUNCH: one block of 128 threads per row; no shared memory
// LIMITS: 2 * half <= head_dim <= padded_dim; each position of a block belongs to one row
// NUMERICS: F32; Q and K within 2e-6 of their size of the CPU twin's, codes within one unit in the last place
// COST: rows * (q_heads + 2 * kv_heads) * head_dim * 8 bytes and the codes; bound by memory
// TWINS: src/device/cpu/rope.rs
#include "cache.cuh"

struct RopeParams {
    float* qkv;
    const uint32_t* positions;
    const uint32_t* blocks;
    const float* inv_freq;
    // The layer's part of the cache.
    void* cache;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t padded_dim;
    uint32_t half;
    uint32_t bf16;
    float k_inverse;
    float v_inverse;
};
static_assert(sizeof(RopeParams) == 72);

// Stores an element at a byte of the cache.
DEVICE void store_element(const RopeParams& p, size_t at, float x, float inverse) {
    unsigned char* to = static_cast<unsigned char*>(p.cache) + at;
    if (p.bf16) {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bf16x2(x, 0.0f));
    } else {
        *to = static_cast<uint8_t>(e4m3x2(x * inverse, 0.0f));
    }
}

KERNEL(rope, RopeParams, 128) {
    const uint32_t heads = p.q_heads + p.kv_heads;
    float* row = p.qkv + static_cast<size_t>(blockIdx.x) * (heads + p.kv_heads) * p.head_dim;
    const uint32_t position = p.positions[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < p.half; i += blockDim.x) {
        float sine, cosine;
        sincosf(static_cast<float>(position) * p.inv_freq[i], &sine, &cosine);
        for (uint32_t head = 0; head < heads; ++head) {
            float* x = row + head * p.head_dim;
            const float a = x[i], b = x[i + p.half];
            x[i] = a * cosine - b * sine;
            x[i + p.half] = b * cosine + a * sine;
        }
    }
    __syncthreads();
    const uint32_t at = position % BLOCK;
    const float* keys = row + p.q_heads * p.head_dim;
    const float* values = keys + p.kv_heads * p.head_dim;
    for (uint32_t i = threadIdx.x; i < p.kv_heads * p.head_dim; i += blockDim.x) {
        const uint32_t head = i / p.head_dim, d = i % p.head_dim;
        const size_t block = p.blocks[blockIdx.x];
        const uint32_t width = p.bf16 ? 2 : 1;
        const size_t start = (block * p.kv_heads + head) * 2 * BLOCK * p.padded_dim * width;
        store_element(p, start + key_offset(at, d, p.padded_dim, width), keys[i], p.k_inverse);
        store_element(p, start + value_offset(at, d, p.padded_dim, width), values[i], p.v_inverse);
    }
}
