/* Reports and counters of the machine. */
#include "tests/ptxvm/vm.h"

#include <ctype.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last[4096];
static struct { _Atomic uint64_t lanes, warps, launches, conflicts, mma; } totals;

void vm_report(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&lock);
    vsnprintf(last, sizeof last, fmt, ap);
    fprintf(stderr, "ptxvm: %s\n", last);
    pthread_mutex_unlock(&lock);
    va_end(ap);
}

const char *ptxvm_last_report(void) {
    return last;
}

void ptxvm_clear_report(void) {
    pthread_mutex_lock(&lock);
    last[0] = 0;
    pthread_mutex_unlock(&lock);
}

void vm_count(const struct ptxvm_counters *c) {
    atomic_fetch_add(&totals.lanes, c->lane_instructions);
    atomic_fetch_add(&totals.warps, c->warp_instructions);
    atomic_fetch_add(&totals.launches, c->launches);
    atomic_fetch_add(&totals.conflicts, c->bank_conflicts);
    atomic_fetch_add(&totals.mma, c->mma);
}

void ptxvm_counters(struct ptxvm_counters *out) {
    *out = (struct ptxvm_counters){totals.lanes, totals.warps, totals.launches, totals.conflicts,
                                   totals.mma};
}

/* In libstdc++, where that is linked; a kernel is named as the linker knows it where it is not. */
extern char *__cxa_demangle(const char *name, char *buffer, size_t *length, int *status)
    __attribute__((weak));

/* Names that were demangled ahead, never removed. */
struct known_name {
    struct known_name *next;
    const char *plain; /* behind the mangled one */
    char mangled[];
};
static _Atomic(struct known_name *) known_names;

static const char *find_known(const char *name) {
    const struct known_name *k = atomic_load(&known_names);
    while (k && strcmp(k->mangled, name))
        k = k->next;
    return k ? k->plain : NULL;
}

static char *demangle(const char *name) {
    int status = -1;
    return __cxa_demangle ? __cxa_demangle(name, NULL, NULL, &status) : NULL;
}

void vm_demangle_ahead(const char *name) {
    char *plain = demangle(name);
    if (!plain)
        return;
    size_t bytes = strlen(name) + 1;
    struct known_name *k = rt_calloc(sizeof *k + bytes + strlen(plain) + 1);
    k->plain = strcpy(k->mangled + bytes, plain);
    memcpy(k->mangled, name, bytes);
    k->next = atomic_load(&known_names);
    while (!atomic_compare_exchange_weak(&known_names, &k->next, k))
        ;
    free(plain);
}

const char *vm_demangle(const char *name, char *out, size_t out_bytes) {
    const char *known = find_known(name);
    char *plain = known ? NULL : demangle(name);
    snprintf(out, out_bytes, "%s", known ? known : plain ? plain : name);
    free(plain);
    return out;
}

/* A variable of a function is _ZZ<function>E<length><name>, and perhaps _<number>. */
struct ptx_text vm_variable_name(struct ptx_text name) {
    if (name.len < 3 || memcmp(name.s, "_ZZ", 3) != 0)
        return name;
    for (int32_t at = name.len - 2; at > 3; at--) {
        int32_t len = 0, from = at + 1;
        for (; from < name.len && isdigit((unsigned char)name.s[from]) && len < name.len; from++)
            len = 10 * len + name.s[from] - '0';
        int32_t end = from + len;
        if (name.s[at] == 'E' && from > at + 1 && len > 0 && end <= name.len &&
            (end == name.len || name.s[end] == '_'))
            return (struct ptx_text){name.s + from, len};
    }
    return name;
}

static bool is_toolkit_header(const char *file) {
    return strstr(file, "/include/cuda") || strstr(file, "_intrinsics.") ||
           strstr(file, "/include/crt/") || strstr(file, "_functions.") ||
           strstr(file, "/include/cooperative_groups");
}

/* Where the instruction stands in the source: the innermost place that is not in a header of the
 * CUDA toolkit, and who inlined that. */
static int place(const struct vm_kernel *k, const struct ptx_location *l, char *out, size_t bytes) {
    const struct ptx_module *m = k->module->ptx;
    const char *file = NULL;
    for (; l; l = l->parent) {
        file = l->file < m->num_files ? m->files[l->file] : NULL;
        if (!l->parent || (file && !is_toolkit_header(file)))
            break;
    }
    if (!l)
        return 0;
    int n = snprintf(out, bytes, "%s:%d", file ? file : "?", l->line);
    for (l = l->parent; l && n >= 0 && (size_t)n < bytes; l = l->parent)
        n += snprintf(out + n, bytes - (size_t)n, ", inlined at line %d", l->line);
    return n;
}

const char *vm_place(const struct vm_kernel *k, uint32_t where, char *out, size_t bytes) {
    const struct ptx_instruction *in = k->where[where];
    if (!in || !place(k, in->loc, out, bytes))
        snprintf(out, bytes, "PTX line %d", in ? in->line : 0);
    return out;
}

int32_t vm_source_line(const struct vm_kernel *k, uint32_t where) {
    const struct ptx_instruction *in = k->where[where];
    return !in ? 0 : in->loc ? in->loc->line : -in->line;
}

void vm_thread_index(const struct vm_block *b, uint32_t linear, uint32_t out[3]) {
    const uint32_t *n = b->grid->launch.block;
    out[0] = linear % n[0];
    out[1] = linear / n[0] % n[1];
    out[2] = linear / n[0] / n[1];
}

static void compose(const struct vm_warp *w, const struct vm_inst *i, int lane, const char *what) {
    const struct vm_block *b = w->block;
    const struct vm_kernel *k = b->grid->kernel;
    char name[512], where[512];
    uint32_t t[3];
    vm_demangle(k->name, name, sizeof name);
    vm_place(k, i->where, where, sizeof where);
    vm_thread_index(b, w->index * VM_WARP + (uint32_t)lane, t);
    const struct ptx_instruction *in = k->where[i->where];
    vm_report("%s\n  kernel      %s\n  at          %s\n  block       (%u,%u,%u) thread (%u,%u,%u)\n"
              "  instruction %.*s",
              what, name, where, b->ctaid[0], b->ctaid[1], b->ctaid[2], t[0], t[1], t[2],
              in ? in->text.len : 0, in ? in->text.s : "");
}

void vm_fault(struct vm_warp *w, const struct vm_inst *i, int lane, enum vm_result result,
              const char *fmt, ...) {
    char what[1600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    struct vm_grid *g = w->block->grid;
    int none = VM_OK;
    /* The first one ends the grid; those of other blocks that come after it are not told. */
    if (atomic_compare_exchange_strong(&g->result, &none, (int)result))
        compose(w, i, lane, what);
    longjmp(w->block->worker->fault, 1);
}
