// The functions of wgmma.cuh in software, as asynchronous as the hardware may be.
//
// A bulk copy reads its source and writes its target some time after it was issued; until then its target is
// NaN. A product reads its operands in shared memory some time after wgmma_commit; its accumulators are NaN
// from its start until wgmma_wait. If threads start in ascending order, these times are the latest possible:
// a product runs when no thread can go on, and a copy lands when no product can run either. If they start in
// descending order, some are earlier, at random. Copies land in random order.
//
// These errors end the process with the states of all threads:
// - a wait for a phase of a barrier, or for products, that never comes;
// - a barrier that is used before barrier_init, __syncthreads or (by copies) barrier_init_fence, or that was
//   overwritten; more arrivals than it expects;
// - a copy outside of shared memory, misaligned, into the target of a copy in flight, or into memory that a
//   thread writes before the copy lands; a block that ends before its copies or products;
// - products that differ between the threads of a warpgroup; operands outside of shared memory or not laid
//   out in the 128-byte swizzle; a product without a wgmma_fence since the last wait; registers that a
//   product reads and that wgmma_fence did not name, or that changed after it; accumulators that are written
//   in flight, that wgmma_wait completes but does not name, or that a fence or a wait names while they are in
//   flight;
// - numbers of registers that differ within a warpgroup or exceed a multiprocessor's.
//
// These faults show as NaN or wrong results instead: a missing wait for a copy, a stage that is released
// before its products have run, and accumulators that are read in flight.
//
// In a cluster too: an access to a block before the cluster_sync after the initialisation of its barrier, or
// after it has ended; a block that ends without a cluster_sync after another block's access; a cluster_sync
// that some threads never reach. A copy to several blocks lands in each at a time of its own. A copy into a
// stage that another block has not released shows as NaN there. A store in another block is a copy of four
// bytes, which needs no cluster_sync after it: the other block may not end before it.
//
// Not modelled: async_fence (products see ordinary writes to shared memory at once), and the order of memory
// between arrivals and waits.
#pragma once

#include "cuda.h"

namespace host {

// An array of registers that a fence or a wait names.
struct Registers {
    void* at;
    uint32_t bytes;
};

enum class Operand { e4m3, bf16, bf16_in_registers, f16_in_registers };

void fence_products(const Registers* named, size_t count);
void wait_for_products(uint32_t pending, const Registers* named, size_t count);
// `a` is null unless it is in registers; `a_tile` is 0 if it is.
void issue_product(Operand operand, uint32_t n, float* d, const uint32_t* a, uint64_t a_tile,
                   uint64_t b_tile, bool accumulate);
void set_registers(uint32_t registers, bool raises);

template <typename T, size_t Size>
Registers registers_of(T (&array)[Size]) {
    static_assert(sizeof(T) == 4);
    return {array, sizeof array};
}

}  // namespace host

static inline unsigned char* tile_memory() { return host::place.shared; }

void barrier_init(uint64_t* barrier, uint32_t arrivals);
void barrier_init_fence();
static inline void async_fence() {}
void barrier_arrive(uint64_t* barrier);
void barrier_expect(uint64_t* barrier, uint32_t bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void bulk_copy(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* barrier);
void bulk_copy_once(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* barrier);
void bulk_read_to_l2(const void* global_from, uint32_t bytes);
uint32_t cluster_rank();
void cluster_sync();
void barrier_arrive_at(uint64_t* barrier, uint32_t rank);
void bulk_copy_to(uint16_t blocks, void* shared_to, const void* global_from, uint32_t bytes,
                  uint64_t* barrier);
static inline void cluster_begin() { cluster_sync(); }
void store_in_block(float* to, uint64_t* barrier, uint32_t rank, float x);
static inline void barrier_wait_for_blocks(uint64_t* barrier, uint32_t parity) {
    barrier_wait(barrier, parity);
}
void group_sync(uint32_t id, uint32_t threads);

// The bits of an address that descriptors hold; dynamic shared memory has less than 256 KB.
static inline uint32_t shared_address(const void* shared) {
    return reinterpret_cast<uintptr_t>(shared) & 0x3FFFF;
}

template <typename... Arrays>
static inline void wgmma_fence(Arrays&... arrays) {
    const host::Registers named[] = {host::registers_of(arrays)..., {nullptr, 0}};
    host::fence_products(named, sizeof...(arrays));
}
void wgmma_commit();
template <int Pending, typename... Arrays>
static inline void wgmma_wait(Arrays&... arrays) {
    const host::Registers named[] = {host::registers_of(arrays)..., {nullptr, 0}};
    host::wait_for_products(Pending, named, sizeof...(arrays));
}
template <uint32_t N>
static inline void wgmma_e4m3(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate) {
    host::issue_product(host::Operand::e4m3, N, d, nullptr, a_tile, b_tile, accumulate);
}
template <uint32_t N>
static inline void wgmma_bf16(float (&d)[N / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate) {
    host::issue_product(host::Operand::bf16, N, d, nullptr, a_tile, b_tile, accumulate);
}
template <uint32_t N>
static inline void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile, bool accumulate) {
    host::issue_product(host::Operand::bf16_in_registers, N, d, a, 0, b_tile, accumulate);
}
template <uint32_t N>
static inline void wgmma_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_tile, bool accumulate) {
    host::issue_product(host::Operand::f16_in_registers, N, d, a, 0, b_tile, accumulate);
}

template <uint32_t Count>
static inline void registers_raise() {
    static_assert(Count % 8 == 0 && Count >= 24 && Count <= 256);
    host::set_registers(Count, true);
}
template <uint32_t Count>
static inline void registers_lower() {
    static_assert(Count % 8 == 0 && Count >= 24 && Count <= 256);
    host::set_registers(Count, false);
}
