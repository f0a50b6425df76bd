// Everything a generated kernel may use. A kernel that needs less may include less, which compiles faster:
//   shorthaul_ops.h     vectors, memory access, arithmetic, comparisons, reductions over lanes    (about 20 ms)
//   shorthaul_math.h    and elementary functions                                                  (about 35 ms)
//   shorthaul_random.h  and random numbers                                                        (about 40 ms)
#pragma once
#include "shorthaul_random.h"
