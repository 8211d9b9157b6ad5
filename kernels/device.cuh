// What every kernel includes: CUDA, or its stand-in on a processor.
#pragma once

#ifdef OCTANT_HOST
#include "host/cuda.h"
#else
#include "ptx.cuh"
#endif

DEVICE float4 add(const float4& a, const float4& b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
