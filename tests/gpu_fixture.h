/* gpu_fixture: what the tests of the CUDA kernels share: device buffers, conversions, comparisons.
 *
 * The tests use the runtime API and the launchers of cuda/kernels.h alone, so that the same program
 * runs on the PTX machine and on a GPU. Each starts with GPU_OR_SKIP(). Random numbers are those of
 * ops_fixture.h (rng_seeded and so on), whose seed failures print.
 *
 * A device buffer is poisoned with 0xff bytes, which are NaNs as float32, bf16 and E4M3 and -1 as
 * an integer, and lies between canaries, which are NaNs as well; gpu_free checks the canaries. All
 * work goes to one stream of the current device, gpu_stream(); downloads wait for it.
 */
#pragma once

#include "cuda/cuda_check.h"
#include "cuda/kernels.h"
#include "tests/ops_fixture.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Is there a GPU that the kernels run on (sm_80 or later)? If not, *reason says why, for SKIP. */
bool gpu_available(const char **reason);
#define GPU_OR_SKIP()                                                                              \
    do {                                                                                           \
        const char *gpu_reason;                                                                    \
        if (!gpu_available(&gpu_reason))                                                           \
            SKIP(gpu_reason);                                                                      \
    } while (0)

/* For FP8 activations. */
#define F8_OR_SKIP()                                                                               \
    do {                                                                                           \
        if (gpu_test_info().sm < MIN_F8_SM)                                                        \
            SKIP("the GPU has no FP8 tensor cores, which begin with sm_89");                       \
    } while (0)

struct gpu_info gpu_test_info(void); /* of the current device */
cudaStream_t gpu_stream(void);

/* ---- buffers --------------------------------------------------------------------------------- */

/* Device memory, aligned to 256 bytes; bytes may be 0. */
void *gpu_alloc(size_t bytes);
/* The same with the contents of a host array. */
void *gpu_upload(const void *host, size_t bytes);
/* Overwrites the first bytes of a buffer, or part of one. */
void gpu_write(void *device, const void *host, size_t bytes);
/* Waits for the stream, and copies to the host. */
void gpu_download(void *host, const void *device, size_t bytes);
/* The same into new host memory, to be freed with free(). */
void *gpu_fetch(const void *device, size_t bytes);
/* Waits for the stream; are the canaries as they were? */
bool gpu_intact(const void *device);
/* Fails the test when a canary was overwritten. NULL is fine. */
void gpu_free(void *device);

/* A float array as device memory of bf16. */
bf16 *gpu_upload_bf16(const float *host, int64_t n);
/* A device array of bf16 as new host floats, to be freed with free(). */
float *gpu_fetch_bf16(const bf16 *device, int64_t n);

/* All of the device's memory but `leave` bytes, in ever smaller pieces. */
enum { GPU_MAX_HOGS = 1024 };
struct gpu_hogs {
    void *p[GPU_MAX_HOGS];
    int n;
};
void gpu_take_memory(struct gpu_hogs *h, size_t leave);
void gpu_give_memory(struct gpu_hogs *h);

/* ---- host arrays ----------------------------------------------------------------------------- */

/* New arrays, to be freed with free(). */
float *random_floats(struct rng *r, int64_t n, float amplitude);
int32_t *random_ints(struct rng *r, int64_t n, int32_t below);
/* Rounds in place to what the type can hold. */
void round_to_bf16(float *x, int64_t n);
void round_to_e4m3(float *x, int64_t n);
/* Conversions into arrays of the caller. */
void bf16_from_floats(bf16 *out, const float *x, int64_t n);
void e4m3_from_floats(uint8_t *out, const float *x, int64_t n);

/* ---- comparisons ----------------------------------------------------------------------------- */

/* |got - want| <= relative * |want| + absolute for every element of a [n / row, row] array (row 0:
 * one row). A NaN equals nothing. If not: where the first one is, how far off, and how many are. */
bool close_rows(const char *what, const float *got, const float *want, int64_t n, int64_t row,
                float relative, float absolute);
/* Equal elements; says where the first one is not. */
bool same_ints(const char *what, const int32_t *got, const int32_t *want, int64_t n, int64_t row);

#ifdef __cplusplus
}
#endif
