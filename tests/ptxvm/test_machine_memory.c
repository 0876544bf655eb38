/* Memory of the PTX machine: loads and stores of all widths in all spaces, atomics, cp.async. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/machine_fixture.h"
#include "tests/ptxvm/settings.h"

/* Byte n of a pattern in which no two words are alike and signs differ. */
static uint8_t pattern(uint32_t n) {
    return (uint8_t)(n * 89 + (n >> 3) * 7 + 0x71);
}
static void fill_pattern(uint8_t *p, uint32_t bytes) {
    for (uint32_t n = 0; n < bytes; n++)
        p[n] = pattern(n);
}

/* ---- widths, vectors and extension ----------------------------------------------------------- */

struct width {
    const char *type;
    uint32_t bytes, registers; /* of an element, and of the register it is loaded to */
    bool is_signed;
};
static const struct width widths[] = {
    {"u8", 1, 2, false}, {"s8", 1, 2, true},   {"b8", 1, 4, false},  {"s8", 1, 4, true},
    {"u8", 1, 8, false}, {"s8", 1, 8, true},   {"u16", 2, 2, false}, {"u16", 2, 4, false},
    {"s16", 2, 4, true}, {"s16", 2, 8, true},  {"b32", 4, 4, false}, {"f32", 4, 4, false},
    {"s32", 4, 8, true}, {"u32", 4, 8, false}, {"b64", 8, 8, false}, {"f64", 8, 8, false},
};

static char register_of(uint32_t bytes) {
    return bytes == 2 ? 'h' : bytes == 4 ? 'r' : 'd';
}

static void list(char *out, size_t bytes, char kind, uint32_t first, uint32_t count) {
    size_t at = (size_t)snprintf(out, bytes, "%s", count > 1 ? "{" : "");
    for (uint32_t n = 0; n < count; n++)
        at += (size_t)snprintf(out + at, bytes - at, "%s%%%c%u", n ? ", " : "", kind, first + n);
    snprintf(out + at, bytes - at, "%s", count > 1 ? "}" : "");
}

enum { IN_BYTES = 2048, THREADS = 37 };
struct buffers {
    uint8_t in[IN_BYTES], copy[IN_BYTES];
    uint64_t wide[THREADS][4];
};

/* Thread t loads `count` elements from its place, stores them as they are at the same place of the
 * copy, and as whole registers in wide. */
static void check_width(const struct width *w, uint32_t count, const char *hint) {
    char body[2048], regs[64], kind = register_of(w->registers);
    uint32_t step = w->bytes * count;
    list(regs, sizeof regs, kind, 20, count);
    int at = snprintf(body, sizeof body,
                      "mul.wide.u32 %%d2, %%r0, %u;\nadd.s64 %%d3, %%d0, %%d2;\n"
                      "mul.wide.u32 %%d4, %%r0, 32;\nadd.s64 %%d5, %%d0, %%d4;\n"
                      "ld.global%s%s.%s %s, [%%d3+%u];\nst.global%s.%s [%%d3+%d], %s;\n",
                      step, hint,
                      count == 4   ? ".v4"
                      : count == 2 ? ".v2"
                                   : "",
                      w->type, regs, step,
                      count == 4   ? ".v4"
                      : count == 2 ? ".v2"
                                   : "",
                      w->type, IN_BYTES + (int)step, regs);
    for (uint32_t n = 0; n < count; n++)
        at += snprintf(body + at, sizeof body - (size_t)at, "st.global.b%u [%%d5+%u], %%%c%u;\n",
                       8 * w->registers, 2 * IN_BYTES + 8 * n, kind, 20 + n);
    struct buffers *b = machine_alloc(sizeof *b);
    fill_pattern(b->in, IN_BYTES);
    memset(b->copy, 0, IN_BYTES);
    memset(b->wide, 0, sizeof b->wide);
    if (machine_run_body(NULL, body, 1, THREADS, b)) {
        EXPECT_MEM_EQ(b->copy + step, b->in + step, THREADS * step);
        EXPECT_TRUE(b->copy[step - 1] == 0 && b->copy[(THREADS + 1) * step] == 0);
        for (uint32_t n = 0; n < THREADS * count && !shim_failed(); n++) {
            uint64_t v = 0;
            memcpy(&v, b->in + step + n * w->bytes, w->bytes);
            if (w->is_signed && v >> (8 * w->bytes - 1))
                v |= UINT64_MAX << 8 * w->bytes;
            v &= UINT64_MAX >> (64 - 8 * w->registers);
            if (b->wide[n / count][n % count] != v)
                FAIL("ld.%s to %u bits, element %u of %u: 0x%llx, expected 0x%llx", w->type,
                     8 * w->registers, n % count, count,
                     (unsigned long long)b->wide[n / count][n % count], (unsigned long long)v);
        }
    }
    machine_free(b);
}

TEST(MachineMemory, LoadsExtendAndStoresCut) {
    for (size_t n = 0; n < sizeof widths / sizeof *widths; n++)
        for (uint32_t count = 1; count <= 4 && count * widths[n].bytes <= 16; count *= 2)
            check_width(&widths[n], count, "");
}

TEST(MachineMemory, HintsAboutCachesChangeNothing) {
    static const char *const hints[] = {".nc", ".ca", ".cg",
                                        ".cs", ".lu", ".nc.L1::no_allocate.L2::128B"};
    for (size_t n = 0; n < sizeof hints / sizeof *hints; n++)
        check_width(&widths[10], 4, hints[n]);
}

/* ---- spaces ---------------------------------------------------------------------------------- */

/* Each thread writes two words of its own to a space and reads a neighbour's (its own, for local),
 * by the space's instructions and by generic ones. */
static void check_spaces(const uint32_t *data) {
    for (uint32_t t = 0; t < 64; t++) {
        const uint32_t expected[] = {1000 + (t ^ 1), 1000 + (t ^ 1), 2000 + t, 2000 + t,
                                     31 + t % 4,     31 + t % 4,     77,       3000 + t};
        EXPECT_MEM_EQ(data + 8 * t, expected, sizeof expected);
    }
}

TEST(MachineMemory, SpacesHaveGenericAddresses) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 4 .b8 sh[256];\n"
                  ".const .align 4 .b32 table[4] = {31, 32, 33, 34};\n"
                  ".global .align 4 .b32 variable = 77;\n",
        .body = ".local .align 8 .b8 mine[16];\n"
                /* shared */
                "mov.u32 %r10, sh;\nmad.lo.u32 %r11, %r0, 4, %r10;\nadd.u32 %r12, %r0, 1000;\n"
                "st.shared.u32 [%r11], %r12;\nbar.sync 0;\nxor.b32 %r13, %r0, 1;\n"
                "mad.lo.u32 %r14, %r13, 4, %r10;\nld.shared.u32 %r20, [%r14];\n"
                "cvt.u64.u32 %d2, %r14;\ncvta.shared.u64 %d3, %d2;\nld.u32 %r21, [%d3];\n"
                /* local */
                "mov.u64 %d4, mine;\nadd.u32 %r15, %r0, 2000;\nst.local.u32 [%d4+8], %r15;\n"
                "cvta.local.u64 %d5, %d4;\nld.u32 %r23, [%d5+8];\nld.local.u32 %r22, [%d4+8];\n"
                /* const */
                "mov.u64 %d6, table;\nand.b32 %r16, %r0, 3;\nmul.wide.u32 %d7, %r16, 4;\n"
                "add.s64 %d6, %d6, %d7;\nld.const.u32 %r24, [%d6];\ncvta.const.u64 %d8, %d6;\n"
                "ld.u32 %r25, [%d8];\n"
                /* a variable, and generic stores */
                "ld.global.u32 %r26, [variable];\nadd.u32 %r17, %r0, 3000;\nst.u32 [%d5], %r17;\n"
                "ld.local.u32 %r27, [%d4];\n"
                "mad.wide.u32 %d9, %r0, 32, %d0;\ncvta.to.global.u64 %d9, %d9;\n"
                "st.v4.u32 [%d9], {%r20, %r21, %r22, %r23};\n"
                "st.global.v4.u32 [%d9+16], {%r24, %r25, %r26, %r27};\n",
        .blocks = 1,
        .threads = 64,
        .words = 512,
        .check = check_spaces});
}

static void check_kinds(const uint32_t *data) {
    EXPECT_INT_EQ(data[0], 0x1); /* global */
    EXPECT_INT_EQ(data[1], 0x2); /* shared */
    EXPECT_INT_EQ(data[2], 0x4); /* local */
}

#define KIND_OF(address, word)                                                                     \
    "isspacep.global %p0, " address ";\nisspacep.shared %p1, " address ";\n"                       \
    "isspacep.local %p2, " address ";\nmov.u32 %r10, 0;\n@%p0 or.b32 %r10, %r10, 1;\n"             \
    "@%p1 or.b32 %r10, %r10, 2;\n@%p2 or.b32 %r10, %r10, 4;\n"                                     \
    "st.global.u32 [%d0+" word "], %r10;\n"

TEST(MachineMemory, AddressesKnowTheirSpace) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 4 .b8 sh[256];\n",
        .body = ".local .align 8 .b8 mine[16];\nmov.u64 %d2, sh;\ncvta.shared.u64 %d3, %d2;\n"
                "mov.u64 %d4, mine;\ncvta.local.u64 %d5, %d4;\n" KIND_OF("%d0", "0")
                    KIND_OF("%d3", "4") KIND_OF("%d5", "8"),
        .blocks = 1,
        .threads = 1,
        .words = 4,
        .check = check_kinds});
}

/* Volatile, relaxed, acquire and release forms move the same bytes. */
static void check_orders(const uint32_t *data) {
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_INT_EQ(data[t], 5 * t + 7);
}
static void prepare_orders(uint32_t *data) {
    for (uint32_t t = 0; t < 32; t++)
        data[t] = 5 * t;
}

TEST(MachineMemory, OrderedAccessesMoveTheSameBytes) {
    machine_run_case(&(struct machine_case){
        .body = "ld.volatile.global.u32 %r10, [%d1];\nadd.u32 %r10, %r10, 1;\n"
                "st.volatile.global.u32 [%d1], %r10;\nld.relaxed.gpu.global.u32 %r10, [%d1];\n"
                "add.u32 %r10, %r10, 2;\nst.relaxed.sys.global.u32 [%d1], %r10;\n"
                "ld.acquire.sys.global.u32 %r10, [%d1];\nadd.u32 %r10, %r10, 4;\n"
                "fence.acq_rel.sys;\nmembar.cta;\nst.release.gpu.global.u32 [%d1], %r10;\n",
        .blocks = 1,
        .threads = 32,
        .words = 32,
        .prepare = prepare_orders,
        .check = check_orders});
}

/* ---- atomics --------------------------------------------------------------------------------- */

/* An operation on a word, of which 200 threads, in any order, execute both forms with the operand
 * 1 + their number, or a constant; the outcome does not depend on the order. */
enum { ATOMIC_THREADS = 200 };
struct atomic {
    const char *order, *op;
    char width; /* w 32 bits, x 64 */
    uint64_t start, outcome;
    const char *operand; /* NULL: the number */
};

/* On the word of the buffer, by 5 blocks, or on a copy of it in shared memory, by one. */
static void check_atomic(const struct atomic *a, bool shared) {
    char body[1024];
    bool wide = a->width == 'x';
    const char *operand = a->operand ? a->operand : wide ? "%d10" : "%r10";
    const char *at = shared ? "%d3" : "%d0", *space = shared ? "shared" : "global";
    const char *type = wide ? "u64" : "u32", *reg = wide ? "%d11" : "%r11";
    snprintf(body, sizeof body,
             "mov.u64 %%d3, sh;\nadd.u32 %%r10, %%r2, 1;\ncvt.u64.u32 %%d10, %%r10;\n"
             "setp.ne.u32 %%p0, %%r0, 0;\nsetp.ne.u32 %%p1, %%r0, %u;\n@%%p0 bra READY;\n"
             "ld.relaxed.gpu.global.%s %s, [%%d0];\nst.shared.%s [%%d3], %s;\nREADY:\nbar.sync 0;\n"
             "atom%s.%s.%s %s, [%s], %s;\nred%s.%s.%s [%s], %s;\n"
             "bar.sync 0;\n@%%p1 ret;\nld.shared.%s %s, [%%d3];\nst.global.%s [%%d0], %s;\n",
             shared ? 0 : ATOMIC_THREADS, type, reg, type, reg, a->order, space, a->op, reg, at,
             operand, a->order, space, a->op, at, operand, type, reg, type, reg);
    uint64_t *data = machine_alloc(256);
    data[0] = a->start;
    if (machine_run_body(".shared .align 8 .b8 sh[8];\n", body, shared ? 1 : 5,
                         ATOMIC_THREADS / (shared ? 1 : 5), data)) {
        uint64_t got = wide ? data[0] : (uint32_t)data[0];
        if (got != a->outcome)
            FAIL("atom%s.%s.%s: 0x%llx, expected 0x%llx", a->order, space, a->op,
                 (unsigned long long)got, (unsigned long long)a->outcome);
    }
    machine_free(data);
}

/* The operands 1 .. 200 sum up to 20100, once for each form. */
TEST(MachineMemory, AtomicsOfManyThreadsAllCount) {
    static const struct atomic rows[] = {
        {"", "add.u32", 'w', 5, 5 + 2 * 20100, NULL},
        {"", "add.s32", 'w', 0xffffffff, 2 * 20100 - 1, NULL},
        {"", "add.u64", 'x', 0xffffffff, 0xffffffff + 2 * 20100ull, NULL},
        {"", "min.u32", 'w', 0xffffffff, 1, NULL},
        {"", "min.s32", 'w', 0xfffffffe, 0xfffffffe, NULL},
        {"", "max.u32", 'w', 3, 200, NULL},
        {"", "max.s32", 'w', 0x80000000, 200, NULL},
        {"", "min.u64", 'x', UINT64_MAX, 1, NULL},
        {"", "max.s64", 'x', UINT64_MAX, 200, NULL},
        {"", "and.b32", 'w', 0xffffff00, 0, NULL},
        {"", "or.b32", 'w', 0x10000, 0x100ff, NULL},
        {"", "xor.b32", 'w', 0x1234, 0x1234, NULL},
        {"", "or.b64", 'x', (uint64_t)1 << 40, ((uint64_t)1 << 40) | 255, NULL},
        {"", "inc.u32", 'w', 0, 400 % 7, "6"},
        {"", "dec.u32", 'w', 3, (3 + 7 * 400 - 400) % 7, "6"},
        {"", "add.f32", 'w', 0x3f800000, 0x43c88000, "0f3F800000"}, /* 1 + 400 */
        {"", "add.f64", 'x', 0x3ff0000000000000, 0x4079100000000000, "0d3FF0000000000000"},
        {"", "add.noftz.f16x2", 'w', 0x3c004000, 0x5e445e48, "0x3c003c00"}, /* 401, 402 */
        {".relaxed.gpu", "add.u32", 'w', 5, 5 + 2 * 20100, NULL},
        {".release.sys", "add.u32", 'w', 5, 5 + 2 * 20100, NULL},
    };
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        check_atomic(&rows[n], false);
        check_atomic(&rows[n], true);
    }
}

/* exch and cas: 160 threads pass a token on, each exactly once; what they find are all numbers but
 * the last one. */
static void prepare_tokens(uint32_t *data) {
    memset(data, 0, 2048 * sizeof *data);
}
static void check_tokens(const uint32_t *data) {
    bool seen[161] = {false};
    EXPECT_INT_EQ(data[1], 160);
    for (uint32_t n = 0; n < 160; n++) {
        uint32_t found = data[512 + n];
        EXPECT_TRUE(found <= 160 && !seen[found]);
        seen[found <= 160 ? found : 0] = true;
        EXPECT_INT_EQ(data[1024 + n] >> 16, 1); /* was added to once by compare-and-swap */
    }
    EXPECT_TRUE(!seen[data[0]]);
}

TEST(MachineMemory, ExchangesAndSwapsHappenOnce) {
    machine_run_case(&(struct machine_case){
        .body = "add.u32 %r10, %r2, 1;\natom.global.exch.b32 %r11, [%d0], %r10;\n"
                "st.global.u32 [%d1+2048], %r11;\n"
                "ld.relaxed.gpu.global.u32 %r12, [%d0+4];\n"
                "AGAIN:\nadd.u32 %r13, %r12, 1;\natom.global.cas.b32 %r14, [%d0+4], %r12, %r13;\n"
                "setp.ne.u32 %p0, %r14, %r12;\nmov.u32 %r12, %r14;\n@%p0 bra AGAIN;\n"
                "mul.wide.u32 %d2, %r12, 4;\nadd.s64 %d2, %d2, %d0;\n"
                "red.global.add.u32 [%d2+4096], 65536;\n",
        .blocks = 4,
        .threads = 40,
        .words = 2048,
        .prepare = prepare_tokens,
        .check = check_tokens});
}

/* ---- cp.async -------------------------------------------------------------------------------- */

/* Thread t of 32 copies `bytes` bytes, of which `valid` are read and the rest are zeros, into its
 * place of shared memory, and stores that place. */
static void check_copy(const char *form, uint32_t bytes, uint32_t valid, const char *last) {
    char body[1024];
    snprintf(body, sizeof body,
             "mov.u32 %%r10, sh;\nmad.lo.u32 %%r11, %%r0, 16, %%r10;\nmov.u32 %%r12, %u;\n"
             "mov.u32 %%r13, 0xeeeeeeee;\nst.shared.v4.u32 [%%r11], {%%r13, %%r13, %%r13, %%r13};\n"
             "setp.eq.u32 %%p1, %%r12, 0;\nmad.wide.u32 %%d2, %%r0, 16, %%d0;\n"
             "cp.async.%s [%%r11], [%%d2], %u%s;\n"
             "cp.async.commit_group;\ncp.async.wait_group 0;\n"
             "ld.shared.v4.u32 {%%r20, %%r21, %%r22, %%r23}, [%%r11];\n"
             "st.global.v4.u32 [%%d2+512], {%%r20, %%r21, %%r22, %%r23};\n",
             valid, form, bytes, last);
    uint8_t *data = machine_alloc(1024), expected[512];
    fill_pattern(data, 512);
    memset(expected, 0xee, sizeof expected);
    for (uint32_t n = 0; n < 512; n++)
        if (n % 16 < bytes)
            expected[n] = n % 16 < valid ? pattern(n) : 0;
    if (machine_run_body(".shared .align 16 .b8 sh[512];\n", body, 1, 32, data))
        EXPECT_MEM_EQ(data + 512, expected, sizeof expected);
    machine_free(data);
}

TEST(MachineMemory, CopiesFillWithZerosWhatIsNotRead) {
    check_copy("ca.shared.global", 4, 4, "");
    check_copy("ca.shared.global", 8, 8, "");
    check_copy("ca.shared.global", 16, 16, "");
    check_copy("cg.shared.global", 16, 16, "");
    check_copy("cg.shared.global.L2::128B", 16, 16, "");
    for (uint32_t valid = 0; valid <= 16; valid++)
        check_copy("cg.shared.global", 16, valid, ", %r12");
    for (uint32_t valid = 0; valid <= 8; valid += 3)
        check_copy("ca.shared.global", 8, valid, ", %r12");
    check_copy("ca.shared.global", 4, 0, ", %p1"); /* the predicate asks for zeros */
    check_copy("ca.shared.global", 4, 4, ", %p1");
}

/* A ring of 3 stages over 7 parts: each is waited for while the two after it are on their way. The
 * groups that the tail commits are empty. */
static void prepare_ring(uint32_t *data) {
    for (uint32_t n = 0; n < 7 * 64; n++)
        data[n] = n * n;
    memset(data + 448, 0, 64 * sizeof *data);
}
static void check_ring(const uint32_t *data) {
    for (uint32_t t = 0; t < 64; t++) {
        uint32_t sum = 0;
        for (uint32_t part = 0; part < 7; part++)
            sum = sum * 3 + (part * 64 + (t ^ 33)) * (part * 64 + (t ^ 33));
        EXPECT_INT_EQ(data[448 + t], sum);
    }
}

TEST(MachineMemory, GroupsOfCopiesArriveInOrder) {
    machine_run_case(&(struct machine_case){
        .before = ".shared .align 16 .b8 sh[768];\n",
        .body =
            "mov.u32 %r10, sh;\nmov.u32 %r20, 0;\nmov.u32 %r21, 0;\nmov.u32 %r22, 0;\n"
            /* %r20 the part to issue, %r21 the part to use, %r22 the sum */
            "ISSUE:\nsetp.ge.u32 %p0, %r20, 7;\n@%p0 bra COMMIT;\nrem.u32 %r11, %r20, 3;\n"
            "mad.lo.u32 %r12, %r11, 64, %r0;\nmad.lo.u32 %r12, %r12, 4, %r10;\n"
            "mad.lo.u32 %r13, %r20, 64, %r0;\nmad.wide.u32 %d2, %r13, 4, %d0;\n"
            "cp.async.ca.shared.global [%r12], [%d2], 4;\nCOMMIT:\ncp.async.commit_group;\n"
            "add.u32 %r20, %r20, 1;\nsetp.lt.u32 %p1, %r20, 3;\n@%p1 bra ISSUE;\n"
            "cp.async.wait_group 2;\nbar.sync 0;\nrem.u32 %r11, %r21, 3;\nxor.b32 %r14, %r0, 33;\n"
            "mad.lo.u32 %r12, %r11, 64, %r14;\nmad.lo.u32 %r12, %r12, 4, %r10;\n"
            "ld.shared.u32 %r15, [%r12];\nmad.lo.u32 %r22, %r22, 3, %r15;\nbar.sync 0;\n"
            "add.u32 %r21, %r21, 1;\nsetp.lt.u32 %p2, %r21, 7;\n@%p2 bra ISSUE;\n"
            "cp.async.wait_all;\nst.global.u32 [%d1+1792], %r22;\n",
        .blocks = 1,
        .threads = 64,
        .words = 512,
        .prepare = prepare_ring,
        .check = check_ring});
}

/* ---- switches -------------------------------------------------------------------------------- */

TEST(MachineMemory, DevicesMayHaveUnequalMemory) {
    setenv("PTXVM_MEMORY", "3M,1000000,512K", 1);
    vm_settings_reread();
    EXPECT_INT_EQ(vm_total_bytes(0), 3 << 20);
    EXPECT_INT_EQ(vm_total_bytes(1), 1000000);
    EXPECT_INT_EQ(vm_total_bytes(2), 512 << 10);
    EXPECT_INT_EQ(vm_total_bytes(15), 512 << 10);
    size_t left = vm_free_bytes(1), more = left + 256;
    EXPECT_TRUE(left <= 1000000 && !vm_alloc(1, more, VM_DEVICE, "too much"));
    void *p = vm_alloc(0, more, VM_DEVICE, "what another device has room for");
    EXPECT_TRUE(p && vm_free(p));
    unsetenv("PTXVM_MEMORY");
    vm_settings_reread();
    EXPECT_INT_EQ(vm_total_bytes(15), (int64_t)2 << 30);
}
