// How linear.cu divides a product between blocks: into tiles of outputs, chunks along K, parts and segments.
// src/device/product_tiles.rs has the same cuts.
#pragma once

#include "wgmma.cuh"

// Blocks of a cluster that computes whole tiles.
constexpr uint32_t PAIR = 2;

// A position in a ring of stages, and the parity of the phases of its barriers.
template <uint32_t Stages>
struct RingPlace {
    uint32_t stage = 0;
    uint32_t parity = 0;
    DEVICE_MEMBER void advance() {
        stage = stage + 1 == Stages ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

// Chunks of one tile that are added one after the other, for the rows from `row` on.
struct Segment {
    uint32_t tile;
    uint32_t row;
    uint32_t begin;
    uint32_t end;
};

struct Tiles {
    // Tiles of outputs, and chunks of each.
    uint32_t outputs;
    uint32_t chunks;
    // Parts that the chunks of all tiles are cut into.
    uint32_t parts;
    // Tiles of rows, if each block computes whole tiles.
    uint32_t rows;

    DEVICE_MEMBER uint32_t first_of(uint32_t part) const { return part * (outputs * chunks) / parts; }
    DEVICE_MEMBER uint32_t part_of(uint32_t at) const {
        return ((at + 1) * parts - 1) / (outputs * chunks);
    }
    // Where the segment that begins at a chunk of a tile ends.
    DEVICE_MEMBER uint32_t end_of(uint32_t tile, uint32_t begin) const {
        const uint32_t start = tile * chunks;
        return min(chunks, first_of(part_of(start + begin) + 1) - start);
    }
};

// The segments of a block that computes a part, in the order in which it computes them. Every thread that
// needs them has its own. Every second block begins with its last segment, so that the two blocks that share
// a cut tile both begin with it or both end with it: half of the tiles are complete before the launch ends.
struct Part {
    const Tiles& tiles;
    // The chunks that are left.
    uint32_t first, stop;

    explicit DEVICE_MEMBER Part(const Tiles& tiles) : tiles(tiles) {
        first = tiles.first_of(blockIdx.x);
        stop = tiles.first_of(blockIdx.x + 1);
    }

    // False if there are no more.
    DEVICE_MEMBER bool next(Segment& segment) {
        if (first == stop) return false;
        const bool from_end = blockIdx.x % 2 != 0;
        const uint32_t tile = (from_end ? stop - 1 : first) / tiles.chunks, start = tile * tiles.chunks;
        const uint32_t begin = max(first, start), end = min(stop, start + tiles.chunks);
        segment = {tile, 0, begin - start, end - start};
        if (from_end) {
            stop = begin;
        } else {
            first = end;
        }
        return true;
    }
};

// The whole tiles of a block, in order, for N rows each: one tile of each pair, for all tiles of rows. If the
// number of tiles is odd, the last pair lacks its second tile.
template <uint32_t N>
struct WholeTiles {
    const Tiles& tiles;
    uint32_t item;

    explicit DEVICE_MEMBER WholeTiles(const Tiles& tiles) : tiles(tiles), item(blockIdx.x / PAIR) {}

    // The next tile, with all of its chunks. False if there are no more.
    DEVICE_MEMBER bool next(Segment& tile) {
        if (item >= (tiles.outputs + 1) / PAIR * tiles.rows) return false;
        tile = {item / tiles.rows * PAIR + cluster_rank(), item % tiles.rows * N, 0, tiles.chunks};
        item += gridDim.x / PAIR;
        return true;
    }
};
