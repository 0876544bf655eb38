/* Matrix instructions of the PTX machine: ldmatrix, stmatrix, movmatrix and mma.
 *
 * Which lane holds which element is written down here as the PTX manual draws it, element by
 * element, and the products are compared with plain loops. Elements are small integers, no two rows
 * or columns alike, so that every sum is exact and a transposed or swapped fragment shows.
 */
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/exact_fixture.h"
#include "tests/ptxvm/machine_fixture.h"

enum { LANES = 32, M = 16, N = 8 };

/* ---- ldmatrix, stmatrix, movmatrix ----------------------------------------------------------- */

/* Element e (0 or 1) of a register of lane l is row l / 4, column 2 (l % 4) + e of its matrix. */
static uint32_t fragment(uint32_t matrix, uint32_t lane, bool transposed) {
    uint32_t pair = 0;
    for (uint32_t e = 0; e < 2; e++) {
        uint32_t row = lane / 4, col = 2 * (lane % 4) + e, r = transposed ? col : row;
        pair |= (matrix * 1000 + r * 37 + (transposed ? row : col)) << 16 * e;
    }
    return pair;
}

/* Shared memory: row r of matrix m, 8 elements, at 16 bytes times r * 5 % 8 + 8 m, so that rows lie
 * in no order. Element: 1000 m + 37 r + column. Lane l has row l % 8 of matrix l / 8. */
#define ROWS_IN_SHARED                                                                             \
    ".reg .b32 %row<4>;\nmov.u32 %r10, sh;\nand.b32 %r11, %r0, 7;\nshr.u32 %r12, %r0, 3;\n"        \
    "mul.lo.u32 %r13, %r11, 5;\nand.b32 %r13, %r13, 7;\nmad.lo.u32 %r13, %r12, 8, %r13;\n"         \
    "mad.lo.u32 %r20, %r13, 16, %r10;\nmul.lo.u32 %r14, %r12, 1000;\n"                             \
    "mad.lo.u32 %r14, %r11, 37, %r14;\nmul.lo.u32 %r14, %r14, 0x10001;\n"                          \
    "add.u32 %row0, %r14, 0x10000;\nadd.u32 %row1, %r14, 0x30002;\n"                               \
    "add.u32 %row2, %r14, 0x50004;\nadd.u32 %row3, %r14, 0x70006;\n"                               \
    "st.shared.v4.b32 [%r20], {%row0, %row1, %row2, %row3};\nbar.warp.sync -1;\n"
#define STORE4                                                                                     \
    "mad.wide.u32 %d1, %r0, 16, %d0;\nst.global.v4.u32 [%d1], {%r30, %r31, %r32, %r33};\n"
#define SHARED ".shared .align 16 .b8 sh[512];\n"

static void check_fragments(const uint32_t *data, uint32_t count, bool transposed) {
    for (uint32_t l = 0; l < LANES; l++)
        for (uint32_t m = 0; m < 4; m++)
            EXPECT_INT_EQ(data[4 * l + m], m < count ? fragment(m, l, transposed) : 0);
}
#define CHECK_FRAGMENTS(count, transposed)                                                         \
    static void check_x##count##_##transposed(const uint32_t *data) {                              \
        check_fragments(data, count, transposed);                                                  \
    }
CHECK_FRAGMENTS(1, 0)
CHECK_FRAGMENTS(2, 0)
CHECK_FRAGMENTS(4, 0)
CHECK_FRAGMENTS(1, 1)
CHECK_FRAGMENTS(2, 1)
CHECK_FRAGMENTS(4, 1)

TEST(MachineMatrix, LdmatrixHandsOutRowsOrColumns) {
    static const struct {
        const char *instruction;
        void (*check)(const uint32_t *data);
    } rows[] = {
        {"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r30}, [%r20];\n", check_x1_0},
        {"ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r30, %r31}, [%r20];\n", check_x2_0},
        {"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30, %r31, %r32, %r33}, [%r20];\n",
         check_x4_0},
        {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r30}, [%r20];\n", check_x1_1},
        {"ldmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 {%r30, %r31}, [%r20];\n", check_x2_1},
        {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r30, %r31, %r32, %r33}, [%r20];\n",
         check_x4_1},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        char body[2048];
        snprintf(body, sizeof body,
                 "%smov.u32 %%r31, 0;\nmov.u32 %%r32, 0;\nmov.u32 %%r33, 0;\n%s%s", ROWS_IN_SHARED,
                 rows[n].instruction, STORE4);
        machine_run_case(&(struct machine_case){.before = SHARED,
                                                .body = body,
                                                .blocks = 1,
                                                .threads = 32,
                                                .words = 128,
                                                .check = rows[n].check});
    }
}

/* What stmatrix writes, ldmatrix reads: matrices 1 and 0 swapped, and the others transposed. */
static void check_stored(const uint32_t *data) {
    for (uint32_t l = 0; l < LANES; l++) {
        const uint32_t expected[] = {fragment(1, l, false), fragment(0, l, false),
                                     fragment(2, l, true), fragment(3, l, true)};
        EXPECT_MEM_EQ(data + 4 * l, expected, sizeof expected);
    }
}

TEST(MachineMatrix, StmatrixIsTheReverse) {
    machine_run_case(&(struct machine_case){
        .before = SHARED,
        .body = ROWS_IN_SHARED
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30, %r31, %r32, %r33}, [%r20];\n"
        "bar.warp.sync -1;\nstmatrix.sync.aligned.m8n8.x2.shared.b16 [%r20], {%r31, %r30};\n"
        "add.u32 %r21, %r20, 256;\n"
        "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%r21], {%r32, %r33};\n"
        "bar.warp.sync -1;\n"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30, %r31, %r32, %r33}, [%r20];\n" STORE4,
        .blocks = 1,
        .threads = 32,
        .words = 128,
        .check = check_stored});
}

static void check_moved(const uint32_t *data) {
    for (uint32_t l = 0; l < LANES; l++)
        EXPECT_INT_EQ(data[l], fragment(2, l, true));
}

TEST(MachineMatrix, MovmatrixTransposesARegister) {
    machine_run_case(&(struct machine_case){
        .before = SHARED,
        .body = ROWS_IN_SHARED
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30, %r31, %r32, %r33}, [%r20];\n"
        "movmatrix.sync.aligned.m8n8.trans.b16 %r34, %r32;\nst.global.u32 [%d1], %r34;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .check = check_moved});
}

/* ---- mma ------------------------------------------------------------------------------------- */

enum element { F16, BF16, E4M3, E5M2, S8, U8 };

struct product {
    const char *op;
    enum element a, b;
    uint32_t k;
    bool half_sums; /* C and D are f16 */
};

static uint32_t element_bytes(enum element e) {
    return e <= BF16 ? 2 : 1;
}
static uint32_t element_bits(enum element e, int32_t v) {
    uint64_t f32 = exact_scale(&exact_f32, EXACT_NEAREST, v < 0, (uint64_t)(v < 0 ? -v : v), 0);
    switch (e) {
    case F16:
        return (uint32_t)exact_convert(&exact_f16, EXACT_ZERO, &exact_f32, f32);
    case BF16:
        return (uint32_t)exact_convert(&exact_bf16, EXACT_ZERO, &exact_f32, f32);
    case E5M2:
        return (uint32_t)exact_convert(&exact_e5m2, EXACT_ZERO, &exact_f32, f32);
    case E4M3: /* 4 bits of exponent and 3 of mantissa: those of float32, with another bias */
        return v ? ((uint32_t)f32 >> 24 & 0x80) | (((uint32_t)f32 >> 20 & 0x7ff) - 120 * 8) : 0;
    default:
        return (uint32_t)v & 255;
    }
}

/* Small enough for every format: at most 4 in magnitude, for U8 not negative. */
static int32_t a_at(const struct product *p, uint32_t row, uint32_t k) {
    int32_t v = (int32_t)((row * 7 + k * 3 + row * k) % 9) - 4;
    return p->a == U8 ? (v < 0 ? -v : v) : v;
}
static int32_t b_at(const struct product *p, uint32_t k, uint32_t col) {
    int32_t v = (int32_t)((k * 5 + col * 2 + k * col) % 7) - 3;
    return p->b == U8 ? (v < 0 ? -v : v) : v;
}
static int32_t c_at(uint32_t row, uint32_t col) {
    return (int32_t)(row * 8 + col) - 60;
}

/* Of register r of lane l, the element in place i. A: registers alternate between the rows g and
 * g + 8, and every two of them go on by 16 bytes of k; B: every register does. */
static uint32_t fragment_a(const struct product *p, uint32_t lane, uint32_t r) {
    uint32_t bytes = element_bytes(p->a), word = 0;
    for (uint32_t i = 0; i < 4 / bytes; i++) {
        uint32_t row = lane / 4 + 8 * (r % 2), k = (16 * (r / 2) + 4 * (lane % 4)) / bytes + i;
        word |= element_bits(p->a, a_at(p, row, k)) << 8 * bytes * i;
    }
    return word;
}
static uint32_t fragment_b(const struct product *p, uint32_t lane, uint32_t r) {
    uint32_t bytes = element_bytes(p->b), word = 0;
    for (uint32_t i = 0; i < 4 / bytes; i++) {
        uint32_t k = (16 * r + 4 * (lane % 4)) / bytes + i;
        word |= element_bits(p->b, b_at(p, k, lane / 4)) << 8 * bytes * i;
    }
    return word;
}

static bool is_integer(const struct product *p) {
    return p->a >= S8;
}
static uint32_t sum_bits(const struct product *p, int32_t v) {
    if (is_integer(p))
        return (uint32_t)v;
    return p->half_sums ? element_bits(F16, v)
                        : (uint32_t)exact_scale(&exact_f32, EXACT_NEAREST, v < 0,
                                                (uint64_t)(v < 0 ? -v : v), 0);
}
/* Register r of C or D: of 32 bits, (g, 2t), (g, 2t + 1) and the same 8 rows below; of f16, two in
 * a register. */
static uint32_t fragment_c(const struct product *p, uint32_t lane, uint32_t r, int32_t sums[M][N]) {
    uint32_t row = lane / 4, col = 2 * (lane % 4);
    if (p->half_sums)
        return sum_bits(p, sums[row + 8 * r][col]) | sum_bits(p, sums[row + 8 * r][col + 1]) << 16;
    return sum_bits(p, sums[row + 8 * (r / 2)][col + r % 2]);
}

/* A lane's words of the buffer: 4 of A, 2 of B, 4 of C, 4 of D. */
enum { AT_A = 0, AT_B = 4, AT_C = 6, AT_D = 10, LANE_WORDS = 16 };

static void list_registers(char *out, size_t bytes, uint32_t first, uint32_t count) {
    size_t at = 0;
    for (uint32_t r = 0; r < count; r++)
        at += (size_t)snprintf(out + at, bytes - at, "%s%%r%u", r ? ", " : "", first + r);
}

static void product_body(const struct product *p, char *out, size_t bytes) {
    uint32_t num_b = p->k * element_bytes(p->a) / 16, num_c = p->half_sums ? 2 : 4;
    char a[64], b[64], c[64], d[64];
    list_registers(a, sizeof a, 20, 2 * num_b);
    list_registers(b, sizeof b, 24, num_b);
    list_registers(c, sizeof c, 26, num_c);
    list_registers(d, sizeof d, 30, num_c);
    int at = snprintf(out, bytes, "mad.wide.u32 %%d1, %%r0, %d, %%d0;\n", 4 * LANE_WORDS);
    for (int r = 0; r < 10; r++)
        at += snprintf(out + at, bytes - (size_t)at, "ld.global.u32 %%r%d, [%%d1+%d];\n", 20 + r,
                       4 * r);
    at += snprintf(out + at, bytes - (size_t)at, "mma.sync.aligned.%s {%s}, {%s}, {%s}, {%s};\n",
                   p->op, d, a, b, c);
    for (uint32_t r = 0; r < num_c; r++)
        at += snprintf(out + at, bytes - (size_t)at, "st.global.u32 [%%d1+%u], %%r%u;\n",
                       4 * (AT_D + r), 30 + r);
}

static void check_product(const struct product *p) {
    int32_t c[M][N], d[M][N];
    char body[2048];
    for (uint32_t row = 0; row < M; row++)
        for (uint32_t col = 0; col < N; col++) {
            c[row][col] = d[row][col] = c_at(row, col);
            for (uint32_t k = 0; k < p->k; k++)
                d[row][col] += a_at(p, row, k) * b_at(p, k, col);
        }
    uint32_t(*data)[LANE_WORDS] = machine_alloc(LANES * sizeof *data);
    for (uint32_t l = 0; l < LANES; l++)
        for (uint32_t r = 0; r < 4; r++) {
            data[l][AT_A + r] = fragment_a(p, l, r);
            data[l][AT_B + r % 2] = fragment_b(p, l, r % 2);
            data[l][AT_C + r] = fragment_c(p, l, p->half_sums ? r % 2 : r, c);
        }
    product_body(p, body, sizeof body);
    if (machine_run_body(NULL, body, 1, LANES, data))
        for (uint32_t l = 0; l < LANES && !shim_failed(); l++)
            for (uint32_t r = 0; r < (p->half_sums ? 2 : 4); r++)
                if (data[l][AT_D + r] != fragment_c(p, l, r, d))
                    FAIL("mma %s lane %u register %u: 0x%x, expected 0x%x", p->op, l, r,
                         data[l][AT_D + r], fragment_c(p, l, r, d));
    machine_free(data);
}

TEST(MachineMatrix, ProductsHaveTheManualsFragments) {
    static const struct product rows[] = {
        {"m16n8k8.row.col.f32.f16.f16.f32", F16, F16, 8, false},
        {"m16n8k16.row.col.f32.f16.f16.f32", F16, F16, 16, false},
        {"m16n8k16.row.col.f16.f16.f16.f16", F16, F16, 16, true},
        {"m16n8k8.row.col.f32.bf16.bf16.f32", BF16, BF16, 8, false},
        {"m16n8k16.row.col.f32.bf16.bf16.f32", BF16, BF16, 16, false},
        {"m16n8k32.row.col.f32.e4m3.e4m3.f32", E4M3, E4M3, 32, false},
        {"m16n8k32.row.col.f32.e5m2.e5m2.f32", E5M2, E5M2, 32, false},
        {"m16n8k32.row.col.f32.e4m3.e5m2.f32", E4M3, E5M2, 32, false},
        {"m16n8k16.row.col.s32.s8.s8.s32", S8, S8, 16, false},
        {"m16n8k32.row.col.s32.s8.s8.s32", S8, S8, 32, false},
        {"m16n8k32.row.col.s32.u8.s8.s32", U8, S8, 32, false},
        {"m16n8k32.row.col.s32.s8.u8.s32", S8, U8, 32, false},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
        check_product(&rows[n]);
}

/* Every product is 127 * 127 and each sum has 32 of them on top of INT32_MAX - 1000. */
static void prepare_large(uint32_t *data) {
    for (uint32_t n = 0; n < 64; n++)
        data[n] = 0;
}
static void check_large(const uint32_t *data) {
    for (uint32_t l = 0; l < LANES; l++) {
        EXPECT_INT_EQ(data[2 * l], INT32_MAX);
        EXPECT_INT_EQ(data[2 * l + 1], (uint32_t)INT32_MAX - 1000 + 32 * 127 * 127);
    }
}

TEST(MachineMatrix, IntegerSumsSaturateWhereAsked) {
    machine_run_case(&(struct machine_case){
        .body =
            "mov.u32 %r20, 0x7f7f7f7f;\nmov.u32 %r21, 0x7ffffc17;\n"
            "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%r30, %r31, %r32, %r33}, "
            "{%r20, %r20, %r20, %r20}, {%r20, %r20}, {%r21, %r21, %r21, %r21};\n"
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r34, %r35, %r36, %r37}, "
            "{%r20, %r20, %r20, %r20}, {%r20, %r20}, {%r21, %r21, %r21, %r21};\n"
            "mad.wide.u32 %d1, %r0, 8, %d0;\nst.global.v2.u32 [%d1], {%r33, %r37};\n",
        .blocks = 1,
        .threads = 32,
        .words = 64,
        .prepare = prepare_large,
        .check = check_large});
}

/* The destination may be the accumulator, as in every loop over k. */
static void check_chain(const uint32_t *data) {
    for (uint32_t l = 0; l < LANES; l++)
        EXPECT_INT_EQ(data[l], exact_scale(&exact_f32, EXACT_NEAREST, false, 3 * 16 * 2 + 1, 0));
}

TEST(MachineMatrix, SumsGoOnInPlace) {
    machine_run_case(&(struct machine_case){
        .body = "mov.u32 %r20, 0x3c003c00;\nmov.u32 %r21, 0x40004000;\n" /* 1 and 2 */
                "mov.u32 %r30, 0x3f800000;\nmov.u32 %r31, %r30;\nmov.u32 %r32, %r30;\n"
                "mov.u32 %r33, %r30;\nmov.u32 %r10, 0;\nLOOP:\n"
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r30, %r31, %r32, %r33}, "
                "{%r20, %r20, %r20, %r20}, {%r21, %r21}, {%r30, %r31, %r32, %r33};\n"
                "add.u32 %r10, %r10, 1;\nsetp.lt.u32 %p0, %r10, 3;\n@%p0 bra LOOP;\n"
                "st.global.u32 [%d1], %r32;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .check = check_chain});
}
