/* vprintf and __assertfail of device code. */
#include "tests/ptxvm/builtins.h"

#include <stdio.h>
#include <string.h>

static uint64_t argument(const struct vm_warp *w, const struct vm_inst *i, int lane, int32_t n,
                         size_t bytes) {
    uint64_t v = 0;
    memcpy(&v, w->local + (size_t)lane * w->block->grid->kernel->local_bytes + i->more[n], bytes);
    return v;
}

/* A string in global memory; checked up to its end. */
static const char *string_at(struct vm_warp *w, const struct vm_inst *i, int lane,
                             uint64_t address) {
    struct vm_allocation a;
    const char *s = (const char *)(uintptr_t)address;
    if (VM_WINDOW(address) || !vm_find(s, &a) || a.freed)
        vm_fault(w, i, lane, VM_BAD_ADDRESS, "0x%llx is not the address of a string",
                 (unsigned long long)address);
    if (!memchr(s, 0, a.bytes - (size_t)(address - a.base)))
        vm_fault(w, i, lane, VM_BAD_ADDRESS, "the string at 0x%llx does not end",
                 (unsigned long long)address);
    return s;
}

/* ---- vprintf
 * --------------------------------------------------------------------------------------- */

struct printer {
    struct vm_warp *w;
    const struct vm_inst *i;
    int lane;
    const uint8_t *args; /* NULL: none */
    size_t used, bytes;  /* of the arguments */
    char *out;
    size_t at, room;
};

static uint64_t take(struct printer *p, size_t bytes) {
    uint64_t v = 0;
    p->used = (p->used + bytes - 1) & ~(bytes - 1);
    if (!p->args || p->used + bytes > p->bytes)
        vm_fault(p->w, p->i, p->lane, VM_BAD_ADDRESS, "printf has fewer arguments than its format");
    memcpy(&v, p->args + p->used, bytes);
    p->used += bytes;
    return v;
}

/* One conversion; spec is "%...", without the length letters. */
static int convert(struct printer *p, const char *spec, char kind, bool wide) {
    char *out = p->out + p->at;
    size_t room = p->room - p->at;
    char format[40];
    double real;
    uint64_t bits;
    if (strchr("diouxX", kind)) {
        snprintf(format, sizeof format, "%sll%c", spec, kind);
        bits = take(p, wide ? 8 : 4);
        if (!wide && (kind == 'd' || kind == 'i'))
            bits = (uint64_t)(int64_t)(int32_t)bits;
        return snprintf(out, room, format, (long long)bits);
    }
    snprintf(format, sizeof format, "%s%c", spec, kind);
    if (strchr("fFeEgGaA", kind)) {
        bits = take(p, 8);
        memcpy(&real, &bits, 8);
        return snprintf(out, room, format, real);
    }
    if (kind == 'c')
        return snprintf(out, room, format, (int)take(p, 4));
    if (kind == 'p')
        return snprintf(out, room, format, (void *)(uintptr_t)take(p, 8));
    if (kind == 's')
        return snprintf(out, room, format, string_at(p->w, p->i, p->lane, take(p, 8)));
    vm_fault(p->w, p->i, p->lane, VM_FAULT, "printf does not know '%s%c'", spec, kind);
}

static void put(struct printer *p, char c) {
    if (p->at + 1 < p->room)
        p->out[p->at++] = c;
}

static const char *conversion(struct printer *p, const char *f) {
    char spec[24] = "%";
    size_t n = 1;
    bool wide = false;
    for (; *f && strchr("-+ #0123456789.*", *f) && n < sizeof spec - 12; f++) {
        if (*f == '*')
            n += (size_t)snprintf(spec + n, 12, "%d", (int)(int32_t)take(p, 4));
        else
            spec[n++] = *f;
    }
    spec[n] = 0;
    for (; *f && strchr("hljztL", *f); f++)
        wide |= *f != 'h';
    if (!*f)
        return f;
    int written = convert(p, spec, *f, wide);
    if (written > 0)
        p->at += (size_t)written < p->room - p->at ? (size_t)written : p->room - p->at - 1;
    return f + 1;
}

static void print(struct printer *p, const char *format) {
    for (const char *f = format; *f;) {
        if (*f != '%') {
            put(p, *f++);
        } else if (f[1] == '%') {
            put(p, '%');
            f += 2;
        } else {
            f = conversion(p, f + 1);
        }
    }
    fwrite(p->out, 1, p->at, stdout);
}

/* (format, pointer to the arguments in local memory) */
static void vprintf_builtin(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    size_t frame = w->block->grid->kernel->local_bytes;
    char text[4096];
    for (uint32_t left = m; left; left &= left - 1) {
        int l = vm_first(left);
        uint64_t args = argument(w, i, l, 1, 8), at = args - VM_LOCAL_WINDOW;
        struct printer p = {.w = w, .i = i, .lane = l, .out = text, .room = sizeof text};
        if (args && (VM_WINDOW(args) != VM_WINDOW(VM_LOCAL_WINDOW) || at >= frame))
            vm_fault(w, i, l, VM_BAD_ADDRESS, "the arguments of printf are not in local memory");
        if (args) {
            p.args = w->local + (size_t)l * frame + at;
            p.bytes = frame - at;
        }
        print(&p, string_at(w, i, l, argument(w, i, l, 0, 8)));
        int32_t done = 1;
        if (i->more[i->vec] != UINT32_MAX)
            memcpy(w->local + (size_t)l * frame + i->more[i->vec], &done, sizeof done);
    }
}

/* ---- assert
 * ---------------------------------------------------------------------------------------- */

/* (message, file, line, function, bytes of a character) */
static void assert_builtin(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    int l = vm_first(m);
    vm_fault(w, i, l, VM_ASSERT, "%s:%u: %s: assertion `%s` failed",
             string_at(w, i, l, argument(w, i, l, 1, 8)), (uint32_t)argument(w, i, l, 2, 4),
             string_at(w, i, l, argument(w, i, l, 3, 8)),
             string_at(w, i, l, argument(w, i, l, 0, 8)));
}

vm_exec vm_builtin(struct ptx_text name, int32_t *num_args) {
    bool is_print = ptx_text_is(name, "vprintf");
    *num_args = is_print ? 2 : 5;
    if (is_print)
        return vprintf_builtin;
    return ptx_text_is(name, "__assertfail") ? assert_builtin : NULL;
}
