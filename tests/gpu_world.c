/* The ranks of a test (gpu_world.h). */
#include "tests/gpu_world.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"

/* ---- lifecycle ------------------------------------------------------------------------------- */

struct world world_open_config(int32_t num_ranks, enum allreduce_payload payload,
                               struct staged_config config) {
    struct world w = {.num_ranks = num_ranks, .payload = payload};
    struct error error = {0};
    int devices = 0;
    CUDA_CHECK(cudaGetDeviceCount(&devices));
    config.num_ranks = num_ranks;
    config.payload = payload;
    for (int32_t r = 0; r < num_ranks; r++)
        w.devices[r] = config.devices ? config.devices[r] : r % devices;
    config.devices = w.devices;
    CHECK(staged_create(&w.staged, &config, &error) == 0, "%s", error.text);
    for (int32_t r = 0; r < num_ranks; r++) {
        CUDA_CHECK(cudaSetDevice(w.devices[r]));
        CUDA_CHECK(cudaStreamCreateWithFlags(&w.streams[r], cudaStreamNonBlocking));
        CUDA_CHECK(cudaMalloc((void **)&w.steps[r], sizeof *w.steps[r]));
        staged_set_step(w.staged, r, w.steps[r]);
    }
    CUDA_CHECK(cudaSetDevice(0));
    return w;
}

struct world world_open(int32_t num_ranks, enum allreduce_payload payload, int64_t lines,
                        int64_t flags, int64_t piece, bool peers) {
    struct staged_config config = {
        .peers = peers,
        .hidden_size = ALLREDUCE_MAX_NORM,
        .max_logits_rows = 9,
        .max_vocab_rows = 700,
        .timeout_ns = 60 * (int64_t)1000000000,
        .lines_bytes = lines,
        .flags_bytes = flags,
        .piece_bytes = piece,
    };
    return world_open_config(num_ranks, payload, config);
}

void world_close(struct world *w) {
    for (int32_t r = 0; r < w->num_ranks; r++) {
        CUDA_CHECK(cudaSetDevice(w->devices[r]));
        CUDA_CHECK(cudaStreamSynchronize(w->streams[r]));
        CUDA_CHECK(cudaStreamDestroy(w->streams[r]));
        CUDA_CHECK(cudaFree(w->steps[r]));
    }
    staged_destroy(w->staged);
    CUDA_CHECK(cudaSetDevice(0));
}

/* ---- threads --------------------------------------------------------------------------------- */

struct rank_thread {
    struct world *world;
    int32_t rank;
    rank_fn fn;
    void *arg;
    pthread_t thread;
};

static void *run_rank(void *arg) {
    struct rank_thread *t = arg;
    CUDA_CHECK(cudaSetDevice(t->world->devices[t->rank]));
    t->fn(t->world, t->rank, t->arg);
    return NULL;
}

void world_run(struct world *w, rank_fn fn, void *arg) {
    struct rank_thread threads[ALLREDUCE_MAX_RANKS];
    for (int32_t r = 0; r < w->num_ranks; r++) { /* what was uploaded is there */
        CUDA_CHECK(cudaSetDevice(w->devices[r]));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    CUDA_CHECK(cudaSetDevice(0));
    for (int32_t r = 0; r < w->num_ranks; r++) {
        threads[r] = (struct rank_thread){.world = w, .rank = r, .fn = fn, .arg = arg};
        CHECK(pthread_create(&threads[r].thread, NULL, run_rank, &threads[r]) == 0, "no thread");
    }
    for (int32_t r = 0; r < w->num_ranks; r++)
        pthread_join(threads[r].thread, NULL);
}

void world_set_step(struct world *w, int32_t rank, uint32_t number) {
    CUDA_CHECK(cudaMemcpyAsync(w->steps[rank], &number, sizeof number, cudaMemcpyHostToDevice,
                               w->streams[rank]));
    CUDA_CHECK(cudaStreamSynchronize(w->streams[rank]));
}

/* ---- what sums come to ----------------------------------------------------------------------- */

/* A group of columns with one scale. */
static void round_f8(double *x, int32_t n) {
    float largest = 0, scale, q;
    uint8_t code;
    for (int32_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf((float)x[i]));
    scale = largest > 0 ? largest / 448 : 1;
    for (int32_t i = 0; i < n; i++) {
        q = (float)x[i] / scale;
        e4m3_from_floats(&code, &q, 1);
        x[i] = (double)(dtype_load(DTYPE_F8_E4M3, &code, 0) * scale);
    }
}

void payload_round(enum allreduce_payload payload, double *x, int32_t rows, int32_t row_len) {
    int64_t n = (int64_t)rows * row_len;
    if (payload == PAYLOAD_BF16)
        for (int64_t i = 0; i < n; i++) {
            float f = (float)x[i];
            round_to_bf16(&f, 1);
            x[i] = (double)f;
        }
    if (payload == PAYLOAD_F8)
        for (int32_t r = 0; r < rows; r++)
            for (int32_t c = 0; c < row_len; c += ALLREDUCE_F8_GROUP)
                round_f8(x + (int64_t)r * row_len + c,
                         row_len - c < ALLREDUCE_F8_GROUP ? row_len - c : ALLREDUCE_F8_GROUP);
}

void payload_sum(double *sum, double *const *parts, int32_t n, enum allreduce_payload payload,
                 int32_t rows, int32_t row_len) {
    int64_t count = (int64_t)rows * row_len;
    double *part = xmalloc((size_t)count * sizeof *part);
    for (int32_t r = 0; r < n; r++) {
        memcpy(part, parts[r], (size_t)count * sizeof *part);
        payload_round(payload, part, rows, row_len);
        for (int64_t i = 0; i < count; i++)
            sum[i] = r == 0                   ? part[i]
                     : payload == PAYLOAD_F64 ? sum[i] + part[i]
                                              : (double)((float)sum[i] + (float)part[i]);
    }
    payload_round(payload, sum, rows, row_len);
    free(part);
}
