/* Reads the machine's switches from the environment. */
#include "tests/ptxvm/settings.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/ptxvm/vm.h"

static struct vm_settings settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;

_Noreturn static void refuse(const char *name, const char *value, const char *want) {
    fprintf(stderr, "ptxvm: %s=%s is not known; use %s\n", name, value, want);
    exit(1);
}

static int64_t number(const char *name, int64_t fallback, int64_t low, int64_t high,
                      const char *want) {
    const char *s = getenv(name);
    char *end;
    if (!s || !*s)
        return fallback;
    int64_t v = strtoll(s, &end, 10);
    if (*end || v < low || v > high)
        refuse(name, s, want);
    return v;
}

static bool flag(const char *name) {
    return number(name, 0, 0, 1, "0 or 1") != 0;
}

/* "2G", or "2G,512M": the last one is that of all further devices. */
static void memory(struct vm_settings *out) {
    const char *s = getenv("PTXVM_MEMORY"), *at = s && *s ? s : "2G";
    size_t bytes = 0;
    for (int32_t i = 0; i < VM_MAX_DEVICES; i++) {
        if (*at) {
            char *end;
            uint64_t v = strtoull(at, &end, 10);
            int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
            if (shift)
                end++;
            if (!v || v > (uint64_t)1 << 50 >> shift || (*end && (*end != ',' || !end[1])))
                refuse("PTXVM_MEMORY", s, "bytes such as 512M, or 2G,512M for unequal devices");
            bytes = (size_t)v << shift;
            at = *end ? end + 1 : end;
        }
        out->memory_bytes[i] = bytes;
    }
    if (*at)
        refuse("PTXVM_MEMORY", s, "at most 16 sizes");
}

static void schedule(struct vm_settings *s) {
    const char *v = getenv("PTXVM_SCHEDULE");
    if (!v || !*v || !strcmp(v, "min")) {
        s->schedule = VM_SCHEDULE_MIN;
    } else if (!strcmp(v, "reverse")) {
        s->schedule = VM_SCHEDULE_REVERSE;
    } else if (!strncmp(v, "random:", 7) && v[7]) {
        char *end;
        s->schedule = VM_SCHEDULE_RANDOM;
        s->schedule_seed = strtoull(v + 7, &end, 10);
        if (*end)
            refuse("PTXVM_SCHEDULE", v, "min, reverse or random:SEED");
    } else {
        refuse("PTXVM_SCHEDULE", v, "min, reverse or random:SEED");
    }
}

static enum vm_streams streams(void) {
    const char *v = getenv("PTXVM_STREAMS");
    if (!v || !*v || !strcmp(v, "async"))
        return VM_STREAMS_ASYNC;
    if (strcmp(v, "sync") && strcmp(v, "lazy"))
        refuse("PTXVM_STREAMS", v, "sync, async or lazy");
    return !strcmp(v, "sync") ? VM_STREAMS_SYNC : VM_STREAMS_LAZY;
}

static bool eager_copies(void) {
    const char *v = getenv("PTXVM_ASYNC_COPY");
    if (v && *v && strcmp(v, "late") && strcmp(v, "eager"))
        refuse("PTXVM_ASYNC_COPY", v, "late or eager");
    return v && !strcmp(v, "eager");
}

static void read_environment(void) {
    struct vm_settings s = {0};
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    s.num_devices = (int32_t)number("PTXVM_DEVICES", 8, 0, VM_MAX_DEVICES, "0 to 16");
    s.sm = (int32_t)number("PTXVM_ARCH", 89, 0, 999, "80, 86, 89, 90 or 120");
    if (!vm_arch_find(s.sm))
        refuse("PTXVM_ARCH", getenv("PTXVM_ARCH"), "80, 86, 89, 90 or 120");
    memory(&s);
    s.threads = (int32_t)number("PTXVM_THREADS", cpus > 0 ? cpus : 1, 1, 1024, "1 to 1024");
    s.steps = number("PTXVM_STEPS", 4000000000, 1, INT64_MAX, "a number of instructions");
    schedule(&s);
    s.streams = streams();
    s.eager_copies = eager_copies();
    s.races = flag("PTXVM_RACES");
    s.protect = flag("PTXVM_PROTECT");
    if (s.protect)
        vm_protect_start();
    s.fp8_bits = (int32_t)number("PTXVM_FP8_BITS", 0, 0, 23, "0 to 23");
    s.spin_seconds = (int32_t)number("PTXVM_SPIN", 10, 1, 86400, "1 to 86400 seconds");
    s.peers = flag("PTXVM_P2P");
    s.banks = flag("PTXVM_BANKS");
    s.trace = flag("PTXVM_TRACE");
    settings = s;
}

const struct vm_settings *vm_settings(void) {
    pthread_once(&once, read_environment);
    return &settings;
}

void vm_settings_reread(void) {
    vm_settings();
    read_environment();
}
