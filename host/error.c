#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/log.h"

enum { TAIL_BYTES = 48 }; /* kept free for how many more there were */

int error_set(struct error *e, int code, const char *fmt, ...) {
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    e->code = code;
    e->problems = 1;
    e->hidden = 0;
    return code;
}

int error_add(struct error *e, int code, const char *fmt, ...) {
    if (!e)
        return code;
    if (e->code == 0)
        e->code = code;
    e->problems++;
    size_t used = e->hidden ? (size_t)(strrchr(e->text, '\n') - e->text) : strlen(e->text);
    size_t start = used ? used + 1 : 0, room = sizeof e->text - start;
    int n = 0;
    if (e->hidden == 0) {
        va_list ap;
        va_start(ap, fmt);
        n = vsnprintf(e->text + start, room, fmt, ap);
        va_end(ap);
    }
    if (used == 0)
        return e->code; /* the first is kept, cut if need be */
    if (e->hidden || (size_t)n + TAIL_BYTES > room) {
        e->hidden++;
        snprintf(e->text + start, room, "... and %d more problem%s", e->hidden,
                 e->hidden > 1 ? "s" : "");
    }
    e->text[used] = '\n';
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
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    log_error("%s:%d: CHECK(%s) failed: %s", file, line, expr, text);
    abort();
}
