/* The order of execution: which lanes of a warp run, and which warps of a block.
 *
 * A warp runs one group of lanes that are at the same instruction. Until it runs, waits or ends,
 * a lane's place is lane_pc; that of the running group is w->pc. The group runs up to w->limit,
 * where the next group waits: there they become one. By default the group with the lowest program
 * counter goes first (settings.h: schedule).
 *
 * A loop that polls memory must not keep the rest from running: at its backward branch the lanes
 * go into w->avoid, and when nobody else can run the warp, the block and the worker give way in
 * turn.
 */
#include "tests/ptxvm/settings.h"
#include "tests/ptxvm/vm.h"

/* Instructions of a group before another is chosen, and groups of a warp before the next warp. */
enum { SLICE = 65536, RANDOM_SLICE = 256, TURN = 1024, RANDOM_TURN = 4 };

uint64_t vm_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- groups of lanes
 * ------------------------------------------------------------------------------- */

void vm_scatter(struct vm_warp *w, uint32_t m, uint32_t pc) {
    VM_LANES w->lane_pc[l] = (m >> l & 1) ? pc : w->lane_pc[l];
    w->active &= ~m;
    if (!w->active)
        w->limit = 0;
    else if (w->limit > pc)
        w->limit = pc;
}

void vm_reschedule(struct vm_warp *w) {
    w->limit = 0;
}

static uint32_t lanes_at(const struct vm_warp *w, uint32_t pc) {
    uint32_t m = 0;
    VM_LANES m |= (uint32_t)(w->lane_pc[l] == pc) << l;
    return m & w->running;
}

/* The program counter of a lane of m: the lowest, the highest or any. */
static uint32_t chosen_pc(struct vm_warp *w, uint32_t m) {
    enum vm_schedule s = vm_settings()->schedule;
    if (s == VM_SCHEDULE_RANDOM) {
        for (uint32_t skip =
                 (uint32_t)(vm_random(&w->block->random) % (uint32_t)__builtin_popcount(m));
             skip; skip--)
            m &= m - 1;
        return w->lane_pc[vm_first(m)];
    }
    uint32_t low = UINT32_MAX, high = 0;
    VM_LANES {
        uint32_t below = (m >> l & 1) ? w->lane_pc[l] : UINT32_MAX;
        uint32_t above = (m >> l & 1) ? w->lane_pc[l] : 0;
        low = below < low ? below : low;
        high = above > high ? above : high;
    }
    return s == VM_SCHEDULE_MIN ? low : high;
}

static uint32_t next_group(const struct vm_warp *w, uint32_t pc) {
    uint32_t limit = UINT32_MAX, m = w->running & ~w->active;
    VM_LANES {
        uint32_t p = (m >> l & 1) && w->lane_pc[l] > pc ? w->lane_pc[l] : UINT32_MAX;
        limit = p < limit ? p : limit;
    }
    return limit;
}

/* Makes a group active and says how many instructions it may run; 0 when only lanes that poll are
 * left, which are eligible again after that. */
static uint32_t choose(struct vm_warp *w) {
    enum vm_schedule s = vm_settings()->schedule;
    uint32_t eligible = w->running & ~w->avoid;
    if (!eligible) {
        w->avoid = 0;
        return 0;
    }
    w->pc = chosen_pc(w, eligible);
    w->active = lanes_at(w, w->pc);
    w->avoid &= ~w->active;
    w->limit = s == VM_SCHEDULE_REVERSE ? UINT32_MAX : next_group(w, w->pc);
    if (s != VM_SCHEDULE_RANDOM)
        return SLICE;
    uint64_t r = vm_random(&w->block->random);
    uint32_t part = w->active & (uint32_t)(r >> 32);
    if (r % 4 == 0 && part)
        w->active = part;
    if (r % 8 < 2)
        w->limit = UINT32_MAX;
    return 1 + (uint32_t)(r >> 8) % RANDOM_SLICE;
}

/* ---- collectives
 * ----------------------------------------------------------------------------------- */

/* Lane l of the mask is not there yet: can it still come? */
static void check_absent(struct vm_warp *w, const struct vm_inst *i, uint32_t group, uint32_t mask,
                         int l) {
    char place[256];
    if (w->wait[l] != VM_AT_COLLECTIVE || !(w->wait_mask[l] & group))
        return;
    if (w->lane_pc[l] == i->where)
        vm_fault(w, i, vm_first(group), VM_FAULT,
                 "warp operation with mask 0x%08x, but lane %d came to it with mask 0x%08x", mask,
                 l, w->wait_mask[l]);
    vm_fault(w, i, vm_first(group), VM_FAULT,
             "divergent warp operation: lane %d of mask 0x%08x waits at another one, at %s", l,
             mask, vm_place(w->block->grid->kernel, w->lane_pc[l], place, sizeof place));
}

static void check_members(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          const uint32_t *members) {
    if (!members) {
        if (w->exited | ~w->live)
            vm_fault(w, i, vm_first(m), VM_FAULT,
                     "this operation needs all 32 lanes of the warp, and lanes 0x%08x %s",
                     w->exited | ~w->live, w->exited ? "have ended" : "do not exist");
        return;
    }
    for (uint32_t left = m; left; left &= left - 1) {
        int l = vm_first(left);
        if (!(members[l] >> l & 1))
            vm_fault(w, i, l, VM_FAULT,
                     "lane %d executes a warp operation whose mask 0x%08x does "
                     "not name it",
                     l, members[l]);
    }
}

static void wait_for_others(struct vm_warp *w, const struct vm_inst *i, uint32_t m, uint32_t mask) {
    for (uint32_t left = m; left; left &= left - 1) {
        w->wait[vm_first(left)] = VM_AT_COLLECTIVE;
        w->wait_mask[vm_first(left)] = mask;
    }
    vm_scatter(w, m, i->where);
    w->running &= ~m;
}

/* All lanes are here, and name all: the usual case. */
static bool is_complete(uint32_t here, const uint32_t *members) {
    uint32_t named = here;
    if (members)
        VM_LANES named &= members[l];
    return named == VM_ALL;
}

bool vm_collect(struct vm_warp *w, const struct vm_inst *i, uint32_t *m, const uint32_t *members) {
    uint32_t here = *m;
    if (is_complete(here, members))
        return true;
    check_members(w, i, here, members);
    uint32_t mask = members ? members[vm_first(here)] : VM_ALL;
    uint32_t group = here;
    for (uint32_t left = members ? here : 0; left; left &= left - 1)
        if (members[vm_first(left)] != mask)
            group &= ~(left & -left);
    if (group != here)
        vm_scatter(w, here & ~group, i->where);
    uint32_t wanted = mask & w->live & ~w->exited, come = group;
    for (uint32_t left = wanted & ~group; left; left &= left - 1) {
        int l = vm_first(left);
        if (w->wait[l] == VM_AT_COLLECTIVE && w->lane_pc[l] == i->where && w->wait_mask[l] == mask)
            come |= left & -left;
        else
            check_absent(w, i, group, mask, l);
    }
    if (come != wanted) {
        wait_for_others(w, i, group, mask);
        return false;
    }
    for (uint32_t left = come; left; left &= left - 1)
        w->wait[vm_first(left)] = VM_RUNNING;
    w->running |= come;
    w->active |= come;
    *m = come;
    return true;
}

/* ---- the end of a thread
 * --------------------------------------------------------------------------- */

/* Those who wait at collectives look again whether they are complete. */
static void wake_collectives(struct vm_warp *w) {
    VM_LANES if (w->wait[l] == VM_AT_COLLECTIVE) {
        w->wait[l] = VM_RUNNING;
        w->running |= 1u << l;
        if (w->limit > w->lane_pc[l])
            w->limit = w->lane_pc[l];
    }
}

void vm_exit_lanes(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    vm_copies_check_exit(w, i, m);
    vm_barrier_check_exit(w, i, m);
    w->exited |= m;
    w->running &= ~m;
    vm_scatter(w, m, w->pc);
    w->block->exited_threads += (uint32_t)__builtin_popcount(m);
    wake_collectives(w);
}

/* ---- running
 * --------------------------------------------------------------------------------------- */

/* Runs one group to its limit. */
static void run_group(struct vm_warp *w, uint32_t slice) {
    const struct vm_inst *code = w->block->grid->kernel->code;
    uint64_t instructions = 0, lanes = 0;
    for (; w->pc < w->limit && slice; slice--) {
        const struct vm_inst *i = &code[w->pc++];
        uint32_t m = w->active;
        if (i->guard >= 0) {
            uint32_t p = VM_PRED(w, (uint32_t)i->guard);
            m &= i->guard_not ? ~p : p;
        }
        instructions++;
        lanes += (uint32_t)__builtin_popcount(m);
        if (m)
            i->run(w, i, m);
    }
    struct ptxvm_counters *c = &w->block->worker->counters;
    w->steps += (int64_t)instructions;
    c->warp_instructions += instructions;
    c->lane_instructions += lanes;
    if (w->active)
        vm_scatter(w, w->active, w->pc);
}

/* A loop that does not poll memory either is not going to end. */
static void check_steps(struct vm_warp *w) {
    int64_t limit = vm_settings()->steps;
    if (w->steps <= limit || !w->running)
        return;
    int lane = vm_first(w->running);
    vm_fault(w, &w->block->grid->kernel->code[w->lane_pc[lane]], lane, VM_FAULT,
             "the kernel does not end: a warp has executed %lld instructions (PTXVM_STEPS)",
             (long long)limit);
}

/* Runs a warp until it waits, ends, only polls (false), or has had its turn. */
static bool run_warp(struct vm_warp *w) {
    int turn = vm_settings()->schedule == VM_SCHEDULE_RANDOM ? RANDOM_TURN : TURN;
    for (; w->running && turn; turn--) {
        uint32_t slice = choose(w);
        if (!slice) {
            w->steps = 0;
            return false;
        }
        run_group(w, slice);
        check_steps(w);
    }
    return true;
}

enum vm_progress vm_block_run(struct vm_block *b) {
    struct vm_grid *g = b->grid;
    enum vm_schedule s = vm_settings()->schedule;
    while (b->exited_threads < b->num_threads) {
        bool advanced = false, polling = false;
        uint32_t shift = s == VM_SCHEDULE_RANDOM ? (uint32_t)vm_random(&b->random) : 0;
        for (uint32_t n = 0; n < g->num_warps; n++) {
            uint32_t at =
                s == VM_SCHEDULE_REVERSE ? g->num_warps - 1 - n : (n + shift) % g->num_warps;
            if (!b->warps[at].running)
                continue;
            if (run_warp(&b->warps[at]))
                advanced = true;
            else
                polling = true;
        }
        if (atomic_load_explicit(&g->result, memory_order_relaxed) != VM_OK)
            return VM_DONE;
        if (advanced)
            vm_advance(g);
        else if (polling)
            return VM_YIELD;
        else
            vm_deadlock(b);
    }
    return VM_DONE;
}
