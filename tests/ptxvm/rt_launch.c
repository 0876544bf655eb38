/* Kernel launches: <<<>>>, cudaLaunchKernel, cudaLaunchKernelExC and their checks. */
#include "tests/ptxvm/rt.h"

#include <string.h>

struct call_configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
enum { MAX_CONFIGURATIONS = 16, MAX_BLOCK_THREADS = 1024, MAX_BLOCK_Z = 64, MAX_GRID_YZ = 65535 };
static _Thread_local struct call_configuration configurations[MAX_CONFIGURATIONS];
static _Thread_local int32_t num_configurations;

/* The declarations that nvcc's host code is compiled with. */
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream);
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *func);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args,
                               size_t shared, cudaStream_t stream);

/* ---- the launch ------------------------------------------------------------------------------ */

struct launch_args {
    struct vm_launch launch;
    _Alignas(16) unsigned char params[];
};

static cudaError_t error_of(enum vm_result r) {
    switch (r) {
    case VM_OK:
        return cudaSuccess;
    case VM_BAD_LAUNCH:
        return cudaErrorInvalidValue;
    case VM_BAD_ADDRESS:
        return cudaErrorIllegalAddress;
    case VM_MISALIGNED:
        return cudaErrorMisalignedAddress;
    case VM_BAD_INSTRUCTION:
        return cudaErrorIllegalInstruction;
    case VM_ASSERT:
        return cudaErrorAssert;
    case VM_FAULT:
        return cudaErrorLaunchFailure;
    }
    return cudaErrorUnknown;
}

static cudaError_t run_kernel(const void *args) {
    const struct launch_args *a = args;
    struct vm_launch l = a->launch;
    l.params = a->params;
    return error_of(vm_run(&l));
}

/* Grids and blocks that no kernel can have. */
static bool is_configuration(const struct vm_launch *l) {
    uint64_t threads = (uint64_t)l->block[0] * l->block[1] * l->block[2];
    return l->grid[0] && l->grid[1] && l->grid[2] && l->grid[0] <= INT32_MAX &&
           l->grid[1] <= MAX_GRID_YZ && l->grid[2] <= MAX_GRID_YZ && threads &&
           l->block[0] <= MAX_BLOCK_THREADS && l->block[1] <= MAX_BLOCK_THREADS &&
           l->block[2] <= MAX_BLOCK_Z && threads <= MAX_BLOCK_THREADS;
}

static cudaError_t check_launch(const struct vm_launch *l, const struct function *f) {
    if (!is_configuration(l)) {
        vm_report("launch of %s: a grid of %u x %u x %u blocks of %u x %u x %u threads is not "
                  "possible",
                  f->name, l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1],
                  l->block[2]);
        return cudaErrorInvalidConfiguration;
    }
    return error_of(vm_check_launch(l));
}

/* Copies the arguments to where the parameter block of the kernel has them. */
static struct work *kernel_work(const struct vm_launch *l, const struct function *f, void **args) {
    struct work *w = work_create(cudaGraphNodeTypeKernel, l->device, run_kernel, NULL,
                                 sizeof(struct launch_args) + f->info.params_bytes);
    struct launch_args *a = (struct launch_args *)w->args;
    a->launch = *l;
    for (int32_t i = 0; i < f->info.num_params; i++)
        memcpy(a->params + f->info.param_offset[i], args[i], f->info.param_bytes[i]);
    return w;
}

static cudaError_t launch(const void *func, dim3 grid, dim3 block, void **args, size_t shared,
                          cudaStream_t stream) {
    RT_ENTER();
    struct function *f;
    cudaError_t e = function_load(func, &f);
    if (e == cudaSuccess && f->info.num_params && !args)
        e = cudaErrorInvalidValue;
    if (e != cudaSuccess)
        return rt_return(e);
    struct vm_launch l = {.kernel = f->kernel,
                          .arch = rt_arch(),
                          .device = rt_thread.device,
                          .peers = rt_devices[rt_thread.device].peers,
                          .grid = {grid.x, grid.y, grid.z},
                          .block = {block.x, block.y, block.z},
                          .dynamic_shared = shared,
                          .dynamic_shared_limit = function_dynamic_limit(f, rt_thread.device)};
    e = check_launch(&l, f);
    if (e != cudaSuccess)
        return rt_return(e);
    rt_lock();
    struct CUstream_st *s = stream_find_locked(stream);
    if (!s || s->device != rt_thread.device)
        e = cudaErrorInvalidResourceHandle;
    else
        e = stream_submit_locked(s, kernel_work(&l, f, args));
    rt_unlock();
    return rt_return(e);
}

cudaError_t cudaLaunchKernel(const void *func, dim3 grid, dim3 block, void **args, size_t shared,
                             cudaStream_t stream) {
    return launch(func, grid, block, args, shared, stream);
}

/* A grid that may synchronise as a whole needs all of its blocks at the same time, which this
 * machine has only for one block. */
static cudaError_t check_cooperative(dim3 grid) {
    if ((uint64_t)grid.x * grid.y * grid.z <= 1)
        return cudaSuccess;
    vm_report("cooperative launches of more than one block are not supported");
    return cudaErrorNotSupported;
}

cudaError_t cudaLaunchCooperativeKernel(const void *func, dim3 grid, dim3 block, void **args,
                                        size_t shared, cudaStream_t stream) {
    cudaError_t e = check_cooperative(grid);
    return e != cudaSuccess ? rt_return(e) : launch(func, grid, block, args, shared, stream);
}

/* Attributes that only say how fast something should be are ignored. So is the early start of
 * programmatic launches: here a kernel starts when the one before has ended, which they allow. */
static cudaError_t check_attribute(const cudaLaunchAttribute *a, dim3 grid) {
    switch (a->id) {
    case cudaLaunchAttributeIgnore:
    case cudaLaunchAttributeAccessPolicyWindow:
    case cudaLaunchAttributeClusterSchedulingPolicyPreference:
    case cudaLaunchAttributeProgrammaticStreamSerialization:
    case cudaLaunchAttributePriority:
    case cudaLaunchAttributeMemSyncDomainMap:
    case cudaLaunchAttributeMemSyncDomain:
    case cudaLaunchAttributePreferredSharedMemoryCarveout:
        return cudaSuccess;
    case cudaLaunchAttributeCooperative:
        return a->val.cooperative ? check_cooperative(grid) : cudaSuccess;
    case cudaLaunchAttributeClusterDimension:
        if (a->val.clusterDim.x == 1 && a->val.clusterDim.y == 1 && a->val.clusterDim.z == 1)
            return cudaSuccess;
        break;
    default:
        break;
    }
    vm_report("cudaLaunchKernelExC: launch attribute %d is not supported", (int)a->id);
    return cudaErrorNotSupported;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *func, void **args) {
    if (!config || (config->numAttrs && !config->attrs))
        return rt_return(cudaErrorInvalidValue);
    for (unsigned i = 0; i < config->numAttrs; i++) {
        cudaError_t e = check_attribute(&config->attrs[i], config->gridDim);
        if (e != cudaSuccess)
            return rt_return(e);
    }
    return launch(func, config->gridDim, config->blockDim, args, config->dynamicSmemBytes,
                  config->stream);
}

/* ---- what <<<>>> becomes --------------------------------------------------------------------- */

/* The expression of a launch pushes its configuration; the stub of the kernel pops it. A result
 * other than 0 makes the caller leave the launch out. */
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    if (num_configurations == MAX_CONFIGURATIONS) {
        rt_return(cudaErrorMissingConfiguration);
        return 1;
    }
    configurations[num_configurations++] = (struct call_configuration){grid, block, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (!num_configurations)
        return rt_return(cudaErrorMissingConfiguration);
    const struct call_configuration *c = &configurations[--num_configurations];
    *grid = c->grid;
    *block = c->block;
    *shared = c->shared;
    *(cudaStream_t *)stream = c->stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *func) {
    return cudaGetKernel(kernel, func);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args,
                               size_t shared, cudaStream_t stream) {
    return launch(kernel, grid, block, args, shared, stream);
}
