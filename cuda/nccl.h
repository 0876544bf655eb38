/* nccl: one rank's end of a group of GPUs that NCCL connects, in one process or several.
 *
 * libnccl.so.2 is opened by nccl_open, when several GPUs are asked for, so that programs on one GPU
 * or the CPU need not have it; only its header is needed to build (without it, nccl_open says so).
 *
 * Communicators do not block: joining can be given up, and so can a rank whose peers are gone. Each
 * call here returns when NCCL has put its work into the stream, never after the time limit of
 * nccl_join. What the work itself runs into shows in nccl_error only: until then the stream just
 * does not go on, so whoever waits for a stream asks nccl_error now and then and, when there is an
 * error or its own patience is over, calls nccl_abort, after which the stream goes on without a
 * result.
 *
 * Threads: nccl_error and nccl_abort may be called by any thread at any time between nccl_join and
 * nccl_leave; everything else by the rank's thread, with its device current.
 *
 * Errors are ERR_UNSUPPORTED (no NCCL, or one that is too old) and ERR_INTERNAL (everything that
 * NCCL says, and time limits), with NCCL's own words. A rank that got an error from a call other
 * than nccl_open and nccl_new_id can only be aborted and left.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nccl;

enum { NCCL_ID_BYTES = 128 };
enum nccl_type { NCCL_F32, NCCL_F64, NCCL_BF16 };

/* Finds the library; later calls repeat the answer of the first. */
int nccl_open(struct error *error);
/* "2.28.9"; "" before nccl_open has found the library. Static. */
const char *nccl_version(void);

/* A name for a new group, made by one rank and handed to the others. After nccl_open, as all that
 * follows. */
int nccl_new_id(char id[NCCL_ID_BYTES], struct error *error);
/* Joins a group as rank of size, with the current device, which no other rank of it may have.
 * Returns when all ranks have joined, or with an error after timeout_us, which also limits each
 * later call. *out is set on success only; it is the caller's, for nccl_leave. */
int nccl_join(struct nccl **out, int32_t rank, int32_t size, const char id[NCCL_ID_BYTES],
              int64_t timeout_us, struct error *error);

/* data[0..count), device memory, becomes the sum over all ranks, the same bits at each. The order
 * of the sum is NCCL's choice by count and version, and sums of bf16 are rounded to bf16 more than
 * once. May be captured into a graph. */
int nccl_all_reduce(struct nccl *n, void *data, int64_t count, enum nccl_type type,
                    cudaStream_t stream, struct error *error);
/* Rank 0 gets the matrices of all ranks. part [rows, columns[rank]] is each rank's own; gathered,
 * of rank 0 only, holds them one after the other: rank r's begins at rows * sum(columns[0..r)),
 * with rows of columns[r]. columns [size] is the same at every rank; 0 is allowed. part may be its
 * place in gathered, but must not overlap another's. May be captured into a graph. */
int nccl_gather_columns(struct nccl *n, const float *part, int64_t rows, const int32_t *columns,
                        float *gathered, cudaStream_t stream, struct error *error);

/* 0, or ERR_INTERNAL with what has gone wrong since nccl_join, here or at another rank. */
int nccl_error(struct nccl *n, struct error *error);
/* Ends what streams wait for, without a result. The other ranks are not told. Again is fine. */
void nccl_abort(struct nccl *n);
/* Leaves the group and frees n (NULL is allowed). All ranks do so, after their streams are done; if
 * they do not within the time limit, or after an error, it aborts. */
void nccl_leave(struct nccl *n);

#ifdef __cplusplus
}
#endif
