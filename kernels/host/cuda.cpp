// The fibers and warps behind cuda.h, and the entry point through which tests launch kernels.
//
// The files here are not instrumented when the kernels are built with the address sanitizer: they access
// little memory of a kernel. They tell that sanitizer of every change of stack.
#include "fibers.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

#include <sys/mman.h>

#if !defined(__x86_64__)
#error "the host execution of kernels switches fibers in x86-64 assembly"
#endif
#if defined(OCTANT_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// ThreadSanitizer expects functions to return on the stack on which they were entered; these do not.
#define SWITCHES __attribute__((no_sanitize_thread))
#else
#define SWITCHES
#endif

// Saves the callee-saved registers on the stack and the stack pointer in *from, and continues at the
// saved stack `to`.
extern "C" void octant_switch(void** from, void* to);
asm(R"(
.text
.globl octant_switch
.hidden octant_switch
octant_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace host {

constinit thread_local Place place{};
constinit thread_local Cluster* cluster = nullptr;
constinit thread_local Block* block = nullptr;
constinit thread_local size_t running = 0;

Stack::Stack() {
    void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    bottom_ = static_cast<unsigned char*>(memory);
}

Stack::~Stack() {
    if (bottom_ != nullptr) munmap(bottom_, stack_bytes);
}

namespace {

constinit thread_local void* scheduler_stack_pointer = nullptr;
// The scheduler's own stack, for the sanitizers.
[[maybe_unused]] constinit thread_local void* scheduler_fake_stack = nullptr;
[[maybe_unused]] constinit thread_local const void* scheduler_bottom = nullptr;
[[maybe_unused]] constinit thread_local size_t scheduler_size = 0;
[[maybe_unused]] constinit thread_local void* scheduler_known_as = nullptr;

void describe(const Fiber& fiber, size_t index, char* text, size_t size) {
    switch (fiber.state) {
        case State::ready: std::snprintf(text, size, index == running ? "runs" : "can run"); return;
        case State::ended: std::snprintf(text, size, "has ended"); return;
        case State::waits_for_block:
        case State::waits_for_cluster:
        case State::waits_for_warp: std::snprintf(text, size, "%s", fiber.where); return;
        default: describe_async(fiber, index, text, size);
    }
}

void describe_threads() {
    constexpr size_t size = 200;
    char texts[2][size] = {};
    const size_t count = block->fibers.size();
    for (size_t first = 0, i = 0; i < count; ++i) {
        if (i == first) describe(block->fibers[i], i, texts[0], size);
        if (i + 1 < count) describe(block->fibers[i + 1], i + 1, texts[1], size);
        if (i + 1 < count && std::strcmp(texts[0], texts[1]) == 0) continue;
        std::fprintf(stderr, "  threads %zu to %zu: %s\n", first, i, texts[0]);
        first = i + 1;
    }
}

}  // namespace

void die(const char* what) {
    const dim3 at = block->at;
    std::fprintf(stderr, "kernel %s, block (%u, %u, %u): %s\n", block->name, at.x, at.y, at.z, what);
    describe_threads();
    const Block* dying = block;
    for (Block& other : cluster->blocks) {
        if (&other == dying) continue;
        block = &other;
        running = block->fibers.size();
        std::fprintf(stderr, "block (%u, %u, %u) of the cluster\n", other.at.x, other.at.y, other.at.z);
        describe_threads();
    }
    std::abort();
}

bool has_ended(const Block& block) { return block.ended == block.fibers.size(); }

uint32_t random_below(uint32_t bound) {
    uint64_t& x = block->random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return static_cast<uint32_t>((x >> 32) * bound >> 32);
}

namespace {

// Switches from a fiber to the scheduler.
SWITCHES void leave(Fiber& fiber, [[maybe_unused]] bool for_good) {
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_bottom, scheduler_size);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_known_as, 0);
#endif
    octant_switch(&fiber.stack_pointer, scheduler_stack_pointer);
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

// Switches from the scheduler to a fiber.
SWITCHES void enter(size_t index) {
    Fiber& fiber = block->fibers[index];
    running = index;
    place.thread = fiber.thread;
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.bottom(), stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
    scheduler_known_as = __tsan_get_current_fiber();
    if (fiber.known_as == nullptr) fiber.known_as = __tsan_create_fiber(0);
    __tsan_switch_to_fiber(fiber.known_as, 0);
#endif
    octant_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

SWITCHES void first_entry() {
    Fiber& fiber = block->fibers[running];
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    block->kernel(block->params);
    if (block->overlaps && !fiber.waited) die("a thread ended without wait_for_earlier");
    fiber.state = State::ended;
    ++block->ended;
    leave(fiber, true);
    std::abort();
}

void prepare(Fiber& fiber, dim3 thread) {
    fiber.thread = thread;
    fiber.state = State::ready;
    fiber.where = nullptr;
    fiber.waited = false;
    auto* top = reinterpret_cast<void**>(fiber.stack.bottom() + stack_bytes);
    // The address to start at, on a stack aligned as after a call; below it six registers.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&first_entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
}

bool ready(const Fiber& fiber, size_t index) {
    switch (fiber.state) {
        case State::ready: return true;
        case State::ended:
        case State::waits_for_block:
        case State::waits_for_cluster: return false;
        case State::waits_for_warp: return block->warps[index / 32].round > fiber.round;
        default: return async_ready(fiber, index);
    }
}

// Makes a block of the cluster the running one. False if it has ended.
bool enter_block(size_t rank) {
    block = &cluster->blocks[rank];
    place.block = block->at;
    place.shared = block->shared;
    return !has_ended(*block);
}

// Runs each thread of the block until it waits. Returns whether any could go on.
bool sweep(bool descending) {
    const size_t count = block->fibers.size();
    bool progress = false;
    for (size_t i = 0; i < count; ++i) {
        const size_t index = descending ? count - 1 - i : i;
        if (ready(block->fibers[index], index)) {
            block->fibers[index].state = State::ready;
            enter(index);
            progress = true;
        }
    }
    if (block->at_barrier > 0 && block->at_barrier + block->ended == count) {
        if (block->ended > 0) die("a barrier that some threads never reach");
        block->at_barrier = 0;
        ++block->meetings;
        for (Fiber& fiber : block->fibers) fiber.state = State::ready;
        progress = true;
    }
    return progress;
}

// Runs a block's threads; in descending order as far as they can, with operations that complete early.
bool run_threads(bool descending) {
    bool progress = false, more = true;
    while (more && !has_ended(*block)) {
        more = sweep(descending);
        if (descending) {
            more |= advance_async(!more, false);
        } else {
            progress |= more;
            break;
        }
        progress |= more;
    }
    if (has_ended(*block)) end_async();
    return progress;
}

// Lets the threads go on if all of the cluster have met.
bool meet() {
    size_t threads = 0, ended = 0;
    for (const Block& one : cluster->blocks) threads += one.fibers.size(), ended += one.ended;
    if (cluster->arrived == 0 || cluster->arrived + ended < threads) return false;
    if (ended > 0) die("a cluster_sync that some threads never reach");
    cluster->arrived = 0;
    ++cluster->meetings;
    for (Block& one : cluster->blocks) {
        ++one.meetings;
        for (Fiber& fiber : one.fibers) fiber.state = State::ready;
    }
    return true;
}

// Completes an operation when no thread can go on: products of any block before copies.
bool complete_late() {
    const size_t count = cluster->blocks.size();
    for (const bool products : {true, false}) {
        const size_t first = random_below(static_cast<uint32_t>(count));
        for (size_t i = 0; i < count; ++i) {
            if (!enter_block((first + i) % count) || products_are_ready() != products) continue;
            if (advance_async(true, true)) return true;
        }
    }
    return false;
}

void run_cluster(bool descending) {
    const size_t count = cluster->blocks.size();
    for (size_t ended = 0; ended < count;) {
        bool progress = false;
        ended = 0;
        for (size_t i = 0; i < count; ++i) {
            if (enter_block(descending ? count - 1 - i : i)) progress |= run_threads(descending);
            ended += has_ended(*block);
        }
        progress |= meet();
        if (!progress && ended < count && !complete_late()) {
            while (has_ended(*block)) enter_block((block->rank + 1) % count);
            die("a deadlock");
        }
    }
}

}  // namespace

void wait_as(State state, const char* where) {
    Fiber& fiber = block->fibers[running];
    fiber.state = state;
    fiber.where = where;
    leave(fiber, false);
}

void wait_for_earlier() { block->fibers[running].waited = true; }

void sync_block(const char* where) {
    ++block->at_barrier;
    wait_as(State::waits_for_block, where);
}

bool any_of_block(bool says) {
    block->any |= says;
    sync_block("__syncthreads_or");
    const bool any = block->any;
    sync_block("__syncthreads_or");
    block->any = false;
    sync_block("__syncthreads_or");
    return any;
}

unsigned char* operand_of_lane(const char* where) {
    Warp& warp = block->warps[running / 32];
    if (warp.arrived > 0 && warp.where != where && std::strcmp(warp.where, where) != 0) {
        die("lanes of a warp at different operations");
    }
    warp.where = where;
    return warp.in + running % 32 * stride;
}

const unsigned char* result_of_lane(const char* where, Collective compute) {
    const size_t index = running;
    Warp& warp = block->warps[index / 32];
    if (++warp.arrived == 32) {
        compute(warp.in, warp.out);
        warp.arrived = 0;
        ++warp.round;
    } else {
        block->fibers[index].round = warp.round;
        wait_as(State::waits_for_warp, where);
    }
    return warp.out + index % 32 * stride;
}

namespace {

// Dynamic shared memory of blocks, one allocation for each size and number in a cluster. It has the exact
// size, so that the address sanitizer sees an access past its end.
class SharedMemory {
   public:
    // NaN in every type.
    unsigned char* of_block(size_t rank, size_t bytes) {
        std::unique_ptr<unsigned char, decltype(&std::free)>& memory =
            all_.try_emplace({rank, bytes}, nullptr, &std::free).first->second;
        if (memory == nullptr) {
            void* allocated = nullptr;
            if (posix_memalign(&allocated, 1024, std::max<size_t>(bytes, 1)) != 0) std::abort();
            memory.reset(static_cast<unsigned char*>(allocated));
        }
        std::memset(memory.get(), 0xFF, bytes);
        return memory.get();
    }

   private:
    std::map<std::pair<size_t, size_t>, std::unique_ptr<unsigned char, decltype(&std::free)>> all_;
};

SharedMemory& shared_memories() {
    static thread_local SharedMemory instance;
    return instance;
}

// Prepares a block for the threads of a launch.
void prepare(Block& one, size_t rank, const char* name, uint32_t threads, size_t shared_bytes) {
    one.rank = rank;
    one.name = name;
    while (one.all_fibers.size() < threads) one.all_fibers.emplace_back();
    one.fibers = std::span(one.all_fibers).first(threads);
    one.warps.assign(threads / 32, Warp{});
    one.shared_bytes = shared_bytes;
}

// Starts the running block at its place in the grid.
void begin(dim3 at) {
    block->at = at;
    block->shared = shared_memories().of_block(block->rank, block->shared_bytes);
    block->ended = 0;
    block->at_barrier = 0;
    block->meetings = 0;
    block->accessed = 0;
    block->random = 1 + at.x + (uint64_t{at.y} << 20) + (uint64_t{at.z} << 40);
    for (int i = 0; i < 8; ++i) random_below(1);
    const auto threads = static_cast<uint32_t>(block->fibers.size());
    for (uint32_t i = 0; i < threads; ++i) prepare(block->fibers[i], {i, 0, 0});
    begin_async();
}

}  // namespace

}  // namespace host

// A launch's configuration: HostLaunch of src/device/cuda/host.rs.
struct OctantLaunch {
    const char* name;
    void (*kernel)(const void*);
    const void* params;
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t descending;
    // Blocks of a cluster, which follow one another in x.
    uint32_t cluster = 1;
    // Whether the kernel may start before earlier ones have ended.
    uint32_t overlaps = 0;
};

// Whether blocks of a kernel wait for other GPUs. Since one block runs after the other, the GPUs must run
// these in the same order.
static bool waits_for_peers(const OctantLaunch& launch) {
    for (const char* name : {"gather", "packet_norm", "reduce", "reduce_norm"}) {
        if (std::strcmp(launch.name, name) == 0) return true;
    }
    return false;
}

// The cluster of a grid's row that runs at a position. If threads start in descending order, the odd ones run
// first and then the even ones, from the last on, so that a cluster may be the first, the last or the middle
// one of three neighbours.
static uint32_t cluster_at(uint32_t position, uint32_t count, bool ascending) {
    if (ascending) return position;
    const uint32_t odd = count / 2;
    return position < odd ? 2 * (odd - position) - 1 : 2 * (count - 1 - position);
}

extern "C" void octant_launch(const OctantLaunch* launch) {
    using namespace host;
    static thread_local Cluster clusters;
    cluster = &clusters;
    const uint32_t size = launch->cluster;
    cluster->blocks = std::span(cluster->all_blocks).first(std::min<size_t>(size, most_blocks));
    for (size_t rank = 0; rank < cluster->blocks.size(); ++rank) {
        Block& one = cluster->blocks[rank];
        prepare(one, rank, launch->name, launch->threads, launch->shared_bytes);
        one.kernel = launch->kernel;
        one.params = launch->params;
        one.overlaps = launch->overlaps != 0;
    }
    block = &cluster->all_blocks[0];
    if (launch->threads % 32 != 0) die("the number of threads of a block is not a multiple of 32");
    if (size == 0 || size > most_blocks) die("a cluster of no blocks or too many");
    if (launch->grid[0] % size != 0) die("a grid that is not of whole clusters");
    const uint32_t clusters_x = launch->grid[0] / size;
    const bool ascending = launch->descending == 0 || waits_for_peers(*launch);
    place.block_dim = {launch->threads, 1, 1};
    place.grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    for (uint32_t z = 0; z < launch->grid[2]; ++z)
        for (uint32_t y = 0; y < launch->grid[1]; ++y)
            for (uint32_t position = 0; position < clusters_x; ++position) {
                const uint32_t x = size * cluster_at(position, clusters_x, ascending);
                cluster->arrived = 0;
                cluster->meetings = 0;
                for (uint32_t rank = 0; rank < size; ++rank) {
                    block = &cluster->blocks[rank];
                    begin({x + rank, y, z});
                }
                run_cluster(launch->descending != 0);
            }
}
