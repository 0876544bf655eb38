/* Devices: how many, which one is current, what they are. */
#include "tests/ptxvm/rt.h"

#include <stdio.h>
#include <string.h>

enum {
    RUNTIME_VERSION = 13000,
    MAX_THREADS = 1024,
    SHARED_PER_BLOCK = 48 << 10, /* without opting in */
    RESERVED_SHARED = 1 << 10,   /* of each block, for the system */
    REGISTERS = 65536,
    CONSTANT_BYTES = 64 << 10,
    MEMORY_CLOCK_KHZ = 1000000,
    MEMORY_BUS_BITS = 256,
    L2_BYTES = 4 << 20
};

struct rt_device rt_devices[VM_MAX_DEVICES];

bool rt_valid_device(int device) {
    return device >= 0 && device < vm_settings()->num_devices;
}

const struct vm_arch *rt_arch(void) {
    return vm_arch_find(vm_settings()->sm);
}

cudaError_t cudaGetDeviceCount(int *count) {
    if (!count)
        return rt_return(cudaErrorInvalidValue);
    *count = vm_settings()->num_devices;
    return rt_return(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
    if (!rt_valid_device(device))
        return rt_return(cudaErrorInvalidDevice);
    rt_thread.device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    if (!device)
        return rt_return(cudaErrorInvalidValue);
    *device = rt_thread.device;
    return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned device_flags, unsigned flags) {
    (void)device_flags;
    if (flags & ~(unsigned)cudaInitDeviceFlagsAreValid)
        return rt_return(cudaErrorInvalidValue);
    return rt_return(rt_valid_device(device) ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaSetDeviceFlags(unsigned flags) {
    if (flags & ~(unsigned)cudaDeviceMask)
        return rt_return(cudaErrorInvalidValue);
    rt_devices[rt_thread.device].flags = flags;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceFlags(unsigned *flags) {
    if (!flags)
        return rt_return(cudaErrorInvalidValue);
    *flags = rt_devices[rt_thread.device].flags;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    if (!version)
        return rt_return(cudaErrorInvalidValue);
    *version = RUNTIME_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    return cudaRuntimeGetVersion(version);
}

/* ---- properties ------------------------------------------------------------------------------ */

static int32_t max_blocks_per_sm(int32_t sm) {
    return sm == 86 ? 16 : sm == 89 || sm == 120 ? 24 : 32;
}

/* What PTX code can depend on is the architecture's; what only makes it faster (multiprocessors,
 * caches) is small, so that grids that are sized by it stay quick. */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    if (!p)
        return rt_return(cudaErrorInvalidValue);
    if (!rt_valid_device(device))
        return rt_return(cudaErrorInvalidDevice);
    const struct vm_arch *arch = rt_arch();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", arch->name);
    p->uuid.bytes[0] = (char)(device + 1);
    p->totalGlobalMem = vm_total_bytes(device);
    p->sharedMemPerBlock = SHARED_PER_BLOCK;
    p->sharedMemPerBlockOptin = (size_t)arch->shared_per_block_optin;
    p->sharedMemPerMultiprocessor = (size_t)arch->shared_per_sm;
    p->reservedSharedMemPerBlock = RESERVED_SHARED;
    p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;
    p->warpSize = VM_WARP;
    p->memPitch = INT32_MAX;
    p->maxThreadsPerBlock = MAX_THREADS;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = MAX_THREADS;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = CONSTANT_BYTES;
    p->major = arch->sm / 10;
    p->minor = arch->sm % 10;
    p->textureAlignment = 512;
    p->multiProcessorCount = arch->num_sms;
    p->maxThreadsPerMultiProcessor = arch->threads_per_sm;
    p->maxBlocksPerMultiProcessor = max_blocks_per_sm(arch->sm);
    p->canMapHostMemory = p->unifiedAddressing = p->concurrentKernels = 1;
    p->canUseHostPointerForRegisteredMem = p->hostRegisterSupported = 1;
    p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
    p->asyncEngineCount = 2;
    p->l2CacheSize = L2_BYTES;
    p->pciBusID = device + 1;
    return cudaSuccess;
}

/* The value of an attribute that is a field of the properties; false when it is not known. */
static bool attribute(enum cudaDeviceAttr a, const struct cudaDeviceProp *p, int *value) {
    switch (a) {
#define FIELD(attr, field)                                                                         \
    case cudaDevAttr##attr:                                                                        \
        *value = (int)p->field;                                                                    \
        return true;
        FIELD(MaxThreadsPerBlock, maxThreadsPerBlock)
        FIELD(MaxBlockDimX, maxThreadsDim[0])
        FIELD(MaxBlockDimY, maxThreadsDim[1])
        FIELD(MaxBlockDimZ, maxThreadsDim[2])
        FIELD(MaxGridDimX, maxGridSize[0])
        FIELD(MaxGridDimY, maxGridSize[1])
        FIELD(MaxGridDimZ, maxGridSize[2])
        FIELD(MaxSharedMemoryPerBlock, sharedMemPerBlock)
        FIELD(MaxSharedMemoryPerBlockOptin, sharedMemPerBlockOptin)
        FIELD(MaxSharedMemoryPerMultiprocessor, sharedMemPerMultiprocessor)
        FIELD(ReservedSharedMemoryPerBlock, reservedSharedMemPerBlock)
        FIELD(TotalConstantMemory, totalConstMem)
        FIELD(WarpSize, warpSize)
        FIELD(MaxPitch, memPitch)
        FIELD(MaxRegistersPerBlock, regsPerBlock)
        FIELD(MaxRegistersPerMultiprocessor, regsPerMultiprocessor)
        FIELD(TextureAlignment, textureAlignment)
        FIELD(MultiProcessorCount, multiProcessorCount)
        FIELD(Integrated, integrated)
        FIELD(CanMapHostMemory, canMapHostMemory)
        FIELD(ConcurrentKernels, concurrentKernels)
        FIELD(EccEnabled, ECCEnabled)
        FIELD(PciBusId, pciBusID)
        FIELD(PciDeviceId, pciDeviceID)
        FIELD(PciDomainId, pciDomainID)
        FIELD(TccDriver, tccDriver)
        FIELD(L2CacheSize, l2CacheSize)
        FIELD(MaxPersistingL2CacheSize, persistingL2CacheMaxSize)
        FIELD(MaxThreadsPerMultiProcessor, maxThreadsPerMultiProcessor)
        FIELD(MaxBlocksPerMultiprocessor, maxBlocksPerMultiProcessor)
        FIELD(AsyncEngineCount, asyncEngineCount)
        FIELD(UnifiedAddressing, unifiedAddressing)
        FIELD(ComputeCapabilityMajor, major)
        FIELD(ComputeCapabilityMinor, minor)
        FIELD(StreamPrioritiesSupported, streamPrioritiesSupported)
        FIELD(GlobalL1CacheSupported, globalL1CacheSupported)
        FIELD(LocalL1CacheSupported, localL1CacheSupported)
        FIELD(ManagedMemory, managedMemory)
        FIELD(ConcurrentManagedAccess, concurrentManagedAccess)
        FIELD(PageableMemoryAccess, pageableMemoryAccess)
        FIELD(HostNativeAtomicSupported, hostNativeAtomicSupported)
        FIELD(CanUseHostPointerForRegisteredMem, canUseHostPointerForRegisteredMem)
        FIELD(HostRegisterSupported, hostRegisterSupported)
        FIELD(CooperativeLaunch, cooperativeLaunch)
        FIELD(ClusterLaunch, clusterLaunch)
        FIELD(MemoryPoolsSupported, memoryPoolsSupported)
        FIELD(GPUDirectRDMASupported, gpuDirectRDMASupported)
        FIELD(IpcEventSupport, ipcEventSupported)
#undef FIELD
    case cudaDevAttrComputeMode:
        *value = cudaComputeModeDefault;
        return true;
    case cudaDevAttrMemoryClockRate: /* kHz */
        *value = MEMORY_CLOCK_KHZ;
        return true;
    case cudaDevAttrGlobalMemoryBusWidth: /* bits */
        *value = MEMORY_BUS_BITS;
        return true;
    case cudaDevAttrKernelExecTimeout:
        *value = 0;
        return true;
    default:
        return false;
    }
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    struct cudaDeviceProp p;
    if (!value)
        return rt_return(cudaErrorInvalidValue);
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess)
        return e;
    if (attribute(attr, &p, value))
        return cudaSuccess;
    vm_report("cudaDeviceGetAttribute: attribute %d is not known to this machine", (int)attr);
    return rt_return(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int device) {
    if (!id || len < 13)
        return rt_return(cudaErrorInvalidValue);
    if (!rt_valid_device(device))
        return rt_return(cudaErrorInvalidDevice);
    snprintf(id, (size_t)len, "0000:%02x:00.0", (unsigned)device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetByPCIBusId(int *device, const char *id) {
    unsigned domain, bus, slot, fn = 0;
    if (!device || !id)
        return rt_return(cudaErrorInvalidValue);
    int fields = sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &fn);
    if (fields < 3 || domain || slot || fn || !rt_valid_device((int)bus - 1))
        return rt_return(cudaErrorInvalidDevice);
    *device = (int)bus - 1;
    return cudaSuccess;
}

/* ---- peers ----------------------------------------------------------------------------------- */

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    if (!can)
        return rt_return(cudaErrorInvalidValue);
    if (!rt_valid_device(device) || !rt_valid_device(peer))
        return rt_return(cudaErrorInvalidDevice);
    *can = device != peer && vm_settings()->peers;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    RT_ENTER();
    if (flags)
        return rt_return(cudaErrorInvalidValue);
    if (!rt_valid_device(peer) || peer == rt_thread.device)
        return rt_return(cudaErrorInvalidDevice);
    if (!vm_settings()->peers) /* as with consumer cards */
        return rt_return(cudaErrorPeerAccessUnsupported);
    rt_lock();
    uint32_t *peers = &rt_devices[rt_thread.device].peers, bit = 1u << peer;
    bool was_enabled = *peers & bit;
    *peers |= bit;
    rt_unlock();
    return rt_return(was_enabled ? cudaErrorPeerAccessAlreadyEnabled : cudaSuccess);
}

cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    RT_ENTER();
    if (!rt_valid_device(peer) || peer == rt_thread.device)
        return rt_return(cudaErrorInvalidDevice);
    rt_lock();
    uint32_t *peers = &rt_devices[rt_thread.device].peers, bit = 1u << peer;
    bool was_enabled = *peers & bit;
    *peers &= ~bit;
    rt_unlock();
    return rt_return(was_enabled ? cudaSuccess : cudaErrorPeerAccessNotEnabled);
}

/* ---- the whole device ------------------------------------------------------------------------ */

cudaError_t cudaDeviceSynchronize(void) {
    RT_ENTER();
    int32_t device = rt_thread.device;
    rt_lock();
    cudaError_t e = capture_check_device_locked(device);
    if (e == cudaSuccess) {
        device_drain_locked(device);
        e = rt_devices[device].sticky;
    }
    rt_unlock();
    return rt_return(e);
}

static void destroy_streams(int32_t device) {
    bool again = true;
    while (again) { /* destroying one lets go of the lock */
        again = false;
        for (struct CUstream_st *s = rt_streams; s && !again; s = s->next)
            if (s->device == device && !s->destroyed) {
                stream_destroy_locked(s);
                again = true;
            }
    }
    rt_devices[device].legacy = NULL;
}

/* Allocations, streams and events of the device are gone, and with them its error. Variables of
 * modules have their initial values again. */
cudaError_t cudaDeviceReset(void) {
    if (rt_thread.in_callback)
        return rt_return(cudaErrorNotPermitted);
    int32_t device = rt_thread.device;
    rt_lock();
    cudaError_t e = capture_check_device_locked(device);
    if (e == cudaSuccess) {
        device_drain_locked(device);
        graph_exec_destroy_all_locked(device);
        destroy_streams(device);
        event_destroy_all_locked(device);
        memory_free_all_locked(device);
        modules_reset_locked(device);
        rt_thread.per_thread[device] = NULL;
        rt_devices[device] = (struct rt_device){0};
        rt_thread.last_error = cudaSuccess;
    }
    rt_unlock();
    return rt_return(e);
}

/* ---- limits, profiler ------------------------------------------------------------------------ */

/* Limits are hints of sizes that this machine does not have. */
cudaError_t cudaDeviceSetLimit(enum cudaLimit limit, size_t value) {
    RT_ENTER();
    (void)value;
    return rt_return((unsigned)limit <= cudaLimitPersistingL2CacheSize ? cudaSuccess
                                                                       : cudaErrorUnsupportedLimit);
}

cudaError_t cudaDeviceSetCacheConfig(enum cudaFuncCache config) {
    RT_ENTER();
    return rt_return((unsigned)config <= cudaFuncCachePreferEqual ? cudaSuccess
                                                                  : cudaErrorInvalidValue);
}

cudaError_t cudaProfilerStart(void) {
    RT_ENTER();
    return cudaSuccess;
}

cudaError_t cudaProfilerStop(void) {
    RT_ENTER();
    return cudaSuccess;
}
