// The threads of a block as fibers, for the files that implement the emulator. Kernels do not include
// this.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "cuda.h"

namespace host {

constexpr size_t stack_bytes = 256 << 10;
constexpr unsigned warpgroup_threads = 128;
// Blocks of the largest cluster of every GPU with clusters.
constexpr size_t most_blocks = 8;

// The operands and results of a warp's operation.
struct Warp {
    unsigned arrived = 0;
    uint64_t round = 0;
    const char* where = nullptr;
    alignas(16) unsigned char in[32 * stride];
    alignas(16) unsigned char out[32 * stride];
};

enum class State {
    ready,
    waits_for_block,
    waits_for_cluster,
    waits_for_warp,
    waits_for_group,
    waits_for_barrier,
    waits_for_products,
    ended
};

// A thread's stack.
class Stack {
   public:
    Stack();
    Stack(Stack&& other) noexcept : bottom_(std::exchange(other.bottom_, nullptr)) {}
    Stack& operator=(Stack&&) = delete;
    ~Stack();
    unsigned char* bottom() const { return bottom_; }

   private:
    unsigned char* bottom_;
};

struct Fiber {
    void* stack_pointer = nullptr;
    Stack stack;
    dim3 thread = {};
    State state = State::ready;
    const char* where = nullptr;
    // Whether it has waited for earlier kernels.
    bool waited = false;
    // What it waits for: the round of the warp's operation, the round of a group's barrier, the parity of
    // a phase, or the number of executed groups of products.
    uint64_t round = 0;
    // The barrier that it waits for: a group's id, or an index of the block's barriers.
    size_t barrier = 0;
    void* fake_stack = nullptr;
    // ThreadSanitizer's handle of the fiber.
    void* known_as = nullptr;
};

struct Block {
    // Its number in its cluster, its indices, and its dynamic shared memory.
    size_t rank = 0;
    dim3 at = {};
    unsigned char* shared = nullptr;
    // The first of `all_fibers`, which outlive a launch.
    std::span<Fiber> fibers;
    std::vector<Fiber> all_fibers;
    std::vector<Warp> warps;
    unsigned at_barrier = 0;
    // The number of times that all threads have met.
    uint64_t meetings = 0;
    // The meetings of the cluster's threads before the last access of another block, plus one.
    uint64_t accessed = 0;
    unsigned ended = 0;
    // Whether any thread passed true to any_of_block.
    bool any = false;
    void (*kernel)(const void*) = nullptr;
    const void* params = nullptr;
    const char* name = nullptr;
    size_t shared_bytes = 0;
    // Whether the kernel may start before earlier ones have ended.
    bool overlaps = false;
    // The state of an xorshift generator.
    uint64_t random = 1;
};

// Blocks that run together.
struct Cluster {
    // The first of `all_blocks`, which outlive a launch.
    std::span<Block> blocks;
    std::array<Block, most_blocks> all_blocks;
    // Threads that wait for the others in cluster_sync, and how often all of them have met.
    size_t arrived = 0;
    uint64_t meetings = 0;
};

// The cluster and the block that this host thread runs, and the index of the running fiber. They exist while
// a kernel runs.
extern constinit thread_local Cluster* cluster;
extern constinit thread_local Block* block;
extern constinit thread_local size_t running;

bool has_ended(const Block& block);

// Reports an error with the state of all threads, and ends the process.
[[noreturn]] void die(const char* what);
// Switches from the running fiber to the scheduler until `ready` holds for it. The caller sets what it
// waits for.
void wait_as(State state, const char* where);
uint32_t random_below(uint32_t bound);

// The operations that run beside the threads (async.cpp, products.cpp).

void begin_async();
// Starts or completes at most one operation; `stuck` says that no thread can go on. Returns whether it
// did.
bool advance_async(bool stuck, bool late);
// Checks that a block has left nothing behind.
void end_async();
// Whether a fiber that waits for a group, a barrier or products can go on.
bool async_ready(const Fiber& fiber, size_t index);
// Writes what a fiber waits for.
void describe_async(const Fiber& fiber, size_t index, char* text, size_t size);

void begin_products();
// The number of groups of products that all threads have committed and that have not run.
bool products_are_ready();
// Runs one committed group of products.
void run_products();
bool products_have_run(size_t index, uint64_t groups);
void end_products();

// numbers.cpp
float float_of_e4m3(uint8_t code);
float float_of_bf16(uint16_t bits);

}  // namespace host
