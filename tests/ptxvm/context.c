/* Contexts of blocks: registers, shared and local memory of a block while it runs.
 *
 * A worker uses a context for one block after another. What is the same for all blocks of a grid
 * (constants, thread indices) is filled in once; everything else starts as 0xff bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/ptxvm/vm.h"

static void *zeroed(size_t bytes) {
    bytes = (bytes + 63) & ~(size_t)63;
    void *p = aligned_alloc(64, bytes ? bytes : 64);
    if (!p) {
        vm_report("out of host memory: %zu bytes for a block", bytes);
        abort();
    }
    return memset(p, 0, bytes);
}

/* ---- registers that are filled before a warp starts
 * -------------------------------------------------- */

static bool changes_with_block(const struct vm_constant *c) {
    return c->is_special &&
           ((c->special >= VM_CTAID_X && c->special <= VM_CTAID_Z) || c->special == VM_SMID);
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
    for (uint32_t l = 0; l < VM_WARP; l++) {
        if (c->is_special)
            value = special_value(w, c->special, l);
        memcpy(w->r + c->offset + l * c->bytes, &value, c->bytes);
    }
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

static void create_warp(struct vm_block *b, uint32_t index) {
    struct vm_warp *w = &b->warps[index];
    const struct vm_kernel *k = b->grid->kernel;
    uint32_t left = b->num_threads - index * VM_WARP;
    w->block = b;
    w->index = index;
    w->live = left >= VM_WARP ? VM_ALL : (1u << left) - 1;
    w->r = zeroed(k->register_bytes);
    w->local = zeroed(k->local_bytes * VM_WARP);
    for (int32_t i = 0; i < k->num_constants; i++)
        fill(w, &k->constants[i]);
}

struct vm_block *vm_block_create(struct vm_worker *worker) {
    struct vm_grid *g = worker->grid;
    struct vm_block *b = zeroed(sizeof *b);
    const uint32_t *n = g->launch.block;
    b->grid = g;
    b->worker = worker;
    b->num_threads = n[0] * n[1] * n[2];
    b->shared = zeroed(g->shared_bytes);
    b->shadow = zeroed(g->shared_bytes);
    b->warps = zeroed(g->num_warps * sizeof *b->warps);
    b->count_conflicts = true;
    b->race = g->race ? vm_race_block_create(g) : NULL;
    for (uint32_t i = 0; i < g->num_warps; i++)
        create_warp(b, i);
    return b;
}

void vm_block_destroy(struct vm_block *b) {
    for (uint32_t i = 0; i < b->grid->num_warps; i++) {
        free(b->warps[i].r);
        free(b->warps[i].local);
        free(b->warps[i].copies);
    }
    if (b->race)
        vm_race_block_destroy(b->race);
    free(b->warps);
    free(b->shared);
    free(b->shadow);
    free(b);
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
