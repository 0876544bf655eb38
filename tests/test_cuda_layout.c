/* weight_layout_launch against the words of kernels.h, element by element. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/gpu_fixture.h"

static int32_t padded(int32_t n, int32_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Element index of (row, col) in a layout of `cols` columns. */
static int64_t place(enum weight_layout layout, enum dtype dtype, int32_t cols, int32_t row,
                     int32_t col) {
    int32_t tiles = padded(cols, FRAGMENT_COLS) / FRAGMENT_COLS;
    if (layout == LAYOUT_ROWS)
        return (int64_t)row * tiles * FRAGMENT_COLS + col;
    int64_t tile = (int64_t)(row / FRAGMENT_ROWS) * tiles + col / FRAGMENT_COLS;
    int32_t g = row % 8, high = row % FRAGMENT_ROWS / 8, c = col % FRAGMENT_COLS;
    int32_t lane = g * 4 + c / 8, in_lane = c % 8, at;
    if (dtype == DTYPE_BF16) /* half, lane, then pairs: row g, row g + 8, row g, row g + 8 */
        at = in_lane / 4 * 256 + lane * 8 + (in_lane % 4 / 2 * 2 + high) * 2 + in_lane % 2;
    else /* fours: row g, row g + 8, row g, row g + 8 */
        at = lane * 16 + (in_lane / 4 * 2 + high) * 4 + in_lane % 4;
    return tile * FRAGMENT_ROWS * FRAGMENT_COLS + at;
}

/* Bytes that differ from each other in neighbours, rows and columns. */
static uint8_t element_byte(int32_t row, int32_t col, int32_t byte) {
    return (uint8_t)(1 + (row * 37 + col * 11 + byte * 101) % 255);
}

static void *expected_layout(enum weight_layout layout, enum dtype dtype, int32_t rows,
                             int32_t cols) {
    size_t size = dtype_bytes(dtype);
    uint8_t *out = xcalloc(1, weight_layout_bytes(layout, dtype, rows, cols));
    for (int32_t row = 0; row < rows; row++)
        for (int32_t col = 0; col < cols; col++)
            for (size_t b = 0; b < size; b++)
                out[(size_t)place(layout, dtype, cols, row, col) * size + b] =
                    element_byte(row, col, (int32_t)b);
    return out;
}

/* The rows of a matrix with a row stride, `shift` bytes from an aligned address. What lies between
 * them is not zero: it is another part of the checkpoint's rows. */
static uint8_t *source_rows(enum dtype dtype, int32_t rows, int32_t cols, int64_t ld,
                            size_t shift) {
    size_t size = dtype_bytes(dtype);
    size_t bytes = (size_t)rows * (size_t)ld * size + shift;
    uint8_t *out = xmalloc(bytes);
    memset(out, 0x5a, bytes);
    for (int32_t row = 0; row < rows; row++)
        for (int32_t col = 0; col < cols; col++)
            for (size_t b = 0; b < size; b++)
                out[shift + (size_t)(row * ld + col) * size + b] =
                    element_byte(row, col, (int32_t)b);
    return out;
}

/* Stores the matrix in calls that end at the given rows (the last is `rows`). */
static void check_layout(enum weight_layout layout, enum dtype dtype, int32_t rows, int32_t cols,
                         int64_t ld, size_t shift, const int32_t *ends) {
    size_t bytes = weight_layout_bytes(layout, dtype, rows, cols), size = dtype_bytes(dtype);
    uint8_t *host = source_rows(dtype, rows, cols, ld, shift);
    uint8_t *source = gpu_upload(host, (size_t)rows * (size_t)ld * size + shift);
    uint8_t *want = expected_layout(layout, dtype, rows, cols);
    void *data = gpu_alloc(bytes);
    for (int32_t row0 = 0; row0 < rows; row0 = *ends++)
        weight_layout_launch(data, layout, dtype, rows, cols, row0, *ends - row0,
                             source + shift + (size_t)(row0 * ld) * size, ld, gpu_stream());
    uint8_t *got = gpu_fetch(data, bytes);
    if (memcmp(got, want, bytes) != 0) {
        size_t i = 0;
        while (got[i] == want[i])
            i++;
        FAIL("layout %d, %s, %d x %d, ld %lld, shift %zu: byte %zu is %d, not %d", layout,
             dtype_name(dtype), rows, cols, (long long)ld, shift, i, got[i], want[i]);
    }
    gpu_free(data);
    gpu_free(source);
    free(got);
    free(want);
    free(host);
}

static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F8_E4M3};
static const enum weight_layout layouts[] = {LAYOUT_ROWS, LAYOUT_FRAGMENTS};

TEST(CudaLayout, EveryElementHasItsPlaceAndPaddingIsZero) {
    GPU_OR_SKIP();
    static const int32_t shapes[][2] = {{1, 1},   {16, 32},  {17, 33},  {15, 31},
                                        {50, 48}, {33, 264}, {100, 90}, {64, 256}};
    for (int l = 0; l < 2; l++)
        for (int d = 0; d < 2; d++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                check_layout(layouts[l], dtypes[d], shapes[s][0], shapes[s][1], shapes[s][1], 0,
                             &shapes[s][0]);
}

TEST(CudaLayout, SourcesMayHaveAnyStrideAndAlignment) {
    GPU_OR_SKIP();
    static const int32_t end = 20;
    for (int l = 0; l < 2; l++)
        for (int d = 0; d < 2; d++) {
            size_t size = dtype_bytes(dtypes[d]);
            check_layout(layouts[l], dtypes[d], end, 40, 48, 0, &end);
            check_layout(layouts[l], dtypes[d], end, 40, 45, 0, &end);
            check_layout(layouts[l], dtypes[d], end, 47, 48, 0, &end); /* a load ends beyond it */
            check_layout(layouts[l], dtypes[d], end, 40, 48, 3 * size, &end);
        }
}

TEST(CudaLayout, RowsMayComeInPieces) {
    GPU_OR_SKIP();
    static const int32_t pieces[][5] = {{16, 32, 50}, {1, 2, 16, 40, 50}, {15, 17, 49, 50}};
    for (int l = 0; l < 2; l++)
        for (int d = 0; d < 2; d++)
            for (int i = 0; i < 3; i++)
                check_layout(layouts[l], dtypes[d], 50, 72, 72, 0, pieces[i]);
}

TEST(CudaLayout, NothingIsWrittenForNoRows) {
    GPU_OR_SKIP();
    void *data = gpu_alloc(1024);
    weight_layout_launch(data, LAYOUT_FRAGMENTS, DTYPE_BF16, 16, 32, 0, 0, data, 32, gpu_stream());
    uint8_t *got = gpu_fetch(data, 1024);
    for (int i = 0; i < 1024; i++)
        ASSERT_INT_EQ(got[i], 0xff);
    free(got);
    gpu_free(data);
}

TEST(CudaLayout, MappedPinnedMemoryIsASource) {
    GPU_OR_SKIP();
    uint8_t *rows = source_rows(DTYPE_BF16, 20, 40, 40, 0), *pinned;
    size_t bytes = weight_layout_bytes(LAYOUT_FRAGMENTS, DTYPE_BF16, 20, 40);
    CUDA_CHECK(cudaHostAlloc((void **)&pinned, 20 * 40 * 2, cudaHostAllocMapped));
    memcpy(pinned, rows, 20 * 40 * 2);
    void *data = gpu_alloc(bytes);
    weight_layout_launch(data, LAYOUT_FRAGMENTS, DTYPE_BF16, 20, 40, 0, 20, pinned, 40,
                         gpu_stream());
    void *got = gpu_fetch(data, bytes),
         *want = expected_layout(LAYOUT_FRAGMENTS, DTYPE_BF16, 20, 40);
    EXPECT_MEM_EQ(got, want, bytes);
    gpu_free(data);
    CUDA_CHECK(cudaFreeHost(pinned));
    free(got);
    free(want);
    free(rows);
}
