/* All-reduces between GPUs: every way, payload and number of ranks against plain loops, whose
 * numbers they have to give bit for bit. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/cuda_allreduce_group.h"
#include "tests/gpu_world.h"

enum { LINES_ONLY, FLAGS_ONLY, COPIES_ONLY, NUM_WAYS };
static const char *const way_names[] = {"lines", "flags", "copies"};
static const char *const payload_names[] = {"bf16", "f32", "f64", "f8"};

/* A world whose arrays all go one way; pieces of copies hold a few rows. */
static struct world world_of_way(int32_t n, enum allreduce_payload payload, int way, bool peers) {
    int64_t large = 1 << 20;
    return world_open(n, payload, way == LINES_ONLY ? large : 1, way == COPIES_ONLY ? 1 : large,
                      100000, peers);
}

/* ---- arrays ---------------------------------------------------------------------------------- */

/* What each rank adds, and what it gets. */
struct sums {
    int32_t rows, row_len; /* row_len as the sums are cut for F8 */
    int64_t count;
    double *parts[ALLREDUCE_MAX_RANKS], *want;
    void *device[ALLREDUCE_MAX_RANKS]; /* float or double, on the rank's GPU */
    enum allreduce_payload payload;
};

static size_t element_bytes(enum allreduce_payload payload) {
    return payload == PAYLOAD_F64 ? sizeof(double) : sizeof(float);
}

static void *to_device(const double *x, int64_t n, enum allreduce_payload payload) {
    void *host = xmalloc((size_t)(n + 1) * sizeof(double));
    for (int64_t i = 0; i < n; i++)
        if (payload == PAYLOAD_F64)
            ((double *)host)[i] = x[i];
        else
            ((float *)host)[i] = (float)x[i];
    void *device = gpu_upload(host, (size_t)n * element_bytes(payload));
    free(host);
    return device;
}

/* Random parts of [rows, row_len]. Numbers of the float type, of a wide range. */
static struct sums sums_random(const struct world *w, enum allreduce_payload payload, int32_t rows,
                               int32_t row_len, uint64_t salt) {
    struct sums s = {.rows = rows, .row_len = row_len, .payload = payload};
    s.count = (int64_t)rows * row_len;
    struct rng r = rng_seeded(salt * 1000003 + (uint64_t)s.count);
    s.want = xmalloc((size_t)(s.count + 1) * sizeof *s.want);
    for (int32_t k = 0; k < w->num_ranks; k++) {
        s.parts[k] = xmalloc((size_t)(s.count + 1) * sizeof *s.parts[k]);
        for (int64_t i = 0; i < s.count; i++) {
            float f = rng_float(&r) * (rng_below(&r, 8) == 0 ? 100.0f : 1.0f);
            s.parts[k][i] = (double)f;
        }
        CUDA_CHECK(cudaSetDevice(w->devices[k]));
        s.device[k] = to_device(s.parts[k], s.count, payload);
    }
    CUDA_CHECK(cudaSetDevice(0));
    payload_sum(s.want, s.parts, w->num_ranks, payload, rows, row_len);
    return s;
}

static void sums_free(const struct world *w, struct sums *s) {
    for (int32_t k = 0; k < w->num_ranks; k++) {
        CUDA_CHECK(cudaSetDevice(w->devices[k]));
        gpu_free(s->device[k]);
        free(s->parts[k]);
    }
    CUDA_CHECK(cudaSetDevice(0));
    free(s->want);
}

/* ---- plain sums ------------------------------------------------------------------------------ */

static void sum_in_place(struct world *w, int32_t rank, void *arg) {
    struct sums *s = arg;
    staged_begin_step(w->staged, rank);
    staged_allreduce(w->staged, rank, s->device[rank], s->count, w->streams[rank]);
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
}

static void set_step(struct world *w, int32_t rank, void *arg) {
    world_set_step(w, rank, *(uint32_t *)arg);
}

static void expect_sums(struct world *w, const struct sums *s, const char *what) {
    size_t bytes = (size_t)s->count * element_bytes(s->payload);
    void *want = xmalloc(bytes + 1);
    for (int64_t i = 0; i < s->count; i++)
        if (s->payload == PAYLOAD_F64)
            ((double *)want)[i] = s->want[i];
        else
            ((float *)want)[i] = (float)s->want[i];
    for (int32_t r = 0; r < w->num_ranks; r++) {
        struct error error = {0};
        CUDA_CHECK(cudaSetDevice(w->devices[r]));
        void *got = gpu_fetch(s->device[r], bytes);
        if (!same_bits("sum", got, want, bytes))
            FAIL("%s, %d ranks, rank %d, %d x %d", what, w->num_ranks, r, s->rows, s->row_len);
        if (staged_status(w->staged, r, &error) != 0)
            FAIL("%s", error.text);
        free(got);
    }
    CUDA_CHECK(cudaSetDevice(0));
    free(want);
}

static void check_plain(struct world *w, int64_t count, uint32_t step) {
    enum allreduce_payload payload = w->payload == PAYLOAD_F64 ? PAYLOAD_F64 : PAYLOAD_F32;
    char what[64];
    struct sums s = sums_random(w, payload, 1, (int32_t)count, step);
    world_run(w, set_step, &step);
    world_run(w, sum_in_place, &s);
    snprintf(what, sizeof what, "plain sum of %lld", (long long)count);
    expect_sums(w, &s, what);
    sums_free(w, &s);
}

TEST(CudaAllreduce, AddsPlainArraysInRankOrder) {
    GPU_OR_SKIP();
    static const int64_t counts[] = {1, 3, 127, 4608, 9 * 4608 + 1, 0, 2};
    static const int32_t ranks[] = {1, 2, 3, 5, 7, 8, 16};
    for (int n = 0; n < 7 && !shim_failed(); n++)
        for (int way = 0; way < NUM_WAYS; way++) {
            struct world w = world_of_way(ranks[n], n % 2 ? PAYLOAD_F64 : PAYLOAD_BF16, way, false);
            for (int i = 0; i < 7; i++)
                if (counts[i] < 5000 || n % 3 == 1)
                    check_plain(&w, counts[i], (uint32_t)i);
            world_close(&w);
        }
}

/* ---- sums with a norm behind ----------------------------------------------------------------- */

enum { WITH_ROWS = 1, WITH_XQ = 2 };

/* The norm's other arrays of a rank; the same numbers on all. */
struct norm_arrays {
    struct norm_args args;
    int32_t *rows;
};

struct norm_case {
    struct sums sums;
    int32_t T, N, H, flags; /* T rows of N */
    float *hidden, *weight;
    int32_t *rows;
    struct norm_arrays of[ALLREDUCE_MAX_RANKS];
};

static struct norm_arrays norm_arrays_new(const struct norm_case *c) {
    struct norm_arrays n = {.args = {.eps = 1e-5f, .num_tokens = c->T, .hidden_size = c->H}};
    size_t T = (size_t)c->T, H = (size_t)c->H;
    n.args.x = gpu_alloc(T * H * sizeof(bf16));
    n.args.hidden = gpu_upload(c->hidden, (size_t)c->N * H * sizeof(float));
    n.args.weight = gpu_upload(c->weight, H * sizeof(float));
    if (c->flags & WITH_ROWS)
        n.args.rows = n.rows = gpu_upload(c->rows, T * sizeof(int32_t));
    if (c->flags & WITH_XQ) {
        n.args.xq = gpu_alloc(T * (size_t)f8_stride(c->H));
        n.args.xq_scale = gpu_alloc(T * sizeof(float));
    }
    return n;
}

static void norm_arrays_free(struct norm_arrays *n) {
    gpu_free(n->args.x);
    gpu_free(n->args.hidden);
    gpu_free((void *)(uintptr_t)n->args.weight);
    gpu_free(n->rows);
    gpu_free(n->args.xq);
    gpu_free(n->args.xq_scale);
}

static bool same_device_bits(const char *what, const void *a, const void *b, size_t bytes) {
    void *left = a ? gpu_fetch(a, bytes) : NULL, *right = a ? gpu_fetch(b, bytes) : NULL;
    bool same = !a || same_bits(what, left, right, bytes);
    free(left);
    free(right);
    return same;
}

static void sum_and_norm(struct world *w, int32_t rank, void *arg) {
    struct norm_case *c = arg;
    staged_begin_step(w->staged, rank);
    staged_allreduce_norm(w->staged, rank, c->sums.device[rank], &c->of[rank].args,
                          w->streams[rank]);
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
}

/* The same norm by norm.cu on the sums of the reference has to give the same bits, on each GPU. */
static void expect_norm(struct world *w, struct norm_case *c) {
    size_t T = (size_t)c->T, H = (size_t)c->H;
    for (int32_t r = 0; r < w->num_ranks; r++) {
        CUDA_CHECK(cudaSetDevice(w->devices[r]));
        struct norm_arrays want = norm_arrays_new(c);
        float *partial = to_device(c->sums.want, c->sums.count, PAYLOAD_F32);
        const struct norm_args *got = &c->of[r].args;
        want.args.partial = partial;
        norm_launch(&want.args, w->streams[r]);
        CUDA_CHECK(cudaStreamSynchronize(w->streams[r]));
        if (!same_device_bits("x", got->x, want.args.x, T * H * sizeof(bf16)) ||
            !same_device_bits("hidden", got->hidden, want.args.hidden,
                              (size_t)c->N * H * sizeof(float)) ||
            !same_device_bits("xq", got->xq, want.args.xq, T * (size_t)f8_stride(c->H)) ||
            !same_device_bits("xq_scale", got->xq_scale, want.args.xq_scale, T * sizeof(float)))
            FAIL("rank %d of %d, T %d, H %d, flags %d, payload %s", r, w->num_ranks, c->T, c->H,
                 c->flags, payload_names[w->payload]);
        norm_arrays_free(&want);
        gpu_free(partial);
    }
    CUDA_CHECK(cudaSetDevice(0));
}

static void check_norm(struct world *w, int32_t T, int32_t H, int flags, uint32_t step) {
    struct norm_case c = {.T = T, .H = H, .flags = flags, .N = flags & WITH_ROWS ? T + 3 : T};
    struct rng r = rng_seeded(step * 77773u + (uint64_t)T);
    c.sums = sums_random(w, w->payload, c.N, H, step);
    c.hidden = random_floats(&r, (int64_t)c.N * H, 4);
    c.weight = random_floats(&r, H, 2);
    c.rows = random_ints(&r, T, c.N);
    for (int32_t k = 0; k < w->num_ranks; k++) {
        CUDA_CHECK(cudaSetDevice(w->devices[k]));
        c.of[k] = norm_arrays_new(&c);
    }
    world_run(w, set_step, &step);
    world_run(w, sum_and_norm, &c);
    expect_norm(w, &c);
    for (int32_t k = 0; k < w->num_ranks; k++) {
        CUDA_CHECK(cudaSetDevice(w->devices[k]));
        norm_arrays_free(&c.of[k]);
    }
    CUDA_CHECK(cudaSetDevice(0));
    sums_free(w, &c.sums);
    free(c.hidden);
    free(c.weight);
    free(c.rows);
}

/* Shapes that nothing divides, rows that are not aligned, and more rows than blocks. */
static void check_norms(int32_t n, enum allreduce_payload payload, int way, bool peers) {
    struct world w = world_of_way(n, payload, way, peers);
    uint32_t step = 0;
    EXPECT_INT_EQ(staged_uses_peers(w.staged), peers);
    check_norm(&w, 1, 4608, WITH_XQ, step++);
    check_norm(&w, 3, 130, 0, step++);
    check_norm(&w, 9, 388, WITH_ROWS | WITH_XQ, step++);
    check_norm(&w, 2, 90, WITH_ROWS | WITH_XQ, step++);
    check_norm(&w, 33, 76, 0, step++);
    check_norm(&w, 0, 76, 0, step++);
    check_norm(&w, 1, 1, WITH_XQ, step++);
    if (shim_failed())
        FAIL("%d ranks, %s, %s", n, payload_names[payload], way_names[way]);
    world_close(&w);
}

#define NORM_TEST(name, payload)                                                                   \
    TEST(CudaAllreduce, name) {                                                                    \
        GPU_OR_SKIP();                                                                             \
        for (int way = payload == PAYLOAD_F8 ? FLAGS_ONLY : LINES_ONLY; way < NUM_WAYS; way++) {   \
            check_norms(2, payload, way, false);                                                   \
            check_norms(5, payload, way, false);                                                   \
            check_norms(8, payload, way, false);                                                   \
        }                                                                                          \
    }
NORM_TEST(GivesTheNormOfSumsInBf16, PAYLOAD_BF16)
NORM_TEST(GivesTheNormOfSumsInF32, PAYLOAD_F32)
NORM_TEST(GivesTheNormOfSumsInF64, PAYLOAD_F64)
NORM_TEST(GivesTheNormOfSumsInF8, PAYLOAD_F8)

TEST(CudaAllreduce, GoesThroughPeersMemory) {
    GPU_OR_SKIP();
    struct world w = world_of_way(3, PAYLOAD_BF16, LINES_ONLY, true);
    bool peers = staged_uses_peers(w.staged);
    world_close(&w);
    if (!peers)
        SKIP("the GPUs have no access to each other's memory");
    for (int way = 0; way < NUM_WAYS; way++) {
        check_norms(3, PAYLOAD_BF16, way, true);
        check_norms(3, PAYLOAD_F64, way, true);
    }
}

/* ---- rows whose logits are wanted ------------------------------------------------------------ */

struct rows_case {
    struct sums sums;
    int32_t R;
    float *hidden[ALLREDUCE_MAX_RANKS], *out[ALLREDUCE_MAX_RANKS];
    int32_t *rows[ALLREDUCE_MAX_RANKS];
};

static void sum_rows(struct world *w, int32_t rank, void *arg) {
    struct rows_case *c = arg;
    staged_begin_step(w->staged, rank);
    staged_allreduce_rows(w->staged, rank, c->out[rank], c->hidden[rank], c->sums.device[rank],
                          c->rows[rank], c->R, c->sums.row_len, w->streams[rank]);
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
}

static void check_rows(enum allreduce_payload payload, int way) {
    enum { N = 6, R = 4, H = 145 };
    static const int32_t rows[R] = {5, 0, 5, 3};
    struct world w = world_of_way(3, payload, way, false);
    struct rows_case c = {.R = R};
    struct rng r = rng_seeded(payload);
    float *hidden = random_floats(&r, N * H, 2), want[R * H];
    uint32_t step = 7;
    c.sums = sums_random(&w, payload, N, H, 5);
    for (int32_t i = 0; i < R * H; i++) {
        int32_t from = rows[i / H] * H + i % H;
        want[i] = hidden[from] + (float)c.sums.want[from];
    }
    for (int32_t k = 0; k < 3; k++) {
        CUDA_CHECK(cudaSetDevice(w.devices[k]));
        c.hidden[k] = gpu_upload(hidden, N * H * sizeof(float));
        c.rows[k] = gpu_upload(rows, sizeof rows);
        c.out[k] = gpu_alloc(sizeof want);
    }
    world_run(&w, set_step, &step);
    world_run(&w, sum_rows, &c);
    for (int32_t k = 0; k < 3; k++) {
        CUDA_CHECK(cudaSetDevice(w.devices[k]));
        float *got = gpu_fetch(c.out[k], sizeof want);
        if (!same_bits("out", got, want, sizeof want))
            FAIL("rank %d, %s, %s", k, payload_names[payload], way_names[way]);
        free(got);
        gpu_free(c.hidden[k]);
        gpu_free(c.rows[k]);
        gpu_free(c.out[k]);
    }
    CUDA_CHECK(cudaSetDevice(0));
    sums_free(&w, &c.sums);
    free(hidden);
    world_close(&w);
}

TEST(CudaAllreduce, AddsTheRowsThatAreWanted) {
    GPU_OR_SKIP();
    for (int way = 0; way < NUM_WAYS; way++) {
        check_rows(PAYLOAD_BF16, way);
        check_rows(PAYLOAD_F64, way);
    }
}

/* ---- logits ---------------------------------------------------------------------------------- */

struct gather_case {
    struct staged_gather of[ALLREDUCE_MAX_RANKS];
    int32_t times;
};

static void gather(struct world *w, int32_t rank, void *arg) {
    struct gather_case *c = arg;
    staged_begin_step(w->staged, rank);
    for (int32_t i = 0; i < c->times; i++)
        staged_gather(w->staged, rank, &c->of[rank], w->streams[rank]);
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
}

TEST(CudaAllreduce, GathersLogitsOfUnevenParts) {
    GPU_OR_SKIP();
    enum { N = 4, V = 1003, R = 9, LD = 707 };
    static const int32_t first[N + 1] = {0, 300, 301, 301, V}; /* one rank has none */
    struct staged_config config = {.hidden_size = 64,
                                   .max_logits_rows = 9,
                                   .max_vocab_rows = 702,
                                   .timeout_ns = 60 * (int64_t)1000000000};
    struct world w = world_open_config(N, PAYLOAD_BF16, config);
    struct gather_case c = {.times = 2};
    struct rng r = rng_seeded(3);
    float *want = random_floats(&r, R * V, 9), *part = xmalloc(R * LD * sizeof *part);
    uint32_t step = 9;
    for (int32_t k = 0; k < N; k++) {
        for (int32_t i = 0; i < R * LD; i++) {
            int32_t column = first[k] + i % LD;
            part[i] = column < first[k + 1] ? want[i / LD * V + column] : -1;
        }
        CUDA_CHECK(cudaSetDevice(w.devices[k]));
        c.of[k] =
            (struct staged_gather){gpu_upload(part, R * LD * sizeof *part), LD, NULL, R, V, first};
    }
    CUDA_CHECK(cudaSetDevice(0));
    c.of[0].out = gpu_alloc(R * V * sizeof *want);
    world_run(&w, set_step, &step);
    world_run(&w, gather, &c);
    float *got = gpu_fetch(c.of[0].out, R * V * sizeof *want);
    EXPECT_TRUE(same_bits("logits", got, want, R * V * sizeof *want));
    gpu_free(c.of[0].out);
    for (int32_t k = 0; k < N; k++) {
        CUDA_CHECK(cudaSetDevice(w.devices[k]));
        gpu_free((void *)(uintptr_t)c.of[k].logits);
    }
    CUDA_CHECK(cudaSetDevice(0));
    free(got);
    free(want);
    free(part);
    world_close(&w);
}

/* ---- many calls, one after the other --------------------------------------------------------- */

enum { CALLS = 40, CALL_SIZES = 8 };
static const int64_t call_sizes[CALL_SIZES] = {1, 700, 2, 40, 9000, 3, 5, 1300};

struct many {
    float *data[ALLREDUCE_MAX_RANKS][CALL_SIZES];
    cudaGraphExec_t graphs[ALLREDUCE_MAX_RANKS];
    uint32_t first_step;
    int32_t steps, calls;
    bool record, delays;
};

/* Element i of what a rank brings to a size; sums of these are exact. */
static float brought(int32_t rank, int32_t size, int64_t i) {
    return (float)(rank * 31 + size * 7 + (int32_t)(i % 97));
}

static void bring(struct world *w, int32_t rank, struct many *m, bool compare) {
    static const int32_t longest = 9000;
    float *host = xmalloc((size_t)longest * sizeof *host);
    for (int32_t z = 0; z < CALL_SIZES; z++) {
        size_t bytes = (size_t)call_sizes[z] * sizeof *host;
        int64_t wrong = -1;
        if (compare) {
            CUDA_CHECK(cudaMemcpyAsync(host, m->data[rank][z], bytes, cudaMemcpyDeviceToHost,
                                       w->streams[rank]));
            CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
        }
        for (int64_t i = 0; i < call_sizes[z]; i++) {
            float sum = 0;
            for (int32_t k = 0; k < w->num_ranks; k++)
                sum += brought(k, z, i);
            /* Every later call adds n equal numbers: n may be 2, 4 or 8 to be exact. */
            for (int32_t call = z + CALL_SIZES; call < m->calls; call += CALL_SIZES)
                sum *= (float)w->num_ranks;
            if (compare && memcmp(&host[i], &sum, sizeof sum) != 0)
                wrong = i;
            host[i] = brought(rank, z, i);
        }
        if (wrong >= 0)
            FAIL("rank %d, size %lld: element %lld is wrong", rank, (long long)call_sizes[z],
                 (long long)wrong);
        CUDA_CHECK(cudaMemcpyAsync(m->data[rank][z], host, bytes, cudaMemcpyHostToDevice,
                                   w->streams[rank]));
        CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
    }
    free(host);
}

static void pause_us(int32_t us) {
    struct timespec t = {0, us * 1000L};
    nanosleep(&t, NULL);
}

static void launch_calls(struct world *w, int32_t rank, struct many *m, struct rng *r) {
    staged_begin_step(w->staged, rank);
    for (int32_t call = 0; call < m->calls; call++) {
        if (m->delays && rng_below(r, 3) == 0)
            pause_us(rng_below(r, 300));
        staged_allreduce(w->staged, rank, m->data[rank][call % CALL_SIZES],
                         call_sizes[call % CALL_SIZES], w->streams[rank]);
    }
}

/* Steps of many calls, launched one by one, or recorded in the first step and played from then on.
 */
static void run_steps(struct world *w, int32_t rank, void *arg) {
    struct many *m = arg;
    struct rng r = rng_seeded((uint64_t)rank);
    for (int32_t step = 0; step < m->steps; step++) {
        world_set_step(w, rank, m->first_step + (uint32_t)step);
        bring(w, rank, m, false);
        if (m->record && step == 1) {
            cudaGraph_t graph;
            CUDA_CHECK(cudaStreamBeginCapture(w->streams[rank], cudaStreamCaptureModeThreadLocal));
            launch_calls(w, rank, m, &r);
            CUDA_CHECK(cudaStreamEndCapture(w->streams[rank], &graph));
            CUDA_CHECK(cudaGraphInstantiate(&m->graphs[rank], graph, 0));
            CUDA_CHECK(cudaGraphDestroy(graph));
        }
        if (m->graphs[rank])
            CUDA_CHECK(cudaGraphLaunch(m->graphs[rank], w->streams[rank]));
        else
            launch_calls(w, rank, m, &r);
        bring(w, rank, m, true);
    }
    if (m->graphs[rank])
        CUDA_CHECK(cudaGraphExecDestroy(m->graphs[rank]));
}

/* The calls of a step go all ways. */
static void check_many(int32_t n, struct many m) {
    struct world w = world_open(n, PAYLOAD_BF16, 2000, 10000, 20000, false);
    for (int32_t k = 0; k < n; k++)
        for (int32_t z = 0; z < CALL_SIZES; z++) {
            CUDA_CHECK(cudaSetDevice(w.devices[k]));
            m.data[k][z] = gpu_alloc((size_t)call_sizes[z] * sizeof(float));
        }
    world_run(&w, run_steps, &m);
    for (int32_t k = 0; k < n; k++)
        for (int32_t z = 0; z < CALL_SIZES; z++) {
            CUDA_CHECK(cudaSetDevice(w.devices[k]));
            gpu_free(m.data[k][z]);
        }
    CUDA_CHECK(cudaSetDevice(0));
    world_close(&w);
}

TEST(CudaAllreduce, OneSetOfMessagesSufficesForRanksThatAreNotEquallyFast) {
    GPU_OR_SKIP();
    check_many(8, (struct many){.steps = 3, .calls = 17, .delays = true});
    check_many(2, (struct many){.steps = 20, .calls = 25, .delays = true});
    check_many(4, (struct many){.steps = 12, .calls = 41});
}

TEST(CudaAllreduce, IsRecordedOnceAndPlayedWithOtherNumbers) {
    GPU_OR_SKIP();
    check_many(4, (struct many){.steps = 6, .calls = 17, .record = true});
    /* Up to the last number that a step may have. */
    check_many(2, (struct many){
                      .first_step = ALLREDUCE_STEPS - 3, .steps = 3, .calls = 9, .record = true});
}

/* ---- trouble --------------------------------------------------------------------------------- */

struct stall {
    struct sums *sums;
    int32_t stalled; /* the rank that does not come; -1: all do */
    struct error errors[ALLREDUCE_MAX_RANKS];
    int rc[ALLREDUCE_MAX_RANKS];
};

static void sum_unless_stalled(struct world *w, int32_t rank, void *arg) {
    struct stall *s = arg;
    if (rank != s->stalled) {
        staged_begin_step(w->staged, rank);
        for (int32_t i = 0; i < 6; i++) /* those after the first end at once */
            staged_allreduce(w->staged, rank, s->sums->device[rank], s->sums->count,
                             w->streams[rank]);
    }
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
    s->rc[rank] = staged_status(w->staged, rank, &s->errors[rank]);
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct world world_with_timeout(int32_t n, int way, double seconds) {
    struct staged_config config = {
        .hidden_size = 64,
        .timeout_ns = (int64_t)(seconds * 1e9),
        .lines_bytes = way == LINES_ONLY ? 1 << 20 : 1,
        .flags_bytes = way == COPIES_ONLY ? 1 : 1 << 20,
    };
    return world_open_config(n, PAYLOAD_BF16, config);
}

TEST(CudaAllreduce, ARankThatDoesNotComeIsNamedWithinTheDeadline) {
    GPU_OR_SKIP();
    for (int way = 0; way < NUM_WAYS; way++) {
        struct world w = world_with_timeout(4, way, 0.4);
        struct sums sums = sums_random(&w, PAYLOAD_F32, 1, 500, 1);
        struct stall stall = {.sums = &sums, .stalled = 2};
        char want[64];
        int timeouts = 0;
        uint32_t step = 5;
        world_run(&w, set_step, &step);
        double start = seconds_now();
        world_run(&w, sum_unless_stalled, &stall);
        EXPECT_TRUE(seconds_now() - start < 60);
        snprintf(want, sizeof want, "rank 2 (GPU %d) in collective 0", w.devices[2]);
        for (int32_t r = 0; r < 4; r++) {
            EXPECT_INT_EQ(stall.rc[r], r == 2 ? 0 : ERR_INTERNAL);
            timeouts += strstr(stall.errors[r].text, "waited 0.4 s") != NULL &&
                        strstr(stall.errors[r].text, want) != NULL;
        }
        if (timeouts == 0)
            FAIL("%s: nobody names %s but: %s", way_names[way], want, stall.errors[0].text);
        /* After a reset all is well. */
        sums_free(&w, &sums);
        staged_reset(w.staged);
        check_plain(&w, 300, 6);
        world_close(&w);
    }
}

static void *abort_soon(void *arg) {
    struct world *w = arg;
    pause_us(200000);
    staged_abort(w->staged);
    return NULL;
}

TEST(CudaAllreduce, EndsWhenTheHostSaysSo) {
    GPU_OR_SKIP();
    for (int way = 0; way < NUM_WAYS; way++) {
        struct world w = world_with_timeout(3, way, 60);
        struct sums sums = sums_random(&w, PAYLOAD_F32, 1, 500, 1);
        struct stall stall = {.sums = &sums, .stalled = 1};
        uint32_t step = 5;
        pthread_t thread;
        world_run(&w, set_step, &step);
        double start = seconds_now();
        ASSERT_TRUE(pthread_create(&thread, NULL, abort_soon, &w) == 0);
        world_run(&w, sum_unless_stalled, &stall);
        pthread_join(thread, NULL);
        EXPECT_TRUE(seconds_now() - start < 20);
        EXPECT_INT_EQ(stall.rc[0], ERR_INTERNAL);
        EXPECT_INT_EQ(stall.rc[2], ERR_INTERNAL);
        EXPECT_TRUE(strstr(stall.errors[0].text,
                           "GPU 0 was told to stop when it waited for rank ") != NULL);
        sums_free(&w, &sums);
        staged_reset(w.staged);
        check_plain(&w, 300, 6);
        world_close(&w);
    }
}

/* ---- all ranks in one grid ------------------------------------------------------------------- */

struct group {
    struct world world;
    struct allreduce_group args;
    struct allreduce_channel *channels;
    struct allreduce_array *arrays;
};

static struct group group_open(int32_t n, enum allreduce_payload payload, enum allreduce_way way) {
    static const int32_t devices[ALLREDUCE_MAX_RANKS] = {0};
    struct staged_config config = {.hidden_size = ALLREDUCE_MAX_NORM,
                                   .devices = devices,
                                   .timeout_ns = 60 * (int64_t)1000000000};
    struct group g = {.world = world_open_config(n, payload, config)};
    struct staged *s = g.world.staged;
    size_t N = (size_t)n;
    g.channels = gpu_alloc(N * sizeof *g.channels);
    g.arrays = gpu_alloc(N * sizeof *g.arrays);
    g.args = (struct allreduce_group){.channels = g.channels,
                                      .arrays = g.arrays,
                                      .num_ranks = n,
                                      .num_blocks = staged_num_blocks(s),
                                      .way = way,
                                      .payload = payload};
    return g;
}

static void group_close(struct group *g) {
    gpu_free(g->channels);
    gpu_free(g->arrays);
    world_close(&g->world);
}

/* A call with the next channels. */
static void group_call(struct group *g, const struct allreduce_array *arrays) {
    struct allreduce_channel channels[ALLREDUCE_MAX_RANKS];
    size_t n = (size_t)g->args.num_ranks;
    for (int32_t r = 0; r < g->args.num_ranks; r++)
        channels[r] = staged_next_channel(g->world.staged, r, g->args.way);
    gpu_write(g->channels, channels, n * sizeof *channels);
    gpu_write(g->arrays, arrays, n * sizeof *arrays);
    g->args.num_rows = arrays[0].num_rows;
    g->args.row_len = arrays[0].row_len;
    g->args.norm = arrays[0].norm.x != NULL;
    allreduce_group_launch(&g->args, gpu_stream());
    CUDA_CHECK(cudaStreamSynchronize(gpu_stream()));
}

/* Sums, with a norm behind or not. */
static void check_group(struct group *g, int32_t rows, int32_t row_len, int norm, uint32_t salt) {
    struct allreduce_array arrays[ALLREDUCE_MAX_RANKS];
    struct norm_case c = {.T = rows, .N = rows, .H = row_len, .flags = norm ? WITH_XQ : 0};
    struct rng r = rng_seeded(salt);
    c.sums = sums_random(&g->world, g->args.payload, rows, row_len, salt);
    c.hidden = random_floats(&r, (int64_t)rows * row_len, 4);
    c.weight = random_floats(&r, row_len, 2);
    for (int32_t k = 0; k < g->args.num_ranks; k++) {
        c.of[k] = norm_arrays_new(&c);
        arrays[k] = (struct allreduce_array){.partial = c.sums.device[k],
                                             .num_rows = rows,
                                             .row_len = row_len,
                                             .count = c.sums.count,
                                             .out = c.sums.device[k]};
        if (norm)
            arrays[k].norm = c.of[k].args;
    }
    group_call(g, arrays);
    if (norm)
        expect_norm(&g->world, &c);
    else
        expect_sums(&g->world, &c.sums, "group");
    for (int32_t k = 0; k < g->args.num_ranks; k++)
        norm_arrays_free(&c.of[k]);
    sums_free(&g->world, &c.sums);
    free(c.hidden);
    free(c.weight);
}

TEST(CudaAllreduce, AddsBetweenGroupsOfBlocksOfOneGrid) {
    GPU_OR_SKIP();
    static const struct {
        enum allreduce_payload payload;
        enum allreduce_way way;
        int32_t n;
    } cases[] = {{PAYLOAD_BF16, ALLREDUCE_LINES, 4},
                 {PAYLOAD_BF16, ALLREDUCE_FLAGS, 4},
                 {PAYLOAD_F32, ALLREDUCE_LINES, 3},
                 {PAYLOAD_F32, ALLREDUCE_FLAGS, 2},
                 {PAYLOAD_F8, ALLREDUCE_FLAGS, 4}};
    for (int i = 0; i < 5 && !shim_failed(); i++) {
        struct group g = group_open(cases[i].n, cases[i].payload, cases[i].way);
        uint32_t step = 3, salt = 0;
        world_run(&g.world, set_step, &step);
        for (int norm = 0; norm < 2; norm++) {
            check_group(&g, 1, 1, norm, salt++);
            check_group(&g, 3, 260, norm, salt++);
            check_group(&g, g.args.num_blocks + 1, 38, norm, salt++);
        }
        if (shim_failed())
            FAIL("%s, way %d", payload_names[cases[i].payload], (int)cases[i].way);
        group_close(&g);
    }
}

/* ---- start ----------------------------------------------------------------------------------- */

struct self_test {
    int64_t timeout_ns;
    int32_t absent;
    int rc[ALLREDUCE_MAX_RANKS];
    struct error errors[ALLREDUCE_MAX_RANKS];
};

static void run_self_test(struct world *w, int32_t rank, void *arg) {
    struct self_test *t = arg;
    if (rank != t->absent)
        t->rc[rank] =
            staged_self_test(w->staged, rank, t->timeout_ns, w->streams[rank], &t->errors[rank]);
}

TEST(CudaAllreduce, TheSelfTestNamesThePairsThatDoNotSeeEachOther) {
    GPU_OR_SKIP();
    for (int peers = 0; peers < 2; peers++) {
        struct world w = world_open(3, PAYLOAD_BF16, 0, 0, 0, peers);
        struct self_test good = {.timeout_ns = 60 * (int64_t)1000000000, .absent = -1};
        struct self_test bad = {.timeout_ns = 200 * 1000 * 1000, .absent = 1};
        world_run(&w, run_self_test, &good);
        for (int32_t r = 0; r < 3; r++)
            if (good.rc[r] != 0)
                FAIL("%s", good.errors[r].text);
        world_run(&w, run_self_test, &bad);
        EXPECT_INT_EQ(bad.rc[0], ERR_INTERNAL);
        EXPECT_INT_EQ(bad.errors[0].problems, 1);
        EXPECT_TRUE(strstr(bad.errors[2].text, "did not see in time what rank 1") != NULL);
        world_close(&w);
    }
}

TEST(CudaAllreduce, SaysWhatItDoesNotTake) {
    GPU_OR_SKIP();
    struct staged *s;
    struct error error = {0};
    int32_t devices[17] = {0};
    struct staged_config config = {.num_ranks = 17, .devices = devices, .hidden_size = 64};
    EXPECT_INT_EQ(staged_create(&s, &config, &error), ERR_UNSUPPORTED);
    EXPECT_STR_EQ(error.text, "17 ranks: the built-in all-reduce takes 1 to 16");
    config.num_ranks = 2;
    config.hidden_size = 12288;
    EXPECT_INT_EQ(staged_create(&s, &config, &error), ERR_UNSUPPORTED);
    config.hidden_size = 4098;
    EXPECT_INT_EQ(staged_create(&s, &config, &error), ERR_UNSUPPORTED);
    EXPECT_TRUE(s == NULL);
    config.hidden_size = 4096;
    ASSERT_INT_EQ(staged_create(&s, &config, &error), 0);
    staged_destroy(s);
}
