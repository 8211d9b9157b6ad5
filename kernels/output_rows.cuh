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
