#include "tests/gpu_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/dtype.h"
#include "host/mem.h"
#include "tests/alloc_guard.h"

/* ---- the device ------------------------------------------------------------------------------ */

static int32_t attribute(enum cudaDeviceAttr which) {
    int device, value;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
}

struct gpu_info gpu_test_info(void) {
    return (struct gpu_info){
        .sm = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
              attribute(cudaDevAttrComputeCapabilityMinor),
        .num_sms = attribute(cudaDevAttrMultiProcessorCount),
        .shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
        .l2_bytes = attribute(cudaDevAttrL2CacheSize),
    };
}

bool gpu_available(const char **reason) {
    static char text[160];
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    *reason = text;
    if (error != cudaSuccess || devices == 0) {
        snprintf(text, sizeof text, "no GPU here: %s",
                 error != cudaSuccess ? cudaGetErrorString(error) : "0 devices");
        (void)cudaGetLastError();
        return false;
    }
    struct cudaDeviceProp p;
    int32_t sm = gpu_test_info().sm;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess || strncmp(p.name, "PTX machine", 11) != 0)
        alloc_guard_off(); /* a real driver, which may allocate at a launch */
    snprintf(text, sizeof text, "the GPU is an sm_%d; the kernels need sm_80 or later", sm);
    return sm >= 80;
}

enum { GPU_MAX_DEVICES = 64 };

cudaStream_t gpu_stream(void) {
    static cudaStream_t streams[GPU_MAX_DEVICES];
    int device;
    CUDA_CHECK(cudaGetDevice(&device));
    CHECK(device < GPU_MAX_DEVICES, "device %d", device);
    if (!streams[device])
        CUDA_CHECK(cudaStreamCreateWithFlags(&streams[device], cudaStreamNonBlocking));
    return streams[device];
}

static void wait(void) {
    CUDA_CHECK(cudaStreamSynchronize(gpu_stream()));
}

/* ---- buffers --------------------------------------------------------------------------------- */

/* The front guard keeps the alignment of cudaMalloc. */
enum { FRONT = 256, BACK = 128, MAX_BUFFERS = 256 };

static struct guarded_buffer {
    unsigned char *device; /* what the test sees, FRONT bytes into the allocation; NULL: free */
    size_t bytes;
} buffers[MAX_BUFFERS];

static struct guarded_buffer *find_buffer(const void *device) {
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (buffers[i].device == device)
            return &buffers[i];
    CHECK(false, "%s", device ? "not a buffer of gpu_alloc" : "too many buffers at once");
    return NULL;
}

/* Bytes ff 7f ff 7f: NaNs in every type, and not the poison. */
static unsigned char canary(size_t i) {
    return i % 2 ? 0x7f : 0xff;
}

void *gpu_alloc(size_t bytes) {
    unsigned char *base, guard[FRONT];
    struct guarded_buffer *b = find_buffer(NULL);
    for (size_t i = 0; i < FRONT; i++)
        guard[i] = canary(i);
    CUDA_CHECK(cudaMalloc((void **)&base, FRONT + bytes + BACK));
    if (bytes > 0)
        CUDA_CHECK(cudaMemsetAsync(base + FRONT, 0xff, bytes, gpu_stream()));
    gpu_write(base, guard, FRONT);
    gpu_write(base + FRONT + bytes, guard, BACK);
    *b = (struct guarded_buffer){base + FRONT, bytes};
    return b->device;
}

void *gpu_upload(const void *host, size_t bytes) {
    void *device = gpu_alloc(bytes);
    gpu_write(device, host, bytes);
    return device;
}

void gpu_write(void *device, const void *host, size_t bytes) {
    if (bytes > 0)
        CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, gpu_stream()));
    wait();
}

void gpu_download(void *host, const void *device, size_t bytes) {
    if (bytes > 0)
        CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, gpu_stream()));
    wait();
}

void *gpu_fetch(const void *device, size_t bytes) {
    void *host = xmalloc(bytes);
    gpu_download(host, device, bytes);
    return host;
}

bool gpu_intact(const void *device) {
    const struct guarded_buffer *b = find_buffer(device);
    unsigned char guard[FRONT];
    bool ok = true;
    gpu_download(guard, b->device - FRONT, FRONT);
    for (size_t i = 0; i < FRONT; i++)
        ok &= guard[i] == canary(i);
    gpu_download(guard, b->device + b->bytes, BACK);
    for (size_t i = 0; i < BACK; i++)
        ok &= guard[i] == canary(i);
    return ok;
}

void gpu_free(void *device) {
    if (!device)
        return;
    struct guarded_buffer *b = find_buffer(device);
    if (!gpu_intact(device))
        FAIL("something wrote outside a device buffer of %zu bytes", b->bytes);
    CUDA_CHECK(cudaFree(b->device - FRONT));
    *b = (struct guarded_buffer){0};
}

bf16 *gpu_upload_bf16(const float *host, int64_t n) {
    bf16 *values = xmalloc((size_t)n * sizeof *values);
    bf16_from_floats(values, host, n);
    bf16 *device = gpu_upload(values, (size_t)n * sizeof *values);
    free(values);
    return device;
}

float *gpu_fetch_bf16(const bf16 *device, int64_t n) {
    bf16 *values = gpu_fetch(device, (size_t)n * sizeof *values);
    float *out = xmalloc((size_t)n * sizeof *out);
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_to_f32(values[i]);
    free(values);
    return out;
}

static bool take_piece(struct gpu_hogs *h, size_t bytes, size_t leave) {
    size_t left, total;
    CUDA_CHECK(cudaMemGetInfo(&left, &total));
    if (h->n == GPU_MAX_HOGS || (leave > 0 && left < leave + bytes) ||
        cudaMalloc(&h->p[h->n], bytes) != cudaSuccess)
        return false;
    h->n++;
    return true;
}

void gpu_take_memory(struct gpu_hogs *h, size_t leave) {
    h->n = 0;
    for (size_t bytes = (size_t)1 << 30; bytes >= 256; bytes /= 2)
        while (take_piece(h, bytes, leave))
            continue;
    cudaGetLastError();
}

void gpu_give_memory(struct gpu_hogs *h) {
    while (h->n > 0)
        CUDA_CHECK(cudaFree(h->p[--h->n]));
}

/* ---- host arrays ----------------------------------------------------------------------------- */

float *random_floats(struct rng *r, int64_t n, float amplitude) {
    float *x = xmalloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_float(r) * amplitude;
    return x;
}

int32_t *random_ints(struct rng *r, int64_t n, int32_t below) {
    int32_t *x = xmalloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_below(r, below);
    return x;
}

void round_to_bf16(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(bf16_from_f32(x[i]));
}

void round_to_e4m3(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = e4m3_to_f32(e4m3_from_f32(x[i]));
}

void bf16_from_floats(bf16 *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_from_f32(x[i]);
}

void e4m3_from_floats(uint8_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = e4m3_from_f32(x[i]);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

bool close_rows(const char *what, const float *got, const float *want, int64_t n, int64_t row,
                float relative, float absolute) {
    int64_t bad = 0, first = 0;
    for (int64_t i = n - 1; i >= 0; i--)
        if (!(fabsf(got[i] - want[i]) <= relative * fabsf(want[i]) + absolute)) {
            bad++;
            first = i;
        }
    if (bad == 0)
        return true;
    row = row ? row : n;
    FAIL("%s: [%lld, %lld] is %.9g, should be %.9g, off by %.3g, allowed %.3g; %lld of %lld differ "
         "(seed %llu)",
         what, (long long)(first / row), (long long)(first % row), (double)got[first],
         (double)want[first], (double)fabsf(got[first] - want[first]),
         (double)(relative * fabsf(want[first]) + absolute), (long long)bad, (long long)n,
         (unsigned long long)ops_test_seed());
    return false;
}

bool same_ints(const char *what, const int32_t *got, const int32_t *want, int64_t n, int64_t row) {
    for (int64_t i = 0; i < n; i++)
        if (got[i] != want[i]) {
            row = row ? row : n;
            FAIL("%s: [%lld, %lld] is %d, should be %d (seed %llu)", what, (long long)(i / row),
                 (long long)(i % row), got[i], want[i], (unsigned long long)ops_test_seed());
            return false;
        }
    return true;
}
