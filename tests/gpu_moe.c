#include "tests/gpu_moe.h"

#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

/* ---- a layer's experts ----------------------------------------------------------------------- */

static void allocate_layer(struct moe_layer *l) {
    size_t n = (size_t)l->E;
    l->slot = xcalloc(n, sizeof *l->slot);
    l->gate = xcalloc(n, sizeof *l->gate);
    l->up = xcalloc(n, sizeof *l->up);
    l->down = xcalloc(n, sizeof *l->down);
}

static void upload_layer(struct moe_layer *l) {
    size_t n = (size_t)l->E;
    struct gpu_expert *experts = xcalloc(n, sizeof *experts);
    for (int32_t s = 0; s < l->num_local; s++)
        experts[s] = (struct gpu_expert){l->gate[s].data,  l->up[s].data,  l->down[s].data,
                                         l->gate[s].scale, l->up[s].scale, l->down[s].scale};
    l->experts = gpu_upload(experts, n * sizeof *experts);
    l->device_slot = gpu_upload(l->slot, n * sizeof *l->slot);
    free(experts);
}

struct moe_layer moe_layer_random(struct rng *r, const struct gpu_weight_type *type, int32_t H,
                                  int32_t I, int32_t E, int32_t K, int32_t miss) {
    struct moe_layer l = {
        .type = type, .H = H, .I = I, .E = E, .K = K, .down_col0 = type->block_col0};
    struct gpu_weight_type uncut = gpu_weight_type_uncut(type);
    allocate_layer(&l);
    for (int32_t e = 0; e < E; e++) {
        l.slot[e] = -1;
        if (miss > 0 && e % miss == miss - 1)
            continue;
        int32_t s = l.slot[e] = l.num_local++;
        l.gate[s] = gpu_matrix_random(r, &uncut, LAYOUT_FRAGMENTS, I, H);
        l.up[s] = gpu_matrix_random(r, &uncut, LAYOUT_FRAGMENTS, I, H);
        l.down[s] = gpu_matrix_random(r, type, LAYOUT_FRAGMENTS, H, I);
    }
    upload_layer(&l);
    return l;
}

struct moe_layer moe_layer_part(const struct moe_layer *whole, int32_t expert0, int32_t experts,
                                int32_t col0, int32_t cols) {
    struct moe_layer l = {.type = whole->type,
                          .H = whole->H,
                          .I = cols,
                          .E = whole->E,
                          .K = whole->K,
                          .unit = whole->unit};
    allocate_layer(&l);
    for (int32_t e = 0; e < l.E; e++) {
        int32_t from = whole->slot[e];
        l.slot[e] = -1;
        if (from < 0 || e < expert0 || e >= expert0 + experts || cols == 0)
            continue;
        int32_t s = l.slot[e] = l.num_local++;
        l.gate[s] = gpu_matrix_part(&whole->gate[from], LAYOUT_FRAGMENTS, col0, cols, 0, l.H);
        l.up[s] = gpu_matrix_part(&whole->up[from], LAYOUT_FRAGMENTS, col0, cols, 0, l.H);
        l.down[s] = gpu_matrix_part(&whole->down[from], LAYOUT_FRAGMENTS, 0, l.H, col0, cols);
        l.down_col0 = l.down[s].type.block_col0;
    }
    upload_layer(&l);
    return l;
}

void moe_layer_free(struct moe_layer *l) {
    for (int32_t s = 0; s < l->num_local; s++) {
        gpu_matrix_free(&l->gate[s]);
        gpu_matrix_free(&l->up[s]);
        gpu_matrix_free(&l->down[s]);
    }
    gpu_free(l->experts);
    gpu_free(l->device_slot);
    free(l->slot);
    free(l->gate);
    free(l->up);
    free(l->down);
}

/* ---- a batch and where its tokens go --------------------------------------------------------- */

static bool chosen_before(const int32_t *ids, int32_t k, int32_t id) {
    for (int32_t i = 0; i < k; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static int32_t choose(struct rng *r, const struct moe_layer *l, enum moe_pattern pattern,
                      const int32_t *ids, int32_t k) {
    int32_t id;
    do {
        if (pattern == MOE_EVERY || (pattern == MOE_ONE && k == 0))
            id = k;
        else if (pattern == MOE_SKEWED)
            id = rng_below(r, 1 + rng_below(r, l->E));
        else
            id = rng_below(r, l->E);
    } while (chosen_before(ids, k, id));
    return id;
}

/* Counts, offsets, permutation and slots from topk_ids. */
static void group_by_expert(struct moe_tokens *t, const struct moe_layer *l) {
    int32_t P = t->T * l->K, at = 0;
    for (int32_t p = 0; p < P; p++)
        t->slot[p] = t->permutation[p] = -1;
    for (int32_t e = 0; e < l->E; e++) {
        t->offsets[e] = at;
        for (int32_t p = 0; p < P; p++)
            if (t->topk_ids[p] == e) {
                t->slot[p] = at;
                t->permutation[at++] = p;
            }
        t->counts[e] = at - t->offsets[e];
    }
    t->offsets[l->E] = at;
}

static void allocate_tokens(struct moe_tokens *t, const struct moe_layer *l) {
    size_t P = (size_t)(t->T * l->K), E = (size_t)l->E;
    t->topk_ids = xcalloc(P, sizeof *t->topk_ids);
    t->topk_weights = xcalloc(P, sizeof *t->topk_weights);
    t->counts = xcalloc(E, sizeof *t->counts);
    t->offsets = xcalloc(E + 1, sizeof *t->offsets);
    t->permutation = xcalloc(P, sizeof *t->permutation);
    t->slot = xcalloc(P, sizeof *t->slot);
}

struct moe_tokens moe_tokens_random(struct rng *r, const struct moe_layer *l, int32_t T,
                                    int32_t padded, enum moe_pattern pattern) {
    struct moe_tokens t = {.T = T, .padded = padded};
    int32_t K = l->K;
    allocate_tokens(&t, l);
    t.x = random_floats(r, (int64_t)T * l->H, 2);
    round_to_bf16(t.x, (int64_t)T * l->H);
    if (l->type->xq)
        t.f8 = gpu_f8_rows_of(t.x, T, l->H);
    for (int32_t i = 0; i < T; i++)
        for (int32_t k = 0; k < K; k++) {
            bool real = i < T - padded;
            t.topk_ids[i * K + k] = real ? choose(r, l, pattern, t.topk_ids + i * K, k) : -1;
            t.topk_weights[i * K + k] = real ? (rng_float(r) + 1.5f) / (float)K : 0;
        }
    group_by_expert(&t, l);
    return t;
}

struct moe_tokens moe_tokens_one(const struct moe_tokens *all, const struct moe_layer *l,
                                 int32_t i) {
    struct moe_tokens t = {.T = 1};
    allocate_tokens(&t, l);
    t.x = xcalloc((size_t)l->H, sizeof *t.x);
    memcpy(t.x, all->x + (int64_t)i * l->H, (size_t)l->H * sizeof *t.x);
    if (l->type->xq) {
        int64_t stride = f8_stride(l->H);
        t.f8.codes = xcalloc((size_t)stride, 1);
        t.f8.scale = xcalloc(1, sizeof *t.f8.scale);
        memcpy(t.f8.codes, all->f8.codes + i * stride, (size_t)stride);
        *t.f8.scale = all->f8.scale[i];
    }
    memcpy(t.topk_ids, all->topk_ids + i * l->K, (size_t)l->K * sizeof *t.topk_ids);
    memcpy(t.topk_weights, all->topk_weights + i * l->K, (size_t)l->K * sizeof *t.topk_weights);
    group_by_expert(&t, l);
    return t;
}

void moe_tokens_free(struct moe_tokens *t) {
    free(t->x);
    gpu_f8_rows_free(&t->f8);
    free(t->topk_ids);
    free(t->topk_weights);
    free(t->counts);
    free(t->offsets);
    free(t->permutation);
    free(t->slot);
}

/* ---- one launch ------------------------------------------------------------------------------ */

void moe_result_free(struct moe_result *r) {
    free(r->act);
    free(r->pair_out);
    free(r->partial);
    free(r->units);
    free(r->sums);
    gpu_f8_rows_free(&r->actq);
}

static struct gpu_routing upload_routing(const struct moe_tokens *t, const struct moe_layer *l) {
    size_t P = (size_t)(t->T * l->K), E = (size_t)l->E;
    return (struct gpu_routing){
        .topk_ids = gpu_upload(t->topk_ids, P * sizeof(int32_t)),
        .topk_weights = gpu_upload(t->topk_weights, P * sizeof(float)),
        .expert_counts = gpu_upload(t->counts, E * sizeof(int32_t)),
        .expert_offsets = gpu_upload(t->offsets, (E + 1) * sizeof(int32_t)),
        .permutation = gpu_upload(t->permutation, P * sizeof(int32_t)),
        .slot = gpu_upload(t->slot, P * sizeof(int32_t)),
    };
}

static void free_routing(struct gpu_routing *r) {
    gpu_free(r->topk_ids);
    gpu_free(r->topk_weights);
    gpu_free(r->expert_counts);
    gpu_free(r->expert_offsets);
    gpu_free(r->permutation);
    gpu_free(r->slot);
}

struct moe_result moe_run(const struct moe_layer *l, const struct moe_tokens *t,
                          const void *before) {
    int64_t P = (int64_t)t->T * l->K, n = (int64_t)t->T * l->H;
    size_t real = l->unit ? sizeof(double) : sizeof(float);
    size_t actq_bytes = l->type->xq ? (size_t)(P * f8_stride(l->I)) : 0;
    struct gpu_routing routing = upload_routing(t, l);
    struct moe_launch_args a = {
        .x = l->type->xq ? NULL : gpu_upload_bf16(t->x, n),
        .xq = l->type->xq ? gpu_upload(t->f8.codes, (size_t)(t->T * f8_stride(l->H))) : NULL,
        .xq_scale = l->type->xq ? gpu_upload(t->f8.scale, (size_t)t->T * sizeof(float)) : NULL,
        .routing = &routing,
        .experts = l->experts,
        .expert_slot = l->device_slot,
        .num_tokens = t->T,
        .hidden_size = l->H,
        .intermediate = l->I,
        .num_experts = l->E,
        .num_experts_per_tok = l->K,
        .num_local = l->num_local,
        .dtype = l->type->dtype,
        .scale = l->type->scale,
        .down_col0 = l->down_col0,
        .unit = l->unit,
        .accumulate = before != NULL,
        .invariant = true,
        .act = gpu_alloc((size_t)(P * l->I) * sizeof(bf16)),
        .actq = gpu_alloc(actq_bytes),
        .actq_scale = gpu_alloc((size_t)P * sizeof(float)),
        .pair_out = gpu_alloc((size_t)(P * l->H) * real),
        .partial = gpu_alloc((size_t)n * real),
        .workspace = gpu_alloc(moe_workspace_bytes(t->T, l->E, l->K)),
        .gpu = gpu_test_info(),
    };
    if (before)
        gpu_write(a.partial, before, (size_t)n * real);
    moe_launch(&a, gpu_stream());
    void *pair_out = gpu_fetch(a.pair_out, (size_t)(P * l->H) * real);
    void *partial = gpu_fetch(a.partial, (size_t)n * real);
    struct moe_result r = {
        .act = gpu_fetch_bf16(a.act, P * l->I),
        .pair_out = l->unit ? NULL : pair_out,
        .partial = l->unit ? NULL : partial,
        .units = l->unit ? pair_out : NULL,
        .sums = l->unit ? partial : NULL,
        .actq = {gpu_fetch(a.actq, actq_bytes), gpu_fetch(a.actq_scale, (size_t)P * sizeof(float))},
    };
    gpu_free((void *)(uintptr_t)a.x);
    gpu_free((void *)(uintptr_t)a.xq);
    gpu_free((void *)(uintptr_t)a.xq_scale);
    gpu_free(a.act);
    gpu_free(a.actq);
    gpu_free(a.actq_scale);
    gpu_free(a.pair_out);
    gpu_free(a.partial);
    gpu_free(a.workspace);
    free_routing(&routing);
    return r;
}
