/* The limits of the first GPU, for bench_model; bench_cuda measures them with more care. */
#include <cublas_v2.h>

#include "cuda/cuda_check.h"
#include "host/error.h"
#include "tests/bench_kernels.h"
#include "tests/bench_machine.h"

enum { REPEATS = 9, SIDE = 8192 };

/* Median seconds of a piece of work on the stream. */
static double median_seconds(cudaStream_t stream, void (*work)(void *context), void *context) {
    double seconds[REPEATS];
    cudaEvent_t from, to;
    CUDA_CHECK(cudaEventCreate(&from));
    CUDA_CHECK(cudaEventCreate(&to));
    work(context);
    for (int32_t i = 0; i < REPEATS; i++) {
        float ms = 0;
        CUDA_CHECK(cudaEventRecord(from, stream));
        work(context);
        CUDA_CHECK(cudaEventRecord(to, stream));
        CUDA_CHECK(cudaEventSynchronize(to));
        CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
        seconds[i] = (double)ms / 1e3;
    }
    CUDA_CHECK(cudaEventDestroy(from));
    CUDA_CHECK(cudaEventDestroy(to));
    return machine_median(seconds, REPEATS);
}

struct work {
    cudaStream_t stream;
    cublasHandle_t blas;
    char *a, *b;
    size_t bytes; /* of each */
    int32_t side;
};

static void copy(void *context) {
    const struct work *w = context;
    CUDA_CHECK(cudaMemcpyAsync(w->b, w->a, w->bytes, cudaMemcpyDeviceToDevice, w->stream));
}

static void multiply(void *context) {
    const struct work *w = context;
    const float one = 1, zero = 0;
    int32_t n = w->side;
    cublasStatus_t rc = cublasGemmEx(w->blas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, w->a,
                                     CUDA_R_16BF, n, w->a, CUDA_R_16BF, n, &zero, w->b, CUDA_R_16BF,
                                     n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    CHECK(rc == CUBLAS_STATUS_SUCCESS, "cublasGemmEx: %s", cublasGetStatusString(rc));
}

bool machine_gpu(bool tiny, struct gpu_limits *out) {
    struct cudaDeviceProp p;
    struct work w = {.bytes = tiny ? 1 << 16 : 512 << 20, .side = tiny ? 64 : SIDE};
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        return false;
    }
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    CUDA_CHECK(cudaStreamCreateWithFlags(&w.stream, cudaStreamNonBlocking));
    CHECK(cublasCreate(&w.blas) == CUBLAS_STATUS_SUCCESS, "cublasCreate");
    CHECK(cublasSetStream(w.blas, w.stream) == CUBLAS_STATUS_SUCCESS, "cublasSetStream");
    CUDA_CHECK(cudaMalloc((void **)&w.a, w.bytes));
    CUDA_CHECK(cudaMalloc((void **)&w.b, w.bytes));
    bench_fill_launch(w.a, w.bytes, FILL_BF16, 1, 1, w.stream);
    out->copy_gbps = 2 * (double)w.bytes / 1e9 / median_seconds(w.stream, copy, &w);
    double n = w.side;
    out->bf16_gflops = 2 * n * n * n / 1e9 / median_seconds(w.stream, multiply, &w);
    cublasDestroy(w.blas);
    CUDA_CHECK(cudaFree(w.a));
    CUDA_CHECK(cudaFree(w.b));
    CUDA_CHECK(cudaStreamDestroy(w.stream));
    return true;
}
