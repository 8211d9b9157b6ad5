// A product of a warpgroup, for the files that implement the emulator. Kernels do not include this.
#pragma once

#include <array>
#include <vector>

#include "async.h"

namespace host {

constexpr uint32_t rows = 64, most_columns = 256, depth_bytes = 32;

// A product as all threads of a warpgroup issue it.
struct Product {
    Operand operand;
    uint32_t n;
    bool accumulate;
    size_t slot;
    uint64_t a_tile, b_tile;
    // The operand `a` if it is in registers: pairs of BF16 or F16.
    std::vector<std::array<uint16_t, 16>> a;
};

// Computes a product, which adds to `d` or replaces it: [64][256], of which it accesses the first n columns.
void multiply(const Product& product, float* d);

}  // namespace host
