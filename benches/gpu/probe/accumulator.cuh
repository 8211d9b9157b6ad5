// Finds how tensor cores add: how many fraction bits of a product stay when a larger one is added, whether
// the rest is cut off or rounded, and whether the accumulator and all products of an instruction are treated
// alike. Every case is a sum of powers of two whose result tells the answers apart.
#pragma once

#include "products.cuh"

namespace probe {

// A product of ± 2^exponent, or half more than that.
struct Term {
    // The instruction, and the place along K in it.
    uint32_t instruction;
    uint32_t k;
    int exponent;
    bool half_more;
    bool negative;
};

// The exponent of the largest product of each case.
constexpr int TOP = 10;
// F32 holds as many fraction bits.
constexpr int MOST_BITS = 23;

// One element's sums.
class Sums {
public:
    explicit Sums(Kind kind) : kind_(kind), depth_(kind == Kind::e4m3 ? 32 : 16) {}

    uint32_t depth() const { return depth_; }

    // The sum that the instructions compute.
    double of(const std::vector<Term>& terms) const {
        Matrix a{64, std::vector<float>(64 * depth_ * 4)}, b{8, std::vector<float>(8 * depth_ * 4)};
        uint32_t instructions = 1;
        for (const Term& term : terms) {
            const int b_exponent = term.exponent / 2, a_exponent = term.exponent - b_exponent;
            const double magnitude = std::ldexp(term.half_more ? 1.5 : 1.0, a_exponent);
            const uint32_t at = term.instruction * depth_ + term.k;
            a.values[at] = static_cast<float>(term.negative ? -magnitude : magnitude);
            b.values[at] = static_cast<float>(std::ldexp(1.0, b_exponent));
            instructions = std::max(instructions, term.instruction + 1);
        }
        return product(kind_, 8, a, b, instructions)[0];
    }

    // The sum minus 2^TOP, in units of 2^(TOP - bits).
    double beyond_top(const std::vector<Term>& terms, int bits) const {
        return std::ldexp(of(terms) - std::ldexp(1.0, TOP), bits - TOP);
    }

    // The largest number of bits such that `terms_of(bits)` sums to one unit more than 2^TOP.
    template <typename Terms>
    int bits_kept(const Terms& terms_of) const {
        int bits = 0;
        while (bits < MOST_BITS && beyond_top(terms_of(bits + 1), bits + 1) == 1.0) ++bits;
        return bits;
    }

private:
    Kind kind_;
    uint32_t depth_;
};

inline std::string number(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", x);
    return text;
}

// How a positive and a negative three quarters of a unit are changed.
inline std::string rounding(double positive, double negative) {
    if (positive == 0.0 && negative == 0.0) return "cut off";
    if (positive == 1.0 && negative == -1.0) return "to nearest";
    if (positive == 0.0 && negative == -1.0) return "down";
    if (positive == 0.75 && negative == -0.75) return "exact";
    return number(positive) + " and " + number(negative);
}

// Checks one type of operands. `bits` is the expected number of fraction bits.
inline void accumulator_of(Report& report, Kind kind, int expected_bits) {
    const Sums sums(kind);
    const std::string name = name_of(kind);
    const uint32_t last = sums.depth() - 1;
    const auto expect = [&](const char* what, const std::string& expected, const std::string& got) {
        report.check(name + ": " + what, expected, got, got == expected);
    };
    const std::string expected = std::to_string(expected_bits);
    const Term top{0, 0, TOP, false, false};
    const int bits =
        sums.bits_kept([&](int r) { return std::vector{top, Term{0, 1, TOP - r, false, false}}; });
    expect("fraction bits of a product", expected, std::to_string(bits));
    // An accumulator that holds 2^TOP, and one that holds the smaller number.
    expect("fraction bits of a product, beside the accumulator", expected,
           std::to_string(sums.bits_kept([&](int r) {
               return std::vector{top, Term{1, 0, TOP - r, false, false}};
           })));
    expect("fraction bits of the accumulator", expected, std::to_string(sums.bits_kept([&](int r) {
               return std::vector{Term{0, 0, TOP - r, false, false}, Term{1, 0, TOP, false, false}};
           })));
    const auto three_quarters = [&](bool negative) {
        return sums.beyond_top({top, Term{0, 1, TOP - bits - 1, true, negative}}, bits);
    };
    const std::string rest = rounding(three_quarters(false), three_quarters(true));
    if (bits == MOST_BITS) return report.note(name + ": the rest of a product", rest);
    expect("the rest of a product", "cut off", rest);
    std::vector<Term> halves = {top};
    for (uint32_t k = 1; k <= last; ++k) halves.push_back({0, k, TOP - bits - 1, false, false});
    expect("halves of a unit, together", "0 units", number(sums.beyond_top(halves, bits)) + " units");
    // 2^TOP + 2^TOP and a unit: the sum needs a bit more.
    const Term second{0, 1, TOP, false, false}, unit{0, 2, TOP - bits, false, false};
    const double carried = std::ldexp(sums.of({top, second, unit}) - std::ldexp(1.0, TOP + 1), bits - TOP);
    expect("a unit after a carry", "0 units", number(carried) + " units");
    // 2^TOP - 2^TOP and half a unit at each place: it is lost where it is aligned with 2^TOP.
    uint32_t lost = 0;
    for (uint32_t k = 2; k <= last; ++k) {
        const Term minus{0, 1, TOP, false, true}, half{0, k, TOP - bits - 1, false, false};
        lost += sums.of({top, minus, half}) == 0.0;
    }
    expect("products aligned with the largest", std::to_string(last - 1), std::to_string(lost));
}

inline void accumulator(Report& report) {
    accumulator_of(report, Kind::e4m3, 13);
    accumulator_of(report, Kind::bf16, MOST_BITS);
    accumulator_of(report, Kind::f16_in_registers, MOST_BITS);
}

}  // namespace probe
