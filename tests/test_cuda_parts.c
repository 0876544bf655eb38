/* What ranks compute for themselves is the same bits whatever else they hold: rows of a matrix,
 * query heads with their KV head; and what reads partials in float64. (test_cuda_units.c has the
 * partials.)
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/batch.h"
#include "host/mem.h"
#include "tests/gpu_weights.h"

/* ---- rows of a matrix: qkv, gate, up, logits ------------------------------------------------- */

/* y [T, rows] of rows [row0, row0 + rows), by streaming or by tiles. */
static float *run_rows(const struct gpu_matrix *whole, const bf16 *x, int32_t row0, int32_t rows,
                       int32_t T, bool tile) {
    struct gpu_matrix w = gpu_matrix_part(whole, LAYOUT_FRAGMENTS, row0, rows, 0, whole->cols);
    float *y = gpu_alloc((size_t)(T * rows) * sizeof *y);
    const struct dense_args a = {.y = y,
                                 .y_float = true,
                                 .ldy = rows,
                                 .x = x,
                                 .ldx = whole->cols,
                                 .weight = w.data,
                                 .layout = LAYOUT_FRAGMENTS,
                                 .dtype = w.type.dtype,
                                 .weight_scale = w.scale,
                                 .scale = w.type.scale,
                                 .block_col0 = w.type.block_col0,
                                 .rows = rows,
                                 .cols = whole->cols,
                                 .num_tokens = T,
                                 .invariant = true,
                                 .gpu = gpu_test_info()};
    if (tile)
        dense_tile_launch(&a, gpu_stream());
    else
        dense_launch(&a, gpu_stream());
    float *got = gpu_fetch(y, (size_t)(T * rows) * sizeof *y);
    gpu_free(y);
    gpu_matrix_free(&w);
    return got;
}

TEST(CudaParts, RowsOfAMatrixDoNotDependOnTheOthers) {
    GPU_OR_SKIP();
    enum { ROWS = 83, COLS = 264, T = 37 };
    static const int32_t parts[][2] = {{0, 16}, {16, 1}, {32, 51}, {48, 35}};
    for (int k = 0; k < gpu_num_weight_types() && !gpu_weight_types[k].xq; k++) {
        struct rng r = rng_seeded(700);
        struct gpu_matrix w =
            gpu_matrix_random(&r, &gpu_weight_types[k], LAYOUT_FRAGMENTS, ROWS, COLS);
        float *x = random_floats(&r, T * COLS, 2);
        bf16 *device_x = gpu_upload_bf16(x, T * COLS);
        float *whole = run_rows(&w, device_x, 0, ROWS, T, false);
        for (int i = 0; i < 4; i++) {
            int32_t row0 = parts[i][0], rows = parts[i][1];
            float *part = run_rows(&w, device_x, row0, rows, T, i % 2);
            for (int32_t t = 0; t < T; t++)
                same_bits(w.type.name, part + t * rows, whole + t * ROWS + row0,
                          (size_t)rows * sizeof *part);
            free(part);
        }
        free(whole);
        free(x);
        gpu_free(device_x);
        gpu_matrix_free(&w);
    }
}

/* ---- attention by heads ---------------------------------------------------------------------- */

enum { Hq = 6, Hkv = 2, GROUP = Hq / Hkv, D = 64, CONTEXT = 75, BLOCKS = 5, MAX_NEW = 20 };
enum { HEAD_KV = KV_BLOCK_SIZE * D };

/* out [n, heads * D] of query heads [head0, head0 + heads), which share a KV head unless they are
 * all; the last n tokens of one sequence. q [MAX_NEW, Hq * D], kv [BLOCKS][2][Hkv][16][D]. */
static float *run_heads(const float *q, const float *kv, int32_t head0, int32_t heads, int32_t n) {
    int32_t kv_heads = heads == Hq ? Hkv : 1, kv0 = head0 / GROUP, group = heads / kv_heads;
    int32_t cu_seqlens[] = {0, n}, seq_lens[] = {CONTEXT}, tables[BLOCKS] = {0, 1, 2, 3, 4};
    int32_t offsets[] = {0, group, heads};
    float *mine = xcalloc(BLOCKS * 2 * Hkv * HEAD_KV, sizeof *mine);
    float *rows = xcalloc((size_t)(n * heads * D), sizeof *rows);
    for (int32_t i = 0; i < BLOCKS * 2; i++)
        memcpy(mine + i * kv_heads * HEAD_KV, kv + (i * Hkv + kv0) * HEAD_KV,
               (size_t)(kv_heads * HEAD_KV) * sizeof *mine);
    for (int32_t t = 0; t < n; t++)
        memcpy(rows + t * heads * D, q + (t * Hq + head0) * D, (size_t)(heads * D) * sizeof *rows);
    struct attention_tile tiles[64];
    struct attention_plan plan;
    attention_make_plan(&plan, tiles, cu_seqlens, seq_lens, 1, group, 0, true);
    const struct attention_launch_args a = {
        .qkv = gpu_upload_bf16(rows, n * heads * D),
        .ld = heads * D,
        .out = gpu_alloc((size_t)(n * heads * D) * sizeof(bf16)),
        .num_heads = heads,
        .num_kv_heads = kv_heads,
        .head_dim = D,
        .head_offsets = gpu_upload(offsets, sizeof offsets),
        .scale = 0.125f,
        .kv = {gpu_upload_bf16(mine, BLOCKS * 2 * kv_heads * HEAD_KV), DTYPE_BF16},
        .cu_seqlens = gpu_upload(cu_seqlens, sizeof cu_seqlens),
        .seq_lens = gpu_upload(seq_lens, sizeof seq_lens),
        .block_tables = gpu_upload(tables, sizeof tables),
        .max_blocks = BLOCKS,
        .plan = plan,
        .tiles = gpu_upload(tiles, sizeof tiles),
    };
    attention_launch(&a, gpu_stream());
    float *out = gpu_fetch_bf16(a.out, n * heads * D);
    const void *device[] = {a.qkv,        a.out,      a.head_offsets, a.kv.data,
                            a.cu_seqlens, a.seq_lens, a.block_tables, a.tiles};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu_free((void *)(uintptr_t)device[i]);
    free(mine);
    free(rows);
    return out;
}

/* Alone, in pairs and all together: with one head a row more or less decides between the two
 * kernels (1, 5 and 20 new tokens, 16 rows). */
TEST(CudaParts, HeadsDoNotDependOnTheOthers) {
    GPU_OR_SKIP();
    static const int32_t counts[] = {1, 5, MAX_NEW};
    struct rng r = rng_seeded(710);
    float *q = random_floats(&r, MAX_NEW * Hq * D, 2);
    float *kv = random_floats(&r, BLOCKS * 2 * Hkv * HEAD_KV, 1);
    for (int i = 0; i < 3; i++) {
        int32_t n = counts[i];
        float *whole = run_heads(q, kv, 0, Hq, n);
        for (int32_t heads = 1; heads <= GROUP; heads++)
            for (int32_t head0 = 0; head0 + heads <= Hq; head0 += GROUP) {
                float *part = run_heads(q, kv, head0, heads, n);
                for (int32_t t = 0; t < n; t++)
                    same_bits("heads", part + t * heads * D, whole + (t * Hq + head0) * D,
                              (size_t)(heads * D) * sizeof *part);
                free(part);
            }
        free(whole);
    }
    free(q);
    free(kv);
}

/* ---- what reads partials --------------------------------------------------------------------- */

/* Sums of squares of heads [0, 3) and of the others add up to those of all 7, and KV heads that are
 * not counted do not matter; each is a sum of float32 numbers. */
TEST(CudaParts, SumsOfSquaresAddUp) {
    GPU_OR_SKIP();
    enum { T = 5, HEADS = 7, KV = 3, DIM = 90, LD = (HEADS + 2 * KV) * DIM, FIRST = 3 };
    struct rng r = rng_seeded(720);
    float *qkv = random_floats(&r, T * LD, 2);
    bf16 *device = gpu_upload_bf16(qkv, T * LD);
    double *sums = gpu_alloc(2 * T * sizeof *sums), whole[2 * T], low[2 * T], high[2 * T];
    round_to_bf16(qkv, T * LD);
    struct rope_args a = {.qkv = device,
                          .ld = LD,
                          .num_tokens = T,
                          .num_heads = HEADS,
                          .num_kv_heads = KV,
                          .head_dim = DIM,
                          .sums_double = true};
    qk_sum_squares_launch(sums, &a, 0, KV, gpu_stream());
    gpu_download(whole, sums, sizeof whole);
    a.num_heads = FIRST; /* keys are the heads behind: these count other heads, which is fine */
    qk_sum_squares_launch(sums, &a, 0, 0, gpu_stream());
    gpu_download(low, sums, sizeof low);
    a.qkv = device + FIRST * DIM;
    a.num_heads = HEADS - FIRST;
    qk_sum_squares_launch(sums, &a, 0, KV, gpu_stream());
    gpu_download(high, sums, sizeof high);
    for (int32_t t = 0; t < T; t++) {
        double want = 0;
        for (int32_t i = 0; i < HEADS * DIM; i++)
            want += (double)qkv[t * LD + i] * (double)qkv[t * LD + i];
        EXPECT_NEAR(whole[2 * t], want, want * 0x1p-20);
        EXPECT_TRUE(low[2 * t] + high[2 * t] == whole[2 * t]);
        EXPECT_TRUE(low[2 * t + 1] == 0 && high[2 * t + 1] == whole[2 * t + 1]);
    }
    free(qkv);
    gpu_free(device);
    gpu_free(sums);
}

/* The norm and the gather of a partial in float64 give the bits of the same one rounded to float32:
 * rows that are aligned and rows that are not, and the widest. */
TEST(CudaParts, PartialsInFloat64AreRoundedThenAdded) {
    GPU_OR_SKIP();
    static const int32_t widths[] = {76, 90, 1160, 2049, 16388};
    enum { T = 3 };
    for (int i = 0; i < 5; i++) {
        int32_t H = widths[i], rows[T] = {2, 0, 2};
        size_t n = (size_t)(T * H);
        struct rng r = rng_seeded(730);
        float *hidden = random_floats(&r, T * H, 3), *rounded = xcalloc(n, sizeof *rounded);
        float *weight = random_floats(&r, H, 1), *out[2], *kept[2], *gathered[2];
        double *exact = xcalloc(n, sizeof *exact);
        for (size_t j = 0; j < n; j++) {
            exact[j] = (double)rng_float(&r) + (double)rng_float(&r) * 0x1p-25;
            rounded[j] = (float)exact[j];
        }
        float *w = gpu_upload(weight, (size_t)H * sizeof *w), *g = gpu_alloc(n * sizeof *g);
        int32_t *device_rows = gpu_upload(rows, sizeof rows);
        bf16 *x = gpu_alloc(n * sizeof *x);
        for (int k = 0; k < 2; k++) {
            float *h = gpu_upload(hidden, n * sizeof *h);
            void *partial =
                k ? gpu_upload(exact, n * sizeof *exact) : gpu_upload(rounded, n * sizeof *rounded);
            gather_rows_launch(g, h, partial, k, device_rows, T, H, gpu_stream());
            norm_launch(&(struct norm_args){.x = x,
                                            .hidden = h,
                                            .partial = partial,
                                            .partial_double = k,
                                            .weight = w,
                                            .eps = 1e-5f,
                                            .num_tokens = T,
                                            .hidden_size = H},
                        gpu_stream());
            gathered[k] = gpu_fetch(g, n * sizeof *g);
            out[k] = gpu_fetch_bf16(x, T * H);
            kept[k] = gpu_fetch(h, n * sizeof *h);
            gpu_free(h);
            gpu_free(partial);
        }
        same_bits("gather", gathered[1], gathered[0], n * sizeof(float));
        same_bits("norm", out[1], out[0], n * sizeof(float));
        same_bits("hidden", kept[1], kept[0], n * sizeof(float));
        for (int k = 0; k < 2; k++) {
            free(out[k]);
            free(kept[k]);
            free(gathered[k]);
        }
        void *device[] = {w, g, device_rows, x};
        for (int k = 0; k < 4; k++)
            gpu_free(device[k]);
        free(hidden);
        free(rounded);
        free(weight);
        free(exact);
    }
}
