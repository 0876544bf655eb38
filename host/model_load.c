/* model_load: cuts the checkpoint's tensors to what each rank holds and stores them in the
 * backend's layout.
 *
 * Two walks over the same code: the first adds up sizes and allocates one arena a rank, the second
 * hands out its pieces and writes down one job for every matrix. The jobs then run on all threads,
 * in the order of the layers, so that the files are read front to back.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/model_internal.h"

enum { MAX_SLICES = 3 };

/* Fill one matrix from up to three tensors stacked by rows (q, k, v). */
struct job {
    struct backend *backend;
    struct weight *weight;
    struct tensor_slice slice[MAX_SLICES];
    int32_t num_slices;
};

struct loader {
    struct model *model;
    struct carver carver; /* of the rank being laid out */
    struct rank *rank;    /* that rank */
    bool filling;         /* the second walk: memory is there */
    struct job *jobs;     /* owned */
    int32_t num_jobs, cap_jobs;
    _Atomic int32_t next_job;
    _Atomic int64_t bytes_done;
    int64_t bytes_total;
    int64_t start_us;
};

void *carve(struct carver *c, size_t bytes) {
    void *p = c->memory ? c->memory + c->used : NULL;
    c->used += (bytes + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    return p;
}

static struct tensor_slice slice_rows(const struct tensor_source *s, struct range rows) {
    return (struct tensor_slice){
        .source = s, .row0 = rows.first, .rows = rows.count, .cols = s->cols};
}

static struct tensor_slice slice_cols(const struct tensor_source *s, struct range cols) {
    return (struct tensor_slice){
        .source = s, .rows = s->rows, .col0 = cols.first, .cols = cols.count};
}

static struct range scaled(struct range r, int32_t by) {
    return (struct range){r.first * by, r.count * by};
}

static int64_t slice_bytes(const struct tensor_slice *s) {
    return (int64_t)s->rows * s->cols * (int64_t)dtype_bytes(s->source->dtype);
}

/* One matrix made of slices stacked by rows. */
static void place_matrix(struct loader *l, struct weight *w, enum weight_use use,
                         const struct tensor_slice *slices, int32_t n) {
    int32_t rows = 0;
    for (int32_t i = 0; i < n; i++)
        rows += slices[i].rows;
    const struct weight_shape shape = {
        .use = use,
        .dtype = slices[0].source->dtype,
        .rows = rows,
        .cols = slices[0].cols,
        .scaling = slices[0].source->scaling,
        .block_col0 = slices[0].col0 % FP8_BLOCK_SIZE,
    };
    void *memory = carve(&l->carver, l->model->ops->weight_bytes(&shape));
    if (!l->filling)
        return;
    l->model->ops->weight_init(l->rank->backend, w, &shape, memory);
    if (l->num_jobs == l->cap_jobs) {
        l->cap_jobs = l->cap_jobs ? 2 * l->cap_jobs : 256;
        l->jobs = xrealloc(l->jobs, (size_t)l->cap_jobs * sizeof *l->jobs);
    }
    struct job *j = &l->jobs[l->num_jobs++];
    *j = (struct job){.backend = l->rank->backend, .weight = w, .num_slices = n};
    for (int32_t i = 0; i < n; i++) {
        j->slice[i] = slices[i];
        l->bytes_total += slice_bytes(&slices[i]);
    }
}

static void place_one(struct loader *l, struct weight *w, enum weight_use use,
                      struct tensor_slice slice) {
    place_matrix(l, w, use, &slice, 1);
}

/* Rows of a vector as float32; NULL when the family has no such tensor. */
static float *place_vector(struct loader *l, const struct tensor_slice *slices, int32_t n) {
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++)
        total += slices[i].rows;
    if (slices[0].source->rows == 0)
        return NULL;
    float *out = carve(&l->carver, (size_t)total * sizeof *out);
    if (!l->filling)
        return out;
    float *values = xmalloc((size_t)total * sizeof *values);
    for (int32_t i = 0, at = 0; i < n; i++)
        for (int32_t r = 0; r < slices[i].rows; r++)
            values[at++] = tensor_source_at(slices[i].source, slices[i].row0 + r);
    l->model->ops->write(l->rank->backend, out, values, (size_t)total * sizeof *values);
    free(values);
    return out;
}

static float *place_whole_vector(struct loader *l, const struct tensor_source *s) {
    struct tensor_slice slice = slice_rows(s, (struct range){0, s->rows});
    return place_vector(l, &slice, 1);
}

static void place_experts(struct loader *l, struct rank *r, int32_t index, struct layer *out) {
    const struct layer_source *src = &l->model->weights->layers[index];
    bool moe = src->router.rows > 0;
    struct range experts = moe ? r->layout.experts : (struct range){0, 1};
    struct range cols = moe ? r->layout.expert_columns : r->layout.ffn_columns;
    out->unit = moe ? l->model->layout.expert_unit : l->model->layout.ffn_unit;
    out->num_experts = cols.count ? experts.count : 0;
    if (l->filling && out->num_experts > 0)
        out->experts = xcalloc((size_t)out->num_experts, sizeof *out->experts);
    for (int32_t i = 0; i < out->num_experts; i++) {
        const struct expert_source *s = &src->experts[experts.first + i];
        struct expert_weights scratch, *e = l->filling ? &out->experts[i] : &scratch;
        e->expert = experts.first + i;
        place_one(l, &e->gate, WEIGHT_EXPERT, slice_rows(&s->gate, cols));
        place_one(l, &e->up, WEIGHT_EXPERT, slice_rows(&s->up, cols));
        place_one(l, &e->down, WEIGHT_EXPERT, slice_cols(&s->down, cols));
    }
}

static void place_layer(struct loader *l, struct rank *r, int32_t index) {
    const struct layer_source *s = &l->model->weights->layers[index];
    const struct model_config *c = l->model->config;
    struct layer *out = &r->layers[index];
    struct range q = scaled(r->layout.q_heads, c->head_dim);
    struct range kv = scaled(r->layout.kv_heads, c->head_dim);
    struct tensor_slice qkv[] = {slice_rows(&s->q, q), slice_rows(&s->k, kv),
                                 slice_rows(&s->v, kv)};
    struct tensor_slice bias[] = {slice_rows(&s->q_bias, q), slice_rows(&s->k_bias, kv),
                                  slice_rows(&s->v_bias, kv)};
    struct tensor_slice q_norm = slice_rows(&s->q_norm, q), k_norm = slice_rows(&s->k_norm, kv);
    out->attn_norm = place_whole_vector(l, &s->attn_norm);
    out->ffn_norm = place_whole_vector(l, &s->ffn_norm);
    out->qkv_bias = place_vector(l, bias, 3);
    if (c->qk_norm == QK_NORM_PROJECTION) {
        out->q_norm = place_vector(l, &q_norm, 1);
        out->k_norm = place_vector(l, &k_norm, 1);
    } else {
        out->q_norm = place_whole_vector(l, &s->q_norm);
        out->k_norm = place_whole_vector(l, &s->k_norm);
    }
    place_matrix(l, &out->qkv, WEIGHT_DENSE, qkv, 3);
    place_one(l, &out->o, WEIGHT_DENSE, slice_cols(&s->o, q));
    if (s->router.rows > 0)
        place_one(l, &out->router, WEIGHT_DENSE,
                  slice_rows(&s->router, (struct range){0, s->router.rows}));
    place_experts(l, r, index, out);
}

static void place_rank(struct loader *l, struct rank *r) {
    const struct weights *w = l->model->weights;
    l->carver.used = 0;
    l->rank = r;
    for (int32_t i = 0; i < l->model->config->num_hidden_layers; i++)
        place_layer(l, r, i);
    r->norm = place_whole_vector(l, &w->norm);
    place_one(l, &r->lm_head, WEIGHT_DENSE, slice_rows(&w->lm_head, r->layout.vocab));
}

static int lay_out_rank(struct loader *l, struct rank *r, struct error *error) {
    l->filling = false;
    l->carver = (struct carver){0};
    place_rank(l, r);
    r->weights_bytes = l->carver.used;
    r->weights_memory = l->model->ops->alloc(r->backend, r->weights_bytes);
    if (!r->weights_memory)
        return model_no_memory(
            l->model, r, "weights", r->weights_bytes,
            l->model->options.gpus
                ? "lower --max-num-batched-tokens, or take a card with more memory "
                  "or a smaller or FP8 checkpoint"
                : "take a smaller or FP8 checkpoint",
            error);
    l->filling = true;
    l->carver.memory = r->weights_memory;
    place_rank(l, r);
    return 0;
}

static void *run_jobs(void *arg) {
    struct loader *l = arg;
    for (;;) {
        int32_t i = atomic_fetch_add(&l->next_job, 1);
        if (i >= l->num_jobs)
            return NULL;
        const struct job *j = &l->jobs[i];
        for (int32_t s = 0, row = 0; s < j->num_slices; row += j->slice[s++].rows) {
            l->model->ops->weight_put(j->backend, j->weight, row, &j->slice[s]);
            atomic_fetch_add(&l->bytes_done, slice_bytes(&j->slice[s]));
        }
    }
}

/* A bar on a terminal, a line every quarter elsewhere; nothing for models that load at once. */
static void show_progress(struct loader *l, bool terminal, int32_t *quarter) {
    double done = (double)atomic_load(&l->bytes_done), total = (double)l->bytes_total;
    double seconds = (double)(clock_us() - l->start_us) / 1e6;
    double share = total > 0 ? done / total : 1, rate = seconds > 0 ? done / 1e9 / seconds : 0;
    if (terminal) {
        char bar[41];
        int filled = (int)(share * 40);
        memset(bar, '#', (size_t)filled);
        memset(bar + filled, '.', (size_t)(40 - filled));
        bar[40] = 0;
        fprintf(stderr, "\rmoeserve: loading [%s] %5.1f%%  %.2f GB at %.2f GB/s%s", bar,
                100 * share, done / 1e9, rate, share >= 1 ? "\n" : "");
    } else if ((int32_t)(share * 4) > *quarter) {
        *quarter = (int32_t)(share * 4);
        log_info("loaded %3.0f%%  %.2f GB at %.2f GB/s", 100 * share, done / 1e9, rate);
    }
}

static void fill(struct loader *l) {
    enum { MAX_THREADS = 64 };
    pthread_t threads[MAX_THREADS];
    int32_t n = l->model->options.threads, started = 0, quarter = 0;
    bool terminal = isatty(STDERR_FILENO);
    bool shown = l->model->options.progress && l->bytes_total > (int64_t)100 << 20;
    for (int32_t i = 0; i < n && i < MAX_THREADS; i++)
        started += pthread_create(&threads[started], NULL, run_jobs, l) == 0;
    if (started == 0)
        run_jobs(l);
    while (shown && atomic_load(&l->bytes_done) < l->bytes_total) {
        show_progress(l, terminal, &quarter);
        usleep(100000);
    }
    for (int32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (shown)
        show_progress(l, terminal, &quarter);
}

/* What follows once every matrix is in place. */
static int finish_rank(struct model *m, struct rank *r, struct error *error) {
    for (int32_t i = 0; i < m->config->num_hidden_layers && m->ops->experts_init; i++) {
        struct layer *l = &r->layers[i];
        int rc =
            m->ops->experts_init(r->backend, l->experts, l->num_experts, &l->expert_table, error);
        if (rc)
            return rc;
    }
    return m->ops->embed_init(r->backend, &m->weights->embed,
                              r->index > 0 ? m->rank[0].backend : NULL, error);
}

int model_load_weights(struct model *m, struct error *error) {
    struct loader l = {.model = m, .start_us = clock_us()};
    int rc = 0;
    for (int32_t i = 0; i < m->num_ranks && rc == 0; i++)
        rc = lay_out_rank(&l, &m->rank[i], error);
    if (rc == 0)
        fill(&l);
    for (int32_t i = 0; i < m->num_ranks && rc == 0; i++)
        rc = finish_rank(m, &m->rank[i], error);
    m->load_seconds = (double)(clock_us() - l.start_us) / 1e6;
    m->load_bytes = l.bytes_total;
    free(l.jobs);
    return rc;
}
