/* All-reduces between GPUs: every way, payload and number of ranks against plain loops, whose
 * numbers they have to give bit for bit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
    staged_end_step(w->staged, rank, w->streams[rank]);
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
    staged_end_step(w->staged, rank, w->streams[rank]);
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
    if (peers && !staged_uses_peers(w.staged)) {
        world_close(&w);
        SKIP("the GPUs have no access to each other's memory");
    }
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
