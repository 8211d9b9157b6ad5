// Synchronisation of ranks that access one another's memory.
//
// Every rank has a mailbox in its own memory, to which the others write. Operations are counted on the
// device, so that a replayed CUDA graph waits for the right ones. To begin an operation, a rank signals every
// rank and waits for the signals of all. After that it may read what any rank wrote before its signal. If the
// operation has a barrier at its end, a rank that has done its part signals again and waits for all. After
// that its inputs may be overwritten, and other ranks' writes to this rank's memory are visible.
//
// A product may write a rank's part of a sum to the memory of the ranks that sum it (linear.cu). These writes
// precede the signals of the sum. An earlier sum of the same memory no longer reads it: a sum of other memory
// lies between, which every rank began after it had ended the earlier one.
//
// If a rank does not signal within the timeout, or has ended, the operation fails on the others: they write
// its number to host memory and do not wait again. To begin, a block waits only for the first block of each
// rank. To end, the last block of a rank waits only for the last block of each rank. Therefore the blocks of
// an operation need not all run at the same time.
//
// Packets: a sum of few BF16 elements needs no signals. A rank writes its part to memory of every other rank,
// 16 bytes at a time, and a rank waits for the data themselves: a word that has not been written is EMPTY,
// two negative zeros, in whose place a writer stores zeros, which changes no sum. Each rank has three sets of
// packets, which consecutive such operations use in turn, and empties in each operation the set of the one
// before. No rank writes to that set before the operation after the next: a rank that begins it has all
// packets of the next, so this rank has begun the next, after it had emptied the set. The fence at the end of
// an operation orders the two for the other ranks.
#pragma once

#include "device.cuh"

constexpr uint32_t MAX_RANKS = 8;

// In a rank's memory. Every rank writes its own elements of `begun` and `ended`.
struct Mailbox {
    uint32_t begun[MAX_RANKS];
    uint32_t ended[MAX_RANKS];
    // The number of operations that are over.
    uint32_t operations;
    // The number of blocks of the current operation that are done.
    uint32_t blocks;
    // 1 + the rank that did not signal in time (+ 256 if that rank has ended); 0 for none.
    uint32_t failed;
    // The set of packets of the next operation with packets, and the packets of each rank in the last one.
    uint32_t set;
    uint32_t exchanged;
    uint32_t unused[3];
};
static_assert(sizeof(Mailbox) == 96);

struct Peers {
    Mailbox* mailboxes[MAX_RANKS];
    // In host memory. Word 0: the first rank that ended. Word 1 + r: the rank that rank r waited for without
    // success. Encoded like Mailbox::failed.
    uint32_t* words;
    // The longest wait for another rank, in nanoseconds.
    uint64_t timeout;
    uint32_t rank;
    uint32_t count;
};
static_assert(sizeof(Peers) == 88);

// Waits until `here` is true. False if rank `whose` does not come in time, or if a rank has ended.
template <typename Here>
DEVICE bool wait_for(const Peers& peers, uint32_t whose, Here here) {
    uint64_t since = 0;
    for (uint32_t spins = 1;; ++spins) {
        if (here()) return true;
        pause_briefly();
        if (spins % 256 != 0) continue;
        const uint32_t ended = load_acquire(peers.words);
        // The rank may have reached the operation before it ended.
        if (here()) return true;
        const uint64_t now = nanoseconds();
        if (since == 0) since = now;
        if (ended == 0 && now - since < peers.timeout) continue;
        const uint32_t missed = ended == 0 ? 1 + whose : ended;
        store_release(&peers.mailboxes[peers.rank]->failed, missed);
        store_release(peers.words + 1 + peers.rank, missed);
        return false;
    }
}

// Waits until a counter of this rank's mailbox has reached `number`; counters wrap around. False if rank
// `whose` does not signal in time, or if a rank has ended.
DEVICE bool reached(const Peers& peers, const uint32_t* counter, uint32_t number, uint32_t whose) {
    const auto here = [&] { return static_cast<int32_t>(load_acquire(counter) - number) >= 0; };
    return wait_for(peers, whose, here);
}

// The number of the current operation. Every block reads it before it begins.
DEVICE uint32_t operation_of(const Peers& peers) { return peers.mailboxes[peers.rank]->operations; }

// Begins an operation. False for the whole block if a rank does not signal; then no other rank's memory may
// be read.
DEVICE bool all_begin(const Peers& peers, uint32_t operation) {
    const Mailbox* own = peers.mailboxes[peers.rank];
    const bool failed = load_acquire(&own->failed) != 0;
    const bool one_each = threadIdx.x < peers.count;
    if (blockIdx.x == 0 && one_each && !failed) {
        // Earlier kernels of this rank have ended before this thread runs, so a release, which is cumulative,
        // orders their writes before the signal without a fence.
        store_release(&peers.mailboxes[threadIdx.x]->begun[peers.rank], operation + 1);
    }
    // On the host a waiting thread blocks the other threads of its block, so the stores must come first.
    __syncthreads();
    bool missed = failed;
    if (one_each && !failed) missed = !reached(peers, &own->begun[threadIdx.x], operation + 1, threadIdx.x);
    return __syncthreads_or(missed) == 0;
}

// Ends an operation. With `barrier`, waits until every rank has signalled the end. A rank on which the
// operation has failed sends no signal and does not wait. Returns true on one thread, after all others.
DEVICE bool all_end(const Peers& peers, uint32_t operation, bool barrier) {
    Mailbox* own = peers.mailboxes[peers.rank];
    __syncthreads();
    // Only blocks of this GPU meet here, so the GPU's scope is enough. The chain from any thread's writes, by
    // its block's barrier, the addition, and the last block's barrier to the release below is in causality
    // order, whatever the scopes of its links (PTX ISA, "Memory Consistency Model"), so that the release
    // publishes the writes of all blocks without a fence.
    const bool last = threadIdx.x == 0 && add_acquire_release(&own->blocks, 1) == gridDim.x - 1;
    if (__syncthreads_or(last) == 0) return false;
    const bool waits = barrier && threadIdx.x < peers.count && load_acquire(&own->failed) == 0;
    if (waits) {
        store_release(&peers.mailboxes[threadIdx.x]->ended[peers.rank], operation + 1);
    }
    __syncthreads();
    if (waits) reached(peers, &own->ended[threadIdx.x], operation + 1, threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) {
        own->blocks = 0;
        own->operations = operation + 1;
    }
    return threadIdx.x == 0;
}

// The sum over ranks, in rank order, of four F32 elements of each rank's part: those of group `at`.
DEVICE float4 sum_of_fours(const void* const (&parts)[MAX_RANKS], uint32_t count, size_t at) {
    float4 read[MAX_RANKS];
#pragma unroll
    for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank < count) read[rank] = load_l2(static_cast<const float4*>(parts[rank]) + at);
    }
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank < count) sum = add(sum, read[rank]);
    }
    return sum;
}

// The same for eight elements, F32 or BF16. The sum is F32.
DEVICE Eight sum_of_parts(const void* const (&parts)[MAX_RANKS], bool bf16, uint32_t count, size_t at) {
    if (!bf16) return {sum_of_fours(parts, count, 2 * at), sum_of_fours(parts, count, 2 * at + 1)};
    uint4 read[MAX_RANKS];
#pragma unroll
    for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank < count) read[rank] = load_l2(static_cast<const uint4*>(parts[rank]) + at);
    }
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    Eight sum = {zero, zero};
#pragma unroll
    for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank < count) sum = add(sum, floats_of_bf16x8(read[rank]));
    }
    return sum;
}
