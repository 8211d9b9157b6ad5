// Ranks that reach one another's memory: who has begun an operation, who has ended it, and how long anyone waits.
//
// Every rank has a mailbox in its own memory, where the others write. Operations are counted on the device, so that a
// CUDA graph that repeats them waits for the right ones. An operation begins when every rank has: what a rank wrote
// before may be read from then on. One that ends with a meeting is over when it is over everywhere: what it read may be
// overwritten from then on, and what others wrote here is here.
//
// A rank that does not come within the patience of the others, or has ended, fails the operation on them: they say whom
// they missed, in host memory, and wait for nobody any more. A block waits for the first blocks of other ranks only, and
// the last block of a rank for the last ones of others, so that blocks need not all run at once.
#pragma once

#include "device.cuh"

constexpr uint32_t MOST_RANKS = 8;

// In a rank's memory. The first two are written by the others, each in its own place.
struct Mailbox {
    uint32_t begun[MOST_RANKS];
    uint32_t ended[MOST_RANKS];
    // Operations that are over.
    uint32_t operations;
    // Blocks of the operation under way that are done.
    uint32_t blocks;
    // Not 0 if someone was missed.
    uint32_t failed;
    uint32_t unused;
};
static_assert(sizeof(Mailbox) == 80);

struct Peers {
    Mailbox* mailboxes[MOST_RANKS];
    // Host memory: who has ended, if anyone has; and for each rank, whom it missed.
    uint32_t* words;
    // Nanoseconds.
    uint64_t patience;
    uint32_t rank;
    uint32_t count;
};
static_assert(sizeof(Peers) == 88);

// Waits until a counter of the own mailbox has reached a number. Counters wrap.
DEVICE bool reached(const Peers& peers, const uint32_t* counter, uint32_t number, uint32_t whose) {
    uint64_t since = 0;
    for (uint32_t spins = 1;; ++spins) {
        if (static_cast<int32_t>(load_acquire(counter) - number) >= 0) return true;
        pause_briefly();
        if (spins % 256 != 0) continue;
        const uint32_t ended = load_acquire(peers.words);
        // Whoever ended may have come before.
        if (static_cast<int32_t>(load_acquire(counter) - number) >= 0) return true;
        const uint64_t now = nanoseconds();
        if (since == 0) since = now;
        if (ended == 0 && now - since < peers.patience) continue;
        const uint32_t missed = ended == 0 ? 1 + whose : ended;
        store_release(&peers.mailboxes[peers.rank]->failed, missed);
        store_release(peers.words + 1 + peers.rank, missed);
        return false;
    }
}

// Which operation this is. Every block asks before it begins.
DEVICE uint32_t operation_of(const Peers& peers) { return peers.mailboxes[peers.rank]->operations; }

// Begins an operation. False, for the whole block, if someone does not come: then nothing of theirs may be read.
DEVICE bool all_begin(const Peers& peers, uint32_t operation) {
    const Mailbox* own = peers.mailboxes[peers.rank];
    const bool failed = load_acquire(&own->failed) != 0;
    const bool one_each = threadIdx.x < peers.count;
    if (blockIdx.x == 0 && one_each && !failed) {
        fence_system();
        store_release(&peers.mailboxes[threadIdx.x]->begun[peers.rank], operation + 1);
    }
    // On the host a thread that waits holds up the others of its block.
    __syncthreads();
    bool missed = failed;
    if (one_each && !failed) missed = !reached(peers, &own->begun[threadIdx.x], operation + 1, threadIdx.x);
    return __syncthreads_or(missed) == 0;
}

// Ends an operation; with `meet`, not before it has ended everywhere. What a failed rank has done is no use to anyone,
// and its operations end nowhere.
DEVICE void all_end(const Peers& peers, uint32_t operation, bool meet) {
    SHARED uint32_t last;
    Mailbox* own = peers.mailboxes[peers.rank];
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_system();
        last = atomicAdd(&own->blocks, 1u) == gridDim.x - 1;
        // What the other blocks wrote, before this block says that all is written.
        fence_system();
    }
    __syncthreads();
    if (!last) return;
    const bool waits = meet && threadIdx.x < peers.count && load_acquire(&own->failed) == 0;
    if (waits) {
        fence_system();
        store_release(&peers.mailboxes[threadIdx.x]->ended[peers.rank], operation + 1);
    }
    __syncthreads();
    if (waits) reached(peers, &own->ended[threadIdx.x], operation + 1, threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) {
        own->blocks = 0;
        own->operations = operation + 1;
    }
}

// Σ over ranks, in their order, of four elements of each one's part.
DEVICE float4 sum_of_parts(const float4* const (&parts)[MOST_RANKS], uint32_t count, size_t at) {
    float4 read[MOST_RANKS];
#pragma unroll
    for (uint32_t rank = 0; rank < MOST_RANKS; ++rank) {
        if (rank < count) read[rank] = load_l2(parts[rank] + at);
    }
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (uint32_t rank = 0; rank < MOST_RANKS; ++rank) {
        if (rank < count) sum = add(sum, read[rank]);
    }
    return sum;
}
