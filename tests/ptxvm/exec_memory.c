/* Loads and stores. A memory element may be narrower than its register: loads extend by their
 * type, stores truncate. */
#include "tests/ptxvm/exec_memory.h"

#include <string.h>

#include "tests/ptxvm/access.h"

typedef void (*mover)(void *reg, const uint64_t at[VM_WARP], uint32_t offset, uint32_t m);

#define LOAD(T, R)                                                                                 \
    static void load_##T##_##R(void *reg, const uint64_t at[VM_WARP], uint32_t offset,             \
                               uint32_t m) {                                                       \
        R *r = reg;                                                                                \
        if (m == VM_ALL) {                                                                         \
            VM_LANES r[l] = (R) * (const T *)(uintptr_t)(at[l] + offset);                          \
        } else {                                                                                   \
            VM_LANES if (m >> l & 1) r[l] = (R) * (const T *)(uintptr_t)(at[l] + offset);          \
        }                                                                                          \
    }
#define STORE(T, R)                                                                                \
    static void store_##T##_##R(void *reg, const uint64_t at[VM_WARP], uint32_t offset,            \
                                uint32_t m) {                                                      \
        const R *r = reg;                                                                          \
        VM_LANES if (m >> l & 1) * (T *)(uintptr_t)(at[l] + offset) = (T)r[l];                     \
    }
LOAD(uint8_t, uint16_t)
LOAD(uint8_t, uint32_t)
LOAD(uint8_t, uint64_t)
LOAD(uint16_t, uint16_t)
LOAD(uint16_t, uint32_t)
LOAD(uint16_t, uint64_t)
LOAD(uint32_t, uint32_t)
LOAD(uint32_t, uint64_t)
LOAD(uint64_t, uint64_t)
LOAD(int8_t, uint16_t)
LOAD(int8_t, uint32_t)
LOAD(int8_t, uint64_t)
LOAD(int16_t, uint32_t)
LOAD(int16_t, uint64_t)
LOAD(int32_t, uint64_t)
STORE(uint8_t, uint16_t)
STORE(uint8_t, uint32_t)
STORE(uint8_t, uint64_t)
STORE(uint16_t, uint16_t)
STORE(uint16_t, uint32_t)
STORE(uint16_t, uint64_t)
STORE(uint32_t, uint32_t)
STORE(uint32_t, uint64_t)
STORE(uint64_t, uint64_t)

/* [element][register: 2, 4, 8 bytes]; the decoder lets no element meet a register that is narrower.
 */
static const mover loads[VM_NUM_ELEMENTS][3] = {
    [VM_U8] = {load_uint8_t_uint16_t, load_uint8_t_uint32_t, load_uint8_t_uint64_t},
    [VM_U16] = {load_uint16_t_uint16_t, load_uint16_t_uint32_t, load_uint16_t_uint64_t},
    [VM_U32] = {NULL, load_uint32_t_uint32_t, load_uint32_t_uint64_t},
    [VM_U64] = {NULL, NULL, load_uint64_t_uint64_t},
    [VM_S8] = {load_int8_t_uint16_t, load_int8_t_uint32_t, load_int8_t_uint64_t},
    [VM_S16] = {load_uint16_t_uint16_t, load_int16_t_uint32_t, load_int16_t_uint64_t},
    [VM_S32] = {NULL, load_uint32_t_uint32_t, load_int32_t_uint64_t},
};
static const mover stores[4][3] = {
    [VM_U8] = {store_uint8_t_uint16_t, store_uint8_t_uint32_t, store_uint8_t_uint64_t},
    [VM_U16] = {store_uint16_t_uint16_t, store_uint16_t_uint32_t, store_uint16_t_uint64_t},
    [VM_U32] = {NULL, store_uint32_t_uint32_t, store_uint32_t_uint64_t},
    [VM_U64] = {NULL, NULL, store_uint64_t_uint64_t},
};

void vm_load(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP], seen[VM_WARP];
    vm_addresses(w, i->a, i->wide, i->imm, at);
    if (i->order)
        memcpy(seen, at, sizeof seen);
    vm_resolve(w, i, m, (enum ptx_space)i->space, at, (uint32_t)i->size * i->vec, VM_READ);
    mover move = loads[i->type][i->kind];
    for (uint32_t n = 0; n < i->vec; n++)
        move(w->r + i->more[n], at, n * i->size, m);
    if (!i->order)
        return;
    vm_order_lanes(w, m, (enum ptx_space)i->space, seen, i->order);
    vm_poll(w, m);
}

void vm_store(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP];
    vm_addresses(w, i->a, i->wide, i->imm, at);
    if (i->order)
        vm_order_lanes(w, m, (enum ptx_space)i->space, at, i->order);
    vm_resolve(w, i, m, (enum ptx_space)i->space, at, (uint32_t)i->size * i->vec, VM_WRITE);
    mover move = stores[i->type][i->kind];
    for (uint32_t n = 0; n < i->vec; n++)
        move(w->r + i->more[n], at, n * i->size, m);
    if (i->order)
        atomic_fetch_add_explicit(&w->block->grid->progress, 1, memory_order_relaxed);
}
