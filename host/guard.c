#include "guard.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local struct guard *innermost;

void guard_enter(struct guard *g) {
    g->text[0] = 0;
    g->outer = innermost;
    innermost = g;
}

void guard_leave(struct guard *g) {
    innermost = g->outer;
}

void guard_fail(const char *fmt, ...) {
    va_list args;
    if (!innermost)
        return;
    va_start(args, fmt);
    vsnprintf(innermost->text, sizeof innermost->text, fmt, args);
    va_end(args);
    longjmp(innermost->env, 1);
}
