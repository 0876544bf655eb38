/* comm_choose: which engine takes arrays of which size. Both are timed at start, on the sums with a
 * norm behind that every layer makes, each by its slowest rank. The built-in one is preferred: it
 * adds in one order whatever the size is, so that a request's sums do not depend on what else is in
 * its step, which is not so with NCCL, nor where the engines take turns. All ranks come to the same
 * figures, and so to the same choice.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/comm_internal.h"
#include "cuda/cuda_check.h"
#include "cuda/nccl.h"
#include "host/clock.h"
#include "host/guard.h"

#define BUDGET_US                                                                                  \
    ((int64_t)1500000) /* for all of it; further sizes go by the last that was timed */
enum { ROUNDS = 5, PREFERENCE = 3 /* so many times faster must NCCL be */ };

int32_t comm_size_of(int32_t num_rows) {
    int32_t size = 0;
    while (size < NUM_COMM_SIZES - 1 && num_rows > 1 << size)
        size++;
    return size;
}

/* Arrays to add, of a rank. */
struct trial {
    char *memory; /* device */
    struct allreduce_array array;
};

static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static bool make_trial(struct comm *c, struct trial *t) {
    size_t T = (size_t)c->config.max_tokens, H = (size_t)c->config.hidden_size;
    size_t partial = aligned(T * H * (c->config.payload == PAYLOAD_F64 ? 8 : 4));
    size_t hidden = aligned(T * H * 4), x = aligned(T * H * 2), norm = aligned(H * 4);
    void *memory = NULL;
    if (cudaMalloc(&memory, partial + hidden + x + norm) != cudaSuccess) {
        cudaGetLastError(); /* it is not an error of what follows */
        return false;
    }
    CUDA_CHECK(cudaMemsetAsync(memory, 0, partial + hidden + x + norm, c->config.stream));
    t->memory = memory;
    t->array = (struct allreduce_array){
        .partial = t->memory,
        .row_len = c->config.hidden_size,
        .norm =
            {
                .x = (void *)(t->memory + partial + hidden),
                .hidden = (void *)(t->memory + partial),
                .weight = (void *)(t->memory + partial + hidden + x),
                .eps = 1e-5f,
                .hidden_size = c->config.hidden_size,
            },
    };
    return true;
}

/* Rounds of one engine and size; microseconds of a round, or -1 after a failure. */
static double time_rounds(struct comm *c, struct trial *t, enum comm_engine engine, int32_t rows,
                          int32_t rounds, struct error *error) {
    t->array.num_rows = t->array.norm.num_tokens = rows;
    t->array.count = (int64_t)rows * t->array.row_len;
    int64_t start_us = clock_us();
    struct guard guard;
    volatile int rc = 0;
    guard_enter(&guard);
    if (setjmp(guard.env) == 0)
        for (int32_t i = 0; i < rounds; i++)
            comm_sum_by(c, engine, &t->array);
    else
        rc = error_set(error, ERR_INTERNAL, "%s", guard.text);
    guard_leave(&guard);
    if (rc == 0)
        rc = comm_wait(c, error);
    if (rc != 0)
        return -1;
    return (double)(clock_us() - start_us) / rounds;
}

/* Both engines at one size; false after a failure. */
static bool time_size(struct comm *c, struct trial *t, struct comm_timing *out,
                      struct error *error) {
    for (int32_t e = 0; e < NUM_ENGINES; e++) {
        double warm = comm_largest(c, time_rounds(c, t, e, out->rows, 1, error));
        if (warm < 0)
            return false;
        /* What takes milliseconds needs no repetition. */
        out->us[e] =
            comm_largest(c, time_rounds(c, t, e, out->rows, warm > 5000 ? 1 : ROUNDS, error));
        if (out->us[e] < 0)
            return false;
    }
    return true;
}

/* Is there time left? As the first rank says. */
static bool goes_on(struct comm *c, int64_t deadline_us) {
    return comm_largest(c, c->config.rank == 0 && clock_us() > deadline_us ? 1 : 0) == 0;
}

static int time_all(struct comm *c, struct trial *t, struct error *error) {
    struct comm_timing timing[NUM_COMM_SIZES] = {{0}};
    int32_t most = comm_size_of(c->config.max_tokens), n = 0;
    int64_t deadline_us = clock_us() + BUDGET_US;
    for (int32_t size = 0; size <= most && goes_on(c, deadline_us); size += 2) {
        int32_t rows = 1 << size;
        struct comm_timing *now = &timing[n];
        now->rows = rows < c->config.max_tokens ? rows : c->config.max_tokens;
        if (!time_size(c, t, now, error))
            return error->code ? error->code
                               : error_set(error, ERR_INTERNAL, "another rank failed in it");
        n++;
        enum comm_engine best = now->us[ENGINE_NCCL] * PREFERENCE < now->us[ENGINE_STAGED]
                                    ? ENGINE_NCCL
                                    : ENGINE_STAGED;
        for (int32_t s = size > 0 ? size - 1 : 0; s < NUM_COMM_SIZES; s++)
            c->engine[s] = best;
    }
    if (c->config.rank == 0) {
        memcpy(c->shared->timing, timing, sizeof timing);
        c->shared->num_timings = n;
    }
    return 0;
}

int comm_choose(struct comm *c, struct error *error) {
    struct trial t = {0};
    int rc = 0;
    if (!comm_all_agree(c, make_trial(c, &t)))
        rc = error_set(error, ERR_NO_MEMORY,
                       "GPU %d has too little memory left to time the engines of the all-reduce; "
                       "lower --max-num-batched-tokens",
                       c->config.device);
    else
        rc = time_all(c, &t, error);
    if (rc != 0) /* the stream must come to its end before memory is freed */
        nccl_abort(c->nccl);
    CUDA_CHECK(cudaStreamSynchronize(c->config.stream));
    CUDA_CHECK(cudaFree(t.memory));
    return rc;
}
