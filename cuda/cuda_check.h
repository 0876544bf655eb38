/* cuda_check: errors of the CUDA runtime. In a step a failed call ends the step (guard.h): the
 * device is gone, or a kernel did something wrong. Elsewhere it is a broken invariant: it is
 * printed with file, line, expression and device, and ends the process. Calls that may fail for
 * want of memory are not wrapped; their callers say what was missing. */
#pragma once

#include <cuda_runtime_api.h>

#include "host/guard.h"
#include "host/mem.h"

/* The thread's device; -1 where not even that is known. */
static inline int cuda_check_device(void) {
    int device = -1;
    return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

#define CUDA_CHECK(call)                                                                           \
    do {                                                                                           \
        cudaError_t cuda_check_error = (call);                                                     \
        if (cuda_check_error != cudaSuccess)                                                       \
            guard_fail("GPU %d: %s (%s)", cuda_check_device(),                                     \
                       cudaGetErrorString(cuda_check_error), cudaGetErrorName(cuda_check_error));  \
        CHECK(cuda_check_error == cudaSuccess, "GPU %d: %s: %s (%s)", cuda_check_device(), #call,  \
              cudaGetErrorString(cuda_check_error), cudaGetErrorName(cuda_check_error));           \
    } while (0)

/* After every kernel launch: what the launch itself said. What the kernel does wrong shows in a
 * later call. */
#define LAUNCH_CHECK() CUDA_CHECK(cudaGetLastError())
