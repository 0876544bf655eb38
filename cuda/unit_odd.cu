/* unit_odd: partials in exact sums over units of columns that are not whole tiles
 *
 *   y[t, r] = sum over units of (double)(unit sum)                            (units.cuh)
 *
 * Shapes   x [T, ldx] bf16; W [rows, cols] BF16 in either layout, E4M3 with scales as FRAGMENTS;
 *          y [T, ldy] float64. A unit has any number of columns: heads of 80, say.
 * Launch   a warp for each weight row and token, 8 a block; the lanes share the units.
 * Bytes    W once for each token, in pieces of one element: far from any limit. For models whose
 *          heads are not made for tensor cores, when the bits matter more than the time.
 * Numerics a unit is a float32 chain of fma in the order of its columns (SCALE_BLOCK: one for each
 *          block that it lies in), times its scale: independent of T and of where the columns were
 *          cut at units. Not the bits of unit_stream.cu.
 */
#include "cuda/cuda_check.h"
#include "cuda/units.cuh"

constexpr int WARPS = 8;
constexpr int MAX_GRID_TOKENS = 1024; /* more tokens are taken in turns */

/* W[row, col] as a float. A row has `tiles` tiles; how FRAGMENTS lie is in kernels.h. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE float weight_at(const void *data, int row, int col, int tiles) {
    int64_t tile = (int64_t)(row / FRAGMENT_ROWS) * tiles + col / FRAGMENT_COLS;
    int in_row = row % FRAGMENT_ROWS, in_tile = col % FRAGMENT_COLS;
    int lane = in_row % 8 * 4 + in_tile / 8, high = in_row / 8;
    if constexpr (IS_F8<KIND>) {
        int part = in_tile % 8 / 4 * 2 + high;
        const uint8_t *e = (const uint8_t *)data + tile * TILE_BYTES<KIND>;
        return bf16_low(e4m3_bf16<0>(e[lane * 16 + part * 4 + in_tile % 4]));
    } else if constexpr (LAYOUT == LAYOUT_FRAGMENTS) {
        int half = in_tile % 8 / 4, part = in_tile % 4 / 2 * 2 + high;
        const bf16 *e = (const bf16 *)data + tile * (FRAGMENT_ROWS * FRAGMENT_COLS);
        return bf16_low(e[(half * WARP + lane) * 8 + part * 2 + in_tile % 2]);
    } else {
        return bf16_low(((const bf16 *)data)[(int64_t)row * tiles * FRAGMENT_COLS + col]);
    }
}

/* total += the unit of columns [first, last). `x` is a token's row. */
template <enum weight_kind KIND, enum weight_layout LAYOUT>
DEVICE void odd_unit_add(float total[3], const struct dense_args &a, const bf16 *x, int row,
                         int first, int last) {
    int tiles = (a.cols + FRAGMENT_COLS - 1) / FRAGMENT_COLS;
    const float *of_blocks = block_scales<KIND>(a.weight_scale, row / FRAGMENT_ROWS, tiles,
                                                a.block_col0 / FRAGMENT_COLS);
    float chain = 0;
    for (int col = first; col < last; col++) {
        int at = col + a.block_col0;
        chain = __fmaf_rn(weight_at<KIND, LAYOUT>(a.weight, row, col, tiles), bf16_low(x[col]), chain);
        bool ends = col + 1 == last || (IS_F8_BLOCK<KIND> && (at + 1) % SCALE_BLOCK_SIZE == 0);
        if (!ends)
            continue;
        if (IS_F8_ROW<KIND>)
            chain = __fmul_rn(chain, a.weight_scale[row]);
        if (IS_F8_BLOCK<KIND>)
            chain = __fmul_rn(chain, of_blocks[at / SCALE_BLOCK_SIZE]);
        exact_add(total, chain);
        chain = 0;
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
__global__ void __launch_bounds__(WARPS * WARP)
    unit_odd_kernel(double *y, const struct dense_args a, int32_t unit) {
    int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= a.rows)
        return;
    for (int t = blockIdx.y; t < a.num_tokens; t += gridDim.y) {
        float total[3] = {};
        for (int64_t first = (int64_t)lane * unit; first < a.cols; first += (int64_t)WARP * unit)
            odd_unit_add<KIND, LAYOUT>(total, a, a.x + t * a.ldx, row, (int)first,
                                       (int)min(first + unit, (int64_t)a.cols));
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) {
            float other[3];
#pragma unroll
            for (int i = 0; i < 3; i++)
                other[i] = __shfl_xor_sync(ALL_LANES, total[i], step);
#pragma unroll
            for (int i = 0; i < 3; i++)
                exact_add(total, other[i]);
        }
        if (lane == 0)
            y[t * a.ldy + row] = exact_double(total);
    }
}

template <enum weight_kind KIND, enum weight_layout LAYOUT>
static void launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream) {
    int32_t tokens = a->num_tokens < MAX_GRID_TOKENS ? a->num_tokens : MAX_GRID_TOKENS;
    dim3 grid((unsigned)ceil_div(a->rows, WARPS), (unsigned)tokens);
    unit_odd_kernel<KIND, LAYOUT><<<grid, WARPS * WARP, 0, stream>>>(y, *a, unit);
    LAUNCH_CHECK();
}

void unit_odd_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream) {
    CHECK(!a->xq, "FP8 activations and units of %d columns, which is no multiple of %d", unit,
          FRAGMENT_COLS);
    if (a->dtype == DTYPE_BF16 && a->layout == LAYOUT_ROWS)
        launch<WEIGHT_BF16, LAYOUT_ROWS>(y, a, unit, stream);
    else if (a->dtype == DTYPE_BF16)
        launch<WEIGHT_BF16, LAYOUT_FRAGMENTS>(y, a, unit, stream);
    else if (a->scale == SCALE_ROW)
        launch<WEIGHT_F8_ROW, LAYOUT_FRAGMENTS>(y, a, unit, stream);
    else
        launch<WEIGHT_F8_BLOCK, LAYOUT_FRAGMENTS>(y, a, unit, stream);
}
