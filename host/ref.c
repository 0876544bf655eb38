/* ref: the op table in scalar C, the specification of ops.h.
 *
 * Weights are kept row-major as the checkpoint stores them, KV blocks as float32 (or whatever
 * --kv-cache-dtype says) in [token][head][D] order. Every sum runs in one obvious order; dot
 * products are accumulated in float64 and rounded once, so that ref is the most exact of the
 * fillings. Slow on purpose: nothing here is arranged for speed.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/expert_totals.h"
#include "host/mem.h"
#include "host/ops.h"
#include "host/ranks.h"

struct backend {
    struct backend_config config;
    const struct tensor_source *table; /* the embedding's; borrowed */
    int32_t *kv_head;                  /* [Hq] */
    float *act;                        /* [I] one token's activations in an expert */
    float *row;                        /* [max_matmul_cols + H] one token's x, rounded */
    float *scores;                     /* [max_model_len] one query's scores */
    float *logits;                     /* [E] */
};

static int ref_create(const struct backend_config *config, struct backend **out,
                      struct error *error) {
    (void)error;
    struct backend *b = xcalloc(1, sizeof *b);
    b->config = *config;
    b->kv_head = xcalloc((size_t)config->num_heads + 1, sizeof *b->kv_head);
    memcpy(b->kv_head, config->kv_head, (size_t)config->num_heads * sizeof *b->kv_head);
    b->config.kv_head = b->kv_head;
    b->act = xcalloc((size_t)config->max_intermediate + 1, sizeof *b->act);
    b->row =
        xcalloc((size_t)config->max_matmul_cols + (size_t)config->hidden_size + 1, sizeof *b->row);
    b->scores = xcalloc((size_t)config->max_model_len + 1, sizeof *b->scores);
    b->logits = xcalloc((size_t)config->num_experts + 1, sizeof *b->logits);
    *out = b;
    return 0;
}

static void ref_destroy(struct backend *b) {
    if (!b)
        return;
    free(b->kv_head);
    free(b->act);
    free(b->row);
    free(b->scores);
    free(b->logits);
    free(b);
}

static void *ref_alloc(struct backend *b, size_t bytes) {
    (void)b;
    return mem_pool_alloc(bytes);
}

static void ref_free(struct backend *b, void *p, size_t bytes) {
    (void)b;
    mem_pool_free(p, bytes);
}

static void ref_write(struct backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    memcpy(to, from, bytes);
}

static int64_t ref_free_bytes(struct backend *b) {
    (void)b;
    return mem_available_bytes();
}

static int64_t ref_kv_budget(struct backend *b) {
    (void)b;
    return (int64_t)((double)mem_available_bytes() * 0.4);
}

/* ---- weights: row-major, then the scales ----------------------------------------------------- */

static size_t align64(size_t n) {
    return (n + 63) / 64 * 64;
}

/* Blocks of columns that a row has scales for; 1 for its own scale. */
static int32_t blocks_of(enum fp8_scaling scaling, int32_t cols, int32_t block_col0) {
    return scaling == FP8_BLOCK ? (cols + block_col0 + FP8_BLOCK_SIZE - 1) / FP8_BLOCK_SIZE : 1;
}

static size_t ref_weight_bytes(const struct weight_shape *s) {
    size_t scales = (size_t)s->rows * (size_t)blocks_of(s->scaling, s->cols, s->block_col0);
    return align64((size_t)s->rows * (size_t)s->cols * dtype_bytes(s->dtype)) +
           align64(scales * sizeof(float));
}

static void ref_weight_init(struct backend *b, struct weight *w, const struct weight_shape *s,
                            void *memory) {
    (void)b;
    size_t matrix = align64((size_t)s->rows * (size_t)s->cols * dtype_bytes(s->dtype));
    float *scales = (float *)(void *)((char *)memory + matrix);
    *w = (struct weight){.dtype = s->dtype,
                         .use = s->use,
                         .rows = s->rows,
                         .cols = s->cols,
                         .data = memory,
                         .block_col0 = s->block_col0};
    *(s->scaling == FP8_BLOCK ? &w->block_scale : &w->row_scale) = scales;
    for (int64_t i = 0; i < (int64_t)s->rows * blocks_of(s->scaling, s->cols, s->block_col0); i++)
        scales[i] = 1;
}

/* The scale of row r for column c. */
static float *scale_at(const struct weight *w, int32_t r, int32_t c) {
    if (!w->block_scale)
        return w->row_scale + r;
    return w->block_scale + (int64_t)r * blocks_of(FP8_BLOCK, w->cols, w->block_col0) +
           (c + w->block_col0) / FP8_BLOCK_SIZE;
}

static void ref_weight_put(struct backend *b, struct weight *w, int32_t row0,
                           const struct tensor_slice *slice) {
    const struct tensor_source *s = slice->source;
    (void)b;
    for (int32_t r = 0; r < slice->rows; r++)
        for (int32_t c = 0; c < slice->cols; c++) {
            int32_t row = slice->row0 + r, col = slice->col0 + c;
            dtype_store(w->dtype, w->data, (int64_t)(row0 + r) * w->cols + c,
                        tensor_source_at(s, (int64_t)row * s->cols + col));
            *scale_at(w, row0 + r, c) = tensor_source_scale(s, row, col);
        }
}

/* sum over c in [first, last) of x[c] * w[r, c], scaled. */
static float dot(const struct weight *w, int32_t r, const float *x, int32_t first, int32_t last) {
    double sum = 0;
    for (int32_t c = first; c < last; c++)
        sum += (double)x[c] * dtype_load(w->dtype, w->data, (int64_t)r * w->cols + c) *
               (w->block_scale ? (double)*scale_at(w, r, c) : 1);
    return (float)sum * (w->row_scale ? w->row_scale[r] : 1);
}

/* What a product with w takes for the row x: with FP8 activations and weights, x rounded to E4M3
 * with a scale for the row, in `out` (which may be x). */
static const float *product_input(const struct backend *b, const struct weight *w, const float *x,
                                  float *out) {
    float largest = 0;
    if (!b->config.fp8_activations || w->dtype != DTYPE_F8_E4M3)
        return x;
    for (int32_t c = 0; c < w->cols; c++)
        largest = fmaxf(largest, fabsf(x[c]));
    float scale = largest > 0 ? largest / 448 : 1;
    for (int32_t c = 0; c < w->cols; c++)
        out[c] = e4m3_to_f32(e4m3_from_f32(x[c] / scale)) * scale;
    return out;
}

/* The same in units, for a partial: each unit's sum times `factor`, rounded to float32. */
static double dot_units(const struct weight *w, int32_t r, const float *x, int32_t unit,
                        float factor) {
    double sum = 0;
    for (int32_t c = 0; c < w->cols; c += unit) {
        int32_t end = c + unit < w->cols ? c + unit : w->cols;
        sum += (double)(float)(factor * dot(w, r, x, c, end));
    }
    return sum;
}

/* ---- embedding, norm, projections ------------------------------------------------------------ */

static int ref_embed_init(struct backend *b, const struct tensor_source *table,
                          struct backend *first, struct error *error) {
    (void)error, (void)first;
    b->table = table;
    return 0;
}

static void ref_embed(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens) {
    int32_t H = b->table->cols;
    for (int32_t t = 0; t < num_tokens; t++)
        for (int32_t i = 0; i < H; i++)
            hidden[(int64_t)t * H + i] = tensor_source_at(b->table, (int64_t)tokens[t] * H + i);
}

/* 1 / sqrt(sum / n + eps) */
static float inverse_rms(double sum, int32_t n, float eps) {
    return (float)(1.0 / sqrt(sum / n + (double)eps));
}

static void ref_add_norm(struct backend *b, void *x_, float *hidden, void *partial_,
                         const float *norm, float eps, int32_t num_tokens, int32_t H) {
    float *x = x_;
    double *partial = partial_;
    if (partial)
        ranks_all_reduce(b->config.ranks, b->config.rank, partial, (int64_t)num_tokens * H);
    for (int32_t t = 0; t < num_tokens; t++) {
        float *h = hidden + (int64_t)t * H, *out = x + (int64_t)t * H;
        double sum = 0;
        for (int32_t i = 0; i < H; i++) {
            if (partial)
                h[i] += (float)partial[(int64_t)t * H + i];
            sum += (double)h[i] * (double)h[i];
        }
        float scale = inverse_rms(sum, H, eps);
        for (int32_t i = 0; i < H; i++)
            out[i] = h[i] * scale * norm[i];
    }
}

static void ref_gather_rows(struct backend *b, float *out, const float *hidden, void *partial_,
                            const int32_t *rows, int32_t num_rows, int32_t H) {
    double *partial = partial_;
    if (partial)
        ranks_reduce_rows(b->config.ranks, b->config.rank, partial, rows, num_rows, H);
    for (int32_t r = 0; r < num_rows; r++)
        for (int32_t i = 0; i < H; i++) {
            float sum = partial ? (float)partial[(int64_t)r * H + i] : 0;
            out[(int64_t)r * H + i] = hidden[(int64_t)rows[r] * H + i] + sum;
        }
}

static void ref_matmul(struct backend *b, void *y_, int64_t ldy, const void *x_, int64_t ldx,
                       const struct weight *w, const float *bias, int32_t num_tokens) {
    float *y = y_;
    for (int32_t t = 0; t < num_tokens; t++) {
        const float *x = product_input(b, w, (const float *)x_ + t * ldx, b->row);
        for (int32_t r = 0; r < w->rows; r++)
            y[t * ldy + r] = dot(w, r, x, 0, w->cols) + (bias ? bias[r] : 0);
    }
}

static void ref_logits(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                       const struct weight *w, int32_t num_rows) {
    ref_matmul(b, y, ldy, x, ldx, w, NULL, num_rows);
}

static void ref_matmul_partial(struct backend *b, void *partial_, const void *x_, int64_t ldx,
                               const struct weight *w, int32_t unit, int32_t num_tokens) {
    double *partial = partial_;
    for (int32_t t = 0; t < num_tokens; t++) {
        const float *x = product_input(b, w, (const float *)x_ + t * ldx, b->row);
        for (int32_t r = 0; r < w->rows; r++)
            partial[(int64_t)t * w->rows + r] = dot_units(w, r, x, unit, 1);
    }
}

/* ---- queries, keys, attention ---------------------------------------------------------------- */

static float clamp(float x, float limit) {
    if (limit <= 0)
        return x;
    return x > limit ? limit : x < -limit ? -limit : x;
}

static double head_sum_squares(const float *x, int32_t D) {
    double sum = 0;
    for (int32_t d = 0; d < D; d++)
        sum += (double)x[d] * (double)x[d];
    return sum;
}

static void ref_qk_sum_squares(struct backend *b, void *sums_, const struct qkv_args *a,
                               int32_t first_kv_head, int32_t num_counted) {
    double *sums = sums_;
    for (int32_t t = 0; t < a->batch->num_tokens; t++) {
        const float *q = (const float *)a->qkv + t * a->ld;
        const float *k = q + (int64_t)a->num_heads * a->head_dim;
        sums[2 * t] = sums[2 * t + 1] = 0;
        for (int32_t h = 0; h < a->num_heads; h++)
            sums[2 * t] += (double)(float)head_sum_squares(q + h * a->head_dim, a->head_dim);
        for (int32_t h = first_kv_head; h < first_kv_head + num_counted; h++)
            sums[2 * t + 1] += (double)(float)head_sum_squares(k + h * a->head_dim, a->head_dim);
    }
    ranks_all_reduce(b->config.ranks, b->config.rank, sums, (int64_t)a->batch->num_tokens * 2);
}

/* Rotates the pairs (x[i], x[i + D/2]) by the position's angles. */
static void rotate(float *x, int32_t D, const float *cos_sin) {
    for (int32_t i = 0; i < D / 2; i++) {
        float c = cos_sin[i], s = cos_sin[D / 2 + i], x0 = x[i], x1 = x[i + D / 2];
        x[i] = x0 * c - x1 * s;
        x[i + D / 2] = x1 * c + x0 * s;
    }
}

/* Norm (if any), clipping and rotation of one head; `norm` is the head's weights, `rms` the 1/rms
 * of the whole projection where that is what the family normalises over. */
static void norm_and_rotate(const struct qkv_args *a, float *x, const float *norm, float rms,
                            const float *cos_sin) {
    if (a->norm == QK_NORM_HEAD)
        rms = inverse_rms(head_sum_squares(x, a->head_dim), a->head_dim, a->eps);
    for (int32_t d = 0; d < a->head_dim && a->norm != QK_NORM_NONE; d++)
        x[d] = x[d] * rms * norm[d];
    for (int32_t d = 0; d < a->head_dim; d++)
        x[d] = clamp(x[d], a->clip);
    rotate(x, a->head_dim, cos_sin);
}

/* Head h's part of the weights of a norm over the whole projection; NULL when there are none. */
static const float *norm_of(const float *norm, int32_t h, int32_t D) {
    return norm ? norm + h * D : NULL;
}

/* Element index of (token of block, head, 0) in a KV pool; values follow the keys of a block. */
static int64_t kv_index(int64_t slot, int32_t head, int32_t Hkv, int32_t D, bool value) {
    int64_t block = slot / KV_BLOCK_SIZE, offset = slot % KV_BLOCK_SIZE;
    return ((block * 2 + value) * KV_BLOCK_SIZE + offset) * Hkv * D + (int64_t)head * D;
}

static void ref_qk_rope_kv_write(struct backend *b, const struct qkv_args *a) {
    int32_t D = a->head_dim, Hq = a->num_heads, Hkv = a->num_kv_heads;
    bool per_head = a->norm == QK_NORM_HEAD;
    const double *sums = a->sum_squares;
    (void)b;
    for (int32_t t = 0; t < a->batch->num_tokens; t++) {
        float *q = (float *)a->qkv + t * a->ld, *k = q + (int64_t)Hq * D, *v = k + (int64_t)Hkv * D;
        const float *cos_sin = a->rope + (int64_t)a->batch->positions[t] * D;
        float q_rms = 1, k_rms = 1;
        if (a->norm == QK_NORM_PROJECTION) {
            q_rms = inverse_rms(sums[2 * t], a->q_width, a->eps);
            k_rms = inverse_rms(sums[2 * t + 1], a->k_width, a->eps);
        }
        for (int32_t h = 0; h < Hq; h++)
            norm_and_rotate(a, q + h * D, per_head ? a->q_norm : norm_of(a->q_norm, h, D), q_rms,
                            cos_sin);
        for (int32_t h = 0; h < Hkv; h++) {
            int64_t slot = a->batch->slot_mapping[t];
            norm_and_rotate(a, k + h * D, per_head ? a->k_norm : norm_of(a->k_norm, h, D), k_rms,
                            cos_sin);
            for (int32_t d = 0; d < D; d++) {
                dtype_store(a->kv.dtype, a->kv.data, kv_index(slot, h, Hkv, D, false) + d,
                            k[h * D + d]);
                dtype_store(a->kv.dtype, a->kv.data, kv_index(slot, h, Hkv, D, true) + d,
                            clamp(v[h * D + d], a->clip));
            }
        }
    }
}

static size_t ref_kv_block_bytes(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim) {
    return (size_t)2 * KV_BLOCK_SIZE * (size_t)num_kv_heads * (size_t)head_dim * dtype_bytes(dtype);
}

/* One query head of one row: the keys [first, last) of its sequence. */
static void attend(struct backend *b, const struct attention_args *a, const float *q, float *out,
                   const int32_t *blocks, int32_t head, int32_t first, int32_t last) {
    int32_t D = a->head_dim, Hkv = a->num_kv_heads;
    float max = -INFINITY;
    double sum = 0;
    for (int32_t j = first; j < last; j++) {
        int64_t slot = (int64_t)blocks[j / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + j % KV_BLOCK_SIZE;
        int64_t at = kv_index(slot, head, Hkv, D, false);
        double s = 0;
        for (int32_t d = 0; d < D; d++)
            s += (double)q[d] * dtype_load(a->kv.dtype, a->kv.data, at + d);
        b->scores[j] = (float)s * a->scale;
        max = b->scores[j] > max ? b->scores[j] : max;
    }
    for (int32_t j = first; j < last; j++) {
        b->scores[j] = expf(b->scores[j] - max);
        sum += (double)b->scores[j];
    }
    for (int32_t d = 0; d < D; d++) {
        double acc = 0;
        for (int32_t j = first; j < last; j++) {
            int64_t slot = (int64_t)blocks[j / KV_BLOCK_SIZE] * KV_BLOCK_SIZE + j % KV_BLOCK_SIZE;
            acc += (double)b->scores[j] *
                   dtype_load(a->kv.dtype, a->kv.data, kv_index(slot, head, Hkv, D, true) + d);
        }
        out[d] = (float)(acc / sum);
    }
}

static void ref_attention(struct backend *b, const struct attention_args *a) {
    const struct batch *batch = a->batch;
    const float *qkv = a->qkv;
    float *out = a->out;
    int32_t D = a->head_dim;
    for (int32_t s = 0; s < batch->num_seqs; s++) {
        const int32_t *blocks = batch->block_tables + (int64_t)s * batch->max_blocks;
        for (int32_t t = batch->cu_seqlens[s]; t < batch->cu_seqlens[s + 1]; t++) {
            int32_t last = batch->positions[t] + 1;
            int32_t first = a->window > 0 && last > a->window ? last - a->window : 0;
            for (int32_t h = 0; h < a->num_heads; h++)
                attend(b, a, qkv + t * a->ld + h * D, out + ((int64_t)t * a->num_heads + h) * D,
                       blocks, b->kv_head[h], first, last);
        }
    }
}

/* ---- experts --------------------------------------------------------------------------------- */

/* z[0..E) divided by (its unbiased standard deviation / target); Skywork-MoE, without epsilon. */
static void normalise_logits(float *z, int32_t E, float target) {
    double mean = 0, var = 0;
    for (int32_t e = 0; e < E; e++)
        mean += (double)z[e];
    mean /= E;
    for (int32_t e = 0; e < E; e++)
        var += ((double)z[e] - mean) * ((double)z[e] - mean);
    float std = (float)sqrt(var / (E - 1));
    for (int32_t e = 0; e < E; e++)
        z[e] /= std / target;
}

static void softmax(float *z, int32_t n) {
    float max = z[0];
    double sum = 0;
    for (int32_t i = 1; i < n; i++)
        max = z[i] > max ? z[i] : max;
    for (int32_t i = 0; i < n; i++)
        sum += (double)(z[i] = expf(z[i] - max));
    for (int32_t i = 0; i < n; i++)
        z[i] = (float)((double)z[i] / sum);
}

/* Takes the K largest of p[0..E), best first, lower index first on ties; p is destroyed. */
static void top_k(float *p, int32_t E, int32_t K, int32_t *ids, float *weights) {
    for (int32_t k = 0; k < K; k++) {
        int32_t best = 0;
        for (int32_t e = 1; e < E; e++)
            if (p[e] > p[best])
                best = e;
        ids[k] = best;
        weights[k] = p[best];
        p[best] = -1;
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
    int32_t at = 0;
    for (int32_t e = 0; e < E; e++)
        for (int32_t p = 0; p < pairs && at < r->expert_offsets[e + 1]; p++)
            if (r->topk_ids[p] == e)
                r->permutation[at++] = p;
}

static void ref_router(struct backend *b, struct routing *out, const void *x_,
                       const struct weight *gate, const struct router_config *c,
                       int32_t num_tokens) {
    const float *x = x_;
    int32_t E = c->num_experts, K = c->num_experts_per_tok;
    for (int32_t t = 0; t < num_tokens; t++) {
        float *z = b->logits, *w = out->topk_weights + (int64_t)t * K, sum = 0;
        for (int32_t e = 0; e < E; e++)
            z[e] = dot(gate, e, x + (int64_t)t * gate->cols, 0, gate->cols);
        if (c->logits_std > 0)
            normalise_logits(z, E, c->logits_std);
        softmax(z, E);
        top_k(z, E, K, out->topk_ids + (int64_t)t * K, w);
        for (int32_t k = 0; k < K; k++)
            sum += w[k];
        for (int32_t k = 0; k < K; k++)
            w[k] = (c->norm_topk_prob ? w[k] / sum : w[k]) * c->routed_scaling_factor;
    }
    group_by_expert(out, E, num_tokens * K);
    expert_totals_add(out, E);
}

/* One token through one expert: partial[H] += weight * down(silu(gate x) * up x). */
static void run_expert(struct backend *b, const struct expert_weights *e, const float *x,
                       float weight, int32_t unit, double *partial) {
    const float *gate_x = product_input(b, &e->gate, x, b->row);
    const float *up_x = e->up.dtype == e->gate.dtype ? gate_x : product_input(b, &e->up, x, b->row);
    for (int32_t i = 0; i < e->gate.rows; i++) {
        float g = dot(&e->gate, i, gate_x, 0, e->gate.cols);
        float u = dot(&e->up, i, up_x, 0, e->up.cols);
        b->act[i] = g / (1 + expf(-g)) * u;
    }
    const float *act = product_input(b, &e->down, b->act, b->act);
    for (int32_t h = 0; h < e->down.rows; h++)
        partial[h] += dot_units(&e->down, h, act, unit, weight);
}

static void ref_moe(struct backend *b, const struct moe_args *a) {
    int32_t H = b->config.hidden_size, K = a->routing ? a->num_experts_per_tok : 1;
    const float *x = a->x;
    double *partial = a->partial;
    if (!a->accumulate)
        memset(partial, 0, (size_t)a->num_tokens * (size_t)H * sizeof *partial);
    for (int32_t i = 0; i < a->num_experts; i++) {
        const struct expert_weights *e = &a->experts[i];
        int32_t first = a->routing ? a->routing->expert_offsets[e->expert] : 0;
        int32_t last = a->routing ? a->routing->expert_offsets[e->expert + 1] : a->num_tokens;
        for (int32_t j = first; j < last; j++) {
            int32_t p = a->routing ? a->routing->permutation[j] : j;
            float weight = a->routing ? a->routing->topk_weights[p] : 1;
            run_expert(b, e, x + (int64_t)(p / K) * H, weight, a->unit,
                       partial + (int64_t)(p / K) * H);
        }
    }
}

static const char *ref_describe(struct backend *b) {
    (void)b;
    return "scalar reference, float32";
}

const struct ops ref_ops = {
    .name = "ref",
    .kv_dtype = DTYPE_F32,
    .act_bytes = sizeof(float),
    .partial_bytes = sizeof(double),
    .block_cut = 1,
    .create = ref_create,
    .destroy = ref_destroy,
    .alloc = ref_alloc,
    .free = ref_free,
    .write = ref_write,
    .free_bytes = ref_free_bytes,
    .kv_budget = ref_kv_budget,
    .weight_bytes = ref_weight_bytes,
    .weight_init = ref_weight_init,
    .weight_put = ref_weight_put,
    .kv_block_bytes = ref_kv_block_bytes,
    .embed_init = ref_embed_init,
    .embed = ref_embed,
    .add_norm = ref_add_norm,
    .gather_rows = ref_gather_rows,
    .matmul = ref_matmul,
    .logits = ref_logits,
    .matmul_partial = ref_matmul_partial,
    .qk_sum_squares = ref_qk_sum_squares,
    .qk_rope_kv_write = ref_qk_rope_kv_write,
    .attention = ref_attention,
    .router = ref_router,
    .moe = ref_moe,
    .describe = ref_describe,
};
