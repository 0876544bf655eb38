/* guard: lets code deep inside a step give the whole step up.
 *
 * Ops return nothing: what can fail in them is a device, and then nothing of the step is of use.
 * The thread that runs a step puts a guard around it:
 *
 *   struct guard g;
 *   guard_enter(&g);
 *   if (setjmp(g.env) == 0)
 *       ... ops ...
 *   else
 *       ... g.text says what failed ...
 *   guard_leave(&g);
 *
 * and guard_fail jumps there. Between the two nothing may be held that somebody has to release:
 * a step allocates nothing and takes no locks. (As always with setjmp, locals that the step has
 * changed are undefined in the else branch unless they are volatile.)
 */
#pragma once

#include <setjmp.h>

#ifdef __cplusplus
extern "C" {
#endif

struct guard {
    jmp_buf env;
    char text[512];
    struct guard *outer;
};

void guard_enter(struct guard *g);
void guard_leave(struct guard *g);
/* Jumps to the thread's innermost guard with this text; returns where there is none. */
void guard_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
