/* attention_impl: softmax(scale q k^T) v over one partition of PARTITION_KEYS keys, and the merge
 * of partitions. Included by each kernels_<isa>.c after dot_impl.h and row_impl.h.
 *
 * Partitions start at multiples of PARTITION_KEYS of the position, whatever the chunk, batch or
 * window, so that a row's bits depend on its own context alone. Keys that a row does not see get
 * the probability 0; adding 0 changes no bits, so it does not matter which other rows share the
 * pass. Scores: a block's keys are one tile, its lanes the block's 16 tokens. Output: a block's
 * values are tiles whose columns are the tokens; only the columns of tokens that some row sees are
 * read.
 */
#pragma once

#include "host/cpu/kernels.h"

/* The keys that some row of the pass sees, cut to the partition. */
static inline void attend_range(const struct attend_args *a, int32_t p, int32_t *first,
                                int32_t *last) {
    int32_t begin = p * PARTITION_KEYS, end = begin + PARTITION_KEYS;
    *first = end;
    *last = begin;
    for (int32_t r = 0; r < a->num_rows; r++) {
        *first = a->first[r] < *first ? a->first[r] : *first;
        *last = a->last[r] > *last ? a->last[r] : *last;
    }
    *first = *first > begin ? *first : begin;
    *last = *last < end ? *last : end;
}

static inline int32_t clamp_lane(int32_t i) {
    return i < 0 ? 0 : i > TILE_ROWS ? TILE_ROWS : i;
}

/* scores[r][key - begin] for the blocks that hold keys [first, last), MAX_TILES blocks at once. */
static void attend_scores(const struct attend_args *a, int32_t begin, int32_t first, int32_t last) {
    struct dot_args d = {
        .dtype = a->dtype,
        .len = 0,
        .x = a->q,
        .ldx = a->head_dim,
        .num_rows = a->num_rows,
        .lds = PARTITION_KEYS,
        .panel = a->panel,
    };
    for (int32_t b = first / TILE_ROWS; b * TILE_ROWS < last; b += d.num_tiles) {
        d.num_tiles = 0;
        while (d.num_tiles < MAX_TILES && (b + d.num_tiles) * TILE_ROWS < last) {
            d.tiles[d.num_tiles] = a->keys + (size_t)a->blocks[b + d.num_tiles] * a->block_bytes;
            d.num_tiles++;
        }
        d.sums = a->scores + (b * TILE_ROWS - begin);
        for (d.col0 = 0; d.col0 < a->head_dim; d.col0 += SEGMENT_COLS) {
            d.len = a->head_dim - d.col0 < SEGMENT_COLS ? a->head_dim - d.col0 : SEGMENT_COLS;
            d.x = a->q + d.col0;
            d.add = d.col0 > 0;
            dot(&d);
        }
    }
}

/* Turns row r's scores into probabilities relative to their maximum. */
static void attend_softmax(const struct attend_args *a, int32_t r, int32_t begin, int32_t first,
                           int32_t last, struct attend_sums *out) {
    float *row = a->scores + (int64_t)r * PARTITION_KEYS - begin;
    const v16 hidden = v16_set1(-INFINITY);
    v16 scale = v16_set1(a->scale * tile_scale(a->dtype)), max = hidden, sum = v16_set1(0);
    int32_t block0 = first / TILE_ROWS * TILE_ROWS;
    for (int32_t k = block0; k < last; k += TILE_ROWS) {
        v16 s = v16_mul(v16_load(row + k), scale);
        if (k < a->first[r] || k + TILE_ROWS > a->last[r])
            s = v16_select(clamp_lane(a->first[r] - k), clamp_lane(a->last[r] - k), s, hidden);
        max = v16_max(max, s);
        v16_store(row + k, s);
    }
    out->max[r] = v16_largest(max);
    v16 m = v16_set1(out->max[r] == -INFINITY ? 0 : out->max[r]);
    for (int32_t k = block0; k < last; k += TILE_ROWS) {
        v16 p = v16_exp(v16_sub(v16_load(row + k), m));
        sum = v16_add(sum, p);
        v16_store(row + k, p);
    }
    out->sum[r] = v16_sum(sum);
}

/* out[r] = sum of p v over the keys [first, last), one chain through the blocks. It starts at a
 * block: the keys before `first` have p = 0. */
static void attend_values(const struct attend_args *a, int32_t begin, int32_t first, int32_t last,
                          float *out) {
    size_t tile = tile_bytes(a->dtype, TILE_ROWS), runs[PARTITION_KEYS / TILE_ROWS];
    int32_t num_tiles = attend_width(a->head_dim) / TILE_ROWS, block0 = first / TILE_ROWS;
    struct dot_args d = {
        .dtype = a->dtype,
        .len = last - block0 * TILE_ROWS,
        .runs = runs,
        .x = a->scores + (block0 * TILE_ROWS - begin),
        .ldx = PARTITION_KEYS,
        .num_rows = a->num_rows,
        .lds = attend_width(a->head_dim),
        .panel = a->panel,
    };
    for (int32_t b = block0; b * TILE_ROWS < last; b++)
        runs[b - block0] = (size_t)a->blocks[b] * a->block_bytes;
    for (int32_t t = 0; t < num_tiles; t += d.num_tiles) {
        d.num_tiles = num_tiles - t < MAX_TILES ? num_tiles - t : MAX_TILES;
        for (int32_t i = 0; i < d.num_tiles; i++)
            d.tiles[i] = a->values + (size_t)(t + i) * tile;
        d.sums = out + t * TILE_ROWS;
        dot(&d);
    }
}

static void attend_partition(const struct attend_args *a, int32_t p, struct attend_sums *out) {
    int32_t begin = p * PARTITION_KEYS, first, last;
    attend_range(a, p, &first, &last);
    if (first >= last) {
        for (int32_t r = 0; r < a->num_rows; r++) {
            out->max[r] = -INFINITY;
            out->sum[r] = 0;
        }
        return;
    }
    attend_scores(a, begin, first, last);
    for (int32_t r = 0; r < a->num_rows; r++)
        attend_softmax(a, r, begin, first, last, out);
    attend_values(a, begin, first, last, out->out);
    float scale = tile_scale(a->dtype);
    if (scale != 1)
        for (int64_t i = 0; i < (int64_t)a->num_rows * attend_width(a->head_dim); i++)
            out->out[i] *= scale;
}

/* A row without a visible key. A NaN among its scores may leave the maximum at -INFINITY too, but
 * not the sum at 0. */
static inline bool saw_nothing(const struct attend_sums *s, int32_t r) {
    return s->max[r] == -INFINITY && s->sum[r] == 0;
}

static void attend_merge(struct attend_sums *into, const struct attend_sums *from, int32_t num_rows,
                         int32_t head_dim) {
    int32_t width = attend_width(head_dim);
    for (int32_t r = 0; r < num_rows; r++) {
        float *restrict o = into->out + (int64_t)r * width;
        const float *restrict f = from->out + (int64_t)r * width;
        if (saw_nothing(from, r))
            continue;
        if (saw_nothing(into, r)) {
            into->max[r] = from->max[r];
            into->sum[r] = from->sum[r];
            memcpy(o, f, (size_t)width * sizeof *o);
            continue;
        }
        float max = into->max[r] > from->max[r] ? into->max[r] : from->max[r];
        float keep = exp_one(into->max[r] - max), add = exp_one(from->max[r] - max);
        into->max[r] = max;
        into->sum[r] = into->sum[r] * keep + from->sum[r] * add;
        for (int32_t d = 0; d < width; d++)
            o[d] = o[d] * keep + f[d] * add;
    }
}
