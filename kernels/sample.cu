// OP: sample: a token per row of logits after bias, penalties and masks, greedy or with temperature among the
//     tokens that top-k, top-p and min-p keep; score: ln softmax of given tokens; shortlist: the largest of a
//     rank's logits after bias, penalties and masks; pick: sample from the shortlists of all ranks
// INPUTS: logits f32 [rows, stride], of which the first `vocab` count; rows of SampleRow; lists u32: (id,
//     bits of f32) of biases, ids barred, ids of the prompt, (id, occurrences) of the output
// OUTPUTS: out SampleResult [rows]; sample and pick: last u32 [slots], at the row's slot; shortlists f32
//     [rows, 2 * SHORTLIST], values and then ids, for each rank one after the other; work f32 [rows, vocab]
//     and seen u32 [rows, (vocab + 31) / 32] are scratch
// LAUNCH: one block per row; vocab alone decides its number of threads, 32 to 512; no dynamic shared memory
// LIMITS: every id below vocab; every slot within last and used once; ids of the output used once; at most 20
//     alternatives
// NUMERICS: probabilities relative to the largest, in fixed point of 40 bits, so that sums do not depend on
//     their order; tokens differ from the CPU twin's if the random number of 53 bits falls within 1e-6 of a
//     boundary; log-probabilities within 1e-5
// COST: rows * vocab * 4 bytes from L2 each time that logits are read: by sample 3 times for greedy rows, 5
//     times without filters, 30 times with top-k and top-p, and for log-probabilities 2 times and once more
//     per alternative; by shortlist 13 times; by score 3 times and once more per alternative. By pick, rows *
//     ranks * SHORTLIST * 4 bytes 29 times with top-k and top-p
// TWINS: src/device/cpu/sample.rs
#include "device.cuh"

// The largest number of threads of a block.
constexpr uint32_t THREADS = 512;
constexpr uint32_t MAX_ALTERNATIVES = 20;
constexpr uint32_t SHORTLIST = 64;
// Logits that a thread loads at a time where it needs many, so that it waits for L2 less often.
constexpr uint32_t LOADS = 4;

struct SampleRow {
    float temperature, top_p, min_p, repetition, presence, frequency;
    uint32_t top_k, position;
    uint32_t seed_low, seed_high;
    // Alternatives to report; negative for no log-probability at all.
    int32_t logprobs;
    // For `score`: the id of the token to score.
    uint32_t target;
    // For each list, the index of its first word in `lists` and its number of entries.
    uint32_t bias_begin, bias_count, barred_begin, barred_count;
    uint32_t prompt_begin, prompt_count, output_begin, output_count;
    // Words of 32 ids, lowest bit first: ids whose bit is 0 are masked; no words mask none. The bit of the
    // first logit is number `allowed_bit` of the first word.
    uint32_t allowed_begin, allowed_count, allowed_bit;
    // The index in `last` at which the token is stored for the next step.
    uint32_t slot;
};
static_assert(sizeof(SampleRow) == 96);

struct SampleResult {
    uint32_t token;
    // Set if the row holds NaN or infinity, or every token is masked.
    uint32_t non_finite;
    float logprob;
    // The token's place among all tokens, from 1 on, in the order of keys.
    uint32_t rank;
    uint32_t alternatives;
    uint32_t ids[MAX_ALTERNATIVES];
    float logprobs[MAX_ALTERNATIVES];
};
static_assert(sizeof(SampleResult) == 180);

struct SampleParams {
    const float* logits;
    const SampleRow* rows;
    const uint32_t* lists;
    float* work;
    uint32_t* seen;
    SampleResult* out;
    uint32_t* last;
    float* shortlists;
    // Elements from one row to the next in `logits`, or for `pick` in `shortlists`.
    uint32_t stride;
    // Logits per row that count; for `pick` all candidates of the shortlists.
    uint32_t vocab;
    // For `shortlist`: the id of the first logit.
    uint32_t first;
    uint32_t unused;
};
static_assert(sizeof(SampleParams) == 80);

template <typename T, typename F>
DEVICE T block_fold(T x, F f) {
    SHARED unsigned char memory[THREADS / 32 * sizeof(T)];
    auto* partial = reinterpret_cast<T*>(memory);
    for (int step = 16; step > 0; step /= 2) x = f(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads();
    if (lane_id() == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    T all = partial[0];
    for (uint32_t warp = 1; warp < blockDim.x / 32; ++warp) all = f(all, partial[warp]);
    return all;
}

struct Add {
    template <typename T>
    DEVICE_MEMBER T operator()(T a, T b) const {
        return a + b;
    }
};
struct Larger {
    template <typename T>
    DEVICE_MEMBER T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};

// Keys order candidates: larger logits have larger keys; of equal logits the lower id has the larger key.
DEVICE uint64_t key_of(float x, uint32_t id) {
    const uint32_t bits = __float_as_uint(x);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~id);
}
DEVICE uint32_t id_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

// The key of the largest logit below `below`; 0 if there is none above -infinity.
DEVICE uint64_t largest_below(const float* x, uint32_t vocab, uint64_t below) {
    uint64_t best = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) {
        const uint64_t key = key_of(x[i], i);
        if (x[i] > -INFINITY && key < below && key > best) best = key;
    }
    return block_fold(best, Larger{});
}

DEVICE bool finite(const float* x, uint32_t vocab) {
    uint32_t bad = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) bad += !isfinite(x[i]);
    return block_fold(bad, Add{}) == 0;
}

// Applies bias, penalties and masks, which depend on tokens rather than on probabilities.
DEVICE void adjust(const SampleParams& p, const SampleRow& row, const float* raw, float* x) {
    const uint32_t words = (p.vocab + 31) / 32;
    uint32_t* seen = p.seen + static_cast<size_t>(blockIdx.x) * words;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) x[i] = raw[i];
    for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) seen[i] = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        // One thread adds the biases, since an id may occur twice.
        const uint32_t* bias = p.lists + row.bias_begin;
        for (uint32_t i = 0; i < row.bias_count; ++i) x[bias[2 * i]] += __uint_as_float(bias[2 * i + 1]);
    }
    __syncthreads();
    if (row.repetition != 1.0f) {
        for (uint32_t i = threadIdx.x; i < row.prompt_count + row.output_count; i += blockDim.x) {
            const uint32_t id = i < row.prompt_count ? p.lists[row.prompt_begin + i]
                                                     : p.lists[row.output_begin + 2 * (i - row.prompt_count)];
            const uint32_t bit = 1u << id % 32;
            if (atomicOr(&seen[id / 32], bit) & bit) continue;
            x[id] = x[id] > 0.0f ? x[id] / row.repetition : x[id] * row.repetition;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.output_count; i += blockDim.x) {
        const uint32_t* entry = p.lists + row.output_begin + 2 * i;
        x[entry[0]] -= row.presence + row.frequency * static_cast<float>(entry[1]);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.barred_count; i += blockDim.x) {
        x[p.lists[row.barred_begin + i]] = -INFINITY;
    }
    if (row.allowed_count > 0) {
        const uint32_t* allowed = p.lists + row.allowed_begin;
        for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
            const uint32_t bit = i + row.allowed_bit;
            if ((allowed[bit / 32] >> bit % 32 & 1) == 0) x[i] = -INFINITY;
        }
    }
    __syncthreads();
}

// A random number in [0, 1) of 53 bits: Philox4x32-10 of Salmon et al. (SC 2011) with key `seed` and counter
// `position`.
DEVICE double uniform(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
    uint32_t counter[4] = {position, 0, 0, 0}, key[2] = {seed_low, seed_high};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = 0xD2511F53ull * counter[0], b = 0xCD9E8D57ull * counter[2];
        const auto a_high = static_cast<uint32_t>(a >> 32), a_low = static_cast<uint32_t>(a);
        const auto b_high = static_cast<uint32_t>(b >> 32), b_low = static_cast<uint32_t>(b);
        const uint32_t next[4] = {b_high ^ counter[1] ^ key[0], b_low, a_high ^ counter[3] ^ key[1], a_low};
        for (int i = 0; i < 4; ++i) counter[i] = next[i];
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    const uint64_t bits = (static_cast<uint64_t>(counter[0]) << 32 | counter[1]) >> 11;
    return static_cast<double>(bits) / 9007199254740992.0;
}

// Adds `amount` to the histogram's `digit`; every lane of a warp calls it. Many candidates have the same
// first digits, and an addition of 64 bits to shared memory is repeated until no other thread interferes. So
// lanes with a digit in common add their amounts first, for up to COMMON digits.
DEVICE void add_by_digit(unsigned long long* histogram, uint32_t digit, unsigned long long amount) {
    constexpr int COMMON = 3;
    uint32_t left = __ballot_sync(~0u, amount > 0);
#pragma unroll 1
    for (int round = 0; round < COMMON && left != 0; ++round) {
        const int leader = __ffs(static_cast<int>(left)) - 1;
        const uint32_t common = __shfl_sync(~0u, digit, leader);
        const bool same = amount > 0 && digit == common;
        unsigned long long sum = same ? amount : 0;
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (static_cast<int>(lane_id()) == leader) atomicAdd(&histogram[digit], sum);
        if (same) amount = 0;
        left = __ballot_sync(~0u, amount > 0);
    }
    if (amount > 0) atomicAdd(&histogram[digit], amount);
}

// A digit of a key, and what candidates with this digit must reach.
struct Digit {
    uint32_t digit;
    uint64_t target;
};

// Finds the digit at which the sum of the histogram, from digit 255 down, reaches `target`. The lanes of one
// warp call it, and one of them stores the result.
DEVICE void find_digit(const unsigned long long* histogram, uint64_t target, Digit& found) {
    // Eight digits of each lane.
    const uint32_t top = 255 - 8 * lane_id();
    uint64_t own = 0;
    for (uint32_t i = 0; i < 8; ++i) own += histogram[top - i];
    uint64_t sum = own;
    for (unsigned step = 1; step < 32; step *= 2) {
        const uint64_t before = __shfl_up_sync(~0u, sum, step);
        if (lane_id() >= step) sum += before;
    }
    if (target <= sum - own || target > sum) return;
    target -= sum - own;
    uint32_t digit = top;
    for (; histogram[digit] < target; --digit) target -= histogram[digit];
    found = {digit, target};
}

// The tokens that may be sampled, with weights relative to the most probable one in units of 2^-40.
struct Candidates {
    const float* x;
    uint32_t vocab;
    float best;
    float temperature;
    float min_p;
    // The smallest key of a candidate.
    uint64_t cut;

    DEVICE_MEMBER uint64_t weight(float logit) const {
        const double weight = exp(static_cast<double>(logit - best) / static_cast<double>(temperature));
        return weight < static_cast<double>(min_p) ? 0 : static_cast<uint64_t>(weight * 1099511627776.0);
    }

    DEVICE_MEMBER uint64_t value(float logit, uint32_t i, bool count) const {
        if (!(logit > -INFINITY) || key_of(logit, i) < cut) return 0;
        return count ? 1 : weight(logit);
    }
    DEVICE_MEMBER uint64_t value(uint32_t i, bool count) const { return value(x[i], i, count); }

    DEVICE_MEMBER uint64_t total() const {
        uint64_t sum = 0;
        for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) sum += value(i, false);
        return block_fold(sum, Add{});
    }

    // The key at which the number (or weight) of candidates, from the largest key down, reaches `target`.
    // `target` is at least 1 and at most the total. Finds the key one digit of 8 bits at a time.
    DEVICE_MEMBER uint64_t reach(uint64_t target, bool count) const {
        SHARED unsigned long long histogram[256];
        SHARED Digit next;
        uint64_t prefix = 0;
        for (int shift = 56; shift >= 0; shift -= 8) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
            __syncthreads();
            // Every lane takes part in each round, also those beyond the last candidate.
            for (uint32_t first = threadIdx.x; first - threadIdx.x < vocab; first += LOADS * blockDim.x) {
                float logits[LOADS];
#pragma unroll
                for (uint32_t load = 0; load < LOADS; ++load) {
                    const uint32_t i = first + load * blockDim.x;
                    logits[load] = i < vocab ? x[i] : -INFINITY;
                }
#pragma unroll
                for (uint32_t load = 0; load < LOADS; ++load) {
                    const uint32_t i = first + load * blockDim.x;
                    const uint64_t key = key_of(logits[load], i);
                    const bool has_prefix = shift == 56 || key >> (shift + 8) == prefix;
                    add_by_digit(histogram, static_cast<uint32_t>(key >> shift & 255),
                                 has_prefix ? value(logits[load], i, count) : 0);
                }
            }
            __syncthreads();
            if (threadIdx.x < 32) find_digit(histogram, target, next);
            __syncthreads();
            prefix = prefix << 8 | next.digit;
            target = next.target;
        }
        return prefix;
    }

    // The first id at which the weight of candidates, from the lowest id up, exceeds `threshold`.
    DEVICE_MEMBER uint32_t reach_by_id(uint64_t threshold) const {
        SHARED uint64_t sums[THREADS];
        SHARED uint32_t found;
        const uint32_t part = (vocab + blockDim.x - 1) / blockDim.x;
        const uint32_t begin = min(vocab, threadIdx.x * part), end = min(vocab, begin + part);
        uint64_t sum = 0;
        for (uint32_t i = begin; i < end; ++i) sum += value(i, false);
        __syncthreads();
        sums[threadIdx.x] = sum;
        __syncthreads();
        uint64_t before = 0;
        for (uint32_t i = 0; i < threadIdx.x; ++i) before += sums[i];
        if (before <= threshold && threshold < before + sum) {
            uint32_t i = begin;
            uint64_t reached = before + value(i, false);
            for (; reached <= threshold; reached += value(i, false)) ++i;
            found = i;
        }
        __syncthreads();
        return found;
    }
};

// Samples one of the candidates; returns its id.
DEVICE uint32_t draw(const SampleParams& p, const SampleRow& row, const float* x, float best) {
    Candidates candidates{x, p.vocab, best, row.temperature, 0.0f, 0};
    if (row.top_k > 0 && row.top_k < p.vocab) {
        uint32_t possible = 0;
        for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) possible += x[i] > -INFINITY;
        if (row.top_k < block_fold(possible, Add{})) candidates.cut = candidates.reach(row.top_k, true);
    }
    if (row.top_p < 1.0f) {
        const double mass = static_cast<double>(row.top_p) * static_cast<double>(candidates.total());
        candidates.cut = candidates.reach(max(static_cast<uint64_t>(mass), static_cast<uint64_t>(1)), false);
    }
    candidates.min_p = row.min_p;
    const double random = uniform(row.seed_low, row.seed_high, row.position);
    // The product may be rounded up to the total.
    const uint64_t total = candidates.total();
    const auto share = static_cast<uint64_t>(random * static_cast<double>(total));
    const uint64_t threshold = min(share, total - 1);
    if (row.top_k > 0 || row.top_p < 1.0f) return id_of(candidates.reach(threshold + 1, false));
    return candidates.reach_by_id(threshold);
}

// Reports ln softmax of the raw logits for a token and the most probable ones, and the token's rank.
DEVICE void report(const float* raw, uint32_t vocab, uint32_t token, uint32_t alternatives,
                   SampleResult& out) {
    const float largest = raw[id_of(largest_below(raw, vocab, ~0ull))];
    const uint64_t own = key_of(raw[token], token);
    double sum = 0.0;
    uint32_t ahead = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) {
        sum += static_cast<double>(expf(raw[i] - largest));
        ahead += key_of(raw[i], i) > own;
    }
    const double log_sum = static_cast<double>(largest) + log(block_fold(sum, Add{}));
    ahead = block_fold(ahead, Add{});
    uint64_t key = ~0ull;
    uint32_t found = 0;
    for (; found < alternatives; ++found) {
        key = largest_below(raw, vocab, key);
        if (key == 0) break;
        if (threadIdx.x == 0) {
            out.ids[found] = id_of(key);
            out.logprobs[found] = static_cast<float>(static_cast<double>(raw[id_of(key)]) - log_sum);
        }
    }
    if (threadIdx.x == 0) {
        out.alternatives = found;
        out.rank = ahead + 1;
        out.logprob = static_cast<float>(static_cast<double>(raw[token]) - log_sum);
    }
}

KERNEL(sample, SampleParams, THREADS) {
    const SampleRow& row = p.rows[blockIdx.x];
    SampleResult& out = p.out[blockIdx.x];
    const float* raw = p.logits + static_cast<size_t>(blockIdx.x) * p.stride;
    float* x = p.work + static_cast<size_t>(blockIdx.x) * p.vocab;
    bool sound = finite(raw, p.vocab);
    uint32_t token = 0;
    if (sound) {
        adjust(p, row, raw, x);
        const uint64_t best = largest_below(x, p.vocab, ~0ull);
        sound = best != 0;
        if (sound) token = row.temperature == 0.0f ? id_of(best) : draw(p, row, x, x[id_of(best)]);
    }
    if (threadIdx.x == 0) {
        // A row without a token stores 0: its sequence ends, but the next step may already be enqueued.
        p.last[row.slot] = out.token = token;
        out.non_finite = !sound;
    }
    if (sound && row.logprobs >= 0) report(raw, p.vocab, token, static_cast<uint32_t>(row.logprobs), out);
}

KERNEL(shortlist, SampleParams, THREADS) {
    SHARED uint32_t counts[THREADS];
    const float* raw = p.logits + static_cast<size_t>(blockIdx.x) * p.stride;
    float* x = p.work + static_cast<size_t>(blockIdx.x) * p.vocab;
    float* values = p.shortlists + static_cast<size_t>(blockIdx.x) * 2 * SHORTLIST;
    float* ids = values + SHORTLIST;
    const bool sound = finite(raw, p.vocab);
    for (uint32_t i = threadIdx.x; i < SHORTLIST; i += blockDim.x) {
        values[i] = sound || i > 0 ? -INFINITY : NAN;
        ids[i] = 0.0f;
    }
    if (!sound) return;
    adjust(p, p.rows[blockIdx.x], raw, x);
    uint32_t possible = 0;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) possible += x[i] > -INFINITY;
    Candidates candidates{x, p.vocab, 0.0f, 1.0f, 0.0f, 0};
    if (block_fold(possible, Add{}) > SHORTLIST) candidates.cut = candidates.reach(SHORTLIST, true);
    // Each thread has consecutive ids, so that the list is in the order of ids.
    const uint32_t part = (p.vocab + blockDim.x - 1) / blockDim.x;
    const uint32_t begin = min(p.vocab, threadIdx.x * part), end = min(p.vocab, begin + part);
    uint32_t count = 0;
    for (uint32_t i = begin; i < end; ++i) count += candidates.value(i, true) != 0;
    counts[threadIdx.x] = count;
    __syncthreads();
    uint32_t place = 0;
    for (uint32_t i = 0; i < threadIdx.x; ++i) place += counts[i];
    for (uint32_t i = begin; i < end; ++i) {
        if (candidates.value(i, true) == 0) continue;
        values[place] = x[i];
        ids[place++] = static_cast<float>(p.first + i);
    }
}

KERNEL(pick, SampleParams, THREADS) {
    const SampleRow& row = p.rows[blockIdx.x];
    SampleResult& out = p.out[blockIdx.x];
    const float* lists = p.shortlists + static_cast<size_t>(blockIdx.x) * p.stride;
    float* x = p.work + static_cast<size_t>(blockIdx.x) * p.vocab;
    uint32_t bad = 0;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
        x[i] = lists[2 * (i - i % SHORTLIST) + i % SHORTLIST];
        bad += isnan(x[i]);
    }
    bool sound = block_fold(bad, Add{}) == 0;
    uint32_t token = 0;
    if (sound) {
        const uint64_t best = largest_below(x, p.vocab, ~0ull);
        sound = best != 0;
        if (sound) {
            const uint32_t i = row.temperature == 0.0f ? id_of(best) : draw(p, row, x, x[id_of(best)]);
            token = static_cast<uint32_t>(lists[2 * (i - i % SHORTLIST) + SHORTLIST + i % SHORTLIST]);
        }
    }
    if (threadIdx.x == 0) {
        p.last[row.slot] = out.token = token;
        out.non_finite = !sound;
    }
}

KERNEL(score, SampleParams, THREADS) {
    const SampleRow& row = p.rows[blockIdx.x];
    SampleResult& out = p.out[blockIdx.x];
    const float* raw = p.logits + static_cast<size_t>(blockIdx.x) * p.stride;
    const bool sound = finite(raw, p.vocab);
    if (threadIdx.x == 0) {
        out.token = row.target;
        out.non_finite = !sound;
    }
    if (sound) report(raw, p.vocab, row.target, static_cast<uint32_t>(row.logprobs), out);
}
