/* machine: a GPU that executes PTX on the CPU.
 *
 * The kernels that nvcc puts as PTX into the shipped binary are parsed (ptx_*.c), decoded into
 * type-specialised instructions (decode*.c) and executed a warp at a time (exec_*.c, block.c), so
 * that tests run the very code of the product on machines without a GPU. The CUDA runtime stand-in
 * (rt_*.c) is its only caller; the product knows nothing of it.
 *
 * A warp has one register file of 32 lanes a register. Lanes that are at the same instruction
 * execute together; where they diverge, the group with the lowest program counter goes first, which
 * makes them meet again after loops and branches, and other orders can be asked for (settings.h).
 * Nothing about a kernel's result may depend on that order: what does is an error in the kernel,
 * and the checks below are there to find it.
 *
 *   memory      every access lies in one live allocation or one shared variable, aligned
 *   shared      what is read was written; static and dynamic arrays end where they end
 *   collectives every lane of the mask arrives, at the same instruction; barriers likewise
 *   cp.async    the bytes arrive when they are waited for, and are poison until then
 *   races       two accesses, one a write, with no barrier, __syncwarp or atomic between (optional)
 *   launches    __launch_bounds__, threads, shared memory of the architecture
 *
 * The first thing that is wrong ends the launch with a report that names kernel, source line, block
 * and thread.
 *
 * Threads: modules and allocations may be used from any thread; vm_run may run on several threads
 * at once, and itself uses a pool for large grids. A launch allocates nothing once its kernel has
 * been launched in that shape before; what memory the machine takes is never the program's malloc.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VM_MAX_DEVICES = 16, VM_WARP = 32 };

/* ---- architectures --------------------------------------------------------------------------- */

struct vm_arch {
    int32_t sm;                      /* 80, 86, 89, 90, 120 */
    const char *name;                /* what cudaGetDeviceProperties calls such a device */
    int32_t shared_per_block_optin;  /* bytes: 163, 99, 99, 227, 99 KiB */
    int32_t shared_per_sm;           /* bytes */
    int32_t threads_per_sm, num_sms; /* num_sms is small here: grids sized by it stay quick */
};
const struct vm_arch *vm_arch_find(int32_t sm); /* NULL when unknown */

/* ---- device memory (memory.c) ---------------------------------------------------------------- */

enum vm_memory_kind {
    VM_DEVICE, /* belongs to one device; the host must not touch it */
    VM_PINNED, /* host memory that devices may address (cudaMallocHost, cudaHostRegister) */
    VM_GLOBAL  /* a .global or .const variable of a module */
};

struct vm_allocation {
    uintptr_t base;
    size_t bytes;
    enum vm_memory_kind kind;
    int32_t device;
    bool freed;        /* kept for a while, so that a late use can be named */
    const char *label; /* for reports; borrowed or static */
};

/* Memory filled with 0xff bytes (NaN in every float format), 256-byte aligned, with a gap after it
 * that belongs to nobody. NULL when the device (PTXVM_MEMORY) or the host has no more.
 */
void *vm_alloc(int32_t device, size_t bytes, enum vm_memory_kind kind, const char *label);
/* false when p is not the base of a live allocation. */
bool vm_free(void *p);
/* Makes existing host memory known as VM_PINNED, and forgets it. */
bool vm_register_host(void *p, size_t bytes);
bool vm_unregister_host(void *p);
/* The allocation that holds p, live or recently freed; false when none does. */
bool vm_find(const void *p, struct vm_allocation *out);
/* As memset, inside of one allocation; large ranges of zeros are quick. */
void vm_fill(void *p, int value, size_t bytes);
/* With PTXVM_PROTECT device memory is out of the host's reach but between these two, which nest.
 * vm_run calls them itself; copies and fills of the runtime have to. */
void vm_access_begin(void);
void vm_access_end(void);
size_t vm_free_bytes(int32_t device);
size_t vm_total_bytes(int32_t device);

/* ---- modules and launches -------------------------------------------------------------------- */

struct vm_module; /* opaque: the PTX of one translation unit for one architecture */
struct vm_kernel; /* opaque */

/* Parses a module. NULL with the reason in error (file, line, the text of an instruction that is
 * not known). Variables are allocated once for every device that uses the module. */
struct vm_module *vm_module_load(const char *ptx, size_t len, char *error, size_t error_bytes);
/* The same without the bodies of its kernels, each of which is parsed by vm_module_prepare: modules
 * hold many variants of a kernel, and a process launches few of them. */
struct vm_module *vm_module_open(const char *ptx, size_t len, char *error, size_t error_bytes);
/* By mangled name. NULL with the reason in error, "" when there is no such kernel. */
const struct vm_kernel *vm_module_prepare(struct vm_module *m, const char *name, char *error,
                                          size_t error_bytes);
void vm_module_unload(struct vm_module *m);
/* By mangled name; NULL when there is none, or it is not prepared. */
const struct vm_kernel *vm_module_kernel(const struct vm_module *m, const char *name);
/* Address of a .global or .const variable on a device, and its size. NULL when there is none. */
void *vm_module_symbol(struct vm_module *m, const char *name, int32_t device, size_t *bytes);
/* Gives the variables on a device their initial values again. */
void vm_module_reset(struct vm_module *m, int32_t device);

struct vm_kernel_info {
    const char *name;
    int32_t max_threads;  /* of __launch_bounds__; 1024 when there is none */
    size_t static_shared; /* bytes */
    size_t local_bytes;   /* a thread's stack frame */
    int32_t num_params;
    const size_t *param_offset, *param_bytes; /* [num_params] in the parameter block */
    size_t params_bytes;                      /* of the whole block */
};
struct vm_kernel_info vm_kernel_info(const struct vm_kernel *k);

struct vm_launch {
    const struct vm_kernel *kernel;
    const struct vm_arch *arch;
    int32_t device;
    uint32_t peers; /* bit mask of other devices whose memory it may access */
    uint32_t grid[3], block[3];
    size_t dynamic_shared;
    size_t
        dynamic_shared_limit; /* what cudaFuncSetAttribute allowed; 48 KiB less the static part */
    const void *params;       /* [params_bytes], copied by the caller at the time of the launch */
};

enum vm_result {
    VM_OK,
    VM_BAD_LAUNCH,      /* cudaErrorInvalidValue or cudaErrorInvalidConfiguration */
    VM_BAD_ADDRESS,     /* cudaErrorIllegalAddress */
    VM_MISALIGNED,      /* cudaErrorMisalignedAddress */
    VM_BAD_INSTRUCTION, /* cudaErrorIllegalInstruction */
    VM_ASSERT,          /* cudaErrorAssert */
    VM_FAULT            /* cudaErrorLaunchFailure: everything that only this machine finds */
};

/* Can it be launched? Reports why not. Called at the time of the launch. */
enum vm_result vm_check_launch(const struct vm_launch *l);
/* Runs the grid to its end. A fault is reported (vm_report) and ends it. */
enum vm_result vm_run(const struct vm_launch *l);
/* A grid that only polls may wait for other grids, for copies or for the host. It calls fn every
 * now and then, so that the runtime can let those run; and it is a deadlock only when it has polled
 * for PTXVM_SPIN seconds in which no grid went on and nobody called vm_note_progress. */
void vm_on_stall(void (*fn)(void));
void vm_note_progress(void);

/* ---- reports (report.c) ---------------------------------------------------------------------- */

/* Demangles the name of a kernel before a report needs it, which may come where the program must
 * not call malloc. */
void vm_demangle_ahead(const char *name);
/* Writes "ptxvm: ..." to stderr, and keeps it as the last report of the process. */
void vm_report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The text of the last report, "" when there was none; exported by libcudart's stand-in, so that
 * tests of the machine can look at it. */
const char *ptxvm_last_report(void);
void ptxvm_clear_report(void);
/* Counters since the start: instructions (times active lanes), launches, shared-memory bank
 * conflicts (extra passes; with PTXVM_BANKS), warp instructions of mma kind. */
struct ptxvm_counters {
    uint64_t lane_instructions, warp_instructions, launches, bank_conflicts, mma;
};
void ptxvm_counters(struct ptxvm_counters *out);
