/* Barriers of a block (bar.sync, bar.arrive, bar.red), and the report of a deadlock.
 *
 * Threads arrive one by one, so that lanes of a warp that have diverged are seen. The GPU counts
 * whole warps: the lanes that the last warp of a block lacks arrive with its first lane.
 */
#include <stdio.h>

#include "tests/ptxvm/vm.h"

static uint32_t weight(const struct vm_warp *w, uint32_t m) {
    uint32_t missing = VM_WARP - (uint32_t)__builtin_popcount(w->live);
    return (uint32_t)__builtin_popcount(m) + (m & 1 ? missing : 0);
}

/* ---- arrival
 * --------------------------------------------------------------------------------------- */

static void check_arrival(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t id,
                          uint32_t expected, bool counted) {
    const struct vm_block *b = w->block;
    const struct vm_barrier *bar = &b->barriers[id];
    const struct vm_kernel *k = b->grid->kernel;
    char place[256];
    if (!counted && b->exited_threads)
        vm_fault(w, i, vm_first(m), VM_FAULT,
                 "barrier %u of the whole block after %u of its %u threads have ended", id,
                 b->exited_threads, b->num_threads);
    if (bar->arrived && (bar->expected != expected || bar->counted != counted))
        vm_fault(w, i, vm_first(m), VM_FAULT, "barrier %u of %u threads, but of %u threads at %s",
                 id, expected, bar->expected, vm_place(k, bar->where, place, sizeof place));
    if (bar->arrived && !counted && bar->where != i->where &&
        vm_source_line(k, bar->where) != vm_source_line(k, i->where))
        vm_fault(w, i, vm_first(m), VM_FAULT,
                 "divergent barrier %u: other threads of the block wait at %s", id,
                 vm_place(k, bar->where, place, sizeof place));
    if (bar->lanes[w->index] & m)
        vm_fault(w, i, vm_first(bar->lanes[w->index] & m), VM_FAULT,
                 "a thread arrives at barrier %u twice before the others have come", id);
    if (bar->arrived + weight(w, m) > expected)
        vm_fault(w, i, vm_first(m), VM_FAULT, "more threads arrive at barrier %u than its %u", id,
                 expected);
}

/* Gives bar.red's result to lanes that arrived by instruction i. */
static void give_result(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                        const struct vm_barrier *bar) {
    if (i->op == VM_BAR_POPC) {
        uint32_t *d = VM_REG(w, i->d, uint32_t);
        VM_LANES if (m >> l & 1) d[l] = bar->popc;
    } else if (i->op == VM_BAR_AND || i->op == VM_BAR_OR) {
        vm_set_pred(w, i->d, m, (i->op == VM_BAR_AND ? bar->all : bar->any) ? VM_ALL : 0);
    }
}

static void release(struct vm_block *b, uint32_t id) {
    struct vm_barrier *bar = &b->barriers[id];
    const struct vm_inst *code = b->grid->kernel->code;
    if (b->race)
        vm_race_block_sync(b, bar->lanes);
    for (uint32_t n = 0; n < b->grid->num_warps; n++) {
        struct vm_warp *w = &b->warps[n];
        uint32_t waiting = 0;
        VM_LANES waiting |= (uint32_t)(w->wait[l] == VM_AT_BARRIER && w->wait_barrier[l] == id)
                            << l;
        waiting &= bar->lanes[n];
        for (uint32_t left = bar->reduces ? waiting : 0; left; left &= left - 1)
            give_result(w, &code[w->lane_pc[vm_first(left)] - 1], left & -left, bar);
        VM_LANES w->wait[l] = (waiting >> l & 1) ? VM_RUNNING : w->wait[l];
        w->running |= waiting;
    }
    *bar = (struct vm_barrier){.all = 1};
}

void vm_barrier_arrive(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t id,
                       uint32_t count, bool wait) {
    struct vm_block *b = w->block;
    if (id >= VM_BARRIERS)
        vm_fault(w, i, vm_first(m), VM_FAULT, "there is no barrier %u; there are %d", id,
                 VM_BARRIERS);
    if (count % VM_WARP || count > 1024)
        vm_fault(w, i, vm_first(m), VM_FAULT,
                 "a barrier of %u threads; it has to be a multiple of 32, at most 1024", count);
    struct vm_barrier *bar = &b->barriers[id];
    uint32_t expected = count ? count : b->grid->num_warps * VM_WARP;
    check_arrival(w, i, m, id, expected, count != 0);
    if (!bar->arrived) {
        bar->where = i->where;
        bar->expected = expected;
        bar->counted = count != 0;
    }
    bar->arrived += weight(w, m);
    bar->lanes[w->index] |= m;
    bar->reduces |= i->op >= VM_BAR_POPC;
    if (wait) {
        VM_LANES w->wait[l] = (m >> l & 1) ? VM_AT_BARRIER : w->wait[l];
        VM_LANES w->wait_barrier[l] = (m >> l & 1) ? (uint8_t)id : w->wait_barrier[l];
        vm_scatter(w, m, i->where + 1);
        w->running &= ~m;
    }
    if (bar->arrived == expected)
        release(b, id);
}

void vm_barrier_check_exit(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    const struct vm_block *b = w->block;
    char place[256];
    for (uint32_t id = 0; id < VM_BARRIERS; id++) {
        const struct vm_barrier *bar = &b->barriers[id];
        if (bar->arrived && !bar->counted)
            vm_fault(w, i, vm_first(m), VM_FAULT,
                     "a thread ends while others of its block wait at barrier %u, at %s", id,
                     vm_place(b->grid->kernel, bar->where, place, sizeof place));
    }
}

/* ---- deadlock
 * -------------------------------------------------------------------------------------- */

/* Lanes of w that wait at the same instruction as its lane first. */
static uint32_t same_wait(const struct vm_warp *w, int first) {
    uint32_t m = 0;
    VM_LANES m |= (uint32_t)(w->wait[l] == w->wait[first] && w->lane_pc[l] == w->lane_pc[first])
                  << l;
    return m & w->live & ~w->exited;
}

static int describe(const struct vm_warp *w, uint32_t m, char *out, size_t bytes) {
    char place[256];
    int l = vm_first(m);
    bool barrier = w->wait[l] == VM_AT_BARRIER;
    vm_place(w->block->grid->kernel, w->lane_pc[l] - barrier, place, sizeof place);
    if (barrier)
        return snprintf(out, bytes, "\n  warp %u lanes 0x%08x wait at barrier %u, at %s", w->index,
                        m, w->wait_barrier[l], place);
    return snprintf(out, bytes, "\n  warp %u lanes 0x%08x wait for lanes 0x%08x, at %s", w->index,
                    m, w->wait_mask[l], place);
}

void vm_deadlock(struct vm_block *b) {
    char text[1200] = "";
    size_t used = 0;
    struct vm_warp *first = NULL;
    for (uint32_t n = 0; n < b->grid->num_warps; n++) {
        struct vm_warp *w = &b->warps[n];
        for (uint32_t left = w->live & ~w->exited, m; left; left &= ~m) {
            m = same_wait(w, vm_first(left));
            if (used < sizeof text)
                used += (size_t)describe(w, m, text + used, sizeof text - used);
            if (!first)
                first = w;
        }
    }
    int lane = vm_first(first->live & ~first->exited);
    const struct vm_inst *code = b->grid->kernel->code;
    uint32_t at = first->lane_pc[lane] - (first->wait[lane] == VM_AT_BARRIER);
    vm_fault(first, &code[at], lane, VM_FAULT, "deadlock: no thread of the block can go on%s",
             text);
}
