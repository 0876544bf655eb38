#include "tests/cuda_ptx_kernels.h"

#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "host/error.h"

/* ---- mma --------------------------------------------------------------------------------------- */

enum mma_type { MMA_BF16, MMA_F16, MMA_E4M3 };

template <enum mma_type TYPE>
__global__ void __launch_bounds__(WARP)
    mma_kernel(float *out, const uint32_t *a, const uint32_t *b, const float *c) {
    int l = threadIdx.x;
    float sum[4];
    uint32_t ra[4], rb[2];
    for (int i = 0; i < 4; i++) {
        sum[i] = c[l * 4 + i];
        ra[i] = a[l * 4 + i];
        rb[i / 2] = b[l * 2 + i / 2];
    }
    if (TYPE == MMA_E4M3) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
        mma_e4m3(sum, ra, rb);
#else
        return;
#endif
    } else if (TYPE == MMA_F16) {
        mma_f16(sum, ra, rb);
    } else {
        mma_bf16(sum, ra, rb);
    }
    for (int i = 0; i < 4; i++)
        out[l * 4 + i] = sum[i];
}

void ptx_mma_bf16(float *out, const uint32_t *a, const uint32_t *b, const float *c,
                  cudaStream_t stream) {
    mma_kernel<MMA_BF16><<<1, WARP, 0, stream>>>(out, a, b, c);
    LAUNCH_CHECK();
}

void ptx_mma_f16(float *out, const uint32_t *a, const uint32_t *b, const float *c,
                 cudaStream_t stream) {
    mma_kernel<MMA_F16><<<1, WARP, 0, stream>>>(out, a, b, c);
    LAUNCH_CHECK();
}

void ptx_mma_e4m3(float *out, const uint32_t *a, const uint32_t *b, const float *c,
                  cudaStream_t stream) {
    mma_kernel<MMA_E4M3><<<1, WARP, 0, stream>>>(out, a, b, c);
    LAUNCH_CHECK();
}

/* ---- ldmatrix ---------------------------------------------------------------------------------- */

template <bool TRANS>
__global__ void __launch_bounds__(WARP) ldmatrix_kernel(uint32_t *out, const uint16_t *in) {
    __shared__ __align__(16) uint16_t rows[WARP][8];
    int l = threadIdx.x;
    for (int i = 0; i < 8; i++)
        rows[l][i] = in[l * 8 + i];
    __syncwarp(); /* all rows are written */
    uint32_t r[4];
    if (TRANS)
        ldmatrix_x4_trans(r, rows[l]);
    else
        ldmatrix_x4(r, rows[l]);
    for (int i = 0; i < 4; i++)
        out[l * 4 + i] = r[i];
}

void ptx_ldmatrix(uint32_t *out, const uint16_t *in, cudaStream_t stream) {
    ldmatrix_kernel<false><<<1, WARP, 0, stream>>>(out, in);
    LAUNCH_CHECK();
}

void ptx_ldmatrix_trans(uint32_t *out, const uint16_t *in, cudaStream_t stream) {
    ldmatrix_kernel<true><<<1, WARP, 0, stream>>>(out, in);
    LAUNCH_CHECK();
}

/* ---- copies and loads -------------------------------------------------------------------------- */

__global__ void __launch_bounds__(WARP)
    cp_async_kernel(uint4 *out, const uint4 *in, const int32_t *valid) {
    __shared__ uint4 stage[PTX_COPY_STAGES][WARP];
    int l = threadIdx.x;
    for (int s = 0; s < PTX_COPY_STAGES; s++) {
        cp_async16(&stage[s][l], in + s * WARP + l, valid[l] != 0);
        cp_async_commit();
    }
    int next = (l + 1) % WARP; /* what another lane has copied */
    cp_async_wait<2>();
    __syncwarp(); /* stage 0 is there */
    out[next] = stage[0][next];
    cp_async_wait<1>();
    __syncwarp(); /* stage 1 */
    out[WARP + next] = stage[1][next];
    cp_async_wait<0>();
    __syncwarp(); /* stage 2 */
    out[2 * WARP + next] = stage[2][next];
}

void ptx_cp_async(uint8_t *out, const uint8_t *in, const int32_t *valid, cudaStream_t stream) {
    cp_async_kernel<<<1, WARP, 0, stream>>>((uint4 *)out, (const uint4 *)in, valid);
    LAUNCH_CHECK();
}

__global__ void __launch_bounds__(WARP) load16_kernel(uint4 *out, const uint4 *in) {
    out[threadIdx.x] = load_stream16(in + threadIdx.x);
}

void ptx_load_stream16(uint8_t *out, const uint8_t *in, cudaStream_t stream) {
    load16_kernel<<<1, WARP, 0, stream>>>((uint4 *)out, (const uint4 *)in);
    LAUNCH_CHECK();
}

__global__ void __launch_bounds__(WARP) load8_kernel(uint2 *out, const uint2 *in) {
    out[threadIdx.x] = load_stream8(in + threadIdx.x);
}

void ptx_load_stream8(uint8_t *out, const uint8_t *in, cudaStream_t stream) {
    load8_kernel<<<1, WARP, 0, stream>>>((uint2 *)out, (const uint2 *)in);
    LAUNCH_CHECK();
}

/* ---- arithmetic -------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(WARP) exp2_kernel(float *y, const float *x, int n) {
    for (int i = threadIdx.x; i < n; i += WARP)
        y[i] = exp2_approx(x[i]);
}

void ptx_exp2(float *y, const float *x, int n, cudaStream_t stream) {
    exp2_kernel<<<1, WARP, 0, stream>>>(y, x, n);
    LAUNCH_CHECK();
}

constexpr int CODES = 256;

__global__ void __launch_bounds__(CODES)
    e4m3_kernel(uint32_t *low, uint32_t *high, uint32_t *f16) {
    uint32_t i = threadIdx.x;
    uint32_t codes = i | (255 - i) << 8 | (i ^ 0x55) << 16 | i << 24;
    low[i] = e4m3_bf16<0>(codes);
    high[i] = e4m3_bf16<1>(codes);
    f16[i] = e4m3_f16((uint16_t)codes);
}

void ptx_e4m3(uint32_t *low, uint32_t *high, uint32_t *f16, cudaStream_t stream) {
    e4m3_kernel<<<1, CODES, 0, stream>>>(low, high, f16);
    LAUNCH_CHECK();
}

/* ---- architecture ------------------------------------------------------------------------------ */

__global__ void __launch_bounds__(1) cuda_arch_kernel(int32_t *arch) {
#ifdef __CUDA_ARCH__
    *arch = __CUDA_ARCH__;
#endif
}

void ptx_arch(int32_t *arch, cudaStream_t stream) {
    cuda_arch_kernel<<<1, 1, 0, stream>>>(arch);
    LAUNCH_CHECK();
}
