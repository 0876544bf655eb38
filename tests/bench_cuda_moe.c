/* bench_cuda: the expert FFNs of a layer, for the shapes of published models.
 *
 * Tokens choose K of E experts at random. Several routings take turns, so that small batches read
 * other experts each time; the bytes are those of the experts that are hit.
 */
#include <stdlib.h>

#include "host/mem.h"
#include "tests/bench_gpu.h"

enum { MAX_SETS = 8, NAME_BYTES = 96 };

struct model_shape {
    const char *name;
    int32_t H, I, E, K;
};

static const struct model_shape shapes[] = {
    {"mixtral-8x7b", 4096, 14336, 8, 2},
    {"qwen3-30b-a3b", 2048, 768, 128, 8},
    {"skywork-moe", 4608, 12288, 16, 2},
    {"deepseek-v2", 5120, 1536, 160, 6},
};
static const struct model_shape tiny_shape = {"tiny", 96, 48, 5, 2};

struct weight_type {
    const char *name;
    enum dtype dtype;
    enum weight_scale scale;
};

static const struct weight_type types[] = {
    {"bf16", DTYPE_BF16, SCALE_NONE},
    {"fp8", DTYPE_F8_E4M3, SCALE_ROW},
    {"fp8-block", DTYPE_F8_E4M3, SCALE_BLOCK},
};

/* One layer's weights and the launches on them. */
struct layer {
    const struct model_shape *shape;
    const struct weight_type *type;
    int64_t expert_bytes; /* weights of one */
    struct gpu_expert *experts;
    int32_t *expert_slot;
    struct gpu_routing routing[MAX_SETS];
    int32_t num_sets, distinct; /* experts hit, over all sets */
    struct moe_launch_args args;
};

/* ---- weights --------------------------------------------------------------------------------- */

static void *random_matrix(struct bench *b, const struct weight_type *t, int32_t rows,
                           int32_t cols) {
    int64_t bytes = (int64_t)weight_layout_bytes(LAYOUT_FRAGMENTS, t->dtype, rows, cols);
    return t->dtype == DTYPE_BF16 ? (void *)bench_random_bf16(b, bytes / 2, 0.02f)
                                  : (void *)bench_random_e4m3(b, bytes);
}

static float *random_scales(struct bench *b, const struct weight_type *t, int32_t rows,
                            int32_t cols) {
    int64_t blocks_r = (rows + SCALE_BLOCK_SIZE - 1) / SCALE_BLOCK_SIZE;
    int64_t blocks_c = (cols + SCALE_BLOCK_SIZE - 1) / SCALE_BLOCK_SIZE;
    if (t->scale == SCALE_NONE)
        return NULL;
    return bench_random_floats(b, t->scale == SCALE_ROW ? rows : blocks_r * blocks_c, 2e-4f);
}

static void make_experts(struct bench *b, struct layer *l) {
    const struct model_shape *s = l->shape;
    struct gpu_expert *experts = xcalloc((size_t)s->E, sizeof *experts);
    int32_t *slot = xcalloc((size_t)s->E, sizeof *slot);
    for (int32_t e = 0; e < s->E; e++) {
        slot[e] = e;
        experts[e] = (struct gpu_expert){
            .gate = random_matrix(b, l->type, s->I, s->H),
            .up = random_matrix(b, l->type, s->I, s->H),
            .down = random_matrix(b, l->type, s->H, s->I),
            .gate_scale = random_scales(b, l->type, s->I, s->H),
            .up_scale = random_scales(b, l->type, s->I, s->H),
            .down_scale = random_scales(b, l->type, s->H, s->I),
        };
    }
    l->experts = bench_upload(b, experts, (size_t)s->E * sizeof *experts);
    l->expert_slot = bench_upload(b, slot, (size_t)s->E * sizeof *slot);
    l->expert_bytes = (int64_t)(3.0 * s->H * s->I * (double)dtype_bytes(l->type->dtype));
    free(experts);
    free(slot);
}

/* ---- routing --------------------------------------------------------------------------------- */

/* K distinct experts for each of T tokens, and the pairs in the order of their experts. */
static void random_routing(struct bench *b, struct layer *l, int32_t set, int32_t T,
                           uint32_t *state) {
    int32_t E = l->shape->E, K = l->shape->K, P = T * K;
    int32_t *ids = xcalloc((size_t)P, sizeof *ids), *slot = xcalloc((size_t)P, sizeof *slot);
    int32_t *permutation = xcalloc((size_t)P, sizeof *permutation);
    int32_t *counts = xcalloc((size_t)E, sizeof *counts);
    int32_t *offsets = xcalloc((size_t)E + 1, sizeof *offsets);
    float *weights = xcalloc((size_t)P, sizeof *weights);
    for (int32_t p = 0; p < P; p++) {
        bool again = true;
        while (again) {
            *state = *state * 1664525u + 1013904223u;
            ids[p] = (int32_t)((*state >> 8) % (uint32_t)E);
            again = false;
            for (int32_t q = p / K * K; q < p; q++)
                again |= ids[q] == ids[p];
        }
        counts[ids[p]]++;
        weights[p] = 1.0f / (float)K;
    }
    for (int32_t e = 0, at = 0; e < E; e++) {
        l->distinct += counts[e] > 0;
        offsets[e] = at;
        for (int32_t p = 0; p < P && counts[e] > 0; p++)
            if (ids[p] == e) {
                slot[p] = at;
                permutation[at++] = p;
            }
        offsets[e + 1] = at;
    }
    l->routing[set] = (struct gpu_routing){
        .topk_ids = bench_upload(b, ids, (size_t)P * sizeof *ids),
        .topk_weights = bench_upload(b, weights, (size_t)P * sizeof *weights),
        .expert_counts = bench_upload(b, counts, (size_t)E * sizeof *counts),
        .expert_offsets = bench_upload(b, offsets, ((size_t)E + 1) * sizeof *offsets),
        .permutation = bench_upload(b, permutation, (size_t)P * sizeof *permutation),
        .slot = bench_upload(b, slot, (size_t)P * sizeof *slot),
    };
    free(ids);
    free(slot);
    free(permutation);
    free(counts);
    free(offsets);
    free(weights);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void launch(void *context, int32_t set, cudaStream_t stream) {
    struct layer *l = context;
    struct moe_launch_args a = l->args;
    a.routing = &l->routing[set];
    moe_launch(&a, stream);
}

static void case_name(char name[NAME_BYTES], const struct model_shape *s,
                      const struct weight_type *t, int32_t T) {
    snprintf(name, NAME_BYTES, "moe/%s %s T=%d", s->name, t->name, T);
}

static void run_tokens(struct bench *b, struct layer *l, int32_t T) {
    const struct model_shape *s = l->shape;
    int64_t P = (int64_t)T * s->K;
    char name[NAME_BYTES];
    uint32_t state = 12345;
    case_name(name, s, l->type, T);
    if (!bench_wanted(b, name))
        return;
    int32_t first = b->num_buffers; /* what comes now is this case's, not the layer's */
    l->num_sets = T <= 64 ? MAX_SETS : 2;
    l->distinct = 0;
    for (int32_t i = 0; i < l->num_sets; i++)
        random_routing(b, l, i, T, &state);
    l->args = (struct moe_launch_args){
        .x = bench_random_bf16(b, (int64_t)T * s->H, 1),
        .experts = l->experts,
        .expert_slot = l->expert_slot,
        .num_tokens = T,
        .hidden_size = s->H,
        .intermediate = s->I,
        .num_experts = s->E,
        .num_experts_per_tok = s->K,
        .num_local = s->E,
        .dtype = l->type->dtype,
        .scale = l->type->scale,
        .act = bench_alloc(b, (size_t)(P * s->I) * sizeof(bf16)),
        .pair_out = bench_alloc(b, (size_t)(P * s->H) * sizeof(float)),
        .partial = bench_alloc(b, (size_t)T * (size_t)s->H * sizeof(float)),
        .workspace = bench_alloc(b, moe_workspace_bytes(T, s->E, s->K)),
        .gpu = b->gpu,
    };
    double hit = (double)l->distinct / l->num_sets;
    struct bench_case c = {
        .name = name,
        .bytes = hit * (double)l->expert_bytes + (double)T * s->H * (sizeof(bf16) + sizeof(float)),
        .operations = 2.0 * 3 * s->H * s->I * (double)P,
        .sets = l->num_sets,
        .launch = launch,
        .context = l,
    };
    if (bench_ready(b, name))
        bench_run(b, &c);
    bench_release_to(b, first);
}

static void run_layer(struct bench *b, const struct model_shape *s, const struct weight_type *t) {
    static const int32_t all[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
    static const int32_t quick[] = {1, 8, 32, 64, 512, 2048};
    static const int32_t tiny[] = {1, 3, 70};
    const int32_t *tokens = b->tiny ? tiny : b->quick ? quick : all;
    int32_t n = (int32_t)(b->tiny    ? sizeof tiny
                          : b->quick ? sizeof quick
                                     : sizeof all) /
                (int32_t)sizeof *all;
    char name[NAME_BYTES];
    bool any = false;
    struct layer l = {.shape = s, .type = t};
    for (int32_t i = 0; i < n; i++) {
        case_name(name, s, t, tokens[i]);
        any |= bench_selected(b, name);
    }
    if (!any)
        return;
    make_experts(b, &l);
    if (bench_ready(b, name))
        for (int32_t i = 0; i < n; i++)
            run_tokens(b, &l, tokens[i]);
    bench_release(b);
}

void bench_moe(struct bench *b) {
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        if (b->tiny) {
            run_layer(b, &tiny_shape, &types[t]);
            continue;
        }
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            if (types[t].scale != SCALE_BLOCK || !b->quick || shapes[s].E > 16)
                run_layer(b, &shapes[s], &types[t]);
    }
}
