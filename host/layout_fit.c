#include "layout_fit.h"

#include <stdlib.h>
#include <string.h>

#include "host/mem.h"

/* ---- units of one kind ----------------------------------------------------------------------- */

/* Bytes against memory; where no limit is known all ranks count alike. */
static double share(const struct layout_fit *f, int32_t rank, int64_t bytes) {
    return (double)bytes / (f->memory[rank] > 0 ? (double)f->memory[rank] : 1.0);
}

/* Units that bring a rank with this load to the share `level`, `most` at most. */
static int32_t units_below(const struct layout_fit *f, int32_t rank, int64_t load, int64_t bytes,
                           double level, int32_t most) {
    double room = level * (f->memory[rank] > 0 ? (double)f->memory[rank] : 1.0) - (double)load;
    double units = room / (double)bytes;
    return units <= 0 ? 0 : units >= most ? most : (int32_t)units;
}

/* A share up to which the ranks can be filled alike with at most `count` units, as high as it goes
 * but for rounding. */
static double common_level(const struct layout_fit *f, struct range ranks, int32_t count,
                           int64_t bytes, const int64_t *load) {
    enum { HALVINGS = 60 };
    double low = 0, high = share(f, ranks.first, load[ranks.first] + count * bytes);
    for (int i = 0; i < HALVINGS; i++) {
        double middle = (low + high) / 2;
        int64_t units = 0;
        for (int32_t r = ranks.first; r < ranks.first + ranks.count; r++)
            units += units_below(f, r, load[r], bytes, middle, count);
        if (units <= count)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Gives `count` units of `bytes` bytes to a range of ranks, each to the rank that is least full
 * afterwards, the lowest of equals. To be quick with vocabularies, what every rank gets up to a
 * common level is given at once. load[] and out[] are indexed by rank. */
static void give(const struct layout_fit *f, struct range ranks, int32_t count, int64_t bytes,
                 int64_t *load, int32_t *out) {
    if (bytes == 0) { /* nothing is known of them */
        for (int32_t i = 0; i < ranks.count; i++)
            out[ranks.first + i] = layout_split(count, ranks.count, i).count;
        return;
    }
    double level = common_level(f, ranks, count, bytes, load);
    int32_t left = count, end = ranks.first + ranks.count;
    for (int32_t r = ranks.first; r < end; r++) {
        out[r] = units_below(f, r, load[r], bytes, level, left);
        load[r] += out[r] * bytes;
        left -= out[r];
    }
    for (; left > 0; left--) {
        int32_t best = ranks.first;
        for (int32_t r = best + 1; r < end; r++)
            if (share(f, r, load[r] + bytes) < share(f, best, load[best] + bytes))
                best = r;
        out[best]++;
        load[best] += bytes;
    }
}

/* Room for units below a level, but not less than `given`, which rounding may have hidden. */
static int32_t room_below(const struct layout_fit *f, int32_t rank, int64_t bytes, double level,
                          int32_t given, int32_t most) {
    int32_t units = units_below(f, rank, f->load[rank], bytes, level, most);
    return units > given ? units : given;
}

/* The same as give for the last kind, of which no finer one has to even anything out: as evenly as
 * it goes without a share above the largest that give comes to. */
static void give_evenly(struct layout_fit *f, int32_t count, int64_t bytes, int32_t *out) {
    struct range all = {0, f->world_size};
    int64_t load[MAX_RANKS];
    int32_t room[MAX_RANKS] = {0}, left = count;
    double level = 0;
    memcpy(load, f->load, sizeof load);
    give(f, all, count, bytes, load, out);
    for (int32_t r = 0; r < f->world_size; r++)
        level = share(f, r, load[r]) > level ? share(f, r, load[r]) : level;
    for (int32_t r = 0; r < f->world_size && bytes > 0; r++) {
        room[r] = room_below(f, r, bytes, level, out[r], count);
        out[r] = 0;
    }
    while (left > 0 && bytes > 0) {
        int32_t open = 0;
        for (int32_t r = 0; r < f->world_size; r++)
            open += room[r] > out[r];
        for (int32_t r = 0, part = left / open > 0 ? left / open : 1; r < f->world_size; r++) {
            int32_t take = room[r] - out[r] < part ? room[r] - out[r] : part;
            take = take < left ? take : left;
            out[r] += take;
            left -= take;
        }
    }
    for (int32_t r = 0; r < f->world_size; r++)
        f->load[r] += out[r] * bytes;
}

/* ---- experts --------------------------------------------------------------------------------- */

static struct range group_ranks(const struct layout_fit *f, int32_t group) {
    return (struct range){group * f->tp_size, f->tp_size};
}

/* The largest share in a group with `experts` experts, their columns spread best over its ranks. */
static double group_share(const struct layout_fit *f, int32_t group, int32_t experts) {
    struct range ranks = group_ranks(f, group);
    int64_t load[MAX_RANKS];
    int32_t columns[MAX_RANKS];
    double most = 0;
    memcpy(load, f->load, sizeof load);
    give(f, ranks, f->expert_units, experts * f->expert_unit_bytes, load, columns);
    for (int32_t r = ranks.first; r < ranks.first + ranks.count; r++)
        most = share(f, r, load[r]) > most ? share(f, r, load[r]) : most;
    return most;
}

/* Each expert to the group whose fullest rank is least full afterwards (shares only grow with the
 * number of experts, so the argument for units holds). Then columns inside groups. */
static void give_experts(struct layout_fit *f) {
    double with_one_more[MAX_RANKS];
    bool choose = f->expert_unit_bytes > 0 && f->ep_size > 1;
    for (int32_t g = 0; g < f->ep_size; g++) {
        f->experts[g] = choose ? 0 : layout_split(f->num_experts, f->ep_size, g).count;
        with_one_more[g] = choose ? group_share(f, g, 1) : 0;
    }
    for (int32_t e = 0; e < f->num_experts && choose; e++) {
        int32_t best = 0;
        for (int32_t g = 1; g < f->ep_size; g++)
            best = with_one_more[g] < with_one_more[best] ? g : best;
        f->experts[best]++;
        with_one_more[best] = group_share(f, best, f->experts[best] + 1);
    }
    for (int32_t g = 0; g < f->ep_size; g++)
        give(f, group_ranks(f, g), f->expert_units, f->experts[g] * f->expert_unit_bytes, f->load,
             f->columns);
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Whole KV groups when there are enough of them, else query heads with replicated KV heads. */
static int32_t heads_per_unit(const struct layout_fit *f) {
    return f->num_kv_heads >= f->world_size ? f->num_q_heads / f->num_kv_heads : 1;
}

struct range layout_fit_kv_heads(const struct layout_fit *f, int32_t first, int32_t count) {
    int32_t group = f->num_q_heads / f->num_kv_heads, kv = first / group;
    return (struct range){kv, count ? (first + count - 1) / group + 1 - kv : 0};
}

static int64_t attention_bytes(const struct layout_fit *f, int32_t first, int32_t count) {
    return count * f->q_head_bytes + layout_fit_kv_heads(f, first, count).count * f->kv_head_bytes;
}

/* Everything but heads, given the heads: coarse units first, so that finer ones even them out. */
static void give_rest(struct layout_fit *f) {
    struct range all = {0, f->world_size};
    for (int32_t r = 0, at = 0; r < f->world_size; at += f->q_heads[r++])
        f->load[r] = f->spent[r] + attention_bytes(f, at, f->q_heads[r]);
    bool ffn_is_coarser = f->ffn_unit_bytes > f->expert_unit_bytes * f->num_experts / f->ep_size;
    if (!ffn_is_coarser)
        give_experts(f);
    give(f, all, f->ffn_units, f->ffn_unit_bytes, f->load, f->ffn);
    if (ffn_is_coarser)
        give_experts(f);
    give(f, all, f->shared_units, f->shared_unit_bytes, f->load, f->shared);
    give_evenly(f, f->vocab_rows, f->vocab_row_bytes, f->vocab);
}

static bool fits(const struct layout_fit *f) {
    for (int32_t r = 0; r < f->world_size; r++)
        if (f->memory[r] > 0 && f->load[r] > f->memory[r])
            return false;
    return true;
}

static void split_evenly(struct layout_fit *f) {
    int32_t per_unit = heads_per_unit(f);
    for (int32_t r = 0; r < f->world_size; r++)
        f->q_heads[r] = per_unit * layout_split(f->num_q_heads / per_unit, f->world_size, r).count;
    give_rest(f);
}

/* The coarsest units besides heads: bytes of one on a rank, and how many there are. */
static int64_t coarsest(const struct layout_fit *f, int32_t *count) {
    int64_t experts = (f->num_experts + f->ep_size - 1) / f->ep_size;
    int64_t bytes =
        f->tp_size == 1 ? f->expert_units * f->expert_unit_bytes : experts * f->expert_unit_bytes;
    *count = f->tp_size == 1 ? f->num_experts : f->expert_units * f->ep_size;
    if (f->ffn_unit_bytes > bytes) {
        *count = f->ffn_units;
        return f->ffn_unit_bytes;
    }
    return bytes;
}

/* best[r][p]: the worth of the best split of units p.. over ranks r.., IMPOSSIBLE if there is none;
 * take[r][p]: what rank r gets in it. */
struct head_table {
    int64_t best[MAX_RANKS + 1][MAX_HEADS + 1];
    int16_t take[MAX_RANKS][MAX_HEADS + 1];
};
#define IMPOSSIBLE INT64_MIN

/* What a rank's share is worth: above all room for the coarsest other units, then few copies of KV
 * heads (where they are replicated), then even heads; a step of each outweighs all that comes after
 * it, over all ranks together. IMPOSSIBLE where the heads alone are too much. */
static int64_t worth(const struct layout_fit *f, int32_t rank, int32_t first, int32_t units) {
    const int64_t SQUARES = (int64_t)MAX_RANKS * MAX_HEADS * MAX_HEADS + 1;
    const int64_t COPIES = MAX_RANKS + MAX_HEADS;
    int32_t per_unit = heads_per_unit(f), count;
    int64_t bytes = coarsest(f, &count);
    int64_t room =
        f->memory[rank] - f->spent[rank] - attention_bytes(f, first * per_unit, units * per_unit);
    if (room < 0)
        return IMPOSSIBLE;
    int64_t others = bytes == 0 ? 0 : room / bytes < count ? room / bytes : count;
    int64_t copies = layout_fit_kv_heads(f, first * per_unit, units * per_unit).count;
    return (others * COPIES - copies) * SQUARES - (int64_t)units * units;
}

static int32_t num_head_units(const struct layout_fit *f) {
    return f->num_q_heads / heads_per_unit(f);
}

static void fill_row(const struct layout_fit *f, struct head_table *t, int32_t rank, int32_t fewest,
                     int32_t most) {
    int32_t num_units = num_head_units(f);
    for (int32_t p = 0; p <= num_units; p++) {
        t->best[rank][p] = IMPOSSIBLE;
        for (int32_t n = most < num_units - p ? most : num_units - p; n >= fewest; n--) {
            int64_t after = t->best[rank + 1][p + n];
            int64_t here = after == IMPOSSIBLE ? IMPOSSIBLE : worth(f, rank, p, n);
            if (here == IMPOSSIBLE || here + after <= t->best[rank][p])
                continue;
            t->best[rank][p] = here + after;
            t->take[rank][p] = (int16_t)n;
        }
    }
}

/* The best split of heads with `fewest` to `most` units a rank, and all else on top of it; false
 * when it does not fit. */
static bool split_within(struct layout_fit *f, struct head_table *t, int32_t fewest, int32_t most) {
    int32_t num_units = num_head_units(f);
    for (int32_t p = 0; p <= num_units; p++)
        t->best[f->world_size][p] = p == num_units ? 0 : IMPOSSIBLE;
    for (int32_t r = f->world_size - 1; r >= 0; r--)
        fill_row(f, t, r, fewest, most);
    if (t->best[0][0] == IMPOSSIBLE)
        return false;
    for (int32_t r = 0, p = 0; r < f->world_size; p += t->take[r++][p])
        f->q_heads[r] = t->take[r][p] * heads_per_unit(f);
    give_rest(f);
    return fits(f);
}

/* The most even split that fits, with fewest..most units a rank; false when there is none. */
static bool split_most_evenly(struct layout_fit *f, struct head_table *t, int32_t fewest,
                              int32_t most) {
    int32_t num_units = num_head_units(f), n = f->world_size;
    int32_t low = (num_units + n - 1) / n, high = most;
    if (!split_within(f, t, fewest, most))
        return false;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (split_within(f, t, fewest, middle))
            high = middle;
        else
            low = middle + 1;
    }
    most = high;
    low = fewest, high = num_units / n;
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (split_within(f, t, middle, most))
            low = middle;
        else
            high = middle - 1;
    }
    return split_within(f, t, low, most);
}

bool layout_fit_solve(struct layout_fit *f) {
    split_evenly(f);
    if (fits(f))
        return true;
    struct head_table *t = xmalloc(sizeof *t);
    int32_t per_unit = heads_per_unit(f);
    int32_t most = f->most_heads > 0 ? f->most_heads / per_unit : num_head_units(f);
    bool found = split_most_evenly(f, t, f->fewest_heads / per_unit, most);
    if (!found)
        split_evenly(f);
    free(t);
    return found;
}

void layout_fit_keep_heads(struct layout_fit *f) {
    f->fewest_heads = f->most_heads = f->q_heads[0];
    for (int32_t r = 1; r < f->world_size; r++) {
        int32_t heads = f->q_heads[r];
        f->fewest_heads = heads < f->fewest_heads ? heads : f->fewest_heads;
        f->most_heads = heads > f->most_heads ? heads : f->most_heads;
    }
}
