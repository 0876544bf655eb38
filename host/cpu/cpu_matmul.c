/* cpu_matmul: y = x W^T, whole or as a float64 partial. Tasks are groups of 64 rows of W; every
 * thread reads its own weights, and each weight once per ROW_CHUNK rows of x. */
#include <string.h>

#include "host/cpu/cpu_backend.h"

struct pack_job {
    struct backend *b;
    const float *x;
    int64_t ldx;
    struct packed out;
    void *data;
};

static void pack_rows(void *arg, int32_t first, int32_t last) {
    const struct pack_job *j = arg;
    const struct packed *p = &j->out;
    for (int32_t c = 0; c < p->cols;) {
        struct segment s = segment_at(p, c);
        for (int32_t r = first; r < last; r++) {
            const float *from = j->x + r * j->ldx + s.col0;
            void *to = (uint32_t *)j->data + s.offset + r * s.ld;
            if (p->pairs)
                j->b->kernels->round_to_pairs(to, from, s.len);
            else
                memcpy(to, from, (size_t)s.len * sizeof *from);
        }
        c += s.len;
    }
}

struct packed cpu_pack(struct backend *b, const float *x, int64_t ldx, int32_t num_rows,
                       int32_t cols, int32_t unit, bool pairs) {
    void *data = pairs ? (void *)b->packed_pairs : (void *)b->packed;
    struct pack_job job = {
        .b = b,
        .x = x,
        .ldx = ldx,
        .out = {.data = data, .num_rows = num_rows, .cols = cols, .unit = unit, .pairs = pairs},
        .data = data,
    };
    cpu_for_rows(b, num_rows, cols, pack_rows, &job);
    return job.out;
}

bool cpu_uses_pairs(const struct backend *b, const struct weight *w) {
    return b->kernels->dot_pairs && w->dtype == DTYPE_BF16;
}

/* The next segment of the same tiles, or the first one of the next; all of MAX_TILES or nothing. */
static void look_ahead(struct dot_args *d, const struct tile_list *next, bool last) {
    size_t done = (size_t)(d->col0 + dot_num_units(d) * d->len + 1) / 2 * tile_pair_bytes(d->dtype);
    d->ahead[0] = NULL;
    if (last ? next->num < MAX_TILES : d->num_tiles < MAX_TILES)
        return;
    for (int32_t t = 0; t < MAX_TILES; t++)
        d->ahead[t] = last ? next->tiles[t] : (const char *)d->tiles[t] + done;
}

/* The end of the block of columns that `col` lies in, where blocks have scales. */
static int32_t block_end(const struct dot_args *d, int32_t col) {
    return d->block_scales[0] ? col + SCALE_COLS - (col + d->block_col0) % SCALE_COLS : INT32_MAX;
}

int32_t cpu_dot_unit(const struct backend *b, struct dot_args *d, const struct tile_list *next,
                     const struct packed *x, int32_t row0, int32_t col) {
    const uint32_t *data = x->data;
    for (;;) {
        struct segment s = segment_at(x, col);
        int32_t segment_end = s.col0 + s.len, block = block_end(d, col);
        int32_t end = block < segment_end ? block : segment_end;
        d->col0 = col;
        d->len = end - col;
        d->x = data + s.offset + row0 * s.ld + (col - s.col0);
        d->ldx = s.ld;
        d->add = !(s.first && col == s.col0);
        look_ahead(d, next, end == x->cols);
        if (x->pairs)
            b->kernels->dot_pairs(d);
        else
            b->kernels->dot(d);
        col = end;
        if (s.last && end == segment_end)
            return col;
    }
}

/* The next units, as many as a call can take: d->num_units. Their sums lie one after the other,
 * num_rows * TILE_GROUP_ROWS apart. */
static int32_t dot_units(const struct backend *b, struct dot_args *d, const struct tile_list *next,
                         const struct packed *x, int32_t row0, int32_t col) {
    struct segment s = segment_at(x, col);
    int32_t block = block_end(d, col), cols = (block < x->cols ? block : x->cols) - col;
    int32_t units = s.first && s.last ? cols / s.len : 1;
    int32_t most = SEGMENT_COLS / s.len < ROW_CHUNK / d->num_rows ? SEGMENT_COLS / s.len
                                                                  : ROW_CHUNK / d->num_rows;
    d->num_units = units < most ? units : most;
    if (d->num_units <= 1) {
        d->num_units = 1;
        return cpu_dot_unit(b, d, next, x, row0, col);
    }
    int32_t end = col + d->num_units * s.len;
    d->col0 = col;
    d->len = s.len;
    d->x = (const uint32_t *)x->data + s.offset + row0 * s.ld;
    d->ldx = s.ld;
    d->x_step = segment_at(x, col + s.len).offset - s.offset;
    d->sums_step = (int64_t)d->num_rows * TILE_GROUP_ROWS;
    d->add = false;
    look_ahead(d, next, end == x->cols);
    if (x->pairs)
        b->kernels->dot_pairs(d);
    else
        b->kernels->dot(d);
    return end;
}

void cpu_add_product(const struct backend *b, const struct scratch *scratch, struct dot_args *d,
                     struct store_args *store, const struct tile_list *next, const struct packed *x,
                     int32_t row0, const struct partial_rows *out) {
    memset(scratch->product, 0, (size_t)d->num_rows * TILE_GROUP_ROWS * sizeof *scratch->product);
    for (int32_t c = 0; c < x->cols;) {
        c = dot_units(b, d, next, x, row0, c);
        store->num_units = d->num_units;
        b->kernels->add_units(store, scratch->product, out->weight);
    }
    b->kernels->add_rows(out->data, out->ld, out->rows, scratch->product, d->num_rows,
                         store->count);
}

struct matmul_job {
    struct backend *b;
    const struct weight *w;
    const float *bias;
    float *y;        /* or NULL: */
    double *partial; /* [T, rows] */
    int64_t ldy;
    struct packed x;
};

/* Rows r0 .. of W times rows [row0, row0 + n) of x. */
static void matmul_group(const struct matmul_job *j, const struct scratch *scratch, int32_t r0,
                         int32_t row0, int32_t n) {
    const struct weight *w = j->w;
    int32_t count = w->rows - r0 < TILE_GROUP_ROWS ? w->rows - r0 : TILE_GROUP_ROWS;
    struct store_args store = {
        .sums = scratch->sums,
        .num_rows = n,
        .count = count,
        .scale = w->row_scale ? w->row_scale + r0 : NULL,
        .factor = tile_scale(w->dtype),
    };
    struct tile_list next;
    struct dot_args d = {
        .dtype = w->dtype,
        .num_rows = n,
        .sums = scratch->sums,
        .lds = TILE_GROUP_ROWS,
        .panel = scratch->panel,
        .finite = true,
    };
    d.num_tiles = cpu_tiles(w, r0, MAX_TILES, d.tiles);
    d.block_col0 = w->block_col0;
    cpu_tile_scales(w, r0, d.num_tiles, d.block_scales);
    next.num =
        cpu_tiles(w, r0 + TILE_GROUP_ROWS * pool_num_threads(j->b->pool), MAX_TILES, next.tiles);
    if (j->partial)
        for (int32_t i = 0; i < n; i++)
            memset(j->partial + (row0 + i) * j->ldy + r0, 0, (size_t)count * sizeof *j->partial);
    else if (w->cols == 0)
        memset(scratch->sums, 0, (size_t)n * TILE_GROUP_ROWS * sizeof *scratch->sums);
    if (j->partial) {
        struct partial_rows out = {.data = j->partial + row0 * j->ldy + r0, .ld = j->ldy};
        cpu_add_product(j->b, scratch, &d, &store, &next, &j->x, row0, &out);
        return;
    }
    for (int32_t c = 0; c < w->cols;)
        c = cpu_dot_unit(j->b, &d, &next, &j->x, row0, c);
    j->b->kernels->store_rows(&store, j->y + row0 * j->ldy + r0, j->ldy,
                              j->bias ? j->bias + r0 : NULL);
}

static void matmul_task(void *arg, int32_t task, int32_t thread) {
    const struct matmul_job *j = arg;
    int32_t T = j->x.num_rows;
    for (int32_t row0 = 0; row0 < T; row0 += ROW_CHUNK)
        matmul_group(j, &j->b->scratch[thread], task * TILE_GROUP_ROWS, row0,
                     T - row0 < ROW_CHUNK ? T - row0 : ROW_CHUNK);
}

static void run_matmul(struct matmul_job *j) {
    const struct weight *w = j->w;
    int32_t groups = (w->rows + TILE_GROUP_ROWS - 1) / TILE_GROUP_ROWS;
    cpu_run(j->b, matmul_task, j, groups, (int64_t)w->rows * w->cols * j->x.num_rows);
}

static void matmul(struct backend *b, float *y, int64_t ldy, const float *x, int64_t ldx,
                   const struct weight *w, const float *bias, int32_t num_tokens, bool pairs) {
    struct matmul_job job = {.b = b, .w = w, .bias = bias, .y = y, .ldy = ldy};
    int32_t unit = w->cols + w->cols % 2; /* one unit, even for BF16 pairs */
    if (num_tokens == 0 || w->rows == 0)
        return;
    job.x = cpu_pack(b, x, ldx, num_tokens, w->cols, unit > 0 ? unit : 2, pairs);
    run_matmul(&job);
}

void cpu_matmul_exact(struct backend *b, float *y, int64_t ldy, const float *x, int64_t ldx,
                      const struct weight *w, const float *bias, int32_t num_tokens) {
    matmul(b, y, ldy, x, ldx, w, bias, num_tokens, false);
}

void cpu_matmul(struct backend *b, void *y, int64_t ldy, const void *x, int64_t ldx,
                const struct weight *w, const float *bias, int32_t num_tokens) {
    matmul(b, y, ldy, x, ldx, w, bias, num_tokens, cpu_uses_pairs(b, w));
}

void cpu_logits(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                const struct weight *w, int32_t num_rows) {
    matmul(b, y, ldy, x, ldx, w, NULL, num_rows, cpu_uses_pairs(b, w));
}

void cpu_matmul_partial(struct backend *b, void *partial, const void *x, int64_t ldx,
                        const struct weight *w, int32_t unit, int32_t num_tokens) {
    struct matmul_job job = {.b = b, .w = w, .partial = partial, .ldy = w->rows};
    CHECK(unit > 0 && unit % 2 == 0, "unit %d: columns are stored in pairs", unit);
    if (num_tokens == 0 || w->rows == 0)
        return;
    job.x = cpu_pack(b, x, ldx, num_tokens, w->cols, unit, cpu_uses_pairs(b, w));
    run_matmul(&job);
}
