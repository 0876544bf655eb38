#include "tests/bench_gpu.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_check.h"
#include "host/clock.h"
#include "tests/bench_kernels.h"
#include "tests/bench_machine.h"

enum { MAX_LAUNCHES = 1024, GRAPH_US = 2000 };

/* ---- the device ------------------------------------------------------------------------------ */

static int32_t attribute(enum cudaDeviceAttr which) {
    int value;
    CUDA_CHECK(cudaDeviceGetAttribute(&value, which, 0));
    return value;
}

bool bench_open(struct bench *b) {
    struct cudaDeviceProp p;
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);
    if (rc != cudaSuccess || count == 0) {
        fprintf(stderr, "bench_cuda: no GPU here: %s\n",
                rc != cudaSuccess ? cudaGetErrorString(rc) : "0 devices");
        return false;
    }
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    if (p.major < 8) {
        fprintf(stderr, "bench_cuda: %s is sm_%d%d; the kernels need sm_80 or later\n", p.name,
                p.major, p.minor);
        return false;
    }
    snprintf(b->device, sizeof b->device, "%.127s", p.name);
    b->stand_in = strncmp(p.name, "PTX machine", 11) == 0;
    b->gpu = (struct gpu_info){
        .sm = 10 * p.major + p.minor,
        .num_sms = attribute(cudaDevAttrMultiProcessorCount),
        .shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
        .l2_bytes = attribute(cudaDevAttrL2CacheSize),
    };
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
    return true;
}

void bench_close(struct bench *b) {
    bench_release(b);
    CUDA_CHECK(cudaStreamDestroy(b->stream));
    buffer_deinit(&b->rows);
    buffer_deinit(&b->not_run);
}

/* ---- what runs ------------------------------------------------------------------------------- */

static void record_not_run(struct bench *b, const char *name, const char *reason) {
    printf("%-56s not run: %s\n", name, reason);
    buffer_printf(&b->not_run, "%s\n    {\"name\": \"%s\", \"reason\": \"%s\"}",
                  b->num_not_run++ ? "," : "", name, reason);
}

bool bench_selected(const struct bench *b, const char *name) {
    return !b->filter || strstr(name, b->filter);
}

bool bench_wanted(struct bench *b, const char *name) {
    if (!bench_selected(b, name))
        return false;
    if (b->deadline_us == 0 || clock_us() < b->deadline_us)
        return true;
    record_not_run(b, name, "out of time");
    return false;
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *bench_alloc(struct bench *b, size_t bytes) {
    void *p = NULL;
    CHECK(b->num_buffers < BENCH_MAX_BUFFERS, "too many buffers");
    if (b->wanted_bytes > 0)
        return NULL;
    bytes = (bytes + 31) / 16 * 16;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* it is not an error of what follows */
        b->wanted_bytes = bytes;
        return NULL;
    }
    b->buffers[b->num_buffers++] = p;
    return p;
}

void *bench_upload(struct bench *b, const void *host, size_t bytes) {
    void *p = bench_alloc(b, bytes);
    if (p) {
        CUDA_CHECK(cudaMemcpyAsync(p, host, bytes, cudaMemcpyHostToDevice, b->stream));
        CUDA_CHECK(cudaStreamSynchronize(b->stream));
    }
    return p;
}

static void *random_array(struct bench *b, size_t bytes, enum bench_fill kind, float amplitude) {
    void *p = bench_alloc(b, bytes);
    if (p)
        bench_fill_launch(p, (bytes + 15) / 16 * 16, kind, amplitude,
                          0x9e3779b9u * (uint32_t)(b->num_buffers + 1), b->stream);
    return p;
}

bf16 *bench_random_bf16(struct bench *b, int64_t n, float amplitude) {
    return random_array(b, (size_t)n * sizeof(bf16), FILL_BF16, amplitude);
}

uint8_t *bench_random_e4m3(struct bench *b, int64_t n) {
    return random_array(b, (size_t)n, FILL_E4M3, 0);
}

float *bench_random_floats(struct bench *b, int64_t n, float amplitude) {
    return random_array(b, (size_t)n * sizeof(float), FILL_FLOAT, amplitude);
}

bool bench_ready(struct bench *b, const char *name) {
    char reason[128];
    size_t free_bytes = 0, total = 0;
    if (b->wanted_bytes == 0)
        return true;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    snprintf(reason, sizeof reason, "%.2f GB more are wanted, %.2f of the GPU's %.2f GB are free",
             (double)b->wanted_bytes / 1e9, (double)free_bytes / 1e9, (double)total / 1e9);
    record_not_run(b, name, reason);
    return false;
}

void bench_release_to(struct bench *b, int32_t keep) {
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
    while (b->num_buffers > keep)
        CUDA_CHECK(cudaFree(b->buffers[--b->num_buffers]));
    b->wanted_bytes = 0;
}

void bench_release(struct bench *b) {
    bench_release_to(b, 0);
}

int32_t bench_sets(const struct bench *b, double bytes, int32_t most) {
    int32_t n = 1;
    while (n < most && !b->tiny && n * bytes <= 2 * (double)b->gpu.l2_bytes)
        n++;
    return n;
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* Microseconds from one event to the other, once both have happened. */
static double elapsed_us(cudaEvent_t from, cudaEvent_t to) {
    float ms = 0;
    CUDA_CHECK(cudaEventSynchronize(to));
    CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
    return (double)ms * 1e3;
}

static void launch_sets(const struct bench *b, const struct bench_case *c, int32_t launches) {
    for (int32_t i = 0; i < launches; i++)
        c->launch(c->context, i % c->sets, b->stream);
}

static cudaGraphExec_t capture(const struct bench *b, const struct bench_case *c,
                               int32_t launches) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    launch_sets(b, c, launches);
    CUDA_CHECK(cudaStreamEndCapture(b->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    return exec;
}

/* Fills us[repeats] with microseconds of a launch. */
static void measure(const struct bench *b, const struct bench_case *c, double *us) {
    cudaEvent_t from, to;
    CUDA_CHECK(cudaEventCreate(&from));
    CUDA_CHECK(cudaEventCreate(&to));
    launch_sets(b, c, c->sets); /* loads the kernels, and leaves the last sets in the cache */
    CUDA_CHECK(cudaEventRecord(from, b->stream));
    launch_sets(b, c, c->sets);
    CUDA_CHECK(cudaEventRecord(to, b->stream));
    double rounds = GRAPH_US / elapsed_us(from, to), most = MAX_LAUNCHES / c->sets;
    rounds = b->tiny || rounds < 1 ? 1 : rounds > most ? most : rounds;
    int32_t launches = c->sets * (int32_t)(rounds < 1 ? 1 : rounds);
    cudaGraphExec_t graph = capture(b, c, launches);
    CUDA_CHECK(cudaGraphLaunch(graph, b->stream));
    for (int32_t i = 0; i < b->repeats; i++) {
        CUDA_CHECK(cudaEventRecord(from, b->stream));
        CUDA_CHECK(cudaGraphLaunch(graph, b->stream));
        CUDA_CHECK(cudaEventRecord(to, b->stream));
        us[i] = elapsed_us(from, to) / launches;
    }
    CUDA_CHECK(cudaStreamSynchronize(b->stream));
    CUDA_CHECK(cudaGraphExecDestroy(graph));
    CUDA_CHECK(cudaEventDestroy(from));
    CUDA_CHECK(cudaEventDestroy(to));
}

/* "  3012.4 GB/s ( 89%)": a rate and its share of a ceiling, where there is one. */
static void print_rate(double rate, const char *unit, double ceiling) {
    printf("  %8.1f %s", rate, unit);
    if (ceiling > 0)
        printf(" (%3.0f%%)", 100 * rate / ceiling);
}

static double share(double rate, double ceiling) {
    return ceiling > 0 ? rate / ceiling : 0;
}

double bench_run(struct bench *b, const struct bench_case *c) {
    double us[BENCH_MAX_REPEATS];
    const struct bench_ceilings *l = &b->ceilings;
    double copy = l->copy_gbps > l->memcpy_gbps ? l->copy_gbps : l->memcpy_gbps;
    measure(b, c, us);
    double median = machine_median(us, b->repeats); /* sorts them */
    double gbps = c->bytes / 1e3 / median, tflops = c->operations / 1e6 / median;
    printf("%-56s %9.2f us [%.2f, %.2f]", c->name, median, us[0], us[b->repeats - 1]);
    if (c->bytes > 0)
        print_rate(gbps, "GB/s", copy);
    if (c->operations > 0)
        print_rate(tflops, "TFLOP/s", l->bf16_tflops);
    printf("\n");
    fflush(stdout);
    buffer_printf(&b->rows,
                  "%s\n    {\"name\": \"%s\", \"us\": %.3f, \"us_min\": %.3f, \"us_max\": %.3f, "
                  "\"sets\": %d, \"bytes\": %.0f, \"operations\": %.0f, \"gbps\": %.2f, "
                  "\"tflops\": %.3f, \"share_of_copy\": %.4f, \"share_of_bf16\": %.4f}",
                  b->num_done++ ? "," : "", c->name, median, us[0], us[b->repeats - 1], c->sets,
                  c->bytes, c->operations, gbps, tflops, share(gbps, copy),
                  share(tflops, l->bf16_tflops));
    return median;
}

/* ---- the record ------------------------------------------------------------------------------ */

int bench_write_json(const struct bench *b, const char *path) {
    const struct bench_ceilings *l = &b->ceilings;
    int driver = 0, runtime = 0;
    FILE *f = fopen(path, "w");
    if (!f) {
        perror(path);
        return -1;
    }
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    fprintf(f, "{\n  \"program\": \"bench_cuda\",\n  \"device\": \"%s\",\n", b->device);
    fprintf(f, "  \"stand_in\": %s,\n  \"sm\": %d,\n  \"num_sms\": %d,\n  \"l2_bytes\": %lld,\n",
            b->stand_in ? "true" : "false", b->gpu.sm, b->gpu.num_sms, (long long)b->gpu.l2_bytes);
    fprintf(f, "  \"cuda_driver\": %d,\n  \"cuda_runtime\": %d,\n  \"repeats\": %d,\n", driver,
            runtime, b->repeats);
    fprintf(f,
            "  \"ceilings\": {\"copy_gbps\": %.2f, \"memcpy_gbps\": %.2f, \"read_gbps\": %.2f, "
            "\"bf16_tflops\": %.3f, \"fp8_tflops\": %.3f},\n",
            l->copy_gbps, l->memcpy_gbps, l->read_gbps, l->bf16_tflops, l->fp8_tflops);
    fprintf(f, "  \"cases\": [%.*s\n  ],\n", (int)b->rows.len, b->rows.data ? b->rows.data : "");
    fprintf(f, "  \"not_run\": [%.*s\n  ]\n}\n", (int)b->not_run.len,
            b->not_run.data ? b->not_run.data : "");
    if (fclose(f) != 0) {
        perror(path);
        return -1;
    }
    return 0;
}
