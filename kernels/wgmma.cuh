// Barriers in shared memory, bulk copies that complete on them, and the products of a warpgroup
// ("wgmma"), which run while the threads go on. host/async.h has the same functions in software.
//
// Blocks of a cluster (KERNEL_CLUSTER) copy to each other's shared memory, store floats there and arrive at
// each other's barriers, in dynamic shared memory and at the same place in each block.
//
// The PTX ISA calls four consecutive warps a warpgroup, the first of them at a multiple of four. All its
// threads call the functions of products with the same arguments, except that each passes its own
// registers.
#pragma once

#include "device.cuh"

#ifdef OCTANT_HOST
#include "host/async.h"
#else

// The block's dynamic shared memory, aligned for tiles of `tile_descriptor`. It is the memory of
// shared_memory().
DEVICE unsigned char* tile_memory() {
    extern __shared__ __align__(1024) unsigned char octant_tiles[];
    return octant_tiles;
}

DEVICE uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Initialises a barrier. A phase of it completes after `arrivals` arrivals, once all bytes expected in
// the phase have been copied. Phases have the parities 0, 1, 0 and so on.
DEVICE void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}

// Makes this thread's initialisations visible to bulk copies; __syncthreads follows.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory"); }

// Makes this thread's ordinary writes to shared memory visible to the later copies and products that a
// barrier orders after this call.
DEVICE void async_fence() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

DEVICE void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(barrier)) : "memory");
}

// Arrives, and makes the phase wait for `bytes` more bytes.
DEVICE void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits until the current phase has the other parity: until the phase of this parity has completed.
// Parity 1 returns at once on a new barrier.
DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n"
        :
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

// Starts a copy from global to shared memory that completes `bytes` of the barrier. Both addresses and
// `bytes` are multiples of 16.
DEVICE void bulk_copy(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared_address(shared_to)), "l"(__cvta_generic_to_global(global_from)), "r"(bytes),
                   "r"(shared_address(barrier))
                 : "memory");
}

// The same for data that is read once: L2 evicts it first. Weights may be copied so before
// `wait_for_earlier`.
DEVICE void bulk_copy_once(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* barrier) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;"
        :
        : "r"(shared_address(shared_to)), "l"(__cvta_generic_to_global(global_from)), "r"(bytes),
          "r"(shared_address(barrier)), "l"(policy)
        : "memory");
}

// Starts to read global memory to L2. The address and `bytes` are multiples of 16. Weights may be read so
// before `wait_for_earlier`.
DEVICE void bulk_read_to_l2(const void* global_from, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                 :
                 : "l"(__cvta_generic_to_global(global_from)), "r"(bytes)
                 : "memory");
}

// The number of this block in its cluster.
DEVICE uint32_t cluster_rank() {
    uint32_t out;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(out));
    return out;
}

// Waits for all threads of all blocks of the cluster, and orders their accesses before and after. No block
// may end while another one can still access its memory or arrive at its barriers.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" : : : "memory");
}

// Waits until all threads of all blocks of the cluster have come here. It orders only the initialisation of
// barriers, by barrier_init_fence, so that no thread waits for its earlier writes.
DEVICE void cluster_begin() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" : : : "memory");
}

// Arrives at the barrier of the block `rank` of the cluster, after this thread's products have ended. It does
// not make this thread's writes visible there.
DEVICE void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 at;\n"
        "mapa.shared::cluster.u32 at, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [at];\n"
        "}\n"
        :
        : "r"(shared_address(barrier)), "r"(rank)
        : "memory");
}

// Starts a store of a float in the shared memory of the block `rank` of the cluster, at the same place as
// `to` in this one's, that completes 4 bytes of that block's barrier. It may end after this block does, but
// not after that one.
DEVICE void store_in_block(float* to, uint64_t* barrier, uint32_t rank, float x) {
    asm volatile(
        "{\n"
        ".reg .b32 at, done;\n"
        "mapa.shared::cluster.u32 at, %0, %2;\n"
        "mapa.shared::cluster.u32 done, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [at], %3, [done];\n"
        "}\n"
        :
        : "r"(shared_address(to)), "r"(shared_address(barrier)), "r"(rank), "f"(x)
        : "memory");
}

// As barrier_wait, for stores of other blocks of the cluster.
DEVICE void barrier_wait_for_blocks(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "wait:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra wait;\n"
        "}\n"
        :
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
}

// As bulk_copy, to the blocks of the cluster whose bits are set in `blocks`: the copy completes `bytes` of
// the barrier of each.
DEVICE void bulk_copy_to(uint16_t blocks, void* shared_to, const void* global_from, uint32_t bytes,
                         uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;"
        :
        : "r"(shared_address(shared_to)), "l"(__cvta_generic_to_global(global_from)), "r"(bytes),
          "r"(shared_address(barrier)), "h"(blocks)
        : "memory");
}

// Keeps an array's values in the registers of this point of the program: the compiler moves no access to
// the array across it.
template <uint32_t Size>
DEVICE void pin(float (&array)[Size]) {
#pragma unroll
    for (uint32_t i = 0; i < Size; ++i) asm volatile("" : "+f"(array[i]) : : "memory");
}
template <uint32_t Size>
DEVICE void pin(uint32_t (&array)[Size]) {
#pragma unroll
    for (uint32_t i = 0; i < Size; ++i) asm volatile("" : "+r"(array[i]) : : "memory");
}

// Orders accesses to registers before the products that follow. Called before the first product and after
// any access to registers of products. `arrays` are the registers that the following products read:
// operands, and accumulators that are added to, except those that products in flight write.
template <typename... Arrays>
DEVICE void wgmma_fence(Arrays&... arrays) {
    (pin(arrays), ...);
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

// Closes a group of the products issued since the last call.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }

// Waits until at most `Pending` groups are in flight. `arrays` are the accumulators of the groups that it
// waits for.
template <int Pending, typename... Arrays>
DEVICE void wgmma_wait(Arrays&... arrays) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(Pending) : "memory");
    (pin(arrays), ...);
}

#define OCTANT_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OCTANT_F8(i) OCTANT_F4(i), OCTANT_F4(i + 4)
#define OCTANT_F16(i) OCTANT_F8(i), OCTANT_F8(i + 8)
#define OCTANT_F24(i) OCTANT_F16(i), OCTANT_F8(i + 16)
#define OCTANT_F32(i) OCTANT_F16(i), OCTANT_F16(i + 16)
#define OCTANT_F64(i) OCTANT_F32(i), OCTANT_F32(i + 32)
#define OCTANT_F128(i) OCTANT_F64(i), OCTANT_F64(i + 64)
// The names of the first registers of an instruction, as many as the macro's number says.
#define OCTANT_D4 "%0, %1, %2, %3"
#define OCTANT_D8 OCTANT_D4 ", %4, %5, %6, %7"
#define OCTANT_D16 OCTANT_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OCTANT_D24 OCTANT_D16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define OCTANT_D32 \
    OCTANT_D16 \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OCTANT_D64 \
    OCTANT_D32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OCTANT_D128 \
    OCTANT_D64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// One instruction. `n`: its number of tokens. `registers`: those of `d`, the first operands. `number`:
// the name of the operand `accumulate`. `operands`: the names of `a` and `b`. `flags` follow the
// predicate.
#define OCTANT_WGMMA(n, depth, type, registers, number, operands, flags, ...)                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " number ", 0;\n"                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #n depth ".f32." type "." type " "              \
                 "{" OCTANT_D##registers "}, " operands ", p, " flags ";\n}\n"                       \
                 : OCTANT_F##registers(0)                                                            \
                 : __VA_ARGS__, "r"(static_cast<int>(accumulate)))
#define OCTANT_WGMMA_E4M3(n, registers, a, b, number)                                                \
    OCTANT_WGMMA(n, "k32", "e4m3", registers, "%" #number, "%" #a ", %" #b, "1, 1", "l"(a_tile),     \
                 "l"(b_tile))
#define OCTANT_WGMMA_BF16(n, registers, a, b, number)                                                \
    OCTANT_WGMMA(n, "k16", "bf16", registers, "%" #number, "%" #a ", %" #b, "1, 1, 0, 0",            \
                 "l"(a_tile), "l"(b_tile))
#define OCTANT_WGMMA_REGISTERS(n, type, registers, a0, a1, a2, a3, b, number)                        \
    OCTANT_WGMMA(n, "k16", type, registers, "%" #number,                                             \
                 "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b, "1, 1, 0", "r"(a[0]), "r"(a[1]),  \
                 "r"(a[2]), "r"(a[3]), "l"(b_tile))

template <uint32_t N>
constexpr bool known_product = N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 256;

// Products with `a` in registers, also of 48 rows.
#define OCTANT_REGISTER_PRODUCTS(type)                                                    \
    if constexpr (N == 8) OCTANT_WGMMA_REGISTERS(8, type, 4, 4, 5, 6, 7, 8, 9);           \
    if constexpr (N == 16) OCTANT_WGMMA_REGISTERS(16, type, 8, 8, 9, 10, 11, 12, 13);     \
    if constexpr (N == 32) OCTANT_WGMMA_REGISTERS(32, type, 16, 16, 17, 18, 19, 20, 21);  \
    if constexpr (N == 48) OCTANT_WGMMA_REGISTERS(48, type, 24, 24, 25, 26, 27, 28, 29);  \
    if constexpr (N == 64) OCTANT_WGMMA_REGISTERS(64, type, 32, 32, 33, 34, 35, 36, 37);  \
    if constexpr (N == 128) OCTANT_WGMMA_REGISTERS(128, type, 64, 64, 65, 66, 67, 68, 69); \
    if constexpr (N == 256) OCTANT_WGMMA_REGISTERS(256, type, 128, 128, 129, 130, 131, 132, 133)

// d = a × b, or d += a × b if `accumulate`: 64 rows of `a` by N rows of `b`, 32 bytes of each along K.
// Thread t of the warpgroup, with warp w = t / 32, g = t % 32 / 4 and c = t % 4, holds in d[4 j + 2 r +
// i] the element of row 16 w + 8 r + g of `a` and row 8 j + 2 c + i of `b`. `d` is not accessed until
// wgmma_wait.
template <uint32_t N>
DEVICE void wgmma_e4m3(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate) {
    static_assert(known_product<N> || N == 48);
    if constexpr (N == 8) OCTANT_WGMMA_E4M3(8, 4, 4, 5, 6);
    if constexpr (N == 16) OCTANT_WGMMA_E4M3(16, 8, 8, 9, 10);
    if constexpr (N == 32) OCTANT_WGMMA_E4M3(32, 16, 16, 17, 18);
    if constexpr (N == 64) OCTANT_WGMMA_E4M3(64, 32, 32, 33, 34);
    if constexpr (N == 128) OCTANT_WGMMA_E4M3(128, 64, 64, 65, 66);
    if constexpr (N == 256) OCTANT_WGMMA_E4M3(256, 128, 128, 129, 130);
}

// The same for BF16.
template <uint32_t N>
DEVICE void wgmma_bf16(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate) {
    static_assert(known_product<N> || N == 48);
    if constexpr (N == 8) OCTANT_WGMMA_BF16(8, 4, 4, 5, 6);
    if constexpr (N == 16) OCTANT_WGMMA_BF16(16, 8, 8, 9, 10);
    if constexpr (N == 32) OCTANT_WGMMA_BF16(32, 16, 16, 17, 18);
    if constexpr (N == 64) OCTANT_WGMMA_BF16(64, 32, 32, 33, 34);
    if constexpr (N == 128) OCTANT_WGMMA_BF16(128, 64, 64, 65, 66);
    if constexpr (N == 256) OCTANT_WGMMA_BF16(256, 128, 128, 129, 130);
}

// The same with `a` in registers: a[h + 2 q] holds the pair of elements 8 q + 2 c and 8 q + 2 c + 1 along
// K of row 16 w + 8 h + g.
template <uint32_t N>
DEVICE void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile, bool accumulate) {
    static_assert(known_product<N> || N == 48);
    OCTANT_REGISTER_PRODUCTS("bf16");
}

// The same for F16.
template <uint32_t N>
DEVICE void wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile, bool accumulate) {
    static_assert(known_product<N> || N == 48);
    OCTANT_REGISTER_PRODUCTS("f16");
}

// Sets the number of registers of each thread of the warpgroup, a multiple of 8: more than at the
// kernel's start, or fewer. Raising waits until other warpgroups have released enough.
template <uint32_t Registers>
DEVICE void registers_raise() {
    static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(Registers));
}
template <uint32_t Registers>
DEVICE void registers_lower() {
    static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(Registers));
}

// Waits for `threads` threads, whole warps, that call this with the same `id` of 1 to 15.
DEVICE void group_sync(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

#endif

// Describes an operand of a product in shared memory: rows of 128 bytes along K, in groups of eight rows
// that follow one another, with the 16-byte pieces of each group exchanged by `swizzled`. `shared` is the
// address of the first row, a multiple of 1,024, plus an offset along K of 0, 32, 64 or 96 bytes.
DEVICE uint64_t tile_descriptor(const void* shared) {
    const uint64_t start = (shared_address(shared) & 0x3FFFF) >> 4;
    // Bits 16-29: the leading dimension's offset, unused here. Bits 32-45: the 1,024 bytes from one group
    // of rows to the next, in units of 16. Bits 62-63: 1 for the 128-byte swizzle.
    return start | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

// Where the 128-byte swizzle puts the byte at `offset` of a tile: bits 4 to 6 change by bits 7 to 9.
DEVICE uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 3 & 0x70); }
