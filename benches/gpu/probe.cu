// Checks and measures what the kernels assume of a GPU, before they run on it: conversions, fragments, the
// swizzle and descriptors of kernels/wgmma.cuh, the bits of products, clusters, and rates. Each check
// prints a line, and with --json FILE appends a line of JSON.
//
//     probe [--json FILE] [GROUP...]     all groups, or those that are named
//
// A group runs in a process of its own, with a time limit, so that one that fails or hangs does not stop the
// next. The exit status is 1 if a check or a group fails.
//
// `benches/gpu/run prepare` compiles this file with nvcc for sm_90a. CUDA's runtime is linked statically, so
// that the program needs only NVIDIA's driver. With g++ and -DOCTANT_HOST the emulator of kernels/host runs
// the checks without a GPU (tests/gpu/emulator.rs).
#include <csignal>
#include <cstring>

#include <sys/wait.h>
#include <unistd.h>

#include "probe/accumulator.cuh"
#include "probe/clusters.cuh"
#include "probe/conversions.cuh"
#include "probe/fragments.cuh"
#include "probe/products.cuh"
#ifndef OCTANT_HOST
#include "probe/rates.cuh"
#endif

namespace {

struct Group {
    const char* name;
    // The time limit in seconds.
    unsigned seconds;
    void (*run)(probe::Report&);
};

constexpr Group GROUPS[] = {
#ifndef OCTANT_HOST
    {"device", 4, probe::device},
#endif
    {"conversions", 4, probe::conversions},
    {"fragments", 4, probe::fragments},
    {"layouts", 4, probe::layouts},
    {"invariance", 5, probe::invariance},
    {"accumulator", 4, probe::accumulator},
    {"clusters", 4, probe::clusters},
#ifndef OCTANT_HOST
    {"rates", 5, probe::rates},
    {"memory", 6, probe::memory},
#endif
};

// Runs a group in a process of its own. Returns whether all its checks passed.
bool run(const Group& group, FILE* json) {
    std::printf("-- %s\n", group.name);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(group.seconds);
        probe::Report report(json);
        group.run(report);
        std::_Exit(report.failed() != 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1) return WEXITSTATUS(status) == 0;
    probe::Report report(json);
    const bool late = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
    const std::string limit = std::to_string(group.seconds);
    report.check(group.name, "the group ends", late ? "no end in " + limit + " s" : "an error", false);
    return false;
}

}  // namespace

int main(int count, char** arguments) {
    FILE* json = nullptr;
    int first = 1;
    if (count > 2 && std::strcmp(arguments[1], "--json") == 0) {
        json = std::fopen(arguments[2], "a");
        if (json == nullptr) std::perror(arguments[2]);
        first = 3;
    }
    bool ok = true;
    for (const Group& group : GROUPS) {
        bool named = first == count;
        for (int i = first; i < count; ++i) named |= std::strcmp(arguments[i], group.name) == 0;
        if (named) ok &= run(group, json);
    }
    std::printf("%s\n", ok ? "all checks passed" : "some checks FAILED");
    return ok ? 0 : 1;
}
