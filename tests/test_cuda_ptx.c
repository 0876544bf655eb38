/* The wrappers of cuda/ptx.cuh, each against a plain loop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/cuda_ptx_kernels.h"
#include "tests/gpu_fixture.h"

enum { LANES = 32, M = 16, N = 8, K = 16 };

/* ---- mma ------------------------------------------------------------------------------------- */

/* Small whole numbers, which bf16, f16 and every order of sums hold exactly. */
struct product {
    float a[M][K], b[K][N], c[M][N];
};

static struct product random_product(uint64_t salt) {
    struct rng r = rng_seeded(salt);
    struct product p;
    for (int k = 0; k < K; k++) {
        for (int m = 0; m < M; m++)
            p.a[m][k] = (float)(rng_below(&r, 61) - 30);
        for (int n = 0; n < N; n++)
            p.b[k][n] = (float)(rng_below(&r, 61) - 30);
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            p.c[m][n] = (float)(rng_below(&r, 2001) - 1000);
    return p;
}

static uint32_t pair_of(enum dtype dtype, float low, float high) {
    uint16_t halves[2];
    dtype_store(dtype, halves, 0, low);
    dtype_store(dtype, halves, 1, high);
    return halves[0] | (uint32_t)halves[1] << 16;
}

/* The fragments as ptx.cuh words them. */
static void fragments(const struct product *p, enum dtype dtype, uint32_t a[LANES][4],
                      uint32_t b[LANES][2], float c[LANES][4]) {
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
            a[l][i] = pair_of(dtype, p->a[row][k], p->a[row][k + 1]);
            c[l][i] = p->c[g + i / 2 * 8][2 * t + i % 2];
        }
        for (int i = 0; i < 2; i++)
            b[l][i] = pair_of(dtype, p->b[2 * t + i * 8][g], p->b[2 * t + i * 8 + 1][g]);
    }
}

static void check_mma(uint64_t salt, enum dtype dtype) {
    struct product p = random_product(salt);
    uint32_t a[LANES][4], b[LANES][2];
    float c[LANES][4];
    fragments(&p, dtype, a, b, c);
    uint32_t *da = gpu_upload(a, sizeof a), *db = gpu_upload(b, sizeof b);
    float *dc = gpu_upload(c, sizeof c), *out = gpu_alloc(sizeof c);
    if (dtype == DTYPE_BF16)
        ptx_mma_bf16(out, da, db, dc, gpu_stream());
    else
        ptx_mma_f16(out, da, db, dc, gpu_stream());
    float *got = gpu_fetch(out, sizeof c);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) {
            int m = l / 4 + i / 2 * 8, n = l % 4 * 2 + i % 2;
            float want = p.c[m][n];
            for (int k = 0; k < K; k++)
                want += p.a[m][k] * p.b[k][n];
            EXPECT_NEAR(got[l * 4 + i], want, 0);
        }
    free(got);
    gpu_free(da);
    gpu_free(db);
    gpu_free(dc);
    gpu_free(out);
}

TEST(CudaPtx, MmaBf16IsAMatrixProduct) {
    GPU_OR_SKIP();
    check_mma(500, DTYPE_BF16);
}

TEST(CudaPtx, MmaF16IsAMatrixProduct) {
    GPU_OR_SKIP();
    check_mma(501, DTYPE_F16);
}

/* Whole numbers up to 8 and sums below 4096: exact with 13 bits of mantissa. */
TEST(CudaPtx, MmaE4m3IsAMatrixProduct) {
    GPU_OR_SKIP();
    F8_OR_SKIP();
    enum { K8 = 32 };
    struct rng r = rng_seeded(502);
    float a[M][K8], b[K8][N], c[M][N], sums[LANES][4];
    uint8_t ra[LANES][16], rb[LANES][8];
    for (int k = 0; k < K8; k++) {
        for (int m = 0; m < M; m++)
            a[m][k] = (float)(rng_below(&r, 17) - 8);
        for (int n = 0; n < N; n++)
            b[k][n] = (float)(rng_below(&r, 17) - 8);
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            c[m][n] = (float)(rng_below(&r, 2001) - 1000);
    for (int l = 0; l < LANES; l++) { /* the fragments as ptx.cuh words them */
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 16; i++)
            ra[l][i] = e4m3_from_f32(a[g + i / 4 % 2 * 8][4 * t + i % 4 + i / 8 * 16]);
        for (int i = 0; i < 8; i++)
            rb[l][i] = e4m3_from_f32(b[4 * t + i % 4 + i / 4 * 16][g]);
        for (int i = 0; i < 4; i++)
            sums[l][i] = c[g + i / 2 * 8][2 * t + i % 2];
    }
    uint32_t *da = gpu_upload(ra, sizeof ra), *db = gpu_upload(rb, sizeof rb);
    float *dc = gpu_upload(sums, sizeof sums), *out = gpu_alloc(sizeof sums);
    ptx_mma_e4m3(out, da, db, dc, gpu_stream());
    float *got = gpu_fetch(out, sizeof sums);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) {
            int m = l / 4 + i / 2 * 8, n = l % 4 * 2 + i % 2;
            float want = c[m][n];
            for (int k = 0; k < K8; k++)
                want += a[m][k] * b[k][n];
            EXPECT_NEAR(got[l * 4 + i], want, 0);
        }
    free(got);
    gpu_free(da);
    gpu_free(db);
    gpu_free(dc);
    gpu_free(out);
}

/* ---- ldmatrix -------------------------------------------------------------------------------- */

static void check_ldmatrix(bool trans) {
    uint16_t in[LANES][8];
    for (int row = 0; row < LANES; row++)
        for (int col = 0; col < 8; col++)
            in[row][col] = (uint16_t)(row << 8 | col);
    uint16_t *device = gpu_upload(in, sizeof in);
    uint32_t *out = gpu_alloc(LANES * 4 * sizeof *out);
    if (trans)
        ptx_ldmatrix_trans(out, device, gpu_stream());
    else
        ptx_ldmatrix(out, device, gpu_stream());
    uint32_t *got = gpu_fetch(out, LANES * 4 * sizeof *out);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) {
            int row = l / 4, col = l % 4 * 2;
            uint32_t low = trans ? in[i * 8 + col][row] : in[i * 8 + row][col];
            uint32_t high = trans ? in[i * 8 + col + 1][row] : in[i * 8 + row][col + 1];
            EXPECT_INT_EQ(got[l * 4 + i], low | high << 16);
        }
    free(got);
    gpu_free(out);
    gpu_free(device);
}

TEST(CudaPtx, LdmatrixGivesLanesTheirElements) {
    GPU_OR_SKIP();
    check_ldmatrix(false);
}

TEST(CudaPtx, LdmatrixTransGivesLanesThoseOfTheTransposedMatrices) {
    GPU_OR_SKIP();
    check_ldmatrix(true);
}

/* ---- copies and loads ------------------------------------------------------------------------ */

static void fill_bytes(uint8_t *out, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(1 + i * 7 % 251);
}

TEST(CudaPtx, CpAsyncCopiesWhatIsValidAndZeroesTheRest) {
    GPU_OR_SKIP();
    uint8_t in[PTX_COPY_STAGES * 512], want[sizeof in];
    int32_t valid[LANES];
    fill_bytes(in, sizeof in);
    memcpy(want, in, sizeof in);
    for (int l = 0; l < LANES; l++) {
        valid[l] = l % 3 != 1;
        for (int s = 0; s < PTX_COPY_STAGES && !valid[l]; s++)
            memset(want + s * 512 + l * 16, 0, 16);
    }
    uint8_t *device = gpu_upload(in, sizeof in), *out = gpu_alloc(sizeof in);
    int32_t *device_valid = gpu_upload(valid, sizeof valid);
    ptx_cp_async(out, device, device_valid, gpu_stream());
    uint8_t *got = gpu_fetch(out, sizeof in);
    EXPECT_MEM_EQ(got, want, sizeof want);
    free(got);
    gpu_free(device);
    gpu_free(device_valid);
    gpu_free(out);
}

TEST(CudaPtx, StreamingLoadsAreLoads) {
    GPU_OR_SKIP();
    uint8_t in[512];
    fill_bytes(in, sizeof in);
    uint8_t *device = gpu_upload(in, sizeof in);
    uint8_t *out16 = gpu_alloc(512), *out8 = gpu_alloc(256);
    ptx_load_stream16(out16, device, gpu_stream());
    ptx_load_stream8(out8, device, gpu_stream());
    uint8_t *got16 = gpu_fetch(out16, 512), *got8 = gpu_fetch(out8, 256);
    EXPECT_MEM_EQ(got16, in, 512);
    EXPECT_MEM_EQ(got8, in, 256);
    free(got16);
    free(got8);
    gpu_free(device);
    gpu_free(out16);
    gpu_free(out8);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

TEST(CudaPtx, Exp2IsWithinTwoUlpAndExactWhereItSaysSo) {
    GPU_OR_SKIP();
    enum { STEPS = 1000 };
    float x[STEPS + 3];
    for (int i = 0; i < STEPS; i++)
        x[i] = -125.5f + 0.2513f * (float)i;
    x[STEPS] = 0;
    x[STEPS + 1] = -INFINITY;
    x[STEPS + 2] = -150;
    float *device = gpu_upload(x, sizeof x), *y = gpu_alloc(sizeof x);
    ptx_exp2(y, device, STEPS + 3, gpu_stream());
    float *got = gpu_fetch(y, sizeof x);
    for (int i = 0; i < STEPS; i++)
        EXPECT_NEAR(got[i] / exp2((double)x[i]), 1, 2.0 / (1 << 23));
    EXPECT_NEAR(got[STEPS], 1, 0);
    EXPECT_NEAR(got[STEPS + 1], 0, 0);
    EXPECT_NEAR(got[STEPS + 2], 0, 0);
    free(got);
    gpu_free(device);
    gpu_free(y);
}

/* E4M3 of a code as the kernels have it: NaN is +-480 in bf16. */
static float e4m3_value(uint32_t code) {
    float sign = code & 0x80 ? -1.0f : 1.0f;
    return (code & 0x7f) == 0x7f ? sign * 480 : e4m3_to_f32((uint8_t)code);
}

static void check_bf16(uint32_t pair, uint32_t code, int half) {
    uint32_t bits = f32_bits(e4m3_value(code));
    EXPECT_INT_EQ(half ? pair & 0xffff0000u : pair << 16, bits);
}

TEST(CudaPtx, EveryCodeOfE4m3IsWidenedExactly) {
    GPU_OR_SKIP();
    size_t bytes = 256 * sizeof(uint32_t);
    uint32_t *low = gpu_alloc(bytes), *high = gpu_alloc(bytes), *f16 = gpu_alloc(bytes);
    ptx_e4m3(low, high, f16, gpu_stream());
    uint32_t *got_low = gpu_fetch(low, bytes), *got_high = gpu_fetch(high, bytes);
    uint32_t *got_f16 = gpu_fetch(f16, bytes);
    for (uint32_t i = 0; i < 256; i++) {
        check_bf16(got_low[i], i, 0);
        check_bf16(got_low[i], 255 - i, 1);
        check_bf16(got_high[i], i ^ 0x55, 0);
        check_bf16(got_high[i], i, 1);
        float value = f16_to_f32((uint16_t)got_f16[i]), want = e4m3_to_f32((uint8_t)i);
        EXPECT_TRUE(isnan(want) ? isnan(value) : f32_bits(value) == f32_bits(want));
        value = f16_to_f32((uint16_t)(got_f16[i] >> 16));
        want = e4m3_to_f32((uint8_t)(255 - i));
        EXPECT_TRUE(isnan(want) ? isnan(value) : f32_bits(value) == f32_bits(want));
    }
    free(got_low);
    free(got_high);
    free(got_f16);
    gpu_free(low);
    gpu_free(high);
    gpu_free(f16);
}

/* ---- architecture ---------------------------------------------------------------------------- */

TEST(CudaPtx, TheArchitectureOfKernelsIsTheOneTheyWereCompiledFor) {
    GPU_OR_SKIP();
    int32_t *device = gpu_alloc(sizeof *device), arch;
    ptx_arch(device, gpu_stream());
    int32_t *seen = gpu_fetch(device, sizeof *seen);
    EXPECT_INT_EQ(kernels_arch(&arch), cudaSuccess);
    EXPECT_INT_EQ(10 * arch, *seen);
    EXPECT_INT_LE(arch, gpu_test_info().sm);
    free(seen);
    gpu_free(device);
}
