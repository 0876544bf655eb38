/* cuda_ops: the ops of the table as launches on the backend's stream. */
#include "cuda/cuda_backend.h"

void cuda_embed(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens) {
    embed_launch(hidden, b->embedding, tokens, num_tokens, b->config.hidden_size, b->stream);
}

void cuda_add_norm(struct backend *b, void *x, float *hidden, void *partial, const float *norm,
                   float eps, int32_t num_tokens, int32_t hidden_size) {
    const struct norm_args a = {
        .x = x,
        .xq = b->xq,
        .xq_scale = b->xq_scale,
        .hidden = hidden,
        .partial = partial,
        .partial_double = b->config.batch_invariant,
        .weight = norm,
        .eps = eps,
        .num_tokens = num_tokens,
        .hidden_size = hidden_size,
    };
    if (b->comm && partial)
        comm_sum_norm(b->comm, partial, &a);
    else
        norm_launch(&a, b->stream);
    b->xq_of = x;
}

void cuda_gather_rows(struct backend *b, float *out, const float *hidden, void *partial,
                      const int32_t *rows, int32_t num_rows, int32_t hidden_size) {
    if (b->comm && partial)
        comm_sum_rows(b->comm, out, hidden, partial, rows, num_rows);
    else
        gather_rows_launch(out, hidden, partial, b->config.batch_invariant, rows, num_rows,
                           hidden_size, b->stream);
}

void cuda_gather_logits(struct backend *b, float *all, int32_t vocab_size, const float *mine,
                        struct range vocab, int32_t num_rows) {
    (void)vocab; /* comm knows everyone's */
    comm_gather_logits(b->comm, all, vocab_size, mine, num_rows);
}

/* ---- products -------------------------------------------------------------------------------- */

/* x [T, ldx] of a product with FP8 weights as FP8 activations: the last norm's output comes with
 * them, other rows are rounded here. */
struct f8_rows {
    const uint8_t *codes;
    const float *scale;
};
static struct f8_rows f8_rows_of(struct backend *b, const void *x, int64_t ldx, int32_t num_tokens,
                                 int32_t cols) {
    if (x == b->xq_of && cols == b->config.hidden_size)
        return (struct f8_rows){b->xq, b->xq_scale};
    quantise_launch(b->inputq, b->inputq_scale, x, ldx, num_tokens, cols, b->stream);
    return (struct f8_rows){b->inputq, b->inputq_scale};
}

/* What x W^T takes; y and the bias are the caller's. */
static struct dense_args product_of(struct backend *b, const void *x, int64_t ldx,
                                    const struct weight *w, int32_t num_tokens) {
    struct f8_rows f8 = {0};
    if (b->config.fp8_activations && w->dtype == DTYPE_F8_E4M3)
        f8 = f8_rows_of(b, x, ldx, num_tokens, w->cols);
    return (struct dense_args){
        .x = x,
        .ldx = ldx,
        .xq = f8.codes,
        .xq_scale = f8.scale,
        .weight = w->data,
        .layout = cuda_layout(w),
        .dtype = w->dtype,
        .weight_scale = w->block_scale ? w->block_scale : w->row_scale,
        .scale = cuda_scale(w),
        .block_col0 = w->block_col0,
        .rows = w->rows,
        .cols = w->cols,
        .num_tokens = num_tokens,
        .invariant = b->config.batch_invariant,
        .gpu = b->gpu,
    };
}

static void product(struct backend *b, void *y, bool y_float, int64_t ldy, const void *x,
                    int64_t ldx, const struct weight *w, const float *bias, int32_t num_tokens) {
    if (num_tokens == 0 || w->rows == 0)
        return;
    struct dense_args a = product_of(b, x, ldx, w, num_tokens);
    a.y = y;
    a.y_float = y_float;
    a.ldy = ldy;
    a.bias = bias;
    gemm_launch(b->gemm, &a, b->stream);
}

void cuda_matmul(struct backend *b, void *y, int64_t ldy, const void *x, int64_t ldx,
                 const struct weight *w, const float *bias, int32_t num_tokens) {
    product(b, y, false, ldy, x, ldx, w, bias, num_tokens);
}

void cuda_logits(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                 const struct weight *w, int32_t num_rows) {
    product(b, y, true, ldy, x, ldx, w, NULL, num_rows);
}

/* A unit of a product. FP8 activations are multiplied in whole tiles: what they give depends on the
 * number of ranks anyhow (host/ops.h), but not on the batch. */
static int32_t unit_of(const struct dense_args *a, int32_t unit) {
    return a->xq ? (unit + FRAGMENT_COLS - 1) / FRAGMENT_COLS * FRAGMENT_COLS : unit;
}

static void clear_partial(struct backend *b, void *partial, int32_t num_tokens, int32_t width) {
    size_t bytes = b->config.batch_invariant ? sizeof(double) : sizeof(float);
    CUDA_CHECK(cudaMemsetAsync(partial, 0, (size_t)num_tokens * (size_t)width * bytes, b->stream));
}

void cuda_matmul_partial(struct backend *b, void *partial, const void *x, int64_t ldx,
                         const struct weight *w, int32_t unit, int32_t num_tokens) {
    if (num_tokens == 0 || w->rows == 0)
        return;
    if (w->cols == 0) { /* a rank without heads */
        clear_partial(b, partial, num_tokens, w->rows);
    } else if (b->config.batch_invariant) {
        struct dense_args a = product_of(b, x, ldx, w, num_tokens);
        a.ldy = w->rows;
        gemm_units_launch(partial, &a, unit_of(&a, unit), b->stream);
    } else {
        product(b, partial, true, w->rows, x, ldx, w, NULL, num_tokens);
    }
}

/* ---- queries, keys, attention ---------------------------------------------------------------- */

static struct rope_args rope_args_of(const struct backend *b, const struct qkv_args *a) {
    return (struct rope_args){
        .qkv = a->qkv,
        .ld = a->ld,
        .num_tokens = a->batch->num_tokens,
        .num_heads = a->num_heads,
        .num_kv_heads = a->num_kv_heads,
        .head_dim = a->head_dim,
        .positions = a->batch->positions,
        .slot_mapping = a->batch->slot_mapping,
        .rope = a->rope,
        .clip = a->clip,
        .norm = a->norm,
        .q_norm = a->q_norm,
        .k_norm = a->k_norm,
        .eps = a->eps,
        .sum_squares = a->sum_squares,
        .sums_double = b->config.batch_invariant,
        .q_width = a->q_width,
        .k_width = a->k_width,
        .kv = {a->kv.data, a->kv.dtype},
    };
}

void cuda_qk_sum_squares(struct backend *b, void *sums, const struct qkv_args *a,
                         int32_t first_kv_head, int32_t num_counted) {
    const struct rope_args args = rope_args_of(b, a);
    qk_sum_squares_launch(sums, &args, first_kv_head, num_counted, b->stream);
    if (b->comm)
        comm_sum(b->comm, sums, (int64_t)a->batch->num_tokens * 2);
}

void cuda_qk_rope_kv_write(struct backend *b, const struct qkv_args *a) {
    const struct rope_args args = rope_args_of(b, a);
    rope_kv_write_launch(&args, b->stream);
}

void cuda_attention(struct backend *b, const struct attention_args *a) {
    const struct step_arrays *arrays = &b->arrays;
    const struct attention_launch_args args = {
        .qkv = a->qkv,
        .ld = a->ld,
        .out = a->out,
        .num_heads = a->num_heads,
        .num_kv_heads = a->num_kv_heads,
        .head_dim = a->head_dim,
        .head_offsets = b->head_offsets,
        .scale = a->scale,
        .window = a->window,
        .kv = {a->kv.data, a->kv.dtype},
        .cu_seqlens = a->batch->cu_seqlens,
        .seq_lens = a->batch->seq_lens,
        .block_tables = a->batch->block_tables,
        .max_blocks = a->batch->max_blocks,
        .plan = b->plan,
        .tiles = (const void *)(arrays->device + ((const char *)arrays->tiles - arrays->host)),
        .workspace = b->attention_workspace,
    };
    if (a->num_heads > 0)
        attention_launch(&args, b->stream);
}

/* ---- experts --------------------------------------------------------------------------------- */

void cuda_router(struct backend *b, struct routing *out, const void *x, const struct weight *gate,
                 const struct router_config *config, int32_t num_tokens) {
    const struct router_args a = {
        .out = {out->topk_ids, out->topk_weights, out->expert_counts, out->expert_offsets,
                out->permutation, b->slot},
        .x = x,
        .gate = gate->data,
        .config = config,
        .slot_mapping = b->batch.slot_mapping,
        .logits = b->router_logits,
        .num_tokens = num_tokens,
        .hidden_size = b->config.hidden_size,
        .expert_totals = out->expert_totals,
    };
    router_launch(&a, b->stream);
}

void cuda_moe(struct backend *b, const struct moe_args *m) {
    const struct expert_table *t = m->table;
    bool dense = m->routing == NULL;
    if (m->num_experts == 0) { /* nothing of them on this rank */
        if (!m->accumulate)
            clear_partial(b, m->partial, m->num_tokens, b->config.hidden_size);
        return;
    }
    struct gpu_routing routing = b->to_one;
    if (dense)
        route_to_one_launch(&routing, b->batch.slot_mapping, m->num_tokens, b->stream);
    else
        routing = (struct gpu_routing){m->routing->topk_ids,      m->routing->topk_weights,
                                       m->routing->expert_counts, m->routing->expert_offsets,
                                       m->routing->permutation,   b->slot};
    struct f8_rows f8 = {0};
    if (b->config.fp8_activations && t->dtype == DTYPE_F8_E4M3)
        f8 = f8_rows_of(b, m->x, b->config.hidden_size, m->num_tokens, b->config.hidden_size);
    const struct moe_launch_args a = {
        .x = m->x,
        .xq = f8.codes,
        .xq_scale = f8.scale,
        .routing = &routing,
        .experts = t->experts,
        .expert_slot = t->slot,
        .num_tokens = m->num_tokens,
        .hidden_size = b->config.hidden_size,
        .intermediate = m->num_experts > 0 ? m->experts[0].gate.rows : 0,
        .num_experts = dense ? 1 : b->config.num_experts,
        .num_experts_per_tok = dense ? 1 : m->num_experts_per_tok,
        .num_local = t->num_local,
        .dtype = t->dtype,
        .scale = t->scale,
        .down_col0 = t->down_col0,
        .invariant = b->config.batch_invariant,
        .unit = b->config.batch_invariant ? m->unit : 0,
        .accumulate = m->accumulate,
        .act = b->act,
        .actq = b->actq,
        .actq_scale = b->actq_scale,
        .pair_out = b->pair_out,
        .partial = m->partial,
        .workspace = b->moe_workspace,
        .gpu = b->gpu,
    };
    moe_launch(&a, b->stream);
}
