#include "tests/ptxvm/fault_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/ptxvm/settings.h"

static const char prologue[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                               ".extern .shared .align 16 .b8 dyn[];\n"
                               ".file 1 \"broken.cu\"\n"
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

static uint32_t *make_data(enum fault_memory kind) {
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
                          .block = {c->threads ? c->threads : 64, c->height ? c->height : 1, 1},
                          .dynamic_shared = c->dynamic_shared,
                          .dynamic_shared_limit = c->dynamic_limit ? c->dynamic_limit : 48 << 10,
                          .params = &data};
    enum vm_result r = vm_check_launch(&l);
    return r ? r : vm_run(&l);
}

static _Noreturn void child(const struct fault_case *c, const char *text, int out) {
    setenv("PTXVM_RACES", c->races ? "1" : "0", 1);
    setenv("PTXVM_SPIN", "1", 1);
    setenv("PTXVM_STEPS", "2000000", 1);
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

/* Who did it, and where. A launch that is refused has neither. */
static void expect_place(const struct fault_case *c, const char *text, const char *report) {
    const char *who = c->who ? c->who : "block       (";
    if (c->result == VM_BAD_LAUNCH) {
        if (!strstr(report, "launch of k: "))
            FAIL("%s: the kernel is not in its report:\n%s", c->name, report);
        return;
    }
    if (!strstr(report, "\n  kernel      k\n") || !strstr(report, who) ||
        !strstr(report, "thread ("))
        FAIL("%s: the kernel or \"%s\" is not in its report:\n%s", c->name, who, report);
    else if (c->source && !strstr(report, c->source))
        FAIL("%s: \"%s\" is not in its report:\n%s", c->name, c->source, report);
    else if (!c->source)
        expect_line(c, text, report, "<<", "at          PTX line %d\n");
    if (c->races)
        expect_line(c, text, report, ">>", "at PTX line %d;");
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
    else if (c->result)
        expect_place(c, text, report);
}

void fault_expect(const struct fault_case *cases, size_t count) {
    for (size_t n = 0; n < count; n++)
        expect_case(&cases[n]);
}
