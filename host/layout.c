#include "layout.h"

#include <string.h>

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
static int32_t ffn_unit(const struct model_config *c, int32_t columns) {
    int32_t unit = layout_unit(columns);
    bool blocks = c->fp8 && c->fp8_scaling == FP8_BLOCK;
    return blocks && unit < MIN_BLOCK_SCALED_UNIT ? MIN_BLOCK_SCALED_UNIT : unit;
}

/* Part `index` of `columns` columns cut at multiples of `unit`; the last unit may be short. */
static struct range split_columns(int32_t columns, int32_t unit, int32_t parts, int32_t index) {
    struct range r = layout_split((columns + unit - 1) / unit, parts, index);
    int32_t first = r.first * unit, end = (r.first + r.count) * unit;
    if (end > columns)
        end = columns;
    return (struct range){.first = r.count ? first : 0, .count = r.count ? end - first : 0};
}

/* Whole KV groups when there are enough of them, else query heads with replicated KV heads. */
static void split_heads(const struct model_config *c, int32_t world_size, int32_t r,
                        struct rank_layout *out) {
    int32_t group = c->num_attention_heads / c->num_key_value_heads;
    if (c->num_key_value_heads >= world_size) {
        out->kv_heads = layout_split(c->num_key_value_heads, world_size, r);
        out->q_heads = (struct range){out->kv_heads.first * group, out->kv_heads.count * group};
    } else {
        out->q_heads = layout_split(c->num_attention_heads, world_size, r);
        int32_t end = out->q_heads.first + out->q_heads.count;
        out->kv_heads.first = out->q_heads.first / group;
        out->kv_heads.count = out->q_heads.count ? (end - 1) / group + 1 - out->kv_heads.first : 0;
    }
}

int layout_make(const struct model_config *c, int32_t world_size,
                const struct layout_options *options, struct layout *out, struct error *error) {
    int32_t ep = options->expert_parallel_size ? options->expert_parallel_size : 1, counted = 0;
    memset(out, 0, sizeof *out);
    if (world_size < 1 || world_size > MAX_RANKS)
        return error_set(error, ERR_CONFIG, "--ranks %d: expected 1 to %d", world_size, MAX_RANKS);
    if (ep < 1 || world_size % ep != 0)
        return error_set(error, ERR_CONFIG,
                         "--expert-parallel-size %d: expected a divisor of --ranks %d", ep,
                         world_size);
    out->world_size = world_size;
    out->ep_size = ep;
    out->tp_size = world_size / ep;
    out->expert_unit = ffn_unit(c, c->moe_intermediate_size);
    out->ffn_unit = ffn_unit(c, c->intermediate_size);
    for (int32_t r = 0; r < world_size; r++) {
        struct rank_layout *l = &out->rank[r];
        split_heads(c, world_size, r, l);
        int32_t end = l->kv_heads.first + l->kv_heads.count;
        int32_t first = l->kv_heads.first > counted ? l->kv_heads.first : counted;
        l->kv_counted = (struct range){first, end > first ? end - first : 0};
        counted = end > counted ? end : counted;
        l->experts = layout_split(c->router.num_experts, ep, r / out->tp_size);
        l->expert_columns = split_columns(c->moe_intermediate_size, out->expert_unit, out->tp_size,
                                          r % out->tp_size);
        l->ffn_columns = split_columns(c->intermediate_size, out->ffn_unit, world_size, r);
        l->vocab = layout_split(c->vocab_size, world_size, r);
    }
    return 0;
}

static void put_range(struct buffer *out, struct range r) {
    if (r.count == 0)
        buffer_puts(out, "none");
    else
        buffer_printf(out, "%d..%d", r.first, r.first + r.count - 1);
}

void layout_describe(const struct layout *l, const struct model_config *c, struct buffer *out) {
    for (int32_t r = 0; r < l->world_size; r++) {
        const struct rank_layout *k = &l->rank[r];
        buffer_printf(out, "  rank %-2d     heads ", r);
        put_range(out, k->q_heads);
        buffer_puts(out, ", KV heads ");
        put_range(out, k->kv_heads);
        if (c->router.num_experts > 0) {
            buffer_puts(out, ", experts ");
            put_range(out, k->experts);
            buffer_puts(out, " columns ");
            put_range(out, k->expert_columns);
        }
        if (c->intermediate_size > 0) {
            buffer_puts(out, ", FFN columns ");
            put_range(out, k->ffn_columns);
        }
        buffer_puts(out, ", vocabulary ");
        put_range(out, k->vocab);
        buffer_putc(out, '\n');
    }
}
