// Where a product stores its rows: in this GPU's memory, or in that of the ranks that sum them.
#pragma once

#include "peers.cuh"

// Where the rows of the output are: consecutive rows belong to one rank, which sums them.
struct OutputRows {
    // For each rank the address that row 0 would have if the rank's memory had all rows. It may lie before
    // the memory.
    unsigned char* base[MAX_RANKS];
    // The first row that belongs to a later rank. The last rank's is larger than any row.
    uint32_t ends[MAX_RANKS];
};
static_assert(sizeof(OutputRows) == 96);

// Finds rows of the output in ascending order.
struct OutputCursor {
    const OutputRows& out;
    // Elements of a row.
    uint32_t cols;
    uint32_t rank;

    template <typename Element>
    DEVICE_MEMBER Element* at(uint32_t row) {
#pragma unroll 1
        while (row >= out.ends[rank]) ++rank;
        return reinterpret_cast<Element*>(out.base[rank]) + static_cast<size_t>(row) * cols;
    }
};

// Where a product stores the largest values of its rows, for the kernel that quantises them.
struct RowMaxima {
    // f32 [rows, tiles of outputs, 2], for 64 outputs each: the largest output, at least 0, or the largest
    // magnitude of SwiGLU of the outputs. NaN is ignored. Null if no kernel reads them.
    float* values;

    // Stores maximum number `at`, of a row that eight lanes have, unless `exists` is false. Every lane of the
    // warp calls this.
    DEVICE_MEMBER void store(float largest, bool exists, size_t at) const {
#pragma unroll
        for (int step = 4; step > 0; step /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        }
        if (exists && lane_id() % 8 == 0) values[at] = fmaxf(largest, 0.0f);
    }
};

// Stores outputs `n` to `n` + 7 of a row of `cols` outputs as BF16; the first of them exists.
DEVICE void store_outputs(uint16_t* row, uint32_t n, uint32_t cols, const uint4& pairs) {
    if (cols % 8 == 0) {
        *reinterpret_cast<uint4*>(row + n) = pairs;
        return;
    }
    const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        if (n + i < cols) row[n + i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
    }
}
