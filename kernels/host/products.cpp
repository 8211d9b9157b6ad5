// The products of warpgroups.
//
// All threads of a warpgroup issue the same products. The first to issue one notes it; the others are
// compared with it. An accumulator is kept here, as a matrix, from the first product that writes it until
// each thread takes its elements back at wgmma_wait.
#include "products.h"

#include <algorithm>

#include "fibers.h"

namespace host {

namespace {

// NaN.
constexpr uint32_t poison = 0xFFFFFFFF;

// Products from one commit to the next.
struct Committed {
    uint64_t end;
    uint32_t threads;
};

// [64][256], of which a product writes the first n columns, so that each element is always the same thread's.
struct Accumulator {
    std::vector<float> elements = std::vector<float>(rows * most_columns);
};

struct Warpgroup {
    // Products that have not run, from number `first` on, and groups from number `executed` on.
    std::vector<Product> products;
    std::vector<Committed> groups;
    uint64_t first = 0;
    uint64_t executed = 0;
    std::vector<Accumulator> accumulators;
};

// An accumulator in flight.
struct Use {
    float* d;
    uint32_t count;
    size_t slot;
    // The group of the last product that writes it.
    uint64_t group;
};

struct Named {
    Registers registers;
    std::vector<uint32_t> values;
};

// What a thread has done.
struct Thread {
    uint64_t issued = 0;
    uint64_t committed = 0;
    bool fenced = false;
    std::vector<Use> uses;
    // The arrays that the last fence named, the first `count` of `named`, with their values then.
    std::vector<Named> named;
    size_t count = 0;
};

struct Products {
    std::vector<Warpgroup> warpgroups;
    std::vector<Thread> threads;
    // Whether a thread has issued a product in this block.
    bool any = false;
};

// Those of the running block.
Products& all() {
    static thread_local std::array<Products, most_blocks> instances;
    return instances[block->rank];
}

// The thread that runs; the first call in a block resets everything.
Thread& this_thread() {
    Products& products = all();
    const size_t threads = block->fibers.size();
    if (!products.any) {
        if (threads % warpgroup_threads != 0) die("products in a block that is not of whole warpgroups");
        products.warpgroups.resize(threads / warpgroup_threads);
        products.threads.resize(threads);
        for (Warpgroup& group : products.warpgroups) {
            group.products.clear();
            group.groups.clear();
            group.first = group.executed = 0;
        }
        for (Thread& thread : products.threads) {
            thread.issued = thread.committed = thread.count = 0;
            thread.fenced = false;
            thread.uses.clear();
        }
        products.any = true;
    }
    return products.threads[running];
}

Warpgroup& this_warpgroup() { return all().warpgroups[running / warpgroup_threads]; }

// Calls `visit(element of d, index in the matrix)` for the elements of an accumulator that the running
// thread holds.
template <typename Visit>
void for_each_element(uint32_t n, const Visit& visit) {
    const size_t thread = running % warpgroup_threads, lane = thread % 32;
    const size_t corner = (thread / 32 * 16 + lane / 4) * most_columns + lane % 4 * 2;
    for (uint32_t j = 0; j < n / 8; ++j) {
        for (uint32_t i = 0; i < 4; ++i) visit(j * 4 + i, corner + i / 2 * 8 * most_columns + j * 8 + i % 2);
    }
}

bool overlaps(const Registers& registers, const Use& use) {
    const auto* at = static_cast<const unsigned char*>(registers.at);
    const auto* d = reinterpret_cast<const unsigned char*>(use.d);
    return at < d + use.count * 4 && d < at + registers.bytes;
}

// Checks that the last fence named registers that a product reads, and that they have not changed since.
void check_named(const Thread& thread, const void* at, uint32_t bytes) {
    for (size_t i = 0; i < thread.count; ++i) {
        const Named& named = thread.named[i];
        if (named.registers.at != at || named.registers.bytes != bytes) continue;
        if (std::memcmp(named.values.data(), at, bytes) == 0) return;
        die("a product reads registers that were written after the last wgmma_fence");
    }
    die("a product reads registers that the last wgmma_fence did not name");
}

// The slot of an accumulator, which it keeps while it is in flight.
size_t slot_of(Thread& thread, Warpgroup& group, float* d, uint32_t n, bool accumulate) {
    for (Use& use : thread.uses) {
        if (use.d == d && use.count == n / 2) {
            use.group = thread.committed;
            return use.slot;
        }
        if (overlaps({d, n * 2}, use)) die("a product writes a part of an accumulator in flight");
    }
    if (accumulate) check_named(thread, d, n * 2);
    size_t slot = 0;
    const auto is_taken = [&](const Use& use) { return use.slot == slot; };
    while (std::any_of(thread.uses.begin(), thread.uses.end(), is_taken)) ++slot;
    if (group.accumulators.size() <= slot) group.accumulators.resize(slot + 1);
    float* elements = group.accumulators[slot].elements.data();
    if (accumulate) for_each_element(n, [&](uint32_t i, size_t at) { elements[at] = d[i]; });
    std::memset(d, 0xFF, n * 2);
    thread.uses.push_back({d, n / 2, slot, thread.committed});
    return slot;
}

void put_fragment(Product& product, const uint32_t* a) {
    const size_t thread = running % warpgroup_threads, lane = thread % 32;
    for (uint32_t i = 0; i < 4; ++i) {
        uint16_t* pair = &product.a[thread / 32 * 16 + i % 2 * 8 + lane / 4][i / 2 * 8 + lane % 4 * 2];
        pair[0] = static_cast<uint16_t>(a[i]);
        pair[1] = static_cast<uint16_t>(a[i] >> 16);
    }
}

bool is_ready(const Warpgroup& group) {
    return !group.groups.empty() && group.groups[0].threads == warpgroup_threads;
}

}  // namespace

void begin_products() { all().any = false; }

bool products_are_ready() {
    const Products& products = all();
    return products.any && std::any_of(products.warpgroups.begin(), products.warpgroups.end(), is_ready);
}

void run_products() {
    std::vector<Warpgroup>& groups = all().warpgroups;
    const auto count = static_cast<uint32_t>(groups.size());
    for (uint32_t i = random_below(count);; i = (i + 1) % count) {
        Warpgroup& group = groups[i];
        if (!is_ready(group)) continue;
        const auto end = group.products.begin() + static_cast<ptrdiff_t>(group.groups[0].end - group.first);
        for (auto product = group.products.begin(); product != end; ++product) {
            multiply(*product, group.accumulators[product->slot].elements.data());
        }
        group.products.erase(group.products.begin(), end);
        group.first = group.groups[0].end;
        group.groups.erase(group.groups.begin());
        ++group.executed;
        return;
    }
}

bool products_have_run(size_t index, uint64_t groups) {
    return all().warpgroups[index / warpgroup_threads].executed >= groups;
}

void end_products() {
    if (!all().any) return;
    for (const Thread& thread : all().threads) {
        if (!thread.uses.empty()) die("a thread ended without waiting for its products");
    }
}

void fence_products(const Registers* named, size_t count) {
    Thread& thread = this_thread();
    thread.fenced = true;
    thread.count = count;
    if (thread.named.size() < count) thread.named.resize(count);
    for (size_t i = 0; i < count; ++i) {
        for (const Use& use : thread.uses) {
            if (overlaps(named[i], use)) die("wgmma_fence names an accumulator in flight");
        }
        thread.named[i].registers = named[i];
        thread.named[i].values.resize(named[i].bytes / 4);
        std::memcpy(thread.named[i].values.data(), named[i].at, named[i].bytes);
    }
}

void issue_product(Operand operand, uint32_t n, float* d, const uint32_t* a, uint64_t a_tile,
                   uint64_t b_tile, bool accumulate) {
    Thread& thread = this_thread();
    if (!thread.fenced) die("a product without a wgmma_fence after the last access to registers of products");
    Warpgroup& group = this_warpgroup();
    if (a != nullptr) check_named(thread, a, 16);
    const size_t slot = slot_of(thread, group, d, n, accumulate);
    const size_t index = thread.issued++ - group.first;
    if (index == group.products.size()) {
        group.products.push_back({operand, n, accumulate, slot, a_tile, b_tile, {}});
        if (a != nullptr) group.products.back().a.resize(rows);
    }
    Product& product = group.products[index];
    if (product.operand != operand || product.n != n || product.accumulate != accumulate ||
        product.slot != slot || product.a_tile != a_tile || product.b_tile != b_tile) {
        die("threads of a warpgroup issue different products");
    }
    if (a != nullptr) put_fragment(product, a);
}

void wait_for_products(uint32_t pending, const Registers* named, size_t count) {
    Thread& thread = this_thread();
    const uint64_t target = thread.committed > pending ? thread.committed - pending : 0;
    if (!products_have_run(running, target)) {
        block->fibers[running].round = target;
        wait_as(State::waits_for_products, "wgmma_wait");
    }
    std::vector<Use>& uses = thread.uses;
    for (size_t i = 0; i < uses.size();) {
        const Use use = uses[i];
        const bool is_named = std::any_of(named, named + count, [&](const Registers& registers) {
            return registers.at == use.d && registers.bytes == use.count * 4;
        });
        if (use.group >= target) {
            if (is_named) die("wgmma_wait names an accumulator that stays in flight");
            ++i;
            continue;
        }
        if (!is_named) die("wgmma_wait does not name an accumulator that it completes");
        for (uint32_t at = 0; at < use.count; ++at) {
            if (__float_as_uint(use.d[at]) != poison) die("a thread wrote to an accumulator in flight");
        }
        const float* elements = this_warpgroup().accumulators[use.slot].elements.data();
        for_each_element(use.count * 2, [&](uint32_t at, size_t from) { use.d[at] = elements[from]; });
        uses.erase(uses.begin() + static_cast<ptrdiff_t>(i));
        thread.fenced = false;
    }
}

}  // namespace host

void wgmma_commit() {
    using namespace host;
    Thread& thread = this_thread();
    Warpgroup& group = this_warpgroup();
    const size_t index = thread.committed++ - group.executed;
    if (index == group.groups.size()) group.groups.push_back({thread.issued, 0});
    Committed& committed = group.groups[index];
    if (committed.end != thread.issued) die("threads of a warpgroup commit different products");
    ++committed.threads;
}
