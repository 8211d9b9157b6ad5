// Memory, launches and reports of the probe. Kernels run on a GPU by CUDA's runtime, or on the host by the
// emulator of kernels/host, which tests the probe itself.
#pragma once

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../../kernels/wgmma.cuh"

#ifdef OCTANT_HOST
#include "../../../kernels/host/async.cpp"
#include "../../../kernels/host/cuda.cpp"
#include "../../../kernels/host/multiply.cpp"
#include "../../../kernels/host/numbers.cpp"
#include "../../../kernels/host/products.cpp"
#else
#include <cuda_runtime.h>
#endif

namespace probe {

// The results of checks, as lines for people and as lines of JSON.
class Report {
public:
    explicit Report(FILE* json) : json_(json) {}

    // A check with an expected result. Names and results contain no quotes.
    void check(const std::string& name, const std::string& expected, const std::string& got, bool ok) {
        failed_ += !ok;
        std::printf("%-4s %-62s expected %-24s got %s\n", ok ? "ok" : "FAIL", name.c_str(), expected.c_str(),
                    got.c_str());
        std::fflush(stdout);
        if (json_ == nullptr) return;
        std::fprintf(json_, "{\"check\": \"%s\", \"expected\": \"%s\", \"got\": \"%s\", \"ok\": %s}\n",
                     name.c_str(), expected.c_str(), got.c_str(), ok ? "true" : "false");
        std::fflush(json_);
    }

    // A check of many values, of which `wrong` are wrong.
    void count(const std::string& name, size_t values, size_t wrong) {
        check(name, std::to_string(values) + " right", std::to_string(values - wrong) + " right", wrong == 0);
    }

    // A measurement, expected to be at least `least`; 0 if nothing is expected.
    void rate(const std::string& name, double least, double got, const char* unit) {
        char texts[2][64];
        std::snprintf(texts[0], sizeof texts[0], ">= %.4g %s", least, unit);
        std::snprintf(texts[1], sizeof texts[1], "%.4g %s", got, unit);
        check(name, least == 0.0 ? "any" : texts[0], texts[1], got >= least);
    }

    // A value that cannot be wrong.
    void note(const std::string& name, const std::string& got) { check(name, "any", got, true); }

    size_t failed() const { return failed_; }

private:
    FILE* json_;
    size_t failed_ = 0;
};

// Random numbers, the same in every run.
class Random {
public:
    uint32_t below(uint32_t bound) {
        state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state_ >> 33) % bound;
    }

private:
    uint64_t state_ = 12345;
};

#ifdef OCTANT_HOST

inline void* allocate(size_t bytes) { return std::aligned_alloc(16, (bytes + 15) / 16 * 16); }
inline void release(void* memory) { std::free(memory); }
inline void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

// A kernel's launch; `shared` is the number of bytes of dynamic shared memory.
template <typename Params>
void launch(const char* name, void (*kernel)(const void*), uint32_t blocks, uint32_t threads,
            uint32_t shared, const Params& params, uint32_t cluster = 1) {
    const OctantLaunch launched{name, kernel, &params, {blocks, 1, 1}, threads, shared, false, cluster};
    octant_launch(&launched);
}
#define PROBE_LAUNCH(name, blocks, threads, shared, params) \
    probe::launch(#name, octant_##name, blocks, threads, shared, params)
#define PROBE_LAUNCH_CLUSTERS(name, size, blocks, threads, shared, params) \
    probe::launch(#name, octant_##name, blocks, threads, shared, params, size)

#else

// Ends the process if a call has failed: later calls would fail too.
inline void must(cudaError_t result, const char* call) {
    if (result == cudaSuccess) return;
    std::printf("FAIL %s: %s\n", call, cudaGetErrorString(result));
    std::fflush(stdout);
    std::exit(3);
}

inline void* allocate(size_t bytes) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
}
inline void release(void* memory) { must(cudaFree(memory), "cudaFree"); }
// Waits for earlier launches.
inline void copy(void* to, const void* from, size_t bytes) {
    must(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

template <typename Params>
void launch(const char* name, const void* kernel, uint32_t blocks, uint32_t threads, uint32_t shared,
            const Params& params) {
    must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
         name);
    void* arguments[] = {const_cast<Params*>(&params)};
    must(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, shared, nullptr), name);
}
#define PROBE_LAUNCH(name, blocks, threads, shared, params) \
    probe::launch(#name, reinterpret_cast<const void*>(octant_##name), blocks, threads, shared, params)
// The kernel itself says how many blocks a cluster has.
#define PROBE_LAUNCH_CLUSTERS(name, size, blocks, threads, shared, params) \
    PROBE_LAUNCH(name, blocks, threads, shared, params)

#endif

// An array in device memory.
template <typename T>
class Array {
public:
    explicit Array(size_t size) : at_(static_cast<T*>(allocate(size * sizeof(T)))), size_(size) {}
    explicit Array(const std::vector<T>& values) : Array(values.size()) {
        copy(at_, values.data(), size_ * sizeof(T));
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() { release(at_); }

    T* at() const { return at_; }
    std::vector<T> read() const {
        std::vector<T> values(size_);
        copy(values.data(), at_, size_ * sizeof(T));
        return values;
    }

private:
    T* at_;
    size_t size_;
};

}  // namespace probe
