/* kernels_avx2: the kernels for AVX2, FMA and F16C. */
#include "host/cpu/vec_avx2.h"

#include "host/cpu/dot_impl.h"
#include "host/cpu/row_impl.h"
#include "host/cpu/kernels_impl.h"

const struct cpu_kernels kernels_avx2 = KERNELS_TABLE("cpu-avx2", "AVX2", NULL);
