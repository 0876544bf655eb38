/* Partials in sums over units: the parts of a matrix or of experts that ranks would hold, added in
 * float64 in any order, are the bits of the whole.
 *
 * Float32 sums of random numbers differ by less than 2^29, so that their float64 sums are exact
 * (host/ops.h); what the tests compare are the float64 numbers themselves.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/gpu_moe.h"

enum { MAX_T = 200, MAX_PARTS = 8, GAP = 3 };
static const int32_t token_counts[] = {1, 7, 33, 64, 65, 200};
static const int32_t part_counts[] = {1, 2, 3, 5, 8};
#define NUM(array) ((int32_t)(sizeof(array) / sizeof *(array)))

/* Columns [first[i], first[i + 1]) of part i: uneven, at units, some may be empty. */
struct cuts {
    int32_t num, first[MAX_PARTS + 1];
};

static struct cuts random_cuts(struct rng *r, int32_t parts, int32_t cols, int32_t unit) {
    int32_t units = (cols + unit - 1) / unit;
    struct cuts c = {.num = parts};
    for (int32_t i = 1; i < parts; i++) {
        int32_t at = rng_below(r, units + 1), j = i;
        for (; j > 1 && c.first[j - 1] > at; j--)
            c.first[j] = c.first[j - 1];
        c.first[j] = at;
    }
    for (int32_t i = 1; i < parts; i++)
        c.first[i] = c.first[i] * unit < cols ? c.first[i] * unit : cols;
    c.first[parts] = cols;
    return c;
}

static void random_order(struct rng *r, int32_t order[MAX_PARTS], int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        int32_t j = rng_below(r, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

/* ---- dense products -------------------------------------------------------------------------- */

struct product {
    const struct gpu_weight_type *type;
    enum weight_layout layout;
    struct gpu_matrix w;
    int32_t unit;
    int64_t ldx;
    float *x;                 /* [MAX_T, ldx]; FP8 activations: what they stand for */
    struct gpu_f8_rows codes; /* of whole rows, as the parts take theirs from */
    bf16 *device_x;
};

static struct product product_random(struct rng *r, const struct gpu_weight_type *type,
                                     enum weight_layout layout, const int32_t shape[3],
                                     int32_t extra) {
    struct product p = {.type = type, .layout = layout, .unit = shape[2]};
    p.ldx = shape[1] + extra;
    p.w = gpu_matrix_random(r, type, layout, shape[0], shape[1]);
    p.x = random_floats(r, MAX_T * p.ldx, 2);
    round_to_bf16(p.x, MAX_T * p.ldx);
    p.device_x = gpu_upload_bf16(p.x, MAX_T * p.ldx);
    if (type->xq)
        p.codes = gpu_f8_rows_of(p.x, MAX_T, shape[1]);
    return p;
}

static void product_free(struct product *p) {
    gpu_matrix_free(&p->w);
    gpu_f8_rows_free(&p->codes);
    gpu_free(p->device_x);
    free(p->x);
}

/* FP8 activations of columns [col0, col0 + cols), on the device. */
static uint8_t *codes_of(const struct product *p, int32_t col0, int32_t cols) {
    int64_t from = f8_stride(p->w.cols), to = f8_stride(cols);
    uint8_t *codes = xcalloc((size_t)(MAX_T * to), 1);
    for (int32_t t = 0; t < MAX_T; t++)
        memcpy(codes + t * to, p->codes.codes + t * from + col0, (size_t)cols);
    uint8_t *device = gpu_upload(codes, (size_t)(MAX_T * to));
    free(codes);
    return device;
}

/* The partial [T, rows + GAP] of columns [col0, col0 + cols), fetched. */
static double *run_part(const struct product *p, int32_t col0, int32_t cols, int32_t T, bool tile) {
    struct gpu_matrix w = gpu_matrix_part(&p->w, p->layout, 0, p->w.rows, col0, cols);
    int64_t ldy = w.rows + GAP;
    double *y = gpu_alloc((size_t)(T * ldy) * sizeof *y);
    struct dense_args a = {
        .ldy = ldy,
        .x = p->device_x + col0,
        .ldx = p->ldx,
        .weight = w.data,
        .layout = p->layout,
        .dtype = p->type->dtype,
        .weight_scale = w.scale,
        .scale = p->type->scale,
        .block_col0 = w.type.block_col0,
        .rows = w.rows,
        .cols = cols,
        .num_tokens = T,
        .gpu = gpu_test_info(),
    };
    if (p->type->xq) {
        a.xq = codes_of(p, col0, cols);
        a.xq_scale = gpu_upload(p->codes.scale, MAX_T * sizeof(float));
    }
    if (tile && p->unit % FRAGMENT_COLS == 0 && dense_tile_takes(&a))
        dense_units_tile_launch(y, &a, p->unit, gpu_stream());
    else
        dense_units_launch(y, &a, p->unit, gpu_stream());
    double *got = gpu_fetch(y, (size_t)(T * ldy) * sizeof *y);
    gpu_free(y);
    gpu_free((void *)(uintptr_t)a.xq);
    gpu_free((void *)(uintptr_t)a.xq_scale);
    gpu_matrix_free(&w);
    return got;
}

static void describe_product(char out[160], const struct product *p, int32_t T) {
    snprintf(out, 160, "%s, layout %d, %d x %d in units of %d, T %d (seed %llu)", p->type->name,
             p->layout, p->w.rows, p->w.cols, p->unit, T, (unsigned long long)ops_test_seed());
}

/* Rows of both [T, rows + GAP], without their gaps. */
static void same_partials(const struct product *p, const char *what, const double *got,
                          const double *want, int32_t T) {
    char text[160];
    int64_t ld = p->w.rows + GAP;
    describe_product(text, p, T);
    for (int64_t i = 0; i < T * ld; i++)
        if (i % ld < p->w.rows && memcmp(&got[i], &want[i], sizeof *got) != 0)
            return FAIL("%s: %s: row %lld, column %lld is %.17g, not %.17g", text, what,
                        (long long)(i / ld), (long long)(i % ld), got[i], want[i]);
}

/* The whole against sums in float64, and that the gaps are as they were. */
static void check_whole(const struct product *p, const double *y, int32_t T) {
    int32_t rows = p->w.rows;
    double *want = xcalloc((size_t)rows, sizeof *want), *size = xcalloc((size_t)rows, sizeof *size);
    char text[160];
    describe_product(text, p, T);
    for (int32_t t = 0; t < T && !shim_failed(); t++) {
        gpu_matrix_times(&p->w, p->x + t * p->ldx, want, size);
        const double *row = y + (int64_t)t * (rows + GAP);
        for (int32_t i = 0; i < rows && !shim_failed(); i++)
            if (!(fabs(row[i] - want[i]) <= (size[i] + 1e-9) * gpu_sum_error(p->type)))
                FAIL("%s: y[%d, %d] is %g, not %g", text, t, i, row[i], want[i]);
        for (int32_t i = rows; i < rows + GAP; i++)
            EXPECT_TRUE(isnan(row[i]));
    }
    free(want);
    free(size);
}

static void check_parts(struct rng *r, const struct product *p, const double *whole, int32_t T,
                        int32_t parts) {
    struct cuts cuts = random_cuts(r, parts, p->w.cols, p->unit);
    int32_t order[MAX_PARTS];
    size_t n = (size_t)T * (size_t)(p->w.rows + GAP);
    double *sum = xcalloc(n, sizeof *sum);
    random_order(r, order, parts);
    for (int32_t i = 0; i < parts; i++) {
        int32_t first = cuts.first[order[i]], cols = cuts.first[order[i] + 1] - first;
        double *part = cols > 0 ? run_part(p, first, cols, T, rng_below(r, 2)) : NULL;
        for (size_t j = 0; part && j < n; j++)
            sum[j] += part[j];
        free(part);
    }
    same_partials(p, "parts", sum, whole, T);
    free(sum);
}

/* {rows, columns, unit}: a last unit that is short, fewer units than warps, units that are not
 * those of scales. */
static const int32_t dense_shapes[][3] = {{35, 472, 64}, {50, 416, 32}, {67, 584, 128}};

static void check_product(struct rng *r, const struct gpu_weight_type *type,
                          enum weight_layout layout, const int32_t shape[3], int32_t extra) {
    struct product p = product_random(r, type, layout, shape, extra);
    double *whole = run_part(&p, 0, p.w.cols, MAX_T, false);
    check_whole(&p, whole, MAX_T);
    for (int32_t i = 0; i < NUM(token_counts) && !shim_failed(); i++) {
        int32_t T = token_counts[i];
        for (int tile = 0; tile < 2; tile++) {
            double *y = run_part(&p, 0, p.w.cols, T, tile);
            same_partials(&p, tile ? "tiles" : "streaming", y, whole, T);
            free(y);
        }
        check_parts(r, &p, whole, T, part_counts[i % NUM(part_counts)]);
    }
    free(whole);
    product_free(&p);
}

TEST(CudaUnits, PartsOfAMatrixAddUpToTheWhole) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (int32_t s = 0; s < NUM(dense_shapes); s++) {
            const struct gpu_weight_type *type = &gpu_weight_types[k];
            struct rng r = rng_seeded(600 + (uint64_t)s);
            check_product(&r, type, LAYOUT_FRAGMENTS, dense_shapes[s], 0);
            if (type->dtype == DTYPE_BF16)
                check_product(&r, type, LAYOUT_ROWS, dense_shapes[s], 8);
        }
}

/* Rows of x that are not aligned, and a number of columns that is odd. */
TEST(CudaUnits, PartsOfAnOddMatrixAddUpToTheWhole) {
    GPU_OR_SKIP();
    static const int32_t shape[3] = {17, 155, 32};
    for (int k = 0; k < gpu_num_weight_types() && !gpu_weight_types[k].xq; k++) {
        struct rng r = rng_seeded(610);
        check_product(&r, &gpu_weight_types[k], LAYOUT_FRAGMENTS, shape, 2);
    }
}

/* Units that are not whole tiles: of heads whose width is not made for tensor cores. */
TEST(CudaUnits, UnitsOfAnyWidthAddUpToTheWhole) {
    GPU_OR_SKIP();
    static const int32_t shapes[][3] = {{17, 330, 7}, {19, 155, 20}, {21, 392, 80}};
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        const struct gpu_weight_type *type = &gpu_weight_types[k];
        struct rng r = rng_seeded(630);
        if (type->xq || type->scale == SCALE_BLOCK) /* whose parts begin at multiples of 32 */
            continue;
        check_product(&r, type, LAYOUT_FRAGMENTS, shapes[k % NUM(shapes)], k);
        if (type->dtype == DTYPE_BF16)
            check_product(&r, type, LAYOUT_ROWS, shapes[(k + 2) % NUM(shapes)], 8);
    }
}

/* With scales of blocks of columns, which end within units. */
TEST(CudaUnits, UnitsOfAnyWidthHaveTheScalesOfTheirBlocks) {
    enum { T = 9 };
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        static const int32_t shape[3] = {18, 472, 80};
        struct rng r = rng_seeded(640);
        if (gpu_weight_types[k].xq || gpu_weight_types[k].scale != SCALE_BLOCK)
            continue;
        struct product p = product_random(&r, &gpu_weight_types[k], LAYOUT_FRAGMENTS, shape, 0);
        double *whole = run_part(&p, 0, p.w.cols, T, false);
        check_whole(&p, whole, T);
        double *left = run_part(&p, 0, 160, T, false);
        double *right = run_part(&p, 160, p.w.cols - 160, T, false);
        for (int64_t i = 0; i < T * (int64_t)(p.w.rows + GAP); i++)
            left[i] += right[i];
        same_partials(&p, "parts", left, whole, T);
        free(left);
        free(right);
        free(whole);
        product_free(&p);
    }
}

/* A part of one unit is a float32 number, and the whole is their sum in float64. */
TEST(CudaUnits, AUnitIsRoundedToFloat32) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        const struct gpu_weight_type *type = &gpu_weight_types[k];
        static const int32_t shape[3] = {33, 200, 32};
        struct rng r = rng_seeded(620);
        struct product p = product_random(&r, type, LAYOUT_FRAGMENTS, shape, 0);
        int64_t n = MAX_T * (p.w.rows + GAP);
        double *whole = run_part(&p, 0, p.w.cols, MAX_T, true);
        double *sum = xcalloc((size_t)n, sizeof *sum);
        for (int32_t col = 0; col < p.w.cols; col += p.unit) {
            int32_t left = p.w.cols - col;
            double *part = run_part(&p, col, left < p.unit ? left : p.unit, MAX_T, col % 64);
            for (int64_t i = 0; i < n; i++) {
                if (i % (p.w.rows + GAP) < p.w.rows && part[i] != (double)(float)part[i])
                    FAIL("%s: %.17g is no float32", type->name, part[i]);
                sum[i] += part[i];
            }
            free(part);
        }
        same_partials(&p, "units", sum, whole, MAX_T);
        free(sum);
        free(whole);
        product_free(&p);
    }
}

/* Sums that float64 holds and no two float32 numbers do: units of 2^40, of 1, of 2^-12, and minus
 * the first again. */
TEST(CudaUnits, SumsAreExact) {
    GPU_OR_SKIP();
    enum { UNITS = 4, COLS = UNITS * 32 };
    const float terms[UNITS] = {0x1p40f, 1, 0x1.8p-12f, -0x1p40f};
    float w[COLS] = {0}, x[COLS] = {0};
    for (int i = 0; i < UNITS; i++) {
        w[i * 32 + 5] = terms[i];
        x[i * 32 + 5] = 1;
    }
    bf16 *source = gpu_upload_bf16(w, COLS), *device_x = gpu_upload_bf16(x, COLS);
    void *data = gpu_alloc(weight_layout_bytes(LAYOUT_ROWS, DTYPE_BF16, 1, COLS));
    double *y = gpu_alloc(sizeof *y), got;
    weight_layout_launch(data, LAYOUT_ROWS, DTYPE_BF16, 1, COLS, 0, 1, source, COLS, gpu_stream());
    const struct dense_args a = {.ldy = 1,
                                 .x = device_x,
                                 .ldx = COLS,
                                 .weight = data,
                                 .layout = LAYOUT_ROWS,
                                 .dtype = DTYPE_BF16,
                                 .scale = SCALE_NONE,
                                 .rows = 1,
                                 .cols = COLS,
                                 .num_tokens = 1,
                                 .gpu = gpu_test_info()};
    for (int tile = 0; tile < 2; tile++) {
        if (tile)
            dense_units_tile_launch(y, &a, 32, gpu_stream());
        else
            dense_units_launch(y, &a, 32, gpu_stream());
        gpu_download(&got, y, sizeof got);
        if (got != 1 + 0x1.8p-12)
            FAIL("%s: the sum is %.17g", tile ? "tiles" : "streaming", got);
    }
    gpu_free(source);
    gpu_free(device_x);
    gpu_free(data);
    gpu_free(y);
}

/* ---- experts --------------------------------------------------------------------------------- */

/* partial += what a rank with these experts and columns makes. */
static void add_rank(double *partial, const struct moe_layer *whole, const struct moe_tokens *t,
                     int32_t expert0, int32_t experts, int32_t col0, int32_t cols) {
    struct moe_layer l = moe_layer_part(whole, expert0, experts, col0, cols);
    if (cols == 0)
        l.I = whole->I; /* which a rank without experts never looks at */
    struct moe_tokens mine = *t;
    struct moe_result r = moe_run(&l, &mine, NULL);
    for (int64_t i = 0; i < (int64_t)t->T * l.H; i++)
        partial[i] += r.sums[i];
    moe_result_free(&r);
    moe_layer_free(&l);
}

static void describe_layer(char out[160], const struct moe_layer *l, int32_t T, const char *what) {
    snprintf(out, 160, "%s H %d I %d E %d K %d in units of %d, T %d, %s (seed %llu)", l->type->name,
             l->H, l->I, l->E, l->K, l->unit, T, what, (unsigned long long)ops_test_seed());
}

static void same_sums(const struct moe_layer *l, const char *what, const double *got,
                      const double *want, int32_t T) {
    char text[160];
    describe_layer(text, l, T, what);
    for (int64_t i = 0; i < (int64_t)T * l->H; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            return FAIL("%s: partial[%lld, %lld] is %.17g, not %.17g", text, (long long)(i / l->H),
                        (long long)(i % l->H), got[i], want[i]);
}

/* From act, which is in bf16, in float64; every contribution is rounded, so a bound of sums. */
static void check_sums(const struct moe_layer *l, const struct moe_tokens *t,
                       const struct moe_result *r) {
    double *y = xcalloc((size_t)(2 * l->H), sizeof *y), *size = y + l->H;
    double *want = xcalloc((size_t)(2 * t->T * l->H), sizeof *want), *limit = want + t->T * l->H;
    char text[160];
    describe_layer(text, l, t->T, "against float64");
    for (int32_t p = 0; p < t->T * l->K; p++) {
        if (t->slot[p] < 0 || l->slot[t->topk_ids[p]] < 0)
            continue;
        float *act = r->act + (int64_t)t->slot[p] * l->I;
        if (l->type->xq) { /* act becomes what actq stands for */
            struct gpu_f8_rows codes = gpu_f8_rows_of(act, 1, l->I);
            gpu_f8_rows_free(&codes);
        }
        gpu_matrix_times(&l->down[l->slot[t->topk_ids[p]]], act, y, size);
        for (int32_t h = 0; h < l->H; h++) {
            int64_t at = (int64_t)(p / l->K) * l->H + h;
            want[at] += (double)t->topk_weights[p] * y[h];
            limit[at] += (double)t->topk_weights[p] * size[h] * gpu_sum_error(l->type) + 1e-9;
        }
    }
    for (int64_t i = 0; i < (int64_t)t->T * l->H; i++)
        if (!(fabs(r->sums[i] - want[i]) <= limit[i])) {
            FAIL("%s: partial[%lld, %lld] is %g, not %g", text, (long long)(i / l->H),
                 (long long)(i % l->H), r->sums[i], want[i]);
            break;
        }
    free(y);
    free(want);
}

/* {T, H, I, E, K, unit} */
static const int32_t moe_shapes[][6] = {{1, 96, 232, 5, 2, 32},
                                        {7, 76, 200, 7, 3, 64},
                                        {33, 40, 424, 3, 1, 128},
                                        {65, 72, 96, 3, 2, 32},
                                        {200, 48, 264, 3, 1, 64}};

/* Ranks that own columns of all experts, whole experts, and both, against one rank. */
static void check_ranks(uint64_t salt, const struct gpu_weight_type *type, const int32_t shape[6],
                        enum moe_pattern pattern) {
    struct rng r = rng_seeded(salt);
    struct moe_layer l = moe_layer_random(&r, type, shape[1], shape[2], shape[3], shape[4], 0);
    l.unit = shape[5];
    struct moe_tokens t = moe_tokens_random(&r, &l, shape[0], shape[0] > 4, pattern);
    struct moe_result whole = moe_run(&l, &t, NULL);
    size_t n = (size_t)t.T * (size_t)l.H;
    double *sum = xcalloc(n, sizeof *sum);
    check_sums(&l, &t, &whole);
    for (int32_t i = 1 + shape[0] % 2; i < NUM(part_counts) && !type->xq; i += 2) {
        struct cuts cuts = random_cuts(&r, part_counts[i], l.I, l.unit);
        memset(sum, 0, n * sizeof *sum);
        for (int32_t p = cuts.num - 1; p >= 0; p--)
            add_rank(sum, &l, &t, 0, l.E, cuts.first[p], cuts.first[p + 1] - cuts.first[p]);
        same_sums(&l, "cut by columns", sum, whole.sums, t.T);
    }
    memset(sum, 0, n * sizeof *sum);
    for (int32_t e = l.E - 1; e >= 0; e--)
        add_rank(sum, &l, &t, e, 1, 0, l.I);
    same_sums(&l, "an expert each", sum, whole.sums, t.T);
    if (!type->xq) { /* a grid */
        memset(sum, 0, n * sizeof *sum);
        add_rank(sum, &l, &t, 0, 2, l.unit, l.I - l.unit);
        add_rank(sum, &l, &t, 2, l.E - 2, 0, l.unit);
        add_rank(sum, &l, &t, 0, 2, 0, l.unit);
        add_rank(sum, &l, &t, 2, l.E - 2, l.unit, l.I - l.unit);
        same_sums(&l, "a grid", sum, whole.sums, t.T);
    }
    free(sum);
    moe_result_free(&whole);
    moe_tokens_free(&t);
    moe_layer_free(&l);
}

/* FP8 activations have a scale for the columns that a rank holds: only whole experts are the same.
 */
TEST(CudaUnits, RanksOfExpertsAddUpToOne) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++)
        for (int32_t s = 0; s < NUM(moe_shapes); s++)
            check_ranks(630 + (uint64_t)s, &gpu_weight_types[k], moe_shapes[s],
                        s % 2 ? MOE_SKEWED : MOE_RANDOM);
}

/* A token alone, by streaming, and in a batch, in tiles. */
TEST(CudaUnits, BitsOfExpertsDoNotDependOnTheBatch) {
    GPU_OR_SKIP();
    for (int k = 0; k < gpu_num_weight_types(); k++) {
        struct rng r = rng_seeded(640);
        struct moe_layer l = moe_layer_random(&r, &gpu_weight_types[k], 56, 168, 3, 2, 0);
        l.unit = 64;
        struct moe_tokens all = moe_tokens_random(&r, &l, 110, 0, MOE_ONE);
        struct moe_result whole = moe_run(&l, &all, NULL);
        for (int32_t i = 0; i < all.T; i += 27) {
            struct moe_tokens one = moe_tokens_one(&all, &l, i);
            struct moe_result alone = moe_run(&l, &one, NULL);
            same_sums(&l, "alone", alone.sums, whole.sums + (int64_t)i * l.H, 1);
            moe_result_free(&alone);
            moe_tokens_free(&one);
        }
        moe_result_free(&whole);
        moe_tokens_free(&all);
        moe_layer_free(&l);
    }
}

TEST(CudaUnits, AddsToAPartial) {
    GPU_OR_SKIP();
    static const int32_t widths[] = {48, 51}; /* 16 bytes at a time, and one number */
    for (int i = 0; i < 2; i++) {
        struct rng r = rng_seeded(650);
        struct moe_layer l = moe_layer_random(&r, &gpu_weight_types[0], widths[i], 72, 5, 2, 2);
        l.unit = 32;
        struct moe_tokens t = moe_tokens_random(&r, &l, 6, 1, MOE_RANDOM);
        struct moe_result fresh = moe_run(&l, &t, NULL);
        double *before = xcalloc((size_t)(t.T * l.H), sizeof *before);
        for (int32_t j = 0; j < t.T * l.H; j++)
            before[j] = (double)rng_float(&r);
        struct moe_result added = moe_run(&l, &t, before);
        for (int32_t j = 0; j < t.T * l.H; j++)
            before[j] += fresh.sums[j];
        same_sums(&l, "added", added.sums, before, t.T);
        free(before);
        moe_result_free(&fresh);
        moe_result_free(&added);
        moe_tokens_free(&t);
        moe_layer_free(&l);
    }
}
