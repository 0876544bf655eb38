/* Loads and stores. A memory element may be narrower than its register: loads extend by their
 * type, stores truncate. */
#include "tests/ptxvm/exec_memory.h"

#include <immintrin.h>
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

/* ---- shared memory without an order
 * ------------------------------------------------------------------------ */

/* The usual case by offsets of 32 bits: a whole, aligned access inside of shared memory, in a grid
 * that is not watched. The states that all of its bytes have; 0 when it is not the usual case.
 * Lanes outside of m get the offset of one in it. */
static inline uint64_t shared_offsets(const struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                                      uint32_t bytes, uint32_t at[VM_WARP]) {
    const struct vm_grid *g = w->block->grid;
    if (i->wide || g->race || g->count_banks)
        return 0;
    const uint32_t *a = VM_REG(w, i->a, uint32_t);
    uint32_t first = a[vm_first(m)] + (uint32_t)i->imm, highest = 0, low = 0;
    if (m == VM_ALL) {
        VM_LANES at[l] = a[l] + (uint32_t)i->imm;
    } else {
        VM_LANES at[l] = (m >> l & 1) ? a[l] + (uint32_t)i->imm : first;
    }
    VM_LANES highest = at[l] > highest ? at[l] : highest;
    VM_LANES low |= at[l];
    if ((low & (bytes - 1)) || highest > g->shared_bytes - bytes)
        return 0;
    return vm_shadow_all(w->block->shadow, at, bytes);
}

/* A store needs places that exist and that no cp.async fills; it writes them. */
#define SHARED(T)                                                                                  \
    static void load_shared_##T(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {          \
        uint32_t at[VM_WARP], bytes = i->vec * (uint32_t)sizeof(T);                                \
        if (shared_offsets(w, i, m, bytes, at) != VM_SH_ALL_OK) {                                  \
            vm_load(w, i, m);                                                                      \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t n = 0; n < i->vec; n++) {                                                    \
            const uint8_t *from = w->block->shared + n * sizeof(T);                                \
            T *r = VM_REG(w, i->more[n], T), v[VM_WARP];                                           \
            VM_LANES v[l] = *(const T *)(const void *)(from + at[l]);                              \
            VM_LANES r[l] = (m >> l & 1) ? v[l] : r[l];                                            \
        }                                                                                          \
    }                                                                                              \
    static void store_shared_##T(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {         \
        uint32_t at[VM_WARP], bytes = i->vec * (uint32_t)sizeof(T);                                \
        uint64_t free = VM_SH_BYTES(VM_SH_EXISTS | VM_SH_SETTLED);                                 \
        uint64_t all = shared_offsets(w, i, m, bytes, at);                                         \
        if ((all & free) != free) {                                                                \
            vm_store(w, i, m);                                                                     \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t n = 0; n < i->vec; n++) {                                                    \
            uint8_t *to = w->block->shared + n * sizeof(T);                                        \
            uint8_t *shadow = w->block->shadow + n * sizeof(T);                                    \
            const T *r = VM_REG(w, i->more[n], T);                                                 \
            VM_LANES if (m >> l & 1) * (T *)(void *)(to + at[l]) = r[l];                           \
            if (all != VM_SH_ALL_OK)                                                               \
                VM_LANES *(T *)(void *)(shadow + at[l]) = (T)VM_SH_ALL_OK;                         \
        }                                                                                          \
        w->block->worker->stores++;                                                                \
    }
SHARED(uint16_t)
SHARED(uint32_t)
SHARED(uint64_t)

vm_exec vm_shared_handler(const struct vm_inst *i, bool store) {
    /* Where the register has the width of the element. */
    if (i->type == VM_U16 && i->kind == 0)
        return store ? store_shared_uint16_t : load_shared_uint16_t;
    if (i->type == VM_U32 && i->kind == 1)
        return store ? store_shared_uint32_t : load_shared_uint32_t;
    if (i->type == VM_U64 && i->kind == 2)
        return store ? store_shared_uint64_t : load_shared_uint64_t;
    return store ? vm_store : vm_load;
}

/* ---- parameters of the kernel, at one place for all lanes
 * --------------------------------------------------- */

/* Where the lanes of m read, NULL when that is not one place inside of the parameters. */
static inline const uint8_t *one_param(const struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                                       uint32_t bytes) {
    const struct vm_grid *g = w->block->grid;
    uint64_t at[VM_WARP], first, other = 0, size = g->kernel->params_bytes;
    vm_addresses(w, i->a, i->wide, i->imm, at);
    first = at[vm_first(m)];
    VM_LANES other |= (at[l] ^ first) & -(uint64_t)(m >> l & 1);
    if (other || first > size || bytes > size - first || first & (bytes - 1))
        return NULL;
    return g->params + first;
}

#define PARAM(T)                                                                                   \
    static void load_param_##T(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {           \
        const uint8_t *from = one_param(w, i, m, i->vec * (uint32_t)sizeof(T));                    \
        if (!from) {                                                                               \
            vm_load(w, i, m);                                                                      \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t n = 0; n < i->vec; n++) {                                                    \
            T *r = VM_REG(w, i->more[n], T), v;                                                    \
            memcpy(&v, from + n * sizeof(T), sizeof v);                                            \
            VM_LANES r[l] = (m >> l & 1) ? v : r[l];                                               \
        }                                                                                          \
    }
PARAM(uint32_t)
PARAM(uint64_t)

vm_exec vm_param_handler(const struct vm_inst *i) {
    return i->type == VM_U32 && i->kind == 1   ? load_param_uint32_t
           : i->type == VM_U64 && i->kind == 2 ? load_param_uint64_t
                                               : vm_load;
}

/* ---- vectors with an order
 * ------------------------------------------------------------------------------------- */

/* A GPU moves an aligned vector of 8 or 16 bytes at once, which kernels rely on that put a flag
 * next to the data. The same holds for aligned moves of processors with AVX. */
static bool moves_at_once(const struct vm_inst *i) {
    uint32_t bytes = (uint32_t)i->size * i->vec;
    return i->order && i->vec > 1 && (bytes == 8 || bytes == 16);
}

static void load_at_once(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                         const uint64_t at[VM_WARP]) {
    _Alignas(16) uint8_t bytes[16];
    uint64_t from[VM_WARP];
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        if (i->size * i->vec == 8) {
            uint64_t v = __atomic_load_n((const uint64_t *)(uintptr_t)at[l], __ATOMIC_ACQUIRE);
            memcpy(bytes, &v, sizeof v);
        } else {
            _mm_store_si128((__m128i *)(void *)bytes, *(const volatile __m128i *)(uintptr_t)at[l]);
        }
        from[l] = (uintptr_t)bytes;
        for (uint32_t n = 0; n < i->vec; n++)
            loads[i->type][i->kind](w->r + i->more[n], from, n * i->size, 1u << l);
    }
}

static void store_at_once(struct vm_warp *w, const struct vm_inst *i, uint32_t m,
                          const uint64_t at[VM_WARP]) {
    _Alignas(16) uint8_t bytes[16];
    uint64_t to[VM_WARP];
    for (; m; m &= m - 1) {
        int l = vm_first(m);
        to[l] = (uintptr_t)bytes;
        for (uint32_t n = 0; n < i->vec; n++)
            stores[i->type][i->kind](w->r + i->more[n], to, n * i->size, 1u << l);
        if (i->size * i->vec == 8) {
            uint64_t v;
            memcpy(&v, bytes, sizeof v);
            __atomic_store_n((uint64_t *)(uintptr_t)at[l], v, __ATOMIC_RELEASE);
        } else {
            *(volatile __m128i *)(uintptr_t)at[l] = _mm_load_si128((const __m128i *)(void *)bytes);
        }
    }
}

/* ---- all the others
 * ----------------------------------------------------------------------------------------- */

void vm_load(struct vm_warp *w, const struct vm_inst *i, uint32_t m) {
    uint64_t at[VM_WARP], seen[VM_WARP];
    vm_addresses(w, i->a, i->wide, i->imm, at);
    if (i->order)
        memcpy(seen, at, sizeof seen);
    vm_resolve(w, i, m, (enum ptx_space)i->space, at, (uint32_t)i->size * i->vec, VM_READ);
    if (moves_at_once(i)) {
        load_at_once(w, i, m, at);
    } else {
        mover move = loads[i->type][i->kind];
        for (uint32_t n = 0; n < i->vec; n++)
            move(w->r + i->more[n], at, n * i->size, m);
    }
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
    if (moves_at_once(i)) {
        store_at_once(w, i, m, at);
    } else {
        mover move = stores[i->type][i->kind];
        for (uint32_t n = 0; n < i->vec; n++)
            move(w->r + i->more[n], at, n * i->size, m);
    }
    w->block->worker->stores += i->space != PTX_LOCAL;
}
