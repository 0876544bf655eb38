#include "tests/bench_machine.h"

#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>

#include "host/clock.h"
#include "host/error.h"
#include "host/mem.h"

enum { MAX_THREADS = 256, MAX_PASSES = 32, READ_BYTES = 256 << 20 };

struct worker {
    pthread_t thread;
    const char *data;
    size_t bytes;
    int32_t passes;
    pthread_barrier_t *barrier;
    double result; /* keeps the compiler from dropping the work */
};

__attribute__((target("avx2"))) static double sum_bytes(const char *p, size_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        _mm_prefetch(p + i + 2048, _MM_HINT_T0);
        _mm_prefetch(p + i + 2112, _MM_HINT_T0);
        a = _mm256_add_epi32(a, _mm256_load_si256((const __m256i *)(const void *)(p + i)));
        b = _mm256_add_epi32(b, _mm256_load_si256((const __m256i *)(const void *)(p + i + 32)));
        c = _mm256_add_epi32(c, _mm256_load_si256((const __m256i *)(const void *)(p + i + 64)));
        d = _mm256_add_epi32(d, _mm256_load_si256((const __m256i *)(const void *)(p + i + 96)));
    }
    a = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    return (double)_mm256_extract_epi32(a, 0) + (double)_mm256_extract_epi32(a, 7);
}

static void *read_worker(void *arg) {
    struct worker *w = arg;
    for (int32_t i = 0; i < w->passes; i++) {
        pthread_barrier_wait(w->barrier);
        w->result += sum_bytes(w->data, w->bytes);
        pthread_barrier_wait(w->barrier);
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double machine_median(double *values, int32_t n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

/* Starts the workers, times `passes` rounds between two barriers each, and returns the median of
 * the seconds. */
static double run_workers(struct worker *w, int32_t threads, void *(*fn)(void *), int32_t passes) {
    pthread_barrier_t barrier;
    double seconds[MAX_PASSES];
    CHECK(threads <= MAX_THREADS && passes <= MAX_PASSES, "%d threads, %d passes", threads, passes);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (int32_t i = 0; i < threads; i++) {
        w[i].barrier = &barrier;
        w[i].passes = passes;
        CHECK(pthread_create(&w[i].thread, NULL, fn, &w[i]) == 0, "thread %d", i);
    }
    for (int32_t i = 0; i < passes; i++) {
        pthread_barrier_wait(&barrier);
        int64_t start = clock_us();
        pthread_barrier_wait(&barrier);
        seconds[i] = (double)(clock_us() - start) / 1e6;
    }
    for (int32_t i = 0; i < threads; i++)
        pthread_join(w[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    return machine_median(seconds, passes);
}

double machine_read_gbps(int32_t threads, int32_t passes) {
    static char *data;
    struct worker w[MAX_THREADS] = {0};
    size_t part = READ_BYTES / (size_t)threads / 4096 * 4096;
    if (!data) {
        data = mem_pool_alloc(READ_BYTES);
        CHECK(data, "out of memory");
        for (size_t i = 0; i < READ_BYTES; i += 64)
            data[i] = (char)i; /* every page is there and differs from the zero page */
    }
    for (int32_t i = 0; i < threads; i++)
        w[i] = (struct worker){.data = data + (size_t)i * part, .bytes = part};
    return (double)part * threads / 1e9 / run_workers(w, threads, read_worker, passes);
}

enum { FMA_ROUNDS = 4000000, FMA_CHAINS = 12 };

__attribute__((target("avx2,fma"))) static double fma_avx2(void) {
    __m256 acc[FMA_CHAINS], x = _mm256_set1_ps(1e-9f), y = _mm256_set1_ps(0.999f);
    for (int32_t i = 0; i < FMA_CHAINS; i++)
        acc[i] = _mm256_set1_ps((float)i);
    for (int32_t r = 0; r < FMA_ROUNDS; r++)
#pragma GCC unroll 12
        for (int32_t i = 0; i < FMA_CHAINS; i++)
            acc[i] = _mm256_fmadd_ps(acc[i], y, x);
    for (int32_t i = 1; i < FMA_CHAINS; i++)
        acc[0] = _mm256_add_ps(acc[0], acc[i]);
    return (double)_mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) static double fma_avx512(void) {
    __m512 acc[FMA_CHAINS], x = _mm512_set1_ps(1e-9f), y = _mm512_set1_ps(0.999f);
    for (int32_t i = 0; i < FMA_CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (int32_t r = 0; r < FMA_ROUNDS; r++)
#pragma GCC unroll 12
        for (int32_t i = 0; i < FMA_CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(acc[i], y, x);
    for (int32_t i = 1; i < FMA_CHAINS; i++)
        acc[0] = _mm512_add_ps(acc[0], acc[i]);
    return (double)_mm512_cvtss_f32(acc[0]);
}

static void *fma_worker(void *arg) {
    struct worker *w = arg;
    for (int32_t i = 0; i < w->passes; i++) {
        pthread_barrier_wait(w->barrier);
        w->result += __builtin_cpu_supports("avx512f") ? fma_avx512() : fma_avx2();
        pthread_barrier_wait(w->barrier);
    }
    return NULL;
}

double machine_fma_gflops(int32_t threads, int32_t passes) {
    struct worker w[MAX_THREADS] = {0};
    double lanes = __builtin_cpu_supports("avx512f") ? 16 : 8;
    return 2.0 * lanes * FMA_CHAINS * FMA_ROUNDS * threads / 1e9 /
           run_workers(w, threads, fma_worker, passes);
}
