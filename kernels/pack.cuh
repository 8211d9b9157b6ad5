// How a weight matrix [out, in] lies in memory: tiles of 16 outputs by a K block of 32 (E4M3) or 16 (BF16) inputs, 512
// bytes each, the K blocks of a tile one after the other. Lane l of a warp, g = l / 4 and t = l % 4, owns 16 bytes of
// each: its 8 (or 4) inputs from 8t (or 4t) on, of output g and then of output g + 8. That is what two (or one) 16-deep
// products of the tensor cores want of it, with the inputs in an order that the other operand is read in too.
// Outputs are padded with zeros to 128, inputs to a whole K block.
#pragma once

#include "device.cuh"

// Where the bytes of (output, input) are. `k_blocks` is their number in a tile.
template <bool Bf16>
DEVICE size_t packed_at(uint32_t output, uint32_t input, uint32_t k_blocks) {
    constexpr uint32_t depth = Bf16 ? 16 : 32, own = depth / 4, bytes = Bf16 ? 2 : 1;
    const uint32_t tile = output / 16, row = output % 16, block = input / depth, within = input % depth;
    const uint32_t lane = (row % 8) * 4 + within / own;
    return (static_cast<size_t>(tile) * k_blocks + block) * 512 + lane * 16 + row / 8 * 8 + within % own * bytes;
}
