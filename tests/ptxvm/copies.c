/* cp.async: copies on their way, and their arrival. */
#include "tests/ptxvm/copies.h"

#include <string.h>

#include "tests/ptxvm/access.h"
#include "tests/ptxvm/settings.h"

enum { PENDING = VM_SH_EXISTS | VM_SH_WRITTEN };

/* Nearly all copies have 16 bytes, which a call of memset would spend most of its time to find out.
 */
static inline void fill(uint8_t *to, int value, size_t bytes) {
    if (bytes == 16)
        memset(to, value, 16);
    else
        memset(to, value, bytes);
}

static void arrive(struct vm_warp *w, const struct vm_copy *c) {
    struct vm_block *b = w->block;
    uint8_t *to = b->shared + c->to;
    if (c->from_bytes == 16) {
        memcpy(to, c->from, 16);
    } else {
        memcpy(to, c->from, c->from_bytes);
        memset(to + c->from_bytes, 0, (size_t)c->bytes - c->from_bytes);
    }
    fill(b->shadow + c->to, VM_SH_OK, c->bytes);
}

static void note(struct vm_warp *w, const struct vm_copy *c) {
    fill(w->block->shared + c->to, 0xff, c->bytes);
    fill(w->block->shadow + c->to, PENDING, c->bytes);
    if (w->num_copies == w->cap_copies)
        w->copies = ptx_grow(w->copies, w->num_copies, &w->cap_copies, sizeof *w->copies);
    w->copies[w->num_copies++] = *c;
}

/* Bytes that each lane reads; the rest of its copy is zero. */
static void bytes_to_read(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          uint32_t from_bytes[VM_WARP]) {
    VM_LANES {
        from_bytes[l] = i->size;
        if (i->kind == VM_COPY_PART)
            from_bytes[l] = VM_REG(w, i->b, uint32_t)[l];
        else if (i->kind == VM_COPY_UNLESS && (VM_PRED(w, i->b) >> l & 1) != i->negate_c)
            from_bytes[l] = 0;
        if ((m >> l & 1) && from_bytes[l] > i->size)
            vm_fault(w, i, l, VM_BAD_INSTRUCTION, "cp.async of %u bytes is to read %u of them",
                     i->size, from_bytes[l]);
    }
}

/* Nothing is read of a copy of zeros, so its source may lie anywhere. */
static void check_source(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                         const uint64_t from[VM_WARP], const uint32_t from_bytes[VM_WARP]) {
    vm_check_aligned(w, i, m, from, i->size, VM_READ);
    uint32_t whole = 0;
    VM_LANES whole |= (uint32_t)(from_bytes[l] == i->size) << l;
    vm_check_global(w, i, m & whole, from, i->size, VM_READ);
    VM_LANES if ((m & ~whole) >> l & 1 && from_bytes[l])
        vm_check_global(w, i, 1u << l, from, from_bytes[l], VM_READ);
    if (!w->block->grid->race)
        return;
    VM_LANES if ((m >> l & 1) && from_bytes[l])
        vm_race_access(w, i, l, false, from[l], from_bytes[l], false, false);
}

void vm_copy_issue(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t to[VM_WARP], from[VM_WARP];
    uint32_t from_bytes[VM_WARP];
    int64_t displacement =
        (int64_t)((uint64_t)i->more[VM_COPY_FROM_HIGH] << 32 | i->more[VM_COPY_FROM_LOW]);
    vm_addresses(w, i->a, i->wide, i->imm, to);
    vm_addresses(w, i->more[VM_COPY_FROM], i->more[VM_COPY_FROM_WIDE], displacement, from);
    bytes_to_read(w, i, m, from_bytes);
    check_source(w, i, m, from, from_bytes);
    vm_check_aligned(w, i, m, to, i->size, VM_WRITE);
    vm_check_shared(w, i, m, to, i->size, VM_WRITE);
    if (w->block->grid->race)
        vm_race_accesses(w, i, m, true, to, i->size, true, false);
    bool eager = vm_settings()->eager_copies;
    VM_LANES if (m >> l & 1) {
        struct vm_copy c = {.from = (const uint8_t *)(uintptr_t)from[l],
                            .to = (uint32_t)to[l],
                            .group = w->copy_group[l],
                            .lane = (uint8_t)l,
                            .bytes = i->size,
                            .from_bytes = (uint8_t)from_bytes[l],
                            .where = i->where};
        if (eager)
            arrive(w, &c);
        else
            note(w, &c);
    }
}

void vm_copy_commit(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    (void)i;
    VM_LANES w->copy_group[l] += m >> l & 1;
}

static bool is_waited_for(const struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          const struct vm_copy *c) {
    if (!(m >> c->lane & 1))
        return false;
    return i->imm < 0 || c->group + i->imm < w->copy_group[c->lane];
}

void vm_copy_wait(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    int32_t kept = 0;
    bool race = w->block->grid->race != NULL;
    for (int32_t n = 0; n < w->num_copies; n++) {
        const struct vm_copy c = w->copies[n];
        if (!is_waited_for(w, i, m, &c)) {
            w->copies[kept++] = c;
            continue;
        }
        /* The bytes are written between issue and wait: both ends have to be free of races. */
        if (race)
            vm_race_access(w, &w->block->grid->kernel->code[c.where], c.lane, true, c.to, c.bytes,
                           true, false);
        arrive(w, &c);
    }
    w->num_copies = kept;
}

void vm_copies_check_exit(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    for (int32_t n = 0; n < w->num_copies; n++) {
        const struct vm_copy *c = &w->copies[n];
        char place[256];
        if (m >> c->lane & 1)
            vm_fault(w, i, c->lane, VM_FAULT,
                     "the thread ends without waiting for the cp.async that it issued at %s",
                     vm_place(w->block->grid->kernel, c->where, place, sizeof place));
    }
}
