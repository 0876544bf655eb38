/* Launches: the blocks of a grid, and how a worker executes them.
 *
 * A worker takes blocks by a counter. A block whose threads only poll memory gives way: its worker
 * starts or continues others, up to MAX_CONTEXTS at once, and comes back to it.
 *
 * Grids of several devices may wait for each other, and for the host. Progress is what one of them
 * may have waited for: a block that executed something other than a loop that polls, or stored to
 * memory; a block that ended; an operation of a stream that was pushed or is done. A loop that
 * polls and reads a clock has a time limit of its own, so it counts as progress too. When a grid
 * has polled for PTXVM_SPIN seconds without any progress in the process, it is a deadlock.
 */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/ptxvm/settings.h"
#include "tests/ptxvm/vm.h"

enum {
    MAX_CONTEXTS = 64,
    MAX_WORKERS = 64,
    LARGE_GRID_BLOCKS = 4,
    LARGE_GRID_THREADS = 512,
    RED_ZONE = 128,
    DEFAULT_SHARED = 48 << 10,
    IDLE_ROUNDS = 32,       /* turns of every context before a grid that only polls sleeps */
    IDLE_SLEEP_NS = 20000,  /* then, between its turns */
    STALL_CALL_NS = 200000, /* between calls to vm_on_stall's function */
};

static _Atomic uint64_t all_progress;
static void (*_Atomic stall_function)(void);

void vm_on_stall(void (*fn)(void)) {
    atomic_store(&stall_function, fn);
}

void vm_note_progress(void) {
    atomic_fetch_add_explicit(&all_progress, 1, memory_order_relaxed);
}

void vm_advance(struct vm_grid *g) {
    atomic_fetch_add_explicit(&g->progress, 1, memory_order_relaxed);
    vm_note_progress();
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* ---- can it be launched?
 * --------------------------------------------------------------------------- */

/* Reports why a launch is not possible; false. */
__attribute__((format(printf, 2, 3))) static bool refuse(const struct vm_launch *l, const char *fmt,
                                                         ...) {
    char name[512], why[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    vm_report("launch of %s: %s", vm_demangle(l->kernel->name, name, sizeof name), why);
    return false;
}

static bool check_grid(const struct vm_launch *l) {
    const uint32_t *g = l->grid, *b = l->block;
    uint64_t threads = (uint64_t)b[0] * b[1] * b[2];
    if (!g[0] || !g[1] || !g[2] || g[0] > INT32_MAX || g[1] > 65535 || g[2] > 65535)
        return refuse(l, "a grid of %u x %u x %u blocks is not possible", g[0], g[1], g[2]);
    if (!threads || threads > 1024 || b[0] > 1024 || b[1] > 1024 || b[2] > 64)
        return refuse(l, "blocks of %u x %u x %u threads are not possible", b[0], b[1], b[2]);
    if (threads > (uint64_t)l->kernel->max_threads)
        return refuse(l, "blocks of %llu threads, but its __launch_bounds__ allow %d",
                      (unsigned long long)threads, l->kernel->max_threads);
    return true;
}

static bool check_shared(const struct vm_launch *l) {
    const struct vm_kernel *k = l->kernel;
    size_t optin = (size_t)l->arch->shared_per_block_optin;
    if (k->static_shared > DEFAULT_SHARED)
        return refuse(l, "%zu bytes of static shared memory, more than the %d that are possible",
                      k->static_shared, DEFAULT_SHARED);
    if (l->dynamic_shared > l->dynamic_shared_limit)
        return refuse(l,
                      "%zu bytes of dynamic shared memory, but %zu are allowed; "
                      "cudaFuncSetAttribute allows more",
                      l->dynamic_shared, l->dynamic_shared_limit);
    if (k->static_shared + l->dynamic_shared > optin)
        return refuse(l, "%zu + %zu bytes of shared memory, but %s has %zu", k->static_shared,
                      l->dynamic_shared, l->arch->name, optin);
    return true;
}

enum vm_result vm_check_launch(const struct vm_launch *l) {
    return check_grid(l) && check_shared(l) ? VM_OK : VM_BAD_LAUNCH;
}

/* ---- the blocks of a worker
 * ------------------------------------------------------------------------- */

/* The n-th block to run, by the schedule. */
static uint64_t block_at(const struct vm_grid *g, uint64_t n) {
    switch (vm_settings()->schedule) {
    case VM_SCHEDULE_MIN:
        return n;
    case VM_SCHEDULE_REVERSE:
        return g->num_blocks - 1 - n;
    case VM_SCHEDULE_RANDOM:
        break;
    }
    /* A prime that does not divide the count makes a permutation of the blocks. */
    static const uint32_t primes[] = {2654435761u, 40503u * 2 + 1, 104729, 15485863, 32452843};
    uint64_t start = g->seed % g->num_blocks;
    for (size_t i = 0; i < sizeof primes / sizeof *primes; i++)
        if (g->num_blocks % primes[i])
            return (start + n * primes[i]) % g->num_blocks;
    return n;
}

static void put_last(struct vm_queue *q, struct vm_block *b) {
    b->next = NULL;
    if (q->stalled)
        q->last->next = b;
    else
        q->stalled = b;
    q->last = b;
}

static struct vm_block *new_block(struct vm_worker *worker, struct vm_queue *q) {
    struct vm_grid *g = worker->grid;
    if (atomic_load(&g->next_block) >= g->num_blocks ||
        (!worker->idle && q->contexts == MAX_CONTEXTS))
        return NULL;
    uint64_t n = atomic_fetch_add(&g->next_block, 1);
    if (n >= g->num_blocks)
        return NULL;
    struct vm_block *b = worker->idle;
    if (b) {
        worker->idle = b->next;
    } else {
        b = vm_block_take(worker);
        q->contexts++;
    }
    vm_block_start(b, block_at(g, n));
    return b;
}

static struct vm_block *next_block(struct vm_worker *worker, struct vm_queue *q) {
    struct vm_block *b = new_block(worker, q);
    if (b || !q->stalled)
        return b;
    b = q->stalled;
    q->stalled = b->next;
    return b;
}

/* Notes what the blocks of the worker have done since one of them last gave way. */
static void note_turn(struct vm_worker *worker, struct vm_queue *q) {
    struct vm_grid *g = worker->grid;
    if (worker->stores != q->stores)
        vm_advance(g);
    else if (worker->clock_reads != q->clock_reads)
        vm_note_progress();
    q->stores = worker->stores;
    q->clock_reads = worker->clock_reads;
    uint64_t progress = atomic_load(&g->progress);
    q->idle = progress == q->grid_progress ? q->idle + 1 : 0;
    q->grid_progress = progress;
}

/* A lane that still exists, for the report of a block that spins. */
static _Noreturn void report_spin(struct vm_block *b) {
    struct vm_grid *g = b->grid;
    uint32_t n = 0;
    while (!b->warps[n].running)
        n++;
    struct vm_warp *w = &b->warps[n];
    int lane = vm_first(w->running);
    vm_fault(w, &g->kernel->code[w->lane_pc[lane]], lane, VM_FAULT,
             "deadlock: the grid has polled memory for %d seconds without progress of any device "
             "(%llu of %llu blocks are left)",
             vm_settings()->spin_seconds, (unsigned long long)atomic_load(&g->blocks_left),
             (unsigned long long)g->num_blocks);
}

static void check_spin(struct vm_block *b, struct vm_queue *q) {
    uint64_t progress = atomic_load(&all_progress);
    int64_t now = now_ns();
    if (progress != q->progress || !q->since_ns) {
        q->progress = progress;
        q->since_ns = now;
    } else if (now - q->since_ns >= vm_settings()->spin_seconds * (int64_t)1000000000) {
        report_spin(b);
    }
    void (*stalled)(void) = atomic_load(&stall_function);
    if (stalled && q->idle > q->contexts && now - q->stalled_ns >= STALL_CALL_NS) {
        stalled();
        q->stalled_ns = now;
    }
}

/* Lets other threads of the host run: at once while the grid goes on, with a pause when it waits.
 */
static void give_way(const struct vm_queue *q) {
    if (q->idle < IDLE_ROUNDS * q->contexts)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = IDLE_SLEEP_NS}, NULL);
}

static void run_block(struct vm_worker *worker, struct vm_queue *q, struct vm_block *b) {
    struct vm_grid *g = worker->grid;
    q->running = b;
    enum vm_progress p = vm_block_run(b);
    if (p == VM_YIELD) {
        b->stalled = true;
        note_turn(worker, q);
        check_spin(b, q);
        put_last(q, b);
        give_way(q);
    } else {
        b->next = worker->idle;
        worker->idle = b;
        atomic_fetch_sub(&g->blocks_left, 1);
        vm_advance(g);
    }
    q->running = NULL;
}

static void keep_all(struct vm_worker *worker, struct vm_block *b) {
    for (struct vm_block *next; b; b = next) {
        next = b->next;
        vm_block_keep(worker, b);
    }
}

static void work(struct vm_worker *worker) {
    struct vm_queue *q = &worker->queue;
    if (!setjmp(worker->fault)) {
        while (atomic_load(&worker->grid->result) == VM_OK) {
            struct vm_block *b = next_block(worker, q);
            if (!b)
                break;
            run_block(worker, q, b);
        }
    }
    if (q->running)
        vm_block_keep(worker, q->running);
    keep_all(worker, q->stalled);
    keep_all(worker, worker->idle);
    worker->idle = NULL;
    atomic_fetch_add(&worker->grid->lane_instructions, worker->counters.lane_instructions);
    atomic_fetch_add(&worker->grid->bank_conflicts, worker->counters.bank_conflicts);
    vm_count(&worker->counters);
}

/* ---- grids
 * ----------------------------------------------------------------------------------------- */

/* Races are looked for in one order of blocks, so that a report can be had again. */
static int32_t count_workers(const struct vm_grid *g) {
    uint64_t n = (uint64_t)vm_settings()->threads;
    uint64_t threads = g->num_blocks * g->num_warps * VM_WARP;
    if (g->race || g->num_blocks < LARGE_GRID_BLOCKS || threads < LARGE_GRID_THREADS)
        return 1;
    n = n < MAX_WORKERS ? n : MAX_WORKERS;
    return (int32_t)(n < g->num_blocks ? n : g->num_blocks);
}

/* Every variable that the kernel uses has its memory before the first block asks for it. */
static bool have_variables(const struct vm_launch *l) {
    /* Only what says that this has been looked at is changed. */
    struct vm_kernel *k = (struct vm_kernel *)(uintptr_t)l->kernel;
    uint32_t bit = 1u << l->device;
    if (atomic_load(&k->ready_devices) & bit)
        return true;
    for (int32_t i = 0; i < k->num_constants; i++) {
        const struct ptx_variable *v = k->constants[i].var;
        if (!v || v->space == PTX_SHARED || vm_variable_address(k->module, v, l->device))
            continue;
        return refuse(l, "variable %.*s has no memory on device %d", v->name.len, v->name.s,
                      l->device);
    }
    atomic_fetch_or(&k->ready_devices, bit);
    return true;
}

static struct vm_shape shape_of(const struct vm_launch *l) {
    struct vm_shape s;
    memset(&s, 0, sizeof s);
    s.kernel = l->kernel->serial;
    s.arch = l->arch;
    s.dynamic_shared = l->dynamic_shared;
    memcpy(s.grid, l->grid, sizeof s.grid);
    memcpy(s.block, l->block, sizeof s.block);
    s.device = l->device;
    s.races = vm_settings()->races;
    return s;
}

static void trace(const struct vm_grid *g, int64_t start_ns) {
    const struct vm_launch *l = &g->launch;
    char name[512], conflicts[64] = "";
    if (g->count_banks)
        snprintf(conflicts, sizeof conflicts, ", %llu bank conflicts",
                 (unsigned long long)atomic_load(&g->bank_conflicts));
    fprintf(stderr,
            "ptxvm: device %d %s <<<(%u,%u,%u), (%u,%u,%u), %zu>>> %.3f ms, %llu lane "
            "instructions%s\n",
            l->device, vm_demangle(l->kernel->name, name, sizeof name), l->grid[0], l->grid[1],
            l->grid[2], l->block[0], l->block[1], l->block[2], l->dynamic_shared,
            (double)(now_ns() - start_ns) * 1e-6,
            (unsigned long long)atomic_load(&g->lane_instructions), conflicts);
}

enum vm_result vm_run(const struct vm_launch *l) {
    const struct vm_kernel *k = l->kernel;
    struct vm_grid g = {.launch = *l, .shape = shape_of(l), .kernel = k, .params = l->params};
    int64_t start_ns = now_ns();
    enum vm_result checked = vm_check_launch(l);
    if (checked != VM_OK)
        return checked;
    if (!have_variables(l))
        return VM_BAD_LAUNCH;
    g.num_blocks = (uint64_t)l->grid[0] * l->grid[1] * l->grid[2];
    g.blocks_left = g.num_blocks;
    g.num_warps = (l->block[0] * l->block[1] * l->block[2] + VM_WARP - 1) / VM_WARP;
    g.shared_bytes = (uint32_t)(k->dynamic_offset + l->dynamic_shared + RED_ZONE);
    g.count_banks = vm_settings()->banks;
    g.seed = vm_settings()->schedule_seed * 0x9e3779b97f4a7c15u + 1;
    vm_access_begin();
    if (vm_settings()->races)
        g.race = vm_race_create();
    vm_workers_run(&g, count_workers(&g), work);
    if (g.race)
        vm_race_destroy(g.race);
    vm_access_end();
    vm_count(&(struct ptxvm_counters){.launches = 1});
    if (vm_settings()->trace)
        trace(&g, start_ns);
    return (enum vm_result)atomic_load(&g.result);
}
