/* units: dense products as partials in exact sums over units: checks, and which kernel it is.
 */
#include "cuda/units.cuh"

#include <limits.h>

#include "cuda/cuda_check.h"

static void check(const struct dense_args *a, int32_t unit) {
    CHECK(a->dtype == DTYPE_BF16 ? a->scale == SCALE_NONE
                                 : a->dtype == DTYPE_F8_E4M3 && a->scale != SCALE_NONE &&
                                       a->layout == LAYOUT_FRAGMENTS,
          "dtype %d with scale %d in layout %d", a->dtype, a->scale, a->layout);
    CHECK(!a->xq || (a->dtype == DTYPE_F8_E4M3 && a->gpu.sm >= MIN_F8_SM),
          "FP8 activations with dtype %d on sm_%d", a->dtype, a->gpu.sm);
    CHECK(a->block_col0 >= 0 && a->block_col0 < SCALE_BLOCK_SIZE &&
              a->block_col0 % FRAGMENT_COLS == 0,
          "block_col0 %d", a->block_col0);
    CHECK(a->rows > 0 && a->cols > 0 && a->ldx >= a->cols && a->ldx <= INT32_MAX && a->ldy >= a->rows,
          "rows %d, cols %d, ldx %lld, ldy %lld", a->rows, a->cols, (long long)a->ldx,
          (long long)a->ldy);
    CHECK(unit > 0, "a unit of %d columns", unit);
}

static struct unit_args unit_args_of(double *y, const struct dense_args *a, int32_t unit) {
    struct unit_args u = {};
    u.a = *a;
    u.y = y;
    u.unit_tiles = unit / FRAGMENT_COLS;
    return u;
}

void dense_units_launch(double *y, const struct dense_args *a, int32_t unit, cudaStream_t stream) {
    struct unit_args u = unit_args_of(y, a, unit);
    check(a, unit);
    u.moe.stream_limit = INT_MAX;
    if (a->num_tokens == 0)
        return;
    if (unit % FRAGMENT_COLS != 0)
        unit_odd_launch(y, a, unit, stream);
    else
        unit_stream_launch(&u, stream);
}

void dense_units_tile_launch(double *y, const struct dense_args *a, int32_t unit,
                             cudaStream_t stream) {
    struct unit_args u = unit_args_of(y, a, unit);
    check(a, unit);
    CHECK(unit % FRAGMENT_COLS == 0, "a unit of %d columns", unit);
    CHECK(dense_tile_takes(a), "cols %d, ldx %lld, dtype %d in layout %d", a->cols,
          (long long)a->ldx, a->dtype, a->layout);
    if (a->num_tokens > 0)
        unit_tile_launch(&u, stream);
}
