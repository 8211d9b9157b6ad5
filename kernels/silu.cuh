// silu, in one place for the kernels that must agree.
#pragma once

#include "device.cuh"

// x / (1 + e^-x), within 2^-21 + |x| * 2^-23 of its size. 0 if e^-x overflows, for x below -88.
DEVICE float silu(float x) {
    constexpr float LOG2_E = 1.44269504f;
    return x * reciprocal_fast(__fadd_rn(1.0f, exp2_fast(__fmul_rn(x, -LOG2_E))));
}
