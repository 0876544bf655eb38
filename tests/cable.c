#include "tests/cable.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static bool shell(const char *fmt, ...) {
    char command[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    return system(command) == 0;
}

void cable_remove(const struct cable *c) {
    shell(
        "exec 2>/dev/null; for m in %s %s; do kill -9 $(ip netns pids $m); ip netns del $m; done; "
        "true",
        c->a, c->b);
}

bool cable_make(struct cable *c) {
    snprintf(c->a, sizeof c->a, "moe-a%d", (int)getpid());
    snprintf(c->b, sizeof c->b, "moe-b%d", (int)getpid());
    bool ok = shell("exec 2>/dev/null; ip netns add %s && ip netns add %s && "
                    "ip -n %s link add cable type veth peer name cable netns %s",
                    c->a, c->b, c->a, c->b);
    ok = ok && shell("exec 2>/dev/null; for m in '%s 1' '%s 2'; do set -- $m; "
                     "ip -n $1 link set lo up && ip -n $1 addr add 10.99.77.$2/24 dev cable && "
                     "ip -n $1 link set cable up || exit 1; done",
                     c->a, c->b);
    if (!ok)
        cable_remove(c);
    return ok;
}

bool cable_pull(const struct cable *c) {
    return shell("ip -n %s link set cable down", c->a);
}
