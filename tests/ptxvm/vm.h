/* vm: what the parts of the machine share: decoded kernels, warps, blocks and grids.
 *
 * A register of a warp is an array of 32 values of its own width (16, 32 or 64 bits) in the warp's
 * register file; a predicate is one 32-bit mask. Immediates, addresses of variables and special
 * registers such as %tid.x are registers too, filled before the warp starts, so that an operand of
 * an instruction is always one byte offset into the register file.
 *
 * An instruction is a function over all 32 lanes, with the mask of the lanes that take part; it
 * leaves the registers of the others alone. What is wrong ends the block by vm_fault, which jumps
 * to the worker's loop (launch.c): handlers hold nothing that would have to be released.
 */
#pragma once

#include <setjmp.h>
#include <stdatomic.h>

#include "tests/ptxvm/machine.h"
#include "tests/ptxvm/ptx.h"

struct vm_warp;
struct vm_inst;
typedef void (*vm_exec)(struct vm_warp *w, const struct vm_inst *i, uint32_t m);

enum { VM_ALL = 0xffffffffu };
/* Generic addresses: the two windows lie where no host address can; the rest is global memory. */
#define VM_SHARED_WINDOW ((uint64_t)1 << 56)
#define VM_LOCAL_WINDOW  ((uint64_t)2 << 56)
#define VM_PARAM_WINDOW  ((uint64_t)3 << 56)
#define VM_WINDOW(a)     ((a) >> 56)

/* Memory order of an access, for the race detector and for spin loops. */
enum vm_order {
    VM_WEAK = 0,
    VM_RELAXED = 1, /* also .volatile */
    VM_ACQUIRE = 2,
    VM_RELEASE = 4
};

struct vm_inst {
    vm_exec run, base;     /* base: what vm_modified or a guard-free wrapper runs */
    uint32_t d, a, b, c;   /* operands: offsets into the register file */
    uint32_t q;            /* second destination; the sink when there is none */
    int32_t guard;         /* predicate, -1: none */
    uint32_t where;        /* index into vm_kernel.where */
    uint32_t target;       /* of a branch or call: index of an instruction */
    int64_t imm;           /* displacement of an address, or a constant of the operation */
    const uint32_t *more;  /* vector registers, or further operands */
    const uint32_t *table; /* brx.idx: targets; call: bytes to copy */
    uint8_t guard_not, negate_c;
    uint8_t wide;           /* the address register has 64 bits */
    uint8_t size;           /* bytes of a memory element */
    uint8_t vec;            /* elements of an access, or entries of more */
    uint8_t kind, op, type; /* chosen by the decoder, read by the handler */
    uint8_t space, order;
    uint8_t round, ftz, sat; /* modifiers, see vm_modified */
};

/* ---- kernels --------------------------------------------------------------------------------- */

enum vm_special {
    VM_TID_X,
    VM_TID_Y,
    VM_TID_Z,
    VM_NTID_X,
    VM_NTID_Y,
    VM_NTID_Z,
    VM_CTAID_X,
    VM_CTAID_Y,
    VM_CTAID_Z,
    VM_NCTAID_X,
    VM_NCTAID_Y,
    VM_NCTAID_Z,
    VM_LANEID,
    VM_WARPID,
    VM_NWARPID,
    VM_SMID,
    VM_NSMID,
    VM_GRIDID,
    VM_LANEMASK_EQ,
    VM_LANEMASK_LE,
    VM_LANEMASK_LT,
    VM_LANEMASK_GE,
    VM_LANEMASK_GT,
    VM_DYNAMIC_SMEM,
    VM_TOTAL_SMEM,
    VM_ZERO,
    VM_ONE,
    VM_TRUE
};

/* A register filled before the warp starts. */
struct vm_constant {
    uint32_t offset; /* in the register file */
    uint8_t bytes;   /* of a lane; 0: a predicate */
    uint8_t is_special;
    enum vm_special special;
    uint64_t value;
    const struct ptx_variable *var; /* its address is added: a global of the device, or shared */
};

struct vm_shared_variable {
    const struct ptx_variable *var;
    uint32_t offset, bytes;
};

struct vm_kernel {
    const struct vm_module *module;
    const char *name;
    struct vm_inst *code;
    uint32_t num_code, entry;
    const struct ptx_instruction **where; /* [num_code + 1] */
    uint32_t register_bytes;              /* of a warp */
    uint32_t written_bytes;               /* the constants start there */
    struct vm_constant *constants;
    int32_t num_constants;
    struct vm_shared_variable *shared;
    int32_t num_shared;
    uint32_t shared_end; /* of the static variables with the gaps between them */
    uint32_t dynamic_offset;
    size_t static_shared; /* as the GPU would lay it out */
    size_t local_bytes;
    int32_t max_threads, num_params;
    size_t *param_offset, *param_bytes, params_bytes;
    uint64_t serial;                /* no two kernels of the process have the same */
    _Atomic uint32_t ready_devices; /* bit mask: its variables have their memory there */
};

struct vm_module {
    struct ptx_module *ptx;
    struct vm_kernel **kernels;
    int32_t num_kernels;
    struct ptx_arena arena;
    uint8_t **storage[VM_MAX_DEVICES]; /* [num vars of the module] once the device uses it */
    void *lock;
};

/* Address of a module's variable on a device, NULL when it has none. Allocates at the first use. */
uint8_t *vm_variable_address(const struct vm_module *m, const struct ptx_variable *v,
                             int32_t device);

/* ---- running --------------------------------------------------------------------------------- */

/* What the registers that are filled once for all blocks depend on, and the size of a block. */
struct vm_shape {
    uint64_t kernel; /* serial */
    const struct vm_arch *arch;
    size_t dynamic_shared;
    uint32_t grid[3], block[3];
    int32_t device;
    bool races;
};

struct vm_grid {
    struct vm_launch launch;
    struct vm_shape shape; /* its padding is zero, too */
    const struct vm_kernel *kernel;
    uint64_t num_blocks;
    _Atomic uint64_t next_block, blocks_left;
    _Atomic int result;               /* enum vm_result; the first fault */
    _Atomic uint64_t progress;        /* counts what a spinning block of it may wait for */
    struct vm_race *race;             /* NULL: races are not looked for */
    uint32_t num_warps, shared_bytes; /* of a block, with gaps */
    uint64_t seed;                    /* of random schedules */
    const uint8_t *params;
    bool count_banks; /* bank conflicts of shared memory */
    _Atomic uint64_t lane_instructions, bank_conflicts;
};

struct vm_range { /* an allocation that a memory instruction met last */
    uintptr_t base, end;
};

enum { VM_RANGE_CACHE = 64, VM_BARRIERS = 16 };

/* The contexts of a worker that hold blocks of its grid. */
struct vm_queue {
    struct vm_block *stalled, *last; /* in the order of their turns */
    struct vm_block *running;        /* the one that a fault interrupts */
    int32_t contexts;
    int32_t idle;           /* times that a block gave way since the grid made progress */
    uint64_t grid_progress; /* at the last time that a block gave way, as the next three are */
    uint64_t progress;      /* of all grids */
    uint64_t stores, clock_reads;
    int64_t since_ns;   /* when all grids had that progress first */
    int64_t stalled_ns; /* when the runtime was last told that the grid only polls */
};

/* What a thread of the host needs to execute blocks. Workers outlive their grids, so that a launch
 * allocates nothing. */
struct vm_worker {
    struct vm_worker *next; /* among those without a grid */
    struct vm_grid *grid;
    jmp_buf fault;
    struct vm_queue queue;
    struct vm_block *idle; /* contexts that are ready for a block of the grid */
    struct vm_block *kept; /* contexts of earlier grids, the last one used first */
    int32_t num_kept;
    struct ptxvm_counters counters; /* of the grid */
    uint64_t stores, clock_reads;   /* instructions, ever: what tells loops that wait from others */
    struct vm_range ranges[VM_RANGE_CACHE];
    uint32_t epoch, peers; /* of memory and of the launch, when the ranges were right */
    int32_t device;
};

enum vm_wait { VM_RUNNING, VM_AT_COLLECTIVE, VM_AT_BARRIER };

/* A cp.async on its way. */
struct vm_copy {
    const uint8_t *from;
    uint32_t to; /* offset in shared memory */
    uint32_t group;
    uint8_t lane, bytes, from_bytes; /* the rest is zero */
    uint32_t where;
};

struct vm_warp {
    uint8_t *r;                     /* register file */
    uint32_t pc;                    /* of the lanes in active */
    uint32_t limit;                 /* active runs while pc < limit */
    uint32_t active;                /* the group that runs; 0: one has to be chosen */
    uint32_t running, exited, live; /* lanes: able to run; ended; that exist */
    uint32_t polled;                /* a poll of memory by this warp since the last look */
    uint32_t avoid;                 /* lanes that poll in a loop: the others go first */
    int64_t steps;                  /* instructions since it last gave way to other warps */
    uint32_t index;
    struct vm_block *block;
    uint8_t *local;            /* [32][local_bytes] */
    uint32_t lane_pc[VM_WARP]; /* of lanes that are not in active */
    uint8_t wait[VM_WARP];
    uint32_t wait_mask[VM_WARP]; /* members of the collective that a lane waits for */
    uint8_t wait_barrier[VM_WARP];
    struct vm_copy *copies;
    int32_t num_copies, cap_copies;
    uint32_t copy_group[VM_WARP]; /* the group that a lane's next cp.async belongs to */
};

struct vm_barrier {
    uint32_t arrived, expected; /* threads */
    uint32_t where;             /* instruction of the first that came; valid while arrived */
    bool counted;               /* an explicit number of threads */
    bool reduces;               /* some thread wants a result */
    uint32_t popc, all, any;    /* bar.red: how many, all, any of the predicates so far */
    uint32_t lanes[VM_WARP];    /* who has arrived, by warp */
};

/* vm_inst.op of an instruction that arrives at a barrier. */
enum vm_barrier_op { VM_BAR_SYNC, VM_BAR_ARRIVE, VM_BAR_POPC, VM_BAR_AND, VM_BAR_OR };

struct vm_block {
    struct vm_grid *grid;
    struct vm_worker *worker;
    struct vm_block *next;
    struct vm_shape shape; /* that it is made for */
    uint8_t *memory;       /* what the next three and the warps' registers lie in; owned */
    size_t memory_bytes;
    uint32_t ctaid[3];
    uint64_t linear;
    uint8_t *shared, *shadow; /* [grid->shared_bytes] */
    struct vm_warp *warps;    /* [num_warps] */
    uint32_t num_warps;
    uint32_t num_threads, exited_threads;
    struct vm_barrier barriers[VM_BARRIERS];
    uint64_t random;
    struct vm_race_block *race;
    bool stalled; /* it gave way to other blocks */
};

/* State of a byte of shared memory. */
enum { VM_SH_EXISTS = 1, VM_SH_WRITTEN = 2, VM_SH_SETTLED = 4, VM_SH_OK = 7 };
#define VM_SH_BYTES(state) ((uint64_t)(state)*0x0101010101010101u) /* of eight bytes */
#define VM_SH_ALL_OK       VM_SH_BYTES(VM_SH_OK)

/* ---- report.c -------------------------------------------------------------------------------- */

/* Reports what a lane does wrong, ends the grid and does not return. */
_Noreturn void vm_fault(struct vm_warp *w, const struct vm_inst *i, int lane, enum vm_result result,
                        const char *fmt, ...) __attribute__((format(printf, 5, 6), cold));
void vm_count(const struct ptxvm_counters *c);
const char *vm_demangle(const char *name, char *out, size_t out_bytes);
/* The name of a variable as its function knows it. */
struct ptx_text vm_variable_name(struct ptx_text name);
/* "file:line" of an instruction. */
const char *vm_place(const struct vm_kernel *k, uint32_t where, char *out, size_t bytes);
int32_t vm_source_line(const struct vm_kernel *k, uint32_t where);
void vm_thread_index(const struct vm_block *b, uint32_t linear, uint32_t out[3]);

/* ---- memory.c -------------------------------------------------------------------------------- */

/* Changes whenever an allocation comes or goes. */
uint32_t vm_memory_epoch(void);
/* protect.c: from now on a touch of device memory by the host is reported. */
void vm_protect_start(void);
/* The allocation nearest to an address that none holds. */
bool vm_find_near(uintptr_t p, struct vm_allocation *out);

/* ---- launch.c -------------------------------------------------------------------------------- */

/* Something happened that a block of the grid, or of another one, may have waited for. */
void vm_advance(struct vm_grid *g);

/* ---- block.c: control flow ------------------------------------------------------------------- */

/* While a handler runs, w->pc is the instruction after it; i->where is its own index in the code.
 */

/* The lanes of m, which are active, leave the running group: each continues at pc. */
void vm_scatter(struct vm_warp *w, uint32_t m, uint32_t pc);
/* Ends the run of the active group; lanes not yet scattered continue at w->pc. */
void vm_reschedule(struct vm_warp *w);
void vm_exit_lanes(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* A collective: true when all lanes that the masks name have come, and *m is then the group that
 * executes it, else the lanes of m wait. members: [32] masks, NULL for all 32 lanes. After true
 * the lanes of *m run on together once the handler returns. A group has one mask; lanes with other
 * masks execute the instruction after it. Lanes that have ended are excused, but not with NULL. */
bool vm_collect(struct vm_warp *w, const struct vm_inst *i, uint32_t *m, const uint32_t *members);
enum vm_progress { VM_DONE, VM_YIELD };
/* Runs until every thread has ended (or the grid has: DONE), or only polling threads are left. */
enum vm_progress vm_block_run(struct vm_block *b);
uint64_t vm_random(uint64_t *state);

/* ---- context.c ------------------------------------------------------------------------------- */

/* A context for the blocks of the worker's grid: one that it kept of a grid of the same shape, or
 * the memory of another one. */
struct vm_block *vm_block_take(struct vm_worker *worker);
/* Gives it back when the grid has no more use for it. */
void vm_block_keep(struct vm_worker *worker, struct vm_block *b);
/* Makes it ready for a block. */
void vm_block_start(struct vm_block *b, uint64_t linear);

/* ---- workers.c ------------------------------------------------------------------------------- */

/* Starts the threads of the pool, PTXVM_THREADS - 1 of them, where they do not run yet. */
void vm_workers_start(void);
/* Calls work on this thread and on up to count - 1 threads of the pool that have nothing else to
 * do, each with a worker for the grid, and returns when all of them have. */
void vm_workers_run(struct vm_grid *g, int32_t count, void (*work)(struct vm_worker *worker));

/* ---- barrier.c ------------------------------------------------------------------------------- */

/* count: threads, a multiple of 32; 0: all of the block. */
void vm_barrier_arrive(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t id,
                       uint32_t count, bool wait);
/* A thread must not end while others wait for it. */
void vm_barrier_check_exit(struct vm_warp *w, const struct vm_inst *i, uint32_t m);
/* Reports that no thread of the block can run. */
_Noreturn void vm_deadlock(struct vm_block *b);

/* ---- copies.c: cp.async ---------------------------------------------------------------------- */

void vm_copies_check_exit(struct vm_warp *w, const struct vm_inst *i, uint32_t m);

/* ---- race.c ---------------------------------------------------------------------------------- */

struct vm_race *vm_race_create(void);
void vm_race_destroy(struct vm_race *r);
struct vm_race_block *vm_race_block_create(uint32_t num_warps, uint32_t shared_bytes);
void vm_race_block_destroy(struct vm_race_block *b); /* NULL is allowed */
/* Before the first block of a grid, and before each. */
void vm_race_block_attach(struct vm_race_block *b, struct vm_race *r);
void vm_race_block_start(struct vm_block *b);
/* One access by a lane; shared: address is an offset. */
void vm_race_access(struct vm_warp *w, const struct vm_inst *i, int lane, bool shared,
                    uint64_t address, uint32_t bytes, bool write, bool atomic);
void vm_race_accesses(struct vm_warp *w, const struct vm_inst *i, uint32_t m, bool shared,
                      const uint64_t *address, uint32_t bytes, bool write, bool atomic);
/* Orders the lanes of m among each other. */
void vm_race_warp_sync(struct vm_warp *w, uint32_t m);
/* lanes[warp]: who takes part. */
void vm_race_block_sync(struct vm_block *b, const uint32_t *lanes);
void vm_race_order(struct vm_warp *w, uint32_t m, const uint64_t *address, bool shared,
                   uint32_t order);
void vm_race_fence(struct vm_warp *w, uint32_t m);

/* ---- registers ------------------------------------------------------------------------------- */

#define VM_REG(w, offset, T) ((T *)__builtin_assume_aligned((w)->r + (offset), 32))
#define VM_PRED(w, offset)   (*(uint32_t *)(void *)((w)->r + (offset)))
#define VM_LANES             for (int l = 0; l < VM_WARP; l++)
/* Lanes never depend on each other, and registers of different widths never share a place. */
#define VM_SIMD _Pragma("GCC ivdep")

static inline void vm_set_pred(struct vm_warp *w, uint32_t offset, uint32_t m, uint32_t value) {
    uint32_t *p = &VM_PRED(w, offset);
    *p = (*p & ~m) | (value & m);
}
static inline int vm_first(uint32_t m) {
    return __builtin_ctz(m);
}
