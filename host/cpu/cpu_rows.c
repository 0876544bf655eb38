/* cpu_rows: the ops that work on one token at a time: embedding, norms, rotation and KV write,
 * router. */
#include <math.h>
#include <string.h>

#include "host/cpu/cpu_backend.h"
#include "host/expert_totals.h"

/* ---- embedding, norm, rows ------------------------------------------------------------------- */

struct embed_job {
    struct backend *b;
    float *hidden;
    const int32_t *tokens;
};

static void embed_rows(void *arg, int32_t first, int32_t last) {
    const struct embed_job *j = arg;
    const struct tensor_source *table = j->b->table;
    int32_t H = table->cols;
    for (int32_t t = first; t < last; t++) {
        int64_t at = (int64_t)j->tokens[t] * H;
        float *out = j->hidden + (int64_t)t * H;
        if (table->data)
            j->b->kernels->load_row(
                out, table->dtype,
                (const char *)table->data + (size_t)at * dtype_bytes(table->dtype), H);
        else
            for (int32_t i = 0; i < H; i++)
                out[i] = tensor_source_at(table, at + i);
    }
}

int cpu_embed_init(struct backend *b, const struct tensor_source *table, struct backend *first,
                   struct error *error) {
    (void)error, (void)first;
    b->table = table;
    return 0;
}

void cpu_embed(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens) {
    struct embed_job job = {b, hidden, tokens};
    cpu_for_rows(b, num_tokens, b->table->cols, embed_rows, &job);
}

struct norm_job {
    struct backend *b;
    float *x, *hidden;
    const double *partial;
    const float *norm;
    float eps;
    int32_t H;
};

static void norm_rows(void *arg, int32_t first, int32_t last) {
    const struct norm_job *j = arg;
    for (int32_t t = first; t < last; t++) {
        int64_t at = (int64_t)t * j->H;
        j->b->kernels->add_norm(j->x + at, j->hidden + at, j->partial ? j->partial + at : NULL,
                                j->norm, j->eps, j->H);
    }
}

void cpu_add_norm(struct backend *b, void *x, float *hidden, void *partial, const float *norm,
                  float eps, int32_t num_tokens, int32_t hidden_size) {
    if (partial)
        ranks_all_reduce(b->config.ranks, b->config.rank, partial,
                         (int64_t)num_tokens * hidden_size);
    struct norm_job job = {b, x, hidden, partial, norm, eps, hidden_size};
    cpu_for_rows(b, num_tokens, 4 * hidden_size, norm_rows, &job);
}

void cpu_gather_rows(struct backend *b, float *out, const float *hidden, void *partial,
                     const int32_t *rows, int32_t num_rows, int32_t hidden_size) {
    const double *add = partial;
    if (partial)
        ranks_reduce_rows(b->config.ranks, b->config.rank, partial, rows, num_rows, hidden_size);
    for (int32_t r = 0; r < num_rows; r++) {
        const float *from = hidden + (int64_t)rows[r] * hidden_size;
        float *to = out + (int64_t)r * hidden_size;
        memcpy(to, from, (size_t)hidden_size * sizeof *to);
        if (add)
            for (int32_t i = 0; i < hidden_size; i++)
                to[i] += (float)add[(int64_t)r * hidden_size + i];
    }
}

/* ---- queries and keys ------------------------------------------------------------------------ */

struct qkv_job {
    struct backend *b;
    const struct qkv_args *a;
    double *sums;
    int32_t first_kv_head, num_counted;
};

static void clamp_row(float *x, int32_t n, float limit) {
    for (int32_t i = 0; i < n; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

static void sum_squares_rows(void *arg, int32_t first, int32_t last) {
    const struct qkv_job *j = arg;
    const struct qkv_args *a = j->a;
    for (int32_t t = first; t < last; t++) {
        const float *q = (const float *)a->qkv + t * a->ld,
                    *k = q + (int64_t)a->num_heads * a->head_dim;
        double *sums = j->sums + (int64_t)2 * t;
        sums[0] = sums[1] = 0;
        for (int32_t h = 0; h < a->num_heads; h++)
            sums[0] +=
                (double)j->b->kernels->sum_squares(q + (int64_t)h * a->head_dim, a->head_dim);
        for (int32_t h = j->first_kv_head; h < j->first_kv_head + j->num_counted; h++)
            sums[1] +=
                (double)j->b->kernels->sum_squares(k + (int64_t)h * a->head_dim, a->head_dim);
    }
}

void cpu_qk_sum_squares(struct backend *b, void *sums, const struct qkv_args *a,
                        int32_t first_kv_head, int32_t num_counted) {
    struct qkv_job job = {b, a, sums, first_kv_head, num_counted};
    cpu_for_rows(b, a->batch->num_tokens, (int64_t)(a->num_heads + num_counted) * a->head_dim,
                 sum_squares_rows, &job);
    ranks_all_reduce(b->config.ranks, b->config.rank, sums, (int64_t)a->batch->num_tokens * 2);
}

static float inverse_rms(double sum, int32_t n, float eps) {
    return (float)(1 / sqrt(sum / n + (double)eps));
}

/* Head h, normalised as the family wants, clipped and rotated. */
static void finish_head(const struct qkv_job *j, float *x, const float *norm, int32_t h, float rms,
                        const float *cos_sin) {
    int32_t D = j->a->head_dim;
    if (j->a->norm == QK_NORM_HEAD)
        rms = inverse_rms((double)j->b->kernels->sum_squares(x, D), D, j->a->eps);
    else if (j->a->norm == QK_NORM_PROJECTION)
        norm += (int64_t)h * D;
    j->b->kernels->norm_rotate(x, j->a->norm == QK_NORM_NONE ? NULL : norm, rms, j->a->clip,
                               cos_sin, D);
}

/* Elements of `size` bytes to row or column `token` of the tiles of keys and values. */
static inline void scatter(char *tile, const char *from, enum dtype dtype, size_t size,
                           int32_t token, int32_t D, bool values) {
    size_t value_tile = tile_bytes(dtype, KV_BLOCK_SIZE);
    for (int32_t d = 0; d < D; d++, from += size)
        memcpy(values ? tile + (size_t)(d / TILE_ROWS) * value_tile +
                            tile_index(dtype, d % TILE_ROWS, token) * size
                      : tile + tile_index(dtype, token, d) * size,
               from, size);
}

static char *head_tile(const struct qkv_args *a, int64_t slot, int32_t head, bool values) {
    enum dtype dtype = a->kv.dtype;
    int32_t D = a->head_dim;
    return (char *)a->kv.data +
           (size_t)(slot / KV_BLOCK_SIZE) * cpu_kv_block_bytes(dtype, a->num_kv_heads, D) +
           (values ? cpu_values_offset(dtype, head, D) : cpu_keys_offset(dtype, head, D));
}

/* Asks for the lines of a token's keys and values: no other op of the step has touched them, and
 * one miss after the other would cost more than all else here. */
static void prefetch_slot(const struct qkv_args *a, int64_t slot) {
    enum dtype dtype = a->kv.dtype;
    int32_t D = a->head_dim, token = (int32_t)(slot % KV_BLOCK_SIZE);
    size_t key_bytes = tile_bytes(dtype, D), value_tile = tile_bytes(dtype, KV_BLOCK_SIZE);
    size_t row = tile_index(dtype, 0, token) * dtype_bytes(dtype);
    for (int32_t h = 0; h < a->num_kv_heads; h++) {
        const char *keys = head_tile(a, slot, h, false), *values = head_tile(a, slot, h, true);
        for (size_t i = 0; i < key_bytes; i += 64)
            __builtin_prefetch(keys + i, 1);
        for (int32_t d = 0; d < D; d += TILE_ROWS)
            __builtin_prefetch(values + (size_t)(d / TILE_ROWS) * value_tile + row, 1);
    }
}

static void write_head(const struct qkv_job *j, const float *x, int64_t slot, int32_t head,
                       bool values) {
    const struct qkv_args *a = j->a;
    enum dtype dtype = a->kv.dtype;
    int32_t D = a->head_dim, token = (int32_t)(slot % KV_BLOCK_SIZE);
    char *tile = head_tile(a, slot, head, values);
    for (int32_t d = 0; d < D; d += TILE_ROWS) {
        union {
            float f32[TILE_ROWS];
            uint16_t f16[TILE_ROWS];
            uint8_t f8[TILE_ROWS];
        } row;
        const char *from = (const char *)&row;
        int32_t n = D - d < TILE_ROWS ? D - d : TILE_ROWS;
        j->b->kernels->store_row(&row, dtype, x + d, n);
        char *to = values ? tile + (size_t)(d / TILE_ROWS) * tile_bytes(dtype, KV_BLOCK_SIZE)
                          : tile + (size_t)(d / 2) * tile_pair_bytes(dtype);
        if (dtype == DTYPE_F32)
            scatter(to, from, DTYPE_F32, 4, token, n, values);
        else if (dtype == DTYPE_F16)
            scatter(to, from, DTYPE_F16, 2, token, n, values);
        else if (dtype == DTYPE_BF16)
            scatter(to, from, DTYPE_BF16, 2, token, n, values);
        else
            scatter(to, from, DTYPE_F8_E4M3, 1, token, n, values);
    }
}

static void rope_rows(void *arg, int32_t first, int32_t last) {
    const struct qkv_job *j = arg;
    const struct qkv_args *a = j->a;
    int32_t D = a->head_dim, Hq = a->num_heads, Hkv = a->num_kv_heads;
    for (int32_t t = first; t < last; t++) {
        float *q = (float *)a->qkv + t * a->ld, *k = q + (int64_t)Hq * D, *v = k + (int64_t)Hkv * D;
        const float *cos_sin = a->rope + (int64_t)a->batch->positions[t] * D;
        int64_t slot = a->batch->slot_mapping[t];
        float q_rms = 1, k_rms = 1;
        prefetch_slot(a, slot);
        if (a->clip > 0)
            clamp_row(v, Hkv * D, a->clip);
        if (a->norm == QK_NORM_PROJECTION) {
            const double *sums = (const double *)a->sum_squares + (int64_t)2 * t;
            q_rms = inverse_rms(sums[0], a->q_width, a->eps);
            k_rms = inverse_rms(sums[1], a->k_width, a->eps);
        }
        for (int32_t h = 0; h < Hq; h++)
            finish_head(j, q + (int64_t)h * D, a->q_norm, h, q_rms, cos_sin);
        for (int32_t h = 0; h < Hkv; h++) {
            finish_head(j, k + (int64_t)h * D, a->k_norm, h, k_rms, cos_sin);
            write_head(j, k + (int64_t)h * D, slot, h, false);
            write_head(j, v + (int64_t)h * D, slot, h, true);
        }
    }
}

void cpu_qk_rope_kv_write(struct backend *b, const struct qkv_args *a) {
    struct qkv_job job = {.b = b, .a = a};
    int64_t work = (int64_t)4 * (a->num_heads + 2 * a->num_kv_heads) * a->head_dim;
    cpu_for_rows(b, a->batch->num_tokens, work, rope_rows, &job);
}

/* ---- router ---------------------------------------------------------------------------------- */

struct router_job {
    struct backend *b;
    struct routing *out;
    const struct router_config *c;
};

/* z[0..E) divided by (its unbiased standard deviation / target). */
static void normalise_logits(float *z, int32_t E, float target) {
    double mean = 0, var = 0;
    for (int32_t e = 0; e < E; e++)
        mean += (double)z[e];
    mean /= E;
    for (int32_t e = 0; e < E; e++)
        var += ((double)z[e] - mean) * ((double)z[e] - mean);
    float std = (float)sqrt(var / (E - 1)) / target;
    for (int32_t e = 0; e < E; e++)
        z[e] /= std;
}

/* Takes the K largest of p[0..E), best first, lower index first on ties, no expert twice even among
 * NaNs; taken ones become -1. */
static void top_k(float *p, int32_t E, int32_t K, int32_t *ids, float *weights) {
    for (int32_t k = 0; k < K; k++) {
        int32_t best = 0;
        while (p[best] < 0)
            best++;
        for (int32_t e = best + 1; e < E; e++)
            if (p[e] > p[best])
                best = e;
        ids[k] = best;
        weights[k] = p[best];
        p[best] = -1;
    }
}

static void route_rows(void *arg, int32_t first, int32_t last) {
    const struct router_job *j = arg;
    const struct router_config *c = j->c;
    int32_t E = c->num_experts, K = c->num_experts_per_tok;
    for (int32_t t = first; t < last; t++) {
        float *z = j->b->logits + (int64_t)t * E, *w = j->out->topk_weights + (int64_t)t * K;
        float sum = 0;
        if (c->logits_std > 0)
            normalise_logits(z, E, c->logits_std);
        j->b->kernels->softmax(z, E);
        top_k(z, E, K, j->out->topk_ids + (int64_t)t * K, w);
        for (int32_t k = 0; k < K; k++)
            sum += w[k];
        for (int32_t k = 0; k < K; k++)
            w[k] = (c->norm_topk_prob ? w[k] / sum : w[k]) * c->routed_scaling_factor;
    }
}

/* counts, offsets and permutation from topk_ids. */
static void group_by_expert(struct routing *r, int32_t E, int32_t pairs) {
    memset(r->expert_counts, 0, (size_t)E * sizeof *r->expert_counts);
    for (int32_t p = 0; p < pairs; p++)
        r->expert_counts[r->topk_ids[p]]++;
    r->expert_offsets[0] = 0;
    for (int32_t e = 0; e < E; e++)
        r->expert_offsets[e + 1] = r->expert_offsets[e] + r->expert_counts[e];
    for (int32_t p = 0; p < pairs; p++) /* each offset runs to the next expert's start... */
        r->permutation[r->expert_offsets[r->topk_ids[p]]++] = p;
    for (int32_t e = E; e > 0; e--) /* ...and is set back */
        r->expert_offsets[e] = r->expert_offsets[e - 1];
    r->expert_offsets[0] = 0;
}

void cpu_router(struct backend *b, struct routing *out, const void *x, const struct weight *gate,
                const struct router_config *config, int32_t num_tokens) {
    struct router_job job = {b, out, config};
    int32_t E = config->num_experts;
    cpu_matmul_exact(b, b->logits, E, x, gate->cols, gate, NULL, num_tokens);
    cpu_for_rows(b, num_tokens, (int64_t)E * (config->num_experts_per_tok + 8), route_rows, &job);
    group_by_expert(out, E, num_tokens * config->num_experts_per_tok);
    expert_totals_add(out, E);
}
