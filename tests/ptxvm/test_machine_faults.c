/* Deliberately broken kernels, each of which the machine has to report with the right words and the
 * right line, and their correct twins, which it has to run.
 *
 * Each case is the body of a kernel k(uint32_t *data). Its blocks have 64 threads unless it says
 * otherwise; data has 256 bytes and so has the shared array sh. The instruction that is to be
 * reported stands on the line with "<<", the other half of a race on the one with ">>". A case
 * runs in a process of its own, so that a crash or another environment stays there.
 *
 * Before the body: %r1 thread, %r2 address of sh, %r3 thread * 4, %r4 that of sh[thread], %r6
 * block, %rd1 data, %rd3 address of data[thread]; %p1 thread 0, %p2 a thread below 16, %p3 warp 0.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/ptxvm/machine.h"
#include "tests/ptxvm/settings.h"
#include "tests/shim.h"

enum memory { DEVICE, FREED, HOST, REGISTERED, OTHER_DEVICE };

struct fault_case {
    const char *name, *body;
    enum vm_result result;
    const char *words;      /* in the report; NULL with VM_OK */
    const char *directives; /* before the body's brace; NULL: none */
    enum memory memory;
    uint32_t blocks, threads; /* 0: 1 and 64 */
    size_t dynamic_shared;
    bool races;
};

static const char prologue[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                               ".extern .shared .align 16 .b8 dyn[];\n"
                               ".visible .entry k(.param .u64 k_data) %s\n{\n"
                               ".reg .pred %%p<8>;\n.reg .b32 %%r<32>;\n.reg .b64 %%rd<16>;\n"
                               ".shared .align 16 .b8 sh[256];\n"
                               "ld.param.u64 %%rd4, [k_data];\n"
                               "cvta.to.global.u64 %%rd1, %%rd4;\n"
                               "mov.u32 %%r1, %%tid.x;\n"
                               "mov.u32 %%r2, sh;\n"
                               "shl.b32 %%r3, %%r1, 2;\n"
                               "add.s32 %%r4, %%r2, %%r3;\n"
                               "mov.u32 %%r6, %%ctaid.x;\n"
                               "mul.wide.u32 %%rd2, %%r1, 4;\n"
                               "add.s64 %%rd3, %%rd1, %%rd2;\n"
                               "setp.eq.u32 %%p1, %%r1, 0;\n"
                               "setp.lt.u32 %%p2, %%r1, 16;\n"
                               "setp.lt.u32 %%p3, %%r1, 32;\n"
                               "%s\nret;\n}\n";

static const struct fault_case barriers[] = {
    {.name = "barriers on both sides of a branch",
     .body = "@%p3 bra L;\n bar.sync 0;\n bra M;\nL:\n bar.sync 0; \nM:\n",
     .result = VM_FAULT,
     .words = "divergent barrier 0"},
    {.name = "barrier for all", .body = "bar.sync 0;\n bar.sync 0;\n"},
    {.name = "a thread that ends before a barrier",
     .body = "@%p1 ret;\n bar.sync 0;\n",
     .result = VM_FAULT,
     .words = "barrier 0"},
    {.name = "a warp that ends before a barrier",
     .body = "@%p3 ret;\n bar.sync 0; // <<\n",
     .result = VM_FAULT,
     .words = "have ended"},
    {.name = "a barrier that nobody else comes to",
     .body = "@%p3 bar.sync 1, 64;\n@!%p3 bar.sync 2, 64;\n",
     .result = VM_FAULT,
     .words = "deadlock"},
    {.name = "a barrier of 40 threads",
     .body = "bar.sync 1, 40; // <<\n",
     .result = VM_FAULT,
     .words = "multiple of 32"},
};

static const struct fault_case collectives[] = {
    {.name = "a shuffle without half of the warp",
     .body = "@!%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1; // <<\nL:\n bar.sync 0;\n",
     .result = VM_FAULT,
     .words = "lanes 0x0000ffff wait for lanes 0xffffffff"},
    {.name = "a shuffle of the half that is there",
     .body = "@!%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, 65535;\nL:\n bar.sync 0;\n"},
    {.name = "a lane outside of its mask",
     .body = "vote.sync.ballot.b32 %r7, %p1, 65535; // <<\n",
     .result = VM_FAULT,
     .words = "does not name it"},
    {.name = "a shuffle that meets a vote",
     .body = "@%p2 bra L;\n shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;\n bra M;\n"
             "L:\n vote.sync.ballot.b32 %r7, %p1, -1;\nM:\n",
     .result = VM_FAULT,
     .words = "divergent warp operation"},
};

static const struct fault_case accesses[] = {
    {.name = "global in bounds",
     .body = "st.global.u32 [%rd3], %r1;\nld.global.u32 %r7, [%rd3];\n"},
    {.name = "global past the end",
     .body = "st.global.u32 [%rd3+4], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "byte 256 of memory under test"},
    {.name = "global before the start",
     .body = "ld.global.u32 %r7, [%rd3+-4]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "4 bytes before memory under test"},
    {.name = "global half outside",
     .body = "ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%rd1+256]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "which has 256 bytes"},
    {.name = "null pointer",
     .body = "mov.u64 %rd5, 0;\nld.global.u32 %r7, [%rd5]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "null pointer"},
    {.name = "global misaligned",
     .body = "ld.global.v2.u32 {%r7, %r8}, [%rd1+4]; // <<\n",
     .result = VM_MISALIGNED,
     .words = "not a multiple of 8"},
    {.name = "freed memory",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "freed memory",
     .memory = FREED},
    {.name = "host memory",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "reads 4 bytes",
     .memory = HOST},
    {.name = "registered host memory",
     .body = "ld.global.u32 %r7, [%rd3];\n",
     .memory = REGISTERED},
    {.name = "memory of another device",
     .body = "ld.global.u32 %r7, [%rd3]; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "memory of device 1",
     .memory = OTHER_DEVICE},
    {.name = "shared in bounds", .body = "st.shared.u32 [%r4], %r1;\nld.shared.u32 %r7, [%r4];\n"},
    {.name = "shared past the end",
     .body = "st.shared.u32 [%r4+4], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "past its end"},
    {.name = "shared misaligned",
     .body = "st.shared.u32 [%r4+2], %r1; // <<\n",
     .result = VM_MISALIGNED,
     .words = "not a multiple of 4"},
    {.name = "shared never written",
     .body = "@%p3 st.shared.u32 [%r4], %r1;\nld.shared.u32 %r7, [%r4]; // <<\n",
     .result = VM_FAULT,
     .words = "byte 128 was never written"},
    {.name = "dynamic shared in bounds",
     .body = "mov.u32 %r7, dyn;\nst.shared.u32 [%r7+124], %r1;\n",
     .dynamic_shared = 128},
    {.name = "dynamic shared past the end",
     .body = "mov.u32 %r7, dyn;\nst.shared.u32 [%r7+128], %r1; // <<\n",
     .result = VM_BAD_ADDRESS,
     .words = "past its end",
     .dynamic_shared = 128},
    {.name = "trap", .body = "trap; // <<\n", .result = VM_FAULT, .words = "traps"},
};

#define COPY "@%p2 cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
static const struct fault_case copies[] = {
    {.name = "a copy that is waited for",
     .body = COPY "cp.async.wait_group 0;\n@%p2 ld.shared.u32 %r7, [%r4];\n"},
    {.name = "a copy that is not waited for",
     .body = COPY "@%p2 ld.shared.u32 %r7, [%r4]; // <<\ncp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a wait for the group before",
     .body = COPY "cp.async.wait_group 1;\n@%p2 ld.shared.u32 %r7, [%r4]; // <<\n"
                  "cp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "a buffer in use that is filled again",
     .body = COPY "cp.async.wait_group 0;\n" COPY "@%p2 ld.shared.u32 %r7, [%r4]; // <<\n"
                  "cp.async.wait_group 0;\n",
     .result = VM_FAULT,
     .words = "cp.async still fills"},
    {.name = "an end before the copies have come",
     .body = COPY,
     .result = VM_FAULT,
     .words = "cp.async"},
};

/* In every race, the line with << comes second. */
#define FLAG_SET "st.global.u32 [%rd1], %r1;\n"
#define LAST     "setp.eq.u32 %p4, %r6, 0;\n@!%p1 ret;\n@!%p4 bra WAIT;\n"
static const struct fault_case races[] = {
    {.name = "a missing barrier",
     .body = "st.shared.u32 [%r4], %r1; // >>\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
             "@!%p3 ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of shared sh",
     .races = true},
    {.name = "a barrier",
     .body =
         "st.shared.u32 [%r4], %r1;\nbar.sync 0;\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
         "ld.shared.u32 %r8, [%r7];\n",
     .races = true},
    {.name = "a missing __syncwarp",
     .body = "st.shared.u32 [%r4], %r1; // >>\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
             "ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a __syncwarp",
     .body =
         "st.shared.u32 [%r4], %r1;\nbar.warp.sync -1;\nxor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\n"
         "ld.shared.u32 %r8, [%r7];\n",
     .races = true},
    {.name = "a __syncwarp between two warps",
     .body =
         "st.shared.u32 [%r4], %r1; // >>\nbar.warp.sync -1;\nxor.b32 %r8, %r3, 128;\nadd.s32 %r7, %r2, %r8;\n"
         "@!%p3 ld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a shuffle, which orders nothing",
     .body = "st.shared.u32 [%r4], %r1; // >>\nshfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n"
             "xor.b32 %r8, %r3, 4;\nadd.s32 %r7, %r2, %r8;\nld.shared.u32 %r8, [%r7]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads",
     .races = true},
    {.name = "a write after a read",
     .body = "@%p1 st.shared.u32 [%r2], %r1;\nbar.sync 0;\nld.shared.u32 %r7, [%r2]; // >>\n"
             "setp.eq.u32 %p4, %r1, 63;\n@%p4 st.shared.u32 [%r2], %r7; // <<\n",
     .result = VM_FAULT,
     .words = "race: writes byte 0 of shared sh",
     .races = true},
    {.name = "bytes side by side",
     .body = "add.s32 %r7, %r2, %r1;\nst.shared.u8 [%r7], %r1;\nld.shared.u8 %r8, [%r7];\n",
     .races = true},
    {.name = "two blocks at one word",
     .body = "st.global.u32 [%rd3], %r6; // << >>\n",
     .result = VM_FAULT,
     .words = "race: writes byte",
     .blocks = 2,
     .races = true},
    {.name = "two blocks that add atomically",
     .body = "red.global.add.u32 [%rd1], 1;\n",
     .blocks = 8,
     .races = true},
    {.name = "a release and an acquire",
     .body = LAST FLAG_SET "st.release.gpu.global.u32 [%rd1+4], 7;\nret;\nWAIT:\n"
                           "ld.acquire.gpu.global.u32 %r7, [%rd1+4];\nsetp.ne.u32 %p5, %r7, 7;\n"
                           "@%p5 bra WAIT;\nld.global.u32 %r8, [%rd1];\n",
     .blocks = 2,
     .races = true},
    {.name = "a relaxed flag",
     .body = LAST "st.global.u32 [%rd1], %r1; // >>\nst.relaxed.gpu.global.u32 [%rd1+4], 7;\nret;\n"
                  "WAIT:\nld.relaxed.gpu.global.u32 %r7, [%rd1+4];\nsetp.ne.u32 %p5, %r7, 7;\n"
                  "@%p5 bra WAIT;\nld.global.u32 %r8, [%rd1]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte 0 of memory under test",
     .blocks = 2,
     .races = true},
    {.name = "a flag between fences",
     .body = LAST FLAG_SET "fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%rd1+4], 7;\nret;\n"
                           "WAIT:\nld.relaxed.gpu.global.u32 %r7, [%rd1+4];\n"
                           "setp.ne.u32 %p5, %r7, 7;\n@%p5 bra WAIT;\nfence.acq_rel.gpu;\n"
                           "ld.global.u32 %r8, [%rd1];\n",
     .blocks = 2,
     .races = true},
    /* data[32] counts the blocks, from -1, the fill of new memory; the last one adds up what all
       have written. */
    {.name = "a counter of blocks",
     .body = "mul.wide.u32 %rd5, %r6, 4;\nadd.s64 %rd6, %rd1, %rd5;\n@%p1 bra FIRST;\nbra ALL;\n"
             "FIRST:\nst.global.u32 [%rd6], %r6;\nmembar.gl;\n"
             "atom.global.add.u32 %r7, [%rd1+128], 1;\nst.shared.u32 [%r2], %r7;\n"
             "ALL:\nbar.sync 0;\nld.shared.u32 %r8, [%r2];\nsetp.ne.u32 %p4, %r8, 6;\n"
             "@%p4 ret;\nmembar.gl;\n@%p2 ld.global.u32 %r9, [%rd3];\n",
     .blocks = 8,
     .races = true},
    {.name = "a counter of blocks without a fence",
     .body = "@!%p1 ret;\nmul.wide.u32 %rd5, %r6, 4;\nadd.s64 %rd6, %rd1, %rd5;\n"
             "st.global.u32 [%rd6], %r6; // >>\natom.global.add.u32 %r7, [%rd1+128], 1;\n"
             "setp.ne.u32 %p4, %r7, 6;\n@%p4 ret;\nld.global.v4.u32 {%r8, %r9, %r10, %r11}, "
             "[%rd1]; // <<\n",
     .result = VM_FAULT,
     .words = "race: reads byte",
     .blocks = 8,
     .races = true},
};

static const struct fault_case launches[] = {
    {.name = "as many threads as __launch_bounds__", .body = "", .directives = ".maxntid 64, 1, 1"},
    {.name = "more threads than __launch_bounds__",
     .body = "",
     .directives = ".maxntid 64, 1, 1",
     .threads = 65,
     .result = VM_BAD_LAUNCH,
     .words = "its __launch_bounds__ allow 64"},
    {.name = "more threads than a block has",
     .body = "",
     .threads = 1025,
     .result = VM_BAD_LAUNCH,
     .words = "blocks of 1025"},
    {.name = "more shared memory than allowed",
     .body = "",
     .dynamic_shared = 50000,
     .result = VM_BAD_LAUNCH,
     .words = "50000 bytes of dynamic shared memory"},
};

/* ---- running a case -----------------------------------------------------------------------------
 */

static void make_text(const struct fault_case *c, char *out, size_t bytes) {
    snprintf(out, bytes, prologue, c->directives ? c->directives : "", c->body);
}

/* The line of a text that a mark stands on, 0 when it stands nowhere. */
static int line_of(const char *text, const char *mark) {
    const char *at = strstr(text, mark);
    int line = at != NULL;
    for (const char *s = text; at && s < at; s++)
        line += *s == '\n';
    return line;
}

static uint32_t *make_data(enum memory kind) {
    static uint32_t host[64];
    if (kind == HOST || kind == REGISTERED) {
        if (kind == REGISTERED)
            vm_register_host(host, sizeof host);
        return host;
    }
    uint32_t *data = vm_alloc(kind == OTHER_DEVICE, sizeof host, VM_DEVICE, "memory under test");
    if (kind == FREED)
        vm_free(data);
    return data;
}

/* In the child: runs the kernel; the report is left in ptxvm_last_report. */
static enum vm_result run_kernel(const struct fault_case *c, const char *text) {
    char error[1000];
    struct vm_module *m = vm_module_load(text, strlen(text), error, sizeof error);
    if (!m) {
        vm_report("not loaded: %s", error);
        return VM_BAD_INSTRUCTION;
    }
    uint32_t *data = make_data(c->memory);
    struct vm_launch l = {.kernel = vm_module_kernel(m, "k"),
                          .arch = vm_arch_find(89),
                          .grid = {c->blocks ? c->blocks : 1, 1, 1},
                          .block = {c->threads ? c->threads : 64, 1, 1},
                          .dynamic_shared = c->dynamic_shared,
                          .dynamic_shared_limit = 48 << 10,
                          .params = &data};
    enum vm_result r = vm_check_launch(&l);
    return r ? r : vm_run(&l);
}

static _Noreturn void child(const struct fault_case *c, const char *text, int out) {
    setenv("PTXVM_RACES", c->races ? "1" : "0", 1);
    setenv("PTXVM_SPIN", "2", 1);
    unsetenv("PTXVM_ASYNC_COPY");
    unsetenv("PTXVM_SCHEDULE"); /* what is seen first, and so the words, depend on the order */
    vm_settings_reread();
    if (!freopen("/dev/null", "w", stderr))
        _exit(100);
    int result = run_kernel(c, text);
    const char *report = ptxvm_last_report();
    size_t n = strlen(report);
    _exit(write(out, report, n) == (ssize_t)n ? result : 100);
}

/* The result of a case, -1 when its process ends in another way, and its report. */
static int run_case(const struct fault_case *c, const char *text, char *report, size_t bytes) {
    int ends[2], status, result = -1;
    size_t have = 0;
    ssize_t n = 0;
    if (pipe(ends))
        return -1;
    pid_t pid = fork();
    if (!pid)
        child(c, text, ends[1]);
    close(ends[1]);
    while (pid > 0 && have + 1 < bytes && (n = read(ends[0], report + have, bytes - 1 - have)) > 0)
        have += (size_t)n;
    report[have] = 0;
    close(ends[0]);
    if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status))
        result = WEXITSTATUS(status);
    return result;
}

static void expect_line(const struct fault_case *c, const char *text, const char *report,
                        const char *mark, const char *format) {
    char where[64];
    int line = line_of(text, mark);
    if (!line)
        return;
    snprintf(where, sizeof where, format, line);
    if (!strstr(report, where))
        FAIL("%s: \"%s\" is not in its report:\n%s", c->name, where, report);
}

static void expect_case(const struct fault_case *c) {
    char text[8192], report[4096];
    make_text(c, text, sizeof text);
    int result = run_case(c, text, report, sizeof report);
    if (result != (int)c->result)
        FAIL("%s: result %d instead of %d; report:\n%s", c->name, result, (int)c->result, report);
    else if (c->result == VM_OK && report[0])
        FAIL("%s: is right, but was reported:\n%s", c->name, report);
    else if (c->words && !strstr(report, c->words))
        FAIL("%s: \"%s\" is not in its report:\n%s", c->name, c->words, report);
    else
        expect_line(c, text, report, "<<", "at          PTX line %d\n");
    if (c->races && c->result)
        expect_line(c, text, report, ">>", "at PTX line %d;");
}

static void expect_all(const struct fault_case *cases, size_t count) {
    for (size_t n = 0; n < count; n++)
        expect_case(&cases[n]);
}

#define EXPECT_ALL(cases) expect_all(cases, sizeof(cases) / sizeof *(cases))

TEST(MachineFaults, BarriersThatNotAllThreadsComeTo) {
    EXPECT_ALL(barriers);
}

TEST(MachineFaults, CollectivesWithoutSomeOfTheirLanes) {
    EXPECT_ALL(collectives);
}

TEST(MachineFaults, AccessesOutsideOfWhatThereIs) {
    EXPECT_ALL(accesses);
}

TEST(MachineFaults, CopiesThatAreNotWaitedFor) {
    EXPECT_ALL(copies);
}

TEST(MachineFaults, RacesAndTheirCorrectTwins) {
    EXPECT_ALL(races);
}

TEST(MachineFaults, LaunchesThatAreNotPossible) {
    EXPECT_ALL(launches);
}
