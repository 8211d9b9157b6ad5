// Tests the emulator's barriers, copies and products: products of every shape against plain sums, and
// that each of many faults of a pipeline shows, whatever the order of threads. Each case runs in a
// process of its own, because an error ends it. `tests/gpu/emulator.rs` compiles and runs this program.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "../../kernels/host/async.cpp"
#include "../../kernels/host/cuda.cpp"
#include "../../kernels/host/multiply.cpp"
#include "../../kernels/host/numbers.cpp"
#include "../../kernels/host/products.cpp"
#include "cluster.h"
#include "exchange.h"
#include "pipeline.h"

namespace {

uint32_t random_word() {
    static uint32_t state = 12345;
    state = state * 1664525 + 1013904223;
    return state >> 8;
}

// The operands of a product, [rows][chunks of 128 bytes], and its results.
struct Problem {
    uint32_t n;
    std::vector<uint8_t> w, x;
    std::vector<float> out;
};

// Operands whose products and sums are exact in F32.
Problem problem_of(Kind kind, uint32_t n) {
    Problem problem{n, {}, {}, std::vector<float>(n * OUTPUTS, -1.0f)};
    for (auto* operand : {&problem.w, &problem.x}) {
        const uint32_t rows = operand == &problem.w ? OUTPUTS : n;
        operand->resize(rows * CHUNKS * CHUNK);
        for (uint32_t i = 0; i < operand->size(); i += 2) {
            if (kind == Kind::e4m3) {
                // 0.5 to 3.75, of both signs.
                for (uint32_t j = 0; j < 2; ++j) {
                    const uint32_t magnitude = 48 + random_word() % 24;
                    (*operand)[i + j] = static_cast<uint8_t>(magnitude | random_word() % 2 * 128);
                }
            } else {
                const float value = static_cast<float>(random_word() % 33) / 4.0f - 4.0f;
                const bool f16 = kind == Kind::f16_in_registers;
                const uint16_t bits = f16 ? host::f16_of(value) : host::bf16_of(value);
                std::memcpy(&(*operand)[i], &bits, 2);
            }
        }
    }
    return problem;
}

// [row][chunk][128 bytes] as [chunk][row][128 bytes], swizzled.
std::vector<uint8_t> tiles_of(const std::vector<uint8_t>& operand, uint32_t rows) {
    std::vector<uint8_t> tiles(operand.size());
    for (uint32_t row = 0; row < rows; ++row) {
        for (uint32_t i = 0; i < CHUNKS * CHUNK; ++i) {
            const uint32_t at = i / CHUNK * rows * CHUNK + swizzled(row * CHUNK + i % CHUNK);
            tiles[at] = operand[row * CHUNKS * CHUNK + i];
        }
    }
    return tiles;
}

template <Kind kind, uint32_t N>
void run(Problem& problem, Fault fault, bool descending) {
    // Copies need alignment to 16 bytes.
    const auto aligned = [](const std::vector<uint8_t>& bytes) {
        auto* to = static_cast<uint8_t*>(std::aligned_alloc(16, bytes.size()));
        std::memcpy(to, bytes.data(), bytes.size());
        return to;
    };
    const Params params{aligned(tiles_of(problem.w, OUTPUTS)), aligned(tiles_of(problem.x, N)),
                        problem.out.data(), fault};
    const uint32_t shared = STAGES * Pipeline<kind, N>::bytes + 1024;
    const OctantLaunch launch{"pipeline", pipeline<kind, N>, &params, {1, 1, 1}, 384, shared, descending};
    octant_launch(&launch);
    std::free(const_cast<uint8_t*>(params.w));
    std::free(const_cast<uint8_t*>(params.x));
}

template <Kind kind>
float value_at(const std::vector<uint8_t>& operand, uint32_t row, uint32_t k) {
    const uint8_t* at = &operand[row * CHUNKS * CHUNK];
    if (kind == Kind::e4m3) return host::float_of_e4m3(at[k]);
    const auto bits = static_cast<uint16_t>(at[2 * k] | at[2 * k + 1] << 8);
    return kind == Kind::f16_in_registers ? host::float_of_f16(bits) : host::float_of_bf16(bits);
}

// One instruction of the accumulator of 13 fraction bits, written from its description alone.
float truncated(float c, const std::vector<float>& a, const std::vector<float>& b) {
    const auto exponent_of = [](float x) { return std::max(std::ilogb(x), -6); };
    int largest = c != 0.0f ? std::ilogb(c) : -100;
    for (size_t k = 0; k < a.size(); ++k) {
        if (a[k] != 0.0f && b[k] != 0.0f) largest = std::max(largest, exponent_of(a[k]) + exponent_of(b[k]));
    }
    const double unit = std::ldexp(1.0, largest - 13);
    double sum = std::trunc(c / unit);
    for (size_t k = 0; k < a.size(); ++k) sum += std::trunc(double{a[k]} * double{b[k]} / unit);
    if (sum == 0.0) return 0.0f;
    const double last = std::ldexp(1.0, std::ilogb(sum) - 13);
    return static_cast<float>(std::trunc(sum / last) * last * unit);
}

template <Kind kind>
float expected_of(const Problem& problem, uint32_t output, uint32_t row, bool truncates) {
    constexpr uint32_t depth = kind == Kind::e4m3 ? 32 : 16;
    float total = 0.0f;
    for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
        float sum = 0.0f;
        for (uint32_t step = 0; step < 4; ++step) {
            std::vector<float> a, b;
            for (uint32_t i = 0; i < depth; ++i) {
                const uint32_t k = (chunk * 4 + step) * depth + i;
                a.push_back(value_at<kind>(problem.w, output, k));
                b.push_back(value_at<kind>(problem.x, row, k));
            }
            double exact = 0.0;
            for (uint32_t i = 0; i < depth; ++i) exact += double{a[i]} * double{b[i]};
            sum = truncates ? truncated(sum, a, b) : static_cast<float>(sum + exact);
        }
        total += sum;
    }
    return total;
}

template <Kind kind>
std::string outcome_of(const Problem& problem, bool truncates) {
    for (const float x : problem.out) {
        if (std::isnan(x)) return "NaN";
    }
    for (uint32_t row = 0; row < problem.n; ++row) {
        for (uint32_t output = 0; output < OUTPUTS; ++output) {
            const float found = problem.out[row * OUTPUTS + output];
            if (found != expected_of<kind>(problem, output, row, truncates)) return "wrong";
        }
    }
    return "right";
}

template <Kind kind, uint32_t N>
std::string product(bool descending) {
    Problem problem = problem_of(kind, N);
    run<kind, N>(problem, NONE, descending);
    return outcome_of<kind>(problem, false);
}

template <Kind kind>
std::string products(bool descending) {
    for (const std::string& outcome :
         {product<kind, 8>(descending), product<kind, 16>(descending), product<kind, 32>(descending),
          product<kind, 64>(descending), product<kind, 128>(descending), product<kind, 256>(descending)}) {
        if (outcome != "right") return outcome;
    }
    if constexpr (kind == Kind::bf16_in_registers || kind == Kind::f16_in_registers) {
        return product<kind, 48>(descending);
    }
    return "right";
}

template <Kind kind>
std::string with_fault(Fault fault, bool descending) {
    Problem problem = problem_of(kind, 16);
    run<kind, 16>(problem, fault, descending);
    return outcome_of<kind>(problem, false);
}

// Products of all E4M3 codes but NaN.
template <uint32_t N>
std::string truncated_products(bool descending) {
    setenv("OCTANT_HOST_TRUNCATES", "1", 1);
    Problem problem = problem_of(Kind::e4m3, N);
    for (auto* operand : {&problem.w, &problem.x}) {
        for (uint8_t& code : *operand) {
            const uint32_t magnitude = random_word() % 4 == 0 ? 0 : random_word() % 127;
            code = static_cast<uint8_t>(magnitude | random_word() % 2 * 128);
        }
    }
    run<Kind::e4m3, N>(problem, NONE, descending);
    return outcome_of<Kind::e4m3>(problem, true);
}

// One row of each operand: 1 and smaller products, of which 2^-13 is kept, and 2^-14 is not.
std::string truncated_examples(bool descending) {
    setenv("OCTANT_HOST_TRUNCATES", "1", 1);
    constexpr uint8_t one = 0x38, to_minus_6 = 0x08, to_minus_7 = 0x04, to_minus_8 = 0x02;
    Problem problem = problem_of(Kind::e4m3, 8);
    std::fill(problem.w.begin(), problem.w.end(), uint8_t{0});
    const auto put = [&](uint32_t k, uint8_t a, uint8_t b) { problem.w[k] = a, problem.x[k] = b; };
    put(0, one, one);
    put(1, to_minus_6, to_minus_7);
    put(2, to_minus_7, to_minus_7);
    put(3, to_minus_7, to_minus_7 | 0x80);
    put(4, to_minus_6, to_minus_8 | 0x80);
    // The second instruction, with the first one's result as its accumulator.
    put(40, to_minus_6, to_minus_8);
    put(41, to_minus_6, to_minus_7);
    run<Kind::e4m3, 8>(problem, NONE, descending);
    return problem.out[0] == 1.0f + 0x1p-12f ? "right" : "wrong";
}

struct Case {
    const char* name;
    // A part of the report, or the outcome; with the other order of threads too, unless it says
    // otherwise.
    const char* expected;
    std::string (*run)(bool descending);
};

template <Fault fault>
std::string e4m3(bool descending) {
    return with_fault<Kind::e4m3>(fault, descending);
}
template <Fault fault>
std::string in_registers(bool descending) {
    return with_fault<Kind::bf16_in_registers>(fault, descending);
}

#define E4M3(fault, expected) {#fault, expected, e4m3<fault>}
#define CLUSTER(fault, expected) {"cluster: " #fault, expected, in_cluster<ClusterFault::fault>}
#define EXCHANGE(fault, expected) {"exchange: " #fault, expected, exchanged<ExchangeFault::fault>}
#define IN_REGISTERS(fault, expected) {#fault " (registers)", expected, in_registers<fault>}
constexpr Case cases[] = {
    {"E4M3", "right", products<Kind::e4m3>},
    {"BF16", "right", products<Kind::bf16>},
    {"BF16 in registers", "right", products<Kind::bf16_in_registers>},
    {"F16 in registers", "right", products<Kind::f16_in_registers>},
    {"truncated", "right", truncated_products<8>},
    {"truncated, N = 64", "right", truncated_products<64>},
    {"truncated examples", "right", truncated_examples},
    E4M3(PIPELINED, "right"),
    IN_REGISTERS(PIPELINED, "right"),
    E4M3(NO_INIT, "a barrier that was not initialised"),
    E4M3(NO_INIT_FENCE, "a copy with a barrier that barrier_init_fence did not follow"),
    E4M3(NO_SYNC_AFTER_INIT, "a barrier "),
    E4M3(TWO_INITS, "a barrier is initialised twice"),
    E4M3(BARRIER_OVERWRITTEN, "a barrier that was not initialised in this block, or was overwritten"),
    E4M3(NO_WAIT_FOR_COPY, "NaN"),
    IN_REGISTERS(NO_WAIT_FOR_COPY, "NaN"),
    E4M3(OTHER_PARITY_OF_CONSUMER, "more arrivals at a barrier than it expects"),
    E4M3(OTHER_PARITY_OF_PRODUCER, "a deadlock"),
    E4M3(NO_WAIT_FOR_STAGE, "more arrivals at a barrier than it expects"),
    E4M3(EARLY_RELEASE, "NaN"),
    E4M3(NO_RELEASE, "a deadlock"),
    E4M3(MORE_BYTES_EXPECTED, "lacks 0 of 1 arrivals and 16 bytes"),
    E4M3(FEWER_BYTES_EXPECTED, "lacks 0 of 1 arrivals and -16 bytes"),
    E4M3(MORE_ARRIVALS, "more arrivals at a barrier than it expects"),
    E4M3(WRITE_INTO_COPY, "a thread wrote to the target of a copy in flight"),
    E4M3(COPY_INTO_COPY, "a copy into the target of a copy in flight"),
    E4M3(COPY_MISALIGNED, "a copy that is not of whole, aligned pieces of 16 bytes"),
    E4M3(COPY_OUTSIDE, "a copy to outside of the block's dynamic shared memory"),
    E4M3(COPY_LEFT, "a block ended "),
    E4M3(NO_FENCE, "a product without a wgmma_fence"),
    IN_REGISTERS(NO_FENCE, "a product without a wgmma_fence"),
    E4M3(UNNAMED_OPERAND, "a product reads registers that the last wgmma_fence did not name"),
    E4M3(OPERAND_CHANGED, "a product reads registers that were written after the last wgmma_fence"),
    E4M3(READ_IN_FLIGHT, "NaN"),
    E4M3(WRITE_IN_FLIGHT, "a thread wrote to an accumulator in flight"),
    E4M3(NAMED_IN_FLIGHT, "wgmma_fence names an accumulator in flight"),
    E4M3(WAIT_TOO_SHORT, "wgmma_wait names an accumulator that stays in flight"),
    E4M3(NO_COMMIT, "wgmma_wait names an accumulator that stays in flight"),
    E4M3(NO_WAIT_FOR_PRODUCTS, "a thread ended without waiting for its products"),
    E4M3(UNNAMED_RESULT, "wgmma_wait does not name an accumulator that it completes"),
    E4M3(TILE_MISALIGNED, "a tile at an address that its swizzle does not allow"),
    E4M3(TILE_OUTSIDE, "a tile outside of shared memory"),
    E4M3(OTHER_LAYOUT, "a descriptor of another layout than the 128-byte swizzle"),
    E4M3(DIFFERENT_PRODUCTS, "threads of a warpgroup issue different products"),
    E4M3(A_WARP_LESS, "a deadlock"),
    E4M3(REGISTERS_OF_A_WARP, "threads of a warpgroup with different numbers of registers"),
    E4M3(TOO_MANY_REGISTERS, "more registers than a multiprocessor has"),
    E4M3(GROUP_TOO_LARGE, "group_sync of id 1: 128 of 256 threads have arrived"),
    E4M3(GROUP_OF_NO_ID, "group_sync with an id that is not 1 to 15"),
    CLUSTER(none, "right"),
    CLUSTER(no_sync_at_start, "a barrier "),
    CLUSTER(no_sync_at_end, "a block "),
    CLUSTER(sync_of_one_warp, "a cluster_sync that some threads never reach"),
    CLUSTER(no_release_of_the_other, "a copy into the target of a copy in flight"),
    CLUSTER(early_release_of_the_other, "a copy into the target of a copy in flight"),
    CLUSTER(release_of_no_block, "an arrival at a block that the cluster does not have"),
    CLUSTER(copy_to_no_block, "a copy to no block, or to one that the cluster does not have"),
    CLUSTER(copy_to_one_block, "a deadlock"),
    CLUSTER(static_barrier, "an access to another block outside of dynamic shared memory"),
    CLUSTER(odd_grid, "a grid that is not of whole clusters"),
    CLUSTER(copy_before_wait, "a copy before wait_for_earlier"),
    CLUSTER(no_wait_of_a_warp, "a thread ended without wait_for_earlier"),
    EXCHANGE(none, "right"),
    EXCHANGE(no_sync_before, "a barrier "),
    EXCHANGE(no_wait, " ended"),
    EXCHANGE(late_wait, "NaN"),
    EXCHANGE(same_place, "a copy into the target of a copy in flight"),
    EXCHANGE(write_in_flight, "a thread wrote to the target of a copy in flight"),
    EXCHANGE(fewer_bytes, " bytes"),
    EXCHANGE(more_bytes, "lacks 0 of 1 arrivals and 4 bytes"),
    EXCHANGE(to_no_block, "a store in a block that the cluster does not have"),
    EXCHANGE(outside, "an access to another block outside of dynamic shared memory"),
    EXCHANGE(other_barrier, "a barrier that was not initialised"),
};

// Runs a case in a process of its own and returns what it writes.
std::string report_of(const Case& one, bool descending) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        std::fprintf(stderr, "%s", one.run(descending).c_str());
        std::_Exit(0);
    }
    close(ends[1]);
    std::string report;
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) {
        report.append(buffer, static_cast<size_t>(got));
    }
    close(ends[0]);
    waitpid(child, nullptr, 0);
    return report;
}

}  // namespace

// With an argument, prints every report.
int main(int count, char**) {
    // Cases set it in their own processes.
    unsetenv("OCTANT_HOST_TRUNCATES");
    uint32_t missed = 0;
    for (const Case& one : cases) {
        for (const bool descending : {false, true}) {
            const std::string report = report_of(one, descending);
            const bool found = report.find(one.expected) != std::string::npos;
            missed += !found;
            if (!found || count > 1) {
                std::printf("%s, %s: expected \"%s\", found:\n%s\n", one.name,
                            descending ? "descending" : "ascending", one.expected, report.c_str());
            }
        }
    }
    if (missed == 0) std::printf("%zu cases are as expected\n", std::size(cases));
    return missed != 0;
}
