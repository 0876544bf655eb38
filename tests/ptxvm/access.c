/* Checks of memory accesses: bounds, alignment, what was never written; bank conflicts. */
#include "tests/ptxvm/access.h"

#include <stdio.h>
#include <string.h>

static const char *const verbs[] = {"reads", "writes", "updates"};

#define LOW_56 (((uint64_t)1 << 56) - 1)

void vm_addresses(const struct vm_warp *w, uint32_t base, bool wide, int64_t displacement,
                  uint64_t at[VM_WARP]) {
    if (wide) {
        const uint64_t *a = VM_REG(w, base, uint64_t);
        VM_LANES at[l] = a[l] + (uint64_t)displacement;
    } else {
        const uint32_t *a = VM_REG(w, base, uint32_t);
        VM_LANES at[l] = a[l] + (uint32_t)displacement;
    }
}

void vm_check_aligned(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                      const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    uint64_t low = 0;
    VM_LANES low |= at[l] & (uint64_t) - (int64_t)(m >> l & 1);
    if (!(low & (bytes - 1)))
        return;
    VM_LANES if ((m >> l & 1) && (at[l] & (bytes - 1)))
        vm_fault(w, i, l, VM_MISALIGNED, "%s %u bytes at 0x%llx, which is not a multiple of %u",
                 verbs[kind], bytes, (unsigned long long)at[l], bytes);
}

/* ---- global memory
 * ------------------------------------------------------------------------------- */

static _Noreturn void fault_global(struct vm_warp *w, const struct vm_inst *i, int lane,
                                   uint64_t at, uint32_t bytes, enum vm_access_kind kind) {
    struct vm_allocation a;
    unsigned long long p = at;
    if (at < 4096)
        vm_fault(w, i, lane, VM_BAD_ADDRESS, "%s %u bytes at address 0x%llx: a null pointer",
                 verbs[kind], bytes, p);
    if (!vm_find((const void *)(uintptr_t)at, &a) && !vm_find_near((uintptr_t)at, &a))
        vm_fault(w, i, lane, VM_BAD_ADDRESS, "%s %u bytes at 0x%llx: there is no device memory",
                 verbs[kind], bytes, p);
    if (a.freed && at - a.base < a.bytes)
        vm_fault(w, i, lane, VM_BAD_ADDRESS,
                 "%s %u bytes at 0x%llx: byte %llu of freed memory "
                 "(%s, %zu bytes)",
                 verbs[kind], bytes, p, p - a.base, a.label, a.bytes);
    if (at - a.base < a.bytes && bytes <= a.bytes - (at - a.base))
        vm_fault(w, i, lane, VM_BAD_ADDRESS,
                 "device %d %s %u bytes at 0x%llx: memory of device %d (%s), to which it has no "
                 "peer access",
                 w->block->grid->launch.device, verbs[kind], bytes, p, a.device, a.label);
    if (at >= a.base)
        vm_fault(w, i, lane, VM_BAD_ADDRESS,
                 "%s %u bytes at 0x%llx: byte %llu of %s, which has "
                 "%zu bytes",
                 verbs[kind], bytes, p, p - a.base, a.label, a.bytes);
    vm_fault(w, i, lane, VM_BAD_ADDRESS,
             "%s %u bytes at 0x%llx: %llu bytes before %s (%zu bytes); "
             "no device memory is there",
             verbs[kind], bytes, p, a.base - p, a.label, a.bytes);
}

static bool is_reachable(const struct vm_launch *launch, const struct vm_allocation *a) {
    return !a->freed && (a->kind == VM_PINNED || a->device == launch->device ||
                         (launch->peers >> a->device & 1));
}

/* The cached range of an instruction, empty when allocations have changed since. */
static struct vm_range *cached_range(struct vm_worker *k, const struct vm_inst *i) {
    uint32_t epoch = vm_memory_epoch();
    if (k->epoch != epoch) {
        memset(k->ranges, 0, sizeof k->ranges);
        k->epoch = epoch;
    }
    return &k->ranges[i->where % VM_RANGE_CACHE];
}

void vm_check_global(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                     const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    struct vm_range *r = cached_range(w->block->worker, i);
    uint64_t out = 0, size = r->end - r->base;
    uint64_t base = r->base, room = size - bytes;
    /* Both the distance from the start and the one to the end are not negative. */
    if (m == VM_ALL) {
        VM_LANES out |= (at[l] - base) | (room - (at[l] - base));
    } else {
        VM_LANES out |= ((at[l] - base) | (room - (at[l] - base))) & -(uint64_t)(m >> l & 1);
    }
    if (size >= bytes && !(out >> 63))
        return;
    VM_LANES {
        struct vm_allocation a;
        if (!(m >> l & 1) || (at[l] - r->base < r->end - r->base && at[l] + bytes <= r->end))
            continue;
        if (!vm_find((const void *)(uintptr_t)at[l], &a) ||
            !is_reachable(&w->block->grid->launch, &a) || at[l] + bytes > a.base + a.bytes)
            fault_global(w, i, l, at[l], bytes, kind);
        *r = (struct vm_range){a.base, a.base + a.bytes};
    }
}

/* ---- shared memory
 * --------------------------------------------------------------------------------- */

/* The variable whose place is nearest below or at an offset. */
static const struct vm_shared_variable *shared_at(const struct vm_kernel *k, uint64_t offset) {
    const struct vm_shared_variable *best = NULL;
    for (int32_t n = 0; n < k->num_shared; n++)
        if (k->shared[n].offset <= offset && (!best || k->shared[n].offset > best->offset))
            best = &k->shared[n];
    return best;
}

static _Noreturn void fault_shared(struct vm_warp *w, const struct vm_inst *i, int lane,
                                   uint64_t at, uint32_t bytes, enum vm_access_kind kind) {
    const struct vm_grid *g = w->block->grid;
    const struct vm_shared_variable *v = shared_at(g->kernel, at);
    struct ptx_text name =
        v ? vm_variable_name(v->var->name) : (struct ptx_text){"shared memory", 13};
    unsigned long long byte = at - (v ? v->offset : 0);
    size_t size = !v ? 0 : v->var->external ? g->launch.dynamic_shared : v->bytes;
    uint32_t state = VM_SH_OK, n = 0;
    for (; state == VM_SH_OK && n < bytes; n++)
        state = at + n < g->shared_bytes ? w->block->shadow[at + n] : 0;
    char what[400];
    snprintf(what, sizeof what, "%s %u bytes at byte %llu of shared %.*s (%zu bytes)", verbs[kind],
             bytes, byte, name.len, name.s, size);
    if (!(state & VM_SH_EXISTS))
        vm_fault(w, i, lane, VM_BAD_ADDRESS, "%s, past its end", what);
    if (!(state & VM_SH_WRITTEN))
        vm_fault(w, i, lane, VM_FAULT, "%s, of which byte %llu was never written", what,
                 byte + n - 1);
    vm_fault(w, i, lane, VM_FAULT, "%s, which a cp.async still fills: missing cp.async wait", what);
}

static inline bool all_ok(const uint8_t *shadow, uint32_t bytes) {
    uint64_t v;
    switch (bytes) {
    case 1:
        return shadow[0] == VM_SH_OK;
    case 2:
        return *(const uint16_t *)(const void *)shadow == (uint16_t)VM_SH_ALL_OK;
    case 4:
        return *(const uint32_t *)(const void *)shadow == (uint32_t)VM_SH_ALL_OK;
    default:
        for (uint32_t n = 0; n < bytes; n += 8) {
            memcpy(&v, shadow + n, 8);
            if (v != VM_SH_ALL_OK)
                return false;
        }
        return true;
    }
}

/* Passes over the banks: 32 banks of 4 bytes, as many lanes at a time as 128 bytes serve;
 * neighbours at one word share it. */
static void count_conflicts(struct vm_warp *w, uint32_t m, const uint64_t at[VM_WARP],
                            uint32_t bytes) {
    int together = bytes <= 4 ? 32 : (int)(128 / bytes);
    for (int first = 0; first < VM_WARP; first += together) {
        uint64_t words[32] = {0}; /* of each bank, the last word that was asked for, plus 1 */
        uint8_t count[32] = {0}, most = 1;
        for (int l = first; l < first + together; l++)
            for (uint64_t word = at[l] / 4; (m >> l & 1) && word * 4 < at[l] + bytes; word++) {
                uint32_t bank = word % 32;
                count[bank] += words[bank] != word + 1;
                words[bank] = word + 1;
                most = count[bank] > most ? count[bank] : most;
            }
        w->block->worker->counters.bank_conflicts += most - 1u;
    }
}

uint64_t vm_shadow_all(const uint8_t *shadow, const uint32_t at[VM_WARP], uint32_t bytes) {
    uint64_t all = VM_SH_ALL_OK, high = VM_SH_ALL_OK;
    switch (bytes) {
    case 1:
        VM_LANES all &= shadow[at[l]] * (VM_SH_ALL_OK / VM_SH_OK);
        break;
    case 2:
        VM_LANES all &= VM_SH_ALL_OK << 16 | *(const uint16_t *)(const void *)(shadow + at[l]);
        break;
    case 4:
        VM_LANES all &= VM_SH_ALL_OK << 32 | *(const uint32_t *)(const void *)(shadow + at[l]);
        break;
    case 16:
        VM_LANES {
            const uint64_t *s = (const uint64_t *)(const void *)(shadow + at[l]);
            all &= s[0];
            high &= s[1];
        }
        break;
    default:
        for (uint32_t n = 0; n < bytes; n += 8)
            VM_LANES all &= *(const uint64_t *)(const void *)(shadow + at[l] + n);
    }
    return all & high;
}

/* The usual case, without a branch for a lane. */
static bool all_lanes_ok(const struct vm_block *b, uint32_t m, const uint64_t at[VM_WARP],
                         uint32_t bytes) {
    uint32_t in[VM_WARP], highest = 0, first = (uint32_t)at[vm_first(m)];
    uint64_t high = 0, limit = b->grid->shared_bytes;
    VM_LANES high |= at[l] & -(uint64_t)(m >> l & 1);
    VM_LANES in[l] = (m >> l & 1) ? (uint32_t)at[l] : first;
    VM_LANES highest = in[l] > highest ? in[l] : highest;
    return !(high >> 32) && bytes <= limit && highest <= limit - bytes &&
           vm_shadow_all(b->shadow, in, bytes) == VM_SH_ALL_OK;
}

void vm_check_shared(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                     const uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    struct vm_block *b = w->block;
    uint64_t limit = b->grid->shared_bytes;
    if (b->grid->count_banks)
        count_conflicts(w, m, at, bytes);
    if (all_lanes_ok(b, m, at, bytes))
        return;
    VM_LANES {
        if (!(m >> l & 1))
            continue;
        if (at[l] > limit || bytes > limit - at[l])
            fault_shared(w, i, l, at[l], bytes, kind);
        uint8_t *s = b->shadow + at[l];
        if (all_ok(s, bytes))
            continue;
        if (kind != VM_WRITE)
            fault_shared(w, i, l, at[l], bytes, kind);
        for (uint32_t n = 0; n < bytes; n++)
            if (!(s[n] & VM_SH_EXISTS) || (s[n] & VM_SH_OK) == (VM_SH_EXISTS | VM_SH_WRITTEN))
                fault_shared(w, i, l, at[l] + n, bytes - n, kind);
        memset(s, VM_SH_OK, bytes);
    }
}

/* ---- all spaces
 * ------------------------------------------------------------------------------------- */

uint32_t vm_window_lanes(uint32_t m, uint64_t window, uint64_t at[VM_WARP]) {
    uint32_t in = 0;
    VM_LANES if ((m >> l & 1) && (at[l] & ~LOW_56) == window) {
        in |= 1u << l;
        at[l] &= LOW_56;
    }
    return in;
}

static void resolve_local(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    size_t frame = w->block->grid->kernel->local_bytes;
    VM_LANES if (m >> l & 1) {
        if (at[l] > frame || bytes > frame - at[l])
            vm_fault(w, i, l, VM_BAD_ADDRESS, "%s %u bytes at byte %llu of a stack frame of %zu",
                     verbs[kind], bytes, (unsigned long long)at[l], frame);
        at[l] += (uint64_t)(uintptr_t)w->local + (uint64_t)l * frame;
    }
}

static void resolve_param(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    const struct vm_grid *g = w->block->grid;
    size_t size = g->kernel->params_bytes;
    VM_LANES if (m >> l & 1) {
        if (kind != VM_READ || at[l] > size || bytes > size - at[l])
            vm_fault(w, i, l, VM_BAD_ADDRESS, "%s %u bytes at byte %llu of %zu of the parameters",
                     verbs[kind], bytes, (unsigned long long)at[l], size);
        at[l] += (uint64_t)(uintptr_t)g->params;
    }
}

static void resolve_generic(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                            uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    static const struct {
        uint64_t window;
        enum ptx_space space;
    } windows[] = {
        {VM_SHARED_WINDOW, PTX_SHARED}, {VM_LOCAL_WINDOW, PTX_LOCAL}, {VM_PARAM_WINDOW, PTX_PARAM}};
    uint32_t rest = m;
    uint64_t high = 0;
    VM_LANES high |= at[l] & (uint64_t) - (int64_t)(m >> l & 1);
    for (size_t n = 0; (high & ~LOW_56) && n < sizeof windows / sizeof *windows; n++) {
        uint32_t in = vm_window_lanes(rest, windows[n].window, at);
        if (in)
            vm_resolve(w, i, in, windows[n].space, at, bytes, kind);
        rest &= ~in;
    }
    if (rest)
        vm_resolve(w, i, rest, PTX_GLOBAL, at, bytes, kind);
}

void vm_resolve(struct vm_warp *w, const struct vm_inst *i, uint32_t m, enum ptx_space space,
                uint64_t at[VM_WARP], uint32_t bytes, enum vm_access_kind kind) {
    bool race = w->block->grid->race != NULL, atomic = kind == VM_UPDATE || i->order;
    if (space == PTX_GENERIC) {
        resolve_generic(w, i, m, at, bytes, kind);
        return;
    }
    vm_check_aligned(w, i, m, at, bytes, kind);
    switch (space) {
    case PTX_SHARED:
        vm_check_shared(w, i, m, at, bytes, kind);
        if (race)
            vm_race_accesses(w, i, m, true, at, bytes, kind != VM_READ, atomic);
        VM_LANES at[l] += (m >> l & 1) ? (uint64_t)(uintptr_t)w->block->shared : 0;
        break;
    case PTX_LOCAL:
        resolve_local(w, i, m, at, bytes, kind);
        break;
    case PTX_PARAM:
        resolve_param(w, i, m, at, bytes, kind);
        break;
    default:
        vm_check_global(w, i, m, at, bytes, kind);
        if (race && space == PTX_GLOBAL)
            vm_race_accesses(w, i, m, false, at, bytes, kind != VM_READ, atomic);
    }
}

void vm_order_lanes(struct vm_warp *w, uint32_t m, enum ptx_space space, const uint64_t at[VM_WARP],
                    uint32_t order) {
    if (!w->block->grid->race || !(order & (VM_ACQUIRE | VM_RELEASE)))
        return;
    uint64_t copy[VM_WARP];
    memcpy(copy, at, sizeof copy);
    uint32_t shared = space == PTX_SHARED    ? m
                      : space == PTX_GENERIC ? vm_window_lanes(m, VM_SHARED_WINDOW, copy)
                                             : 0;
    if (shared)
        vm_race_order(w, shared, copy, true, order);
    if (m & ~shared)
        vm_race_order(w, m & ~shared, copy, false, order);
}

void vm_poll(struct vm_warp *w, uint32_t m) {
    w->polled |= m;
    vm_reschedule(w);
}
