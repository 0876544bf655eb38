/* cuda_ptx_kernels: one kernel for each wrapper of cuda/ptx.cuh and each conversion of packed
 * elements of cuda/device.cuh, for test_cuda_ptx.c. One warp, unless said; all pointers are device
 * memory.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[l][i] = lane l's register i */
void ptx_mma_bf16(float out[32 * 4], const uint32_t a[32 * 4], const uint32_t b[32 * 2],
                  const float c[32 * 4], cudaStream_t stream);
void ptx_mma_f16(float out[32 * 4], const uint32_t a[32 * 4], const uint32_t b[32 * 2],
                 const float c[32 * 4], cudaStream_t stream);
/* sm_89 and newer; else out is left as it is. */
void ptx_mma_e4m3(float out[32 * 4], const uint32_t a[32 * 4], const uint32_t b[32 * 2],
                  const float c[32 * 4], cudaStream_t stream);
/* in: 32 rows of 8 elements, which are copied to shared memory. */
void ptx_ldmatrix(uint32_t out[32 * 4], const uint16_t in[32 * 8], cudaStream_t stream);
void ptx_ldmatrix_trans(uint32_t out[32 * 4], const uint16_t in[32 * 8], cudaStream_t stream);

/* PTX_COPY_STAGES copies of 512 bytes by cp.async with one commit each, of which stage i is waited
 * for with the later ones still under way. Lane l's 16 bytes are zeros unless valid[l]. */
enum { PTX_COPY_STAGES = 3 };
void ptx_cp_async(uint8_t out[PTX_COPY_STAGES * 512], const uint8_t in[PTX_COPY_STAGES * 512],
                  const int32_t valid[32], cudaStream_t stream);

/* out = in, by the loads for weights. */
void ptx_load_stream16(uint8_t out[512], const uint8_t in[512], cudaStream_t stream);
void ptx_load_stream8(uint8_t out[256], const uint8_t in[256], cudaStream_t stream);

/* y[i] = 2^x[i] */
void ptx_exp2(float *y, const float *x, int n, cudaStream_t stream);

/* All 256 codes of E4M3: low[i] and high[i] from halves 0 and 1 of a register that holds codes i,
 * 255 - i, i ^ 0x55, i in its bytes: as bf16 and (the low half alone) as f16. */
void ptx_e4m3(uint32_t low[256], uint32_t high[256], uint32_t f16[256], cudaStream_t stream);

/* What a kernel sees as __CUDA_ARCH__. */
void ptx_arch(int32_t *arch, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
