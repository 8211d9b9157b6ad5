// Runs the kernels of ranks that access one another's memory on eight threads under ThreadSanitizer: writes
// to memory must be ordered before other ranks' reads, and those before the next writes. Everything is
// compiled in this file, so that the sanitizer sees every access. With the argument `broken`, consecutive
// reductions read the same deltas; with `early`, ranks push parts to deltas that others may still read. The
// sanitizer must find both races. `tests/gpu/p2p.rs` compiles and runs this program.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "../../kernels/host/async.cpp"
#include "../../kernels/host/cuda.cpp"
#include "../../kernels/host/multiply.cpp"
#include "../../kernels/host/numbers.cpp"
#include "../../kernels/host/products.cpp"

#include "../../kernels/gather.cu"
#include "../../kernels/linear.cu"
#include "../../kernels/packet_norm.cu"
#include "../../kernels/reduce.cu"
#include "../../kernels/reduce_norm.cu"

namespace {

constexpr uint32_t ranks = MAX_RANKS, cols = 64, max_rows = 9;
// Rows of a rank's deltas: the parts of all ranks for the rows that it sums.
constexpr uint32_t delta_rows = 16;
// Rows of the largest sum with packets; their columns, which two blocks of a cluster have; and its packets.
constexpr uint32_t packet_rows = 2, packet_cols = 512, capacity = packet_rows * packet_cols / 8;
// Elements of the buffers of all sums.
constexpr uint32_t elements = delta_rows * cols;
static_assert(packet_rows * packet_cols <= elements && max_rows * cols <= elements);

constexpr uint32_t cols_of(uint32_t rows) { return rows <= packet_rows ? packet_cols : cols; }

struct Rank {
    Mailbox mailbox = {};
    std::vector<float> residual, part, whole;
    // BF16.
    std::vector<uint16_t> deltas[2];
    std::vector<float> scales;
    std::unique_ptr<uint4[]> values;
    std::vector<uint4> packets;
    // A part that is pushed, BF16.
    std::vector<uint16_t> pushed;
};

enum class Fault { none, same_deltas, early };

std::vector<Rank> all(ranks);
uint32_t words[1 + MAX_RANKS];

// Launches two blocks of 32 threads, or two clusters of `cluster` blocks.
template <typename P>
void launch(const char* name, void (*kernel)(const void*), const P& params, uint32_t shared,
            uint32_t cluster = 1) {
    const OctantLaunch launch{name, kernel, &params, {2 * cluster, 1, 1}, 32, shared, 0, cluster};
    octant_launch(&launch);
}

Peers peers_of(uint32_t rank) {
    Peers peers{};
    for (uint32_t i = 0; i < ranks; ++i) peers.mailboxes[i] = &all[i].mailbox;
    peers.words = words;
    peers.timeout = 60'000'000'000;
    peers.rank = rank;
    peers.count = ranks;
    return peers;
}

void fill(std::vector<float>& floats, uint32_t rows, uint32_t seed) {
    for (uint32_t i = 0; i < rows * cols_of(rows); ++i) {
        floats[i] = static_cast<float>((i * 7919 + seed * 104729) % 10007) / 3001.0f - 1.7f;
    }
}

void fill(std::vector<uint16_t>& halves, uint32_t rows, uint32_t seed) {
    std::vector<float> floats(elements);
    fill(floats, rows, seed);
    // Some words are those of packets that have not been written.
    for (uint32_t i = 0; i < rows * cols_of(rows); ++i) {
        halves[i] = i % 16 / 2 == 3 ? 0x8000 : static_cast<uint16_t>(bf16x2(floats[i], 0.0f));
    }
}

// The first row that rank `rank` sums.
uint32_t first_row(uint32_t rank, uint32_t rows) { return rows * rank / ranks; }

// The address that row 0 of rank `from`'s pushed part would have in the delta of rank `to`.
unsigned char* part_of(uint32_t to, uint32_t from, uint32_t rows, uint32_t turn) {
    const ptrdiff_t first = first_row(to, rows), share = first_row(to + 1, rows) - first;
    auto* delta = reinterpret_cast<unsigned char*>(all[to].deltas[turn % 2].data());
    return delta + (from * share - first) * cols * 2;
}

// Stores a part as the kernels of products do, whose hundreds of threads would take a minute here.
struct PushParams {
    OutputRows out;
    const uint16_t* part;
    uint32_t rows;
};

KERNEL(push, PushParams, 32) {
    OutputCursor outputs = {p.out, cols, 0};
    for (uint32_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        uint16_t* to = outputs.at<uint16_t>(row);
        for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x) to[i] = p.part[row * cols + i];
    }
}

// Pushes a part to the ranks that sum its rows.
void push(uint32_t rank, uint32_t rows, uint32_t turn) {
    fill(all[rank].pushed, rows, rank + turn);
    PushParams p{};
    for (uint32_t to = 0; to < ranks; ++to) {
        p.out.base[to] = part_of(to, rank, rows, turn);
        p.out.ends[to] = first_row(to + 1, rows);
    }
    p.part = all[rank].pushed.data();
    p.rows = rows;
    launch("push", octant_push, p, 0);
}

// Sums the residuals, or adds the sum of deltas to them.
void reduce(uint32_t rank, uint32_t rows, bool adds, bool pushed) {
    ReduceParams p{};
    p.peers = peers_of(rank);
    p.parts_bf16 = adds;
    for (uint32_t i = 0; i < ranks; ++i) {
        const void* delta = all[i].deltas[1].data();
        if (pushed) delta = part_of(rank, i, rows, 1);
        p.parts[i] = adds ? delta : all[i].residual.data();
        p.targets[i] = reinterpret_cast<float4*>(all[i].residual.data());
    }
    p.base = adds ? reinterpret_cast<float4*>(all[rank].residual.data()) : nullptr;
    // By rows, like the two-shot mode.
    const uint32_t each = adds ? 8 : 4;
    p.first = first_row(rank, rows) * cols_of(rows) / each;
    p.last = first_row(rank + 1, rows) * cols_of(rows) / each;
    launch("reduce", octant_reduce, p, 0);
}

void reduce_norm(uint32_t rank, uint32_t rows, uint32_t turn, bool two_shot) {
    static const std::vector<float> weight(cols, 0.5f);
    ReduceNormParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) {
        p.deltas[i] = all[i].deltas[turn % 2].data();
        if (two_shot) p.deltas[i] = part_of(rank, i, rows, turn);
        auto* values = reinterpret_cast<unsigned char*>(all[i].values.get());
        p.out[i] = {values, all[i].scales.data(), 1, 1.0f, (rows + 7) / 8 * 8, 0};
    }
    p.residual = all[rank].residual.data();
    p.weight = weight.data();
    p.cols = cols;
    p.first = two_shot ? first_row(rank, rows) : 0;
    p.last = two_shot ? first_row(rank + 1, rows) : rows;
    p.two_shot = two_shot;
    p.eps = 1e-5f;
    p.delta_bf16 = 1;
    p.copied = !two_shot;
    launch("reduce_norm", octant_reduce_norm, p, 8 * cols + 2 * padded(cols));
}

void packet_norm(uint32_t rank, uint32_t rows, uint32_t turn) {
    static const std::vector<float> weight(packet_cols, 0.5f);
    PacketNormParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) p.packets[i] = all[i].packets.data();
    p.delta = reinterpret_cast<const uint4*>(all[rank].deltas[turn % 2].data());
    p.residual = all[rank].residual.data();
    p.weight = weight.data();
    auto* values = reinterpret_cast<unsigned char*>(all[rank].values.get());
    p.out = {values, all[rank].scales.data(), 1, 1.0f, (rows + 7) / 8 * 8, 0};
    p.rows = rows;
    p.cols = packet_cols;
    p.eps = 1e-5f;
    p.capacity = capacity;
    p.threads = packet_cols / 8;
    // A block has a slot for each of its threads.
    launch("packet_norm", octant_packet_norm, p, SliceExchange::BYTES + 2 * 32 * 32, SLICES);
}

void gather(uint32_t rank, uint32_t rows) {
    GatherParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) p.parts[i] = all[i].part.data();
    p.whole = all[rank].whole.data();
    p.rows = rows;
    p.cols = cols;
    launch("gather", octant_gather, p, 0);
}

// Reads the reduced rows, like the next operation of a step.
float read(uint32_t rank, uint32_t rows) {
    float sum = 0.0f;
    const auto* codes = reinterpret_cast<const unsigned char*>(all[rank].values.get());
    for (uint32_t chunk = 0; chunk < (cols_of(rows) + CHUNK - 1) / CHUNK; ++chunk) {
        const unsigned char* first = codes + chunk * ((rows + 7) / 8 * 8) * CHUNK;
        for (uint32_t i = 0; i < rows * CHUNK; ++i) sum += static_cast<float>(first[i]);
    }
    for (uint32_t row = 0; row < rows; ++row) sum += all[rank].scales[row];
    return sum;
}

// Sums parts in each of the modes, like a layer of a model.
void sum(uint32_t rank, uint32_t rows, uint32_t turn, Fault fault) {
    const uint32_t delta = fault == Fault::same_deltas ? 0 : turn;
    if (rows > 4) {
        push(rank, rows, delta);
        return reduce_norm(rank, rows, delta, true);
    }
    fill(all[rank].deltas[delta % 2], rows, rank + turn);
    if (rows <= packet_rows) {
        packet_norm(rank, rows, delta);
    } else {
        reduce_norm(rank, rows, delta, false);
        if (fault == Fault::early) push(rank, rows, delta);
    }
}

float steps(uint32_t rank, Fault fault) {
    float sums = 0.0f;
    for (uint32_t step = 0; step < 12; ++step) {
        const uint32_t rows = 1 + step * 5 % max_rows;
        fill(all[rank].residual, rows, rank + step);
        reduce(rank, rows, false, false);
        for (uint32_t turn = 0; turn < 4; ++turn) {
            sum(rank, rows, turn, fault);
            sums += read(rank, rows);
        }
        if (rows > 4) push(rank, rows, 1);
        reduce(rank, rows, true, rows > 4);
        for (uint32_t i = 0; i < rows * cols_of(rows); ++i) sums += all[rank].residual[i];
        for (uint32_t piece = 0; piece < 2; ++piece) {
            fill(all[rank].part, rows, rank + piece);
            gather(rank, rows);
            for (uint32_t i = 0; i < rows * cols * ranks; ++i) sums += all[rank].whole[i];
        }
    }
    return sums;
}

}  // namespace

int main(int count, char** arguments) {
    Fault fault = Fault::none;
    if (count > 1) fault = std::strcmp(arguments[1], "early") == 0 ? Fault::early : Fault::same_deltas;
    for (Rank& rank : all) {
        rank.pushed.resize(max_rows * cols);
        for (auto* floats : {&rank.residual, &rank.part}) floats->resize(elements);
        for (auto& delta : rank.deltas) delta.resize(elements);
        rank.whole.resize(max_rows * cols * ranks);
        rank.scales.resize(max_rows);
        rank.packets.resize(3 * ranks * capacity, make_uint4(EMPTY, EMPTY, EMPTY, EMPTY));
        rank.values = std::make_unique<uint4[]>(8 * packet_cols / 16);
        static_assert(8 * packet_cols >= (max_rows + 7) / 8 * 8 * CHUNK);
    }
    std::vector<float> sums(ranks);
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank] { sums[rank] = steps(rank, fault); });
    }
    for (std::thread& thread : threads) thread.join();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        if (sums[rank] != sums[0] || words[1 + rank] != 0) {
            const uint32_t missed = words[1 + rank];
            std::fprintf(stderr, "rank %u: %g, rank 0: %g; missed %u\n", rank, sums[rank], sums[0], missed);
            return 1;
        }
    }
    std::puts("eight ranks agree");
}
