/* cuda_gemm: dense products y = x W^T + bias by the fastest way that may be taken.
 *
 *   STREAM   dense.cu: reads the weights once for each 64 tokens. Takes every product.
 *   TILE     dense_tile.cu: for many tokens; the same bits as STREAM.
 *   LIBRARY  cuBLASLt: for many tokens, BF16 weights kept as rows, no bias, and only where results
 *            may depend on the batch.
 *
 * The way is chosen by a model of bytes and products (gemm_cost.c), a function of the GPU and the
 * product's shape alone. cuBLASLt is asked for an algorithm when a product of new shape is first
 * launched; the answers are kept in a table that is part of the object, and all later launches of
 * the shape allocate nothing. A product that is recorded into a CUDA graph was launched with the
 * same arguments before, as decode steps are (cuda_step.c); then the library is given its algorithm
 * and workspace and only puts kernels on the stream.
 *
 * One object a GPU, driven by the thread of its rank. Launches of one object share a workspace, so
 * they belong to one stream.
 */
#pragma once

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum gemm_path { GEMM_STREAM, GEMM_TILE, GEMM_LIBRARY };

enum { GEMM_WORKSPACE_BYTES = 32 << 20 }; /* what NVIDIA advises for Hopper; others want less */

struct gemm;

/* workspace: device memory [GEMM_WORKSPACE_BYTES], aligned to 256 bytes, borrowed. NULL where the
 * library does not start, as it takes memory of the device. */
struct gemm *gemm_create(void *workspace);
void gemm_destroy(struct gemm *g); /* NULL is fine */

/* The product by the way that gemm_choose names, or by an own kernel where the library has no
 * algorithm for it (which is logged once a shape). */
void gemm_launch(struct gemm *g, const struct dense_args *a, cudaStream_t stream);
/* The product by a certain way, for measuring and tests. False, and nothing is launched, where that
 * way does not take it. */
bool gemm_launch_by(struct gemm *g, enum gemm_path path, const struct dense_args *a,
                    cudaStream_t stream);
/* y [T, a->ldy] = x W^T as a partial over units (kernels.h, dense_units_launch). Both ways give the
 * same bits; the one that gemm_cost_us names is taken. */
void gemm_units_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream);
/* How many shapes have been asked about. */
int32_t gemm_num_shapes(const struct gemm *g);

/* May the product be computed that way? Whether the library has an algorithm is not asked. */
bool gemm_takes(enum gemm_path path, const struct dense_args *a);
/* The fastest of those ways, by gemm_cost_us. */
enum gemm_path gemm_choose(const struct dense_args *a);
/* Tokens from which on gemm_choose does not stream the weights of a BF16 (ROWS) or FP8 matrix. */
int32_t gemm_crossover_tokens(const struct gpu_info *gpu, enum dtype dtype, int32_t rows,
                              int32_t cols);

/* ---- gemm_cost.c ----------------------------------------------------------------------------- */

/* Modelled, not measured: microseconds that the product takes. */
double gemm_cost_us(enum gemm_path path, const struct dense_args *a);

#ifdef __cplusplus
}
#endif
