/* cpu_backend: the backend object of the cpu op table, shared by the files of host/cpu.
 *
 * Files: cpu_ops.c (create, dispatch, table), cpu_weights.c (layouts of weights and KV blocks),
 * cpu_matmul.c, cpu_moe.c, cpu_attention.c, cpu_rows.c (everything that is per token), kernels_*.c.
 * All scratch memory is carved from one pool in create; ops allocate nothing.
 */
#pragma once

#include "host/cpu/kernels.h"
#include "host/cpu/pool.h"
#include "host/ops.h"
#include "host/ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SEGMENT_PAD = 16 };
enum {
    ROW_CHUNK = 256
}; /* rows of x per pass over a tile group: their sums stay in the L2 cache */

/* Scratch of one thread; owned by the backend's pool of memory. */
struct scratch {
    uint16_t *panel; /* [PANEL_SIZE] */
    float *sums;     /* [ROW_CHUNK, TILE_GROUP_ROWS] */
    double *product; /* [ROW_CHUNK, TILE_GROUP_ROWS] sums over the units */
    float *act;      /* [ROW_CHUNK, TILE_GROUP_ROWS / 2] */
    /* attention: rows of one unit */
    float *q;                      /* [ATTENTION_ROWS, D] */
    float *scores;                 /* [ATTENTION_ROWS, PARTITION_KEYS] */
    int32_t *first_key, *last_key; /* [ATTENTION_ROWS] */
    struct attend_sums total, partition;
};

struct attention_unit; /* cpu_attention.c */
struct moe_part;       /* cpu_moe.c */

struct backend {
    struct backend_config config;
    const struct cpu_kernels *kernels; /* static */
    struct pool *pool;                 /* owned */
    const struct tensor_source *table; /* the embedding's; borrowed */
    char description[128];
    void *memory; /* owned; everything below lies in it */
    size_t memory_bytes;
    struct scratch *scratch; /* [threads] */
    float *packed;           /* rows of x, cut into segments; see struct packed */
    uint32_t *packed_pairs;  /* the same as BF16 pairs; NULL when the kernels have no dot_pairs */
    float *logits;           /* [max_tokens, E] of the router */
    float *act;              /* [act_rows, act_width] of the experts of one pass */
    int32_t act_rows;
    size_t act_width;
    int32_t *pair_tokens;       /* [max_tokens * K] token of each routed pair, in permuted order */
    float *pair_weights;        /* likewise */
    struct moe_part *moe_parts; /* [E] */
    struct attention_unit *units; /* [max_units] */
    int32_t max_units;
    int32_t *head_list, *head_offsets; /* [Hq] query heads by KV head; [Hkv + 1] */
    float *split;                      /* [max_split] results of attention split by partitions */
    int32_t max_split;
};

/* A matrix of rows cut into segments of columns (kernels.h), each segment contiguous: the rows of
 * the segment at column c start at c * num_rows and are len apart. Full segments have SEGMENT_PAD
 * more behind each row: rows at a power of two would compete for the same sets of the L1 cache, as
 * the rows of an expert's tokens may be any. As BF16 pairs the columns count half. */
struct packed {
    const void *data; /* float or uint32_t; borrowed */
    int32_t num_rows, cols, unit;
    bool pairs;
};

struct segment {
    int32_t col0, len;
    bool first, last; /* of its unit */
    int64_t offset;   /* of row 0, in elements of 4 bytes */
    int64_t ld;       /* from row to row */
};

/* The segment that holds column `col`. */
static inline struct segment segment_at(const struct packed *x, int32_t col) {
    int32_t unit0 = col / x->unit * x->unit;
    int32_t end = x->cols - unit0 < x->unit ? x->cols : unit0 + x->unit;
    struct segment s = {.col0 = unit0 + (col - unit0) / SEGMENT_COLS * SEGMENT_COLS};
    s.len = end - s.col0 < SEGMENT_COLS ? end - s.col0 : SEGMENT_COLS;
    s.first = s.col0 == unit0;
    s.last = s.col0 + s.len == end;
    int32_t full_before =
        unit0 / x->unit * (x->unit / SEGMENT_COLS) + (s.col0 - unit0) / SEGMENT_COLS;
    int32_t elements_before = x->pairs ? s.col0 / 2 : s.col0;
    s.offset = (int64_t)(elements_before + full_before * SEGMENT_PAD) * x->num_rows;
    s.ld = (x->pairs ? (s.len + 1) / 2 : s.len) + (s.len == SEGMENT_COLS ? SEGMENT_PAD : 0);
    return s;
}

/* Elements of a packed row with that many columns, at most. */
static inline size_t packed_width(int32_t cols, bool pairs) {
    return (size_t)(pairs ? (cols + 1) / 2 : cols) + (size_t)(cols / SEGMENT_COLS) * SEGMENT_PAD;
}

/* ---- cpu_ops.c ------------------------------------------------------------------------------- */

/* create for one set of kernels; each op table wraps it. ERR_NO_MEMORY. */
int cpu_create(const struct cpu_kernels *kernels, const struct backend_config *config,
               struct backend **out, struct error *error);
/* An op table without `create`, to be completed by the variant. */
struct ops cpu_table(const struct cpu_kernels *kernels);

/* fn(arg, first, last) over all of 0 .. n - 1, by all threads when n * work (about an operation or
 * byte each) is worth waking them. */
typedef void rows_fn(void *arg, int32_t first, int32_t last);
void cpu_for_rows(struct backend *b, int32_t n, int64_t work, rows_fn *fn, void *arg);
/* fn for each task, likewise. */
void cpu_run(struct backend *b, pool_fn *fn, void *arg, int32_t num_tasks, int64_t total_work);

/* ---- cpu_weights.c --------------------------------------------------------------------------- */

size_t cpu_weight_bytes(const struct weight_shape *shape);
void cpu_weight_init(struct backend *b, struct weight *w, const struct weight_shape *shape,
                     void *memory);
void cpu_weight_put(struct backend *b, struct weight *w, int32_t row0,
                    const struct tensor_slice *slice);
size_t cpu_kv_block_bytes(enum dtype dtype, int32_t num_kv_heads, int32_t head_dim);
/* Where a KV head's keys and values lie in a block. */
size_t cpu_keys_offset(enum dtype dtype, int32_t head, int32_t head_dim);
size_t cpu_values_offset(enum dtype dtype, int32_t head, int32_t head_dim);

/* The tiles of rows row0 .. row0 + 16 * max_tiles - 1; returns how many there are, 0 past the end.
 */
int32_t cpu_tiles(const struct weight *w, int32_t row0, int32_t max_tiles, const void **tiles);
/* What dot_args.block_scales wants for them: NULLs when blocks have no scales. */
void cpu_tile_scales(const struct weight *w, int32_t row0, int32_t num_tiles, const float **scales);

/* ---- cpu_matmul.c ---------------------------------------------------------------------------- */

/* Copies x [num_rows, cols] into b->packed, or b->packed_pairs rounded to BF16. */
struct packed cpu_pack(struct backend *b, const float *x, int64_t ldx, int32_t num_rows,
                       int32_t cols, int32_t unit, bool pairs);
/* Are these weights multiplied by BF16 pairs? */
bool cpu_uses_pairs(const struct backend *b, const struct weight *w);
/* Tiles of a call, or those that a thread is likely to need after it; num 0: none, not known. */
struct tile_list {
    int32_t num;
    const void *tiles[MAX_TILES];
    const float *block_scales[MAX_TILES]; /* of a call's tiles */
};
/* The sums of d's tiles over the unit that starts at column `col`, for rows [row0, row0 + num_rows)
 * of x, or those that d->rows lists; returns the unit's end. */
int32_t cpu_dot_unit(const struct backend *b, struct dot_args *d, const struct tile_list *next,
                     const struct packed *x, int32_t row0, int32_t col);

/* Where products are added: row i of a call to row rows[i], or i, of `data` [.., ld] float64. */
struct partial_rows {
    double *data;
    int64_t ld;
    const int32_t *rows; /* or NULL */
    const float *weight; /* [num_rows], or NULL: 1 */
};
/* Adds the sums of all units of x to the partial; `store` says how sums become values, both d and
 * it use the thread's scratch. They are collected there first: the rows of a partial often lie a
 * power of two apart, and would drive each other out of the caches. */
void cpu_add_product(const struct backend *b, const struct scratch *scratch, struct dot_args *d,
                     struct store_args *store, const struct tile_list *next, const struct packed *x,
                     int32_t row0, const struct partial_rows *out);
void cpu_matmul_exact(struct backend *b, float *y, int64_t ldy, const float *x, int64_t ldx,
                      const struct weight *w, const float *bias, int32_t num_tokens);
void cpu_matmul(struct backend *b, void *y, int64_t ldy, const void *x, int64_t ldx,
                const struct weight *w, const float *bias, int32_t num_tokens);
void cpu_logits(struct backend *b, float *y, int64_t ldy, const void *x, int64_t ldx,
                const struct weight *w, int32_t num_rows);
void cpu_matmul_partial(struct backend *b, void *partial, const void *x, int64_t ldx,
                        const struct weight *w, int32_t unit, int32_t num_tokens);

/* ---- cpu_moe.c ------------------------------------------------------------------------------- */

size_t cpu_moe_part_bytes(void);
void cpu_moe(struct backend *b, const struct moe_args *a);

/* ---- cpu_attention.c ------------------------------------------------------------------------- */

size_t cpu_attention_unit_bytes(void);
void cpu_attention(struct backend *b, const struct attention_args *a);

/* ---- cpu_rows.c ------------------------------------------------------------------------------ */

int cpu_embed_init(struct backend *b, const struct tensor_source *table, struct backend *first,
                   struct error *error);
void cpu_embed(struct backend *b, float *hidden, const int32_t *tokens, int32_t num_tokens);
void cpu_add_norm(struct backend *b, void *x, float *hidden, void *partial, const float *norm,
                  float eps, int32_t num_tokens, int32_t hidden_size);
void cpu_gather_rows(struct backend *b, float *out, const float *hidden, void *partial,
                     const int32_t *rows, int32_t num_rows, int32_t hidden_size);
void cpu_qk_sum_squares(struct backend *b, void *sums, const struct qkv_args *a,
                        int32_t first_kv_head, int32_t num_counted);
void cpu_qk_rope_kv_write(struct backend *b, const struct qkv_args *a);
void cpu_router(struct backend *b, struct routing *out, const void *x, const struct weight *gate,
                const struct router_config *config, int32_t num_tokens);

#ifdef __cplusplus
}
#endif
