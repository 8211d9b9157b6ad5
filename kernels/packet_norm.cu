// OP: residual += the sum over ranks of delta; out = quant(norm(residual)): reduce_norm, one-shot, for few
//     rows of BF16 parts. Ranks send one another packets and wait for no signal
// INPUTS: delta bf16 [rows, cols]; residual f32 [rows, cols]; weight f32 [cols], bias f32 [cols] or null;
//     packets of each rank [3][ranks][capacity], all words EMPTY before the first operation
// OUTPUTS: residual; out [rows, cols] as BF16, or as E4M3 with scales f32 [rows]
// LAUNCH: any number of clusters of 4 blocks; cols alone decides their threads, 32 to 640; shared memory of
//     1,984 bytes, and 32 per slot for each of row, weights and biases (row_slices.cuh); every rank launches
//     the same operations in the same order, with the same number of blocks
// LIMITS: up to 8 ranks; cols a multiple of 16, at most 36,000; rows * cols / 8 at most capacity
// NUMERICS: those of reduce_norm.cu, bit for bit
// COST: per rank over the link: sends and receives rows * cols * 2 * (ranks - 1) bytes; bound by latency
// TWINS: src/comm/local.rs
#include "peers.cuh"
#include "row_slices.cuh"

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
    // Threads of a block that would compute a row alone.
    uint32_t threads;
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

// A block that misses a packet takes part in what its cluster computes of the rows, for the others to end.
KERNEL_CLUSTER(packet_norm, PacketNormParams, SLICE_THREADS, SLICES) {
    Mailbox* own = p.peers.mailboxes[p.peers.rank];
    const uint32_t operation = operation_of(p.peers), groups = p.cols / 8;
    const uint32_t first = blockIdx.x / SLICES, step = gridDim.x / SLICES;
    const Exchange exchange = {p, own->set};
    SliceExchange results = SliceExchange::in(shared_memory());
    auto* memory = reinterpret_cast<float*>(shared_memory() + SliceExchange::BYTES);
    const RowSlice slice = RowSlice::of(memory, p.cols, p.threads);
    const SharedRow& row = slice.slots;
    bool begun = load_acquire(&own->failed) == 0;
    for (uint32_t index = first; begun && index < p.rows; index += step) {
        const size_t start = static_cast<size_t>(index) * groups;
        slice.each(groups, [&](uint32_t, uint32_t group) { exchange.send(start + group); });
    }
    results.init();
    // They arrive while the ranks wait for one another.
    const NormWeights norm = copied({p.weight, p.bias, p.layer_norm, p.eps}, slice, memory + slice.floats());
    exchange.empty(own->exchanged);
    // Every block of the cluster has started. On the host a waiting thread blocks the other threads of its
    // cluster, so that all send first.
    cluster_begin();
    for (uint32_t index = first; index < p.rows; index += step) {
        const size_t start = static_cast<size_t>(index) * groups;
        bool missed = !begun;
        slice.each(groups, [&](uint32_t slot, uint32_t group) {
            const Eight before = eight_at(p.residual, false, start + group);
            Eight delta;
            missed = missed || !exchange.receive(start + group, delta);
            if (missed) return;
            const Eight x = add(before, delta);
            store_eight(p.residual, start + group, x);
            row.store(slot, x);
        });
        begun = __syncthreads_or(missed) == 0;
        const float amax = norm_slice(slice, results, norm);
        store_slice(slice, results, amax, p.out, index);
        ++results.rows;
    }
    // Orders the emptying before this rank's next packets, for the ranks that receive them.
    fence_system();
    if (all_end(p.peers, operation, false)) {
        own->set = (exchange.set + 1) % 3;
        own->exchanged = p.rows * groups;
    }
}
