/* Control flow of the PTX machine: branches, loops, calls, ends, barriers and spin loops.
 *
 * Every kernel is race-free and may be run in any order of lanes and warps, so each is run under
 * all schedules and has to give the same words. Lanes take different ways by their number.
 */
#include "tests/ptxvm/machine_fixture.h"

static void fill(uint32_t *data, uint32_t words, uint32_t value) {
    for (uint32_t n = 0; n < words; n++)
        data[n] = value;
}

static void prepare_zeros(uint32_t *data) {
    fill(data, 64, 0);
}

/* ---- branches and loops ---------------------------------------------------------------------- */

static uint32_t collatz_steps(uint32_t n) {
    uint32_t steps = 0;
    for (; n > 1; steps++)
        n = n & 1 ? 3 * n + 1 : n / 2;
    return steps;
}

/* %r10 = collatz_steps(%r2 + 1), where a branch in a loop diverges in every round. */
#define COLLATZ                                                                                    \
    "add.u32 %r9, %r2, 1;\nmov.u32 %r10, 0;\n"                                                     \
    "LOOP:\nsetp.le.u32 %p0, %r9, 1;\n@%p0 bra END;\n"                                             \
    "and.b32 %r11, %r9, 1;\nsetp.eq.u32 %p1, %r11, 1;\n@%p1 bra ODD;\n"                            \
    "shr.u32 %r9, %r9, 1;\nbra NEXT;\n"                                                            \
    "ODD:\nmad.lo.u32 %r9, %r9, 3, 1;\n"                                                           \
    "NEXT:\nadd.u32 %r10, %r10, 1;\nbra LOOP;\nEND:\n"

static void check_collatz(const uint32_t *data) {
    for (uint32_t n = 0; n < 3 * 71; n++)
        EXPECT_INT_EQ(data[n], collatz_steps(n + 1));
}

TEST(MachineControl, LoopsRunAsOftenAsEachLaneWants) {
    machine_run_case(&(struct machine_case){.body = COLLATZ "st.global.u32 [%d1], %r10;\n",
                                            .blocks = 3,
                                            .threads = 71,
                                            .words = 213,
                                            .check = check_collatz});
}

/* After a loop and after a branch the lanes meet again: a collective of all of them is reached. */
static void check_meeting(const uint32_t *data) {
    uint32_t sum = 0;
    for (uint32_t n = 0; n < 32; n++)
        sum += collatz_steps(n + 1);
    for (uint32_t n = 0; n < 32; n++)
        EXPECT_INT_EQ(data[n], sum + 1000 * (n % 3 == 0));
}

TEST(MachineControl, LanesMeetAgainAfterLoopsAndBranches) {
    machine_run_case(&(struct machine_case){
        .body = COLLATZ "redux.sync.add.s32 %r12, %r10, -1;\nrem.u32 %r13, %r0, 3;\n"
                        "setp.ne.u32 %p2, %r13, 0;\n@%p2 bra M;\nadd.u32 %r12, %r12, 1000;\n"
                        "M:\nbar.warp.sync -1;\nst.global.u32 [%d1], %r12;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .check = check_meeting});
}

/* As the kernel of the next test has it. */
static uint32_t nested(uint32_t t) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < t; i++) {
        if (i % 3 == 1)
            continue;
        if (sum > 60)
            break;
        for (uint32_t j = 0; j < i % 4; j++)
            sum += i ^ j;
    }
    return sum;
}

static void check_nested(const uint32_t *data) {
    for (uint32_t t = 0; t < 97; t++)
        EXPECT_INT_EQ(data[t], nested(t));
}

TEST(MachineControl, NestedLoopsBreakAndContinue) {
    machine_run_case(&(struct machine_case){
        .body = "mov.u32 %r10, 0;\nmov.u32 %r11, 0;\n"
                "LOOP:\nsetp.ge.u32 %p0, %r10, %r0;\n@%p0 bra END;\n"
                "rem.u32 %r12, %r10, 3;\nsetp.eq.u32 %p1, %r12, 1;\n@%p1 bra NEXT;\n"
                "setp.gt.u32 %p2, %r11, 60;\n@%p2 bra END;\n"
                "and.b32 %r13, %r10, 3;\nmov.u32 %r14, 0;\n"
                "INNER:\nsetp.ge.u32 %p3, %r14, %r13;\n@%p3 bra NEXT;\n"
                "xor.b32 %r15, %r10, %r14;\nadd.u32 %r11, %r11, %r15;\nadd.u32 %r14, %r14, 1;\n"
                "bra INNER;\nNEXT:\nadd.u32 %r10, %r10, 1;\nbra LOOP;\n"
                "END:\nst.global.u32 [%d1], %r11;\n",
        .blocks = 1,
        .threads = 97,
        .words = 97,
        .check = check_nested});
}

static void check_table(const uint32_t *data) {
    static const uint32_t values[] = {5, 1000, 77, 1000, 6};
    for (uint32_t t = 0; t < 50; t++)
        EXPECT_INT_EQ(data[t], values[t % 5] + t);
}

TEST(MachineControl, TablesOfBranchTargetsMayNameOneTwice) {
    machine_run_case(&(struct machine_case){
        .body = "rem.u32 %r10, %r0, 5;\nT: .branchtargets A, B, C, B, D;\nbrx.idx %r10, T;\n"
                "A:\nmov.u32 %r11, 5;\nbra E;\nB:\nmov.u32 %r11, 1000;\nbra E;\n"
                "C:\nmov.u32 %r11, 77;\nbra E;\nD:\nmov.u32 %r11, 6;\n"
                "E:\nadd.u32 %r11, %r11, %r0;\nst.global.u32 [%d1], %r11;\n",
        .blocks = 1,
        .threads = 50,
        .words = 50,
        .check = check_table});
}

/* Guards of both kinds, on instructions whose result is also a source. */
static void check_guards(const uint32_t *data) {
    for (uint32_t t = 0; t < 40; t++)
        EXPECT_INT_EQ(data[t], t % 2 ? 3 * t + 1 : t / 2);
}

TEST(MachineControl, GuardsLeaveTheOtherLanesAlone) {
    machine_run_case(&(struct machine_case){
        .body = "and.b32 %r10, %r0, 1;\nsetp.eq.u32 %p0, %r10, 1;\nmov.u32 %r11, %r0;\n"
                "@%p0 mad.lo.u32 %r11, %r11, 3, 1;\n@!%p0 shr.u32 %r11, %r11, 1;\n"
                "@%p0 st.global.u32 [%d1], %r11;\n@!%p0 st.global.u32 [%d1], %r11;\n",
        .blocks = 1,
        .threads = 40,
        .words = 40,
        .check = check_guards});
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* twice(x) = 2 x; poly(x, y) = x * x + twice(y), each called from several places. */
#define FUNCTIONS                                                                                  \
    ".func (.param .b32 f_out) twice(.param .b32 f_x)\n{\n.reg .b32 %r<4>;\n"                      \
    "ld.param.u32 %r1, [f_x];\nadd.u32 %r2, %r1, %r1;\nst.param.u32 [f_out], %r2;\nret;\n}\n"      \
    ".func (.param .b32 g_out) poly(.param .b32 g_x, .param .b32 g_y)\n{\n.reg .b32 %r<8>;\n"      \
    ".reg .pred %p<2>;\nld.param.u32 %r1, [g_x];\nld.param.u32 %r2, [g_y];\n"                      \
    "{\n.param .b32 a;\n.param .b32 o;\nst.param.u32 [a], %r2;\n"                                  \
    "call (o), twice, (a);\nld.param.u32 %r3, [o];\n}\n"                                           \
    "setp.eq.u32 %p1, %r1, 0;\n@%p1 bra ZERO;\n"                                                   \
    "mad.lo.u32 %r4, %r1, %r1, %r3;\nst.param.u32 [g_out], %r4;\nret;\n"                           \
    "ZERO:\nst.param.u32 [g_out], %r3;\nret;\n}\n"
#define CALL_POLY(result, x, y)                                                                    \
    "{\n.param .b32 a;\n.param .b32 b;\n.param .b32 o;\nst.param.u32 [a], " x ";\n"                \
    "st.param.u32 [b], " y ";\ncall (o), poly, (a, b);\nld.param.u32 " result ", [o];\n}\n"

static void check_calls(const uint32_t *data) {
    for (uint32_t t = 0; t < 60; t++) {
        uint32_t x = t % 4, first = t % 3 == 0 ? x * x + 2 * t : t * t + 2 * x;
        EXPECT_INT_EQ(data[t], first * first + 2 * x);
    }
}

TEST(MachineControl, FunctionsReturnToWhereEachLaneCalledThem) {
    machine_run_case(&(struct machine_case){
        .before = FUNCTIONS,
        .body =
            "and.b32 %r10, %r0, 3;\nrem.u32 %r11, %r0, 3;\nsetp.eq.u32 %p0, %r11, 0;\n"
            "@%p0 bra A;\n" CALL_POLY(
                "%r12", "%r0", "%r10") "bra E;\n"
                                       "A:\n" CALL_POLY("%r12", "%r10", "%r0") "E:\n" CALL_POLY(
                                           "%r13", "%r12", "%r10") "st.global.u32 [%d1], %r13;\n",
        .blocks = 1,
        .threads = 60,
        .words = 60,
        .check = check_calls});
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* Odd lanes and those from 40 on end early; the others go on to collectives among themselves. */
static void check_ends(const uint32_t *data) {
    for (uint32_t t = 0; t < 64; t++) {
        bool stays = t % 2 == 0 && t < 40;
        EXPECT_INT_EQ(data[t], !stays ? UINT32_MAX : t < 32 ? 0x55555555 : 0x55);
    }
}

TEST(MachineControl, LanesThatEndAreNotWaitedFor) {
    machine_run_case(&(struct machine_case){
        .body = "and.b32 %r10, %r0, 1;\nsetp.eq.u32 %p0, %r10, 1;\n@%p0 exit;\n"
                "setp.ge.u32 %p1, %r0, 40;\n@%p1 ret;\nsetp.ge.u32 %p2, %r0, 32;\n"
                "selp.b32 %r11, 0x55, 0x55555555, %p2;\nsetp.ge.u32 %p3, %r0, 0;\n"
                "vote.sync.ballot.b32 %r12, %p3, %r11;\nst.global.u32 [%d1], %r12;\n",
        .blocks = 1,
        .threads = 64,
        .words = 64,
        .check = check_ends});
}

/* ---- barriers -------------------------------------------------------------------------------- */

static void check_reduction(const uint32_t *data) {
    for (uint32_t b = 0; b < 3; b++) {
        const uint32_t *d = data + b * 4;
        EXPECT_INT_EQ(d[0], 199 * 200 / 2 + 200 * b);
        EXPECT_INT_EQ(d[1], 100); /* odd threads */
        EXPECT_INT_EQ(d[2], b != 1);
        EXPECT_INT_EQ(d[3], b == 2);
    }
}

/* Sums of 200 threads, of which the last warp has 8, by halves; then the three barriers that
 * reduce: the thread is odd; thread < 200 - (block == 1); thread == 200 - (block == 2). */
TEST(MachineControl, BarriersOrderAndReduce) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 4 .b8 sh[1024];\n",
        .body =
            "mov.u32 %r10, sh;\nmad.lo.u32 %r11, %r0, 4, %r10;\nadd.u32 %r12, %r0, %r1;\n"
            "st.shared.u32 [%r11], %r12;\nadd.u32 %r13, %r0, 200;\nsetp.lt.u32 %p0, %r13, 256;\n"
            "@%p0 st.shared.u32 [%r11+800], 0;\nmov.u32 %r14, 128;\n"
            "LOOP:\nbar.sync 0;\nsetp.ge.u32 %p1, %r0, %r14;\n@%p1 bra NEXT;\n"
            "mad.lo.u32 %r15, %r14, 4, %r11;\nld.shared.u32 %r16, [%r15];\n"
            "ld.shared.u32 %r17, [%r11];\nadd.u32 %r16, %r16, %r17;\nst.shared.u32 [%r11], %r16;\n"
            "NEXT:\nshr.u32 %r14, %r14, 1;\nsetp.ne.u32 %p2, %r14, 0;\n@%p2 bra LOOP;\n"
            "and.b32 %r20, %r0, 1;\nsetp.eq.u32 %p3, %r20, 1;\nbar.red.popc.u32 %r21, 0, %p3;\n"
            "setp.eq.u32 %p4, %r1, 1;\nselp.u32 %r22, 199, 200, %p4;\nsetp.lt.u32 %p5, %r0, %r22;\n"
            "bar.red.and.pred %p6, 0, %p5;\nsetp.eq.u32 %p7, %r1, 2;\n"
            "selp.u32 %r23, 199, 200, %p7;\nsetp.ne.u32 %p8, %r0, %r23;\n"
            "bar.red.or.pred %p9, 0, !%p8;\nsetp.ne.u32 %p10, %r0, 0;\n@%p10 ret;\n"
            "selp.u32 %r24, 1, 0, %p6;\nselp.u32 %r25, 1, 0, %p9;\nld.shared.u32 %r26, [%r10];\n"
            "mad.wide.u32 %d2, %r1, 16, %d0;\n"
            "st.global.v4.u32 [%d2], {%r26, %r21, %r24, %r25};\n",
        .blocks = 3,
        .threads = 200,
        .words = 12,
        .check = check_reduction});
}

/* Warp 0 makes 5 rounds of squares and tells warps 1 and 2 of each by one barrier, which they
 * answer by another. Warp 3 takes no part. */
static void check_producer(const uint32_t *data) {
    for (uint32_t t = 0; t < 64; t++) {
        uint32_t sum = 0, from = 31 - t % 32;
        for (uint32_t round = 0; round < 5; round++)
            sum += (from + round) * (from + round);
        EXPECT_INT_EQ(data[t + 32], sum);
    }
}

TEST(MachineControl, NamedBarriersPassBuffersBetweenWarps) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 4 .b8 sh[128];\n",
        .body = "mov.u32 %r10, sh;\nsetp.ge.u32 %p0, %r0, 96;\n@%p0 ret;\nmov.u32 %r11, 0;\n"
                "mov.u32 %r12, 0;\nsetp.ge.u32 %p1, %r0, 32;\n@%p1 bra USE;\n"
                "MAKE:\nadd.u32 %r13, %r0, %r11;\nmul.lo.u32 %r13, %r13, %r13;\n"
                "mad.lo.u32 %r14, %r0, 4, %r10;\nst.shared.u32 [%r14], %r13;\nbar.arrive 3, 96;\n"
                "bar.sync 5, 96;\nadd.u32 %r11, %r11, 1;\nsetp.lt.u32 %p2, %r11, 5;\n"
                "@%p2 bra MAKE;\nret;\n"
                "USE:\nbar.sync 3, 96;\nand.b32 %r15, %r0, 31;\nsub.u32 %r15, 31, %r15;\n"
                "mad.lo.u32 %r15, %r15, 4, %r10;\nld.shared.u32 %r16, [%r15];\n"
                "add.u32 %r12, %r12, %r16;\nbar.arrive 5, 96;\nadd.u32 %r11, %r11, 1;\n"
                "setp.lt.u32 %p2, %r11, 5;\n@%p2 bra USE;\nst.global.u32 [%d1], %r12;\n",
        .blocks = 1,
        .threads = 128,
        .words = 128,
        .check = check_producer});
}

/* ---- spin loops ------------------------------------------------------------------------------ */

static void check_spin(const uint32_t *data) {
    for (uint32_t t = 0; t < 40; t++)
        EXPECT_INT_EQ(data[8 + t], t == 9 ? UINT32_MAX : 43 + t);
}
static void prepare_spin(uint32_t *data) {
    data[0] = 0;
}

/* Thread 9 is the one that 31 lanes of its own warp and those of another wait for. */
TEST(MachineControl, LanesWaitForALaneOfTheirWarp) {
    machine_run_case(&(struct machine_case){
        .body = "setp.eq.u32 %p0, %r0, 9;\n@%p0 bra SET;\n"
                "WAIT:\nld.acquire.gpu.global.u32 %r10, [%d0];\nsetp.eq.u32 %p1, %r10, 0;\n"
                "@%p1 bra WAIT;\nadd.u32 %r10, %r10, %r0;\nst.global.u32 [%d1+32], %r10;\nret;\n"
                "SET:\nst.release.gpu.global.u32 [%d0], 43;\n",
        .blocks = 1,
        .threads = 40,
        .words = 64,
        .prepare = prepare_spin,
        .check = check_spin});
}

/* Block b waits, asleep in between, for the word of block b + 1: the first waits longest. */
static void check_chain(const uint32_t *data) {
    for (uint32_t b = 0; b < 7; b++)
        EXPECT_INT_EQ(data[b], 100 + (6 - b) * 3);
}
static void prepare_chain(uint32_t *data) {
    prepare_zeros(data);
    data[7] = 97;
}

TEST(MachineControl, BlocksWaitForLaterBlocks) {
    machine_run_case(&(struct machine_case){
        .body = "setp.ne.u32 %p0, %r0, 0;\n@%p0 ret;\nmad.wide.u32 %d2, %r1, 4, %d0;\n"
                "WAIT:\nnanosleep.u32 20;\nld.acquire.gpu.global.u32 %r10, [%d2+4];\n"
                "setp.eq.u32 %p1, %r10, 0;\n@%p1 bra WAIT;\nadd.u32 %r10, %r10, 3;\n"
                "st.release.gpu.global.u32 [%d2], %r10;\n",
        .blocks = 7,
        .threads = 33,
        .words = 64,
        .prepare = prepare_chain,
        .check = check_chain});
}

static void check_lock(const uint32_t *data) {
    EXPECT_INT_EQ(data[0], 0);
    EXPECT_INT_EQ(data[2], 4 * 45);
    EXPECT_INT_EQ(data[3], 4 * (44 * 45 / 2));
}

/* Each of 180 threads takes a lock and adds to two words behind it without atomics. */
TEST(MachineControl, ALockIsHeldByOneThreadAtATime) {
    machine_run_case(
        &(struct machine_case){.body = "TAKE:\natom.acquire.gpu.global.cas.b32 %r10, [%d0], 0, 1;\n"
                                       "setp.ne.u32 %p0, %r10, 0;\n@%p0 bra TAKE;\n"
                                       "ld.global.v2.u32 {%r11, %r12}, [%d0+8];\n"
                                       "add.u32 %r11, %r11, 1;\nadd.u32 %r12, %r12, %r0;\n"
                                       "st.global.v2.u32 [%d0+8], {%r11, %r12};\n"
                                       "atom.release.gpu.global.exch.b32 %r13, [%d0], 0;\n",
                               .blocks = 4,
                               .threads = 45,
                               .words = 64,
                               .prepare = prepare_zeros,
                               .check = check_lock});
}
