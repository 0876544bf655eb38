/* allreduce: sums of arrays over ranks, each rank a GPU (or a share of one), through memory that
 * all of them reach: pinned host memory, or one another's. cuda/staged.h owns that memory, decides
 * how an array travels, and is what a backend calls; here are the launchers that it is made of.
 *
 * An array is [rows, row_len]. Every rank calls with the same sizes, in the same order. It is
 * reduced in two shots: of each row (COPIES: of the rows) rank r owns slice r, which all ranks send
 * to it; it adds them in rank order 0 .. n - 1 and sends the result to all. So all ranks get the
 * same bytes.
 *
 *   payload   what travels          sums     a rank's part and the result are rounded to
 *   BF16      2 bytes an element    float32  bf16
 *   F32       4                     float32  nothing
 *   F64       8                     float64  nothing (partials and sums are double)
 *   F8        1 + 1/32              float32  E4M3 * scale; a scale for 128 columns, max / 448
 *
 *   way       for     how
 *   LINES     <32 KB  lines of 16 bytes with 8 of payload, which carry the call's number: whoever
 *                     reads the payload knows that it has come. Not for F8
 *   FLAGS     <1 MB   payload, then a flag for each block
 *   COPIES    more    copy engines, and kernels of a warp that set and await flags
 *
 * The ways give the same bytes.
 *
 * Numbers. The step has a number, which lies in device memory, and the n-th call of a step the
 * constant n: step * ALLREDUCE_CALLS + n + 1 is what the call's flags say. So recorded graphs and
 * single launches are alike, and what an aborted step left behind matches nothing. Numbers come
 * again after ALLREDUCE_STEPS steps, when flags must have been cleared.
 *
 * No hang. Waits end after timeout_ns, or when the abort word is set. Then the kernel says so in
 * its rank's status, sets the abort word, and goes on with what lies in memory: the step's numbers
 * are garbage, and its later calls end at once.
 */
#pragma once

#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum allreduce_payload { PAYLOAD_BF16, PAYLOAD_F32, PAYLOAD_F64, PAYLOAD_F8, NUM_PAYLOADS };
enum allreduce_way { ALLREDUCE_LINES, ALLREDUCE_FLAGS, ALLREDUCE_COPIES };

enum {
    ALLREDUCE_MAX_RANKS = 16,
    ALLREDUCE_MAX_BLOCKS = 128,       /* of LINES and FLAGS */
    ALLREDUCE_CALLS = 4096,           /* of a step */
    ALLREDUCE_STEPS = (1 << 20) - 1,  /* numbers of steps: 0 .. ALLREDUCE_STEPS - 1 */
    ALLREDUCE_F8_GROUP = 128,         /* columns with one scale */
    ALLREDUCE_MAX_NORM = 512 * 4 * 4, /* H with a norm behind, */
    ALLREDUCE_MAX_ODD_NORM = 4096,    /* where it is no multiple of 4 */
};

/* What a kernel that gave up writes into its rank's status, in one store; 0: all is well. */
enum allreduce_trouble { ALLREDUCE_TIMED_OUT = 1, ALLREDUCE_ABORTED = 2 };
static inline __host__ __device__ uint64_t allreduce_status(enum allreduce_trouble what,
                                                            int32_t waited_for, int32_t call) {
    return (uint64_t)what << 56 | (uint64_t)(uint32_t)waited_for << 32 | (uint32_t)call;
}

/* How a rank takes part in one call. Memory of a message is as large as allreduce_message_bytes
 * says, aligned to 16 bytes; the next call may use the same (allreduce.cuh). */
struct allreduce_channel {
    int32_t rank, num_ranks;
    const uint32_t *step; /* number of the step */
    int32_t call;         /* in the step, < ALLREDUCE_CALLS */
    int64_t timeout_ns;
    uint32_t *abort;                       /* mapped pinned memory, one for all ranks; 0: go on */
    uint64_t *status;                      /* mapped pinned memory of the rank */
    char *to[ALLREDUCE_MAX_RANKS];         /* [n] where its part of slice d goes */
    const char *from[ALLREDUCE_MAX_RANKS]; /* [n] where rank s puts its part of this one's slice */
    char *out[ALLREDUCE_MAX_RANKS];        /* [num_out] where its result goes, to all of them */
    const char *in[ALLREDUCE_MAX_RANKS];   /* [n] where the result of slice s comes */
    int32_t num_out;
};

/* The array. Row i of the call is row rows[i] of `partial` (without rows: row i). One of three
 * things happens to the sum: norm      norm_launch with the sum as the partial; norm.partial, .rows
 * and .num_tokens are not looked at. H <= ALLREDUCE_MAX_NORM, or ALLREDUCE_MAX_ODD_NORM add out
 * [num_rows, row_len] float = add[row] + (float)sum, add like partial neither   out [num_rows,
 * row_len] = sum, of the partial's type; may be `partial`, without rows */
struct allreduce_array {
    const void *partial; /* [*, row_len] float; F64: double */
    const int32_t *rows; /* [num_rows] device memory, or NULL */
    int32_t num_rows, row_len;
    int64_t count; /* without rows: elements; the last row may be short. Else 0 */
    void *out;
    const float *add;
    struct norm_args norm; /* x NULL: none */
};

static inline bool allreduce_has_norm(int32_t row_len) {
    return row_len <= (row_len % 4 ? ALLREDUCE_MAX_ODD_NORM : ALLREDUCE_MAX_NORM);
}

/* Bytes of a message between two ranks: a rank's part of a slice, or its result. */
size_t allreduce_message_bytes(enum allreduce_way way, enum allreduce_payload payload,
                               int32_t num_rows, int32_t row_len, int32_t num_ranks);

/* LINES or FLAGS in one kernel of num_blocks blocks (the same on all ranks; rows go to block
 * row % num_blocks). They wait for those of other ranks: all have to be on GPUs at once, so no
 * GPU may be given more blocks than it has multiprocessors, over all ranks that share it. */
void allreduce_launch(const struct allreduce_channel *c, const struct allreduce_array *a,
                      enum allreduce_way way, enum allreduce_payload payload, int32_t num_blocks,
                      cudaStream_t stream);

/* ---- allreduce_copy.cu: the kernels of COPIES ------------------------------------------------ */

/* Bytes of a row as it travels. */
int64_t allreduce_row_bytes(enum allreduce_payload payload, int32_t row_len);
/* Rows [row0, row0 + num_rows) of the array as they travel, into packed. */
void allreduce_pack_launch(char *packed, const struct allreduce_array *a,
                           enum allreduce_payload payload, int32_t row0, int32_t num_rows,
                           cudaStream_t stream);
/* sum = the sum in rank order of num_ranks messages of packed rows. */
struct allreduce_parts {
    const char *part[ALLREDUCE_MAX_RANKS];
};
void allreduce_sum_launch(char *sum, const struct allreduce_parts *parts, int32_t num_ranks,
                          enum allreduce_payload payload, int32_t num_rows, int32_t row_len,
                          cudaStream_t stream);
/* What happens to the sums of rows [row0, row0 + num_rows), of which rank s has rows
 * [num_rows * s / n, num_rows * (s + 1) / n) packed in part[s]. */
void allreduce_finish_launch(const struct allreduce_array *a, const struct allreduce_parts *parts,
                             int32_t num_ranks, enum allreduce_payload payload, int32_t row0,
                             int32_t num_rows, cudaStream_t stream);

/* One warp: *flag[i] = the call's number, of all n, after all that the stream did before. */
struct allreduce_flags {
    uint32_t *flag[ALLREDUCE_MAX_RANKS]; /* NULL: none */
};
void allreduce_signal_launch(const struct allreduce_channel *c, const struct allreduce_flags *flags,
                             cudaStream_t stream);
/* One warp: waits until every flag (flag[s] is rank s's) says the call's number. */
void allreduce_wait_launch(const struct allreduce_channel *c, const struct allreduce_flags *flags,
                           cudaStream_t stream);

/* A block for each other rank d writes a pattern to to[d] (FLAGS, PROBE_BYTES), awaits the one in
 * from[d], and says in verdicts[d] (mapped pinned memory) how that went. `channel` needs no step,
 * and the abort word is not looked at. */
enum allreduce_verdict { PROBE_GOOD = 1, PROBE_LATE = 2, PROBE_WRONG = 3 };
enum { PROBE_BYTES = 8192 };
void allreduce_probe_launch(const struct allreduce_channel *c, uint32_t *verdicts,
                            cudaStream_t stream);

#ifdef __cplusplus
}
#endif
