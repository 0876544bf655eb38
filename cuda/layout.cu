/* layout: row-major rows into the layouts of kernels.h
 *
 * Shapes   source [rows, ld] elements, in device memory or mapped pinned host memory; data as
 *          weight_layout_bytes says, of total_rows x cols.
 * Launch   a block of 256 threads for 16 rows x 128 columns. Phase 1 reads them into shared memory,
 *          16 bytes a thread where the source is aligned, so that reads over PCIe are whole lines;
 *          phase 2 writes 4 bytes a thread, contiguous over a warp.
 * Bytes    the matrix once read and once written; used while loading, bound by PCIe or disk.
 * Requires row0 + rows <= total_rows. A source of any alignment; rows that belong to other calls are
 *          not written, so that a tile may be filled by several.
 */
#include "cuda/cuda_check.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"

constexpr int THREADS = 256;
constexpr int COLS = 128; /* of a block */

struct layout_params {
    char *data;
    const char *source;
    int64_t ld; /* elements */
    int32_t total_rows, cols, row0, rows;
    bool aligned; /* rows of the source are aligned to 16 bytes */
};

static int padded(int n, int unit) {
    return (n + unit - 1) / unit * unit;
}

size_t weight_layout_bytes(enum weight_layout layout, enum dtype dtype, int32_t rows,
                           int32_t cols) {
    int padded_rows = layout == LAYOUT_FRAGMENTS ? padded(rows, FRAGMENT_ROWS) : rows;
    return (size_t)padded_rows * (size_t)padded(cols, FRAGMENT_COLS) * dtype_bytes(dtype);
}

/* The row that word `word` of a tile's row pair has, and its first column within the tile. */
template <int BYTES> DEVICE void fragment_word(int word, int *row, int *col) {
    int lane = word / 4 % WARP, part = word % 4, half = word / (4 * WARP);
    *row = lane / 4 + part % 2 * 8;
    *col = lane % 4 * 8 + (BYTES == 2 ? 4 * half + part / 2 * 2 : part / 2 * 4);
}

/* Elements of `BYTES` bytes. */
template <int BYTES, enum weight_layout LAYOUT>
__global__ void __launch_bounds__(THREADS) layout_kernel(const struct layout_params p) {
    constexpr int PER_LOAD = 16 / BYTES;     /* elements */
    constexpr int ROW_WORDS = COLS * BYTES / 4;
    __shared__ uint32_t tile[FRAGMENT_ROWS][ROW_WORDS + 4]; /* + 4: keeps 16-byte alignment */
    int first_row = (p.row0 / FRAGMENT_ROWS + blockIdx.y) * FRAGMENT_ROWS;
    int first_col = blockIdx.x * COLS;

    /* 1: the block's elements, zeros where there are none */
    for (int i = threadIdx.x; i < FRAGMENT_ROWS * COLS / PER_LOAD; i += THREADS) {
        int r = i / (COLS / PER_LOAD), c = i % (COLS / PER_LOAD) * PER_LOAD;
        int row = first_row + r - p.row0, col = first_col + c;
        bool held = row >= 0 && row < p.rows;
        const char *from = p.source + ((int64_t)row * p.ld + col) * BYTES;
        char *to = (char *)tile[r] + c * BYTES;
        if (held && p.aligned && col + PER_LOAD <= p.cols) {
            *(uint4 *)to = *(const uint4 *)from;
            continue;
        }
        for (int j = 0; j < PER_LOAD; j++) {
            bool valid = held && col + j < p.cols;
            if (BYTES == 2)
                ((uint16_t *)to)[j] = valid ? ((const uint16_t *)from)[j] : 0;
            else
                ((uint8_t *)to)[j] = valid ? ((const uint8_t *)from)[j] : 0;
        }
    }
    __syncthreads(); /* tile holds all rows of this call, and zeros */

    /* 2: this call's rows, and the padding below them */
    int padded_cols = (p.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS * FRAGMENT_COLS;
    int last_row = p.row0 + p.rows;
    if (LAYOUT == LAYOUT_FRAGMENTS && last_row == p.total_rows)
        last_row = (last_row + FRAGMENT_ROWS - 1) / FRAGMENT_ROWS * FRAGMENT_ROWS;
    for (int i = threadIdx.x; i < FRAGMENT_ROWS * ROW_WORDS; i += THREADS) {
        constexpr int tile_words = FRAGMENT_ROWS * FRAGMENT_COLS * BYTES / 4;
        int r = i / ROW_WORDS, c = i % ROW_WORDS * 4 / BYTES;
        if (LAYOUT == LAYOUT_FRAGMENTS) {
            fragment_word<BYTES>(i % tile_words, &r, &c);
            c += i / tile_words * FRAGMENT_COLS;
        }
        int row = first_row + r, col = first_col + c;
        if (row < p.row0 || row >= last_row || col >= padded_cols)
            continue;
        int64_t word = ((int64_t)row * padded_cols + col) * BYTES / 4;
        if (LAYOUT == LAYOUT_FRAGMENTS)
            word = ((int64_t)(first_row / FRAGMENT_ROWS) * (padded_cols / FRAGMENT_COLS) +
                    first_col / FRAGMENT_COLS) * tile_words + i;
        ((uint32_t *)p.data)[word] = tile[r][c * BYTES / 4];
    }
}

template <int BYTES>
static void launch(const struct layout_params *p, enum weight_layout layout, cudaStream_t stream) {
    int first = p->row0 / FRAGMENT_ROWS, last = (p->row0 + p->rows - 1) / FRAGMENT_ROWS;
    dim3 grid(ceil_div(p->cols, COLS), last - first + 1);
    CHECK(grid.y <= 65535, "%d rows at a time: at most 1048560", p->rows);
    if (layout == LAYOUT_FRAGMENTS)
        layout_kernel<BYTES, LAYOUT_FRAGMENTS><<<grid, THREADS, 0, stream>>>(*p);
    else
        layout_kernel<BYTES, LAYOUT_ROWS><<<grid, THREADS, 0, stream>>>(*p);
    LAUNCH_CHECK();
}

void weight_layout_launch(void *data, enum weight_layout layout, enum dtype dtype,
                          int32_t total_rows, int32_t cols, int32_t row0, int32_t rows,
                          const void *source, int64_t ld, cudaStream_t stream) {
    CHECK(dtype == DTYPE_BF16 || dtype == DTYPE_F8_E4M3, "no layout for %s", dtype_name(dtype));
    CHECK(row0 >= 0 && rows >= 0 && row0 + (int64_t)rows <= total_rows && cols > 0,
          "rows %d + %d of %d, %d columns", row0, rows, total_rows, cols);
    if (rows == 0)
        return;
    int64_t row_bytes = ld * (int64_t)dtype_bytes(dtype);
    struct layout_params p = {(char *)data, (const char *)source, ld, total_rows, cols, row0, rows,
                              (uintptr_t)source % 16 == 0 && row_bytes % 16 == 0};
    if (dtype == DTYPE_BF16)
        launch<2>(&p, layout, stream);
    else
        launch<1>(&p, layout, stream);
}
