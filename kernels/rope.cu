// OP: rotates Q and K of each row by its position, in pairs (i, i + half) of a head; stores Q in F32, and K
//     and V in the cache
// INPUTS: qkv f32 or bf16 [rows, (q_heads + 2 * kv_heads) * head_dim]; positions u32 [rows]; blocks u32
//     [rows]: the KV block of each position; inv_freq f32 [half]
// OUTPUTS: queries f32 [rows, q_heads * head_dim]; cache of the layer, E4M3(x / scale) or BF16,
//     [block][kv_head] in the layout of cache.cuh
// LAUNCH: blocks of 256 threads: one per row in x, any number in y, which share the row's work; 8 * half
//     bytes of shared memory
// LIMITS: 2 * half <= head_dim <= padded_dim; each position of a block belongs to one row
// NUMERICS: F32; Q and K within 2e-6 of their size of the CPU twin's, codes within one unit in the last place
// COST: rows * ((q_heads + 2 * kv_heads) * head_dim * (2 or 4) + q_heads * head_dim * 4) bytes and the codes;
//     bound by memory
// TWINS: src/device/cpu/rope.rs
#include "cache.cuh"

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

// Elements of a row by groups of N: 8 where the shape allows, otherwise 1.
template <uint32_t N>
struct Group {
    float x[N];
};

// The row of a block.
template <uint32_t N>
struct RopeRow {
    const RopeParams& p;
    uint32_t position;
    // The row's block in the cache, and bytes of a cached element.
    unsigned char* cached;
    uint32_t width;

    // Elements from `d` on of a head of Q, K or V, numbered one after the other.
    DEVICE_MEMBER Group<N> load(uint32_t head, uint32_t d) const {
        const size_t row = static_cast<size_t>(blockIdx.x) * (p.q_heads + 2 * p.kv_heads);
        const size_t at = (row + head) * p.head_dim + d;
        Group<N> out;
        if constexpr (N == 8) {
            eight_at(p.qkv, p.qkv_bf16, at / 8).each([&](uint32_t i, float& x) { out.x[i] = x; });
        } else if (p.qkv_bf16) {
            out.x[0] = floats_of_bf16x2(static_cast<const uint16_t*>(p.qkv)[at]).x;
        } else {
            out.x[0] = static_cast<const float*>(p.qkv)[at];
        }
        return out;
    }

    DEVICE_MEMBER void store(uint32_t head, uint32_t d, const Group<N>& group) const {
        if (head < p.q_heads) {
            const size_t row = static_cast<size_t>(blockIdx.x) * p.q_heads;
            store_query((row + head) * p.head_dim + d, group);
            return;
        }
        const uint32_t at = position % BLOCK, kv_head = (head - p.q_heads) % p.kv_heads;
        unsigned char* to = cached + static_cast<size_t>(kv_head) * 2 * BLOCK * p.padded_dim * width;
        if (head - p.q_heads < p.kv_heads) {
            store_key(to + key_offset(at, d, p.padded_dim, width), group);
            return;
        }
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
            store_element(to + value_offset(at, d + i, p.padded_dim, width), group.x[i], p.v_inverse);
        }
    }

    DEVICE_MEMBER void store_query(size_t at, const Group<N>& group) const {
        if constexpr (N == 8) {
            const float* x = group.x;
            const Eight eight = {make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7])};
            store_eight(p.queries, at / 8, eight);
        } else {
            p.queries[at] = group.x[0];
        }
    }

    // Eight elements of K, of which the first is one in eight of its row, lie side by side.
    DEVICE_MEMBER void store_key(unsigned char* to, const Group<N>& group) const {
        if constexpr (N == 1) {
            store_element(to, group.x[0], p.k_inverse);
        } else if (p.cache_bf16) {
            uint32_t pairs[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) pairs[i] = bf16x2(group.x[2 * i], group.x[2 * i + 1]);
            *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        } else {
            uint32_t codes[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                codes[i] = e4m3x2(group.x[2 * i] * p.k_inverse, group.x[2 * i + 1] * p.k_inverse);
            }
            const uint32_t low = codes[0] | codes[1] << 16, high = codes[2] | codes[3] << 16;
            *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
        }
    }

    DEVICE_MEMBER void store_element(unsigned char* to, float x, float inverse) const {
        if (p.cache_bf16) {
            *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bf16x2(x, 0.0f));
        } else {
            *to = static_cast<uint8_t>(e4m3x2(x * inverse, 0.0f));
        }
    }
};

// Items of work of a row: groups of pairs of Q and K, then groups of the other elements of Q and K, then
// groups of V. The blocks of a row share them.
template <uint32_t N>
struct RopeItems {
    const RopeRow<N>& row;
    uint32_t rotated, plain, all;

    DEVICE_MEMBER explicit RopeItems(const RopeRow<N>& row) : row(row) {
        const RopeParams& p = row.p;
        const uint32_t heads = p.q_heads + p.kv_heads;
        rotated = heads * (p.half / N);
        plain = rotated + heads * ((p.head_dim - 2 * p.half) / N);
        all = plain + p.kv_heads * (p.head_dim / N);
    }

    struct Loaded {
        uint32_t head, d;
        bool rotates;
        Group<N> a, b;
    };

    DEVICE_MEMBER Loaded load(uint32_t item) const {
        const RopeParams& p = row.p;
        Loaded out;
        out.rotates = item < rotated;
        if (out.rotates) {
            out.head = item / (p.half / N), out.d = item % (p.half / N) * N;
            out.b = row.load(out.head, out.d + p.half);
        } else if (item < plain) {
            const uint32_t each = (p.head_dim - 2 * p.half) / N, at = item - rotated;
            out.head = at / each, out.d = 2 * p.half + at % each * N;
        } else {
            const uint32_t each = p.head_dim / N, at = item - plain;
            out.head = p.q_heads + p.kv_heads + at / each, out.d = at % each * N;
        }
        out.a = row.load(out.head, out.d);
        return out;
    }

    // `turns` has cosine and sine of each pair.
    DEVICE_MEMBER void finish(const Loaded& item, const float2* turns) const {
        if (!item.rotates) return row.store(item.head, item.d, item.a);
        Group<N> a, b;
#pragma unroll
        for (uint32_t i = 0; i < N; ++i) {
            const float2 turn = turns[item.d + i];
            a.x[i] = item.a.x[i] * turn.x - item.b.x[i] * turn.y;
            b.x[i] = item.b.x[i] * turn.x + item.a.x[i] * turn.y;
        }
        row.store(item.head, item.d, a);
        row.store(item.head, item.d + row.p.half, b);
    }
};

template <uint32_t N>
DEVICE void rope(const RopeParams& p) {
    auto* turns = reinterpret_cast<float2*>(shared_memory());
    const uint32_t width = p.cache_bf16 ? 2 : 1;
    const size_t block = p.blocks[blockIdx.x];
    const size_t start = block * p.kv_heads * 2 * BLOCK * p.padded_dim * width;
    unsigned char* cached = static_cast<unsigned char*>(p.cache) + start;
    const RopeRow<N> row = {p, p.positions[blockIdx.x], cached, width};
    const RopeItems<N> items(row);
    const uint32_t first = blockIdx.y * blockDim.x + threadIdx.x;
    // The first item is on its way while the angles are computed.
    typename RopeItems<N>::Loaded loaded;
    if (first < items.all) loaded = items.load(first);
    for (uint32_t i = threadIdx.x; i < p.half; i += blockDim.x) {
        float sine, cosine;
        sincosf(static_cast<float>(row.position) * p.inv_freq[i], &sine, &cosine);
        turns[i] = {cosine, sine};
    }
    __syncthreads();
    for (uint32_t item = first; item < items.all; item += gridDim.y * blockDim.x) {
        if (item != first) loaded = items.load(item);
        items.finish(loaded, turns);
    }
}

KERNEL(rope, RopeParams, 256) {
    if (p.head_dim % 8 == 0 && p.half % 8 == 0) {
        rope<8>(p);
    } else {
        rope<1>(p);
    }
}
