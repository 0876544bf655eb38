#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/guard.h"
#include "host/log.h"
#include "host/mem.h"
#include "host/model_internal.h"

#define COMM_TIMEOUT_US ((int64_t)10000000)

/* cos and sin of position * inv_freq[i] for every position, as the reference implementations
 * compute them: product and functions in float32. */
static void fill_rope(const struct model *m, float *rope) {
    int32_t D = m->config->head_dim, half = D / 2, len = m->options.max_model_len;
    float *inv_freq = xcalloc((size_t)half, sizeof *inv_freq);
    model_config_inv_freq(m->config, inv_freq);
    for (int32_t p = 0; p < len; p++)
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)p * inv_freq[i];
            rope[(int64_t)p * D + i] = cosf(angle);
            rope[(int64_t)p * D + half + i] = sinf(angle);
        }
    free(inv_freq);
}

/* The same table for every rank, in its backend's memory. */
static int make_rope(struct model *m, struct error *error) {
    size_t bytes = (size_t)m->options.max_model_len * (size_t)m->config->head_dim * sizeof(float);
    float *rope = mem_pool_alloc(bytes);
    if (!rope)
        return error_set(error, ERR_NO_MEMORY,
                         "no memory for %zu bytes of rotation tables; lower --max-model-len (%d)",
                         bytes, m->options.max_model_len);
    fill_rope(m, rope);
    for (int32_t i = 0; i < m->num_ranks; i++)
        m->ops->write(m->rank[i].backend, m->rank[i].rope, rope, bytes);
    mem_pool_free(rope, bytes);
    return 0;
}

static int64_t wait_us(const struct model *m) {
    return ranks_wait_us(m->options.comm_timeout_us ? m->options.comm_timeout_us : COMM_TIMEOUT_US);
}

static int32_t max_of(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static int create_backend(struct model *m, struct rank *r, struct error *error) {
    const struct model_config *c = m->config;
    const struct rank_layout *l = &r->layout;
    int32_t n = m->num_ranks, threads = m->options.threads, kv_head[MAX_HEADS];
    int32_t intermediate = max_of(l->expert_columns.count, l->ffn_columns.count);
    struct backend_config config = {
        .max_tokens = m->options.max_tokens,
        .max_seqs = m->options.max_seqs,
        .max_model_len = m->options.max_model_len,
        .hidden_size = c->hidden_size,
        .max_intermediate = intermediate,
        .max_matmul_cols =
            max_of(max_of(c->hidden_size, l->q_heads.count * c->head_dim), intermediate),
        .num_experts = max_of(c->router.num_experts, 1),
        .num_experts_per_tok = max_of(c->router.num_experts_per_tok, 1),
        .num_heads = l->q_heads.count,
        .num_kv_heads = l->kv_heads.count,
        .head_dim = c->head_dim,
        .kv_head = kv_head,
        .threads = max_of(layout_split(threads, n, r->index).count, 1),
        .fp8_activations = m->options.fp8_activations,
        .device = m->options.gpus ? m->options.gpus[r->index] : 0,
        .max_logits = m->options.max_logits,
        .vocab_size = c->vocab_size,
        .memory_utilization = m->options.gpu_memory_utilization,
        .batch_invariant = m->options.batch_invariant,
        .enforce_eager = m->options.enforce_eager,
        .embedding_on_host = m->options.embedding_on_host,
        .vocab = m->vocab,
        .comm_timeout_us = wait_us(m),
        .allreduce = m->options.allreduce ? m->options.allreduce : "auto",
        .allreduce_dtype = m->options.allreduce_dtype ? m->options.allreduce_dtype : "auto",
        .ranks = m->ranks,
        .rank = r->index,
    };
    int32_t group = c->num_attention_heads / c->num_key_value_heads;
    for (int32_t h = 0; h < l->q_heads.count; h++)
        kv_head[h] = (l->q_heads.first + h) / group - l->kv_heads.first;
    return m->ops->create(&config, &r->backend, error);
}

int model_no_memory(const struct model *m, const struct rank *r, const char *what, size_t bytes,
                    const char *remedy, struct error *error) {
    int64_t left = m->ops->free_bytes(r->backend), missing = (int64_t)bytes - left;
    char where[32], too_few[64] = "";
    snprintf(where, sizeof where, m->options.gpus ? "GPU %d" : "rank %d",
             m->options.gpus ? m->options.gpus[r->index] : r->world_index);
    if (missing > 0) /* else it is in pieces */
        snprintf(too_few, sizeof too_few, ", %lld too few", (long long)missing);
    return error_set(error, ERR_NO_MEMORY,
                     "%s: no memory for %zu bytes (%.2f GB) of %s: %lld are free%s; %s", where,
                     bytes, (double)bytes / 1e9, what, (long long)left, too_few, remedy);
}

static void carve_activations(struct model *m, struct rank *r, struct carver *c) {
    const struct model_config *config = m->config;
    size_t T = (size_t)m->options.max_tokens, R = (size_t)m->options.max_logits;
    size_t H = (size_t)config->hidden_size, D = (size_t)config->head_dim;
    size_t Hq = (size_t)r->layout.q_heads.count, Hkv = (size_t)r->layout.kv_heads.count;
    size_t E = (size_t)config->router.num_experts, K = (size_t)config->router.num_experts_per_tok;
    size_t act = m->ops->act_bytes, partial = m->ops->partial_bytes;
    r->hidden = carve(c, T * H * sizeof(float));
    r->x = carve(c, T * H * act);
    r->qkv = carve(c, T * (Hq + 2 * Hkv) * D * act);
    r->attn = carve(c, T * Hq * D * act);
    r->partial = carve(c, T * H * partial);
    r->sums = carve(c, T * 2 * partial);
    r->last_hidden = carve(c, R * H * sizeof(float));
    r->last_x = carve(c, R * H * act);
    r->rope = carve(c, (size_t)m->options.max_model_len * D * sizeof(float));
    r->routing.topk_ids = carve(c, T * K * sizeof(int32_t));
    r->routing.topk_weights = carve(c, T * K * sizeof(float));
    r->routing.expert_counts = carve(c, E * sizeof(int32_t));
    r->routing.expert_offsets = carve(c, (E + 1) * sizeof(int32_t));
    r->routing.permutation = carve(c, T * K * sizeof(int32_t));
}

static int alloc_activations(struct model *m, struct rank *r, struct error *error) {
    struct carver c = {0};
    carve_activations(m, r, &c);
    r->act_bytes = c.used;
    r->act_memory = m->ops->alloc(r->backend, r->act_bytes);
    if (!r->act_memory)
        return model_no_memory(m, r, "activations", r->act_bytes,
                               "lower --max-num-batched-tokens or --max-model-len", error);
    c = (struct carver){.memory = r->act_memory};
    carve_activations(m, r, &c);
    return 0;
}

/* Bytes of one block over the layers of a rank. */
static size_t kv_block_bytes(const struct model *m, const struct rank *r) {
    return (size_t)m->config->num_hidden_layers *
           m->ops->kv_block_bytes(m->kv_dtype, r->layout.kv_heads.count, m->config->head_dim);
}

/* The memory that blocks can be made of: of a kv_bytes of the user's, or what the ranks can spare.
 * Ranks on the CPU share theirs; of GPUs the one that has room for the fewest blocks counts. */
static int64_t kv_limit(const struct model *m, int64_t block) {
    const struct model_options *o = &m->options;
    int64_t fewest = INT64_MAX, sum = 0;
    if (o->kv_bytes > 0)
        return o->kv_bytes;
    for (int32_t i = 0; i < m->num_ranks; i++) {
        int64_t sharers = o->kv_sharers > 0 ? o->kv_sharers : model_ranks_of_device(m, i);
        int64_t budget = m->ops->kv_budget(m->rank[i].backend) / sharers;
        int64_t of_rank = (int64_t)kv_block_bytes(m, &m->rank[i]);
        sum += budget;
        if (of_rank > 0 && budget / of_rank < fewest)
            fewest = budget / of_rank;
    }
    return o->gpus && m->num_ranks > 1 ? fewest * block : sum;
}

/* How many blocks: as told, or what the sequences can need within the memory that is free. */
static int choose_kv_blocks(struct model *m, struct error *error) {
    const struct model_options *o = &m->options;
    int64_t per_seq = (o->max_model_len + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE, block = 0;
    if (m->ops->kv_block_bytes(m->kv_dtype, 1, m->config->head_dim) == 0)
        return error_set(error, ERR_UNSUPPORTED,
                         "--kv-cache-dtype: %s keeps no cache of %s; auto takes %s", m->ops->name,
                         dtype_name(m->kv_dtype), dtype_name(m->ops->kv_dtype));
    for (int32_t i = 0; i < m->num_ranks; i++)
        block += (int64_t)kv_block_bytes(m, &m->rank[i]);
    int64_t wanted = per_seq * o->max_seqs, limit = kv_limit(m, block);
    if (o->num_kv_blocks > 0)
        wanted = o->num_kv_blocks;
    else if (o->kv_bytes > 0 || wanted * block > limit)
        wanted = limit / block;
    if (wanted < 1)
        return error_set(
            error, ERR_NO_MEMORY,
            "a KV block of %d tokens takes %lld bytes, and %lld are left for the cache, "
            "%lld too few; %s",
            KV_BLOCK_SIZE, (long long)block, (long long)limit, (long long)(block - limit),
            o->kv_bytes > 0 ? "raise --kv-cache-memory-bytes"
            : o->gpus       ? "raise --gpu-memory-utilization, lower --max-num-batched-tokens, "
                              "or take --embedding host or a smaller or FP8 checkpoint"
                            : "set --kv-cache-memory-bytes, or free memory");
    m->num_kv_blocks =
        wanted > INT32_MAX / KV_BLOCK_SIZE ? INT32_MAX / KV_BLOCK_SIZE : (int32_t)wanted;
    return model_group_min(m, &m->num_kv_blocks, error);
}

static int alloc_kv(struct model *m, struct rank *r, struct error *error) {
    size_t layer_bytes =
        (size_t)m->num_kv_blocks *
        m->ops->kv_block_bytes(m->kv_dtype, r->layout.kv_heads.count, m->config->head_dim);
    r->kv_bytes = layer_bytes * (size_t)m->config->num_hidden_layers;
    r->kv_memory = m->ops->alloc(r->backend, r->kv_bytes);
    if (!r->kv_memory)
        return model_no_memory(m, r, "KV cache", r->kv_bytes,
                               "lower --kv-cache-memory-bytes, --num-kv-blocks, --max-model-len or "
                               "--max-num-seqs, or take --kv-cache-dtype fp8",
                               error);
    for (int32_t i = 0; i < m->config->num_hidden_layers; i++)
        r->layers[i].kv = (struct kv_layer){.data = (char *)r->kv_memory + (size_t)i * layer_bytes,
                                            .dtype = m->kv_dtype};
    return 0;
}

static int start_ranks(struct model *m, struct error *error) {
    const struct ranks_options options = {
        .local_size = m->options.num_ranks,
        .timeout_us = wait_us(m),
        .group = m->options.group,
    };
    m->num_ranks = options.local_size;
    return ranks_create(&options, &m->ranks, error);
}

/* Everything of the ranks but their KV pools, whose size depends on what memory is left. */
static int create_ranks(struct model *m, struct error *error) {
    int rc = 0;
    for (int32_t i = 0; i < m->layout.world_size; i++)
        m->vocab[i] = m->layout.rank[i].vocab;
    for (int32_t i = 0; i < m->num_ranks && rc == 0; i++) {
        struct rank *r = &m->rank[i];
        r->model = m;
        r->index = i;
        r->world_index = ranks_first(m->ranks) + i;
        r->layout = m->layout.rank[r->world_index];
        r->layers = xcalloc((size_t)m->config->num_hidden_layers, sizeof *r->layers);
        rc = create_backend(m, r, error);
        if (rc == 0)
            rc = alloc_activations(m, r, error);
    }
    return rc;
}

/* A rank_fn. */
static int connect_rank(void *ctx, int32_t rank) {
    struct model *m = ctx;
    struct error e = {0};
    if (m->ops->connect(m->rank[rank].backend, &e) == 0)
        return 0;
    ranks_abort(m->ranks, "%s", e.text);
    return e.code;
}

static void abort_ranks(void *ctx) {
    struct model *m = ctx;
    for (int32_t i = 0; i < m->num_ranks; i++)
        m->ops->abort(m->rank[i].backend);
}

static int connect_ranks(struct model *m, struct error *error) {
    if (m->ops->abort)
        ranks_on_abort(m->ranks, abort_ranks, m);
    return m->ops->connect ? ranks_run(m->ranks, connect_rank, m, error) : 0;
}

static int alloc_logits(struct model *m, struct error *error) {
    static const char remedy[] = "lower --max-num-seqs";
    size_t rows = (size_t)m->options.max_logits;
    bool gathers = m->ops->gather_logits && ranks_world_size(m->ranks) > 1;
    /* Process 0 has room for all columns; others for their own, unless their ranks send them. */
    struct range vocab = model_group_vocab(m);
    if (ranks_first(m->ranks) == 0)
        vocab = (struct range){0, m->config->vocab_size};
    else if (gathers)
        vocab.count = 0;
    m->logits_bytes = rows * (size_t)vocab.count * sizeof *m->logits;
    m->logits = m->ops->alloc(m->rank[0].backend, m->logits_bytes);
    if (!m->logits)
        return model_no_memory(m, &m->rank[0], "logits", m->logits_bytes, remedy, error);
    for (int32_t i = 0; i < m->num_ranks; i++) {
        struct rank *r = &m->rank[i];
        r->logits = m->logits + r->layout.vocab.first - vocab.first;
        r->logits_ld = vocab.count;
        if (!gathers)
            continue;
        r->own_logits_bytes = rows * (size_t)r->layout.vocab.count * sizeof *r->logits;
        r->logits = r->own_logits = m->ops->alloc(r->backend, r->own_logits_bytes);
        r->logits_ld = r->layout.vocab.count;
        if (!r->own_logits)
            return model_no_memory(m, r, "logits", r->own_logits_bytes, remedy, error);
    }
    return 0;
}

/* Ranks cut matrices between heads, and stack the rows of q, k and v. */
static int check_block_scales(const struct model_config *c, const struct ops *ops,
                              struct error *error) {
    if (!c->fp8 || c->fp8_scaling != FP8_BLOCK || c->head_dim % ops->block_cut == 0)
        return 0;
    return error_set(
        error, ERR_UNSUPPORTED,
        "FP8 weights with scales of blocks: heads of %d columns, the %s kernels need a "
        "multiple of %d; --gpus 0 serves the model on the CPU",
        c->head_dim, ops->name, ops->block_cut);
}

int model_create(const struct model_config *config, const struct weights *weights,
                 const struct model_options *options, struct model **out, struct error *error) {
    struct model *m = xcalloc(1, sizeof *m);
    m->config = config;
    m->weights = weights;
    m->ops = options->ops;
    m->options = *options;
    m->kv_dtype = options->kv_dtype == DTYPE_NONE ? m->ops->kv_dtype : options->kv_dtype;
    m->attention_scale = 1 / sqrtf((float)config->head_dim);
    int rc = start_ranks(m, error);
    if (rc == 0)
        rc = model_make_layout(m, error);
    if (rc == 0)
        rc = check_block_scales(config, m->ops, error);
    if (rc == 0)
        rc = create_ranks(m, error);
    if (rc == 0)
        rc = model_group_create(m, error);
    if (rc == 0)
        rc = connect_ranks(m, error);
    if (rc == 0)
        rc = make_rope(m, error);
    if (rc == 0)
        rc = alloc_logits(m, error);
    if (rc == 0)
        rc = model_load_weights(m, error);
    if (rc == 0)
        rc = choose_kv_blocks(m, error);
    for (int32_t i = 0; i < m->num_ranks && rc == 0; i++)
        rc = alloc_kv(m, &m->rank[i], error);
    if (rc == 0)
        rc = model_counters_create(m, error);
    if (rc != 0) {
        model_destroy(m);
        return rc;
    }
    *out = m;
    return 0;
}

static void destroy_rank(struct model *m, struct rank *r) {
    if (r->backend) {
        m->ops->free(r->backend, r->weights_memory, r->weights_bytes);
        m->ops->free(r->backend, r->kv_memory, r->kv_bytes);
        m->ops->free(r->backend, r->act_memory, r->act_bytes);
        m->ops->free(r->backend, r->own_logits, r->own_logits_bytes);
    }
    for (int32_t i = 0; r->layers && i < m->config->num_hidden_layers; i++)
        free(r->layers[i].experts);
    free(r->layers);
    m->ops->destroy(r->backend);
}

void model_destroy(struct model *m) {
    if (!m || m->lost)
        return;
    ranks_destroy(m->ranks);
    model_group_destroy(m);
    model_counters_destroy(m);
    if (m->rank[0].backend)
        m->ops->free(m->rank[0].backend, m->logits, m->logits_bytes);
    for (int32_t i = m->num_ranks; i-- > 0;) /* the first lends to the others */
        destroy_rank(m, &m->rank[i]);
    free(m);
}

bool model_lost(const struct model *m) {
    return m->lost;
}

int model_run(struct model *m, const struct batch *batch, float **logits, struct error *error) {
    CHECK(batch->num_tokens <= m->options.max_tokens && batch->num_seqs <= m->options.max_seqs &&
              batch->num_logits <= m->options.max_logits,
          "batch of %d tokens, %d sequences, %d logits exceeds %d, %d, %d", batch->num_tokens,
          batch->num_seqs, batch->num_logits, m->options.max_tokens, m->options.max_seqs,
          m->options.max_logits);
    m->batch = batch;
    m->step++;
    *logits = m->logits;
    if (model_group_send(m, batch, error) != 0)
        return ERR_INTERNAL;
    int rc = ranks_run(m->ranks, model_forward, m, error);
    if (rc == 0)
        model_count_step(m, batch);
    return rc;
}

/* A rank_fn. */
static int recover_rank(void *ctx, int32_t rank) {
    struct model *m = ctx;
    struct error e = {0};
    if (m->ops->recover(m->rank[rank].backend, &e) == 0)
        return 0;
    ranks_abort(m->ranks, "rank %d: %s", m->rank[rank].world_index, e.text);
    return ERR_INTERNAL;
}

int model_recover(struct model *m, struct error *error) {
    int rc = ranks_revive(m->ranks, error);
    if (rc == 0 && m->ops->recover)
        rc = ranks_run(m->ranks, recover_rank, m, error);
    m->lost = rc != 0;
    return rc;
}

bool model_samples(const struct model *m) {
    return m->ops->sample != NULL;
}

int model_sample(struct model *m, const struct sample_job *jobs, int32_t num_jobs,
                 struct sample_outcome *outcomes, struct error *error) {
    struct guard guard;
    volatile int rc = 0;
    guard_enter(&guard);
    if (setjmp(guard.env) == 0)
        rc = m->ops->sample(m->rank[0].backend, m->logits, jobs, num_jobs, outcomes, error);
    else
        rc = error_set(error, ERR_INTERNAL, "%s", guard.text);
    guard_leave(&guard);
    return rc;
}

int32_t model_num_kv_blocks(const struct model *m) {
    return m->num_kv_blocks;
}

int32_t model_num_ranks(const struct model *m) {
    return m->num_ranks;
}

const struct layout *model_layout(const struct model *m) {
    return &m->layout;
}

/* "46.70 B", "4.73 M" */
static void put_count(struct buffer *out, int64_t n) {
    bool millions = n < 1000000000;
    buffer_printf(out, "%.2f %c", (double)n / (millions ? 1e6 : 1e9), millions ? 'M' : 'B');
}

void model_describe(const struct model *m, struct buffer *out) {
    const struct model_config *c = m->config;
    size_t kv = 0, weights = 0, act = m->logits_bytes;
    for (int32_t i = 0; i < m->num_ranks; i++) {
        kv += m->rank[i].kv_bytes;
        weights += m->rank[i].weights_bytes;
        act += m->rank[i].act_bytes;
    }
    buffer_printf(out, "  family      %s, %d layers, hidden %d, %d/%d heads of %d", c->family,
                  c->num_hidden_layers, c->hidden_size, c->num_attention_heads,
                  c->num_key_value_heads, c->head_dim);
    if (c->router.num_experts > 0)
        buffer_printf(out, ", %d experts top-%d", c->router.num_experts,
                      c->router.num_experts_per_tok);
    buffer_puts(out, "\n  parameters  ");
    put_count(out, model_config_parameters(c));
    buffer_puts(out, ", ");
    put_count(out, model_config_active_parameters(c));
    buffer_puts(out, " active\n");
    buffer_printf(out, "  kernels     %s: %s\n", m->ops->name,
                  m->ops->describe(m->rank[0].backend));
    for (int32_t i = 1; i < m->num_ranks && m->options.gpus; i++)
        buffer_printf(out, "              %s\n", m->ops->describe(m->rank[i].backend));
    if (m->ops->describe_ranks)
        m->ops->describe_ranks(m->rank[0].backend, out);
    buffer_printf(out, "  activations %s%s\n", m->ops->act_bytes == 2 ? "bf16" : "f32",
                  m->options.fp8_activations ? ", into FP8 weights E4M3 with a scale per token"
                                             : "");
    buffer_printf(out, "  memory      weights %.3f GB, KV %.3f GB, activations %.3f GB\n",
                  (double)weights / 1e9, (double)kv / 1e9, (double)act / 1e9);
    buffer_printf(out, "  KV cache    %d tokens (%d blocks of %d, %s)\n",
                  m->num_kv_blocks * KV_BLOCK_SIZE, m->num_kv_blocks, KV_BLOCK_SIZE,
                  dtype_name(m->kv_dtype));
    buffer_printf(out, "  loaded      %.3f GB in %.2f s (%.2f GB/s)\n", (double)m->load_bytes / 1e9,
                  m->load_seconds, (double)m->load_bytes / 1e9 / m->load_seconds);
    layout_draw(&m->layout, c, out);
}
