/* Contexts of blocks: registers, shared and local memory of a block while it runs.
 *
 * A worker uses a context for one block after another. What is the same for all blocks of a grid
 * (constants, thread indices) is filled in once; everything else starts as 0xff bytes. Contexts are
 * kept for later grids of the same shape, since a model launches the same kernels at every step.
 */
#include <string.h>

#include "tests/ptxvm/rt_alloc.h"
#include "tests/ptxvm/vm.h"

/* ---- registers that are filled before a warp starts
 * -------------------------------------------------- */

static bool changes_with_block(const struct vm_constant *c) {
    return c->is_special &&
           ((c->special >= VM_CTAID_X && c->special <= VM_CTAID_Z) || c->special == VM_SMID);
}

static bool changes_with_lane(enum vm_special s) {
    return s <= VM_TID_Z || s == VM_LANEID || (s >= VM_LANEMASK_EQ && s <= VM_LANEMASK_GT);
}

static uint64_t special_value(const struct vm_warp *w, enum vm_special s, uint32_t l) {
    const struct vm_block *b = w->block;
    const struct vm_launch *launch = &b->grid->launch;
    uint32_t t[3], bit = 1u << l;
    if (s <= VM_TID_Z)
        vm_thread_index(b, w->index * VM_WARP + l, t);
    switch (s) {
    case VM_TID_X:
    case VM_TID_Y:
    case VM_TID_Z:
        return t[s - VM_TID_X];
    case VM_NTID_X:
    case VM_NTID_Y:
    case VM_NTID_Z:
        return launch->block[s - VM_NTID_X];
    case VM_CTAID_X:
    case VM_CTAID_Y:
    case VM_CTAID_Z:
        return b->ctaid[s - VM_CTAID_X];
    case VM_NCTAID_X:
    case VM_NCTAID_Y:
    case VM_NCTAID_Z:
        return launch->grid[s - VM_NCTAID_X];
    case VM_LANEID:
        return l;
    case VM_WARPID:
        return w->index;
    case VM_NWARPID:
        return b->grid->num_warps;
    case VM_SMID:
        return b->linear % (uint32_t)launch->arch->num_sms;
    case VM_NSMID:
        return (uint32_t)launch->arch->num_sms;
    case VM_LANEMASK_EQ:
        return bit;
    case VM_LANEMASK_LE:
        return bit | (bit - 1);
    case VM_LANEMASK_LT:
        return bit - 1;
    case VM_LANEMASK_GE:
        return ~(bit - 1);
    case VM_LANEMASK_GT:
        return ~(bit | (bit - 1));
    case VM_DYNAMIC_SMEM:
        return launch->dynamic_shared;
    case VM_TOTAL_SMEM:
        return b->grid->kernel->static_shared + launch->dynamic_shared;
    case VM_ZERO:
        return 0;
    case VM_GRIDID:
    case VM_ONE:
        return 1;
    case VM_TRUE:
        return UINT64_MAX;
    }
    return 0;
}

static uint64_t variable_value(const struct vm_grid *g, const struct ptx_variable *v) {
    const struct vm_kernel *k = g->kernel;
    for (int32_t i = 0; v->space == PTX_SHARED && i < k->num_shared; i++)
        if (k->shared[i].var == v)
            return k->shared[i].offset;
    return (uintptr_t)vm_variable_address(k->module, v, g->launch.device);
}

static void fill(struct vm_warp *w, const struct vm_constant *c) {
    uint64_t value = c->value;
    if (c->var)
        value += variable_value(w->block->grid, c->var);
    if (!c->bytes) {
        VM_PRED(w, c->offset) = c->is_special ? (uint32_t)special_value(w, c->special, 0)
                                : value       ? VM_ALL
                                              : 0;
        return;
    }
    uint64_t values[VM_WARP];
    if (c->is_special && changes_with_lane(c->special)) {
        VM_LANES values[l] = special_value(w, c->special, (uint32_t)l);
    } else {
        value = c->is_special ? special_value(w, c->special, 0) : value;
        VM_LANES values[l] = value;
    }
    if (c->bytes == 8)
        VM_LANES VM_REG(w, c->offset, uint64_t)[l] = values[l];
    else if (c->bytes == 4)
        VM_LANES VM_REG(w, c->offset, uint32_t)[l] = (uint32_t)values[l];
    else
        VM_LANES VM_REG(w, c->offset, uint16_t)[l] = (uint16_t)values[l];
}

/* ---- shared memory
 * ----------------------------------------------------------------------------------- */

static void start_shared(struct vm_block *b) {
    const struct vm_grid *g = b->grid;
    const struct vm_kernel *k = g->kernel;
    memset(b->shared, 0xff, g->shared_bytes);
    memset(b->shadow, 0, g->shared_bytes);
    for (int32_t i = 0; i < k->num_shared; i++)
        if (!k->shared[i].var->external)
            memset(b->shadow + k->shared[i].offset, VM_SH_EXISTS | VM_SH_SETTLED,
                   k->shared[i].bytes);
    memset(b->shadow + k->dynamic_offset, VM_SH_EXISTS | VM_SH_SETTLED, g->launch.dynamic_shared);
}

/* ---- contexts
 * ---------------------------------------------------------------------------------------- */

enum { MAX_KEPT = 32 };

static size_t rounded(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

static void shape_warp(struct vm_block *b, uint32_t index, uint8_t *memory) {
    struct vm_warp *w = &b->warps[index];
    const struct vm_kernel *k = b->grid->kernel;
    uint32_t left = b->num_threads - index * VM_WARP;
    w->block = b;
    w->index = index;
    w->live = left >= VM_WARP ? VM_ALL : (1u << left) - 1;
    w->r = memory;
    w->local = memory + rounded(k->register_bytes);
    memset(memory, 0, k->register_bytes);
    for (int32_t i = 0; i < k->num_constants; i++)
        fill(w, &k->constants[i]);
}

static void release(struct vm_block *b) {
    for (uint32_t i = 0; i < b->num_warps; i++)
        rt_free(b->warps[i].copies);
    vm_race_block_destroy(b->race);
    b->race = NULL;
    b->num_warps = 0;
}

/* Makes the context one for the grid of its worker. */
static void shape(struct vm_block *b) {
    const struct vm_grid *g = b->grid;
    const struct vm_kernel *k = g->kernel;
    const uint32_t *n = g->launch.block;
    size_t warps = rounded(g->num_warps * sizeof *b->warps), shared = rounded(g->shared_bytes);
    size_t of_warp = rounded(k->register_bytes) + rounded(k->local_bytes * VM_WARP);
    size_t bytes = warps + 2 * shared + g->num_warps * of_warp;
    release(b);
    if (bytes > b->memory_bytes) {
        rt_free(b->memory);
        b->memory = rt_calloc_aligned(bytes);
        b->memory_bytes = bytes;
    }
    b->shape = g->shape;
    b->num_warps = g->num_warps;
    b->num_threads = n[0] * n[1] * n[2];
    b->warps = (struct vm_warp *)(void *)b->memory;
    b->shared = b->memory + warps;
    b->shadow = b->shared + shared;
    memset(b->warps, 0, warps);
    for (uint32_t i = 0; i < g->num_warps; i++)
        shape_warp(b, i, b->shadow + shared + i * of_warp);
    if (g->race)
        b->race = vm_race_block_create(g->num_warps, g->shared_bytes);
}

/* Takes one of the grid's shape off the list, or else the last when there are enough. */
static struct vm_block *find_kept(struct vm_worker *worker) {
    struct vm_block **at = &worker->kept;
    for (; *at; at = &(*at)->next) {
        bool fits = !memcmp(&(*at)->shape, &worker->grid->shape, sizeof worker->grid->shape);
        if (fits || (!(*at)->next && worker->num_kept >= MAX_KEPT))
            break;
    }
    struct vm_block *b = *at;
    if (b) {
        *at = b->next;
        worker->num_kept--;
    }
    return b;
}

struct vm_block *vm_block_take(struct vm_worker *worker) {
    struct vm_grid *g = worker->grid;
    struct vm_block *b = find_kept(worker);
    if (!b)
        b = rt_calloc(sizeof *b);
    b->grid = g;
    b->worker = worker;
    if (memcmp(&b->shape, &g->shape, sizeof b->shape))
        shape(b);
    if (g->race)
        vm_race_block_attach(b->race, g->race);
    return b;
}

/* More than MAX_KEPT only while the blocks of one grid wait for each other. */
void vm_block_keep(struct vm_worker *worker, struct vm_block *b) {
    b->grid = NULL;
    if (worker->num_kept >= 2 * MAX_KEPT) {
        release(b);
        rt_free(b->memory);
        rt_free(b);
        return;
    }
    b->next = worker->kept;
    worker->kept = b;
    worker->num_kept++;
}

static void start_warp(struct vm_warp *w) {
    const struct vm_kernel *k = w->block->grid->kernel;
    /* Registers of the function come first, then what create_warp has filled. */
    memset(w->r, 0xff, k->written_bytes);
    memset(w->local, 0xff, k->local_bytes * VM_WARP);
    for (int32_t i = 0; i < k->num_constants; i++)
        if (changes_with_block(&k->constants[i]))
            fill(w, &k->constants[i]);
    w->pc = w->limit = w->active = w->exited = w->polled = w->avoid = 0;
    w->steps = 0;
    w->running = w->live;
    w->num_copies = 0;
    memset(w->wait, VM_RUNNING, sizeof w->wait);
    memset(w->copy_group, 0, sizeof w->copy_group);
    VM_LANES w->lane_pc[l] = k->entry;
}

void vm_block_start(struct vm_block *b, uint64_t linear) {
    const uint32_t *n = b->grid->launch.grid;
    b->linear = linear;
    b->ctaid[0] = (uint32_t)(linear % n[0]);
    b->ctaid[1] = (uint32_t)(linear / n[0] % n[1]);
    b->ctaid[2] = (uint32_t)(linear / n[0] / n[1]);
    b->exited_threads = 0;
    b->stalled = false;
    b->random = b->grid->seed ^ linear * 0x9e3779b97f4a7c15u;
    memset(b->barriers, 0, sizeof b->barriers);
    for (uint32_t id = 0; id < VM_BARRIERS; id++)
        b->barriers[id].all = 1;
    start_shared(b);
    for (uint32_t i = 0; i < b->grid->num_warps; i++)
        start_warp(&b->warps[i]);
    if (b->race)
        vm_race_block_start(b);
}
