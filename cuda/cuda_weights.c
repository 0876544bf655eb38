/* cuda_weights: checkpoint tensors into device memory.
 *
 * Rows are copied, as they are or rounded to BF16, from the mapped file into one of NUM_STAGES
 * pinned buffers, from which a kernel reads them over PCIe and writes them in their layout. Several
 * loader threads fill stages while others are read, so that the slower of disk and PCIe sets the
 * speed.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_backend.h"

/* F32 and F16 weights become BF16. */
static enum dtype stored_dtype(enum dtype dtype) {
    return dtype == DTYPE_F8_E4M3 ? DTYPE_F8_E4M3 : DTYPE_BF16;
}

static enum weight_layout layout_for(enum weight_use use, enum dtype dtype) {
    return use == WEIGHT_DENSE && stored_dtype(dtype) == DTYPE_BF16 ? LAYOUT_ROWS
                                                                    : LAYOUT_FRAGMENTS;
}

enum weight_layout cuda_layout(const struct weight *w) {
    return layout_for(w->use, w->dtype);
}

static size_t matrix_bytes(enum weight_use use, enum dtype dtype, int32_t rows, int32_t cols) {
    size_t n = weight_layout_bytes(layout_for(use, dtype), stored_dtype(dtype), rows, cols);
    return (n + 255) / 256 * 256;
}

enum weight_scale cuda_scale(const struct weight *w) {
    return w->block_scale ? SCALE_BLOCK : w->row_scale ? SCALE_ROW : SCALE_NONE;
}

/* Blocks of columns that a group of 16 rows has scales for. */
static int32_t scale_blocks(int32_t cols, int32_t block_col0) {
    return (cols + block_col0 + SCALE_BLOCK_SIZE - 1) / SCALE_BLOCK_SIZE;
}

size_t cuda_weight_bytes(const struct weight_shape *s) {
    size_t scales = 0;
    if (s->dtype == DTYPE_F8_E4M3)
        scales = s->scaling == FP8_BLOCK ? (size_t)((s->rows + FRAGMENT_ROWS - 1) / FRAGMENT_ROWS) *
                                               (size_t)scale_blocks(s->cols, s->block_col0)
                                         : (size_t)s->rows;
    return matrix_bytes(s->use, s->dtype, s->rows, s->cols) + scales * sizeof(float);
}

void cuda_weight_init(struct backend *b, struct weight *w, const struct weight_shape *s,
                      void *memory) {
    float *scales =
        (float *)(void *)((char *)memory + matrix_bytes(s->use, s->dtype, s->rows, s->cols));
    (void)b;
    *w = (struct weight){.dtype = stored_dtype(s->dtype),
                         .use = s->use,
                         .rows = s->rows,
                         .cols = s->cols,
                         .data = memory};
    if (s->dtype == DTYPE_F8_E4M3 && s->scaling == FP8_BLOCK) {
        w->block_scale = scales;
        w->block_col0 = s->block_col0;
    } else if (s->dtype == DTYPE_F8_E4M3) {
        w->row_scale = scales;
    }
}

/* ---- stages ---------------------------------------------------------------------------------- */

static struct stage *take_stage(struct backend *b) {
    struct stage *s = NULL;
    pthread_mutex_lock(&b->stages_lock);
    while (!s) {
        for (int i = 0; i < NUM_STAGES && !s; i++)
            if (!b->stages[i].taken)
                s = &b->stages[i];
        if (!s)
            pthread_cond_wait(&b->stage_free, &b->stages_lock);
    }
    s->taken = true;
    pthread_mutex_unlock(&b->stages_lock);
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaEventSynchronize(s->done)); /* its last contents were read */
    return s;
}

static void give_stage(struct backend *b, struct stage *s) {
    CUDA_CHECK(cudaEventRecord(s->done, b->upload));
    pthread_mutex_lock(&b->stages_lock);
    s->taken = false;
    pthread_cond_signal(&b->stage_free);
    pthread_mutex_unlock(&b->stages_lock);
}

static bool holds_nan_code(const char *codes, int32_t n) {
    bool nan = false;
    for (int32_t i = 0; i < n; i++)
        nan |= (codes[i] & 0x7f) == 0x7f;
    return nan;
}

/* Row `row` of the slice to `out`, as `dtype`. */
static void copy_row(void *out, enum dtype dtype, const struct tensor_slice *slice, int32_t row) {
    const struct tensor_source *s = slice->source;
    int64_t at = (int64_t)(slice->row0 + row) * s->cols + slice->col0;
    if (!s->data)
        weights_dummy_fill(s, slice->row0 + row, 1, slice->col0, slice->cols, dtype, out);
    else if (s->dtype == dtype)
        memcpy(out, (const char *)s->data + (size_t)at * dtype_bytes(dtype),
               (size_t)slice->cols * dtype_bytes(dtype));
    else
        for (int32_t c = 0; c < slice->cols; c++)
            dtype_store(dtype, out, c, dtype_load(s->dtype, s->data, at + c));
}

/* How scales lie in memory: `blocks` of them for each `rows` rows. */
struct scale_grid {
    float *scale; /* NULL: none */
    int32_t rows, blocks;
};

static struct scale_grid scale_grid_of(const struct weight *w) {
    if (w->block_scale)
        return (struct scale_grid){w->block_scale, FRAGMENT_ROWS,
                                   scale_blocks(w->cols, w->block_col0)};
    return (struct scale_grid){w->row_scale, 1, 1};
}

/* The scales of rows [first, first + n) of a slice; returns how many. Rows are cut and stacked at
 * multiples of block_cut, so that a group of rows lies in one block. */
static size_t copy_scales(float *out, const struct weight *w, const struct scale_grid *g,
                          const struct tensor_slice *slice, int32_t first, int32_t n) {
    size_t at = 0;
    CHECK((slice->row0 + first) % g->rows == 0, "%s: rows from %d on", slice->source->name,
          slice->row0 + first);
    for (int32_t i = 0; i < n; i += g->rows)
        for (int32_t b = 0; b < g->blocks; b++)
            out[at++] = tensor_source_scale(slice->source, slice->row0 + first + i,
                                            slice->col0 - w->block_col0 + b * SCALE_BLOCK_SIZE);
    return at;
}

/* Rows [first, first + n) of a slice through one stage; their scales too, NaN for a row, or group
 * of rows, with a NaN, as the codes are widened as if all were finite. */
static void put_rows(struct backend *b, struct weight *w, int32_t row0,
                     const struct tensor_slice *slice, int32_t first, int32_t n) {
    struct stage *stage = take_stage(b);
    struct scale_grid g = scale_grid_of(w);
    size_t row_bytes = (size_t)slice->cols * dtype_bytes(w->dtype);
    float *scales = (float *)(void *)(stage->memory + STAGE_BYTES);
    size_t num_scales = g.scale ? copy_scales(scales, w, &g, slice, first, n) : 0;
    for (int32_t i = 0; i < n; i++) {
        char *to = stage->memory + (size_t)i * row_bytes;
        copy_row(to, w->dtype, slice, first + i);
        if (g.scale && holds_nan_code(to, slice->cols))
            scales[i / g.rows * g.blocks] = NAN;
    }
    weight_layout_launch(w->data, cuda_layout(w), w->dtype, w->rows, w->cols, row0 + first, n,
                         stage->memory, slice->cols, b->upload);
    if (g.scale) {
        CHECK((row0 + first) % g.rows == 0, "rows to %d on", row0 + first);
        CUDA_CHECK(cudaMemcpyAsync(g.scale + (int64_t)((row0 + first) / g.rows) * g.blocks, scales,
                                   num_scales * sizeof *scales, cudaMemcpyHostToDevice, b->upload));
    }
    give_stage(b, stage);
}

void cuda_weight_put(struct backend *b, struct weight *w, int32_t row0,
                     const struct tensor_slice *slice) {
    int64_t row_bytes = (int64_t)slice->cols * (int64_t)dtype_bytes(w->dtype);
    CHECK(row_bytes <= STAGE_BYTES, "a row of %d columns", slice->cols);
    int64_t most = row_bytes > 0 ? STAGE_BYTES / row_bytes : STAGE_SCALES;
    most = most < STAGE_SCALES ? most : STAGE_SCALES;
    if (most >= 2 * FRAGMENT_ROWS) /* whole tiles, after the first piece */
        most = most / FRAGMENT_ROWS * FRAGMENT_ROWS;
    for (int32_t i = 0; i < slice->rows && slice->cols > 0;) {
        int32_t n =
            (int32_t)most - (i == 0 && most >= 2 * FRAGMENT_ROWS ? row0 % FRAGMENT_ROWS : 0);
        n = slice->rows - i < n ? slice->rows - i : n;
        put_rows(b, w, row0, slice, i, n);
        i += n;
    }
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Device memory that lives as long as the backend; NULL where there is none. */
static void *keep(struct backend *b, size_t bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* it is not an error of what follows */
        return NULL;
    }
    b->tables = xrealloc(b->tables, (size_t)(b->num_tables + 1) * sizeof *b->tables);
    b->tables[b->num_tables++] = p;
    return p;
}

static const float *scales_of(const struct weight *w) {
    return w->block_scale ? w->block_scale : w->row_scale;
}

static struct gpu_expert gpu_expert_of(const struct expert_weights *e) {
    return (struct gpu_expert){
        .gate = e->gate.data,
        .up = e->up.data,
        .down = e->down.data,
        .gate_scale = scales_of(&e->gate),
        .up_scale = scales_of(&e->up),
        .down_scale = scales_of(&e->down),
    };
}

/* The kernels take one dtype for all experts of a layer. */
static int check_dtypes(const struct expert_weights *experts, int32_t n, struct error *error) {
    for (int32_t i = 0; i < n; i++) {
        enum dtype first = experts[0].gate.dtype;
        if (experts[i].gate.dtype != first || experts[i].up.dtype != first ||
            experts[i].down.dtype != first)
            return error_set(error, ERR_UNSUPPORTED,
                             "GPUs: expert %d of a layer has matrices of other dtypes than expert "
                             "0 (%s); --gpus 0 serves such a model on the CPU",
                             experts[i].expert, dtype_name(first));
    }
    return 0;
}

int cuda_experts_init(struct backend *b, const struct expert_weights *experts, int32_t n,
                      const void **table, struct error *error) {
    if (check_dtypes(experts, n, error) != 0)
        return ERR_UNSUPPORTED;
    struct expert_table *t = xcalloc(1, sizeof *t);
    struct gpu_expert *host = xcalloc((size_t)n + 1, sizeof *host);
    int32_t E = b->config.num_experts, *slot = xmalloc((size_t)E * sizeof *slot);
    memset(slot, 0xff, (size_t)E * sizeof *slot);
    for (int32_t i = 0; i < n; i++) {
        host[i] = gpu_expert_of(&experts[i]);
        slot[experts[i].expert] = i;
    }
    CUDA_CHECK(cudaSetDevice(b->device));
    t->num_local = n;
    t->dtype = n > 0 ? experts[0].gate.dtype : DTYPE_BF16;
    t->scale = n > 0 ? cuda_scale(&experts[0].gate) : SCALE_NONE;
    t->down_col0 = n > 0 ? experts[0].down.block_col0 : 0;
    t->experts = keep(b, (size_t)(n + 1) * sizeof *host);
    t->slot = keep(b, (size_t)E * sizeof *slot);
    b->expert_tables =
        xrealloc(b->expert_tables, (size_t)(b->num_expert_tables + 1) * sizeof *b->expert_tables);
    b->expert_tables[b->num_expert_tables++] = t;
    if (!t->experts || !t->slot) {
        free(host);
        free(slot);
        return error_set(error, ERR_NO_MEMORY,
                         "GPU %d: no memory for a layer's table of %d experts; lower "
                         "--max-num-batched-tokens or --max-num-seqs",
                         b->device, n);
    }
    CUDA_CHECK(cudaMemcpyAsync(t->experts, host, (size_t)n * sizeof *host, cudaMemcpyHostToDevice,
                               b->upload));
    CUDA_CHECK(cudaMemcpyAsync(t->slot, slot, (size_t)E * sizeof *slot, cudaMemcpyHostToDevice,
                               b->upload));
    CUDA_CHECK(cudaStreamSynchronize(b->upload));
    free(host);
    free(slot);
    *table = t;
    return 0;
}

int cuda_embed_init(struct backend *b, const struct tensor_source *table, struct backend *first,
                    struct error *error) {
    size_t bytes = (size_t)table->rows * (size_t)table->cols * sizeof(bf16);
    bool on_host = b->config.embedding_on_host;
    void *p = NULL;
    CUDA_CHECK(cudaSetDevice(b->device));
    CUDA_CHECK(cudaStreamSynchronize(b->upload)); /* all weights are there */
    if (on_host && first) {
        b->embedding = first->embedding;
        b->embedding_lent = true;
        return 0;
    }
    cudaError_t rc = on_host ? cudaHostAlloc(&p, bytes, cudaHostAllocMapped | cudaHostAllocPortable)
                             : cudaMalloc(&p, bytes);
    if (rc != cudaSuccess) {
        cudaGetLastError(); /* it is not an error of what follows */
        return error_set(error, ERR_NO_MEMORY,
                         "GPU %d: no %s memory for the embedding table of %.2f GB%s", b->device,
                         on_host ? "pinned host" : "device", (double)bytes / 1e9,
                         on_host ? "" : "; --embedding host keeps it in host memory");
    }
    b->embedding = p;
    for (int32_t r = 0; r < table->rows;) {
        struct tensor_slice slice = {table, r, 0, 0, table->cols};
        int32_t most = (int32_t)(STAGE_BYTES / ((size_t)table->cols * sizeof(bf16)));
        struct stage *stage = take_stage(b);
        slice.rows = table->rows - r < most ? table->rows - r : most;
        for (int32_t i = 0; i < slice.rows; i++)
            copy_row((bf16 *)(void *)stage->memory + (int64_t)i * table->cols, DTYPE_BF16, &slice,
                     i);
        CUDA_CHECK(cudaMemcpyAsync(b->embedding + (int64_t)r * table->cols, stage->memory,
                                   (size_t)slice.rows * (size_t)table->cols * sizeof(bf16),
                                   cudaMemcpyDefault, b->upload));
        give_stage(b, stage);
        r += slice.rows;
    }
    CUDA_CHECK(cudaStreamSynchronize(b->upload));
    return 0;
}
