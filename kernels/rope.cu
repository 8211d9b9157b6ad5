// OP: rotates Q and K of each row by its position, in pairs (i, i + half) of a head; stores Q in F32, and K
//     and V in the cache
// INPUTS: qkv f32 or bf16 [rows, (q_heads + 2 * kv_heads) * head_dim]; positions u32 [rows]; blocks u32
//     [rows]: the KV block of each position; inv_freq f32 [half]
// OUTPUTS: queries f32 [rows, q_heads * head_dim]; cache of the layer, E4M3(x / scale) or BF16,
//     [block][kv_head][K: 64 x padded_dim | V: padded_dim x 64]
// LAUNCH: one block of 256 threads per row; 8 * half bytes of shared memory
// LIMITS: 2 * half <= head_dim <= padded_dim; each position of a block belongs to one row
// NUMERICS: F32; Q and K within 2e-6 of their size of the CPU twin's, codes within one unit in the last place
// COST: rows * ((q_heads + 2 * kv_heads) * head_dim * (2 or 4) + q_heads * head_dim * 4) bytes and the codes;
//     bound by memory
// TWINS: src/device/cpu/rope.rs
#include "device.cuh"

struct RopeParams {
    const void* qkv;
    float* queries;
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
    uint32_t cache_bf16;
    float k_inverse;
    float v_inverse;
    uint32_t qkv_bf16;
    uint32_t unused;
};
static_assert(sizeof(RopeParams) == 88);

// The row of a block.
struct Row {
    const RopeParams& p;
    uint32_t position;
    // The index of the first element of the row's block in the cache.
    size_t cached;

    // An element of a head of Q, K or V, numbered one after the other.
    DEVICE_MEMBER float load(uint32_t head, uint32_t d) const {
        const size_t row = static_cast<size_t>(blockIdx.x) * (p.q_heads + 2 * p.kv_heads);
        const size_t at = (row + head) * p.head_dim + d;
        if (!p.qkv_bf16) return static_cast<const float*>(p.qkv)[at];
        return floats_of_bf16x2(static_cast<const uint16_t*>(p.qkv)[at]).x;
    }

    DEVICE_MEMBER void store(uint32_t head, uint32_t d, float x) const {
        if (head < p.q_heads) {
            const size_t row = static_cast<size_t>(blockIdx.x) * p.q_heads;
            p.queries[(row + head) * p.head_dim + d] = x;
            return;
        }
        const uint32_t at = position % 64, kv_head = (head - p.q_heads) % p.kv_heads;
        const bool key = head - p.q_heads < p.kv_heads;
        const size_t place = key ? at * p.padded_dim + d : (64 * p.padded_dim + d * 64 + at);
        store_element(cached + static_cast<size_t>(kv_head) * 128 * p.padded_dim + place, x,
                      key ? p.k_inverse : p.v_inverse);
    }

    DEVICE_MEMBER void store_element(size_t at, float x, float inverse) const {
        if (p.cache_bf16) {
            static_cast<uint16_t*>(p.cache)[at] = static_cast<uint16_t>(bf16x2(x, 0.0f));
        } else {
            static_cast<uint8_t*>(p.cache)[at] = static_cast<uint8_t>(e4m3x2(x * inverse, 0.0f));
        }
    }
};

KERNEL(rope, RopeParams, 256) {
    // Cosine and sine of each pair.
    auto* turns = reinterpret_cast<float2*>(shared_memory());
    const size_t block = p.blocks[blockIdx.x];
    const Row row = {p, p.positions[blockIdx.x], block * p.kv_heads * 128 * p.padded_dim};
    for (uint32_t i = threadIdx.x; i < p.half; i += blockDim.x) {
        float sine, cosine;
        sincosf(static_cast<float>(row.position) * p.inv_freq[i], &sine, &cosine);
        turns[i] = {cosine, sine};
    }
    __syncthreads();
    const uint32_t turned = p.q_heads + p.kv_heads;
    for (uint32_t item = threadIdx.x; item < turned * p.half; item += blockDim.x) {
        const uint32_t head = item / p.half, i = item % p.half;
        const float a = row.load(head, i), b = row.load(head, i + p.half);
        const float2 turn = turns[i];
        row.store(head, i, a * turn.x - b * turn.y);
        row.store(head, i + p.half, b * turn.x + a * turn.y);
    }
    const uint32_t plain = p.head_dim - 2 * p.half;
    for (uint32_t item = threadIdx.x; item < turned * plain; item += blockDim.x) {
        const uint32_t head = item / plain, d = 2 * p.half + item % plain;
        row.store(head, d, row.load(head, d));
    }
    for (uint32_t item = threadIdx.x; item < p.kv_heads * p.head_dim; item += blockDim.x) {
        const uint32_t head = turned + item / p.head_dim, d = item % p.head_dim;
        row.store(head, d, row.load(head, d));
    }
}
