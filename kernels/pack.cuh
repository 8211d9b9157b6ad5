// The memory layout of the operands of products: matrices whose rows run along K, weights [out, in] and
// inputs [rows, in]. A chunk is 128 bytes of a row along K. A tile of rows is stored chunk by chunk, and in
// a chunk row by row: [tile][chunk][row][128 bytes]. A tile is 128 outputs of weights, or all rows of
// inputs. In every group of eight rows the 16-byte pieces of a chunk are exchanged as the tensor cores take
// them (the 128-byte swizzle): piece i of row r is at place i ^ r % 8. So a copy of a chunk to shared memory
// is an operand of `wgmma`, without further work.
//
// Weights are padded with zeros to whole tiles and chunks. Inputs are padded with zeros to a multiple of 128
// elements, and to a multiple of 8 rows, whose contents do not matter.
#pragma once

#include "device.cuh"

constexpr uint32_t CHUNK = 128;
// Outputs of a tile of weights.
constexpr uint32_t TILE = 128;

// The offset of a byte of a row. `rows` is the number of rows of a tile, a multiple of 8, and `chunks` that
// of its chunks.
DEVICE size_t packed_byte(uint32_t row, uint32_t byte, uint32_t rows, uint32_t chunks) {
    const size_t chunk = static_cast<size_t>(row / rows) * chunks + byte / CHUNK;
    return (chunk * rows + row % rows) * CHUNK + (byte % CHUNK ^ row % 8 * 16);
}

// The offset of a weight.
template <bool Bf16>
DEVICE size_t packed_at(uint32_t output, uint32_t input, uint32_t chunks) {
    return packed_byte(output, input * (Bf16 ? 2 : 1), TILE, chunks);
}
