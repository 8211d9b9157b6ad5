// OP: residual += the sum over ranks of delta; out = quant(norm(residual)): reduce_norm, one-shot, for few
//     rows of BF16 parts. Ranks send one another packets and wait for no signal
// INPUTS: delta bf16 [rows, cols]; residual f32 [rows, cols]; weight f32 [cols], bias f32 [cols] or null;
//     packets of each rank [3][ranks][capacity], all words EMPTY before the first operation
// OUTPUTS: residual; out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: any number of blocks; cols alone decides their number of threads, 32 to 512; 4 * cols bytes of
//     shared memory, and 4 or 8 * cols more for weights and biases if `copied`; every rank launches the same
//     operations in the same order, with the same number of blocks
// LIMITS: up to 8 ranks; cols a multiple of 16, at most 36,000; rows * cols / 8 at most capacity
// NUMERICS: those of reduce_norm.cu, bit for bit
// COST: per rank over the link: sends and receives rows * cols * 2 * (ranks - 1) bytes; bound by latency
// TWINS: src/comm/local.rs
#include "norm_weights.cuh"
#include "peers.cuh"

struct PacketNormParams {
    Peers peers;
    uint4* packets[MAX_RANKS];
    const uint4* delta;
    float* residual;
    const float* weight;
    const float* bias;
    Quantised out;
    uint32_t rows;
    uint32_t cols;
    uint32_t layer_norm;
    float eps;
    // Packets of a rank in a set.
    uint32_t capacity;
    // Whether weights and biases are copied to shared memory while the ranks wait for one another.
    uint32_t copied;
};
static_assert(sizeof(PacketNormParams) == 240);

// The word of a packet that has not been written.
constexpr uint32_t EMPTY = 0x80008000;

DEVICE bool is_complete(const uint4& packet) {
    return packet.x != EMPTY && packet.y != EMPTY && packet.z != EMPTY && packet.w != EMPTY;
}

// Two negative zeros become two zeros: a sum is the same.
DEVICE uint32_t sent(uint32_t word) { return word == EMPTY ? 0 : word; }

struct Exchange {
    const PacketNormParams& p;
    // The set of this operation.
    uint32_t set;

    // The packet `at` of what rank `from` sends to rank `to`.
    DEVICE_MEMBER uint4* packet(uint32_t to, uint32_t in, uint32_t from, size_t at) const {
        return p.packets[to] + (static_cast<size_t>(in) * p.peers.count + from) * p.capacity + at;
    }

    // Sends a packet to every other rank.
    DEVICE_MEMBER void send(size_t at) const {
        const uint4 own = p.delta[at];
        const uint4 words = make_uint4(sent(own.x), sent(own.y), sent(own.z), sent(own.w));
#pragma unroll
        for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= p.peers.count || rank == p.peers.rank) continue;
            store_packet(packet(rank, set, p.peers.rank, at), words);
        }
    }

    // Waits for the packets of all ranks and adds them in rank order. False if a rank does not send.
    DEVICE_MEMBER bool receive(size_t at, Eight& sum) const {
        uint4 parts[MAX_RANKS];
#pragma unroll
        for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= p.peers.count) continue;
            const bool own = rank == p.peers.rank;
            parts[rank] = own ? p.delta[at] : load_packet(packet(p.peers.rank, set, rank, at));
        }
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        sum = {zero, zero};
#pragma unroll
        for (uint32_t rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= p.peers.count) continue;
            if (rank != p.peers.rank && !is_complete(parts[rank])) {
                const auto here = [&] {
                    parts[rank] = load_packet(packet(p.peers.rank, set, rank, at));
                    return is_complete(parts[rank]);
                };
                if (!wait_for(p.peers, rank, here)) return false;
            }
            sum = add(sum, floats_of_bf16x8(parts[rank]));
        }
        return true;
    }

    // Empties the set of the operation before, of which every rank sent `count` packets.
    DEVICE_MEMBER void empty(uint32_t count) const {
        const uint4 words = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
        for (uint32_t rank = 0; rank < p.peers.count; ++rank) {
            for (uint64_t at = global_thread(); at < count; at += global_threads()) {
                store_packet(packet(p.peers.rank, (set + 2) % 3, rank, at), words);
            }
        }
    }
};

KERNEL(packet_norm, PacketNormParams, ROW_THREADS) {
    SHARED uint64_t weights_copied;
    Mailbox* own = p.peers.mailboxes[p.peers.rank];
    const uint32_t operation = operation_of(p.peers), groups = p.cols / 8;
    const Exchange exchange = {p, own->set};
    const SharedRow row = {reinterpret_cast<float*>(shared_memory()), p.cols};
    NormWeights norm = {p.weight, p.bias, p.layer_norm, p.eps};
    bool begun = load_acquire(&own->failed) == 0;
    // On the host a waiting thread blocks the other threads of its block, so that all send first.
    for (uint32_t index = blockIdx.x; begun && index < p.rows; index += gridDim.x) {
        row.each([&](uint32_t i) { exchange.send(static_cast<size_t>(index) * groups + i); });
    }
    if (p.copied) norm = copied(norm, p.cols, row.values + p.cols, &weights_copied);
    exchange.empty(own->exchanged);
    __syncthreads();
    for (uint32_t index = blockIdx.x; begun && index < p.rows; index += gridDim.x) {
        const size_t start = static_cast<size_t>(index) * groups;
        float sum = 0.0f;
        bool missed = false;
        row.each([&](uint32_t i) {
            Eight delta;
            missed = missed || !exchange.receive(start + i, delta);
            if (missed) return;
            const Eight x = add(eight_at(p.residual, false, start + i), delta);
            store_eight(p.residual, start + i, x);
            row.store(i, x);
            sum = sum_of(x, sum);
        });
        begun = __syncthreads_or(missed) == 0;
        if (!begun) break;
        if (p.copied) barrier_wait(&weights_copied, 0);
        const float amax = norm_row(row, sum, norm);
        store_row(row, amax, p.out, index);
        __syncthreads();
    }
    // The copies must have ended before the block does.
    if (p.copied) barrier_wait(&weights_copied, 0);
    // Orders the emptying before this rank's next packets, for the ranks that receive them.
    fence_system();
    if (all_end(p.peers, operation, false)) {
        own->set = (exchange.set + 1) % 3;
        own->exchanged = p.rows * groups;
    }
}
