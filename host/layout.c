#include "layout.h"

#include <string.h>

#include "host/batch.h"
#include "host/layout_fit.h"

struct range layout_split(int32_t count, int32_t parts, int32_t index) {
    int32_t base = count / parts, extra = count % parts;
    return (struct range){
        .first = index * base + (index < extra ? index : extra),
        .count = base + (index < extra),
    };
}

int32_t layout_unit(int32_t columns) {
    int32_t unit = 128;
    while (unit > 8 && (columns + unit - 1) / unit < MAX_RANKS)
        unit /= 2;
    return unit;
}

/* The unit of an FFN: with block scales a quarter of a block at least, and never across blocks. */
static int32_t ffn_unit(const struct model_config *c, int32_t min_unit, int32_t columns) {
    int32_t unit = layout_unit(columns);
    if (unit < min_unit)
        unit = min_unit;
    bool blocks = c->fp8 && c->fp8_scaling == FP8_BLOCK;
    return blocks && unit < MIN_BLOCK_SCALED_UNIT ? MIN_BLOCK_SCALED_UNIT : unit;
}

static int32_t num_units(int32_t columns, int32_t unit) {
    return (columns + unit - 1) / unit;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

struct layout_elements layout_elements_of(const struct model_config *c, enum dtype kv) {
    double scale = c->fp8_scaling == FP8_BLOCK ? 4.0 / (16 * FP8_BLOCK_SIZE)
                                               : 4.0 / (c->hidden_size > 0 ? c->hidden_size : 1);
    double products = c->fp8 ? 1 + scale : 2;
    return (struct layout_elements){
        .attention = products,
        .experts = products,
        .ffn = products,
        .lm_head = 2,
        .kv = kv == DTYPE_NONE ? 2 : (double)dtype_bytes(kv),
    };
}

struct layout_sizes layout_sizes_of(const struct model_config *c, const struct layout_elements *e) {
    double L = c->num_hidden_layers, H = c->hidden_size, D = c->head_dim, moe = 0, f4 = 4;
    if (e->lm_head <= 0)
        return (struct layout_sizes){0};
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        moe += c->layer_is_moe[i] ? 1 : 0;
    double bias = c->attention_bias ? D * f4 : 0;
    double norm = c->qk_norm == QK_NORM_PROJECTION ? D * f4 : 0;
    double norms = 2 * H * f4 + (c->qk_norm == QK_NORM_HEAD ? 2 * D * f4 : 0);
    return (struct layout_sizes){
        .q_head = (int64_t)(L * (2 * D * H * e->attention + bias + norm)),
        .kv_head = (int64_t)(L * (2 * D * H * e->attention + 2 * bias + norm)),
        .expert_column = (int64_t)(moe * 3 * H * e->experts),
        .shared_column = (int64_t)(moe * 3 * H * e->ffn),
        .ffn_column = (int64_t)((L - moe) * 3 * H * e->ffn),
        .vocab_row = (int64_t)(H * e->lm_head),
        .replicated = (int64_t)(moe * c->router.num_experts * H * e->lm_head + L * norms + H * f4),
        .kv_head_token = (int64_t)(L * 2 * D * e->kv),
    };
}

struct layout_bytes layout_bytes(const struct layout *l, int32_t rank) {
    const struct rank_layout *k = &l->rank[rank];
    const struct layout_sizes *s = &l->sizes;
    struct layout_bytes b = {
        .attention = k->q_heads.count * s->q_head + k->kv_heads.count * s->kv_head,
        .shared = k->shared_columns.count * s->shared_column,
        .ffn = k->ffn_columns.count * s->ffn_column,
        .vocabulary = k->vocab.count * s->vocab_row,
        .replicated = s->replicated,
        .fixed = k->fixed,
        .kv_per_token = k->kv_heads.count * s->kv_head_token,
    };
    for (int32_t i = 0; i < layout_num_expert_shares(l, rank); i++)
        b.experts += layout_expert_share(l, rank, i).columns.count * s->expert_column;
    b.kv = b.kv_per_token * l->kv_tokens;
    b.weights = b.attention + b.experts + b.shared + b.ffn + b.vocabulary + b.replicated;
    b.total = b.weights + b.fixed + b.kv;
    return b;
}

int32_t layout_kv_tokens(const struct layout *l) {
    int64_t tokens = INT32_MAX;
    for (int32_t r = 0; r < l->world_size; r++) {
        struct layout_bytes b = layout_bytes(l, r);
        int64_t left = l->rank[r].memory - b.weights - b.fixed;
        if (l->rank[r].memory == 0 || b.kv_per_token == 0)
            continue;
        left = left > 0 ? left / b.kv_per_token / KV_BLOCK_SIZE * KV_BLOCK_SIZE : 0;
        tokens = left < tokens ? left : tokens;
    }
    return (int32_t)tokens;
}

/* ---- expert shares --------------------------------------------------------------------------- */

int32_t layout_num_expert_shares(const struct layout *l, int32_t rank) {
    return l->rank[rank].experts.count + l->rank[rank].num_replicas;
}

/* Parts that an expert's tokens are cut into: one more than the replicas' highest. */
static int32_t expert_parts(const struct layout *l, int32_t expert) {
    int32_t parts = 1;
    for (int32_t r = 0; r < l->world_size; r++)
        for (int32_t i = 0; i < l->rank[r].num_replicas; i++)
            if (l->rank[r].replicas[i].expert == expert && l->rank[r].replicas[i].part >= parts)
                parts = l->rank[r].replicas[i].part + 1;
    return parts;
}

struct expert_share layout_expert_share(const struct layout *l, int32_t rank, int32_t i) {
    const struct rank_layout *k = &l->rank[rank];
    if (i >= k->experts.count)
        return k->replicas[i - k->experts.count];
    int32_t expert = k->experts.first + i;
    return (struct expert_share){expert, k->expert_columns, 0, expert_parts(l, expert)};
}

/* ---- making ---------------------------------------------------------------------------------- */

static int check_options(int32_t world_size, int32_t ep, const struct layout_options *o,
                         struct error *error) {
    int32_t known = 0;
    if (world_size < 1 || world_size > MAX_RANKS)
        return error_set(error, ERR_CONFIG, "%d ranks (--gpus, --ranks): expected 1 to %d",
                         world_size, MAX_RANKS);
    if (ep < 1 || world_size % ep != 0)
        return error_set(error, ERR_CONFIG,
                         "--expert-parallel-size %d: expected a divisor of the number of ranks, %d",
                         ep, world_size);
    for (int32_t r = 0; r < world_size; r++)
        known += o->memory[r] > 0;
    if (known != 0 && known != world_size)
        return error_set(error, ERR_CONFIG, "the memory of %d of %d ranks is known, not of all",
                         known, world_size);
    CHECK(known == 0 || o->elements.lm_head > 0, "memory is known, bytes of elements are not");
    return 0;
}

static void pose(const struct model_config *c, const struct layout_options *o,
                 const struct layout *l, struct layout_fit *f) {
    const struct layout_sizes *s = &l->sizes;
    *f = (struct layout_fit){
        .world_size = l->world_size,
        .ep_size = l->ep_size,
        .tp_size = l->tp_size,
        .num_q_heads = c->num_attention_heads,
        .num_kv_heads = c->num_key_value_heads,
        .num_experts = c->router.num_experts,
        .expert_units = num_units(c->moe_intermediate_size, l->expert_unit),
        .shared_units = num_units(l->shared_intermediate_size, l->shared_unit),
        .ffn_units = num_units(c->intermediate_size, l->ffn_unit),
        .vocab_rows = c->vocab_size,
        .q_head_bytes = s->q_head,
        .kv_head_bytes = s->kv_head + s->kv_head_token * l->kv_tokens,
        .expert_unit_bytes = s->expert_column * l->expert_unit,
        .shared_unit_bytes = s->shared_column * l->shared_unit,
        .ffn_unit_bytes = s->ffn_column * l->ffn_unit,
        .vocab_row_bytes = s->vocab_row,
    };
    for (int32_t r = 0; r < l->world_size; r++) {
        f->memory[r] = o->memory[r];
        f->spent[r] = o->fixed[r] + s->replicated;
    }
}

/* The next `count` units of `unit` columns, of which the last may be short, after those up to *at
 * (in units). */
static struct range take(int32_t *at, int32_t count, int32_t unit, int32_t columns) {
    int32_t first = *at * unit, end = (*at + count) * unit;
    *at += count;
    if (count == 0)
        return (struct range){0, 0};
    return (struct range){first, (end > columns ? columns : end) - first};
}

/* Counts to ranges. */
static void write_table(const struct model_config *c, const struct layout_fit *f,
                        struct layout *out) {
    int32_t head = 0, counted = 0, vocab = 0, ffn = 0, shared = 0, columns = 0, expert = 0;
    for (int32_t r = 0; r < out->world_size; r++) {
        struct rank_layout *k = &out->rank[r];
        int32_t group = r / out->tp_size;
        k->q_heads = take(&head, f->q_heads[r], 1, c->num_attention_heads);
        k->kv_heads = layout_fit_kv_heads(f, k->q_heads.first, k->q_heads.count);
        int32_t end = k->kv_heads.first + k->kv_heads.count;
        int32_t first = k->kv_heads.first > counted ? k->kv_heads.first : counted;
        k->kv_counted = (struct range){first, end > first ? end - first : 0};
        counted = end > counted ? end : counted;
        if (r % out->tp_size == 0) {
            expert += r > 0 ? f->experts[group - 1] : 0;
            columns = 0;
        }
        k->experts = (struct range){expert, f->experts[group]};
        k->expert_columns = !k->experts.count ? (struct range){0, 0}
                                              : take(&columns, f->columns[r], out->expert_unit,
                                                     c->moe_intermediate_size);
        k->shared_columns =
            take(&shared, f->shared[r], out->shared_unit, out->shared_intermediate_size);
        k->ffn_columns = take(&ffn, f->ffn[r], out->ffn_unit, c->intermediate_size);
        k->vocab = take(&vocab, f->vocab[r], 1, c->vocab_size);
        k->memory = f->memory[r];
        k->fixed = f->spent[r] - out->sizes.replicated;
    }
}

static bool fits_with(const struct model_config *c, const struct layout_options *o, int64_t tokens,
                      struct layout *l, struct layout_fit *f) {
    int32_t fewest_heads = f->fewest_heads, most_heads = f->most_heads;
    l->kv_tokens = tokens;
    pose(c, o, l, f);
    f->fewest_heads = fewest_heads;
    f->most_heads = most_heads;
    return layout_fit_solve(f);
}

/* The one with the most tokens: `least`, which fit, and whole blocks above, up to `most`. */
static void fill_up(const struct model_config *c, const struct layout_options *o, int64_t least,
                    int64_t most, struct layout *l, struct layout_fit *f) {
    int64_t low = 0, high = (most - least) / KV_BLOCK_SIZE; /* blocks above `least` */
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (fits_with(c, o, least + middle * KV_BLOCK_SIZE, l, f))
            low = middle;
        else
            high = middle - 1;
    }
    fits_with(c, o, least + low * KV_BLOCK_SIZE, l, f);
}

static int64_t whole_blocks(int64_t tokens) {
    int64_t most = INT32_MAX / KV_BLOCK_SIZE, blocks = tokens / KV_BLOCK_SIZE;
    blocks += tokens % KV_BLOCK_SIZE != 0;
    return (blocks < most ? blocks : most) * KV_BLOCK_SIZE;
}

/* With the tokens wished if they fit; else with as many blocks as fit when heads are as even as
 * three quarters of the possible tokens let them be. (The last quarter is bought with columns on
 * some ranks and heads on others, which makes every step wait for both.) */
static bool solve(const struct model_config *c, const struct layout_options *o, struct layout *l,
                  struct layout_fit *f) {
    int64_t most = whole_blocks(o->kv_tokens);
    int64_t least = o->kv_tokens_min > 0 ? whole_blocks(o->kv_tokens_min) : most;
    *f = (struct layout_fit){0};
    if (fits_with(c, o, most, l, f))
        return true;
    if (least >= most || !fits_with(c, o, least, l, f))
        return false;
    fill_up(c, o, least, most, l, f);
    int64_t possible = l->kv_tokens, enough = possible / 4 * 3 / KV_BLOCK_SIZE * KV_BLOCK_SIZE;
    enough = enough > least ? enough : least;
    fits_with(c, o, enough, l, f);
    layout_fit_keep_heads(f);
    fill_up(c, o, enough, possible, l, f);
    return true;
}

/* "rank 3 needs", "ranks 0 to 5 need" and figures, for each run of ranks that miss the same.
 * Returns what all ranks together miss; below 0: what they have to spare. */
static int64_t put_missing(const struct layout *l, const struct layout_fit *f, struct buffer *out) {
    int64_t missing = 0;
    for (int32_t r = 0, end; r < l->world_size; r = end) {
        int64_t load = f->load[r], memory = f->memory[r];
        for (end = r; end < l->world_size && f->memory[end] == memory; end++)
            if ((f->load[end] - load) / 10000000 != 0) /* the figures show 10 MB */
                break;
        missing += (load - memory) * (end - r);
        if (load <= memory)
            continue;
        if (end - r > 1)
            buffer_printf(out, "ranks %d to %d need", r, end - 1);
        else
            buffer_printf(out, "rank %d needs", r);
        buffer_printf(out, " %.2f GB and may use %.2f, %.2f too few; ", (double)load / 1e9,
                      (double)memory / 1e9, (double)(load - memory) / 1e9);
    }
    return missing;
}

/* Would everything but the KV cache fit? */
static bool fits_without_kv(const struct layout *l) {
    for (int32_t r = 0; r < l->world_size; r++) {
        struct layout_bytes b = layout_bytes(l, r);
        if (b.total - b.kv > l->rank[r].memory)
            return false;
    }
    return true;
}

/* What is missing where, in a layout with even heads. */
static int no_memory(const struct model_config *c, const struct layout *l,
                     const struct layout_fit *f, struct error *error) {
    struct buffer text = {0};
    int64_t missing = put_missing(l, f, &text);
    if (missing > 0)
        buffer_printf(&text, "in all %.2f GB too few", (double)missing / 1e9);
    else
        buffer_puts(&text, "in all there is enough, but it cannot be cut finely enough");
    buffer_puts(&text, "; take more GPUs, a higher --gpu-memory-utilization, --embedding host");
    if (!c->fp8)
        buffer_puts(&text, ", an FP8 checkpoint");
    if (fits_without_kv(l))
        buffer_printf(&text,
                      ", or a KV cache of less than %lld tokens (--max-model-len, --max-num-seqs, "
                      "--kv-cache-dtype fp8)",
                      (long long)l->kv_tokens);
    int rc = error_set(error, ERR_NO_MEMORY, "the model does not fit on %d rank%s: %.*s",
                       l->world_size, l->world_size > 1 ? "s" : "", (int)text.len, text.data);
    buffer_deinit(&text);
    return rc;
}

int layout_make(const struct model_config *c, int32_t world_size,
                const struct layout_options *options, struct layout *out, struct error *error) {
    int32_t ep = options->expert_parallel_size ? options->expert_parallel_size : 1;
    struct layout_fit f;
    memset(out, 0, sizeof *out);
    int rc = check_options(world_size, ep, options, error);
    if (rc)
        return rc;
    out->world_size = world_size;
    out->ep_size = ep;
    out->tp_size = world_size / ep;
    out->shared_intermediate_size = options->shared_intermediate_size;
    out->expert_unit = ffn_unit(c, options->min_unit, c->moe_intermediate_size);
    out->ffn_unit = ffn_unit(c, options->min_unit, c->intermediate_size);
    out->shared_unit = ffn_unit(c, options->min_unit, out->shared_intermediate_size);
    out->sizes = layout_sizes_of(c, &options->elements);
    bool fit = solve(c, options, out, &f);
    write_table(c, &f, out);
    return fit ? 0 : no_memory(c, out, &f, error);
}
