// Compares rows that a cluster of blocks computes (packet_norm, of one rank) with those of one block (norm):
// the residual, the quantised rows and their scales must have the same bits, for several numbers of warps and
// of slots of a thread. As a check of the comparison, sums in another order must give other bits.
// `tests/gpu/emulator.rs` compiles and runs this program.
#include <cstdio>
#include <vector>

#include "../../kernels/host/async.cpp"
#include "../../kernels/host/cuda.cpp"
#include "../../kernels/host/multiply.cpp"
#include "../../kernels/host/numbers.cpp"
#include "../../kernels/host/products.cpp"

#include "../../kernels/norm.cu"
#include "../../kernels/packet_norm.cu"

namespace {

constexpr uint32_t rows = 3;

struct Case {
    uint32_t cols, kind, layer_norm;
    bool biased, descending;
    // One cluster computes all rows, or two.
    uint32_t clusters;
};

// What a norm reads and writes.
struct Buffers {
    std::vector<float> residual, weight, bias, scales;
    std::vector<uint4> delta, values;

    explicit Buffers(uint32_t cols) : scales(8), delta(rows * cols / 8), values(padded(cols)) {
        const auto number = [](uint32_t i) { return static_cast<float>(i * 7919 % 10007) / 3001.0f - 1.7f; };
        for (uint32_t i = 0; i < rows * cols; ++i) {
            residual.push_back(number(i) * (i % 97 == 0 ? 50.0f : 1.0f));
        }
        for (uint32_t i = 0; i < cols; ++i) weight.push_back(number(i + 5)), bias.push_back(number(i + 9));
        auto* words = reinterpret_cast<uint32_t*>(delta.data());
        for (uint32_t i = 0; i < rows * cols / 2; ++i) words[i] = bf16x2(number(i + 3), number(3 * i));
    }

    Quantised out(uint32_t kind) {
        return {reinterpret_cast<unsigned char*>(values.data()), scales.data(), kind, 0.01f, 8, 0};
    }

    bool operator==(const Buffers& other) const {
        const auto same = [](const auto& a, const auto& b) {
            return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
        };
        return same(residual, other.residual) && same(scales, other.scales) && same(values, other.values);
    }
};

// Threads of a block that computes a row.
uint32_t threads_of(uint32_t cols) { return std::min(std::max((cols / 8 + 31) / 32 * 32, 32u), ROW_THREADS); }

Buffers by_block(const Case& one) {
    Buffers all(one.cols);
    NormParams p{};
    p.residual = all.residual.data();
    p.delta = all.delta.data();
    p.weight = all.weight.data();
    p.bias = one.biased ? all.bias.data() : nullptr;
    p.out = all.out(one.kind);
    p.cols = one.cols;
    p.layer_norm = one.layer_norm;
    p.eps = 1e-5f;
    p.delta_bf16 = 1;
    const OctantLaunch launch{"norm", octant_norm, &p, {rows, 1, 1}, threads_of(one.cols), 4 * one.cols, 0};
    octant_launch(&launch);
    return all;
}

// Launches clusters, whose blocks stand for `threads` threads.
Buffers by_cluster(const Case& one, uint32_t threads) {
    Buffers all(one.cols);
    const uint32_t capacity = rows * one.cols / 8;
    std::vector<uint4> packets(3 * capacity, make_uint4(EMPTY, EMPTY, EMPTY, EMPTY));
    Mailbox mailbox{};
    uint32_t words[1 + MAX_RANKS] = {};
    PacketNormParams p{};
    p.peers = {{&mailbox}, words, 60'000'000'000, 0, 1};
    p.packets[0] = packets.data();
    p.delta = all.delta.data();
    p.residual = all.residual.data();
    p.weight = all.weight.data();
    p.bias = one.biased ? all.bias.data() : nullptr;
    p.out = all.out(one.kind);
    p.rows = rows;
    p.cols = one.cols;
    p.layer_norm = one.layer_norm;
    p.eps = 1e-5f;
    p.capacity = capacity;
    p.threads = threads;
    const uint32_t lanes = (threads / 32 + SLICES - 1) / SLICES * 32;
    const uint32_t rounds = (padded(one.cols) / 8 + threads - 1) / threads;
    const uint32_t block = lanes * std::min(rounds, SLICE_THREADS / lanes);
    const uint32_t shared = SliceExchange::BYTES + (one.biased ? 3 : 2) * 32 * rounds * lanes;
    const OctantLaunch launch{"packet_norm", octant_packet_norm, &p,     {one.clusters * SLICES, 1, 1},
                              block,         shared,             one.descending, SLICES};
    octant_launch(&launch);
    return all;
}

// From one warp to all, from one slot of a thread to two, and rows with and without padding.
constexpr uint32_t all_cols[] = {16, 64, 560, 1040, 2048, 4624, 20624};

}  // namespace

int main() {
    uint32_t cases = 0, wrong = 0, others = 0;
    for (const uint32_t cols : all_cols) {
        for (uint32_t variant = 0; variant < 12; ++variant) {
            // The longest rows take long.
            if (cols > 10000 && variant % 5 != 1) continue;
            const Case one{cols, variant % 3, variant / 3 % 2, variant % 2 == 0, variant >= 6,
                           variant % 4 < 2 ? 1u : 2u};
            const Buffers expected = by_block(one);
            const bool right = by_cluster(one, threads_of(cols)) == expected;
            if (!right) {
                std::printf("%u columns, kind %u, layer_norm %u, biased %d, descending %d: other bits\n",
                            cols, one.kind, one.layer_norm, one.biased, one.descending);
            }
            ++cases, wrong += !right;
            if (cols == 1040 && one.kind == 1) others += !(by_cluster(one, 96) == expected);
        }
    }
    if (others == 0) std::puts("sums in another order have the same bits: this program compares nothing");
    if (wrong == 0 && others > 0) std::printf("%u rows by clusters have the bits of one block\n", cases);
    return wrong != 0 || others == 0;
}
