// The kernels of ranks that reach one another's memory, by eight threads under ThreadSanitizer: what a rank reads of
// another's must have been written before, and what it overwrites must have been read. All is compiled here, since the
// sanitizer must see every access. With an argument, reductions in a row read the same deltas, which must be found.
// `tests/gpu/p2p.rs` compiles and runs it.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "../../kernels/host/cuda.cpp"

#include "../../kernels/gather.cu"
#include "../../kernels/reduce.cu"
#include "../../kernels/reduce_norm.cu"

namespace {

constexpr uint32_t ranks = MOST_RANKS, cols = 64, most_rows = 9;

struct Rank {
    Mailbox mailbox = {};
    std::vector<float> residual, deltas[2], part, whole;
    std::vector<float> scales;
    std::unique_ptr<uint4[]> values;
};

std::vector<Rank> all(ranks);
uint32_t words[1 + MOST_RANKS];

template <typename P>
void launch(const char* name, void (*kernel)(const void*), const P& params, uint32_t blocks, uint32_t threads, uint32_t shared) {
    const OctantLaunch launch{name, kernel, &params, {blocks, 1, 1}, threads, shared, 0};
    octant_launch(&launch);
}

Peers peers_of(uint32_t rank) {
    Peers peers{};
    for (uint32_t i = 0; i < ranks; ++i) peers.mailboxes[i] = &all[i].mailbox;
    peers.words = words;
    peers.patience = 60'000'000'000;
    peers.rank = rank;
    peers.count = ranks;
    return peers;
}

void fill(std::vector<float>& floats, uint32_t rows, uint32_t seed) {
    for (uint32_t i = 0; i < rows * cols; ++i) floats[i] = static_cast<float>((i * 7919 + seed * 104729) % 10007) / 3001.0f - 1.7f;
}

void reduce(uint32_t rank, uint32_t rows, std::vector<float> Rank::* parts, bool settles) {
    ReduceParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) {
        p.parts[i] = reinterpret_cast<float4*>((settles ? all[i].deltas[1] : all[i].*parts).data());
        p.targets[i] = reinterpret_cast<float4*>(all[i].residual.data());
    }
    p.base = settles ? reinterpret_cast<float4*>(all[rank].residual.data()) : nullptr;
    // As rows are shared out.
    p.first = rows * rank / ranks * cols / 4;
    p.last = rows * (rank + 1) / ranks * cols / 4;
    launch("reduce", octant_reduce, p, 2, 32, 0);
}

void reduce_norm(uint32_t rank, uint32_t rows, uint32_t turn, bool shared_out) {
    static const std::vector<float> weight(cols, 0.5f);
    ReduceNormParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) {
        p.deltas[i] = reinterpret_cast<float4*>(all[i].deltas[turn % 2].data());
        p.out[i] = {all[i].values.get(), all[i].scales.data(), 1, 1.0f};
    }
    p.residual = reinterpret_cast<float4*>(all[rank].residual.data());
    p.weight = weight.data();
    p.cols = cols;
    p.first = shared_out ? rows * rank / ranks : 0;
    p.last = shared_out ? rows * (rank + 1) / ranks : rows;
    p.shared_out = shared_out;
    p.eps = 1e-5f;
    launch("reduce_norm", octant_reduce_norm, p, 2, 32, 6 * cols);
}

void gather(uint32_t rank, uint32_t rows) {
    GatherParams p{};
    p.peers = peers_of(rank);
    for (uint32_t i = 0; i < ranks; ++i) p.parts[i] = all[i].part.data();
    p.whole = all[rank].whole.data();
    p.rows = rows;
    p.cols = cols;
    launch("gather", octant_gather, p, 2, 32, 0);
}

// What follows in a step reads what was reduced.
float read(uint32_t rank, uint32_t rows) {
    float sum = 0.0f;
    const auto* codes = reinterpret_cast<const unsigned char*>(all[rank].values.get());
    for (uint32_t i = 0; i < rows * cols; ++i) sum += static_cast<float>(codes[i]);
    for (uint32_t row = 0; row < rows; ++row) sum += all[rank].scales[row];
    return sum;
}

float steps(uint32_t rank, bool broken) {
    float sum = 0.0f;
    for (uint32_t step = 0; step < 12; ++step) {
        const uint32_t rows = 1 + step * 5 % most_rows;
        const bool shared_out = rows > 4;
        fill(all[rank].residual, rows, rank + step);
        reduce(rank, rows, &Rank::residual, false);
        for (uint32_t turn = 0; turn < 4; ++turn) {
            // Two in a row over one buffer is what must not be.
            fill(all[rank].deltas[broken ? 0 : turn % 2], rows, rank + turn);
            reduce_norm(rank, rows, broken ? 0 : turn, shared_out);
            sum += read(rank, rows);
        }
        reduce(rank, rows, nullptr, true);
        for (uint32_t i = 0; i < rows * cols; ++i) sum += all[rank].residual[i];
        for (uint32_t piece = 0; piece < 2; ++piece) {
            fill(all[rank].part, rows, rank + piece);
            gather(rank, rows);
            for (uint32_t i = 0; i < rows * cols * ranks; ++i) sum += all[rank].whole[i];
        }
    }
    return sum;
}

}  // namespace

int main(int count, char**) {
    const bool broken = count > 1;
    for (Rank& rank : all) {
        for (auto* floats : {&rank.residual, &rank.deltas[0], &rank.deltas[1], &rank.part}) floats->resize(most_rows * cols);
        rank.whole.resize(most_rows * cols * ranks);
        rank.scales.resize(most_rows);
        rank.values = std::make_unique<uint4[]>(most_rows * cols * 2 / 16);
    }
    std::vector<float> sums(ranks);
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < ranks; ++rank) threads.emplace_back([&, rank] { sums[rank] = steps(rank, broken); });
    for (std::thread& thread : threads) thread.join();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        if (sums[rank] != sums[0] || words[1 + rank] != 0) {
            std::fprintf(stderr, "rank %u: %g, rank 0: %g; missed %u\n", rank, sums[rank], sums[0], words[1 + rank]);
            return 1;
        }
    }
    std::puts("eight ranks agree");
}
