// The fibers, warps and number formats behind cuda.h, and the entry point through which tests launch kernels.
//
// This file accesses no memory of a kernel. It is not instrumented when the kernels are built with the
// address sanitizer, but it tells that sanitizer of every change of stack.
#include "cuda.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

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

// Saves the callee-saved registers on the stack and the stack pointer in *from, and continues at the saved
// stack `to`.
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

namespace {

constexpr size_t stack_bytes = 256 << 10;

struct Warp {
    unsigned arrived = 0;
    uint64_t round = 0;
    const char* where = nullptr;
    alignas(16) unsigned char in[32 * stride];
    alignas(16) unsigned char out[32 * stride];
};

enum class State { ready, waits_for_block, waits_for_warp, ended };

// A thread's stack.
class Stack {
   public:
    Stack() {
        void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) std::abort();
        bottom_ = static_cast<unsigned char*>(memory);
    }
    Stack(Stack&& other) noexcept : bottom_(std::exchange(other.bottom_, nullptr)) {}
    Stack& operator=(Stack&&) = delete;
    ~Stack() {
        if (bottom_ != nullptr) munmap(bottom_, stack_bytes);
    }
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
    // The round of the warp's operation that it waits for.
    uint64_t round = 0;
    void* fake_stack = nullptr;
    // ThreadSanitizer's handle of the fiber.
    void* known_as = nullptr;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    unsigned at_barrier = 0;
    unsigned ended = 0;
    // Whether any thread passed true to any_of_block.
    bool any = false;
    void (*kernel)(const void*) = nullptr;
    const void* params = nullptr;
    const char* name = nullptr;
};

thread_local Block block;
thread_local size_t running;
thread_local void* scheduler_stack_pointer;
// The scheduler's own stack, for the sanitizers.
[[maybe_unused]] thread_local void* scheduler_fake_stack;
[[maybe_unused]] thread_local const void* scheduler_bottom;
[[maybe_unused]] thread_local size_t scheduler_size;
[[maybe_unused]] thread_local void* scheduler_known_as;

[[noreturn]] void die(const char* what) {
    const dim3 at = place.block;
    std::fprintf(stderr, "kernel %s, block (%u, %u, %u): %s\n", block.name, at.x, at.y, at.z, what);
    for (const Fiber& fiber : block.fibers) {
        const char* state = fiber.state == State::ended ? "has ended" : fiber.where ? fiber.where : "runs";
        std::fprintf(stderr, "  thread (%u, %u): %s\n", fiber.thread.x, fiber.thread.y, state);
    }
    std::abort();
}

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
    Fiber& fiber = block.fibers[index];
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
    Fiber& fiber = block.fibers[running];
#if defined(OCTANT_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    block.kernel(block.params);
    fiber.state = State::ended;
    ++block.ended;
    leave(fiber, true);
    std::abort();
}

void prepare(Fiber& fiber, dim3 thread) {
    fiber.thread = thread;
    fiber.state = State::ready;
    fiber.where = nullptr;
    auto* top = reinterpret_cast<void**>(fiber.stack.bottom() + stack_bytes);
    // The address to start at, on a stack aligned as after a call; below it six registers.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&first_entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
}

bool ready(const Fiber& fiber, size_t index) {
    return fiber.state == State::ready ||
           (fiber.state == State::waits_for_warp && block.warps[index / 32].round > fiber.round);
}

void run_block(bool descending) {
    const size_t count = block.fibers.size();
    while (block.ended < count) {
        bool progress = false;
        for (size_t i = 0; i < count; ++i) {
            const size_t index = descending ? count - 1 - i : i;
            if (ready(block.fibers[index], index)) {
                block.fibers[index].state = State::ready;
                enter(index);
                progress = true;
            }
        }
        if (block.at_barrier > 0 && block.at_barrier + block.ended == count) {
            if (block.ended > 0) die("a barrier that some threads never reach");
            block.at_barrier = 0;
            for (Fiber& fiber : block.fibers) fiber.state = State::ready;
            progress = true;
        }
        if (!progress && block.ended < count) die("a deadlock");
    }
}

}  // namespace

void sync_block(const char* where) {
    Fiber& fiber = block.fibers[running];
    fiber.state = State::waits_for_block;
    fiber.where = where;
    ++block.at_barrier;
    leave(fiber, false);
}

bool any_of_block(bool says) {
    block.any |= says;
    sync_block("__syncthreads_or");
    const bool any = block.any;
    sync_block("__syncthreads_or");
    block.any = false;
    sync_block("__syncthreads_or");
    return any;
}

unsigned char* operand_of_lane(const char* where) {
    Warp& warp = block.warps[running / 32];
    if (warp.arrived > 0 && warp.where != where && std::strcmp(warp.where, where) != 0) {
        die("lanes of a warp at different operations");
    }
    warp.where = where;
    return warp.in + running % 32 * stride;
}

const unsigned char* result_of_lane(const char* where, Collective compute) {
    const size_t index = running;
    Warp& warp = block.warps[index / 32];
    if (++warp.arrived == 32) {
        compute(warp.in, warp.out);
        warp.arrived = 0;
        ++warp.round;
    } else {
        Fiber& fiber = block.fibers[index];
        fiber.state = State::waits_for_warp;
        fiber.where = where;
        fiber.round = warp.round;
        leave(fiber, false);
    }
    return warp.out + index % 32 * stride;
}

float float_of_f16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    if ((bits & 0x7C00) == 0x7C00) {
        return __uint_as_float(sign | 0x7F800000 | static_cast<uint32_t>(bits & 0x3FF) << 13);
    }
    // The product corrects the bias of the exponent, and is exact for subnormals too.
    const float magnitude = __uint_as_float(static_cast<uint32_t>(bits & 0x7FFF) << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(magnitude));
}

uint16_t f16_of(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

uint16_t bf16_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (std::isnan(x)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

namespace {

float float_of_e4m3(uint8_t code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((code & 0x7F) == 0x7F) magnitude = NAN;
    return (code & 0x80) ? -magnitude : magnitude;
}

std::array<uint16_t, 256> e4m3_in_f16() {
    std::array<uint16_t, 256> table;
    for (unsigned code = 0; code < 256; ++code) {
        table[code] = f16_of(float_of_e4m3(static_cast<uint8_t>(code)));
    }
    return table;
}

}  // namespace

uint16_t f16_of_e4m3(uint8_t code) {
    static const std::array<uint16_t, 256> table = e4m3_in_f16();
    return table[code];
}

uint8_t e4m3_of(float x) {
    if (std::isnan(x)) return 0x7F;
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    const float magnitude = std::fmin(std::fabs(x), 448.0f);
    int exponent;
    std::frexp(magnitude, &exponent);
    // The exponent of the last of four significant bits of a value in [2^(e-1), 2^e); for subnormals that of
    // 2^-6.
    const int last = std::max(exponent - 4, -9);
    // nearbyint rounds to nearest even by default.
    const float units = std::nearbyint(std::ldexp(magnitude, -last));
    const float rounded = std::ldexp(units, last);
    if (rounded < std::ldexp(1.0f, -6)) return sign | static_cast<uint8_t>(std::ldexp(rounded, 9));
    std::frexp(rounded, &exponent);
    const int mantissa = static_cast<int>(std::ldexp(rounded, 4 - exponent)) - 8;
    return sign | static_cast<uint8_t>((exponent + 6) << 3 | mantissa);
}

namespace {

struct MmaOperand {
    float d[4];
    uint32_t a[4];
    uint32_t b[2];
};
static_assert(sizeof(MmaOperand) <= stride);

template <bool Bf16>
inline float half_of(uint32_t pair, unsigned which) {
    const auto bits = static_cast<uint16_t>(pair >> (16 * which));
    return Bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : float_of_f16(bits);
}

template <bool Bf16>
void mma_of_warp(const unsigned char* in, unsigned char* out) {
    float a[16][16], b[16][8], d[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        MmaOperand operand;
        std::memcpy(&operand, in + lane * stride, sizeof operand);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 2; ++i) {
            a[g][2 * t + i] = half_of<Bf16>(operand.a[0], i);
            a[g + 8][2 * t + i] = half_of<Bf16>(operand.a[1], i);
            a[g][2 * t + 8 + i] = half_of<Bf16>(operand.a[2], i);
            a[g + 8][2 * t + 8 + i] = half_of<Bf16>(operand.a[3], i);
            b[2 * t + i][g] = half_of<Bf16>(operand.b[0], i);
            b[2 * t + 8 + i][g] = half_of<Bf16>(operand.b[1], i);
            d[g][2 * t + i] = operand.d[i];
            d[g + 8][2 * t + i] = operand.d[2 + i];
        }
    }
    // The inner loop is over n, so that it becomes vector instructions. Each sum still runs over k in order.
    for (unsigned m = 0; m < 16; ++m)
        for (unsigned k = 0; k < 16; ++k)
            for (unsigned n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned g = lane / 4, t = lane % 4;
        const float result[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
        std::memcpy(out + lane * stride, result, sizeof result);
    }
}

}  // namespace

void mma(bool bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaOperand operand;
    std::memcpy(operand.d, d, sizeof d);
    std::memcpy(operand.a, a, sizeof a);
    operand.b[0] = b0;
    operand.b[1] = b1;
    operand = bf16 ? collective("mma_bf16", operand, mma_of_warp<true>)
                   : collective("mma_f16", operand, mma_of_warp<false>);
    std::memcpy(d, operand.d, sizeof d);
}

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
};

extern "C" void octant_launch(const OctantLaunch* launch) {
    using namespace host;
    block.name = launch->name;
    block.kernel = launch->kernel;
    block.params = launch->params;
    if (launch->threads % 32 != 0) die("the number of threads of a block is not a multiple of 32");
    while (block.fibers.size() < launch->threads) block.fibers.emplace_back();
    while (block.fibers.size() > launch->threads) block.fibers.pop_back();
    block.warps.assign(launch->threads / 32, Warp{});
    place.block_dim = {launch->threads, 1, 1};
    place.grid_dim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    for (uint32_t z = 0; z < launch->grid[2]; ++z)
        for (uint32_t y = 0; y < launch->grid[1]; ++y)
            for (uint32_t x = 0; x < launch->grid[0]; ++x) {
                place.block = {x, y, z};
                const size_t shared_bytes = (launch->shared_bytes + 127) / 128 * 128;
                place.shared = static_cast<unsigned char*>(std::aligned_alloc(128, shared_bytes));
                std::memset(place.shared, 0xFF, launch->shared_bytes);
                block.ended = 0;
                block.at_barrier = 0;
                for (uint32_t i = 0; i < launch->threads; ++i) prepare(block.fibers[i], {i, 0, 0});
                run_block(launch->descending != 0);
                std::free(place.shared);
            }
}
