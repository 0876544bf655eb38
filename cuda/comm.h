/* comm: the sums over the ranks of a model on GPUs, and the logits' way to rank 0.
 *
 * Two engines. `staged` is our own (staged.h): through pinned host memory, or through the GPUs'
 * memory where they have access to each other; between the GPUs of one process. `nccl` (nccl.h) is
 * NCCL: across processes and machines, and where it is much faster. Which one takes arrays of which
 * size is decided at start: whatever does not pass its self-test within the deadline is left out,
 * and both are timed for the sizes that occur (comm_choose.c).
 *
 * A rank's end of it belongs to its backend and is used by its thread, on its stream. All ranks
 * make the same calls in the same order. Calls only put work on the stream and may be recorded into
 * a CUDA graph.
 */
#pragma once

#include "cuda/allreduce.h"
#include "host/buffer.h"
#include "host/layout.h"
#include "host/ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

enum comm_choice { COMM_AUTO, COMM_STAGED, COMM_NCCL };

struct comm_config {
    struct ranks *ranks; /* borrowed */
    int32_t rank;        /* in this process */
    int32_t device;
    cudaStream_t stream;
    enum allreduce_payload payload; /* F64: partials are double. NCCL adds no F8, but BF16 then */
    enum comm_choice choice;
    int32_t hidden_size, max_tokens, max_logits;
    const struct range *vocab; /* [world] rows of lm_head; borrowed */
    const uint32_t *step;      /* device memory: the step's number, 1 .. COMM_STEPS - 1; now 0 */
    int64_t timeout_us;
};

enum { COMM_STEPS = ALLREDUCE_STEPS }; /* numbers of steps between two comm_reset */

struct comm; /* opaque */

/* cudaStreamQuery; "not ready" is no error, though the runtime would hand it to whoever asks for
 * the last one. */
cudaError_t comm_query(cudaStream_t stream);

/* On all ranks' threads at once, inside ranks_run. ERR_INTERNAL, ERR_UNSUPPORTED or ERR_NO_MEMORY
 * when no engine is left. */
int comm_create(const struct comm_config *c, struct comm **out, struct error *error);
/* On any thread, when all streams are idle; the last one of the process frees what they share. */
void comm_destroy(struct comm *c);
/* Lines of the start-up table: engines, what was left out and why, figures. */
void comm_describe(const struct comm *c, struct buffer *out);

/* A step whose calls follow, launched or recorded; a replayed one needs none. */
void comm_begin_step(struct comm *c);

/* norm_launch with the sum of all ranks' partials as norm->partial, which is not looked at.
 * partial [T, H] may be changed. */
void comm_sum_norm(struct comm *c, void *partial, const struct norm_args *norm);
/* out[i] = hidden[rows[i]] + the sum of partial[rows[i]]. [R, H] */
void comm_sum_rows(struct comm *c, float *out, const float *hidden, void *partial,
                   const int32_t *rows, int32_t num_rows);
/* data[0..count) becomes the sum over the ranks, unrounded; float, or double with F64. */
void comm_sum(struct comm *c, void *data, int64_t count);
/* all [R, V] of rank 0 (elsewhere NULL is fine) gets each rank's mine [R, V of the rank]. */
void comm_gather_logits(struct comm *c, float *all, int32_t vocab_size, const float *mine,
                        int32_t num_rows);

/* Makes what waits for other ranks end soon, with garbage. Any thread. */
void comm_abort(struct comm *c);
/* Looked at while the stream is waited for, since waited_us, and once it is idle: 0, or
 * ERR_INTERNAL with the rank or GPU at fault. */
int comm_status(struct comm *c, int64_t waited_us, struct error *error);
/* On all ranks' threads at once, inside ranks_run, when all streams are idle: forgets a failure and
 * all numbers of steps, and makes NCCL's communicators anew. */
int comm_reset(struct comm *c, struct error *error);

#ifdef __cplusplus
}
#endif
