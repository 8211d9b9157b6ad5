// OP: rows[r][i] = packed[r][i]: unpacks a matrix to row-major, as cuBLASLt takes it
// INPUTS: packed, E4M3 [n, k] as in pack.cuh, in tiles of `tile_rows` rows
// OUTPUTS: rows u8 [n, k], row-major
// LAUNCH: any number of blocks of 256 threads; no shared memory
// LIMITS: k a multiple of 16
// NUMERICS: exact
// COST: 2 * n * k bytes; bound by memory
// TWINS: src/device/cuda/matrix.rs
#include "pack.cuh"

struct UnpackParams {
    const uint8_t* packed;
    uint8_t* rows;
    uint32_t n;
    uint32_t k;
    uint32_t tile_rows;
    // Chunks of a tile.
    uint32_t chunks;
};
static_assert(sizeof(UnpackParams) == 32);

KERNEL(unpack, UnpackParams, 256) {
    // Pieces of 16 bytes.
    const uint32_t per_row = p.k / 16;
    const uint64_t pieces = static_cast<uint64_t>(p.n) * per_row;
    for (uint64_t i = global_thread(); i < pieces; i += global_threads()) {
        const uint32_t row = static_cast<uint32_t>(i / per_row);
        const uint32_t byte = static_cast<uint32_t>(i % per_row) * 16;
        const uint8_t* from = p.packed + packed_byte(row, byte, p.tile_rows, p.chunks);
        reinterpret_cast<uint4*>(p.rows)[i] = load_once(from);
    }
}
