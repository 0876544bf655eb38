/* model_forward: one pass of a batch through all layers, for every family.
 *
 *   h = embed(tokens)
 *   each layer:  x = norm(h);  q, k, v = qkv x;  rope, KV write;  a = attention(q)
 *                h += all_reduce(o a)
 *                x = norm(h);  routing = router(x)
 *                h += all_reduce(sum over experts of weight * down(silu(gate x) * up x))
 *   logits = lm_head norm(h)          for the rows that the batch asks for
 *
 * The sums over the ranks and the two residual additions are done by the norm that follows them
 * (add_norm), so that h makes one trip through memory. Every rank computes norms and routing in
 * full, from the same bits.
 */
#include <string.h>
#include <unistd.h>

#include "host/guard.h"
#include "host/mem.h"
#include "host/model_internal.h"

static void attention_block(struct model *m, struct rank *r, struct layer *l,
                            const struct batch *batch) {
    const struct model_config *c = m->config;
    const struct ops *ops = m->ops;
    int32_t T = batch->num_tokens, D = c->head_dim;
    int32_t Hq = r->layout.q_heads.count, Hkv = r->layout.kv_heads.count;
    int64_t ld = (int64_t)(Hq + 2 * Hkv) * D;
    struct qkv_args qkv = {
        .batch = batch,
        .qkv = r->qkv,
        .ld = ld,
        .num_heads = Hq,
        .num_kv_heads = Hkv,
        .head_dim = D,
        .clip = c->clip_qkv,
        .norm = c->qk_norm,
        .q_norm = l->q_norm,
        .k_norm = l->k_norm,
        .eps = c->rms_norm_eps,
        .sum_squares = r->sums,
        .q_width = c->num_attention_heads * D,
        .k_width = c->num_key_value_heads * D,
        .rope = r->rope,
        .kv = l->kv,
    };
    struct attention_args attention = {
        .batch = batch,
        .qkv = r->qkv,
        .ld = ld,
        .out = r->attn,
        .num_heads = Hq,
        .num_kv_heads = Hkv,
        .head_dim = D,
        .scale = m->attention_scale,
        .window = c->sliding_window,
        .kv = l->kv,
    };
    ops->matmul(r->backend, r->qkv, ld, r->x, c->hidden_size, &l->qkv, l->qkv_bias, T);
    if (c->qk_norm == QK_NORM_PROJECTION)
        ops->qk_sum_squares(r->backend, r->sums, &qkv,
                            r->layout.kv_counted.first - r->layout.kv_heads.first,
                            r->layout.kv_counted.count);
    ops->qk_rope_kv_write(r->backend, &qkv);
    ops->attention(r->backend, &attention);
    ops->matmul_partial(r->backend, r->partial, r->attn, (int64_t)Hq * D, &l->o, D, T);
}

static void ffn_block(struct model *m, struct rank *r, struct layer *l, int32_t T) {
    const struct model_config *c = m->config;
    bool moe = l->router.rows > 0;
    r->routing.expert_totals = l->expert_totals;
    if (moe)
        m->ops->router(r->backend, &r->routing, r->x, &l->router, &c->router, T);
    struct moe_args args = {
        .num_tokens = T,
        .x = r->x,
        .routing = moe ? &r->routing : NULL,
        .experts = l->experts,
        .num_experts = l->num_experts,
        .table = l->expert_table,
        .num_experts_per_tok = c->router.num_experts_per_tok,
        .unit = l->unit,
        .partial = r->partial,
    };
    m->ops->moe(r->backend, &args);
}

/* ---- a rank that misbehaves on purpose (fault.h) --------------------------------------------- */

static bool is_faulty(const struct model *m, const struct rank *r) {
    const struct fault *f = &m->options.fault;
    return f->kind != FAULT_NONE && f->rank == r->world_index && f->step == m->step;
}

static void poison(struct model *m, struct rank *r, size_t bytes) {
    static unsigned char nans[4096]; /* all bits set: NaN in every format */
    memset(nans, 0xff, sizeof nans);
    for (size_t at = 0; at < bytes; at += sizeof nans)
        m->ops->write(r->backend, (char *)r->partial + at, nans,
                      bytes - at < sizeof nans ? bytes - at : sizeof nans);
}

/* 0, or RANK_DIED. */
static int misbehave(struct model *m, struct rank *r, int32_t layer, int32_t T) {
    const struct fault *f = &m->options.fault;
    int32_t at = f->layer < 0 ? m->config->num_hidden_layers / 2 : f->layer;
    if (!is_faulty(m, r) || layer != at)
        return 0;
    if (f->kind == FAULT_NAN)
        poison(m, r, (size_t)T * (size_t)m->config->hidden_size * m->ops->partial_bytes);
    while (f->kind == FAULT_STALL)
        pause();
    return f->kind == FAULT_KILL ? RANK_DIED : 0;
}

/* ---- all layers ------------------------------------------------------------------------------ */

static int run_layers(struct model *m, struct rank *r, const struct batch *batch,
                      struct error *error) {
    const struct model_config *c = m->config;
    const struct ops *ops = m->ops;
    int32_t T = batch->num_tokens, H = c->hidden_size, R = batch->num_logits;
    void *pending = NULL; /* the partial that the next norm adds to the residual */

    ops->embed(r->backend, r->hidden, batch->tokens, T);
    for (int32_t i = 0; i < c->num_hidden_layers; i++) {
        struct layer *l = &r->layers[i];
        ops->add_norm(r->backend, r->x, r->hidden, pending, l->attn_norm, c->rms_norm_eps, T, H);
        attention_block(m, r, l, batch);
        ops->add_norm(r->backend, r->x, r->hidden, r->partial, l->ffn_norm, c->rms_norm_eps, T, H);
        ffn_block(m, r, l, T);
        pending = r->partial;
        if (misbehave(m, r, i, T) != 0)
            return RANK_DIED;
    }
    ops->gather_rows(r->backend, r->last_hidden, r->hidden, pending, batch->logits_rows, R, H);
    ops->add_norm(r->backend, r->last_x, r->last_hidden, NULL, r->norm, c->rms_norm_eps, R, H);
    ops->logits(r->backend, r->logits, r->logits_ld, r->last_x, H, &r->lm_head, R);
    if (!ops->gather_logits)
        return model_group_gather_logits(m, r, R, error);
    if (ranks_world_size(m->ranks) > 1)
        ops->gather_logits(r->backend, m->logits, c->vocab_size, r->logits, r->layout.vocab, R);
    return 0;
}

static int run_step(struct model *m, struct rank *r, struct error *error) {
    const struct batch *batch = m->batch;
    int rc = 0;
    if (m->ops->begin_step)
        batch = m->ops->begin_step(r->backend, batch, is_faulty(m, r));
    if (batch)
        rc = run_layers(m, r, batch, error);
    if (rc == 0 && m->ops->end_step)
        rc = m->ops->end_step(r->backend, error);
    return rc;
}

int model_forward(void *ctx, int32_t rank) {
    struct model *m = ctx;
    struct rank *r = &m->rank[rank];
    struct error error = {0};
    struct guard guard;
    volatile int rc = 0;

    mem_step_begin();
    guard_enter(&guard);
    if (setjmp(guard.env) == 0) {
        rc = run_step(m, r, &error);
    } else {
        error_set(&error, ERR_INTERNAL, "%s", guard.text);
        rc = ERR_INTERNAL;
    }
    guard_leave(&guard);
    mem_step_end();
    if (rc == ERR_INTERNAL)
        ranks_abort(m->ranks, "rank %d: %s", r->world_index, error.text);
    return rc;
}
