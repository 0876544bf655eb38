/* gemm_cost: a model of what a dense product costs, of memory traffic and products only.
 *
 * Rates are of one SM, so that smaller cards of an architecture come out right where they keep the
 * ratios of the largest: NVIDIA's figures for DRAM and for dense BF16 products with float32 sums;
 * L2 about five times DRAM on cards with GDDR, less with HBM. Then, with T tokens, R rows, K
 * columns and B bytes of weights, all from DRAM unless said:
 *
 *   STREAM   for each 64 tokens n, n8 the next multiple of 8:  the largest of
 *              B / (92% DRAM)             from L2 after the first pass, where half of L2 holds B
 *              (B + ceil(R / 32) * n8 * 2K) / L2             x is read by every item of 32 rows
 *              ceil(items / SMs) * 2 * 32 * n8 * K / (60% of an SM)
 *   TILE     max(B / (80% DRAM), rounds * 2 * 128 * tile tokens * K / (own share of an SM))
 *   LIBRARY  max(B / (80% DRAM), 2 * R * K * ceil(T / 64) * 64 / (90% of all SMs)) + 3 us
 *
 * With FP8 activations x has half the bytes, and an SM twice the rate.
 *
 * A tile walks all K columns on one SM, so few tiles leave SMs idle, which `rounds` counts; the
 * library splits K then, and is charged 3 us for the sum of the parts. The shares are the aims that
 * kernels of these kinds have reached elsewhere. They wait for a measurement on a GPU:
 * gemm_launch_by is there for it.
 */
#include "cuda/cuda_gemm.h"

enum { PASS_TOKENS = 64, ITEM_ROWS = 32, TILE_ROWS = 128 };

/* Of one SM of the largest card. */
struct machine {
    int32_t sm;
    double dram, l2; /* GB/s */
    double tensor;   /* GFLOP/s */
    double tile;     /* share of it that mma.sync tiles reach */
};

static const struct machine machines[] = {
    {80, 1555.0 / 108, 4000.0 / 108, 312000.0 / 108, 0.8},  /* A100, 40 GB */
    {86, 936.0 / 82, 2500.0 / 82, 71000.0 / 82, 0.8},       /* RTX 3090 */
    {89, 1008.0 / 128, 5000.0 / 128, 165200.0 / 128, 0.8},  /* RTX 4090 */
    {90, 3350.0 / 132, 5500.0 / 132, 989000.0 / 132, 0.55}, /* H100; full speed needs wgmma */
    {120, 1792.0 / 170, 8000.0 / 170, 209500.0 / 170, 0.8}, /* RTX 5090 */
};

/* The newest that is not newer than the GPU. */
static const struct machine *machine_of(int32_t sm) {
    const struct machine *found = &machines[0];
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        if (machines[i].sm <= sm)
            found = &machines[i];
    return found;
}

static double larger(double a, double b) {
    return a > b ? a : b;
}
static int64_t parts(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}
/* GB/s and GFLOP/s are thousands in a microsecond. */
static double us(double amount, double rate) {
    return amount / (rate * 1e3);
}

/* Of an SM: FP8 products are twice as fast as BF16 ones. */
static double rate(const struct machine *m, const struct dense_args *a) {
    return a->xq ? m->tensor * 2 : m->tensor;
}

static double stream_us(const struct machine *m, const struct dense_args *a, double bytes) {
    double sms = a->gpu.num_sms, total = 0;
    int64_t items = parts(a->rows, ITEM_ROWS);
    for (int32_t first = 0; first < a->num_tokens; first += PASS_TOKENS) {
        int64_t n = a->num_tokens - first < PASS_TOKENS ? a->num_tokens - first : PASS_TOKENS;
        double row = (double)a->cols * (double)(parts(n, 8) * 8); /* products, or elements of x */
        bool in_l2 = first > 0 && bytes * 2 <= (double)a->gpu.l2_bytes;
        double memory = us(bytes, (in_l2 ? m->l2 : m->dram * 0.92) * sms);
        double l2 = us(bytes + (double)items * row * (a->xq ? 1 : 2), m->l2 * sms);
        double products =
            us((double)parts(items, a->gpu.num_sms) * 2 * ITEM_ROWS * row, rate(m, a) * 0.6);
        total += larger(memory, larger(l2, products));
    }
    return total;
}

static double tile_us(const struct machine *m, const struct dense_args *a, double bytes) {
    int32_t tokens = dense_tile_tokens(a);
    int64_t tiles = parts(a->rows, TILE_ROWS) * parts(a->num_tokens, tokens);
    double products = 2.0 * TILE_ROWS * tokens * a->cols * (double)parts(tiles, a->gpu.num_sms);
    return larger(us(bytes, m->dram * 0.8 * a->gpu.num_sms), us(products, rate(m, a) * m->tile));
}

static double library_us(const struct machine *m, const struct dense_args *a, double bytes) {
    double products = 2.0 * a->rows * a->cols * (double)(parts(a->num_tokens, 64) * 64);
    double sms = a->gpu.num_sms;
    return larger(us(bytes, m->dram * 0.8 * sms), us(products, m->tensor * 0.9 * sms)) + 3;
}

double gemm_cost_us(enum gemm_path path, const struct dense_args *a) {
    const struct machine *m = machine_of(a->gpu.sm);
    double bytes = (double)weight_layout_bytes(a->layout, a->dtype, a->rows, a->cols);
    switch (path) {
    case GEMM_STREAM:
        return stream_us(m, a, bytes);
    case GEMM_TILE:
        return tile_us(m, a, bytes);
    case GEMM_LIBRARY:
        return library_us(m, a, bytes);
    }
    return 0;
}
