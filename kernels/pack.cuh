// The memory layout of a weight matrix [out, in]: tiles of 16 outputs by a K block of 32 (E4M3) or 16 (BF16)
// inputs, 512 bytes each, with the K blocks of a tile one after the other. Lane l of a warp, g = l / 4 and t
// = l % 4, owns 16 bytes of each: its 8 (or 4) inputs from 8t (or 4t) on, of output g and then of output g +
// 8. These are its operands of two (or one) 16-deep products of the tensor cores; the other operand is read
// with the same permutation of inputs. Outputs are padded with zeros to a multiple of 128, inputs to a whole
// K block.
#pragma once

#include "device.cuh"

// The offset in bytes of (output, input). `k_blocks` is the number of K blocks of a tile.
template <bool Bf16>
DEVICE size_t packed_at(uint32_t output, uint32_t input, uint32_t k_blocks) {
    constexpr uint32_t depth = Bf16 ? 16 : 32, own = depth / 4, bytes = Bf16 ? 2 : 1;
    const uint32_t tile = output / 16, row = output % 16, block = input / depth, within = input % depth;
    const uint32_t lane = (row % 8) * 4 + within / own;
    const size_t start = (static_cast<size_t>(tile) * k_blocks + block) * 512;
    return start + lane * 16 + row / 8 * 8 + within % own * bytes;
}
