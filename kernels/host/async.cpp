// Barriers in shared memory, bulk copies, barriers of a group of threads, and numbers of registers.
#include "async.h"

#include <cstdio>
#include <cstdlib>

#include "fibers.h"

namespace host {

namespace {

// The upper half of the word of an initialised barrier; the lower half is its index.
constexpr uint64_t barrier_mark = 0xBA221E55ull << 32;
// The largest numbers of arrivals and of bytes of a phase.
constexpr int64_t most_pending = (1 << 20) - 1;

struct Barrier {
    uint64_t* word;
    uint32_t arrivals;
    // Arrivals and bytes that the current phase waits for.
    uint32_t pending;
    int64_t bytes;
    // The number of completed phases.
    uint64_t phase;
    // The thread that initialised it, when, and whether copies see that.
    size_t thread;
    uint64_t meeting;
    uint64_t cluster_meeting;
    bool fenced;
};

struct Copy {
    unsigned char* to;
    // Null if `value` is stored.
    const unsigned char* from;
    uint32_t bytes;
    size_t barrier;
    float value = 0.0f;
};

// A barrier of some of the block's warps.
struct Group {
    uint32_t threads = 0;
    uint32_t arrived = 0;
    uint64_t round = 0;
};

struct Async {
    std::vector<Barrier> barriers;
    std::vector<Copy> copies;
    std::array<Group, 16> groups;
    // Registers of each thread; 0 before any change.
    std::vector<uint32_t> registers;
    bool registers_change = false;
};

// The state of a block.
Async& async_of(const Block& one) {
    static thread_local std::array<Async, most_blocks> instances;
    return instances[one.rank];
}

Async& async() { return async_of(*block); }

void settle(Barrier& barrier) {
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
}

// The index of an initialised barrier.
size_t index_of(const uint64_t* word) {
    if (reinterpret_cast<uintptr_t>(word) % 8 != 0) die("a barrier that is not aligned to 8 bytes");
    const size_t index = *word & 0xFFFFFFFF;
    const std::vector<Barrier>& barriers = async().barriers;
    if ((*word ^ barrier_mark) >> 32 != 0 || index >= barriers.size() || barriers[index].word != word) {
        die("a barrier that was not initialised in this block, or was overwritten");
    }
    const Barrier& barrier = barriers[index];
    if (barrier.thread != running && barrier.meeting == block->meetings) {
        die("a barrier is used before the __syncthreads after its initialisation");
    }
    return index;
}

// The place in another block's dynamic shared memory of one in this block's.
unsigned char* place_in(const Block& other, const void* shared, size_t bytes) {
    const auto* at = static_cast<const unsigned char*>(shared);
    if (at < block->shared || at + bytes > block->shared + block->shared_bytes) {
        die("an access to another block outside of dynamic shared memory");
    }
    return other.shared + (at - block->shared);
}

// The index of a barrier in a block of the cluster, at the same place as one of this block.
size_t known_in(const Block& other, const uint64_t* word) {
    if (&other == block) return index_of(word);
    if (has_ended(other)) die("an access to a block of the cluster that has ended");
    const auto* at = reinterpret_cast<const uint64_t*>(place_in(other, word, sizeof *word));
    const size_t index = *at & 0xFFFFFFFF;
    const std::vector<Barrier>& barriers = async_of(other).barriers;
    if ((*at ^ barrier_mark) >> 32 != 0 || index >= barriers.size() || barriers[index].word != at) {
        die("a barrier that was not initialised in another block, or was overwritten");
    }
    if (barriers[index].cluster_meeting == cluster->meetings) {
        die("a barrier of another block is used before the cluster_sync after its initialisation");
    }
    return index;
}

// The same for an access after which the other block may end only after a cluster_sync.
size_t index_in(Block& other, const uint64_t* word) {
    const size_t index = known_in(other, word);
    if (&other != block) other.accessed = cluster->meetings + 1;
    return index;
}

void arrive(Barrier& barrier) {
    if (barrier.pending == 0) die("more arrivals at a barrier than it expects");
    --barrier.pending;
    settle(barrier);
}

// Copies what the copy at an index was to copy.
void land(size_t index) {
    std::vector<Copy>& copies = async().copies;
    const Copy copy = copies[index];
    copies[index] = copies.back();
    copies.pop_back();
    for (uint32_t i = 0; i < copy.bytes; i += 4) {
        uint32_t word;
        std::memcpy(&word, copy.to + i, sizeof word);
        if (word != ~0u) die("a thread wrote to the target of a copy in flight");
    }
    const void* value = &copy.value;
    std::memcpy(copy.to, copy.from == nullptr ? value : copy.from, copy.bytes);
    Barrier& barrier = async().barriers[copy.barrier];
    barrier.bytes -= copy.bytes;
    settle(barrier);
}

bool overlaps(const unsigned char* a, size_t a_bytes, const unsigned char* b, size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

// Starts a copy to a block of the cluster.
void start_copy(Block& other, const Copy& copy) {
    Async& theirs = async_of(other);
    if (!theirs.barriers[copy.barrier].fenced) {
        die("a copy with a barrier that barrier_init_fence did not follow");
    }
    for (const Copy& before : theirs.copies) {
        if (overlaps(copy.to, copy.bytes, before.to, before.bytes)) {
            die("a copy into the target of a copy in flight");
        }
    }
    std::memset(copy.to, 0xFF, copy.bytes);
    theirs.copies.push_back(copy);
}

void check_waited() {
    if (block->overlaps && !block->fibers[running].waited) die("a copy before wait_for_earlier");
}

void check_copy(const unsigned char* to, const unsigned char* from, uint32_t bytes) {
    const uintptr_t bits = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
    if (bits % 16 != 0 || bytes == 0) die("a copy that is not of whole, aligned pieces of 16 bytes");
    if (to < block->shared || to + bytes > block->shared + block->shared_bytes) {
        die("a copy to outside of the block's dynamic shared memory");
    }
}

}  // namespace

void begin_async() {
    Async& all = async();
    all.barriers.clear();
    all.copies.clear();
    all.groups = {};
    if (all.registers_change || all.registers.size() != block->fibers.size()) {
        all.registers.assign(block->fibers.size(), 0);
    }
    all.registers_change = false;
    begin_products();
}

bool advance_async(bool stuck, bool late) {
    const bool products = products_are_ready();
    const size_t copies = async().copies.size();
    if (!products && copies == 0) return false;
    if (!stuck && (late || random_below(16) > 0)) return false;
    // A product that runs before a copy lands reads NaN if it should have waited for the copy, or if the copy
    // overwrites its operands.
    if (products && (late || copies == 0 || random_below(8) > 0)) {
        run_products();
    } else {
        land(random_below(static_cast<uint32_t>(copies)));
    }
    return true;
}

namespace {

void check_registers() {
    const Async& all = async();
    if (!all.registers_change) return;
    const size_t threads = block->fibers.size();
    if (threads % warpgroup_threads != 0) die("numbers of registers in a block without whole warpgroups");
    uint32_t sum = 0;
    for (size_t i = 0; i < threads; ++i) {
        const uint32_t own = all.registers[i], first = all.registers[i - i % warpgroup_threads];
        if (own != first) die("threads of a warpgroup with different numbers of registers");
        sum += own != 0 ? own : 65536 / static_cast<uint32_t>(threads) / 8 * 8;
    }
    if (sum > 65536) die("more registers than a multiprocessor has");
}

}  // namespace

void end_async() {
    if (block->accessed > cluster->meetings) {
        die("a block ended without a cluster_sync after another block's access");
    }
    if (!async().copies.empty()) die("a block ended while copies were in flight");
    for (const Barrier& barrier : async().barriers) {
        if (barrier.bytes != 0) die("a block ended with a barrier that expects other bytes than were copied");
    }
    check_registers();
    end_products();
}

bool async_ready(const Fiber& fiber, size_t index) {
    switch (fiber.state) {
        case State::waits_for_group: return async().groups[fiber.barrier].round > fiber.round;
        case State::waits_for_barrier: return (async().barriers[fiber.barrier].phase & 1) != fiber.round;
        default: return products_have_run(index, fiber.round);
    }
}

void describe_async(const Fiber& fiber, size_t index, char* text, size_t size) {
    if (async_ready(fiber, index)) {
        std::snprintf(text, size, "can run");
    } else if (fiber.state == State::waits_for_group) {
        const Group& group = async().groups[fiber.barrier];
        std::snprintf(text, size, "group_sync of id %zu: %u of %u threads have arrived", fiber.barrier,
                      group.arrived, group.threads);
    } else if (fiber.state == State::waits_for_barrier) {
        const Barrier& barrier = async().barriers[fiber.barrier];
        std::snprintf(text, size,
                      "barrier_wait for parity %u of barrier %zu, whose phase %llu lacks %u of %u arrivals "
                      "and %lld bytes",
                      static_cast<unsigned>(fiber.round), fiber.barrier,
                      static_cast<unsigned long long>(barrier.phase), barrier.pending, barrier.arrivals,
                      static_cast<long long>(barrier.bytes));
    } else {
        std::snprintf(text, size, "%s for %llu groups", fiber.where,
                      static_cast<unsigned long long>(fiber.round));
    }
}

void set_registers(uint32_t registers, bool raises) {
    Async& all = async();
    const uint32_t now = all.registers[running] != 0
                             ? all.registers[running]
                             : 65536 / static_cast<uint32_t>(block->fibers.size()) / 8 * 8;
    if (raises && registers < now) die("registers_raise to fewer registers than the thread has");
    if (!raises && registers > now) die("registers_lower to more registers than the thread has");
    all.registers[running] = registers;
    all.registers_change = true;
}

}  // namespace host

void barrier_init(uint64_t* word, uint32_t arrivals) {
    using namespace host;
    if (reinterpret_cast<uintptr_t>(word) % 8 != 0) die("a barrier that is not aligned to 8 bytes");
    if (arrivals == 0 || arrivals > most_pending) die("a barrier for no arrivals or too many");
    std::vector<Barrier>& barriers = async().barriers;
    for (const Barrier& barrier : barriers) {
        if (barrier.word == word) die("a barrier is initialised twice");
    }
    *word = barrier_mark | barriers.size();
    barriers.push_back(
        {word, arrivals, arrivals, 0, 0, running, block->meetings, cluster->meetings, false});
}

void barrier_init_fence() {
    using namespace host;
    for (Barrier& barrier : async().barriers) {
        if (barrier.thread == running) barrier.fenced = true;
    }
}

void barrier_arrive(uint64_t* word) {
    using namespace host;
    arrive(async().barriers[index_of(word)]);
}

void barrier_expect(uint64_t* word, uint32_t bytes) {
    using namespace host;
    Barrier& barrier = async().barriers[index_of(word)];
    barrier.bytes += bytes;
    if (barrier.bytes > most_pending) die("a barrier that expects more bytes than it can count");
    arrive(barrier);
}

void barrier_wait(uint64_t* word, uint32_t parity) {
    using namespace host;
    if (parity > 1) die("a parity that is neither 0 nor 1");
    const size_t index = index_of(word);
    if ((async().barriers[index].phase & 1) != parity) return;
    Fiber& fiber = block->fibers[running];
    fiber.barrier = index;
    fiber.round = parity;
    wait_as(State::waits_for_barrier, "barrier_wait");
}

void barrier_arrive_at(uint64_t* word, uint32_t rank) {
    using namespace host;
    if (rank >= cluster->blocks.size()) die("an arrival at a block that the cluster does not have");
    Block& other = cluster->blocks[rank];
    arrive(async_of(other).barriers[index_in(other, word)]);
}

void bulk_copy(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* word) {
    host::check_waited();
    bulk_copy_once(shared_to, global_from, bytes, word);
}

void bulk_copy_once(void* shared_to, const void* global_from, uint32_t bytes, uint64_t* word) {
    using namespace host;
    auto* to = static_cast<unsigned char*>(shared_to);
    const auto* from = static_cast<const unsigned char*>(global_from);
    const size_t index = index_of(word);
    check_copy(to, from, bytes);
    start_copy(*block, {to, from, bytes, index});
}

// Checks that the memory exists, where a sanitizer knows it.
void bulk_read_to_l2(const void* global_from, uint32_t bytes) {
    const auto* from = static_cast<const unsigned char*>(global_from);
    if ((reinterpret_cast<uintptr_t>(from) | bytes) % 16 != 0 || bytes == 0) {
        host::die("a read to L2 that is not of whole, aligned pieces of 16 bytes");
    }
    std::vector<unsigned char> read(bytes);
    std::memcpy(read.data(), from, bytes);
}

void bulk_copy_to(uint16_t blocks, void* shared_to, const void* global_from, uint32_t bytes,
                  uint64_t* word) {
    using namespace host;
    const auto* from = static_cast<const unsigned char*>(global_from);
    check_waited();
    check_copy(static_cast<unsigned char*>(shared_to), from, bytes);
    if (blocks == 0 || blocks >> cluster->blocks.size() != 0) {
        die("a copy to no block, or to one that the cluster does not have");
    }
    for (Block& other : cluster->blocks) {
        if ((blocks >> other.rank & 1) == 0) continue;
        const size_t index = index_in(other, word);
        start_copy(other, {place_in(other, shared_to, bytes), from, bytes, index});
    }
}

uint32_t cluster_rank() { return static_cast<uint32_t>(host::block->rank); }

void cluster_sync() {
    using namespace host;
    ++cluster->arrived;
    wait_as(State::waits_for_cluster, "cluster_sync");
}

void store_in_block(float* to, uint64_t* word, uint32_t rank, float x) {
    using namespace host;
    if (rank >= cluster->blocks.size()) die("a store in a block that the cluster does not have");
    Block& other = cluster->blocks[rank];
    unsigned char* at = place_in(other, to, sizeof x);
    start_copy(other, {at, nullptr, sizeof x, known_in(other, word), x});
}

void group_sync(uint32_t id, uint32_t threads) {
    using namespace host;
    if (id < 1 || id > 15) die("group_sync with an id that is not 1 to 15");
    if (threads == 0 || threads % 32 != 0 || threads > block->fibers.size()) {
        die("group_sync of a number of threads that is not of whole warps of the block");
    }
    Group& group = async().groups[id];
    if (group.arrived > 0 && group.threads != threads) die("group_sync with different numbers of threads");
    group.threads = threads;
    if (++group.arrived == threads) {
        group.arrived = 0;
        ++group.round;
        return;
    }
    Fiber& fiber = block->fibers[running];
    fiber.barrier = id;
    fiber.round = group.round;
    wait_as(State::waits_for_group, "group_sync");
}
