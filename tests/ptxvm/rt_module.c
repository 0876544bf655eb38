/* Fat binaries of the program: what nvcc's host code registers, and when it is parsed.
 *
 * Each translation unit registers its fat binary, kernels and variables from a static constructor,
 * in any order, before or after the constructors of other libraries. So registration only makes
 * notes, in plain globals; the PTX is parsed when something of it is first needed.
 */
#include "tests/ptxvm/rt.h"

#include <stdint.h>

#include "tests/ptxvm/fatbin.h"

static const int32_t WRAPPER_MAGIC = 0x466243b1; /* FATBINC_MAGIC of fatbinary_section.h */

/* What the handle that nvcc's code keeps points to. */
struct wrapper {
    int32_t magic, version;
    const void *data;
    void *prelinked;
};
struct binary {
    struct binary *next;
    const void *data; /* NULL: not a wrapper that we know */
    bool tried;
    cudaError_t error; /* of the load that was tried */
    int32_t sm;        /* what the parsed PTX is for */
    struct vm_module *module;
};

static struct binary *binaries; /* all there ever were: a parsed module stays */
static struct function *functions;
static struct variable *variables;
/* Loads may take long and may report; they have a lock of their own. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- registration ---------------------------------------------------------------------------- */

void **__cudaRegisterFatBinary(void *fat);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int threads, uint3 *tid, uint3 *bid, dim3 *block, dim3 *grid,
                            int *warp);
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext,
                       size_t bytes, int constant, int global);
void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext,
                              size_t bytes, int constant, int global);
char __cudaInitModule(void **handle);

void **__cudaRegisterFatBinary(void *fat) {
    const struct wrapper *w = fat;
    struct binary *b = rt_calloc(sizeof *b);
    b->data = w->magic == WRAPPER_MAGIC ? w->data : NULL;
    rt_lock();
    b->next = binaries;
    binaries = b;
    rt_unlock();
    return (void **)b;
}

void __cudaRegisterFatBinaryEnd(void **handle) {
    (void)handle;
}

static void forget(struct binary *b) {
    for (struct function **at = &functions; *at;) {
        struct function *f = *at;
        if (f->binary != b) {
            at = &f->next;
            continue;
        }
        *at = f->next;
        rt_free(f);
    }
    for (struct variable **at = &variables; *at;) {
        struct variable *v = *at;
        if (v->binary != b) {
            at = &v->next;
            continue;
        }
        *at = v->next;
        rt_free(v);
    }
}

/* Called when the program ends, or a library of it is unloaded. Work may still be running then on
 * threads of streams, so the parsed module stays. */
void __cudaUnregisterFatBinary(void **handle) {
    rt_lock();
    forget((struct binary *)handle);
    rt_unlock();
}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int threads, uint3 *tid, uint3 *bid, dim3 *block, dim3 *grid,
                            int *warp) {
    (void)device, (void)threads, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
    struct function *f = rt_calloc(sizeof *f);
    f->host = host;
    f->name = name;
    f->binary = (struct binary *)handle;
    vm_demangle_ahead(name);
    for (int32_t d = 0; d < VM_MAX_DEVICES; d++)
        f->dynamic_limit[d] = f->carveout[d] = -1;
    rt_lock();
    f->next = functions;
    functions = f;
    rt_unlock();
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext,
                       size_t bytes, int constant, int global) {
    (void)device, (void)ext, (void)constant, (void)global;
    struct variable *v = rt_calloc(sizeof *v);
    *v = (struct variable){NULL, host, name, (struct binary *)handle, bytes};
    rt_lock();
    v->next = variables;
    variables = v;
    rt_unlock();
}

void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext,
                              size_t bytes, int constant, int global) {
    (void)handle, (void)host, (void)device, (void)ext, (void)bytes, (void)constant, (void)global;
    vm_report("__managed__ variable %s: managed memory is not supported", name);
}

char __cudaInitModule(void **handle) {
    (void)handle;
    return 1;
}

/* ---- loading --------------------------------------------------------------------------------- */

static cudaError_t parse(struct binary *b) {
    char error[1024] = "not a fat binary of nvcc";
    struct fatbin_ptx ptx;
    enum fatbin_result r = FATBIN_MALFORMED;
    if (b->data)
        r = fatbin_find_ptx(b->data, SIZE_MAX, rt_arch()->sm, &ptx, error, sizeof error);
    if (r == FATBIN_OK) {
        b->sm = ptx.sm;
        b->module = vm_module_open(ptx.text, ptx.len, error, sizeof error);
        if (b->module)
            return cudaSuccess;
    }
    vm_report("cannot load device code: %s", error);
    return r == FATBIN_OK          ? cudaErrorInvalidPtx
           : r == FATBIN_MALFORMED ? cudaErrorInvalidKernelImage
                                   : cudaErrorNoKernelImageForDevice;
}

/* Once a process; what failed stays failed. */
static cudaError_t load(struct binary *b) {
    pthread_mutex_lock(&load_lock);
    if (!b->tried)
        b->error = parse(b);
    b->tried = true;
    cudaError_t e = b->error;
    pthread_mutex_unlock(&load_lock);
    return e;
}

void modules_reset_locked(int32_t device) {
    pthread_mutex_lock(&load_lock);
    for (struct binary *b = binaries; b; b = b->next)
        if (b->module)
            vm_module_reset(b->module, device);
    pthread_mutex_unlock(&load_lock);
}

struct function *function_find_locked(const void *func) {
    for (struct function *f = functions; f; f = f->next)
        if (f->host == func || f == func)
            return f;
    return NULL;
}

/* A kernel that is in host code but not in the PTX is one that nvcc removed for this
 * architecture. */
cudaError_t function_load(const void *func, struct function **out) {
    rt_lock();
    struct function *f = func ? function_find_locked(func) : NULL;
    bool loaded = f && f->kernel;
    rt_unlock();
    if (!f)
        return cudaErrorInvalidDeviceFunction;
    *out = f;
    cudaError_t e = loaded ? cudaSuccess : load(f->binary);
    if (e != cudaSuccess || loaded)
        return e;
    char error[1024];
    const struct vm_kernel *kernel =
        vm_module_prepare(f->binary->module, f->name, error, sizeof error);
    if (!kernel && error[0]) {
        vm_report("cannot load device code: %s", error);
        return cudaErrorInvalidPtx;
    }
    if (!kernel) {
        vm_report("kernel %s is not in the PTX for sm_%d", f->name, rt_arch()->sm);
        return cudaErrorInvalidDeviceFunction;
    }
    rt_lock();
    if (!f->kernel) { /* another thread may have been here, and uses what it put there */
        f->info = vm_kernel_info(kernel);
        f->kernel = kernel;
    }
    rt_unlock();
    return cudaSuccess;
}

int32_t function_ptx_sm(const struct function *f) {
    return f->binary->sm;
}

cudaError_t symbol_address(const void *symbol, int32_t device, void **address, size_t *bytes) {
    rt_lock();
    struct variable *v = variables;
    while (v && v->host != symbol)
        v = v->next;
    rt_unlock();
    if (!symbol || !v)
        return cudaErrorInvalidSymbol;
    cudaError_t e = load(v->binary);
    if (e != cudaSuccess)
        return e;
    *address = vm_module_symbol(v->binary->module, v->name, device, bytes);
    return *address ? cudaSuccess : cudaErrorInvalidSymbol;
}
