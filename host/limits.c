#include "host/limits.h"

#include <stdio.h>
#include <sys/resource.h>

#include "host/log.h"

static const char *as_text(rlim_t v, char text[32]) {
    if (v == RLIM_INFINITY)
        snprintf(text, 32, "any number");
    else
        snprintf(text, 32, "%llu", (unsigned long long)v);
    return text;
}

/* Raises the soft limit to `need`, or as far as it goes; what it is then. */
static rlim_t raise_limit(int which, const char *what, rlim_t need, const char *why) {
    struct rlimit r;
    char from[32], to[32];
    if (getrlimit(which, &r) != 0)
        return need;
    rlim_t had = r.rlim_cur;
    rlim_t want = r.rlim_max < need ? r.rlim_max : need;
    if (had >= want)
        return had;
    r.rlim_cur = want;
    if (setrlimit(which, &r) != 0)
        return had;
    log_info("raised the limit on %s from %s to %s (%s)", what, as_text(had, from),
             as_text(want, to), why);
    return want;
}

void limits_raise_files(uint64_t need, const char *why) {
    rlim_t has = raise_limit(RLIMIT_NOFILE, "open files", need, why);
    if (has < need)
        log_warn("only %llu files may be open, %llu are wanted for %s: raise the hard limit "
                 "(LimitNOFILE= in a systemd unit, ulimit -n, /etc/security/limits.conf)",
                 (unsigned long long)has, (unsigned long long)need, why);
}

void limits_raise_locked_memory(bool wanted) {
    rlim_t has = raise_limit(RLIMIT_MEMLOCK, "bytes of locked memory", RLIM_INFINITY,
                             "for network cards that read it");
    if (wanted && has != RLIM_INFINITY)
        log_warn("only %llu bytes of memory may be locked: InfiniBand cards between machines may "
                 "need more (LimitMEMLOCK=infinity in a systemd unit, ulimit -l)",
                 (unsigned long long)has);
}
