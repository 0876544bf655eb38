/* bench_gpu: how the benchmarks of the CUDA kernels measure, print and record.
 *
 * A case is a launch with `sets` sets of arguments that it rotates over, so that what it should
 * read from memory is not in the L2 cache. The launches are captured into a CUDA graph of about 2
 * ms, the graph is run once to warm up and then `repeats` times between two events each; a case's
 * time is the median over these, per launch. Data are random: zeros would be faster than what
 * models hold.
 *
 * Bytes and operations are what the case cannot do without (each input read once, each output
 * written once); they are set against ceilings measured in the same run, never against a data
 * sheet.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cuda/kernels.h"
#include "host/buffer.h"

enum { BENCH_MAX_REPEATS = 31, BENCH_MAX_BUFFERS = 4096 };

/* Ceilings of this GPU, as measured by bench_ceilings; 0: not measured. */
struct bench_ceilings {
    double copy_gbps;   /* own copy kernel, bytes read + written */
    double memcpy_gbps; /* cudaMemcpyAsync on the device, likewise */
    double read_gbps;   /* own kernel that only reads */
    double bf16_tflops; /* cuBLASLt, 8192 x 8192 x 8192 */
    double fp8_tflops;  /* the same in E4M3; sm_89 and later */
};

struct bench {
    bool quick;          /* fewer shapes */
    bool tiny;           /* toy shapes: whether it works, on the PTX machine */
    const char *filter;  /* only cases whose name contains it; NULL: all */
    int32_t repeats;     /* of a graph, 3 .. BENCH_MAX_REPEATS */
    int64_t deadline_us; /* clock_us() after which no case starts; 0: none */

    char device[128];
    bool stand_in; /* the PTX machine: figures mean nothing */
    struct gpu_info gpu;
    cudaStream_t stream;
    struct bench_ceilings ceilings;

    void *buffers[BENCH_MAX_BUFFERS]; /* of the case in hand */
    int32_t num_buffers;
    size_t wanted_bytes;   /* of the allocation that failed; 0: none did */
    struct buffer rows;    /* JSON of the cases done */
    struct buffer not_run; /* JSON of the others */
    int32_t num_done, num_not_run;
};

struct bench_case {
    const char *name;  /* "group/model type T=8" */
    double bytes;      /* one launch must move; 0: not looked at */
    double operations; /* one launch must do; 0: not looked at */
    int32_t sets;      /* >= 1 */
    void (*launch)(void *context, int32_t set, cudaStream_t stream);
    void *context;
};

/* The first GPU. On failure prints why and returns false. */
bool bench_open(struct bench *b);
void bench_close(struct bench *b);

/* Does the name match the filter? */
bool bench_selected(const struct bench *b, const char *name);
/* Shall the case run? False when it is filtered out, and, recorded as not run, after the deadline.
 */
bool bench_wanted(struct bench *b, const char *name);

/* Device memory for a case, freed by bench_release; NULL when there is none left, then bench_ready
 * says so. Contents are undefined, or random, or a copy of a host array. */
void *bench_alloc(struct bench *b, size_t bytes);
void *bench_upload(struct bench *b, const void *host, size_t bytes);
/* bf16 uniform in +-amplitude; E4M3 of any finite value; float32 uniform in +-amplitude. */
bf16 *bench_random_bf16(struct bench *b, int64_t n, float amplitude);
uint8_t *bench_random_e4m3(struct bench *b, int64_t n);
float *bench_random_floats(struct bench *b, int64_t n, float amplitude);
/* Did every allocation since the last bench_release succeed? If not, the case is recorded as not
 * run, with the reason. */
bool bench_ready(struct bench *b, const char *name);
/* Frees all buffers, or those behind the first `keep` of b->num_buffers. */
void bench_release(struct bench *b);
void bench_release_to(struct bench *b, int32_t keep);

/* Runs a case, prints its line and records it. Returns the median microseconds of a launch. */
double bench_run(struct bench *b, const struct bench_case *c);

/* Number of sets of `bytes` each that are more than twice the L2 cache together, at most `most`. */
int32_t bench_sets(const struct bench *b, double bytes, int32_t most);

/* Measures and prints the ceilings (bench_ceilings.c). */
void bench_measure_ceilings(struct bench *b);

/* All of a run as JSON. 0, or -1 with a message when the file cannot be written. */
int bench_write_json(const struct bench *b, const char *path);

/* Groups of cases, each in a file of its own. */
void bench_moe(struct bench *b);
void bench_attention(struct bench *b);
void bench_dense(struct bench *b);
void bench_rows(struct bench *b);
void bench_allreduce(struct bench *b);
