// silu for `linear` and `activation`, which must give the same bits.
#pragma once

#include "device.cuh"

// x / (1 + e^-x), within 2^-21 + |x| * 2^-23 of its size. 0 for x below -87.3, where the quotient 1 / (1 +
// e^-x) would be subnormal.
DEVICE float silu(float x) {
    constexpr float LOG2_E = 1.44269504f;
    return x * reciprocal_fast(__fadd_rn(1.0f, exp2_fast(__fmul_rn(x, -LOG2_E))));
}
