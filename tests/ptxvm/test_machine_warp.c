/* What the lanes of a warp do together: shfl, vote, match, redux and bar.warp.sync.
 *
 * Results are compared with what the PTX manual says for one lane, in plain C. Each kernel runs
 * under all schedules: whoever comes first, the members of a mask get the same.
 */
#include <stdio.h>
#include <string.h>

#include "tests/ptxvm/machine_fixture.h"

enum { LANES = 32, ALL = 0xffffffff, EVEN = 0x55555555, ODD = 0xaaaaaaaa };

/* A value of a thread, as MIX computes it from %r2 into %r10; a multiplication of its low bits
 * makes them differ from lane to lane. */
#define MIX                                                                                        \
    "mul.lo.u32 %r10, %r2, 0x9e3779b1;\nshr.u32 %r11, %r10, 15;\nxor.b32 %r10, %r10, %r11;\n"      \
    "mul.lo.u32 %r10, %r10, 0x85ebca77;\n"
static uint32_t mix(uint32_t n) {
    n *= 0x9e3779b1;
    n ^= n >> 15;
    return n * 0x85ebca77;
}

/* %r12: the mask of the lane's half, the even or the odd ones; %p0: odd. */
#define HALVES                                                                                     \
    "and.b32 %r12, %r0, 1;\nsetp.eq.u32 %p0, %r12, 1;\n"                                           \
    "selp.b32 %r12, 0xaaaaaaaa, 0x55555555, %p0;\n"
static uint32_t half_of(uint32_t lane) {
    return lane & 1 ? ODD : EVEN;
}

/* ---- shfl ------------------------------------------------------------------------------------ */

enum mode { UP, DOWN, BFLY, IDX };

/* The lane that `lane` reads from, by the manual; *valid is the predicate. */
static uint32_t source_lane(enum mode mode, uint32_t lane, uint32_t b, uint32_t c, bool *valid) {
    uint32_t segment = c >> 8 & 31, by = b & 31, low = lane & segment;
    uint32_t last = low | (c & 31 & ~segment);
    int32_t from = mode == UP     ? (int32_t)(lane - by)
                   : mode == DOWN ? (int32_t)(lane + by)
                   : mode == BFLY ? (int32_t)(lane ^ by)
                                  : (int32_t)(low | (by & ~segment));
    *valid = mode == UP ? from >= (int32_t)last : from <= (int32_t)last;
    return *valid ? (uint32_t)from : lane;
}

/* The operand b of a thread: the same for all lanes in the first 32 blocks, not in the others. */
static uint32_t shuffle_by(uint32_t block, uint32_t lane) {
    return block < 32 ? block : (block * lane) >> 1;
}

static void check_shuffle(enum mode mode, uint32_t c) {
    static const char *const names[] = {"up", "down", "bfly", "idx"};
    enum { BLOCKS = 48 };
    char body[1024];
    snprintf(body, sizeof body,
             "%smul.lo.u32 %%r13, %%r1, %%r0;\nshr.u32 %%r13, %%r13, 1;\n"
             "setp.lt.u32 %%p1, %%r1, 32;\nselp.b32 %%r13, %%r1, %%r13, %%p1;\n"
             "shfl.sync.%s.b32 %%r14|%%p2, %%r10, %%r13, %u, -1;\nselp.u32 %%r15, 1, 0, %%p2;\n"
             "mad.wide.u32 %%d1, %%r2, 8, %%d0;\nst.global.v2.u32 [%%d1], {%%r14, %%r15};\n",
             MIX, names[mode], c);
    uint32_t(*data)[2] = machine_alloc(BLOCKS * LANES * sizeof *data);
    if (machine_run_body(NULL, body, BLOCKS, LANES, data))
        for (uint32_t n = 0; n < BLOCKS * LANES && !shim_failed(); n++) {
            bool valid;
            uint32_t lane = n % LANES, by = shuffle_by(n / LANES, lane);
            uint32_t from = source_lane(mode, lane, by, c, &valid);
            if (data[n][0] != mix(n - lane + from) || data[n][1] != valid)
                FAIL("shfl.%s lane %u by %u, c 0x%x: 0x%x and %u, expected 0x%x and %d",
                     names[mode], lane, by, c, data[n][0], data[n][1], mix(n - lane + from), valid);
        }
    machine_free(data);
}

TEST(MachineWarp, ShufflesReadWhereTheManualSays) {
    for (uint32_t width = 32; width; width /= 2) {
        uint32_t segment = (LANES - width) << 8;
        check_shuffle(UP, segment);
        check_shuffle(DOWN, segment | 31);
        check_shuffle(BFLY, segment | 31);
        check_shuffle(IDX, segment | 31);
    }
    static const uint32_t unusual[] = {0x0007, 0x1805, 0x0a1f, 0x1f00};
    for (int n = 0; n < 4; n++)
        for (enum mode mode = UP; mode <= IDX; mode++)
            check_shuffle(mode, unusual[n]);
}

/* Even and odd lanes rotate by 2 among themselves, at one instruction and at two. */
static void check_halves(const uint32_t *data) {
    for (uint32_t n = 0; n < 2 * LANES; n++) {
        uint32_t lane = n % LANES, warp = n - lane;
        EXPECT_INT_EQ(data[n], mix(warp + (lane + 2) % LANES) + mix(warp + (lane + 6) % LANES));
    }
}

TEST(MachineWarp, HalvesOfAWarpShuffleAmongThemselves) {
    machine_run_case(&(struct machine_case){
        .body = MIX HALVES "add.u32 %r13, %r0, 2;\nshfl.sync.idx.b32 %r14, %r10, %r13, 31, %r12;\n"
                           "add.u32 %r13, %r0, 6;\n@%p0 bra ODD;\n"
                           "shfl.sync.idx.b32 %r15, %r10, %r13, 31, 0x55555555;\nbra STORE;\n"
                           "ODD:\nshfl.sync.idx.b32 %r15, %r10, %r13, 31, 0xaaaaaaaa;\n"
                           "STORE:\nadd.u32 %r14, %r14, %r15;\nst.global.u32 [%d1], %r14;\n",
        .blocks = 1,
        .threads = 64,
        .words = 64,
        .check = check_halves});
}

/* The odd lanes have ended, lane 3 before the others: what is read from them is poison. */
static void check_absent(const uint32_t *data) {
    for (uint32_t lane = 0; lane < LANES; lane += 2)
        EXPECT_INT_EQ(data[lane], lane % 4 == 0 ? UINT32_MAX : mix(lane - 2));
}

TEST(MachineWarp, ShufflesFromLanesThatTakeNoPartGivePoison) {
    machine_run_case(&(struct machine_case){
        .body = MIX "setp.eq.u32 %p1, %r0, 3;\n@%p1 exit;\n" HALVES "@%p0 exit;\n"
                    "and.b32 %r13, %r0, 2;\nsetp.eq.u32 %p2, %r13, 0;\nxor.b32 %r14, %r0, 3;\n"
                    "sub.u32 %r15, %r0, 2;\nselp.b32 %r14, %r14, %r15, %p2;\n"
                    "shfl.sync.idx.b32 %r16, %r10, %r14, 31, 0x55555555;\n"
                    "st.global.u32 [%d1], %r16;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .check = check_absent});
}

/* ---- vote ------------------------------------------------------------------------------------ */

/* The predicate of a thread: in block 0 never, in block 1 always, in block 2 for odd lanes, else
 * mixed. Bits of a result: all, any, uni; the ballot is the second word. */
static bool holds(uint32_t n) {
    return n / LANES == 0 ? false : n / LANES == 1 ? true : n / LANES == 2 ? n & 1 : mix(n) >> 31;
}
#define HOLDS                                                                                      \
    "shr.u32 %r11, %r10, 31;\nsetp.eq.u32 %p1, %r1, 2;\nand.b32 %r13, %r0, 1;\n"                   \
    "selp.b32 %r11, %r13, %r11, %p1;\nsetp.lt.u32 %p1, %r1, 2;\nselp.b32 %r11, %r1, %r11, %p1;\n"  \
    "setp.ne.u32 %p1, %r11, 0;\n"

static void expect_votes(const uint32_t *data, bool halves) {
    for (uint32_t n = 0; n < 8 * LANES; n++) {
        uint32_t lane = n % LANES, mask = halves ? half_of(lane) : ALL, set = 0;
        for (uint32_t l = 0; l < LANES; l++)
            set |= (uint32_t)holds(n - lane + l) << l & mask;
        EXPECT_INT_EQ(data[2 * n], (set == mask) + 2 * (set != 0) + 4 * (set == mask || !set));
        EXPECT_INT_EQ(data[2 * n + 1], set);
    }
}
static void check_votes(const uint32_t *data) {
    expect_votes(data, false);
}
static void check_votes_of_halves(const uint32_t *data) {
    expect_votes(data, true);
}

#define VOTES(mask)                                                                                \
    "vote.sync.all.pred %p2, %p1, " mask ";\nvote.sync.any.pred %p3, %p1, " mask ";\n"             \
    "vote.sync.uni.pred %p4, %p1, " mask ";\nvote.sync.ballot.b32 %r15, %p1, " mask ";\n"          \
    "selp.u32 %r14, 1, 0, %p2;\n@%p3 add.u32 %r14, %r14, 2;\n@%p4 add.u32 %r14, %r14, 4;\n"        \
    "mad.wide.u32 %d1, %r2, 8, %d0;\nst.global.v2.u32 [%d1], {%r14, %r15};\n"

TEST(MachineWarp, VotesCountTheLanesOfTheMask) {
    machine_run_case(&(struct machine_case){.body = MIX HALVES HOLDS VOTES("-1"),
                                            .blocks = 8,
                                            .threads = 32,
                                            .words = 512,
                                            .check = check_votes});
    machine_run_case(&(struct machine_case){.body = MIX HALVES HOLDS VOTES("%r12"),
                                            .blocks = 8,
                                            .threads = 32,
                                            .words = 512,
                                            .check = check_votes_of_halves});
}

/* ---- match ----------------------------------------------------------------------------------- */

/* The value of a thread: one of five, or in blocks 2 and 3 the same for all lanes (of a half). */
static uint32_t label(uint32_t n) {
    return n / LANES == 2 ? 7 : n / LANES == 3 ? n & 1 : (mix(n) >> 20) % 5;
}
#define LABEL                                                                                      \
    "shr.u32 %r11, %r10, 20;\nrem.u32 %r11, %r11, 5;\nsetp.eq.u32 %p1, %r1, 2;\n"                  \
    "selp.b32 %r11, 7, %r11, %p1;\nand.b32 %r13, %r0, 1;\nsetp.eq.u32 %p1, %r1, 3;\n"              \
    "selp.b32 %r11, %r13, %r11, %p1;\n"
/* 64 bits: the values differ in their high halves alone. */
#define MATCHES                                                                                    \
    LABEL "match.any.sync.b32 %r14, %r11, %r12;\ncvt.u64.u32 %d2, %r11;\nshl.b64 %d2, %d2, 40;\n"  \
          "match.any.sync.b64 %r15, %d2, %r12;\nmatch.all.sync.b32 %r16|%p2, %r11, %r12;\n"        \
          "match.all.sync.b64 %r17|%p3, %d2, %r12;\nselp.u32 %r18, 1, 0, %p2;\n"                   \
          "@%p3 add.u32 %r18, %r18, 2;\nxor.b32 %r16, %r16, %r18;\nxor.b32 %r17, %r17, %r18;\n"    \
          "mad.wide.u32 %d1, %r2, 16, %d0;\n"                                                      \
          "st.global.v4.u32 [%d1], {%r14, %r15, %r16, %r17};\n"

static void check_matches(const uint32_t *data) {
    for (uint32_t n = 0; n < 4 * LANES; n++) {
        uint32_t lane = n % LANES, mask = half_of(lane), same = 0;
        for (uint32_t l = 0; l < LANES; l++)
            same |= (uint32_t)(label(n - lane + l) == label(n)) << l & mask;
        uint32_t all = same == mask ? mask ^ 3 : 0;
        const uint32_t expected[] = {same, same, all, all};
        EXPECT_MEM_EQ(data + 4 * n, expected, sizeof expected);
    }
}

TEST(MachineWarp, MatchesFindTheLanesWithTheSameValue) {
    machine_run_case(&(struct machine_case){.body = MIX HALVES MATCHES,
                                            .blocks = 4,
                                            .threads = 32,
                                            .words = 512,
                                            .check = check_matches});
}

/* ---- redux ----------------------------------------------------------------------------------- */

enum { SUM, LEAST, MOST, LEAST_SIGNED, MOST_SIGNED, AND, OR, XOR, REDUCTIONS };

static uint32_t reduce(int op, uint32_t a, uint32_t b) {
    int32_t s = (int32_t)a, t = (int32_t)b;
    switch (op) {
    case SUM:
        return a + b;
    case LEAST:
        return a < b ? a : b;
    case MOST:
        return a > b ? a : b;
    case LEAST_SIGNED:
        return s < t ? a : b;
    case MOST_SIGNED:
        return s > t ? a : b;
    case AND:
        return a & b;
    case OR:
        return a | b;
    default:
        return a ^ b;
    }
}

/* Of mix, with bits that all share, so that and and or have something left. */
static uint32_t element(uint32_t n) {
    return n / LANES ? mix(n) : (mix(n) & 0x7ff7ffff) | 0x10;
}

static void check_reductions(const uint32_t *data) {
    for (uint32_t n = 0; n < 2 * LANES; n++)
        for (int op = 0; op < REDUCTIONS; op++) {
            uint32_t lane = n % LANES, first = lane & 1, r = element(n - lane + first);
            for (uint32_t l = first + 2; l < LANES; l += 2)
                r = reduce(op, r, element(n - lane + l));
            EXPECT_INT_EQ(data[8 * n + (uint32_t)op], r);
        }
}

TEST(MachineWarp, ReductionsAreOfTheLanesOfTheMask) {
    machine_run_case(&(struct machine_case){
        .body = MIX HALVES
        "setp.eq.u32 %p1, %r1, 0;\n@%p1 and.b32 %r10, %r10, 0x7ff7ffff;\n"
        "@%p1 or.b32 %r10, %r10, 16;\n"
        "redux.sync.add.u32 %r14, %r10, %r12;\nredux.sync.min.u32 %r15, %r10, %r12;\n"
        "redux.sync.max.u32 %r16, %r10, %r12;\nredux.sync.min.s32 %r17, %r10, %r12;\n"
        "redux.sync.max.s32 %r18, %r10, %r12;\nredux.sync.and.b32 %r19, %r10, %r12;\n"
        "redux.sync.or.b32 %r20, %r10, %r12;\nredux.sync.xor.b32 %r21, %r10, %r12;\n"
        "mad.wide.u32 %d1, %r2, 32, %d0;\nst.global.v4.u32 [%d1], {%r14, %r15, %r16, %r17};\n"
        "st.global.v4.u32 [%d1+16], {%r18, %r19, %r20, %r21};\n",
        .blocks = 2,
        .threads = 32,
        .words = 512,
        .check = check_reductions});
}

/* ---- lanes that are there -------------------------------------------------------------------- */

static void check_masks(const uint32_t *data) {
    for (uint32_t n = 0; n < 45; n++) {
        uint32_t lane = n % LANES, there = n < 32 ? ALL : 0x1fff, own = (uint32_t)1 << lane;
        const uint32_t expected[] = {
            lane, n / 32, own, own - 1, own | (own - 1), ~(own | (own - 1)), ~(own - 1)};
        EXPECT_MEM_EQ(data + 8 * n, expected, sizeof expected);
        EXPECT_INT_EQ(data[8 * n + 7] & own, own);
        EXPECT_INT_EQ(data[8 * n + 7] & ~(there & half_of(lane)), 0);
    }
}

/* The last warp has 13 lanes. activemask, of a branch, may name some or all that take it. */
TEST(MachineWarp, LanesKnowTheirPlace) {
    machine_run_case(&(struct machine_case){
        .body = HALVES "@%p0 bra ODD;\nactivemask.b32 %r21;\nbra STORE;\n"
                       "ODD:\nactivemask.b32 %r21;\nSTORE:\n"
                       "mov.u32 %r14, %laneid;\nmov.u32 %r15, %warpid;\n"
                       "mov.u32 %r16, %lanemask_eq;\nmov.u32 %r17, %lanemask_lt;\n"
                       "mov.u32 %r18, %lanemask_le;\nmov.u32 %r19, %lanemask_gt;\n"
                       "mov.u32 %r20, %lanemask_ge;\nmad.wide.u32 %d1, %r2, 32, %d0;\n"
                       "st.global.v4.u32 [%d1], {%r14, %r15, %r16, %r17};\n"
                       "st.global.v4.u32 [%d1+16], {%r18, %r19, %r20, %r21};\n",
        .blocks = 1,
        .threads = 45,
        .words = 360,
        .check = check_masks});
}

/* Each lane writes a word and, after a __syncwarp of its half, reads that of a neighbour there. */
static void check_neighbours(const uint32_t *data) {
    for (uint32_t n = 0; n < 64; n++)
        EXPECT_INT_EQ(data[n], mix(n ^ 2));
}

TEST(MachineWarp, SyncwarpOrdersTheLanesOfTheMask) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 4 .b8 sh[256];\n",
        .body = MIX HALVES "mov.u32 %r13, sh;\nmad.lo.u32 %r14, %r0, 4, %r13;\n"
                           "st.shared.u32 [%r14], %r10;\nbar.warp.sync %r12;\n"
                           "xor.b32 %r15, %r0, 2;\nmad.lo.u32 %r15, %r15, 4, %r13;\n"
                           "ld.shared.u32 %r16, [%r15];\nst.global.u32 [%d1], %r16;\n",
        .blocks = 1,
        .threads = 64,
        .words = 64,
        .check = check_neighbours});
}
