// CUDA's execution model on the host, for tests. Kernels compiled by g++ against this header run their
// blocks, or clusters of blocks, one after the other, each thread of a block as a fiber. A fiber runs until
// it waits at a barrier of the block or for the other lanes of its warp, or for an asynchronous operation
// (async.h). A wait for a thread that has ended, or lanes that wait at different operations, is an error
// that is reported and ends the process. Launches of different host threads run concurrently, like those on
// different GPUs, and access the same memory. Threads of a block start in ascending or descending order, so
// that a missing barrier shows in one of the two. Blocks run in ascending order, or the odd ones before the
// even ones unless they wait for other GPUs. Dynamic shared memory is NaN at the start.
//
// The blocks of a cluster run at the same time. If threads start in descending order, the last block runs as
// far as it can before the others. Variables declared SHARED are the same for all blocks of a cluster, unlike
// on a GPU, so that a kernel for clusters has none.
//
// A kernel runs when the one before it has ended. What may run earlier on a GPU is checked where it shows: a
// thread that ends without wait_for_earlier, and a bulk copy before it, except by bulk_copy_once. Reading to
// L2 changes nothing here.
//
// Not checked: memory order between blocks, bank conflicts, alignment of vector loads beyond UBSan's checks,
// and speed.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>

#define KERNEL(name, Params, threads) OCTANT_KERNEL(name, Params, wait_for_earlier();)
#define KERNEL_SERIAL KERNEL
#define KERNEL_ALONE KERNEL
#define KERNEL_AHEAD(name, Params, threads) OCTANT_KERNEL(name, Params, )
#define OCTANT_KERNEL(name, Params, first)               \
    static void name##_body(const Params& p);            \
    extern "C" void octant_##name(const void* p) {       \
        first name##_body(*static_cast<const Params*>(p)); \
    }                                                    \
    static void name##_body(const Params& p)
// The launch finds the size of the kernel's clusters by the symbol octant_NAME_cluster.
#define KERNEL_CLUSTER(name, Params, threads, size)                 \
    extern "C" constexpr uint32_t octant_##name##_cluster = (size); \
    KERNEL(name, Params, threads)
// Shared memory is thread-local, because each host thread stands for one GPU.
#define SHARED alignas(16) static thread_local
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace host {

// The indices of the running thread and its block, and the block's shared memory.
struct Place {
    dim3 thread, block, block_dim, grid_dim;
    unsigned char* shared;
};
extern constinit thread_local Place place;

// Notes that the running thread has waited for the kernels before this one.
void wait_for_earlier();
// Waits for all threads of the block.
void sync_block(const char* where);
// Waits for all threads of the block and returns whether `says` is true on any of them.
bool any_of_block(bool says);

// Computes the results of all lanes of a warp from their operands. Both are `stride` bytes apart.
using Collective = void (*)(const unsigned char* in, unsigned char* out);
constexpr unsigned stride = 64;
// Returns where the running lane puts its operand for the operation `where` of its warp.
unsigned char* operand_of_lane(const char* where);
// Waits until all 32 lanes have put their operands. The last one calls `compute`. Returns the running lane's
// result.
const unsigned char* result_of_lane(const char* where, Collective compute);

// Contributes an operand, waits for the other 31 lanes, and returns this lane's result. The copies have fixed
// sizes, so the compiler expands them in place.
template <typename T>
T collective(const char* where, const T& operand, Collective compute) {
    static_assert(sizeof(T) <= stride);
    std::memcpy(operand_of_lane(where), &operand, sizeof operand);
    T result;
    std::memcpy(&result, result_of_lane(where, compute), sizeof result);
    return result;
}

template <typename T>
struct Exchange {
    T value;
    uint32_t source;
};

template <typename T>
T shuffle(T value, uint32_t source) {
    const auto exchange = [](const unsigned char* in, unsigned char* out) {
        for (unsigned lane = 0; lane < 32; ++lane) {
            Exchange<T> mine, other;
            std::memcpy(&mine, in + lane * stride, sizeof mine);
            std::memcpy(&other, in + (mine.source & 31) * stride, sizeof other);
            std::memcpy(out + lane * stride, &other, sizeof other);
        }
    };
    return collective("a shuffle", Exchange<T>{value, source}, exchange).value;
}

float float_of_f16(uint16_t bits);
uint16_t f16_of(float x);
uint16_t bf16_of(float x);
// The F16 bits of an E4M3 code.
uint16_t f16_of_e4m3(uint8_t code);
uint8_t e4m3_of(float x);
void mma(bool bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace host

#define threadIdx (host::place.thread)
#define blockIdx (host::place.block)
#define blockDim (host::place.block_dim)
#define gridDim (host::place.grid_dim)

static inline void wait_for_earlier() { host::wait_for_earlier(); }
static inline unsigned char* shared_memory() { return host::place.shared; }
static inline void __syncthreads() { host::sync_block("__syncthreads"); }
static inline int __syncthreads_or(int says) { return host::any_of_block(says != 0); }
static inline void __threadfence() { std::atomic_signal_fence(std::memory_order_seq_cst); }
static inline unsigned lane_id() { return host::place.thread.x % 32; }

template <typename T>
static inline T __shfl_xor_sync(uint32_t, T value, int mask) {
    return host::shuffle(value, lane_id() ^ static_cast<uint32_t>(mask));
}
template <typename T>
static inline T __shfl_sync(uint32_t, T value, int source) {
    return host::shuffle(value, static_cast<uint32_t>(source));
}
template <typename T>
static inline T __shfl_up_sync(uint32_t, T value, unsigned delta) {
    const unsigned lane = lane_id();
    return host::shuffle(value, lane < delta ? lane : lane - delta);
}
static inline uint32_t __ballot_sync(uint32_t, bool says) {
    const auto ballot = [](const unsigned char* in, unsigned char* out) {
        uint32_t all = 0;
        for (unsigned lane = 0; lane < 32; ++lane) all |= uint32_t{in[lane * host::stride] != 0} << lane;
        for (unsigned lane = 0; lane < 32; ++lane) std::memcpy(out + lane * host::stride, &all, sizeof all);
    };
    const uint32_t operand = says;
    return host::collective("a ballot", operand, ballot);
}
static inline void __syncwarp(uint32_t = ~0u) { host::shuffle(0u, lane_id()); }

// All blocks and threads of a launch run on one host thread, so these need no lock.
template <typename T>
static inline T atomicAdd(T* at, T value) {
    T old = *at;
    *at = old + value;
    return old;
}
static inline uint32_t atomicOr(uint32_t* at, uint32_t value) {
    uint32_t old = *at;
    *at = old | value;
    return old;
}

static inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
template <typename T>
static inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
static inline T max(T a, T b) {
    return a < b ? b : a;
}
using std::isfinite;
using std::isnan;

// The functions of ptx.cuh in software.
static inline uint32_t f16x2_of_e4m3x2(uint16_t codes) {
    const uint16_t low = host::f16_of_e4m3(codes & 0xFF), high = host::f16_of_e4m3(codes >> 8);
    return low | static_cast<uint32_t>(high) << 16;
}
static inline void f16x4_of_e4m3x4(uint32_t codes, uint32_t& low, uint32_t& high) {
    low = f16x2_of_e4m3x2(static_cast<uint16_t>(codes));
    high = f16x2_of_e4m3x2(static_cast<uint16_t>(codes >> 16));
}
static inline uint16_t e4m3x2(float low, float high) {
    return static_cast<uint16_t>(host::e4m3_of(low) | host::e4m3_of(high) << 8);
}
static inline uint32_t f16x2(float low, float high) {
    return host::f16_of(low) | static_cast<uint32_t>(host::f16_of(high)) << 16;
}
static inline uint32_t bf16x2(float low, float high) {
    return host::bf16_of(low) | static_cast<uint32_t>(host::bf16_of(high)) << 16;
}
// -0 is less than +0, and a result that is NaN is 0x7FFF, by the instruction's definition.
static inline uint32_t bf16x2_max(uint32_t a, uint32_t b) {
    const auto larger = [](uint32_t a, uint32_t b) -> uint32_t {
        const float x = __uint_as_float(a << 16), y = __uint_as_float(b << 16);
        if (x != x && y != y) return 0x7FFF;
        if (x != x || y != y) return x != x ? b : a;
        if (x == y) return a >> 15 ? b : a;
        return x < y ? b : a;
    };
    return larger(a & 0xFFFF, b & 0xFFFF) | larger(a >> 16, b >> 16) << 16;
}
static inline uint32_t transposed(uint32_t pair) {
    const auto transpose = [](const unsigned char* in, unsigned char* out) {
        for (unsigned lane = 0; lane < 32; ++lane) {
            for (unsigned half = 0; half < 2; ++half) {
                const unsigned row = lane % 4 * 2 + half, col = lane / 4;
                std::memcpy(out + lane * host::stride + 2 * half,
                            in + (row * 4 + col / 2) * host::stride + col % 2 * 2, 2);
            }
        }
    };
    return host::collective("a transposition", pair, transpose);
}
static inline float float_of_f16(uint16_t bits) { return host::float_of_f16(bits); }
static inline float exp2_fast(float x) { return std::exp2(x); }
static inline float reciprocal_fast(float x) {
    const float y = 1.0f / x;
    return std::fabs(y) < std::numeric_limits<float>::min() ? 0.0f : y;
}
static inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    host::mma(false, d, a, b0, b1);
}
static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    host::mma(true, d, a, b0, b1);
}
static inline uint4 load_once(const void* from) { return *static_cast<const uint4*>(from); }
static inline float4 load_l2(const float4* from) { return *from; }
static inline uint4 load_l2(const uint4* from) { return *from; }
static inline float load_l2(const float* from) { return *from; }
static inline uint32_t add_in_block(uint32_t* word, uint32_t value) { return atomicAdd(word, value); }
static inline uint32_t load_acquire(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static inline void store_release(uint32_t* to, uint32_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
static inline uint4 load_packet(const uint4* from) {
    const auto word = [](const uint32_t* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); };
    return {word(&from->x), word(&from->y), word(&from->z), word(&from->w)};
}
static inline void store_packet(uint4* to, const uint4& packet) {
    __atomic_store_n(&to->x, packet.x, __ATOMIC_RELAXED);
    __atomic_store_n(&to->y, packet.y, __ATOMIC_RELAXED);
    __atomic_store_n(&to->z, packet.z, __ATOMIC_RELAXED);
    __atomic_store_n(&to->w, packet.w, __ATOMIC_RELAXED);
}
static inline void fence_system() {
#ifndef __SANITIZE_THREAD__
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
// All threads of a launch run on one host thread.
static inline uint32_t add_acquire_release(uint32_t* at, uint32_t value) { return atomicAdd(at, value); }
static inline uint64_t nanoseconds() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(now / std::chrono::nanoseconds(1));
}
static inline void pause_briefly() { std::this_thread::yield(); }
