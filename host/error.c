#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int error_set(struct error *e, int code, const char *fmt, ...) {
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    e->code = code;
    e->problems = 1;
    return code;
}

int error_add(struct error *e, int code, const char *fmt, ...) {
    if (!e)
        return code;
    size_t used = strlen(e->text);
    if (e->code == 0)
        e->code = code;
    e->problems++;
    if (used + 2 < sizeof e->text) {
        va_list ap;
        if (used)
            e->text[used++] = '\n';
        va_start(ap, fmt);
        vsnprintf(e->text + used, sizeof e->text - used, fmt, ap);
        va_end(ap);
    }
    return e->code;
}

const char *error_name(int code) {
    switch (code) {
#define X(name, value, wire, text)                                                                 \
    case name:                                                                                     \
        return wire;
        ERROR_TABLE(X)
#undef X
    }
    return code == 0 ? "ok" : "internal";
}

const char *error_text(int code) {
    switch (code) {
#define X(name, value, wire, text)                                                                 \
    case name:                                                                                     \
        return text;
        ERROR_TABLE(X)
#undef X
    }
    return code == 0 ? "ok" : "internal error";
}

void check_failed(const char *file, int line, const char *expr, const char *fmt, ...) {
    va_list ap;
    fprintf(stderr, "%s:%d: CHECK(%s) failed: ", file, line, expr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}
