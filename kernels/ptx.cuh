// One function for each PTX instruction that CUDA C++ has no function for. host/cuda.h implements the same
// functions in software.
#pragma once

#include <cstdint>

// Declares a kernel with one struct of parameters, `p`, and at most `threads` threads per block. Its symbol
// is octant_NAME. Its blocks may start before the kernels before it have ended; each thread waits for them
// first.
#define KERNEL(name, Params, threads) \
    OCTANT_KERNEL(name, Params, __launch_bounds__(threads), launch_dependents(); wait_for_earlier();)
// The same for a kernel that writes weights: no later kernel starts before it has ended.
#define KERNEL_SERIAL(name, Params, threads) \
    OCTANT_KERNEL(name, Params, __launch_bounds__(threads), wait_for_earlier();)
// The same as KERNEL with registers divided for one block per multiprocessor, which `registers_raise` needs.
#define KERNEL_ALONE(name, Params, threads) \
    OCTANT_KERNEL(name, Params, __launch_bounds__(threads, 1), launch_dependents(); wait_for_earlier();)
// The same for clusters of `size` blocks that run together.
#define KERNEL_CLUSTER(name, Params, threads, size)                                   \
    OCTANT_KERNEL(name, Params, __cluster_dims__(size) __launch_bounds__(threads, 1), \
                  launch_dependents(); wait_for_earlier();)
// The same as KERNEL_ALONE, but each thread calls `wait_for_earlier` itself.
#define KERNEL_AHEAD(name, Params, threads) \
    OCTANT_KERNEL(name, Params, __launch_bounds__(threads, 1), launch_dependents();)
#define OCTANT_KERNEL(name, Params, attributes, first)                                                 \
    static __device__ __forceinline__ void name##_body(const Params& p);                               \
    extern "C" __global__ void attributes octant_##name(const __grid_constant__ Params p) {            \
        first name##_body(p);                                                                          \
    }                                                                                                  \
    static __device__ __forceinline__ void name##_body(const Params& p)
// Shared memory of a fixed size.
#define SHARED __shared__ __align__(16)
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

// Lets later kernels start as soon as all blocks of this one have started. What this kernel writes is not yet
// visible to them.
DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" : : : "memory"); }

// Waits until the kernels before this one have ended. Only the threads that call this see what they wrote.
// Weights may be read before: no kernel of a step writes them.
DEVICE void wait_for_earlier() { asm volatile("griddepcontrol.wait;" : : : "memory"); }

// The block's dynamic shared memory.
DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char octant_shared[];
    return octant_shared;
}

// The thread's lane in its warp.
DEVICE unsigned lane_id() { return threadIdx.x % 32; }

// Two E4M3 codes, the first in the low byte, as two F16: exact.
DEVICE uint32_t f16x2_of_e4m3x2(uint16_t codes) {
    uint32_t out;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(codes));
    return out;
}

// Four E4M3 codes as two pairs of F16: exact.
DEVICE void f16x4_of_e4m3x4(uint32_t codes, uint32_t& low, uint32_t& high) {
    asm("{\n"
        ".reg .b16 first, second;\n"
        "mov.b32 {first, second}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, first;\n"
        "cvt.rn.f16x2.e4m3x2 %1, second;\n"
        "}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
}

// Two floats as E4M3 codes, to nearest even, saturating at 448; NaN becomes 0x7F.
DEVICE uint16_t e4m3x2(float low, float high) {
    uint16_t out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
}

// Two floats as F16, to nearest even.
DEVICE uint32_t f16x2(float low, float high) {
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// Two floats as BF16, to nearest even.
DEVICE uint32_t bf16x2(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// For each half the larger of two BF16; NaN only if both are NaN.
DEVICE uint32_t bf16x2_max(uint32_t a, uint32_t b) {
    uint32_t out;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

// Transposes a matrix [8, 8] of 16-bit elements. Lane l has the elements (l / 4, 2 (l % 4)) and, in the upper
// half, (l / 4, 2 (l % 4) + 1) of the operand and of the result.
DEVICE uint32_t transposed(uint32_t pair) {
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// The value of an F16.
DEVICE float float_of_f16(uint16_t bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}

// 2^x, within 2^-22 of its size. Exactly 1 for 0, and 0 for -infinity and for results that would be
// subnormal.
DEVICE float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// 1 / x, within 2^-23 of its size. 0 for infinity and for results that would be subnormal.
DEVICE float reciprocal_fast(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// d += a × b: [16, 16] × [16, 8], F16 in and F32 out. Lane l, with g = l / 4 and t = l % 4, holds the pairs
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) of `a`, the pairs at rows 2t and 2t + 8 of column g of
// `b`, and the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of `d`.
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for BF16.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads 16 bytes that are read once; does not allocate them in L1.
DEVICE uint4 load_once(const void* from) {
    uint4 out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

// Loads 16 bytes that another block has written, from L2: a line of L1 may be stale.
DEVICE float4 load_l2(const float4* from) {
    float4 out;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "l"(from));
    return out;
}

// The same for any 16 bytes.
DEVICE uint4 load_l2(const uint4* from) {
    uint4 out;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

// Loads an element that another GPU may have written, from L2.
DEVICE float load_l2(const float* from) {
    float out;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(out) : "l"(from));
    return out;
}

// Adds to a word of shared memory and returns its value before. Orders accesses of the block's threads before
// and after.
DEVICE uint32_t add_in_block(uint32_t* word, uint32_t value) {
    uint32_t out;
    asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], %2;"
                 : "=r"(out)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(word))), "r"(value)
                 : "memory");
    return out;
}

// Loads a word that other GPUs or the host write. Their earlier writes are visible afterwards.
DEVICE uint32_t load_acquire(const uint32_t* from) {
    uint32_t out;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(out) : "l"(from) : "memory");
    return out;
}

// Loads a packet that another GPU may be writing: four words, each of which is old or new.
DEVICE uint4 load_packet(const uint4* from) {
    uint4 out;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from)
                 : "memory");
    return out;
}

// Stores a packet that another GPU may be reading.
DEVICE void store_packet(uint4* to, const uint4& packet) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(packet.x), "r"(packet.y), "r"(packet.z), "r"(packet.w)
                 : "memory");
}

// Orders this thread's earlier accesses, and those that it observed, before its later ones, for all GPUs.
DEVICE void fence_system() { __threadfence_system(); }

// Stores a word for other GPUs or the host, after all earlier writes that this thread made or observed.
DEVICE void store_release(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(to), "r"(value) : "memory");
}

// Adds to a word that only threads of this GPU access, and returns its value before. Orders earlier writes
// that this thread made or observed before the addition, and the additions that it observes before its later
// accesses.
DEVICE uint32_t add_acquire_release(uint32_t* at, uint32_t value) {
    uint32_t out;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(out)
                 : "l"(at), "r"(value)
                 : "memory");
    return out;
}

// The GPU's global timer.
DEVICE uint64_t nanoseconds() {
    uint64_t out;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(out));
    return out;
}

// Yields the multiprocessor to other warps for about 20 ns.
DEVICE void pause_briefly() { __nanosleep(20); }
