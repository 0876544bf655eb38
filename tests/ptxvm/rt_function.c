/* Attributes of kernels, and how many blocks of them fit on a multiprocessor. */
#include "tests/ptxvm/rt.h"

#include <string.h>

enum { DEFAULT_SHARED = 48 << 10 };

size_t function_dynamic_limit(const struct function *f, int32_t device) {
    if (f->dynamic_limit[device] >= 0)
        return (size_t)f->dynamic_limit[device];
    return f->info.static_shared < DEFAULT_SHARED ? DEFAULT_SHARED - f->info.static_shared : 0;
}

/* There is no machine code, so the number of registers is not known: 0. */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *func) {
    RT_ENTER();
    if (!attributes)
        return rt_return(cudaErrorInvalidValue);
    struct function *f;
    cudaError_t e = function_load(func, &f);
    if (e != cudaSuccess)
        return rt_return(e);
    memset(attributes, 0, sizeof *attributes);
    attributes->sharedSizeBytes = f->info.static_shared;
    attributes->localSizeBytes = f->info.local_bytes;
    attributes->maxThreadsPerBlock = f->info.max_threads;
    attributes->ptxVersion = function_ptx_sm(f);
    attributes->binaryVersion = rt_arch()->sm;
    attributes->maxDynamicSharedSizeBytes = (int)function_dynamic_limit(f, rt_thread.device);
    attributes->preferredShmemCarveout = f->carveout[rt_thread.device];
    return cudaSuccess;
}

/* Holds for the current device only. */
cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attribute, int value) {
    RT_ENTER();
    struct function *f;
    cudaError_t e = function_load(func, &f);
    if (e != cudaSuccess)
        return rt_return(e);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        int64_t most = rt_arch()->shared_per_block_optin - (int64_t)f->info.static_shared;
        if (value < 0 || value > most) {
            vm_report("cudaFuncSetAttribute: %d bytes of dynamic shared memory for %s; sm_%d has "
                      "%lld",
                      value, f->name, rt_arch()->sm, (long long)most);
            return rt_return(cudaErrorInvalidValue);
        }
        f->dynamic_limit[rt_thread.device] = value;
        return cudaSuccess;
    }
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
        if (value < -1 || value > 100)
            return rt_return(cudaErrorInvalidValue);
        f->carveout[rt_thread.device] = value;
        return cudaSuccess;
    }
    return rt_return((int)attribute > cudaFuncAttributePreferredSharedMemoryCarveout &&
                             attribute < cudaFuncAttributeMax
                         ? cudaErrorNotSupported
                         : cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetCacheConfig(const void *func, enum cudaFuncCache config) {
    RT_ENTER();
    struct function *f;
    if ((unsigned)config > cudaFuncCachePreferEqual)
        return rt_return(cudaErrorInvalidValue);
    return rt_return(function_load(func, &f));
}

cudaError_t cudaFuncGetName(const char **name, const void *func) {
    RT_ENTER();
    rt_lock();
    const struct function *f = function_find_locked(func);
    rt_unlock();
    if (!name || !f)
        return rt_return(name ? cudaErrorInvalidDeviceFunction : cudaErrorInvalidValue);
    *name = f->name;
    return cudaSuccess;
}

cudaError_t cudaGetKernel(cudaKernel_t *kernel, const void *func) {
    rt_lock();
    struct function *f = function_find_locked(func);
    rt_unlock();
    if (!kernel || !f)
        return rt_return(kernel ? cudaErrorInvalidDeviceFunction : cudaErrorInvalidValue);
    *kernel = (cudaKernel_t)(void *)f;
    return cudaSuccess;
}

/* ---- occupancy ------------------------------------------------------------------------------- */

/* Registers are not known, so this is the bound by threads, blocks and shared memory. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *func,
                                                                   int block_size,
                                                                   size_t dynamic_shared,
                                                                   unsigned flags) {
    RT_ENTER();
    struct cudaDeviceProp p;
    struct function *f;
    if (!blocks || block_size <= 0 || flags > cudaOccupancyDisableCachingOverride)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = function_load(func, &f);
    if (e == cudaSuccess)
        e = cudaGetDeviceProperties(&p, rt_thread.device);
    if (e != cudaSuccess)
        return rt_return(e);
    *blocks = 0;
    if (block_size > f->info.max_threads ||
        dynamic_shared > function_dynamic_limit(f, rt_thread.device))
        return cudaSuccess;
    int threads = (block_size + VM_WARP - 1) / VM_WARP * VM_WARP;
    size_t shared = f->info.static_shared + dynamic_shared + p.reservedSharedMemPerBlock;
    int by_threads = p.maxThreadsPerMultiProcessor / threads;
    int by_shared = (int)(p.sharedMemPerMultiprocessor / shared);
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    if (*blocks > p.maxBlocksPerMultiProcessor)
        *blocks = p.maxBlocksPerMultiProcessor;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *func,
                                                          int block_size, size_t dynamic_shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, func, block_size,
                                                                  dynamic_shared, 0);
}
