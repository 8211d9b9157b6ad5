// Where the elements of a block of the KV cache are. rope.cu writes them, attention.cuh reads them.
//
// A block holds 64 positions of one layer and KV head: K, a row of `padded` elements per position, and then
// V, a row of 64 positions per dimension. A thread of attention reads 16 neighbouring elements of a row,
// those of four steps of a product. In rows of V, positions are ordered so that these belong to the thread
// (`value_column`). In odd rows, pieces of 16 or 64 bytes are exchanged, so that the eight lanes that read
// two rows at a time access different banks of shared memory (`exchanged`).
#pragma once

#include "device.cuh"

constexpr uint32_t BLOCK = 64;

// The bit of a byte's offset in an odd row that is inverted; 0 for none. `width` is the number of bytes of an
// element.
DEVICE uint32_t exchanged(uint32_t row_elements, uint32_t width) {
    // Lanes of BF16 read 32 bytes in two pieces. Rows of E4M3 that are an odd multiple of 64 bytes need no
    // exchange.
    return width == 2 ? 16 : row_elements % 128 == 0 ? 64 : 0;
}

// The place of a position in a row of V. Thread c of four has places 16c to 16c + 15. Step s of a product
// multiplies places 16c + 4s to 16c + 4s + 3 of each c: positions c, c + 8, c + 4 and c + 12 of the 16 from
// 16s on.
DEVICE uint32_t value_column(uint32_t position) {
    const uint32_t step = position / 16, quarter = position % 16 / 4;
    return position % 4 * 16 + step * 4 + quarter % 2 * 2 + quarter / 2;
}

// The byte of an element of K, from the block's start.
DEVICE uint32_t key_offset(uint32_t position, uint32_t d, uint32_t padded, uint32_t width) {
    return position * padded * width + (d * width ^ position % 2 * exchanged(padded, width));
}

// The byte of an element of V, from the block's start.
DEVICE uint32_t value_offset(uint32_t position, uint32_t d, uint32_t padded, uint32_t width) {
    const uint32_t row = BLOCK * (padded + d) * width;
    return row + (value_column(position) * width ^ d % 2 * exchanged(BLOCK, width));
}
