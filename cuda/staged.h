/* staged: all-reduces between the GPUs of this process without NCCL, through pinned host memory, or
 * through the GPUs' own memory where every pair has peer access. allreduce.h says how they work.
 *
 * Owns the memory that ranks exchange through, and says which way an array goes. Created once, by
 * one thread, for n ranks with a GPU each (a GPU may have several ranks); then each rank's thread
 * calls with its own number, on its own non-blocking stream, with its GPU current. All calls but
 * _create, _destroy, _reset, _self_test and _status only put work on the stream, and may be
 * recorded into a graph. All ranks make the same calls with the same sizes in the same order.
 *
 * A step begins with staged_begin_step; its number (step_number below) is read from device memory
 * when the kernels run. A recorded graph holds all calls of a step.
 */
#pragma once

#include "cuda/allreduce.h"
#include "host/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct staged_config {
    int32_t num_ranks;      /* 1 .. ALLREDUCE_MAX_RANKS */
    const int32_t *devices; /* [num_ranks] GPU of each rank; borrowed for the call */
    bool peers; /* use peer access where every pair of GPUs has it; it is enabled for the process */
    enum allreduce_payload payload; /* of sums with a norm or hidden states behind */
    int32_t hidden_size;            /* H <= ALLREDUCE_MAX_NORM */
    int32_t max_logits_rows;        /* R of a gather; 0: none is made */
    int32_t max_vocab_rows;         /* the most columns of logits that one rank has */
    int64_t timeout_ns;             /* after which a kernel stops waiting */
    /* Bytes of payload up to which an array goes in lines and with flags, and of a piece of those
     * that are copied; 0: 32 KB, 1 MB, 4 MB. */
    int64_t lines_bytes, flags_bytes, piece_bytes;
};

struct staged;

/* Memory that staged_create takes: pinned, and of each GPU for each of its ranks. */
size_t staged_host_bytes(const struct staged_config *c);
size_t staged_device_bytes(const struct staged_config *c);

/* ERR_NO_MEMORY where there is too little of either, ERR_UNSUPPORTED for sizes that do not go. */
int staged_create(struct staged **out, const struct staged_config *c, struct error *error);
/* All streams are idle. NULL is fine. */
void staged_destroy(struct staged *s);
bool staged_uses_peers(const struct staged *s);

/* Each ordered pair of ranks moves a checked pattern. Called by all ranks' threads at once, before
 * the first step, and again only after all have returned. ERR_INTERNAL says which rank did not see
 * within timeout_ns, or saw wrongly, what which other wrote, a line each. */
int staged_self_test(struct staged *s, int32_t rank, int64_t timeout_ns, cudaStream_t stream,
                     struct error *error);

/* ---- steps ----------------------------------------------------------------------------------- */

/* Where in device memory the rank's step number lies, from now on; the same number on all ranks,
 * below ALLREDUCE_STEPS, another one for each step. Once all numbers were used: staged_reset. */
void staged_set_step(struct staged *s, int32_t rank, const uint32_t *step_number);
void staged_begin_step(struct staged *s, int32_t rank);

/* hidden += sum of all ranks' partials, then as norm_launch: hidden, x, xq and rows as there.
 * norm->partial is not looked at: partial is [*, H] float, with F64 double. */
void staged_allreduce_norm(struct staged *s, int32_t rank, const void *partial,
                           const struct norm_args *norm, cudaStream_t stream);
/* out[i] = hidden[rows[i]] + sum of partial[rows[i]]. [R, H] float */
void staged_allreduce_rows(struct staged *s, int32_t rank, float *out, const float *hidden,
                           const void *partial, const int32_t *rows, int32_t num_rows,
                           int32_t hidden_size, cudaStream_t stream);
/* data[i] = sum over ranks, in place, aligned to 16 bytes; float, unrounded (with F64 double). */
void staged_allreduce(struct staged *s, int32_t rank, void *data, int64_t count,
                      cudaStream_t stream);

/* Logits of all ranks, to rank 0: out [R, vocab_size], of which rank r has columns
 * [first[r], first[r + 1]) in logits [R, ld]. On rank 0 logits may be `out` (ld = vocab_size). */
struct staged_gather {
    const float *logits;
    int64_t ld;
    float *out; /* rank 0 */
    int32_t num_rows, vocab_size;
    const int32_t *first; /* host [num_ranks + 1] */
};
void staged_gather(struct staged *s, int32_t rank, const struct staged_gather *g,
                   cudaStream_t stream);

/* ---- trouble --------------------------------------------------------------------------------- */

/* Ends all waits, now and in what follows, until staged_reset. Any thread. */
void staged_abort(struct staged *s);
/* What happened to a rank, after its stream is idle: 0, or ERR_INTERNAL with the rank that it
 * waited for; the step's results are garbage then. */
int staged_status(struct staged *s, int32_t rank, struct error *error);
/* Forgets an abort, all statuses and all numbers. All streams are idle, and no rank is in a step.
 */
void staged_reset(struct staged *s);

/* ---- for tests and benchmarks ---------------------------------------------------------------- */

/* The way of an array, and the next call's channel for it. */
enum allreduce_way staged_way(const struct staged *s, enum allreduce_payload payload,
                              int32_t num_rows, int32_t row_len);
struct allreduce_channel staged_next_channel(struct staged *s, int32_t rank,
                                             enum allreduce_way way);
int32_t staged_num_blocks(const struct staged *s);

#ifdef __cplusplus
}
#endif
