// Measures what the tensor cores, shared memory, HBM and L2 of this GPU give. Rates of a multiprocessor are
// per clock, so that they do not depend on the clock's frequency. Runs on a GPU only.
#pragma once

#include "products.cuh"

struct RateParams {
    // [blocks]: clocks of each block.
    uint64_t* clocks;
    // Takes results, so that the compiler keeps the work.
    float* out;
    uint32_t rounds;
    uint32_t unused;
};

// Products per round, and threads: two warpgroups, as in kernels/linear.cu.
constexpr uint32_t ROUND = 64;
constexpr uint32_t RATE_THREADS = 256;

// Fills the dynamic shared memory with E4M3 or BF16 numbers of moderate size.
DEVICE void fill_shared(uint32_t bytes) {
    uint32_t* words = reinterpret_cast<uint32_t*>(tile_memory());
    for (uint32_t i = threadIdx.x; i < bytes / 4; i += blockDim.x) {
        words[i] = (i * 2654435761u & 0x87878787u) | 0x30303030u;
    }
    async_fence();
    __syncthreads();
}

template <Kind kind, uint32_t N>
DEVICE void issue_products(const RateParams& p) {
    fill_shared((128 + N) * PROBE_CHUNK);
    const uint64_t a = tile_descriptor(tile_memory() + threadIdx.x / 128 * 64 * PROBE_CHUNK);
    const uint64_t b = tile_descriptor(tile_memory() + 128 * PROBE_CHUNK);
    float d[N / 2];
#pragma unroll
    for (uint32_t i = 0; i < N / 2; ++i) d[i] = 0.0f;
    const long long start = clock64();
    for (uint32_t round = 0; round < p.rounds; ++round) {
        wgmma_fence(d);
#pragma unroll
        for (uint32_t i = 0; i < ROUND; ++i) {
            if constexpr (kind == Kind::e4m3) wgmma_e4m3<N>(d, a + 2 * (i % 4), b + 2 * (i % 4), true);
            if constexpr (kind == Kind::bf16) wgmma_bf16<N>(d, a + 2 * (i % 4), b + 2 * (i % 4), true);
        }
        wgmma_commit();
        wgmma_wait<0>(d);
    }
    __syncthreads();
    if (threadIdx.x == 0) p.clocks[blockIdx.x] = static_cast<uint64_t>(clock64() - start);
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < N / 2; ++i) sum += d[i];
    p.out[global_thread()] = sum;
}

#define PROBE_RATE(kind, n) \
    KERNEL_ALONE(rate_##kind##_##n, RateParams, RATE_THREADS) { issue_products<Kind::kind, n>(p); }
#define PROBE_RATES(kind) \
    PROBE_RATE(kind, 8)   \
    PROBE_RATE(kind, 16)  \
    PROBE_RATE(kind, 32)  \
    PROBE_RATE(kind, 64)  \
    PROBE_RATE(kind, 128) \
    PROBE_RATE(kind, 256)
PROBE_RATES(e4m3)
PROBE_RATES(bf16)

// mma.sync, eight independent sums per warp.
KERNEL_ALONE(rate_mma_f16, RateParams, 512) {
    constexpr uint32_t SUMS = 8;
    float d[SUMS][4] = {};
    uint32_t a[4], b[2];
    for (uint32_t i = 0; i < 4; ++i) a[i] = 0x38003800u + lane_id() + i;
    for (uint32_t i = 0; i < 2; ++i) b[i] = 0xB8003800u + lane_id() + i;
    __syncthreads();
    const long long start = clock64();
    for (uint32_t round = 0; round < p.rounds; ++round) {
#pragma unroll
        for (uint32_t i = 0; i < SUMS; ++i) mma_f16(d[i], a, b[0], b[1]);
    }
    __syncthreads();
    if (threadIdx.x == 0) p.clocks[blockIdx.x] = static_cast<uint64_t>(clock64() - start);
    float sum = 0.0f;
    for (uint32_t i = 0; i < SUMS; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    p.out[global_thread()] = sum;
}

// Reads of 16 bytes per lane without bank conflicts.
KERNEL_ALONE(rate_shared, RateParams, 512) {
    constexpr uint32_t READS = 8;
    fill_shared(READS * 512 * 16);
    const uint32_t at = shared_address(tile_memory()) + threadIdx.x * 16;
    uint32_t sum = 0;
    const long long start = clock64();
    for (uint32_t round = 0; round < p.rounds; ++round) {
        uint4 x[READS];
#pragma unroll
        for (uint32_t i = 0; i < READS; ++i) {
            asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x[i].x), "=r"(x[i].y), "=r"(x[i].z), "=r"(x[i].w)
                         : "r"(at + i * 512 * 16));
        }
#pragma unroll
        for (uint32_t i = 0; i < READS; ++i) sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    __syncthreads();
    if (threadIdx.x == 0) p.clocks[blockIdx.x] = static_cast<uint64_t>(clock64() - start);
    p.out[global_thread()] = __uint_as_float(sum);
}

struct ReadParams {
    const unsigned char* data;
    uint32_t* out;
    uint64_t bytes;
    uint32_t rounds;
    uint32_t unused;
};

// Loads of 16 bytes, `AHEAD` at a time per thread. `bytes` is a multiple of what all threads load at a time.
constexpr uint32_t AHEAD = 8;
template <bool L2>
DEVICE void read_by_loads(const ReadParams& p) {
    const uint64_t stride = global_threads() * 16;
    uint32_t sum = 0;
    for (uint32_t round = 0; round < p.rounds; ++round) {
        for (uint64_t at = global_thread() * 16; at < p.bytes; at += AHEAD * stride) {
            uint4 x[AHEAD];
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const unsigned char* from = p.data + at + i * stride;
                if constexpr (L2) {
                    const float4 y = load_l2(reinterpret_cast<const float4*>(from));
                    x[i] = make_uint4(__float_as_uint(y.x), __float_as_uint(y.y), __float_as_uint(y.z),
                                      __float_as_uint(y.w));
                } else {
                    x[i] = load_once(from);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
        }
    }
    // The data are ones, so that this never holds, which the compiler does not know.
    if (sum == 0x12345678) p.out[0] = sum;
}
KERNEL(read_loads, ReadParams, 512) { read_by_loads<false>(p); }
KERNEL(read_l2, ReadParams, 256) { read_by_loads<true>(p); }

// Bulk copies of 16 KB to a ring of 12 stages, as kernels/linear.cu makes them, and nothing else.
constexpr uint32_t COPY_BYTES = 16384, COPY_STAGES = 12;
KERNEL_ALONE(read_copies, ReadParams, 32) {
    SHARED uint64_t full[COPY_STAGES];
    if (threadIdx.x != 0) return;
    for (uint32_t stage = 0; stage < COPY_STAGES; ++stage) barrier_init(&full[stage], 1);
    barrier_init_fence();
    const uint64_t pieces = p.bytes / COPY_BYTES, stride = gridDim.x;
    const uint64_t mine = pieces > blockIdx.x ? (pieces - blockIdx.x + stride - 1) / stride : 0;
    for (uint64_t i = 0; i < mine + COPY_STAGES; ++i) {
        const uint32_t stage = static_cast<uint32_t>(i % COPY_STAGES);
        const uint32_t lap = static_cast<uint32_t>(i / COPY_STAGES);
        if (i >= COPY_STAGES && i - COPY_STAGES < mine) barrier_wait(&full[stage], (lap - 1) % 2);
        if (i >= mine) continue;
        barrier_expect(&full[stage], COPY_BYTES);
        bulk_copy_once(tile_memory() + stage * COPY_BYTES, p.data + (blockIdx.x + i * stride) * COPY_BYTES,
                       COPY_BYTES, &full[stage]);
    }
}

// The copies of kernels/linear.cu for chunks at 128 rows, and nothing else: 16 KB of weights, and 16 KB of
// inputs, of which in clusters each block copies half to both.
constexpr uint32_t LINEAR_STAGES = 6, LINEAR_SHARED = LINEAR_STAGES * (2 * COPY_BYTES + 2 * 8);
template <bool PAIRS>
DEVICE void copy_chunks(const ReadParams& p) {
    auto* full = reinterpret_cast<uint64_t*>(tile_memory() + LINEAR_STAGES * 2 * COPY_BYTES);
    uint64_t* empty = full + LINEAR_STAGES;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < LINEAR_STAGES; ++stage) {
            barrier_init(&full[stage], 1);
            barrier_init(&empty[stage], PAIRS ? 2 : 1);
        }
        barrier_init_fence();
    }
    if (PAIRS) cluster_sync();
    __syncthreads();
    const uint32_t pieces = static_cast<uint32_t>(p.bytes / COPY_BYTES);
    for (uint32_t chunk = 0; chunk < p.rounds; ++chunk) {
        const uint32_t stage = chunk % LINEAR_STAGES, parity = chunk / LINEAR_STAGES % 2;
        unsigned char* to = tile_memory() + stage * 2 * COPY_BYTES;
        if (threadIdx.x == 0) {
            const unsigned char* w = p.data + (chunk * gridDim.x + blockIdx.x) % pieces * COPY_BYTES;
            const unsigned char* x = p.data + (chunk * gridDim.x + blockIdx.x / 2) % pieces * COPY_BYTES;
            barrier_wait(&empty[stage], parity ^ 1);
            barrier_expect(&full[stage], 2 * COPY_BYTES);
            bulk_copy(to, w, COPY_BYTES, &full[stage]);
            if constexpr (PAIRS) {
                const uint32_t half = cluster_rank() * (COPY_BYTES / 2);
                bulk_copy_to(3, to + COPY_BYTES + half, x + half, COPY_BYTES / 2, &full[stage]);
            } else {
                bulk_copy(to + COPY_BYTES, x, COPY_BYTES, &full[stage]);
            }
        } else if (threadIdx.x == 32) {
            barrier_wait(&full[stage], parity);
            if constexpr (PAIRS) {
                barrier_arrive_at(&empty[stage], 0);
                barrier_arrive_at(&empty[stage], 1);
            } else {
                barrier_arrive(&empty[stage]);
            }
        }
    }
    if (PAIRS) cluster_sync();
}
KERNEL_ALONE(read_chunks, ReadParams, 64) { copy_chunks<false>(p); }
KERNEL_CLUSTER(read_chunks_in_pairs, ReadParams, 64, 2) { copy_chunks<true>(p); }

namespace probe {

inline int attribute(cudaDeviceAttr which) {
    int value = 0;
    must(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
    return value;
}

// The least share of a theoretical rate that passes.
constexpr double LEAST = 0.8;

// Bytes per second that the memory's clock and width allow: two transfers per clock.
inline double memory_peak() {
    return 2e3 * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8;
}

inline void device(Report& report) {
    cudaDeviceProp properties;
    must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    int driver = 0;
    must(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    const auto text = [](int number) { return std::to_string(number); };
    report.note("GPU", properties.name);
    report.note("CUDA of the driver", text(driver / 1000) + "." + text(driver % 1000 / 10));
    report.note("clock of multiprocessors, at most", text(attribute(cudaDevAttrClockRate) / 1000) + " MHz");
    report.note("memory, theoretical", std::to_string(memory_peak() / 1e12) + " TB/s");
    report.note("L2", text(properties.l2CacheSize >> 20) + " MiB");
    const std::string capability = text(properties.major) + "." + text(properties.minor);
    report.check("compute capability", "9.0", capability, capability == "9.0");
    const std::string processors = text(properties.multiProcessorCount);
    report.check("multiprocessors", "132", processors, processors == "132");
    const int shared = static_cast<int>(properties.sharedMemPerBlockOptin);
    report.check("shared memory of a block", ">= 232448 B", text(shared) + " B", shared >= 232448);
}

// Runs a launch three times after a first one, and returns the shortest time in seconds.
template <typename Launch>
double seconds_of(const Launch& launch) {
    cudaEvent_t start, stop;
    must(cudaEventCreate(&start), "cudaEventCreate");
    must(cudaEventCreate(&stop), "cudaEventCreate");
    launch();
    float best = 1e30f;
    for (int i = 0; i < 3; ++i) {
        must(cudaEventRecord(start), "cudaEventRecord");
        launch();
        must(cudaEventRecord(stop), "cudaEventRecord");
        must(cudaEventSynchronize(stop), "cudaEventSynchronize");
        float milliseconds = 0.0f;
        must(cudaEventElapsedTime(&milliseconds, start, stop), "cudaEventElapsedTime");
        best = std::min(best, milliseconds);
    }
    return best / 1e3;
}

// Measures a kernel on all multiprocessors. `work` is a block's work per round, in units of `unit`; `peak` is
// the theoretical rate per clock and multiprocessor, or 0.
struct Rate {
    std::string name;
    const void* kernel;
    uint32_t threads;
    uint32_t shared;
    uint32_t rounds;
    double work;
    double peak;
    const char* unit;
};

inline void measure(Report& report, const Rate& rate) {
    const auto blocks = static_cast<uint32_t>(attribute(cudaDevAttrMultiProcessorCount));
    const Array<uint64_t> clocks(blocks);
    const Array<float> out(static_cast<size_t>(blocks) * rate.threads);
    const RateParams params{clocks.at(), out.at(), rate.rounds, 0};
    const double seconds = seconds_of(
        [&] { launch(rate.name.c_str(), rate.kernel, blocks, rate.threads, rate.shared, params); });
    std::vector<uint64_t> all = clocks.read();
    std::nth_element(all.begin(), all.begin() + blocks / 2, all.end());
    const double total = rate.rounds * rate.work, clock = static_cast<double>(all[blocks / 2]);
    report.rate(rate.name, LEAST * rate.peak, total / clock, rate.unit);
    char text[64];
    std::snprintf(text, sizeof text, "%.4g T per s at %.0f MHz", total * blocks / seconds / 1e12,
                  clock / seconds / 1e6);
    report.note(rate.name + ", the whole GPU", text);
}

inline void rates(Report& report) {
    const char* unit = "FLOP per clock";
    // A multiprocessor multiplies and adds 4,096 E4M3 or 2,048 BF16 numbers per clock. With few rows of B,
    // reading the operands takes longer, so that only large products have a bound.
#define PROBE_MEASURE(kind, name, depth, n)                                                   \
    measure(report, {name ", n = " #n, reinterpret_cast<const void*>(octant_rate_##kind##_##n), \
                     RATE_THREADS, (128 + n) * PROBE_CHUNK, 40,                               \
                     2.0 * 2 * 64 * n * depth * ROUND, n >= 128 ? 2.0 * 128 * depth : 0.0, unit})
#define PROBE_MEASURE_ALL(kind, name, depth)  \
    PROBE_MEASURE(kind, name, depth, 8);      \
    PROBE_MEASURE(kind, name, depth, 16);     \
    PROBE_MEASURE(kind, name, depth, 32);     \
    PROBE_MEASURE(kind, name, depth, 64);     \
    PROBE_MEASURE(kind, name, depth, 128);    \
    PROBE_MEASURE(kind, name, depth, 256)
    PROBE_MEASURE_ALL(e4m3, "wgmma E4M3", 32);
    PROBE_MEASURE_ALL(bf16, "wgmma BF16", 16);
    measure(report, {"mma.sync F16", reinterpret_cast<const void*>(octant_rate_mma_f16), 512, 0, 4000,
                     2.0 * 16 * 8 * 16 * 8 * 16, 0.0, unit});
    measure(report, {"shared memory", reinterpret_cast<const void*>(octant_rate_shared), 512, 8 * 512 * 16,
                     2000, 8.0 * 512 * 16, 128.0, "B per clock"});
}

// Reads of HBM by loads and by bulk copies, whose faster one is the roof, and of L2.
inline void memory(Report& report) {
    const auto processors = static_cast<uint32_t>(attribute(cudaDevAttrMultiProcessorCount));
    // What all threads load at a time, and about 4 GB and 17 MB of it.
    const size_t many = processors * 4ull * 512 * 16 * AHEAD, few = processors * 2ull * 256 * 16 * AHEAD;
    const size_t large_bytes = 120 * many, small_bytes = 2 * few;
    const Array<unsigned char> data(large_bytes);
    const Array<uint32_t> out(1);
    must(cudaMemset(data.at(), 1, large_bytes), "cudaMemset");
    const ReadParams large{data.at(), out.at(), large_bytes, 1, 0};
    const ReadParams small{data.at(), out.at(), small_bytes, 50, 0};
    const auto terabytes = [](const ReadParams& p, double seconds) {
        return static_cast<double>(p.bytes) * p.rounds / seconds / 1e12;
    };
    const double least = LEAST * memory_peak() / 1e12;
    const double loads =
        terabytes(large, seconds_of([&] { PROBE_LAUNCH(read_loads, processors * 4, 512, 0, large); }));
    report.rate("HBM, by loads", least, loads, "TB/s");
    const double copies = terabytes(large, seconds_of([&] {
        PROBE_LAUNCH(read_copies, processors, 32, COPY_STAGES * COPY_BYTES, large);
    }));
    report.rate("HBM, by bulk copies", least, copies, "TB/s");
    report.rate("HBM, the roof", least, std::max(loads, copies), "TB/s");
    const double l2 =
        terabytes(small, seconds_of([&] { PROBE_LAUNCH(read_l2, processors * 2, 256, 0, small); }));
    report.rate("L2, by loads", std::max(loads, copies), l2, "TB/s");
    // `l2` of models/*.toml, as src/cost/linear.rs uses it: a copy to two blocks counts once.
    const ReadParams chunks{data.at(), out.at(), small_bytes, 20000, 0};
    const auto of_chunks = [&](double bytes, double seconds) {
        return bytes * chunks.rounds * processors / seconds / 1e12;
    };
    const double alone =
        seconds_of([&] { PROBE_LAUNCH(read_chunks, processors, 64, LINEAR_SHARED, chunks); });
    report.rate("L2, by bulk copies", std::max(loads, copies), of_chunks(2.0 * COPY_BYTES, alone), "TB/s");
    const double paired =
        seconds_of([&] { PROBE_LAUNCH(read_chunks_in_pairs, processors, 64, LINEAR_SHARED, chunks); });
    report.rate("L2, by bulk copies in clusters", 0.0, of_chunks(1.5 * COPY_BYTES, paired), "TB/s");
}

}  // namespace probe
