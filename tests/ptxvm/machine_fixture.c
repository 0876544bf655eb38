#include "tests/ptxvm/machine_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/settings.h"

static const char header[] = ".version 8.4\n.target sm_89\n.address_size 64\n";

void *machine_alloc(size_t bytes) {
    void *p = vm_alloc(0, bytes, VM_DEVICE, "memory of the test");
    if (!p)
        abort();
    vm_access_begin();
    return p;
}

void machine_free(void *p) {
    vm_access_end();
    vm_free(p);
}

struct vm_module *machine_load(const char *text) {
    char error[1000];
    size_t bytes = sizeof header + strlen(text);
    char *whole = malloc(bytes);
    if (!whole)
        abort();
    snprintf(whole, bytes, "%s%s", header, text);
    struct vm_module *m = vm_module_load(whole, bytes - 1, error, sizeof error);
    if (!m)
        FAIL("%s in\n%s", error, whole);
    free(whole);
    return m;
}

bool machine_run(const struct vm_module *m, const char *name, uint32_t blocks, uint32_t threads,
                 void *data) {
    struct vm_launch l = {.kernel = vm_module_kernel(m, name),
                          .arch = vm_arch_find(89),
                          .grid = {blocks, 1, 1},
                          .block = {threads, 1, 1},
                          .dynamic_shared_limit = 48 << 10,
                          .params = &data};
    if (!l.kernel) {
        FAIL("the module has no kernel %s", name);
        return false;
    }
    ptxvm_clear_report();
    enum vm_result result = vm_run(&l);
    if (result != VM_OK)
        FAIL("result %d: %s", (int)result, ptxvm_last_report());
    return result == VM_OK;
}

/* ---- bodies ---------------------------------------------------------------------------------- */

static struct vm_module *load_body(const char *before, const char *body) {
    static const char format[] =
        "%s\n.visible .entry k(.param .u64 k_data)\n{\n"
        ".reg .pred %%p<16>;\n.reg .b16 %%h<32>;\n.reg .b32 %%r<64>;\n.reg .b64 %%d<32>;\n"
        "ld.param.u64 %%d0, [k_data];\n"
        "mov.u32 %%r0, %%tid.x;\nmov.u32 %%r1, %%ctaid.x;\nmov.u32 %%r2, %%ntid.x;\n"
        "mad.lo.u32 %%r2, %%r1, %%r2, %%r0;\nmad.wide.u32 %%d1, %%r2, 4, %%d0;\n"
        "%s\nret;\n}\n";
    size_t bytes = sizeof format + strlen(body) + (before ? strlen(before) : 0);
    char *text = malloc(bytes);
    if (!text)
        abort();
    snprintf(text, bytes, format, before ? before : "", body);
    struct vm_module *m = machine_load(text);
    free(text);
    return m;
}

bool machine_run_body(const char *before, const char *body, uint32_t blocks, uint32_t threads,
                      void *data) {
    struct vm_module *m = load_body(before, body);
    bool ok = m && machine_run(m, "k", blocks, threads, data);
    if (m)
        vm_module_unload(m);
    return ok;
}

/* ---- schedules ------------------------------------------------------------------------------- */

/* Sets a variable and returns its old value, which the caller frees. */
static char *exchange_setting(const char *variable, const char *value) {
    const char *now = getenv(variable);
    char *old = now ? strdup(now) : NULL;
    if (value)
        setenv(variable, value, 1);
    else
        unsetenv(variable);
    return old;
}

static void run_under(const struct machine_case *c, const struct vm_module *m, const char *schedule,
                      const char *races) {
    uint32_t *data = machine_alloc(c->words * sizeof *data);
    char *old_schedule = exchange_setting("PTXVM_SCHEDULE", schedule);
    char *old_races = exchange_setting("PTXVM_RACES", races);
    vm_settings_reread();
    if (c->prepare)
        c->prepare(data);
    if (machine_run(m, "k", c->blocks, c->threads, data))
        c->check(data);
    if (shim_failed())
        fprintf(stderr, "with PTXVM_SCHEDULE=%s PTXVM_RACES=%s\n", schedule, races);
    free(exchange_setting("PTXVM_SCHEDULE", old_schedule));
    free(exchange_setting("PTXVM_RACES", old_races));
    free(old_schedule);
    free(old_races);
    vm_settings_reread();
    machine_free(data);
}

void machine_run_case(const struct machine_case *c) {
    static const char *const schedules[] = {"min",      "reverse",  "random:1", "random:2",
                                            "random:3", "random:4", "random:5"};
    struct vm_module *m = load_body(c->before, c->body);
    for (size_t n = 0; m && n < 2 * sizeof schedules / sizeof *schedules && !shim_failed(); n++)
        run_under(c, m, schedules[n / 2], n % 2 ? "1" : "0");
    if (m)
        vm_module_unload(m);
}

/* ---- one instruction ------------------------------------------------------------------------- */

static const char *type_of(char width) {
    return width == 'h' ? "u16" : width == 'w' ? "u32" : "u64";
}

/* Registers 0 are the result, 1 to 3 the sources. */
static void op_text(char *out, size_t bytes, const struct machine_op *op, uint32_t count) {
    char result = op->widths[0] == 'p' ? 'w' : op->widths[0];
    int at = snprintf(out, bytes,
                      ".visible .entry k(.param .u64 k_p)\n{\n"
                      ".reg .pred %%p<9>; .reg .b16 %%h<9>; .reg .b32 %%w<9>; .reg .b64 %%x<9>;\n"
                      "ld.param.u64 %%x5, [k_p];\n"
                      "mov.u32 %%w5, %%ctaid.x; mov.u32 %%w6, %%ntid.x; mov.u32 %%w7, %%tid.x;\n"
                      "mad.lo.s32 %%w5, %%w5, %%w6, %%w7;\n"
                      "setp.ge.u32 %%p8, %%w5, %u;\n@%%p8 bra done;\n"
                      "mad.wide.u32 %%x6, %%w5, 32, %%x5;\n",
                      count);
    for (int s = 1; op->widths[s]; s++)
        at += op->widths[s] == 'p'
                  ? snprintf(out + at, bytes - (size_t)at,
                             "ld.global.u32 %%w8, [%%x6+%d];\nsetp.ne.u32 %%p%d, %%w8, 0;\n", 8 * s,
                             s)
                  : snprintf(out + at, bytes - (size_t)at, "ld.global.%s %%%c%d, [%%x6+%d];\n",
                             type_of(op->widths[s]), op->widths[s], s, 8 * s);
    at += snprintf(out + at, bytes - (size_t)at, "%s %%%c0", op->op, op->widths[0]);
    for (int s = 1; op->widths[s]; s++)
        at += snprintf(out + at, bytes - (size_t)at, ", %%%c%d", op->widths[s], s);
    at += snprintf(
        out + at, bytes - (size_t)at, "%s%s;\n%sst.global.%s [%%x6], %%%c0;\ndone:\nret;\n}\n",
        op->last ? ", " : "", op->last ? op->last : "",
        op->widths[0] == 'p' ? "selp.u32 %w0, 1, 0, %p0;\n" : "", type_of(result), result);
}

bool machine_execute(const struct machine_op *op, struct machine_item *items, uint32_t count) {
    char text[2048];
    op_text(text, sizeof text, op, count);
    struct vm_module *m = machine_load(text);
    if (!m)
        return false;
    struct machine_item *data = machine_alloc(count * sizeof *data);
    memcpy(data, items, count * sizeof *data);
    bool ok = machine_run(m, "k", (count + 127) / 128, 128, data);
    memcpy(items, data, count * sizeof *data);
    machine_free(data);
    vm_module_unload(m);
    uint64_t keep = op->widths[0] == 'h' ? 0xffff : op->widths[0] == 'x' ? UINT64_MAX : 0xffffffff;
    for (uint32_t n = 0; n < count; n++)
        items[n].result &= keep;
    return ok;
}
