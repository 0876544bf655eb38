/* kernels_avx512: the kernels for AVX-512 F, BW, VL and DQ. With MOESERVE_SIMDE the same code runs
 * on any machine, for the tests. */
#include "host/cpu/vec_avx512.h"

#include "host/cpu/dot_impl.h"
#include "host/cpu/row_impl.h"
#include "host/cpu/kernels_impl.h"

#ifdef MOESERVE_SIMDE
extern const struct cpu_kernels kernels_avx512_simde;
const struct cpu_kernels kernels_avx512_simde =
    KERNELS_TABLE("cpu-avx512-simde", "AVX-512 by SIMDe", NULL);
#else
const struct cpu_kernels kernels_avx512 = KERNELS_TABLE("cpu-avx512", "AVX-512", NULL);
#endif
