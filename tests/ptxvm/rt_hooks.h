/* rt_hooks: what the CUDA runtime stand-in gives to the stand-ins of libraries above it.
 *
 * cuBLAS and NCCL put work into streams that is not a kernel. Here that work is a host function
 * with arguments of its own, which runs in stream order, is recorded by stream capture, and may
 * fail like a kernel. libcudart.so.13 of this folder exports these functions; the real one does
 * not have them, so only stand-ins may call them.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ptxvm_task {
    /* Runs on some thread once everything before it in the stream is done. A result other than
     * cudaSuccess becomes the error of the stream's device, as a kernel's fault does. */
    cudaError_t (*run)(const void *args);
    /* Releases what the arguments own, after the last run; may be NULL. */
    void (*drop)(void *args);
    const void *args; /* [bytes], copied at the call */
    size_t bytes;
};

/* Enqueues a task. The errors are those of a kernel launch on that stream. */
cudaError_t ptxvm_enqueue(cudaStream_t stream, const struct ptxvm_task *task);

/* The device of a stream; -1 when the handle is not live. */
int ptxvm_stream_device(cudaStream_t stream);

/* Lets every stream of every device run what was given to it up to now. A collective calls it
 * before it waits for other ranks: with lazy streams nobody else may ever wait for their work. */
void ptxvm_demand_all(void);

/* May a kernel on this device access [p, p + bytes)? If not, reports what it is instead. The name
 * is the operand's in the report. */
bool ptxvm_check_range(const char *name, int device, const void *p, size_t bytes);

/* Device memory may be out of the host's reach (PTXVM_PROTECT) but between these two. */
void ptxvm_access_begin(void);
void ptxvm_access_end(void);

/* Writes a report of a fault, as the machine does for kernels. */
void ptxvm_write_report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
