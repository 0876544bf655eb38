#include "host/bandwidth.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "host/clock.h"
#include "host/mem.h"

enum { MAX_THREADS = 256, PASSES = 3 };
#define LEAST_BYTES ((size_t)256 << 20)

/* A cache line, summed in words that do not wait for each other. */
typedef uint64_t line __attribute__((vector_size(64)));
enum { LINES = 4 };

struct reader {
    pthread_t thread;
    const line *data;
    size_t num_lines;
    uint64_t sum; /* keeps the compiler from dropping the work */
};

static void *read_part(void *arg) {
    struct reader *r = arg;
    line sums[LINES] = {0};
    for (size_t i = 0; i + LINES <= r->num_lines; i += LINES)
        for (size_t k = 0; k < LINES; k++)
            sums[k] += r->data[i + k];
    for (size_t k = 0; k < LINES; k++)
        for (size_t i = 0; i < 8; i++)
            r->sum += sums[k][i];
    return NULL;
}

/* All parts at once, the first by the caller. False: a thread could not be started. */
static bool read_all(struct reader *readers, int32_t threads) {
    int32_t started = 1;
    while (started < threads &&
           pthread_create(&readers[started].thread, NULL, read_part, &readers[started]) == 0)
        started++;
    read_part(&readers[0]);
    for (int32_t i = 1; i < started; i++)
        pthread_join(readers[i].thread, NULL);
    return started == threads;
}

static size_t bytes_to_read(void) {
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? (size_t)cache * 2 : 0;
    return bytes > LEAST_BYTES ? bytes : LEAST_BYTES;
}

double bandwidth_measure(int32_t threads) {
    struct reader readers[MAX_THREADS] = {0};
    int64_t fastest_us = INT64_MAX;
    size_t bytes = bytes_to_read();
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    size_t part = bytes / sizeof(line) / (size_t)threads;
    line *data = mem_pool_alloc(bytes);
    bool ok = data != NULL;
    if (ok)
        memset(data, 1, bytes); /* every page is there */
    for (int32_t i = 0; i < threads; i++)
        readers[i] = (struct reader){.data = data + (size_t)i * part, .num_lines = part};
    for (int32_t pass = 0; pass < PASSES && ok; pass++) {
        int64_t start_us = clock_us();
        ok = read_all(readers, threads);
        int64_t us = clock_us() - start_us;
        fastest_us = us < fastest_us ? us : fastest_us;
    }
    mem_pool_free(data, bytes);
    double read = (double)(part * (size_t)threads * sizeof(line));
    return ok && fastest_us > 0 ? read * 1e6 / (double)fastest_us : 0;
}
