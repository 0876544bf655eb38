/* arch: which of the program's device code runs on a device
 *
 * A program that was built for older architectures alone runs on newer devices too, with the code of
 * the older ones: by then a kernel may be empty (mma_rows.cuh, RUNS_HERE) that the device itself
 * could run. All kernels are built for the same architectures, so one stands for all.
 */
#include "cuda/kernels.h"

static __global__ void __launch_bounds__(1) arch_kernel() {
}

cudaError_t kernels_arch(int32_t *arch) {
    struct cudaFuncAttributes attributes;
    cudaError_t rc = cudaFuncGetAttributes(&attributes, (const void *)arch_kernel);
    *arch = rc == cudaSuccess ? attributes.ptxVersion : 0;
    return rc;
}
