// What every kernel includes: CUDA, or its stand-in on a processor.
#pragma once

#ifdef OCTANT_HOST
#include "host/cuda.h"
#else
#include "ptx.cuh"
#endif
