// A kernel for tests of the emulator (async.cpp): 64 outputs by N rows, with one thread that copies and a
// warpgroup that multiplies, and with faults that a test chooses.
#pragma once

#include "../../kernels/wgmma.cuh"

namespace {

constexpr uint32_t STAGES = 3, CHUNKS = 7, OUTPUTS = 64, CHUNK = 128;

enum Fault {
    NONE,
    // No fault: products of two chunks are in flight at a time.
    PIPELINED,
    NO_INIT,
    NO_INIT_FENCE,
    NO_SYNC_AFTER_INIT,
    TWO_INITS,
    BARRIER_OVERWRITTEN,
    NO_WAIT_FOR_COPY,
    OTHER_PARITY_OF_CONSUMER,
    OTHER_PARITY_OF_PRODUCER,
    NO_WAIT_FOR_STAGE,
    EARLY_RELEASE,
    NO_RELEASE,
    MORE_BYTES_EXPECTED,
    FEWER_BYTES_EXPECTED,
    MORE_ARRIVALS,
    WRITE_INTO_COPY,
    COPY_INTO_COPY,
    COPY_MISALIGNED,
    COPY_OUTSIDE,
    COPY_LEFT,
    NO_FENCE,
    UNNAMED_OPERAND,
    OPERAND_CHANGED,
    READ_IN_FLIGHT,
    WRITE_IN_FLIGHT,
    NAMED_IN_FLIGHT,
    WAIT_TOO_SHORT,
    NO_COMMIT,
    NO_WAIT_FOR_PRODUCTS,
    UNNAMED_RESULT,
    TILE_MISALIGNED,
    TILE_OUTSIDE,
    OTHER_LAYOUT,
    DIFFERENT_PRODUCTS,
    A_WARP_LESS,
    REGISTERS_OF_A_WARP,
    TOO_MANY_REGISTERS,
    GROUP_TOO_LARGE,
    GROUP_OF_NO_ID,
};

struct Params {
    // [chunk][64 outputs][128 bytes] and [chunk][N rows][128 bytes], swizzled.
    const uint8_t* w;
    const uint8_t* x;
    // [N][64]
    float* out;
    Fault fault;
};

enum class Kind { e4m3, bf16, bf16_in_registers, f16_in_registers };

template <Kind kind, uint32_t N>
struct Pipeline {
    static constexpr uint32_t bytes = (OUTPUTS + N) * CHUNK;
    const Params& p;
    uint64_t* full;
    uint64_t* empty;

    bool has(Fault fault) const { return p.fault == fault; }

    void produce() const {
        for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint32_t stage = chunk % STAGES, parity = chunk / STAGES % 2;
            unsigned char* to = tile_memory() + stage * bytes;
            if (!has(NO_WAIT_FOR_STAGE)) {
                barrier_wait(&empty[stage], has(OTHER_PARITY_OF_PRODUCER) ? parity : parity ^ 1);
            }
            const uint32_t more = has(MORE_BYTES_EXPECTED) * 16, fewer = has(FEWER_BYTES_EXPECTED) * 16;
            barrier_expect(&full[stage], bytes + more - fewer);
            bulk_copy_once(to, p.w + chunk * OUTPUTS * CHUNK, OUTPUTS * CHUNK, &full[stage]);
            if (has(COPY_INTO_COPY)) bulk_copy(to + 16, p.w, 16, &full[stage]);
            if (has(WRITE_INTO_COPY)) to[5] = 1;
            const bool last = chunk + 1 == CHUNKS;
            if (has(COPY_OUTSIDE) && last) to = tile_memory() + STAGES * bytes - OUTPUTS * CHUNK;
            if (has(COPY_MISALIGNED)) to += 8;
            bulk_copy(to + OUTPUTS * CHUNK, p.x + chunk * N * CHUNK, N * CHUNK, &full[stage]);
            if (has(MORE_ARRIVALS)) barrier_arrive(&full[stage]);
            if (has(BARRIER_OVERWRITTEN)) full[stage] = 0;
        }
    }

    // Converts nothing: BF16 or F16 weights as the operand in registers.
    static void load(const unsigned char* outputs, uint32_t step, uint32_t (&a)[4]) {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = warp * 16 + lane / 4 + i % 2 * 8;
            const uint32_t at = step * 32 + lane % 4 * 4 + i / 2 * 16;
            a[i] = *reinterpret_cast<const uint32_t*>(outputs + swizzled(row * CHUNK + at));
        }
    }

    void issue(const unsigned char* stage, float (&d)[N / 2]) const {
        uint64_t a = tile_descriptor(stage), b = tile_descriptor(stage + OUTPUTS * CHUNK);
        if (has(TILE_MISALIGNED)) b = tile_descriptor(stage + OUTPUTS * CHUNK + 16);
        if (has(TILE_OUTSIDE)) b = tile_descriptor(tile_memory() + STAGES * bytes);
        if (has(OTHER_LAYOUT)) b ^= 1ull << 63;
        if (has(DIFFERENT_PRODUCTS) && threadIdx.x % 128 == 77) b += 2;
        uint32_t registers[4][4];
        for (uint32_t step = 0; step < 4; ++step) load(stage, step, registers[step]);
        const bool sum = has(UNNAMED_RESULT) || has(UNNAMED_OPERAND) || has(OPERAND_CHANGED);
        if (sum) std::memset(d, 0, sizeof d);
        if (has(OPERAND_CHANGED)) {
            wgmma_fence(d, registers[0], registers[1], registers[2], registers[3]);
            if (threadIdx.x % 128 == 77) d[1] = 1.0f;
        } else if (!has(NO_FENCE)) {
            wgmma_fence(registers[0], registers[1], registers[2], registers[3]);
        }
        for (uint32_t step = 0; step < 4; ++step) {
            const bool accumulate = step > 0 || has(UNNAMED_OPERAND) || has(OPERAND_CHANGED);
            if constexpr (kind == Kind::e4m3) wgmma_e4m3<N>(d, a + 2 * step, b + 2 * step, accumulate);
            if constexpr (kind == Kind::bf16) wgmma_bf16<N>(d, a + 2 * step, b + 2 * step, accumulate);
            if constexpr (kind == Kind::bf16_in_registers) {
                wgmma_bf16<N>(d, registers[step], b + 2 * step, accumulate);
            }
            if constexpr (kind == Kind::f16_in_registers) {
                wgmma_f16<N>(d, registers[step], b + 2 * step, accumulate);
            }
        }
        if (!has(NO_COMMIT)) wgmma_commit();
        if (has(NAMED_IN_FLIGHT)) wgmma_fence(d);
        if (has(WRITE_IN_FLIGHT)) d[1] = 0.0f;
    }

    void wait_for_copies(uint32_t chunk) const {
        const uint32_t parity = chunk / STAGES % 2;
        barrier_wait(&full[chunk % STAGES], has(OTHER_PARITY_OF_CONSUMER) ? parity ^ 1 : parity);
    }

    void wait(uint32_t chunk) const {
        // The stages of the last chunks are not used again.
        if (!has(NO_WAIT_FOR_COPY) || chunk + STAGES < CHUNKS) wait_for_copies(chunk);
    }

    void release(uint32_t chunk) const {
        group_sync(1, has(GROUP_TOO_LARGE) ? 256 : 128);
        if (threadIdx.x == 128 && !has(NO_RELEASE)) barrier_arrive(&empty[chunk % STAGES]);
    }

    static void add(float (&sums)[N / 2], const float (&d)[N / 2]) {
        for (uint32_t i = 0; i < N / 2; ++i) sums[i] += d[i];
    }

    void consume_pipelined(float (&sums)[N / 2]) const {
        float d[2][N / 2];
        for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
            wait(chunk);
            issue(tile_memory() + chunk % STAGES * bytes, d[chunk % 2]);
            if (chunk == 0) continue;
            wgmma_wait<1>(d[(chunk - 1) % 2]);
            release(chunk - 1);
            add(sums, d[(chunk - 1) % 2]);
        }
        wgmma_wait<0>(d[(CHUNKS - 1) % 2]);
        add(sums, d[(CHUNKS - 1) % 2]);
    }

    void consume_one_by_one(float (&sums)[N / 2]) const {
        float d[N / 2];
        for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
            wait(chunk);
            issue(tile_memory() + chunk % STAGES * bytes, d);
            if (has(EARLY_RELEASE)) release(chunk);
            if (has(READ_IN_FLIGHT)) sums[0] += d[0];
            if (has(WAIT_TOO_SHORT)) {
                wgmma_wait<1>(d);
            } else if (has(UNNAMED_RESULT)) {
                wgmma_wait<0>();
            } else if (!has(NO_WAIT_FOR_PRODUCTS)) {
                wgmma_wait<0>(d);
            }
            if (!has(EARLY_RELEASE)) release(chunk);
            add(sums, d);
        }
    }

    void consume() const {
        float sums[N / 2] = {};
        if (has(PIPELINED)) {
            consume_pipelined(sums);
        } else {
            consume_one_by_one(sums);
        }
        for (uint32_t chunk = CHUNKS - STAGES; chunk < CHUNKS && has(NO_WAIT_FOR_COPY); ++chunk) {
            wait_for_copies(chunk);
        }
        const uint32_t lane = threadIdx.x % 32, output = threadIdx.x % 128 / 32 * 16 + lane / 4;
        for (uint32_t i = 0; i < N / 2; ++i) {
            const uint32_t row = i / 4 * 8 + lane % 4 * 2 + i % 2;
            p.out[row * OUTPUTS + output + i / 2 % 2 * 8] = sums[i];
        }
        if (has(COPY_LEFT) && threadIdx.x == 128) {
            bulk_copy(tile_memory() + STAGES * bytes, p.w, 16, &full[STAGES]);
        }
    }

    void run() const {
        if (threadIdx.x == 0 && !has(NO_INIT)) {
            for (uint32_t stage = 0; stage <= STAGES; ++stage) {
                barrier_init(&full[stage], 1);
                barrier_init(&empty[stage], 1);
            }
            if (has(TWO_INITS)) barrier_init(&empty[0], 1);
            if (!has(NO_INIT_FENCE)) barrier_init_fence();
        }
        if (!has(NO_SYNC_AFTER_INIT)) __syncthreads();
        if (threadIdx.x < 128) {
            if (has(TOO_MANY_REGISTERS)) {
                registers_raise<248>();
            } else {
                registers_lower<40>();
            }
            if (threadIdx.x == 0) produce();
        } else if (threadIdx.x < 256) {
            if (!has(REGISTERS_OF_A_WARP) || threadIdx.x >= 160) registers_raise<232>();
            if (has(GROUP_OF_NO_ID)) group_sync(0, 128);
            if (!has(A_WARP_LESS) || threadIdx.x >= 160) consume();
        }
    }
};

template <Kind kind, uint32_t N>
void pipeline(const void* p) {
    SHARED uint64_t full[STAGES + 1];
    SHARED uint64_t empty[STAGES + 1];
    Pipeline<kind, N>{*static_cast<const Params*>(p), full, empty}.run();
}

}  // namespace
